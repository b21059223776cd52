"""NumPy, tile after tile: temporaries stay in the cache."""
