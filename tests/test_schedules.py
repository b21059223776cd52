"""Schedules against their formulas, torch and optax; as hyperparameters; under jit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import xopt
from xopt import schedules as s

EVERY = [
    s.constant(0.3),
    s.step(0.3, every=3, factor=0.5),
    s.exponential(0.3, rate=0.9),
    s.exponential(0.3, rate=0.5, every=4),
    s.polynomial(0.3, end=0.01, steps=10),
    s.polynomial(0.3, end=0.01, steps=10, power=2.5),
    s.inverse_time(0.3, rate=0.2),
    s.inverse_time(0.3, rate=0.2, every=3),
    s.cosine(0.3, steps=10),
    s.cosine(0.3, steps=10, end=0.05),
    s.warmup(0.3, steps=5),
    s.warmup(0.3, steps=5, start=0.1),
    s.warmup_cosine(0.3, warmup=5, steps=15),
    s.warmup_cosine(0.3, warmup=5, steps=15, end=0.02, start=0.1),
    s.join([s.warmup(0.3, steps=4), s.cosine(0.3, steps=8)], [4]),
    s.join([s.constant(1.0), s.step(0.5, every=2, factor=0.1), s.constant(0.25)], [3, 8]),
]
ids = [repr(x) for x in EVERY]


def test_every_function_is_tried() -> None:
    assert {x.name for x in EVERY} == set(s.__all__) - {"Schedule"}


FORMULAS = {
    s.constant(0.3): lambda k: 0.3,
    s.step(0.3, every=3, factor=0.5): lambda k: 0.3 * 0.5 ** (k // 3),
    s.exponential(0.3, rate=0.5, every=4): lambda k: 0.3 * 0.5 ** (k / 4),
    s.polynomial(0.3, end=0.01, steps=10, power=2.5): lambda k: 0.01 + 0.29 * (1 - min(k / 10, 1)) ** 2.5,
    s.inverse_time(0.3, rate=0.2, every=3): lambda k: 0.3 / (1 + 0.2 * k / 3),
    s.cosine(0.3, steps=10, end=0.05): lambda k: 0.05 + 0.125 * (1 + math.cos(math.pi * min(k / 10, 1))),
    s.warmup(0.3, steps=5, start=0.1): lambda k: 0.1 + 0.2 * min(k / 5, 1),
    s.warmup_cosine(0.3, warmup=5, steps=15, end=0.02, start=0.1): lambda k: (
        0.1 + 0.2 * k / 5 if k < 5 else 0.02 + 0.14 * (1 + math.cos(math.pi * min((k - 5) / 10, 1)))
    ),
    s.join([s.constant(1.0), s.step(0.5, every=2, factor=0.1), s.constant(0.25)], [3, 8]): lambda k: (
        1.0 if k < 3 else 0.5 * 0.1 ** ((k - 3) // 2) if k < 8 else 0.25
    ),
}


@pytest.mark.parametrize(("schedule", "formula"), FORMULAS.items(), ids=map(repr, FORMULAS))
def test_formulas(schedule: Any, formula: Any) -> None:
    """Step 1 is the first update: it has the value at k = 0 updates made."""
    for t in range(1, 40):
        assert schedule(t) == pytest.approx(formula(t - 1), rel=1e-14, abs=1e-16)
        assert type(schedule(t)) is float


@pytest.mark.parametrize("schedule", EVERY, ids=ids)
def test_on_arrays(lib: Any, schedule: Any) -> None:
    """A step that is a 0-d array gives a 0-d array with the same value: what a jitted step needs."""
    if lib.guise in ("read-only", "grad"):
        pytest.skip("a step has no such guise")
    call = lib.module().jit(schedule) if lib.guise == "jit" else schedule
    for t in (1, 2, 5, 6, 9, 16, 33):
        got = lib.numpy(call(lib.array(float(t)))) if schedule.name != "constant" else schedule(t)
        assert np.shape(got) == ()
        np.testing.assert_allclose(got, schedule(t), rtol=1e-12, atol=1e-16)


@pytest.mark.needs("jax")
def test_against_optax() -> None:
    optax = pytest.importorskip("optax")
    pairs = [
        (s.exponential(0.3, rate=0.5, every=4), optax.exponential_decay(0.3, 4, 0.5)),
        (s.step(0.3, every=3, factor=0.5), optax.exponential_decay(0.3, 3, 0.5, staircase=True)),
        (s.polynomial(0.3, end=0.01, steps=10, power=2.5), optax.polynomial_schedule(0.3, 0.01, 2.5, 10)),
        (s.polynomial(0.3, end=0.01, steps=10), optax.linear_schedule(0.3, 0.01, 10)),
        (s.cosine(0.3, steps=10, end=0.03), optax.cosine_decay_schedule(0.3, 10, alpha=0.1)),
        (
            s.warmup_cosine(0.3, warmup=5, steps=15, end=0.02, start=0.1),
            optax.warmup_cosine_decay_schedule(0.1, 0.3, 5, 15, 0.02),
        ),
        (
            s.join([s.warmup(0.3, steps=4), s.cosine(0.3, steps=8)], [4]),
            optax.join_schedules([optax.linear_schedule(0.0, 0.3, 4), optax.cosine_decay_schedule(0.3, 8)], [4]),
        ),
    ]
    for ours, theirs in pairs:
        for k in range(25):
            np.testing.assert_allclose(ours(k + 1), theirs(k), rtol=1e-6, atol=1e-8, err_msg=repr(ours))


@pytest.mark.needs("torch")
def test_against_torch() -> None:
    torch = pytest.importorskip("torch")
    lr = torch.optim.lr_scheduler
    pairs = [
        (s.step(0.3, every=3, factor=0.5), lambda o: lr.StepLR(o, 3, 0.5), 25),
        (s.exponential(0.3, rate=0.9), lambda o: lr.ExponentialLR(o, 0.9), 25),
        (s.cosine(0.3, steps=10, end=0.02), lambda o: lr.CosineAnnealingLR(o, 10, 0.02), 11),
        (s.polynomial(0.3, end=0.0, steps=10, power=2.0), lambda o: lr.PolynomialLR(o, 10, 2.0), 25),
        (s.warmup(0.3, steps=5, start=0.03), lambda o: lr.LinearLR(o, 0.1, 1.0, 5), 25),
    ]
    for ours, make, steps in pairs:
        opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
        theirs = make(opt)
        for t in range(1, steps + 1):
            np.testing.assert_allclose(ours(t), opt.param_groups[0]["lr"], rtol=1e-9, atol=1e-12, err_msg=repr(ours))
            opt.step()
            theirs.step()


def test_bad_arguments() -> None:
    for make, text in [
        (lambda: s.cosine(0.1, steps=0), "schedules.cosine: steps is 0, but it must be a positive number of steps"),
        (lambda: s.step(0.1, every=-1, factor=0.5), "every is -1"),
        (lambda: s.warmup_cosine(0.1, warmup=0, steps=-5), "steps is -5"),
        (lambda: s.join([s.constant(1.0)], [3]), "1 schedules need 0 boundaries, got 1"),
        (lambda: s.join([s.constant(1.0)] * 3, [3, 3]), "must be positive and rise"),
        (lambda: s.join([s.constant(1.0)] * 2, [0]), "must be positive and rise"),
    ]:
        with pytest.raises(ValueError, match=text):
            make()
    for make, text in [
        (lambda: s.constant("0.1"), "schedules.constant: value is '0.1', but it must be a finite number"),
        (lambda: s.constant(True), "value is True"),
        (lambda: s.constant(float("nan")), "value is nan"),
        (lambda: s.cosine(0.1), "steps"),
        (lambda: s.cosine(0.1, steps=5, stop=1), "stop"),
        (lambda: s.join([0.1, s.constant(1.0)], [3]), "0.1 is not a schedule; for a number use constant"),
    ]:
        with pytest.raises(TypeError, match=text):
            make()


def test_schedules_compare_hash_and_show() -> None:
    a, b = s.cosine(0.1, steps=10), s.cosine(0.1, steps=10)
    assert a == b
    assert hash(a) == hash(b)
    assert a != s.cosine(0.1, steps=11)
    assert a != s.warmup(0.1, steps=10)
    for x in EVERY:
        text = repr(x).replace("join(", "join(*(").replace("))", ")))") if x.name == "join" else repr(x)
        if x.name != "join":
            assert eval(text, vars(s)) == x
    assert xopt.Adam(lr=a) == xopt.Adam(lr=b)
    assert "cosine(0.1, steps=10)" in repr(xopt.Adam(lr=a))


def test_far_beyond_the_end() -> None:
    for x in EVERY:
        assert math.isfinite(x(10**18))
