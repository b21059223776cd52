"""Steps after the first, with the same arrays: what is kept of it, and when it is not."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import optree
import pytest
from support.runners import same_bits

import xopt
from xopt._engine.again import Again
from xopt._engine.executor import Executor

pytestmark = pytest.mark.needs("llvm")
pytest.importorskip("llvmlite")

RULES = {
    "numbers": xopt.AdamW(0.1, weight_decay=0.1),
    "schedule": xopt.Adam(xopt.schedules.cosine(0.1, steps=30), b1=0.8),
    "decay-schedule": xopt.SGD(lr=0.1, momentum=0.9, weight_decay=xopt.schedules.cosine(0.2, steps=20)),
    "chain": xopt.chain(xopt.AddDecay(0.1), xopt.Lion(0.01), xopt.Scale(0.5)),
    "kahan": xopt.Precision(xopt.Adam(0.1), rounding="kahan"),
    "state": xopt.Precision(xopt.Adam(0.1), state_dtype="float16"),
}


class Between(xopt.rule.Rule):
    """Two numbers that contradict each other; a third one that does not care."""

    low: xopt.rule.Hyper = xopt.rule.hyper()
    high: xopt.rule.Hyper = xopt.rule.hyper()
    lr: xopt.rule.Hyper = xopt.rule.hyper(default=0.5)

    def _check(self) -> None:
        super()._check()
        if not self.low <= self.high:
            raise ValueError("Between: low is above high")

    @staticmethod
    def update(h: Any, xp: Any, p: Any, g: Any) -> Any:
        return -h.lr * xp.minimum(xp.maximum(g, h.low), h.high)


def tree(rng: np.random.Generator) -> dict[str, Any]:
    return {"a": rng.standard_normal((4, 3)), "b": [rng.standard_normal(7, "f4"), rng.standard_normal(9, "f4")]}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Say by which way each step of the compiled runner went."""
    ways: list[str] = []
    again, run = Again.run, Executor.run

    def counted_again(self: Any, *args: Any) -> None:
        ways.append("again")
        again(self, *args)

    def counted_run(self: Any, *args: Any, **more: Any) -> Any:
        if self.runner.name == "llvm":
            ways.append("run")
        return run(self, *args, **more)

    monkeypatch.setattr(Again, "run", counted_again)
    monkeypatch.setattr(Executor, "run", counted_run)
    return ways


@pytest.mark.parametrize("name", RULES)
def test_bits_of_steps_that_look_everything_up(name: str, rng: np.random.Generator, counted: list[str]) -> None:
    rule, params = RULES[name], tree(rng)
    fast = xopt.Optimizer(optree.tree_map(np.copy, params), rule, runner="llvm")
    slow = xopt.Optimizer(optree.tree_map(np.copy, params), rule, runner="eager")
    field = "lion.lr" if name == "chain" else "lr"
    plain = name != "schedule"

    def step(way: str, **numbers: Any) -> None:
        grads = tree(rng)
        if way == "hole":
            grads["b"][0] = None
        for opt in (fast, slow):
            opt.step(grads, **numbers)
        assert counted[-1] == ("run" if way == "hole" else way)
        for x, y in zip(*(optree.tree_leaves((o.params, o.state.slots)) for o in (fast, slow)), strict=True):
            assert same_bits(x, y)
        assert fast.state.step == slow.state.step

    step("run")
    for _ in range(3):
        step("again")
    for value in (0.02, 0.5, 1):
        step("again" if plain else "run", **{field: value})
        step("again")
    step("hole")
    step("again")
    step("run", **{field: xopt.schedules.cosine(0.3, steps=99)})
    step("again")
    for opt in (fast, slow):
        opt.set(**{field: 0.07})
    step("run")
    step("again")
    fast.load_state_dict(slow.state_dict())
    step("run")
    step("again")


