"""Iterations of direction and line search, one at a time."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from xopt._arrays.layout import Layout
from xopt.solvers._bfgs import BFGS
from xopt.solvers._bounded import Bounds
from xopt.solvers._directions import Asked, Direction, LimitedMemory, Line, Numbers, Told
from xopt.solvers._hessian import Hessian
from xopt.solvers._inverse_hessian import InverseHessian
from xopt.solvers._line import Point
from xopt.solvers._options import Solver
from xopt.solvers._run import Run
from xopt.solvers._space import Array, Space, Vectors, not_positive, space
from xopt.solvers._stopping import STUCK, Limits, Progress, Stop

PATIENCE = 20


class Known(NamedTuple):
    """What the host knows of a point."""

    sums: Numbers
    """The slope, g·P·g, and what the method asked for."""
    tops: Numbers
    """The largest element of the gradient, and what the method asked for."""


class Descent(Run):
    """A method at a point. Vectors are never written into, so that whoever keeps one keeps its values."""

    def __init__(self, layout: Layout, solver: Solver, limits: Limits, *, maxls: int, search: Any,
                 preconditioner: Any = None, bounds: Any = None, own: Space | None = None,
                 **options: Any) -> None:  # fmt: skip
        super().__init__(limits)
        self.space = made = space(layout) if own is None else own
        self.maxls, self.search, self.preconditioner = maxls, search, preconditioner
        self.box = Bounds(made, (None, None) if bounds is None else bounds) if solver.bounds else None
        within = {"box": self.box, "preconditioner": preconditioner} if solver.bounds else {}
        self.method: Direction = solver.direction(made, **within, **options)
        self.told = self.method if isinstance(self.method, Told) else None
        self.progress = Progress()
        self.value, self.known = math.nan, Known(np.zeros(2), np.zeros(1))
        x = made.copied(made.vector(layout.leaves))
        x = x if self.box is None else self.box.project(x)
        self.here = Vectors(x, x, x)
        self.last: tuple[float, float] | None = None
        """Length and slope of the last step."""
        self.end: Stop | None = None
        self.best = math.inf, self.here
        """The least value that was seen, and where."""
        self.seen: dict[float, tuple[Point, Vectors]] = {}
        """Where steps of this search led, by their length: the last one, and the best."""
        self.latest = math.nan
        self.cut = self.bottomless = False
        """Whether this search met a value that is infinite or NaN; whether one was -inf."""

    @property
    def largest(self) -> float:
        """The largest element of the gradient."""
        return float(self.known.tops[0])

    @property
    def square(self) -> float:
        """g·P·g."""
        return float(self.known.sums[1])

    @property
    def x(self) -> Any:
        return self.space.tree(self.space.copied(self.here.x))

    @property
    def gradient(self) -> Any:
        return self.space.tree(self.space.copied(self.here.g))

    def hess_inv(self) -> Any:
        if isinstance(self.method, BFGS):
            return self.method.inverse()
        if self.preconditioner is not None or self.space.parted or not isinstance(self.method, LimitedMemory):
            return None
        if self.method.slot not in self.method.order:  # of a search that found nothing
            self.method.clean()
        return InverseHessian(self.space, self.method.memory, self.method.order)

    def use(self, hessian: Hessian) -> None:
        """Use a Hessian, for a method that needs one."""
        self.hessian = hessian
        method: Any = self.method
        method.hessian, method.precondition = hessian, self.preconditioned if self.preconditioner else None

    def settle(self) -> None:
        """Go to the best point that was evaluated."""
        if self.best[0] < self.value:
            self.value, self.here = self.best

    def begin(self) -> None:
        value, new = self._call(self.here.x)
        asked = self.space.quietly(self.method.begin, new)  # infinite numbers are refused below
        value, self.known = self._look(value, asked)
        self.check_start(value, self.largest)
        self.value, self.here = self.best = value, new
        self.progress.begin(value, self.largest)

    def numbers(self) -> list[float]:
        """Return what the host knows, to restore it."""
        alpha, slope = self.last or (math.nan, math.nan)
        down = self.progress
        return [
            self.value, self.square, self.largest, alpha, slope, self.nit, self.nfev, down.lowest, down.least,
            down.better, self.bottomless,
        ]  # fmt: skip

    def restore(self, x: Array, g: Array, given: Any) -> None:
        """Go on at a point that was evaluated before."""
        found = np.asarray(given)
        if found.dtype.kind != "f" or found.shape != (len(self.numbers()),):
            what = f"an array of {found.dtype} of shape {found.shape}"
            raise ValueError(f"state: numbers is {what}, but there must be {len(self.numbers())} floats")
        numbers: list[float] = found.tolist()
        if not np.isfinite(np.delete(found, [1, 3, 4])).all():
            raise ValueError(f"state: numbers are {numbers}, but the value and what is counted must be finite")
        self.value, square, largest, alpha, slope, nit, nfev, lowest, least, better, bottomless = numbers
        self.known = Known(np.asarray([0.0, square]), np.asarray([largest]))
        self.last = None if math.isnan(alpha) else (alpha, slope)
        self.nit, self.nfev = int(nit), int(nfev)
        self.progress.lowest, self.progress.least, self.progress.better = lowest, least, int(better)
        self.here = Vectors(x, g, self.preconditioned(g))
        self.best, self.bottomless = (self.value, self.here), bool(bottomless)
        self.end = self._hopeless()

    def iterate(self) -> None:
        if self.end is not None:
            raise self.end
        self.limits.check(self.value, self.largest, self.nit, self.began)
        found, line = self._search()
        if found is None and self.method.reset():  # what it remembers may be what is wrong
            self.last = None
            found, line = self._search()
        hopeless = self._hopeless()
        if found is None and hopeless is not None:
            raise hopeless
        if found is None:
            raise Stop(STUCK, f"stopped: maxls = {self.maxls} steps along -g lowered the value by nothing that counts")
        new = self.seen[found.alpha][1]
        if found.alpha != self.latest:
            self.method.sums(self.here, new, line.d)  # so that it has seen this one last
        self.space.quietly(self.method.accept, found.alpha, line.slope, found.slope, found.kept.sums)
        moved = [math.inf, 1.0]
        if self.limits.xtol > 0:
            moved = self.space.maxima([new.x - self.here.x, self.here.x])
        before, self.value, self.here, self.known = self.value, found.value, new, found.kept
        self.nit += 1
        self.last = found.alpha, line.slope
        if not self.cut:  # where a step was cut short, small is not converged
            self.end = self.limits.progress(before, self.value, *moved)
        self.end = self.end or self._hopeless()

    def _search(self) -> tuple[Point | None, Line]:
        """Choose a direction and search along it."""
        line = self.space.quietly(self.method.direction, self.here, self.square)  # infinite: bounds that are far apart
        self.seen, self.latest, self.cut = {}, math.nan, False
        try:
            return self._along(line)
        except BaseException:
            with suppress(Exception):  # nothing may come in place of what was raised
                self.method.clean()
            raise

    def _along(self, line: Line) -> tuple[Point | None, Line]:
        first, ready = self._first(line.slope), list[Point]()
        if self.told is not None:
            ready = [self._evaluate(line.d, first)]
            line = self.told.told(line, *ready[0].kept)
            if not line.slope < 0 and self.method.scaled:
                other = self.space.quietly(self.told.instead, self.here)
                if other is None:
                    return None, line
                line, first, ready = other, min(1.0, other.longest), []
        if not -math.inf < line.slope < 0:
            raise Stop(STUCK, f"stopped: the slope is {line.slope:.3g}, g·g {self.square:.3g}, in {self.space.real}")

        def along(alpha: float) -> Point:
            return ready.pop() if ready and alpha == first else self._evaluate(line.d, alpha)

        found = self.search(
            along, Point(0.0, self.value, line.slope), first, longest=line.longest,
            tol=100 * self.space.eps * abs(self.value), maxls=self.maxls, sigma=self.method.sigma,
        )  # fmt: skip
        if found is not None and not isinstance(found, Point):
            raise TypeError(f"line_search: returned a {type(found).__name__}, but it must return a point, or None")
        if found is None or not found.finite or found.alpha == 0:
            return None, line
        if found.alpha not in self.seen:  # neither the last nor the best of those that were evaluated
            self._evaluate(line.d, found.alpha)
        found = self.seen[found.alpha][0]
        return (found if found.finite else None), line

    def _hopeless(self) -> Stop | None:
        """Whether there is no minimum, or neither the value nor the gradient has become smaller for long."""
        if self.bottomless:
            return Stop(STUCK, "stopped: the value is -inf, so there is no minimum")
        if self.progress.stalled(self.value, self.largest, self.nit) >= PATIENCE:
            return Stop(STUCK, f"stopped: {PATIENCE} steps lowered neither value nor gradient in this precision")
        return None

    def _first(self, slope: float) -> float:
        """Guess the length of a step: a method that scales its directions knows that it is 1."""
        if self.method.scaled or (self.box is not None and self.box.boxed):
            return 1.0
        if self.last is None:
            return min(1.0, 1 / math.sqrt(self.square)) if self.square else 1.0
        alpha, before = self.last
        guess = alpha * before / (slope if slope < 0 else -self.square or math.nan)
        return guess if 0 < guess < math.inf else 1.0

    def _evaluate(self, d: Array, alpha: float) -> Point:
        """Evaluate at a step along d."""
        self.seen = {a: pair for a, pair in self.seen.items() if pair[1] is self.best[1]}
        value, new = self._call(self.space.quietly(self._moved, d, alpha))
        asked = self.space.quietly(self.method.sums, self.here, new, d)  # if it is infinite, another point is tried
        value, known = self._look(value, asked)
        slope = float(known.sums[0]) if math.isfinite(known.tops[0]) else math.nan
        point = Point(alpha, value, slope, known)
        self.seen[alpha], self.latest = (point, new), alpha
        self.cut, self.bottomless = self.cut or not point.finite, self.bottomless or value == -math.inf
        if point.finite and value < self.best[0]:
            self.best = value, new
        return point

    def _moved(self, d: Array, alpha: float) -> Array:
        """Return the point at a step along d."""
        if alpha == 1:
            x = d + self.here.x
        else:
            x = alpha * d
            x += self.here.x
        if self.box is not None:
            x = self.box.project(x)
            x = self.box.reach(self.here.x, d, x) if alpha == 1 else x
        return x

    def _call(self, x: Array) -> tuple[Any, Vectors]:
        self.check_evaluations()
        value, grads = self.evaluated(self.space.library, self.space.tree(x))
        g = self.space.gradient(grads)
        del grads
        return value, Vectors(x, g, self.preconditioned(g))

    def preconditioned(self, g: Array) -> Array:
        """Return P·g."""
        return self.space.preconditioned(self.preconditioner if self.box is None else None, g)

    def _look(self, value: Any, asked: Asked) -> tuple[float, Known]:
        """Bring what was asked to the host, in one transfer."""
        value, *found = self.space.known(value, *asked)
        known = Known(*found)
        if self.preconditioner is not None and known.sums[1] < 0:
            raise not_positive(known.sums[1])
        return value, known
