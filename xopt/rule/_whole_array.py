"""What components of whole arrays compute with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from xopt import _arrays
from xopt.rule._component import Array
from xopt.rule._elementwise import is_complex


def adjoint(xp: Any, x: Array) -> Array:
    """Return the conjugate transpose."""
    return conj(xp, xp.matrix_transpose(x))


def conj(xp: Any, x: Array) -> Array:
    """Return the conjugate, which of a real array is the array."""
    return xp.conj(x) if is_complex(x) else x


def mean(xp: Any, x: Array, axes: tuple[int, ...]) -> Array:
    """Average over some axes, which stay with length 1; of nothing, 0. No sum is larger than its largest term."""
    return xp.sum(x / max(1, math.prod(x.shape[k] for k in axes)), axis=axes, keepdims=True)


def norm(xp: Any, x: Array, axes: tuple[int, ...] | None = None) -> Array:
    """Return the Euclidean norm, or norms over some axes, which stay with length 1.

    What is squared is divided by the largest element, because squares of 1e20 and of 1e-25 have no float32.
    """
    size = xp.abs(x)
    if math.prod(size.shape) == 0:
        return xp.sqrt(xp.sum(size, axis=axes, keepdims=axes is not None))
    unit = _unit(xp, xp.max(size, axis=axes, keepdims=axes is not None))
    return unit * xp.sqrt(xp.sum((size / unit) ** 2, axis=axes, keepdims=axes is not None))


def _unit(xp: Any, top: Array, least: Any = 0.0) -> Array:
    """Return what to divide by for numbers of size 1, from the largest: a number that has a reciprocal.

    XLA multiplies by that, and flushes it to 0 where it is subnormal.
    """
    unit = at_least(xp, at_least(xp, top / 8, float(xp.finfo(top.dtype).smallest_normal)), least)
    return xp.where(xp.isfinite(top), unit, xp.ones_like(top))


def rms(xp: Any, x: Array, axes: tuple[int, ...] | None = None) -> Array:
    """Return the root mean square, or those over some axes, which stay with length 1; of nothing, 0."""
    count = math.prod(x.shape if axes is None else [x.shape[k] for k in axes])
    return norm(xp, x, axes) / max(1, count) ** 0.5


def at_least(xp: Any, x: Array, low: Any) -> Array:
    """Return the larger of an array and a scalar, which may be a 0-d array too."""
    return xp.maximum(x, xp.zeros_like(x) + low)


def zeros(xp: Any, p: Array, shape: tuple[int, ...]) -> Array:
    """Make zeros beside a parameter."""
    return xp.zeros(shape, dtype=p.dtype, **_arrays.beside(p))


def real_zeros(xp: Any, p: Array, shape: tuple[int, ...]) -> Array:
    """Make zeros beside a parameter, real also where that is complex."""
    return zeros(xp, xp.real(p) if is_complex(p) else p, shape)


def identity(xp: Any, like: Array, n: int) -> Array:
    """Make an identity matrix beside an array."""
    return xp.eye(n, dtype=like.dtype, **_arrays.beside(like))


def finite_eigh(xp: Any, x: Array, least: Any = 0.0) -> tuple[Array, Array, Array]:
    """Return eigenvalues, their unit, and eigenvectors of a Hermitian matrix; NaN, not an exception, if not finite.

    The unit is of the size of the largest element, or ``least``. The library is given the matrix divided by it: near
    the end of the range of a dtype some lose digits, and the largest eigenvalue is infinite.
    """
    if not hasattr(xp.linalg, "eigh"):
        raise TypeError("this rule needs eigenvalues of matrices, and the library of the parameters has no linalg.eigh")
    top = xp.max(xp.abs(x))
    fine, unit = xp.isfinite(top), _unit(xp, top, least)
    values, vectors = xp.linalg.eigh(xp.where(fine, x / unit, identity(xp, x, x.shape[0])))
    return xp.where(fine, values, xp.full_like(values, math.nan)), unit, vectors


def digits(xp: Any, x: Array) -> float:
    """Return the distance from 1 to the next number of a dtype."""
    return float(xp.finfo(x.dtype).eps)


def positive(xp: Any, x: Array) -> Array:
    """Lift what is so small that a power of it could be infinite, such as an ε that is 0 in float32."""
    return at_least(xp, x, float(xp.finfo(x.dtype).smallest_normal))


def either(condition: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """Return what one of two functions makes: arrays of the same shapes.

    The condition is looked at, unless it is traced. It depends on the step alone.
    """
    library = _arrays.library(condition)
    return (yes() if condition else no()) if library is None else library.either(condition, yes, no)
