"""`minimize` as a method of SciPy's function of that name."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from xopt._minimize import minimize
from xopt.rule import Method, check_method
from xopt.solvers._descent import METHODS

_FTOL = 2.220446049250313e-09
_MAXFUN = 15000
_EPS = 1e-8
"""What SciPy's L-BFGS-B does where nothing is said. The rest of its defaults are those of xopt too."""


def scipy_method(method: str | Method | None = None) -> Callable[..., Any]:
    """Make a method for ``scipy.optimize.minimize(…, method=…)`` of a solver or of a rule.

    Parameters
    ----------
    method
        What `minimize` calls its ``method``: ``"lbfgs"``, ``"lbfgs-b"``, ``"cg"``, ``"gd"``; or a rule or a chain.
        None: ``"lbfgs"``, within bounds ``"lbfgs-b"``.

    Returns
    -------
    callable
        To be given to SciPy as ``method``, also within ``minimizer_kwargs`` of ``basinhopping`` and the like. It
        returns SciPy's ``OptimizeResult``, with the statuses of :class:`xopt.OptimizeResult`.

    Raises
    ------
    TypeError, ValueError
        When it runs, for options that the method does not have, by name; for constraints; for bounds, which only
        ``"lbfgs-b"`` can have.

    Notes
    -----
    Options have SciPy's names: ``maxiter``, ``maxfun`` or ``maxfev``, ``gtol``, ``ftol``, ``maxls``, ``maxcor``,
    ``eps`` (the step of finite differences, 1e-8), ``disp`` or ``iprint`` (print how it ended). Those of `minimize` go
    too: ``target``, ``line_search``, ``every`` and the others. With ``"lbfgs"`` and ``"lbfgs-b"``, ``ftol`` and
    ``maxfun`` are those of L-BFGS-B where they are not given, 2.2e-9 and 15,000, and ``tol`` means both ``gtol`` and
    ``ftol``; else it is ``gtol``.

    Without ``jac`` the gradient is that of forward differences. ``jac="3-point"`` and ``"cs"`` are forward differences
    too: SciPy does not pass them on. ``nfev`` and ``maxfun`` count their evaluations, as in SciPy.

    As in SciPy, what a callback returns is ignored, and ``StopIteration`` ends the run; an interrupt (Ctrl-C) is
    raised, with an ``intermediate_result``; infinite values and NaN at x0 end the run with status 2; ``hess`` and
    ``hessp`` are not used, and a warning says so. Other than in SciPy, float32 and complex parameters keep their dtype
    throughout, and there is no ``hess_inv``.

    Examples
    --------
    >>> from scipy.optimize import minimize, rosen, rosen_der
    >>> import xopt
    >>> result = minimize(rosen, [-1.2, 1.0], jac=rosen_der, method=xopt.scipy_method(), options={"maxcor": 5})
    >>> result.x.round(4), result.success
    (array([1., 1.]), True)
    >>> adam = xopt.scipy_method(xopt.Adam(lr=0.02))
    >>> minimize(rosen, [-1.2, 1.0], jac=rosen_der, method=adam, options={"maxiter": 3000}).fun < 1e-6
    True
    """
    if isinstance(method, str) and method not in METHODS:
        raise ValueError(f"method: {method!r}, but it must be one of {', '.join(map(repr, METHODS))}, or a rule")
    if method is not None and not isinstance(method, str):
        check_method(method)
    return _SciPyMethod(method)


