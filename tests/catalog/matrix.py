"""Rules that take a matrix for a matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
from support.newton_schulz import FIVE, POLAR_EXPRESS, applied, cans

import xopt
from catalog.adam import adam
from catalog.base import A, Peer, Row, S, decayed, fields, keras, optax
from catalog.sgd import sgd


def polynomials(h: dict[str, Any]) -> list[Any]:
    """Return a, b, c of each step, from the published table where that has a name."""
    if h["coefficients"] is None:
        return [(h["a"], h["b"], h["c"])] * h["ns_steps"]
    given = cans(min(8, h["ns_steps"])) if h["coefficients"] == "cans" else h["coefficients"]
    *rows, last = POLAR_EXPRESS if given == "polar_express" else given
    safety = (1.01 if h["coefficients"] == "polar_express" else 1.0) if h["safety"] is None else h["safety"]
    rows = [(a / safety, b / safety**3, c / safety**5) for a, b, c in rows]
    return [*rows, *[last] * h["ns_steps"]][: h["ns_steps"]]


def momentum(p: A, g: A, s: S, t: int, *, momentum: Any, nesterov: bool, form: str, **_: Any) -> A:
    """Return what is made orthogonal."""
    mu, m = momentum, s.get("m", np.zeros_like(p))
    if form == "sum":
        m = mu * m + g
        u = g + mu * m if nesterov else m
    else:
        m = mu * m + (1 - mu) * g
        u = (1 - mu) * g + mu * m if nesterov else m
    if form == "corrected":
        u = (1 - mu) * g / (1 - mu**t) + mu * m / (1 - mu ** (t + 1)) if nesterov else m / (1 - mu**t)
    s["m"] = m
    return u


def orthogonal(u: A, h: dict[str, Any]) -> A:
    """Jordan et al. 2024, in exact arithmetic: the iteration is a polynomial of the singular values."""
    left, x, right = np.linalg.svd(u, full_matrices=False)
    size = np.linalg.norm(u)
    x = applied(polynomials(h), x / (size + h["eps"] if h["eps_mode"] == "add" else max(size, h["eps"])))
    return (left * x) @ right


def factor(rows: int, cols: int, *, scale: str, rms: Any, **_: Any) -> Any:
    """Return s."""
    rows, cols = max(1, rows), max(1, cols)
    return {
        "original": np.sqrt(max(1, rows / cols)),
        "in_out": np.sqrt(max(1, cols / rows)),
        "ratio": np.sqrt(rows / cols),
        "match_rms": (0.2 if rms is None else rms) * np.sqrt(max(rows, cols)),
        "none": 1.0,
    }[scale]


def each(u: A, matrices: str, function: Any) -> A:
    """Apply a function of a matrix, and its number, to all that a leaf has."""
    if u.ndim > 2 and matrices == "batched":
        return np.stack([each(x, matrices, lambda y, k, i=i: function(y, (i, *k))) for i, x in enumerate(u)])
    flat = {"out_in": u.reshape(len(u), -1), "in_out": u.reshape(-1, u.shape[-1])} if u.ndim > 2 else {}
    return function(flat.get(matrices, u), ()).reshape(u.shape)


@decayed
def matrix(p: A, g: A, s: S, t: int, *, lr: Any, matrices: str, **h: Any) -> A:
    """Jordan et al. 2024."""
    u = momentum(p, g, s, t, **h)
    return p - lr * each(u, matrices, lambda x, k: factor(*x.shape, **h) * orthogonal(x, h))


@decayed
def neurons(p: A, g: A, s: S, t: int, *, lr: Any, matrices: str, b2: Any, eps2: Any, units: str, **h: Any) -> A:
    """Li et al. 2025, Algorithm 1; and their code, which keeps the norm."""
    vs = s.setdefault("v", {})

    def one(x: A, k: Any) -> A:
        o = orthogonal(x, h)
        o = o if units == "first" else o.T
        vs[k] = b2 * vs.get(k, 0.0) + (1 - b2) * np.asarray([np.mean(np.abs(row) ** 2) if row.size else 0 for row in o])
        y = o / (np.sqrt(vs[k]) + eps2)[:, None]
        y = y if units == "first" else y.T
        rms = 0.2 if h["rms"] is None else h["rms"]
        if h["scale"] == "match_rms":
            return rms * np.sqrt(y.size) * y / (np.linalg.norm(y) + eps2)
        return factor(*x.shape, **h) * np.linalg.norm(o) * y / (np.linalg.norm(y) + eps2)

    return p - lr * each(momentum(p, g, s, t, **h), matrices, one)


def muon(p: A, g: A, s: S, t: int, *, other: Any, rule: Any = matrix, **h: Any) -> A:
    """Muon for matrices; Adam with the same rate, or another rule, for the rest."""
    if p.ndim == 2 or (p.ndim > 2 and h["matrices"] != "2d"):
        return rule(p, g, s, t, **h)
    if other is None:
        same = {n: h[n] for n in ("lr", "weight_decay", "decay", "peak_lr", "maximize", "complex")}
        return adam(p, g, s, t, b1=0.9, b2=0.999, eps=1e-8, amsgrad=False, eps_mode="outside", bias="standard", **same)
    own = {**fields(other), "maximize": h["maximize"], "complex": h["complex"]}
    return {xopt.SGD: sgd, xopt.AdamW: adam}[type(other)](p, g, s, t, **own)


def normuon(*args: Any, **h: Any) -> A:
    return muon(*args, rule=neurons, **h)


ROWS = [
    Row(
        xopt.Muon,
        muon,
        [
            {},
            {"momentum": 0.5},
            {"a": 3.0, "b": -3.2, "c": 1.2},
            {"ns_steps": 2, "eps": 0.1},
            {"eps": 0.1, "eps_mode": "max"},
            {"nesterov": False},
            {"form": "sum", "eps": 0.1},
            {"form": "sum", "eps": 0.1, "nesterov": False},
            {"form": "corrected"},
            {"form": "corrected", "nesterov": False},
            {"rms": 0.5},
            {"scale": "original"},
            {"scale": "in_out"},
            {"scale": "ratio"},
            {"scale": "none"},
            {"coefficients": "polar_express"},
            {"coefficients": "cans", "ns_steps": 3},  # five are so steep that float32 loses three digits more
            {"coefficients": "cans", "ns_steps": 2, "safety": 1.01},
            {"coefficients": (1.875, -1.25, 0.375)},
            {"coefficients": FIVE, "ns_steps": 4, "safety": 1.1},
            {"coefficients": "polar_express", "ns_steps": 9, "safety": 1.0},
            {"matrices": "batched"},
            {"matrices": "out_in", "scale": "original"},
            {"matrices": "in_out", "scale": "in_out"},
            {"other": xopt.AdamW(0.02, b1=0.5, weight_decay=0.1)},
            {"other": xopt.SGD(0.05, momentum=0.5)},
        ],
        [
            {"momentum": 1.0},
            {"eps": 0.0},
            {"ns_steps": 0},
            {"ns_steps": 2.0},
            {"form": "mean"},
            {"scale": "match_rms_adamw"},
            {"scale": "none", "rms": 0.3},
            {"rms": -0.1},
            {"eps_mode": "clamp"},
            {"other": xopt.SGD},
            {"other": xopt.ClipByNorm(1.0)},
            {"maximize": True, "other": xopt.SGD(0.1, maximize=False)},
            {"complex": "split", "other": xopt.SGD(0.1, complex="modulus")},
            {"coefficients": "cubic"},
            {"coefficients": (1.0, 2.0)},
            {"coefficients": ()},
            {"coefficients": 3.0},
            {"coefficients": ((1.0, 2.0, 3.0), (1.0, 2.0, float("nan")))},
            {"coefficients": ((1.0, 2.0, "3"),)},
            {"coefficients": (10**400, 2.0, 3.0)},
            {"coefficients": b"abc"},
            {"coefficients": {1.0, 2.0, 3.0}},
            {"coefficients": "cans", "a": 3.0},
            {"b": None},
            {"safety": 1.1},
            {"coefficients": "cans", "safety": 0.9},
            {"coefficients": (3.0, -3.2, 1.2), "safety": 1.1},
            {"matrices": "3d"},
        ],
        0.05,
    ),
    Row(
        xopt.NorMuon,
        normuon,
        [
            {},
            {"momentum": 0.5, "nesterov": False},
            {"a": 3.0, "b": -3.2, "c": 1.2},
            {"eps": 0.1, "ns_steps": 2},
            {"eps": 0.1, "eps_mode": "max"},
            {"form": "sum", "eps": 0.1},
            {"b2": 0.5},
            {"eps2": 0.1},
            {"eps2": 0.1, "scale": "original"},
            {"rms": 0.5, "units": "last"},
            {"scale": "in_out", "units": "last"},
            {"matrices": "batched", "coefficients": "polar_express", "safety": 1.02},
            {"matrices": "out_in", "scale": "none"},
            {"matrices": "in_out", "units": "last"},
            {"other": xopt.SGD(0.05, momentum=0.5), "coefficients": "cans", "ns_steps": 3},
        ],
        [
            {"b2": 1.0},
            {"eps2": 0.0},
            {"units": "rows"},
            {"scale": "none", "rms": 0.3},
            {"coefficients": "cans", "a": 3.0},
            {"maximize": True, "other": xopt.SGD(0.1, maximize=False)},
        ],
        0.05,
    ),
]  # fmt: skip

FULL = ((4, 3), (3, 5), (1, 6), (2, 3, 4), (5,), ())  # optax divides by the sizes
MATRICES = FULL[:3]

PEERS: list[Peer] = [
    optax(xopt.Muon(0.05, eps=1e-8, form="corrected", scale="in_out"), lambda o: o.contrib.muon(0.05))._replace(
        shapes=MATRICES  # optax has Adam with Nesterov's momentum for the rest
    ),
    optax(
        xopt.Muon(0.05, eps=1e-8, form="corrected", scale="in_out", nesterov=False),
        lambda o: o.contrib.muon(0.05, nesterov=False),
    )._replace(shapes=FULL),
    optax(
        xopt.Muon(
            0.05, 0.8, form="corrected", eps=1e-8, scale="match_rms", rms=0.3, ns_steps=3, weight_decay=0.3,
            other=xopt.Adam(0.1, b1=0.7, b2=0.9, eps=1e-8, weight_decay=0.4, decay="lr"),
            nesterov=False,
        ),
        lambda o: o.contrib.muon(
            0.05, beta=0.8, consistent_rms=0.3, ns_steps=3, weight_decay=0.3, nesterov=False,
            adam_learning_rate=0.1, adam_b1=0.7, adam_b2=0.9, adam_weight_decay=0.4,
        ),
    ),
    optax(
        xopt.Muon(0.05, eps=1e-8, form="corrected", scale="in_out", coefficients=FIVE),
        lambda o: o.contrib.muon(0.05, ns_coeffs="dion"),
    )._replace(shapes=MATRICES),
    *(
        optax(
            xopt.Muon(0.05, eps=1e-8, form="corrected", scale="in_out", matrices=matrices),
            lambda o, axes=axes: o.contrib.muon(
                0.05, muon_weight_dimension_numbers=lambda ps: [o.contrib.MuonDimensionNumbers(*axes) for _ in ps]
            ),
        )._replace(shapes=((2, 3, 4), (3, 4, 2)))
        for matrices, axes in (("batched", (1, 2)), ("in_out", ((0, 1), 2)), ("out_in", (0, (1, 2))))
    ),
    keras(
        xopt.Muon(
            0.0625, 0.9375, form="sum", rms=0.25, weight_decay=0.25,
            other=xopt.AdamW(0.0625, eps=1e-7, eps_mode="hat", weight_decay=0.3),
        ),
        "Muon", rtol=1e-5,  # its norm is one of float32, whatever the parameters
        learning_rate=0.0625, momentum=0.9375, rms_rate=0.25, weight_decay=0.25, adam_weight_decay=0.3,
    ),
]  # fmt: skip
