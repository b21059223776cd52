"""Finite differences of an image, and its total variation."""

from __future__ import annotations

import math
from typing import Any

from xopt import _arrays
from xopt._public import public
from xopt.proximal._prox import Array, Prox, of_arrays, real, remade, total
from xopt.rule import abs2, inner
from xopt.solvers._options import count
from xopt.solvers._space import numbers


def _axes(x: Array, axes: tuple[int, ...] | None) -> tuple[int, ...]:
    if not x.ndim:
        raise ValueError("axes: an array of no dimensions, but differences are taken along one or more")
    if axes is not None and any(not -x.ndim <= a < x.ndim for a in axes):
        raise ValueError(f"axes: {axes}, but an array has shape {tuple(x.shape)}")
    return tuple(range(x.ndim)) if axes is None else tuple(a % x.ndim for a in axes)


def _checked(axes: Any) -> tuple[int, ...] | None:
    fits = axes is None or (isinstance(axes, tuple) and axes and all(type(a) is int for a in axes))
    if not fits or (axes is not None and len({*axes}) < len(axes)):
        raise TypeError(f"axes: {axes!r}, but it must be a tuple of different whole numbers, or None")
    return axes  # type: ignore[no-any-return]


def _cut(x: Array, axis: int, part: slice) -> Array:
    return x[(slice(None),) * axis + (part, ...)]


@public
def gradient(x: Any, axes: tuple[int, ...] | None = None) -> Any:
    """Finite differences of an array along its axes: forward, 0 at the last element, stacked along a new first axis.

    Its adjoint is minus `divergence`; its norm is at most 2·√d with d axes. A solver takes it as ``K=gradient``.

    Parameters
    ----------
    x
        An array of any number of dimensions.
    axes
        Along which axes; None: all.

    Examples
    --------
    >>> import numpy as np
    >>> from xopt import proximal
    >>> proximal.gradient(np.asarray([[1.0, 3.0], [1.0, 7.0]])).tolist()
    [[[0.0, 4.0], [0.0, 0.0]], [[2.0, 0.0], [6.0, 0.0]]]
    """
    xp, found = _arrays.namespace(x), []
    for a in _axes(x, _checked(axes)):
        step = _cut(x, a, slice(1, None)) - _cut(x, a, slice(None, -1))
        found.append(xp.concat([step, xp.zeros_like(_cut(x, a, slice(0, 1)))], axis=a))
    return xp.stack(found)


@public
def divergence(p: Any, axes: tuple[int, ...] | None = None) -> Any:
    """Divergence of a field, minus the adjoint of `gradient`: Re⟨gradient(x), p⟩ = -Re⟨x, divergence(p)⟩.

    Parameters
    ----------
    p
        An array whose first axis numbers the directions.
    axes
        As for `gradient`.

    Examples
    --------
    >>> import numpy as np
    >>> from xopt import proximal
    >>> proximal.divergence(np.asarray([[1.0, 4.0, 0.0]]))
    array([ 1.,  3., -4.])
    """
    xp, own = _arrays.namespace(p), _axes(p[0, ...], _checked(axes))
    if p.shape[0] != len(own):
        raise ValueError(f"divergence: shape {tuple(p.shape)}, but the first axis must number {len(own)} directions")
    found = None
    for k, a in enumerate(own):
        inner = _cut(p[k, ...], a, slice(None, -1))
        edge = xp.zeros_like(_cut(p[k, ...], a, slice(0, 1)))
        step = xp.concat([inner, edge], axis=a) - xp.concat([edge, inner], axis=a)
        found = step if found is None else found + step
    return found


gradient.adjoint = lambda p: -divergence(p)  # type: ignore[attr-defined]


