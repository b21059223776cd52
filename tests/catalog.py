"""One row a rule: options, options that must be refused, a rate, and the oracle: the rule again in plain NumPy.

An oracle is written from the paper in float64 (or complex128), slow and readable; nothing in it comes from the package.
It takes parameters, gradient, a dict of state that it fills itself, the step t = 1, 2, …, and the hyperparameters by
name, and returns the new parameters.

A public rule without a row fails `test_rules.py`. To add a rule, add it to a file of `xopt/rules`, and its row and
oracle here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import xopt

A = Any
S = dict[str, Any]


def _decayed(step: Any) -> Any:
    """Add the three kinds of weight decay, and maximisation, around a rule."""

    def whole(p: A, g: A, s: S, t: int, *, weight_decay: Any, decay: str, maximize: bool, complex: str, **h: Any) -> A:
        del complex  # the test calls split parts one by one
        if maximize:
            g = -g
        w = 0.0 if weight_decay is None else weight_decay
        if decay == "l2":
            return step(p, g + w * p, s, t, **h)
        factor = h["lr"] if decay == "lr" else 1.0
        return step(p, g, s, t, **h) - factor * w * p

    whole.__name__ = step.__name__
    return whole


@_decayed
def sgd(p: A, g: A, s: S, t: int, *, lr: Any, momentum: Any, dampening: Any, nesterov: bool, form: str) -> A:
    """Polyak 1964, Nesterov 1983 in the forms of torch, Keras and of an exponential average."""
    if momentum is None:
        return p - lr * g
    tau = 0.0 if dampening is None or t == 1 else dampening
    m = s.get("m", np.zeros_like(p))
    if form == "lr_outside":
        m = momentum * m + (1 - tau) * g
        new = p - lr * (g + momentum * m) if nesterov else p - lr * m
    elif form == "lr_inside":
        m = momentum * m - (1 - tau) * lr * g
        new = p + momentum * m - lr * g if nesterov else p + m
    else:
        m = momentum * m + (1 - momentum) * g
        new = p - lr * (momentum * m + (1 - momentum) * g) if nesterov else p - lr * m
    s["m"] = m
    return new


@_decayed
def adagrad(p: A, g: A, s: S, t: int, *, lr: Any, eps: Any, eps_mode: str, initial: float) -> A:
    """Duchi, Hazan & Singer 2011, Figure 1."""
    s["v"] = s.get("v", np.full(p.shape, initial)) + np.abs(g) ** 2
    return p - lr * g / (np.sqrt(s["v"] + eps) if eps_mode == "inside" else np.sqrt(s["v"]) + eps)


@_decayed
def adadelta(p: A, g: A, s: S, t: int, *, lr: Any, rho: Any, eps: Any) -> A:
    """Zeiler 2012, Algorithm 1."""
    zero = np.zeros(p.shape)
    s["v"] = rho * s.get("v", zero) + (1 - rho) * np.abs(g) ** 2
    d = np.sqrt(s.get("u", zero) + eps) / np.sqrt(s["v"] + eps) * g
    s["u"] = rho * s.get("u", zero) + (1 - rho) * np.abs(d) ** 2
    return p - lr * d


@_decayed
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


@_decayed
def adam(
    p: A, g: A, s: S, t: int, *, lr: Any, b1: Any, b2: Any, eps: Any, amsgrad: bool, eps_mode: str, bias: str
) -> A:
    """Kingma & Ba 2015, Algorithm 1; AMSGrad as Reddi et al. 2018, Algorithm 2, on the uncorrected v."""
    s["m"] = b1 * s.get("m", np.zeros_like(p)) + (1 - b1) * g
    s["v"] = b2 * s.get("v", np.zeros(p.shape)) + (1 - b2) * np.abs(g) ** 2
    v = s["v"]
    if amsgrad:
        v = s["top"] = np.maximum(s.get("top", np.zeros(p.shape)), v)
    k = 1 if bias == "first" else t
    c1, c2 = (1.0, 1.0) if bias == "none" else (1 - b1**k, 1 - b2**k)
    m_hat, v_hat = s["m"] / c1, v / c2
    if eps_mode == "inside":
        return p - lr * m_hat / np.sqrt(v_hat + eps)
    if eps_mode == "hat":
        return p - lr * m_hat * np.sqrt(c2) / (np.sqrt(v) + eps)
    return p - lr * m_hat / (np.sqrt(v_hat) + eps)


adamw = adam


def direction(x: A) -> A:
    """Take the sign, of a complex number its phase."""
    return np.where(x == 0, 0, x / np.where(x == 0, 1, np.abs(x)))


@_decayed
def signsgd(p: A, g: A, s: S, t: int, *, lr: Any) -> A:
    """Bernstein et al. 2018, Algorithm 1."""
    return p - lr * direction(g)


@_decayed
def signum(p: A, g: A, s: S, t: int, *, lr: Any, momentum: Any) -> A:
    """Bernstein et al. 2018, Algorithm 2."""
    s["m"] = momentum * s.get("m", np.zeros_like(p)) + (1 - momentum) * g
    return p - lr * direction(s["m"])


@_decayed
def lion(p: A, g: A, s: S, t: int, *, lr: Any, b1: Any, b2: Any) -> A:
    """Chen et al. 2023, Algorithm 2."""
    m = s.get("m", np.zeros_like(p))
    s["m"] = b2 * m + (1 - b2) * g
    return p - lr * direction(b1 * m + (1 - b1) * g)


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


class Row(NamedTuple):
    """What is known of one rule."""

    rule: type[xopt.Rule]
    reference: Callable[..., Any]
    options: list[dict[str, Any]]
    """Keyword arguments; between them every field is changed from its default. lr is added where it is missing."""
    refused: list[dict[str, Any]]
    """Keyword arguments that must raise ValueError or TypeError."""
    lr: float
    """A learning rate at which 20 steps show every term."""


COMMON: list[dict[str, Any]] = [
    {"weight_decay": 0.3},
    {"weight_decay": 0.3, "decay": "lr"},
    {"weight_decay": 0.03, "decay": "independent"},
    {"maximize": True, "weight_decay": 0.3},
]
COMMON_REFUSED: list[dict[str, Any]] = [
    {"lr": -1e-9},
    {"lr": float("nan")},
    {"lr": float("inf")},
    {"lr": True},
    {"lr": "0.1"},
    {"lr": None},
    {"lr": 1j},
    {"weight_decay": -0.1},
    {"decay": "lr", "weight_decay": None},
    {"decay": "cosine", "weight_decay": 0.1},
    {"maximize": 1},
    {"complex": "polar"},
    {"learning_rate": 0.1},
]

ROWS = [
    Row(
        xopt.SGD,
        sgd,
        [
            {},
            {"momentum": 0.9},
            {"momentum": 0.9, "nesterov": True},
            {"momentum": 0.9, "dampening": 0.4},
            {"momentum": 0.9, "form": "lr_inside"},
            {"momentum": 0.9, "form": "lr_inside", "nesterov": True, "dampening": 0.4},
            {"momentum": 0.9, "form": "ema"},
            {"momentum": 0.9, "form": "ema", "nesterov": True},
        ],
        [
            {"momentum": 1.0},
            {"momentum": -0.1},
            {"nesterov": True},
            {"dampening": 0.5},
            {"form": "ema"},
            {"momentum": 0.9, "form": "ema", "dampening": 0.1},
            {"momentum": 0.9, "dampening": 1.1},
            {"momentum": 0.9, "form": "heavy"},
        ],
        0.05,
    ),
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
    Row(
        xopt.Adam,
        adam,
        [
            {},
            {"b1": 0.5},
            {"b1": 0.0},
            {"b2": 0.9},
            {"eps": 0.1},
            {"eps": 0.1, "eps_mode": "inside"},
            {"eps": 0.1, "eps_mode": "hat"},
            {"bias": "first"},
            {"bias": "none"},
            {"amsgrad": True, "b2": 0.9},
        ],
        [{"b1": 1.0}, {"b2": 1.0}, {"b2": -0.1}, {"eps_mode": "under"}, {"bias": "half"}, {"amsgrad": 0}],
        0.05,
    ),
    Row(
        xopt.AdamW,
        adamw,
        [{}, {"b1": 0.5}, {"b2": 0.9}, {"eps": 0.1}, {"eps": 0.1, "eps_mode": "hat"}, {"bias": "none"},
         {"amsgrad": True, "b2": 0.9}],
        [{"b1": 1.0}, {"weight_decay": None}],
        0.05,
    ),
    Row(xopt.SignSGD, signsgd, [{}], [], 0.05),
    Row(xopt.Signum, signum, [{}, {"momentum": 0.5}], [{"momentum": 1.0}, {"momentum": None}], 0.05),
    Row(xopt.Lion, lion, [{}, {"b1": 0.999}, {"b1": 0.99, "b2": 0.5}], [{"b1": 1.0}, {"b2": -0.1}], 0.02),
]  # fmt: skip


def rules() -> list[Any]:
    """Return every rule with every set of options, named for pytest."""
    made = []
    for row in ROWS:
        for options in [*row.options, *COMMON]:
            name = "-".join([row.rule.__name__, *(f"{k}={v}" for k, v in options.items())])
            made.append(pytest.param(row, row.rule(**{"lr": row.lr, **options}), id=name))
    return made


def fields(rule: xopt.Rule) -> dict[str, Any]:
    """Return all fields of a rule as the oracle takes them."""
    return {name: getattr(rule, name) for name in type(rule)._fields}
