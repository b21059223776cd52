"""Gradients from differences of values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from xopt._arrays.layout import Layout
from xopt.solvers._space import Space, checked_value

Numbers = np.ndarray[Any, Any]
SCHEMES = {"2-point": 2, "3-point": 3}


class Differences:
    """A function of parameters that returns its value and a gradient from values around: on the host, one by one.

    An evaluation more for each real number of x, with three points two more. Within bounds all are within.
    """

    def __init__(
        self, fun: Callable[[Any], Any], layout: Layout, scheme: str, step: Any = None,
        low: Any = -math.inf, high: Any = math.inf,
    ) -> None:  # fmt: skip
        self.fun, self.space, self.points = fun, Space(layout), SCHEMES[scheme]
        size = self.space.size
        self.step = checked_step(step, size)
        self.low, self.high = (np.broadcast_to(side, size).astype(float) for side in (low, high))
        self.dtypes = np.repeat([d.real for d in layout.dtypes], self.space.sizes)
        self.eps = np.where(self.dtypes == "float32", *(float(np.finfo(d).eps) for d in ("float32", "float64")))
        self.cost = 1 + (self.points - 1) * int(np.count_nonzero(self.low < self.high))
        self.nfev = 0

    def __call__(self, tree: Any) -> tuple[Any, Any]:
        space = self.space
        raw = self.fun(tree)
        self.nfev += 1
        value = checked_value(space.library, raw)
        [center, *numbers] = space.numbers(value, [space.vector(Layout(tree).leaves)])
        x, g = np.asarray(numbers), np.zeros(space.size)
        steps = self._steps(x, raw)
        for i in np.flatnonzero(self.low < self.high):
            g[i] = self._slope(x, int(i), steps[i], center)
        return value, space.tree(space.uploaded(g))

    def _steps(self, x: Numbers, value: Any) -> Numbers:
        """Return steps that balance what is cut off and what is rounded, in the coarser dtype of value and x."""
        coarse = 2.0**-23 if "float32" in str(getattr(value, "dtype", "")) else 0.0
        best: Numbers = np.maximum(self.eps, coarse) ** (1 / self.points) * np.maximum(1, np.abs(x))
        if self.step is None:
            return best
        return np.where(self._rounded(x + self.step) == x, best, self.step)

    def _rounded(self, x: Numbers) -> Numbers:
        with np.errstate(over="ignore"):
            return np.where(self.dtypes == "float32", x.astype("float32"), x)

    def _slope(self, x: Numbers, i: int, step: float, center: float) -> float:
        """Return the slope of one element: between both sides of it, or on the one where there is more room."""
        up, down = self.high[i] - x[i], x[i] - self.low[i]
        if self.points == 3 and step <= min(up, down):
            (above, more), (below, less) = self._at(x, i, step), self._at(x, i, -step)
            return (more - less) / (above - below)
        room = max(up, down)
        if self.points == 2 or room < 8 * self.eps[i] * abs(x[i]):
            sign = 1 if up >= min(step, down) else -1
            h, near = self._at(x, i, sign * min(step, room))
            return (near - center) / h if h else 0.0
        step = math.copysign(min(step, room / 2), up - down)
        (h, near), (k, far) = self._at(x, i, step), self._at(x, i, 2 * step)
        return ((near - center) * k / h - (far - center) * h / k) / (k - h)

    def _at(self, x: Numbers, i: int, step: float) -> tuple[float, float]:
        """Return how far the element has moved, and the value there."""
        moved = x.copy()
        moved[i] = min(max(x[i] + step, self.low[i]), self.high[i])
        moved = self._rounded(moved)
        found = checked_value(self.space.library, self.fun(self.space.tree(self.space.uploaded(moved))))
        self.nfev += 1
        return float(moved[i] - x[i]), self.space.numbers(found, [])[0]


def evaluations(fun: Any, calls: int) -> int:
    """Return how often the function of a user was evaluated in so many calls."""
    return fun.nfev if isinstance(fun, Differences) else calls


def checked_step(step: Any, size: int) -> Numbers | None:
    """Check the length of a step, or those of all elements; None for the best."""
    if step is None:
        return None
    found = np.asarray(step)
    if found.dtype.kind not in "iuf" or found.shape not in ((), (size,)) or not ((found > 0) & (found < np.inf)).all():
        raise ValueError(f"eps: {step!r}, but it must be a number > 0, or one for each of {size} reals")
    return found.astype(float)
