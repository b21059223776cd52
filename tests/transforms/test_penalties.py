"""Penalties behind a rule: where they are accepted, steps end at the minimum of f + λ·r; elsewhere they are refused."""

from __future__ import annotations

import pickle
from typing import Any

import catalog
import numpy as np
import pytest
from conftest import Lib

import xopt

A = np.asarray([[2.0, 0.5, 0.0, 0.2], [0.5, 1.0, 0.3, 0.0], [0.0, 0.3, 1.5, -0.4], [0.2, 0.0, -0.4, 1.0]])
B = np.asarray([2.0, -0.3, -1.4, 0.25])
LAM, LR = 0.5, 0.05
"""½·xᵀAx - bᵀx + λ·r(x): two elements of the minimum with ‖·‖₁ are 0, two are not."""


def gradient(x: Any) -> Any:
    return A @ x - B


def minimum(l1: float, l2: float = 0.0, low: float = -np.inf, high: float = np.inf) -> Any:
    """Coordinate descent: each coordinate has its minimum in closed form."""
    x = np.zeros(4)
    for _ in range(500):
        for i in range(4):
            r = B[i] - A[i] @ x + A[i, i] * x[i]
            x[i] = np.clip(np.sign(r) * max(abs(r) - l1, 0.0) / (A[i, i] + l2), low, high)
    return x


SPARSE, SMALL = minimum(LAM), minimum(0.0, LAM)


def ends(rule: Any, steps: int = 1200, x: Any = None) -> Any:
    opt = xopt.Optimizer(np.ones(4) if x is None else x, rule)
    for _ in range(steps):
        opt.step(gradient(opt.params))
    return opt.params


SGDS: list[Any] = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.5},
    {"momentum": 0.0},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "dampening": 0.5},
    {"momentum": 0.9, "dampening": 0.5, "nesterov": True},
    {"momentum": 0.9, "form": "ema"},
    {"momentum": 0.9, "form": "ema", "nesterov": True},
    {"momentum": 0.9, "form": "lr_inside"},
    {"momentum": 0.9, "form": "lr_inside", "nesterov": True},
    {"momentum": 0.8, "form": "lr_inside", "dampening": 0.25, "nesterov": True},
    {"momentum": xopt.schedules.warmup(0.9, steps=200)},
    pytest.param({"momentum": lambda t: 0.9 if t < 100 else 0.6}, id="a function of the step"),
    {"momentum": 0.9, "like": "torch"},
    {"momentum": 0.9, "like": "keras"},
    {"momentum": 0.9, "like": "optax"},
]


def test_the_problem_has_zeros() -> None:
    assert np.count_nonzero(SPARSE) == 2
    assert np.count_nonzero(minimum(0.0)) == 4


@pytest.mark.parametrize("options", SGDS, ids=str)
def test_sgd_ends_at_the_minimum(options: dict[str, Any]) -> None:
    rule = xopt.SGD(LR, **options)
    got = ends(xopt.chain(rule, xopt.L1(LR * LAM)))
    np.testing.assert_allclose(got, SPARSE, atol=1e-10)
    assert np.array_equal(got == 0, SPARSE == 0)
    np.testing.assert_allclose(ends(xopt.chain(rule, xopt.L2(LR * LAM))), SMALL, atol=1e-10)
    np.testing.assert_allclose(
        ends(xopt.chain(rule, xopt.L1(LR * LAM), xopt.L2(LR * 0.25))), minimum(LAM, 0.25), atol=1e-10
    )


@pytest.mark.parametrize("row", catalog.ROWS, ids=lambda row: row.rule.__name__)
def test_every_rule_is_exact_or_refused(row: Any) -> None:
    """Whatever says that its steps are a multiple of the gradient ends at the minimum, with every set of options."""
    for options in row.options:
        rule = row.make(**{**options, "lr": LR})
        for penalty in (xopt.L1(LR * LAM), xopt.L2(LR * LAM)):
            if row.rule.steady is None:
                with pytest.raises(ValueError, match=f"{type(penalty).__name__} behind {row.rule.__name__} would end"):
                    xopt.chain(rule, penalty).init(np.ones((2, 2)))
            else:
                want = SPARSE if isinstance(penalty, xopt.L1) else SMALL
                np.testing.assert_allclose(ends(xopt.chain(rule, penalty)), want, atol=1e-9)


def test_only_sgd_is_a_multiple_of_the_gradient() -> None:
    assert [row.rule for row in catalog.ROWS if row.rule.steady] == [xopt.SGD]


