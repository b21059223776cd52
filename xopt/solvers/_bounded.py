"""L-BFGS within bounds: quasi-Newton steps of the variables that are free to move, projected."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

import numpy as np

from xopt import _arrays
from xopt._arrays.transfer import to_host
from xopt.solvers._directions import Asked, LimitedMemory, Line, Numbers
from xopt.solvers._sides import Side, inward, is_infinite, sides
from xopt.solvers._space import CHUNK, Array, Space, Vectors, part

ROUNDS = 10
_WITHIN = {"float32": {"float16", "bfloat16", "int8", "uint8", "int16", "uint16", "float32"}}
_WITHIN["float64"] = {*_WITHIN["float32"], "int32", "uint32", "float64"}
"""Of which dtypes all numbers are numbers of another one too."""


class Bounds:
    """All x with lower ≤ x ≤ upper. A side is a vector, or a number of 0 dimensions."""

    def __init__(self, space: Space, bounds: Any) -> None:
        self.space = space
        given = sides(bounds, space.layout)
        self.lower, self.upper = (self._vector(*x) for x in zip(given, (-1, 1), strict=True))
        xp = space.xp
        empty = xp.max(_arrays.cast(xp, xp.logical_not(_some(self.lower, self.upper)), space.dtype))
        _, *ends, none = space.numbers(0.0, [space.largest(self.lower), space.largest(self.upper), empty])
        if none:
            self._explain(given)
        self.boxed = all(map(math.isfinite, ends))
        """Whether all bounds are finite."""

    def _vector(self, side: Side, sign: int) -> Array:
        """Return a side in numbers of the parameters: a vector, or one number if it is the same for all."""
        space, layout = self.space, self.space.layout
        entries = side if isinstance(side, list) else [side] * len(layout.leaves)
        for k, x in enumerate(entries):
            if layout.dtypes[k].complex and not is_infinite(x, sign):
                raise TypeError(f"{layout.path(k)}: dtype {layout.dtypes[k].name}, but only real numbers have bounds")
        if not isinstance(side, list) and (len({d.real for d in layout.dtypes}) == 1 or is_infinite(side, sign)):
            return space.uploaded(self._inward(side, layout.dtypes[0].real, sign))
        parts = [self._leaf(k, x, sign) for k, x in enumerate(entries)]
        return space.copied(parts[0]) if len(parts) == 1 else space.xp.concat(parts)

    def _leaf(self, k: int, x: Any, sign: int) -> Array:
        """Return a bound as a vector."""
        space, dtype = self.space, self.space.layout.dtypes[k].real
        if not hasattr(x, "shape") or x.shape == ():
            return space.zeros(space.sizes[k]) + float(self._inward(x, dtype, sign))
        if not _arrays.on_host(x):
            x = _arrays.detached(x)
            if _arrays.dtype_name(x) in _WITHIN[dtype]:
                return space.xp.reshape(space.beside(x), (-1,))
            x = to_host(x)
        return space.beside(self._inward(x, dtype, sign).reshape(-1))

    def _inward(self, x: Any, dtype: str, sign: int) -> Numbers:
        return inward(x, dtype, sign, normal=not self.space.library.host)

    def _explain(self, given: tuple[Side, Side]) -> NoReturn:
        space = self.space
        low, high = (np.broadcast_to(space.host(x), space.size) for x in (self.lower, self.upper))
        k, i = space.place(int(np.argmin(_some(low, high))))
        low, high = (_element(side, k, i, sign) for side, sign in zip(given, (-1, 1), strict=True))
        raise ValueError(
            f"{space.layout.path(k)}: element {i} has the bounds {low} and {high}, and no number of "
            f"{space.layout.dtypes[k].real} is within them"
        )

    def named(self) -> list[tuple[str, Array]]:
        """Return both sides and what they are called."""
        return [("lower", self.lower), ("upper", self.upper)]

    def project(self, x: Array) -> Array:
        """Return the nearest point within the bounds, in place where arrays can be written into."""
        xp = self.space.xp
        for c in self.space.chunks:
            nearest = xp.minimum(xp.maximum(part(x, c), _of(self.lower, c)), _of(self.upper, c))
            if c is None:
                return nearest
            x[c] = nearest
        return x

    def limit(self, x: Array, d: Array, c: slice | None) -> Array:
        """Return P(x + d) - x of a chunk, without what rounding x + d would lose."""
        xp = self.space.xp
        return xp.maximum(xp.minimum(d, _of(self.upper, c) - x), _of(self.lower, c) - x)

    def reach(self, x: Array, d: Array, new: Array) -> Array:
        """Return where x + d leads, which is ``new`` but for roundings: a bound that it leads to, exactly."""
        xp = self.space.xp
        for c in self.space.chunks:
            low, high, p, step, found = _of(self.lower, c), _of(self.upper, c), part(x, c), part(d, c), part(new, c)
            found = xp.where(step == high - p, high + 0 * p, xp.where(step == low - p, low + 0 * p, found))
            if c is None:
                return found
            new[c] = found
        return new

    def inside(self, x: Array, g: Array, c: slice | None) -> Array:
        """Return x - P(x - g) of a chunk."""
        return -self.limit(x, -g, c)

    def stuck(self, x: Array, g: Array, c: slice | None) -> Array:
        """Return which variables of a chunk are at a bound, with a value that would fall behind it."""
        return ((x <= _of(self.lower, c)) & (g > 0)) | ((x >= _of(self.upper, c)) & (g < 0))

    def steps(self, x: Array, d: Array, c: slice | None) -> Array:
        """Return the largest d/(bound - x) of a chunk: one over the longest step along d."""
        xp, still = self.space.xp, d == 0
        room = xp.where(d > 0, _of(self.upper, c) - x, _of(self.lower, c) - x)
        return xp.max(d / xp.where(still, xp.ones_like(room), room))


def _some(low: Array, high: Array) -> Array:
    """Whether there is a number between two bounds."""
    return (low <= high) & (low < math.inf) & (high > -math.inf)


def _of(side: Array, c: slice | None) -> Array:
    return part(side, c) if side.ndim else side


def _element(side: Side, k: int, i: int, sign: int) -> Any:
    """Return what a user gave as the bound of an element."""
    x = side[k] if isinstance(side, list) else side
    if hasattr(x, "shape") and x.shape != ():
        x = to_host(x).reshape(-1)[i] if _arrays.dtype_name(x) != "bfloat16" else float(x.reshape(-1)[i])
    return sign * math.inf if x is None else x


class Bounded(LimitedMemory):
    """d = P(x + d_F) - x, with the minimum d_F of a quadratic model over the variables that are free.

    The model is that of L-BFGS-B (Byrd, Lu, Nocedal & Zhu 1995, the direct primal method), d_F = -(B_FF)⁻¹·g_F. Free
    are all variables but those at a bound with a slope that pushes against it (Bertsekas 1982), in place of those that
    its generalized Cauchy point finds one after the other. Where the projection climbs, the step goes along d_F itself,
    up to the first bound (Morales & Nocedal 2011).

    A preconditioner is a diagonal P. Then all of this is done with P^(1/2)·g and P^(-1/2)·d in the place of g and d, of
    which the rows of the memory are.
    """

    tables: ClassVar = ["products", "free", "with_gradient"]

    def __init__(
        self, space: Space, history: int, box: Bounds, preconditioner: Callable[[Any], Any] | None = None
    ) -> None:
        super().__init__(space, history)
        self.box = box
        self.root = None if preconditioner is None else _root(space, preconditioner)
        """The square root of the preconditioner."""
        self.d: Array = None if preconditioner is None else space.zeros(1, space.size)
        """The direction, where the row of the memory is another vector."""
        if len(self.chunks) == 1:  # the products of what is free take as much memory as what is multiplied
            self.chunks = space.pieces(max(CHUNK, -(-space.size // 16)))
        self.products = np.zeros((2 * history, 2 * history))
        self.free = np.zeros_like(self.products)
        """The products of the rows where variables are free."""
        self._earlier = np.tril(np.ones((history, history)), -1)
        """1 where a column comes before the row, else 0."""

    def begin(self, new: Vectors) -> Asked:
        space, found = self.space, Asked([], [])
        for c in self.chunks:
            x, g = part(new.x, c), part(new.g, c)
            g_free = self._mask(x, g, c) * self._scaled(g, c)
            zero = 0 * g_free[0]
            found.sums.append(space.row(zero, space.dot(g_free, g_free)))
            found.tops.append(space.row(space.largest(self.box.inside(x, g, c)), zero))
        return found

    def _scaled(self, x: Array, c: slice | None) -> Array:
        """Return a chunk of P^(1/2)·x."""
        return x if self.root is None else x * part(self.root, c)

    def _put(self, d: Array, c: slice | None) -> None:
        """Write a chunk of the direction."""
        i, row = 2 * self.slot, d
        if self.root is not None:
            self.d, row = self.space.put(self.d, 0, c, d), d / part(self.root, c)
        self.memory = self.space.put(self.memory, i, c, row)

    def _along(self) -> Array:
        return self.memory[2 * self.slot, :] if self.root is None else self.d[0, :]

    def _mask(self, x: Array, g: Array, c: slice | None) -> Array:
        xp = self.space.xp
        return _arrays.cast(xp, xp.logical_not(self.box.stuck(x, g, c)), self.space.dtype)

    def sums(self, here: Vectors, new: Vectors, d: Array) -> Asked:
        xp, space, dot, i, found = self.space.xp, self.space, self.space.dot, self.slot, Asked([], [])
        for c in self.chunks:
            x, g, before, along = part(new.x, c), part(new.g, c), part(here.g, c), part(d, c)
            scaled = self._scaled(g, c)
            self.memory = space.put_difference(self.memory, 2 * i + 1, c, scaled, self._scaled(before, c))
            rows, mask = self._rows(c), self._mask(x, g, c)
            dots = space.row(dot(g, along), dot(scaled * mask, scaled), dot(before, along))
            pair = dot(rows[2 * i : 2 * i + 2, :], xp.matrix_transpose(rows))
            found.sums.append(space.joined(dots, xp.reshape(pair, (-1,)), *self._products(rows, mask, scaled)))
            largest = space.largest(self.box.inside(x, g, c))
            found.tops.append(space.row(largest, self.box.steps(part(here.x, c), along, c)))
        return found

    def _products(self, rows: Array, mask: Array, g: Array) -> tuple[Array, Array]:
        """Return the products of the rows with each other and with g, where variables are free."""
        xp, dot, masked = self.space.xp, self.space.dot, rows * mask
        return xp.reshape(dot(masked, xp.matrix_transpose(rows)), (-1,)), dot(masked, g)

    def accept(self, alpha: float, slope: float, slopes: float, sums: Numbers) -> None:
        m, i = self.history, self.slot
        size = 2 * self.used
        pair = self._sorted(sums[3 : 3 + 2 * size].reshape(2, -1))
        self._take(sums[3 + 2 * size :])
        if not self.counts(slope, pair[0, m + i], pair[1, m + i]):
            return
        self.keep(alpha)
        self.products[i, :] = self.products[:, i] = pair[0]
        self.products[m + i, :] = self.products[:, m + i] = pair[1]
        for table in (self.products, self.free):
            table[i, :] *= alpha
            table[:, i] *= alpha
        self.with_gradient[i] *= alpha

    def refresh(self, here: Vectors) -> None:
        self._refresh(here, self._masks(here))

    def _masks(self, here: Vectors) -> list[Array]:
        return [self._mask(part(here.x, c), part(here.g, c), c) for c in self.chunks]

    def _invert(self) -> None:
        pass  # what is solved with changes with the variables that are free

    def _refresh(self, here: Vectors, masks: list[Array]) -> None:
        chunks = zip(self.chunks, masks, strict=True)
        rows = [
            self.space.joined(*self._products(self._rows(c), f, self._scaled(part(here.g, c), c))) for c, f in chunks
        ]
        self._take(self.space.total(rows))

    def _take(self, free: Numbers) -> None:
        size = 2 * self.used
        rows = self._sorted(free[: size * size].reshape(size, size))
        self.free, self.with_gradient = self._sorted(rows.T), self._sorted(free[size * size :])

    def direction(self, here: Vectors, square: float) -> Line:
        weights, scale = self._weights()
        self._choose()
        for c in self.chunks:
            x, g = part(here.x, c), part(here.g, c)
            d = self._step(weights, scale, g, c) * self._mask(x, g, c)
            self._put(self.box.limit(x, d, c), c)
        self._written()
        return Line(self._along(), math.nan)

    def _step(self, weights: Numbers, scale: float, g: Array, c: slice | None) -> Array:
        d = -scale * self._scaled(g, c)
        if self.order:
            d = d - self.space.dot(self._weights_of_rows(weights), self._rows(c))
        return self._scaled(d, c)

    @property
    def scale(self) -> float:
        if not self.order:
            return 1.0
        i, j = self.order[-1], self.history + self.order[-1]
        return max(float(self.products[i, j] / self.products[j, j]), sys.float_info.min)  # 1/scale is needed

    def _weights(self) -> tuple[Numbers, float]:
        """Return of which sum of the rows -d_F is made, besides g·scale (by Sherman, Morrison and Woodbury)."""
        weights, scale, order = np.zeros(2 * self.history), self.scale, self.order
        if not order:
            return weights, 1.0
        k, steps = len(order), np.asarray(order)
        used = np.concatenate([self.history + steps, steps])  # W = [Y, S/scale]
        pairs = used[:, None], used
        products, middle = self.products[pairs], self.free[pairs]
        middle *= -scale
        middle[:, k:] /= scale
        middle[k:] /= scale
        cross = products[k:, :k] * self._earlier[:k, :k]
        middle[:k, k:] += cross.T
        middle[k:, :k] += cross
        middle[k:, k:] += products[k:, k:] / scale
        middle.reshape(-1)[: 2 * k * k : 2 * k + 1] -= products[k:, :k].diagonal()
        with_gradient = self.with_gradient[used]
        with_gradient[k:] /= scale
        try:
            found = np.linalg.solve(middle, with_gradient)
        except np.linalg.LinAlgError:
            found = np.full(2 * k, np.nan)
        if not np.isfinite(found).all():
            self.order = []
            return weights, 1.0
        found[:k] *= scale
        weights[used] = found * scale
        return weights, scale

    def told(self, line: Line, sums: Numbers, tops: Numbers) -> Line:
        """Fill in what the first value along a direction has told."""
        return Line(line.d, float(sums[2]), max(1.0, 1 / float(tops[1])) if tops[1] > 0 else math.inf)

    def instead(self, here: Vectors) -> Line | None:
        """Return d_F with more variables held, until no bound is in its way at once; None if there is no such."""
        space, box, xp = self.space, self.box, self.space.xp
        masks = self._masks(here)
        for _ in range(ROUNDS):
            self._refresh(here, masks)
            weights, scale = self._weights()
            if not self.order:
                return None
            tops, slopes = [], []
            for k, c in enumerate(self.chunks):
                x, g = part(here.x, c), part(here.g, c)
                d = self._step(weights, scale, g, c) * masks[k]
                held = masks[k]
                masks[k] = held * self._mask(x, -d, c)
                self._put(d, c)
                tops.append(space.row(xp.max(held - masks[k]), box.steps(x, d * masks[k], c)))
                slopes.append(space.row(space.dot(g, d)))
            [slope], (more, steps) = space.total(slopes), space.total(tops, np.max)
            if not more:
                return Line(self._along(), float(slope), 1 / steps if steps > 0 else math.inf) if slope < 0 else None
        return None


def _root(space: Space, precondition: Callable[[Any], Any]) -> Array:
    """Return the square root of a diagonal matrix that is given as a function, or say what it is instead."""
    xp, name = space.xp, "preconditioner"
    ones = space.zeros(space.size) + 1
    other = _arrays.cast(xp, xp.arange(space.size, **_arrays.beside(ones)) % 7 - 2, space.dtype)
    diagonal = space.preconditioned(precondition, space.copied(ones))
    found = space.preconditioned(precondition, space.copied(other))
    rest = space.quietly(lambda: found - diagonal * other)
    _, least, size, off = space.numbers(0.0, [-space.xp.max(-diagonal), space.largest(diagonal), space.largest(rest)])
    if not 0 < least <= size < math.inf:
        raise ValueError(f"{name}: numbers from {least} to {size} on its diagonal, but all must be positive and finite")
    if not off <= 1e3 * space.eps * size:
        raise ValueError(f"{name}: no diagonal matrix, but within bounds it must be one, such as g ↦ d·g with one d")
    return xp.sqrt(diagonal)
