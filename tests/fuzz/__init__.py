"""Random compositions of everything that there is, run on every path and compared: ``python -m fuzz --minutes 30``."""
