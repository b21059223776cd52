"""Tests of programs: what is recorded of a rule, and what is made of it."""
