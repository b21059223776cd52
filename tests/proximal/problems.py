"""Problems for the proximal solvers, and what second solvers, which are SciPy's, find for them."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize


class Found(NamedTuple):
    x: Any
    fun: float


@functools.cache
def regression(m: int = 40, n: int = 60, seed: int = 0) -> tuple[Any, Any, float]:
    """Return a matrix with dependent columns, data of a few of them, and a strength for a sparse x."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((m, n))
    for j in range(1, n):
        a[:, j] += 0.9 * a[:, j - 1]
    x = np.where(np.arange(n) % 9 == 0, rng.standard_normal(n), 0.0)
    b = a @ x + 0.1 * rng.standard_normal(m)
    return a, b, 0.05 * float(np.abs(a.T @ b).max())


@functools.cache
def lasso() -> Found:
    """Solve ½‖A·x - b‖² + λ‖x‖₁ over positive and negative parts, as a problem of nonnegative least squares.

    With u ≥ 0 and s = λ·Σu: ½‖B·u - b‖² + λ·Σu, whose conditions, Bᵀ(B·u - b) + λ ≥ 0 and 0 where u > 0, are solved on
    the support that L-BFGS-B finds, to all digits.
    """
    a, b, strength = regression()
    both = np.hstack([a, -a])

    def fun(u: Any) -> tuple[float, Any]:
        r = both @ u - b
        return float(r @ r / 2 + strength * u.sum()), both.T @ r + strength

    found = optimize.minimize(
        fun, np.zeros(both.shape[1]), jac=True, method="L-BFGS-B", bounds=[(0, None)] * both.shape[1],
        options={"ftol": 1e-16, "gtol": 1e-11, "maxiter": 20000, "maxfun": 40000},
    )  # fmt: skip
    some = found.x > 1e-7
    u = np.zeros(both.shape[1])
    u[some] = np.linalg.solve(both[:, some].T @ both[:, some], both[:, some].T @ b - strength)
    value, slope = fun(u)
    assert u.min() >= 0
    assert slope.min() > -1e-9  # the conditions of Karush, Kuhn and Tucker, which are enough
    return Found(u[: a.shape[1]] - u[a.shape[1] :], value)


@functools.cache
def picture(size: int = 7) -> tuple[Any, Any]:
    """Return an image of pieces with noise, and its matrix of differences, both directions of a pixel together."""
    rng = np.random.default_rng(1)
    i, j = np.mgrid[:size, :size]
    image = 1.0 * (i > 2) + 0.5 * ((j > 3) & (i < 5)) + 0.1 * rng.standard_normal((size, size))
    eye = np.eye(size)
    d = np.diff(eye, axis=0, append=eye[-1:])
    return image, np.stack([np.kron(d, eye), np.kron(eye, d)])


def blurred(size: int = 7) -> Any:
    """Return the matrix of a blur along both axes."""
    k = np.arange(size)
    row = np.exp(-1.0 * (k[:, None] - k) ** 2)
    row /= row.sum(axis=1, keepdims=True)
    return np.kron(row, row)


@functools.cache
def smoothed(strength: float, blur: bool) -> Found:
    """Minimize ½‖A·x - b‖² + λ·TV(x) by an interior method of our own making: the norms as cones, in float64.

    Barrier -log(s² - ‖∇x‖²) for each norm ‖∇x‖ ≤ s, Newton steps, and a weight that falls to 1e-12: the objective is
    then within 2·weight·pixels of the least one.
    """
    image, d = picture()
    a = blurred() if blur else np.eye(image.size)
    b = a @ image.ravel()
    n = image.size
    x, s = b.copy(), np.sqrt((np.einsum("kij,j->ki", d, b) ** 2).sum(0)) + 1.0
    mu = 1.0
    while mu > 2e-13:
        for _ in range(60):
            g = d @ x
            w = s**2 - (g**2).sum(0)
            grad_x = a.T @ (a @ x - b) + mu * sum(d[k].T @ (2 * g[k] / w) for k in range(2))
            grad_s = strength - mu * 2 * s / w
            gx = sum(d[k].T * g[k] for k in range(2))  # columns: ∂(‖g‖²/2) of each pixel
            hess = np.zeros((2 * n, 2 * n))
            hess[:n, :n] = a.T @ a + mu * (sum(d[k].T @ (d[k] * (2 / w)[:, None]) for k in range(2)))
            hess[:n, :n] += mu * (gx * (4 / w**2)) @ gx.T
            hess[:n, n:] = -mu * gx * (4 * s / w**2)
            hess[n:, :n] = hess[:n, n:].T
            hess[n:, n:] = np.diag(mu * (4 * s**2 / w**2 - 2 / w))
            grad = np.concatenate([grad_x, grad_s])
            step = -np.linalg.solve(hess, grad)
            decrement = float(-grad @ step)
            t = 1.0 if decrement < 0.0625 * mu else 1 / (1 + np.sqrt(decrement / mu))
            while True:
                xx, ss = x + t * step[:n], s + t * step[n:]
                if ss.min() > 0 and (ss**2 - ((d @ xx) ** 2).sum(0)).min() > 0:
                    break
                t /= 2
            x, s = xx, ss
            if decrement < 1e-4 * mu:
                break
        mu /= 5
    value = float(np.sum((a @ x - b) ** 2)) / 2 + strength * float(np.sqrt(((d @ x) ** 2).sum(0)).sum())
    return Found(x.reshape(image.shape), value)
