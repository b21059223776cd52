"""`minimize` as a method of SciPy's function of that name."""

from __future__ import annotations

import importlib
import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from xopt._arrays.layout import Layout
from xopt._public import public
from xopt.rule import FunctionalOptimizer, check_method
from xopt.solvers._callbacks import annotate
from xopt.solvers._differences import Differences
from xopt.solvers._inverse_hessian import InverseHessian
from xopt.solvers._minimize import show, solve
from xopt.solvers._options import Solver, gathered
from xopt.solvers._options import limits as limits_of
from xopt.solvers._registry import SOLVERS, bounded_names, chosen, default
from xopt.solvers._sides import inward, pairs, sides

_EPS = 1e-8
"""The step of SciPy's L-BFGS-B where none is given."""


@public
def scipy_method(method: str | FunctionalOptimizer | None = None) -> Callable[..., Any]:
    """Make a method for ``scipy.optimize.minimize(…, method=…)`` of a solver or of a rule.

    Parameters
    ----------
    method
        What `minimize` calls its ``method``; or a rule or a chain. None, or ``"L-BFGS-B"``: ``"lbfgs"``, within bounds
        ``"lbfgs-b"``.

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
    ``ftol``; else it is ``gtol``. Bounds are rounded inwards to the dtype of x0.

    Without ``jac`` the gradient is that of forward differences. ``jac="3-point"`` and ``"cs"`` are forward differences
    too: SciPy does not pass them on. ``nfev`` and ``maxfun`` count their evaluations, as in SciPy.

    As in SciPy, what a callback returns is ignored, and ``StopIteration`` ends the run; an interrupt (Ctrl-C) is
    raised, with an ``intermediate_result``; infinite values and NaN at x0 end the run with status 2; where ``hess`` and
    ``hessp`` are not used, a warning says so. Methods that use them need ``jac``; ``"2-point"`` and the like as
    ``hess`` are differences of gradients. Other than in SciPy, float32 and complex parameters keep their dtype
    throughout. With ``"lbfgs"`` and ``"lbfgs-b"``, ``hess_inv`` is SciPy's ``LbfgsInvHessProduct`` of the last steps.

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
    if isinstance(method, str):
        method = None if method.lower() == "l-bfgs-b" else chosen(method, False).name
    elif method is not None:
        check_method(method)
    return _SciPyMethod(method)


@dataclass(frozen=True)
class _SciPyMethod:
    """What SciPy calls. An object and no function inside a function, so that it can be pickled."""

    method: str | FunctionalOptimizer | None

    def __call__(
        self, fun: Callable[..., Any], x0: Any, args: tuple[Any, ...] = (), jac: Any = None, hess: Any = None,
        hessp: Any = None, bounds: Any = None, constraints: Any = (), callback: Any = None, **options: Any,
    ) -> Any:  # fmt: skip
        scipy: Any = importlib.import_module("scipy.optimize")
        second = self._solver is not None and self._solver.hessian
        if second and not callable(jac):
            raise ValueError(f"jac: {jac!r}, but {self._name} needs the gradient")
        hess = None if second and isinstance(hess, str) else hess
        for unused, given in (("hess", hess), ("hessp", hessp)):
            if given is not None and not second:
                warnings.warn(f"{unused}: given, but {self._name} does not use it", RuntimeWarning, stacklevel=3)
        if constraints is not None and not (isinstance(constraints, tuple | list) and not constraints):
            raise ValueError(f"constraints: given, but {self._name} cannot have any")
        x0 = np.atleast_1d(np.asarray(x0))
        if x0.dtype.name not in ("float32", "float64", "complex64", "complex128"):
            x0 = x0.astype(float)
        if x0.dtype.kind == "c" and not callable(jac):
            raise TypeError(f"jac: {jac!r}, but x0 is complex; give a function that returns the gradient")
        name = self.method if isinstance(self.method, str) else None
        rule = None if isinstance(self.method, str) else self.method
        given = self._options(options)
        layout, limits = Layout(x0, name="x0"), list[Any]()
        two = _bounds(scipy, bounds, layout)
        if two is not None:
            if self.method is not None and (self._solver is None or not self._solver.bounds):
                able = " or ".join(f'"{n}"' for n in bounded_names())
                advice = able if self._solver is not None else "a chain with xopt.Box(low, high) behind it"
                raise ValueError(f"bounds: given, but {self._name} cannot have any; use {advice}")
            limits = [inward(side, layout.dtypes[0].real, sign) for side, sign in zip(two, (-1, 1), strict=True)]
            x0 = np.clip(x0, *limits)  # as SciPy does
        more = _second(hess, hessp, args) if second else {}
        both = _Objective(fun, jac, args, x0, limits, given.pop("eps", _EPS))
        if both.differences is not None and "maxfun" in given:
            given["maxfun"] = max(1.0, limits_of(given).maxfun / both.differences.cost)
        disp = given.pop("disp", False)
        found: Any
        interrupt: KeyboardInterrupt | None = None
        try:
            found, interrupt = solve(
                both, x0, rule, method=name, bounds=two, callback=_callback(scipy, callback), options=given, **more
            )
        except _NotFinite as error:
            value, g = error.args
            found = {"x": x0.copy(), "fun": value, "jac": g, "nit": 0, "status": 2, "success": False}
            found["message"] = f"stopped: at x0 the value is {value}, the largest slope {np.max(np.abs(g))}"
        result = scipy.OptimizeResult({**found, "nfev": both.nfev, "njev": both.njev})
        if isinstance(found.get("hess_inv"), InverseHessian) and x0.dtype.kind == "f":
            result["hess_inv"] = scipy.LbfgsInvHessProduct(*found["hess_inv"].pairs())
        if interrupt is not None:  # who uses SciPy relies on Ctrl-C to end more than this run
            annotate(interrupt, result)
            raise interrupt
        if disp:
            show(result)
        return result

    @property
    def _solver(self) -> Solver | None:
        """The solver whose options there are; None of a rule."""
        return default(False) if self.method is None else SOLVERS[self.method] if isinstance(self.method, str) else None

    @property
    def _name(self) -> str:
        return f"xopt.scipy_method({self.method!r})"

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the options under the names of `minimize`, with ``disp``, ``eps`` and ``maxiter`` among them."""
        given = {name: value for name, value in options.items() if value is not None}
        tol, solver = given.pop("tol", None), self._solver
        if given.pop("iprint", -1) >= 0:
            given["disp"] = True
        return {**({} if solver is None else solver.scipy), **gathered(solver, given, None, tol)}


