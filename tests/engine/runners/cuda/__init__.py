"""Tests of the cuda runner, with a GPU and without."""
