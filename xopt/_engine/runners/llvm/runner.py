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
from functools import partial
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
from xopt._engine.runners.llvm import copies as _copies
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


class _Frame:
    """A kernel, and leaves cut into tasks (leaf, first element, number of elements) for it.

    Parameters
    ----------
    ranges
        The tasks, shared out.
    addresses
        A row per array, a column per leaf.
    plain
        Whether all arrays of a leaf but its gradient are in C order.
    row
        The row of the gradients, if they are read: it is filled each step.
    """

    def __init__(
        self,
        kernel: CompiledLoop,
        tasks: NDArray,
        ranges: list[tuple[int, int]],
        addresses: NDArray,
        plain: list[bool],
        row: NDArray | None,
    ) -> None:
        self.kernel, self.tasks, self.ranges, self.addresses, self.plain = kernel, tasks, ranges, addresses, plain
        self.whole, self.row = all(plain), row
        count = len(kernel.program.scalars)
        self._one, self._pack = (ctypes.c_double * count)(), struct.Struct(f"{count}d").pack_into
        self._rows: NDArray | None = None
        self._sums: NDArray | None = None
        self.simple = len(tasks) == len(plain) and np.array_equal(tasks[:, 0], np.arange(len(plain)))
        """Whether each leaf is one task."""
        scalars = ctypes.addressof(self._one)
        self._words = (ctypes.c_int64 * 6)(tasks.ctypes.data, addresses.ctypes.data, len(plain), scalars, 1, 0)
        """What the kernel is told: where tasks, addresses and scalars lie, the number of leaves and of rows of scalars,
        and where sums go."""
        self.at = ctypes.addressof(self._words)

    def serves(self, work: BucketStep) -> bool:
        """Whether all arrays of a step are in C order, and have memory."""
        return self.whole and (work.where is not None or all(_readable(work)))

    def look(self, work: BucketStep) -> None:
        """Find the gradients of this step."""
        if self.row is not None:
            known = work.where is not None
            self.row[:] = work.where if known else work.library.addresses(work.loads["g"])

    def take(self, values: StepScalars) -> None:
        """Take the scalars of a step: one row, or one per leaf."""
        found = values.scalars(self.kernel.program)
        if not values.by_leaf:
            self._pack(self._one, 0, *found)
            if self._rows is not None:
                self._rows, self._words[3], self._words[4] = None, ctypes.addressof(self._one), 1
            return
        self._rows = rows = np.empty((len(self.plain), len(found)))
        for column, x in zip(rows.T, found, strict=True):
            column[...] = x
        self._words[3], self._words[4] = rows.ctypes.data, len(rows)

    def sums(self, count: int) -> NDArray:
        """Return where so many sums of each task go."""
        if self._sums is None:
            self._sums = np.empty((len(self.tasks), count))
            self._words[5] = self._sums.ctypes.data
        return self._sums


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
    copy = staticmethod(_copies.copy)

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
        frame.take(values)

        def finish(_alive: Any = work.loads["g"]) -> dict[str, list[Any]]:
            self._run(frame)
            return made

        return finish

    def again(self, work: BucketStep, values: StepScalars) -> tuple[Callable[[Any], None], Callable[[], None]] | None:
        """Return what makes a step of a bucket ready, given where its gradients lie, and what takes it.

        None where that is not all that there is to find.
        """
        frame = self._cached(work, None)
        if frame is None or not frame.whole or values.by_leaf:
            return None
        row = frame.row

        def ready(where: Any) -> None:
            if row is not None:
                row[:] = where
            frame.take(values)

        return ready, partial(self._run, frame)

    def sums(self, work: BucketStep, values: StepScalars, index: int) -> dict[str, NDArray]:
        """Return the sums that component ``index`` asks for, a vector over the leaves, in the order of `summation`."""
        try:
            frame = self._cached(work, index) or self._frame(work, reduction(work, index), index, {})
        except Unsupported:
            return self._rest.sums(work, values, index)
        if not frame.serves(work):
            return self._mixed(work, values, frame.plain).sums(index)
        names, leaves = list(work.plan.sums[index].outputs), len(frame.plain)
        frame.look(work)
        frame.take(values)
        chunks = frame.sums(len(names))
        self._run(frame)
        if frame.simple:
            totals = chunks + 0.0
        else:
            totals = np.zeros((leaves, len(names)))
            with np.errstate(all="ignore"):
                np.add.at(totals, frame.tasks[:, 0], chunks)  # one after the other, in the order of the chunks
        return dict(zip(names, totals.T, strict=True))

    def _mixed(self, work: BucketStep, values: StepScalars, plain: list[bool]) -> Shared:
        """Leave what is not in C order to the tiled runner."""
        good = list(map(operator.and_, plain, _readable(work)))
        return Shared(work, values, good, self, self._rest)

    def _run(self, frame: _Frame) -> None:
        """Do every range of tasks, on as many threads as they were cut for."""
        run, at, ranges = frame.kernel.run, frame.at, frame.ranges
        if len(ranges) == 1:
            run(at, *ranges[0])
            return
        queue = deque(ranges)

        def drain() -> None:
            while True:
                try:
                    first, last = queue.popleft()
                except IndexError:
                    return
                run(at, first, last)

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
        frame = _Frame(kernel, tasks, self._ranges(tasks), addresses, plain, grads)
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
    run = _compiler.compiled(text, 3)
    return CompiledLoop(_codegen.lowered(program), run, _codegen.table(program, dict(stored), fresh))


def source(program: Program, title: str, stored: dict[str, str], real: str, fresh: bool | None) -> str:
    """Return the module of a program: in place, with ``fresh`` beside it, or with ``fresh=None`` of its sums."""
    columns = _codegen.table(program, stored, fresh)
    if fresh is None:
        return _codegen.sums_source(title, program, columns, _compiler.converts_half())
    return _codegen.body_source(title, program, columns, real, _compiler.converts_half())


def _readable(work: BucketStep) -> list[bool]:
    """Say of each gradient whether it is in C order, and has memory."""
    grads, library = work.loads["g"], work.library
    return [ok and not library.unmapped(g) for ok, g in zip(library.contiguous(grads), grads, strict=True)]


def _plain(work: BucketStep, without: str = "") -> list[bool]:
    """Say of each leaf whether all its arrays, but for one, are in C order."""
    columns = [work.library.contiguous(column) for n, column in work.loads.items() if n != without]
    return [all(row) for row in zip(*columns, strict=True)]
