"""Penalties and misfits: functions with a prox in closed form."""

from __future__ import annotations

import math
from typing import Any

from xopt import _arrays
from xopt._arrays.scalars import is_number
from xopt._public import public
from xopt.proximal._prox import Array, Prox, indicator, of_arrays, real, remade, total, weights
from xopt.rule import abs2


def floor(xp: Any, x: Array) -> Array:
    """Return max(x, 0); NaN stays NaN."""
    return xp.where(x < 0, xp.zeros_like(x), x)


def _shrunk(xp: Any, x: Array, size: Array, by: Any) -> Array:
    """Make ‖x‖ shorter by so much, at least to 0; x where the size is NaN, so that it stays one."""
    some = size > by
    left = xp.where(some, size - by, xp.zeros_like(size)) / xp.where(size == 0, xp.ones_like(size), size)
    return x * left


def _within(xp: Any, y: Array, size: Array, strength: Any) -> Array:
    """Make ‖y‖ at most the strength."""
    bound = strength + xp.zeros_like(size)
    return y * xp.where(size > bound, bound / xp.where(size == 0, xp.ones_like(size), size), xp.ones_like(size))


def _inside(xp: Any, ratio: Array) -> Any:
    """Return the largest s ≤ 1 so that s times what has these ratios to what is allowed is allowed."""
    if not math.prod(ratio.shape):
        return 1.0
    most = xp.max(ratio)
    return 1 / xp.where(most > 1, most, xp.ones_like(most))


def _ratio(xp: Any, size: Array, strength: Any) -> Array:
    """Return size / strength, 0 where both are 0."""
    bound = strength + xp.zeros_like(size)
    none = bound == 0
    return xp.where(none & (size != 0), math.inf, size / xp.where(none, xp.ones_like(bound), bound))


def _indicated(xp: Any, size: Array, strength: Any) -> Any:
    """Return 0 where no size is above the strength but by roundings, else infinity."""
    slack = 1 + 16 * float(xp.finfo(size.dtype).eps)
    return indicator(xp, xp.any(~(size <= strength * slack)), size)  # NaN is outside, too


@public
@remade
def zero() -> Prox:
    """Return the function that is 0, where nothing else is asked of x.

    Examples
    --------
    >>> import numpy as np
    >>> from xopt import proximal
    >>> proximal.zero().prox(np.asarray([1.0]), 0.5)
    array([1.])
    """
    return of_arrays(
        "zero",
        lambda xp, x, t: x,
        lambda xp, x: 0.0,
        lambda xp, y: _indicated(xp, xp.abs(y), 0.0),
        lambda xp, y: 0.0,
        lambda xp, x: xp.zeros_like(x),
        dual=lambda xp, y, t: xp.zeros_like(y),
    )


@public
@remade
def l1(strength: Any = 1.0) -> Prox:
    r"""L1 norm, for sparse x: f(x) = Σ λ·\|x\|.

    ::

        prox(x, t) = sign(x)·max(|x| - t·λ, 0)

    Parameters
    ----------
    strength
        λ ≥ 0: a number, an array that x has the shape of, or a tree of these like x: a weight for each element. Of a
        complex element the modulus shrinks.

    Examples
    --------
    >>> import numpy as np
    >>> from xopt import proximal
    >>> f, x = proximal.l1(0.5), np.asarray([2.0, -0.25, -1.0])
    >>> f.prox(x, 1.0), float(f.value(x))
    (array([ 1.5, -0. , -0.5]), 1.625)
    """
    return of_arrays(
        "l1",
        lambda xp, x, t, strength: _shrunk(xp, x, xp.abs(x), t * strength),
        lambda xp, x, strength: total(xp, strength * xp.abs(x)),
        lambda xp, y, strength: _indicated(xp, xp.abs(y), strength),
        lambda xp, y, strength: _inside(xp, _ratio(xp, xp.abs(y), strength)),
        dual=lambda xp, y, t, strength: _within(xp, y, xp.abs(y), strength),
        given={"strength": weights("strength", strength)},
    )


@public
@remade
def group_l1(strength: Any = 1.0, axis: int | tuple[int, ...] = 0) -> Prox:
    """Group L1 norm, for groups that are 0 together: f(x) = Σ λ·‖x_g‖₂ over groups g along axes of an array.

    ::

        prox(x, t) = x_g·max(1 - t·λ/‖x_g‖₂, 0)

    Of `gradient` of an image, with ``axis=0``, it is the isotropic total variation; `l1` of it the anisotropic one.

    Parameters
    ----------
    strength
        λ ≥ 0: a number, or an array, or a tree of arrays, with dimensions of 1 for the axes of a group.
    axis
        The axes that number the elements of a group.

    Examples
    --------
    >>> import numpy as np
    >>> from xopt import proximal
    >>> proximal.group_l1(1.0).prox(np.asarray([[3.0, 0.1], [4.0, 0.2]]), 1.0)
    array([[2.4, 0. ],
           [3.2, 0. ]])
    """
    axes = axis if isinstance(axis, tuple) else (axis,)
    if not axes or not all(isinstance(a, int) and not isinstance(a, bool) for a in axes):
        raise TypeError(f"axis: {axis!r}, but it must be a whole number or a tuple of them")

    def norms(xp: Any, x: Array, strength: Any) -> Array:
        for a in axes:
            if not -x.ndim <= a < x.ndim:
                raise ValueError(f"group_l1: axis {a}, but an array has shape {tuple(x.shape)}")
        from_end = {a % x.ndim - x.ndim for a in axes}  # as the axes of a strength are counted, of fewer dimensions
        if len(from_end) < len(axes):
            raise ValueError(f"group_l1: axis {axis}, of which two are one in an array of shape {tuple(x.shape)}")
        if not is_number(strength) and any(-a <= strength.ndim and strength.shape[a] != 1 for a in from_end):
            raise ValueError(f"group_l1: strength: shape {tuple(strength.shape)}, but along axis {axis} 1")
        return xp.sqrt(xp.sum(abs2(xp, x), axis=axes, keepdims=True))

    return of_arrays(
        "group_l1",
        lambda xp, x, t, strength: _shrunk(xp, x, norms(xp, x, strength), t * strength),
        lambda xp, x, strength: total(xp, strength * norms(xp, x, strength)),
        lambda xp, y, strength: _indicated(xp, norms(xp, y, strength), strength),
        lambda xp, y, strength: _inside(xp, _ratio(xp, norms(xp, y, strength), strength)),
        dual=lambda xp, y, t, strength: _within(xp, y, norms(xp, y, strength), strength),
        given={"strength": weights("strength", strength)},
        apart=False,
    )


