"""Trust regions: steps to the minimum of a quadratic model where it is believed."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import numpy as np

from xopt._arrays.layout import Layout
from xopt.solvers._hessian import Hessian
from xopt.solvers._newton import Step, truncated
from xopt.solvers._options import Solver
from xopt.solvers._run import Run
from xopt.solvers._space import Array, Numbers, Space, Vectors, not_positive, space
from xopt.solvers._stopping import CONVERGED, STUCK, Limits, Progress, Stop

PATIENCE = 40
_WIDEST = 1e300
"""Of a radius: infinite is that of no trust region."""


class Subproblem(Protocol):
    """How a method finds the minimum of its model within a radius."""

    keeps: bool
    """Whether it needs the whole Hessian, which is then in the result."""
    hessian: Hessian
    precondition: Callable[[Array], Array] | None
    """Computes P·g, for a method that has a ``preconditioner``; lengths are then √(d·P⁻¹·d)."""

    def at(self, here: Vectors) -> None:
        """Go to a point."""

    def step(self, here: Vectors, square: float, radius: float) -> Step | None:
        """Return where the model is least; None if the Hessian is infinite or NaN."""


class Steihaug:
    """By conjugate gradients that end at the radius (Steihaug 1983)."""

    keeps: ClassVar = False
    hessian: Hessian
    precondition: Callable[[Array], Array] | None

    def __init__(self, space: Space, maxcg: int) -> None:
        self.maxcg = maxcg

    def at(self, here: Vectors) -> None:
        self.hessian.at(here)

    def step(self, here: Vectors, square: float, radius: float) -> Step | None:
        return truncated(self.hessian, here, square, self.maxcg, radius, self.precondition)


class Exact:
    """Exactly, from the eigenvalues w and eigenvectors Q of H: d = -Q·(Qᵀ·g)/(w + λ) (Moré & Sorensen 1983)."""

    keeps: ClassVar = True
    hessian: Hessian
    precondition: Callable[[Array], Array] | None

    def __init__(self, space: Space) -> None:
        self.space = space
        self._found: tuple[Numbers, Array, Numbers] | None = None

    def at(self, here: Vectors) -> None:
        self.hessian.at(here)
        self._found = self._decomposed(self.hessian.matrix(), here.g)

    def _decomposed(self, matrix: Array, g: Array) -> tuple[Numbers, Array, Numbers] | None:
        """Return w, Q and Qᵀ·g; None if the matrix is infinite or NaN."""
        space, xp = self.space, self.space.xp
        try:
            w, q = xp.linalg.eigh(matrix)
            known = space.host(xp.concat([w, g @ q]))
        except Exception:  # each library has its own
            if math.isfinite(float(space.host(xp.sum(matrix - matrix))[0])):
                raise
            return None
        return (known[: space.size], q, known[space.size :]) if np.isfinite(known).all() else None

    def step(self, here: Vectors, square: float, radius: float) -> Step | None:
        if self._found is None:
            return None
        w, q, c = self._found
        y, edge = least(w, c, radius, self.space.eps)
        change = float(c @ y + y @ (w * y) / 2)
        return Step(q @ self.space.uploaded(y), float(c @ y), change, float(np.linalg.norm(y)), edge)


def least(w: Numbers, c: Numbers, radius: float, eps: float) -> tuple[Numbers, bool]:
    """Return the y with ‖y‖ ≤ radius where c·y + y·(w·y)/2 is least, w ascending; and whether ‖y‖ is the radius.

    y = -c/(w + λ) with the least λ ≥ 0 that makes all w + λ ≥ 0 and ‖y‖ ≤ radius, from Newton's method on 1/‖y‖. Where
    ‖y‖ is too small for that at λ = -w₀ (the hard case), y goes on along the first axis to the radius.
    """
    noise = w.size * eps * np.abs(w).max()
    if w[0] > noise:
        y = -c / w
        if np.linalg.norm(y) <= radius:
            return y, False
    low = max(0.0, -w[0])
    e = np.maximum(w + low, 0.0)  # λ = low + μ, so that small μ keep their digits
    flat = e <= noise
    if np.linalg.norm(c[flat]) <= eps * np.linalg.norm(c):
        y = np.where(flat, 0.0, -c / np.where(flat, 1.0, e))
        room = radius * radius - float(y @ y)
        if room >= 0:
            if w[0] < -noise:
                y[0] = -math.copysign(math.sqrt(room), c[0])
            return y, w[0] < -noise
    bottom, top = 0.0, float(np.linalg.norm(c)) / radius
    mu = max(abs(float(c[0])) / radius - e[0], 1e-3 * top)
    for _ in range(100):
        y = -c / np.maximum(e + mu, sys.float_info.min)
        size = float(np.linalg.norm(y))
        if abs(size - radius) <= 1e-6 * radius:
            break
        bottom, top = (mu, top) if size > radius else (bottom, mu)
        mu += size * size / float(y @ (y / (e + mu))) * (size - radius) / radius
        if not bottom < mu < top:
            mu = math.sqrt(bottom * top) if bottom else 1e-3 * top
    return y * min(1.0, radius / size), True


class TrustRegion(Run):
    """A point, and the radius within which its quadratic model is believed (Nocedal & Wright 2006, Algorithm 4.1).

    Where differences of values drown in roundings, a step is taken if it makes the gradient smaller.
    """

    box = None
    """It has no bounds."""

    def __init__(
        self, layout: Layout, solver: Solver, limits: Limits, *, initial_trust_radius: float, max_trust_radius: float,
        eta: float, preconditioner: Callable[[Any], Any] | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(limits)
        if initial_trust_radius == math.inf:
            raise ValueError("initial_trust_radius: inf, but it must be finite")
        if initial_trust_radius > max_trust_radius:
            raise ValueError(
                f"initial_trust_radius: {initial_trust_radius}, but max_trust_radius is {max_trust_radius}"
            )
        self.space = space(layout)
        self.method: Subproblem = solver.direction(self.space, **options)
        self.preconditioner = preconditioner
        self.radius, self.widest, self.eta = initial_trust_radius, min(max_trust_radius, _WIDEST), eta
        x = self.space.copied(self.space.vector(layout.leaves))
        self.here = Vectors(x, x, x)
        self.square = self.largest = math.nan
        self.stale = True
        """Whether the model is that of an earlier point."""
        self.end: Stop | None = None
        self.best = math.inf, self.here
        self.progress = Progress()
        self.matrix: Array = None

    @property
    def x(self) -> Any:
        return self.space.tree(self.space.copied(self.here.x))

    @property
    def gradient(self) -> Any:
        return self.space.tree(self.space.copied(self.here.g))

    def use(self, hessian: Hessian) -> None:
        """Use a Hessian."""
        self.hessian = self.method.hessian = hessian
        self.method.precondition = self._preconditioned if self.preconditioner else None

    def settle(self) -> None:
        if self.best[0] < self.value:
            self.value, self.here = self.best

    def hess(self) -> Any:
        return self.matrix

    def begin(self) -> None:
        self.value, self.here, self.square, self.largest, *_ = self._evaluate(self.here.x)
        self.check_start(self.value, self.largest)
        self.best = self.value, self.here
        self.progress.begin(self.value, self.largest)

    def iterate(self) -> None:
        if self.end is not None:
            raise self.end
        try:
            self.limits.check(self.value, self.largest, self.nit, self.began)
        except Stop as stop:
            if stop.status == CONVERGED:
                self._keep()
            raise
        if self.stale:
            self.space.quietly(self.method.at, self.here)
            self.stale = False
        step = self.space.quietly(self.method.step, self.here, self.square, self.radius)
        if step is None:
            raise Stop(STUCK, "stopped: the Hessian is infinite or NaN")
        if not -math.inf < step.change < 0:
            raise Stop(STUCK, f"stopped: the model falls by {-step.change:.3g}, in {self.space.real}")
        value, new, square, largest, moved, size = self._evaluate(self.here.x + step.d, step.d)
        self.nit += 1
        finite = math.isfinite(value) and math.isfinite(largest)
        if finite and value < self.best[0]:
            self.best = value, new
        good = self._ratio(value, largest, step) if finite else -math.inf
        if good < 0.25:
            self.radius = min(self.radius, step.size) / 4
        elif good > 0.75 and step.edge:
            self.radius = min(2 * self.radius, self.widest)
        if good > self.eta:
            before, self.value, self.here = self.value, value, new
            self.square, self.largest, self.stale = square, largest, True
            self.end = self.limits.progress(before, value, moved, size)
        if value == -math.inf:
            self.end = Stop(STUCK, "stopped: the value is -inf, so there is no minimum")
        self.end = self.end or self._hopeless(moved, size)

    def _ratio(self, value: float, largest: float, step: Step) -> float:
        """Return how far the value fell, as a part of what the model said; by the gradient where that is too little."""
        noise = 10 * self.space.eps * abs(self.value)
        if max(-step.change, abs(self.value - value)) <= noise:
            return 0.5 if largest < self.largest else -1.0
        return float((self.value - value) / -step.change)

    def _hopeless(self, moved: float, size: float) -> Stop | None:
        stalled = self.progress.stalled(self.value, self.largest, self.nit)
        if stalled >= PATIENCE or (stalled and moved <= self.space.eps / 16 * size):
            return Stop(STUCK, "stopped: no step lowers value or gradient in this precision")
        return None

    def _keep(self) -> None:
        """Keep the Hessian at the end, where it is a matrix."""
        if self.method.keeps or self.method.hessian.dense:
            if self.stale:
                self.method.hessian.at(self.here)
            self.matrix = self.space.copied(self.space.quietly(self.method.hessian.matrix))

    def _evaluate(self, x: Array, d: Array = None) -> tuple[Any, ...]:
        """Return value, vectors, g·g and the largest elements of g, d and x."""
        self.check_evaluations()
        made = self.space
        value, grads = self.evaluated(made.library, made.tree(x))
        g = made.gradient(grads)
        here = Vectors(x, g, self._preconditioned(g))
        sums, tops = made.quietly(self._asked, here, x if d is None else d)
        value, known, largest = made.known(value, [sums], [tops])
        if self.preconditioner is not None and known[0] < 0:
            raise not_positive(known[0])
        return value, here, float(known[0]), *map(float, largest)

    def _preconditioned(self, g: Array) -> Array:
        return self.space.preconditioned(self.preconditioner, g)

    def _asked(self, here: Vectors, d: Array) -> tuple[Any, Any]:
        made, (x, g, z) = self.space, here
        return made.row(made.dot(g, z)), made.row(made.largest(g), made.largest(d), made.largest(x))
