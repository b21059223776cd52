"""What links of whole arrays compute with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from xopt import _arrays
from xopt.rule import Array, abs2, is_complex


def adjoint(xp: Any, x: Array) -> Array:
    """Return the conjugate transpose."""
    return conj(xp, xp.matrix_transpose(x))


def conj(xp: Any, x: Array) -> Array:
    """Return the conjugate, which of a real array is the array."""
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


def zeros(xp: Any, p: Array, shape: tuple[int, ...]) -> Array:
    """Make zeros beside a parameter."""
    return xp.zeros(shape, dtype=p.dtype, **_arrays.beside(p))


def real_zeros(xp: Any, p: Array, shape: tuple[int, ...]) -> Array:
    """Make zeros beside a parameter, real also where that is complex."""
    return zeros(xp, xp.real(p) if is_complex(p) else p, shape)


def finite_eigh(xp: Any, x: Array) -> tuple[Array, Array]:
    """Return eigenvalues and eigenvectors of a Hermitian matrix: NaN, and no exception, where it is not finite."""
    if not hasattr(xp.linalg, "eigh"):
        raise TypeError("this rule needs eigenvalues of matrices, and the library of the parameters has no linalg.eigh")
    fine = xp.all(xp.isfinite(x))
    eye = xp.eye(x.shape[0], dtype=x.dtype, **_arrays.beside(x))
    values, vectors = xp.linalg.eigh(xp.where(fine, x, eye))
    return xp.where(fine, values, xp.full_like(values, math.nan)), vectors


def either(condition: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """Return what one of two functions makes: arrays of the same shapes.

    The condition is looked at, but on JAX, which may be tracing it. It depends on the step alone.
    """
    if _arrays.library(condition) == "jax":
        return _arrays.either(condition, yes, no)
    return yes() if bool(condition) else no()
