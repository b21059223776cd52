"""A chain as programs of elementwise operations: recorded, lowered, stored."""
