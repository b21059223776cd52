"""The CUDA driver's place taken by a C++ compiler: the text of the kernels, run on the memory of the host."""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xopt._arrays.layout import Layout
from xopt._engine.executor import Executor
from xopt._engine.runners.cuda import codegen as _codegen
from xopt._engine.runners.cuda.driver import Queue
from xopt._engine.runners.cuda.templates import TOOLS

COMPILER = os.environ.get("CXX") or shutil.which("g++")
SHIM = r"""
#include <math.h>
#include <string.h>
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
struct Index { int x; };
static thread_local Index blockIdx, threadIdx;
static Index blockDim;
struct uint4 { unsigned x, y, z, w; };
static int wide;  // 16-byte accesses so far
static inline uint4 __ldcs(const uint4* p) { ++wide; return *(const uint4*)__builtin_assume_aligned(p, 16); }
static inline void __stcs(uint4* p, uint4 x) { ++wide; *(uint4*)__builtin_assume_aligned(p, 16) = x; }
static inline unsigned __float_as_uint(float x) { unsigned y; memcpy(&y, &x, 4); return y; }
static inline float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
static inline float from_half(unsigned short x) { _Float16 y; memcpy(&y, &x, 2); return y; }
static inline unsigned short to_half(float x) { _Float16 y = x; unsigned short z; memcpy(&z, &y, 2); return z; }
#ifdef TEAM
#include <barrier>
#include <thread>
#include <vector>
static std::barrier<> meeting(TEAM);
#define __syncthreads() meeting.arrive_and_wait()
#else
#define __syncthreads()
#endif
extern "C" int accesses() { int n = wide; wide = 0; return n; }
"""
LAUNCH = r"""
extern "C" void launch_@NAME@(const @ARGUMENTS@* a, unsigned grid, int threads) {
    blockDim.x = threads;
    for (unsigned block = 0; block < grid; ++block) {
        auto run = [=](int k) { blockIdx.x = block; threadIdx.x = k; @NAME@(*a); };
#ifdef TEAM
        std::vector<std::thread> team;
        for (int k = 0; k < threads; ++k) team.emplace_back(run, k);
        for (auto& t : team) t.join();
#else
        for (int k = 0; k < threads; ++k) run(k);
#endif
    }
}
"""
EXPORT, STEP = 'extern "C" ', "xopt_step"
ARGUMENTS = dict.fromkeys(["xopt_step", "xopt_tile", "xopt_sums"], "Arguments")
ARGUMENTS |= {"xopt_ordered": "Ordered", "xopt_store": "Upload"}


def needs_compiler() -> None:
    """Skip the test where there is no C++ compiler."""
    if COMPILER is None:
        pytest.skip("no C++ compiler: the kernels' text cannot be run without a GPU")


