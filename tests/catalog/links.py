"""Components of chains: what each makes of a gradient, a step or new parameters, array by array, in float64.

An oracle takes lists of arrays and a dict of state that it fills itself. Those in front of a rule and behind it return
what they make of ``xs``; those after the step return the new parameters and what is read as them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import xopt
from catalog.base import A, Peer, S, optax

L = list[A]


def norm(xs: L) -> float:
    return float(np.sqrt(sum(float(np.sum(np.abs(x) ** 2)) for x in xs)))


def scale(ps: L, xs: L, gs: L, s: S, t: int, *, factor: Any) -> L:
    return [factor * x for x in xs]


def add_decay(ps: L, xs: L, gs: L, s: S, t: int, *, weight_decay: Any, decay: str) -> L:
    """Hanson & Pratt 1988; Loshchilov & Hutter 2019."""
    return [x + (weight_decay if decay == "l2" else -weight_decay) * p for p, x in zip(ps, xs, strict=True)]


def normalize(ps: L, xs: L, gs: L, s: S, t: int, *, eps: Any, over: str) -> L:
    if over == "leaf":
        return [normalize([p], [x], [], s, t, eps=eps, over="tree")[0] for p, x in zip(ps, xs, strict=True)]
    total = norm(xs) + eps
    return [x / total if total else x for x in xs]


def trust_ratio(ps: L, xs: L, gs: L, s: S, t: int, *, coefficient: Any, eps: Any, min_norm: Any) -> L:
    """You et al. 2020, Algorithm 2, with the constants of LARS."""
    out = []
    for p, x in zip(ps, xs, strict=True):
        top, below = max(norm([p]), min_norm), max(norm([x]), min_norm)
        out.append(x if top == 0 or below == 0 else coefficient * top / (below + eps) * x)
    return out


def cautious(ps: L, xs: L, gs: L, s: S, t: int, *, rescale: bool) -> L:
    """Liang et al. 2024, the authors' code: their u is subtracted."""
    out = []
    for x, g in zip(xs, gs, strict=True):
        mask = (np.real(-x * np.conj(g)) > 0).astype("f8")
        if rescale and mask.size:
            mask = mask / max(mask.mean(), 1e-3)
        out.append(x * mask)
    return out


def running(s: S, ps: L, share: float) -> L:
    """Move an average that starts at the first parameters."""
    s["a"] = [(1 - share) * a + share * p for a, p in zip(s["a"], ps, strict=True)]
    return s["a"]  # type: ignore[no-any-return]


def ema(old: L, ps: L, s: S, t: int, *, decay: Any, start: str, warmup: str, gamma: Any, power: Any) -> tuple[L, L]:
    """Kingma & Ba 2015, section 7.2; warm-up as in TensorFlow and in timm."""
    s.setdefault("a", old if start != "zero" else [0 * p for p in old])
    d = {
        "none": decay,
        "ratio": min(decay, (1 + t) / (10 + t)),
        "power": min(decay, 1 - (1 + (t - 1) / gamma) ** -power),
    }[warmup]
    if start == "first" and t == 1:
        d = 0.0
    s["w"] = s.get("w", 1.0) * d
    a = running(s, ps, 1 - d)
    return ps, [x / (1 - s["w"]) for x in a] if start == "zero" else a


def swa(old: L, ps: L, s: S, t: int, *, start: int, every: int) -> tuple[L, L]:
    """Izmailov et al. 2018, Algorithm 1: the mean of a list."""
    if t >= start and (t - start) % every == 0:
        s.setdefault("all", []).append(ps)
    return ps, [np.mean(x, axis=0) for x in zip(*s["all"], strict=True)] if t >= start else ps


def lookahead(old: L, ps: L, s: S, t: int, *, alpha: Any, k: int, start: str) -> tuple[L, L]:
    """Zhang et al. 2019, Algorithm 1."""
    s.setdefault("slow", old)
    if start == "first" and t <= k:
        s["slow"] = ps
    elif t % k == 0:
        s["slow"] = ps = [a + alpha * (p - a) for a, p in zip(s["slow"], ps, strict=True)]
    return ps, s["slow"]


def box(old: L, ps: L, s: S, t: int, *, low: Any, high: Any) -> tuple[L, L]:
    ps = [np.clip(p, -np.inf if low is None else low, np.inf if high is None else high) for p in ps]
    return ps, ps


def non_negative(old: L, ps: L, s: S, t: int) -> tuple[L, L]:
    return box(old, ps, s, t, low=0.0, high=None)


