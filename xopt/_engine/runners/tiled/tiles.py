"""Programs over tiles: which memory each task reads, computes in and writes."""

from __future__ import annotations

import itertools
import operator
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from xopt import _arrays
from xopt._engine.program import summation as _summation
from xopt._engine.program import trace as _trace
from xopt._engine.program.contract import BucketStep, StepScalars
from xopt._engine.program.lower import spelled
from xopt._engine.program.quantize import BLOCK, count, fill, is_scale
from xopt._engine.runners import threads as _threads
from xopt._engine.runners.tiled import codegen as _codegen
from xopt._engine.runners.tiled.tiling import Leaves, NDArray, Task, parts


class Ready(NamedTuple):
    """Tasks with the memory to do them: blocks, and a worker for each thread."""

    queue: deque[Task]
    blocks: list[NDArray]
    workers: Sequence[Callable[[Task], None]]


class Buffers(NamedTuple):
    """The scratch of one thread."""

    loads: list[NDArray]
    stores: list[NDArray]
    registers: list[NDArray]


class _Program(ABC):
    """One program over the leaves of one step: arrays and scalars put together. Making it writes nothing."""

    def __init__(
        self,
        work: BucketStep,
        program: _trace.Program,
        values: StepScalars,
        real: str,
        leaves: Leaves,
        stores: tuple[str, ...] | None,
    ) -> None:
        program = spelled(program)
        self.leaves, self.kernel = leaves, _codegen.numpy_kernel(program)
        names = list(program.loads)
        self.loads = [leaves.flat(n) for n in names]
        self.stores = [leaves.flat(n) for n in stores or ()]
        self.load_scales = list(map(is_scale, names))
        self.store_scales = [is_scale(n.removeprefix("new ")) for n in stores or ()]
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
        self.scalars, self.by_leaf = values.scalars(program), values.by_leaf

    def ready(self, tasks: list[Task], part: int, threads: int = 1) -> Ready:
        """Take the memory that some tasks need, for tiles of ``part`` at most, before the first write."""
        size = min(part, max((task.size for task in tasks), default=0))
        staged = not self.stores or any(task.block is not None or len(task.leaves) > 1 for task in tasks)
        columns = zip([*self.loads, *self.stores], [*self.load_types, *self.store_types], strict=False)
        staged = staged or any(x.dtype != kind for column, kind in columns for x in column) or any(self.load_scales)
        sets = [self.load_types if staged else [], self.store_types if staged else [], self.register_types]
        blocks = [_threads.borrow(_threads.room(size, *sets)) for _ in range(min(threads, len(tasks)))]
        return Ready(
            deque(tasks), blocks, [partial(self.do, b=Buffers(*_threads.carve(block, size, *sets))) for block in blocks]
        )

    @abstractmethod
    def do(self, task: Task, b: Buffers) -> None:
        """Compute one task."""

    def compute(self, task: Task, b: Buffers) -> tuple[list[NDArray], list[bool]]:
        """Run the kernel over one task; say of each result whether it still lies in scratch."""
        loads, results, gathers, staged = self.bind(task, b)
        for j in gathers:
            (_gather_scales if self.load_scales[j] else _gather)(self.loads[j], task, loads[j])
        registers = [r[: task.size] for r in b.registers]
        self.kernel.run(*loads, *results, *self.task_scalars(task), *registers, *self.index(task))
        return results, staged

    def bind(self, task: Task, b: Buffers) -> tuple[list[NDArray], list[NDArray], list[int], list[bool]]:
        """Find the memory for one task: what is read and written, which loads to gather, which results to scatter."""
        n, leaf, low = task.size, task.leaves[0], task.low
        direct = len(task.leaves) == 1 and task.block is None
        loads: list[NDArray] = []
        gathers: list[int] = []
        for j, (column, kind, arena) in enumerate(zip(self.loads, self.load_types, self.arenas, strict=True)):
            if direct and column[leaf].dtype == kind and not self.load_scales[j]:
                loads.append(column[leaf][low : low + n])
            elif arena is not None and task.block is None and self._end_to_end(arena[1], task):
                start = arena[1][leaf] + low
                loads.append(arena[0][start : start + n])
            else:
                loads.append(b.loads[j][:n])
                gathers.append(j)
        results: list[NDArray] = []
        staged: list[bool] = []
        for j, over in enumerate(self.over):
            if over is not None:
                results.append(loads[over])
                staged.append(over in gathers)
            elif direct and self.stores and self._at_home(j, leaf):
                results.append(self.stores[j][leaf][low : low + n])
                staged.append(False)
            else:
                results.append(b.stores[j][:n])
                staged.append(True)
        return loads, results, gathers, staged

    def _at_home(self, j: int, leaf: int) -> bool:
        """Whether a result can be computed where it is stored."""
        return not self.store_scales[j] and bool(self.stores[j][leaf].dtype == self.store_types[j])

    def _end_to_end(self, at: list[int], task: Task) -> bool:
        """Whether the leaves of a task follow each other in an arena."""
        last = task.leaves[-1]
        return at[last] + self.leaves.sizes[last] - at[task.leaves[0]] == task.size or len(task.leaves) == 1

    def index(self, task: Task) -> list[NDArray]:
        """Return the number of each element in its leaf, if the kernel asks for it."""
        if not self.kernel.counts:
            return []
        sizes = [part.stop - part.start for part in task.slices]
        return [np.concatenate([np.arange(task.low, task.low + n) for n in sizes]).astype(np.uint32)]

    def task_scalars(self, task: Task) -> Sequence[Any]:
        """Return the scalars of a task; what differs between its leaves as an array."""
        if not self.by_leaf:
            return self.scalars
        if len(task.leaves) == 1:
            return [x.item(task.leaves[0]) if isinstance(x, np.ndarray) else x for x in self.scalars]
        sizes = [part.stop - part.start for part in task.slices]
        return [
            np.repeat(x[task.leaves].astype(self.real), sizes) if isinstance(x, np.ndarray) else x for x in self.scalars
        ]