@dataclass(frozen=True)
class _SciPyMethod:
    """What SciPy calls. An object and no function inside a function, so that it can be pickled."""

    method: str | Method | None

    def __call__(
        self, fun: Callable[..., Any], x0: Any, args: tuple[Any, ...] = (), jac: Any = None, hess: Any = None,
        hessp: Any = None, bounds: Any = None, constraints: Any = (), callback: Any = None, **options: Any,
    ) -> Any:  # fmt: skip
        scipy: Any = importlib.import_module("scipy.optimize")
        for name, given in (("hess", hess), ("hessp", hessp)):
            if given is not None:
                warnings.warn(f"{name}: given, but {self._name} does not use it", RuntimeWarning, stacklevel=3)
        if constraints is not None and not (isinstance(constraints, tuple | list) and not constraints):
            raise ValueError(f"constraints: given, but {self._name} cannot have any")
        x0 = np.atleast_1d(np.asarray(x0))
        if x0.dtype.name not in ("float32", "float64", "complex64", "complex128"):
            x0 = x0.astype(float)
        if x0.dtype.kind == "c" and not callable(jac):
            raise TypeError(f"jac: {jac!r}, but x0 is complex; give a function that returns the gradient")
        limits = _bounds(scipy, bounds, x0)
        chosen: dict[str, Any] = {"method" if self._solves else "rule": self.method}
        if limits is not None:
            if self.method not in (None, "lbfgs-b"):
                advice = '"lbfgs-b"' if self._solves else "a chain with xopt.Box(low, high) behind it"
                raise ValueError(f"bounds: given, but {self._name} cannot have any; use {advice}")
            x0, chosen["bounds"] = np.clip(x0, *limits), limits  # clipped as SciPy does
        given = self._options(options)
        disp, eps, maxiter = (given.pop(name, None) for name in ("disp", "eps", "maxiter"))
        if not callable(jac) and "maxfun" in given:
            given["maxfun"] = max(1, given["maxfun"] / (x0.size + 1))
        both = _Objective(scipy, fun, jac, args, limits, _EPS if eps is None else eps)
        found: Any
        try:
            found = minimize(both, x0, **chosen, maxiter=maxiter, callback=_callback(scipy, callback), options=given)
        except _NotFinite as error:
            value, g = error.args
            found = {"x": x0.copy(), "fun": value, "jac": g, "nit": 0, "status": 2, "success": False}
            found["message"] = f"stopped: at x0 the value is {value}, the largest slope {np.max(np.abs(g))}"
        result = scipy.OptimizeResult({**found, "nfev": both.nfev, "njev": both.njev})
        if result.status == 3:  # who uses SciPy relies on Ctrl-C to end more than this run
            interrupt = KeyboardInterrupt()
            interrupt.intermediate_result = result  # type: ignore[attr-defined]
            raise interrupt
        if disp:
            print(f"{result.message}\n  value {result.fun:.8g}, {result.nit} iterations, {result.nfev} evaluations")
        return result

    @property
    def _solves(self) -> bool:
        return self.method is None or isinstance(self.method, str)

    @property
    def _name(self) -> str:
        return f"xopt.scipy_method({self.method!r})"

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the options under the names of `minimize`, with ``disp``, ``eps`` and ``maxiter`` among them."""
        given = {name: _plain(value) for name, value in options.items() if value is not None}
        memory = self.method in (None, "lbfgs", "lbfgs-b")
        names = {"maxfev": "maxfun", "maxcor": "history"} if memory else {"maxfev": "maxfun"}
        for theirs, ours in names.items():
            if theirs in given:
                if ours in given:
                    raise TypeError(f"options: {theirs} and {ours} are the same; give one of them")
                given[ours] = given.pop(theirs)
        tol = given.pop("tol", None)
        for name in ("gtol", "ftol") if memory else ("gtol",):
            if tol is not None:
                given.setdefault(name, tol)
        if given.pop("iprint", -1) >= 0:
            given["disp"] = True
        return {"ftol": _FTOL, "maxfun": _MAXFUN, **given} if memory else given


class _NotFinite(Exception):
    """The first value or gradient is infinite or NaN: they are the arguments."""


class _Objective:
    """What a user of SciPy gives, as a function that returns value and gradient, with SciPy's counts."""

    def __init__(self, scipy: Any, fun: Any, jac: Any, args: tuple[Any, ...], limits: Any, eps: Any) -> None:
        self.scipy, self.fun, self.jac, self.args, self.limits, self.eps = scipy, fun, jac, args, limits, eps
        self.nfev = self.njev = 0

    def __call__(self, x: Any) -> tuple[Any, Any]:
        value, g = (self._value(x), self.jac(x.copy(), *self.args)) if callable(self.jac) else self._differences(x)
        self.njev += 1
        if np.iscomplexobj(g) and not np.iscomplexobj(x):
            raise TypeError("jac: returned complex numbers, but x0 is real")
        g = np.array(g, x.dtype, ndmin=1)
        if self.njev == 1 and not (np.isfinite(value) and np.isfinite(g).all()):
            raise _NotFinite(value, g)
        return value, g

    def _value(self, x: Any) -> Any:
        self.nfev += 1
        value = np.asarray(self.fun(x.copy(), *self.args))  # a copy, as from SciPy: it may be written into
        if value.size != 1:
            raise ValueError(f"fun: returned an array of shape {value.shape}, but it must return a number")
        return value.item()

    def _differences(self, x: Any) -> tuple[Any, Any]:
        x = x.astype(float)  # in float32 the steps would vanish
        value, steps = self._value(x), np.full(x.shape, self.eps, float)
        if self.limits is not None:  # towards the inside, and no further
            below, above = x - self.limits[0], self.limits[1] - x
            steps = np.where(above >= below, np.minimum(steps, above), -np.minimum(steps, below))
        g, free = np.zeros(x.shape), steps != 0

        def moved(y: Any) -> Any:
            if np.array_equal(y, x[free]):
                return value
            z = x.copy()
            z[free] = y
            return self._value(z if self.limits is None else np.clip(z, *self.limits))

        if free.any():
            g[free] = self.scipy.approx_fprime(x[free], moved, steps[free])
        return value, g


def _bounds(scipy: Any, bounds: Any, x0: Any) -> tuple[Any, Any] | None:
    """Return lower and upper bounds as arrays like x0, from either of SciPy's two forms; None where none is finite."""
    if bounds is None:
        return None
    if isinstance(bounds, scipy.Bounds):
        sides = [bounds.lb, bounds.ub]
    else:
        pairs = [tuple(pair) for pair in bounds]
        if len(pairs) != x0.size or any(len(pair) != 2 for pair in pairs):
            raise ValueError(f"bounds: {len(pairs)} of them, but there must be a pair for each of {x0.size} parameters")
        sides = [[-np.inf if low is None else low for low, _ in pairs], [np.inf if b is None else b for _, b in pairs]]
    try:
        low, high = (np.broadcast_to(np.asarray(side, x0.dtype), x0.shape).copy() for side in sides)
    except ValueError:
        raise ValueError(f"bounds: of shape {np.shape(sides[0])}, but x0 has shape {x0.shape}") from None
    return None if np.all(low == -np.inf) and np.all(high == np.inf) else (low, high)


def _callback(scipy: Any, callback: Any) -> Callable[..., None] | None:
    """Call a callback in the one of SciPy's two ways that it asks for, and return nothing."""
    if callback is None:
        return None
    named = {*inspect.signature(callback).parameters} == {"intermediate_result"}

    def call(intermediate_result: Any) -> None:
        if named:
            callback(intermediate_result=scipy.OptimizeResult(intermediate_result))
        else:
            callback(intermediate_result.x)

    return call


def _plain(x: Any) -> Any:
    """Return a number of NumPy as one of Python, and 1e4 as 10000: SciPy takes both where it counts."""
    x = x.item() if isinstance(x, np.generic) else x
    return int(x) if isinstance(x, float) and x.is_integer() else x
