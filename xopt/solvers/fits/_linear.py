"""Small linear least squares: of one fit by LAPACK on the host, of many by loops over columns, all lanes at once.

A matrix is a triangle R of n × n with a right-hand side q: what is left of m residuals by orthogonal transformations,
with RᵀR = JᵀJ and Rᵀq = Jᵀf. Behind the axes of n there may be one of lanes, so that each element is a vector of these.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from xopt import _arrays

Array = Any


class Linear(Protocol):
    """How triangles are made and solved."""

    @property
    def xp(self) -> Any:
        """The namespace."""

    @property
    def host(self) -> bool:
        """Whether it costs nothing to look at numbers."""

    @property
    def rounds(self) -> int:
        """How many rounds a search for the damping may take."""

    def augmented(self, r: Array, q: Array, s: Array) -> tuple[Array, Array]:
        """Return the triangle and the right-hand side of R with the rows of diag(s), of right-hand side 0, below it."""

    def back(self, r: Array, q: Array) -> Array:
        """Solve R·x = q; an element whose pivot is 0 is 0."""

    def forward(self, r: Array, v: Array) -> Array:
        """Solve Rᵀ·x = v; an element whose pivot is 0 is 0."""


def times(xp: Any, r: Array, x: Array) -> Array:
    """Return R·x."""
    return xp.sum(r * x[None, ...], axis=1)


def transposed(xp: Any, r: Array, x: Array) -> Array:
    """Return Rᵀ·x."""
    return xp.sum(r * x[:, None, ...], axis=0)


def norm(xp: Any, x: Array) -> Array:
    """Return the Euclidean norm over the first axis, of numbers whose squares do not overflow."""
    return xp.sqrt(xp.sum(x * x, axis=0))


class Dense:
    """One fit on the host, in float64."""

    xp, host, rounds = np, True, 10

    def augmented(self, r: Array, q: Array, s: Array) -> tuple[Array, Array]:
        orthogonal, triangle = np.linalg.qr(np.concatenate([r, np.diag(s)]))
        return triangle, q @ orthogonal[: len(q)]

    def back(self, r: Array, q: Array) -> Array:
        x, left = np.zeros(len(q)), q.copy()
        for j in range(len(q) - 1, -1, -1):
            if r[j, j]:
                x[j] = left[j] / r[j, j]
                left[:j] -= r[:j, j] * x[j]
        return x

    def forward(self, r: Array, v: Array) -> Array:
        x, left = np.zeros(len(v)), v.copy()
        for j in range(len(v)):
            if r[j, j]:
                x[j] = left[j] / r[j, j]
                left[j + 1 :] -= r[j, j + 1 :] * x[j]
        return x


class Lanes:
    """Many fits: every operation is on all lanes, in their dtype, on their device."""

    rounds = 4

    def __init__(self, xp: Any, host: bool) -> None:
        self.xp, self.host = xp, host

    def augmented(self, r: Array, q: Array, s: Array) -> tuple[Array, Array]:
        xp, n = self.xp, q.shape[0]
        eye = xp.eye(n, dtype=q.dtype, **_arrays.beside(q))
        columns = [xp.concat([r[:, j, ...], eye[:, j, None] * s[j, ...]]) for j in range(n)]
        return orthogonal(xp, columns, xp.concat([q, xp.zeros_like(q)]), self.host, first=True)

    def back(self, r: Array, q: Array) -> Array:
        xp, n = self.xp, q.shape[0]
        found, left = list[Array](), [q[j, ...] for j in range(n)]
        for j in range(n - 1, -1, -1):
            found.append(_quotient(xp, left[j], r[j, j, ...]))
            left = [x - r[i, j, ...] * found[-1] for i, x in enumerate(left[:j])]
        return xp.stack(found[::-1])

    def forward(self, r: Array, v: Array) -> Array:
        xp, n = self.xp, v.shape[0]
        found, left = list[Array](), [v[j, ...] for j in range(n)]
        for j in range(n):
            found.append(_quotient(xp, left[j], r[j, j, ...]))
            left = [x if i <= j else x - r[j, i, ...] * found[-1] for i, x in enumerate(left)]
        return xp.stack(found)


def orthogonal(xp: Any, columns: list[Array], f: Array, host: bool, first: bool = False) -> tuple[Array, Array]:
    """Orthogonalize columns one after the other, and f as the last of them (modified Gram-Schmidt: Björck 1967).

    A column is along the first axis, or the last.
    """

    def dot(a: Array, b: Array) -> Array:
        return xp.sum(a * b, axis=0) if first else xp.vecdot(a, b)

    def along(x: Array) -> Array:
        return x if first else x[..., None]

    def less(a: Array, change: Array) -> Array:
        """Return a - change, in the memory of the change on a host: a is the caller's."""
        return xp.subtract(a, change, out=change) if host else a - change

    n, columns, rows, found = len(columns), [*columns], list[Array](), list[Array]()
    for j, x in enumerate(columns):
        square = dot(x, x)
        size, zero = xp.sqrt(square), xp.zeros_like(square)
        divisor = xp.where(square > 0, square, zero + 1)
        row = [zero] * j + [size]
        for k in range(j + 1, n):
            part = dot(x, columns[k]) / divisor
            row.append(part * size)
            change = along(part) * x
            columns[k] = less(columns[k], change)
        part = dot(x, f) / divisor
        found.append(part * size)
        f = f if j == n - 1 else less(f, along(part) * x)
        rows.append(xp.stack(row))
    return xp.stack(rows), xp.stack(found)


def _quotient(xp: Any, a: Array, b: Array) -> Array:
    zero = xp.zeros_like(b)
    return xp.where(b == 0, zero, a / xp.where(b == 0, zero + 1, b))
