"""Rules that step by a sign."""

from __future__ import annotations

from typing import Any

import numpy as np

import xopt
from catalog.base import A, Peer, Row, S, decayed, optax, torch, torch_complex


def direction(x: A) -> A:
    """Take the sign, of a complex number its phase."""
    return np.where(x == 0, 0, x / np.where(x == 0, 1, np.abs(x)))


@decayed
def signsgd(p: A, g: A, s: S, t: int, *, lr: Any) -> A:
    """Bernstein et al. 2018, Algorithm 1."""
    return p - lr * direction(g)


@decayed
def signum(p: A, g: A, s: S, t: int, *, lr: Any, momentum: Any) -> A:
    """Bernstein et al. 2018, Algorithm 2."""
    s["m"] = momentum * s.get("m", np.zeros_like(p)) + (1 - momentum) * g
    return p - lr * direction(s["m"])


@decayed
def lion(p: A, g: A, s: S, t: int, *, lr: Any, b1: Any, b2: Any) -> A:
    """Chen et al. 2023, Algorithm 2."""
    m = s.get("m", np.zeros_like(p))
    s["m"] = b2 * m + (1 - b2) * g
    return p - lr * direction(b1 * m + (1 - b1) * g)


@decayed
def rprop(p: A, g: A, s: S, t: int, *, lr: Any, shrink: Any, grow: Any, smallest: Any, largest: Any, form: str) -> A:
    """Riedmiller & Braun 1993 (Rprop+, Rprop-); Igel & Hüsken 2000, iRprop-."""
    size, last = s.get("size", np.full(p.shape, float(lr))), s.get("g", np.zeros_like(p))
    product = np.real(g * np.conj(last))
    factor = np.ones(p.shape)
    factor[product > 0] = grow
    factor[product < 0] = shrink
    s["size"] = np.clip(size * factor, smallest, largest)
    if form != "rprop-":
        g = np.where(product < 0, 0, g)
    step = -s["size"] * direction(g)
    if form == "rprop+":
        step = np.where(product < 0, -s.get("step", 0), step)
    s["g"], s["step"] = g, step
    return p + step


ROWS = [
    Row(xopt.SignSGD, signsgd, [{}], [], 0.05),
    Row(xopt.Signum, signum, [{}, {"momentum": 0.5}], [{"momentum": 1.0}, {"momentum": None}], 0.05),
    Row(xopt.Lion, lion, [{}, {"b1": 0.999}, {"b1": 0.99, "b2": 0.5}], [{"b1": 1.0}, {"b2": -0.1}], 0.02),
    Row(
        xopt.Rprop,
        rprop,
        [
            {},
            {"shrink": 0.3},
            {"grow": 2.0},
            {"smallest": 0.03},
            {"largest": 0.055},
            {"form": "rprop-"},
            {"form": "rprop+"},
        ],
        [{"shrink": 1.0}, {"grow": 1.0}, {"smallest": 0.0}, {"largest": 0.0}, {"form": "irprop+"}],
        0.05,
    ),
]  # fmt: skip

PEERS: list[Peer] = [
    optax(xopt.SignSGD(0.05), lambda o: o.sign_sgd(0.05)),
    optax(xopt.Signum(0.05), lambda o: o.chain(o.ema(0.9, debias=False), o.sign_sgd(0.05))),
    optax(xopt.Lion(0.05, weight_decay=0.3), lambda o: o.lion(0.05, weight_decay=0.3)),
    optax(xopt.Lion(0.05, 0.5, 0.8), lambda o: o.lion(0.05, b1=0.5, b2=0.8, weight_decay=0.0)),
    torch(xopt.Rprop(), "Rprop"),
    torch(xopt.Rprop(0.1, 0.3, 1.5, 0.05, 0.2), "Rprop", lr=0.1, etas=(0.3, 1.5), step_sizes=(0.05, 0.2)),
    torch(xopt.Rprop(0.1, maximize=True), "Rprop", lr=0.1, maximize=True),
    torch_complex(xopt.Rprop(0.1, complex="split"), "Rprop", lr=0.1),
    optax(xopt.Lion(0.05), lambda o: o.lion(0.05, weight_decay=0.0), complex=True),
]
