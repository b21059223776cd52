"""The ceiling: streams that move what a step must move, and compute nothing worth the name.

For a rule with k arrays of state, a stream reads p, g and the state and writes p and the state: for Adam 4 reads and 3
writes. A clip by the global norm reads g once more. The arrays are as wide as the rule's and are gone through leaf by
leaf, but lie end to end in one buffer each. Elements are unsigned integers to which the gradient's are added, so that
nothing overflows or becomes denormal, however long it runs.
"""

from __future__ import annotations

import functools
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.contenders import Contender
from benchmarks.libraries import Library
from benchmarks.problems import Array, Problem, need

ALIGN = 64
"""Elements that the start of a leaf is a multiple of."""
STAGGER = 192
"""Bytes from where one buffer begins in its page to where the next one does: reads and writes at one place wait for
each other, a third of the time where buffers are of 2²⁷ bytes."""


class _Streamed(Contender):
    """One buffer for each of g, p and the arrays of state, and where each leaf, or piece of one, starts and stops."""

    def __init__(self, problem: Problem, library: Library, spec: int) -> None:
        super().__init__(problem, library)
        rule = problem.rule
        own, kept = _words(problem)
        starts, stops, end = [], [], 0
        for p in problem.params:
            for low in range(0, p.size, spec):
                starts.append(end + low)
                stops.append(end + min(p.size, low + spec))
            end += math.ceil(p.size / ALIGN) * ALIGN
        self.params, self.starts, self.stops = [], np.asarray(starts), np.asarray(stops)
        self.buffers = []
        for k, dtype in enumerate([own, own, *[kept] * rule.state]):  # not all at one place in their pages
            skip = STAGGER * k // np.dtype(dtype).itemsize
            self.buffers.append(library.xp.empty(end + skip, dtype)[skip:])
        for x in self.buffers:
            x[...] = 1  # so that its pages exist

    def adopt(self, grads: list[Array]) -> list[Array]:
        return []


def _words(problem: Problem) -> tuple[str, str]:
    """Name the unsigned integers as wide as the parameters and as the state."""
    own, kept = _sizes(problem)
    return f"uint{8 * own}", f"uint{8 * kept}"


def _sizes(problem: Problem) -> tuple[int, int]:
    return problem.params[0].itemsize, problem.rule.state_itemsize(problem.dtype)


class Stream(_Streamed):
    """A Numba loop over all leaves, cut evenly between threads."""

    modules = ("numba",)

    def __init__(self, problem: Problem, library: Library, threads: int) -> None:
        self.stream, self.read = _compiled(problem.rule.state)
        share = math.ceil(problem.elements / threads / ALIGN) * ALIGN
        super().__init__(problem, library, share)
        self.pool = ThreadPoolExecutor(threads - 1) if threads > 1 else None
        thread = (np.cumsum(self.stops - self.starts) - 1) // share
        self.shares = [(self.starts[thread == k], self.stops[thread == k]) for k in range(threads)]

    def step(self) -> None:
        if self.problem.rule.clip:
            self._run(self.read, self.buffers[:1])
        self._run(self.stream, self.buffers)

    def _run(self, loop: Any, buffers: list[Array]) -> None:
        jobs = [self.pool.submit(loop, *buffers, *share) for share in self.shares[1:]] if self.pool else []
        loop(*buffers, *self.shares[0])
        for job in jobs:
            job.result()


@functools.cache
def _compiled(state: int) -> tuple[Any, Any]:
    """Return the stream, and a loop that only reads g."""
    names = ["p", *(f"s{k}" for k in range(state))]
    lines = [
        f"def stream(g, {', '.join(names)}, starts, stops):",
        "    for k in range(starts.size):",
        *(f"        {n}_k = {n}[starts[k] : stops[k]]" for n in ["g", *names]),
        "        for i in range(g_k.size):",
        *(f"            {n}_k[i] += g_k[i]" for n in names),
        "def read(g, starts, stops):",
        "    total = 0",
        "    for k in range(starts.size):",
        "        g_k = g[starts[k] : stops[k]]",
        "        for i in range(g_k.size):",
        "            total += g_k[i]",
        "    return total",
    ]
    space: dict[str, Any] = {}
    exec("\n".join(lines), space)
    jit = need("numba").njit(nogil=True)
    return jit(space["stream"]), jit(space["read"])


