"""Parameters within bounds: arrays whose second axis, if there is one, is that of lanes. None stands for no bounds."""

from __future__ import annotations

from typing import Any

Array = Any


def within(xp: Any, x: Array, low: Array | None, high: Array | None) -> Array:
    """Move parameters to the bounds that they are beyond; NaN stays."""
    if low is None:
        return x
    x = xp.where(x < low, low, x)
    return xp.where(x > high, high, x)


def pushed(x: Array, g: Array, low: Array | None, high: Array | None) -> Array | None:
    """Say which parameters are at a bound that the slope pushes them against, or between equal ones."""
    if low is None:
        return None
    return ((x <= low) & (g > 0)) | ((x >= high) & (g < 0)) | (low == high)


def mask(xp: Any, x: Array, low: Array | None, high: Array | None) -> Array:
    """Say where parameters are at a bound: -1 at the lower one, 1 at the upper."""
    none = xp.zeros_like(x)
    return none if low is None else xp.where(x <= low, none - 1, xp.where(x >= high, none + 1, none))
