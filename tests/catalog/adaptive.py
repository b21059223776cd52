"""Rules that divide by a root of sums or averages of squares."""

from __future__ import annotations

from typing import Any

import numpy as np

import xopt
from catalog.base import A, Peer, Row, S, decayed, optax, torch, torch_complex


@decayed
def adagrad(p: A, g: A, s: S, t: int, *, lr: Any, eps: Any, eps_mode: str, initial: float) -> A:
    """Duchi, Hazan & Singer 2011, Figure 1."""
    s["v"] = s.get("v", np.full(p.shape, initial)) + np.abs(g) ** 2
    return p - lr * g / (np.sqrt(s["v"] + eps) if eps_mode == "inside" else np.sqrt(s["v"]) + eps)


@decayed
def adadelta(p: A, g: A, s: S, t: int, *, lr: Any, rho: Any, eps: Any) -> A:
    """Zeiler 2012, Algorithm 1."""
    zero = np.zeros(p.shape)
    s["v"] = rho * s.get("v", zero) + (1 - rho) * np.abs(g) ** 2
    d = np.sqrt(s.get("u", zero) + eps) / np.sqrt(s["v"] + eps) * g
    s["u"] = rho * s.get("u", zero) + (1 - rho) * np.abs(d) ** 2
    return p - lr * d


@decayed
def rmsprop(
    p: A, g: A, s: S, t: int, *, lr: Any, rho: Any, eps: Any, momentum: Any, centered: bool, eps_mode: str, form: str,
    initial: float,
) -> A:  # fmt: skip
    """Tieleman & Hinton 2012, lecture 6.5; centered as Graves 2013, equations 38 to 45."""
    v = s["v"] = rho * s.get("v", np.full(p.shape, initial)) + (1 - rho) * np.abs(g) ** 2
    if centered:
        s["a"] = rho * s.get("a", np.zeros_like(p)) + (1 - rho) * g
        v = np.maximum(v - np.abs(s["a"]) ** 2, 0)
    d = g / (np.sqrt(v + eps) if eps_mode == "inside" else np.sqrt(v) + eps)
    if momentum is None:
        return p - lr * d
    scale = lr if form == "lr_inside" else 1.0
    s["m"] = momentum * s.get("m", np.zeros_like(p)) + scale * d
    return p - (s["m"] if form == "lr_inside" else lr * s["m"])


ROWS = [
    Row(
        xopt.Adagrad,
        adagrad,
        [{}, {"eps": 0.1}, {"eps": 0.1, "eps_mode": "inside"}, {"initial": 0.1}],
        [{"eps": -1.0}, {"eps_mode": "hat"}, {"initial": -0.1}],
        0.05,
    ),
    Row(
        xopt.Adadelta,
        adadelta,
        [{}, {"rho": 0.5}, {"eps": 0.01}],
        [{"rho": 1.0}, {"rho": -0.1}, {"eps": -1.0}],
        0.7,
    ),
    Row(
        xopt.RMSProp,
        rmsprop,
        [
            {},
            {"rho": 0.5},
            {"eps": 0.1},
            {"eps": 0.1, "eps_mode": "inside"},
            {"centered": True, "eps": 1e-3},
            {"momentum": 0.9},
            {"momentum": 0.9, "form": "lr_inside"},
            {"momentum": 0.9, "centered": True, "eps": 1e-3, "eps_mode": "inside", "form": "lr_inside"},
            {"initial": 1.0},
        ],
        [{"rho": 1.0}, {"momentum": 1.0}, {"form": "lr_inside"}, {"initial": -1.0}, {"centered": "yes"}],
        0.02,
    ),
]  # fmt: skip

PEERS: list[Peer] = [
    torch(xopt.Adagrad(), "Adagrad"),
    torch(
        xopt.Adagrad(xopt.schedules.inverse_time(0.1, rate=0.2), initial=0.3, weight_decay=0.2),
        "Adagrad",
        lr=0.1,
        lr_decay=0.2,
        initial_accumulator_value=0.3,
        weight_decay=0.2,
    ),
    torch(xopt.Adadelta(), "Adadelta"),
    torch(xopt.Adadelta(0.5, 0.8, 1e-4, weight_decay=0.2), "Adadelta", lr=0.5, rho=0.8, eps=1e-4, weight_decay=0.2),
    torch(xopt.RMSProp(), "RMSprop"),
    torch(xopt.RMSProp(0.1, 0.9, 1e-3, weight_decay=0.2), "RMSprop", lr=0.1, alpha=0.9, eps=1e-3, weight_decay=0.2),
    torch(xopt.RMSProp(0.1, momentum=0.9), "RMSprop", lr=0.1, momentum=0.9),
    torch(
        xopt.RMSProp(0.1, 0.9, 1e-3, 0.5, centered=True),
        "RMSprop",
        lr=0.1,
        alpha=0.9,
        eps=1e-3,
        momentum=0.5,
        centered=True,
    ),
    torch(
        xopt.RMSProp(0.02, eps=1e-3, momentum=0.9, centered=True, weight_decay=0.3),
        "RMSprop",
        lr=0.02,
        eps=1e-3,
        momentum=0.9,
        centered=True,
        weight_decay=0.3,
    ),
    torch_complex(xopt.Adagrad(0.1, complex="split"), "Adagrad", lr=0.1),
    torch_complex(xopt.Adadelta(complex="split"), "Adadelta"),
    torch_complex(xopt.RMSProp(0.02, complex="split"), "RMSprop", lr=0.02),
    optax(xopt.Adagrad(0.1, 1e-7, "inside", 0.1), lambda o: o.adagrad(0.1)),
    optax(xopt.Adadelta(0.5), lambda o: o.adadelta(0.5)),
    optax(xopt.RMSProp(0.1, 0.9, eps_mode="inside"), lambda o: o.rmsprop(0.1)),
    optax(xopt.RMSProp(0.1, 0.9), lambda o: o.rmsprop(0.1, eps_in_sqrt=False)),
    optax(
        xopt.RMSProp(0.1, 0.9, 1e-3, 0.5, True, eps_mode="inside", form="lr_inside", initial=0.2),
        lambda o: o.rmsprop(0.1, eps=1e-3, momentum=0.5, centered=True, initial_scale=0.2),
        rtol=1e-9,
    ),
    optax(
        xopt.RMSProp(0.02, 0.9, eps_mode="inside", momentum=0.9, form="lr_inside"),
        lambda o: o.rmsprop(0.02, momentum=0.9),
    ),
    optax(xopt.RMSProp(0.02, 0.9, initial=1.0), lambda o: o.rmsprop(0.02, eps_in_sqrt=False, initial_scale=1.0)),
    optax(xopt.Adadelta(0.7, 0.5, 1e-3), lambda o: o.adadelta(0.7, rho=0.5, eps=1e-3)),
    optax(xopt.RMSProp(0.02, 0.9, eps_mode="inside"), lambda o: o.rmsprop(0.02), complex=True),
    optax(xopt.Adagrad(0.05, 1e-7, "inside", 0.1), lambda o: o.adagrad(0.05), complex=True),
]
