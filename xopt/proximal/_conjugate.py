"""Conjugate gradients for the step of x in ADMM."""

from __future__ import annotations

import math
from typing import Any

from xopt import _arrays
from xopt.proximal._prox import Prox
from xopt.proximal._space import Leaves, Operator, Trees, combined


class Equations:
    """The linear system (A*ΛA + ρ·K*K)·x = A*Λb + right, where g(A·x) = Λ/2·‖A·x - b‖²."""

    def __init__(self, g: Prox, K: Operator, A: Operator, preconditioner: Any, most: int) -> None:
        self.g, self.K, self.A, self.preconditioner, self.most = g, K, A, preconditioner, most
        self.space: Trees = K.space
        assert g.gradient is not None
        zeros = A.image.tree([A.image.xp.zeros_like(v) for v in A.image.start])
        self.none = A.image.leaves(g.gradient(zeros), "gradient")
        """-Λb."""
        self.back = A.adjoint(self.none)

    def times(self, x: Leaves, rho: float) -> Leaves:
        """Return (A*ΛA + ρ·K*K)·x."""
        A, g = self.A, self.g
        assert g.gradient is not None
        Ax = A.image.leaves(g.gradient(A.image.tree(A.forward(x))), "gradient")
        return combined(A.adjoint(combined(Ax, -1, self.none)), rho, self.K.adjoint(self.K.forward(x)))

    def prepared(self, r: Leaves, rho: float) -> Leaves:
        if self.preconditioner is None:
            return r
        return self.space.leaves(self.preconditioner(self.space.tree(r), rho), "preconditioner")

    def solved(self, x: Leaves, Kx: Leaves, right: Leaves, rho: float, left: float) -> tuple[Leaves, float]:
        """Return x, from a guess, and the norm of the residual, at most ``left`` unless that takes too long.

        At least one step is taken: a residual that is small enough at once would leave x where it is for ever.
        """
        space = self.space
        r = combined(combined(right, -1, self.back), -1, self.times(x, rho))
        z = self.prepared(r, rho)
        p, zr = z, space.dot(z, r)
        [size] = space.look(space.square(r))
        enough = left if math.isfinite(left) else 0.1 * math.sqrt(size)
        for _ in range(self.most):
            if size == 0 or not math.isfinite(size):
                break
            q = self.times(p, rho)
            curve = space.dot(p, q)
            alpha = zr / space.xp.where(curve == 0, space.xp.ones_like(curve), curve)
            x, r = _moved(space, x, alpha, p), _moved(space, r, -alpha, q)
            z = self.prepared(r, rho)
            last, zr = zr, space.dot(z, r)
            [size] = space.look(space.square(r))
            if math.sqrt(size) <= enough:
                break
            p = _moved(space, z, zr / last, p)
        return x, math.sqrt(size) if size >= 0 else math.nan


def _moved(space: Trees, x: Leaves, alpha: Any, p: Leaves) -> Leaves:
    """Return x + α·p with an α that stays on the device."""
    found = []
    for v, w, d in zip(x, p, space.layout.dtypes, strict=True):
        found.append(v + _arrays.cast(space.xp, alpha, getattr(space.xp, d.real)) * w)
    return found
