"""The tiled runner: NumPy, a tile at a time, so that every intermediate result stays in cache.

It serves NumPy arrays and CPU arrays of other libraries that share memory with one. A large leaf is cut into tiles
that are spread over threads. Small leaves are gathered into one tile, computed together, and scattered. A leaf whose
memory is not in C order is copied block by block through scratch, a slower path with the same bits.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from xopt import _arrays, _emit, _reduce, _trace
from xopt._pieces import Values, Work
from xopt._runners import _pool
from xopt._runners._cut import Leaves, NDArray, Task, pairs, parts

TILE = 65_536
"""Elements of a tile: 256 KiB of float32, so that the arrays of a tile fit in a core's second-level cache."""
_PARALLEL = 4 * TILE
"""Elements in large leaves from which on a second thread is worth waking."""


class Tiled:
    """A runner with a tile size and a number of threads (None: as many as the work deserves)."""

    name = "tiled"

    def __init__(self, tile: int = TILE, threads: int | None = None) -> None:
        self.tile, self.threads = tile, threads

    def prepare(
        self, work: Work, values: Values, into: dict[str, list[Any]] | None
    ) -> Callable[[], dict[str, list[Any]]]:
        """Return a function that runs the whole chain over every leaf; what can fail fails here, before any write.

        Its results land in ``into`` where that is given, else in fresh arrays.
        """
        leaves, stores, made = _leaves(work), work.outputs, into
        if made is None:
            made = {n: [_empty_like(x) for x in work.loads["p" if n == "u" else n]] for n in work.outputs}
            fresh = {f"new {n}": _views("numpy", column, work.split) for n, column in made.items()}
            leaves, stores = leaves.joined(fresh), tuple(fresh)
        tasks = leaves.tasks(self.tile)
        small = [task for task in tasks if len(task.leaves) > 1]
        large = [task for task in tasks if len(task.leaves) == 1]
        kinds: list[tuple[type[_Small] | type[_Large], list[Task]]] = [(_Small, small), (_Large, large)]
        runs = [(kind(work, values, leaves, stores), some) for kind, some in kinds if some]
        ready = [self._ready(run, some) for run, some in runs]

        def finish() -> dict[str, list[Any]]:
            _go(ready)
            if into is None and work.library != "numpy":
                return {n: [work.xp.asarray(x) for x in column] for n, column in made.items()}
            return made

        return finish

    def places(self, library: str, params: list[Any]) -> tuple[list[int], int]:
        """Say where the state of each leaf should lie in one buffer, and how long that is.

        Leaves that are computed together lie end to end, and each tile starts on a cache line.
        """
        at, end = [0] * len(params), 0
        for task in Leaves({"p": _views(library, params, split=False)}).tasks(self.tile):
            if task.low == 0:
                end = -(-end // 16) * 16
                for leaf in task.leaves:
                    at[leaf], end = end, end + math.prod(params[leaf].shape)
        return at, end

    def sums(self, work: Work, values: Values, place: int) -> list[dict[str, Any]]:
        """Return the sums that piece ``place`` asks for, leaf by leaf, in float64 and in the order of `_reduce`."""
        leaves = _leaves(work)
        run = _Sums(work, place, values, leaves, min(self.tile, _reduce.CHUNK))
        _go([self._ready(run, leaves.tasks(run.tile, _reduce.CHUNK))])
        chunks: list[list[list[float]]] = [[] for _ in leaves.sizes]
        for leaf, number in sorted(run.found):
            chunks[leaf].append(run.found[leaf, number])
        return [{n: _reduce.ordered(x[j] for x in leaf) for j, n in enumerate(run.names)} for leaf in chunks]

    def _ready(self, run: _Small | _Large | _Sums, tasks: list[Task]) -> _Ready:
        """Take the memory that some tasks need, before the first write."""
        count = min(self._threads(tasks), len(tasks))
        largest = min(run.tile or self.tile, max((task.size for task in tasks), default=0))
        staged = any(len(task.leaves) > 1 or task.block is not None for task in tasks)
        blocks = [_pool.borrow(run.scratch(largest, staged)) for _ in range(count)]
        return _Ready(run, deque(tasks), blocks, [run.buffers(block, largest, staged) for block in blocks])

    def _threads(self, tasks: list[Task]) -> int:
        """Say how many threads. Small leaves stay on the calling one: they are mostly interpreter, which is one."""
        if any(len(task.leaves) > 1 for task in tasks):
            return 1
        if self.threads is not None:
            return self.threads
        return _pool.threads() if sum(task.size for task in tasks) >= _PARALLEL else 1


class _Ready(NamedTuple):
    """Tasks with the memory to do them, a block and its arrays for each thread."""

    run: _Small | _Large | _Sums
    queue: deque[Task]
    blocks: list[NDArray]
    buffers: list[_Buffers]


def _go(ready: list[_Ready]) -> None:
    """Do all tasks, and give the memory back."""
    for run, queue, blocks, buffers in ready:
        if queue:
            _pool.run([partial(_work, run, queue, b) for b in buffers])
        for block in blocks:
            _pool.give(block)


def _work(run: _Small | _Large | _Sums, queue: deque[Task], buffers: _Buffers) -> None:
    """Do tasks until there are none left."""
    with np.errstate(all="ignore"):
        while True:
            try:
                task = queue.popleft()
            except IndexError:
                return
            run.do(task, buffers)


def _empty_like(x: Any) -> NDArray:
    view = _arrays.host_view(x)
    assert view is not None
    return np.empty(view.shape, view.dtype)


def _leaves(work: Work) -> Leaves:
    """See every array as a NumPy array on the same memory; what stays from step to step is looked at once."""
    kept = work.kept
    if kept is None or "leaves" not in kept:
        columns = {n: _views(work.library, column, work.split) for n, column in work.loads.items() if n != "g"}
        leaves = Leaves(columns)
        if kept is not None:
            kept["leaves"] = leaves
    else:
        leaves = kept["leaves"]
    return leaves.joined({"g": _views(work.library, work.loads["g"], work.split)})


def _views(library: str, column: list[Any], split: bool) -> list[NDArray]:
    if library != "numpy":
        column = [_arrays.host_view(x) for x in column]
    return [pairs(x) for x in column] if split and column and column[0].dtype.kind == "c" else column


class _Buffers(NamedTuple):
    """The scratch of one thread."""

    loads: list[NDArray]
    stores: list[NDArray]
    registers: list[NDArray]


class _Program:
    """One program over the leaves of one step: arrays and scalars put together. Making it writes nothing."""

    tile: int | None = None

    def __init__(
        self,
        work: Work,
        program: _trace.Program,
        values: Values,
        real: str,
        leaves: Leaves,
        stores: tuple[str, ...] | None,
    ) -> None:
        self.leaves, self.kernel = leaves, _emit.numpy_kernel(program)
        names = list(program.loads)
        self.loads = [leaves.flat(n) for n in names]
        self.stores = [leaves.flat(n) for n in stores or ()]
        # which load each output overwrites; None where it has memory of its own
        self.over = [names.index(n) if n in names else None for n in stores or [""] * len(program.outputs)]
        self.real = np.dtype(real)
        kinds = {
            _trace.REAL: self.real,
            _trace.COMPLEX: np.dtype(_arrays.COMPLEX_OF[real]),
            _trace.BOOL: np.dtype(bool),
        }
        self.load_types = [kinds[program.nodes[i].kind] for i in program.loads.values()]
        self.store_types = [kinds[program.nodes[i].kind] for i in program.outputs.values()]
        self.register_types = [kinds[kind] for kind in self.kernel.registers]
        arenas = work.arenas or {}
        self.arenas = [
            arenas.get(n) if n in arenas and arenas[n][0].dtype == kind else None
            for n, kind in zip(names, self.load_types, strict=True)
        ]
        count = len(leaves.sizes) if values.by_leaf else min(1, len(leaves.sizes))
        self.scalars = [program.evaluate(values.named(k)) for k in range(count)]

    def _types(self, staged: bool) -> list[list[np.dtype[Any]]]:
        """Return the dtypes of the scratch arrays: for loads and stores only where they must be staged."""
        columns = zip([*self.loads, *self.stores], [*self.load_types, *self.store_types], strict=False)
        staged = staged or not self.stores or any(x.dtype != kind for column, kind in columns for x in column)
        return [self.load_types if staged else [], self.store_types if staged else [], self.register_types]

    def scratch(self, n: int, staged: bool) -> int:
        """Return how many bytes of scratch a thread needs for tiles of ``n`` elements."""
        return sum(_room(n, t) for types in self._types(staged) for t in types)

    def buffers(self, block: NDArray, n: int, staged: bool) -> _Buffers:
        """Carve scratch arrays of ``n`` elements out of a block of bytes."""
        at = 0
        made: list[list[NDArray]] = []
        for types in self._types(staged):
            made.append([])
            for t in types:
                made[-1].append(block[at : at + n * t.itemsize].view(t))
                at += _room(n, t)
        return _Buffers(*made)

    def compute(self, task: Task, b: _Buffers) -> tuple[list[NDArray], list[bool]]:
        """Run the kernel over one task; say of each result whether it still lies in scratch."""
        n, leaf, low = task.size, task.leaves[0], task.low
        direct = len(task.leaves) == 1 and task.block is None
        loads: list[NDArray] = []
        own: list[bool] = []
        for j, (column, kind, arena) in enumerate(zip(self.loads, self.load_types, self.arenas, strict=True)):
            home = True
            if direct and column[leaf].dtype == kind:
                x = column[leaf][low : low + n]
            elif arena is not None and task.block is None and self._end_to_end(arena[1], task):
                start = arena[1][leaf] + low
                x = arena[0][start : start + n]
            else:
                x, home = b.loads[j][:n], False
                _gather(column, task, x)
            loads.append(x)
            own.append(home)
        results: list[NDArray] = []
        staged: list[bool] = []
        for j, over in enumerate(self.over):
            if over is not None:
                results.append(loads[over])
                staged.append(not own[over])
            elif direct and self.stores and self.stores[j][leaf].dtype == self.store_types[j]:
                results.append(self.stores[j][leaf][low : low + n])
                staged.append(False)
            else:
                results.append(b.stores[j][:n])
                staged.append(True)
        self.kernel.run(*loads, *results, *self._task_scalars(task), *[r[:n] for r in b.registers])
        return results, staged

    def _end_to_end(self, at: list[int], task: Task) -> bool:
        """Whether the leaves of a task follow each other in an arena."""
        last = task.leaves[-1]
        return at[last] + self.leaves.sizes[last] - at[task.leaves[0]] == task.size or len(task.leaves) == 1

    def _task_scalars(self, task: Task) -> tuple[Any, ...]:
        if len(self.scalars) == 1:
            return self.scalars[0]
        if len(task.leaves) == 1:
            return self.scalars[task.leaves[0]]
        sizes = [part.stop - part.start for part in task.slices]
        columns = zip(*(self.scalars[leaf] for leaf in task.leaves), strict=True)
        return tuple(x[0] if len(set(x)) == 1 else np.repeat(np.asarray(x, self.real), sizes) for x in columns)


class _Large(_Program):
    """The whole chain over a part of one leaf."""

    def __init__(self, work: Work, values: Values, leaves: Leaves, stores: tuple[str, ...]) -> None:
        super().__init__(work, work.plan.body(work.outputs), values, work.real, leaves, stores)

    def do(self, task: Task, b: _Buffers) -> None:
        """Compute one tile."""
        for column, values, in_scratch in zip(self.stores, *self.compute(task, b), strict=True):
            if in_scratch:
                target = _part(column, task)
                target[...] = values.reshape(target.shape)


class _Small(_Program):
    """The whole chain over several leaves. Where parameters are only added to, that is done in their own memory."""

    def __init__(self, work: Work, values: Values, leaves: Leaves, stores: tuple[str, ...]) -> None:
        program, self.p = work.plan.body(work.outputs), leaves.flat("p")
        change = work.plan.body(("u", *work.outputs[1:]))
        same = all(x.dtype == work.real for x in (self.p[:1] if work.plan.kind == _trace.REAL else ()))
        self.adds = work.outputs[0] == "p" and "p" not in change.loads and work.plan.kind == _trace.REAL and same
        super().__init__(work, change if self.adds else program, values, work.real, leaves, stores)

    def do(self, task: Task, b: _Buffers) -> None:
        """Compute one tile. The loops over leaves run in C."""
        results, staged = self.compute(task, b)
        for j, (column, values, in_scratch) in enumerate(zip(self.stores, results, staged, strict=True)):
            pieces = map(values.__getitem__, task.slices)
            if j == 0 and self.adds:
                if column is self.p:
                    deque(map(np.ndarray.__iadd__, task.pick(column), pieces), maxlen=0)
                else:
                    deque(map(np.add, task.pick(self.p), pieces, task.pick(column)), maxlen=0)
            elif in_scratch:
                deque(map(operator.setitem, task.pick(column), itertools.repeat(...), pieces), maxlen=0)


class _Sums(_Program):
    """The terms of a reduction: computes tiles and sums them by chunks."""

    tile: int

    def __init__(self, work: Work, place: int, values: Values, leaves: Leaves, tile: int) -> None:
        program = work.plan.sums[place]
        super().__init__(work, program, values, "float64", leaves, None)
        self.names, self.tile = tuple(program.outputs), tile
        self.found: dict[tuple[int, int], list[float]] = {}
        """Sums by leaf and chunk."""

    def do(self, task: Task, b: _Buffers) -> None:
        """Compute one task."""
        if task.block is None and task.size <= self.tile:
            results, _ = self.compute(task, b)
            for leaf, part in zip(task.leaves, task.slices, strict=True):
                self.found[leaf, task.low // _reduce.CHUNK] = [_reduce.chunk_sum(x[part]) for x in results]
            return
        [leaf], size = task.leaves, task.size
        shape, plain = (self.leaves.shapes[leaf], False) if task.block is not None else ((size,), True)
        chunk = np.empty((len(self.store_types), min(_reduce.CHUNK, size)))
        filled, number = 0, task.low // _reduce.CHUNK
        for low, high, block in parts(shape, plain, self.tile):
            results, _ = self.compute(Task([leaf], [high - low], task.low + low, block), b)
            done = 0
            while done < high - low:
                n = min(high - low - done, chunk.shape[1] - filled)
                for row, x in zip(chunk, results, strict=True):
                    row[filled : filled + n] = x[done : done + n]
                done, filled = done + n, filled + n
                if filled == chunk.shape[1] or low + done == size:
                    self.found[leaf, number] = [_reduce.chunk_sum(row[:filled]) for row in chunk]
                    filled, number = 0, number + 1


def _room(n: int, t: np.dtype[Any]) -> int:
    """Return the bytes for n elements: whole cache lines, and a few more.

    Arrays that lie a power of two apart fight for the same lines of the cache.
    """
    return (-(-n * t.itemsize // 64) + 5) * 64


def _part(column: list[NDArray], task: Task) -> NDArray:
    """Return the part of a leaf that a task is about."""
    x = column[task.leaves[0]]
    return x[task.low : task.low + task.size] if task.block is None else x[task.block]


def _gather(column: list[NDArray], task: Task, buffer: NDArray) -> None:
    if len(task.leaves) > 1:
        np.concatenate(task.pick(column), out=buffer, casting="unsafe")
    else:
        source = _part(column, task)
        buffer.reshape(source.shape)[...] = source
