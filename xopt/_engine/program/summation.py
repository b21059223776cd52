"""Sums in one fixed order: float64, over chunks of 64 Ki elements, chunk after chunk.

The order depends on the shape of a leaf alone, so a norm has the same bits for any tile size and any thread count.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

CHUNK = 65_536
"""Elements that are summed together."""


def chunk_sum(x: np.ndarray[Any, Any]) -> float:
    """Sum one contiguous chunk of float64 numbers."""
    return float(np.add.reduce(x))


def leaf_sum(x: np.ndarray[Any, Any]) -> float:
    """Sum a whole leaf, in C order whatever its strides."""
    flat = np.ascontiguousarray(x).reshape(-1)
    return float(ordered(chunk_sum(flat[i : i + CHUNK]) for i in range(0, flat.size, CHUNK)))


def ordered(parts: Any) -> Any:
    """Add numbers from left to right, from 0.0 on."""
    total: Any = 0.0
    for part in parts:
        total = total + part
    return total


def total(xp: Any, leaves: Any) -> Any:
    """Sum a vector of the sums of leaves, on NumPy in their order."""
    return ordered(leaves.tolist()) if isinstance(leaves, np.ndarray) else xp.sum(leaves)


class Roots(NamedTuple):
    """Sums of squares of which the roots are at hand, where there is no float64 that would hold the squares."""

    roots: Any


def root_of_squares(xp: Any, *arrays: Any) -> Any:
    """Return the root of the sum of all squares, which neither overflow nor vanish; in float32, in one pass.

    Three sums: of large numbers, of small ones, both scaled, and of the rest (Blue 1978, A portable Fortran program to
    find the Euclidean norm of a vector; the constants of Anderson 2017, Algorithm 978).
    """
    big, middle, small = (0.0, 0.0, 0.0)
    for x in arrays:
        size, zero = xp.abs(x), xp.zeros_like(x)
        high, low = size > 2.0**52, size < 2.0**-63
        # squared outside of the selection: XLA makes x²·c² of (x·c)², which is inf·0
        big = big + xp.sum(xp.where(high, x * 2.0**-76, zero) ** 2)
        small = small + xp.sum(xp.where(low, x * 2.0**75, zero) ** 2)
        middle = middle + xp.sum(xp.where(high | low, zero, x) ** 2)
    root, least = xp.sqrt(middle), xp.sqrt(small) * 2.0**-75
    one = xp.ones_like(root)
    rest = root * xp.sqrt(one + (least / xp.where(root > 0, root, one)) ** 2)
    rest = xp.where(root == 0, least, rest)
    large = xp.sqrt(big + (root * 2.0**-76) ** 2) * 2.0**76
    return xp.where(big == 0, rest, large)


def array_sum(xp: Any, x: Any) -> Any:
    """Sum a leaf: a Python float on NumPy, a 0-d array that stays on its device elsewhere."""
    return leaf_sum(x) if xp is np else xp.sum(x)
