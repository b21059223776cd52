"""The llvm runner: one compiled loop over all leaves, at the speed of memory.

It serves what the tiled runner serves, where llvmlite is installed. Leaves that are not in C order, and programs that
have no form in single real numbers, are left to the tiled runner.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
import operator
import struct
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from xopt import _arrays
from xopt._arrays.layout import Layout
from xopt._engine.program import summation as _summation
from xopt._engine.program.contract import BucketStep, StepScalars, called
from xopt._engine.program.lower import Unsupported
from xopt._engine.program.quantize import BLOCK
from xopt._engine.program.trace import Program
from xopt._engine.runners import threads as _threads
from xopt._engine.runners.fallback import Shared
from xopt._engine.runners.llvm import codegen as _codegen
from xopt._engine.runners.llvm import compiler as _compiler
from xopt._engine.runners.llvm import exchange as _exchange
from xopt._engine.runners.llvm import headers as _headers
from xopt._engine.runners.tiled.runner import Tiled, fresh_arrays

_PARALLEL = 4 * _summation.CHUNK
"""Elements from which on a second thread is worth waking."""

NDArray = np.ndarray[Any, Any]


class CompiledLoop(NamedTuple):
    """A compiled program."""

    program: Program
    """As compiled: its scalars are what the function takes."""
    run: Callable[..., None]
    columns: _codegen.Table


class _Frame(NamedTuple):
    """A kernel, and leaves cut into tasks (leaf, first element, number of elements) for it."""

    kernel: CompiledLoop
    tasks: NDArray
    ranges: list[tuple[int, int]]
    """The tasks, shared out."""
    addresses: NDArray
    """A row per array, a column per leaf. The row of the gradients is filled each step."""
    plain: list[bool]
    """Whether all arrays of a leaf but its gradient are in C order."""
    whole: bool
    """Whether that is so for all leaves."""
    row: NDArray | None
    """The row of the gradients, if they are read."""
    memory: Any
    """For one row of scalars."""
    pack: Callable[..., None]
    """Puts them there."""
    known: tuple[int, int, int, int]
    """Where the tasks and the addresses lie, the number of leaves, and where that row lies."""

    def serves(self, work: BucketStep) -> bool:
        """Whether all arrays of a step are in C order."""
        return self.whole and (work.where is not None or all(work.library.contiguous(work.loads["g"])))

    def look(self, work: BucketStep) -> None:
        """Find the gradients of this step."""
        if self.row is not None:
            known = work.where is not None
            self.row[:] = work.where if known else work.library.addresses(work.loads["g"])

    def scalars(self, values: StepScalars) -> tuple[int, int, NDArray | None]:
        """Return where the scalars of a step lie: one row, or one per leaf; and what keeps them there."""
        found = values.scalars(self.kernel.program)
        if not values.by_leaf:
            self.pack(self.memory, 0, *found)
            return self.known[3], 1, None
        rows = np.empty((len(self.plain), len(found)))
        for column, x in zip(rows.T, found, strict=True):
            column[...] = x
        return rows.ctypes.data, len(rows), rows


def _inspector(layout: Layout, starts: NDArray, reach: NDArray) -> _headers.Inspect | None:
    """Return what looks at the gradients of a step in a compiled loop, see `AliasGuard`."""
    if layout.library.host:
        return _headers.inspector(layout.leaves, starts, reach)
    return _exchange.inspector(layout, starts, reach)


class Llvm:
    """A runner with a number of threads, and of elements that are a task; None is what suits the work."""

    name = "llvm"
    host = True
    caches = True
    total = staticmethod(_summation.total)
    inspector = staticmethod(_inspector)

    def __init__(self, threads: int | None = None, task: int = _summation.CHUNK) -> None:
        self._threads, self._task = threads, task
        self._rest = Tiled(threads=threads)
        self.places = self._rest.places

    def source(
        self, program: Program, title: str, stored: Mapping[str, str], real: str, split: bool, body: bool
    ) -> str:
        """Return the module that is compiled."""
        try:
            parts = {n: _arrays.part(kind) for n, kind in stored.items()}
            return source(program, title, parts, real, False if body else None).rstrip()
        except Unsupported as error:
            text = self._rest.source(program, title, stored, real, split, body)
            return f"(left to the tiled runner: {error})\n{text}"

    def prepare(
        self, work: BucketStep, values: StepScalars, into: dict[str, list[Any]] | None
    ) -> Callable[[], dict[str, list[Any]]]:
        """Return a function that runs the whole chain over every leaf; what can fail fails here, before any write.

        Its results land in ``into`` where that is given, else in fresh arrays.
        """
        try:
            fresh: dict[str, list[Any]] = {}
            frame = self._cached(work, None)
            if frame is None:
                kernel = body(work, into is None)
                plain = _plain(work)
                if not all(plain) and work.cache is None:
                    return self._mixed(work, values, plain).prepare(into)  # before anything is allocated
                if into is None:
                    fresh = {n: fresh_arrays(work, n) for n in work.outputs}
                frame = self._frame(work, kernel, None, fresh)
        except Unsupported:
            return self._rest.prepare(work, values, into)
        if not frame.serves(work):
            return self._mixed(work, values, frame.plain).prepare(into)
        made = into or fresh
        frame.look(work)
        tasks, addresses, leaves, _ = frame.known
        scalars, rows, held = frame.scalars(values)
        run = frame.kernel.run

        def finish(_alive: Any = (work.loads["g"], held)) -> dict[str, list[Any]]:
            def do(first: int, last: int) -> None:
                run(tasks, addresses, leaves, scalars, rows, first, last)

            self._run(frame.ranges, do)
            return made

        return finish

    def sums(self, work: BucketStep, values: StepScalars, index: int) -> dict[str, NDArray]:
        """Return the sums that component ``place`` asks for, a vector over the leaves, in the order of `summation`."""
        try:
            frame = self._cached(work, index) or self._frame(work, reduction(work, index), index, {})
        except Unsupported:
            return self._rest.sums(work, values, index)
        if not frame.serves(work):
            return self._mixed(work, values, frame.plain).sums(index)
        names, leaves = list(work.plan.sums[index].outputs), len(frame.plain)
        frame.look(work)
        tasks, addresses, known, _ = frame.known
        scalars, rows, _held = frame.scalars(values)
        chunks = np.empty((len(frame.tasks), len(names)))
        run, out = frame.kernel.run, chunks.ctypes.data
        self._run(frame.ranges, lambda first, last: run(tasks, addresses, known, scalars, rows, first, last, out))
        totals = np.zeros((leaves, len(names)))
        with np.errstate(all="ignore"):
            np.add.at(totals, frame.tasks[:, 0], chunks)  # one after the other, in the order of the chunks
        return dict(zip(names, totals.T, strict=True))

    def _mixed(self, work: BucketStep, values: StepScalars, plain: list[bool]) -> Shared:
        """Leave what is not in C order to the tiled runner."""
        good = list(map(operator.and_, plain, work.library.contiguous(work.loads["g"])))
        return Shared(work, values, good, self, self._rest)

    def _run(self, ranges: list[tuple[int, int]], do: Callable[[int, int], None]) -> None:
        """Do every range of tasks, on as many threads as they were cut for."""
        if len(ranges) == 1:
            do(*ranges[0])
            return
        queue = deque(ranges)

        def drain() -> None:
            while True:
                try:
                    first, last = queue.popleft()
                except IndexError:
                    return
                do(first, last)

        _threads.run([drain] * min(self._threads or _threads.threads(), len(ranges)))

    @staticmethod
    def _cached(work: BucketStep, index: int | None) -> _Frame | None:
        return work.cache.get(("llvm", index)) if work.cache is not None else None

    def _frame(self, work: BucketStep, kernel: CompiledLoop, index: int | None, made: dict[str, list[Any]]) -> _Frame:
        """Find the tasks and the addresses; of what stays from step to step, only once."""
        sizes = [math.prod(x.shape) << work.split for x in work.loads["p"]]
        task = self._task if index is None else _summation.CHUNK
        task = -(-task // BLOCK) * BLOCK if work.plan.codes else task
        cut = [(k, low, min(task, size - low)) for k, size in enumerate(sizes) for low in range(0, size, task)]
        tasks = np.asarray(cut, np.int64).reshape(-1, 3)
        addresses = np.zeros((len(kernel.columns.arrays), len(sizes)), np.int64)
        grads = None
        for row, array in zip(addresses, kernel.columns.arrays, strict=True):
            if array.name == "g":
                grads = row
            else:
                new = array.name.startswith("new ")
                row[:] = work.library.addresses(made[array.name[4:]] if new else work.loads[array.name])
        plain = _plain(work, without="g")
        count = len(kernel.program.scalars)
        memory, pack = (ctypes.c_double * count)(), struct.Struct(f"{count}d").pack_into
        known = tasks.ctypes.data, addresses.ctypes.data, len(sizes), ctypes.addressof(memory)
        ranges = self._ranges(tasks)
        frame = _Frame(kernel, tasks, ranges, addresses, plain, all(plain), grads, memory, pack, known)
        if work.cache is not None and not made:
            work.cache["llvm", index] = frame
        return frame

    def _ranges(self, tasks: NDArray) -> list[tuple[int, int]]:
        """Share tasks out: some ranges a thread, of about as many elements each."""
        ends = np.cumsum(tasks[:, 2])
        size = int(ends[-1]) if len(tasks) else 0
        threads = self._threads or (_threads.threads() if size >= _PARALLEL else 1)
        marks = np.searchsorted(ends, np.linspace(0, size, 4 * threads + 1)[1:-1]) if threads > 1 else ()
        return list(itertools.pairwise(sorted({0, len(tasks), *map(int, marks)}))) or [(0, 0)]


def body(work: BucketStep, fresh: bool) -> CompiledLoop:
    """Return the kernel of a whole step."""
    return _compiled(work.plan.body(work.outputs), called(work.specs, work.dtype), stored(work), work.real, fresh)


def reduction(work: BucketStep, index: int) -> CompiledLoop:
    """Return the kernel of the sums that a component asks for."""
    name = called(work.specs, work.dtype, index)
    return _compiled(work.plan.sums[index], name, stored(work), work.real, None)


def stored(work: BucketStep) -> tuple[tuple[str, str], ...]:
    """Return the dtype that each array is stored in, of complex ones that of their parts."""
    return tuple((n, _arrays.part(_arrays.dtype_name(column[0]))) for n, column in work.loads.items())


@functools.lru_cache(maxsize=512)
def _compiled(
    program: Program, title: str, stored: tuple[tuple[str, str], ...], real: str, fresh: bool | None
) -> CompiledLoop:
    text = source(program, title, dict(stored), real, fresh)
    run = _compiler.compiled(text, 8 if fresh is None else 7)
    return CompiledLoop(_codegen.lowered(program), run, _codegen.table(program, dict(stored), fresh))


def source(program: Program, title: str, stored: dict[str, str], real: str, fresh: bool | None) -> str:
    """Return the module of a program: in place, with ``fresh`` beside it, or with ``fresh=None`` of its sums."""
    columns = _codegen.table(program, stored, fresh)
    if fresh is None:
        return _codegen.sums_source(title, program, columns, _compiler.converts_half())
    return _codegen.body_source(title, program, columns, real, _compiler.converts_half())


def _plain(work: BucketStep, without: str = "") -> list[bool]:
    """Say of each leaf whether all its arrays, but for one, are in C order."""
    columns = [work.library.contiguous(column) for n, column in work.loads.items() if n != without]
    return [all(row) for row in zip(*columns, strict=True)]
