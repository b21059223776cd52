"""Tests of the components of a chain, and of what stands around a rule."""
