"""Rules with a second moment for each row and column."""

from __future__ import annotations

from typing import Any

import numpy as np

import xopt
from catalog.base import A, Peer, Row, S, decayed, keras, optax, torch


def rms(x: A) -> Any:
    return np.sqrt(np.mean(np.abs(x) ** 2)) if x.size else 0.0


@decayed
def adafactor(
    p: A, g: A, s: S, t: int, *, lr: Any, b2_decay: Any, eps1: Any, eps2: Any, d: Any, b1: Any, relative_step: bool,
    scale_parameter: bool, factored: str, min_size: int, eps_mode: str,
) -> A:  # fmt: skip
    """Shazeer & Stern 2018, Algorithms 4 and 5, with sums over rows and columns as there, a matrix at a time."""
    b2 = 1 - t**-b2_decay
    eps1 = eps1 or {"square": 1e-30, "clamp": 2.0**-52}[eps_mode]
    g2 = np.abs(g) ** 2 + (eps1 if eps_mode == "square" else 0)
    rank = g.ndim
    axes = sorted(range(rank), key=lambda k: g.shape[k])[-2:] if factored == "largest" else [rank - 2, rank - 1]
    if rank < 2 or factored == "none" or min(g.shape[k] for k in axes) < min_size:
        v = s["v"] = b2 * s.get("v", np.zeros(g.shape)) + (1 - b2) * g2
    else:
        v = np.empty(g.shape)
        moved, out = np.moveaxis(g2, axes, [-2, -1]), np.moveaxis(v, axes, [-2, -1])
        for place in np.ndindex(moved.shape[:-2]):
            n, m = moved.shape[-2:]
            one = moved[place]
            r = s["r", place] = b2 * s.get(("r", place), np.zeros(n)) + (1 - b2) * one @ np.ones(m)
            c = s["c", place] = b2 * s.get(("c", place), np.zeros(m)) + (1 - b2) * np.ones(n) @ one
            total = np.ones(n) @ r  # sums: r is m, and total n·m times the means
            out[place] = np.outer(r, c) / (max(total, eps1 * n * m) if eps_mode == "clamp" else total)
    u = g / np.sqrt(np.maximum(v, eps1**2) if eps_mode == "clamp" else v)
    u = u if d is None else u / max(1, rms(u) / d)
    rho = min(lr, 1 / np.sqrt(t)) if relative_step else lr
    alpha = max(1e-3 if eps2 is None else eps2, rms(p)) * rho if scale_parameter else rho
    step = alpha * u
    if b1 is not None:
        step = s["m"] = b1 * s.get("m", np.zeros_like(p)) + (1 - b1) * step
    return p - step


@decayed
def sm3(p: A, g: A, s: S, t: int, *, lr: Any, momentum: Any, eps: Any, b2: Any) -> A:
    """Anil et al. 2019, SM3-II, an element at a time."""
    mu = s.get("mu", {})
    new: dict[Any, float] = {}
    d = np.zeros_like(p)
    for i in np.ndindex(p.shape):
        slices = [(k, i[k]) for k in range(p.ndim)] or [()]
        low = min(mu.get(r, 0.0) for r in slices)
        v = low + abs(g[i]) ** 2 if b2 is None else b2 * low + (1 - b2) * abs(g[i]) ** 2
        for r in slices:
            new[r] = max(new.get(r, 0.0), v)
        d[i] = g[i] / np.sqrt(v + eps) if v > 0 else 0
    s["mu"] = new
    if momentum is not None:
        d = s["m"] = momentum * s.get("m", np.zeros_like(p)) + (1 - momentum) * d
    return p - lr * d


ROWS = [
    Row(
        xopt.Adafactor,
        adafactor,
        [
            {},
            {"b2_decay": 0.3},
            {"eps1": 0.1},
            {"eps1": 0.1, "eps_mode": "clamp"},
            {"eps1": 0.1, "eps_mode": "clamp", "factored": "none"},
            {"eps2": 5.0},
            {"d": 0.2},
            {"d": None},
            {"b1": 0.9},
            {"lr": 0.8},
            {"lr": 0.8, "relative_step": False},
            {"scale_parameter": False},
            {"factored": "none"},
            {"factored": "largest"},
            {"min_size": 3},
            {"factored": "largest", "min_size": 3, "b1": 0.5, "scale_parameter": False},
        ],
        [
            {"b1": 1.0},
            {"d": 0.0},
            {"eps1": 0.0},
            {"eps2": -1.0},
            {"factored": "first"},
            {"eps_mode": "inside"},
            {"min_size": 0},
            {"factored": "none", "min_size": 3},
            {"scale_parameter": False, "eps2": 1.0},
        ],
        0.05,
    ),
    Row(
        xopt.SM3,
        sm3,
        [{}, {"momentum": 0.9}, {"eps": 0.1}, {"b2": 0.9}, {"b2": 0.5, "momentum": 0.5, "eps": 1e-8}],
        [{"momentum": 1.0}, {"b2": 1.1}, {"eps": -1.0}],
        0.05,
    ),
]  # fmt: skip

FULL = ((), (1,), (5,), (4, 3), (3, 5), (2, 3, 4), (5, 2, 3))
"""torch divides by the size of the array; optax's SM3 needs an axis."""

PEERS: list[Peer] = [
    torch(xopt.Adafactor(eps_mode="clamp"), "Adafactor")._replace(shapes=FULL),
    torch(
        xopt.Adafactor(0.3, 0.5, 0.1, 0.5, 1.2, eps_mode="clamp", weight_decay=0.3, decay="lr", maximize=True),
        "Adafactor", lr=0.3, beta2_decay=-0.5, eps=(0.1, 0.5), d=1.2, weight_decay=0.3, maximize=True,
    )._replace(shapes=FULL),
    optax(xopt.Adafactor(0.1, 0.0, relative_step=False, min_size=1, factored="largest"),
          lambda o: o.adafactor(0.1, 1, 0.0)),
    optax(
        xopt.Adafactor(0.1, relative_step=False, factored="largest", min_size=3, weight_decay=0.05,
                       decay="independent"),
        lambda o: o.adafactor(0.1, 3, weight_decay_rate=0.05),
        rtol=1e-5,  # optax computes the decay in float32
    ),
    optax(
        xopt.Adafactor(0.1, 0.5, 1e-3, d=0.5, relative_step=False, factored="none", scale_parameter=False),
        lambda o: o.adafactor(0.1, decay_rate=0.5, eps=1e-3, clipping_threshold=0.5, factored=False,
                              multiply_by_parameter_scale=False),
        rtol=1e-5,
    ),
    optax(
        xopt.Adafactor(0.1, d=None, b1=0.9, relative_step=False, factored="largest", min_size=2),
        lambda o: o.adafactor(0.1, 2, clipping_threshold=None, momentum=0.9, dtype_momentum="float64"),
        rtol=1e-5,
    ),
    keras(
        xopt.Adafactor(0.25, 0.5), "Adafactor", rtol=1e-5,  # its means are computed in float32
        learning_rate=0.25, beta_2_decay=-0.5,
    )._replace(shapes=FULL),
    optax(xopt.SM3(0.1, 0.9, 1e-8), lambda o: o.sm3(0.1))._replace(shapes=FULL[1:]),
    optax(xopt.SM3(0.1, 0.5, 1e-3, 0.8),
          lambda o: o.chain(o.scale_by_sm3(0.5, 0.8, 1e-3), o.scale(-0.1)))._replace(shapes=FULL[1:]),
]  # fmt: skip
