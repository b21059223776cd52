"""KL-Shampoo and KL-SOAP."""

from __future__ import annotations

from typing import Any

import numpy as np

import xopt
from catalog.base import A, Row, S, decayed
from catalog.shampoo import along, orthonormal


def learn(g: A, s: S, t: int, beta: Any, eps: Any, axes: list[int], update_every: int) -> None:
    """Lin et al. 2025: each covariance of the gradient whitened by the dense inverse roots of all others."""
    axis = range(g.ndim)
    root = lambda i: np.maximum(s["e", i], eps ** (2 / g.ndim)) ** 0.5
    white = [(s["q", i] / root(i)) @ s["q", i].conj().T for i in axis]
    new = []
    for i in axis:
        x = g
        for k in axis:
            x = along(x, white[k], k) if k != i else x
        rows = np.moveaxis(x, i, 0).reshape(g.shape[i], -1)
        new.append(rows @ rows.conj().T / rows.shape[1])
    for i in axis:
        q, n = s["q", i], g.shape[i]
        if t > 1:
            s["e", i] = beta * s["e", i] + (1 - beta) * np.diag(q.conj().T @ new[i] @ q).real
        if i in axes:
            x = s["s", i] = beta * s.get(("s", i), np.zeros((n, n))) + (1 - beta) * new[i]
            if t == 1:
                s["q", i], _, _ = np.linalg.svd(x)
            elif (t - 1) % update_every == 0:
                s["q", i] = orthonormal(x @ q)


def begin(g: A, s: S, initial: Any) -> None:
    """Give an array that had no gradient yet the bases I and one eigenvalue for all directions."""
    mean = np.mean(abs(g) ** 2)
    for i, n in enumerate(g.shape):
        s.setdefault(("q", i), np.eye(n))
        if not np.any(s.get(("e", i), 0)):
            s["e", i] = np.full(n, mean ** (1 / g.ndim) if initial is None else initial)


def turned(x: A, s: S, back: bool = False) -> A:
    for i in range(x.ndim):
        x = along(x, s["q", i] if back else s["q", i].conj().T, i)
    return x


@decayed
def kl_shampoo(
    p: A, g: A, s: S, t: int, *, lr: Any, b1: Any, b2: Any, eps: Any, initial: Any, update_every: int, max_dim: int,
    vectors: bool,
) -> A:  # fmt: skip
    """Lin et al. 2025, the moving averages with QR; the first step, which moves nothing, is of the authors' code."""
    if not p.size:
        return p
    g = g.reshape(p.shape or (1,))
    axes = [i for i, n in enumerate(p.shape) if n <= max_dim and (p.ndim > 1 or vectors)]
    begin(g, s, initial)
    u = np.zeros_like(g)
    if t > 1:
        m = s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
        size = 1
        for i in range(g.ndim):
            size = np.multiply.outer(size, np.maximum(s["e", i], eps ** (2 / g.ndim)))
        u = turned(turned(m, s) / (np.sqrt(size) + eps), s, back=True)
    learn(g, s, t, b2, eps, axes, update_every)
    return p - lr * u.reshape(p.shape)


@decayed
def kl_soap(
    p: A, g: A, s: S, t: int, *, lr: Any, b1: Any, b2: Any, shampoo_b: Any, eps: Any, initial: Any, update_every: int,
    max_dim: int, vectors: bool, normalize: bool, eps_mode: str, bias: str,
) -> A:  # fmt: skip
    """Lin et al. 2025: Vyas et al. 2024, Algorithm 3, in other bases."""
    if not p.size:
        return p
    shape, g = p.shape, g.reshape(p.shape or (1,))
    axes = [i for i, n in enumerate(shape) if n <= max_dim and (p.ndim > 1 or vectors)]
    begin(g, s, initial)
    u = np.zeros_like(g)
    if t > 1:
        m = s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
        v = s["v"] = b2 * s.get("v", 0) + (1 - b2) * abs(turned(g, s)) ** 2
        c1, c2 = (1 - b1 ** (t - 1), 1 - b2 ** (t - 1)) if bias == "standard" else (1, 1)
        u = turned(turned(m, s) / (np.sqrt(v) + eps * (np.sqrt(c2) if eps_mode == "outside" else 1)), s, back=True)
        if normalize:
            u = u / (np.sqrt(np.mean(abs(u) ** 2)) + 1e-30)
        u = u * np.sqrt(c2) / c1
    learn(g, s, t, b2 if shampoo_b is None else shampoo_b, eps, axes, update_every)
    return p - lr * u.reshape(shape)


ROWS = [
    Row(
        xopt.KLShampoo,
        kl_shampoo,
        [
            {},
            {"b1": 0.5, "b2": 0.8, "eps": 0.1},
            {"initial": 0.1, "update_every": 1},
            {"vectors": True, "max_dim": 3, "initial": 0.5},
        ],
        [
            {"b1": 1.0},
            {"b2": 1.0},
            {"eps": 0.0},
            {"initial": 0.0},
            {"update_every": 0},
            {"max_dim": 0},
            {"vectors": 1},
        ],
        0.05,
        base={"max_dim": 4, "update_every": 3},  # as for SOAP: no basis that is the library's choice
        lacking=("dask",),
        large=True,
    ),
    Row(
        xopt.KLSOAP,
        kl_soap,
        [
            {},
            {"b1": 0.5, "b2": 0.8, "shampoo_b": 0.5, "initial": 0.1},
            {"eps": 0.1, "eps_mode": "outside", "normalize": True, "update_every": 1},
            {"bias": "none", "vectors": True, "max_dim": 3},
        ],
        [
            {"b1": 1.0},
            {"b2": 1.0},
            {"shampoo_b": -0.1},
            {"eps": 0.0},
            {"initial": 0.0},
            {"update_every": 0},
            {"max_dim": 0},
            {"vectors": 1},
            {"normalize": None},
            {"eps_mode": "inside"},
            {"bias": "first"},
        ],
        0.05,
        base={"max_dim": 4, "update_every": 3},
        lacking=("dask",),
        large=True,
    ),
]
