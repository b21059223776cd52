"""Test functions of Moré, Garbow & Hillstrom (1981), ACM TOMS 7: residuals, standard starts, least sums of squares.

Gradients are complex steps, exact to the last digits: the formulas stand once, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

import xopt

A = Any


class Problem(NamedTuple):
    name: str
    residuals: Callable[[A], A]
    start: list[float]
    least: tuple[float, ...]
    """The values of its minima, the global one first."""

    def __call__(self, x: A) -> tuple[float, A]:
        """Return the sum of squares and its gradient, in float64."""
        x = np.asarray(x, "float64")
        r = np.asarray(self.residuals(x), "float64")
        return float(r @ r), 2 * self._slopes(x) @ r

    def _slopes(self, x: A) -> A:
        """Return the transpose of the Jacobian."""
        h = 1e-30
        return np.asarray([np.asarray(self.residuals(x + 1j * h * e)).imag / h for e in np.eye(x.size)])

    def hess(self, x: A) -> A:
        """Return the Hessian: exactly but for the curvature of the residuals, which is of differences."""
        r, slopes, h = np.asarray(self.residuals(x), "float64"), self._slopes(x), 1e-7 * np.maximum(1e-2, np.abs(x))
        rows = np.asarray([(self._slopes(x + h * e) - slopes) @ r / h[i] for i, e in enumerate(np.eye(x.size))])
        return 2 * slopes @ slopes.T + rows + rows.T


def stack(*parts: A) -> A:
    return np.concatenate([np.atleast_1d(p) for p in parts])


def helical(x: A) -> A:
    turn = np.arctan(x[1] / x[0]) / (2 * np.pi) + (0.5 if x[0].real < 0 else 0.0)
    return stack(10 * (x[2] - 10 * turn), 10 * (np.sqrt(x[0] ** 2 + x[1] ** 2) - 1), x[2])


def bard(x: A) -> A:
    y = np.asarray([14, 18, 22, 25, 29, 32, 35, 39, 37, 58, 73, 96, 134, 210, 439]) / 100
    u = np.arange(1, 16)
    return y - (x[0] + u / ((16 - u) * x[1] + np.minimum(u, 16 - u) * x[2]))


def gaussian(x: A) -> A:
    half = [0.0009, 0.0044, 0.0175, 0.0540, 0.1295, 0.2420, 0.3521]
    t = (8 - np.arange(1, 16)) / 2
    return x[0] * np.exp(-x[1] * (t - x[2]) ** 2 / 2) - np.asarray([*half, 0.3989, *half[::-1]])


def box(x: A) -> A:
    t = np.arange(1, 11) / 10
    return np.exp(-t * x[0]) - np.exp(-t * x[1]) - x[2] * (np.exp(-t) - np.exp(-10 * t))


def singular(x: A) -> A:
    a, b, c, d = x.reshape(-1, 4).T
    return stack(a + 10 * b, 5**0.5 * (c - d), (b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2)


def wood(x: A) -> A:
    a, b, c, d = x
    return stack(
        10 * (b - a**2), 1 - a, 90**0.5 * (d - c**2), 1 - c, 10**0.5 * (b + d - 2), (b - d) / 10**0.5
    )  # fmt: skip


def kowalik(x: A) -> A:
    y = np.asarray([1957, 1947, 1735, 1600, 844, 627, 456, 342, 323, 235, 246]) / 10000
    u = np.asarray([4, 2, 1, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625])
    return y - x[0] * (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3])


def brown_dennis(x: A) -> A:
    t = np.arange(1, 21) / 5
    return (x[0] + t * x[1] - np.exp(t)) ** 2 + (x[2] + x[3] * np.sin(t) - np.cos(t)) ** 2


def biggs(x: A) -> A:
    t = np.arange(1, 14) / 10
    y = np.exp(-t) - 5 * np.exp(-10 * t) + 3 * np.exp(-4 * t)
    return x[2] * np.exp(-t * x[0]) - x[3] * np.exp(-t * x[1]) + x[5] * np.exp(-t * x[4]) - y


def watson(x: A) -> A:
    t, j = np.arange(1, 30)[:, None] / 29, np.arange(x.size)
    slope = (j[1:] * t ** (j[1:] - 1)) @ x[1:]
    return stack(slope - (t**j @ x) ** 2 - 1, x[0], x[1] - x[0] ** 2 - 1)


def rosenbrock(x: A) -> A:
    return stack(10 * (x[1::2] - x[::2] ** 2), 1 - x[::2])


def penalty2(x: A) -> A:
    n, a = x.size, 1e-5**0.5
    i = np.arange(2, n + 1)
    e = np.exp(x / 10)
    return stack(
        x[0] - 0.2, a * (e[1:] + e[:-1] - np.exp(i / 10) - np.exp((i - 1) / 10)), a * (e[1:] - np.exp(-0.1)),
        (n - np.arange(n)) @ x**2 - 1,
    )  # fmt: skip


def variably(x: A) -> A:
    total = np.arange(1, x.size + 1) @ (x - 1)
    return stack(x - 1, total, total**2)


def trigonometric(x: A) -> A:
    i = np.arange(1, x.size + 1)
    return x.size - np.sum(np.cos(x)) + i * (1 - np.cos(x)) - np.sin(x)


def boundary(x: A) -> A:
    h = 1 / (x.size + 1)
    t, wide = h * np.arange(1, x.size + 1), stack(0.0, x, 0.0)
    return 2 * x - wide[:-2] - wide[2:] + h**2 * (x + t + 1) ** 3 / 2


def integral(x: A) -> A:
    h = 1 / (x.size + 1)
    t = h * np.arange(1, x.size + 1)
    cube = (x + t + 1) ** 3
    return x + h / 2 * ((1 - t) * np.cumsum(t * cube) + t * (np.sum((1 - t) * cube) - np.cumsum((1 - t) * cube)))


def tridiagonal(x: A) -> A:
    wide = stack(0.0, x, 0.0)
    return (3 - 2 * x) * x - wide[:-2] - 2 * wide[2:] + 1


def banded(x: A) -> A:
    near = [[j for j in range(max(0, i - 5), min(x.size, i + 2)) if j != i] for i in range(x.size)]
    return x * (2 + 5 * x**2) + 1 - np.asarray([np.sum(x[j] * (1 + x[j])) for j in near])


def linear(x: A) -> A:
    total = 2 * np.sum(x) / 20
    return stack(x - total - 1, np.full(10, -total - 1))


def chebyquad(x: A) -> A:
    y, found = 2 * x - 1, []
    before, now = np.ones_like(y), y
    for i in range(1, x.size + 1):
        found.append(np.mean(now) + (1 / (i**2 - 1) if i % 2 == 0 else 0.0))
        before, now = now, 2 * y * now - before
    return np.asarray(found)


J = np.arange(1, 11)
PROBLEMS = [
    Problem("Rosenbrock", rosenbrock, [-1.2, 1], (0,)),
    Problem("Freudenstein and Roth", lambda x: stack(
        -13 + x[0] + ((5 - x[1]) * x[1] - 2) * x[1], -29 + x[0] + ((x[1] + 1) * x[1] - 14) * x[1]
    ), [0.5, -2], (0, 48.984253)),
    Problem("Powell badly scaled", lambda x: stack(1e4 * x[0] * x[1] - 1, np.exp(-x).sum() - 1.0001), [0, 1], (0,)),
    Problem("Brown badly scaled", lambda x: stack(x[0] - 1e6, x[1] - 2e-6, x[0] * x[1] - 2), [1, 1], (0,)),
    Problem("Beale", lambda x: np.asarray([1.5, 2.25, 2.625]) - x[0] * (1 - x[1] ** np.arange(1, 4)), [1, 1], (0,)),
    Problem("Jennrich and Sampson", lambda x: 2 + 2 * J - np.exp(J * x[0]) - np.exp(J * x[1]), [0.3, 0.4],
            (124.36218,)),
    Problem("Helical valley", helical, [-1, 0, 0], (0,)),
    Problem("Bard", bard, [1, 1, 1], (8.2148773e-3, 17.4287)),
    Problem("Gaussian", gaussian, [0.4, 1, 0], (1.1279327e-8,)),
    Problem("Box", box, [0, 10, 20], (0,)),
    Problem("Powell singular", singular, [3, -1, 0, 1], (0,)),
    Problem("Wood", wood, [-3, -1, -3, -1], (0,)),
    Problem("Kowalik and Osborne", kowalik, [0.25, 0.39, 0.415, 0.39], (3.0750560e-4,)),
    Problem("Brown and Dennis", brown_dennis, [25, 5, -5, -1], (85822.2016,)),
    Problem("Biggs EXP6", biggs, [1, 2, 1, 1, 1, 1], (0, 5.6556499e-3)),
    Problem("Watson", watson, [0] * 6, (2.2876701e-3,)),
    Problem("Extended Rosenbrock", rosenbrock, [-1.2, 1] * 5, (0,)),
    Problem("Extended Powell singular", singular, [3, -1, 0, 1] * 3, (0,)),
    Problem("Penalty I", lambda x: stack(1e-5**0.5 * (x - 1), x @ x - 0.25), [1, 2, 3, 4], (2.2499776e-5,)),
    Problem("Penalty II", penalty2, [0.5] * 4, (9.3762932e-6,)),
    Problem("Variably dimensioned", variably, [1 - j / 10 for j in range(1, 11)], (0,)),
    Problem("Trigonometric", trigonometric, [0.1] * 10, (0, 2.7950611e-5)),
    Problem("Brown almost linear", lambda x: stack(x[:-1] + x.sum() - 11, np.prod(x) - 1), [0.5] * 10, (0, 1)),
    Problem("Discrete boundary value", boundary, [j / 11 * (j / 11 - 1) for j in range(1, 11)], (0,)),
    Problem("Discrete integral equation", integral, [j / 11 * (j / 11 - 1) for j in range(1, 11)], (0,)),
    Problem("Broyden tridiagonal", tridiagonal, [-1] * 10, (0,)),
    Problem("Broyden banded", banded, [-1] * 10, (0,)),
    Problem("Linear, full rank", linear, [1] * 10, (10,)),
    Problem("Chebyquad", chebyquad, [j / 9 for j in range(1, 9)], (3.5168737e-3,)),
]  # fmt: skip


def boxes() -> Iterator[tuple[Problem, A, A, A]]:
    """Yield functions, starts, and lower and upper bounds that cut off the minimum in some variables."""
    rng = np.random.default_rng(0)
    for problem in PROBLEMS:
        x0 = np.asarray(problem.start, "float64")
        best = xopt.minimize(problem, x0, options={"gtol": 1e-8}).x
        width = np.abs(best - x0) + 0.1
        some = rng.random(x0.size) < 0.5
        center = best + width * rng.standard_normal(x0.size) / 2
        radius = width * rng.random(x0.size)
        yield problem, x0, None, np.where(some, best - 0.2 * width, np.inf)
        yield problem, x0, np.where(some, best + 0.1 * width, -np.inf), None
        yield problem, x0, center - radius, center + radius


def chain(x: A) -> tuple[A, A]:
    """Return the value and the gradient of Rosenbrock's function in many dimensions, each coupled to the next."""
    a, b = x[1:] - x[:-1] ** 2, 1 - x[:-1]
    g = np.zeros_like(x)
    g[:-1] = -400 * x[:-1] * a - 2 * b
    g[1:] += 200 * a
    return np.sum(100 * a * a + b * b), g


def bowl(x: Any) -> tuple[Any, Any]:
    """Σ i·(xᵢ - 1)², i from 1."""
    i = np.arange(1, x.size + 1).astype(x.dtype)
    return i @ (x - 1) ** 2, 2 * i * (x - 1)
