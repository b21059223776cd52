"""Rounding to the digits of a narrower dtype, by arithmetic alone, so that every runner does the same."""

from __future__ import annotations

from typing import Any

_NARROW = {"bfloat16": (65537.0, 2.0**-126, 1.5 * 2.0**-110, 2.0**110), "float16": (8193.0, 2.0**-14, 0.75, 2.0**110)}
"""2 to the number of digits that are lost, plus 1; the least number of full precision, and 1.5 · 2²³ times the distance
of smaller ones; where the product would overflow."""


def round_to(xp: Any, x: Any, stored: str) -> Any:
    """Round to the nearest number of a narrower dtype; of a tie, to either.

    Veltkamp's splitting (Dekker 1971, A floating-point technique for extending the available precision, 5.6); where the
    numbers of the narrower dtype lie equally far apart, around 0, adding and subtracting a large one.
    """
    if stored not in _NARROW:
        return x
    factor, least, grid, most = _NARROW[stored]
    c, size = factor * x, xp.abs(x)
    return xp.where(size < least, (x + grid) - grid, xp.where(size < most, c - (c - x), x))


def stochastic_round(xp: Any, x: Any, stored: str, noise: Any) -> Any:
    """Round to one of the two neighbours, each by its nearness to x: ``noise`` is uniform in [0, 1).

    It is the one that is farther from 0 where the noise is less than the part of the way to it. What is too large to
    have both stays as it is, to be rounded to the nearest when it is stored.
    """
    least, most = _NARROW[stored][1], 2.0**109 if stored == "bfloat16" else 65504.0
    jump, grid = (1.25 * 2.0**-8, 2.0**-133) if stored == "bfloat16" else (1.25 * 2.0**-11, 2.0**-24)
    near = round_to(xp, x, stored)
    far, size = x - near, xp.abs(near)
    step = xp.where(size < least, grid, size * jump)  # of normal numbers 5/8 to 5/4 of their distance
    other = round_to(xp, near + xp.where(far < 0.0, -step, step), stored)
    part = far / (other - near)  # at most 1/2, and exact
    outer = xp.where(noise < 1.0 - part, near, other)
    inner = xp.where(noise < part, other, near)
    return xp.where(xp.abs(x) <= most, xp.where(size > xp.abs(x), outer, inner), x)
