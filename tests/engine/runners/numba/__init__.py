"""Tests of the numba runner."""
