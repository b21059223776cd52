"""Schedules stay in their range, and know where in a period they are, at every step to 10¹⁸ and in every dtype."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from conftest import Lib

import xopt
from xopt import schedules as s

pytestmark = pytest.mark.xla

Draw = np.random.Generator
Made = tuple[Any, float, float]
"""A schedule, the least value that it may have, and the largest."""


def count(rng: Draw, whole: bool | None = None) -> Any:
    """Draw a number of steps: some, many, halves and eighths, or no fraction that a float has."""
    n = int(2 ** rng.uniform(0, 20 if rng.random() < 0.7 else 40))
    kind = 0 if whole else rng.integers(4)
    return n + 1 if kind < 2 else n + 0.375 if kind == 2 else n + float(rng.random())


def ends(rng: Draw) -> tuple[float, float]:
    a, b = (float(x) for x in np.exp(rng.uniform(-7, 2, 2)))
    return a, 0.0 if rng.random() < 0.2 else b


def between(a: float, b: float, *more: float) -> tuple[float, float]:
    return min(a, b, *more), max(a, b, *more)


def below_1(rng: Draw) -> float:
    return float(rng.choice([0.0, 0.5, 0.9, 1.0, rng.random()]))


def rising(rng: Draw, n: int) -> list[float]:
    found = np.cumsum([count(rng) for _ in range(n)])
    return [float(x) if rng.random() < 0.5 else int(x) + 1 + k for k, x in enumerate(found)]


def _piecewise(rng: Draw) -> Made:
    bounds = sorted({float(b) for b in rising(rng, 3)})
    values = [float(x) for x in rng.uniform(-1, 1, len(bounds) + 1)]
    shape = str(rng.choice(["constant", "linear", "cosine", "1-sqrt"]))
    return s.piecewise(values, bounds, shape=shape), min(values), max(values)  # type: ignore[arg-type]


def _two(function: Any, **more: Callable[[Draw], Any]) -> Callable[[Draw], Made]:
    def make(rng: Draw) -> Made:
        a, b = ends(rng)
        given = {n: f(rng) for n, f in more.items()}
        return function(a, b, given), *between(a, b)

    return make


def _warm(function: Any, **more: Any) -> Callable[[Draw], Made]:
    def make(rng: Draw) -> Made:
        (a, b), c = ends(rng), float(rng.random())
        warm, rest, fall = count(rng), count(rng), count(rng)
        return function(a, b, c, warm, rest, fall), *between(a, b, c)

    return make


def _restarts(rng: Draw) -> Made:
    a, b = ends(rng)
    growth = float(rng.choice([1, 1, 2, 3, 1.5, 1 + rng.random(), 1.001]))
    growth = int(growth) if growth % 1 == 0 else growth
    return s.cosine_restarts(a, steps=count(rng), end=b, growth=growth, factor=below_1(rng)), *between(a, b)


def _cyclic(rng: Draw) -> Made:
    a, b = ends(rng)
    down, shape = count(rng) if rng.random() < 0.5 else None, str(rng.choice(["linear", "cosine"]))
    given = {"down": down, "factor": below_1(rng), "rate": below_1(rng), "shape": shape}
    return s.cyclic(a, peak=b, up=count(rng), **given), *between(a, b)


def _inner(rng: Draw) -> Made:
    return MAKERS[str(rng.choice(["cyclic", "cosine_restarts", "step", "piecewise", "wsd", "polynomial"]))](rng)


def _join(rng: Draw) -> Made:
    many = [_inner(rng) for _ in range(3)]
    bounds = sorted({math.ceil(b) for b in rising(rng, 2)})
    many = many[: len(bounds) + 1]
    return s.join([x for x, _, _ in many], bounds), min(x for _, x, _ in many), max(x for _, _, x in many)


def _of(function: Any) -> Callable[[Draw], Made]:
    def make(rng: Draw) -> Made:
        inner, low, high = _inner(rng)
        return function(inner, low, high, rng)

    return make


def _sum(rng: Draw) -> Made:
    (x, a, b), (y, c, d) = _inner(rng), _inner(rng)
    return x + 2 * y - 1, a + 2 * c - 1, b + 2 * d - 1


def _product(rng: Draw) -> Made:
    (x, a, b), (y, c, d) = _inner(rng), _inner(rng)
    found = [a * c, a * d, b * c, b * d]
    return x * y, min(found), max(found)


MAKERS: dict[str, Callable[[Draw], Made]] = {
    "constant": lambda rng: (s.constant(0.1), 0.1, 0.1),
    "step": lambda rng: (s.step(0.3, every=count(rng), factor=below_1(rng)), 0, 0.3),
    "multi_step": lambda rng: (s.multi_step(0.3, boundaries=sorted({*rising(rng, 3)}), factor=below_1(rng)), 0, 0.3),
    "piecewise": _piecewise,
    "exponential": lambda rng: (s.exponential(0.3, rate=below_1(rng), every=count(rng)), 0, 0.3),
    "inverse_time": lambda rng: (s.inverse_time(0.3, rate=2 * below_1(rng), every=count(rng)), 0, 0.3),
    "inverse_sqrt": lambda rng: (s.inverse_sqrt(0.3, warmup=count(rng), timescale=count(rng)), 0, 0.3),
    "noam": lambda rng: (s.noam(1, warmup=count(rng)), 0, 1),
    "polynomial": _two(
        lambda a, b, x: s.polynomial(a, end=b, **x),
        steps=count, cycle=lambda rng: bool(rng.random() < 0.6), power=lambda rng: float(rng.choice([1, 0.5, 2.5])),
    ),
    "cosine": _two(lambda a, b, x: s.cosine(a, end=b, **x), steps=count, power=lambda rng: float(rng.choice([1, 1.5]))),
    "rex": _two(lambda a, b, x: s.rex(a, end=b, **x), steps=count),
    "warmup": _two(lambda a, b, x: s.warmup(a, start=b, **x), steps=count),
    "warmup_cosine": _warm(
        lambda a, b, c, w, r, f: s.warmup_cosine(a, warmup=w, steps=w + r, end=b, start=c, power=1 + c)
    ),
    "wsd": _warm(
        lambda a, b, c, w, r, f: s.wsd(
            a, warmup=w, steps=w + r + f, cooldown=f, end=b, start=c, shape=["linear", "cosine", "1-sqrt"][int(3 * c)]
        )
    ),
    "one_cycle": _warm(
        lambda a, b, c, w, r, f: s.one_cycle(
            a, steps=w + r + f, warmup=w, back=w + r, start=b, end=c, shape=["linear", "cosine"][int(2 * c)]
        )
    ),
    "cosine_restarts": _restarts,
    "cyclic": _cyclic,
    "join": _join,
    "scale": _of(lambda x, low, high, rng: (s.scale(x, 2.0), 2 * low, 2 * high)),
    "delay": _of(lambda x, low, high, rng: (s.delay(x, steps=count(rng)), low, high)),
    "staircase": _of(lambda x, low, high, rng: (s.staircase(x, every=count(rng)), low, high)),
    "clip": _of(lambda x, a, b, rng: (s.clip(x, low=a + 0.01, high=b + 1), a + 0.01, max(a + 0.01, b))),
    "+": _sum,
    "*": _product,
}  # fmt: skip
TRIES = 25
OTHER = ("strict-no_x64", "strict-no_float64", "strict-device1", "strict-device2", "torch-grad")
LIMITS = {"int32": 2**31 - 1, "int64": 2**63 - 1}


def at(rng: Draw, schedule: Any, most: int) -> list[int]:
    """Return steps at powers of two, at what the schedule counts, at multiples of it, and at the end of the range."""
    lengths = [x for x in [*schedule.args, *schedule.kwargs.values()] if isinstance(x, int | float) and x >= 1]
    bases = [2**k for k in range(0, 63, 3)] + [2**24, 2**30, 2**31, 2**53, 10**18, most]
    bases += [int(x * n) for x in lengths for n in (1, 2, int(rng.integers(1, 2**20)), int(rng.integers(1, 2**40)))]
    return sorted({min(max(b + d, 1), most) for b in bases for d in (-1, 0, 1, 2)})


def in_range(values: Any, low: float, high: float, unit: float) -> bool:
    """Whether all are in the range, but for a few roundings, of the ends too."""
    room = 16 * unit * max(abs(low), abs(high))
    return bool(np.all((np.asarray(values) >= low - room) & (np.asarray(values) <= high + room)))


def test_every_schedule_is_tried() -> None:
    assert {*MAKERS} - {"+", "*"} == {n for n in s.__all__ if n != "Schedule"}


@pytest.mark.parametrize("name", MAKERS)
def test_numbers(name: str, rng: Draw) -> None:
    for _ in range(TRIES):
        schedule, low, high = MAKERS[name](rng)
        ts = at(rng, schedule, 10**18)
        for given in (ts, [float(t) for t in ts]):
            got = [schedule(t) for t in given]
            bad = [(t, x) for t, x in zip(given, got, strict=True) if not in_range(x, low, high, 2.0**-52)]
            assert not bad, (schedule, low, high, bad[:3])


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("name", MAKERS)
def test_arrays(lib: Lib, name: str, dtype: str, rng: Draw) -> None:
    if lib.name == "dask" or lib.id in OTHER:
        pytest.skip("a graph for each step; a device with other dtypes; whole numbers have no gradient")
    if lib.name == "jax" and dtype == "int64":
        pytest.skip("the test of JAX has it")
    for _ in range(3):
        schedule, low, high = MAKERS[name](rng)
        for t in rng.permutation(at(rng, schedule, LIMITS[dtype]))[:20]:
            got = float(lib.numpy(schedule(lib.array(np.asarray(t, dtype)))))
            assert in_range(got, low, high, 2.0**-52), (schedule, low, high, int(t), got)
            assert got == pytest.approx(schedule(int(t)), rel=1e-6, abs=1e-9) or t > 2**40


@pytest.mark.needs("jax")
@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("name", MAKERS)
def test_under_jit(name: str, wide: bool, rng: Draw) -> None:
    jax = pytest.importorskip("jax")
    dtype, unit = ("int64", 2.0**-52) if wide else ("int32", 2.0**-23)
    with jax.enable_x64(wide):
        for _ in range(3):
            schedule, low, high = MAKERS[name](rng)
            jitted = jax.jit(jax.vmap(schedule))
            ts = at(rng, schedule, LIMITS[dtype])
            for given in (np.asarray(ts, dtype), np.asarray(ts, "float64" if wide else "float32")):
                got = np.asarray(jitted(given))
                bad = [(t, x) for t, x in zip(given, got, strict=True) if not in_range(x, low, high, unit)]
                assert not bad, (schedule, low, high, bad[:3])


def phase(t: int, every: Any) -> tuple[int, float]:
    n, gone = divmod(Fraction(t - 1), Fraction(every))
    return int(n), float(gone / Fraction(every))


def triangle(t: int, up: Any, down: Any) -> float:
    gone = Fraction(t - 1) % (Fraction(up) + Fraction(down))
    return float(gone / Fraction(up) if gone < up else 1 - (gone - Fraction(up)) / Fraction(down))


def saw(t: int, steps: int) -> float:
    """What is left of the periods that have begun."""
    total = max(-(-(t - 1) // steps), 1) * steps
    return float(Fraction(total - (t - 1), total))


def line(t: int, steps: int) -> Fraction:
    return min(max(Fraction(t - 1, steps), Fraction(0)), Fraction(1))


def wave(x: float) -> float:
    return math.sin(math.pi / 2 * x) ** 2


PERIODS = [
    (s.cyclic(0.0, peak=1.0, up=3, down=4), lambda t: triangle(t, 3, 4)),
    (s.cyclic(0.25, peak=1.0, up=1000, shape="cosine"), lambda t: 0.25 + 0.75 * wave(triangle(t, 1000, 1000))),
    (s.cyclic(0.0, peak=1.0, up=2.5, down=1.25), lambda t: triangle(t, 2.5, 1.25)),
    (s.cyclic(1.0, peak=0.0, up=10**6, down=10**7), lambda t: 1 - triangle(t, 10**6, 10**7)),
    (s.cosine_restarts(1.0, steps=41), lambda t: 1 - wave(phase(t, 41)[1])),
    (s.cosine_restarts(1.0, steps=7.75, end=0.5), lambda t: 1 - 0.5 * wave(phase(t, 7.75)[1])),
    (s.polynomial(1.0, end=0.0, steps=1000, cycle=True), lambda t: saw(t, 1000)),
    (s.step(1.0, every=2**27 + 1, factor=0.5), lambda t: 0.5 ** phase(t, 2**27 + 1)[0]),
    (s.staircase(s.cyclic(0.0, peak=1.0, up=30), every=4), lambda t: triangle((t - 1) // 4 * 4 + 1, 30, 30)),
    (
        s.join([s.constant(0.0), s.cyclic(0.0, peak=1.0, up=5)], [2**25 + 1]),
        lambda t: triangle(max(t - 2**25 - 1, 1), 5, 5),
    ),
    (s.delay(s.cyclic(0.0, peak=1.0, up=5), steps=2**25 + 1), lambda t: triangle(max(t - 2**25 - 1, 1), 5, 5)),
    (0.5 * s.cyclic(0.0, peak=1.0, up=5), lambda t: 0.5 * triangle(t, 5, 5)),
    (s.clip(s.scale(s.cyclic(0.0, peak=1.0, up=5), 2.0), high=1.5), lambda t: min(2 * triangle(t, 5, 5), 1.5)),
    (s.piecewise([0.0, 1.0], [2**26 + 1]), lambda t: float(t - 1 >= 2**26 + 1)),
    (
        s.warmup(1.0, steps=2**26 + 1) - s.delay(s.warmup(1.0, steps=4), steps=2**26 + 2),
        lambda t: float(line(t, 2**26 + 1) - line(t - 2**26 - 2, 4)),
    ),
]
WHERE = [
    b + d for b in (2, 82, 10**4, 2**20, 2**24, 2**25 + 7, 2**26 + 4, 2**27 + 1, 2**30, 2**31 - 5) for d in range(4)
]
FAR = [b + d for b in (2**40, 2**53, 10**15, 10**18) for d in range(5)]


@pytest.mark.parametrize(("schedule", "formula"), PERIODS, ids=lambda x: repr(x) if isinstance(x, s.Schedule) else "")
def test_phases_are_exact(lib: Lib, schedule: Any, formula: Any) -> None:
    if lib.name == "dask" or lib.id in OTHER:
        pytest.skip("a graph for each step; a device with other dtypes; whole numbers have no gradient")
    if lib.name == "numpy":
        assert [schedule(t) for t in WHERE + FAR] == pytest.approx(
            [formula(t) for t in WHERE + FAR], rel=1e-9, abs=1e-15
        )
        return
    for t in WHERE[::3] + FAR[::2]:
        got = float(lib.numpy(schedule(lib.array(np.asarray(t, "int64")))))
        # the fractions of a very long run are rounded
        assert got == pytest.approx(formula(t), rel=1e-9, abs=1e-15), t


@pytest.mark.needs("jax")
@pytest.mark.parametrize(("schedule", "formula"), PERIODS, ids=lambda x: repr(x) if isinstance(x, s.Schedule) else "")
def test_phases_are_exact_under_jit_in_float32(schedule: Any, formula: Any) -> None:
    jax = pytest.importorskip("jax")
    with jax.enable_x64(False):
        got = jax.jit(jax.vmap(schedule))(np.asarray(WHERE, "int32"))
        assert got.dtype == "float32"
        # a sine, a quotient and a power of float32
        np.testing.assert_allclose(got, [formula(t) for t in WHERE], rtol=3e-6, atol=1e-6)


@pytest.mark.needs("jax")
def test_a_rule_hands_the_whole_number_on() -> None:
    jax = pytest.importorskip("jax")
    lr = s.cyclic(0.25, peak=1.0, up=3, down=4)
    grouped = xopt.Groups(xopt.SGD(lr), ("b", {"lr": xopt.scaled(0.5)}))
    with jax.enable_x64(False):
        p = {"a": jax.numpy.zeros(1), "b": jax.numpy.zeros(1)}
        g = jax.tree.map(jax.numpy.ones_like, p)
        state, step = grouped.init(p), jax.jit(grouped.updates)
        for t in (1, 5, 2**24 + 4, 2**30, 2**31 - 2):
            state = state._replace(step=jax.numpy.asarray(t - 1, "int32"))
            new, _ = step(p, g, state)
            assert float(new["a"][0]) == pytest.approx(-lr(t), rel=1e-6)
            assert float(new["b"][0]) == pytest.approx(-0.5 * lr(t), rel=1e-6)


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
