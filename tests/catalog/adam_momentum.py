"""Adam with another momentum."""

from __future__ import annotations

from typing import Any

import numpy as np

import xopt
from catalog.adam_denominator import averages
from catalog.base import A, Peer, Row, S, decayed, keras, optax, pytorch_optimizer, torch, torch_complex


@decayed
def nadam(p: A, g: A, s: S, t: int, *, lr: Any, b1: Any, b2: Any, eps: Any, momentum_decay: Any) -> A:
    """Dozat 2016, Algorithm 2."""
    m, v = averages(p, g, s, b1, b2)
    mu = [b1 if momentum_decay is None else b1 * (1 - 0.5 * 0.96 ** (k * momentum_decay)) for k in (t, t + 1)]
    s["product"] = s.get("product", 1.0) * mu[0]
    m_hat = mu[1] * m / (1 - s["product"] * mu[1]) + (1 - mu[0]) * g / (1 - s["product"])
    return p - lr * m_hat / (np.sqrt(v / (1 - b2**t)) + eps)


@decayed
def laprop(p: A, g: A, s: S, t: int, *, lr: Any, b1: Any, b2: Any, eps: Any) -> A:
    """Ziyin et al. 2020, Algorithm 1."""
    s["v"] = b2 * s.get("v", np.zeros(p.shape)) + (1 - b2) * np.abs(g) ** 2
    direction = g / (np.sqrt(s["v"] / (1 - b2**t)) + eps)
    s["m"] = b1 * s.get("m", np.zeros_like(p)) + (1 - b1) * direction
    return p - lr * s["m"] / (1 - b1**t)


@decayed
def adopt(p: A, g: A, s: S, t: int, *, lr: Any, b1: Any, b2: Any, eps: Any, clip: Any) -> A:
    """Taniguchi et al. 2024, Algorithm 2; its t = 0 is our step 1."""
    if t == 1:
        s["m"], s["v"] = np.zeros_like(p), np.abs(g) ** 2
        return p
    d = g / np.maximum(np.sqrt(s["v"]), eps)
    if clip is not None:
        limit = (t - 1) ** clip
        d = np.where(np.abs(d) > limit, d / np.maximum(np.abs(d), 1e-300) * limit, d)
    s["m"] = b1 * s["m"] + (1 - b1) * d
    s["v"] = b2 * s["v"] + (1 - b2) * np.abs(g) ** 2
    return p - lr * s["m"]


@decayed
def ademamix(p: A, g: A, s: S, t: int, *, lr: Any, b1: Any, b2: Any, b3: Any, alpha: Any, eps: Any, warmup: Any) -> A:
    """Pagliardini et al. 2024, Algorithm 1, and the schedules of section 3."""
    if warmup is not None:
        x, log = t / warmup, np.log
        alpha = min(x * alpha, alpha)
        if x < 1:
            b3 = min(np.exp(log(b1) * log(b3) / ((1 - x) * log(b3) + x * log(b1))), b3)
    m, v = averages(p, g, s, b1, b2)
    s["s"] = b3 * s.get("s", np.zeros_like(p)) + (1 - b3) * g
    return p - lr * (m / (1 - b1**t) + alpha * s["s"]) / (np.sqrt(v / (1 - b2**t)) + eps)


