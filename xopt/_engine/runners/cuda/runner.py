"""The cuda runner: one launch per stage for all leaves, on CuPy arrays and torch CUDA tensors.

Leaves are cut into chunks of 65,536 elements, one a block of threads. Tables in the memory of the device say where the
leaves lie; an optimizer uploads them once, and after that only the places of gradients, when they have changed. Nothing
here reads from the device or waits for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from xopt import _arrays
from xopt._arrays import Library
from xopt._engine.program.contract import BucketStep, StepScalars
from xopt._engine.program.lower import Unsupported
from xopt._engine.program.trace import Program
from xopt._engine.runners import eager
from xopt._engine.runners.cuda import codegen as _codegen
from xopt._engine.runners.cuda import templates as _templates
from xopt._engine.runners.cuda.driver import Driver, Queue

Words = np.ndarray[Any, Any]
"""Arguments and tables: 8-byte words, of which some are the bits of a float64."""


class Cuda:
    """A runner on a driver; None is the CUDA driver of this machine, looked for when the first arrays arrive."""

    name = "cuda"
    host = False
    caches = True
    inspector = None
    copy = None
    again = staticmethod(eager.again)

    def __init__(self, driver: Any = None) -> None:
        self._driver, self._why = driver, ""

    @property
    def driver(self) -> Any:
        """What compiles and launches."""
        if self._driver is None and not self._why:
            try:
                self._driver = Driver()
            except Exception as error:  # a missing library, an old one, no device: there are many ways
                self._why = f"{type(error).__name__}: {error}".splitlines()[0]
        return self._driver

    def refuses(self, library: Library, leaves: list[Any]) -> str:
        """Say why these parameters are not for this runner; nothing if they are."""
        if self._driver is not None and not isinstance(self._driver, Driver):
            return ""
        if not library.cuda or not leaves:
            return f'runner="cuda" needs CuPy arrays or torch CUDA tensors; these are of {library}'
        if not all(map(library.on_cuda, leaves)):
            return f'runner="cuda" needs plain tensors on a GPU; there is one on {leaves[0].device}'
        devices = list(dict.fromkeys(_arrays.device_name(x) for x in leaves))
        if len(devices) > 1:
            return f'runner="cuda" needs all parameters on one device; these are on {" and ".join(devices)}'
        return "" if self.driver is not None else f'runner="cuda" found no CUDA it could use: {self._why}'

    def source(
        self, program: Program, title: str, stored: Mapping[str, str], real: str, split: bool, body: bool
    ) -> str:
        """Return the kernels."""
        columns = _codegen.storage(stored, split)
        try:
            if body:
                return _codegen.step_kernel(program, columns, real, False).source.rstrip()
            return "\n\n".join(_codegen.sum_kernel(program, n, columns).source.rstrip() for n in program.outputs)
        except Unsupported as error:
            return f"(left to the eager runner: {error})"

    def prepare(
        self, work: BucketStep, values: StepScalars, into: dict[str, list[Any]] | None
    ) -> Callable[[], dict[str, list[Any]]]:
        """Return a function that runs the whole chain over every leaf; what can fail fails here, before any write.

        Its results land in ``into`` where that is given, else in fresh arrays.
        """
        program = work.plan.body(work.outputs)
        try:
            kernel = _codegen.step_kernel(program, _storage(work), work.real, into is None)
        except Unsupported:
            return eager.prepare(work, values, into)
        with work.library.on_device(work.loads["p"][0]):
            call = _Call(self.driver, work)
            function = call.function(kernel)
            made = into
            if made is None:
                made = {
                    n: [work.library.empty(work.xp, x.shape, x.dtype, x) for x in work.loads["p" if n == "u" else n]]
                    for n in work.outputs
                }
                places = [x for n in kernel.stores for x in work.library.addresses(made[n])]
                call.results = call.uploaded(np.asarray(places, np.uint64))
            words = call.arguments(kernel, values)

        def finish() -> dict[str, list[Any]]:
            call.launch(function, call.tables.chunks, _templates.THREADS, words)
            if into is not None:
                with work.library.on_device(work.loads["p"][0]):
                    call.copy_back(kernel.stores)
            return made

        return finish

    def sums(self, work: BucketStep, values: StepScalars, index: int) -> dict[str, Any]:
        """Return the sums that component ``index`` asks for, a vector over the leaves, in the order of `summation`."""
        program, found = work.plan.sums[index], {}
        try:
            kernels = {n: _codegen.sum_kernel(program, n, _storage(work)) for n in program.outputs}
        except Unsupported:
            return eager.sums(work, values, index)
        with work.library.on_device(work.loads["p"][0]):
            call = _Call(self.driver, work)
            chunks, leaves = call.tables.chunks, len(work.loads["p"])
            for n, kernel in kernels.items():
                call.results, found[n] = call.empty(chunks), call.empty(leaves)
                call.launch(call.function(kernel), chunks, _templates.SUM_THREADS, call.arguments(kernel, values))
                call.ordered(call.tables.starts, found[n], leaves)
        return found

    def total(self, xp: Any, leaves: Any) -> Any:
        """Sum a vector of the sums of leaves, in their order: a 0-d array on the device."""
        library = _arrays.library(leaves)
        assert library is not None
        with library.on_device(leaves):
            out, queue = library.empty(xp, (), leaves.dtype, leaves), self.driver.queue(leaves)
            [parts, sums] = library.addresses([leaves, out])
            words = np.asarray([parts, 0, sums, leaves.shape[0]], np.uint64)
            function = self.driver.function(_templates.TOOLS, "xopt_ordered", queue.device)
            self.driver.launch(function, queue, 1, _templates.THREADS, words)
        return out


def _storage(work: BucketStep) -> tuple[tuple[str, str], ...]:
    """Return the dtype that each column is stored in. Of a split complex one, that is the dtype of its parts."""
    dtypes = {n: _arrays.dtype_name(column[0]) for n, column in work.loads.items()}
    return _codegen.storage(dtypes, work.split)


class _Tables:
    """Where the leaves of a work lie, in the memory of the device."""

    def __init__(self, driver: Any, queue: Queue, work: BucketStep) -> None:
        self.queue = queue
        twice = 2 if work.split else 1
        sizes = [twice * math.prod(p.shape) for p in work.loads["p"]]
        counts = [-(-n // _templates.CHUNK) for n in sizes]
        ends = np.cumsum(counts)
        self.chunks = int(ends[-1])
        leaf = np.repeat(np.arange(len(sizes)), counts)
        number = np.arange(self.chunks) - np.repeat(ends - counts, counts)
        columns = {n: column for n, column in work.loads.items() if n != "g"}
        self.copies = {n: _copies(work, column) for n, column in columns.items()}
        """Of each column, copies of the leaves that are not contiguous, and None for the others."""
        self.plain = not any(x is not None for column in self.copies.values() for x in column)
        """Whether these tables will do for the next step too."""
        places = [x for n in columns for x in _places(work, columns[n], self.copies[n])]
        self._gradients, self.held = _gradients(work)
        self.columns: dict[Any, tuple[Words, Any]] = {}
        """Scalars of the host with one value a leaf, and where the device has them."""
        words = [np.asarray(x, np.uint64) for x in (sizes, leaf | number << 32, [0, *ends], places, self._gradients)]
        starts = np.cumsum([0, *map(len, words)])
        self._memory = work.library.empty(work.xp, (int(starts[-1]),), work.xp.int64, work.loads["p"][0])
        [first] = work.library.addresses([self._memory])
        self.sizes, self.cut, self.starts, self.pointers, self._row, _ = (first + 8 * starts).tolist()
        _store(driver, queue, first, np.concatenate(words))

    def update(self, driver: Any, work: BucketStep) -> None:
        """Upload the places of gradients where they have changed."""
        gradients, self.held = _gradients(work)
        if gradients != self._gradients:
            self._gradients = []  # unknown, should the upload fail
            _store(driver, self.queue, self._row, np.asarray(gradients, np.uint64))
            self._gradients = gradients


def _gradients(work: BucketStep) -> tuple[list[int], list[Any]]:
    """Return where the gradients lie, and copies of those that are not contiguous, which somebody must hold on to."""
    if work.where is not None:
        return work.where.tolist(), []
    copies = _copies(work, work.loads["g"])
    return _places(work, work.loads["g"], copies), [x for x in copies if x is not None]


def _copies(work: BucketStep, column: list[Any]) -> list[Any]:
    plain = work.library.contiguous(column)
    return [None if ok else work.library.c_order(work.xp, x) for ok, x in zip(plain, column, strict=True)]


def _places(work: BucketStep, column: list[Any], copies: list[Any]) -> list[int]:
    chosen = [x if copy is None else copy for copy, x in zip(copies, column, strict=True)]
    return work.library.addresses(chosen)


def _store(driver: Any, queue: Queue, at: int, words: Words) -> None:
    """Write words into the memory of the device."""
    function = driver.function(_templates.TOOLS, "xopt_store", queue.device)
    for low in range(0, len(words), _templates.UPLOAD):
        part = words[low : low + _templates.UPLOAD]
        upload = np.zeros(2 + _templates.UPLOAD, np.uint64)
        upload[:2] = at + 8 * low, len(part)
        upload[2 : 2 + len(part)] = part
        driver.launch(function, queue, 1, _templates.THREADS, upload)


class _Call:
    """One use of a work: its tables, and what must stay alive until the launch."""

    def __init__(self, driver: Any, work: BucketStep) -> None:
        self._driver, self._work, self._held = driver, work, list[Any]()
        self.queue = driver.queue(work.loads["p"][0])
        if driver.capturing(self.queue):
            raise RuntimeError(
                "a step cannot be captured in a CUDA graph: its number and its hyperparameters are the host's, and "
                "every replay would repeat those of now; capture the gradients and call step outside"
            )
        self.tables = self._tables()
        self.results: Any = None

    def _tables(self) -> _Tables:
        cache = self._work.cache
        found: _Tables | None = None if cache is None else cache.get("tables")
        if found is not None and found.queue == self.queue:
            found.update(self._driver, self._work)
        else:
            found = _Tables(self._driver, self.queue, self._work)
            if cache is not None and found.plain:  # tables of another stream go: their memory belongs to that stream
                cache["tables"] = found
        self._held, found.held = found.held, []
        return found

    def empty(self, size: int) -> Any:
        """Make a vector of float64 on the device."""
        return self._work.library.empty(self._work.xp, (size,), self._work.xp.float64, self._work.loads["p"][0])

    def uploaded(self, words: Words) -> Any:
        """Return words in memory of their own on the device."""
        like = self._work.loads["p"][0]
        memory = self._work.library.empty(self._work.xp, (len(words),), self._work.xp.int64, like)
        _store(self._driver, self.queue, self._address(memory), words)
        return memory

    def _address(self, x: Any) -> int:
        return self._work.library.addresses([x])[0]

    def function(self, kernel: _codegen.CudaKernel) -> Any:
        """Compile a kernel, once for each text and device."""
        return self._driver.function(kernel.source, kernel.name, self.queue.device)

    def arguments(self, kernel: _codegen.CudaKernel, values: StepScalars) -> Words:
        """Return what a kernel is given: where the tables lie, and the scalars.

        A scalar of the host goes as it is; one that lives on the device goes as its address.
        """
        tables, results = self.tables, self.results
        words = np.zeros(5 + 3 * max(1, len(kernel.program.scalars)), np.uint64)
        words[:5] = (
            tables.pointers, 0 if results is None else self._address(results), tables.sizes, tables.cut,
            len(self._work.loads["p"]),
        )  # fmt: skip
        numbers = words.view(np.float64)
        with self._work.library.no_grad():
            scalars = values.scalars(kernel.program)
        for k, x in enumerate(scalars):
            if isinstance(x, int | float):
                numbers[5 + 3 * k] = x
            else:
                if isinstance(x, np.ndarray) and not self._work.library.host:
                    x = self._column(kernel, k, x.astype(np.float64))
                else:
                    x = _arrays.cast(self._work.xp, x, self._work.xp.float64)
                if not self._work.library.contiguous([x])[0]:
                    x = self._work.library.c_order(self._work.xp, x)
                self._held.append(x)
                words[6 + 3 * k : 8 + 3 * k] = self._address(x), x.ndim
        return words

    def _column(self, kernel: _codegen.CudaKernel, k: int, x: Words) -> Any:
        """Return scalars of the host, one per leaf, in memory of the device; those of the step before, if they are."""
        known, key = self.tables.columns, (kernel.source, k)
        if key not in known or not np.array_equal(known[key][0].view(np.uint64), x.view(np.uint64)):
            known[key] = x, self.uploaded(x.view(np.uint64))
        return known[key][1]

    def launch(self, function: Any, grid: int, threads: int, words: Words) -> None:
        """Launch a kernel over all chunks, if there are any."""
        if grid:
            self._driver.launch(function, self.queue, grid, threads, words)

    def ordered(self, starts: int, out: Any, leaves: int) -> None:
        """Add the sums of chunks to sums of leaves."""
        words = np.asarray([self._address(self.results), starts, self._address(out), 0], np.uint64)
        function = self._driver.function(_templates.TOOLS, "xopt_ordered", self.queue.device)
        self.launch(function, leaves, _templates.THREADS, words)

    def copy_back(self, names: tuple[str, ...]) -> None:
        """Write results into parameters and state that are not contiguous."""
        for n in names:
            for x, copy in zip(self._work.loads[n], self.tables.copies[n], strict=True):
                if copy is not None:
                    self._work.library.detached(x)[...] = copy
