"""Sums in one fixed order: float64, over chunks of 64 Ki elements, chunk after chunk.

The order depends on the shape of a leaf alone, so a norm has the same bits for any tile size and any thread count.
"""

from __future__ import annotations

from typing import Any

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


def array_sum(xp: Any, x: Any) -> Any:
    """Sum a leaf: a Python float on NumPy, a 0-d array that stays on its device elsewhere."""
    return leaf_sum(x) if xp is np else xp.sum(x)
