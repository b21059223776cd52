"""Adam that looks at how the gradient changes."""

from __future__ import annotations

from typing import Any

import numpy as np

import xopt
from catalog.adam_denominator import averages
from catalog.base import A, Peer, Row, S, decayed, optax


@decayed
def adan(
    p: A,
    g: A,
    s: S,
    t: int,
    *,
    lr: Any,
    b1: Any,
    b2: Any,
    b3: Any,
    eps: Any,
    eps_root: Any,
    form: str,
    weight_decay: Any,
) -> A:
    """Xie et al. 2022, Algorithm 1, its βs written 1 - β; with the corrections of the authors' code."""
    beta = [1 - b1, 1 - b2, 1 - b3]
    ahead = 1 - beta[1] if form == "paper" else beta[1]
    zero = np.zeros_like(p)
    change = g - s["g"] if "g" in s else zero
    s["g"] = g
    s["m"] = (1 - beta[0]) * s.get("m", zero) + beta[0] * g
    s["v"] = (1 - beta[1]) * s.get("v", zero) + beta[1] * change
    s["n"] = (1 - beta[2]) * s.get("n", np.abs(zero)) + beta[2] * np.abs(g + ahead * change) ** 2
    m, v, n = (s[name] / (1 - b**t) for name, b in (("m", b1), ("v", b2), ("n", b3)))
    return (p - lr / (np.sqrt(n + eps_root) + eps) * (m + ahead * v)) / (1 + weight_decay * lr)


@decayed
def mars(p: A, g: A, s: S, t: int, *, lr: Any, b1: Any, b2: Any, gamma: Any, eps: Any, max_norm: Any, first: str) -> A:
    """Yuan et al. 2024, MARS-AdamW, with the gradient of the batch before."""
    last = s.get("g", g if first == "gradient" else np.zeros_like(g))
    s["g"] = g
    c = g + gamma * b1 / (1 - b1) * (g - last)
    norm = np.sqrt(np.sum(np.abs(c) ** 2))
    c = c / norm * max_norm if norm > max_norm else c
    m, v = averages(p, c, s, b1, b2)
    return p - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)


ROWS = [
    Row(
        xopt.Adan,
        adan,
        [{}, {"b1": 0.5}, {"b2": 0.5}, {"b2": 0.7}, {"b3": 0.9}, {"eps": 0.1}, {"eps_root": 0.1}, {"form": "optax"}],
        [{"b1": 1.0}, {"b2": 1.0}, {"b3": 1.0}, {"eps_root": -1.0}, {"form": "torch"}, {"decay": "proximal"}],
        0.05,
    ),
    Row(
        xopt.MARS,
        mars,
        [{}, {"b1": 0.5}, {"b2": 0.9}, {"gamma": 0.5}, {"eps": 0.1}, {"max_norm": 5.0}, {"first": "zero"}],
        [{"b1": 1.0}, {"b2": 1.0}, {"gamma": -1.0}, {"max_norm": 0.0}, {"first": "one"}],
        0.05,
    ),
]  # fmt: skip

PEERS: list[Peer] = [
    optax(xopt.Adan(0.1, form="optax"), lambda o: o.adan(0.1, eps_root=0.0)),
    optax(
        xopt.Adan(0.1, 0.9, 0.8, 0.95, 1e-3, 1e-4, "optax", weight_decay=0.3, decay="lr"),
        lambda o: o.adan(0.1, 0.9, 0.8, 0.95, 1e-3, 1e-4, weight_decay=0.3),
    ),
    optax(xopt.Adan(0.1, 0.9, 0.5, 0.95, 1e-3), lambda o: o.adan(0.1, 0.9, 0.5, 0.95, 1e-3, 0.0)),
    optax(xopt.Adan(0.1, form="optax"), lambda o: o.adan(0.1, eps_root=0.0), complex=True),
    optax(
        xopt.MARS(0.1, gamma=0.0, max_norm=1e9, weight_decay=0.3), lambda o: o.adamw(0.1, 0.95, 0.99, weight_decay=0.3)
    ),
]
