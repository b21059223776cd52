"""The tiled runner: NumPy, a tile at a time, so that every intermediate result stays in cache.

It serves NumPy arrays and CPU arrays of other libraries that share memory with one. A large leaf is cut into tiles
that are spread over threads. Small leaves are gathered into one tile, computed together, and scattered. A leaf whose
memory is not in C order is copied block by block through scratch, a slower path with the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from xopt import _arrays, _emit, _reduce, _trace
from xopt._pieces import Values, Work
from xopt._runners import _pool

NDArray = np.ndarray[Any, Any]
TILE = 32_768
"""Elements of a tile: 128 KiB of float32, so that the arrays of a tile fit in a core's second-level cache."""
_PARALLEL = 4 * TILE
"""Elements from which on a second thread is worth waking."""


class Segment(NamedTuple):
    """A part of a leaf: elements ``low`` to ``high`` in C order, which are ``leaf[index]``."""

    leaf: int
    low: int
    high: int
    index: tuple[Any, ...] | None
    """None where a flat slice will do."""


Task = list[Segment]
"""Segments that fill one tile at most: one part of a large leaf, or several small leaves."""


class Tiled:
    """A runner with a tile size and a number of threads (None: as many as the work deserves)."""

    name = "tiled"

    def __init__(self, tile: int = TILE, threads: int | None = None) -> None:
        self.tile, self.threads = tile, threads

    def body(self, work: Work, values: Values, into: dict[str, list[Any]] | None) -> dict[str, list[Any]]:
        """Run the whole chain over every leaf; write into ``into`` where it is given, else return fresh arrays."""
        loads = _host(work, work.loads)
        if into is None:
            made = {n: [_empty_like(work, x) for x in work.loads["p" if n == "u" else n]] for n in work.outputs}
            stores = _host(work._replace(library="numpy"), made)
        else:
            made, stores = into, {n: loads[n] for n in work.outputs}
        run = _Run(work, work.plan.body(work.outputs), values, work.real, loads, stores)
        self._spread(run.tasks(self.tile), run, run.step)
        if into is None and work.library != "numpy":
            made = {n: [work.xp.asarray(x) for x in column] for n, column in made.items()}
        return made

    def sums(self, work: Work, values: Values, place: int) -> list[dict[str, Any]]:
        """Return the sums that piece ``place`` asks for, leaf by leaf, in float64 and in the order of `_reduce`."""
        program = work.plan.sums[place]
        run = _Run(work, program, values, "float64", _host(work, work.loads), None)
        tile = min(self.tile, _reduce.CHUNK)
        found: dict[tuple[int, int], list[float]] = {}
        self._spread(run.tasks(tile, by_chunk=True), run, partial(run.sum, found, tile), tile)
        parts: list[list[list[float]]] = [[] for _ in run.sizes]
        for leaf, chunk in sorted(found):
            parts[leaf].append(found[leaf, chunk])
        return [{n: _reduce.ordered(x[j] for x in leaf) for j, n in enumerate(program.outputs)} for leaf in parts]

    def _wanted(self, run: _Run) -> int:
        if self.threads is not None:
            return self.threads
        return _pool.threads() if sum(run.sizes) >= _PARALLEL else 1

    def _spread(
        self, tasks: list[Task], run: _Run, do: Callable[[Task, _Buffers], None], tile: int | None = None
    ) -> None:
        """Share tasks among threads. All memory is taken here, before the first write."""
        if not tasks:
            return
        count = min(self._wanted(run), len(tasks))
        largest = min(tile or self.tile, max(map(_length, tasks)))
        blocks = [_pool.borrow(run.scratch(largest)) for _ in range(count)]
        buffers = [run.buffers(block, largest) for block in blocks]
        bounds = [len(tasks) * w // count for w in range(count + 1)]

        def job(w: int) -> None:
            with np.errstate(all="ignore"):
                for task in tasks[bounds[w] : bounds[w + 1]]:
                    do(task, buffers[w])

        try:
            _pool.run([partial(job, w) for w in range(count)])
        finally:
            for block in blocks:
                _pool.give(block)


def _length(task: Task) -> int:
    return sum(part.high - part.low for part in task)


def _empty_like(work: Work, x: Any) -> NDArray:
    return np.empty(x.shape, (x if work.library == "numpy" else _arrays.host_view(x)).dtype)


def _host(work: Work, columns: dict[str, list[Any]]) -> dict[str, list[NDArray]]:
    """See every array as a NumPy array on the same memory; split complex ones into pairs of reals."""
    out: dict[str, list[NDArray]] = {}
    for n, column in columns.items():
        if work.library != "numpy":
            column = [_arrays.host_view(x) for x in column]
        out[n] = [_pairs(x) for x in column] if work.split and column and column[0].dtype.kind == "c" else column
    return out


def _pairs(x: NDArray) -> NDArray:
    """View a complex array as one of reals with a last axis of two."""
    re = x.real
    return np.lib.stride_tricks.as_strided(re, (*re.shape, 2), (*re.strides, re.itemsize), writeable=x.flags.writeable)


def _parts(shape: tuple[int, ...], plain: bool, tile: int) -> Iterator[tuple[int, int, tuple[Any, ...] | None]]:
    """Cut a leaf into tiles: flat slices of a plain one, blocks of whole rows of any other."""
    size = math.prod(shape)
    if plain:
        for low in range(0, size, tile):
            yield low, min(size, low + tile), None
    elif size and not shape:
        yield 0, 1, ()
    elif size:
        row = size // shape[0]
        step = max(1, tile // row)
        for first in range(0, shape[0], step):
            last = min(shape[0], first + step)
            if row <= tile:
                yield first * row, last * row, (slice(first, last),)
            else:
                for low, high, index in _parts(shape[1:], plain, tile):
                    yield first * row + low, first * row + high, (first, *(index or ()))


class _Buffers(NamedTuple):
    """The scratch of one thread."""

    loads: list[NDArray]
    stores: list[NDArray]
    registers: list[NDArray]


class _Run:
    """One program over the leaves of one step: arrays and scalars put together. Making it writes nothing."""

    def __init__(
        self,
        work: Work,
        program: _trace.Program,
        values: Values,
        real: str,
        loads: dict[str, list[NDArray]],
        stores: dict[str, list[NDArray]] | None,
    ) -> None:
        self.program, self.kernel = program, _emit.numpy_kernel(program)
        leaves = loads["p"]
        self.shapes = [x.shape for x in leaves]
        self.sizes = [x.size for x in leaves]
        self.loads = [loads[n] for n in program.loads]
        self.stores = [stores[n] for n in program.outputs] if stores else []
        columns = [leaves, *self.loads, *self.stores]
        self.plain = [all(x.flags.c_contiguous for x in leaf) for leaf in zip(*columns, strict=True)]
        self.loads, self.stores = self._flat(self.loads), self._flat(self.stores)
        # where in-place results lie: the position among the loads of what a store overwrites
        self.same = [
            list(program.loads).index(n) if stores and n in loads and stores[n] is loads[n] and n in program.loads else None
            for n in program.outputs
        ]
        self.real = np.dtype(real)
        kinds = {_trace.REAL: self.real, _trace.COMPLEX: np.dtype(_arrays.COMPLEX_OF[real]), _trace.BOOL: np.dtype(bool)}
        self.load_types = [kinds[program.nodes[i].kind] for i in program.loads.values()]
        self.store_types = [kinds[program.nodes[i].kind] for i in program.outputs.values()]
        self.register_types = [kinds[kind] for kind in self.kernel.registers]
        self.scalars = _scalars(program, values, len(leaves))
        self.arenas = work.arenas or {}
        self.names = list(program.loads)

    def _flat(self, columns: list[list[NDArray]]) -> list[list[NDArray]]:
        return [
            [x.reshape(-1) if ok and x.ndim != 1 else x for x, ok in zip(column, self.plain, strict=True)]
            for column in columns
        ]

    def tasks(self, tile: int, by_chunk: bool = False) -> list[Task]:
        """Cut the leaves into tiles; consecutive small ones share a tile. ``by_chunk``: large ones by whole chunks."""
        tasks: list[Task] = []
        group: Task = []
        room = 0
        for k, (size, plain) in enumerate(zip(self.sizes, self.plain, strict=True)):
            if plain and size <= tile // 2:
                if size > room:
                    group, room = [], tile
                    tasks.append(group)
                if size:
                    group.append(Segment(k, 0, size, None))
                    room -= size
            elif not by_chunk:
                tasks += [[Segment(k, *part)] for part in _parts(self.shapes[k], plain, tile)]
            elif plain:
                tasks += [[Segment(k, *part)] for part in _parts(self.shapes[k], plain, _reduce.CHUNK)]
            elif size:
                tasks.append([Segment(k, 0, size, ())])
        return [task for task in tasks if task]

    def scratch(self, n: int) -> int:
        """Return how many bytes of scratch a thread needs for tiles of ``n`` elements."""
        types = [*self.load_types, *self.store_types, *self.register_types]
        return sum(-(-n * t.itemsize // 64) * 64 for t in types)

    def buffers(self, block: NDArray, n: int) -> _Buffers:
        """Carve scratch arrays of ``n`` elements out of a block of bytes."""
        at = 0

        def carve(types: list[np.dtype[Any]]) -> list[NDArray]:
            nonlocal at
            made = []
            for t in types:
                made.append(block[at : at + n * t.itemsize].view(t))
                at += -(-n * t.itemsize // 64) * 64
            return made

        return _Buffers(carve(self.load_types), carve(self.store_types), carve(self.register_types))

    def step(self, task: Task, b: _Buffers) -> None:
        """Compute one tile and put the results where they belong."""
        results, staged = self._compute(task, b)
        for j, (column, values) in enumerate(zip(self.stores, results, strict=True)):
            if not staged[j]:
                continue
            at = 0
            for leaf, low, high, index in task:
                target = column[leaf][low:high] if index is None else column[leaf][index]
                target[...] = values[at : at + high - low].reshape(target.shape)
                at += high - low

    def sum(self, found: dict[tuple[int, int], list[float]], tile: int, task: Task, b: _Buffers) -> None:
        """Compute the terms of one task and sum them by chunks."""
        if task[0].index is None and _length(task) <= tile:
            results, _ = self._compute(task, b)
            at = 0
            for leaf, low, high, _index in task:
                n = high - low
                found[leaf, low // _reduce.CHUNK] = [_reduce.chunk_sum(x[at : at + n]) for x in results]
                at += n
            return
        [(leaf, first, last, index)] = task
        chunk = np.empty((len(self.store_types), min(_reduce.CHUNK, last - first)))
        filled, number = 0, first // _reduce.CHUNK
        shape = (last - first,) if index is None else self.shapes[leaf]
        for low, high, part in _parts(shape, index is None, tile):
            results, _ = self._compute([Segment(leaf, first + low, first + high, part)], b)
            done = 0
            while done < high - low:
                n = min(high - low - done, chunk.shape[1] - filled)
                for row, x in zip(chunk, results, strict=True):
                    row[filled : filled + n] = x[done : done + n]
                done, filled = done + n, filled + n
                if filled == chunk.shape[1] or first + low + done == last:
                    found[leaf, number] = [_reduce.chunk_sum(row[:filled]) for row in chunk]
                    filled, number = 0, number + 1

    def _compute(self, task: Task, b: _Buffers) -> tuple[list[NDArray], list[bool]]:
        """Run the kernel over one task; say of each result whether it still lies in scratch."""
        n = _length(task)
        leaf, low, high, index = task[0]
        direct = len(task) == 1 and index is None
        loads = []
        own = []
        for j, column in enumerate(self.loads):
            x = column[leaf]
            home = direct and x.dtype == self.load_types[j]
            own.append(home)
            if home:
                loads.append(x[low:high])
                continue
            buffer, arena = b.loads[j][:n], self.arenas.get(self.names[j])
            if arena is not None and index is None and arena[0].dtype == self.load_types[j]:
                start, end = arena[1][leaf] + low, arena[1][task[-1].leaf] + task[-1].high
                own[j] = end - start == n  # end to end in memory, not only in order
                if own[j]:
                    buffer = arena[0][start:end]
            if not own[j]:
                _gather(column, task, buffer)
            loads.append(buffer)
        results, staged = [], []
        for j, same in enumerate(self.same):
            if same is not None:
                results.append(loads[same])
                staged.append(not own[same])
            elif direct and self.stores and self.stores[j][leaf].dtype == self.store_types[j]:
                results.append(self.stores[j][leaf][low:high])
                staged.append(False)
            else:
                results.append(b.stores[j][:n])
                staged.append(True)
        self.kernel.run(*loads, *results, *self._task_scalars(task), *[r[:n] for r in b.registers])
        return results, staged

    def _task_scalars(self, task: Task) -> tuple[Any, ...]:
        if len(self.scalars) == 1:
            return self.scalars[0]
        if len(task) == 1:
            return self.scalars[task[0].leaf]
        sizes = [part.high - part.low for part in task]
        columns = zip(*(self.scalars[part.leaf] for part in task), strict=True)
        return tuple(x[0] if len(set(x)) == 1 else np.repeat(np.asarray(x, self.real), sizes) for x in columns)


def _gather(column: list[NDArray], task: Task, buffer: NDArray) -> None:
    if len(task) > 1:
        np.concatenate([column[part.leaf] for part in task], out=buffer, casting="unsafe")
        return
    leaf, low, high, index = task[0]
    source = column[leaf][low:high] if index is None else column[leaf][index]
    buffer.reshape(source.shape)[...] = source


def _scalars(program: _trace.Program, values: Values, leaves: int) -> list[tuple[Any, ...]]:
    """Compute the scalars of a step: once, or for every leaf where one differs."""
    count = leaves if values.by_leaf else min(1, leaves)
    return [program.evaluate(values.named(k)) for k in range(count)]
