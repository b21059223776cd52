"""Gradient descent with and without momentum."""

from __future__ import annotations

from typing import Any

import numpy as np

import xopt
from catalog.base import A, Peer, Row, S, decayed, optax, torch, torch_complex


@decayed
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
]  # fmt: skip

PEERS: list[Peer] = [
    torch(xopt.SGD(), "SGD"),
    torch(xopt.SGD(0.1, weight_decay=0.3), "SGD", lr=0.1, weight_decay=0.3),
    torch(xopt.SGD(0.1, 0.9, weight_decay=0.3), "SGD", lr=0.1, momentum=0.9, weight_decay=0.3),
    torch(xopt.SGD(0.1, 0.9, nesterov=True), "SGD", lr=0.1, momentum=0.9, nesterov=True),
    torch(xopt.SGD(0.1, 0.9, 0.4, maximize=True), "SGD", lr=0.1, momentum=0.9, dampening=0.4, maximize=True),
    torch(xopt.SGD(0.1, 0.9, 0.4), "SGD", lr=0.1, momentum=0.9, dampening=0.4),
    torch_complex(xopt.SGD(0.1, 0.9, complex="split"), "SGD", lr=0.1, momentum=0.9),
    optax(xopt.SGD(0.1), lambda o: o.sgd(0.1)),
    optax(xopt.SGD(0.1, 0.9), lambda o: o.sgd(0.1, momentum=0.9)),
    optax(xopt.SGD(0.1, 0.9, nesterov=True), lambda o: o.sgd(0.1, momentum=0.9, nesterov=True)),
    optax(xopt.SGD(0.05, 0.9, form="ema"), lambda o: o.chain(o.ema(0.9, debias=False), o.scale(-0.05))),
    optax(
        xopt.SGD(0.05, 0.9, weight_decay=0.3), lambda o: o.chain(o.add_decayed_weights(0.3), o.sgd(0.05, momentum=0.9))
    ),
    optax(
        xopt.SGD(0.05, 0.9, weight_decay=0.03, decay="independent"),
        lambda o: o.chain(o.sgd(0.05, momentum=0.9), o.add_decayed_weights(-0.03)),
    ),
]
