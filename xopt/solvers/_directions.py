"""Directions to search along: steepest descent, conjugate gradients, L-BFGS."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from xopt.solvers._space import Array, Space


class Direction(Protocol):
    """How a method chooses its directions. The vectors stay where they are; sums come to the host with the value."""

    sigma: float
    """How flat the slope at the end of a search must be, as a part of that at its start."""

    @property
    def scaled(self) -> bool:
        """Whether the next direction is as long as the step should be."""

    def sums(self, g: Array, new: Array, d: Array) -> list[Array]:
        """Return what must be known of a new gradient: its squared norm first, then what the method needs."""

    def accept(self, alpha: float, slopes: tuple[float, float], g: Array, new: Array, d: Array, sums: Any) -> None:
        """Take note of a step of length alpha along d, and of the slopes at its ends."""

    def direction(self, g: Array, square: float) -> tuple[Array, float]:
        """Return a direction, and the slope along it; ``square`` is that of the norm of g."""

    def reset(self) -> bool:
        """Forget what was; whether there was anything."""


class Steepest:
    """d = -g."""

    sigma, scaled = 0.9, False

    def __init__(self, space: Space) -> None:
        self.xp = space.xp

    def sums(self, g: Array, new: Array, d: Array) -> list[Array]:
        return [self.xp.vecdot(new, new)]

    def accept(self, alpha: float, slopes: tuple[float, float], g: Array, new: Array, d: Array, sums: Any) -> None:
        pass

    def direction(self, g: Array, square: float) -> tuple[Array, float]:
        return -g, -square

    def reset(self) -> bool:
        return False


class PolakRibiere:
    """d ← -g + β·d with β = max(0, g·(g - g₋)/‖g₋‖²), which starts anew by itself where that is negative."""

    sigma, scaled = 0.1, False

    def __init__(self, space: Space) -> None:
        self.xp = space.xp
        self.before: tuple[Array, float, float] | None = None
        """The last direction, the slope along it where it ended, and β."""

    def sums(self, g: Array, new: Array, d: Array) -> list[Array]:
        return [self.xp.vecdot(new, new), self.xp.vecdot(new, g), self.xp.vecdot(g, g)]

    def accept(self, alpha: float, slopes: tuple[float, float], g: Array, new: Array, d: Array, sums: Any) -> None:
        square, across, old = sums
        self.before = d, slopes[1], max(0.0, (square - across) / old) if old else 0.0

    def direction(self, g: Array, square: float) -> tuple[Array, float]:
        if self.before is not None:
            d, slope, beta = self.before
            if -square + beta * slope < -1e-3 * square:
                return -g + beta * d, -square + beta * slope
        return -g, -square

    def reset(self) -> bool:
        had, self.before = self.before is not None, None
        return had


class LimitedMemory:
    """d = -H·g, with H of the last steps s and changes of the gradient y (Nocedal 1980).

    Both loops of the recursion run on the host, on the products of the vectors with each other, and find of which sum
    of the rows of ``memory`` and of g the direction is made (Chen, Wang & Zhou 2014): two passes over the memory an
    iteration, one for all products and one for the sum.
    """

    sigma = 0.9

    def __init__(self, space: Space, history: int) -> None:
        self.space, self.history = space, history
        self.memory = space.zeros(2 * history, space.size)
        """Steps first, then changes of the gradient, a ring each."""
        self.products = np.zeros((2 * history, history))
        """Of all rows with the changes; of a step with its own change and later ones, which is all that is asked."""
        self.with_gradient = np.zeros(2 * history)
        self.order: list[int] = []
        """Rows in use, the oldest first."""

    @property
    def scaled(self) -> bool:
        return bool(self.order)

    def sums(self, g: Array, new: Array, d: Array) -> list[Array]:
        xp = self.space.xp
        y = new - g
        both = xp.matmul(xp.stack([new, y]), xp.matrix_transpose(self.memory))
        return [xp.vecdot(new, new), xp.vecdot(d, y), xp.vecdot(y, y), xp.vecdot(new, y), both]

    def accept(self, alpha: float, slopes: tuple[float, float], g: Array, new: Array, d: Array, sums: Any) -> None:
        _, along, square, new_y, *rest = sums
        (with_new, with_change), m = np.asarray(rest).reshape(2, -1), self.history
        self.with_gradient = with_new
        if not (along > 1e-10 * abs(slopes[0]) and square > 0):
            return  # the curvature is not positive, or lost in roundings
        i = self.order.pop(0) if len(self.order) == m else len(self.order)
        self.memory = self.space.put(self.memory, i, alpha * d)
        self.memory = self.space.put(self.memory, m + i, new - g)
        self.products[:, i], self.products[m + i, :] = with_change, with_change[m:]
        self.products[i, i], self.products[m + i, i] = alpha * along, square
        self.with_gradient[i], self.with_gradient[m + i] = alpha * slopes[1], new_y
        self.order.append(i)

    def direction(self, g: Array, square: float) -> tuple[Array, float]:
        if not self.order:
            return -g, -square
        P, w, m, order = self.products, self.with_gradient, self.history, self.order
        y_share, s_share = np.zeros(m), np.zeros(m)
        for i in reversed(order):
            y_share[i] = (w[i] - P[i] @ (y_share * _newer(order, i, m))) / P[i, i]
        scale = P[order[-1], order[-1]] / P[m + order[-1], order[-1]]
        for i in order:
            along = scale * (w[m + i] - P[m + i] @ y_share) + P[:m, i] @ s_share
            s_share[i] = y_share[i] - along / P[i, i]
        shares = np.concatenate([s_share, -scale * y_share])
        slope = -float(scale * square + shares @ w)
        if not slope < 0:
            self.order.clear()
            return -g, -square
        xp = self.space.xp
        return -(float(scale) * g + xp.matmul(self.space.uploaded(shares), self.memory)), slope

    def reset(self) -> bool:
        had = bool(self.order)
        self.order.clear()
        return had


def _newer(order: list[int], i: int, m: int) -> np.ndarray[Any, Any]:
    mask = np.zeros(m)
    mask[order[order.index(i) + 1 :]] = 1
    return mask
