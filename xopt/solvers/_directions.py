"""Directions to search along: steepest descent, conjugate gradients, L-BFGS."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np

from xopt import _arrays
from xopt.solvers._space import Array, Space, Vectors, part

Numbers = np.ndarray[Any, Any]


class Asked(NamedTuple):
    """What must be known of a point: rows of numbers, on the device."""

    sums: list[Array]
    """To be added up: the slope, g·P·g, and what the method needs."""
    tops: list[Array]
    """To take the maxima of: first of the gradient."""


class Line(NamedTuple):
    """A direction to search along, the slope there (NaN: the first value tells), and the longest step."""

    d: Array
    slope: float
    longest: float = np.inf


class Direction(Protocol):
    """How a method chooses its directions. The vectors stay where they are; sums come to the host with the value."""

    sigma: float
    """How flat the slope at the end of a search must be, as a part of that at its start."""

    @property
    def scaled(self) -> bool:
        """Whether the next direction is as long as the step should be."""

    def begin(self, new: Vectors) -> Asked:
        """Return what must be known of the first point."""

    def sums(self, here: Vectors, new: Vectors, d: Array) -> Asked:
        """Return what must be known of a point along d."""

    def accept(self, alpha: float, slope: float, slopes: float, sums: Numbers) -> None:
        """Take note of a step of length alpha, of the slopes at its ends, and of the sums at its end."""

    def direction(self, here: Vectors, square: float) -> Line:
        """Return where to search; ``square`` is g·P·g."""

    def reset(self) -> bool:
        """Forget what was; whether there was anything."""

    def clean(self) -> None:
        """Forget what a search that was broken off has left."""


@runtime_checkable
class Told(Protocol):
    """A method that learns the slope along its direction together with the first value there."""

    def told(self, line: Line, sums: Numbers, tops: Numbers) -> Line:
        """Fill in what the first value along a direction has told."""

    def instead(self, here: Vectors) -> Line | None:
        """Return another direction, where that one climbs; None if there is none."""


def asked(space: Space, new: Vectors, d: Array, *more: Array) -> Asked:
    """Ask for the slope along d, for g·P·g, and for more sums."""
    dots = space.row(space.dot(new.g, d), space.dot(new.g, new.z), *more)
    return Asked([dots], [space.row(space.largest(new.g))])


class Steepest:
    """d = -P·g."""

    sigma, scaled = 0.9, False

    def __init__(self, space: Space) -> None:
        self.space = space

    def begin(self, new: Vectors) -> Asked:
        return asked(self.space, new, new.z)

    def sums(self, here: Vectors, new: Vectors, d: Array) -> Asked:
        return asked(self.space, new, d)

    def accept(self, alpha: float, slope: float, slopes: float, sums: Numbers) -> None:
        pass

    def direction(self, here: Vectors, square: float) -> Line:
        return Line(-here.z, -square)

    def reset(self) -> bool:
        return False

    def clean(self) -> None:
        pass


class PolakRibiere(Steepest):
    """d ← -P·g + β·d with β = max(0, P·g·(g - g₋)/g₋·P·g₋), which starts anew by itself where that is negative."""

    sigma = 0.1

    def __init__(self, space: Space) -> None:
        super().__init__(space)
        self.before: tuple[float, float] | None = None
        """The slope along the last direction where it ended, and β."""
        self.d: Array = None

    def sums(self, here: Vectors, new: Vectors, d: Array) -> Asked:
        dot = self.space.dot
        return asked(self.space, new, d, dot(new.z, here.g), dot(here.g, here.z))

    def accept(self, alpha: float, slope: float, slopes: float, sums: Numbers) -> None:
        square, across, old = map(float, sums[1:])
        self.before = slopes, max(0.0, (square - across) / old) if old else 0.0

    def direction(self, here: Vectors, square: float) -> Line:
        if self.before is not None:
            slope, beta = self.before
            if -square + beta * slope < -1e-3 * square:
                self.d = beta * self.d - here.z
                return Line(self.d, -square + beta * slope)
        self.d = -here.z
        return Line(self.d, -square)

    def reset(self) -> bool:
        had, self.before = self.before is not None, None
        return had


class Inverse:
    """The inverse of an upper triangular matrix that loses its first row and column, and is given a last one.

    Each has a place of its own, which the next one takes when it is gone; what is nobody's is 0.
    """

    def __init__(self, size: int) -> None:
        self.numbers = np.zeros((size, size))

    def clear(self) -> None:
        self.numbers[...] = 0

    def drop(self, i: int) -> None:
        """Remove the first row and column, which are at place i; the column has nothing but the diagonal."""
        self.numbers[i] = 0

    def append(self, i: int, column: Numbers) -> None:
        """Add the last column, and a row of which only the diagonal is not 0, at a place that is free."""
        last = 1 / column[i]
        self.numbers[:, i] = self.numbers.dot(column) * -last
        self.numbers[i, i] = last


class LimitedMemory:
    """d = -H·g, with H of P and the last steps s and changes of the gradient y (Nocedal 1980).

    Both loops of the recursion run on the host, on the products of the vectors with each other, and find of which sum
    of the rows of ``memory`` and of P·g the direction is made (Chen, Wang & Zhou 2014): two passes over the memory an
    iteration, one for all products and one for the sum. The loops solve with R, the products of each step with its own
    change and later ones, and with its transpose; R⁻¹ is kept (as in Byrd, Nocedal & Schnabel 1994). The direction and
    the change of the gradient are made in the rows where they will be remembered, so that nothing but these is needed.
    """

    sigma = 0.9
    tables: ClassVar = ["products", "with_gradient"]

    def __init__(self, space: Space, history: int) -> None:
        self.space, self.history, self.chunks = space, history, space.chunks
        self.memory = space.zeros(2 * history, space.size)
        """A ring of pairs of rows, a step and P times its change of the gradient. Tables have all steps first."""
        self.products = np.zeros((2 * history, history))
        """Of all rows with the changes; of a step with its own change and later ones, which is all that is asked."""
        self.with_gradient = np.zeros(2 * history)
        self.inverse = Inverse(history)
        self.order: list[int] = []
        """Rows in use, the oldest first."""
        self.slot = 0
        """The row of the direction that is searched."""
        self.used = self._count()
        """How many pairs of rows there are to multiply."""
        self.scaled = False

    def state(self, *more: Array) -> dict[str, Any]:
        """Return what is remembered, in arrays of its own; more rows for ``vectors`` may be given."""
        xp = self.space.xp
        vectors = xp.concat([self.memory, *(xp.reshape(x, (1, -1)) for x in more)])
        return {
            "vectors": vectors,
            **{n: getattr(self, n).copy() for n in self.tables},
            "order": np.asarray(self.order, int),
        }

    def load(self, state: Mapping[str, Any]) -> list[Array]:
        """Remember what another one did; return the rows that are not memory."""
        missing = [n for n in ("vectors", *self.tables, "order") if n not in state]
        if missing:
            raise ValueError(f"state: {', '.join(missing)} missing, which a solver with history={self.history} needs")
        size = 2 * self.history
        wanted = {"vectors": (size + 2, self.space.size), **{n: getattr(self, n).shape for n in self.tables}}
        for n, want in wanted.items():
            if tuple(state[n].shape) != want:
                raise ValueError(
                    f"state: {n} has shape {tuple(state[n].shape)}, but x0 and history={self.history} need {want}"
                )
            kind, want_kind = _arrays.dtype_name(state[n]), self.space.real if n == "vectors" else "float64"
            if kind != want_kind:
                raise TypeError(f"state: {n} has dtype {kind}, but x0 and history={self.history} need {want_kind}")
        vectors = self.space.beside(state["vectors"])
        self.memory = self.space.copied(vectors[:size, :])
        for n in self.tables:
            setattr(self, n, np.array(state[n], float))
        given = np.asarray(state["order"])
        order = [int(i) for i in given.reshape(-1)]
        if (
            given.ndim != 1
            or given.dtype.kind not in "iu"
            or {*order} - {*range(self.history)}
            or len({*order}) < len(order)
        ):
            raise ValueError(f"state: order is {order}, but it must be different numbers below {self.history}")
        self.order = order
        self.used = self._count()
        self._invert()
        return [self.space.copied(vectors[k, :]) for k in (size, size + 1)]

    def refresh(self, here: Vectors) -> None:
        """Compute what is known of the gradient anew."""
        space = self.space
        rows = [space.dot(self._rows(c), part(here.g, c)) for c in self.chunks]
        self.with_gradient = self._sorted(space.total(rows))

    def begin(self, new: Vectors) -> Asked:
        return asked(self.space, new, new.z)

    def sums(self, here: Vectors, new: Vectors, d: Array) -> Asked:
        space, dot, found, i = self.space, self.space.dot, Asked([], []), 2 * self.slot + 1
        for c in self.chunks:
            g, z = part(new.g, c), part(new.z, c)
            self.memory = space.put_difference(self.memory, i, c, z, part(here.z, c))
            rows = self._rows(c)
            change, along = rows[i, :], part(d, c)
            y = change if new.z is new.g else g - part(here.g, c)
            dots = space.row(dot(g, along), dot(g, z), dot(along, y), dot(change, y))
            found.sums.append(space.joined(dots, dot(rows, g)))
            found.tops.append(space.row(space.largest(g)))
        return found

    def accept(self, alpha: float, slope: float, slopes: float, sums: Numbers) -> None:
        m, i = self.history, self.slot
        with_new = self._sorted(sums[4:])
        with_change = with_new - self.with_gradient  # of rows that are remembered; no second pass over the memory
        with_change[i], with_change[m + i] = sums[2:4]
        self.with_gradient = with_new
        along, square = float(with_change[i]), float(with_change[m + i])
        if not self.counts(slope, along, square) or alpha * along < sys.float_info.min:  # whose inverse is needed
            with_new[i] = with_new[m + i] = 0  # nobody's, and perhaps infinite
            return
        self.keep(alpha)
        with_new[i] *= alpha
        with_change[i] *= alpha
        self.products[:, i], self.products[m + i, :] = with_change, with_change[m:]
        self.inverse.append(i, with_change[:m])

    def counts(self, slope: float, along: float, square: float) -> bool:
        """Whether the curvature is positive, and not lost in roundings; from d·y and y·P·y."""
        return along > 1e-10 * abs(slope) and 0 < square < math.inf

    def keep(self, alpha: float) -> None:
        """Remember the direction that was searched, and the change of the gradient."""
        if alpha != 1:
            for c in self.chunks:
                self.memory = self.space.scale(self.memory, 2 * self.slot, c, alpha)
        self.order.append(self.slot)

    def _count(self) -> int:
        """Count the pairs of rows to multiply; JAX would compile anew for each number."""
        return self.history if self.space.library.jits else max([*self.order, self.slot]) + 1

    def _rows(self, c: slice | None) -> Array:
        """Return a chunk of the rows that there are."""
        return part(self.memory, c)[: 2 * self.used, :]

    def _sorted(self, numbers: Numbers) -> Numbers:
        """Return numbers, one a row along the last axis, as the tables have them: first steps, then changes."""
        *before, size = numbers.shape
        found = np.zeros((*before, 2 * self.history))
        half = size // 2
        found[..., :half], found[..., self.history : self.history + half] = numbers[..., ::2], numbers[..., 1::2]
        return found

    def _weights_of_rows(self, shares: Numbers) -> Array:
        """Return what `_sorted` would sort so, beside the rows."""
        return self.space.uploaded(shares.reshape(2, -1).T.ravel()[: 2 * self.used])

    def direction(self, here: Vectors, square: float) -> Line:
        shares, slope = self._shares(square)
        if not slope < 0:
            self._forget()
            shares, slope = self._shares(square)
        self._choose()
        space, i = self.space, 2 * self.slot
        weights, scale = self._weights_of_rows(shares), -self.scale
        for c in self.chunks:
            d = scale * part(here.z, c)
            if self.order:
                d += space.dot(weights, self._rows(c))
            self.memory = space.put(self.memory, i, c, d)
        self._written()
        return Line(self.memory[i, :], slope)

    def _choose(self) -> None:
        """Choose the row to write into: one that is free, or the oldest."""
        if len(self.order) == self.history:
            self.slot = self.order[0]
        else:
            self.slot = next(i for i in range(self.history) if i not in self.order)
        self.used = self._count()

    def _written(self) -> None:
        """Note that a direction stands there, and no step that is remembered."""
        self.scaled = bool(self.order)
        if self.scaled and self.order[0] == self.slot:
            del self.order[0]
            self.inverse.drop(self.slot)

    @property
    def scale(self) -> float:
        """s·y/y·P·y of the last step."""
        if not self.order:
            return 1.0
        i = self.order[-1]
        return float(self.products[i, i] / self.products[self.history + i, i])

    def _shares(self, square: float) -> tuple[Numbers, float]:
        """Return of which sum of the rows the direction is made, besides -P·g·scale, and the slope along it."""
        m, scale, g = self.history, self.scale, self.with_gradient
        shares = np.zeros(2 * m)
        if not self.order:
            return shares, -square
        inverse, products = self.inverse.numbers, self.products
        y_share = inverse.dot(g[:m])  # the loop from the newest; here `dot` is faster than @
        rest = g[m:] - products[m:].dot(y_share)
        shares[:m] = (scale * rest - products.diagonal() * y_share).dot(inverse)  # and that from the oldest
        shares[m:] = scale * y_share
        return shares, float(shares.dot(g)) - scale * square

    def _forget(self) -> None:
        """Forget all steps; nothing is left that may be infinite."""
        self.order = []
        self.inverse.clear()
        self.products[...] = self.with_gradient[...] = 0
        for i in range(2 * self.history):
            self.memory = self.space.put(self.memory, i, None, 0.0)

    def _invert(self) -> None:
        """Invert anew, in the order in which the steps came."""
        self.inverse.clear()
        for i in self.order:
            self.inverse.append(i, self.products[: self.history, i])

    def reset(self) -> bool:
        had = self.scaled
        self.clean()
        self._forget()
        return had

    def clean(self) -> None:
        """Forget what a search has left, which may be infinite."""
        for i in (2 * self.slot, 2 * self.slot + 1):
            self.memory = self.space.put(self.memory, i, None, 0.0)
