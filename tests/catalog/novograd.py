"""Gradients divided by the norm of their layer."""

from __future__ import annotations

from typing import Any

import numpy as np

import xopt
from catalog.base import A, Peer, Row, S, coupled, optax


def novograd(ps: list[A], gs: list[A], s: S, t: int, *, weight_decay: Any, decay: str, **h: Any) -> list[A]:
    """Ginsburg et al. 2019, Algorithm 1, every leaf by itself; other kinds of decay around it."""
    inside = weight_decay if decay == "momentum" and weight_decay is not None else 0.0
    outside = {"weight_decay": weight_decay if decay != "momentum" else None, "decay": decay}
    return [
        layer(p, g, s.setdefault(k, {}), t, inside=inside, **outside, **h)
        for k, (p, g) in enumerate(zip(ps, gs, strict=True))
    ]


@coupled
def layer(
    p: A, g: A, s: S, t: int, *, shrink: Any, inside: Any, lr: Any, b1: Any, b2: Any, eps: Any, averaged: bool
) -> A:
    square = float(np.sum(np.abs(g) ** 2))
    s["v"] = b2 * s["v"] + (1 - b2) * square if s.get("v") else square
    root = np.sqrt(s["v"]) + eps
    d = (g / root if root > 0 else g) + inside * p
    s["m"] = b1 * s.get("m", np.zeros_like(p)) + ((1 - b1) * d if averaged else d)
    return p - lr * s["m"] - shrink(lr, lr * s["m"], p)


ROWS = [
    Row(
        xopt.NovoGrad,
        novograd,
        [{}, {"b1": 0.5}, {"b2": 0.25}, {"eps": 0.1}, {"eps": 0.0}, {"averaged": True},
         {"averaged": True, "weight_decay": 0.3}],
        [{"b1": 1.0}, {"b2": 1.0}, {"eps": -1.0}, {"averaged": 1}, {"decay": "momentum"}],
        0.05,
        tree=True,
    ),
]  # fmt: skip

PEERS: list[Peer] = [
    optax(xopt.NovoGrad(0.05, 0.9, 0.25, 1e-6), lambda o: o.novograd(0.05)),
    optax(
        xopt.NovoGrad(0.05, 0.95, 0.98, 1e-4, weight_decay=0.3),
        lambda o: o.novograd(0.05, 0.95, 0.98, 1e-4, weight_decay=0.3),
    ),
]