class HostDriver:
    """Compiles with g++ and runs a launch at once. It has one device and as many streams as it is told.

    A kernel whose threads wait for each other is run by a block of one thread; with ``team``, by so many real ones.
    """

    def __init__(self, folder: Path, team: int = 0) -> None:
        self.folder, self.team = folder, team
        self.stream, self.captured = 0, False
        self.launches: list[str] = []
        self._functions: dict[tuple[str, str], Any] = {}

    def queue(self, x: Any) -> Queue:
        return Queue(0, self.stream)

    def capturing(self, queue: Queue) -> bool:
        return self.captured

    def function(self, source: str, name: str, device: int) -> Any:
        if (source, name) not in self._functions:
            self._functions[source, name] = getattr(self._library(source), f"launch_{name}"), name
        return self._functions[source, name]

    def launch(self, function: Any, queue: Queue, grid: int, threads: int, words: Any) -> None:
        call, name = function
        self.launches.append(name)
        assert grid > 0
        assert words.dtype == np.uint64
        call(ctypes.c_void_p(words.ctypes.data), ctypes.c_uint(grid), self.team or (threads if name == STEP else 1))

    def _library(self, source: str) -> Any:
        needs_compiler()
        path = self._begin(source)
        return self._loaded(path, source)

    def build(self, kernels: Iterable[_codegen.Kernel]) -> None:
        """Compile many kernels at once, which is faster."""
        chosen = list({k.source: k for k in kernels if (k.source, k.name) not in self._functions}.values())
        parts = [chosen[low : low + 40] for low in range(0, len(chosen), 40)]
        every = [[*(k.source for k in part), TOOLS] for part in parts]
        begun = [self._begin(*sources) for sources in every]
        for path, sources, part in zip(begun, every, parts, strict=True):
            library = self._loaded(path, *sources)
            for i, k in enumerate(part):
                self._functions[k.source, k.name] = getattr(library, f"launch_{k.name}_{i}"), k.name

    def _begin(self, *sources: str) -> Path:
        """Compile what no other process compiles, or has compiled, and return where it will be."""
        path = self.folder / hashlib.sha256(f"{self.team}{''.join(sources)}".encode()).hexdigest()[:24]
        try:
            path.with_suffix(".claim").touch(exist_ok=False)
        except FileExistsError:
            return path
        try:
            self._build(path, text(*sources))
        except BaseException:
            path.with_suffix(".claim").unlink()
            raise
        return path

    def _loaded(self, path: Path, *sources: str) -> Any:
        """Load what was compiled here or is compiled by another process."""
        while not path.with_suffix(".so").exists():
            time.sleep(0.05)
            if not path.with_suffix(".claim").exists():  # the other one failed, and this will say why
                self._begin(*sources)
        return ctypes.CDLL(str(path.with_suffix(".so")))

    def _build(self, path: Path, source: str) -> None:
        made = path.with_suffix(".part")
        path.with_suffix(".cpp").write_text(source, encoding="utf-8")
        # no contraction: it is the compiler's default where the processor can, and NumPy does none
        flags = ["-std=c++20", "-O0", "-ffp-contract=off", "-fno-math-errno", "-w", "-shared", "-fPIC"]
        flags += [f"-DTEAM={self.team}", "-pthread"] if self.team else []
        command = [str(COMPILER), *flags, "-o", str(made), str(path.with_suffix(".cpp"))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:3000]
        made.replace(path.with_suffix(".so"))


def text(*sources: str) -> str:
    """Return what the compiler is given: the shim, and each text as it is with a loop over blocks and threads.

    Several stand in namespaces, so their kernels may not be C symbols: that alone is taken out.
    """
    parts = [SHIM]
    for k, source in enumerate(sources):
        names = [n for n in ARGUMENTS if f" {n}(const " in source]
        launches = "".join(LAUNCH.replace("@NAME@", n).replace("@ARGUMENTS@", ARGUMENTS[n]) for n in names)
        if len(sources) > 1:
            launches = re.sub(r"launch_(\w+)", rf"launch_\1_{k}", launches)
            source = f"namespace k{k} {{\n{source.replace(EXPORT, '')}\n"
            launches += "}\n"
        parts += [source, launches]
    return "".join(parts)


def kernels(rule: Any, dtype: str, fresh: bool = True) -> list[_codegen.Kernel]:
    """Return every kernel that a step of a rule needs for parameters of a dtype."""
    like = np.zeros(1, "float32" if dtype == "bfloat16" else dtype)
    layout = Layout(like.astype(importlib.import_module("ml_dtypes").bfloat16) if dtype == "bfloat16" else like)
    executor = Executor(rule._chains(layout), layout, "eager")
    [bucket] = executor.buckets
    columns = {"p": dtype, **{n: executor.state.slot_dtype(n, 0) for n in executor.state.live}, "g": dtype}
    storage = _codegen.storage(columns, bucket.split)
    made = [_codegen.sum_kernel(program, n, storage) for program in bucket.plan.sums.values() for n in program.outputs]
    body = bucket.plan.body(("p", *bucket.plan.changed))
    return [*made, _codegen.step_kernel(body, storage, bucket.dtype.real, fresh)]
