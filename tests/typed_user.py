"""A user's script for `mypy --strict`: what must type-check does, what is marked wrong is seen to be wrong."""

from __future__ import annotations

import numpy as np

import xopt

rule = xopt.AdamW(lr=xopt.schedules.cosine(0.1, steps=10), eps_mode="hat", weight_decay=0.1)
momentum = xopt.SGD(0.1, momentum=0.9, nesterov=True)
chained: xopt.Chain = xopt.chain(xopt.ClipByGlobalNorm(1.0), rule)

w = np.ones(3)
state: xopt.State = chained.init(w)
w, state = chained.apply(w, w, state, lr=0.1)
opt = xopt.Optimizer(w, chained, runner="eager")
opt.step(np.zeros(3))
changed: xopt.AdamW = rule.replace(lr=0.2)


class Lion(xopt.Rule):
    """A rule as a user writes it."""

    lr: xopt.rule.Hyper = xopt.hyper(default=1e-4, ge=0)
    b1: xopt.rule.Hyper = xopt.hyper(default=0.9, ge=0, lt=1)

    @staticmethod
    def update(h: xopt.rule.H, xp: xopt.rule.H, p: xopt.rule.Array, g: xopt.rule.Array, m: xopt.rule.Array = 0.0) -> tuple[xopt.rule.Array, ...]:  # fmt: skip  # noqa: E501
        """Return the step and the new momentum."""
        return -h.lr * xp.sign(h.b1 * m + (1 - h.b1) * g), h.b1 * m + (1 - h.b1) * g


Lion(lr=0.1, b1=0.5)


def wrong() -> None:
    """Make every mistake that the types catch; never called."""
    xopt.Adam(eps_mode="inisde")  # type: ignore[arg-type]
    xopt.Adam(learning_rate=0.1)  # type: ignore[call-arg]
    xopt.SGD(lr="0.1")  # type: ignore[arg-type]
    xopt.ClipByNorm()  # type: ignore[call-arg]
    xopt.schedules.cosine(0.1)  # type: ignore[call-arg]
    rule.lr = 0.1  # type: ignore[misc]
    Lion(beta=0.5)  # type: ignore[call-arg]
