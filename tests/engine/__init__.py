"""Tests of the engine: how steps are recorded, planned and run."""
