"""Rules without a schedule."""

from __future__ import annotations

from typing import Any

import numpy as np

import xopt
from catalog.base import A, Peer, Row, S, coupled, keras, optax


def averaged(p: A, s: S, t: int, u: Any, b1: Any, rate: Any, r: Any, weight_lr_power: Any) -> A:
    """Defazio et al. 2024, equations 3 to 5, with x kept; u is what z moves by."""
    s["top"] = max(s.get("top", 0.0), rate)
    weight = t**r * s["top"] ** weight_lr_power
    s["total"] = s.get("total", 0.0) + weight
    c = weight / s["total"] if s["total"] > 0 else 0.0
    s["z"] = s.get("z", p) - u
    s["x"] = (1 - c) * s.get("x", p) + c * s["z"]
    return (1 - b1) * s["z"] + b1 * s["x"]


@coupled
def schedule_free_sgd(
    p: A, g: A, s: S, t: int, *, shrink: Any, lr: Any, b1: Any, warmup: int, r: Any, weight_lr_power: Any
) -> A:
    """Defazio et al. 2024, equations 3 to 5, weights as in their code."""
    rate = lr * min(1.0, t / warmup) if warmup else lr
    return averaged(p, s, t, rate * g + shrink(rate, g, p), b1, rate, r, weight_lr_power)


@coupled
def schedule_free_adamw(
    p: A, g: A, s: S, t: int, *, shrink: Any, lr: Any, b1: Any, b2: Any, eps: Any, warmup: int, r: Any,
    weight_lr_power: Any,
) -> A:  # fmt: skip
    """Defazio et al. 2024, Algorithm 1, with the correction of v of their code."""
    rate = lr * min(1.0, t / warmup) if warmup else lr
    s["v"] = b2 * s.get("v", np.zeros(p.shape)) + (1 - b2) * np.abs(g) ** 2
    u = rate * g / (np.sqrt(s["v"] / (1 - b2**t)) + eps)
    return averaged(p, s, t, u + shrink(rate, u, p), b1, rate, r, weight_lr_power)


_OPTIONS: list[dict[str, Any]] = [
    {},
    {"b1": 0.5},
    {"b1": 1.0},
    {"warmup": 10},
    {"r": 1.0},
    {"warmup": 10, "weight_lr_power": 0.0},
    {"warmup": 5, "weight_lr_power": 1.0, "r": 0.5},
]
_REFUSED: list[dict[str, Any]] = [
    {"b1": 0.0},
    {"b1": 1.1},
    {"warmup": -1},
    {"warmup": 1.5},
    {"r": -1.0},
    {"weight_lr_power": -1.0},
]

ROWS = [
    Row(xopt.ScheduleFreeSGD, schedule_free_sgd, _OPTIONS, _REFUSED, 0.08),
    Row(
        xopt.ScheduleFreeAdamW,
        schedule_free_adamw,
        [*_OPTIONS, {"b2": 0.9}, {"eps": 0.1}],
        [*_REFUSED, {"b2": 1.0}, {"eps": -1.0}],
        0.05,
    ),
]

PEERS: list[Peer] = [
    optax(xopt.ScheduleFreeSGD(0.1), lambda o: o.contrib.schedule_free_sgd(0.1)),
    optax(
        xopt.ScheduleFreeSGD(0.1, 0.6, weight_lr_power=1.0, weight_decay=0.3),
        lambda o: o.contrib.schedule_free_sgd(0.1, b1=0.6, weight_lr_power=1.0, weight_decay=0.3),
    ),
    optax(
        xopt.ScheduleFreeSGD(xopt.schedules.cosine(0.1, steps=10, end=0.05)),
        lambda o: o.contrib.schedule_free(
            o.sgd(o.cosine_decay_schedule(0.1, 10, 0.5)), lambda t: o.cosine_decay_schedule(0.1, 10, 0.5)(t - 1)
        ),
    ),
    optax(xopt.ScheduleFreeAdamW(0.05), lambda o: o.contrib.schedule_free_adamw(0.05)),
    optax(
        xopt.ScheduleFreeAdamW(0.05, 0.6, b2=0.9, eps=1e-4, weight_decay=0.3),
        lambda o: o.contrib.schedule_free_adamw(0.05, b1=0.6, b2=0.9, eps=1e-4, weight_decay=0.3),
    ),
    keras(xopt.ScheduleFreeAdamW(0.0625, weight_lr_power=0.0), "ScheduleFreeAdamW", learning_rate=0.0625),
    keras(
        xopt.ScheduleFreeAdamW(0.0625, 0.75, warmup=8, b2=0.875, eps=1e-4, weight_lr_power=0.0),
        "ScheduleFreeAdamW",
        learning_rate=0.0625,
        beta_1=0.75,
        beta_2=0.875,
        epsilon=1e-4,
        warmup_steps=8,
    ),
]
