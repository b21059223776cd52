"""One call at a time: whose turn it is, and whether the arrays are fit for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from xopt._stages import Stages


class Turns:
    """Refuses a call while another thread is in one, and after a step that was interrupted while it wrote."""

    def __init__(self, stages: Stages) -> None:
        self._stages, self._lock = stages, threading.Lock()
        self.swapped = False
        """Whether averages stand in the place of the parameters."""

    def enter(self, what: str, repair: bool = False) -> None:
        """Begin a call, or say why this is no time for it; ``repair``: it makes torn arrays whole."""
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(f"{what}: another thread is in a step, or another method, of this optimizer")
        why = "the parameters are averages until the block of averaged() ends" if self.swapped else ""
        if self._stages.torn and not repair:
            why = (
                "a step, or a load, was interrupted while it wrote: some arrays are new and some are old. Load a "
                "checkpoint, or make another optimizer"
            )
        if why:
            self.leave()
            raise RuntimeError(f"{what}: {why}")

    def leave(self) -> None:
        """End a call."""
        self._lock.release()

    @contextmanager
    def inside(self, what: str, repair: bool = False) -> Iterator[None]:
        """Return a context for a call."""
        self.enter(what, repair)
        try:
            yield
        finally:
            self.leave()