ROWS = [
    Row(
        xopt.NAdam,
        nadam,
        [{}, {"b1": 0.5}, {"b2": 0.9}, {"eps": 0.1}, {"momentum_decay": 1.0}, {"momentum_decay": None}],
        [{"b1": 1.0}, {"b2": 1.0}, {"eps": -1.0}, {"momentum_decay": -1.0}],
        0.05,
    ),
    Row(
        xopt.LaProp,
        laprop,
        [{}, {"b1": 0.5}, {"b2": 0.9}, {"eps": 0.1}],
        [{"b1": 1.0}, {"b2": 1.0}, {"eps": -1.0}],
        0.05,
    ),
    Row(
        xopt.ADOPT,
        adopt,
        [{}, {"b1": 0.5}, {"b2": 0.9}, {"eps": 0.1}, {"clip": 0.1}, {"clip": 0.0}, {"clip": None, "eps": 0.1}],
        [{"b1": 1.0}, {"b2": 1.0}, {"eps": 0.0}, {"clip": -0.1}],
        0.05,
    ),
    Row(
        xopt.AdEMAMix,
        ademamix,
        [{}, {"b1": 0.5}, {"b2": 0.9}, {"b3": 0.99}, {"alpha": 1.0}, {"eps": 0.1}, {"warmup": 12.0}],
        [{"b1": 1.0}, {"b2": 1.0}, {"b3": 0.0}, {"alpha": -1.0}, {"eps": -1.0}, {"warmup": 0.0}],
        0.05,
    ),
]  # fmt: skip

TORCH = 1e-6  # torch keeps the product of the μs in float32

ROOT = 1e-5
"""It adds 1e-15 to v, whatever ε is, and ε without the correction; its L2 decay comes too late to do anything."""

PEERS: list[Peer] = [
    torch(xopt.NAdam(), "NAdam", TORCH),
    torch(
        xopt.NAdam(0.1, 0.8, 0.95, 1e-3, 0.5, weight_decay=0.3),
        "NAdam",
        TORCH,
        lr=0.1,
        betas=(0.8, 0.95),
        eps=1e-3,
        momentum_decay=0.5,
        weight_decay=0.3,
    ),
    torch(
        xopt.NAdam(0.1, weight_decay=0.3, decay="lr"),
        "NAdam",
        TORCH,
        lr=0.1,
        weight_decay=0.3,
        decoupled_weight_decay=True,
    ),
    torch_complex(xopt.NAdam(0.1, complex="split"), "NAdam", lr=0.1)._replace(rtol=TORCH),
    keras(xopt.NAdam(0.0625, eps=1e-3, momentum_decay=1.0), "Nadam", learning_rate=0.0625, epsilon=1e-3),
    optax(xopt.NAdam(0.1, momentum_decay=None), lambda o: o.nadam(0.1)),
    optax(
        xopt.NAdam(0.1, 0.8, 0.9, 1e-3, momentum_decay=None, weight_decay=0.3, decay="lr"),
        lambda o: o.nadamw(0.1, 0.8, 0.9, 1e-3, weight_decay=0.3),
    ),
    optax(xopt.ADOPT(0.1), lambda o: o.contrib.adopt(0.1)),
    optax(
        xopt.ADOPT(0.1, 0.8, 0.9, 1e-3, 1 / 3),
        lambda o: o.contrib.adopt(0.1, 0.8, 0.9, 1e-3, clip_value_fn=lambda t: t ** (1 / 3)),
    ),
    optax(xopt.ADOPT(0.1, clip=None), lambda o: o.contrib.adopt(0.1, use_clipping=False)),
    optax(xopt.AdEMAMix(0.1), lambda o: o.contrib.ademamix(0.1)),
    optax(
        xopt.AdEMAMix(0.1, 0.8, 0.9, 0.99, 3.0, 1e-3, weight_decay=0.3),
        lambda o: o.contrib.ademamix(0.1, 0.8, 0.9, 0.99, 3.0, 1e-3, weight_decay=0.3),
    ),
    optax(xopt.AdEMAMix(0.1), lambda o: o.contrib.ademamix(0.1), complex=True),
    pytorch_optimizer(xopt.LaProp(0.1, eps=0.0), "LaProp", ROOT, lr=0.1, eps=0.0, foreach=False),
    pytorch_optimizer(
        xopt.LaProp(0.1, 0.8, 0.9, 1e-30), "LaProp", ROOT, lr=0.1, betas=(0.8, 0.9), eps=1e-30, foreach=False
    ),
]
