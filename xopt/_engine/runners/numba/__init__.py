"""Loops that Numba compiles for a CPU."""
