"""Schedules as hyperparameters of rules: under jit, in long runs, at whole steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.schedules import EVERY

import xopt
from xopt import schedules as s

pytestmark = pytest.mark.xla


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
