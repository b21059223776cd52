"""Tests of bugs that happened, to us and to others; each was seen red once."""
