"""Tests of the rules: their numbers, and that they converge."""
