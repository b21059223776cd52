"""Schedules made of schedules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xopt.schedules._maths import Number, at_least_0, periods, reached, since
from xopt.schedules._schedule import Follows, followed, schedule


@schedule
def join(done: Number, xp: Any, schedules: Sequence[Follows], boundaries: Sequence[float]) -> Number:
    """Follow one schedule after the other; each counts its own steps from 1.

    Parameters
    ----------
    schedules
        n schedules, or callables of the step.
    boundaries
        n - 1 rising numbers of steps: after ``boundaries[0]`` steps the second schedule begins.

    Raises
    ------
    ValueError
        When the numbers do not match or do not rise.

    Examples
    --------
    >>> import xopt
    >>> s = xopt.schedules
    >>> lr = s.join([s.warmup(1.0, steps=2), s.constant(1.0), s.constant(0.1)], [2, 4])
    >>> [lr(t) for t in range(1, 7)]
    [0.0, 0.5, 1.0, 1.0, 0.1, 0.1]
    """
    value = followed(schedules[0], done)
    for begin, follows in zip(boundaries, schedules[1:], strict=True):
        own = followed(follows, at_least_0(since(done, begin), xp))
        value = xp.where(reached(done, begin), own, value)
    return value


@schedule
def scale(done: Number, xp: Any, schedule: Follows, factor: float) -> Number:
    """Multiply a schedule, or any function of the step, by a number: factor · schedule(t).

    For a schedule it is the same as ``factor * schedule``.

    Examples
    --------
    >>> import xopt
    >>> lr = xopt.schedules.scale(lambda t: 1 / t, 0.5)
    >>> lr(1), lr(2)
    (0.5, 0.25)
    """
    return factor * xp.lift(followed(schedule, done))


@schedule
def delay(done: Number, xp: Any, schedule: Follows, *, steps: float) -> Number:
    """Stay at the first value of a schedule for ``steps`` steps, then follow it: ``transition_begin`` of optax.

    Examples
    --------
    >>> import xopt
    >>> lr = xopt.schedules.delay(xopt.schedules.exponential(1.0, rate=0.5), steps=2)
    >>> [lr(t) for t in range(1, 6)]
    [1.0, 1.0, 1.0, 0.5, 0.25]
    """
    return followed(schedule, at_least_0(since(done, steps), xp))


@schedule
def staircase(done: Number, xp: Any, schedule: Follows, *, every: float) -> Number:
    """Hold every value of a schedule for ``every`` steps: schedule(⌊s / every⌋ · every + 1).

    This is ``staircase=True`` of Keras and optax.

    Examples
    --------
    >>> import xopt
    >>> lr = xopt.schedules.staircase(xopt.schedules.warmup(1.0, steps=4), every=2)
    >>> [lr(t) for t in range(1, 7)]
    [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    """
    return followed(schedule, periods(done, xp, every).begin)


@schedule
def clip(done: Number, xp: Any, schedule: Follows, *, low: float | None = None, high: float | None = None) -> Number:
    """Keep a schedule between ``low`` and ``high``: ``end_value`` of optax's exponential decay.

    Examples
    --------
    >>> import xopt
    >>> lr = xopt.schedules.clip(xopt.schedules.exponential(1.0, rate=0.5), low=0.2)
    >>> [lr(t) for t in range(1, 6)]
    [1.0, 0.5, 0.25, 0.2, 0.2]
    """
    if low is not None and high is not None and low > high:
        raise ValueError(f"schedules.clip: low is {low!r}, but it must not be more than high, {high!r}")
    value: Number = followed(schedule, done)
    value = value if low is None else xp.maximum(value, low)
    return value if high is None else xp.minimum(value, high)
