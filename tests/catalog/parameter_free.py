"""Rules that find their learning rate by themselves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import xopt
from catalog.base import A, Peer, Row, S, coupled, flat, optax, pytorch_optimizer


def dot(xs: list[A], ys: list[A]) -> float:
    return float(flat(xs) @ flat(ys))


def norm(xs: list[A]) -> float:
    return math.sqrt(dot(xs, xs))


def norm1(xs: list[A]) -> float:
    return sum(float(np.sum(np.abs(x))) for x in xs)


def limited(growth_rate: Any) -> float:
    return math.inf if growth_rate is None else growth_rate


@coupled
def dadapt_sgd(
    ps: list[A], gs: list[A], s: S, t: int, *, shrink: Any, lr: Any, momentum: Any, d0: Any, growth_rate: Any
) -> list[A]:
    """Defazio & Mishchenko 2023, Algorithm 4, with the momentum of their code."""
    if not s:
        s |= {"d": d0, "n": 0.0, "s": [np.zeros_like(p) for p in ps], "z": ps, "first": 0.0}
    s["first"] = s["first"] or norm(gs)
    if s["first"] == 0:
        return ps
    rate = s["d"] * lr / s["first"]
    s["n"] += rate * dot(gs, s["s"])
    s["s"] = [x + rate * g for x, g in zip(s["s"], gs, strict=True)]
    if norm(s["s"]) > 0:
        s["d"] = max(s["d"], min(2 * s["n"] / norm(s["s"]), s["d"] * limited(growth_rate)))
    us = [rate * g + shrink(rate, g, p) for p, g in zip(ps, gs, strict=True)]
    if momentum is None:
        return [p - u for p, u in zip(ps, us, strict=True)]
    s["z"] = [z - u for z, u in zip(s["z"], us, strict=True)]
    return [momentum * p + (1 - momentum) * z for p, z in zip(ps, s["z"], strict=True)]


def correction(bias: str, b1: Any, b2: Any, t: int) -> Any:
    return 1.0 if bias == "none" else math.sqrt(1 - b2**t) / (1 - b1**t)


@coupled
def dadapt_adam(
    ps: list[A], gs: list[A], s: S, t: int, *, shrink: Any, lr: Any, b1: Any, b2: Any, eps: Any, bias: str, d0: Any,
    growth_rate: Any,
) -> list[A]:  # fmt: skip
    """Defazio & Mishchenko 2023, Algorithm 5, with the correction and the limit of their code."""
    if not s:
        zeros = [np.zeros_like(p) for p in ps]
        s |= {"d": d0, "n": 0.0, "s": zeros, "m": zeros, "v": [np.abs(x) for x in zeros]}
    r, rate = math.sqrt(b2), s["d"] * lr * correction(bias, b1, b2, t)
    along = dot(gs, [x / (np.sqrt(v) + eps) for x, v in zip(s["s"], s["v"], strict=True)])
    s["m"] = [b1 * m + (1 - b1) * rate * g for m, g in zip(s["m"], gs, strict=True)]
    s["v"] = [b2 * v + (1 - b2) * np.abs(g) ** 2 for v, g in zip(s["v"], gs, strict=True)]
    s["s"] = [r * x + (1 - r) * rate * g for x, g in zip(s["s"], gs, strict=True)]
    if norm1(s["s"]) > 0:
        s["n"] = r * s["n"] + (1 - r) * rate * along
        s["d"] = max(s["d"], min(s["n"] / ((1 - r) * norm1(s["s"])), s["d"] * limited(growth_rate)))
    return [p - m / (np.sqrt(v) + eps) - shrink(rate, m, p) for p, m, v in zip(ps, s["m"], s["v"], strict=True)]


@coupled
def prodigy(
    ps: list[A], gs: list[A], s: S, t: int, *, shrink: Any, lr: Any, b1: Any, b2: Any, b3: Any, eps: Any, bias: str,
    safeguard_warmup: bool, d0: Any, d_coef: Any, growth_rate: Any,
) -> list[A]:  # fmt: skip
    """Mishchenko & Defazio 2023, Algorithm 4, with the options of their code."""
    if not s:
        zeros = [np.zeros_like(p) for p in ps]
        s |= {"x0": ps, "d": d0, "top": d0, "n": 0.0, "s": zeros, "m": zeros, "v": [np.abs(x) for x in zeros]}
    b3 = math.sqrt(b2) if b3 is None else b3
    d = s["d"]
    rate = d * lr * correction(bias, b1, b2, t)
    n = b3 * s["n"] + d * rate * dot(gs, [x - p for x, p in zip(s["x0"], ps, strict=True)])
    s["m"] = [b1 * m + (1 - b1) * d * g for m, g in zip(s["m"], gs, strict=True)]
    s["v"] = [b2 * v + (1 - b2) * d**2 * np.abs(g) ** 2 for v, g in zip(s["v"], gs, strict=True)]
    s["s"] = [b3 * x + d * (d if safeguard_warmup else rate) * g for x, g in zip(s["s"], gs, strict=True)]
    if norm1(s["s"]) > 0:
        found = d_coef * n / norm1(s["s"])
        s["n"], s["top"] = n, max(s["top"], found)
        s["d"] = min(s["top"], (max(d, found) if d == d0 else d) * limited(growth_rate))
    return [
        p - rate * m / (np.sqrt(v) + s["d"] * eps) - shrink(rate, m, p)
        for p, m, v in zip(ps, s["m"], s["v"], strict=True)
    ]


@coupled
def dog(
    ps: list[A], gs: list[A], s: S, t: int, *, shrink: Any, lr: Any, reps_rel: Any, first: str, eps: Any
) -> list[A]:
    """Ivgi, Hinder & Carmon 2023, equations 1 and 2, with the options of their code."""
    x0 = s.setdefault("x0", ps)
    before = s.get("total", 0.0)
    s["total"] = before + norm(gs) ** 2
    if before > 0:
        s["rbar"] = max(s["rbar"], norm([p - x for p, x in zip(ps, x0, strict=True)]))
    else:
        s["rbar"] = {"relative": reps_rel * (1 + norm(x0)), "distance": reps_rel, "rate": 0.0}[first]
    eta = lr * s["rbar"] / (math.sqrt(s["total"] + eps) or 1.0)
    if first == "rate" and before == 0:
        eta = reps_rel
    return [p - eta * g - shrink(eta, g, p) for p, g in zip(ps, gs, strict=True)]


def ldog(ps: list[A], gs: list[A], s: S, t: int, **h: Any) -> list[A]:
    """Ivgi, Hinder & Carmon 2023, section 4: every leaf by itself."""
    return [dog([p], [g], s.setdefault(k, {}), t, **h)[0] for k, (p, g) in enumerate(zip(ps, gs, strict=True))]


_DOG = [
    {},
    {"reps_rel": 0.02},
    {"reps_rel": 0.02, "first": "distance"},
    {"reps_rel": 0.3, "first": "rate"},
    {"reps_rel": 0.02, "eps": 0.1},
]
_DOG_REFUSED: list[dict[str, Any]] = [
    {"reps_rel": 0.0},
    {"first": "heuristic"},
    {"eps": -1.0},
]

DECAYED: dict[str, Any] = {"weight_decay": 0.3}
"""A part of all gradients that is the same: otherwise d would not grow.

