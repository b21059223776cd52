"""Minimize a function whose arrays stay where they are: SciPy's habits on any library and device."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from typing import Any, Literal, TypeAlias

import numpy as np

from xopt._layout import Layout
from xopt.rule import Method, check_method
from xopt.solvers._descent import CONVERGED, INTERRUPTED, METHODS, SEARCHES, STOPPED, Descent, Limits, Stop
from xopt.solvers._objective import objective
from xopt.solvers._stepping import Stepping

MethodName: TypeAlias = Literal["lbfgs", "lbfgs-b", "cg", "gd"]
_RULE = {"gtol", "ftol", "maxfun", "target", "max_time", "every", "runner"}
_SEARCH = {"gtol", "ftol", "xtol", "maxfun", "target", "max_time", "maxls", "line_search"}
OPTIONS = {
    "rule": _RULE,
    "lbfgs": {*_SEARCH, "history", "preconditioner"},
    "lbfgs-b": {*_SEARCH, "history"},
    "cg": {*_SEARCH, "preconditioner"},
    "gd": {*_SEARCH, "preconditioner"},
}


class OptimizeResult(dict[str, Any]):
    """What `minimize` found, under SciPy's names, as attributes and as keys.

    ``x`` the parameters, ``fun`` the value there, ``jac`` the gradient there, ``nit`` iterations, ``nfev`` and
    ``njev`` evaluations, ``status`` (0 converged, 1 a limit was reached, 2 no better point was found, or the value is
    infinite or NaN, 3 interrupted,
    99 stopped by the callback), ``success`` (status 0), ``message``.

    Examples
    --------
    >>> import xopt
    >>> result = xopt.OptimizeResult(fun=0.5, nit=3)
    >>> result.fun, result["nit"]
    (0.5, 3)
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{name}: there is {', '.join(self)}") from None

    def __repr__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(f"{name:>{width}}: {value!r}" for name, value in self.items())


