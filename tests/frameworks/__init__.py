"""xopt in the training loops of other frameworks: `nox -s frameworks`."""
