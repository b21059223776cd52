"""Rules of no library, for what the rules of xopt do not need."""

from __future__ import annotations

from typing import Any

from xopt.rule import Array, H, Hyper, Rule, hyper


class Root(Rule):
    """A root of complex numbers has no form in single reals here."""

    lr: Hyper = hyper(default=0.1)
    inexact = True

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, m: Array = 1.0) -> tuple[Array, ...]:
        m = m + xp.sqrt(g)
        return -h.lr * m, m
