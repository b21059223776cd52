"""The options of solvers, under xopt's names and SciPy's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np

from xopt.solvers._descent import METHODS, SEARCHES, Limits

MethodName: TypeAlias = Literal["lbfgs", "lbfgs-b", "cg", "gd", "L-BFGS-B", "CG"]
MEMORY = "lbfgs", "lbfgs-b"
_ANY = {"maxiter", "maxfun", "maxfev", "gtol", "ftol", "target", "max_time", "disp", "eps"}
_SEARCH = {*_ANY, "xtol", "maxls", "line_search"}
OPTIONS = {
    "rule": {*_ANY, "every", "runner"},
    "lbfgs": {*_SEARCH, "history", "maxcor", "preconditioner"},
    "lbfgs-b": {*_SEARCH, "history", "maxcor"},
    "cg": {*_SEARCH, "preconditioner"},
    "gd": {*_SEARCH, "preconditioner"},
}
_SAME = {"maxfev": "maxfun", "maxcor": "history"}


def method_name(method: Any, bounded: bool) -> str:
    """Return what xopt calls a method; SciPy's names go too, and letters of either case."""
    if method is None:
        return MEMORY[bounded]
    name = method.lower() if isinstance(method, str) else ""
    name = {"l-bfgs": "lbfgs", "l-bfgs-b": MEMORY[bounded]}.get(name, name)
    if name not in METHODS:
        known = ", ".join(map(repr, METHODS))
        raise ValueError(f"method: {method!r}, but it must be one of {known}, 'L-BFGS-B', or give a rule")
    return name


def gathered(name: str, options: Mapping[str, Any] | None, maxiter: Any, tol: Any) -> dict[str, Any]:
    """Return all options under xopt's names; refuse those that the method does not have, or that are given twice."""
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"options: a {type(options).__name__}, but it must be a dictionary")
    given = {n: x for n, x in (options or {}).items() if x is not None}
    unknown = sorted({*map(str, given)} - OPTIONS[name])
    if unknown:
        raise TypeError(f"options: {', '.join(unknown)}, but for {name} there are {', '.join(sorted(OPTIONS[name]))}")
    for theirs, ours in _SAME.items():
        if theirs in given:
            if ours in given:
                raise TypeError(f"options: {theirs} and {ours} are the same; give one of them")
            given[ours] = given.pop(theirs)
    if maxiter is not None:
        if "maxiter" in given:
            raise TypeError("maxiter: given twice, also among the options; give one of them")
        given["maxiter"] = maxiter
    given.setdefault("maxiter", 1000 if name == "rule" else 15000)
    for n in ("gtol", "ftol") if name in MEMORY else ("gtol",):
        if tol is not None:
            given.setdefault(n, tol)
    return given


def limits(given: Mapping[str, Any]) -> Limits:
    """Check when to stop."""
    values = {n: given[n] for n in Limits._field_defaults if n in given}
    for n, x in values.items():
        if isinstance(x, bool) or not isinstance(x, int | float | np.integer | np.floating) or math.isnan(x):
            raise TypeError(f"{n}: {x!r}, but it must be a number")
        least = {"target": -math.inf, "maxfun": 1}.get(n, 0)
        if x < least:
            raise ValueError(f"{n}: {x!r}, but it must be ≥ {least}")
    maxiter = given["maxiter"]
    endless = isinstance(maxiter, float | np.floating) and maxiter == math.inf
    return Limits(math.inf if endless else count("maxiter", maxiter, 0), **{n: float(x) for n, x in values.items()})


def solver_options(given: Mapping[str, Any], name: str = "lbfgs") -> dict[str, Any]:
    """Check what the solvers have in common, and fill in the defaults."""
    search = given.get("line_search", "strong-wolfe" if name == "cg" else "hager-zhang")
    preconditioner = given.get("preconditioner")
    if not callable(search) and search not in SEARCHES:
        raise ValueError(f"line_search: {search!r}, but it must be one of {', '.join(SEARCHES)}, or a function")
    if preconditioner is not None and not callable(preconditioner):
        raise TypeError(f"preconditioner: {preconditioner!r}, but it must be a function of the gradient")
    return {
        "history": count("history", given.get("history", 10), 1), "maxls": count("maxls", given.get("maxls", 40), 1),
        "search": search if callable(search) else SEARCHES[search], "preconditioner": preconditioner,
    }  # fmt: skip


def count(name: str, x: Any, least: int) -> int:
    """Check a whole number; 1e4 is one."""
    whole = isinstance(x, int | np.integer) or (isinstance(x, float | np.floating) and float(x).is_integer())
    if isinstance(x, bool) or not whole:
        raise TypeError(f"{name}: {x!r}, but it must be a whole number")
    if x < least:
        raise ValueError(f"{name}: {x}, but it must be ≥ {least}")
    return int(x)
