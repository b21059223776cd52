"""Schedules with phases and cycles, as formulas of s, the number of updates already made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from xopt._arrays import scalars as _scalars
from xopt.schedules._maths import (
    Number,
    cosine_fall,
    fractions,
    half_cosine,
    path,
    periods,
    power,
    ramp,
    reached,
    since,
    swing,
)
from xopt.schedules._schedule import schedule


@schedule
def piecewise(
    done: Number,
    xp: Any,
    values: Sequence[float],
    boundaries: Sequence[float],
    *,
    shape: Literal["constant", "linear", "cosine", "1-sqrt"] = "constant",
) -> Number:
    """Take the next of the ``values`` after each of the ``boundaries``, and stay at the last.

    Parameters
    ----------
    values
        n values; the first is taken at s = 0, where no update has been made yet.
    boundaries
        n - 1 rising numbers of updates; ``values[i + 1]`` is taken at s = ``boundaries[i]``.
    shape
        How to get from one to the next: ``"constant"`` jumps, ``"linear"`` goes along a line, ``"cosine"`` along half a
        cosine, ``"1-sqrt"`` along 1 - √x, which is steep at first.

    Raises
    ------
    ValueError
        When the numbers do not match or do not rise.

    Examples
    --------
    >>> import xopt
    >>> lr = xopt.schedules.piecewise([1.0, 0.5, 0.1], [2, 4])
    >>> [lr(t) for t in range(1, 7)]
    [1.0, 1.0, 0.5, 0.5, 0.1, 0.1]
    >>> lr = xopt.schedules.piecewise([0.0, 1.0, 0.5], [2, 4], shape="linear")
    >>> [lr(t) for t in range(1, 7)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.5]
    """
    return path(done, xp, values, boundaries, shape)


@schedule
def warmup(done: Number, xp: Any, value: float, *, steps: float, start: float = 0.0) -> Number:
    """Go from ``start`` to ``value`` in ``steps`` steps on a line, and stay.

    To warm up before any schedule, :func:`~xopt.schedules.join` them, or multiply the schedule by a warm-up to 1.

    Examples
    --------
    >>> import xopt
    >>> lr = xopt.schedules.warmup(1.0, steps=4)
    >>> [lr(t) for t in (1, 2, 5, 9)]
    [0.0, 0.25, 1.0, 1.0]
    >>> lr = xopt.schedules.warmup(1.0, steps=4) * xopt.schedules.step(0.1, every=100, factor=0.5)
    >>> lr(3), lr(5)
    (0.05, 0.1)
    """
    return ramp(done, xp, start, value, steps)


@schedule
def warmup_cosine(
    done: Number,
    xp: Any,
    peak: float,
    *,
    warmup: float,
    steps: float,
    end: float = 0.0,
    start: float = 0.0,
    power: float = 1.0,
) -> Number:
    """Rise from ``start`` to ``peak`` on a line in ``warmup`` steps, then fall to ``end`` along half a cosine.

    ``steps`` counts all of it, the warm-up included, as in ``optax.warmup_cosine_decay_schedule``.

    Examples
    --------
    >>> import xopt
    >>> lr = xopt.schedules.warmup_cosine(1.0, warmup=4, steps=14)
    >>> [round(lr(t), 4) for t in (1, 3, 5, 10, 15)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if warmup >= steps:
        raise ValueError(f"schedules.warmup_cosine: warmup is {warmup!r}, but it must be less than steps, {steps!r}")
    falling = cosine_fall(since(done, warmup), xp, peak, steps - warmup, end, power)
    return xp.where(reached(done, warmup), falling, ramp(done, xp, start, peak, warmup))


@schedule
def wsd(
    done: Number,
    xp: Any,
    peak: float,
    *,
    warmup: float,
    steps: float,
    cooldown: float,
    end: float = 0.0,
    start: float = 0.0,
    shape: Literal["linear", "cosine", "1-sqrt"] = "linear",
) -> Number:
    """Rise on a line in ``warmup`` steps, stay at ``peak``, and fall to ``end`` in the last ``cooldown`` steps.

    Warm-up, stable, decay: Hu et al. 2024, arXiv:2404.06395; ``"1-sqrt"`` is the cooldown 1 - √x of Hägele et al. 2024,
    arXiv:2405.18392. A run becomes longer by changing ``steps`` before the cooldown begins.

    Parameters
    ----------
    steps
        Number of all steps.
    shape
        Of the cooldown: ``"linear"``, ``"cosine"`` or ``"1-sqrt"``.

    Examples
    --------
    >>> import xopt
    >>> lr = xopt.schedules.wsd(1.0, warmup=2, steps=10, cooldown=4, shape="1-sqrt")
    >>> [lr(t) for t in (1, 2, 3, 7, 8, 11)]
    [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if warmup + cooldown > steps:
        raise ValueError(
            f"schedules.wsd: warmup {warmup!r} and cooldown {cooldown!r} are more steps together than steps, {steps!r}"
        )
    falling = path(since(done, steps - cooldown), xp, [peak, end], [cooldown], shape)
    return xp.where(reached(done, warmup), falling, ramp(done, xp, start, peak, warmup))


@schedule
def one_cycle(
    done: Number,
    xp: Any,
    peak: float,
    *,
    steps: float,
    warmup: float | None = None,
    back: float | None = None,
    start: float | None = None,
    end: float | None = None,
    shape: Literal["linear", "cosine"] = "cosine",
) -> Number:
    """Rise from ``start`` to ``peak`` in ``warmup`` steps, then fall to ``end``, in ``steps`` steps altogether.

    Smith & Topin 2018, arXiv:1708.07120. Momentum cycles the other way: ``one_cycle(0.85, start=0.95, end=0.95, …)``.

    Parameters
    ----------
    warmup
        Steps to the peak; None is 0.3 · steps.
    back
        Steps until the value is back at ``start``, in a cycle of three phases; None for two.
    start
        First value; None is peak / 25.
    end
        Last value; None is start / 10⁴.
    shape
        ``"cosine"`` or ``"linear"``.

    Examples
    --------
    >>> import xopt
    >>> lr = xopt.schedules.one_cycle(1.0, steps=10, warmup=4, start=0.5, end=0.0)
    >>> [round(lr(t), 4) for t in (1, 3, 5, 8, 11)]
    [0.5, 0.75, 1.0, 0.5, 0.0]
    """
    warmup = 0.3 * steps if warmup is None else warmup
    start = peak / 25 if start is None else start
    end = start / 1e4 if end is None else end
    if not warmup < (steps if back is None else back) <= steps:
        order = "warmup < steps" if back is None else "warmup < back ≤ steps"
        raise ValueError(
            f"schedules.one_cycle: warmup is {warmup!r}, back {back!r} and steps {steps!r}, but it must be {order}"
        )
    if back is None:
        return path(done, xp, [start, peak, end], [warmup, steps], shape)
    return path(done, xp, [start, peak, start, end], [warmup, back, steps], shape)


@schedule
def inverse_sqrt(
    done: Number, xp: Any, peak: float, *, warmup: float, start: float = 0.0, timescale: float | None = None
) -> Number:
    """Rise from ``start`` to ``peak`` on a line in ``warmup`` steps, then decay as peak · √(τ / (τ + s - warmup)).

    τ is ``timescale``, by default ``warmup``, so that the decay is peak · √(warmup / s), as in fairseq and T5
    (Raffel et al. 2020, arXiv:1910.10683, section 3.1.2). Without warm-up ``timescale`` must be given.

    Examples
    --------
    >>> import xopt
    >>> lr = xopt.schedules.inverse_sqrt(1.0, warmup=4)
    >>> [lr(t) for t in (1, 3, 5, 17)]
    [0.0, 0.5, 1.0, 0.5]
    """
    tau = warmup if timescale is None else timescale
    if tau == 0:
        raise ValueError("schedules.inverse_sqrt: timescale must be given where warmup is 0")
    falling = peak / xp.sqrt(1 + xp.maximum(_scalars.as_real(since(done, warmup)), 0) / tau)
    return xp.where(reached(done, warmup), falling, ramp(done, xp, start, peak, warmup))


@schedule
def noam(done: Number, xp: Any, d_model: float, *, warmup: float, factor: float = 1.0) -> Number:
    """Rise on a line for ``warmup`` steps, then decay as 1 / √t: factor · min(1 / √t, t / warmup^1.5) / √d_model.

    Vaswani et al. 2017, arXiv:1706.03762, equation 3; t = s + 1 is 1 at the first update, as in the paper.

    Examples
    --------
    >>> import xopt
    >>> lr = xopt.schedules.noam(256, warmup=4, factor=16.0)
    >>> [lr(t) for t in (1, 2, 4, 16)]
    [0.125, 0.25, 0.5, 0.25]
    """
    if warmup == 0:
        raise ValueError("schedules.noam: warmup is 0, but it must be a positive number of steps")
    t = _scalars.as_real(done) + 1
    return factor / math.sqrt(d_model) * xp.minimum(1 / xp.sqrt(t), t / warmup**1.5)


@schedule
def cosine_restarts(
    done: Number, xp: Any, start: float, *, steps: float, end: float = 0.0, growth: float = 1, factor: float = 1.0
) -> Number:
    """Fall along half a cosine again and again (SGDR, Loshchilov & Hutter 2017, arXiv:1608.03983).

    The first fall takes ``steps`` steps, each later one ``growth`` times as many, and the height above ``end`` from
    which it starts is ``factor`` times the one before.

    Examples
    --------
    >>> import xopt
    >>> lr = xopt.schedules.cosine_restarts(1.0, steps=2, growth=2, factor=0.5)
    >>> [round(lr(t), 4) for t in (1, 2, 3, 5, 7, 11)]
    [1.0, 0.5, 0.5, 0.25, 0.25, 0.125]
    """
    if growth == 1:
        n, _, late = periods(done, xp, steps)
        length: Number = steps
    else:
        s = _scalars.as_real(done)
        n = xp.floor(xp.log(1 + s * (growth - 1) / steps) / math.log(growth))
        n = n + xp.where(s >= _restart(xp, n + 1, steps, growth), 1.0, 0.0)  # logarithms are rounded
        n = n - xp.where(s < _restart(xp, n, steps, growth), 1.0, 0.0)
        late, length = s - _restart(xp, n, steps, growth), steps * growth**n
    rest, gone = fractions(late, xp, length)
    return swing(xp, start, end, half_cosine(xp, gone), half_cosine(xp, rest), power(xp, factor, n))


def _restart(xp: Any, n: Number, steps: float, growth: float) -> Number:
    """Return after how many steps the n-th restart is, exactly where it is a whole number."""
    begin = steps * (growth**n - 1) / (growth - 1)
    return xp.floor(begin + 0.5) if steps % 1 == growth % 1 == 0 else begin


@schedule
def cyclic(
    done: Number,
    xp: Any,
    start: float,
    *,
    peak: float,
    up: float,
    down: float | None = None,
    factor: float = 1.0,
    rate: float = 1.0,
    shape: Literal["linear", "cosine"] = "linear",
) -> Number:
    """Go from ``start`` to ``peak`` in ``up`` steps and back in ``down`` steps, again and again (Smith 2017).

    The height above ``start`` is multiplied by ``factor`` after every cycle and by ``rate`` after every step:
    arXiv:1506.01186 has ``triangular`` with 1 and 1, ``triangular2`` with ``factor=0.5``, ``exp_range`` with ``rate``
    below 1. ``peak`` may lie below ``start``, as it does for momentum.

    Parameters
    ----------
    down
        Steps from ``peak`` to ``start``; None is as many as ``up``.
    shape
        ``"linear"``, or ``"cosine"`` for a smooth wave.

    Examples
    --------
    >>> import xopt
    >>> lr = xopt.schedules.cyclic(0.0, peak=1.0, up=2, factor=0.5)
    >>> [lr(t) for t in range(1, 9)]
    [0.0, 0.5, 1.0, 0.5, 0.0, 0.25, 0.5, 0.25]
    """
    down = up if down is None else down
    n, _, s = periods(done, xp, up + down)
    high = xp.where(s < up, s / up, xp.minimum((up + down - s) / down, 1.0))
    low = xp.where(s < up, (up - s) / up, xp.minimum((s - up) / down, 1.0))
    if shape == "cosine":
        high, low = half_cosine(xp, high), half_cosine(xp, low)
    amplitude = power(xp, factor, n) * power(xp, rate, _scalars.as_real(done))
    return swing(xp, peak, start, low, high, amplitude)
