"""What the kernels of the cuda runner are built for, and how complex numbers are compared."""

from __future__ import annotations

from typing import Any

import catalog
import numpy as np

import xopt

DTYPES = ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]


MODES = ("modulus", "split")


def of(rule: Any, mode: str) -> Any:
    """Return a rule or the chain with complex numbers taken as said."""
    if isinstance(rule, xopt.Rule):
        return rule.replace(complex=mode)
    if isinstance(rule, xopt.Precision):
        return xopt.Precision(of(rule.rule, mode), **rule._first._values())
    if isinstance(rule, xopt.Accumulate):
        return xopt.Accumulate(of(rule.rule, mode), every=2)
    if isinstance(rule, xopt.Guard):
        return xopt.Guard(of(rule.rule, mode), "skip")
    if isinstance(rule, xopt.LossScale):
        return xopt.LossScale(of(rule.rule, mode), initial=4.0, every=1)
    return xopt.chain(*(p.replace(complex=mode) if isinstance(p, xopt.Rule) else p for p in rule.parts))


EVERY = [row.make(**o) for row in catalog.TRACED for o in [*row.options, *catalog.COMMON]]


def near(x: Any, y: Any) -> bool:
    """Compare complex numbers, which NumPy rounds elsewhere: a product of two has three roundings here, there two."""
    if "complex" not in x.dtype.name:
        return bool(np.allclose(x, y, rtol=64 * np.finfo(y.dtype).eps, atol=0, equal_nan=True))
    bound = 64 * np.finfo(y.dtype).eps * np.maximum(np.abs(y), 0.1)
    return bool((np.abs(x - y) <= bound).all())


class Inexact(xopt.Rule):
    """Every function that a rule may call."""

    inexact = True

    @staticmethod
    def update(h: Any, xp: Any, p: Any, g: Any, m: Any = 0.5) -> Any:
        x = xp.abs(g)
        y = xp.exp(-x) + xp.expm1(-x) + xp.log(x + 1) + xp.log1p(x) + xp.sin(x) + xp.cos(x) + xp.tanh(x)
        y = y + xp.pow(x, m) + xp.pow(x, 0.25) - xp.sign(g) / xp.sqrt(xp.square(g) + 1)
        odd = xp.logical_or(xp.logical_and(g > 0.5, ~(g >= 1)), xp.logical_or(p < -1, p <= -2))
        y = xp.where(odd, y, -y) + xp.where(xp.isnan(p) | xp.isinf(p), 1.0, xp.maximum(p, g))
        return xp.where(xp.isfinite(y) & (p == p) & (p != 3), y, xp.minimum(p, 0.5)), m + 1
