"""Components that change a gradient."""

from __future__ import annotations

import numpy as np

import xopt
from catalog.base import A, Peer, optax


def clip_by_value(gs: list[A], limit: float) -> list[A]:
    """Clip each element; a complex one keeps its phase."""
    return [
        np.where(np.abs(g) > limit, g / np.maximum(np.abs(g), 1e-300) * limit, g)
        if np.iscomplexobj(g)
        else np.clip(g, -limit, limit)
        for g in gs
    ]


def clip_by_norm(gs: list[A], max_norm: float) -> list[A]:
    """Clip each array."""
    return [clip_by_global_norm([g], max_norm)[0] for g in gs]


def clip_by_global_norm(gs: list[A], max_norm: float) -> list[A]:
    """Pascanu et al. 2013, Algorithm 1."""
    norm = np.sqrt(sum(float(np.sum(np.abs(g) ** 2)) for g in gs))
    return [g * (max_norm / norm) if norm > max_norm else g for g in gs]


PEERS: list[Peer] = [
    optax(
        xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.AdamW(xopt.schedules.cosine(0.1, steps=10), weight_decay=0.5)),
        lambda o: o.chain(o.clip_by_global_norm(1.0), o.adamw(o.cosine_decay_schedule(0.1, 10), weight_decay=0.5)),
    ),
    optax(xopt.chain(xopt.ClipByValue(0.5), xopt.SGD(0.1)), lambda o: o.chain(o.clip(0.5), o.sgd(0.1))),
    optax(
        xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.SGD(0.1)), lambda o: o.chain(o.clip_by_global_norm(1.0), o.sgd(0.1))
    ),
]
