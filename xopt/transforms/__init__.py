"""Gradient transforms, weight averaging, projections, parameter groups, and wrappers around a rule."""
