"""The solvers of `minimize`, a row each."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

from xopt.solvers._bfgs import BFGS
from xopt.solvers._bounded import Bounded
from xopt.solvers._directions import LimitedMemory, PolakRibiere, Steepest
from xopt.solvers._newton import Newton
from xopt.solvers._options import Option, Solver, anything, of_gradient, positive, quarter, radius
from xopt.solvers._trust import Exact, Steihaug

MethodName: TypeAlias = Literal[
    "lbfgs", "lbfgs-b", "cg", "gd", "bfgs", "newton-cg", "trust-ncg", "trust-exact",
    "L-BFGS-B", "CG", "BFGS", "Newton-CG",
]  # fmt: skip
"""The names of the rows, and SciPy's."""

_HISTORY = {"history": Option(10, positive)}
_PRECONDITIONER = {"preconditioner": Option(None, of_gradient)}
_PRODUCTS = {"maxcg": Option(1000, positive)}
_RADIUS = {
    "initial_trust_radius": Option(1.0, radius),
    "max_trust_radius": Option(math.inf, radius),
    "eta": Option(0.15, quarter),
}
_BOTH = "gtol", "ftol"
_SCIPY = {"ftol": 2.220446049250313e-09, "maxfun": 15000}
"""What SciPy's L-BFGS-B does where nothing is said. The rest of its defaults are those of xopt too."""

SOLVERS = {
    solver.name: solver
    for solver in (
        Solver("lbfgs", LimitedMemory, _PRECONDITIONER | _HISTORY, tol=_BOTH, scipy=_SCIPY),
        Solver("lbfgs-b", Bounded, _PRECONDITIONER | _HISTORY, bounds=True, tol=_BOTH, scipy=_SCIPY),
        Solver("cg", PolakRibiere, _PRECONDITIONER, line_search="strong-wolfe"),
        Solver("gd", Steepest, _PRECONDITIONER),
        Solver("bfgs", BFGS, {"hess_inv0": Option(None, anything)}, parts=False),
        Solver("newton-cg", Newton, _PRECONDITIONER | _PRODUCTS, hessian=True),
        Solver("trust-ncg", Steihaug, _PRECONDITIONER | _PRODUCTS | _RADIUS, hessian=True, trust=True),
        Solver("trust-exact", Exact, _RADIUS, hessian=True, trust=True),
    )
}
"""The first without bounds and the first with bounds are the defaults."""


def default(bounded: bool) -> Solver:
    """Return the solver that is taken where none is named."""
    return next(solver for solver in SOLVERS.values() if solver.bounds == bounded)


def chosen(method: Any, bounded: bool) -> Solver:
    """Return the solver of a name; SciPy's names go too, and letters of either case."""
    if method is None:
        return default(bounded)
    name = method.lower() if isinstance(method, str) else ""
    name = {"l-bfgs": "lbfgs", "l-bfgs-b": default(bounded).name}.get(name, name)
    if name not in SOLVERS:
        known = ", ".join(map(repr, SOLVERS))
        raise ValueError(f"method: {method!r}, but it must be one of {known}, 'L-BFGS-B', or give a rule")
    return SOLVERS[name]


def hessian_names() -> list[str]:
    """Return the names of the solvers that use the Hessian."""
    return [solver.name for solver in SOLVERS.values() if solver.hessian]


def bounded_names() -> list[str]:
    """Return the names of the solvers that have bounds."""
    return [solver.name for solver in SOLVERS.values() if solver.bounds]
