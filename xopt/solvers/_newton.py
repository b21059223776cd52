"""Truncated conjugate gradients, and Newton's method by them with a line search."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from xopt.solvers._directions import Line, Steepest
from xopt.solvers._hessian import Hessian
from xopt.solvers._space import Array, Space, Vectors


class Step(NamedTuple):
    """An approximate minimum of the model g·d + d·H·d/2, within a radius."""

    d: Array
    slope: float
    """g·d."""
    change: float
    """What the model is there."""
    size: float
    """‖d‖, within a radius."""
    edge: bool
    """Whether it ends at the radius."""


def truncated(
    hessian: Hessian, here: Vectors, square: float, maxcg: int, radius: float = math.inf,
    precondition: Callable[[Array], Array] | None = None,
) -> Step | None:  # fmt: skip
    """Return conjugate gradients on H·d = -g until ‖H·d + g‖ ≤ min(1/2, √‖g‖)·‖g‖ (Steihaug 1983).

    Norms of gradients are those of P, ``square`` is g·P·g; that of d within a radius is ‖d‖ = √(d·P⁻¹·d). Where the
    curvature is not positive, d goes on to the radius; without one, as far as if the curvature had the other sign,
    which is a way out of saddles. One transfer a product, with P two, so that it is given no infinite numbers. None:
    the first product is infinite or NaN.
    """
    space, dot = hessian.space, hessian.space.dot
    enough = square * min(0.25, math.sqrt(square))
    p, d, hd, left = -here.z, 0 * here.g, 0 * here.g, square
    measured = precondition is not None and radius < math.inf
    mp, md = (-here.g, d) if measured else (p, d)  # P⁻¹·p and P⁻¹·d
    best = Step(d, 0.0, 0.0, 0.0, False)
    for k in range(min(maxcg, 20 * space.size)):
        hp = hessian.along(p)
        curve = dot(p, hp)
        alpha = left / curve
        new, new_h = d + alpha * p, hd + alpha * hp
        new_m = md + alpha * mp if measured else new
        r = z = here.g + new_h
        before = [curve, dot(here.g, p) + dot(hd, p), dot(here.g, p), dot(p, mp), dot(d, mp)]
        after = [dot(new, new_m), dot(here.g, new), dot(new, new_h)]
        if precondition is None:
            after.append(dot(r, r))
        known = list(map(float, space.total([space.row(*before, *after)])))
        curvature, residual, downhill, length, across = known[:5]
        if not all(map(math.isfinite, known[:5])):
            return best if k else None
        inside = curvature > 0 and all(map(math.isfinite, known)) and known[5] < radius * radius
        if not inside:
            if radius < math.inf:
                t, size = _to_the_edge(best.size, across, length, radius), radius
            else:
                t, size = left / abs(curvature) if curvature else 1.0, math.nan
            change = best.change + t * residual + t * t * curvature / 2
            return Step(d + t * p, best.slope + t * downhill, change, size, radius < math.inf)
        if precondition is not None:
            z = hessian.called(precondition, r)
            known += list(map(float, space.total([space.row(dot(r, z))])))
        reached, slope, bend, rest = known[5:]
        d, hd, md = new, new_h, new_m
        best = Step(d, slope, slope + bend / 2, math.sqrt(reached), False)
        if not rest > enough:
            break
        p = rest / left * p - z
        mp, left = rest / left * mp - r if measured else p, rest
    return best


def _to_the_edge(size: float, across: float, length: float, radius: float) -> float:
    """Return the t > 0 with ‖d + t·p‖ = radius, from ‖d‖, d·p and p·p."""
    room = (radius - size) * (radius + size)
    root = math.sqrt(max(across * across + length * room, 0.0))
    return room / (across + root) if across > 0 else (root - across) / length


class Newton(Steepest):
    """d of `truncated`, a step of Newton's method where the curvature is positive; -P·g where that is no help."""

    hessian: Hessian
    precondition: Callable[[Array], Array] | None

    def __init__(self, space: Space, maxcg: int) -> None:
        super().__init__(space)
        self.maxcg, self.scaled = maxcg, True
        self._plain = False
        """Whether the next direction is to be -P·g."""

    def direction(self, here: Vectors, square: float) -> Line:
        plain, self._plain = self._plain, False
        step = None
        if not plain:
            self.hessian.at(here)
            step = truncated(self.hessian, here, square, self.maxcg, precondition=self.precondition)
        self.scaled = step is not None and -np.inf < step.slope < 0
        return Line(step.d, step.slope) if step is not None and self.scaled else Line(-here.z, -square)

    def reset(self) -> bool:
        self._plain = self.scaled
        return self.scaled
