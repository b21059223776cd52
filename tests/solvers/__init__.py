"""Tests of minimize, its solvers and what SciPy has like them."""
