"""Coefficients of Newton-Schulz iterations, one polynomial a·x + b·x³ + c·x⁵ for each step.

They are computed, in Python's floats alone, so that they are the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from functools import cache
from typing import Any, Literal, TypeAlias, cast, get_args

Triple: TypeAlias = tuple[float, float, float]
Named: TypeAlias = Literal["polar_express", "cans"]
Coefficients: TypeAlias = Named | Sequence[float] | Sequence[Sequence[float]] | None
"""What ``coefficients`` may be; kept is a name, or a tuple of triples."""

LONGEST = 8
"""Steps for which tables are made: the polynomials of Polar Express have then settled."""


def checked(where: str, value: Any) -> Any:
    """Return what a field keeps: None, a name, or a tuple of triples of numbers."""
    if value is None or (isinstance(value, str) and value in get_args(Named)):
        return value
    names = ", ".join(map(repr, get_args(Named)))
    wanted = f"{where}: {value!r}, but it must be {names}, numbers (a, b, c), or such a triple for each step"
    if isinstance(value, str):
        raise ValueError(wanted)
    try:
        if isinstance(value, bytes | Mapping | Set):  # which go through list() too
            raise TypeError
        given = list(value)
        found = [[_number(x) for x in row] for row in (given if given and hasattr(given[0], "__len__") else [given])]
    except TypeError:
        raise TypeError(wanted) from None
    except OverflowError:
        raise ValueError(wanted) from None
    if any(len(row) != 3 or not all(map(math.isfinite, row)) for row in found):
        raise ValueError(wanted)
    return tuple(map(tuple, found))


def _number(x: Any) -> float:
    if isinstance(x, bool | str):
        raise TypeError
    return float(x)


def table(given: Any, steps: int) -> tuple[Triple, ...]:
    """Return the polynomials for so many steps: the first of those returned, then the last again and again."""
    if isinstance(given, str):
        return _polar_express() if given == "polar_express" else _cans(min(steps, LONGEST))
    return cast(tuple[Triple, ...], given)


@cache
def _polar_express() -> tuple[Triple, ...]:
    """Amsel et al. 2025: each step is the best for the interval that is left of [0.001, 1].

    The intervals are no longer than [0.024 u, u], so that no singular value falls far behind the others.
    """
    low, high, found = 1e-3, 1.0, []
    for _ in range(LONGEST):
        p = _best(max(low, 0.02407327424182761 * high), high)
        centre = (_at(p, low) + _at(p, high)) / 2
        p = (p[0] / centre, p[1] / centre, p[2] / centre)
        found.append(p)
        low = _at(p, low)
        high = 2 - low
    return tuple(found)


@cache
def _cans(steps: int) -> tuple[Triple, ...]:
    """Grishina et al. 2025: steep at 0, and into [0.7, 1.3] whatever is above the smallest bound that allows it."""
    bottom, top = 1e-12, 0.7
    while top > bottom * (1 + 1e-14) and (middle := math.sqrt(bottom * top)) not in (bottom, top):
        bottom, top = (bottom, middle) if _composed(middle, steps)[1] >= 0.7 else (middle, top)
    return _composed(top, steps)[0]


def _composed(low: float, steps: int) -> tuple[tuple[Triple, ...], float]:
    """Return the best polynomials one after the other for [low, 1], and the lower end of what they make of it."""
    high, found = 1.0, []
    for _ in range(steps):
        p = _best(low, high)
        found.append(p)
        low = _at(p, low)
        high = 2 - low
    return tuple(found), low


def _at(p: Triple, x: float) -> float:
    return x * (p[0] + x * x * (p[1] + x * x * p[2]))


def _best(low: float, high: float) -> Triple:
    """Return the odd polynomial of degree 5 nearest to 1 on an interval, by the exchanges of Remez.

    1 - p is of one size and of alternating signs at both ends and at the two extrema between.
    """
    if low / high >= 1 - 5e-6:  # the points cannot be told apart any more
        return 15 / 8 / high, -10 / 8 / high**3, 3 / 8 / high**5
    inner, last = ((3 * low + high) / 4, (low + 3 * high) / 4), math.inf
    for _ in range(100):
        points = (low, *inner, high)
        a, b, c, error = _solved([[x, x**3, x**5, sign, 1.0] for x, sign in zip(points, (1, -1, 1, -1), strict=True)])
        root = math.sqrt(9 * b * b - 20 * a * c)
        inner = math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c))
        if abs(error - last) <= 1e-15:
            break
        last = error
    return a, b, c


def _solved(rows: list[list[float]]) -> list[float]:
    """Solve linear equations, each a row with its right side at the end, by elimination with pivots."""
    n = len(rows)
    for k in range(n):
        pivot = max(range(k, n), key=lambda i: abs(rows[i][k]))
        rows[k], rows[pivot] = rows[pivot], rows[k]
        for i in range(n):
            if i != k:
                share = rows[i][k] / rows[k][k]
                rows[i] = [x - share * y for x, y in zip(rows[i], rows[k], strict=True)]
    return [row[n] / row[k] for k, row in enumerate(rows)]
