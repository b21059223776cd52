"""Fits by trust regions: one, whose small arithmetic is the host's, or many lanes, each of which stops by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xopt import _arrays
from xopt._arrays.transfer import to_host
from xopt.solvers.fits import _losses
from xopt.solvers.fits._box import pushed, within
from xopt.solvers.fits._linear import Array, Dense, Lanes, Linear, norm, orthogonal, times, transposed
from xopt.solvers.fits._residuals import Columns, Residuals, rounded
from xopt.solvers.fits._steps import Model, diagonal

_FACTOR = 1.0
"""The first Δ, as a part of ‖D·x‖. MINPACK's 100 jumps over the minimum of BoxBOD (NIST)."""
LEAST = 1e-4
"""The part of the predicted fall of the cost from which on a step is taken."""
_PROBE, _BENT = 0.1, 0.75
"""How far along a step its curvature is measured, and how large the correction may be, as a part of the step."""
LIMIT, GTOL, FTOL, XTOL, BOTH, INTERRUPTED, CALLBACK, NOT_FINITE = 0, 1, 2, 3, 4, -1, -2, -3
MESSAGES = {
    LIMIT: "stopped: max_nfev evaluations",
    GTOL: "converged: the gradient is small (gtol)",
    FTOL: "converged: the cost hardly falls (ftol)",
    XTOL: "converged: the parameters hardly move (xtol)",
    BOTH: "converged: the cost hardly falls (ftol), and the parameters hardly move (xtol)",
    INTERRUPTED: "stopped: interrupted",
    CALLBACK: "stopped: by the callback",
    NOT_FINITE: "stopped: residuals or derivatives are infinite or NaN",
}


class Rules(NamedTuple):
    """What a fit is told."""

    step: Callable[[Linear, Model], tuple[Array, Array]]
    loss: str
    f_scale: float
    x_scale: Array | None
    """None: the largest norms of columns so far."""
    ftol: float
    xtol: float
    gtol: float
    max_nfev: float
    geodesic: bool


class Factors(NamedTuple):
    """What is known of the residuals around a point."""

    columns: list[Array]
    """Of the Jacobian, where the residuals are."""
    r: Array
    q: Array
    g: Array
    """The gradient of the cost."""
    norms: Array
    """Those of the columns, as they are weighted."""


class Found(NamedTuple):
    """What fits have found, of lanes with an axis of these: last, but in ``f`` first."""

    x: Array
    cost: Array
    f: Array
    gradient: Array
    cosine: Array
    status: Array
    nit: Array
    inverse: Array


