"""Constraints: functions that are 0 in a set and infinite outside; their prox is the projection onto it."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from xopt import _arrays
from xopt._arrays.scalars import is_number
from xopt._public import public
from xopt.proximal._prox import Array, Prox, each, indicator, of_arrays, real, remade, total
from xopt.transforms._projections import Simplex


@public
@remade
def box(lower: Any = None, upper: Any = None) -> Prox:
    """Box constraint: lower ≤ x ≤ upper.

    ::

        prox(x, t) = min(max(x, lower), upper)

    Parameters
    ----------
    lower, upper
        Numbers, arrays, or trees of these like x; None: no bound on that side. At least one is given. Where they cross,
        upper wins. x must be real.

    Examples
    --------
    >>> import numpy as np
    >>> from xopt import proximal
    >>> proximal.box(0.0).prox(np.asarray([-1.0, 3.0]), 1.0)
    array([0., 3.])
    """
    if lower is None and upper is None:
        raise ValueError("box: lower and upper are both None; give one of them")
    for name, bound in (("lower", lower), ("upper", upper)):
        if is_number(bound) and bound != bound:
            raise ValueError(f"box: {name}: NaN, but it must be a bound")
        each(f"box: {name}", bound, lambda xp, p: p == p, "a bound, but NaN")
    if is_number(lower) and is_number(upper) and lower > upper:
        raise ValueError(f"box: lower={lower!r} is above upper={upper!r}")

    def prox(xp: Any, x: Array, t: Any, lower: Any, upper: Any) -> Array:
        if _arrays.is_complex(x):
            raise TypeError(f"box: a complex array of shape {tuple(x.shape)}, but its elements must be real")
        if lower is not None:
            x = xp.where(x < lower, lower + xp.zeros_like(x), x)
        return x if upper is None else xp.where(x > upper, upper + xp.zeros_like(x), x)

    def value(xp: Any, x: Array, lower: Any, upper: Any) -> Any:
        inside = x == x
        inside = inside if lower is None else inside & (x >= lower)
        inside = inside if upper is None else inside & (x <= upper)
        return indicator(xp, ~xp.all(inside), x)

    def conjugate(xp: Any, y: Array, lower: Any, upper: Any) -> Any:
        found, none = xp.zeros_like(y), xp.zeros_like(y)
        for sign, bound in ((y > 0, upper), (y < 0, lower)):  # an infinite or missing bound is infinity, but times 0
            some = xp.where(sign, y, none)
            if bound is None:
                found = found + xp.where(sign, none + math.inf, none)
            else:
                found = found + xp.where(sign, xp.where(sign, bound + none, none) * some, none)
        return total(xp, found)

    def scaling(xp: Any, y: Array, lower: Any, upper: Any) -> Any:
        """Return 0 where y goes to a side that is open: no other multiple of it will do."""
        if is_number(lower) and is_number(upper) and math.isfinite(upper - lower):
            return 1.0
        fine = xp.isfinite(conjugate(xp, y, lower, upper))
        return xp.where(fine, total(xp, xp.zeros_like(y)) + 1, total(xp, xp.zeros_like(y)))

    return of_arrays("box", prox, value, conjugate, scaling, given={"lower": lower, "upper": upper})


@public
@remade
def simplex(sum: float = 1.0, axis: int | None = None) -> Prox:
    """Simplex constraint: x ≥ 0 with a given sum, such as probabilities.

    Parameters
    ----------
    sum
        The sum, > 0.
    axis
        Along which axis of an array the sum is taken; None: over the whole array.

    Notes
    -----
    The projection is that of :class:`xopt.Simplex`, by sorting (Duchi et al. 2008). x must be real.

    Examples
    --------
    >>> import numpy as np
    >>> from xopt import proximal
    >>> proximal.simplex().prox(np.asarray([0.25, 0.5]), 1.0)
    array([0.375, 0.625])
    """
    h: Any = SimpleNamespace(total=real("sum", sum, 0.0), axis=axis)
    if axis is not None and (not isinstance(axis, int) or isinstance(axis, bool)):
        raise TypeError(f"axis: {axis!r}, but it must be a whole number or None")

    def value(xp: Any, x: Array) -> Any:
        sums = xp.sum(x, axis=axis)
        slack = 16 * float(xp.finfo(x.dtype).eps) * h.total * max(1.0, math.sqrt(math.prod(x.shape)))
        return indicator(xp, xp.any(x < 0) | ~xp.all(xp.abs(sums - h.total) <= slack), x)

    return of_arrays(
        "simplex",
        lambda xp, x, t: Simplex.update(h, xp, x, x),
        value,
        lambda xp, y: h.total * total(xp, xp.max(y, axis=axis)),
        apart=False,
    )
