"""What the formulas of schedules have in common: fractions of a run, shapes of a transition, whole periods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

from xopt import _scalars

Number: TypeAlias = Any


def turns(done: Number, xp: Any, every: float) -> tuple[Number, Number]:
    """Return how many whole periods are done, and the steps since the last one, from 0 to less than ``every``.

    The remainder is exact where the product of the periods is not: in float32 beyond 2²⁴ steps, in float64 beyond 2⁵³.
    """
    every = int(every) if every % 1 == 0 else every
    if isinstance(done, int) and isinstance(every, int):
        return divmod(done, every)
    since = done % every
    return xp.floor((done - since) / every + 0.5), since


def whole(done: Number, xp: Any, every: float) -> Number:
    """Return ⌊done / every⌋."""
    return turns(done, xp, every)[0]


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
    gone = xp.minimum(xp.maximum(done, 0), steps)
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
            rest, gone = fractions(done - begin, xp, end - begin)
            if shape == "cosine":
                rest, gone = half_cosine(xp, rest), half_cosine(xp, gone)
            if shape == "1-sqrt":
                root = xp.sqrt(gone)
                rest, gone = rest / (1 + root), root
            between = a * rest + b * gone
            value = between if i == 0 else xp.where(done >= begin, between, value)
        value, begin = xp.where(done >= end, values[i + 1], value), end
    return value


def swing(xp: Any, high: float, low: float, down: Number, up: Number, amplitude: Number) -> Number:
    """Return low + (high - low)·up·amplitude, with down = 1 - up: exact at the ends where the amplitude is 1."""
    return high * (up * amplitude) + low * (down + up * (1 - amplitude))