class _NotFinite(Exception):
    """The first value or gradient is infinite or NaN: they are the arguments."""


class _Objective:
    """What a user of SciPy gives, as a function that returns value and gradient, with SciPy's counts."""

    def __init__(self, fun: Any, jac: Any, args: tuple[Any, ...], x0: Any, limits: list[Any], eps: Any) -> None:
        self.fun, self.jac, self.args = fun, jac, args
        self.nfev = self.njev = 0
        self.differences: Differences | None = None
        if not callable(jac):  # in float64: in float32 the steps would vanish
            self.differences = Differences(self._value, Layout(x0.astype(float)), "2-point", eps, *limits)

    def __call__(self, x: Any) -> tuple[Any, Any]:
        if self.differences is None:
            value, g = self._value(x), self.jac(x.copy(), *self.args)
        else:
            value, g = self.differences(x.astype(float))
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


def _second(hess: Any, hessp: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    """Return the Hessian of a user of SciPy, who may write into what is given; ``hess`` is taken before ``hessp``."""
    if hess is not None and not callable(hess):
        raise TypeError(f"hess: {hess!r}, but it must be a function, or the name of differences")
    if hess is not None:
        return {"hess": lambda x: hess(x.copy(), *args)}
    return {} if hessp is None else {"hessp": lambda x, p: np.array(hessp(x.copy(), p.copy(), *args), x.dtype)}


def _bounds(scipy: Any, bounds: Any, layout: Layout) -> tuple[Any, Any] | None:
    """Return lower and upper bounds as arrays like x0, from either of SciPy's two forms; None where none is finite."""
    if bounds is None:
        return None
    shape = layout.shapes[0]
    if isinstance(bounds, scipy.Bounds):
        two = [np.asarray(side) for side in (bounds.lb, bounds.ub)]
    else:
        two = [*pairs(bounds, math.prod(shape))]
    try:
        low, high = (np.broadcast_to(side, shape) for side in two)
    except ValueError:
        raise ValueError(f"bounds: of shape {two[0].shape}, but x0 has shape {shape}") from None
    lower, upper = sides((low, high), layout)
    binds = any(np.isfinite(inward(side[0], "float64", s)).any() for side, s in ((lower, -1), (upper, 1)))
    return (low, high) if binds else None


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