@public
@remade
def nuclear(strength: float = 1.0) -> Prox:
    """Nuclear norm, for matrices of low rank: f(x) = λ·Σ of the singular values.

    ::

        prox(x, t) = U·max(S - t·λ, 0)·Vᴴ       x = U·S·Vᴴ

    Parameters
    ----------
    strength
        λ ≥ 0. The last two axes of an array are those of a matrix; of more dimensions it is a stack of them.

    Notes
    -----
    The library must have ``linalg.svd``.

    Examples
    --------
    >>> import numpy as np
    >>> from xopt import proximal
    >>> proximal.nuclear(1.0).prox(np.diag([3.0, 0.5]), 1.0)
    array([[2., 0.],
           [0., 0.]])
    """

    def values(xp: Any, x: Array) -> Array:
        if x.ndim < 2:
            raise ValueError(f"nuclear: an array of shape {tuple(x.shape)}, but it must have two dimensions")
        return xp.linalg.svdvals(x)

    def prox(xp: Any, x: Array, t: float, strength: float) -> Array:
        if x.ndim < 2:
            raise ValueError(f"nuclear: an array of shape {tuple(x.shape)}, but it must have two dimensions")
        u, s, vh = xp.linalg.svd(x, full_matrices=False)
        s = floor(xp, s - t * strength)
        return (u * _arrays.cast(xp, s[..., None, :], u.dtype)) @ vh

    return of_arrays(
        "nuclear",
        prox,
        lambda xp, x, strength: strength * total(xp, values(xp, x)),
        lambda xp, y, strength: _indicated(xp, values(xp, y), strength),
        lambda xp, y, strength: _inside(xp, _ratio(xp, values(xp, y), strength)),
        given={"strength": real("strength", strength)},
        apart=False,
    )


@public
@remade
def squared(target: Any = 0.0, strength: Any = 1.0) -> Prox:
    """Half the squared distance from data: ``f(x) = Σ λ/2·|x - b|²``, a misfit or a ridge.

    It is smooth, so that `fista` takes it too.

    ::

        prox(x, t) = (x + t·λ·b) / (1 + t·λ)

    Parameters
    ----------
    target
        b: a number, an array, or a tree of these like x.
    strength
        λ > 0: a number; or weights ≥ 0, such as one over the variance of each datum, and 0 where none is known.

    Examples
    --------
    >>> import numpy as np
    >>> from xopt import proximal
    >>> f = proximal.squared(np.asarray([1.0, 2.0]))
    >>> f.prox(np.zeros(2), 1.0), float(f.value(np.zeros(2))), f.gradient(np.zeros(2))
    (array([0.5, 1. ]), 2.5, array([-1., -2.]))
    """
    number = is_number(strength)
    strength = real("strength", strength, 0.0) if number else weights("strength", strength)

    def conjugate(xp: Any, y: Array, target: Any, strength: Any) -> Any:
        size = abs2(xp, y)
        some = strength + xp.zeros_like(size)
        none = some == 0  # there f is 0, and f* too or infinite
        found = total(xp, size / (2 * xp.where(none, xp.ones_like(some), some)) + _product(xp, y, target))
        return found if is_number(strength) else found + indicator(xp, xp.any(none & (size > 0)), size)

    def scaling(xp: Any, y: Array, target: Any, strength: Any) -> Any:
        size = abs2(xp, y)
        return _inside(xp, xp.where(strength > xp.zeros_like(size), 0.0, _ratio(xp, size, 0.0)))

    return of_arrays(
        "squared",
        lambda xp, x, t, target, strength: (x + (t * strength) * target) / (1 + t * strength),
        lambda xp, x, target, strength: total(xp, strength * abs2(xp, x - target)) / 2,
        conjugate,
        None if number else scaling,
        lambda xp, x, target, strength: strength * (x - target),
        dual=lambda xp, y, t, target, strength: (y - t * target) * (strength / (strength + t)),
        given={"target": target, "strength": strength},
        convexity=strength if number else 0.0,
    )


def _product(xp: Any, y: Array, b: Any) -> Array:
    """Return Re(conj(b)·y)."""
    if not _arrays.is_complex(y):
        return y * b
    if is_number(b) or not _arrays.is_complex(b):
        return xp.real(y) * b
    return xp.real(y) * xp.real(b) + xp.imag(y) * xp.imag(b)
