"""Schedules against their formulas, torch, optax and Keras; combined; as hyperparameters; under jit; drawn."""

from __future__ import annotations

import importlib
import inspect
import math
import operator
import os
import pickle
import sys
from typing import Any

import numpy as np
import pytest
from conftest import Lib

import xopt
from xopt import schedules as s

PI = math.pi


def between(a: float, b: float, x: float) -> float:
    """Go from a to b along half a cosine while x goes from 0 to 1."""
    return b + (a - b) * (1 + math.cos(PI * min(max(x, 0), 1))) / 2


def line(a: float, b: float, x: float) -> float:
    return a + (b - a) * min(max(x, 0), 1)


def restarts(k: int, steps: float, growth: float) -> tuple[int, float]:
    """Count the restarts one by one: how many, and the fraction of the present fall."""
    n = 0
    while k >= steps:
        k, steps, n = k - steps, steps * growth, n + 1
    return n, k / steps


def wave(k: int, up: float, down: float) -> float:
    k = k % (up + down)
    return k / up if k <= up else (up + down - k) / down


def ceiling(k: int, n: int) -> int:
    return max(math.ceil(k / n), 1) * n


half = lambda t: 0.5**t

FORMULAS = {
    s.constant(0.3): lambda k: 0.3,
    s.step(0.3, every=3, factor=0.5): lambda k: 0.3 * 0.5 ** (k // 3),
    s.step(0.3, every=2.5, factor=0.5): lambda k: 0.3 * 0.5 ** (k // 2.5),
    s.multi_step(0.3, boundaries=[4, 5, 9], factor=0.5): lambda k: 0.3 * 0.5 ** sum(k >= b for b in (4, 5, 9)),
    s.piecewise([0.3, 0.1, 0.2], [4, 9]): lambda k: 0.3 if k < 4 else 0.1 if k < 9 else 0.2,
    s.piecewise([0.3, 0.1, 0.2], [4, 9], shape="linear"): lambda k: (
        line(0.3, 0.1, k / 4) if k < 4 else line(0.1, 0.2, (k - 4) / 5)
    ),
    s.piecewise([0.3, 0.1, 0.2], [4, 9], shape="cosine"): lambda k: (
        between(0.3, 0.1, k / 4) if k < 4 else between(0.1, 0.2, (k - 4) / 5)
    ),
    s.piecewise([0.3, 0.1, 0.2], [4, 9.5], shape="1-sqrt"): lambda k: (
        line(0.3, 0.1, math.sqrt(k / 4)) if k < 4 else line(0.1, 0.2, math.sqrt((k - 4) / 5.5))
    ),
    s.exponential(0.3, rate=0.9): lambda k: 0.3 * 0.9**k,
    s.exponential(0.3, rate=0.5, every=4): lambda k: 0.3 * 0.5 ** (k / 4),
    s.exponential(0.3, rate=0): lambda k: 0.3 * (k == 0),
    s.polynomial(0.3, end=0.01, steps=10): lambda k: line(0.3, 0.01, k / 10),
    s.polynomial(0.3, end=0.01, steps=10, power=2.5): lambda k: 0.01 + 0.29 * (1 - min(k / 10, 1)) ** 2.5,
    s.polynomial(0.3, end=0.01, steps=7, cycle=True): lambda k: line(0.3, 0.01, k / ceiling(k, 7)),
    s.polynomial(0.3, end=0.01, steps=7, power=0.5, cycle=True): lambda k: 0.01 + 0.29 * (1 - k / ceiling(k, 7)) ** 0.5,
    s.inverse_time(0.3, rate=0.2): lambda k: 0.3 / (1 + 0.2 * k),
    s.inverse_time(0.3, rate=0.2, every=3): lambda k: 0.3 / (1 + 0.2 * k / 3),
    s.inverse_sqrt(0.3, warmup=5): lambda k: 0.3 * (k / 5 if k < 5 else math.sqrt(5 / k)),
    s.inverse_sqrt(0.3, warmup=5, start=0.1, timescale=9): lambda k: (
        line(0.1, 0.3, k / 5) if k < 5 else 0.3 / math.sqrt((k - 5 + 9) / 9)
    ),
    s.inverse_sqrt(0.3, warmup=0, timescale=9): lambda k: 0.3 * math.sqrt(9 / (k + 9)),
    s.noam(512, warmup=4, factor=2.0): lambda k: 2 * 512**-0.5 * min((k + 1) ** -0.5, (k + 1) * 4**-1.5),
    s.cosine(0.3, steps=10): lambda k: between(0.3, 0, k / 10),
    s.cosine(0.3, steps=10, end=0.05): lambda k: between(0.3, 0.05, k / 10),
    s.cosine(0.3, steps=10, end=0.05, power=1.5): lambda k: 0.05 + 0.25 * between(1, 0, k / 10) ** 1.5,
    s.cosine_restarts(0.3, steps=7, end=0.05): lambda k: between(0.3, 0.05, k % 7 / 7),
    s.cosine_restarts(0.3, steps=3, growth=2, factor=0.5): lambda k: (
        0.5 ** restarts(k, 3, 2)[0] * between(0.3, 0, restarts(k, 3, 2)[1])
    ),
    s.cosine_restarts(0.3, steps=2.5, end=0.1, growth=1.3, factor=0.5): lambda k: (
        0.1 + 0.5 ** restarts(k, 2.5, 1.3)[0] * between(0.2, 0, restarts(k, 2.5, 1.3)[1])
    ),
    s.cyclic(0.1, peak=0.3, up=4): lambda k: 0.1 + 0.2 * wave(k, 4, 4),
    s.cyclic(0.1, peak=0.3, up=4, down=3, factor=0.5, rate=0.9): lambda k: (
        0.1 + 0.2 * wave(k, 4, 3) * 0.5 ** (k // 7) * 0.9**k
    ),
    s.cyclic(0.3, peak=0.0, up=7, shape="cosine"): lambda k: 0.15 * (1 + math.cos(PI * k / 7)),
    s.rex(0.3, steps=10): lambda k: 0.3 * (1 - min(k / 10, 1)) / (0.5 + 0.5 * (1 - min(k / 10, 1))),
    s.rex(0.3, steps=10, end=0.1): lambda k: 0.1 + 0.2 * (1 - min(k / 10, 1)) / (0.5 + 0.5 * (1 - min(k / 10, 1))),
    s.warmup(0.3, steps=5): lambda k: line(0, 0.3, k / 5),
    s.warmup(0.3, steps=5, start=0.1): lambda k: line(0.1, 0.3, k / 5),
    s.warmup_cosine(0.3, warmup=5, steps=15): lambda k: 0.06 * k if k < 5 else between(0.3, 0, (k - 5) / 10),
    s.warmup_cosine(0.3, warmup=5, steps=15, end=0.02, start=0.1, power=2): lambda k: (
        line(0.1, 0.3, k / 5) if k < 5 else 0.02 + 0.28 * between(1, 0, (k - 5) / 10) ** 2
    ),
    s.warmup_cosine(0.3, warmup=0, steps=15): lambda k: between(0.3, 0, k / 15),
    s.wsd(0.3, warmup=4, steps=20, cooldown=6): lambda k: line(0, 0.3, k / 4) if k < 4 else line(0.3, 0, (k - 14) / 6),
    s.wsd(0.3, warmup=4, steps=20, cooldown=6, start=0.1, end=0.05, shape="cosine"): lambda k: (
        line(0.1, 0.3, k / 4) if k < 4 else between(0.3, 0.05, (k - 14) / 6)
    ),
    s.wsd(0.3, warmup=0, steps=20, cooldown=20, shape="1-sqrt"): lambda k: 0.3 * (1 - math.sqrt(min(k / 20, 1))),
    s.one_cycle(0.3, steps=20): lambda k: (
        between(0.012, 0.3, k / 6) if k < 6 else between(0.3, 0.012 / 1e4, (k - 6) / 14)
    ),
    s.one_cycle(0.3, steps=20, warmup=0, end=0.1): lambda k: between(0.3, 0.1, k / 20),
    s.one_cycle(0.3, steps=20, warmup=5, back=9, start=0.1, end=0.0, shape="linear"): lambda k: (
        line(0.1, 0.3, k / 5) if k < 5 else line(0.3, 0.1, (k - 5) / 4) if k < 9 else line(0.1, 0, (k - 9) / 11)
    ),
    s.join([s.warmup(0.3, steps=4), s.cosine(0.3, steps=8)], [4]): lambda k: (
        0.075 * k if k < 4 else between(0.3, 0, (k - 4) / 8)
    ),
    s.join([s.constant(1.0), s.step(0.5, every=2, factor=0.1), s.constant(0.25)], [3, 8]): lambda k: (
        1.0 if k < 3 else 0.5 * 0.1 ** ((k - 3) // 2) if k < 8 else 0.25
    ),
    s.scale(s.cosine(0.3, steps=10), 0.5): lambda k: between(0.15, 0, k / 10),
    s.scale(half, 3): lambda k: 3 * 0.5 ** (k + 1),
    s.delay(s.exponential(0.3, rate=0.9), steps=6): lambda k: 0.3 * 0.9 ** max(k - 6, 0),
    s.staircase(s.inverse_time(0.3, rate=0.2), every=6): lambda k: 0.3 / (1 + 0.2 * (k // 6) * 6),
    s.staircase(s.warmup(0.3, steps=9), every=2.5): lambda k: 0.3 * min(k // 2.5 * 2.5 / 9, 1),
    s.clip(s.warmup(0.3, steps=10), low=0.1, high=0.2): lambda k: min(max(0.03 * k, 0.1), 0.2),
    s.clip(s.exponential(0.3, rate=0.5), low=0.01): lambda k: max(0.3 * 0.5**k, 0.01),
    s.warmup(1.0, steps=5) * s.exponential(0.3, rate=0.9): lambda k: min(k / 5, 1) * 0.3 * 0.9**k,
    1 - 0.5 * s.warmup(1.0, steps=5): lambda k: 1 - 0.5 * min(k / 5, 1),
    (s.constant(0.5) + s.warmup(1.0, steps=5)) ** 2 - 0.1: lambda k: (0.5 + min(k / 5, 1)) ** 2 - 0.1,
    2.0 ** -s.warmup(1.0, steps=5) / (1 / s.constant(4.0)): lambda k: 4 * 2 ** -min(k / 5, 1),
    s.warmup(1.0, steps=5) * half: lambda k: min(k / 5, 1) * 0.5 ** (k + 1),
    half / s.constant(2.0) + half: lambda k: 1.5 * 0.5 ** (k + 1),
}
EVERY = list(FORMULAS)
ids = [repr(x).replace(repr(half), "half") for x in EVERY]


def names(x: Any) -> set[str]:
    """Name a schedule and what it is made of."""
    inside = [y for arg in x.args for y in (arg if isinstance(arg, tuple) else [arg]) if isinstance(y, s.Schedule)]
    return {x.name}.union(*map(names, inside))


def test_every_function_is_tried() -> None:
    assert set().union(*map(names, EVERY)) == (set(s.__all__) - {"Schedule"}) | {"+", "-", "*", "/", "**", "neg"}


@pytest.mark.parametrize(("schedule", "formula"), FORMULAS.items(), ids=ids)
def test_formulas(schedule: Any, formula: Any) -> None:
    """Step 1 is the first update: it has the value at k = 0 updates made."""
    for t in range(1, 60):
        assert schedule(t) == pytest.approx(formula(t - 1), rel=1e-14, abs=1e-16)
        assert type(schedule(t)) is float
        assert schedule(float(t)) == schedule(np.int64(t)) == schedule(np.asarray(t)) == schedule(t)


@pytest.mark.parametrize("dtype", ["float64", "int64", "float32", "int32"])
@pytest.mark.parametrize("schedule", EVERY, ids=ids)
def test_on_arrays(lib: Any, schedule: Any, dtype: str) -> None:
    """A step that is a 0-d array gives a 0-d array with the same value: what a jitted step needs.

    In float64 where the step is an integer and the device has float64.
    """
    if lib.guise in ("read-only", "grad"):
        pytest.skip("a step has no such guise")
    call = lib.module().jit(schedule) if lib.guise == "jit" else schedule
    for t in (1, 2, 4, 5, 6, 8, 9, 10, 15, 16, 21, 33):
        array = lib.array(t, dtype)
        got = call(array)
        assert lib.name == "numpy" or type(got) is type(array)
        got = lib.numpy(got)
        assert np.shape(got) == ()
        single = dtype == "float32" or lib.guise in ("no_float64", "no_x64")
        assert got.dtype == ("float32" if single and lib.name != "numpy" else "float64")
        np.testing.assert_allclose(got, schedule(t), **({"rtol": 1e-5} if single else {"rtol": 1e-12, "atol": 1e-16}))


def test_far_beyond_the_end() -> None:
    for x in EVERY:
        for t in (10**6, 10**18, 2**63 - 1):
            assert math.isfinite(x(t)), (x, t)
    assert s.exponential(1.0, rate=2.0)(10**6) == math.inf  # and no rule takes it


def test_the_ends_are_exact() -> None:
    """The first value and the last are those that were asked for, also where they differ by orders of magnitude."""
    for a, b in ((0.3, 0.0), (0.0, 0.3), (1e-9, 0.3), (0.3, 1e-9), (0.1, 0.7)):
        for n in (1, 3, 7, 10**6):
            for x in (
                s.polynomial(a, end=b, steps=n),
                s.polynomial(a, end=b, steps=n, power=3),
                s.cosine(a, end=b, steps=n),
                s.cosine(a, end=b, steps=n, power=3),
                s.rex(a, end=b, steps=n),
                s.warmup(b, start=a, steps=n),
                s.warmup_cosine(a, warmup=0, steps=n, end=b),
                *(s.piecewise([a, b], [n], shape=shape) for shape in ("constant", "linear", "cosine", "1-sqrt")),
                s.one_cycle(a, warmup=0, end=b, steps=n),
                s.wsd(a, warmup=0, end=b, steps=n, cooldown=n),
            ):
                assert x(1) == a, x
                assert x(n + 1) == x(n + 2) == x(10**9) == b, x


def test_no_cancellation_near_the_end() -> None:
    """A million steps, one before the end: (π / 2n)² and not what is left of 1 + cos."""
    assert s.cosine(1.0, steps=10**6)(10**6) == pytest.approx((PI / 2e6) ** 2, rel=1e-10, abs=0)
    assert s.piecewise([1.0, 0.0], [10**6], shape="1-sqrt")(10**6) == pytest.approx(
        1e-6 / (1 + math.sqrt(1 - 1e-6)), rel=1e-14, abs=0
    )


# ---- other libraries: their value at s updates made is ours at step s + 1


def torch_pairs() -> list[Any]:
    """Return (ours, how to make torch's, for how many steps, what it sets)."""
    lr = importlib.import_module("torch").optim.lr_scheduler
    a, n = 0.3, 60
    cycle = {"step_size_up": 4, "step_size_down": 3, "base_momentum": 0.8, "max_momentum": 0.9}
    one = {"max_lr": a, "total_steps": 40}
    later = lambda o, *made, at: lr.SequentialLR(o, [x(o) for x in made], at)
    return [
        (lambda t: a * 0.95 ** (t - 1), lambda o: lr.LambdaLR(o, lambda k: 0.95**k), n, "lr"),
        (
            lambda t: a * math.prod(1 - 0.01 * k for k in range(1, t)),
            lambda o: lr.MultiplicativeLR(o, lambda k: 1 - 0.01 * k),
            n,
            "lr",
        ),
        (s.step(a, every=3, factor=0.5), lambda o: lr.StepLR(o, 3, 0.5), n, "lr"),
        (s.multi_step(a, boundaries=[4, 9], factor=0.5), lambda o: lr.MultiStepLR(o, [4, 9], 0.5), n, "lr"),
        (s.piecewise([a / 3, a], [5]), lambda o: lr.ConstantLR(o, 1 / 3, 5), n, "lr"),
        (s.warmup(a, steps=5, start=a / 10), lambda o: lr.LinearLR(o, 0.1, 1.0, 5), n, "lr"),
        (s.polynomial(a, end=a / 10, steps=5), lambda o: lr.LinearLR(o, 1.0, 0.1, 5), n, "lr"),
        (s.exponential(a, rate=0.9), lambda o: lr.ExponentialLR(o, 0.9), n, "lr"),
        (s.polynomial(a, end=0.0, steps=10, power=2.0), lambda o: lr.PolynomialLR(o, 10, 2.0), n, "lr"),
        (s.cosine(a, steps=10, end=0.02), lambda o: lr.CosineAnnealingLR(o, 10, 0.02), 11, "lr"),
        (s.cyclic(a, peak=0.02, up=10, shape="cosine"), lambda o: lr.CosineAnnealingLR(o, 10, 0.02), n, "lr"),
        (
            s.cosine_restarts(a, steps=7, end=0.02),
            lambda o: lr.CosineAnnealingWarmRestarts(o, 7, eta_min=0.02),
            n,
            "lr",
        ),
        (
            s.cosine_restarts(a, steps=3, end=0.02, growth=2),
            lambda o: lr.CosineAnnealingWarmRestarts(o, 3, 2, eta_min=0.02),
            n,
            "lr",
        ),
        (s.cyclic(0.1, peak=0.5, up=4, down=3), lambda o: lr.CyclicLR(o, 0.1, 0.5, **cycle), n, "lr"),
        (s.cyclic(0.9, peak=0.8, up=4, down=3), lambda o: lr.CyclicLR(o, 0.1, 0.5, **cycle), n, "momentum"),
        (
            s.cyclic(0.1, peak=0.5, up=4, down=3, factor=0.5),
            lambda o: lr.CyclicLR(o, 0.1, 0.5, mode="triangular2", **cycle),
            n,
            "lr",
        ),
        (
            s.cyclic(0.9, peak=0.8, up=4, down=3, factor=0.5),
            lambda o: lr.CyclicLR(o, 0.1, 0.5, mode="triangular2", **cycle),
            n,
            "momentum",
        ),
        (
            s.cyclic(0.1, peak=0.5, up=4, down=3, rate=0.95),
            lambda o: lr.CyclicLR(o, 0.1, 0.5, mode="exp_range", gamma=0.95, **cycle),
            n,
            "lr",
        ),
        (
            0.1 + 0.4 * s.cyclic(0.0, peak=1.0, up=4, down=3) * (lambda t: 1 / (1 + (t - 1) // 7)),
            lambda o: lr.CyclicLR(o, 0.1, 0.5, scale_fn=lambda c: 1 / c, **cycle),
            n,
            "lr",
        ),
        (
            0.1 + 0.4 * s.cyclic(0.0, peak=1.0, up=4, down=3) * (lambda t: 1 / t),
            lambda o: lr.CyclicLR(o, 0.1, 0.5, scale_fn=lambda k: 1 / (k + 1), scale_mode="iterations", **cycle),
            n,
            "lr",
        ),
        (s.one_cycle(a, warmup=0.3 * 40 - 1, steps=39), lambda o: lr.OneCycleLR(o, **one), 40, "lr"),
        (
            s.one_cycle(0.85, warmup=11, steps=39, start=0.95, end=0.95),
            lambda o: lr.OneCycleLR(o, **one),
            40,
            "momentum",
        ),
        (
            s.one_cycle(a, warmup=0.26 * 40 - 1, steps=39, start=a / 10, end=a / 1e3, shape="linear"),
            lambda o: lr.OneCycleLR(
                o, **one, pct_start=0.26, anneal_strategy="linear", div_factor=10, final_div_factor=100
            ),
            40,
            "lr",
        ),
        (
            s.one_cycle(a, warmup=0.3 * 40 - 1, back=0.6 * 40 - 2, steps=39),
            lambda o: lr.OneCycleLR(o, **one, three_phase=True),
            40,
            "lr",
        ),
        (
            s.one_cycle(0.85, warmup=11, back=22, steps=39, start=0.95, end=0.95),
            lambda o: lr.OneCycleLR(o, **one, three_phase=True),
            40,
            "momentum",
        ),
        (
            s.join([s.piecewise([a / 2, a], [20]), s.exponential(a, rate=0.9), s.cosine(a, steps=40)], [6, 15]),
            lambda o: later(
                o,
                lambda o: lr.ConstantLR(o, 0.5, 20),
                lambda o: lr.ExponentialLR(o, 0.9),
                lambda o: lr.CosineAnnealingLR(o, 40),
                at=[6, 15],
            ),
            50,
            "lr",
        ),
        (
            s.piecewise([0.1, 1.0], [5]) * s.exponential(a, rate=0.9),
            lambda o: lr.ChainedScheduler([lr.ConstantLR(o, 0.1, 5), lr.ExponentialLR(o, 0.9)]),
            n,
            "lr",
        ),
        (
            s.staircase(s.exponential(a, rate=0.9, every=5), every=5),
            lambda o: lr.LambdaLR(o, lambda k: 0.9 ** (k // 5)),
            n,
            "lr",
        ),
    ]


@pytest.mark.needs("torch")
def test_against_torch() -> None:
    """Schedulers stepped on an optimizer. Most are recursive, and round at every step."""
    torch = pytest.importorskip("torch")
    pairs = torch_pairs()
    for ours, make, steps, sets in pairs:
        opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3, momentum=0.9)
        theirs = make(opt)
        for t in range(1, steps + 1):
            want = opt.param_groups[0][sets]
            np.testing.assert_allclose(ours(t), want, rtol=1e-12, atol=1e-16, err_msg=f"{ours!r} {sets} {t}")
            opt.step()
            theirs.step()
    made = {type(make(torch.optim.SGD([torch.zeros(1)], 0.3, momentum=0.9))).__name__ for _, make, *_ in pairs}
    known = {n for n, x in vars(torch.optim.lr_scheduler).items() if n.endswith("LR") or "Sched" in n or "Warm" in n}
    assert known - made <= {"LRScheduler", "_LRScheduler", "_SchedulePhase", "ReduceLROnPlateau"}, known - made


@pytest.mark.needs("jax")
def test_against_optax() -> None:
    """In float64: conftest.py sets JAX_ENABLE_X64."""
    optax, jax = pytest.importorskip("optax"), importlib.import_module("jax")
    o, a = optax.schedules, 0.3
    sgdr = [
        {"init_value": 0.0, "peak_value": a, "warmup_steps": 2, "decay_steps": 8, "end_value": 0.01},
        {"init_value": 0.01, "peak_value": a / 2, "warmup_steps": 3, "decay_steps": 16, "exponent": 1.5},
    ]
    pairs = [
        (s.constant(a), o.constant_schedule(a)),
        (s.exponential(a, rate=0.5, every=4), o.exponential_decay(a, 4, 0.5)),
        (s.step(a, every=3, factor=0.5), o.exponential_decay(a, 3, 0.5, staircase=True)),
        (
            s.clip(s.delay(s.exponential(a, rate=0.5, every=4), steps=6), low=0.02),
            o.exponential_decay(a, 4, 0.5, transition_begin=6, end_value=0.02),
        ),
        (
            s.clip(s.delay(s.step(a, every=4, factor=2.0), steps=6), high=2.0),
            o.exponential_decay(a, 4, 2.0, transition_begin=6, end_value=2.0, staircase=True),
        ),
        (s.polynomial(a, end=0.01, steps=10, power=2.5), o.polynomial_schedule(a, 0.01, 2.5, 10)),
        (s.delay(s.polynomial(a, end=0.01, steps=10), steps=4), o.polynomial_schedule(a, 0.01, 1, 10, 4)),
        (s.polynomial(a, end=0.01, steps=10), o.linear_schedule(a, 0.01, 10)),
        (s.delay(s.warmup(a, start=0.01, steps=10), steps=4), o.linear_schedule(0.01, a, 10, 4)),
        (s.piecewise([a, a / 2, a / 8], [4, 9]), o.piecewise_constant_schedule(a, {4: 0.5, 9: 0.25})),
        (
            s.piecewise([a, a / 2, a / 8], [4, 9], shape="linear"),
            o.piecewise_interpolate_schedule("linear", a, {4: 0.5, 9: 0.25}),
        ),
        (
            s.piecewise([a, a * 2, a / 2], [4, 9], shape="cosine"),
            o.piecewise_interpolate_schedule("cosine", a, {4: 2.0, 9: 0.25}),
        ),
        (s.cosine(a, steps=10, end=0.03), o.cosine_decay_schedule(a, 10, alpha=0.1)),
        (s.cosine(a, steps=10, end=0.03, power=1.5), o.cosine_decay_schedule(a, 10, alpha=0.1, exponent=1.5)),
        (s.one_cycle(a, warmup=6, steps=20), o.cosine_onecycle_schedule(20, a)),
        (
            s.one_cycle(a, warmup=6, back=17, steps=20, shape="linear"),
            o.linear_onecycle_schedule(20, a),
        ),
        (s.warmup(a, start=0.1, steps=5), o.warmup_constant_schedule(0.1, a, 5)),
        (
            s.warmup_cosine(a, warmup=5, steps=15, end=0.02, start=0.1),
            o.warmup_cosine_decay_schedule(0.1, a, 5, 15, 0.02),
        ),
        (
            s.warmup_cosine(a, warmup=5, steps=15, end=0.02, power=1.5),
            o.warmup_cosine_decay_schedule(0.0, a, 5, 15, 0.02, exponent=1.5),
        ),
        (
            s.join([s.warmup(a, start=0.1, steps=5), s.clip(s.exponential(a, rate=0.5, every=4), low=0.02)], [5]),
            o.warmup_exponential_decay_schedule(0.1, a, 5, 4, 0.5, end_value=0.02),
        ),
        (
            s.join(
                [
                    s.warmup_cosine(a, warmup=2, steps=8, end=0.01),
                    s.warmup_cosine(a / 2, warmup=3, steps=16, start=0.01, power=1.5),
                ],
                [8],
            ),
            o.sgdr_schedule(sgdr),
        ),
        (
            s.join([s.warmup(a, steps=4), s.cosine(a, steps=8)], [4]),
            o.join_schedules([o.linear_schedule(0.0, a, 4), o.cosine_decay_schedule(a, 8)], [4]),
        ),
    ]
    for ours, theirs in pairs:
        for k in range(40):
            want = theirs(jax.numpy.asarray(float(k)))
            np.testing.assert_allclose(ours(k + 1), want, rtol=1e-12, atol=1e-16, err_msg=f"{ours!r} {k}")
    tested = inspect.getsource(test_against_optax)
    for name in vars(o):
        if name.endswith(("_schedule", "_schedules", "_decay")) and callable(getattr(o, name)):
            assert f"o.{name}(" in tested, name


@pytest.mark.needs("jax")
def test_against_keras() -> None:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    k, a, floatx = keras.optimizers.schedules, 0.3, keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        pairs = [
            (s.exponential(a, rate=0.5, every=4), k.ExponentialDecay(a, 4, 0.5)),
            (s.step(a, every=4, factor=0.5), k.ExponentialDecay(a, 4, 0.5, staircase=True)),
            (s.piecewise([a, 0.1, 0.2], [4 + 1, 9 + 1]), k.PiecewiseConstantDecay([4, 9], [a, 0.1, 0.2])),
            (s.polynomial(a, end=0.01, steps=10, power=2.5), k.PolynomialDecay(a, 10, 0.01, 2.5)),
            (s.polynomial(a, end=0.01, steps=7, cycle=True), k.PolynomialDecay(a, 7, 0.01, cycle=True)),
            (s.inverse_time(a, rate=0.2, every=3), k.InverseTimeDecay(a, 3, 0.2)),
            (
                s.staircase(s.inverse_time(a, rate=0.2, every=3), every=3),
                k.InverseTimeDecay(a, 3, 0.2, staircase=True),
            ),
            (s.cosine(a, steps=10, end=0.03), k.CosineDecay(a, 10, alpha=0.1)),
            (
                s.warmup_cosine(a, start=0.1, warmup=5, steps=10 + 5, end=0.03),
                k.CosineDecay(0.1, 10, alpha=0.1, warmup_target=a, warmup_steps=5),
            ),
            (s.cosine_restarts(a, steps=7, end=0.03), k.CosineDecayRestarts(a, 7, 1.0, alpha=0.1)),
            (
                s.cosine_restarts(a, steps=5, end=0.03, growth=1.7, factor=0.5),
                k.CosineDecayRestarts(a, 5, 1.7, 0.5, alpha=0.1),
            ),
        ]
        for ours, theirs in pairs:
            for done in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14, 15, 21, 29):
                want = float(theirs(keras.ops.convert_to_tensor(done, "float64")))
                rtol = 1e-6 if "cosine" in ours.name else 1e-12  # keras.ops.cos of a float64 is a float32 here
                np.testing.assert_allclose(ours(done + 1), want, rtol, 1e-16, err_msg=f"{ours!r} {done}")
        assert {type(theirs).__name__ for _, theirs in pairs} == {
            n for n, x in vars(k).items() if isinstance(x, type) and n != "LearningRateSchedule"
        }
    finally:
        keras.config.set_floatx(floatx)


# ---- as hyperparameters


@pytest.mark.needs("jax")
def test_a_jitted_step_with_any_schedule_is_traced_once() -> None:
    jax = pytest.importorskip("jax")
    for schedule in EVERY:
        rule, traces = xopt.SGD(lr=abs_of(schedule)), []

        def step(p: Any, g: Any, state: Any, rule: Any = rule, traces: Any = traces) -> Any:
            traces.append(1)
            return rule.apply(p, g, state)

        jitted, p, q = jax.jit(step), jax.numpy.ones(2), np.ones(2)
        state, other = rule.init(p), rule.init(q)
        for _ in range(12):
            p, state = jitted(p, jax.numpy.ones(2), state)
            q, other = rule.apply(q, np.ones(2), other)
        assert len(traces) == 1
        np.testing.assert_allclose(p, q, rtol=1e-12)


def abs_of(schedule: Any) -> Any:
    """Keep one that is negative somewhere out of the way of lr ≥ 0."""
    return schedule + 1


@pytest.mark.needs("jax")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_periods_are_not_one_off_under_jit(dtype: str) -> None:
    """XLA makes a product of a division by a constant, and 41 · (1 / 41) is less than 1."""
    jax = pytest.importorskip("jax")
    for n in (3, 41, 47, 49, 55, 61, 107):
        for schedule in (
            s.step(1.0, every=n, factor=0.5),
            s.staircase(s.inverse_time(1.0, rate=1.0), every=n),
            s.cosine_restarts(1.0, steps=n, end=0.1),
            s.cosine_restarts(1.0, steps=n, end=0.1, growth=2, factor=0.5),
            s.cosine_restarts(1.0, steps=n, end=0.1, growth=8),
            s.cyclic(0.1, peak=1.0, up=n, down=n + 1),
            s.polynomial(1.0, end=0.1, steps=n, cycle=True),
            s.multi_step(1.0, boundaries=[n, 2 * n], factor=0.5),
        ):
            jitted = jax.jit(schedule)
            for k in range(0, 33 * n, n):
                for t in (k, k + 1, k + 2):
                    got = float(jitted(jax.numpy.asarray(float(max(t, 1)), dtype)))
                    assert got == pytest.approx(schedule(max(t, 1)), rel=1e-5 if dtype == "float32" else 1e-12), t


@pytest.mark.needs("jax")
def test_long_runs_in_float32() -> None:
    """Powers have their logarithm from the host; a restart is where it is, also after a million steps."""
    jax = pytest.importorskip("jax")
    for schedule, steps in (
        (s.exponential(1.0, rate=0.999), [10**4]),
        (s.step(1.0, every=100, factor=0.9), [10**4]),
        (s.cosine_restarts(1.0, steps=1, end=0.1, growth=2), [2**n + k for n in range(3, 23) for k in (-1, 0, 1)]),
    ):
        jitted = jax.jit(schedule)
        for t in steps:
            got = float(jitted(jax.numpy.asarray(float(t), "float32")))
            assert got == pytest.approx(schedule(t), rel=2e-5), (schedule, t)


def test_steps_are_whole_and_positive_where_they_were() -> None:
    """A function that looks its value up in a list can be joined, delayed, held, scaled."""
    table = {1: 0.5, 2: 0.4, 3: 0.3, 4: 0.2, 5: 0.1}
    look = lambda t: table[min(t, 5)]
    for x in (
        s.join([look, look], [2]),
        s.delay(look, steps=2),
        s.staircase(look, every=2),
        s.scale(look, 1),
        s.clip(look, low=0.2),
        look + s.constant(1.0),
    ):
        assert all(0.1 <= x(t) <= 1.5 for t in range(1, 10))


# ---- as objects


def test_arithmetic() -> None:
    a, b = s.warmup(1.0, steps=4), s.constant(2.0)
    for name in ("add", "sub", "mul", "truediv", "pow"):
        operation = getattr(operator, name)
        for x, y in ((a, b), (a, 3.0), (3, a), (a, np.float64(3)), (np.float64(3), a), (a, half), (half, a)):
            got, value = operation(x, y), lambda z: z(3) if callable(z) else z
            assert type(got) is s.Schedule
            assert got(3) == operation(value(x), value(y))
    assert (-a)(3) == -0.5
    assert (1 / a)(1) == math.inf  # as it is for arrays; no rule takes it
    assert math.isnan(((-b) ** 0.5)(1))
    for wrong in ("0.1", None, True, [1.0], 1j, np.ones(3)):
        with pytest.raises(TypeError, match="operand"):
            a / wrong
        with pytest.raises(TypeError, match="operand"):
            wrong - a
    with pytest.raises(TypeError, match=r"an operand of \* is nan, but it must be a finite number"):
        a * math.nan
    with pytest.raises(ValueError, match=r"SGD.lr: inf.*the schedule returned this at step 1"):
        xopt.SGD(lr=1 / a).apply(np.ones(1), np.ones(1), xopt.SGD().init(np.ones(1)))


def test_arithmetic_is_shown_as_it_was_written() -> None:
    for text in (
        "constant(1.0) + constant(2.0) + 3",
        "constant(1.0) + (constant(2.0) + 3)",
        "1 - constant(1.0) - constant(2.0)",
        "1 - (constant(1.0) - constant(2.0))",
        "(constant(1.0) + 1) * constant(2.0) / (3 * constant(4.0))",
        "-(constant(1.0) + 1)",
        "-constant(1.0) ** 2",
        "(-constant(1.0)) ** 2",
        "(constant(1.0) ** 2) ** 3",
        "constant(1.0) ** 2 ** constant(3.0)",
        "(-0.5) ** constant(2.0)",
        "constant(2.0) * -0.5 + -1",
        "0.1 * warmup(1.0, steps=3) + 0.01",
        "join((constant(1.0), 2 * constant(1.0)), (3,))",
    ):
        made = eval(text, {**vars(s)})
        assert repr(made) == text
        assert eval(repr(made), {**vars(s)}) == made


def test_schedules_compare_hash_pickle_and_show() -> None:
    a, b = s.cosine(0.1, steps=10), s.cosine(np.float64(0.1), steps=np.int64(10))
    assert a == b
    assert hash(a) == hash(b)
    assert a != s.cosine(0.1, steps=11)
    assert a != s.warmup(0.1, steps=10)
    assert a + 1 == b + 1 != 1 + a
    assert len({a, b, a + 1, b + 1, 1 + a, -a, a - 1, a * 1, 1 * a}) == 7
    for x in EVERY:
        assert hash(x) == hash(x)
        if repr(half) not in repr(x):
            assert eval(repr(x), {**vars(s)}) == x
            again = pickle.loads(pickle.dumps(x))
            assert again == x
            assert again(7) == x(7)
            assert repr(again) == repr(x)
    assert len(set(EVERY)) == len(EVERY)
    assert xopt.Adam(lr=a) == xopt.Adam(lr=b)
    assert "cosine(0.1, steps=10)" in repr(xopt.Adam(lr=b))


def test_bad_arguments() -> None:
    for make, text in [
        (lambda: s.cosine(0.1, steps=0), "schedules.cosine: steps is 0, but it must be a positive number of steps"),
        (lambda: s.cosine(0.1, steps=9, power=0), "schedules.cosine: power is 0, but it must be positive"),
        (lambda: s.step(0.1, every=-1, factor=0.5), "every is -1"),
        (lambda: s.step(0.1, every=1, factor=-0.5), "schedules.step: factor is -0.5, but it must not be negative"),
        (lambda: s.exponential(0.1, rate=-1), "rate is -1, but it must not be negative"),
        (lambda: s.warmup_cosine(0.1, warmup=0, steps=-5), "steps is -5"),
        (lambda: s.warmup_cosine(0.1, warmup=-1, steps=5), "warmup is -1, but it must not be negative"),
        (lambda: s.warmup_cosine(0.1, warmup=5, steps=5), "warmup is 5, but it must be less than steps, 5"),
        (lambda: s.wsd(0.1, warmup=5, steps=9, cooldown=5), "warmup 5 and cooldown 5 are more steps together"),
        (lambda: s.wsd(0.1, warmup=5, steps=9, cooldown=0), "cooldown is 0, but it must be a positive number of"),
        (lambda: s.wsd(0.1, warmup=1, steps=9, cooldown=2, shape="constant"), "shape is 'constant', but it must be"),
        (lambda: s.one_cycle(0.1, steps=9, warmup=9), "warmup is 9, back None and steps 9, but it must be warmup <"),
        (lambda: s.one_cycle(0.1, steps=9, warmup=3, back=3), "must be warmup < back ≤ steps"),
        (lambda: s.one_cycle(0.1, steps=9, warmup=3, back=10), "must be warmup < back ≤ steps"),
        (lambda: s.one_cycle(0.1, steps=9, shape="1-sqrt"), "shape is '1-sqrt', but it must be one of 'linear', 'cos"),
        (lambda: s.cyclic(0.1, peak=1, up=0), "up is 0"),
        (lambda: s.cyclic(0.1, peak=1, up=1, down=0), "down is 0"),
        (lambda: s.cosine_restarts(0.1, steps=4, growth=0.5), "growth is 0.5, but it must be at least 1"),
        (lambda: s.inverse_sqrt(0.1, warmup=0), "inverse_sqrt: timescale must be given where warmup is 0"),
        (lambda: s.inverse_sqrt(0.1, warmup=0, timescale=0), "timescale is 0"),
        (lambda: s.noam(512, warmup=0), "noam: warmup is 0, but it must be a positive number of steps"),
        (lambda: s.noam(0, warmup=10), "d_model is 0, but it must be positive"),
        (lambda: s.polynomial(0.1, end=0, steps=4, cycle=1), "cycle is 1, but it must be one of True, False"),
        (lambda: s.piecewise([0.1, 0.2], [3], shape="cubic"), "shape is 'cubic', but it must be one of 'constant', "),
        (lambda: s.piecewise([0.1, 0.2], [3, 4]), "schedules.piecewise: 2 values need 1 boundaries, got 2"),
        (lambda: s.piecewise([0.1, 0.2, 0.3], [4, 3]), r"boundaries \(4, 3\) must be positive and rise"),
        (lambda: s.multi_step(0.1, boundaries=[0, 3], factor=0.1), "must be positive and rise"),
        (lambda: s.join([s.constant(1.0)], [3]), "1 schedules need 0 boundaries, got 1"),
        (lambda: s.join([s.constant(1.0)] * 3, [3, 3]), "must be positive and rise"),
        (lambda: s.join([s.constant(1.0)] * 2, [0]), "must be positive and rise"),
        (lambda: s.clip(half, low=1.0, high=0.5), "clip: low is 1.0, but it must not be more than high, 0.5"),
        (lambda: s.delay(half, steps=0), "steps is 0"),
        (lambda: s.constant(1.0).plot(0), "Schedule.plot: steps is 0"),
    ]:
        with pytest.raises(ValueError, match=text):
            make()
    for make, text in [
        (lambda: s.constant("0.1"), "schedules.constant: value is '0.1', but it must be a finite number"),
        (lambda: s.constant(True), "value is True"),
        (lambda: s.constant(None), "value is None"),
        (lambda: s.constant(float("nan")), "value is nan"),
        (lambda: s.cosine(0.1), "steps"),
        (lambda: s.cosine(0.1, steps=5, stop=1), "stop"),
        (lambda: s.piecewise([0.1, "b"], [3]), "schedules.piecewise: values is 'b', but it must be a finite number"),
        (lambda: s.piecewise(0.1, [3]), "schedules.piecewise: values is 0.1, but it must be a list of numbers"),
        (
            lambda: s.join(s.constant(1.0), []),
            "schedules.join: schedules is constant.*, but it must be a list of sched",
        ),
        (lambda: s.join([0.1, s.constant(1.0)], [3]), "schedules.join: 0.1 is not a schedule; for a number use const"),
        (lambda: s.scale(0.1, 0.5), "schedules.scale: 0.1 is not a schedule; for a number use constant"),
        (lambda: s.scale(half, "2"), "schedules.scale: factor is '2', but it must be a finite number"),
    ]:
        with pytest.raises(TypeError, match=text):
            make()


# ---- drawn


def test_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    monkeypatch.setattr(pyplot, "show", lambda *args, **kwargs: pytest.fail("a window was opened"))
    schedule = s.cosine(0.1, steps=10)
    ax = schedule.plot(12)
    [line] = ax.get_lines()
    assert list(line.get_xdata()) == list(range(1, 13))
    assert list(line.get_ydata()) == [schedule(t) for t in range(1, 13)]
    assert (ax.get_xlabel(), ax.get_ylabel(), line.get_label()) == ("step", "value", "cosine(0.1, steps=10)")
    assert s.warmup(0.1, steps=3).plot(10**7, ax=ax, label="other", color="red") is ax
    assert [x.get_text() for x in ax.get_legend().get_texts()] == ["cosine(0.1, steps=10)", "other"]
    x = ax.get_lines()[1].get_xdata()
    assert (x[0], x[-1], len(x)) == (1, 10**7, 2000)
    assert ax.get_lines()[1].get_color() == "red"
    assert len(s.constant(0.1).plot(1).get_lines()[0].get_xdata()) == 1
    pyplot.close("all")


def test_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"Schedule.plot needs matplotlib: pip install 'xopt-array\[plot\]'"):
        s.constant(0.1).plot(5)


RANGES: list[tuple[Any, float, float]] = [
    (s.cyclic(0.001, peak=0.1, up=3), 0.001, 0.1),
    (s.cyclic(0.001, peak=0.1, up=2000, down=3000.5, factor=0.5, shape="cosine"), 0.001, 0.1),
    (s.cyclic(0.1, peak=0.001, up=7, rate=0.999), 0.001, 0.1),
    (s.cosine_restarts(0.1, steps=7, end=0.001), 0.001, 0.1),
    (s.cosine_restarts(0.1, steps=10.5, end=0.001, growth=1.5, factor=0.9), 0.001, 0.1),
    (s.cosine_restarts(0.1, steps=3, end=0.001, growth=2), 0.001, 0.1),
    (s.polynomial(0.1, end=0.001, steps=7, power=2.0, cycle=True), 0.001, 0.1),
    (s.polynomial(0.1, end=0.001, steps=7.25, cycle=True), 0.001, 0.1),
    (s.staircase(s.cyclic(0.001, peak=0.1, up=5), every=3), 0.001, 0.1),
    (s.step(0.1, every=1000, factor=0.5), 0.0, 0.1),
    (s.exponential(0.1, rate=0.999), 0.0, 0.1),
    (s.inverse_time(0.1, rate=0.5), 0.0, 0.1),
    (s.inverse_sqrt(0.1, warmup=10), 0.0, 0.1),
    (s.noam(512, warmup=10), 0.0, 0.014),
    (s.one_cycle(0.1, steps=100), 0.0, 0.1),
    (s.warmup_cosine(0.1, warmup=10, steps=100, end=0.001), 0.0, 0.1),
    (s.wsd(0.1, warmup=10, steps=100, cooldown=20, end=0.001), 0.0, 0.1),
    (s.rex(0.1, steps=100), 0.0, 0.1),
    (s.join([s.warmup(0.1, steps=5), s.cyclic(0.001, peak=0.1, up=3)], [5]), 0.0, 0.1),
    (s.delay(s.cyclic(0.001, peak=0.1, up=3), steps=11), 0.001, 0.1),
]
LATE = [2**k + d for k in (23, 24, 25, 30, 31, 53, 59) for d in (-3, -1, 0, 1, 2, 5, 6)] + [10**18]


@pytest.mark.parametrize(("schedule", "low", "high"), RANGES, ids=lambda x: repr(x)[:30])
def test_a_schedule_stays_in_its_range(lib: Lib, schedule: Any, low: float, high: float) -> None:
    """Up to 10¹⁸ steps; in float32, whose steps lie far apart beyond 2²⁴, to the last digit of the ends."""
    call = lib.module().jit(schedule) if lib.guise == "jit" else schedule
    for t in LATE:
        assert low * (1 - 1e-12) <= schedule(t) <= high * (1 + 1e-12)
        x = lib.array(np.asarray(float(t), "float32"))
        found = float(lib.numpy(lib.settled(call(x))[0]))
        assert low * (1 - 1e-6) <= found <= high * (1 + 1e-6)


def test_whole_periods_are_exact_for_every_step() -> None:
    """Beside integers: the phase of 10¹⁸ steps, also where the period was given as a float."""
    for every in (6, 6.0, 10**9, 1e9):
        for t in LATE:
            up = int(every) // 2
            lr = s.cyclic(0.0, peak=1.0, up=every / 2)
            since = (t - 1) % int(every)
            assert lr(t) == pytest.approx(since / up if since < up else (int(every) - since) / up, rel=1e-15)