PIECE = 16_384
"""Elements that a block of the CUDA stream goes through."""

_CUDA = """
typedef {own} Own; typedef {kept} Kept;
struct alignas(16) Owns {{ Own x[{lanes}]; }};
struct alignas(16) Kepts {{ Kept x[{lanes}]; }};

extern "C" __global__ void stream(const Own* g, Own* p, {parameters},
                                  const long long* starts, const long long* stops) {{
    const long long stop = stops[blockIdx.x];
    for (long long i = starts[blockIdx.x] + threadIdx.x * {lanes}; i < stop; i += blockDim.x * {lanes}) {{
        if (i + {lanes} <= stop) {{
            const Owns a = *(const Owns*)(g + i);
            Owns b = *(Owns*)(p + i);
            {loads}
            for (int j = 0; j < {lanes}; ++j) {{ b.x[j] += a.x[j]; {adds} }}
            *(Owns*)(p + i) = b;
            {stores}
        }} else {{
            for (long long j = i; j < stop; ++j) {{ const Own a = g[j]; p[j] += a; {tail} }}
        }}
    }}
}}

extern "C" __global__ void read(const Own* g, Own* sink, const long long* starts, const long long* stops) {{
    Own total = 0;
    const long long stop = stops[blockIdx.x];
    for (long long i = starts[blockIdx.x] + threadIdx.x * {lanes}; i < stop; i += blockDim.x * {lanes}) {{
        if (i + {lanes} <= stop) {{
            const Owns a = *(const Owns*)(g + i);
            for (int j = 0; j < {lanes}; ++j) total += a.x[j];
        }} else {{
            for (long long j = i; j < stop; ++j) total += g[j];
        }}
    }}
    if (total == 1) *sink = total;
}}
"""


def cuda_source(state: int, own: int, kept: int) -> str:
    """Return the CUDA stream for arrays of elements of ``own`` and ``kept`` bytes, moved 16 bytes at a time."""
    words = {2: "unsigned short", 4: "unsigned int", 8: "unsigned long long"}
    each = range(state)
    return _CUDA.format(
        own=words[own],
        kept=words[kept],
        lanes=16 // own,
        parameters=", ".join(f"Kept* s{k}" for k in each),
        loads=" ".join(f"Kepts c{k} = *(Kepts*)(s{k} + i);" for k in each),
        adds=" ".join(f"c{k}.x[j] += a.x[j];" for k in each),
        stores=" ".join(f"*(Kepts*)(s{k} + i) = c{k};" for k in each),
        tail=" ".join(f"s{k}[j] += a;" for k in each),
    )


class CudaStream(_Streamed):
    """A CUDA kernel that moves 16 bytes at a time, a block for each piece of a leaf."""

    modules = ("cupy",)

    def __init__(self, problem: Problem, library: Library) -> None:
        super().__init__(problem, library, PIECE)
        source = cuda_source(problem.rule.state, *_sizes(problem))
        module = library.xp.RawModule(code=source, options=("--std=c++14",))
        self.stream, self.read = module.get_function("stream"), module.get_function("read")
        self.at = (library.xp.asarray(self.starts), library.xp.asarray(self.stops))

    def step(self) -> None:
        grid, block = (self.starts.size,), (256,)
        if self.problem.rule.clip:
            self.read(grid, block, (*self.buffers[:2], *self.at))
        self.stream(grid, block, (*self.buffers, *self.at))


class CudaCopy(Contender):
    """A device-to-device copy of one array as large as all parameters; it counts the bytes that it moves itself."""

    modules = ("cupy",)

    def __init__(self, problem: Problem, library: Library) -> None:
        super().__init__(problem, library)
        size = problem.params[0].itemsize * problem.elements
        self.params, self.bytes = [], 2 * size
        self.target, self.source = library.xp.zeros((2, size), "uint8")

    def adopt(self, grads: list[Array]) -> list[Array]:
        return []

    def step(self) -> None:
        self.target.data.copy_from_device_async(self.source.data, self.source.nbytes)
