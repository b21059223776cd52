"""What a step of the numba runner allocates and keeps, its threads, and a fork."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import tracemalloc
import weakref
from typing import Any

import numpy as np
import pytest
from support.runners import step_in_threads

import xopt

pytestmark = pytest.mark.needs("numba")
pytest.importorskip("numba")

from xopt._engine.runners.numba import runner as numba
from xopt._engine.runners.numba.runner import Numba


def test_peak_memory_of_a_step() -> None:
    p, g = np.ones(2**21, "float32"), np.ones(2**21, "float32")
    opt = xopt.Optimizer(p, xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.AdamW()), runner="numba")
    opt.step(g)
    tracemalloc.start()
    opt.step(g)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e6, f"{peak / 1e6:.1f} MB beside 8 MB of parameters"


def test_gradients_are_not_kept(rng: np.random.Generator) -> None:
    for sizes in ([100], [100, 50, 3]):
        params, grads = ([rng.standard_normal(n) for n in sizes] for _ in range(2))
        opt = xopt.Optimizer(params, xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam()))
        gone = [weakref.ref(g) for g in grads]
        opt.step(grads)
        opt.step(grads)
        with pytest.raises(ValueError, match="shape"):
            opt.step([*grads[:-1], np.ones(1)])
        del grads
        assert [g() for g in gone] == [None] * len(sizes)


def test_large_leaf_uses_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    used, both = set(), threading.Barrier(2, timeout=60)
    p, g = np.ones(10_000, np.float32), np.ones(10_000, np.float32)
    real = numba._compiled

    def spied(*args: Any) -> Any:
        kernel = real(*args)

        def run(*task: Any) -> None:
            if threading.get_ident() not in used:
                used.add(threading.get_ident())
                both.wait()
            kernel.run(*task)

        return kernel._replace(run=run)

    monkeypatch.setattr(numba, "_compiled", spied)
    xopt.Optimizer(p, xopt.SGD(lr=0.5), runner=Numba(2, 1000)).step(g)
    assert len(used) == 2
    assert (p == 0.5).all()


def test_two_threads_step_two_optimizers(rng: np.random.Generator) -> None:
    step_in_threads(Numba(2, 512), rng)


def test_sums_that_overflow_raise_nothing() -> None:
    n = 131_072
    g = np.zeros(n)
    g[0] = g[-1] = 1.2e154
    rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.SGD(lr=1.0))
    for runner in ("eager", "tiled", "numba"):
        p = np.ones(n)
        with np.errstate(all="raise"):
            xopt.Optimizer(p, rule, runner=runner).step(g)
        assert p[0] == 1


def test_results_are_allocated_once(rng: np.random.Generator) -> None:
    p = [np.ones(2**20), np.ones((4, 4)).T]
    g = [np.ones(2**20), np.ones((4, 4))]
    rule = xopt.SGD(lr=0.5)
    state = rule.init(p)
    rule.apply(p, g, state, runner="numba")
    tracemalloc.start()
    rule.apply(p, g, state, runner="numba")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * 8 * 2**20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_after_fork() -> None:
    code = """
import os, time, warnings
import numpy as np, xopt
from xopt._engine.runners.numba.runner import Numba
from xopt._engine.runners import threads as _pool
warnings.simplefilter("ignore")
p, g = np.ones(5000), np.linspace(-1, 1, 5000)
opt = xopt.Optimizer(p, xopt.Adam(), runner=Numba(2, 64))
opt.step(g)
time.sleep(0.5)  # until its threads are idle
assert _pool._started > 0
want, _ = xopt.Adam().apply(p, g, opt.state, runner="eager")
child = os.fork()
if child == 0:
    opt.step(g)
    xopt.Optimizer(np.ones(9), xopt.RMSProp(), runner="numba").step(np.ones(9))
    os._exit(0 if np.array_equal(p, want) else 1)
_, status = os.waitpid(child, 0)
assert status == 0, status
opt.step(g)
print("done" if np.array_equal(p, want) else "the parent is wrong")
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert out.stdout == "done\n", out.stderr