@public
@remade
def tv(strength: float = 1.0, axes: tuple[int, ...] | None = None, *, tol: float = 1e-6, maxiter: float = 1000) -> Prox:
    r"""Total variation, for images with edges: f(x) = λ·Σ ‖∇x‖₂ over pixels, isotropic; its prox is TV denoising.

    The prox takes iterations: fast gradient projection on the dual problem, restarted where it turns back.

    Parameters
    ----------
    strength
        λ ≥ 0.
    axes
        Along which axes differences are taken; None: all. Others number images of their own.
    tol
        The prox ends at a duality gap of ``tol`` times its value, > 0. In float32 a gap of 32·ε is enough, too.
    maxiter
        Or after so many iterations, ≥ 1.

    Notes
    -----
    A prox brings numbers to the host once in 10 iterations. It begins at the dual field that it ended with before, if
    that was of an array of this shape, dtype and device: in a solver it takes few iterations. Memory: about 8 fields of
    d arrays like x, temporaries among them; one is kept. `pdhg` with ``K=gradient`` and `group_l1` minimizes the same
    without iterations inside.

    References
    ----------
    A. Beck, M. Teboulle (2009), Fast gradient-based algorithms for constrained total variation image denoising and
    deblurring problems, IEEE Transactions on Image Processing 18.

    Examples
    --------
    >>> import numpy as np
    >>> from xopt import proximal
    >>> proximal.tv(1.0).prox(np.asarray([0.0, 0.0, 3.0, 3.0]), 1.0).round(4)
    array([0.5, 0.5, 2.5, 2.5])
    """
    axes = _checked(axes)
    tol, most = real("tol", tol, 0.0), count("maxiter", maxiter, 1)
    kept: list[Array] = []

    def start(xp: Any, x: Array) -> Array:
        like = gradient(x, axes)
        for k, p in enumerate(kept):
            fits = _arrays.library(p) == _arrays.library(like) and p.shape == like.shape and p.dtype == like.dtype
            if fits and _arrays.device(p) == _arrays.device(like):
                return kept.pop(k)
        return xp.zeros_like(like)

    def prox(xp: Any, x: Array, t: float, strength: float) -> Array:
        weight = t * strength
        if weight == 0 or not math.prod(x.shape):
            return x
        step = 1 / (4 * len(_axes(x, axes)) * weight)
        enough = max(tol, 32 * float(xp.finfo(x.dtype).eps))
        p = q = start(xp, x)
        z, theta = x + weight * divergence(p, axes), 1.0
        for k in range(most):
            old, p = p, _unit(xp, q + step * gradient(x + weight * divergence(q, axes), axes))
            if k % 10 == 9 or k == most - 1:
                z = x + weight * divergence(p, axes)
                slope = gradient(z, axes)
                norms = xp.sqrt(xp.sum(abs2(xp, slope), axis=0))
                half, rough = total(xp, abs2(xp, z - x)) / 2, weight * total(xp, norms)
                met, back = total(xp, inner(xp, slope, p)), total(xp, inner(xp, q - p, p - old))
                found = [xp.reshape(v, (1,)) for v in (half, rough, weight * met, back)]
                value, variation, reached, turn = numbers(xp, 0.0, found)[1:]
                if not variation - reached > enough * (value + variation):
                    break
                theta = 1.0 if turn > 0 else theta
            last, theta = theta, (1 + math.sqrt(1 + 4 * theta * theta)) / 2
            q = p + ((last - 1) / theta) * (p - old)
        if math.isfinite(value + variation):  # else it would spoil what comes next
            kept.insert(0, p)
            del kept[4:]
        return z

    def value(xp: Any, x: Array, strength: float) -> Any:
        return strength * total(xp, xp.sqrt(xp.sum(abs2(xp, gradient(x, axes)), axis=0)))

    return of_arrays("tv", prox, value, given={"strength": real("strength", strength)}, apart=False)


def _unit(xp: Any, p: Array) -> Array:
    """Bring vectors along the first axis into the ball of radius 1."""
    size = xp.sqrt(xp.sum(abs2(xp, p), axis=0))
    return p / xp.where(size > 1, size, xp.ones_like(size))