def l1(old: L, ps: L, s: S, t: int, *, strength: Any) -> tuple[L, L]:
    """Daubechies et al. 2004: the modulus shrinks, the phase stays."""
    size = [np.maximum(np.abs(p), 1e-300) for p in ps]
    ps = [p / a * np.maximum(a - strength, 0) for p, a in zip(ps, size, strict=True)]
    return ps, ps


def l2(old: L, ps: L, s: S, t: int, *, strength: Any) -> tuple[L, L]:
    ps = [p / (1 + strength) for p in ps]
    return ps, ps


def ball(old: L, ps: L, s: S, t: int, *, radius: Any, over: str) -> tuple[L, L]:
    if over == "leaf":
        ps = [ball([], [p], s, t, radius=radius, over="tree")[0][0] for p in ps]
    elif norm(ps) > radius:
        ps = [p * (radius / norm(ps)) for p in ps]
    return ps, ps


def simplex(old: L, ps: L, s: S, t: int, *, total: Any, axis: int | None) -> tuple[L, L]:
    """Duchi et al. 2008, Figure 1, vector by vector."""

    def one(v: A) -> A:
        u, best = np.sort(v)[::-1], 0.0
        for j in range(1, len(u) + 1):
            if u[j - 1] - (u[:j].sum() - total) / j > 0:
                best = (u[:j].sum() - total) / j
        return np.maximum(v - best, 0)

    ps = [
        p if p.size == 0 else one(p.ravel()).reshape(p.shape) if axis is None else np.apply_along_axis(one, axis, p)
        for p in ps
    ]
    return ps, ps


def centre(p: Any) -> Any:
    """Subtract half: a function of one's own."""
    return p - 0.5 * abs(p)


def project(old: L, ps: L, s: S, t: int, *, function: Any) -> tuple[L, L]:
    ps = [p - 0.5 * np.abs(p) for p in ps]
    return ps, ps


class Link(NamedTuple):
    """What is known of one link."""

    link: type[xopt.Transform]
    reference: Any
    place: str
    """"front", "behind" or "after"."""
    options: list[dict[str, Any]]
    """Keyword arguments; between them every field is given."""
    refused: list[dict[str, Any]]
    state: tuple[str, ...] = ()
    complex: bool = True


LINKS = [
    Link(xopt.Scale, scale, "behind", [{"factor": 0.5}, {"factor": -2.0}], [{}, {"factor": None}]),
    Link(xopt.Scale, scale, "front", [{"factor": 0.5}], []),
    Link(xopt.AddDecay, add_decay, "front", [{"weight_decay": 0.3}, {"weight_decay": 0.6}], [{"weight_decay": -0.1}]),
    Link(
        xopt.AddDecay,
        add_decay,
        "behind",
        [{"weight_decay": 0.03, "decay": "independent"}],
        [{"weight_decay": 0.1, "decay": "lr"}],
    ),
    Link(
        xopt.Normalize,
        normalize,
        "front",
        [{}, {"over": "leaf"}, {"eps": 0.5}, {"eps": 0.0}],
        [{"eps": -1.0}, {"over": "axis"}],
    ),
    Link(xopt.Normalize, normalize, "behind", [{"over": "leaf", "eps": 0.0}], []),
    Link(
        xopt.TrustRatio,
        trust_ratio,
        "behind",
        # of one element, a step as long as the parameter leaves 0 or a rounding error: the default is tried as LAMB
        [{"coefficient": 0.2}, {"coefficient": 0.2, "eps": 0.5}, {"coefficient": 0.2, "min_norm": 1.5}],
        [{"coefficient": 0.0}, {"eps": -1.0}, {"min_norm": -1.0}],
    ),
    Link(xopt.TrustRatio, trust_ratio, "front", [{"coefficient": 0.1}], []),
    Link(xopt.Cautious, cautious, "behind", [{}, {"rescale": False}], [{"rescale": 1}]),
    Link(
        xopt.EMA,
        ema,
        "after",
        [
            {"decay": 0.9},
            {},
            {"decay": 0.9, "start": "first"},
            {"decay": 0.9, "start": "zero"},
            {"decay": 0.5, "warmup": "ratio"},
            {"decay": 0.9, "warmup": "power"},
            {"decay": 0.9, "warmup": "power", "gamma": 3.0},
            {"decay": 0.9, "warmup": "power", "power": 0.75},
            {"decay": xopt.schedules.polynomial(0.1, steps=10, end=0.9), "start": "zero"},
            {"decay": 0.0, "start": "zero"},
            {"decay": 0.7, "start": "first", "warmup": "ratio"},
        ],
        [
            {"decay": 1.1},
            {"start": "last"},
            {"warmup": "half"},
            {"gamma": 2.0},
            {"power": 0.5},
            {"warmup": "power", "gamma": 0.0},
        ],
        ("average",),
    ),
    Link(
        xopt.SWA,
        swa,
        "after",
        [{"start": 3, "every": 2}, {}, {"start": 5}, {"every": 3}],
        [{"start": 0}, {"every": 0}, {"every": 1.5}],
        ("average",),
    ),
    Link(
        xopt.Lookahead,
        lookahead,
        "after",
        [{"k": 2}, {}, {"k": 2, "alpha": 0.8}, {"k": 3, "start": "first"}, {"k": 1, "alpha": 0.25}],
        [{"k": 0}, {"alpha": 1.5}, {"start": "zero"}],
        ("slow",),
    ),
    Link(
        xopt.Box,
        box,
        "after",
        [{"low": -0.3, "high": 0.4}, {"low": 0.1}, {"high": 0.2}],
        [{}, {"low": 1.0, "high": 0.0}, {"low": "a"}],
        complex=False,
    ),
    Link(xopt.NonNegative, non_negative, "after", [{}], [{"low": 1.0}], complex=False),
    Link(xopt.L1, l1, "after", [{"strength": 0.05}, {"strength": 0.0}], [{}, {"strength": -1.0}]),
    Link(xopt.L2, l2, "after", [{"strength": 0.05}], [{}, {"strength": -1.0}]),
    Link(
        xopt.Ball,
        ball,
        "after",
        [{"radius": 2.0}, {"radius": 0.7, "over": "leaf"}],
        [{}, {"radius": 0.0}, {"over": "row", "radius": 1.0}],
    ),
    Link(
        xopt.Simplex,
        simplex,
        "after",
        [{}, {"total": 2.5}],
        [{"total": 0.0}, {"axis": 0.5}, {"axis": True}],
        complex=False,
    ),
    Link(xopt.Project, project, "after", [{"function": centre}], [{}, {"function": 3}, {"function": list}]),
]


