"""PSGD-Kron. The random numbers of its oracle are those of the package: they are what is given."""

from __future__ import annotations

from typing import Any

import numpy as np

import xopt
from catalog.base import A, Row, S, decayed
from catalog.shampoo import along
from xopt.random import normal


def spectral(x: A) -> Any:
    """Bound the norm of a Hermitian matrix from below: one step of the power method from its longest column."""
    y = x @ x[:, np.argmax(np.linalg.norm(x, axis=0))]
    return np.linalg.norm(x @ (y / np.linalg.norm(y)))


def triangular(shape: tuple[int, ...], max_dim: int, vectors: bool, memory_save: str) -> list[bool]:
    longest = [i for i, n in enumerate(shape) if n == max(shape)]
    diagonal = {
        "none": [],
        "one_diag": longest[-1:],
        "smart_one_diag": longest if len(longest) == 1 else [],
        "all_diag": range(len(shape)),
    }[memory_save]
    found = [1 < n <= max_dim and i not in diagonal for i, n in enumerate(shape)]
    return found if vectors or len(shape) > 1 else [False]


@decayed
def psgd_kron(
    p: A, g: A, s: S, t: int, *, lr: Any, b1: Any, precond_lr: Any, clip: Any, update_every: Any, initial: float,
    max_dim: int, vectors: bool, memory_save: str, momentum_into_precond_update: bool, seed: int,
) -> A:  # fmt: skip
    """Li 2018, the relative gradient of the criterion, with dense matrices for diagonal ones too."""
    if not p.size:
        return p
    g = g.reshape(p.shape or (1,))
    shape = g.shape
    whole = triangular(shape, max_dim, vectors, memory_save)
    m = s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    x = m / (1 - b1**t)
    qs = s.setdefault("q", [np.eye(n) * initial ** (1 / len(shape)) for n in shape])
    s["since"] = s.get("since", 0) + 1
    seen = x if momentum_into_precond_update else g
    if t == 1 or s["since"] >= update_every:
        s["since"] = 0
        if np.any(seen):
            a, b = seen, normal(g, (seed, s["leaf"]), t)
            for i, q in enumerate(qs):
                a, b = along(a, q, i), along(b, np.linalg.inv(q).conj().T, i)
            new = []
            for i, q in enumerate(qs):
                rows, other = (np.moveaxis(y, i, 0).reshape(shape[i], -1) for y in (a, b))
                one, two = rows @ rows.conj().T, other @ other.conj().T
                if not whole[i]:
                    one, two = np.diag(np.diag(one)), np.diag(np.diag(two))
                size = spectral(one + two) if whole[i] else np.max(abs(one + two))
                new.append(q - precond_lr * np.triu(one - two) @ q / size)
            qs = s["q"] = new
    u = x
    for i, q in enumerate(qs):
        u = along(u, q.conj().T @ q, i)
    if clip is not None:
        u = u * min(1.0, clip / (np.sqrt(np.mean(abs(u) ** 2)) + 1e-6))
    return p - lr * u.reshape(p.shape)


ROWS = [
    Row(
        xopt.PSGDKron,
        psgd_kron,
        [
            {},
            {"b1": 0.5, "precond_lr": 0.3, "clip": 0.5, "memory_save": "smart_one_diag"},
            {"update_every": 3.0, "initial": 0.5, "clip": None, "memory_save": "all_diag"},
            {"max_dim": 4, "vectors": True, "momentum_into_precond_update": False, "seed": 3},
            {"memory_save": "one_diag"},
        ],
        [
            {"b1": 1.0},
            {"precond_lr": 1.0},
            {"clip": 0.0},
            {"update_every": 0.5},
            {"initial": 0.0},
            {"max_dim": 0},
            {"vectors": 1},
            {"memory_save": None},
            {"momentum_into_precond_update": None},
            {"seed": -1},
        ],
        0.05,
        lacking=("dask",),
        large=True,
    ),
]
