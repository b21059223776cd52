"""What runners are compared on: awkward arrays, rules and chains of every kind; and how they are compared."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import catalog
import ml_dtypes
import numpy as np
import optree
import pytest
from conftest import restrided, tree, walk

import xopt
from support import host_cuda
from support.host_cuda import HostDriver
from xopt._engine.runners.cuda.runner import Cuda
from xopt._engine.runners.tiled.runner import Tiled


def awkward(rng: np.random.Generator, dtype: str) -> Any:
    """Leaves around every tile size, of every layout."""
    if dtype == "bfloat16":
        return optree.tree_map(lambda x: restrided(x, ml_dtypes.bfloat16), awkward(rng, "float32"))
    params = tree(rng, dtype)
    draw = lambda *shape: np.asarray(
        rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if "complex" in dtype else 0), dtype
    )
    params["many"] = [draw(n) for n in (5, 64, 1, 63, 2, 65, 4097)]
    params["rows"] = draw(13, 40)[:, ::-1]
    params["deep"] = draw(4, 3, 70).transpose(1, 0, 2)
    return params


def poison(grads: Any, rng: np.random.Generator, rule: Any = None) -> Any:
    """Put NaN, infinities, denormals and signed zeros among the numbers.

    For a rule that sums, no NaN and nothing that overflows: it would be all that is left to compare.
    """
    special = [0.0, -0.0, 1e-42, -1e-42, 6e-8]
    if rule is None or not any(part.reduce for part in rule._parts()):
        special += [np.nan, np.inf, -np.inf, 1e30]
    for x in optree.tree_leaves(grads):
        if x.size:
            at = rng.integers(0, x.size, 1 + x.size // 7)
            with np.errstate(all="ignore"):
                x.flat[at] = rng.choice(special, at.size).astype(x.dtype)
    return grads


def same_bits(x: Any, y: Any) -> bool:
    """Compare two arrays; NaN equals NaN, and 0 equals -0, as promised."""
    return x.shape == y.shape and x.dtype == y.dtype and bool(np.array_equal(x, y, equal_nan=True))


def alike(rule: Any) -> Callable[[Any, Any], bool]:
    """Return how results of a rule are compared: bit by bit, but within roundings if it takes powers."""
    return same_bits if not any(part.inexact for part in rule._parts()) else roughly


def roughly(x: Any, y: Any) -> bool:
    """Compare two arrays; functions like pow differ in their last bits, and four steps hand that on."""
    tol = 512 * float(np.finfo(y.dtype if y.dtype.name != "bfloat16" else "float16").eps)
    wide = "complex128" if "complex" in y.dtype.name else "float64"
    x, y = np.asarray(x, wide), np.asarray(y, wide)
    return x.shape == y.shape and np.allclose(x, y, rtol=tol, atol=tol, equal_nan=True)


def trajectory(rule: Any, params: Any, grads: list[Any], runner: Any) -> list[Any]:
    last, state = walk(rule, params, grads, runner=runner)
    return optree.tree_leaves((last, state.slots))  # type: ignore[no-any-return]


CHAIN = xopt.chain(
    xopt.ClipByValue(2.0),
    xopt.ClipByNorm(30.0),
    xopt.ClipByGlobalNorm(35.0),
    xopt.AdamW(lr=xopt.schedules.cosine(0.1, steps=10), weight_decay=0.3, amsgrad=True),
    xopt.ClipByValue(0.05),
)
GATED = xopt.Accumulate(xopt.Guard(CHAIN, "skip"), every=2)
SCALED = xopt.LossScale(
    xopt.chain(xopt.ClipByGlobalNorm(2.0), xopt.RMSProp(lr=0.1, centered=True)), initial=4.0, every=1
)
LINKED = xopt.chain(
    xopt.AddDecay(0.1),
    xopt.Normalize(),
    xopt.Adam(lr=1.0),
    xopt.Cautious(),
    xopt.TrustRatio(),
    xopt.Scale(xopt.schedules.cosine(0.1, steps=10)),
    xopt.EMA(0.9, start="zero"),
    xopt.Ball(25.0, over="leaf"),
    xopt.Ball(30.0),
    xopt.Lookahead(k=2),
    xopt.SWA(start=2),
)
AVERAGED = xopt.chain(xopt.ClipByGlobalNorm(35.0), xopt.AdamW(lr=0.1, weight_decay=0.3), xopt.EMA(0.9))
STORED = [
    xopt.Precision(AVERAGED, rounding="kahan"),
    xopt.Precision(xopt.Adam(0.1), rounding="stochastic", seed=2**20 + 5),
    xopt.Precision(xopt.chain(xopt.Adam(0.1), xopt.Ball(30.0)), master_weights=True),
    xopt.Precision(xopt.chain(xopt.SGD(0.1, momentum=0.5), xopt.L1(0.01), xopt.L2(0.02)), master_weights=True),
    xopt.Precision(xopt.Accumulate(xopt.Adam(0.1), every=2), rounding="kahan", state_dtype="float32"),
]
CHAINS = [CHAIN, GATED, SCALED, LINKED]
RULES = [row.make(**row.options[-1]) for row in catalog.TRACED] + CHAINS + STORED


def one_of(*names: str) -> Any:
    """Return a fixture that is each of these runners in turn, with small tasks; the kernels of cuda run on the host."""
    marks = {"llvm": [pytest.mark.needs("llvm")]}

    @pytest.fixture(params=[pytest.param(name, marks=marks.get(name, [])) for name in names])
    def runner(request: pytest.FixtureRequest) -> Any:
        if request.param == "cuda":
            host_cuda.needs_compiler()
            return Cuda(HostDriver(request.getfixturevalue("kernel_folder")))
        if request.param == "llvm":
            pytest.importorskip("llvmlite")
            from xopt._engine.runners.llvm.runner import Llvm

            return Llvm(2, 64)
        return Tiled(7, 2) if request.param == "tiled" else request.param

    return runner


def after_fork(module: str, made: str, child: str = "pass") -> None:
    """Fork when the threads of a runner are idle: they do not survive it, and child and parent go on all the same."""
    code = f"""
import os, time, warnings
import numpy as np, xopt
from xopt._engine.runners import threads as _pool
from {module} import {made.partition("(")[0]}
warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of a fork with threads, which is what this is about
p, g = np.ones(5000), np.linspace(-1, 1, 5000)
opt = xopt.Optimizer(p, xopt.Adam(), runner={made})
opt.step(g)
time.sleep(0.5)  # until they are idle
assert _pool._started > 0
want, _ = xopt.Adam().apply(p, g, opt.state, runner="eager")
child = os.fork()
if child == 0:
    opt.step(g)
    {child}
    os._exit(0 if np.array_equal(p, want) else 1)
_, status = os.waitpid(child, 0)
assert status == 0, status
opt.step(g)
print("done" if np.array_equal(p, want) else "the parent is wrong")
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert out.stdout == "done\n", out.stderr


def step_in_threads(runner: Any, rng: np.random.Generator) -> None:
    """Step optimizers in threads at once; each must come to what one alone does."""
    grads = [rng.standard_normal(20_000) for _ in range(20)]
    start = rng.standard_normal(20_000)
    rule = xopt.chain(xopt.ClipByGlobalNorm(50.0), xopt.Adam(lr=0.01))
    want = trajectory(rule, start, grads, "eager")[0]
    results = [start.copy() for _ in range(4)]

    def work(p: Any) -> None:
        opt = xopt.Optimizer(p, rule, runner=runner)
        for g in grads:
            opt.step(g)

    threads = [threading.Thread(target=work, args=(p,)) for p in results]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(np.array_equal(p, want) for p in results)