def minimize(
    fun: Callable[..., Any],
    x0: Any,
    rule: Method | None = None,
    *,
    method: MethodName | None = None,
    args: tuple[Any, ...] = (),
    jac: bool | Callable[..., Any] = True,
    conjugate: bool = False,
    bounds: Any = None,
    maxiter: int | None = None,
    tol: float | None = None,
    callback: Callable[..., Any] | None = None,
    progress: bool = False,
    options: Mapping[str, Any] | None = None,
) -> OptimizeResult:
    r"""Minimize a function of arrays, on the library and the device where these are.

    ``"lbfgs"`` goes along -H·g with an H of the last steps (Nocedal 1980), computed from the products of the vectors
    (Chen, Wang & Zhou 2014); ``"lbfgs-b"`` within bounds, to the minimum of the same model over the variables that are
    free, projected (Byrd, Lu, Nocedal & Zhu 1995; which are free: Bertsekas 1982); ``"cg"`` along conjugate gradients
    (Polak & Ribière 1969, with β ≥ 0); ``"gd"`` along -g; each with a line search. A rule takes its own steps.

    Parameters
    ----------
    fun
        ``fun(x, *args)`` returns the value, a number or a 0-d array, and the gradient, which is like x. It must not
        write into what it is given; it may keep that, but for a rule, which goes on in the same arrays.
    x0
        Where to begin: an array of any library, float32, float64 or complex (for a rule any parameters), or a tree of
        arrays. It is not changed.
    rule
        A rule or a chain. None: ``method``.
    method
        ``"lbfgs"`` (the default), ``"lbfgs-b"`` (the default with bounds), ``"cg"`` or ``"gd"``.
    args
        More arguments of ``fun`` and ``jac``.
    jac
        True: ``fun`` returns value and gradient. A function: ``jac(x, *args)`` returns the gradient, ``fun`` the value.
        False: ``fun`` returns the value, and torch or JAX differentiates it.
    conjugate
        The gradient of complex parameters is ∂f/∂Re + i·∂f/∂Im, torch's. True: the one that is given is the conjugate
        of that, JAX's. With ``jac=False`` nothing need be said.
    bounds
        ``(lower, upper)``, each None, a number, an array like x0, or a tree of these like x0; or SciPy's ``Bounds``.
        Equal bounds hold a variable still. Every evaluation is within them; x0 is moved there. Of complex parameters
        there are none.
    maxiter
        Iterations, ≥ 0. None: 15,000, for a rule 1,000.
    tol
        The same as the option ``gtol``.
    callback
        Called after every iteration with x, or, if its argument is called ``intermediate_result``, with an
        `OptimizeResult` of ``x, fun, nit, nfev``. It ends the run by returning True or raising ``StopIteration``.
    progress
        Show a bar (needs tqdm).
    options
        ``gtol`` (1e-5): stop when no element of the gradient is larger; within bounds, of x - P(x - g), with the
        projection P. ``ftol`` (0): when the value falls by no more, as a part of the larger of it and 1. ``xtol`` (0;
        not of rules): when no element moves by more, as a part of the largest and 1. ``maxfun``: evaluations.
        ``target``: stop at this value. ``max_time``: seconds. ``history`` (10; ``"lbfgs"``, ``"lbfgs-b"``): steps to
        remember. ``maxls`` (40): evaluations of a line search. ``line_search``: ``"hager-zhang"`` (where differences of
        values drown in roundings it looks at slopes: Hager & Zhang 2006), ``"strong-wolfe"`` (for ``"cg"``; the same,
        until the slope is flat on both sides, \|slope\| ≤ σ·\|slope at the start\| with σ = 0.9, for ``"cg"`` 0.1),
        ``"armijo"`` (backtracking), or a function, see below. ``preconditioner`` (not with bounds): a function g ↦ P·g
        of trees like x0, linear, symmetric and positive definite, the same throughout, about the inverse of the
        Hessian, that does not write into g: directions are computed from P·g, as if x were C⁻¹·x with P = C·Cᵀ.
        ``every`` (10; rules): steps between looks at the value. ``runner`` (rules), see `Optimizer`.

    Returns
    -------
    OptimizeResult
        x of the same library, dtype, device and structure as x0.

    Raises
    ------
    TypeError, ValueError
        For what does not fit, by name; for a value at x0 that is infinite or NaN. What ``fun`` raises comes through,
        with an ``intermediate_result``: the best point so far; for a rule the last, whose value is then NaN.

    Notes
    -----
    Values are brought to the host once an evaluation, with all products that the method needs; with ``xtol`` once more
    an iteration; with bounds once at the start, and a few times where a projected step would climb, which is rare; for
    a rule once in ``every`` steps. An interrupt (Ctrl-C) ends the run, with status 3.

    A line search is ``search(along, start, first, *, tol, maxls, sigma, longest)``: ``along(alpha)`` evaluates and
    returns a point with ``alpha``, ``value`` and ``slope``, as ``start`` is one; ``first`` is the length to try first,
    ``tol`` what values may be wrong by, ``sigma`` how flat the slope should become, ``longest`` the longest step, which
    is finite with bounds only. It returns one of the points, or None.

    Memory, in vectors of the size of x0: 2·history + 4 for ``"lbfgs"`` (2·history for the history; x and the gradient,
    before and after the step), 2 more in an iteration that takes several evaluations, 2 more with a preconditioner; for
    ``"lbfgs-b"`` 2 more than that, and the bounds; 5 to 7 for the others; for a rule its state. What ``fun`` returns is
    copied, and not counted here. JAX, whose arrays cannot be written into, needs some more.

    References
    ----------
    J. Nocedal (1980), Updating quasi-Newton matrices with limited storage, Mathematics of Computation 35.

    W. Chen, Z. Wang, J. Zhou (2014), Large-scale L-BFGS using MapReduce, NIPS 27, Algorithm 3.

    R. H. Byrd, P. Lu, J. Nocedal, C. Zhu (1995), A limited memory algorithm for bound constrained optimization, SIAM
    Journal on Scientific Computing 16; J. L. Morales, J. Nocedal (2011), Remark on Algorithm 778, ACM Transactions on
    Mathematical Software 38. There a generalized Cauchy point tells which variables are free, one after the other;
    here, as in D. P. Bertsekas (1982), Projected Newton methods, SIAM Journal on Control and Optimization 20, they are
    those that are not at a bound with a slope that pushes against it.

    W. W. Hager, H. Zhang (2006), Algorithm 851: CG_DESCENT, ACM Transactions on Mathematical Software 32.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> def fun(x):
    ...     a, b = x[1] - x[0] ** 2, 1 - x[0]
    ...     return 100 * a**2 + b**2, np.stack([-400 * a * x[0] - 2 * b, 200 * a])
    >>> result = xopt.minimize(fun, np.asarray([-1.2, 1.0]))
    >>> result.x.round(4), result.success
    (array([1., 1.]), True)
    >>> xopt.minimize(fun, np.zeros(2), bounds=(None, 0.5)).x.round(4)
    array([0.5 , 0.25])
    >>> xopt.minimize(lambda x: (x @ x, 2 * x), np.ones(3), xopt.Adam(lr=0.1), maxiter=500).fun < 1e-9
    True
    """
    if rule is not None and method is not None:
        raise TypeError(f"method: {method!r}, but a rule is given too; choose one of both")
    given = {**(options or {})}
    if tol is not None:
        given.setdefault("gtol", tol)
    name: str = "rule" if rule is not None else method or ("lbfgs" if bounds is None else "lbfgs-b")
    if bounds is not None and name != "lbfgs-b":
        chosen = "a rule, which xopt.Box behind it keeps within bounds" if rule is not None else f"method {name!r}"
        raise TypeError(f"bounds: given with {chosen}; 'lbfgs-b' has bounds")
    if rule is None:
        if name not in METHODS:
            raise ValueError(
                f"method: {method!r}, but it must be one of {', '.join(map(repr, METHODS))}, or give a rule"
            )
    else:
        check_method(rule)
    unknown = sorted({*given} - OPTIONS[name])
    if unknown:
        raise TypeError(f"options: {', '.join(unknown)}, but for {name} there are {', '.join(sorted(OPTIONS[name]))}")
    limits = _limits(given, maxiter if maxiter is not None else 1000 if rule is not None else 15000)
    layout = checked_layout(x0)
    both = objective(fun, jac, args, layout, conjugate)
    run: Descent | Stepping
    if rule is not None:
        every = _count("every", given.get("every", 10), 1)
        run = Stepping(both, layout, rule, limits, every=every, runner=given.get("runner"))
    else:
        run = Descent(layout, name, limits, bounds=bounds, **solver_options(given, name))
        run.fun = both
    return _run(run, callback, progress, limits.maxiter)


