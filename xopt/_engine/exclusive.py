"""One call at a time: whose turn it is, and whether the arrays are fit for it."""

from __future__ import annotations

import threading

from xopt._engine.executor import Executor


class ExclusiveAccess:
    """Refuses a call while another thread is in one, and after a step that was interrupted while it wrote.

    ::

        with turns.free("step"):
            turns.check("step")
            ...

    The lock is taken and released by the ``with`` itself, where Ctrl-C cannot come in between.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor, self._lock = executor, threading.Lock()
        self.swapped = False
        """Whether averages stand in the place of the parameters."""

    def free(self, what: str) -> threading.Lock:
        """Return the lock; RuntimeError if somebody has it."""
        if self._lock.locked():
            raise RuntimeError(f"{what}: another thread is in a step, or another method, of this optimizer")
        return self._lock

    def check(self, what: str, *, torn: bool = False, swapped: bool = False) -> None:
        """Say why this is no time for a call, unless it makes torn arrays whole, or needs no parameters."""
        if self.swapped and not swapped:
            raise RuntimeError(f"{what}: the parameters are averages until the block of averaged() ends")
        if self._executor.torn and not torn:
            raise RuntimeError(
                f"{what}: a step, or a load, was interrupted while it wrote: some arrays are new and some are old; "
                f"load a checkpoint, or make another optimizer"
            )
