"""Schedules against their formulas, on every library, at their ends and far beyond."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from support.schedules import EVERY, FORMULAS, PI, half

from xopt import schedules as s

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
