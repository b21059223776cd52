"""Adam and its family."""

from __future__ import annotations

from typing import Any

import numpy as np

import xopt
from catalog.base import A, Peer, Row, S, decayed, keras, optax, torch, torch_complex


@decayed
def adam(
    p: A, g: A, s: S, t: int, *, lr: Any, b1: Any, b2: Any, eps: Any, amsgrad: bool, eps_mode: str, bias: str
) -> A:
    """Kingma & Ba 2015, Algorithm 1; AMSGrad as Reddi et al. 2018, Algorithm 2, on the uncorrected v."""
    s["m"] = b1 * s.get("m", np.zeros_like(p)) + (1 - b1) * g
    s["v"] = b2 * s.get("v", np.zeros(p.shape)) + (1 - b2) * np.abs(g) ** 2
    v = s["v"]
    if amsgrad:
        v = s["top"] = np.maximum(s.get("top", np.zeros(p.shape)), v)
    k = 1 if bias == "first" else t
    c1, c2 = (1.0, 1.0) if bias == "none" else (1 - b1**k, 1 - b2**k)
    m_hat, v_hat = s["m"] / c1, v / c2
    if eps_mode == "inside":
        return p - lr * m_hat / np.sqrt(v_hat + eps)
    if eps_mode == "hat":
        return p - lr * m_hat * np.sqrt(c2) / (np.sqrt(v) + eps)
    return p - lr * m_hat / (np.sqrt(v_hat) + eps)


ROWS = [
    Row(
        xopt.Adam,
        adam,
        [
            {},
            {"b1": 0.5},
            {"b1": 0.0},
            {"b2": 0.9},
            {"eps": 0.1},
            {"eps": 0.1, "eps_mode": "inside"},
            {"eps": 0.1, "eps_mode": "hat"},
            {"bias": "first"},
            {"bias": "none"},
            {"amsgrad": True, "b2": 0.9},
        ],
        [{"b1": 1.0}, {"b2": 1.0}, {"b2": -0.1}, {"eps_mode": "under"}, {"bias": "half"}, {"amsgrad": 0}],
        0.05,
    ),
    Row(
        xopt.AdamW,
        adam,
        [{}, {"b1": 0.5}, {"b2": 0.9}, {"eps": 0.1}, {"eps": 0.1, "eps_mode": "hat"}, {"bias": "none"},
         {"amsgrad": True, "b2": 0.9}],
        [{"b1": 1.0}, {"weight_decay": None}],
        0.05,
    ),
]  # fmt: skip

PEERS: list[Peer] = [
    torch(xopt.Adam(), "Adam"),
    torch(
        xopt.Adam(0.1, 0.8, 0.95, 1e-4, weight_decay=0.3), "Adam", lr=0.1, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.3
    ),
    torch(xopt.Adam(0.1, amsgrad=True, b2=0.9), "Adam", lr=0.1, amsgrad=True, betas=(0.9, 0.9)),
    torch(xopt.Adam(0.1, maximize=True), "Adam", lr=0.1, maximize=True),
    torch(xopt.AdamW(), "AdamW"),
    torch(xopt.AdamW(0.1, weight_decay=0.5), "AdamW", lr=0.1, weight_decay=0.5),
    torch(
        xopt.AdamW(0.1, amsgrad=True, b2=0.9, weight_decay=0.5),
        "AdamW",
        lr=0.1,
        amsgrad=True,
        betas=(0.9, 0.9),
        weight_decay=0.5,
    ),
    torch(
        xopt.Adam(0.05, weight_decay=0.3, decay="lr"), "Adam", lr=0.05, weight_decay=0.3, decoupled_weight_decay=True
    ),
    torch_complex(xopt.Adam(0.1, complex="split"), "Adam", lr=0.1),
    torch_complex(xopt.AdamW(0.05, complex="split", amsgrad=True), "AdamW", lr=0.05, amsgrad=True),
    optax(xopt.Adam(0.1), lambda o: o.adam(0.1)),
    optax(xopt.Adam(0.1, 0.9, 0.999, 1e-4, eps_mode="inside"), lambda o: o.adam(0.1, eps=0.0, eps_root=1e-4)),
    optax(xopt.AdamW(0.1, weight_decay=0.5), lambda o: o.adamw(0.1, weight_decay=0.5)),
    optax(xopt.AdamW(0.05, weight_decay=1e-4), lambda o: o.adamw(0.05)),
    optax(xopt.Adam(0.05, weight_decay=0.3), lambda o: o.chain(o.add_decayed_weights(0.3), o.adam(0.05))),
    optax(xopt.Adam(0.05), lambda o: o.adam(0.05), complex=True),
    optax(xopt.Adam(0.05, complex="split"), lambda o: o.contrib.split_real_and_imaginary(o.adam(0.05)), complex=True),
    keras(xopt.Adam(0.0625, eps=1e-7, eps_mode="hat"), "Adam", learning_rate=0.0625),
    keras(xopt.Adam(0.0625, eps=1e-7, eps_mode="hat", amsgrad=True), "Adam", learning_rate=0.0625, amsgrad=True),
    keras(
        xopt.AdamW(0.0625, eps=1e-7, eps_mode="hat", weight_decay=0.3), "AdamW", learning_rate=0.0625, weight_decay=0.3
    ),
]
