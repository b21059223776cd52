"""What a library does otherwise than the standard says: a file for each, of the name of its package."""
