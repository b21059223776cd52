"""The maths: one file a family of rules."""