def test_a_number_that_is_refused_changes_nothing(rng: np.random.Generator, counted: list[str]) -> None:
    params = tree(rng)
    opt = xopt.Optimizer(params, xopt.Adam(0.1, b1=0.9), runner="llvm")
    opt.step(tree(rng))
    opt.step(tree(rng), lr=0.2)
    before, state = optree.tree_map(np.copy, params), optree.tree_map(np.copy, opt.state.slots)
    for bad, text in [
        ({"b1": 1.0}, r"Adam.b1: 1.0 is out of range"),
        ({"lr": float("nan")}, r"Adam.lr: nan, but it must be finite"),
        ({"lr": "x"}, r"Adam.lr: 'x' is a str"),
        ({"lr": True}, r"Adam.lr: True is a bool"),
        ({"rate": 0.1}, r"no hyperparameter 'rate'"),
        ({"lr": 0.1, "b1": -1.0}, r"Adam.b1: -1.0 is out of range"),
    ]:
        with pytest.raises((TypeError, ValueError), match=text):
            opt.step(tree(rng), **bad)
    other = xopt.Optimizer(tree(rng), Between(0.1, 0.2), runner="llvm")
    other.step(tree(rng))
    with pytest.raises(ValueError, match="low is above high"):
        other.step(tree(rng), low=0.3)
    other.step(tree(rng), lr=0.1)
    assert counted[-1] == "run", "a check that is not ours may look at fields in whichever way"
    assert all(map(same_bits, optree.tree_leaves((params, opt.state.slots)), optree.tree_leaves((before, state))))
    assert opt.state.step == 2
    with pytest.raises(TypeError, match="value: 'what' is a str"):
        opt.step(tree(rng), value="what")
    opt.step(tree(rng))
    assert counted[-1] == "again"


def test_rules_that_check_their_numbers_together_are_made_anew(rng: np.random.Generator, counted: list[str]) -> None:
    """And so are the parts of groups, and what a sum or the host has a hand in."""
    for rule, names in [
        (xopt.SGD(0.1, momentum=0.5), {"momentum": 0.7}),
        (Between(0.1, 0.2), {"low": 0.15}),
        (xopt.Groups(xopt.Adam(0.1), ("a", {"lr": 0.5})), {"lr": 0.2}),
        (xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam(0.1)), {"lr": 0.2}),
    ]:
        fast, slow = (xopt.Optimizer(tree(np.random.default_rng(1)), rule, runner=r) for r in ("llvm", "eager"))
        for _ in range(3):
            grads = tree(rng)
            for opt in (slow, fast):
                opt.step(grads)
                opt.step(grads, **names)
            assert counted[-1] == "run"
        assert all(map(same_bits, optree.tree_leaves(fast.params), optree.tree_leaves(slow.params)))


def test_parameters_that_moved_are_looked_up_again(counted: list[str]) -> None:
    torch = pytest.importorskip("torch")
    p = torch.nn.Parameter(torch.ones(5))
    opt = xopt.Optimizer([p], xopt.SGD(lr=0.5), runner="llvm")
    for way in ("run", "again"):
        opt.step([torch.ones(5)])
        assert counted[-1] == way
    old, version = p.data, p._version
    p.data = torch.full((5,), 3.0)
    opt.step([torch.ones(5)])
    assert counted[-1] == "run"
    opt.step([torch.ones(5)])
    assert counted[-1] == "again"
    assert p.tolist() == [2.0] * 5
    assert old.tolist() == [0.0] * 5
    assert p._version > version