SGD = xopt.SGD(LR, momentum=0.9)
ACCEPTED: list[tuple[Any, Any]] = [
    (xopt.chain(xopt.Scale(0.5), SGD, xopt.L1(LR * LAM)), SPARSE),
    (xopt.chain(SGD, xopt.Scale(xopt.schedules.warmup(0.5, steps=9)), xopt.L1(LR * LAM)), SPARSE),
    (xopt.chain(xopt.AddDecay(0.25), SGD, xopt.L1(LR * LAM)), minimum(LAM, 0.25)),
    (xopt.chain(xopt.SGD(LR, momentum=0.9, weight_decay=0.25), xopt.L1(LR * LAM)), minimum(LAM, 0.25)),
    (xopt.chain(xopt.ClipByGlobalNorm(5.0), SGD, xopt.ClipByNorm(9.0), xopt.L1(LR * LAM)), SPARSE),
    (xopt.chain(xopt.ClipByValue(3.0), SGD, xopt.L1(LR * LAM)), SPARSE),
    (xopt.chain(SGD, xopt.EMA(0.9), xopt.SWA(start=9), xopt.L1(LR * LAM), xopt.Lookahead(k=3)), SPARSE),
    (xopt.chain(SGD, xopt.L1(LR * 0.2), xopt.L1(LR * 0.3)), SPARSE),
    (xopt.chain(SGD, xopt.L1(LR * LAM), xopt.NonNegative()), minimum(LAM, low=0.0)),
    (xopt.chain(SGD, xopt.L1(LR * LAM), xopt.Box(-0.25, 0.5)), minimum(LAM, low=-0.25, high=0.5)),
    (xopt.chain(xopt.Groups(SGD, ("*", {"momentum": 0.5})), xopt.L1(LR * LAM)), SPARSE),
    (xopt.chain(xopt.Groups(xopt.Adam(), ("*", xopt.SGD(LR, momentum=0.8))), xopt.L1(LR * LAM)), SPARSE),
    (xopt.Groups(xopt.Adam(), ("*", xopt.chain(SGD, xopt.L1(LR * LAM)))), SPARSE),
    (xopt.chain(SGD, xopt.Masked(xopt.L1(LR * LAM), "*")), SPARSE),
    (xopt.chain(xopt.Masked(xopt.Normalize(), "no", unmatched="ignore"), SGD, xopt.L1(LR * LAM)), SPARSE),
    (xopt.Accumulate(xopt.chain(SGD, xopt.L1(LR * LAM)), every=3), SPARSE),
    (xopt.Guard(xopt.chain(SGD, xopt.L1(LR * LAM)), "skip"), SPARSE),
    (xopt.Precision(xopt.chain(SGD, xopt.L1(LR * LAM)), master_weights=True), SPARSE),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "want"), ACCEPTED, ids=lambda x: repr(x) if not isinstance(x, np.ndarray) else "")
def test_what_may_stand_around(rule: Any, want: Any) -> None:
    np.testing.assert_allclose(ends(rule, 4000), want, atol=1e-9)


def test_the_weight_is_scaled_back_with_the_loss() -> None:
    opt = xopt.Optimizer(np.ones(4), xopt.LossScale(xopt.chain(SGD, xopt.L1(LR * LAM)), initial=8.0))
    for _ in range(1200):
        opt.step(gradient(opt.params) * opt.loss_scale)
    np.testing.assert_allclose(opt.params, SPARSE, atol=1e-9)


def test_maximization_of_what_is_penalized() -> None:
    opt = xopt.Optimizer(np.ones(4), xopt.chain(xopt.SGD(LR, momentum=0.9, maximize=True), xopt.L1(LR * LAM)))
    for _ in range(1200):
        opt.step(-gradient(opt.params))
    np.testing.assert_allclose(opt.params, SPARSE, atol=1e-9)


