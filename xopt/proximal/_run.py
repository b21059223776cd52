"""What the proximal solvers have in common: a run, when it ends, the duality gap, and the result."""

from __future__ import annotations

import math
import operator as _operator
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Any

from xopt import _arrays
from xopt._arrays.scalars import is_number
from xopt.proximal._prox import Prox, lowest, real
from xopt.proximal._space import Leaves, Operator, Trees, operator
from xopt.solvers._callbacks import annotate, called, counted, progress_bar
from xopt.solvers._minimize import checked_layout
from xopt.solvers._options import count
from xopt.solvers._result import OptimizeResult
from xopt.solvers._space import checked_value
from xopt.solvers._stopping import CONVERGED, INTERRUPTED, LIMIT, STOPPED, STUCK, Stop


class Iteration(ABC):
    """Iterations that lead to the minimum of f(K·x) + g(x)."""

    f: Any
    g: Prox
    K: Operator
    x: Leaves
    """The point that is returned."""
    residual = math.inf
    gap = math.nan
    apart = False
    """Whether the objective has f at another point than K·x."""

    def __init__(self, x0: Any, K: Any, **limits: Any) -> None:
        if limits["callback"] is not None and not callable(limits["callback"]):
            raise TypeError(f"callback: {limits['callback']!r}, but it must be a function")
        self.callback, self.progress = limits["callback"], limits["progress"]
        self.maxiter: float = math.inf if limits["maxiter"] == math.inf else count("maxiter", limits["maxiter"], 0)
        self.every = count("every", limits["every"], 1)
        tol, gap_tol = limits["tol"], limits["gap_tol"]
        self.gap_tol = None if gap_tol is None else real("gap_tol", gap_tol, 0.0)
        self.tol = real("tol", tol) if tol is not None else 1e-6 if gap_tol is None else 0.0
        self.before = x0 if isinstance(x0, OptimizeResult) else OptimizeResult(x=x0)
        """Where a run begins, perhaps the result of another one."""
        if "x" not in self.before:
            raise ValueError(f"x0: a result of {', '.join(self.before)}, but without x")
        self.space = Trees(checked_layout(self.before.x), "x0")
        self.K = operator(self.space, K, limits["check_adjoint"])
        self.x = self.space.start
        self.nit = self.nfev = 0
        self.stop: Stop | None = None
        self.known: float | None = None
        """The objective at x, where it is known."""

    def begun(self, y0: Any) -> tuple[str, Any]:
        """Return the dual variable to begin with, if there is one, and what it was given as."""
        return ("x0.y", self.before.get("y")) if y0 is None else ("y0", y0)

    @abstractmethod
    def begin(self) -> None:
        """Do what comes before the first iteration."""

    @abstractmethod
    def iterate(self) -> None:
        """Take a step; set ``stop`` where it is the last."""

    @abstractmethod
    def objective(self) -> list[Any]:
        """Return parts of the objective at x, numbers and 0-d arrays."""

    @abstractmethod
    def dual(self) -> tuple[Leaves, Leaves, Any]:
        """Return y, K*·y, and what is f at K·x, for a duality gap."""

    @property
    def solution(self) -> Any:
        return self.space.tree(self.space.copied(self.x))

    @property
    def fun(self) -> float:
        """The objective at x."""
        if self.known is None:
            self.known = float(sum(self.space.look(*self.objective())))
        return self.known

    def looks(self) -> bool:
        """Whether numbers are looked at in this iteration."""
        return (self.nit + 1) % self.every == 0 or self.nit + 1 >= self.maxiter

    def prox(self, f: Prox, x: Leaves, t: Any, space: Trees, name: str) -> Leaves:
        return space.leaves(f.prox(space.tree(x), t), f"{name}.prox")

    def smooth(self, f: Any, x: Leaves, space: Trees, name: str) -> tuple[Any, Leaves]:
        """Return the value and the gradient of a smooth function, checked."""
        self.nfev += 1
        if isinstance(f, Prox):
            assert f.gradient is not None
            return self.value(f, x, space), space.leaves(f.gradient(space.tree(x)), "gradient")
        found = f(space.tree(x))
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise TypeError(f"{name}: it must return a pair of the value and the gradient")
        return checked_value(space.library, found[0]), space.leaves(found[1], "gradient")

    def value(self, f: Prox, x: Leaves, space: Trees) -> Any:
        """Return the value of a function; NaN where it is not known."""
        return math.nan if f.value is None else checked_value(space.library, f.value(space.tree(x)))

    def can_gap(self) -> list[str]:
        """Say what is missing for a duality gap."""
        missing = []
        for name, f in (("f", self.f), ("g", self.g)):
            if not isinstance(f, Prox):
                missing.append(f"{name} is a function alone")
            elif f.value is None or f.conjugate is None:
                missing.append(f"{name} = {f} has no {'value' if f.value is None else 'conjugate'}")
        return missing

    def check_gap(self) -> None:
        if self.gap_tol is not None and self.can_gap():
            raise TypeError(f"gap_tol: {self.gap_tol:g}, but there is no duality gap: {'; '.join(self.can_gap())}")

    def measured(self) -> bool:
        """Find the duality gap; return whether it is small enough."""
        if self.can_gap():
            return False
        y, back, at = self.dual()
        image, space = self.K.image, self.space
        slope = [-v for v in back]
        pairs = ((self.f, y, image), (self.g, slope, space))
        s = lowest([f.scaling(where.tree(v)) for f, v, where in pairs if f.scaling is not None])
        parts = [at, self.value(self.g, self.x, space)]
        for f, v, where in pairs:
            assert f.conjugate is not None
            parts.append(f.conjugate(where.tree(_times(where, s, v))))
        a, b, c, d = space.look(*parts)
        self.gap = a + b + c + d
        if not self.apart:
            self.known = a + b
        return (
            self.gap_tol is not None and self.gap < math.inf and self.gap <= self.gap_tol * max(abs(a + b), abs(c + d))
        )

    def converged(self, message: str) -> None:
        self.stop = Stop(CONVERGED, f"converged: {message}")

    def judge(self, residual: float) -> None:
        """Stop where the residual or the gap is small enough, or where numbers are none."""
        self.residual = residual
        if self.gap_tol is not None and self.measured():
            self.converged(f"the duality gap is {self.gap:.3g}, which is within gap_tol")
        elif residual <= self.tol:
            self.converged(f"the relative residual is {residual:.3g} ≤ tol")
        elif not math.isfinite(residual):
            self.stop = Stop(STUCK, "stopped: infinite or NaN")

    def more(self) -> dict[str, Any]:
        """Return what else a result has."""
        return {}

    def result(self, status: int, message: str) -> OptimizeResult:
        with suppress(Stop):
            if math.isnan(self.gap) or self.gap_tol is None:
                self.measured()
        return OptimizeResult(
            x=self.solution, **self.more(), fun=self.fun, gap=self.gap, residual=self.residual, nit=self.nit,
            nfev=self.evaluations(), status=status, success=status == CONVERGED, message=message,
        )  # fmt: skip

    def evaluations(self) -> int:
        return self.K.count if not self.K.identity else self.nfev


