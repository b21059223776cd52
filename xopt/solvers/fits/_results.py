"""What `least_squares` returns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xopt._arrays.transfer import to_host
from xopt.solvers._result import OptimizeResult
from xopt.solvers.fits._arguments import beside
from xopt.solvers.fits._batch import Batch
from xopt.solvers.fits._box import mask
from xopt.solvers.fits._fit import MESSAGES, Fit, Found
from xopt.solvers.fits._residuals import Residuals
from xopt.solvers.fits._truncated import TruncatedFit


def tree_of(own: Residuals, x: Any) -> Any:
    """Return a vector where the control is as a tree of all fits."""
    if not own.lead:
        return own.tree(beside(own, x) if isinstance(x, np.ndarray) else x)
    lead, own.lead = own.lead, (own.count,)
    try:
        return own.tree(own.xp.permute_dims(x, (1, 0)))
    finally:
        own.lead = lead


def _matrix(own: Residuals, x: Any) -> Any:
    return own.xp.permute_dims(x, (2, 0, 1)) if own.lead else beside(own, x)


def plain(own: Residuals, x: Any) -> Any:
    """Return a number of one fit as Python's; of many as it is."""
    return x if own.lead else np.asarray(x).item()


def result(run: Batch | Fit | TruncatedFit, status: int | None) -> tuple[OptimizeResult, Any]:
    """Return what a run found, and (JᵀJ)⁻¹ where it is known; ``status`` is that of fits that still run."""
    if isinstance(run, TruncatedFit):
        return run.result(status), None
    found, own = run.found(status), run.residuals
    made = _made(own, run, found)
    if isinstance(run, Fit) and run.at.columns:
        made["jac"] = own.xp.stack(run.at.columns, axis=-1)
    return made, _matrix(own, found.inverse)


def _made(own: Residuals, run: Batch | Fit, found: Found) -> OptimizeResult:
    xp, n, many = own.xp if own.lead else np, own.n, found.f.shape[-1]
    with np.errstate(all="ignore"):
        low, high = sides = [None if side is None else own.side(side) for side in own.box]
        held = 0 if low is None else xp.sum(xp.astype(low == high, found.x.dtype), axis=0)
        free = xp.zeros_like(found.cost) + (many - n) + held
        covariance = 2 * found.cost / xp.where(free > 0, free, xp.full_like(free, math.nan)) * found.inverse
        covariance = xp.where(xp.isfinite(covariance), covariance, xp.full_like(covariance, math.inf))
        errors = xp.sqrt(xp.stack([covariance[j, j, ...] for j in range(n)]))
    return OptimizeResult(
        x=tree_of(own, found.x), cost=plain(own, found.cost), fun=found.f, grad=tree_of(own, found.gradient),
        optimality=plain(own, found.cosine), active_mask=tree_of(own, mask(xp, found.x, *sides)),
        nit=plain(own, found.nit), nfev=run.nfev, njev=run.njev, covariance=_matrix(own, covariance),
        stderr=tree_of(own, errors), status=plain(own, found.status), success=plain(own, found.status > 0),
        message=_message(own, found.status),
    )  # fmt: skip


def _message(own: Residuals, status: Any) -> str:
    if not own.lead:
        return MESSAGES[int(status)]
    found = np.asarray(to_host(status))
    counts = [(int(x), int((found == x).sum())) for x in np.unique(found)[::-1]]
    return "; ".join(f"{many:,} {MESSAGES[x]}" for x, many in counts)
