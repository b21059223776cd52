"""Coefficients of Newton-Schulz iterations: as published, and again by a search."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

# Amsel et al. 2025, arXiv:2505.16932, the list in their implementation
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)

# Six steps of Jiacheng You's search, of which optax has five, as "dion"
FIVE = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


def applied(rows: Any, x: Any) -> Any:
    """Apply polynomials one after the other."""
    for a, b, c in rows:
        x = a * x + b * x**3 + c * x**5
    return x


def best(low: float, high: float) -> tuple[Any, float]:
    """Equal errors at four points, of which two are moved to the extrema: the roots of the derivative."""
    points = np.asarray([low, 0.7 * low + 0.3 * high, 0.3 * low + 0.7 * high, high])
    for _ in range(12):
        rows = np.stack([points, points**3, points**5, [1, -1, 1, -1]], axis=1)
        *p, error = np.linalg.solve(rows, np.ones(4))
        points[1:3] = np.sort(np.roots([5 * p[2], 0, 3 * p[1], 0, p[0]]).real)[2:]
    return p, float(error)


@cache
def cans(steps: int, delta: float = 0.3) -> tuple[Any, ...]:
    """Grishina et al. 2025, their Algorithm for δ-orthogonalization: bisect the lower bound until the error is δ."""
    low, high = 1e-6, 0.9
    for _ in range(46):
        middle = float(np.sqrt(low * high))
        ends, found = (middle, 1.0), []
        for _ in range(steps):
            p, error = best(*ends)
            found.append(tuple(map(float, p)))
            ends = (1 - error, 1 + error)
        low, high = (middle, high) if error > delta else (low, middle)
    return tuple(found)
