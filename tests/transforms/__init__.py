"""Tests of the links of a chain, and of what stands around a rule."""
