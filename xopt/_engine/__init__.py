"""Runs a chain of components over a tree of arrays. It knows no rule."""
