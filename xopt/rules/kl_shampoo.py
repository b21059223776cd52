"""Shampoo and SOAP whose matrices minimize a Kullback-Leibler divergence: KL-Shampoo and KL-SOAP."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from xopt.rule import Array, Decay, H, Hyper, Moments, Rule, abs2, hyper, static
from xopt.rule._whole_array import (
    adjoint,
    at_least,
    digits,
    either,
    identity,
    mean,
    positive,
    real_zeros,
    rms,
    zeros,
)
from xopt.rules.shampoo import (
    SOAP,
    _adam,
    _along,
    _axes,
    _cleared,
    _due,
    _eigenvectors,
    _joined,
    _moment,
    _squares,
    _turned,
)

__all__ = ["KLSOAP", "KLShampoo"]


class KLShampoo(Rule):
    r"""KL-Shampoo (Lin et al. 2025, arXiv:2509.03378): Shampoo whose matrices are estimated together.

    Shampoo's Sᵢ is the covariance of an array as if all other axes had none. Here the Kronecker product of all Sᵢ is
    the one that is nearest to the mean of g·gᴴ in the Kullback-Leibler divergence of Gaussians. For an array with k
    axes, of which Hᵢ has axis i for rows and all others for its dᵢ columns; x' is x turned into the bases, Qᵢᴴ·x along
    each axis i::

        m ← β₁·m + (1-β₁)·g
        u' = m' / (√(λ₁·λ₂ ⋯ λₖ) + ε),  u turned back by Qᵢ
        p ← p - lr·u
        Δᵢ = Hᵢ·Hᵢᴴ/dᵢ                               of g turned and divided by √λ along all axes but i
        Sᵢ ← β₂·Sᵢ + (1-β₂)·Δᵢ
        λᵢ ← β₂·λᵢ + (1-β₂)·diag(Qᵢᴴ·Δᵢ·Qᵢ)
        Qᵢ ← QR(Sᵢ·Qᵢ)                               every so many steps

    so that Δ₁ of a matrix is G·Q₂·diag(1/λ₂)·Q₂ᴴ·Gᴴ/n₂. The first step makes the bases, the eigenvectors of Sᵢ, and
    moves nothing.

    Parameters
    ----------
    lr
        Learning rate, ≥ 0.
    b1, b2
        β₁ and β₂ in [0, 1).
    eps
        ε > 0, in the unit of the gradient.
    initial
        First value of every eigenvalue, > 0, in the unit of the gradient to the power of 2/k; None: the mean of \|g\|²
        to the power of 1/k, of the first gradient that is not 0.
    update_every
        The bases are turned every so many steps, ≥ 1.
    max_dim
        Length of an axis, ≥ 1, above which it keeps its own basis, Q = I, and has λ alone.
    vectors
        Turn vectors too. Otherwise they keep their basis, in which the rule is RMSProp with momentum.
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: ``m``, shaped like the parameter, 4 bytes per float32 parameter; ``s`` and ``q``, the matrices and bases of
    all axes end to end, 8·(rows² + columns²) bytes per float32 matrix; ``e`` (real), the eigenvalues of all axes.

    It is the practical scheme of the paper, in which λ is an average of its own and Q makes one step of a power
    iteration; of matrices, the authors' code with ``initial=1`` and without bounds of λ does the same. That starts λ at
    0.1, whatever the unit of the gradient, and bounds λ^(-1/2) by a number that depends on the length of the axis
    alone; this rule does not depend on the unit but for ε. Where the rule divides by it, an eigenvalue is at least
    ε^(2/k), and n·u times the largest of its axis, where u is the distance from 1 to the next number of the dtype
    (1.2e-7 in float32). The authors' code does not divide the first gradient, which makes the bases, by √λ, and with
    three axes it divides by some λ that are new already. As there, m has no bias correction.

    What :class:`~xopt.SOAP` says about gradients of a low rank goes for this rule: what may be rounding error of m' is
    taken for 0, and libraries give the same numbers where the first gradient has the full rank. Of more than two axes λ
    swings up if β₂ is less than 1 - 2/k. A NaN in the gradient makes the array NaN. dask has no eigenvalues.

    A step is divided by eigenvalues of the gradients before it. Where these become k times as large at once, the first
    step is 1 + (1-β₁)·(k-1) times as long as others, which clipping (:class:`~xopt.ClipByGlobalNorm`) prevents; that
    of :class:`~xopt.SOAP` and :class:`~xopt.KLSOAP` is not. λ of an array with one axis or none holds squares:
    gradients above 1e18 overflow in float32.

    References
    ----------
    W. Lin, S. C. Lowe, F. Dangel, R. Eschenhagen, Z. Xu, R. B. Grosse (2025), Understanding and improving Shampoo and
    SOAP via Kullback-Leibler minimization, arXiv:2509.03378; https://github.com/yorkerlin/KL-Methods.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.KLShampoo(lr=0.1, b1=0.0), np.diag([1.0, 2.0])
    >>> state = rule.init(w)
    >>> for _ in range(2):
    ...     w, state = rule.apply(w, w, state)
    >>> w.round(3)
    array([[0.911, 0.   ],
           [0.   , 1.821]])
    """

    lr: Hyper = hyper(default=3e-3, ge=0)
    b1: Hyper = hyper(default=0.95, ge=0, lt=1)
    b2: Hyper = hyper(default=0.95, ge=0, lt=1)
    eps: Hyper = hyper(default=1e-8, gt=0)
    initial: Hyper | None = hyper(default=None, gt=0)
    update_every: int = static(default=10, ge=1)
    max_dim: int = static(default=10000, ge=1)
    vectors: bool = False
    decay: Decay = static(default="lr", kw_only=True)
    elementwise = False
    moments: ClassVar[Moments] = {"m": "signed"}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        return {"moving": xp.where(h.t > 1, 1.0, 0.0)}

    @staticmethod
    def values(h: H, xp: Any, p: Array) -> Array:
        """Return the first eigenvalues of all axes, end to end."""
        return real_zeros(xp, p, (sum(p.shape or (1,)),))

    matrices = staticmethod(SOAP.matrices)

    @staticmethod
    def bases(h: H, xp: Any, p: Array) -> Array:
        """Return the first bases, end to end."""
        axes = _axes(h, p)
        return _joined(xp, [identity(xp, p, n) for n in axes.values()]) if axes else zeros(xp, p, (0,))

    @staticmethod
    def update(
        h: H, xp: Any, p: Array, g: Array, m: Array = 0.0, s: Array = "matrices", q: Array = "bases",
        e: Array = "values",
    ) -> tuple[Array, ...]:  # fmt: skip
        if 0 in p.shape:
            return xp.zeros_like(p), m, s, q, e
        axes = _axes(h, p)
        bases, values = _squares(xp, q, axes), _values(h, xp, e, g)
        m = m + h.moving * (1 - h.b1) * (g - m)
        u = _cleared(h, xp, _turned(xp, m, {i: adjoint(xp, x) for i, x in bases.items()}), m, axes)
        size = math.prod(_shaped(xp, root, i, p.ndim) for i, root in enumerate(_roots(h, xp, values)))
        u = _turned(xp, u / (size + h.eps), bases)
        return -h.lr * u, m, *_learned(h, xp, g, h.b2, values, s, q, axes)


class KLSOAP(SOAP):
    r"""KL-SOAP (Lin et al. 2025, arXiv:2509.03378): Adam in the basis of KL-Shampoo's matrices.

    As :class:`~xopt.SOAP`, with Δᵢ of :class:`~xopt.KLShampoo` in the place of Gᵢ·Gᵢᴴ::

        m ← β₁·m + (1-β₁)·g
        v ← β₂·v + (1-β₂)·|g'|²
        u' = (m'/c₁) / (√(v/c₂) + ε),  u turned back by Qᵢ
        p ← p - lr·u
        Sᵢ ← β·Sᵢ + (1-β)·Δᵢ
        λᵢ ← β·λᵢ + (1-β)·diag(Qᵢᴴ·Δᵢ·Qᵢ)
        Qᵢ ← QR(Sᵢ·Qᵢ)                               every so many steps

    Parameters
    ----------
    lr, b1, b2, shampoo_b, eps, update_every, max_dim, vectors, normalize, eps_mode, bias
        As for :class:`~xopt.SOAP`. An axis above max_dim has λ alone.
    initial
        As for :class:`~xopt.KLShampoo`.
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: ``m``, ``v``, ``s`` and ``q`` as of :class:`~xopt.SOAP`, 8 bytes per float32 parameter and
    8·(rows² + columns²) bytes per float32 matrix; ``e`` (real), the eigenvalues of all axes end to end.

    Columns of Qᵢ are not sorted. The authors' code has no bias correction (``bias="none"``) and an ε beside √v
    (``eps_mode="hat"``); see :class:`~xopt.KLShampoo` for what it does otherwise. v holds squares: gradients above 1e18
    overflow in float32.

    References
    ----------
    W. Lin, S. C. Lowe, F. Dangel, R. Eschenhagen, Z. Xu, R. B. Grosse (2025), Understanding and improving Shampoo and
    SOAP via Kullback-Leibler minimization, arXiv:2509.03378.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.KLSOAP(lr=0.1), np.diag([1.0, 2.0])
    >>> state = rule.init(w)
    >>> for _ in range(2):
    ...     w, state = rule.apply(w, w, state)
    >>> w.round(3)
    array([[0.9, 0. ],
           [0. , 1.9]])
    """

    initial: Hyper | None = hyper(default=None, gt=0)
    moments: ClassVar[Moments] = {"m": "signed", "v": "square"}

    @staticmethod
    def values(h: H, xp: Any, p: Array) -> Array:
        """Return the first eigenvalues of all axes, end to end; of an array that is not turned, none."""
        return real_zeros(xp, p, (sum(p.shape) if _axes(h, p) else 0,))

    bases = staticmethod(KLShampoo.bases)

    @staticmethod
    def update(
        h: H, xp: Any, p: Array, g: Array, m: Array = 0.0, v: Array = "squares", s: Array = "matrices",
        q: Array = "bases", e: Array = "values",
    ) -> tuple[Array, ...]:  # fmt: skip
        if 0 in p.shape:
            return xp.zeros_like(p), m, v, s, q, e
        axes = _axes(h, p)
        u, m, v = _adam(h, xp, g, m, v, _squares(xp, q, axes), axes)
        if axes:
            b = h.b2 if h.shampoo_b is None else h.shampoo_b
            s, q, e = _learned(h, xp, g, b, _values(h, xp, e, g), s, q, axes)
        return -(h.lr * h.c2**0.5 / h.c1) * u, m, v, s, q, e


def _values(h: H, xp: Any, e: Array, g: Array) -> list[Array]:
    """Return the eigenvalues of each axis: the first ones where there are none yet."""
    first = rms(xp, g) ** (2 / max(1, g.ndim)) if h.initial is None else h.initial
    found, start = [], 0
    for n in g.shape or (1,):
        one = e[start : start + n]
        found.append(xp.where(xp.max(one) == 0, xp.zeros_like(one) + first, one))
        start += n
    return found


def _roots(h: H, xp: Any, values: list[Array]) -> list[Array]:
    """Return the roots of the eigenvalues as they are divided by."""
    found = []
    for x in values:
        x = at_least(xp, x, x.shape[0] * digits(xp, x) * xp.max(x))
        found.append(xp.sqrt(positive(xp, at_least(xp, x, h.eps ** (2 / len(values))))))
    return found


def _shaped(xp: Any, x: Array, axis: int, ndim: int) -> Array:
    """Lay numbers along an axis."""
    return xp.reshape(x, tuple(x.shape[0] if k == axis else 1 for k in range(ndim)))


def _learned(
    h: H, xp: Any, g: Array, b: Any, values: list[Array], s: Array, q: Array, axes: dict[int, int]
) -> tuple[Array, Array, Array]:
    """Return new matrices, bases and eigenvalues, from a gradient that is whitened along all axes but one."""
    bases = _squares(xp, q, axes)
    back = {i: adjoint(xp, x) for i, x in bases.items()}
    roots, seen, moments = _roots(h, xp, values), [], []
    g = xp.reshape(g, g.shape or (1,))
    for i, old in enumerate(values):
        x = g
        for k, root in enumerate(roots):
            if k != i:  # one axis after the other, so that no product of eigenvalues overflows
                x = (_along(xp, back[k], x, k) if k in back else x) / _shaped(xp, root, k, g.ndim)
        if i in axes:
            moments.append(_moment(xp, x, i, True) / (math.prod(g.shape) / g.shape[i]))
        new = mean(xp, abs2(xp, _along(xp, back[i], x, i) if i in back else x), _others(i, g.ndim))
        seen.append(old + h.moving * (1 - b) * (xp.reshape(new, (-1,)) - old))
    if axes:
        s = b * s + (1 - b) * _joined(xp, moments)
        q = either(_due(h), lambda: _renewed(h, xp, _squares(xp, s, axes), bases), lambda: q)
    return s, q, xp.concat(seen)


def _others(axis: int, ndim: int) -> tuple[int, ...]:
    return tuple(k for k in range(ndim) if k != axis)


def _renewed(h: H, xp: Any, moments: dict[int, Array], bases: dict[int, Array]) -> Array:
    """Return the eigenvectors in step 1, then a step of the power iteration."""

    def later() -> Array:
        return _joined(xp, [xp.linalg.qr(xp.matmul(moments[i], x))[0] for i, x in bases.items()])

    return either(h.t == 1, lambda: _eigenvectors(xp, moments), later)
