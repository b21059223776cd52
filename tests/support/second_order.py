"""What bfgs, newton-cg, trust-ncg and trust-exact cost on the test functions, and what SciPy's cost."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize

import xopt
from support import mgh

NAMES = {"bfgs": "BFGS", "newton-cg": "Newton-CG", "trust-ncg": "trust-ncg", "trust-exact": "trust-exact"}
"""Of xopt, and of SciPy."""
_HESSIAN = {"bfgs": None, "newton-cg": "hessp", "trust-ncg": "hessp", "trust-exact": "hess"}


class Cost(NamedTuple):
    evaluations: int
    hessians: int
    """Hessians, or products with one."""
    value: float


class _Reached(Exception):
    pass


def beside_scipy(method: Any, gtol: float = 1e-5) -> Iterator[tuple[mgh.Problem, Cost | None, Cost | None]]:
    """Yield each function of the collection with what xopt and SciPy need; None where one does not get there."""
    named: dict[str, Any] = {} if method == "newton-cg" else {"gtol": 0.0}  # the gradient ends it, see below
    for problem in mgh.PROBLEMS:
        yield (
            problem,
            _cost(lambda fun, x0, **h: xopt.minimize(fun, x0, method=method, options={"gtol": 0.0}, maxiter=200, **h),
                  problem, _HESSIAN[method], gtol),
            _cost(lambda fun, x0, **h: optimize.minimize(
                fun, x0, jac=True, method=NAMES[method], options={"maxiter": 200, **(named or {"xtol": 0.0})}, **h),
                  problem, _HESSIAN[method], gtol),
        )  # fmt: skip


def _cost(solve: Callable[..., Any], problem: mgh.Problem, hessian: str | None, gtol: float) -> Cost | None:
    """Count until the first evaluation where the gradient is small, whatever a method calls its tolerances."""
    counts, known = [0, 0], dict[bytes, Any]()

    def fun(x: Any) -> Any:
        value, g = problem(x)
        counts[0] += 1
        if np.abs(g).max() <= gtol:
            raise _Reached(value)
        return value, g

    def hess(x: Any) -> Any:
        counts[1] += 1
        if x.tobytes() not in known:
            known.clear()
            known[x.tobytes()] = problem.hess(x)
        return known[x.tobytes()]

    second = {"hess": hess, "hessp": lambda x, p: hess(x) @ p}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            solve(fun, np.asarray(problem.start, "float64"), **({hessian: second[hessian]} if hessian else {}))
        except _Reached as reached:
            return Cost(*counts, reached.args[0])
    return None
