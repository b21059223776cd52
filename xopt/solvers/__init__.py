"""Solvers: directions and line searches on vectors, whatever holds them."""
