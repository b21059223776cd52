"""Rules that take a matrix for a matrix."""

from __future__ import annotations

from typing import Any

import numpy as np

import xopt
from catalog.adam import adam
from catalog.base import A, Peer, Row, S, decayed, fields, keras, optax
from catalog.sgd import sgd


@decayed
def matrix(
    p: A, g: A, s: S, t: int, *, lr: Any, momentum: Any, a: Any, b: Any, c: Any, eps: Any, rms: Any, ns_steps: int,
    nesterov: bool, form: str, scale: str, eps_mode: str,
) -> A:  # fmt: skip
    """Jordan et al. 2024, in exact arithmetic: the iteration is a polynomial of the singular values."""
    mu, m = momentum, s.get("m", np.zeros_like(p))
    if form == "sum":
        m = mu * m + g
        u = g + mu * m if nesterov else m
    else:
        m = mu * m + (1 - mu) * g
        u = (1 - mu) * g + mu * m if nesterov else m
    if form == "corrected":
        u = (1 - mu) * g / (1 - mu**t) + mu * m / (1 - mu ** (t + 1)) if nesterov else m / (1 - mu**t)
    s["m"] = m
    left, x, right = np.linalg.svd(u, full_matrices=False)
    norm = np.linalg.norm(u)
    x = x / (norm + eps if eps_mode == "add" else max(norm, eps))
    for _ in range(ns_steps):
        x = a * x + b * x**3 + c * x**5
    rows, cols = (max(1, n) for n in p.shape)
    size = {
        "original": np.sqrt(max(1, rows / cols)),
        "in_out": np.sqrt(max(1, cols / rows)),
        "ratio": np.sqrt(rows / cols),
        "match_rms": (0.2 if rms is None else rms) * np.sqrt(max(rows, cols)),
        "none": 1.0,
    }[scale]
    return p - lr * size * (left * x) @ right


def muon(p: A, g: A, s: S, t: int, *, other: Any, **h: Any) -> A:
    """Muon for matrices; Adam with the same rate, or another rule, for the rest."""
    if p.ndim == 2:
        return matrix(p, g, s, t, **h)
    if other is None:
        same = {n: h[n] for n in ("lr", "weight_decay", "decay", "maximize", "complex")}
        return adam(p, g, s, t, b1=0.9, b2=0.999, eps=1e-8, amsgrad=False, eps_mode="outside", bias="standard", **same)
    own = {**fields(other), "maximize": h["maximize"], "complex": h["complex"]}
    return {xopt.SGD: sgd, xopt.AdamW: adam}[type(other)](p, g, s, t, **own)


ROWS = [
    Row(
        xopt.Muon,
        muon,
        [
            {},
            {"momentum": 0.5},
            {"a": 3.0, "b": -3.2, "c": 1.2},
            {"ns_steps": 2, "eps": 0.1},
            {"eps": 0.1, "eps_mode": "max"},
            {"nesterov": False},
            {"form": "sum", "eps": 0.1},
            {"form": "sum", "eps": 0.1, "nesterov": False},
            {"form": "corrected"},
            {"form": "corrected", "nesterov": False},
            {"rms": 0.5},
            {"scale": "original"},
            {"scale": "in_out"},
            {"scale": "ratio"},
            {"scale": "none"},
            {"other": xopt.AdamW(0.02, b1=0.5, weight_decay=0.1)},
            {"other": xopt.SGD(0.05, momentum=0.5)},
        ],
        [
            {"momentum": 1.0},
            {"eps": 0.0},
            {"ns_steps": 0},
            {"ns_steps": 2.0},
            {"form": "mean"},
            {"scale": "match_rms_adamw"},
            {"scale": "none", "rms": 0.3},
            {"rms": -0.1},
            {"eps_mode": "clamp"},
            {"other": xopt.SGD},
            {"other": xopt.ClipByNorm(1.0)},
            {"maximize": True, "other": xopt.SGD(0.1, maximize=False)},
            {"complex": "split", "other": xopt.SGD(0.1, complex="modulus")},
        ],
        0.05,
    ),
]  # fmt: skip

FULL = ((4, 3), (3, 5), (1, 6), (2, 3, 4), (5,), ())  # optax divides by the sizes
MATRICES = FULL[:3]

PEERS: list[Peer] = [
    optax(xopt.Muon(0.05, eps=1e-8, form="corrected", scale="in_out"), lambda o: o.contrib.muon(0.05))._replace(
        shapes=MATRICES  # optax has Adam with Nesterov's momentum for the rest
    ),
    optax(
        xopt.Muon(0.05, eps=1e-8, form="corrected", scale="in_out", nesterov=False),
        lambda o: o.contrib.muon(0.05, nesterov=False),
    )._replace(shapes=FULL),
    optax(
        xopt.Muon(
            0.05, 0.8, form="corrected", eps=1e-8, scale="match_rms", rms=0.3, ns_steps=3, weight_decay=0.3,
            other=xopt.Adam(0.1, b1=0.7, b2=0.9, eps=1e-8, weight_decay=0.4, decay="lr"),
            nesterov=False,
        ),
        lambda o: o.contrib.muon(
            0.05, beta=0.8, consistent_rms=0.3, ns_steps=3, weight_decay=0.3, nesterov=False,
            adam_learning_rate=0.1, adam_b1=0.7, adam_b2=0.9, adam_weight_decay=0.4,
        ),
    ),
    keras(
        xopt.Muon(
            0.0625, 0.9375, form="sum", rms=0.25, weight_decay=0.25,
            other=xopt.AdamW(0.0625, eps=1e-7, eps_mode="hat", weight_decay=0.3),
        ),
        "Muon", rtol=1e-5,  # its norm is one of float32, whatever the parameters
        learning_rate=0.0625, momentum=0.9375, rms_rate=0.25, weight_decay=0.25, adam_weight_decay=0.3,
    ),
]  # fmt: skip
