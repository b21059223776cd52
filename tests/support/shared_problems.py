"""The problems that optimizers are tested and compared on: value, gradient, start, and the least value.

The least value comes from another solver, `numpy.linalg.lstsq` or scikit-learn, where it is not 0 by construction. The
functions are written against the array API, so that `problem.to(asarray)` has the same problem on another library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optree
from array_api_compat import array_namespace

import xopt

Array = Any
Tree = Any


@dataclass(frozen=True)
class Problem:
    """A function to minimise.

    Parameters
    ----------
    name
        What it is called in tables.
    function
        ``(xp, params, *data) -> (value, gradient)``. Of complex parameters the gradient is ∂f/∂Re + i·∂f/∂Im.
    start
        First parameters: an array, or a dict of arrays.
    data
        Arrays that belong to the problem. Of a problem with ``rows``, the first axis counts the samples.
    least
        Least value, in float64; of `network` a bound.
    rows
        Number of samples that the value is a mean of; 0 where there are none.
    """

    name: str
    function: Callable[..., tuple[Array, Tree]]
    start: Tree
    data: tuple[Array, ...] = ()
    least: float = 0.0
    rows: int = 0

    def __call__(self, params: Tree, rows: Array | None = None) -> tuple[Array, Tree]:
        """Return the value, an array of shape (), and the gradient; of some samples only, where ``rows`` is given."""
        one = next(iter(params.values())) if isinstance(params, dict) else params
        data = self.data if rows is None else tuple(x[rows, ...] for x in self.data)
        return self.function(array_namespace(one), params, *data)

    def to(self, asarray: Callable[[Array], Array]) -> Problem:
        """Return the same problem with other arrays."""
        start = {n: asarray(x) for n, x in self.start.items()} if isinstance(self.start, dict) else asarray(self.start)
        return replace(self, start=start, data=tuple(asarray(x) for x in self.data))

    def astype(self, dtype: str) -> Problem:
        """Return the same problem in another precision: float32 makes complex64 of what is complex."""
        half = np.dtype(dtype).itemsize == 4 or dtype == "complex64"
        return self.to(lambda x: x.astype({"f": "f4", "c": "c8"}[x.dtype.kind]) if half else x)


def curvature(problem: Problem, params: Tree, step: int, rows: Array | None = None) -> Tree:
    """Return an estimate of the diagonal of the Hessian, by Hutchinson from differences of gradients, on NumPy."""
    wide = optree.tree_map(lambda p: np.asarray(p, np.result_type(p, np.float64)), params)

    def gradient(u: Tree, t: float) -> Tree:
        return problem(optree.tree_map(lambda p, u: p + t * u, wide, u), rows)[1]

    def hessp(u: Tree) -> Tree:
        return optree.tree_map(lambda a, b: np.asarray((a - b) / 2e-4), gradient(u, 1e-4), gradient(u, -1e-4))

    found = xopt.hutchinson(hessp, wide, step=step)
    return optree.tree_map(lambda x, p: x.astype(p.real.dtype), found, params)


def _square(xp: Any, x: Array) -> Array:
    return xp.sum(xp.abs(x) ** 2)


def quadratic(seed: int = 0) -> Problem:
    """Return ½ Σ a·(p - c)², a from 1 to 30, of a matrix and a vector."""

    def function(xp: Any, p: Tree, a: Array, c: Array, a2: Array, c2: Array) -> tuple[Array, Tree]:
        w, b = p["w"] - c, p["b"] - c2
        value = 0.5 * (xp.sum(a * w * w) + xp.sum(a2 * b * b))
        return value, {"w": a * w, "b": a2 * b}

    rng = np.random.default_rng(seed)
    a = rng.permutation(np.geomspace(1, 30, 16))
    c = rng.standard_normal(16)
    start = rng.standard_normal(16)
    split = lambda x: (x[:12].reshape(4, 3), x[12:])
    [w, b], data = split(start), (split(a)[0], split(c)[0], split(a)[1], split(c)[1])
    return Problem("quadratic", function, {"w": w, "b": b}, data)


def rosenbrock() -> Problem:
    """Return (1 - x)² + 100 (y - x²)² from (-1.2, 1), as in Rosenbrock (1960)."""

    def function(xp: Any, p: Tree) -> tuple[Array, Tree]:
        x, y = p[0], p[1]
        off, bend = 1 - x, y - x * x
        return off * off + 100 * bend * bend, xp.stack([-2 * off - 400 * x * bend, 200 * bend])

    return Problem("rosenbrock", function, np.asarray([-1.2, 1.0]))


def least_squares(dtype: str = "float64", condition: float = 100.0, seed: int = 0) -> Problem:
    """Return ½ ‖A·X - B‖², A of 40 × 20 with singular values from 1 to 1/condition, X of 20 × 3."""

    def function(xp: Any, x: Tree, a: Array, b: Array) -> tuple[Array, Tree]:
        off = a @ x - b
        adjoint = xp.conj(a.T) if xp.isdtype(a.dtype, "complex floating") else a.T
        return 0.5 * _square(xp, off), adjoint @ off

    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype).kind

    def draw(*shape: int) -> Array:
        x = rng.standard_normal(shape)
        return (x + 1j * rng.standard_normal(shape)) / np.sqrt(2) if kind == "c" else x

    left, right = np.linalg.qr(draw(40, 20))[0], np.linalg.qr(draw(20, 20))[0]
    a = (left * np.geomspace(1, 1 / condition, 20)) @ right
    b = a @ draw(20, 3) + 0.01 * draw(40, 3)
    best = np.linalg.lstsq(a, b, rcond=None)[0]
    least = 0.5 * float(np.sum(np.abs(a @ best - b) ** 2))
    return Problem("least squares", function, 0.1 * draw(20, 3), (a, b), least)


def logistic(seed: int = 0, ridge: float = 1e-2) -> Problem:
    """Return logistic regression of the breast cancer data, standardised: 569 samples, 30 features, 2 classes."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression

    def function(xp: Any, p: Tree, x: Array, y: Array) -> tuple[Array, Tree]:
        margin = y * (x @ p["w"] + p["b"])
        lost = 0.5 * (xp.abs(margin) - margin) + xp.log1p(xp.exp(-xp.abs(margin)))
        slope = -0.5 * y * (1 - xp.tanh(0.5 * margin)) / y.shape[0]
        value = xp.mean(lost) + 0.5 * ridge * _square(xp, p["w"])
        return value, {"w": x.T @ slope + ridge * p["w"], "b": xp.sum(slope)}

    x, y = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    y = 2.0 * y - 1
    solver = LogisticRegression(C=1 / (ridge * len(y)), tol=1e-10, max_iter=10_000).fit(x, y)
    best = {"w": solver.coef_[0], "b": solver.intercept_[0]}
    rng = np.random.default_rng(seed)
    start = {"w": 0.1 * rng.standard_normal(30), "b": np.zeros(())}
    return Problem("logistic", function, start, (x, y), float(function(np, best, x, y)[0]), len(y))


