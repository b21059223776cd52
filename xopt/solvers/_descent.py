"""Iterations of direction and line search, one at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from xopt._layout import Layout
from xopt.solvers import _line
from xopt.solvers._directions import Direction, LimitedMemory, PolakRibiere, Steepest
from xopt.solvers._line import Point
from xopt.solvers._objective import Fun
from xopt.solvers._space import Array, Space, checked_value

METHODS: dict[str, Callable[[Space, int], Direction]] = {
    "lbfgs": lambda space, history: LimitedMemory(space, history),
    "cg": lambda space, history: PolakRibiere(space),
    "gd": lambda space, history: Steepest(space),
}
SEARCHES = {"hager-zhang": _line.hager_zhang, "armijo": _line.armijo}
PATIENCE = 20
CONVERGED, LIMIT, STUCK, INTERRUPTED, STOPPED = 0, 1, 2, 3, 99


class Limits(NamedTuple):
    """When to stop."""

    maxiter: float
    gtol: float = 1e-5
    ftol: float = 0.0
    xtol: float = 0.0
    maxfun: float = math.inf
    target: float = -math.inf
    max_time: float = math.inf

    def check(self, value: float, largest: float, nit: int, began: float) -> None:
        """Stop where the gradient is small, the value low, or the time over."""
        if largest <= self.gtol:
            raise Stop(CONVERGED, f"converged: the largest element of the gradient is {largest:.3g} ≤ gtol")
        if value <= self.target:
            raise Stop(CONVERGED, f"converged: the value is {value:.6g} ≤ target")
        if nit >= self.maxiter:
            raise Stop(LIMIT, f"stopped: maxiter = {nit} iterations")
        if time.monotonic() - began > self.max_time:
            raise Stop(LIMIT, f"stopped: max_time = {self.max_time:g} seconds")

    def progress(self, old: float, new: float, moved: float = math.inf, size: float = 1.0) -> Stop | None:
        """Whether a step changed so little that it is the last."""
        if old - new <= self.ftol * max(abs(old), abs(new), 1.0) and self.ftol > 0:
            return Stop(CONVERGED, f"converged: the value fell by {old - new:.3g}, which is within ftol")
        if moved <= self.xtol * max(size, 1.0) and self.xtol > 0:
            return Stop(CONVERGED, f"converged: no parameter moved by more than {moved:.3g}, which is within xtol")
        return None


class Stop(Exception):
    """Why a run ended."""

    def __init__(self, status: int, message: str) -> None:
        self.status, self.message = status, message


class Descent:
    """A method at a point. Vectors are never written into, so that whoever keeps one keeps its values."""

    def __init__(self, fun: Fun, layout: Layout, method: str, limits: Limits, *,
                 history: int, maxls: int, search: Any) -> None:  # fmt: skip
        self.space = space = Space(layout)
        self.fun, self.limits, self.maxls, self.search = fun, limits, maxls, search
        self.method = METHODS[method](space, history)
        self.nit = self.nfev = 0
        self.value = self.largest = self.square = math.nan
        self.began = time.monotonic()
        self.x = space.copied(space.vector(space.layout.leaves))
        self.g = space.zeros(space.size)
        self.last: tuple[float, float] | None = None
        """Length and slope of the last step."""
        self.end: Stop | None = None
        self.best: tuple[float, Array, Array] = (math.inf, self.x, self.g)

    @property
    def point(self) -> tuple[Any, Any]:
        """The parameters and the gradient there, in memory of their own."""
        space = self.space
        return space.tree(space.copied(self.x)), space.tree(space.copied(self.g))

    def settle(self) -> None:
        """Go to the best point that was evaluated."""
        if self.best[0] < self.value:
            self.value, self.x, self.g = self.best

    def begin(self) -> None:
        """Evaluate the start."""
        start = self._evaluate(self.x, self.g, 0.0)
        if not start.finite or not math.isfinite(start.kept[2]):
            raise ValueError(f"x0: the value there is {start.value}, its largest slope {start.kept[2]}")
        self._take(start)
        self.lowest, self.least, self.better = self.value, self.largest, 0

    def iterate(self) -> None:
        """Take a step, or raise `Stop`."""
        if self.end is not None:
            raise self.end
        self.limits.check(self.value, self.largest, self.nit, self.began)
        found, d, slope = self._search()
        if found is None and self.method.reset():  # what it remembers may be what is wrong
            self.last = None
            found, d, slope = self._search()
        if found is None:
            raise Stop(STUCK, f"stopped: maxls = {self.maxls} steps along -g lowered the value by nothing that counts")
        old, x = self.value, self.x
        _, g, _, sums = found.kept
        self.method.accept(found.alpha, (slope, found.slope), self.g, g, d, sums)
        self._take(found)
        self.nit += 1
        self.last = found.alpha, slope
        sizes = [1.0, math.inf, 1.0]
        if self.limits.xtol > 0:
            xp = self.space.xp
            sizes = self.space.numbers(1.0, [xp.max(xp.abs(self.x - x)), xp.max(xp.abs(x))])
        self.end = self.limits.progress(old, self.value, *sizes[1:]) or self._precision()

    def _search(self) -> tuple[Point | None, Array, float]:
        """Choose a direction and search along it."""
        d, slope = self.method.direction(self.g, self.square)
        if not -math.inf < slope < 0:
            raise Stop(STUCK, f"stopped: the square of the gradient is {self.square} in {self.space.real}")
        start = Point(0.0, self.value, slope)
        tol = 100 * self.space.eps * abs(self.value)

        def along(alpha: float) -> Point:
            return self._evaluate(self.x + alpha * d, d, alpha)

        found = self.search(along, start, self._first(slope), tol=tol, maxls=self.maxls, sigma=self.method.sigma)
        if found is not None and not isinstance(found, Point):
            raise TypeError(f"line_search: returned a {type(found).__name__}, but it must return a point, or None")
        return (None if found is None or found.alpha == 0 or not found.finite else found), d, slope

    def _precision(self) -> Stop | None:
        """Whether neither the value nor the gradient has become smaller for long."""
        if self.value < self.lowest or self.largest < self.least:
            self.lowest, self.least = min(self.lowest, self.value), min(self.least, self.largest)
            self.better = self.nit
        elif self.nit - self.better >= PATIENCE:
            return Stop(STUCK, f"stopped: {PATIENCE} steps lowered neither value nor gradient in this precision")
        return None

    def _first(self, slope: float) -> float:
        """Guess the length of a step: a method that scales its directions knows that it is 1."""
        if self.method.scaled:
            return 1.0
        if self.last is None:
            return min(1.0, 1 / math.sqrt(self.square)) if self.square else 1.0
        alpha, before = self.last
        guess = alpha * before / slope
        return guess if 0 < guess < math.inf else 1.0

    def _evaluate(self, x: Array, d: Array, alpha: float) -> Point:
        if self.nfev >= self.limits.maxfun:
            raise Stop(LIMIT, f"stopped: maxfun = {self.nfev} evaluations")
        space, xp = self.space, self.space.xp
        value, grads = self.fun(space.tree(x))
        self.nfev += 1
        value, g = checked_value(space.library, value), space.gradient(grads)
        known = [xp.vecdot(g, d), xp.max(xp.abs(g)), *self.method.sums(self.g, g, d)]
        value, slope, largest, *sums = space.numbers(value, known)
        if value < self.best[0]:
            self.best = value, x, g
        return Point(alpha, value, slope, (x, g, largest, sums))

    def _take(self, point: Point) -> None:
        self.x, self.g, self.largest, sums = point.kept
        self.value, self.square = point.value, sums[0]
