"""Kernels that NVRTC compiles for a GPU."""
