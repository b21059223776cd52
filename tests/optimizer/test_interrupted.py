"""Ctrl-C in a step, two threads in one optimizer, a fork: noticed, never a silent half."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
from support.interrupts import interrupt

import xopt
from xopt._engine.runners.tiled.runner import Tiled
from xopt.rule import Array, H, Hyper, Rule, hyper

TRIALS = 600
TORN = "a step, or a load, was interrupted while it wrote"


def test_ctrl_c_between_leaves_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    params = [np.zeros(3), np.zeros(2)]
    opt = xopt.Optimizer(params, xopt.SGD(1.0), runner="eager")
    opt.step([np.ones(3), np.ones(2)])
    kept = opt.state_dict(only_state=False)
    interrupt(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        opt.step([np.ones(3), np.ones(2)])
    assert [x[0] for x in params] == [-2.0, -1.0]  # half a step
    calls = [lambda: opt.step([np.ones(3), np.ones(2)]), opt.state_dict, opt.eval_params, lambda: opt.save("none")]
    calls += [lambda: opt.set(lr=0.5), lambda: opt.averaged().__enter__(), lambda: copy.deepcopy(opt)]
    for call in (*calls, lambda: pickle.dumps(opt)):
        with pytest.raises(RuntimeError, match=TORN):
            call()
    assert opt.hyperparams()["lr"] == 1.0  # what only looks, answers: to see what there is
    assert (opt.state.step, opt.loss_scale, opt.rule, opt.runner) == (1, 1.0, xopt.SGD(1.0), "eager")
    assert opt.params is params
    assert "step=1" in repr(opt)
    with pytest.raises(xopt.CheckpointError):
        opt.load_state_dict({})
    with pytest.raises(RuntimeError, match=TORN):
        opt.step([np.ones(3), np.ones(2)])
    opt.load_state_dict(kept)
    opt.step([np.ones(3), np.ones(2)])
    assert [x[0] for x in params] == [-2.0, -2.0]


SIGNALS = """
import signal, sys, numpy as np, xopt
from xopt._engine.runners.llvm import compiler as _compiler
from xopt._engine.runners.tiled.runner import Tiled
_compiler.missing = lambda: "left out"
runner = Tiled(1000, 2) if sys.argv[1] == "threads" else sys.argv[1]
trials, rng = int(sys.argv[2]), np.random.default_rng(3)
params = [np.zeros(4000) for _ in range(12)]
grads = [np.full(4000, -1.0) for _ in params]
opt = xopt.Optimizer(params, xopt.SGD(lr=1.0, momentum=0.5), runner=runner)
opt.step(grads)
start = opt.state_dict(only_state=False)
signal.signal(signal.SIGALRM, signal.default_int_handler)
whole = torn = 0
for trial in range(trials):
    try:
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 3e-3))
        while True:
            opt.step(grads)
    except KeyboardInterrupt:
        pass
    try:
        opt.state_dict()
    except RuntimeError as error:
        assert "interrupted while it wrote" in str(error), error
        torn += 1
    else:
        whole += 1
        m = p = 0.0
        for _ in range(opt.state.step):
            m = 0.5 * m - 1.0
            p -= m
        assert all((x == p).all() for x in params), "half a step, and nobody noticed"
        assert all((x == m).all() for x in opt.state.slots["0.sgd.m"]), "half a step, and nobody noticed"
    opt.load_state_dict(start)
print(whole, torn)
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers of POSIX")
@pytest.mark.parametrize("runner", ["eager", "tiled", "threads"])
def test_signals_at_any_moment(runner: str) -> None:
    """After each the optimizer is whole, or says that it is not; and its lock is free."""
    out = subprocess.run(
        [sys.executable, "-c", SIGNALS, runner, str(TRIALS)], capture_output=True, text=True, check=False
    )
    assert out.returncode == 0, out.stderr
    whole, torn = map(int, out.stdout.split())
    assert whole + torn == TRIALS
    assert torn > 10


class Waits(Rule):
    """Waits for the test in the middle of a step."""

    elementwise = False
    lr: Hyper = hyper(default=1.0)

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        if isinstance(p, np.ndarray):
            inside.set()
            assert go_on.wait(60)
        return -h.lr * g


