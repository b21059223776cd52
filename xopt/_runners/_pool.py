"""One pool of threads for every runner, and scratch memory that they hand around."""

from __future__ import annotations

import functools
import os
import re
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from xopt._arrays import aligned

_LIMIT = 8
"""More threads than this only wait for memory."""

_lock = threading.Lock()
_pool: Any = None
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
    global _pool, _lock, _scratch
    _pool, _lock, _scratch = None, threading.Lock(), deque()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def run(jobs: list[Callable[[], None]]) -> None:
    """Run jobs that take their work from one queue, the first on the calling thread, and wait for all of them.

    A helper that cannot be started is done without: whoever runs takes all the work there is.
    """
    futures = []
    helpers = [_Helper(job) for job in jobs[1:]]
    try:
        if helpers:
            try:
                pool = _threads()
                for helper in helpers:
                    futures.append(pool.submit(helper))  # noqa: PERF401 (those that started count if a later one does not)
            except RuntimeError:  # no more threads, or the interpreter is shutting down
                pass
        jobs[0]()
    finally:
        errors = [f.exception() for f in futures]
        for helper in helpers[len(futures) :]:
            helper.close()
    for error in errors:
        if error is not None:
            raise error


class _Helper:
    """A job that can be called off: a pool that fails to start a thread has already put it in its queue."""

    def __init__(self, job: Callable[[], None]) -> None:
        self._job: Callable[[], None] | None = job
        self._running = threading.Lock()

    def __call__(self) -> None:
        with self._running:
            if self._job is not None:
                self._job()

    def close(self) -> None:
        """Wait for it if it runs, and let it never start if it does not."""
        with self._running:
            self._job = None


def _threads() -> Any:
    global _pool
    with _lock:
        if _pool is None:
            from concurrent.futures import ThreadPoolExecutor  # 11 ms that `import xopt` does without

            _pool = ThreadPoolExecutor(_LIMIT, thread_name_prefix="xopt")
        return _pool


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
