"""Fits of many parameters: a trust region whose steps are found by conjugate gradients, from products with J and Jᵀ."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xopt.solvers import _space
from xopt.solvers._operators import Product
from xopt.solvers._result import OptimizeResult
from xopt.solvers.fits import _losses
from xopt.solvers.fits._box import mask, pushed, within
from xopt.solvers.fits._fit import BOTH, CALLBACK, FTOL, GTOL, LEAST, LIMIT, MESSAGES, NOT_FINITE, XTOL, Rules
from xopt.solvers.fits._linear import Array
from xopt.solvers.fits._products import Products
from xopt.solvers.fits._residuals import Residuals, rounded

_FIRST = 10.0
"""The first Δ where x0 is 0, in lengths of the step to the minimum along the gradient."""
_FORCING = 0.1
"""The part of the gradient of the linear model that a step leaves, at most."""
_ROUNDS = 2
"""How often a step within bounds is made, each time with those that hit one held there."""


class Around(NamedTuple):
    """What is known of the residuals around a point."""

    f: Array
    """The residuals, as they are weighted."""
    forward: Product
    back: Product
    g: Array
    """The gradient of the cost."""


class TruncatedStep(NamedTuple):
    """A step p, and what the linear model makes of it."""

    p: Array
    jp: Array
    """J·p."""
    length: float
    """‖p‖ in the norm of the region."""
    inside: bool
    """Whether it ends before the edge of the region."""


class TruncatedFit:
    """The state of a fit: ``x`` and the residuals ``f``, where parameters are, and ``cost``, ``status``, ``nit``."""

    def __init__(self, residuals: Residuals, products: Products, rules: Rules, start: Array, precondition: Any) -> None:
        self.residuals, self._products, self.rules = residuals, products, rules
        self.xp = residuals.xp
        self.eps = float(np.finfo(residuals.real).eps)
        self.low, self.high = residuals.low, residuals.high
        self.x = self._boxed(start)
        self.nfev = self.njev = self.nit = self.nprod = self.turns = 0
        self.status, self.cost, self.cosine = LIMIT, math.nan, math.nan
        self.begun = False
        self._square = 1.0 if rules.x_scale is None else rules.x_scale * rules.x_scale
        self._given = precondition
        self._size = 0.0
        """The largest ‖J·d‖/‖d‖ of the directions of the last step."""

    # --- numbers

    def _look(self, *numbers: Array) -> list[float]:
        """Bring 0-d arrays to the host, in one transfer."""
        return _space.numbers(self.xp, 0.0, [self.xp.reshape(x, (1,)) for x in numbers])[1:]

    def _dot(self, a: Array, b: Array) -> Array:
        return self.xp.vecdot(a, b)

    def _boxed(self, x: Array) -> Array:
        return within(self.xp, rounded(self.xp, x, self.residuals.coarse), self.low, self.high)

    def _conditioned(self, g: Array) -> Array:
        """Return P·g."""
        if self._given is None:
            return g * self._square
        own = self.residuals
        found = own.quietly(self._given, own.tree(g))
        return own.vector(_space.whole_gradients(own.layout, found, "preconditioner"))

    def _norm(self, x: Array) -> float:
        """Return ‖D·x‖, with D = 1 where the preconditioner is a function."""
        [square] = self._look(self._dot(x, x / self._square))
        return math.sqrt(square)

    # --- evaluations

    def _evaluated(self, x: Array) -> tuple[Array, float]:
        f = self.residuals(x)
        self.nfev += 1
        [cost] = self._look(_losses.cost(self.xp, self.rules.loss, f, self.rules.f_scale))
        return f, cost

    def _around(self, x: Array, f: Array) -> Around:
        f, weight = _losses.weighted(self.xp, self.rules.loss, f, self.rules.f_scale)
        forward, back = self._products(x)
        self.njev += 1

        def along(v: Array) -> Array:
            self.nprod += 1
            return forward(v) if weight is None else weight * forward(v)

        def across(u: Array) -> Array:
            self.nprod += 1
            return back(u if weight is None else weight * u)

        return Around(f, along, across, across(f))

    # --- a run

    def run(self, call: Callable[[Any], bool] | None) -> int | None:
        """Run to the end; return what stopped it before."""
        with np.errstate(all="ignore"):
            self._begin()
        while self._iterate():
            if call is not None and call(self):
                return CALLBACK
        return None

    def now(self, name: str) -> Any:
        """Return x, cost or nit as it is."""
        return getattr(self, name)

    def _begin(self) -> None:
        self.f, self.cost = self._evaluated(self.x)
        if not math.isfinite(self.cost):
            raise ValueError("fun: residuals that are infinite or NaN at x0, or their squares are")
        if not self.cost and bool(self.xp.any(self.f != 0)):
            raise ValueError("fun: residuals whose squares are 0 in their dtype; scale them")
        self.at = self._around(self.x, self.f)
        self.begun = True
        z = self._conditioned(self.at.g)
        q = self.at.forward(z)
        across, along, square, size = self._look(
            self._dot(self.at.g, z), self._dot(self.at.f, q), self._dot(q, q), self._dot(self.at.f, self.at.f)
        )
        if not math.isfinite(across + along + square):
            raise ValueError("jac: derivatives that are infinite or NaN at x0")
        if across < 0:
            raise ValueError(f"preconditioner: g·P·g = {across}, but it must be positive, for any g")
        eps = float(np.finfo("float32").eps) if self.residuals.coarse.any() else self.eps
        if abs(across - along) > eps**0.5 * math.sqrt(square * size):
            raise ValueError(
                f"jac: ⟨f, J·v⟩ is {along:.6g}, but ⟨Jᵀ·f, v⟩ {across:.6g}, for v = Jᵀ·f at x0; they must be of "
                "one Jacobian"
            )
        self._size = math.sqrt(square / across) if across > 0 else 0.0
        start = self._norm(self.x) if self._given is None else 0.0
        first = across / square * math.sqrt(across) if square > 0 else 1.0
        self.radius = start if start > 0 else _FIRST * first
        self._start = math.sqrt(across)
        self._settle(z)

    def _settle(self, z: Array | None = None) -> None:
        """Stop where the gradient is small, beside the residuals and the size of J."""
        g = self.at.g
        free = self._free(g)
        z = self._conditioned(g) if z is None else z
        [square] = self._look(self._dot(g if free is None else g * free, z))
        size = self._size * math.sqrt(2 * self.cost)
        self._slope = math.sqrt(max(square, 0.0))
        self.cosine = self._slope / size if size > 0 else 0.0 if square == 0 else math.nan
        if not math.isfinite(square):
            self.status = NOT_FINITE
        elif self._slope == 0 or self.cosine <= max(self.rules.gtol, self.eps):
            self.status = GTOL

    def _free(self, g: Array) -> Array | None:
        """Return 0 for parameters at a bound that the cost pushes them against, else 1."""
        fixed = pushed(self.x, g, self.low, self.high)
        return None if fixed is None else self.xp.astype(~fixed, g.dtype)

    def _iterate(self) -> bool:
        """Try a step; False if there is nothing left to do."""
        if self.nfev >= self.rules.max_nfev or self.status != LIMIT:
            return False
        with np.errstate(all="ignore"):
            self._try()
        return True

    def _try(self) -> None:
        self.turns += 1
        step = self._direction()
        new = self._boxed(self.x + step.p)
        slope, bend, square = self._look(
            self._dot(self.at.g, step.p), self._dot(step.jp, step.jp), self._dot(step.p, step.p / self._square)
        )
        if not math.isfinite(slope + bend + square):
            self.status = NOT_FINITE
            return
        predicted, size = -slope - 0.5 * bend, math.sqrt(square)
        f, cost = self._evaluated(new)
        fall = self.cost - cost
        ratio = fall / predicted if math.isfinite(cost) and predicted > 0 else -1.0
        self._resize(ratio, step, fall, slope)
        self.nit += 1
        rules, far, scale = self.rules, self._norm(new), self.cost or 1.0
        ftol, xtol = max(rules.ftol, self.eps), max(rules.xtol, self.eps)
        flat = abs(fall) <= ftol * scale and predicted <= ftol * scale and ratio <= 2
        radius = self.radius * size / step.length if step.length else 0.0
        still = radius <= xtol * far or size <= 0.1 * self.eps * far
        if ratio > LEAST:
            self.x, self.f, self.cost = new, f, cost
            self.at = self._around(new, f)
            self._settle()
        if self.status == LIMIT and (flat or still):
            self.status = BOTH if flat and still else FTOL if flat else XTOL

    def _resize(self, ratio: float, step: TruncatedStep, fall: float, slope: float) -> None:
        """Shrink the region after a bad step, widen it after a good one (Moré 1978)."""
        if self.turns == 1:
            self.radius = min(self.radius, step.length)
        if ratio <= 0.25:
            bottom = slope + fall  # of the parabola through both costs, with the slope at the start
            shrink = 0.5 if fall >= 0 else 0.5 * slope / bottom if math.isfinite(bottom) and bottom else 0.1
            self.radius = max(0.1, min(shrink, 0.5)) * min(self.radius, 10 * step.length)
        elif ratio >= 0.75 or step.inside:
            self.radius = 2 * step.length

    def _direction(self) -> TruncatedStep:
        """Return a step; within bounds of the parameters that are free, twice: then of those that hit none."""
        xp, free = self.xp, self._free(self.at.g)
        if free is None:
            return self._steihaug(None, None)
        none, held = xp.zeros_like(self.x), None
        for _ in range(_ROUNDS):
            step = self._steihaug(held, free)
            to = self._boxed(self.x + step.p)
            hit = (free > 0) & ((self.x + step.p < self.low) | (self.x + step.p > self.high))
            if not bool(xp.any(hit)):
                return step
            held = xp.where(hit, to - self.x, none if held is None else held)
            free = xp.where(hit, none, free)
        p = to - self.x
        [square] = self._look(self._dot(p, p / self._square))
        return TruncatedStep(p, self.at.forward(p), math.sqrt(square), step.inside)

    def _steihaug(self, held: Array | None, free: Array | None) -> TruncatedStep:
        """Minimize ‖f + J·p‖ by conjugate gradients, to the edge of the region (Steihaug 1983).

        ``held`` is where p begins, in parameters that are not free. Lengths are those of P⁻¹, which need no P⁻¹: they
        follow from those of the directions.
        """
        at, xp = self.at, self.xp

        def downhill(s: Array) -> tuple[Array, float]:
            s = s if free is None else s * free
            z = self._conditioned(s)
            [square] = self._look(self._dot(s, z))
            return z, square

        if held is None:
            p, jp, s, pp = xp.zeros_like(self.x), xp.zeros_like(at.f), at.g, 0.0
        else:
            p, jp = held, at.forward(held)
            s = at.back(at.f + jp)
            [pp] = self._look(self._dot(p, p / self._square))
        z, gamma = downhill(s)
        target = gamma * min(_FORCING, math.sqrt(self._slope / self._start)) ** 2 if self._start else 0.0
        d, pd, dd, room = -z, 0.0, gamma, self.radius**2
        self._size = 0.0
        for _ in range(2 * min(self.x.shape[0], at.f.shape[0]) + 10):
            if not math.isfinite(gamma):  # a product that is NaN: so is the step, which ends the fit
                return TruncatedStep(p + math.nan, jp, math.nan, True)
            if gamma <= 0 or pp >= room:
                break
            q = at.forward(d)
            [bend] = self._look(self._dot(q, q))
            self._size = max(self._size, math.sqrt(bend / dd))
            alpha = gamma / bend if bend > 0 else math.inf
            if not pp + 2 * alpha * pd + alpha * alpha * dd < room:
                root = math.sqrt(max(pd * pd + dd * (room - pp), 0.0))
                alpha = (room - pp) / (pd + root) if pd > 0 else (root - pd) / dd
                return TruncatedStep(p + alpha * d, jp + alpha * q, self.radius, False)
            p, jp = p + alpha * d, jp + alpha * q
            pp += 2 * alpha * pd + alpha * alpha * dd
            pd = pd + alpha * dd
            before = gamma
            z, gamma = downhill(at.back(at.f + jp))
            if gamma <= target:
                break
            beta = gamma / before
            d, pd, dd = beta * d - z, beta * pd, gamma + beta * beta * dd
        return TruncatedStep(p, jp, math.sqrt(max(pp, 0.0)), True)

    # --- what was found

    def result(self, status: int | None = None) -> OptimizeResult:
        """Return what was found; ``status`` is that of a fit that still runs."""
        own = self.residuals
        status = self.status if status is None or self.status != LIMIT else status
        return OptimizeResult(
            x=own.tree(self.x), cost=self.cost, fun=self.f, grad=own.tree(self.at.g), optimality=self.cosine,
            active_mask=own.tree(mask(self.xp, self.x, self.low, self.high)), nit=self.nit, nfev=self.nfev,
            njev=self.njev, nprod=self.nprod, status=status, success=status > 0, message=MESSAGES[status],
        )  # fmt: skip
