"""L-BFGS within bounds: quasi-Newton steps of the variables that are free to move, projected."""

from __future__ import annotations

import math
import sys
from typing import Any, ClassVar

import numpy as np

from xopt import _arrays, _tree
from xopt.solvers._directions import Asked, LimitedMemory, Line, Numbers
from xopt.solvers._space import CHUNK, Array, Space, Vectors, part

ROUNDS = 10


class Box:
    """All x with lower ≤ x ≤ upper. A side is a vector, or a number of 0 dimensions."""

    def __init__(self, space: Space, bounds: Any) -> None:
        self.space = space
        if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
            bounds = tuple(self._scipys(np.asarray(x)) for x in (bounds.lb, bounds.ub))
        if not isinstance(bounds, tuple) or len(bounds) != 2:
            raise TypeError(f"bounds: {bounds!r}, but it must be (lower, upper), each None, a number or like x0")
        self.lower, self.upper = (self._side(*x) for x in zip(("lower", "upper"), bounds, (-1, 1), strict=True))
        xp = space.xp
        empty = xp.max(_arrays.cast(xp, xp.logical_not(_some(self.lower, self.upper)), space.dtype))
        _, *ends, none = space.numbers(0.0, [space.largest(self.lower), space.largest(self.upper), empty])
        if none:
            self._explain()
        self.boxed = all(map(math.isfinite, ends))
        """Whether all bounds are finite."""

    def _scipys(self, side: np.ndarray[Any, Any]) -> Any:
        """Return a side of SciPy's class, which has one dimension."""
        if side.size == 1:
            return float(side.reshape(()))
        shapes = self.space.layout.shapes
        return side.reshape(shapes[0]) if len(shapes) == 1 and side.size == math.prod(shapes[0]) else side

    def _side(self, name: str, bound: Any, sign: int) -> Array:
        space, layout = self.space, self.space.layout
        alone = bound is None or _is_number(bound)
        entries = [bound] * len(layout.leaves) if alone else _tree.match(layout.spec, bound, f"bounds: {name}", "x0")
        entries = [sign * math.inf if x is None else x for x in entries]
        for k, x in enumerate(entries):
            if layout.dtypes[k].complex and not (_is_number(x) and x == sign * math.inf):
                raise TypeError(f"{layout.path(k)}: dtype {layout.dtypes[k].name}, but only real numbers have bounds")
        if alone:
            return space.uploaded(np.asarray(float(entries[0])))
        parts = [self._leaf(name, k, x) for k, x in enumerate(entries)]
        return space.copied(parts[0]) if len(parts) == 1 else space.xp.concat(parts)

    def _leaf(self, name: str, k: int, x: Any) -> Array:
        """Return a bound as a vector."""
        space, layout, path = self.space, self.space.layout, f"bounds: {name}"
        if _is_number(x):
            return space.zeros(space.sizes[k]) + float(x)
        if _arrays.library(x) not in ("numpy", layout.library):
            raise TypeError(
                f"{layout.path(k, path)}: a {type(x).__name__}, but it must be None, a number or an array; pairs of "
                f"bounds go into scipy.optimize.Bounds"
            )
        if tuple(x.shape) != layout.shapes[k]:
            raise ValueError(
                f"{layout.path(k, path)}: shape {tuple(x.shape)}, but the parameter has {layout.shapes[k]}"
            )
        return space.xp.reshape(space.beside(_arrays.detached(layout.library, x)), (-1,))

    def _explain(self) -> None:
        size, layout, start = self.space.size, self.space.layout, 0
        low, high = (np.broadcast_to(self.space.numbers(0.0, [x])[1:], size) for x in (self.lower, self.upper))
        none = ~_some(low, high)
        for k, length in enumerate(self.space.sizes):
            for i in np.flatnonzero(none[start : start + length])[:1]:
                pair = f"{low[start + i]} and {high[start + i]}"
                raise ValueError(f"{layout.path(k)}: element {i} has the bounds {pair}, and no number is within them")
            start += length

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


def _is_number(x: Any) -> bool:
    if isinstance(x, bool | np.bool_):
        return False
    real = isinstance(x, int | float | np.integer | np.floating)
    return real or (_arrays.library(x) is not None and tuple(x.shape) == () and "complex" not in str(x.dtype))


