"""Tests of what is saved and loaded, in the format of xopt and in those of others."""
