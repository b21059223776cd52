"""One pool of threads for every runner, and scratch memory that they hand around."""

from __future__ import annotations

import functools
import os
import re
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np

from xopt._arrays import aligned

_LIMIT = 8
"""More threads than this only wait for memory."""

_lock = threading.Lock()
_started = 0
_waiting: SimpleQueue[_Helper] = SimpleQueue()
_scratch: deque[np.ndarray[Any, Any]] = deque()


def threads() -> int:
    """Return how many threads a large step may use: the processors this process may run on, 8 at most."""
    try:
        return min(_LIMIT, len(os.sched_getaffinity(0)))
    except AttributeError:  # macOS and Windows
        return min(_LIMIT, os.cpu_count() or 1)


@functools.cache
def cache() -> int:
    """Return the bytes of a core's second-level cache: what Linux says, elsewhere what most processors have."""
    try:
        with open("/sys/devices/system/cpu/cpu0/cache/index2/size", encoding="ascii") as file:
            size, unit = re.fullmatch(r"(\d+)([KM])\s*", file.read()).groups()  # type: ignore[union-attr]
    except (OSError, AttributeError):
        return 1 << 20
    return int(size) << {"K": 10, "M": 20}[unit]


def _forget() -> None:
    """Start afresh in a forked child: threads do not survive a fork, and the lock may have been held."""
    global _started, _waiting, _lock, _scratch
    _started, _waiting, _lock, _scratch = 0, SimpleQueue(), threading.Lock(), deque()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def run(jobs: list[Callable[[], None]]) -> None:
    """Run jobs that take their work from one queue, the first on the calling thread, and wait for all of them.

    A helper that cannot be started is done without: whoever runs takes all the work there is. No thread outlives the
    call, also not after Ctrl-C, which may come at any moment: nobody may write when the caller goes on.
    """
    helpers = [_Helper(job) for job in jobs[1:]]
    interrupts: list[BaseException] = []
    failed = True
    try:
        if helpers:
            _start(len(helpers))
        for helper in helpers if _started else []:
            _waiting.put(helper)
        jobs[0]()
        failed = False
    finally:
        left = deque(helpers)
        while left:
            try:
                while left:
                    left[0](failed)
                    left.popleft()
            except BaseException as interrupt:  # of a handler of signals: jobs raise nothing here
                interrupts.append(interrupt)
                failed = True
    for error in [*interrupts, *(helper.error for helper in helpers)]:
        if error is not None:
            raise error


class _Helper:
    """A job that whoever comes first does, a thread of the pool or the one that waits for it."""

    def __init__(self, job: Callable[[], None]) -> None:
        self._job: Callable[[], None] | None = job
        self._running = threading.Lock()
        self.error: BaseException | None = None

    def __call__(self, cancel: bool = False) -> None:
        """Do it, unless it was done or nobody needs it any more; wait for it if it is being done."""
        with self._running:
            job, self._job = self._job, None
            if job is not None and not cancel:
                try:
                    job()
                except BaseException as error:
                    self.error = error


def _start(count: int) -> None:
    """Start so many threads, if they can be started and there are not so many yet.

    Not those of ``concurrent.futures``: Ctrl-C can break their locks, which are not taken in one component.
    """
    global _started
    with _lock:
        try:
            while _started < min(count, _LIMIT):
                threading.Thread(target=_work, args=(_waiting,), name=f"xopt-{_started}", daemon=True).start()
                _started += 1
        except RuntimeError:  # no more threads, or the interpreter is shutting down
            pass


def _work(waiting: SimpleQueue[_Helper]) -> None:
    while True:
        waiting.get()()


def borrow(size: int) -> np.ndarray[Any, Any]:
    """Take a block of at least ``size`` bytes, aligned to 64; give it back with :func:`give`."""
    try:
        block = _scratch.pop()
    except IndexError:
        block = np.empty(0, np.uint8)
    if block.size < size:
        block = aligned(size, np.dtype(np.uint8))
    return block


def give(block: np.ndarray[Any, Any]) -> None:
    """Return a block for the next step. A few are kept, one a thread."""
    if len(_scratch) < _LIMIT:
        _scratch.append(block)


def _step(n: int, t: np.dtype[Any]) -> int:
    """Return the bytes for n elements: whole cache lines, and a few more.

    Arrays that lie a power of two apart fight for the same lines of the cache.
    """
    return (-(-n * t.itemsize // 64) + 5) * 64


def room(n: int, *sets: list[np.dtype[Any]]) -> int:
    """Return the bytes of a block that :func:`carve` makes arrays of n elements out of."""
    return sum(_step(n, t) for types in sets for t in types)


def carve(block: np.ndarray[Any, Any], n: int, *sets: list[np.dtype[Any]]) -> list[list[np.ndarray[Any, Any]]]:
    """Make scratch arrays of n elements out of a block of bytes, one a dtype, in the same sets."""
    at = 0
    made: list[list[np.ndarray[Any, Any]]] = []
    for types in sets:
        made.append([])
        for t in types:
            made[-1].append(block[at : at + n * t.itemsize].view(t))
            at += _step(n, t)
    return made
