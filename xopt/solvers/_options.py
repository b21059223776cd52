"""The options of solvers, under xopt's names and SciPy's."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from xopt._arrays.scalars import is_number
from xopt.solvers import _line
from xopt.solvers._line import Point
from xopt.solvers._stopping import Limits

SEARCHES: dict[str, Callable[..., Point | None]] = {
    "hager-zhang": _line.hager_zhang,
    "strong-wolfe": functools.partial(_line.hager_zhang, strong=True),
    "armijo": _line.armijo,
}
_ANY = {"maxiter", "maxfun", "gtol", "ftol", "target", "max_time", "disp", "eps"}
_RULE = {*_ANY, "every", "runner"}
_SEARCH = {*_ANY, "xtol", "line_search"}
_SAME = {"maxfev": "maxfun", "maxcor": "history"}


class Option(NamedTuple):
    """An option of a solver."""

    default: Any
    check: Callable[[str, Any], Any]
    """Checks what was given under a name, and returns it."""


class Solver(NamedTuple):
    """A row of the table of solvers: all that the rest of the package knows of one."""

    name: str
    direction: Callable[..., Any]
    """Makes a `Direction` of the space and the options by name, within bounds also of ``box``, ``preconditioner``."""
    options: Mapping[str, Option] = {}
    """Options that not all have. ``preconditioner``, which makes P·g, is given to ``direction`` with bounds only."""
    bounds: bool = False
    """Whether it has bounds."""
    hessian: bool = False
    """Whether it uses the Hessian, which is given to what ``direction`` makes, as its ``hessian``."""
    parts: bool = True
    """Whether each process may have its own part of the parameters."""
    trust: bool = False
    """Whether it has a trust region in place of a line search; ``direction`` makes a `Subproblem` then."""
    line_search: str = "hager-zhang"
    """The search where none is given."""
    tol: tuple[str, ...] = ("gtol",)
    """What ``tol`` stands for."""
    scipy: Mapping[str, Any] = {}
    """Defaults where SciPy calls it."""


def gathered(solver: Solver | None, options: Mapping[str, Any] | None, maxiter: Any, tol: Any) -> dict[str, Any]:
    """Return all options under xopt's names; refuse those that a solver (None: a rule) has not, or given twice."""
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"options: a {type(options).__name__}, but it must be a dictionary")
    given = {n: x for n, x in (options or {}).items() if x is not None}
    name, known = ("rule", _RULE) if solver is None else (solver.name, {*_taken(solver), *solver.options})
    known = known | {theirs for theirs, ours in _SAME.items() if ours in known}
    unknown = sorted({*map(str, given)} - known)
    if unknown:
        raise TypeError(f"options: {', '.join(unknown)}, but for {name} there are {', '.join(sorted(known))}")
    for theirs, ours in _SAME.items():
        if theirs in given:
            if ours in given:
                raise TypeError(f"options: {theirs} and {ours} are the same; give one of them")
            given[ours] = given.pop(theirs)
    if maxiter is not None:
        if "maxiter" in given:
            raise TypeError("maxiter: given twice, also among the options; give one of them")
        given["maxiter"] = maxiter
    given.setdefault("maxiter", 1000 if solver is None else 15000)
    for n in ("gtol",) if solver is None else solver.tol:
        if tol is not None:
            given.setdefault(n, tol)
    return given


def _taken(solver: Solver) -> set[str]:
    """Return the options that a solver has besides its own."""
    return {*_ANY, "xtol"} if solver.trust else {*_SEARCH, *_OWN}


def limits(given: Mapping[str, Any]) -> Limits:
    """Check when to stop."""
    values = {n: given[n] for n in Limits._field_defaults if n in given}
    for n, x in values.items():
        if not is_number(x) or math.isnan(x):
            raise TypeError(f"{n}: {x!r}, but it must be a number")
        least = {"target": -math.inf, "maxfun": 1}.get(n, 0)
        if x < least:
            raise ValueError(f"{n}: {x!r}, but it must be ≥ {least}")
    maxiter = given["maxiter"]
    endless = isinstance(maxiter, float | np.floating) and maxiter == math.inf
    return Limits(math.inf if endless else count("maxiter", maxiter, 0), **{n: float(x) for n, x in values.items()})


def solver_options(given: Mapping[str, Any], solver: Solver) -> dict[str, Any]:
    """Check the options of a solver other than when to stop, and fill in the defaults."""
    if solver.trust:
        return {n: option.check(n, given.get(n, option.default)) for n, option in solver.options.items()}
    search = given.get("line_search", solver.line_search)
    if not callable(search) and search not in SEARCHES:
        raise ValueError(f"line_search: {search!r}, but it must be one of {', '.join(SEARCHES)}, or a function")
    own = {n: option.check(n, given.get(n, option.default)) for n, option in {**solver.options, **_OWN}.items()}
    return {"search": search if callable(search) else SEARCHES[search], **own}


def count(name: str, x: Any, least: int) -> int:
    """Check a whole number; 1e4 is one."""
    whole = isinstance(x, int | np.integer) or (isinstance(x, float | np.floating) and float(x).is_integer())
    if isinstance(x, bool) or not whole:
        raise TypeError(f"{name}: {x!r}, but it must be a whole number")
    if x < least:
        raise ValueError(f"{name}: {x}, but it must be ≥ {least}")
    return int(x)


def positive(name: str, x: Any) -> int:
    """Check a whole number ≥ 1."""
    return count(name, x, 1)


def radius(name: str, x: Any) -> float:
    """Check a number > 0, which may be infinite."""
    if not is_number(x) or not x > 0:
        raise ValueError(f"{name}: {x!r}, but it must be a number > 0")
    return float(x)


def quarter(name: str, x: Any) -> float:
    """Check a number ≥ 0 and < 1/4."""
    if not is_number(x) or not 0 <= x < 0.25:
        raise ValueError(f"{name}: {x!r}, but it must be ≥ 0 and < 0.25")
    return float(x)


def anything(name: str, x: Any) -> Any:
    """Leave it to the solver to check, who knows the parameters."""
    return x


def of_gradient(name: str, x: Any) -> Any:
    """Check a function of the gradient, or None."""
    if x is not None and not callable(x):
        raise TypeError(f"{name}: {x!r}, but it must be a function of the gradient")
    return x


_OWN = {"maxls": Option(40, positive)}
"""What every solver with a line search has."""
