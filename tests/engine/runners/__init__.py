"""Tests of runners: each has the bits of the eager one."""