class Large(_Program):
    """The whole chain over a part of one leaf."""

    def __init__(self, work: BucketStep, values: StepScalars, leaves: Leaves, stores: tuple[str, ...]) -> None:
        super().__init__(work, work.plan.body(work.outputs), values, work.real, leaves, stores)

    def do(self, task: Task, b: Buffers) -> None:
        """Compute one tile."""
        found = zip(self.stores, *self.compute(task, b), self.store_scales, strict=True)
        for column, values, in_scratch, scales in found:
            if scales:
                _scales(column, task)[...] = values[::BLOCK]
            elif in_scratch:
                target = _part(column, task)
                target[...] = values.reshape(target.shape)


class Bound(NamedTuple):
    """A group of small leaves with the memory that it is computed in."""

    arguments: list[NDArray]
    registers: list[NDArray]
    gathers: list[tuple[int, NDArray]]
    """Loads to copy together, and where to."""
    specs: list[list[NDArray]]
    """For each store, the part of the result that belongs to each leaf; empty where it is at home already."""


class Small(_Program):
    """The whole chain over several leaves. Where parameters are only added to, that is done in their own memory."""

    def __init__(self, work: BucketStep, values: StepScalars, leaves: Leaves, stores: tuple[str, ...]) -> None:
        program, self.p = work.plan.body(work.outputs), leaves.flat("p")
        change = work.plan.body(("u", *work.outputs[1:]))
        same = all(x.dtype == work.real for x in (self.p[:1] if work.plan.kind == _trace.REAL else ()))
        self.adds = work.outputs[0] == "p" and "p" not in change.loads and work.plan.kind == _trace.REAL and same
        again = work.cache is not None and stores == work.outputs and leaves.cut_like(work.cache["leaves"])
        self.cache = work.cache if again else None
        super().__init__(work, change if self.adds else program, values, work.real, leaves, stores)

    def ready(self, tasks: list[Task], part: int, threads: int = 1) -> Ready:
        """Take the memory of one tile. An optimizer keeps it, and all that lies in it, for the next step."""
        sets = [self.load_types, self.store_types, self.register_types]
        if self.cache is None:
            block = _threads.borrow(_threads.room(part, *sets))
            return Ready(deque(tasks), [block], [partial(self.do, b=Buffers(*_threads.carve(block, part, *sets)))])
        if "buffers" not in self.cache:
            self.cache["buffers"] = Buffers(*_threads.carve(_threads.borrow(_threads.room(part, *sets)), part, *sets))
        return Ready(deque(tasks), [], [partial(self.do, b=self.cache["buffers"])])

    def do(self, task: Task, b: Buffers) -> None:
        """Gather one group, compute it, and scatter it. The loops over leaves run in C."""
        bound = None if self.cache is None else self.cache.get(task)
        if bound is None:
            loads, results, gathers, staged = self.bind(task, b)
            specs = [
                list(map(values.__getitem__, task.slices)) if in_scratch else []
                for values, in_scratch in zip(results, staged, strict=True)
            ]
            registers = [r[: task.size] for r in b.registers]
            bound = Bound([*loads, *results], registers, [(j, loads[j]) for j in gathers], specs)
            if self.cache is not None:
                self.cache[task] = bound
        arguments, registers, buffers, specs = bound
        for j, buffer in buffers:
            _gather(self.loads[j], task, buffer)
        self.kernel.run(*arguments, *self.task_scalars(task), *registers, *self.index(task))
        for j, (column, views) in enumerate(zip(self.stores, specs, strict=True)):
            if not views:
                continue
            if j or not self.adds:
                deque(map(operator.setitem, task.pick(column), itertools.repeat(...), views), maxlen=0)
            elif column is self.p:
                deque(map(np.ndarray.__iadd__, task.pick(column), views), maxlen=0)
            else:
                deque(map(np.add, task.pick(self.p), views, task.pick(column)), maxlen=0)


