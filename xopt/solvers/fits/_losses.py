"""Robust losses ρ(z) of squared residuals z, as SciPy has them, and what Gauss-Newton sees of them."""

from __future__ import annotations

from typing import Any

Array = Any
LOSSES = ("linear", "soft_l1", "huber", "cauchy", "arctan")


def rho(xp: Any, loss: str, z: Array) -> tuple[Array, Array, Array]:
    """Return ρ, ρ′ and ρ″."""
    if loss == "soft_l1":
        t = 1 + z
        root = xp.sqrt(t)
        return 2 * (root - 1), 1 / root, -0.5 / (t * root)
    if loss == "huber":
        root = xp.sqrt(xp.where(z > 1, z, xp.ones_like(z)))
        return (
            xp.where(z > 1, 2 * root - 1, z),
            1 / root,
            xp.where(z > 1, -0.5 / (root * root * root), xp.zeros_like(z)),
        )
    if loss == "cauchy":
        t = 1 + z
        return xp.log1p(z), 1 / t, -1 / (t * t)
    assert loss == "arctan"
    t = 1 + z * z
    return xp.atan(z), 1 / t, -2 * z / (t * t)


def cost(xp: Any, loss: str, f: Array, f_scale: float) -> Array:
    """Return the sum over the last axis of C²·ρ((f/C)²), half of it."""
    if loss == "linear":
        return 0.5 * xp.vecdot(f, f)
    z = (f / f_scale) ** 2
    return (0.5 * f_scale * f_scale) * xp.sum(rho(xp, loss, z)[0], axis=-1)


_CONVEX = 0.01
"""The least weight, as a part of ρ′."""


def weighted(xp: Any, loss: str, f: Array, f_scale: float) -> tuple[Array, Array | None]:
    """Return residuals, and a weight for the rows of J, None for 1: with both the gradient is that of the loss.

    JᵀJ is about its Hessian (Triggs et al. 2000).

    A weight w² = ρ′ + 2ρ″z may be 0 or less; then, as f is divided by it, it is a part of ρ′, which alone is safe.
    """
    if loss == "linear":
        return f, None
    z = (f / f_scale) ** 2
    _, first, second = rho(xp, loss, z)
    full, least = first + 2 * second * z, _CONVEX * first
    w = xp.sqrt(xp.where(full > least, full, least))
    return f * first / w, w
