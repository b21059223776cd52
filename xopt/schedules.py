r"""Schedules: hyperparameters that follow the step.

A schedule is a callable of the step t = 1, 2, 3, …; step 1 is the first update. With s = t - 1 updates already made,
``schedule(t)`` equals optax's schedule at count s and torch's ``LambdaLR`` at epoch s. Every hyperparameter of every
rule may be one, and so may any function of your own; written with arithmetic alone it is also traced under ``jax.jit``.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeAlias

import numpy as np

from xopt import _scalars

__all__ = [
    "Schedule",
    "constant",
    "cosine",
    "exponential",
    "inverse_time",
    "join",
    "polynomial",
    "step",
    "warmup",
    "warmup_cosine",
]

P = ParamSpec("P")
Number: TypeAlias = Any


class Schedule:
    """A schedule made by one of the functions of this module: callable, comparable, and shown as it was written.

    Examples
    --------
    >>> import xopt
    >>> lr = xopt.schedules.cosine(0.1, steps=10)
    >>> lr
    cosine(0.1, steps=10)
    >>> lr(1), round(lr(6), 4), lr(11)
    (0.1, 0.05, 0.0)
    """

    __slots__ = ("__weakref__", "args", "function", "kwargs", "name")  # jax.jit takes weak references

    def __init__(
        self, name: str, function: Callable[..., Number], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.name, self.function, self.args, self.kwargs = name, function, args, kwargs

    def __call__(self, t: Number) -> Number:
        """Return the value at step ``t`` ≥ 1: a Python float, or a 0-d array when ``t`` is one."""
        done = t - 1
        return self.function(done, _scalars.space(done), *self.args, **self.kwargs)

    def __repr__(self) -> str:
        given = [*map(repr, self.args), *(f"{k}={v!r}" for k, v in self.kwargs.items())]
        return f"{self.name}({', '.join(given)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.name, self.args, self.kwargs)

    def _key(self) -> tuple[Any, ...]:
        return self.name, self.args, tuple(sorted(self.kwargs.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


def _rebuild(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return globals()[name](*args, **kwargs)


def _schedule(function: Callable[Concatenate[Number, Any, P], Number]) -> Callable[P, Schedule]:
    """Make a constructor of schedules from a formula of (updates made, scalar functions, parameters...)."""
    signature = inspect.signature(function)
    own = signature.replace(parameters=list(signature.parameters.values())[2:], return_annotation="Schedule")

    @functools.wraps(function)
    def make(*args: P.args, **kwargs: P.kwargs) -> Schedule:
        bound = own.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            _check(f"schedules.{function.__name__}: {name}", name, value)
        return Schedule(function.__name__, function, bound.args, bound.kwargs)

    make.__signature__ = own  # type: ignore[attr-defined]
    make.__annotations__ = {}
    return make


def _check(where: str, name: str, value: Any) -> None:
    if name in ("schedules", "boundaries"):
        return
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | np.integer | np.floating)
        or not math.isfinite(value)
    ):
        raise TypeError(f"{where} is {value!r}, but it must be a finite number")
    if name in ("steps", "every") and value <= 0:
        raise ValueError(f"{where} is {value!r}, but it must be a positive number of steps")


@_schedule
def constant(done: Number, xp: Any, value: float) -> Number:
    """Return ``value`` at every step.

    Examples
    --------
    >>> import xopt
    >>> xopt.schedules.constant(0.1)(7)
    0.1
    """
    return float(value)


@_schedule
def step(done: Number, xp: Any, value: float, *, every: float, factor: float) -> Number:
    """Multiply by ``factor`` after every ``every`` steps: value · factor^⌊s / every⌋.

    Examples
    --------
    >>> import xopt
    >>> lr = xopt.schedules.step(1.0, every=10, factor=0.5)
    >>> [lr(t) for t in (1, 10, 11, 21)]
    [1.0, 1.0, 0.5, 0.25]
    """
    return value * factor ** xp.floor(done / every)


@_schedule
def exponential(done: Number, xp: Any, value: float, *, rate: float, every: float = 1) -> Number:
    """Decay by ``rate`` over every ``every`` steps, smoothly: value · rate^(s / every).

    Examples
    --------
    >>> import xopt
    >>> lr = xopt.schedules.exponential(1.0, rate=0.25, every=10)
    >>> [lr(t) for t in (1, 6, 11)]
    [1.0, 0.5, 0.25]
    """
    return value * rate ** (done / every)


@_schedule
def polynomial(done: Number, xp: Any, start: float, *, end: float, steps: float, power: float = 1.0) -> Number:
    """Go from ``start`` to ``end`` in ``steps`` steps: end + (start - end)·(1 - s / steps)^power; linear by default.

    Examples
    --------
    >>> import xopt
    >>> lr = xopt.schedules.polynomial(1.0, end=0.0, steps=4)
    >>> [lr(t) for t in (1, 2, 5, 9)]
    [1.0, 0.75, 0.0, 0.0]
    """
    return end + (start - end) * (1 - xp.minimum(done / steps, 1.0)) ** power


@_schedule
def inverse_time(done: Number, xp: Any, value: float, *, rate: float, every: float = 1) -> Number:
    """Decay as value / (1 + rate · s / every): the ``lr_decay`` of torch's Adagrad.

    Examples
    --------
    >>> import xopt
    >>> lr = xopt.schedules.inverse_time(1.0, rate=1.0)
    >>> [lr(t) for t in (1, 2, 4)]
    [1.0, 0.5, 0.25]
    """
    return value / (1 + rate * done / every)


@_schedule
def cosine(done: Number, xp: Any, start: float, *, steps: float, end: float = 0.0) -> Number:
    """Go from ``start`` to ``end`` in ``steps`` steps along half a cosine, and stay (Loshchilov & Hutter 2017).

    end + (start - end)·(1 + cos(π·min(s / steps, 1))) / 2, arXiv:1608.03983 equation 5.

    Examples
    --------
    >>> import xopt
    >>> lr = xopt.schedules.cosine(1.0, steps=10, end=0.5)
    >>> [lr(t) for t in (1, 6, 11, 99)]
    [1.0, 0.75, 0.5, 0.5]
    """
    return _cosine(done, xp, start, steps, end)


def _cosine(done: Number, xp: Any, start: float, steps: float, end: float) -> Number:
    # sin² of the half angle rather than 1 + cos: exactly 0 at the start, and no cancellation
    return start + (end - start) * xp.sin(math.pi / 2 * xp.minimum(done / steps, 1.0)) ** 2


@_schedule
def warmup(done: Number, xp: Any, value: float, *, steps: float, start: float = 0.0) -> Number:
    """Go from ``start`` to ``value`` in ``steps`` steps on a line, and stay.

    Examples
    --------
    >>> import xopt
    >>> lr = xopt.schedules.warmup(1.0, steps=4)
    >>> [lr(t) for t in (1, 2, 5, 9)]
    [0.0, 0.25, 1.0, 1.0]
    """
    return start + (value - start) * xp.minimum(done / steps, 1.0)


@_schedule
def warmup_cosine(
    done: Number, xp: Any, peak: float, *, warmup: float, steps: float, end: float = 0.0, start: float = 0.0
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
    rising = start + (peak - start) * xp.minimum(done / max(warmup, 1), 1.0)
    falling = _cosine(xp.maximum(done - warmup, 0.0), xp, peak, max(steps - warmup, 1), end)
    return xp.where(done < warmup, rising, falling)


def join(schedules: Sequence[Callable[[Any], Any]], boundaries: Sequence[int]) -> Schedule:
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
    if len(boundaries) != len(schedules) - 1:
        raise ValueError(
            f"schedules.join: {len(schedules)} schedules need {len(schedules) - 1} boundaries, got {len(boundaries)}"
        )
    if any(b <= a for a, b in zip([0, *boundaries], boundaries, strict=False)):
        raise ValueError(f"schedules.join: boundaries {boundaries} must be positive and rise")
    for s in schedules:
        if not callable(s):
            raise TypeError(f"schedules.join: {s!r} is not a schedule; for a number use constant({s!r})")
    return Schedule("join", _joined, (tuple(schedules), tuple(boundaries)), {})


def _joined(done: Number, xp: Any, schedules: tuple[Callable[[Any], Any], ...], boundaries: tuple[int, ...]) -> Number:
    value = schedules[0](done + 1)
    for begin, schedule in zip(boundaries, schedules[1:], strict=True):
        value = xp.where(done >= begin, schedule(xp.maximum(done - begin, 0) + 1), value)
    return value
