"""Errors of AdamW in float32, in units of the last place."""

from __future__ import annotations

import numpy as np

import xopt

U = 2.0**-24


def ulps(scale: float, t: int, seed: int, n: int = 500) -> tuple[float, float, float]:
    """Return the worst errors of p, v and m in step t, in units of u and of what the bounds are a multiple of."""
    rng = np.random.default_rng(seed)
    lr, wd, b1, b2, eps = 1e-2, 0.1, 0.9, 0.999, 1e-8
    draw = lambda: (rng.standard_normal(n) * scale).astype("float32")
    p, g, m = rng.standard_normal(n).astype("float32"), draw(), draw()
    v = (draw().astype("float64") ** 2).astype("float32")
    rule = xopt.AdamW(lr, weight_decay=wd)
    state = rule.init(p)._replace(step=t - 1, slots={"0.adamw.m": m, "0.adamw.v": v})
    new, after = rule.apply(p, g, state)
    assert after.step == t
    P, G, M, V = (x.astype("float64") for x in (p, g, m, v))
    terms = np.abs(b1 * M) + np.abs((1 - b1) * G)
    M, V = b1 * M + (1 - b1) * G, b2 * V + (1 - b2) * G**2
    c1, c2 = -np.expm1(t * np.log(b1)), -np.expm1(t * np.log(b2))
    root = np.sqrt(V / c2) + eps
    size = np.abs(P) + lr * terms / c1 / root + lr * wd * np.abs(P)
    least = 2.0**-149 / U  # numbers below 1e-38 have fewer bits
    worst = lambda x, want, bound: float(np.max(np.abs(x - want) / (U * (bound + least))))
    return (
        worst(new, P - lr * (M / c1 / root + wd * P), size),
        worst(after.slots["0.adamw.v"], V, V),
        worst(after.slots["0.adamw.m"], M, terms),
    )