class Sums(_Program):
    """The terms of a reduction: computes tiles and sums them by chunks."""

    def __init__(self, work: BucketStep, index: int, values: StepScalars, leaves: Leaves, tile: int) -> None:
        program = work.plan.sums[index]
        super().__init__(work, program, values, "float64", leaves, None)
        self.names, self.tile = tuple(program.outputs), tile
        self.found: dict[tuple[int, int], list[float]] = {}
        """Sums by leaf and chunk."""

    def do(self, task: Task, b: Buffers) -> None:
        """Compute one task."""
        if task.block is None and task.size <= self.tile:
            results, _ = self.compute(task, b)
            for leaf, part in zip(task.leaves, task.slices, strict=True):
                self.found[leaf, task.low // _summation.CHUNK] = [_summation.chunk_sum(x[part]) for x in results]
            return
        [leaf], size = task.leaves, task.size
        shape, plain = (self.leaves.shapes[leaf], False) if task.block is not None else ((size,), True)
        chunk = np.empty((len(self.store_types), min(_summation.CHUNK, size)))
        filled, number = 0, task.low // _summation.CHUNK
        for low, high, block in parts(shape, plain, self.tile):
            results, _ = self.compute(Task([leaf], [high - low], task.low + low, block), b)
            done = 0
            while done < high - low:
                n = min(high - low - done, chunk.shape[1] - filled)
                for row, x in zip(chunk, results, strict=True):
                    row[filled : filled + n] = x[done : done + n]
                done, filled = done + n, filled + n
                if filled == chunk.shape[1] or low + done == size:
                    self.found[leaf, number] = [_summation.chunk_sum(row[:filled]) for row in chunk]
                    filled, number = 0, number + 1


def _part(column: list[NDArray], task: Task) -> NDArray:
    """Return the part of a leaf that a task is about."""
    x = column[task.leaves[0]]
    return x[task.low : task.low + task.size] if task.block is None else x[task.block]


def _scales(column: list[NDArray], task: Task) -> NDArray:
    """Return the scales of the blocks of a task, which begins with one."""
    return column[task.leaves[0]][task.low // BLOCK : count(task.low + task.size)]


def _gather_scales(column: list[NDArray], task: Task, buffer: NDArray) -> None:
    fill(buffer, _scales(column, task))


def _gather(column: list[NDArray], task: Task, buffer: NDArray) -> None:
    if len(task.leaves) > 1:
        np.concatenate(task.pick(column), out=buffer, casting="unsafe")
    else:
        source = _part(column, task)
        buffer.reshape(source.shape)[...] = source
