"""Tests of Optimizer: its state, its errors, what may interrupt it, and how it is explained."""
