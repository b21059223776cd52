"""Rules that divide by a curvature; estimates of it come between steps: `rules/test_curvature.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

import xopt
from catalog.base import A, Peer, Row, S, decayed, optax


@decayed
def sophia(p: A, g: A, s: S, t: int, *, lr: Any, b1: Any, b2: Any, gamma: Any, eps: Any, eps_mode: str, bias: str) -> A:
    """Liu et al. 2023, Algorithm 3; an estimate that came before this step is in the state."""
    h = s.get("hessian", np.zeros(p.shape))
    if "estimate" in s:
        h = b2 * h + (1 - b2) * s.pop("estimate")
    s["m"] = b1 * s.get("m", np.zeros_like(p)) + (1 - b1) * g
    s["hessian"] = h
    m = s["m"] if bias == "none" else s["m"] / (1 - b1**t)
    d = np.maximum(gamma * h, eps) if eps_mode == "max" else np.maximum(gamma * h, 0) + eps
    if np.iscomplexobj(m):  # clipped to modulus 1
        size = np.abs(m)
        return p - lr * np.where(size > d, m / np.where(size > 0, size, 1), m / np.where(d > 0, d, 1))
    if eps_mode == "add":  # as the authors' code: of m the sign, and the quotient of sizes no larger than 1
        ratio = np.abs(m) / np.where(d > 0, d, 1)
        return p - lr * np.sign(m) * np.where(d > 0, np.minimum(ratio, 1), 1)
    return p - lr * np.clip(m / d, -1, 1)


ROWS = [
    Row(
        xopt.Sophia,
        sophia,
        [{}, {"b1": 0.5}, {"b2": 0.5}, {"gamma": 2.0}, {"eps_mode": "add"}, {"bias": "standard"}, {"eps": 0.1}],
        [{"b1": 1.0}, {"b2": 1.0}, {"gamma": -1.0}, {"eps": 0.0}, {"eps_mode": "outside"}, {"bias": "hat"}],
        0.05,
        base={"eps": 0.3},  # of the size of m, which without estimates nothing else is compared with
    ),
]

PEERS: list[Peer] = [
    optax(
        xopt.Sophia(0.05, 0.9, eps=0.3, bias="standard", weight_decay=0.3),
        lambda o: o.contrib.sophia(0.05, b1=0.9, eps=0.3, weight_decay=0.3, hessian_diagonal_fn=o.set_to_zero()),
    ),
]  # fmt: skip
