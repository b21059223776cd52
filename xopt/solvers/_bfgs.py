"""BFGS with a whole matrix, for problems of few parameters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xopt import _arrays
from xopt._arrays.transfer import to_host
from xopt.solvers._directions import Asked, Line, Numbers, Steepest, asked
from xopt.solvers._inverse_hessian import InverseHessian
from xopt.solvers._space import Array, Space, Vectors


class BFGS(Steepest):
    """d = -H·g, and after each step H ← (I - ρ·s·yᵀ)·H·(I - ρ·y·sᵀ) + ρ·s·sᵀ with ρ = 1/s·y.

    Before the first update H is s·y/y·y (Nocedal & Wright 2006, 6.20). A step without curvature leaves H as it is, and
    where roundings made d climb H is s·y/y·y again. The slope along d comes to the host with the first value there.
    """

    sigma = 0.9

    def __init__(self, space: Space, hess_inv0: Any = None) -> None:
        super().__init__(space)
        self.matrix: Array = None if hess_inv0 is None else _checked(space, hess_inv0)
        """H; None is the identity."""
        self._change: tuple[Array, Array, Array] = (None, None, None)
        """d, y and H·y of the last point that was evaluated."""
        self._length = self._square = 1.0
        """s·y/y·y of the last step; g·g."""

    @property
    def scaled(self) -> bool:  # type: ignore[override]
        return self.matrix is not None

    def sums(self, here: Vectors, new: Vectors, d: Array) -> Asked:
        dot, y = self.space.dot, new.g - here.g
        hy = y if self.matrix is None else dot(self.matrix, y)
        self._change = d, y, hy
        return asked(self.space, new, d, dot(here.g, d), dot(d, y), dot(y, hy), dot(y, y))

    def told(self, line: Line, sums: Numbers, tops: Numbers) -> Line:
        return Line(line.d, float(sums[2]))

    def accept(self, alpha: float, slope: float, slopes: float, sums: Numbers) -> None:
        along, bend, square = map(float, sums[3:6])
        d, y, hy = self._change
        tiny = float(np.finfo(self.space.real).tiny)
        if not (along > 1e-10 * abs(slope) and alpha * along >= tiny and tiny <= square < math.inf):
            return
        self._length = alpha * along / square
        if self.matrix is None:
            self.matrix = self._identity(self._length)
            hy, bend = self._length * y, self._length * square
        w = hy - (alpha + bend / along) / 2 * d  # H - (d·wᵀ + w·dᵀ)/d·y is the same, and as symmetric as H
        both = d[:, None] * ((1 / along) * w)[None, :]
        if self.space.writes:
            self.matrix -= both
            self.matrix -= self.space.xp.matrix_transpose(both)
        else:
            self.matrix = self.matrix - both - self.space.xp.matrix_transpose(both)

    def direction(self, here: Vectors, square: float) -> Line:
        self._square = square
        if self.matrix is None:
            return Line(-here.z, -square)
        return Line(-self.space.dot(self.matrix, here.g), math.nan)

    def instead(self, here: Vectors) -> Line | None:
        """Forget all but the length of the last step, where H is no longer positive definite."""
        self.matrix = self._identity(self._length)
        return Line(-self._length * here.z, -self._length * self._square)

    def reset(self) -> bool:
        had, self.matrix = self.matrix is not None, None
        return had

    def inverse(self) -> Array:
        """Return H in memory of its own."""
        return self._identity(1.0) if self.matrix is None else self.space.copied(self.matrix)

    def _identity(self, scale: float) -> Array:
        space = self.space
        return scale * space.xp.eye(space.size, dtype=space.dtype, **_arrays.beside(space.layout.leaves[0]))


def _checked(space: Space, given: Any) -> Array:
    """Return the matrix to begin with, beside the parameters, or say why it cannot be one."""
    name, n = "hess_inv0", space.size
    given = given.todense() if isinstance(given, InverseHessian) else given
    if _arrays.library(given) not in (None, _arrays.NUMPY, space.library):
        raise TypeError(f"{name}: an array of {_arrays.library(given)}, but x0 has arrays of {space.library}")
    try:
        found = np.asarray(given if _arrays.library(given) is None else to_host(given), float)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: a {type(given).__name__}, but it must be a matrix of real numbers") from None
    if found.shape != (n, n):
        raise ValueError(f"{name}: shape {found.shape}, but x0 has {n} real numbers, so it must be {(n, n)}")
    if not (np.isfinite(found).all() and np.allclose(found, found.T, rtol=1e-5, atol=0)):  # float32's, computed apart
        raise ValueError(f"{name}: not symmetric, or not finite, but it must be")
    found = (found + found.T) / 2
    try:
        np.linalg.cholesky(found)
    except np.linalg.LinAlgError:
        raise ValueError(f"{name}: not positive definite, but it must be") from None
    return space.copied(space.uploaded(found))
