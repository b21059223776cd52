"""Schedules that follow one formula of s, the number of updates already made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xopt._arrays import scalars as _scalars
from xopt.schedules._maths import Number, cosine_fall, fractions, path, periods, power
from xopt.schedules._schedule import schedule


@schedule
def constant(done: Number, xp: Any, value: float) -> Number:
    """Return ``value`` at every step.

    Examples
    --------
    >>> import xopt
    >>> xopt.schedules.constant(0.1)(7)
    0.1
    """
    return value


@schedule
def step(done: Number, xp: Any, value: float, *, every: float, factor: float) -> Number:
    """Multiply by ``factor`` after every ``every`` steps: value · factor^⌊s / every⌋.

    Examples
    --------
    >>> import xopt
    >>> lr = xopt.schedules.step(1.0, every=10, factor=0.5)
    >>> [lr(t) for t in (1, 10, 11, 21)]
    [1.0, 1.0, 0.5, 0.25]
    """
    return value * power(xp, factor, periods(done, xp, every).number)


@schedule
def multi_step(done: Number, xp: Any, value: float, *, boundaries: Sequence[float], factor: float) -> Number:
    """Multiply by ``factor`` at each of the ``boundaries``: value · factor^(boundaries up to s).

    Examples
    --------
    >>> import xopt
    >>> lr = xopt.schedules.multi_step(1.0, boundaries=[30, 40], factor=0.5)
    >>> [lr(t) for t in (1, 30, 31, 41)]
    [1.0, 1.0, 0.5, 0.25]
    """
    return path(done, xp, [value * factor**k for k in range(len(boundaries) + 1)], boundaries, "constant")


@schedule
def exponential(done: Number, xp: Any, value: float, *, rate: float, every: float = 1) -> Number:
    """Decay by ``rate`` over every ``every`` steps, smoothly: value · rate^(s / every).

    Examples
    --------
    >>> import xopt
    >>> lr = xopt.schedules.exponential(1.0, rate=0.25, every=10)
    >>> [lr(t) for t in (1, 6, 11)]
    [1.0, 0.5, 0.25]
    """
    return value * power(xp, rate, _scalars.as_real(done) / every)


@schedule
def inverse_time(done: Number, xp: Any, value: float, *, rate: float, every: float = 1) -> Number:
    """Decay as value / (1 + rate · s / every): the ``lr_decay`` of torch's Adagrad.

    Examples
    --------
    >>> import xopt
    >>> lr = xopt.schedules.inverse_time(1.0, rate=1.0)
    >>> [lr(t) for t in (1, 2, 4)]
    [1.0, 0.5, 0.25]
    """
    return value / (1 + rate * _scalars.as_real(done) / every)


@schedule
def polynomial(
    done: Number, xp: Any, start: float, *, end: float, steps: float, power: float = 1.0, cycle: bool = False
) -> Number:
    """Go from ``start`` to ``end`` in ``steps`` steps: end + (start - end)·(1 - s / steps)^power; linear by default.

    It stays at ``end``. With ``cycle=True`` the steps are doubled, tripled, … each time that ``end`` has been reached,
    so that the value jumps up and falls again (Keras' ``PolynomialDecay``).

    Examples
    --------
    >>> import xopt
    >>> lr = xopt.schedules.polynomial(1.0, end=0.0, steps=4)
    >>> [lr(t) for t in (1, 2, 5, 9)]
    [1.0, 0.75, 0.0, 0.0]
    >>> lr = xopt.schedules.polynomial(1.0, end=0.0, steps=4, cycle=True)
    >>> [lr(t) for t in (1, 2, 5, 6, 7, 9)]
    [1.0, 0.75, 0.0, 0.375, 0.25, 0.0]
    """
    rest, gone = _cycle(done, xp, steps) if cycle else fractions(done, xp, steps)
    if power == 1:
        return start * rest + end * gone
    share = rest**power
    return start * share + end * (1 - share)


def _cycle(done: Number, xp: Any, steps: float) -> tuple[Number, Number]:
    """Return the fractions that are left and gone of as many periods as have begun, the first at 0."""
    present, done = periods(done, xp, steps).gone, _scalars.as_real(done)
    left = xp.where(present > 0, steps - present, xp.where(done > 0, 0.0, steps))
    return left / (done + left), done / (done + left)


@schedule
def cosine(done: Number, xp: Any, start: float, *, steps: float, end: float = 0.0, power: float = 1.0) -> Number:
    """Go from ``start`` to ``end`` in ``steps`` steps along half a cosine, and stay (Loshchilov & Hutter 2017).

    end + (start - end)·((1 + cos(π·min(s / steps, 1))) / 2)^power, arXiv:1608.03983 equation 5 with power 1.
    torch's ``CosineAnnealingLR`` does not stay but rises again: ``cyclic(start, peak=end, up=steps, shape="cosine")``.

    Examples
    --------
    >>> import xopt
    >>> lr = xopt.schedules.cosine(1.0, steps=10, end=0.5)
    >>> [round(lr(t), 4) for t in (1, 6, 11, 99)]
    [1.0, 0.75, 0.5, 0.5]
    """
    return cosine_fall(done, xp, start, steps, end, power)


@schedule
def rex(done: Number, xp: Any, start: float, *, steps: float, end: float = 0.0) -> Number:
    """Go from ``start`` to ``end`` in ``steps`` steps, slowly at first: end + (start - end)·z / (½ + ½z).

    z = 1 - min(s / steps, 1): the reflected exponential of Chen, Wolfe & Kyrillidis 2021, arXiv:2107.04197.

    Examples
    --------
    >>> import xopt
    >>> lr = xopt.schedules.rex(3.0, steps=4)
    >>> [round(lr(t), 4) for t in (1, 3, 5, 9)]
    [3.0, 2.0, 0.0, 0.0]
    """
    rest, gone = fractions(done, xp, steps)
    return (start * 2 * rest + end * gone) / (1 + rest)
