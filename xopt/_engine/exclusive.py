"""One call at a time: whose turn it is, and whether the arrays are fit for it."""

from __future__ import annotations

import threading
from types import TracebackType


class Writing:
    """A ``with`` block that writes into arrays: an exception that leaves it after the first write leaves them torn.

    ::

        with writing:
            ...
            writing.begin()
            ...
    """

    def __init__(self) -> None:
        self.torn = False
        """Whether some arrays may be new and some old."""
        self.entered = False
        """Whether the block was entered since somebody set this to False."""
        self.alone = False
        """Whether no other process has to know of this block."""
        self._begun = False

    def __enter__(self) -> None:
        self._begun = False
        self.entered = True

    def begin(self) -> None:
        """Say that the first write comes now."""
        self._begun = self.torn = True

    def cancel(self) -> None:
        """Say that nothing was written after all."""
        self._begun = self.torn = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._begun:
            self.torn = error is not None


class ExclusiveAccess:
    """Refuses a call while another thread is in one, and after a step that was interrupted while it wrote.

    ::

        with access.acquire("step"):
            access.check("step")
            ...

    The lock is taken and released by the ``with`` itself, where Ctrl-C cannot come in between.
    """

    def __init__(self, writing: Writing) -> None:
        self._writing, self._lock = writing, threading.Lock()
        self.swapped = False
        """Whether averages stand in the place of the parameters."""

    def acquire(self, what: str) -> threading.Lock:
        """Return the lock; RuntimeError if somebody has it."""
        if self._lock.locked():
            raise RuntimeError(f"{what}: another thread is in a step, or another method, of this optimizer")
        return self._lock

    def check(self, what: str, *, torn: bool = False, swapped: bool = False) -> None:
        """Say why this is no time for a call, unless it makes torn arrays whole, or needs no parameters."""
        if self.swapped and not swapped:
            raise RuntimeError(f"{what}: the parameters are averages until the block of averaged() ends")
        if self._writing.torn and not torn:
            raise RuntimeError(
                f"{what}: a step, or a load, was interrupted while it wrote: some arrays are new and some are old; "
                f"load a checkpoint, or make another optimizer"
            )