The default first steps, of 1e-6, are lost in the rounding of float32 parameters; peers have them, and
`rules/test_parameter_free.py`.
"""

ROWS = [
    Row(
        xopt.DAdaptSGD,
        dadapt_sgd,
        [
            {},
            {**DECAYED, "d0": 0.1},
            {**DECAYED, "d0": 0.1, "momentum": 0.9},
            {**DECAYED, "d0": 0.1, "growth_rate": 1.02},
        ],
        [{"d0": 0.0}, {"momentum": 1.0}, {"growth_rate": 0.9}],
        1.0,
        tree=True,
        base={"d0": 0.003},
    ),
    Row(
        xopt.DAdaptAdam,
        dadapt_adam,
        [
            {},
            {**DECAYED, "d0": 0.05},
            {**DECAYED, "d0": 0.05, "b1": 0.5},
            {**DECAYED, "d0": 0.05, "b2": 0.9},
            {**DECAYED, "d0": 0.05, "eps": 0.1},
            {**DECAYED, "d0": 0.05, "bias": "standard"},
            {**DECAYED, "d0": 0.05, "growth_rate": 1.01},
        ],
        [{"d0": 0.0}, {"b1": 1.0}, {"b2": 1.0}, {"eps": 0.0}, {"bias": "first"}, {"growth_rate": 0.9}],
        1.0,
        tree=True,
        base={"d0": 0.03},
    ),
    Row(
        xopt.Prodigy,
        prodigy,
        [
            {},
            {**DECAYED, "d0": 0.02},
            {**DECAYED, "d0": 0.02, "b1": 0.5},
            {**DECAYED, "d0": 0.02, "b2": 0.9},
            {**DECAYED, "d0": 0.02, "b3": 0.5},
            {**DECAYED, "d0": 0.02, "eps": 0.1},
            {**DECAYED, "d0": 0.02, "bias": "standard"},
            {**DECAYED, "d0": 0.02, "safeguard_warmup": True},
            {**DECAYED, "d0": 0.02, "d_coef": 2.0},
            {**DECAYED, "d0": 0.02, "growth_rate": 1.01},
        ],
        [{"d0": 0.0}, {"b1": 1.0}, {"b2": 1.0}, {"b3": 1.0}, {"eps": 0.0}, {"bias": "first"}, {"d_coef": 0.0},
         {"growth_rate": 0.9}, {"safeguard_warmup": 1}],
        0.5,
        tree=True,
        base={"d0": 0.03},
    ),
    Row(xopt.DoG, dog, [*_DOG], _DOG_REFUSED, 0.1, tree=True, base={"reps_rel": 0.03}),
    Row(xopt.LDoG, ldog, [*_DOG], _DOG_REFUSED, 0.1, tree=True, base={"reps_rel": 0.03}),
]  # fmt: skip

DOT = 1e-5
"""It keeps its sums in float32."""

PEERS: list[Peer] = [
    optax(xopt.DAdaptAdam(bias="standard"), lambda o: o.contrib.dadapt_adamw()),
    optax(
        xopt.DAdaptAdam(0.5, 0.8, 0.95, 1e-4, "standard", 0.1, weight_decay=0.3, decay="lr"),
        lambda o: o.contrib.dadapt_adamw(0.5, (0.8, 0.95), 1e-4, 0.1, 0.3),
    ),
    optax(xopt.Prodigy(bias="standard"), lambda o: o.contrib.prodigy()),
    optax(
        xopt.Prodigy(0.5, 0.8, 0.95, 0.9, 1e-4, "standard", d0=0.02, d_coef=2.0, weight_decay=0.3, decay="lr"),
        lambda o: o.contrib.prodigy(0.5, (0.8, 0.95), 0.9, 1e-4, 0.02, 2.0, 0.3),
    ),
    optax(
        xopt.Prodigy(0.5, bias="standard", d0=0.02, safeguard_warmup=True),
        lambda o: o.contrib.prodigy(0.5, estim_lr0=0.02, safeguard_warmup=True),
    ),
    optax(xopt.DoG(), lambda o: o.contrib.dog()),
    optax(
        xopt.DoG(0.5, 0.02, eps=0.1, weight_decay=0.3),
        lambda o: o.contrib.dog(0.5, ("heuristic", 0.02), 0.1, weight_decay=0.3),
    ),
    optax(xopt.DoG(reps_rel=0.02, first="distance"), lambda o: o.contrib.dog(init_step=("distance", 0.02))),
    optax(xopt.DoG(reps_rel=0.3, first="rate"), lambda o: o.contrib.dog(init_step=("learning_rate", 0.3))),
    pytorch_optimizer(xopt.DAdaptSGD(), "DAdaptSGD", DOT, momentum=0.0),
    pytorch_optimizer(
        xopt.DAdaptSGD(0.5, 0.8, 0.02, 1.5),
        "DAdaptSGD",
        DOT,
        lr=0.5,
        momentum=0.8,
        d0=0.02,
        growth_rate=1.5,
    ),
]