def test_an_interrupt_in_a_later_step_leaves_it_torn(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    opt = xopt.Optimizer(tree(rng), xopt.Adam(0.1), runner="llvm")
    opt.step(tree(rng))
    again = opt._executor.again(opt._memory)
    assert again is not None
    pick, ready, finish = again._jobs[0]

    def interrupted() -> None:
        finish()
        raise KeyboardInterrupt

    monkeypatch.setattr(again, "_jobs", [(pick, ready, interrupted), *again._jobs[1:]])
    with pytest.raises(KeyboardInterrupt):
        opt.step(tree(rng))
    with pytest.raises(RuntimeError, match="interrupted while it wrote"):
        opt.step(tree(rng))


def test_a_move_beside_a_bad_gradient_is_remembered(counted: list[str]) -> None:
    """The step after an error must not go where a parameter was before."""
    torch = pytest.importorskip("torch")
    for runner in ("llvm", "tiled", "eager"):
        p = torch.zeros(4)
        opt = xopt.Optimizer([p], xopt.SGD(lr=1.0), runner=runner)
        for _ in range(3):
            opt.step([torch.ones(4)])
        old, p.data = p.data, torch.zeros(4)
        with pytest.raises(ValueError, match="shape"):
            opt.step([torch.ones(5)])
        opt.step([torch.ones(4)])
        assert p.tolist() == [-1.0] * 4
        assert old.tolist() == [-3.0] * 4
    q = np.zeros(4)
    opt = xopt.Optimizer([q], xopt.SGD(lr=1.0), runner="llvm")
    for _ in range(2):
        opt.step([np.ones(4)])
    q.resize(100_000, refcheck=False)
    q.resize(4, refcheck=False)
    q.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        opt.step([np.ones(4)])
    q.flags.writeable = True
    opt.step([np.ones(4)])
    assert q.tolist() == [-3.0] * 4


@pytest.mark.filterwarnings("ignore:Setting the strides")
def test_strides_that_change_in_place(counted: list[str]) -> None:
    for runner in ("llvm", "tiled", "eager"):
        p = np.arange(9.0).reshape(3, 3)
        opt, g = xopt.Optimizer([p], xopt.SGD(lr=1.0), runner=runner), 10 * p
        opt.step([g])
        opt.step([g])
        p.strides = p.strides[::-1]
        before = p.copy()
        opt.step([g])
        assert np.array_equal(p, before - g), runner


def test_trees_without_arrays(counted: list[str]) -> None:
    for runner in ("llvm", "tiled", "eager", None):
        for rule in (xopt.SGD(lr=1.0), xopt.Adam(0.1)):
            opt = xopt.Optimizer({}, rule, runner=runner)
            for _ in range(3):
                assert opt.step({}) == {}
            assert opt.state.step == 3


def test_copies_after_a_number_for_one_step(rng: np.random.Generator) -> None:
    opt = xopt.Optimizer(tree(rng), RULES["numbers"], runner="llvm")
    for _ in range(3):
        opt.step(tree(rng), lr=0.3)
    assert "_fields" not in opt.__getstate__()["more"]
    twin = pickle.loads(pickle.dumps(opt))
    grads = tree(rng)
    for each in (opt, twin, copy.deepcopy(opt)):
        each.step(grads, lr=0.2)
    assert all(map(same_bits, optree.tree_leaves(opt.params), optree.tree_leaves(twin.params)))


@pytest.mark.parametrize("form", ["optimizer", "pure"])
def test_gradients_without_memory(form: str) -> None:
    """Tensors that stand for others have no address; the compiled loop must not read there."""
    torch = pytest.importorskip("torch")
    g = torch._efficientzerotensor((4,))
    for p in (torch.zeros(4), torch.zeros(70_000)):
        g = torch._efficientzerotensor(p.shape)
        rule = xopt.SGD(lr=1.0)
        if form == "optimizer":
            opt = xopt.Optimizer([p], rule, runner="llvm")
            opt.step([torch.ones(p.shape)])
            with pytest.raises(TypeError, match=r"grads\[0\]: a Tensor without memory of its own"):
                opt.step([g])
            assert (p == -1).all()
            opt.step([torch.ones(p.shape)])
        else:
            with pytest.raises(RuntimeError, match="ZeroTensor"):
                rule.apply([p], [g], rule.init([p]), runner="llvm")
            assert (p == 0).all()
