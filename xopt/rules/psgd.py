"""Rules with a preconditioner that is fitted by gradient descent on a Lie group: PSGD."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from xopt import random
from xopt.rule import Array, Decay, H, Hyper, Moments, Rule, abs2, hyper, static
from xopt.rule._whole_array import adjoint, at_least, conj, either, identity, positive, rms, zeros
from xopt.rules.shampoo import _along, _cut, _joined, _moment

__all__ = ["PSGDKron"]


class PSGDKron(Rule):
    r"""PSGD-Kron (Li 2018; Pooladzandi & Li 2024): SGD, whitened by a triangular matrix for each axis.

    For an array with k axes; Q·x is x multiplied by Qᵢ along each axis i, and Aᵢ has axis i of a for rows and all
    others for columns::

        m ← β₁·m + (1-β₁)·g,  x = m/(1-β₁ᵗ)
        a = Q·x,  b = Q⁻ᴴ·v                          v standard normal, anew in each step
        Qᵢ ← Qᵢ - μ·triu(Aᵢ·Aᵢᴴ - Bᵢ·Bᵢᴴ)·Qᵢ / ‖Aᵢ·Aᵢᴴ + Bᵢ·Bᵢᴴ‖
        u = Qᴴ·Q·x
        p ← p - lr·u·min(1, clip / (RMS(u) + 1e-6))

    so that QᴴQ comes to the inverse of the root of the mean of x·xᴴ: it minimizes the mean of xᴴQᴴQx + vᴴ(QᴴQ)⁻¹v.

    Parameters
    ----------
    lr
        Learning rate, ≥ 0: by the authors of ``kron_torch`` a third of Adam's, on small problems less.
    b1
        β₁ in [0, 1).
    precond_lr
        μ in [0, 1).
    clip
        Largest root mean square of u, > 0; None: as it comes.
    update_every
        The factors Q are fitted in step 1 and every so many steps, ≥ 1; a schedule of that is counted anew after each.
    initial
        Q begins with this number to the power of 1/k, times I; > 0.
    max_dim
        Length of an axis, ≥ 1, above which Q is diagonal.
    vectors
        Have a matrix for vectors too. Otherwise theirs is diagonal.
    memory_save
        ``"none"``; ``"one_diag"``: the longest axis has a diagonal Q; ``"smart_one_diag"``: it has where no other is as
        long; ``"all_diag"``: all have.
    momentum_into_precond_update
        Fit Q to x; otherwise to g in its place.
    seed
        Of v; 0 to 2³² - 1.
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: ``m``, shaped like the parameter, 4 bytes per float32 parameter; ``q``, the factors of all axes end to end,
    4·(rows² + columns²) bytes per float32 matrix; in ``state.carry`` the steps since they were fitted (``since``).

    No random number is kept: v is a function of the seed, the step, the place of the array in the tree and that of the
    element, so that a resumed run goes on with the same, on any library up to the last bits. On JAX the step counts to
    2²⁴ there.

    ``kron_torch`` and its descendants fit in every step at first and in one of 33 later, which is
    ``update_every=xopt.schedules.clip(xopt.schedules.exponential(math.exp(-0.5), rate=math.exp(1e-3)), low=1,
    high=1/0.03)``; with a constant they wait for the first fit as long as for all others. Now and then, by chance, they
    bring all factors to the same largest element, here each fit does: the step does not depend on it. They decay no
    vectors, which :func:`~xopt.no_decay_1d` sees to. ``kron_torch`` adds 3e-4 mean(\|x\|)·v to x, in its steps too.

    The norm is that of the product with the longest column, a lower bound. Each fit solves n equations for an axis of
    length n by a general solver: the standard of array libraries has none for triangles. While all elements of x are 0
    the factors stay as they are. A NaN in the gradient makes the array NaN. dask cannot solve equations.

    References
    ----------
    X.-L. Li (2018), Preconditioned stochastic gradient descent, IEEE Transactions on Neural Networks and Learning
    Systems 29, arXiv:1512.04202. O. Pooladzandi, X.-L. Li (2024), Curvature-informed SGD via general purpose Lie-group
    preconditioners, arXiv:2402.04553. X.-L. Li (2024), Stochastic Hessian fittings with Lie groups, arXiv:2402.11858.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.PSGDKron(lr=0.01), np.diag([1.0, 100.0])
    >>> state, g = rule.init(w), np.diag([1e-3, 10.0])
    >>> for _ in range(500):
    ...     new, state = rule.apply(w, g, state)
    >>> np.abs(np.diag(w - new)).round(2)
    array([0.01, 0.01])
    """

    lr: Hyper = hyper(default=1e-3, ge=0)
    b1: Hyper = hyper(default=0.9, ge=0, lt=1)
    precond_lr: Hyper = hyper(default=0.1, ge=0, lt=1)
    clip: Hyper | None = hyper(default=1.1, gt=0, optional=True)
    update_every: Hyper = hyper(default=1.0, ge=1)
    initial: float = static(default=1.0, gt=0)
    max_dim: int = static(default=8192, ge=1)
    vectors: bool = False
    memory_save: Literal["none", "one_diag", "smart_one_diag", "all_diag"] = "none"
    momentum_into_precond_update: bool = True
    seed: int = static(default=0, ge=0, le=2**32 - 1)
    decay: Decay = static(default="lr", kw_only=True)
    elementwise = False
    moments: ClassVar[Moments] = {"m": "signed"}
    carry: ClassVar = {"since": 0.0}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        since = h.since + 1
        due = xp.where(h.t <= 1, 1.0, xp.where(since >= h.update_every, 1.0, 0.0))
        return {"due": due, "since": xp.where(due > 0, 0.0, since)}

    @staticmethod
    def factors(h: H, xp: Any, p: Array) -> Array:
        """Return the first factors of all axes, end to end."""
        if 0 in p.shape:
            return zeros(xp, p, (0,))
        first = h.initial ** (1 / max(1, p.ndim))
        axes = zip(p.shape or (1,), _full(h, p.shape), strict=True)
        return first * _joined(xp, [identity(xp, p, n) if full else zeros(xp, p, (n,)) + 1.0 for n, full in axes])

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, m: Array = 0.0, q: Array = "factors") -> tuple[Array, ...]:
        if 0 in p.shape:
            return xp.zeros_like(p), m, q
        m = h.b1 * m + (1 - h.b1) * g
        u = x = xp.reshape(m / (1 - h.b1**h.t), p.shape or (1,))
        seen = x if h.momentum_into_precond_update else xp.reshape(g, x.shape)
        q = either(h.due > 0, lambda: _fitted(h, xp, q, seen), lambda: q)
        factors = _cut(xp, q, x.shape, _full(h, x.shape))
        for factor in factors, [_adjoint(xp, f) for f in factors]:
            for i, f in enumerate(factor):
                u = _along(xp, f, u, i)
        if h.clip is not None:
            u = u / at_least(xp, (rms(xp, u) + 1e-6) / h.clip, 1.0)
        return -h.lr * xp.reshape(u, p.shape), m, q


def _full(h: H, shape: tuple[int, ...]) -> list[bool]:
    """Return which axes have a matrix."""
    longest = max(shape, default=0)
    alone = h.memory_save == "one_diag" or (h.memory_save == "smart_one_diag" and shape.count(longest) == 1)
    last = max((i for i, n in enumerate(shape) if n == longest), default=0)
    return [
        1 < n <= h.max_dim
        and (len(shape) > 1 or h.vectors)
        and h.memory_save != "all_diag"
        and not (alone and i == last)
        for i, n in enumerate(shape or (1,))
    ]


def _adjoint(xp: Any, factor: Array) -> Array:
    return conj(xp, factor) if factor.ndim == 1 else adjoint(xp, factor)


def _fitted(h: H, xp: Any, q: Array, x: Array) -> Array:
    """Return the factors after a step of relative gradient descent, which multiplies each by a triangle near I."""
    factors = _cut(xp, q, x.shape, _full(h, x.shape))
    a, b = x, random.normal(x, (h.seed, h.leaf), h.t)
    for i, f in enumerate(factors):
        a, b = _along(xp, f, a, i), _solved(xp, f, b, i)
    # the quotient below does not change when both are divided, and squares of 1e20 have no float32
    unit = positive(xp, xp.maximum(xp.max(xp.abs(a)), xp.max(xp.abs(b))))
    a, b, found = a / unit, b / unit, []
    for i, f in enumerate(factors):
        one, two = _moment(xp, a, i, f.ndim == 2), _moment(xp, b, i, f.ndim == 2)
        if f.ndim == 1:
            found.append(f - h.precond_lr / xp.max(xp.abs(one + two)) * (one - two) * f)
        else:
            found.append(f - h.precond_lr / _bound(xp, one + two) * xp.matmul(xp.triu(one - two), f))
    sizes = [xp.max(xp.abs(f)) for f in found]
    mean = math.prod(size ** (1 / len(sizes)) for size in sizes)
    new = _joined(xp, [f * (mean / size) for f, size in zip(found, sizes, strict=True)])
    return xp.where(xp.any(x != 0), new, q)


def _solved(xp: Any, factor: Array, x: Array, axis: int) -> Array:
    """Return Q⁻ᴴ·x along an axis."""
    if factor.ndim == 1:
        return _along(xp, 1 / conj(xp, factor), x, axis)
    rows = xp.moveaxis(x, axis, 0)
    found = xp.linalg.solve(adjoint(xp, factor), xp.reshape(rows, (rows.shape[0], -1)))
    return xp.moveaxis(xp.reshape(found, rows.shape), 0, axis)


def _bound(xp: Any, x: Array) -> Array:
    """Return a lower bound of the spectral norm of a Hermitian matrix: one step of the power method.

    It begins with the longest column, or the sum of all that are as long. Of numbers up to 1, which are not all small,
    squares are fine.
    """
    top = xp.max(xp.abs(x))
    x = x / top
    sizes = xp.sum(abs2(xp, x), axis=0)
    column = xp.sum(xp.where(sizes == xp.max(sizes), x, xp.zeros_like(x)), axis=1)
    y = xp.matmul(x, column)
    return top * xp.sqrt(xp.sum(abs2(xp, xp.matmul(x, y))) / xp.sum(abs2(xp, y)))
