"""Adam with another denominator."""

from __future__ import annotations

from typing import Any

import numpy as np

import xopt
from catalog.base import A, Peer, Row, S, decayed, keras, optax, pytorch_optimizer, torch, torch_complex


def averages(p: A, g: A, s: S, b1: Any, b2: Any) -> tuple[A, A]:
    """Keep the averages of g and of its square, as Adam does."""
    s["m"] = b1 * s.get("m", np.zeros_like(p)) + (1 - b1) * g
    s["v"] = b2 * s.get("v", np.zeros(p.shape)) + (1 - b2) * np.abs(g) ** 2
    return s["m"], s["v"]


@decayed
def adamax(p: A, g: A, s: S, t: int, *, lr: Any, b1: Any, b2: Any, eps: Any, eps_mode: str, bias: str) -> A:
    """Kingma & Ba 2015, Algorithm 2."""
    s["m"] = b1 * s.get("m", np.zeros_like(p)) + (1 - b1) * g
    size = np.abs(g) + (eps if eps_mode == "inside" else 0)
    s["u"] = np.maximum(b2 * s.get("u", np.zeros(p.shape)), size)
    rate = lr if bias == "none" else lr / (1 - b1**t)
    return p - rate * s["m"] / (s["u"] + (eps if eps_mode == "outside" else 0))


@decayed
def radam(
    p: A, g: A, s: S, t: int, *, lr: Any, b1: Any, b2: Any, eps: Any, threshold: Any, otherwise: str, eps_mode: str
) -> A:
    """Liu et al. 2020, Algorithm 2."""
    m, v = averages(p, g, s, b1, b2)
    m_hat = m / (1 - b1**t)
    rho_inf = 2 / (1 - b2) - 1
    rho = rho_inf - 2 * t * b2**t / (1 - b2**t)
    if rho < threshold:
        return p - lr * m_hat if otherwise == "sgd" else p
    r = np.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    if eps_mode == "hat":
        return p - lr * r * m_hat * np.sqrt(1 - b2**t) / (np.sqrt(v) + eps)
    return p - lr * r * m_hat / (np.sqrt(v / (1 - b2**t)) + eps)


@decayed
def adabelief(p: A, g: A, s: S, t: int, *, lr: Any, b1: Any, b2: Any, eps: Any, eps_root: Any) -> A:
    """Zhuang et al. 2020, Algorithm 2."""
    s["m"] = b1 * s.get("m", np.zeros_like(p)) + (1 - b1) * g
    s["s"] = b2 * s.get("s", np.zeros(p.shape)) + (1 - b2) * np.abs(g - s["m"]) ** 2 + eps_root
    return p - lr * (s["m"] / (1 - b1**t)) / (np.sqrt(s["s"] / (1 - b2**t)) + eps)


@decayed
def yogi(
    p: A, g: A, s: S, t: int, *, lr: Any, b1: Any, b2: Any, eps: Any, initial: float, initial_m: float, bias: str
) -> A:
    """Zaheer et al. 2018, Algorithm 2."""
    first = initial_m * np.ones(p.shape)
    s["m"] = b1 * s.get("m", first) + (1 - b1) * g
    v, g2 = s.get("v", np.full(p.shape, initial)), np.abs(g) ** 2
    s["v"] = v - (1 - b2) * np.sign(v - g2) * g2
    c1, c2 = (1.0, 1.0) if bias == "none" else (1 - b1**t, 1 - b2**t)
    return p - lr * (s["m"] / c1) / (np.sqrt(s["v"] / c2) + eps)


@decayed
def stable_adamw(p: A, g: A, s: S, t: int, *, lr: Any, b1: Any, b2: Any, eps: Any, weight_decay: Any) -> A:
    """Wortsman et al. 2023, Algorithm 2."""
    if p.size == 0:
        return p
    m, v = averages(p, g, s, b1, b2)
    v_hat = v / (1 - b2**t)
    rms = np.sqrt(np.mean(np.abs(g) ** 2 / np.maximum(v_hat, eps**2)))
    eta = lr / max(1.0, rms)
    return p - eta * weight_decay * p - eta * (m / (1 - b1**t)) / (np.sqrt(v_hat) + eps)


