"""What the formulas of schedules have in common: fractions of a run, shapes of a transition, whole periods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias

from xopt import _arrays
from xopt._arrays import scalars as _scalars

Number: TypeAlias = Any


_MANY = 2**1000  # a number of periods that is a float too


class Periods(NamedTuple):
    """Where a number of updates lies among periods of equal length."""

    number: Number
    """How many have ended."""
    begin: Number
    """When the present one began, a whole number where the length is one."""
    gone: Number
    """Updates since then, from 0 to less than the length."""


def periods(done: Number, xp: Any, every: float) -> Periods:
    """Count whole periods: exactly, where the updates are counted in whole numbers and so are some periods together."""
    length = Fraction(every)
    many, together = length.denominator, length.numerator
    if isinstance(done, int):
        number, gone = divmod(done * many, together)
        if many == 1:
            return Periods(number, done - gone, gone)
        return Periods(min(number, _MANY), float(number * length), gone / many)
    if not counted(done) or together > _last(done):
        return _periods(_scalars.as_real(done), xp, every)
    gone = done % together
    number = _scalars.as_real(done // together) * many
    if many == 1:
        return Periods(number, done - gone, _scalars.as_real(gone))
    last = _periods(_scalars.as_real(gone), xp, every)
    return Periods(number + last.number, _scalars.as_real(done - gone) + last.begin, last.gone)


def _periods(done: Number, xp: Any, every: float) -> Periods:
    """Count whole periods of a real number. XLA makes a product of the quotient, which may then be one too small.

    Of a number so large that its digits do not tell where in a period it is, that is somewhere in it.
    """
    number = xp.floor(done / every)
    number = number + xp.where(done >= (number + 1) * every, 1.0, 0.0)
    return Periods(number, number * every, xp.minimum(xp.maximum(done - number * every, 0.0), every))


def counted(done: Number) -> bool:
    """Whether this is an array of whole numbers."""
    return not isinstance(done, int | float) and "int" in str(done.dtype)


def reached(done: Number, at: float) -> Any:
    """Return whether so many updates have been made, whole numbers as such."""
    return done >= min(math.ceil(at), _last(done)) if counted(done) else done >= at


def since(done: Number, at: float) -> Number:
    """Return how many updates more than this have been made, a whole number where both are."""
    if isinstance(done, float) or (isinstance(done, int) and isinstance(at, int)):
        return done - at
    if isinstance(done, int):
        return done - int(at) if at % 1 == 0 else float(done - Fraction(at))
    if not counted(done):
        return done - at
    late = done - min(math.floor(at), _last(done))
    return late if at % 1 == 0 else _scalars.as_real(late) - at % 1


def at_least_0(done: Number, xp: Any) -> Number:
    """Return a number of updates, or 0 if it is less."""
    if isinstance(done, int):
        return max(done, 0)
    return done * _arrays.namespace(done).astype(done > 0, done.dtype) if counted(done) else xp.maximum(done, 0)


def _last(done: Number) -> int:
    return int(_arrays.namespace(done).iinfo(done.dtype).max)


def power(xp: Any, base: float, exponent: Number) -> Number:
    """Return base^exponent for a number base ≥ 0. On arrays with its logarithm from the host: they may be float32."""
    if xp is _scalars.floats:
        try:
            return base**exponent
        except OverflowError:
            return math.inf
    return xp.exp(exponent * math.log(base)) if base > 0 else xp.where(exponent == 0, 1.0, 0.0)


def fractions(done: Number, xp: Any, steps: Number) -> tuple[Number, Number]:
    """Return the fractions of the steps that are left and gone, 0 and 1 after the end: exact at both ends."""
    gone = xp.minimum(xp.maximum(_scalars.as_real(done), 0), steps)
    return (steps - gone) / steps, gone / steps


def half_cosine(xp: Any, x: Number) -> Number:
    """Return (1 - cos πx) / 2 without cancellation."""
    return xp.sin(math.pi / 2 * x) ** 2


def ramp(done: Number, xp: Any, start: float, end: float, steps: float) -> Number:
    return path(done, xp, [start, end], [steps], "linear")


def cosine_fall(done: Number, xp: Any, start: float, steps: float, end: float, power: float) -> Number:
    if power == 1:
        return path(done, xp, [start, end], [steps], "cosine")
    share = half_cosine(xp, fractions(done, xp, steps)[0]) ** power
    return start * share + end * (1 - share)


def path(done: Number, xp: Any, values: Sequence[float], boundaries: Sequence[float], shape: str) -> Number:
    """Go from value to value; ``values[i + 1]`` is reached at ``boundaries[i]``, which do not fall."""
    value: Number = values[0]
    begin = 0.0
    for i, end in enumerate(boundaries):
        if shape != "constant" and end > begin:
            a, b = values[i : i + 2]
            rest, gone = fractions(since(done, begin), xp, end - begin)
            if shape == "cosine":
                rest, gone = half_cosine(xp, rest), half_cosine(xp, gone)
            if shape == "1-sqrt":
                root = xp.sqrt(gone)
                rest, gone = rest / (1 + root), root
            between = a * rest + b * gone
            value = between if i == 0 else xp.where(reached(done, begin), between, value)
        value, begin = xp.where(reached(done, end), values[i + 1], value), end
    return value


def swing(xp: Any, high: float, low: float, down: Number, up: Number, amplitude: Number) -> Number:
    """Return low + (high - low)·up·amplitude, with down = 1 - up: exact at the ends where the amplitude is 1."""
    return high * (up * amplitude) + low * (down + up * (1 - amplitude))
