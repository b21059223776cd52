"""Components that may hold a step back: what comes behind them then keeps its state, and the parameters stay.

Such a component (``gates = True``) says by ``h.go``, 1 or 0, whether the step is taken; its ``clock`` tells the
components behind it which step theirs is. Nothing is looked at: where only a device knows, a selection is made there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from xopt._engine.program.contract import chosen
from xopt.rule._component import Array, Component, H
from xopt.rule._fields import static


class Accumulation(Component):
    """Add gradients up, and let every k-th pass with the mean or the sum of the last k."""

    every: int = static(ge=1)
    total: Literal["mean", "sum"] = "mean"
    gates = True

    def _label(self) -> str:
        return "accumulate"

    @staticmethod
    def clock(h: H, t: Any, carry: dict[str, Any]) -> Any:
        return (t - 1) // h.every + 1

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        return {"go": xp.where(h.t % h.every == 0, 1.0, 0.0)}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, gradient: Array = 0.0) -> tuple[Array, ...]:
        gradient = gradient + (g / h.every if h.total == "mean" else g)
        return gradient, chosen(xp, h.go, None, gradient)


def _bad(h: H, xp: Any, p: Array, g: Array) -> dict[str, Array]:
    """Count what is not finite."""
    size = xp.abs(g)
    return {"bad": xp.where(xp.isfinite(g), xp.minimum(size, 0.0), 1.0)}


class SkipNonFinite(Component):
    """Hold a step back when any gradient has an element that is not finite."""

    gates = True
    carry: ClassVar[Mapping[str, float | str]] = {"skipped": 0.0}
    metrics: ClassVar[Mapping[str, str]] = {"skipped_steps": "skipped"}
    reduce = staticmethod(_bad)

    def _label(self) -> str:
        return "nonfinite"

    @staticmethod
    def clock(h: H, t: Any, carry: dict[str, Any]) -> Any:
        return t - carry["skipped"]

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        go = xp.where(h.bad > 0, 0.0, 1.0)
        return {"go": go, "skipped": h.skipped + (1 - go)}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return g


class LossScaling(SkipNonFinite):
    """Divide the gradients of a scaled loss, and hold a step back when they overflowed: the scale then goes down."""

    initial: float = static(default=2.0**16, ge=2.0**-126, le=2.0**126)
    growth: float = static(default=2.0, ge=1)
    backoff: float = static(default=0.5, gt=0, le=1)
    every: int = static(default=2000, ge=1, le=2**24)
    least: float = static(default=1.0, ge=2.0**-126, le=2.0**126)
    most: float = static(default=2.0**24, ge=2.0**-126, le=2.0**126)
    carry: ClassVar[Mapping[str, float | str]] = {"scale": "initial", "good": 0.0, "skipped": 0.0}
    metrics: ClassVar[Mapping[str, str]] = {"loss_scale": "scale", "skipped_steps": "skipped"}

    def _label(self) -> str:
        return "lossscale"

    def _check(self) -> None:
        for n, x, idle in [("growth", self.growth, ("every", "most")), ("backoff", self.backoff, ("least",))]:
            for other in idle:
                if x == 1 and getattr(self, other) != self._fields[other].default:
                    raise ValueError(f"LossScale: {other} does nothing with {n}=1")
        low, high = self.least if self.backoff < 1 else 0.0, self.most if self.growth > 1 else math.inf
        if not low <= self.initial <= high:
            raise ValueError(f"LossScale: initial={self.initial!r} is not between least and most, {low!r} and {high!r}")

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        go = xp.where(h.bad > 0, 0.0, 1.0)
        good = go * (h.good + 1)
        lower = xp.maximum(h.scale * h.backoff, h.least) if h.backoff < 1 else h.scale
        higher = xp.minimum(h.scale * h.growth, h.most) if h.growth > 1 else h.scale
        return {
            "go": go,
            "inverse": 1 / h.scale,
            "scale": xp.where(h.bad > 0, lower, xp.where(good >= h.every, higher, h.scale)),
            "good": xp.where(good >= h.every, 0.0, good),
            "skipped": h.skipped + (1 - go),
        }

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return h.inverse * g


class RaiseNonFinite(Component):
    """Refuse a gradient with an element that is not finite, by its name; that needs a look at the sums."""

    scope = "leaf"
    reduce = staticmethod(_bad)
    refuses = "bad"

    def _label(self) -> str:
        return "nonfinite"

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return g


class ZeroNonFinite(Component):
    """Take 0 for what is not finite."""

    def _label(self) -> str:
        return "nonfinite"

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return xp.where(xp.isfinite(g), g, 0.0)


NONFINITE = {"skip": SkipNonFinite, "raise": RaiseNonFinite, "zero": ZeroNonFinite}
