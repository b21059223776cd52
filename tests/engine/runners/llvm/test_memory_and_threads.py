"""What a step of the llvm runner allocates and keeps, its threads, and a fork."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import weakref
from typing import Any

import numpy as np
import pytest
from support.memory import peak
from support.runners import after_fork, step_in_threads

import xopt

pytestmark = pytest.mark.needs("llvm")
pytest.importorskip("llvmlite")

from xopt._engine.runners.llvm import runner as llvm
from xopt._engine.runners.llvm.runner import Llvm


def test_peak_memory_of_a_step() -> None:
    p, g = np.ones(2**21, "float32"), np.ones(2**21, "float32")
    opt = xopt.Optimizer(p, xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.AdamW()), runner="llvm")
    opt.step(g)
    most = peak(lambda: opt.step(g))
    assert most < 6e6, f"{most / 1e6:.1f} MB beside 8 MB of parameters"


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
    real = llvm._compiled

    def spied(*args: Any) -> Any:
        kernel = real(*args)

        def run(*task: Any) -> None:
            if threading.get_ident() not in used:
                used.add(threading.get_ident())
                both.wait()
            kernel.run(*task)

        return kernel._replace(run=run)

    monkeypatch.setattr(llvm, "_compiled", spied)
    xopt.Optimizer(p, xopt.SGD(lr=0.5), runner=Llvm(2, 1000)).step(g)
    assert len(used) == 2
    assert (p == 0.5).all()


def test_two_threads_step_two_optimizers(rng: np.random.Generator) -> None:
    step_in_threads(Llvm(2, 512), rng)


def test_sums_that_overflow_raise_nothing() -> None:
    n = 131_072
    g = np.zeros(n)
    g[0] = g[-1] = 1.2e154
    rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.SGD(lr=1.0))
    for runner in ("eager", "tiled", "llvm"):
        p = np.ones(n)
        with np.errstate(all="raise"):
            xopt.Optimizer(p, rule, runner=runner).step(g)
        assert p[0] == 1


def test_results_are_allocated_once(rng: np.random.Generator) -> None:
    p = [np.ones(2**20), np.ones((4, 4)).T]
    g = [np.ones(2**20), np.ones((4, 4))]
    rule = xopt.SGD(lr=0.5)
    state = rule.init(p)
    rule.apply(p, g, state, runner="llvm")
    assert peak(lambda: rule.apply(p, g, state, runner="llvm")) < 1.2 * 8 * 2**20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_after_fork() -> None:
    """The child steps, and compiles another kernel."""
    more = 'xopt.Optimizer(np.ones(9), xopt.RMSProp(), runner="llvm").step(np.ones(9))'
    after_fork("xopt._engine.runners.llvm.runner", "Llvm(2, 64)", more)


FORKS = """
import os, signal, sys, threading, time
import numpy as np, xopt
stop = threading.Event()
def compile_for_ever():
    k = 0
    while not stop.is_set():
        k += 1
        rule = xopt.chain(*[xopt.Scale(0.5)] * (k % 7), xopt.Adam())
        xopt.Optimizer(np.ones(9), rule, runner="llvm").step(np.ones(9))
        llvm._compiled.cache_clear()
from xopt._engine.runners.llvm import runner as llvm
xopt.Optimizer(np.ones(9), xopt.SGD(), runner="llvm").step(np.ones(9))  # a fork amid an import is another matter
thread = threading.Thread(target=compile_for_ever, daemon=True)
thread.start()
for k in range(6):
    time.sleep(0.03)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        xopt.Optimizer(np.ones(9), xopt.RMSProp(), runner="llvm").step(np.ones(9))
        os._exit(0)
    print(os.waitpid(child, 0)[1])
stop.set()
thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_while_another_thread_compiles() -> None:
    """The locks of a compiler that the child finds taken would never be free."""
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKS], capture_output=True, text=True, check=False)
    assert out.stdout.split() == ["0"] * 6, out.stdout + out.stderr