class Fit:
    """The state of fits: ``x``, ``cost``, the residuals ``f``, what is known around them, ``status`` and ``nit``.

    Of one fit they are NumPy's in float64, of lanes arrays like the parameters with the axis of the lanes last.
    """

    def __init__(self, residuals: Residuals, columns: Columns, rules: Rules, start: Array) -> None:
        self.residuals, self._columns, self.rules = residuals, columns, rules
        self.single = not residuals.lead
        host = residuals.layout.library.host
        self.linear: Linear = Dense() if self.single else Lanes(residuals.xp, host)
        self.xp = self.linear.xp
        self._like = residuals.layout.leaves[0]
        self.eps = float(np.finfo(residuals.real).eps)
        self.nfev = self.njev = self.turns = 0
        self._bound()
        self.x = self._boxed(self.near(start))
        self.begun = False
        """Whether the residuals at the start are known."""

    def _bound(self) -> None:
        low, high = self.residuals.low, self.residuals.high
        self.low, self.high = (None if side is None else self.residuals.side(side) for side in (low, high))

    # --- to the device and back

    def near(self, x: Array) -> Array:
        """Return an array of the device where the control is."""
        if self.single:
            return np.asarray(to_host(x), np.float64)
        return self.xp.permute_dims(x, (1, 0)) if x.ndim > 1 else x

    def far(self, x: Array) -> Array:
        """Return an array of the control where the residuals are."""
        own = self.residuals
        if self.single:
            return own.xp.asarray(x.astype(own.real), **_arrays.beside(self._like))
        return self.xp.permute_dims(x, (1, 0))

    def _boxed(self, x: Array) -> Array:
        own = self.residuals
        x = x.astype(own.real).astype(np.float64) if self.single else x
        x = rounded(self.xp, x, own.coarse)
        return within(self.xp, x, self.low, self.high)

    def _evaluated(self, x: Array) -> tuple[Array, Array]:
        """Return the residuals, where they are, and the cost."""
        f = self.residuals(self.far(x))
        self.nfev += 1
        return f, self.near(_losses.cost(self.residuals.xp, self.rules.loss, f, self.rules.f_scale))

    def _factored(self, x: Array, f: Array) -> Factors:
        """Compute the Jacobian, and what is left of it by orthogonal transformations."""
        own, rules = self.residuals, self.rules
        columns = self._columns(self.far(x), f)
        self.njev += 1
        g, weight = _losses.weighted(own.xp, rules.loss, f, rules.f_scale)
        weighted = columns if weight is None else [x * weight for x in columns]
        if not self.single:
            return self._known(columns, *orthogonal(own.xp, weighted, g, self.linear.host))
        n, many = own.n, g.shape[-1]
        matrix = own.xp.stack([*weighted, g], axis=-1)
        if many < n + 1:  # fewer residuals than parameters
            rest = own.xp.zeros((n + 1 - many, n + 1), dtype=own.dtype, **_arrays.beside(self._like))
            matrix = own.xp.concat([matrix, rest])
        if own.layout.library.host:
            full: Array = np.linalg.qr(matrix.astype(np.float64), mode="r")
        else:
            full = np.asarray(to_host(own.xp.linalg.qr(matrix)[1]), np.float64)
        return self._known(columns, full[:n, :n], full[:n, n])

    def _known(self, columns: list[Array], r: Array, q: Array) -> Factors:
        return Factors(columns, r, q, transposed(self.xp, r, q), norm(self.xp, r))

    # --- a run

    def run(self, call: Callable[[Any], bool] | None) -> int | None:
        """Run to the end; return what stopped it before."""
        self.begin()
        while self.iterate():
            if call is not None and call(self):
                return CALLBACK
        return None

    def now(self, name: str) -> Any:
        """Return x, cost or nit as it is."""
        return getattr(self, name)

    def begin(self) -> None:
        """Evaluate at the start."""
        with np.errstate(all="ignore"):
            self._begin()

    def _begin(self) -> None:
        xp, own = self.xp, self.residuals
        self.f, self.cost = self._evaluated(self.x)
        finite = xp.isfinite(self.cost)
        if self.single and not finite:
            raise ValueError("fun: residuals that are infinite or NaN at x0, or their squares are")
        if self.single and not self.cost and bool(own.xp.any(self.f != 0)):
            raise ValueError("fun: residuals whose squares are 0 in their dtype; scale them")
        none = xp.astype(finite, xp.int32) * 0
        self.status, self.nit, self.running = xp.where(finite, none, none + NOT_FINITE), none, finite
        nothing = xp.full_like(self.x, math.nan)
        self.at, self.cosine = self._known([], xp.stack([nothing] * own.n), nothing), xp.full_like(self.cost, math.nan)
        self.begun = True
        self.at = self._factored(self.x, self.f)
        if self.single and not np.isfinite(self.at.r).all():
            raise ValueError("jac: derivatives that are infinite or NaN at x0")
        norms = self.at.norms
        self.scale = self._scaled(xp.where(norms > 0, norms, xp.ones_like(norms)))
        start = norm(xp, self.scale * self.x)
        zero = xp.zeros_like(self.cost)
        self.radius, self.par = _FACTOR * xp.where(start > 0, start, zero + 1), zero
        self._settle()

    def _scaled(self, norms: Array) -> Array:
        if self.rules.x_scale is None:
            return norms
        return self.xp.zeros_like(norms) + 1 / self.residuals.side(self.rules.x_scale)

    def _settle(self) -> None:
        """Stop lanes whose gradient is small: the cosines between the residuals and the columns that are free."""
        xp, g = self.xp, self.at.g
        fixed = pushed(self.x, g, self.low, self.high)
        size = self.at.norms * xp.sqrt(2 * self.cost)
        none = xp.zeros_like(size)
        cosines = xp.where(size > 0, xp.abs(g) / xp.where(size > 0, size, none + 1), none)
        cosines = cosines if fixed is None else xp.where(fixed, none, cosines)
        known = xp.all(xp.isfinite(g), axis=0) & xp.isfinite(self.cost)
        largest = xp.max(cosines, axis=0)
        self.cosine = xp.where(known, largest, xp.full_like(largest, math.nan))
        self._end(~known, NOT_FINITE)
        self._end(self.cosine <= max(self.rules.gtol, self.eps), GTOL)

    def _end(self, which: Array, status: Any) -> None:
        which = which & self.running
        self.status = self.xp.where(which, self.xp.zeros_like(self.status) + status, self.status)
        self.running = self.running & ~which

    def iterate(self) -> bool:
        """Try a step of all lanes that run; False if there is nothing left to do."""
        if self.nfev >= self.rules.max_nfev or not bool(self.xp.any(self.running)):
            return False
        with np.errstate(all="ignore"):
            self._try()
        return True

    def _try(self) -> None:
        xp, rules, running = self.xp, self.rules, self.running
        self.turns += 1
        g = self.at.g
        p, par = self._direction(g)
        none, zero = xp.zeros_like(g), xp.zeros_like(self.cost)
        step = -xp.where(xp.isfinite(p), p, none)
        step = self._bent(step, par) if rules.geodesic else step
        step = xp.where(running, step, none)
        new = self._boxed(self.x + step)
        step = new - self.x
        predicted = -xp.sum(g * step, axis=0) - 0.5 * xp.sum(times(xp, self.at.r, step) ** 2, axis=0)
        f, cost = self._evaluated(new)
        fall, finite, falls = self.cost - cost, xp.isfinite(cost), predicted > 0
        ratio = xp.where(finite & falls, fall / xp.where(falls, predicted, zero + 1), zero - 1)
        taken = (ratio > LEAST) & running & finite
        size = norm(xp, self.scale * step)
        self._resize(ratio, size, fall, xp.sum(g * step, axis=0), par)
        self._stop(fall, predicted, ratio, new, size)
        self.nit = self.nit + xp.astype(running, self.nit.dtype)
        if bool(xp.any(taken)):
            x, cost = xp.where(taken, new, self.x), xp.where(taken, cost, self.cost)
            f = f if self.single or bool(xp.all(taken)) else xp.where(taken[:, None], f, self.f)
            self.x, self.cost, self.f, self.at = x, cost, f, self._factored(x, f)
            norms = self._scaled(self.at.norms)
            self.scale = xp.where(norms > self.scale, norms, self.scale)
            self._settle()

    def _direction(self, g: Array) -> tuple[Array, Array]:
        """Return p and λ; within bounds of the parameters that are free, twice: then of those that hit none."""
        rules, fixed, (_, r, q, *_) = self.rules, pushed(self.x, g, self.low, self.high), self.at
        if fixed is None:
            return rules.step(self.linear, Model(r, q, self.scale, self.radius, self.par))
        xp, par, none = self.xp, self.par, self.xp.zeros_like(g)
        p = none
        for _ in range(2):
            held, one = xp.where(fixed, p, none), xp.where(fixed, none + 1, none)
            free = self.linear.augmented(r * (1 - one)[None, ...], q - times(xp, r, held), one)
            p, par = rules.step(self.linear, Model(*free, self.scale, self.radius, self.par))
            p = xp.where(fixed, held, p)
            inside = self.x - self._boxed(self.x - p)
            hit = ~fixed & ((self.x - p < self.low) | (self.x - p > self.high))
            p = xp.where(hit, inside, p)
            fixed = fixed | hit
        return p, par

    def _bent(self, step: Array, par: Array) -> Array:
        """Add the geodesic acceleration where it is small (Transtrum & Sethna 2012): half of the second-order term."""
        own, xp = self.residuals, self.xp
        if self.nfev + 2 > self.rules.max_nfev:
            return step
        f, _ = self._evaluated(self._boxed(self.x + _PROBE * step))
        far = self.far(step)
        slope = sum((c * far[..., j, None] for j, c in enumerate(self.at.columns)), start=own.xp.zeros_like(f))
        curve = (2 / _PROBE) * ((f - self.f) / _PROBE - slope)
        along = own.xp.stack([own.xp.sum(c * curve, axis=-1) for c in self.at.columns], axis=-1)
        s, _ = self.linear.augmented(self.at.r, xp.zeros_like(self.at.q), xp.sqrt(par) * self.scale)
        bend = -self.linear.back(s, self.linear.forward(s, self.near(along)))
        small = 2 * norm(xp, self.scale * bend) <= _BENT * norm(xp, self.scale * step)
        return xp.where(small & xp.isfinite(bend), step + 0.5 * bend, step)

    def _resize(self, ratio: Array, size: Array, fall: Array, slope: Array, par: Array) -> None:
        """Shrink the region after a bad step, widen it after a good one (Moré 1978)."""
        xp, zero = self.xp, self.xp.zeros_like(size)
        bottom = slope + fall  # of the parabola through both costs, with the slope at the start
        half, tenth = zero + 0.5, zero + 0.1
        shrink = xp.where(fall >= 0, half, 0.5 * slope / xp.where(bottom != 0, bottom, zero - 1))
        shrink = xp.where(xp.isfinite(shrink) & (shrink > tenth), xp.where(shrink < half, shrink, half), tenth)
        first = (size < self.radius) & (self.turns == 1)
        radius = xp.where(first, size, self.radius)
        low = shrink * xp.where(radius < 10 * size, radius, 10 * size)
        wide = (ratio >= 0.75) | (par == 0)
        bad = ratio <= 0.25
        new = xp.where(bad, low, xp.where(wide, 2 * size, radius))
        self.radius = xp.where(self.running, xp.where(new > 0, new, 0.25 * radius), self.radius)
        self.par = xp.where(bad, par / shrink, xp.where(wide, 0.5 * par, par))

    def _stop(self, fall: Array, predicted: Array, ratio: Array, new: Array, size: Array) -> None:
        xp, rules = self.xp, self.rules
        far = norm(xp, self.scale * new)
        scale = xp.where(self.cost > 0, self.cost, xp.ones_like(self.cost))
        ftol, xtol = max(rules.ftol, self.eps), max(rules.xtol, self.eps)
        flat = (xp.abs(fall) <= ftol * scale) & (predicted <= ftol * scale) & (ratio <= 2)
        still = (self.radius <= xtol * far) | (size <= 0.1 * self.eps * far)
        self._end(flat & still, BOTH)
        self._end(flat, FTOL)
        self._end(still, XTOL)

    # --- what was found

    def keep(self, rows: Array) -> None:
        """Go on with some of the lanes, by their numbers here: those of the residuals that were selected."""
        xp = self.xp

        def some(x: Array) -> Array:
            return xp.take(x, rows, axis=-1)

        columns = [xp.take(c, rows, axis=0) for c in self.at.columns]
        new = {
            n: some(getattr(self, n))
            for n in ("x", "cost", "status", "nit", "running", "scale", "radius", "par", "cosine")
        }
        new |= {"f": xp.take(self.f, rows, axis=0), "at": Factors(columns, *map(some, self.at[1:]))}
        vars(self).update(new)  # all or nothing, also for Ctrl-C
        self._bound()

    def found(self, status: int | None = None) -> Found:
        """Return what was found; ``status`` is that of fits that still run."""
        xp = self.xp
        with np.errstate(all="ignore"):
            ended = self.status
            if status is not None:
                ended = xp.where(self.running, xp.zeros_like(ended) + status, ended)
            return Found(self.x, self.cost, self.f, self.at.g, self.cosine, ended, self.nit, self._inverse())

    def _inverse(self) -> Array:
        """Return (JᵀJ)⁻¹, infinite where it is singular; of parameters between equal bounds it is 0."""
        xp, n, r = self.xp, self.residuals.n, self.at.r
        free = None if self.low is None else xp.astype(self.low < self.high, r.dtype) + xp.zeros_like(self.at.q)
        if free is not None:
            r, _ = self.linear.augmented(r * free[None, ...], xp.zeros_like(self.at.q), 1 - free)
        eye = xp.eye(n, dtype=r.dtype, **({} if self.single else _arrays.beside(self._like)))
        none = xp.zeros_like(self.at.q)
        inverse = [self.linear.back(r, none + (eye[j, :] if self.single else eye[j, :, None])) for j in range(n)]
        products = [[sum(a[i, ...] * a[j, ...] for a in inverse) for i in range(n)] for j in range(n)]
        found = xp.stack([xp.stack(row) for row in products])
        found = found if free is None else found * free[None, ...] * free[:, None, ...]
        singular = xp.any(xp.abs(diagonal(xp, r)) <= n * self.eps * norm(xp, r), axis=0)
        return xp.where(singular, xp.full_like(found, math.inf), found)


def nothing(own: Residuals, start: Array) -> Found:
    """Return what is known of fits that have not begun."""
    xp, near, count = own.xp, _arrays.beside(start), start.shape[0]
    x = xp.permute_dims(start, (1, 0))
    nan = xp.full_like(x[0, ...], math.nan)
    none = xp.zeros(count, dtype=xp.int32, **near)
    many = xp.full((count, own.m or 1), math.nan, dtype=own.dtype, **near)
    whole = xp.full((own.n, own.n, count), math.inf, dtype=own.dtype, **near)
    return Found(x, nan, many, xp.full_like(x, math.nan), nan, none + INTERRUPTED, none, whole)
