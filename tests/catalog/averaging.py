"""Rules that average."""

from __future__ import annotations

from typing import Any

import numpy as np

import xopt
from catalog.base import A, Peer, Row, S, decayed, keras, optax, torch, torch_complex


@decayed
def asgd(p: A, g: A, s: S, t: int, *, lr: Any, lambd: Any, alpha: Any, t0: Any) -> A:
    """Polyak & Juditsky 1992 with the rate of Bottou 2010; the mean is in `asgd_mean`."""
    eta = lr / (1 + lambd * lr * (t - 1)) ** alpha
    return (1 - lambd * eta) * p - eta * g


def asgd_mean(p: A, g: A, s: S, t: int, **h: Any) -> A:
    """Return the parameters, and keep their mean of all steps after the first 1 + t0."""
    new = asgd(p, g, s, t, **h)
    late = t - 1 - h["t0"]
    s["mean"] = new if late <= 1 else s["mean"] * (1 - 1 / late) + new / late
    return new


@decayed
def ftrl(p: A, g: A, s: S, t: int, *, lr: Any, l1: Any, l2: Any, beta: Any, power: float, initial: float) -> A:
    """McMahan et al. 2013, Algorithm 1; a root of any power."""
    n = s.get("n", np.full(p.shape, initial))
    s["n"] = n + np.abs(g) ** 2
    sigma = (s["n"] ** power - n**power) / lr
    z = s["z"] = s.get("z", np.zeros_like(p)) + g - sigma * p
    size = np.abs(z)
    short = np.where(size <= l1, 0, z - l1 * z / np.maximum(size, 1e-300))
    return -short / ((beta + s["n"] ** power) / lr + l2)


@decayed
def madgrad(p: A, g: A, s: S, t: int, *, lr: Any, momentum: Any, eps: Any) -> A:
    """Defazio & Jelassi 2021, Algorithm 1; its c is 1 - momentum and its k is t - 1."""
    start = s.setdefault("x0", p)
    lam = lr * np.sqrt(t)
    s["s"] = s.get("s", np.zeros_like(p)) + lam * g
    s["v"] = s.get("v", np.zeros(p.shape)) + lam * np.abs(g) ** 2
    z = start - s["s"] / (np.cbrt(s["v"]) + eps)
    c = 1 - momentum
    return (1 - c) * p + c * z


ROWS = [
    Row(
        xopt.ASGD,
        asgd_mean,
        [{}, {"lambd": 0.3}, {"lambd": 0.3, "alpha": 0.25}, {"t0": 2.0}, {"t0": 0.0, "lambd": 0.3}],
        [{"lambd": -1.0}, {"alpha": -1.0}, {"t0": -1.0}],
        0.05,
        results=("mean",),
    ),
    Row(
        xopt.FTRL,
        ftrl,
        [
            {},
            {"l1": 0.1},
            {"l2": 0.5},
            {"beta": 1.0},
            {"power": 0.3},
            {"power": 0.0},
            {"initial": 1.0},
            {"initial": 0.0, "beta": 1.0, "l1": 0.5, "l2": 0.5},
        ],
        [{"lr": 0.0}, {"l1": -1.0}, {"l2": -1.0}, {"beta": -1.0}, {"power": 1.5}, {"power": -0.5}, {"initial": -1.0}],
        0.05,
    ),
    Row(
        xopt.MADGRAD,
        madgrad,
        [{}, {"momentum": 0.5}, {"momentum": 0.0}, {"eps": 0.1}],
        [{"momentum": 1.0}, {"eps": -1.0}],
        0.05,
    ),
]  # fmt: skip

ASGD = 1e-6  # torch keeps the learning rate in float32


def rounded(lr: float) -> Any:
    """Return a rate with which lr·√t is what optax computes, in float32."""
    single = np.float32
    return lambda t: float(single(lr) * np.sqrt(single(t))) / np.sqrt(t)


PEERS: list[Peer] = [
    torch(xopt.ASGD(), "ASGD", ASGD),
    torch(
        xopt.ASGD(0.1, 0.3, 0.25, 5, weight_decay=0.2),
        "ASGD",
        ASGD,
        lr=0.1,
        lambd=0.3,
        alpha=0.25,
        t0=5,
        weight_decay=0.2,
    ),
    torch_complex(xopt.ASGD(0.1, complex="split"), "ASGD", lr=0.1)._replace(rtol=ASGD),
    keras(xopt.FTRL(0.0625), "Ftrl", learning_rate=0.0625),
    keras(
        xopt.FTRL(0.0625, 0.125, 0.5, 0.75, 0.25, 0.5),
        "Ftrl",
        learning_rate=0.0625,
        l1_regularization_strength=0.125,
        l2_regularization_strength=0.25,
        beta=0.75,
        learning_rate_power=-0.25,
        initial_accumulator_value=0.5,
    ),
    optax(xopt.MADGRAD(rounded(0.1 + 1e-6)), lambda o: o.contrib.madgrad(0.1)),
    optax(
        xopt.MADGRAD(rounded(0.1 + 1e-3), 0.5, 1e-3, weight_decay=0.3),
        lambda o: o.contrib.madgrad(0.1, 0.5, weight_decay=0.3, eps=1e-3),
    ),
]
