"""The version, where the build and checkpoints find it."""

__version__ = "0.1.0"
