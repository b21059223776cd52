"""The benchmark: ``python -m benchmarks`` measures, ``python -m benchmarks.report`` writes the page and the plots."""
