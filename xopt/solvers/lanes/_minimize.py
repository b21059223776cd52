"""`minimize` with ``batched=True``: what a user gives and gets."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from xopt import _arrays
from xopt._arrays import tree as _tree
from xopt._arrays.layout import Layout
from xopt._arrays.transfer import to_host
from xopt.solvers._callbacks import annotate, called, progress_bar
from xopt.solvers._differences import SCHEMES, checked_step
from xopt.solvers._objective import pair, way
from xopt.solvers._options import count, gathered, limits, of_gradient
from xopt.solvers._registry import chosen
from xopt.solvers._result import OptimizeResult
from xopt.solvers._stopping import CONVERGED, INTERRUPTED, STOPPED
from xopt.solvers.fits._arguments import bounded, check_arrays
from xopt.solvers.fits._batch import Batch, Kind
from xopt.solvers.fits._residuals import DifferenceColumns, Residuals, named, numbers
from xopt.solvers.fits._results import tree_of
from xopt.solvers.lanes._curvature import Array, Curvature, Matrices, Steps
from xopt.solvers.lanes._minimizations import ENDS, Ended, Minimizations, nothing

METHODS = ("lbfgs", "lbfgs-b", "bfgs")
_CALLBACK, _INTERRUPT = 11, 12
_ALL_ENDS = {
    **ENDS,
    _CALLBACK: (STOPPED, "stopped: by the callback"),
    _INTERRUPT: (INTERRUPTED, "stopped: interrupted"),
}
_NOT = {"line_search", "hess_inv0"}
"""Options of the same methods that lanes do not have."""
Evaluate = Callable[[Array], tuple[Array, Array]]


def solve_many(
    fun: Any, layout: Layout, *, method: Any, jac: Any, args: Any, conjugate: bool, bounds: Any, data: Any,
    maxiter: Any, tol: Any, options: Mapping[str, Any] | None, callback: Callable[..., Any] | None,
    progress: bool,
) -> tuple[OptimizeResult, KeyboardInterrupt | None]:  # fmt: skip
    """Minimize the functions of all lanes."""
    solver = chosen(method, bounds is not None)
    if solver.name not in METHODS or (bounds is not None and method is not None and not solver.bounds):
        raise ValueError(f"method: {method!r}, but with batched=True there are {', '.join(map(repr, METHODS))}")
    wrong = sorted({n for n, x in (options or {}).items() if x is not None} & _NOT)
    if wrong:
        raise TypeError(f"options: {', '.join(wrong)}, but not with batched=True")
    given = gathered(solver, options, maxiter, tol)
    when, step = limits(given), given.get("eps")
    check_arrays(layout, True)
    low, high = (None, None) if bounds is None else bounded(bounds, layout, True)
    if not callable(fun):
        raise TypeError(f"fun: {fun!r}, but it must be a function")
    more = args if isinstance(args, tuple) else (args,)
    own = Residuals(lambda *x: fun(*x, *more), layout, True, data, low, high)
    evaluate = _objective(fun, jac, more, own, conjugate, step)
    cost = evaluate.cost if isinstance(evaluate, DifferencesOfLanes) else 1
    when, began = when._replace(maxfun=max(1.0, when.maxfun / cost)), time.monotonic()
    history = count("history", given.get("history", 10), 1)
    maxls = count("maxls", given.get("maxls", 40), 1)
    precondition = _preconditioner(own, of_gradient("preconditioner", given.get("preconditioner")), low is not None)

    def curvature(x: Array) -> Curvature:
        return Matrices(own.xp, x) if solver.name == "bfgs" else Steps(own.xp, x, history, precondition)

    def make(start: Array) -> Minimizations:
        low, high = (None if side is None else own.side(side) for side in (own.low, own.high))
        return Minimizations(evaluate, own.xp, when, maxls, curvature, start, low, high, own.real, own.coarse, began)

    def width() -> int:
        sizes: list[int] = [math.prod(x.shape[1:]) for x in _tree.flatten(own.given)[0]]
        return max(own.n, *sizes, 1)

    kind = Kind(make, lambda x: nothing(own.xp, own.xp.permute_dims(x, (1, 0)), _INTERRUPT), width, _CALLBACK)
    run = Batch(own, own.vector(layout.leaves), kind)

    def shown(run: Batch, x: Any) -> OptimizeResult:
        return OptimizeResult(x=x, fun=run.now("value"), nit=run.now("nit"), nfev=cost * run.nfev)

    call = None if callback is None else called(callback, lambda run: tree_of(own, run.now("x")), shown)
    try:
        with progress_bar(progress, own.count) as bar:
            return _result(own, run, cost, run.run(call, bar)), None
    except KeyboardInterrupt as interrupt:
        return _result(own, run, cost, _INTERRUPT), interrupt
    except Exception as error:
        if run.begun:
            with suppress(Exception):  # nothing may come in the place of what was raised
                annotate(error, _result(own, run, cost, _INTERRUPT))
        raise


class DifferencesOfLanes:
    """Values, and gradients from differences of them, with the steps of one minimization."""

    def __init__(self, own: Residuals, scheme: str, step: Any) -> None:
        self._own, self._columns = own, DifferenceColumns(own, scheme, None)
        given = checked_step(step, own.n)
        self._given = None if given is None else np.broadcast_to(given, own.n)
        self.cost = 1 + (SCHEMES[scheme] - 1) * own.n
        """Evaluations that it takes."""

    def __call__(self, x: Array) -> tuple[Array, Array]:
        own, xp = self._own, self._own.xp
        value = own(x)
        one = _one(own, value)
        with np.errstate(all="ignore"):
            found = [self._columns.slope(x, value, i, self._step(x[:, i], i))[:, 0] for i in range(own.n)]
        return one, xp.stack(found, axis=-1)

    def _step(self, x: Array, i: int) -> Array:
        xp, size = self._own.xp, self._own.xp.abs(x)
        best = self._columns.step[i] * xp.where(size > 1, size, xp.ones_like(size))
        if self._given is None:
            return best
        step = xp.full_like(x, float(self._given[i]))
        return xp.where(x + step == x, best, step)


def _objective(fun: Any, jac: Any, args: tuple[Any, ...], own: Residuals, conjugate: bool, step: Any) -> Evaluate:
    """Return a function from vectors of all lanes to their values and gradients."""
    jac = way(jac, step, own.layout)
    if isinstance(jac, str):
        return DifferencesOfLanes(own, jac, step)
    if jac is False:

        def derived(x: Array) -> tuple[Array, Array]:
            value, back = own.layout.library.across(own.raw, x)
            return _one(own, value), _arrays.detached(back(own.xp.ones_like(value)))

        return derived

    def both(x: Array) -> list[Array]:
        point = own.tree(x)
        if jac is True:
            value, grads = pair(own.quietly(fun, point, *own.given, *args))
        else:
            value = own.quietly(fun, point, *own.given, *args)
            grads = own.quietly(jac, point, *own.given, *args)
        return [_one(own, own.checked(value)), _gradient(own, grads, conjugate)]

    def given(x: Array) -> tuple[Array, Array]:
        value, g = own.of_all(both, x)
        return value, g

    return given


def _one(own: Residuals, value: Array) -> Array:
    """Return the values of lanes, a number each."""
    if own.shape or own.complex:
        raise ValueError(
            f"fun: returned {'complex numbers of ' * own.complex}shape {(*own.lead, *own.shape)}, but it must be a "
            f"real number for each lane, {own.lead}"
        )
    return _arrays.detached(value)[:, 0]


def _preconditioner(own: Residuals, given: Any, diagonal: bool) -> Callable[[Array], Array] | None:
    """Return a function of vectors of lanes, lanes last, after a look whether it is diagonal, if it must be."""
    if given is None:
        return None
    xp, name = own.xp, "preconditioner"

    def rows(g: Array) -> list[Array]:
        return [_gradient(own, own.quietly(given, own.tree(g), *own.given), False, name)]

    def precondition(g: Array) -> Array:
        return xp.permute_dims(own.of_all(rows, xp.permute_dims(g, (1, 0)))[0], (1, 0))

    if diagonal:
        ones = xp.ones((own.n, own.count), dtype=own.dtype, **_arrays.beside(own.layout.leaves[0]))
        other = _arrays.cast(xp, xp.arange(own.n, **_arrays.beside(ones)) % 7 - 2, own.dtype)[:, None] * ones
        scales, found = precondition(ones), precondition(other)
        sizes = xp.max(scales, axis=0)
        off = xp.max(xp.max(xp.abs(found - scales * other), axis=0) / sizes)
        least, most, off = np.asarray(to_host(xp.stack([xp.min(scales), xp.max(sizes), off])))
        if not 0 < least <= most < math.inf:
            raise ValueError(
                f"{name}: numbers from {least} to {most} on its diagonals, but all must be positive and finite"
            )
        if not off <= 1e3 * np.finfo("float32" if own.coarse.any() else own.real).eps:
            raise ValueError(
                f"{name}: no diagonal matrices, but within bounds they must be, such as g ↦ d·g with one d"
            )
    return precondition


def _gradient(own: Residuals, grads: Any, conjugate: bool, name: str = "grads") -> Array:
    layout, xp, leaves = own.layout, own.xp, list[Array]()
    for k, g in enumerate(_tree.match(layout.spec, grads, name)):
        path, shape = layout.path(k, name), (*own.lead, *own.inner[k])
        g = numbers(path, g) if layout.library.host and isinstance(g, list | tuple) else g
        if _arrays.library(g) is not layout.library:
            raise TypeError(f"{path}: {named(g)}, but x0 has arrays of {layout.library}")
        if tuple(g.shape) != shape:
            raise ValueError(f"{path}: shape {tuple(g.shape)}, but it must be {shape}")
        if _arrays.is_complex(g) and not layout.dtypes[k].complex:
            raise TypeError(f"{path}: complex, but the parameter is real")
        if layout.dtypes[k].complex:
            g = _arrays.cast(xp, g, layout.raw_dtypes[k])
            g = xp.conj(g) if conjugate else g
        leaves.append(g)
    return own.vector(leaves)


def _result(own: Residuals, run: Batch, cost: int, end: int | None) -> OptimizeResult:
    found: Ended = run.found(end)
    ends = np.asarray(to_host(found.end))
    table = np.zeros(max(_ALL_ENDS) + 1, np.int32)
    for code, (status, _) in _ALL_ENDS.items():
        table[code] = status
    near = _arrays.beside(found.value)
    status = own.xp.asarray(table[ends], **near)
    counts = [(code, int((ends == code).sum())) for code in np.unique(ends)]
    message = "; ".join(f"{many:,} {_ALL_ENDS[int(code)][1]}" for code, many in counts)
    return OptimizeResult(
        x=tree_of(own, found.x), fun=found.value, jac=tree_of(own, found.gradient), nit=found.nit, nfev=cost * run.nfev,
        njev=run.njev, status=status, success=status == CONVERGED, message=message,
    )  # fmt: skip
