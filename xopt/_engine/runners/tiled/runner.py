"""The tiled runner: NumPy, a tile at a time, so that every intermediate result stays in cache.

It serves NumPy arrays and CPU arrays of other libraries that share memory with one. A large leaf is cut into tiles
that are spread over threads. Small leaves are gathered into one tile, computed together, and scattered. A leaf whose
memory is not in C order is copied block by block through scratch, a slower path with the same bits.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from xopt import _arrays
from xopt._arrays import Library
from xopt._engine.program import summation as _summation
from xopt._engine.program.contract import BucketStep, StepScalars
from xopt._engine.program.quantize import BLOCK
from xopt._engine.program.trace import Program
from xopt._engine.runners import eager
from xopt._engine.runners import threads as _threads
from xopt._engine.runners.fallback import Shared
from xopt._engine.runners.tiled.codegen import numpy_kernel
from xopt._engine.runners.tiled.tiles import Large, Ready, Small, Sums
from xopt._engine.runners.tiled.tiling import Leaves, NDArray, Task, pairs

_PARALLEL = 262_144
"""Elements from which on a second thread is worth waking."""


def fitting(arrays: int, dtype: Any, split: bool) -> int:
    """Return the elements of a tile: as many as fit, with one register, in a core's second-level cache.

    A power of two, and never so few that the calls cost more than the arithmetic.
    """
    size = np.dtype(dtype.real if split else dtype.compute).itemsize
    room = 0.8 * _threads.cache() / ((arrays + 1) * size)
    return 1 << min(max(int(math.log2(room)), 13), 17)


class Tiled:
    """A runner with a tile size and a number of threads; None is what suits the work and the cache.

    With threads, large leaves are cut into parts of two tiles: every NumPy call waits its turn for the interpreter, so
    fewer calls are better than a better fit in cache. Small leaves stay on the calling thread: they are mostly
    interpreter, which only one thread can run.
    """

    name = "tiled"
    host = True
    """Scalars are Python floats: what the host computes, and what it reads from arrays it shares memory with."""
    caches = True
    inspector = None
    copy = None
    again = staticmethod(eager.again)
    total = staticmethod(_summation.total)

    def __init__(self, tile: int | None = None, threads: int | None = None) -> None:
        self._fixed, self.threads = tile, threads

    def source(
        self, program: Program, title: str, stored: Mapping[str, str], real: str, split: bool, body: bool
    ) -> str:
        """Return the function of a tile."""
        return numpy_kernel(program).source.rstrip()

    def _tile(self, work: BucketStep) -> int:
        tile = self._fixed or fitting(len(work.loads), work.dtype, work.split)
        return -(-tile // BLOCK) * BLOCK if work.plan.codes else tile

    def _cut(self, leaves: Leaves, tile: int, apart: bool = False) -> tuple[list[Task], list[Task], int]:
        """Return the tasks of small leaves, those of large ones, and how many threads these may use."""
        threads = self.threads or (_threads.threads() if sum(leaves.sizes) >= _PARALLEL else 1)
        tasks = leaves.tasks(tile, tile if self._fixed or threads == 1 else 2 * tile, apart=apart)
        small = [task for task in tasks if len(task.leaves) > 1]
        return small, [task for task in tasks if len(task.leaves) == 1], threads

    def prepare(
        self, work: BucketStep, values: StepScalars, into: dict[str, list[Any]] | None
    ) -> Callable[[], dict[str, list[Any]]]:
        """Return a function that runs the whole chain over every leaf; what can fail fails here, before any write.

        Its results land in ``into`` where that is given, else in fresh arrays.
        """
        leaves, stores, made = _leaves(work), work.outputs, into
        if work.plan.codes and not all(leaves.plain):
            return Shared(work, values, leaves.plain, self, _ByLeaf()).prepare(into)
        if made is None:
            made = {n: fresh_arrays(work, n) for n in work.outputs}
            fresh = {f"new {n}": _views(work.library, column, work.split) for n, column in made.items()}
            leaves, stores = leaves.joined(fresh), tuple(fresh)
        tile = self._tile(work)
        small, large, threads = self._cut(leaves, tile, apart=bool(work.plan.codes))
        ready: list[Ready] = []
        if small:
            ready.append(Small(work, values, leaves, stores).ready(small, tile))
        if large:
            ready.append(Large(work, values, leaves, stores).ready(large, 2 * tile, threads))

        def finish() -> dict[str, list[Any]]:
            _go(ready)
            return made

        return finish

    def places(self, library: Library, params: list[Any], slots: int, dtype: Any, split: bool) -> tuple[list[int], int]:
        """Say where each of the ``slots`` states of each leaf should lie in a buffer, and how long that is.

        Leaves that are computed together lie end to end, and each tile starts on a cache line.
        """
        at, end = [0] * len(params), 0
        tile = self._fixed or fitting(slots + 2, dtype, split)
        small, large, _ = self._cut(Leaves({"p": _views(library, params, split=False)}), tile)
        for task in [*small, *large]:
            if task.low == 0:
                end = -(-end // 16) * 16
                for leaf in task.leaves:
                    at[leaf], end = end, end + math.prod(params[leaf].shape)
        return at, end

    def sums(self, work: BucketStep, values: StepScalars, index: int) -> dict[str, NDArray]:
        """Return the sums that component ``index`` asks for, a vector over the leaves, in the order of `summation`."""
        leaves, apart = _leaves(work), bool(work.plan.codes)
        if apart and not all(leaves.plain):
            return Shared(work, values, leaves.plain, self, _ByLeaf()).sums(index)
        tile = min(self._tile(work), _summation.CHUNK)
        run = Sums(work, index, values, leaves, tile)
        tasks = leaves.tasks(tile, _summation.CHUNK, whole=True, apart=apart)
        _go([run.ready(tasks, tile, self._cut(leaves, tile, apart)[2])])
        chunks: list[list[list[float]]] = [[] for _ in leaves.sizes]
        for leaf, number in sorted(run.found):
            chunks[leaf].append(run.found[leaf, number])
        return {
            n: np.asarray([_summation.ordered(x[j] for x in leaf) for leaf in chunks]) for j, n in enumerate(run.names)
        }


class _ByLeaf:
    """The eager runner, on NumPy's arrays: square roots of torch are not always the nearest numbers."""

    def prepare(
        self, work: BucketStep, values: StepScalars, into: dict[str, list[Any]] | None
    ) -> Callable[[], dict[str, list[Any]]]:
        """Return a function that runs the whole chain over every leaf."""
        made = {n: fresh_arrays(work, n) for n in work.outputs} if into is None else into
        views = {n: _views(work.library, column, split=False) for n, column in made.items()}
        job = eager.prepare(_on_host(work), values, views)

        def finish() -> dict[str, list[Any]]:
            job()
            return made

        return finish

    def sums(self, work: BucketStep, values: StepScalars, index: int) -> dict[str, NDArray]:
        """Return the sums that component ``index`` asks for, a vector over the leaves."""
        return eager.sums(_on_host(work), values, index)


