"""Line searches: a step along a direction that is good enough, from a few values and slopes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

EXPAND, SHRINK, BISECT = 5.0, 0.66, 0.5
"""ρ, γ and θ of Hager & Zhang."""


class Point(NamedTuple):
    """What is known of the function at one step length."""

    alpha: float
    value: float
    slope: float
    kept: Any = None
    """Whatever who evaluates it wants back."""

    @property
    def finite(self) -> bool:
        """Whether it can be compared with others."""
        return math.isfinite(self.value) and math.isfinite(self.slope)


Along = Callable[[float], Point]


class _Found(Exception):
    def __init__(self, point: Point) -> None:
        self.point = point


class _Search:
    """What the searches share: evaluations are counted, the best is kept, and the first that is good ends it."""

    def __init__(self, along: Along, start: Point, tol: float, maxls: int, good: Callable[[Point], bool]) -> None:
        self.start, self.limit, self.best = start, start.value + tol, start
        self._along, self._left, self._good = along, maxls, good

    def at(self, alpha: float) -> Point:
        """Evaluate at a step length."""
        point = self._along(alpha)
        self._left -= 1
        if point.finite and (point.value, abs(point.slope)) < (self.best.value, abs(self.best.slope)):
            self.best = point
        if point.finite and self._good(point):
            raise _Found(point)
        if self._left <= 0:
            self.give_up()
        return point

    def give_up(self) -> NoReturn:
        """End with the best that there was."""
        raise _Found(self.best)


def hager_zhang(
    along: Along, start: Point, first: float, *,
    tol: float, maxls: int, longest: float, delta: float = 0.1, sigma: float = 0.9, strong: bool = False,
) -> Point | None:  # fmt: skip
    """Find a point that meets Wolfe's conditions, or the approximate ones (Hager & Zhang 2006, Algorithm 851).

    ``tol`` is what values may be wrong by: where their differences drown in roundings, slopes decide. At the longest
    step the slope need not be flat. If ``strong``, it must be as flat where it climbs, and the approximate conditions
    hold only there. Returns None if no point is better than the start.
    """
    value, slope = start.value, start.slope

    def good(c: Point) -> bool:
        armijo = c.value - value <= delta * c.alpha * slope
        if c.slope < sigma * slope:
            return armijo and c.alpha >= longest
        if strong and (c.slope > -sigma * slope or c.value < value - tol):
            return armijo and c.slope <= -sigma * slope
        return armijo or ((2 * delta - 1) * slope >= c.slope and c.value <= value + tol)

    search = _Search(along, start, tol, maxls, good)
    try:
        a, b = _bracket(search, first, longest)
        while True:
            width = b.alpha - a.alpha
            if width <= 1e-15 * b.alpha:
                search.give_up()
            a, b = _secant2(search, a, b)
            if b.alpha - a.alpha > SHRINK * width:
                a, b = _update(search, a, b, search.at((a.alpha + b.alpha) / 2))
    except _Found as found:
        return found.point if found.point is not start else None


def _bracket(search: _Search, first: float, longest: float) -> tuple[Point, Point]:
    """Return a point that falls, and one behind it that climbs."""
    low, c = search.start, search.at(first)
    while True:
        if not c.finite or (c.slope < 0 and c.value > search.limit):
            return _halved(search, search.start if c.finite else low, c)
        if c.slope >= 0:
            return low, c
        if c.alpha >= longest:
            search.give_up()
        low, c = c, search.at(min(EXPAND * c.alpha, longest))


def _halved(search: _Search, a: Point, b: Point) -> tuple[Point, Point]:
    """Halve an interval that ends too high until it ends with a slope that climbs (step U3)."""
    while True:
        share = BISECT if b.finite else 0.1
        d = search.at((1 - share) * a.alpha + share * b.alpha)
        if d.finite and d.slope >= 0:
            return a, d
        if d.finite and d.value <= search.limit:
            a = d
        else:
            b = d
        if b.alpha - a.alpha <= 1e-15 * b.alpha:
            search.give_up()


def _update(search: _Search, a: Point, b: Point, c: Point) -> tuple[Point, Point]:
    """Replace an end of an interval by a point in it."""
    if not a.alpha < c.alpha < b.alpha:
        return a, b
    if c.finite and c.slope >= 0:
        return a, c
    if c.finite and c.value <= search.limit:
        return c, b
    return _halved(search, a, c)


def _secant(a: Point, b: Point) -> float:
    down = b.slope - a.slope
    return (a.alpha * b.slope - b.alpha * a.slope) / down if down else (a.alpha + b.alpha) / 2


def _cubic(a: Point, b: Point) -> float:
    """Return where the cubic with these values and slopes is least."""
    width = b.alpha - a.alpha
    d1 = a.slope + b.slope - 3 * (b.value - a.value) / width
    square = d1 * d1 - a.slope * b.slope
    if not square >= 0:
        return _secant(a, b)
    d2 = math.sqrt(square)
    down = b.slope - a.slope + 2 * d2
    found = b.alpha - width * (b.slope + d2 - d1) / down if down else math.nan
    return found if a.alpha < found < b.alpha else _secant(a, b)


def _secant2(search: _Search, a: Point, b: Point) -> tuple[Point, Point]:
    clear = abs(b.value - a.value) > search.limit - search.start.value
    alpha = _cubic(a, b) if clear else _secant(a, b)
    if not a.alpha < alpha < b.alpha:
        return a, b
    c = search.at(alpha)
    low, high = _update(search, a, b, c)
    again = _secant(b, high) if c is high else _secant(a, low) if c is low else math.nan
    return _update(search, low, high, search.at(again)) if low.alpha < again < high.alpha else (low, high)


def armijo(
    along: Along, start: Point, first: float, *,
    tol: float, maxls: int, longest: float = math.inf, sigma: float = 1.0, delta: float = 1e-4,
) -> Point | None:  # fmt: skip
    """Go back from the first step until the value has fallen enough, by the minimum of a parabola each time.

    It does not ask for a slope, so ``sigma`` means nothing to it; nor ``longest``, as the first step is no longer.
    """

    def good(c: Point) -> bool:
        return c.value - start.value <= delta * c.alpha * start.slope

    search = _Search(along, start, tol, maxls, good)
    alpha = first
    try:
        while True:
            c = search.at(alpha)
            curve = c.value - start.value - start.slope * alpha
            share = -start.slope * alpha / (2 * curve) if c.finite and curve > 0 else 0.1
            alpha *= min(max(share, 0.1), 0.5)
    except _Found as found:
        return found.point if found.point is not start else None
