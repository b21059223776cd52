"""Nonlinear least squares: one fit, or many at once, each a lane."""