class Bounded(LimitedMemory):
    """d = P(x + d_F) - x, with the minimum d_F of a quadratic model over the variables that are free.

    The model is that of L-BFGS-B (Byrd, Lu, Nocedal & Zhu 1995, the direct primal method), d_F = -(B_FF)⁻¹·g_F. Free
    are all variables but those at a bound with a slope that pushes against it (Bertsekas 1982), in place of those that
    its generalized Cauchy point finds one after the other. Where the projection climbs, the step goes along d_F itself,
    up to the first bound (Morales & Nocedal 2011).
    """

    tables: ClassVar = ["products", "free", "with_gradient"]

    def __init__(self, space: Space, history: int, box: Box) -> None:
        super().__init__(space, history)
        self.box = box
        if len(self.chunks) == 1:  # the products of what is free take as much memory as what is multiplied
            self.chunks = space.pieces(max(CHUNK, -(-space.size // 16)))
        self.products = np.zeros((2 * history, 2 * history))
        self.free = np.zeros_like(self.products)
        """The products of the rows where variables are free."""

    def begin(self, new: Vectors) -> Asked:
        xp, space, found = self.space.xp, self.space, Asked([], [])
        for c in self.chunks:
            x, g = part(new.x, c), part(new.g, c)
            g_free = self._mask(x, g, c) * g
            zero = 0 * g_free[0]
            found.sums.append(xp.stack([zero, g_free @ g_free]))
            found.tops.append(xp.stack([space.largest(self.box.inside(x, g, c)), zero]))
        return found

    def _mask(self, x: Array, g: Array, c: slice | None) -> Array:
        xp = self.space.xp
        return _arrays.cast(xp, xp.logical_not(self.box.stuck(x, g, c)), self.space.dtype)

    def sums(self, here: Vectors, new: Vectors, d: Array) -> Asked:
        xp, space, i, found = self.space.xp, self.space, self.slot, Asked([], [])
        for c in self.chunks:
            x, g, before, along = part(new.x, c), part(new.g, c), part(here.g, c), part(d, c)
            self.memory = space.put_difference(self.memory, 2 * i + 1, c, g, before)
            rows, mask = self._rows(c), self._mask(x, g, c)
            dots = [g @ along, (g * mask) @ g, before @ along]
            pair = rows[2 * i : 2 * i + 2, :] @ xp.matrix_transpose(rows)
            found.sums.append(xp.concat([xp.stack(dots), xp.reshape(pair, (-1,)), self._products(rows, mask, g)]))
            tops = [space.largest(self.box.inside(x, g, c)), self.box.steps(part(here.x, c), along, c)]
            found.tops.append(xp.stack(tops))
        return found

    def _products(self, rows: Array, mask: Array, g: Array) -> Array:
        """Return the products of the rows with each other and with g, where variables are free."""
        xp = self.space.xp
        masked = rows * mask
        return xp.concat([xp.reshape(masked @ xp.matrix_transpose(rows), (-1,)), masked @ g])

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

    def _refresh(self, here: Vectors, masks: list[Array]) -> None:
        chunks = zip(self.chunks, masks, strict=True)
        self._take(self.space.total([self._products(self._rows(c), f, part(here.g, c)) for c, f in chunks]))

    def _take(self, free: Numbers) -> None:
        size = 2 * self.used
        rows = self._sorted(free[: size * size].reshape(size, size))
        self.free, self.with_gradient = self._sorted(rows.T), self._sorted(free[size * size :])

    def direction(self, here: Vectors, square: float) -> Line:
        weights, scale = self._weights()
        self._choose()
        i = 2 * self.slot
        for c in self.chunks:
            x, g = part(here.x, c), part(here.g, c)
            d = self._step(weights, scale, g, c) * self._mask(x, g, c)
            self.memory = self.space.put(self.memory, i, c, self.box.limit(x, d, c))
        self._written()
        return Line(self.memory[i, :], math.nan)

    def _step(self, weights: Numbers, scale: float, g: Array, c: slice | None) -> Array:
        d = -scale * g
        if self.order:
            d = d - self._weights_of_rows(weights) @ self._rows(c)
        return d

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
        steps, changes = np.asarray(order, int), self.history + np.asarray(order, int)
        used = np.concatenate([changes, steps])
        size = np.concatenate([np.ones(len(order)), np.full(len(order), 1 / scale)])  # W = [Y, S/scale]
        cross = self.products[np.ix_(steps, changes)]
        lower = np.tril(cross, -1)
        middle = np.block([[-np.diag(np.diag(cross)), lower.T], [lower, self.products[np.ix_(steps, steps)] / scale]])
        middle = middle - scale * self.free[np.ix_(used, used)] * np.outer(size, size)
        try:
            found = np.linalg.solve(middle, self.with_gradient[used] * size)
        except np.linalg.LinAlgError:
            found = np.full(len(used), np.nan)
        if not np.isfinite(found).all():
            self.order = []
            return weights, 1.0
        weights[used] = scale**2 * found * size
        return weights, scale

    def told(self, line: Line, sums: Numbers, tops: Numbers) -> Line:
        """Fill in what the first value along a direction has told."""
        return Line(line.d, float(sums[2]), max(1.0, 1 / float(tops[1])) if tops[1] > 0 else math.inf)

    def feasible(self, here: Vectors) -> Line | None:
        """Return d_F with more variables held, until no bound is in its way at once; None if there is no such."""
        space, box, xp, i = self.space, self.box, self.space.xp, 2 * self.slot
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
                self.memory = space.put(self.memory, i, c, d)
                tops.append(xp.stack([xp.max(held - masks[k]), box.steps(x, d * masks[k], c)]))
                slopes.append(xp.reshape(g @ d, (1,)))
            [slope], (more, steps) = space.total(slopes), space.total(tops, np.max)
            if not more:
                return (
                    Line(self.memory[i, :], float(slope), 1 / steps if steps > 0 else math.inf) if slope < 0 else None
                )
        return None