def _sgd(o: Any, lr: float) -> Any:
    return o.sgd(lr, momentum=0.9)


PEERS: list[Peer] = [
    optax(
        xopt.chain(xopt.Adam(lr=1.0), xopt.AddDecay(0.1, decay="independent"), xopt.TrustRatio(), xopt.Scale(0.05)),
        lambda o: o.lamb(0.05, weight_decay=0.1, eps=1e-8),
    ),
    optax(
        xopt.chain(xopt.AddDecay(0.1), xopt.TrustRatio(0.01), xopt.SGD(0.5, momentum=0.9, form="lr_inside")),
        lambda o: o.lars(0.5, weight_decay=0.1, trust_coefficient=0.01, momentum=0.9),
    ),
    optax(
        xopt.chain(xopt.SGD(1.0, momentum=0.9), xopt.TrustRatio(0.5, 0.1, 0.3), xopt.Scale(0.1)),
        lambda o: o.chain(o.sgd(1.0, momentum=0.9), o.scale_by_trust_ratio(0.3, 0.5, 0.1), o.scale(0.1)),
    ),
    optax(
        xopt.chain(xopt.AddDecay(0.3), xopt.SGD(0.1, momentum=0.9)),
        lambda o: o.chain(o.add_decayed_weights(0.3), _sgd(o, 0.1)),
    ),
    optax(
        xopt.chain(xopt.Adam(lr=1.0), xopt.AddDecay(0.3, decay="independent"), xopt.Scale(0.05)),
        lambda o: o.adamw(0.05, weight_decay=0.3),
    ),
    optax(
        xopt.chain(xopt.Normalize(), xopt.SGD(0.1, momentum=0.9)),
        lambda o: o.chain(o.normalize_by_update_norm(), _sgd(o, 0.1)),
    ),
    optax(
        xopt.chain(xopt.SGD(0.1), xopt.Normalize(eps=0.5), xopt.Scale(0.3)),
        lambda o: o.chain(o.sgd(0.1), o.normalize_by_update_norm(0.3, 0.5)),
    ),
    optax(
        xopt.chain(xopt.SGD(0.1, momentum=0.9), xopt.NonNegative()),
        lambda o: o.chain(_sgd(o, 0.1), o.keep_params_nonnegative()),
    ),
]
