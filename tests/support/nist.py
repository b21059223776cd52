"""Nonlinear regression of NIST's Statistical Reference Datasets: observations, models, starts, certified values.

The numbers are in ``nist.txt``. Of Nelson the response is log(y), as NIST certifies it, and x has two columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device

A = Any


class Set(NamedTuple):
    """A set of data, its model, and what NIST certifies of the least sum of squares."""

    name: str
    starts: A
    """Two starts, (2, n): one far off, one near."""
    certified: A
    """The parameters at the minimum, (n,)."""
    errors: A
    """Their standard deviations, (n,)."""
    rss: float
    """The residual sum of squares."""
    deviation: float
    """The residual standard deviation, √(rss / (m - n))."""
    x: A
    """The predictor, (m,); (m, 2) of Nelson."""
    y: A
    """The response, (m,)."""
    model: Callable[[A, A, A], A]
    """``model(xp, b, x)`` for parameters (..., n) gives (..., m)."""

    def residual(self, xp: A, b: A) -> A:
        """Return model - y for parameters (..., n), on their device and in their dtype."""
        x, y = (xp.asarray(v, dtype=b.dtype, device=device(b)) for v in (self.x, self.y))
        return self.model(xp, b, x) - y


def digits(found: A, certified: A) -> float:
    """Return how many significant digits of every parameter are right, at most 11; -inf if one is not finite."""
    found, certified = np.asarray(found, "float64"), np.asarray(certified, "float64")
    worst = float(np.max(np.abs(found - certified) / np.abs(certified)))
    if not math.isfinite(worst):
        return -math.inf
    return min(11.0, -math.log10(worst)) if worst else 11.0


def columns(b: A) -> Iterator[A]:
    """Yield the parameters one by one, each (..., 1), so that a batch of them goes along with x."""
    return (b[..., i : i + 1] for i in range(b.shape[-1]))


def misra1a(xp: A, b: A, x: A) -> A:
    b1, b2 = columns(b)
    return b1 * (1 - xp.exp(-b2 * x))


def misra1b(xp: A, b: A, x: A) -> A:
    b1, b2 = columns(b)
    return b1 * (1 - (1 + b2 * x / 2) ** -2.0)


def misra1c(xp: A, b: A, x: A) -> A:
    b1, b2 = columns(b)
    return b1 * (1 - (1 + 2 * b2 * x) ** -0.5)


def misra1d(xp: A, b: A, x: A) -> A:
    b1, b2 = columns(b)
    return b1 * b2 * x / (1 + b2 * x)


def chwirut(xp: A, b: A, x: A) -> A:
    b1, b2, b3 = columns(b)
    return xp.exp(-b1 * x) / (b2 + b3 * x)


def lanczos(xp: A, b: A, x: A) -> A:
    b1, b2, b3, b4, b5, b6 = columns(b)
    return b1 * xp.exp(-b2 * x) + b3 * xp.exp(-b4 * x) + b5 * xp.exp(-b6 * x)


def gauss(xp: A, b: A, x: A) -> A:
    b1, b2, b3, b4, b5, b6, b7, b8 = columns(b)
    first, second = b3 * xp.exp(-(((x - b4) / b5) ** 2)), b6 * xp.exp(-(((x - b7) / b8) ** 2))
    return b1 * xp.exp(-b2 * x) + first + second


def danwood(xp: A, b: A, x: A) -> A:
    b1, b2 = columns(b)
    return b1 * x**b2


def kirby2(xp: A, b: A, x: A) -> A:
    b1, b2, b3, b4, b5 = columns(b)
    return (b1 + b2 * x + b3 * x**2) / (1 + b4 * x + b5 * x**2)


def cubics(xp: A, b: A, x: A) -> A:
    b1, b2, b3, b4, b5, b6, b7 = columns(b)
    return (b1 + b2 * x + b3 * x**2 + b4 * x**3) / (1 + b5 * x + b6 * x**2 + b7 * x**3)


def nelson(xp: A, b: A, x: A) -> A:
    b1, b2, b3 = columns(b)
    return b1 - b2 * x[:, 0] * xp.exp(-b3 * x[:, 1])


def mgh09(xp: A, b: A, x: A) -> A:
    b1, b2, b3, b4 = columns(b)
    return b1 * (x**2 + x * b2) / (x**2 + x * b3 + b4)


def mgh10(xp: A, b: A, x: A) -> A:
    b1, b2, b3 = columns(b)
    return b1 * xp.exp(b2 / (x + b3))


def mgh17(xp: A, b: A, x: A) -> A:
    b1, b2, b3, b4, b5 = columns(b)
    return b1 + b2 * xp.exp(-x * b4) + b3 * xp.exp(-x * b5)


def roszman1(xp: A, b: A, x: A) -> A:
    b1, b2, b3, b4 = columns(b)
    return b1 - b2 * x - xp.atan(b3 / (x - b4)) / math.pi


def enso(xp: A, b: A, x: A) -> A:
    b1, b2, b3, b4, b5, b6, b7, b8, b9 = columns(b)
    t = 2 * math.pi * x
    year = b2 * xp.cos(t / 12) + b3 * xp.sin(t / 12)
    return b1 + year + b5 * xp.cos(t / b4) + b6 * xp.sin(t / b4) + b8 * xp.cos(t / b7) + b9 * xp.sin(t / b7)


def rat42(xp: A, b: A, x: A) -> A:
    b1, b2, b3 = columns(b)
    return b1 / (1 + xp.exp(b2 - b3 * x))


def rat43(xp: A, b: A, x: A) -> A:
    b1, b2, b3, b4 = columns(b)
    return b1 / (1 + xp.exp(b2 - b3 * x)) ** (1 / b4)


def eckerle4(xp: A, b: A, x: A) -> A:
    b1, b2, b3 = columns(b)
    return b1 / b2 * xp.exp(-0.5 * ((x - b3) / b2) ** 2)


def bennett5(xp: A, b: A, x: A) -> A:
    b1, b2, b3 = columns(b)
    return b1 * (b2 + x) ** (-1 / b3)


SHARED = {"Hahn1": cubics, "Thurber": cubics, "BoxBOD": misra1a} | {
    f"{model.__name__.title()}{i}": model
    for model, n in ((chwirut, 2), (lanczos, 3), (gauss, 3))
    for i in range(1, n + 1)
}
"""Models by the names of their sets, where they have not the same."""


def read() -> dict[str, Set]:
    """Return the sets by name, in the order of NIST: from easy to hard."""
    text = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")
    lines = (line.split() for line in text.splitlines() if not line.startswith("#"))
    sets = {}
    for name, *numbers in lines:
        n, m, _ = map(int, numbers)
        table = np.asarray([next(lines) for _ in range(n)], "float64").T.copy()
        rss, deviation = map(float, next(lines))
        y, *x = np.asarray([next(lines) for _ in range(m)], "float64").T.copy()
        if name == "Nelson":
            y = np.log(y)
        model = SHARED.get(name) or globals()[name.lower()]
        sets[name] = Set(
            name, table[:2], table[2], table[3], rss, deviation, x[0] if len(x) == 1 else np.stack(x, 1), y, model
        )
    return sets


SETS = read()
