"""Tests of the llvm runner."""