inside, go_on = threading.Event(), threading.Event()


def test_two_threads_in_one_optimizer() -> None:
    p = np.zeros(3)
    opt = xopt.Optimizer(p, Waits(), runner="eager")
    other = threading.Thread(target=opt.step, args=(np.ones(3),))
    other.start()
    try:
        assert inside.wait(10)
        calls = {"step": np.ones(3), "save": "none", "load": "none", "load_state_dict": {}, "state_dict": None}
        for what, argument in (calls | {"eval_params": None}).items():
            with pytest.raises(RuntimeError, match=f"^{what}: another thread is in a step"):
                getattr(opt, what)(*([] if argument is None else [argument]))
    finally:
        go_on.set()
        other.join()
    assert p.tolist() == [-1.0] * 3
    opt.step(np.ones(3))
    assert p.tolist() == [-2.0] * 3


@pytest.mark.parametrize("runner", ["eager", "tiled", Tiled(64, 2)])
def test_threads_that_step_one_optimizer_get_an_error_and_no_race(runner: Any) -> None:
    """So many steps as did not raise were taken, each of them whole."""
    params, taken = [np.zeros(500) for _ in range(4)], [0] * 4
    opt = xopt.Optimizer(params, xopt.SGD(lr=1.0), runner=runner)
    grads = [np.full(500, -1.0) for _ in params]

    wrong: list[Exception] = []  # an assertion in a thread would only be a warning

    def work(k: int) -> None:
        for _ in range(300):
            try:
                opt.step(grads)
            except Exception as error:
                if "another thread" not in str(error):
                    wrong.append(error)
            else:
                taken[k] += 1

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(old)
    assert wrong == []
    assert opt.state.step == sum(taken)
    assert all((x == sum(taken)).all() for x in params)


def test_two_optimizers_in_two_threads() -> None:
    params = [np.zeros(5000), np.zeros(5000)]
    opts = [xopt.Optimizer(p, xopt.SGD(lr=1.0), runner=Tiled(64, 2)) for p in params]
    work = lambda opt: [opt.step(np.full(5000, -1.0)) for _ in range(50)]
    threads = [threading.Thread(target=work, args=(opt,)) for opt in opts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((p == 50).all() for p in params)


FORK = """
import os, sys, numpy as np, xopt
from xopt._engine.runners.tiled.runner import Tiled
p = np.zeros(100_000)
opt = xopt.Optimizer(p, xopt.SGD(lr=1.0), runner=Tiled(1000, 2))
opt.step(np.full(100_000, -1.0))
child = os.fork()
opt.step(np.full(100_000, -1.0))
opt.save(sys.argv[1] + ("child" if child == 0 else "parent"))
assert (p == 2).all() and opt.state.step == 2
if child == 0:
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("both")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_goes_on_where_it_was_forked(tmp_path: Any) -> None:
    """With a pool of its own: the threads of the parent are not there."""
    command = [sys.executable, "-W", "ignore", "-c", FORK, str(tmp_path / "run-")]
    out = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert out.stdout == "both\n", out.stderr


@pytest.mark.parametrize("runner", ["eager", "tiled"])
def test_many_steps_leave_nothing_behind(runner: Any) -> None:
    """The counter does not drift and memory does not grow: `nox -s soak` takes ten million steps."""
    count = int(os.environ.get("XOPT_TEST_STEPS", "10000"))
    params, g = {"w": np.zeros(4), "b": np.asarray(0.0)}, {"w": np.full(4, -1.0), "b": np.asarray(-1.0)}
    rule = xopt.chain(xopt.SGD(lr=xopt.schedules.constant(0.25), momentum=0.0), xopt.EMA(0.5))
    opt = xopt.Optimizer(params, rule, runner=runner)
    blocks = []
    for _ in range(2):
        for _ in range(count // 2):
            opt.step(g)
        gc.collect()
        blocks.append(sys.getallocatedblocks())
    assert opt.state.step == count
    assert params["w"].tolist() == [0.25 * count] * 4
    assert blocks[1] - blocks[0] < 500 + count // 40_000, blocks  # of ten million steps, a block in 5,000 is seen