def checked_layout(x0: Any) -> Layout:
    """Find the arrays of x0, or say why they cannot be minimized over."""
    layout = Layout(x0, name="x0")
    if layout.library == "dask":
        raise TypeError("x0: an array of dask, which computes nothing until the end; minimize must look at values")
    return layout


def solver_options(given: Mapping[str, Any], name: str = "lbfgs") -> dict[str, Any]:
    """Check what the solvers have in common, and fill in the defaults."""
    search = given.get("line_search", "strong-wolfe" if name == "cg" else "hager-zhang")
    preconditioner = given.get("preconditioner")
    if not callable(search) and search not in SEARCHES:
        raise ValueError(f"line_search: {search!r}, but it must be one of {', '.join(SEARCHES)}, or a function")
    if preconditioner is not None and not callable(preconditioner):
        raise TypeError(f"preconditioner: {preconditioner!r}, but it must be a function of the gradient")
    return {
        "history": _count("history", given.get("history", 10), 1), "maxls": _count("maxls", given.get("maxls", 40), 1),
        "search": search if callable(search) else SEARCHES[search], "preconditioner": preconditioner,
    }  # fmt: skip


def _run(run: Descent | Stepping, callback: Any, progress: bool, total: float) -> OptimizeResult:
    call, begun = _callback(callback), False
    bar: Any = importlib.import_module("tqdm.auto").tqdm(total=total) if progress else None
    with closing(bar) if bar is not None else nullcontext():
        try:
            run.begin()
            begun = True
            while True:
                run.iterate()
                if bar is not None:
                    bar.update()
                    bar.set_postfix(fun=f"{float(run.value):.6g}")
                if call is not None and call(run):
                    raise Stop(STOPPED, "stopped: by the callback")
        except Stop as stop:
            if stop.status not in (CONVERGED, STOPPED):
                run.settle()
            return _result(run, stop.status, stop.message)
        except KeyboardInterrupt:
            run.settle()
            return _result(run, INTERRUPTED, "stopped: interrupted")
        except Exception as error:
            if begun:
                run.settle()
                error.intermediate_result = _result(run, INTERRUPTED, f"stopped: {error}")  # type: ignore[attr-defined]
                error.add_note(
                    f"after {run.nfev} evaluations; this exception's intermediate_result has what was reached"
                )
            raise


def _result(run: Descent | Stepping, status: int, message: str) -> OptimizeResult:
    value = float(run.value)
    return OptimizeResult(
        x=run.x, fun=value, jac=None if math.isnan(value) else run.gradient, nit=run.nit, nfev=run.nfev, njev=run.nfev,
        status=status, success=status == CONVERGED, message=message,
    )  # fmt: skip


def _callback(callback: Any) -> Callable[[Descent | Stepping], bool] | None:
    if callback is None:
        return None
    named = "intermediate_result" in inspect.signature(callback).parameters

    def call(run: Descent | Stepping) -> bool:
        x = run.x
        try:
            if named:
                found = OptimizeResult(x=x, fun=float(run.value), nit=run.nit, nfev=run.nfev)
                return _is_true(callback(intermediate_result=found))
            return _is_true(callback(x))
        except StopIteration:
            return True

    return call


def _is_true(found: Any) -> bool:
    """Whether a callback returned True, of any library; it may return anything else, as in SciPy."""
    return found is True or ("bool" in str(getattr(found, "dtype", "")) and tuple(found.shape) == () and bool(found))


def _limits(given: Mapping[str, Any], maxiter: Any) -> Limits:
    values = {n: given[n] for n in Limits._field_defaults if n in given}
    for n, x in values.items():
        if isinstance(x, bool) or not isinstance(x, int | float | np.integer | np.floating) or math.isnan(x):
            raise TypeError(f"{n}: {x!r}, but it must be a number")
        least = {"target": -math.inf, "maxfun": 1}.get(n, 0)
        if x < least:
            raise ValueError(f"{n}: {x!r}, but it must be ≥ {least}")
    return Limits(_count("maxiter", maxiter, 0), **{n: float(x) for n, x in values.items()})


def _count(name: str, x: Any, least: int) -> int:
    if isinstance(x, bool) or not isinstance(x, int | np.integer):
        raise TypeError(f"{name}: {x!r}, but it must be a whole number")
    if x < least:
        raise ValueError(f"{name}: {x}, but it must be ≥ {least}")
    return int(x)
