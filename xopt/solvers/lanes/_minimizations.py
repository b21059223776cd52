"""Many minimizations, each with a line search of its own: one evaluation of all of them at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xopt import _arrays
from xopt._arrays.transfer import to_host
from xopt.solvers._descent import PATIENCE
from xopt.solvers._space import not_positive
from xopt.solvers._stopping import CONVERGED, LIMIT, NOTHING, STUCK, Limits
from xopt.solvers.fits._box import pushed, within
from xopt.solvers.fits._residuals import rounded
from xopt.solvers.lanes._curvature import Array, Curvature, dot

DELTA, SIGMA = 1e-4, 0.9
"""How much the value has to fall along a step, and by how much its slope must rise: the weak conditions of Wolfe."""
FTOL, XTOL, GTOL, TARGET, ITERATIONS, CALLS, TIME, NO_STEP, NOT_FINITE, NO_PROGRESS = range(1, 11)
"""Why a lane ended."""
ENDS = {
    GTOL: (CONVERGED, "converged: no element of the gradient is larger than gtol"),
    FTOL: (CONVERGED, "converged: the value fell by no more than ftol"),
    XTOL: (CONVERGED, "converged: no parameter moved by more than xtol"),
    TARGET: (CONVERGED, "converged: the value is at most target"),
    ITERATIONS: (LIMIT, "stopped: maxiter iterations"),
    CALLS: (LIMIT, "stopped: maxfun evaluations"),
    TIME: (LIMIT, "stopped: max_time"),
    NO_STEP: (STUCK, "stopped: maxls steps along -g lowered the value by nothing that counts"),
    NO_PROGRESS: (STUCK, f"stopped: {PATIENCE} steps lowered neither value nor gradient in this precision"),
    NOT_FINITE: (STUCK, "stopped: the value or the gradient at x0 is infinite or NaN"),
}


class Ended(NamedTuple):
    """What lanes have found, lanes last."""

    x: Array
    value: Array
    gradient: Array
    end: Array
    nit: Array


class Minimizations:
    """The state of many minimizations: points, what is known there, and where the search along a direction is."""

    def __init__(
        self, evaluate: Callable[[Array], tuple[Array, Array]], xp: Any, limits: Limits, maxls: int,
        curvature: Callable[[Array], Curvature], start: Array, low: Array | None, high: Array | None, real: str,
        coarse: np.ndarray[Any, Any], began: float,
    ) -> None:  # fmt: skip
        self._evaluate, self.xp, self.limits, self._maxls = evaluate, xp, limits, maxls
        self.low, self.high = low, high
        self.eps = float(np.finfo("float32" if coarse.any() else real).eps)
        self._coarse = coarse
        self.x = self._boxed(xp.permute_dims(start, (1, 0)))
        self.nfev = self.njev = 0
        self._began, self.begun = began, False
        self._curvature = curvature(self.x)

    def _boxed(self, x: Array) -> Array:
        return within(self.xp, x, self.low, self.high)

    def _rounded(self, x: Array) -> Array:
        """Return the point that the functions are given for x."""
        return rounded(self.xp, x, self._coarse)

    def begin(self) -> None:
        """Evaluate the starts."""
        with np.errstate(all="ignore"):
            self._begin()

    def _begin(self) -> None:
        xp = self.xp
        self.value, self.g = self._called(self.x)
        none = xp.zeros_like(self.value)
        self.nit = xp.astype(none, xp.int32)
        self.end, self.running = self.nit, none == 0
        self.nothing = NOTHING * xp.abs(self.value)
        self.lowest, self.least, self.worse = none + math.inf, none + math.inf, self.nit
        self._stop(~(xp.isfinite(self.value) & xp.all(xp.isfinite(self.g), axis=0)), NOT_FINITE)
        self.d, self.alpha, self.lo, self.hi = xp.zeros_like(self.x), none, none, none + math.inf
        self.tries = self.nit
        self.begun = True
        self._check(self.running)
        self._turn(self.running)

    def _called(self, x: Array) -> tuple[Array, Array]:
        self.nfev = self.njev = self.nfev + 1
        value, g = self._evaluate(self.xp.permute_dims(x, (1, 0)))
        return value, self.xp.permute_dims(g, (1, 0))

    def _stop(self, which: Array, why: int) -> None:
        which = which & self.running
        self.end = self.xp.where(which, self.xp.zeros_like(self.end) + why, self.end)
        self.running = self.running & ~which

    def _check(self, stepped: Array) -> None:
        """Stop lanes whose gradient is small, or whose value is low."""
        xp = self.xp
        flat = self.g if self.low is None else self.x - self._boxed(self.x - self.g)
        largest = xp.max(xp.abs(flat), axis=0)
        self._stop(largest <= self.limits.gtol, GTOL)
        better = (self.value < self.lowest - self.nothing) | (largest < self.least)
        self.lowest = xp.where(self.value < self.lowest, self.value, self.lowest)
        self.least = xp.where(largest < self.least, largest, self.least)
        self.worse = xp.where(better, self.worse * 0, self.worse + xp.astype(stepped, self.worse.dtype))
        self._stop(self.worse >= PATIENCE, NO_PROGRESS)
        self._stop(self.value <= self.limits.target, TARGET)
        self._stop(self.nit >= self.limits.maxiter, ITERATIONS)

    def _freed(self, x: Array, held: Array | None) -> Array:
        """Return numbers of parameters that are free, of the others 0."""
        return x if held is None else self.xp.where(held, self.xp.zeros_like(x), x)

    def _turn(self, which: Array) -> None:
        """Choose new directions in some lanes, and begin to search along them."""
        xp, g, curvature = self.xp, self.g, self._curvature
        held = pushed(self.x, g, self.low, self.high)
        g = self._freed(g, held)
        if curvature.least is not None:
            g = xp.where(which, g, xp.zeros_like(g))
        d = -self._freed(curvature.times(g), held)
        slope, square = dot(xp, self.g, d), dot(xp, g, g)
        wrong = which & ~(xp.isfinite(slope) & (slope < 0))
        curvature.forget(wrong)
        one = xp.ones_like(slope)
        fresh = ~curvature.known
        if curvature.least is None:
            d = xp.where(fresh, -g, d)
        else:
            d = self._begun_anew(wrong, g, d, held)
            square = -dot(xp, g, d)  # where it is fresh, g·P·g
        first = xp.where(square > 1, 1 / xp.sqrt(square), one)
        alpha = xp.where(fresh, first, one)
        self.d, self.alpha = xp.where(which, d, self.d), xp.where(which, alpha, self.alpha)
        self.lo, self.hi = xp.where(which, 0 * one, self.lo), xp.where(which, one * math.inf, self.hi)
        self.tries = xp.where(which, 0 * self.tries, self.tries)

    def _begun_anew(self, wrong: Array, g: Array, d: Array, held: Array | None) -> Array:
        """Return directions, -P·g in lanes that were wrong; refuse a preconditioner that is not positive."""
        xp, least = self.xp, self._curvature.least
        least, again = np.asarray(to_host(xp.stack([least, xp.astype(xp.any(wrong), d.dtype)])))
        if least < 0:
            raise not_positive(float(least))
        return -self._freed(self._curvature.times(g), held) if again else d

    def iterate(self) -> bool:
        """Evaluate a point of every lane that runs; False if there is nothing left to do."""
        xp = self.xp
        if not bool(xp.any(self.running)):
            return False
        if self.nfev >= self.limits.maxfun:
            self._stop(self.running, CALLS)
            return False
        if time.monotonic() - self._began > self.limits.max_time:
            self._stop(self.running, TIME)
            return False
        with np.errstate(all="ignore"):
            self._try()
        return True

    def _try(self) -> None:
        xp = self.xp
        straight = self._rounded(self.x + self.alpha * self.d)
        new = xp.where(self.running, self._boxed(straight), self.x)
        s = new - self.x
        value, g = self._called(new)
        slope, after = dot(xp, self.g, s), dot(xp, g, s)
        finite = xp.isfinite(value) & xp.all(xp.isfinite(g), axis=0)
        level = self.value + 10 * self.eps * xp.abs(self.value)  # where values drown in roundings, slopes decide
        falls = value <= self.value + DELTA * slope
        nearly = (value <= level) & (after <= (2 * 0.1 - 1) * slope)
        enough = finite & (slope < 0) & (falls | nearly)
        clipped = xp.any(new != straight, axis=0) if self.low is not None else xp.zeros_like(enough)
        steep = enough & (after < SIGMA * slope) & ~clipped
        self.tries = self.tries + 1
        last = self.tries >= self._maxls
        good = self.running & enough & (~steep | last)
        narrow = xp.isfinite(self.hi) & (self.hi - self.lo <= 4 * self.eps * self.hi)
        still = xp.all(xp.abs(s) <= self.eps * xp.abs(self.x), axis=0)
        failed = self.running & ~enough & (last | narrow | still)
        self._bracket(value, slope, after, finite, enough)
        self._accept(good, new, value, g, s)
        hopeless = failed & ~self._curvature.known
        self._stop(hopeless, NO_STEP)
        self._curvature.forget(failed)
        self._turn(good | failed)

    def _bracket(self, value: Array, slope: Array, after: Array, finite: Array, enough: Array) -> None:
        """Choose the next length to try, between those that are too short and too long."""
        xp, a = self.xp, self.alpha
        self.hi, self.lo = xp.where(enough, self.hi, a), xp.where(enough, a, self.lo)
        curve = value - self.value - slope
        share = -slope / (2 * xp.where(curve > 0, curve, xp.ones_like(curve)))
        tenth, half = 0.1 * xp.ones_like(a), 0.5 * xp.ones_like(a)
        share = xp.where(finite & (curve > 0), share, tenth)
        share = xp.where(share > tenth, xp.where(share < half, share, half), tenth)
        shorter = xp.where(self.lo > 0, 0.5 * (self.lo + self.hi), share * a)
        secant = slope / xp.where(slope < after, slope - after, -xp.ones_like(a))  # where the slope would be 0
        secant = xp.where((slope < after) & (secant < 10), secant, 10 * xp.ones_like(a))
        longer = xp.where(xp.isfinite(self.hi), 0.5 * (self.lo + self.hi), a * xp.where(secant > 2, secant, 2 + 0 * a))
        self.alpha = xp.where(enough, longer, shorter)

    def _accept(self, good: Array, new: Array, value: Array, g: Array, s: Array) -> None:
        xp, limits = self.xp, self.limits
        y, step, held = g - self.g, s, pushed(new, g, self.low, self.high)
        if held is not None:  # what is known of H is of the parameters that are free
            held = held | pushed(self.x, self.g, self.low, self.high)
            y, s = self._freed(y, held), self._freed(s, held)
        along, tiny = dot(xp, s, y), float(xp.finfo(s.dtype).smallest_normal)
        bent = good & (along > 1e-10 * xp.abs(dot(xp, s, self.g))) & (along > tiny) & (dot(xp, y, y) > tiny)
        self._curvature.learn(bent, s, y)
        before = self.value
        self.x, self.g = xp.where(good, new, self.x), xp.where(good, g, self.g)
        self.value = xp.where(good, value, self.value)
        self.nit = self.nit + xp.astype(good, self.nit.dtype)
        self._check(good)
        one = xp.ones_like(value)
        if limits.ftol > 0:
            sizes = xp.where(xp.abs(before) > xp.abs(value), xp.abs(before), xp.abs(value))
            self._stop(good & (before - value <= limits.ftol * xp.where(sizes > 1, sizes, one)), FTOL)
        if limits.xtol > 0:
            size = xp.max(xp.abs(new), axis=0)
            moved = xp.max(xp.abs(step), axis=0)
            self._stop(good & (moved <= limits.xtol * xp.where(size > 1, size, one)), XTOL)

    # --- what was found

    def keep(self, rows: Array) -> None:
        """Go on with some of the lanes, by their numbers here: those of the objective that were selected."""
        names = ("x", "g", "value", "nit", "end", "running", "d", "alpha", "lo", "hi", "tries",
                 "lowest", "least", "worse", "nothing")  # fmt: skip
        new = {n: self.xp.take(getattr(self, n), rows, axis=-1) for n in names}
        for n in ("low", "high"):
            side = getattr(self, n)
            new[n] = side if side is None or side.shape[-1] == 1 else self.xp.take(side, rows, axis=-1)
        self._curvature.keep(rows)
        vars(self).update(new)

    def found(self, end: int | None = None) -> Ended:
        """Return what was found; ``end`` is that of lanes that still run."""
        ended = self.end
        if end is not None:
            ended = self.xp.where(self.running, self.xp.zeros_like(ended) + end, ended)
        return Ended(self.x, self.value, self.g, ended, self.nit)


def nothing(xp: Any, x: Array, end: int) -> Ended:
    """Return what is known of lanes that have not begun."""
    nan = xp.full_like(x, math.nan)
    none = xp.zeros((x.shape[-1],), dtype=xp.int32, **_arrays.beside(x))
    return Ended(x, nan[0, ...], nan, none + end, none)
