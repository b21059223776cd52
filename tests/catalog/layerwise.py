"""Rules that look at the norms of whole arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

import xopt
from catalog.adam_denominator import averages
from catalog.base import A, Peer, Row, S, decayed, keras, optax


def norm(x: A) -> float:
    """Return the Euclidean norm of an array."""
    return float(np.sqrt(np.sum(np.abs(x) ** 2)))


@decayed
def lars(
    p: A, g: A, s: S, t: int, *, lr: Any, momentum: Any, trust: Any, eps: Any, nesterov: bool, form: str,
    weight_decay: Any,
) -> A:  # fmt: skip
    """You et al. 2017, Algorithm 1."""
    ratio = 1.0
    if norm(p) > 0 and norm(g) > 0:
        ratio = trust * norm(p) / (norm(g) + weight_decay * norm(p) + eps)
    d = ratio * (g + weight_decay * p)
    if momentum is None:
        return p - lr * d
    inside, outside = (lr, 1.0) if form == "lr_inside" else (1.0, lr)
    s["m"] = momentum * s.get("m", 0) + inside * d
    return p - outside * (momentum * s["m"] + inside * d if nesterov else s["m"])


@decayed
def lamb(
    p: A, g: A, s: S, t: int, *, lr: Any, b1: Any, b2: Any, eps: Any, bias: str, most: Any, weight_decay: Any
) -> A:
    """You et al. 2020, Algorithm 2, φ the identity or its bound."""
    m, v = averages(p, g, s, b1, b2)
    c1, c2 = (1.0, 1.0) if bias == "none" else (1 - b1**t, 1 - b2**t)
    d = (m / c1) / (np.sqrt(v / c2) + eps) + weight_decay * p
    ratio = norm(p) / norm(d) if norm(p) > 0 and norm(d) > 0 else 1.0
    return p - lr * (ratio if most is None else min(ratio, most)) * d


@decayed
def fromage(p: A, g: A, s: S, t: int, *, lr: Any, least: Any) -> A:
    """Bernstein et al. 2020, Algorithm 1."""
    sizes = [max(norm(x), least) for x in (p, g)]
    ratio = sizes[0] / sizes[1] if min(sizes) > 0 else 1.0
    return (p - lr * ratio * g) / np.sqrt(1 + lr**2)


ROWS = [
    Row(
        xopt.LARS,
        lars,
        [
            {"trust": 0.1},
            {"trust": 0.1, "momentum": 0.5},
            {"momentum": None},
            {"trust": 0.2},
            {"trust": 0.1, "eps": 0.5},
            {"trust": 0.1, "nesterov": True},
            {"trust": 0.1, "form": "lr_outside"},
            {"trust": 0.1, "form": "lr_outside", "nesterov": True},
        ],
        [
            {"momentum": 1.0},
            {"trust": 0.0},
            {"eps": -1.0},
            {"momentum": None, "nesterov": True},
            {"momentum": None, "form": "lr_outside"},
            {"decay": "ratio"},
        ],
        0.05,
    ),
    Row(
        xopt.LAMB,
        lamb,
        [{}, {"b1": 0.5}, {"b2": 0.9}, {"eps": 0.1}, {"bias": "none"}, {"most": 0.8}],
        [{"b1": 1.0}, {"b2": 1.0}, {"eps": -1.0}, {"bias": "first"}, {"most": 0.0}],
        0.05,
    ),
    Row(xopt.Fromage, fromage, [{}, {"least": 0.5}], [{"least": -1.0}], 0.05),
]

PEERS: list[Peer] = [
    optax(xopt.LARS(0.1), lambda o: o.lars(0.1)),
    optax(
        xopt.LARS(0.1, 0.8, 0.1, 1e-2, weight_decay=0.3, decay="l2"),
        lambda o: o.lars(0.1, 0.3, trust_coefficient=0.1, eps=1e-2, momentum=0.8),
    ),
    optax(xopt.LARS(0.1, trust=0.1, nesterov=True), lambda o: o.lars(0.1, trust_coefficient=0.1, nesterov=True)),
    optax(xopt.LAMB(0.1), lambda o: o.lamb(0.1)),
    optax(xopt.LAMB(0.1, 0.8, 0.9, 1e-3, weight_decay=0.3), lambda o: o.lamb(0.1, 0.8, 0.9, 1e-3, weight_decay=0.3)),
    keras(xopt.LAMB(0.0625, eps=1e-3), "Lamb", learning_rate=0.0625, epsilon=1e-3),
    optax(xopt.Fromage(0.1, 1e-6), lambda o: o.fromage(0.1)),
    optax(xopt.Fromage(0.1, 0.5), lambda o: o.fromage(0.1, 0.5)),
    optax(xopt.LAMB(0.1, weight_decay=0.3), lambda o: o.lamb(0.1, weight_decay=0.3), complex=True),
]
