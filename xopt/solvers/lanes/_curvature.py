"""What many minimizations know of their Hessians: a matrix each, or the last steps. Minimizations are the last axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from xopt import _arrays

Array = Any


class Curvature(Protocol):
    """An approximation H of the inverse Hessian of every lane."""

    known: Array
    """Of which lanes it is more than the identity, or than a preconditioner."""
    least: Array | None
    """The least q·P·q that was met, which must not be negative; None without a preconditioner P."""

    def times(self, g: Array) -> Array:
        """Return H·g."""

    def learn(self, which: Array, s: Array, y: Array) -> None:
        """Take in steps and changes of the gradient of some lanes."""

    def forget(self, which: Array) -> None:
        """Begin anew in some lanes."""

    def keep(self, rows: Array) -> None:
        """Go on with some lanes."""


def dot(xp: Any, a: Array, b: Array) -> Array:
    """Return the products of columns."""
    return xp.sum(a * b, axis=0)


class Matrices:
    """H of BFGS, (n, n) for each lane; before its first step H is s·y/y·y."""

    least = None

    def __init__(self, xp: Any, x: Array) -> None:
        self.xp, self._n = xp, x.shape[0]
        eye = xp.eye(self._n, dtype=x.dtype, **_arrays.beside(x))
        self._eye = eye[:, :, None]
        self._h = self._eye + xp.zeros_like(x)[None, ...]
        self.known = xp.zeros_like(x[0, ...]) != 0

    def times(self, g: Array) -> Array:
        return self.xp.sum(self._h * g[None, ...], axis=1)

    def learn(self, which: Array, s: Array, y: Array) -> None:
        xp = self.xp
        along, square = dot(xp, s, y), dot(xp, y, y)
        one = xp.ones_like(along)
        along, square = xp.where(which, along, one), xp.where(which, square, one)
        h = xp.where(self.known, self._h, self._eye * (along / square))
        hy = xp.sum(h * y[None, ...], axis=1)
        w = (hy - 0.5 * (1 + dot(xp, y, hy) / along) * s) / along
        both = s[:, None, :] * w[None, ...]
        self._h = xp.where(which, h - both - xp.permute_dims(both, (1, 0, 2)), self._h)
        self.known = self.known | which

    def forget(self, which: Array) -> None:
        self._h = self.xp.where(which, self._eye, self._h)
        self.known = self.known & ~which

    def keep(self, rows: Array) -> None:
        self._h, self.known = self.xp.take(self._h, rows, axis=-1), self.xp.take(self.known, rows, axis=-1)


class Steps:
    """The last steps of each lane, from which H·g is computed by L-BFGS's two loops, around γ·P."""

    def __init__(self, xp: Any, x: Array, history: int, precondition: Callable[[Array], Array] | None = None) -> None:
        self.xp, none, self._precondition = xp, xp.zeros_like(x), precondition
        self.least = None if precondition is None else xp.zeros_like(none[0, 0])
        self._s, self._y = [none] * history, [none] * history
        self._inverse = [none[0, ...]] * history
        """1/s·y, or 0 where there is no such step."""
        self._scale = xp.ones_like(none[0, ...])
        self.known = none[0, ...] != 0

    def times(self, g: Array) -> Array:
        xp, shares, memory = self.xp, list[Array](), [*zip(self._s, self._y, self._inverse, strict=True)]
        for s, y, inverse in reversed(memory):
            shares.append(inverse * dot(xp, s, g))
            g = g - shares[-1] * y
        g = self._scale * self._preconditioned(g)
        for (s, y, inverse), share in zip(memory, reversed(shares), strict=True):
            g = g + (share - inverse * dot(xp, y, g)) * s
        return g

    def _preconditioned(self, g: Array) -> Array:
        """Return P·g."""
        if self._precondition is None:
            return g
        found, xp = self._precondition(g), self.xp
        square = xp.min(dot(xp, g, found))
        self.least = xp.where(square < self.least, square, self.least)
        return found

    def learn(self, which: Array, s: Array, y: Array) -> None:
        xp = self.xp
        if self._precondition is not None:  # which is not asked of what is not finite
            y = xp.where(which, y, xp.zeros_like(y))
        along, square = dot(xp, s, y), dot(xp, y, self._preconditioned(y))
        one = xp.ones_like(along)
        along, square = xp.where(which, along, one), xp.where(which, square, one)

        def moved(old: list[Array], new: Array) -> list[Array]:
            return [xp.where(which, a, b) for a, b in zip([*old[1:], new], old, strict=True)]

        self._s, self._y, self._inverse = moved(self._s, s), moved(self._y, y), moved(self._inverse, 1 / along)
        self._scale = xp.where(which, along / square, self._scale)
        self.known = self.known | which

    def forget(self, which: Array) -> None:
        xp = self.xp
        self._inverse = [xp.where(which, xp.zeros_like(x), x) for x in self._inverse]
        self._scale = xp.where(which, xp.ones_like(self._scale), self._scale)
        self.known = self.known & ~which

    def keep(self, rows: Array) -> None:
        def some(x: Array) -> Array:
            return self.xp.take(x, rows, axis=-1)

        self._s, self._y, self._inverse = ([*map(some, x)] for x in (self._s, self._y, self._inverse))
        self._scale, self.known = some(self._scale), some(self.known)