ROWS = [
    Row(
        xopt.Adamax,
        adamax,
        [{}, {"b1": 0.5}, {"b2": 0.5}, {"eps": 0.1}, {"eps": 0.1, "eps_mode": "outside"}, {"bias": "none"}],
        [{"b1": 1.0}, {"b2": 1.0}, {"eps": -1.0}, {"eps_mode": "hat"}, {"bias": "first"}],
        0.05,
    ),
    Row(
        xopt.RAdam,
        radam,
        [
            {},
            {"b1": 0.5},
            {"b2": 0.95},
            {"b2": 0.6},
            {"eps": 0.1},
            {"eps": 0.1, "eps_mode": "outside"},
            {"threshold": 6.5},
            {"otherwise": "none"},
        ],
        [{"b1": 1.0}, {"b2": 1.0}, {"threshold": 3.9}, {"otherwise": "adam"}, {"eps_mode": "inside"}],
        0.05,
    ),
    Row(
        xopt.AdaBelief,
        adabelief,
        [{}, {"b1": 0.5}, {"b2": 0.9}, {"eps": 0.1}, {"eps_root": 1e-3}],
        [{"b1": 1.0}, {"b2": 1.0}, {"eps": -1.0}, {"eps_root": -1.0}],
        0.05,
    ),
    Row(
        xopt.Yogi,
        yogi,
        [{}, {"b1": 0.5}, {"b2": 0.9}, {"eps": 0.1}, {"initial": 1.0}, {"initial_m": 0.0}, {"bias": "none"}],
        [{"b1": 1.0}, {"b2": 1.0}, {"initial": -1.0}, {"initial_m": float("inf")}, {"bias": "first"}],
        0.05,
    ),
    Row(
        xopt.StableAdamW,
        stable_adamw,
        [{}, {"b1": 0.5}, {"b2": 0.9}, {"eps": 0.1}, {"weight_decay": 0.0}],
        [{"b1": 1.0}, {"b2": 1.0}, {"eps": 0.0}, {"weight_decay": None}],
        0.05,
    ),
]  # fmt: skip

PEERS: list[Peer] = [
    torch(xopt.Adamax(), "Adamax"),
    torch(
        xopt.Adamax(0.1, 0.8, 0.9, 1e-3, weight_decay=0.3),
        "Adamax",
        lr=0.1,
        betas=(0.8, 0.9),
        eps=1e-3,
        weight_decay=0.3,
    ),
    torch_complex(xopt.Adamax(0.1, complex="split"), "Adamax", lr=0.1),
    optax(xopt.Adamax(0.1, eps=1e-3), lambda o: o.adamax(0.1, eps=1e-3)),
    optax(xopt.Adamax(0.1), lambda o: o.adamax(0.1), complex=True),
    keras(xopt.Adamax(0.0625, eps=1e-3, eps_mode="outside"), "Adamax", learning_rate=0.0625, epsilon=1e-3),
    torch(xopt.RAdam(), "RAdam"),
    torch(
        xopt.RAdam(0.1, 0.8, 0.95, 1e-3, weight_decay=0.3),
        "RAdam",
        lr=0.1,
        betas=(0.8, 0.95),
        eps=1e-3,
        weight_decay=0.3,
    ),
    torch(
        xopt.RAdam(0.1, weight_decay=0.3, decay="lr"), "RAdam", lr=0.1, weight_decay=0.3, decoupled_weight_decay=True
    ),
    torch_complex(xopt.RAdam(0.1, complex="split"), "RAdam", lr=0.1),
    optax(xopt.RAdam(0.1, eps=1e-3, eps_mode="outside"), lambda o: o.radam(0.1, eps=1e-3)),
    optax(xopt.RAdam(0.1, threshold=6.5, eps_mode="outside"), lambda o: o.radam(0.1, threshold=6.5)),
    optax(xopt.AdaBelief(0.1), lambda o: o.adabelief(0.1)),
    optax(xopt.AdaBelief(0.1, 0.8, 0.9, 1e-3, 1e-4), lambda o: o.adabelief(0.1, 0.8, 0.9, 1e-3, 1e-4)),
    optax(xopt.AdaBelief(0.1), lambda o: o.adabelief(0.1), complex=True),
    optax(xopt.Yogi(0.1), lambda o: o.yogi(0.1)),
    optax(xopt.Yogi(0.1, 0.8, 0.9, 1e-2), lambda o: o.yogi(0.1, 0.8, 0.9, 1e-2)),
    optax(xopt.Yogi(0.1), lambda o: o.yogi(0.1), complex=True),
    pytorch_optimizer(xopt.StableAdamW(eps=1e-8), "StableAdamW"),
    pytorch_optimizer(
        xopt.StableAdamW(0.1, 0.8, 0.9, 1e-3, weight_decay=0.3),
        "StableAdamW",
        lr=0.1,
        betas=(0.8, 0.9),
        eps=1e-3,
        weight_decay=0.3,
    ),
]
