"""What differs between array libraries, and trees of arrays. It imports nothing else of the package."""