L1, L2 = xopt.L1(0.1), xopt.L2(0.1)
REFUSED: list[tuple[list[Any], str]] = [
    ([xopt.Normalize(), SGD, L1], "L1 behind Normalize would end beside the minimum.*leave Normalize out"),
    ([SGD, xopt.TrustRatio(), L1], "L1 behind TrustRatio"),
    ([SGD, xopt.Cautious(), L2], "L2 behind Cautious"),
    ([xopt.Centralize(), SGD, L1], "L1 behind Centralize"),
    ([xopt.AdaptiveGradientClip(), SGD, L1], "L1 behind AdaptiveGradientClip"),
    ([SGD, xopt.ReduceOnPlateau(), L1], "L1 behind ReduceOnPlateau"),
    ([SGD, xopt.Lookahead(), L1], "L1 behind Lookahead.*put L1 in front of Lookahead"),
    ([SGD, xopt.Box(0.0, 1.0), L1], "put L1 in front of Box"),
    ([SGD, L2, L1], "put L1 in front of L2"),
    ([SGD, xopt.Ball(1.0), L2], "put L2 in front of Ball"),
    ([xopt.Adam(), L1], "L1 behind Adam.*no fixed multiple of it: use SGD, with any momentum"),
]


@pytest.mark.parametrize(("links", "message"), REFUSED, ids=lambda x: x if isinstance(x, str) else "")
def test_refused_by_chain(links: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        xopt.chain(*links)


def test_refused_where_the_parameters_say_so() -> None:
    p = {"a": np.ones(2), "b": np.ones(2)}
    for rule in (
        xopt.chain(xopt.Groups(SGD, ("b", xopt.Adam())), L1),
        xopt.chain(xopt.Masked(xopt.Normalize(), "b"), SGD, L1),
        xopt.chain(xopt.Adam(), xopt.Masked(L1, "b")),
    ):
        with pytest.raises(ValueError, match="would end beside the minimum"):
            rule.init(p)
        with pytest.raises(ValueError, match="would end beside the minimum"):
            xopt.Optimizer(p, rule)
    fine = xopt.chain(xopt.Groups(SGD, ("b", xopt.Adam())), xopt.Masked(L1, "a"))
    assert fine.init(p).step == 0


def test_groups_have_weights_of_their_own(lib: Lib) -> None:
    rule = xopt.chain(xopt.Groups(xopt.SGD(0.5, momentum=0.5), ("b", {"momentum": 0.75})), xopt.L1(0.125))
    p = {n: lib.array(np.asarray([4.0])) for n in "ab"}
    new, _ = rule.apply(p, {n: lib.array(np.asarray([0.0])) for n in "ab"}, rule.init(p))
    assert [float(lib.numpy(new[n])[0]) for n in "ab"] == [4 - 0.125 * 2, 4 - 0.125 * 4]


def test_set_changes_the_weight_too() -> None:
    opt = xopt.Optimizer(np.asarray([4.0]), xopt.chain(xopt.SGD(0.5, momentum=0.5), xopt.L1(0.125)))
    assert opt.hyperparams()["strength"] == 0.125
    opt.set(momentum=0.75)
    opt.step(np.zeros(1))
    assert opt.params[0] == 3.5
    opt.set(strength=0.25)
    opt.step(np.zeros(1))
    assert opt.params[0] == 2.5
    opt.step(np.zeros(1), momentum=0.5)
    assert opt.params[0] == 2.0
    again = pickle.loads(pickle.dumps(opt.rule))
    assert again == opt.rule
    assert again.apply(np.asarray([4.0]), np.zeros(1), again.init(np.zeros(1)))[0] == 3.0


@pytest.mark.needs("jax")
def test_arguments_of_a_jitted_function() -> None:
    jax = pytest.importorskip("jax")

    @jax.jit
    def step(p: Any, momentum: Any, strength: Any) -> Any:
        rule = xopt.chain(xopt.SGD(0.5, momentum=momentum), xopt.L1(strength))
        return rule.apply(p, jax.numpy.zeros(1), rule.init(p))[0]

    p = jax.numpy.asarray([4.0])
    assert float(step(p, 0.5, 0.125)[0]) == 3.75
    assert float(step(p, 0.75, 0.25)[0]) == 3.0


def test_a_rule_of_ones_own() -> None:
    class Twice(xopt.Rule):
        lr: xopt.Hyper = xopt.hyper(default=0.1)

        @staticmethod
        def steady(h: Any) -> float:
            return 2.0

        @staticmethod
        def update(h: Any, xp: Any, p: Any, g: Any) -> Any:
            return -2 * h.lr * g

    class Other(Twice):
        @staticmethod
        def update(h: Any, xp: Any, p: Any, g: Any) -> Any:
            return -h.lr * g / (1 + g * g)

    np.testing.assert_allclose(ends(xopt.chain(Twice(LR), xopt.L1(LR * LAM))), SPARSE, atol=1e-10)
    with pytest.raises(ValueError, match="L1 behind Other"):  # what goes for a formula need not go for another
        xopt.chain(Other(LR), L1)