def relative(part: float, whole: float) -> float:
    """Return a part of a whole; that part where there is no whole, and NaN where it is infinite, which is no end."""
    if not math.isfinite(whole):
        return math.nan
    return part / whole if whole else part


def _times(space: Trees, s: Any, x: Leaves) -> Leaves:
    if is_number(s):
        return x if s == 1 else [float(s) * v for v in x]
    rows = zip(x, space.layout.dtypes, strict=True)
    return [_arrays.cast(space.xp, s, getattr(space.xp, d.real)) * v for v, d in rows]


def _shown(run: Iteration, x: Any) -> OptimizeResult:
    return OptimizeResult(x=x, fun=run.fun, nit=run.nit, nfev=run.evaluations())


def solved(run: Iteration) -> OptimizeResult:
    """Run until an end; whatever the user's functions raise comes through, with what was reached."""
    call = None if run.callback is None else called(run.callback, _operator.attrgetter("solution"), _shown)
    begun = False
    try:
        with progress_bar(run.progress, run.maxiter) as bar:
            call = counted(bar, call, lambda run: {"residual": run.residual})
            run.begin()
            begun = True
            while True:
                if run.nit >= run.maxiter:
                    raise Stop(LIMIT, f"stopped: maxiter = {run.nit} iterations")
                run.iterate()
                run.nit += 1
                if call is not None and call(run):
                    raise Stop(STOPPED, "stopped: by the callback")
                if run.stop is not None:
                    raise run.stop
    except Stop as stop:
        return run.result(stop.status, stop.message)
    except KeyboardInterrupt:
        if not begun:
            raise
        return run.result(INTERRUPTED, "stopped: interrupted")
    except Exception as error:
        if begun:
            with suppress(Exception):
                annotate(error, run.result(INTERRUPTED, f"stopped: by a {type(error).__name__}"))
        raise


class Balance:
    """Moves a ratio of dual and primal steps towards another one; by less and less, so that it comes to rest."""

    def __init__(self, on: bool, alpha: float = 0.5, eta: float = 0.98) -> None:
        self.alpha, self.eta = (alpha if on else 0.0), eta

    def moved(self, ratio: float, y: float, x: float) -> float:
        """Return a ratio nearer to y/x, in the logarithm."""
        if not self.alpha or not 0 < y * x < math.inf:
            return ratio
        found: float = ratio * (y / x / ratio) ** self.alpha
        self.alpha *= self.eta
        return found
