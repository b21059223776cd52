"""Rules that keep their state in 8 bits."""

from __future__ import annotations

from typing import Any

import xopt
from xopt.rule import Hyper, abs2, hyper


class Reading(xopt.Rule):
    """A rule that sums what it keeps in codes."""

    lr: Hyper = hyper(default=0.1, ge=0)
    moments = {"m": "signed"}

    @staticmethod
    def reduce(h: Any, xp: Any, p: Any, g: Any, m: Any = 0.0) -> dict[str, Any]:
        return {"norm": abs2(xp, 0.9 * m + g)}

    @staticmethod
    def update(h: Any, xp: Any, p: Any, g: Any, m: Any = 0.0) -> Any:
        m = 0.9 * m + g
        return -h.lr * m / (1 + h.norm) ** 0.5, m


def coded(rule: Any, **more: Any) -> Any:
    return xopt.Precision(rule, state_dtype="int8", **more)


RULES = [
    coded(xopt.Adam(lr=xopt.schedules.cosine(0.1, steps=10), amsgrad=True)),
    coded(xopt.Lion(lr=0.1, weight_decay=0.1), rounding="stochastic", seed=3),
    coded(xopt.chain(xopt.ClipByGlobalNorm(35.0), xopt.AdamW(lr=0.1), xopt.EMA(0.9)), master_weights=True),
    coded(xopt.Guard(xopt.SGD(lr=0.1, momentum=0.9, dampening=0.1, nesterov=True), "skip"), rounding="kahan"),
    coded(xopt.Accumulate(Reading(), every=2)),
    coded(xopt.RMSProp(lr=0.1, momentum=0.9, initial=0.3)),
]
IDS = ["Adam", "Lion", "chain", "SGD", "Reading", "RMSProp"]
