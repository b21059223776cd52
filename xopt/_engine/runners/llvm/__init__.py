"""Loops that LLVM compiles for a CPU."""
