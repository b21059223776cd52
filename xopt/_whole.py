"""What links of whole arrays compute with."""

from __future__ import annotations

import math
from typing import Any

from xopt import _arrays
from xopt.rule import Array, abs2, is_complex


def adjoint(xp: Any, x: Array) -> Array:
    """Return the conjugate transpose."""
    x = xp.matrix_transpose(x)
    return xp.conj(x) if is_complex(x) else x


def mean(xp: Any, x: Array, axes: tuple[int, ...]) -> Array:
    """Average over some axes, which stay with length 1; of nothing, 0."""
    return xp.sum(x, axis=axes, keepdims=True) / max(1, math.prod(x.shape[k] for k in axes))


def norm(xp: Any, x: Array, axes: tuple[int, ...] | None = None) -> Array:
    """Return the Euclidean norm, or norms over some axes, which stay with length 1."""
    return xp.sqrt(xp.sum(abs2(xp, x), axis=axes, keepdims=axes is not None))


def rms(xp: Any, x: Array) -> Array:
    """Return the root mean square; of nothing, 0."""
    return xp.sqrt(xp.sum(abs2(xp, x)) / max(1, math.prod(x.shape)))


def at_least(xp: Any, x: Array, low: Any) -> Array:
    """Return the larger of an array and a scalar, which may be a 0-d array too."""
    return xp.maximum(x, xp.zeros_like(x) + low)


def real_zeros(xp: Any, p: Array, shape: tuple[int, ...]) -> Array:
    """Make zeros beside a parameter, real also where that is complex."""
    place = _arrays.device(p)
    dtype = (xp.real(p) if is_complex(p) else p).dtype
    return xp.zeros(shape, dtype=dtype, **({} if place is None else {"device": place}))