def _digits() -> tuple[Array, Array]:
    from sklearn.datasets import load_digits

    x, label = load_digits(return_X_y=True)
    return x / 16 - 0.3, np.eye(10)[label]


def _cross_entropy(xp: Any, scores: Array, y: Array) -> tuple[Array, Array]:
    scores = scores - xp.max(scores, axis=1, keepdims=True)
    total = xp.sum(xp.exp(scores), axis=1, keepdims=True)
    value = xp.mean(xp.log(total)) - xp.sum(scores * y) / y.shape[0]
    return value, (xp.exp(scores) / total - y) / y.shape[0]


def digits(seed: int = 0, ridge: float = 1e-3) -> Problem:
    """Return multinomial logistic regression of the digits: 1,797 samples, 64 pixels, 10 classes."""
    from sklearn.linear_model import LogisticRegression

    def function(xp: Any, p: Tree, x: Array, y: Array) -> tuple[Array, Tree]:
        value, slope = _cross_entropy(xp, x @ p["w"] + p["b"], y)
        value = value + 0.5 * ridge * _square(xp, p["w"])
        return value, {"w": x.T @ slope + ridge * p["w"], "b": xp.sum(slope, axis=0)}

    x, y = _digits()
    solver = LogisticRegression(C=1 / (ridge * len(y)), tol=1e-8, max_iter=10_000).fit(x, y.argmax(axis=1))
    best = {"w": solver.coef_.T, "b": solver.intercept_}
    start = {"w": 0.1 * np.random.default_rng(seed).standard_normal((64, 10)), "b": np.zeros(10)}
    return Problem("digits", function, start, (x, y), float(function(np, best, x, y)[0]), len(y))


def network(seed: int = 0, hidden: int = 32) -> Problem:
    """Return a network of one hidden layer of tanh on the digits. Its least value is not known: 0 is below it."""

    def function(xp: Any, p: Tree, x: Array, y: Array) -> tuple[Array, Tree]:
        h = xp.tanh(x @ p["w1"] + p["b1"])
        value, slope = _cross_entropy(xp, h @ p["w2"] + p["b2"], y)
        back = (slope @ p["w2"].T) * (1 - h * h)
        return value, {
            "w1": x.T @ back,
            "b1": xp.sum(back, axis=0),
            "w2": h.T @ slope,
            "b2": xp.sum(slope, axis=0),
        }

    x, y = _digits()
    rng = np.random.default_rng(seed)
    start = {
        "w1": rng.standard_normal((64, hidden)) / 8,
        "b1": np.zeros(hidden),
        "w2": rng.standard_normal((hidden, 10)) / np.sqrt(hidden),
        "b2": np.zeros(10),
    }
    return Problem("network", function, start, (x, y), 0.0, len(y))