def _on_host(work: BucketStep) -> BucketStep:
    """Return the same work on the same memory, as NumPy sees it."""
    columns = {n: _views(work.library, column, work.split) for n, column in work.loads.items()}
    return replace(work, library=_arrays.NUMPY, xp=np, loads=columns)


def _go(ready: list[Ready]) -> None:
    """Do all tasks, and give the memory back."""
    for queue, blocks, workers in ready:
        if queue:
            _threads.run([partial(_drain, queue, worker) for worker in workers])
        for block in blocks:
            _threads.give(block)


def _drain(queue: deque[Task], worker: Callable[[Task], None]) -> None:
    """Do tasks until there are none left."""
    with np.errstate(all="ignore"):
        while True:
            try:
                task = queue.popleft()
            except IndexError:
                return
            worker(task)


def fresh_arrays(work: BucketStep, output: str) -> list[Any]:
    """Allocate the arrays of an output, which are written before they are read."""
    like = work.loads["p" if output == "u" else output]
    return [work.library.empty(work.xp, x.shape, x.dtype, x) for x in like]


def _leaves(work: BucketStep) -> Leaves:
    """See every array as a NumPy array on the same memory; what stays from step to step is looked at once."""
    cache = work.cache
    if cache is None or "leaves" not in cache:
        columns = {n: _views(work.library, column, work.split) for n, column in work.loads.items() if n != "g"}
        leaves = Leaves(columns)
        if cache is not None:
            cache["leaves"] = leaves
    else:
        leaves = cache["leaves"]
    return leaves.joined({"g": _views(work.library, work.loads["g"], work.split)})


def _views(library: Library, column: list[Any], split: bool) -> list[NDArray]:
    if not library.host:
        column = [_arrays.host_view(x) for x in column]
    return [pairs(x) for x in column] if split and column and column[0].dtype.kind == "c" else column
