"""Optimizer: hyperparameters, state, counters, names."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import Lib

import xopt


def test_set_and_hyperparams() -> None:
    p = np.ones(3)
    opt = xopt.Optimizer(p, xopt.SGD(lr=0.5))
    assert opt.hyperparams() == {"lr": 0.5, "momentum": None, "dampening": None, "weight_decay": None, "peak_lr": None}
    opt.step(np.ones(3))
    opt.set(lr=0.25)
    opt.step(np.ones(3))
    opt.step(np.ones(3), lr=1.0)
    opt.step(np.ones(3))
    assert p.tolist() == [1 - 0.5 - 0.25 - 1 - 0.25] * 3
    assert opt.hyperparams()["lr"] == 0.25
    assert opt.rule == xopt.SGD(lr=0.25)
    schedule = xopt.schedules.constant(2.0)
    opt.set(lr=schedule)
    assert opt.hyperparams()["lr"] is schedule
    opt.step(np.ones(3))
    assert p.tolist() == [-3.0] * 3


def test_names_in_a_chain() -> None:
    rule = xopt.chain(xopt.ClipByNorm(1.0), xopt.ClipByValue(2.0), xopt.AdamW(lr=0.1), xopt.ClipByNorm(3.0))
    opt = xopt.Optimizer(np.ones(3), rule)
    names = opt.hyperparams()
    assert names["0.clipbynorm.max_norm"] == 1.0
    assert names["3.clipbynorm.max_norm"] == 3.0
    assert names["limit"] == 2.0
    assert names["lr"] == 0.1
    opt.set(**{"adamw.lr": 0.2, "0.clipbynorm.max_norm": 5.0, "2.adamw.b1": 0.5, "limit": 9.0})
    names = opt.hyperparams()
    assert (names["lr"], names["0.clipbynorm.max_norm"], names["b1"], names["limit"]) == (0.2, 5.0, 0.5, 9.0)
    assert names["3.clipbynorm.max_norm"] == 3.0
    assert isinstance(opt.rule, xopt.Chain)


def test_step_counter_is_exact() -> None:
    """A counter in bfloat16 stops at 256, one in float32 at 2**24 (pytorch #110940); powers do not overflow."""
    rule, p = xopt.Adam(lr=0.1), np.ones(2)
    state = rule.init(p)
    for step in (0, 255, 256, 2047, 2**24 - 1, 2**24, 2**31 - 1, 2**53 - 1, 2**53, 10**18, 2**63 - 2):
        new, after = rule.apply(p, p, state._replace(step=step))
        assert after.step == step + 1
        assert np.isfinite(new).all()
    assert rule.apply(p, p, state._replace(step=2**63 - 1))[1].step == 2**63 - 1


def test_two_parameters_are_two_optimizers() -> None:
    """The step is counted once a step, not once a parameter (PennyLane #1928)."""
    rng = np.random.default_rng(0)
    a, b, grads = rng.standard_normal(3), rng.standard_normal(4), [rng.standard_normal(7) for _ in range(5)]
    together = xopt.Optimizer([a.copy(), b.copy()], xopt.Adam(lr=0.1))
    alone = [xopt.Optimizer(a.copy(), xopt.Adam(lr=0.1)), xopt.Optimizer(b.copy(), xopt.Adam(lr=0.1))]
    for g in grads:
        together.step([g[:3], g[3:]])
        alone[0].step(g[:3])
        alone[1].step(g[3:])
    assert np.array_equal(together.params[0], alone[0].params)
    assert np.array_equal(together.params[1], alone[1].params)


def test_state_moves_between_apply_and_optimizer() -> None:
    p = np.ones(3)
    opt = xopt.Optimizer(p, xopt.Adam(lr=0.1))
    opt.step(p * 2)
    start, state = p.copy(), copy.deepcopy(opt.state)
    opt.step(np.full(3, 0.5))
    pure, _ = xopt.Adam(lr=0.1).apply(start, np.full(3, 0.5), state)
    assert np.array_equal(pure, p)


def test_rules_are_values() -> None:
    for rule in (
        xopt.AdamW(lr=xopt.schedules.cosine(0.1, steps=5), b1=0.8),
        xopt.chain(xopt.ClipByNorm(1.0), xopt.SGD(0.1, 0.9)),
    ):
        twin = copy.deepcopy(rule)
        assert twin == rule
        assert hash(twin) == hash(rule)
        assert repr(twin) == repr(rule)
        back = pickle.loads(pickle.dumps(rule))
        assert back == rule
    assert xopt.Adam(lr=0.1) != xopt.Adam(lr=0.2)
    assert xopt.Adam() != xopt.AdamW()
    assert repr(xopt.SGD(0.1, momentum=0.9)) == "SGD(lr=0.1, momentum=0.9)"
    assert eval(repr(xopt.Adam(lr=0.1, amsgrad=True)), {n: getattr(xopt, n) for n in xopt.__all__}) == xopt.Adam(
        lr=0.1, amsgrad=True
    )
    assert xopt.Adam(lr=1) == xopt.Adam(lr=1.0)


def test_replace_keeps_what_was_chosen() -> None:
    rule = xopt.Adam(b1=0.5).replace(lr=0.1).replace(b1=0.6)
    assert repr(rule) == "Adam(lr=0.1, b1=0.6)"


def test_repr_of_an_optimizer() -> None:
    opt = xopt.Optimizer({"w": np.ones((3, 4)), "b": np.ones(4)}, xopt.SGD(0.1))
    assert repr(opt) == "Optimizer(SGD(lr=0.1), 2 arrays of numpy, 16 parameters, runner='tiled', step=0)"


class Heavy(xopt.AdamW):
    """A rule made of another one: one more slot, a chosen default."""

    lr: Any = xopt.hyper(default=0.5, ge=0)

    @staticmethod
    def update(h: Any, xp: Any, p: Any, g: Any, m: Any = 0.0, v: Any = 0.0, top: Any = 0.0, far: Any = 2.0) -> Any:
        u, m, v, top = xopt.AdamW.update(h, xp, p, g, m, v, top)
        return u, m, v, top, 0.5 * far + p


def test_a_subclass_may_add_slots() -> None:
    rule, p = Heavy(), np.ones(2)
    state = rule.init(p)
    assert list(state.slots) == ["0.heavy.m", "0.heavy.v", "0.heavy.far"]
    assert state.slots["0.heavy.far"].tolist() == [2.0, 2.0]
    new, after = rule.apply(p, p, state)
    want, _ = xopt.AdamW(lr=0.5).apply(p, p, xopt.AdamW().init(p))
    assert np.array_equal(new, want)
    assert after.slots["0.heavy.far"].tolist() == [2.0, 2.0]
    with pytest.raises(ValueError, match="another rule"):
        rule.apply(p, p, xopt.AdamW().init(p))


def test_memmap(tmp_path: Any) -> None:
    p = np.memmap(tmp_path / "p", "float32", "w+", shape=(100,))
    p[:] = 1
    xopt.Optimizer(p, xopt.SGD(lr=0.5)).step(np.ones(100, "float32"))
    assert np.array_equal(np.asarray(p), np.full(100, 0.5, "float32"))


def test_initial_accumulator() -> None:
    p = np.ones(2, "complex128")
    assert xopt.Adagrad(initial=0.25).init(p).slots["0.adagrad.v"].tolist() == [0.25, 0.25]
    split = xopt.Adagrad(initial=0.25, complex="split")
    assert split.init(p).slots["0.adagrad.v"].tolist() == [0.25 + 0.25j] * 2
    assert xopt.Optimizer(p.copy(), split).state.slots["0.adagrad.v"].tolist() == [0.25 + 0.25j] * 2


def _calls(take: Callable[[], Any]) -> int:
    count = 0

    def see(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    take()
    take()
    gc.collect()
    gc.disable()  # what other tests have left is freed by calls, too
    sys.setprofile(see)
    try:
        take()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


def test_another_rate_in_every_step_costs_little() -> None:
    """Function calls, which do not depend on the machine: in 94ffc73 there were 96, 179 and 180 more."""
    p, g = {n: np.ones(3) for n in "abcdefghijk"}, {n: np.ones(3) for n in "abcdefghijk"}
    made = {}
    for name in ("plain", "schedule", "override", "set"):
        lr = xopt.schedules.cosine(0.1, steps=99) if name == "schedule" else 0.1
        rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam(lr))
        made[name] = xopt.Optimizer({n: x.copy() for n, x in p.items()}, rule, runner="tiled")
    rates = iter(np.linspace(0.1, 0.2, 99).tolist())

    def setting() -> None:
        made["set"].set(lr=next(rates))
        made["set"].step(g)

    plain = _calls(lambda: made["plain"].step(g))
    assert _calls(lambda: made["schedule"].step(g)) <= plain + 70
    assert _calls(lambda: made["override"].step(g, lr=next(rates))) <= plain + 95
    assert _calls(setting) <= plain + 95


def test_steps_taken(lib: Lib) -> None:
    """Where it is set, bias correction and schedules go on as after so many steps; state stays."""
    if lib.guise == "read-only":
        pytest.skip("nothing to write into")
    rule = xopt.Adam(lr=xopt.schedules.polynomial(1.0, end=0.0, steps=10), b1=0.0, b2=0.5)
    opt, other = (xopt.Optimizer({"w": lib.array(np.ones(3))}, rule) for _ in range(2))
    zeros, ones = {"w": lib.array(np.zeros(3))}, {"w": lib.array(np.ones(3))}
    for _ in range(4):
        other.step(zeros)
    opt.steps_taken = np.int64(4)
    assert opt.steps_taken == other.steps_taken == 4
    assert np.array_equal(lib.numpy(opt.step(ones)["w"]), lib.numpy(other.step(ones)["w"]))
    assert opt.steps_taken == 5
    for bad, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="steps_taken: "):
            opt.steps_taken = bad
    assert opt.steps_taken == 5
