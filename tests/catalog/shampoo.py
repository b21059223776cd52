"""Rules with a matrix for each axis."""

from __future__ import annotations

from typing import Any

import numpy as np

import xopt
from catalog.base import A, Row, S, decayed


@decayed
def shampoo(
    p: A, g: A, s: S, t: int, *, lr: Any, eps: Any, momentum: Any, b2: Any, update_every: int, max_dim: int, graft: str
) -> A:
    """Gupta et al. 2018, Algorithm 2, the diagonal form for long axes; every sum over indices is an einsum."""
    if not p.size:
        return p
    shape = p.shape or (1,)
    g = g.reshape(shape)
    rank = len(shape)
    letters = "abcdefgh"[:rank]
    u = g
    for i, n in enumerate(shape):
        other = letters.replace(letters[i], "z")
        new = np.einsum(f"{letters},{other}->{letters[i]}z", g, g.conj())
        new = new if n <= max_dim else np.diag(np.diag(new))
        old = s.get(("s", i), np.zeros((n, n)))
        x = s["s", i] = old + new if b2 is None else b2 * old + (1 - b2) * new
        if (t - 1) % update_every == 0:
            left, values, _ = np.linalg.svd(x)
            s["q", i] = (left * (values + eps) ** (-0.5 / rank)) @ left.conj().T
        u = np.einsum(f"{letters[i]}z,{other}->{letters}", s["q", i], u)
    if graft == "sgd" and np.any(u):
        u = u * (np.linalg.norm(g) / np.linalg.norm(u))
    u = u.reshape(p.shape)
    if momentum is not None:
        u = s["m"] = momentum * s.get("m", np.zeros_like(p)) + u
    return p - lr * u


ROWS = [
    Row(
        xopt.Shampoo,
        shampoo,
        [
            {"eps": 0.1},
            {},
            {"eps": 0.1, "momentum": 0.9},
            {"eps": 0.1, "b2": 0.9},
            {"eps": 0.1, "update_every": 3},
            {"eps": 0.1, "max_dim": 3},
            {"eps": 0.1, "graft": "sgd"},
            {"eps": 0.1, "max_dim": 2, "update_every": 2, "momentum": 0.5, "b2": 0.5, "graft": "sgd"},
        ],
        [{"eps": 0.0}, {"momentum": 1.0}, {"b2": 1.0}, {"update_every": 0}, {"max_dim": 0}, {"graft": "adam"}],
        0.05,
        lacking=("dask",),
    ),
]
