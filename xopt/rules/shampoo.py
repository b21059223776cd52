"""Rules with a matrix for each axis of an array: Shampoo."""

from __future__ import annotations

from typing import Any, Literal

from xopt._whole import adjoint, at_least, conj, finite_eigh, norm, renewed, zeros
from xopt.rule import Array, H, Hyper, Rule, hyper, is_complex, static

__all__ = ["Shampoo"]


class Shampoo(Rule):
    r"""Shampoo (Gupta, Koren & Singer 2018, arXiv:1802.09568, Algorithm 2).

    For an array with k axes, of which Gᵢ has axis i for rows and all others for columns::

        Sᵢ ← Sᵢ + Gᵢ·Gᵢᴴ                             b2: b2·Sᵢ + (1-b2)·Gᵢ·Gᵢᴴ
        u = g times (Sᵢ + ε·I)^(-1/2k) along each axis i
        p ← p - lr·u                                 momentum: m ← μ·m + u,  p ← p - lr·m

    of a matrix that is L^(-1/4)·G·R^(-1/4).

    Parameters
    ----------
    lr
        Learning rate, ≥ 0.
    eps
        ε > 0, in the unit of the squared gradient.
    momentum
        μ in [0, 1); None for none.
    b2
        Decay of the matrices in [0, 1); None: they grow, as in the paper.
    update_every
        The roots are computed in step 1 and every so many steps, ≥ 1.
    max_dim
        Length of an axis, ≥ 1, above which S is kept as its diagonal (the paper's section 5.1 and its diagonal form).
    graft
        ``"none"``; ``"sgd"``: u is given the norm of the gradient.
    weight_decay, decay, maximize, complex, like
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: ``s``, the matrices of all axes end to end, 4·(rows² + columns²) bytes a float32 matrix; as much again for
    the roots ``q`` if they are not computed in every step; with momentum ``m``, shaped like the parameter,
    4 bytes a float32 parameter.

    The roots are computed from eigenvalues, in the dtype of the arithmetic. The paper's εI, which S starts with, is
    added when the root is taken, so that b2 does not wear it down. A NaN in the gradient makes the array NaN. dask has
    no eigenvalues.

    References
    ----------
    V. Gupta, T. Koren, Y. Singer (2018), Shampoo: preconditioned stochastic tensor optimization, arXiv:1802.09568,
    Algorithms 1 and 2.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.Shampoo(lr=0.1, eps=1e-8), np.diag([1.0, 2.0])
    >>> rule.apply(w, w, rule.init(w))[0].round(3)
    array([[0.9, 0. ],
           [0. , 1.9]])
    """

    lr: Hyper = hyper(default=1e-1, ge=0)
    eps: Hyper = hyper(default=1e-4, gt=0)
    momentum: Hyper | None = hyper(default=None, ge=0, lt=1)
    b2: Hyper | None = hyper(default=None, ge=0, lt=1)
    update_every: int = static(default=1, ge=1)
    max_dim: int = static(default=1024, ge=1)
    graft: Literal["none", "sgd"] = "none"
    whole = True

    def _first(self, value: float | str) -> Any:
        absent = (self.momentum is None and value == "average") or (self.update_every == 1 and value == "roots")
        return None if absent else super()._first(value)

    @staticmethod
    def matrices(h: H, xp: Any, p: Array) -> Array:
        """Return the first matrices of all axes, end to end."""
        return zeros(xp, p, (sum(_sizes(h, p.shape)),))

    roots = matrices

    @staticmethod
    def average(h: H, xp: Any, p: Array) -> Array:
        """Return the first sum of steps."""
        return xp.zeros_like(p)

    @staticmethod
    def update(
        h: H, xp: Any, p: Array, g: Array, s: Array = "matrices", q: Array = "roots", m: Array = "average"
    ) -> tuple[Array, ...]:
        if 0 in p.shape:
            return xp.zeros_like(p), s, q, m
        u = g = xp.reshape(g, p.shape or (1,))
        moments = _joined(xp, [_moment(xp, g, i, n <= h.max_dim) for i, n in enumerate(g.shape)])
        s = s + moments if h.b2 is None else h.b2 * s + (1 - h.b2) * moments
        q = renewed(h, h.update_every, lambda: _joined(xp, [_root(h, xp, x, g.ndim) for x in _cut(h, xp, s, g)]), q)
        for i, root in enumerate(_cut(h, xp, q, g)):
            u = _along(xp, root, u, i)
        if h.graft == "sgd":
            size = norm(xp, u)
            u = u * (norm(xp, g) / xp.where(size > 0, size, xp.ones_like(size)))
        u = xp.reshape(u, p.shape)
        if h.momentum is not None:
            u = m = h.momentum * m + u
        return -h.lr * u, s, q, m


def _sizes(h: H, shape: tuple[int, ...]) -> list[int]:
    """Return how many numbers are kept for each axis: a matrix, or its diagonal."""
    return [n * n if n <= h.max_dim else n for n in shape or (1,)]


def _cut(h: H, xp: Any, x: Array, g: Array) -> list[Array]:
    found, start = [], 0
    for n, size in zip(g.shape, _sizes(h, g.shape), strict=True):
        one = x[start : start + size]
        found.append(xp.reshape(one, (n, n)) if n <= h.max_dim else one)
        start += size
    return found


def _joined(xp: Any, matrices: list[Array]) -> Array:
    return xp.concat([xp.reshape(x, (-1,)) for x in matrices])


def _moment(xp: Any, g: Array, axis: int, full: bool) -> Array:
    """Return G·Gᴴ, where the rows of G go along an axis; or its diagonal."""
    rows = xp.reshape(xp.moveaxis(g, axis, 0), (g.shape[axis], -1))
    return xp.matmul(rows, adjoint(xp, rows)) if full else xp.sum(rows * conj(xp, rows), axis=1)


def _root(h: H, xp: Any, x: Array, rank: int) -> Array:
    """Return the root of the inverse of x + εI."""
    power = -1 / (2 * rank)
    if x.ndim == 1:
        return ((xp.real(x) if is_complex(x) else x) + h.eps) ** power * xp.ones_like(x)
    values, vectors = finite_eigh(xp, x)
    return xp.matmul(vectors * (at_least(xp, values, 0.0) + h.eps) ** power, adjoint(xp, vectors))


def _along(xp: Any, root: Array, u: Array, axis: int) -> Array:
    """Multiply an array by a matrix along an axis, or by its diagonal."""
    if root.ndim == 1:
        return u * xp.reshape(root, tuple(n if k == axis else 1 for k, n in enumerate(u.shape)))
    return xp.moveaxis(xp.tensordot(root, u, axes=((1,), (axis,))), 0, axis)
