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
    """d = -H·g, and after each step H ← V·H·Vᵀ + ρ·s·sᵀ with V = I - ρ·s·yᵀ and ρ = 1/s·y.

    H begins as γ·I, so that it stays γ·A + B with an A of which nothing is left where steps have been. γ is chosen anew
    with each step, as in L-BFGS (Liu & Nocedal 1989), and is ‖s‖/‖y‖ of the last one, the mean of the two lengths of
    Barzilai & Borwein (1988): with s·y/y·y, and from the first step alone, H is too small where the function is flat.
    A step without curvature leaves H as it is, and where roundings made d climb H is γ·I again. The slope along d comes
    to the host with the first value there.
    """

    sigma = 0.9

    def __init__(self, space: Space, hess_inv0: Any = None) -> None:
        super().__init__(space)
        self.matrix: Array = None if hess_inv0 is None else _checked(space, hess_inv0)
        """H; None is the identity."""
        self._free: Array = None
        """A; None where the matrix to begin with was given."""
        self._change: tuple[Array, Array, Array] = (None, None, None)
        """d, y and H·y of the last point that was evaluated."""
        self._length = self._square = 1.0
        """γ; g·g."""

    @property
    def scaled(self) -> bool:  # type: ignore[override]
        return self.matrix is not None

    def sums(self, here: Vectors, new: Vectors, d: Array) -> Asked:
        dot, y = self.space.dot, new.g - here.g
        hy = y if self.matrix is None else dot(self.matrix, y)
        self._change = d, y, hy
        return asked(self.space, new, d, dot(here.g, d), dot(d, y), dot(y, y), dot(d, d))

    def told(self, line: Line, sums: Numbers, tops: Numbers) -> Line:
        return Line(line.d, float(sums[2]))

    def accept(self, alpha: float, slope: float, slopes: float, sums: Numbers) -> None:
        along, change, square = map(float, sums[3:6])
        tiny = float(np.finfo(self.space.real).tiny)
        if not (along > 1e-10 * abs(slope) and along >= tiny and tiny <= change < math.inf and square < math.inf):
            return
        d, y, hy = self._change
        length = alpha * math.sqrt(square / change)
        if self.matrix is None:
            self._begin(length)
            hy = length * y
        elif self._free is not None:
            more = length - self._length
            self.matrix = self._plus(self.matrix, more * self._free)
            hy = hy + more * self.space.dot(self._free, y)
        self._length = length
        if self._free is not None:
            self._free = self._updated(self._free, d, y, self.space.dot(self._free, y), along, 0.0)
        self.matrix = self._updated(self.matrix, d, y, hy, along, alpha)

    def _updated(self, matrix: Array, d: Array, y: Array, my: Array, along: float, alpha: float) -> Array:
        """Return V·M·Vᵀ + ρ·s·sᵀ, from M·y; without the last term if alpha is 0."""
        w = my - (alpha + self.space.dot(y, my) / along) / 2 * d  # M - (d·wᵀ + w·dᵀ)/d·y, as symmetric as M
        both = d[:, None] * ((-1 / along) * w)[None, :]
        return self._plus(matrix, both + self.space.xp.matrix_transpose(both))

    def _plus(self, a: Array, b: Array) -> Array:
        """Return a + b, in the memory of a where that can be."""
        if not self.space.writes:
            return a + b
        a += b
        return a

    def direction(self, here: Vectors, square: float) -> Line:
        self._square = square
        if self.matrix is None:
            return Line(-here.z, -square)
        return Line(-self.space.dot(self.matrix, here.g), math.nan)

    def _begin(self, scale: float) -> None:
        self.matrix, self._free = self._identity(scale), self._identity(1.0)

    def instead(self, here: Vectors) -> Line | None:
        """Forget all but the length of the last step, where H is no longer positive definite."""
        self._begin(self._length)
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
