"""Rules with a matrix for each axis of an array: Shampoo and SOAP."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from xopt.rule import Array, Decay, H, Hyper, Moments, Rule, abs2, hyper, is_complex, static
from xopt.rule import _whole_array as _whole_array
from xopt.rule._whole_array import (
    adjoint,
    at_least,
    conj,
    digits,
    either,
    finite_eigh,
    norm,
    positive,
    real_zeros,
    zeros,
)

__all__ = ["SOAP", "Shampoo"]


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
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: ``s``, the matrices of all axes end to end, 4·(rows² + columns²) bytes per float32 matrix; as much again for
    the roots ``q`` if they are not computed in every step; with momentum ``m``, shaped like the parameter,
    4 bytes per float32 parameter.

    The roots are computed from eigenvalues, in the dtype of the arithmetic. The paper's εI, which S starts with, is
    added when the root is taken, so that b2 does not wear it down. A NaN in the gradient makes the array NaN. dask has
    no eigenvalues.

    Before ε is added, an eigenvalue is at least n·u times the largest, where n is the length of the axis and u the
    distance from 1 to the next number of the dtype (1.2e-7 in float32): what is smaller is rounding error, and any
    gradient of a low rank has such eigenvalues. It is the tolerance of ``torch.linalg.matrix_rank``, which the code of
    Shi et al. (2023) offers as ``PseudoInverseConfig(rank_rtol=None)``; the ridge in the code of Anil et al. (2020) is
    1e-6 of the largest eigenvalue. In float32 a step has an error of some √(u/n) for a vector, and less for other
    arrays. A direction that no gradient had when the roots were computed gets the floor: with ``update_every`` its
    first steps may be large. S holds squares: gradients above 1e18 overflow in float32.

    References
    ----------
    V. Gupta, T. Koren, Y. Singer (2018), Shampoo: preconditioned stochastic tensor optimization, arXiv:1802.09568,
    Algorithms 1 and 2. R. Anil, V. Gupta, T. Koren, K. Regan, Y. Singer (2020), Scalable second order optimization for
    deep learning, arXiv:2002.09018. H.-J. M. Shi et al. (2023), A distributed data-parallel PyTorch implementation of
    the distributed Shampoo optimizer, arXiv:2309.06497.

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
    elementwise = False
    moments: ClassVar[Moments] = {"m": "signed"}

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
        full = [n <= h.max_dim for n in g.shape]
        moments = _joined(xp, [_moment(xp, g, i, whole) for i, whole in enumerate(full)])
        s = s + moments if h.b2 is None else h.b2 * s + (1 - h.b2) * moments
        q = either(
            _due(h), lambda: _joined(xp, [_root(h, xp, x, g.ndim) for x in _cut(xp, s, g.shape, full)]), lambda: q
        )
        for i, root in enumerate(_cut(xp, q, g.shape, full)):
            u = _along(xp, root, u, i)
        if h.graft == "sgd":
            size = norm(xp, u)
            u = u * (norm(xp, g) / xp.where(size > 0, size, xp.ones_like(size)))
        u = xp.reshape(u, p.shape)
        if h.momentum is not None:
            u = m = h.momentum * m + u
        return -h.lr * u, s, q, m


def _due(h: H) -> Any:
    """Whether this is step 1, or so many steps later."""
    return h.update_every == 1 or (h.t - 1) % h.update_every == 0


def _sizes(h: H, shape: tuple[int, ...]) -> list[int]:
    """Return how many numbers are kept for each axis: a matrix, or its diagonal."""
    return [n * n if n <= h.max_dim else n for n in shape or (1,)]


def _cut(xp: Any, x: Array, shape: tuple[int, ...], full: list[bool]) -> list[Array]:
    """Cut what lies end to end into a matrix for each axis, or its diagonal where that is all that is kept."""
    found, start = [], 0
    for n, whole in zip(shape, full, strict=True):
        size = n * n if whole else n
        one = x[start : start + size]
        found.append(xp.reshape(one, (n, n)) if whole else one)
        start += size
    return found


def _joined(xp: Any, matrices: list[Array]) -> Array:
    return xp.concat([xp.reshape(x, (-1,)) for x in matrices])


def _moment(xp: Any, g: Array, axis: int, full: bool) -> Array:
    """Return G·Gᴴ, where the rows of G go along an axis; or its diagonal."""
    rows = xp.reshape(xp.moveaxis(g, axis, 0), (g.shape[axis], -1))
    return xp.matmul(rows, adjoint(xp, rows)) if full else xp.sum(rows * conj(xp, rows), axis=1)


def _root(h: H, xp: Any, x: Array, rank: int) -> Array:
    """Return the root of the inverse of x + εI, with eigenvalues of x that can be told from 0."""
    power = -1 / (2 * rank)
    if x.ndim == 1:
        return positive(xp, (xp.real(x) if is_complex(x) else x) + h.eps) ** power * xp.ones_like(x)
    values, unit, vectors = finite_eigh(xp, x, h.eps)
    values = at_least(xp, values, x.shape[0] * digits(xp, values) * xp.max(values))
    powers = positive(xp, values + h.eps / unit) ** power * unit**power
    return xp.matmul(vectors * powers, adjoint(xp, vectors))


def _along(xp: Any, root: Array, u: Array, axis: int) -> Array:
    """Multiply an array by a matrix along an axis, or by its diagonal."""
    if root.ndim == 1:
        return u * xp.reshape(root, tuple(n if k == axis else 1 for k, n in enumerate(u.shape)))
    return xp.moveaxis(xp.tensordot(root, u, axes=((1,), (axis,))), 0, axis)


class SOAP(Rule):
    r"""SOAP (Vyas et al. 2024, arXiv:2409.11321, Algorithm 3): Adam in the basis of Shampoo's matrices.

    For an array with k axes, of which Gᵢ has axis i for rows and all others for columns; x' is x turned into the bases,
    Qᵢᴴ·x along each axis i::

        m ← β₁·m + (1-β₁)·g
        v ← β₂·v + (1-β₂)·|g'|²
        u' = (m'/c₁) / (√(v/c₂) + ε),  u turned back by Qᵢ
        p ← p - lr·u
        Sᵢ ← β·Sᵢ + (1-β)·Gᵢ·Gᵢᴴ
        Qᵢ ← QR(Sᵢ·Qᵢ)                               every so many steps

    The first step makes the bases, the eigenvectors of Sᵢ, and moves nothing; c₁ = 1 - β₁ᵗ⁻¹ and c₂ = 1 - β₂ᵗ⁻¹.

    Parameters
    ----------
    lr
        Learning rate, ≥ 0.
    b1, b2
        β₁ and β₂ in [0, 1).
    shampoo_b
        β in [0, 1); None: β₂.
    eps
        ε > 0, in the unit of the gradient.
    update_every
        The bases are turned every so many steps, ≥ 1.
    max_dim
        Length of an axis, ≥ 1, above which it keeps its own basis, Q = I.
    vectors
        Turn vectors too. Otherwise they get Adam, one step late.
    normalize
        Divide u by its root mean square, but for the factor √c₂/c₁, which it keeps, as in the authors' code.
    eps_mode
        ``"hat"``: (√v + ε)/√c₂ (the authors' code); ``"outside"``: as above.
    bias
        ``"standard"``; ``"none"``: c₁ = c₂ = 1, as Algorithm 3 is printed.
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: ``m`` and ``v`` (real), shaped like the parameter, 8 bytes per float32 parameter; ``s`` and ``q``, the
    matrices and bases of all axes end to end, 8·(rows² + columns²) bytes per float32 matrix.

    Before they are turned, the columns of Qᵢ are sorted by what they show of Sᵢ, the largest first, and v with them:
    the authors' code does that, the paper does not say so. Where the first gradient has a lower rank than an axis is
    long, by two or more, the first basis is partly the library's choice, and so are the steps: of this rule, libraries
    give the same numbers only for gradients of full rank. The authors' code decays the weights after a step, and not in
    the first. A NaN in the gradient makes the array NaN. dask has no eigenvalues.

    An element of m' that is no larger than the rounding errors of turning m and of averaging it counts as 0: some units
    in the last place of the norms of its row and its column. Otherwise a gradient of a low rank, of which v' is as
    small, would make full steps of them. The authors' code does that.

    References
    ----------
    N. Vyas, D. Morwani, R. Zhao, M. Kwun, I. Shapira, D. Brandfonbrener, L. Janson, S. Kakade (2024), SOAP: improving
    and stabilizing Shampoo using Adam, arXiv:2409.11321, Algorithms 3 and 4.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.SOAP(lr=0.1), np.diag([1.0, 2.0])
    >>> state = rule.init(w)
    >>> for _ in range(2):
    ...     w, state = rule.apply(w, w, state)
    >>> w.round(3)
    array([[0.9, 0. ],
           [0. , 1.9]])
    """

    lr: Hyper = hyper(default=3e-3, ge=0)
    b1: Hyper = hyper(default=0.95, ge=0, lt=1)
    b2: Hyper = hyper(default=0.95, ge=0, lt=1)
    shampoo_b: Hyper | None = hyper(default=None, ge=0, lt=1)
    eps: Hyper = hyper(default=1e-8, gt=0)
    update_every: int = static(default=10, ge=1)
    max_dim: int = static(default=10000, ge=1)
    vectors: bool = False
    normalize: bool = False
    eps_mode: Literal["outside", "hat"] = "hat"
    bias: Literal["standard", "none"] = "standard"
    decay: Decay = static(default="lr", kw_only=True)
    elementwise = False
    moments: ClassVar[Moments] = {"m": "signed", "v": "square"}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        k = xp.maximum(h.t - 1, 1.0)
        c1, c2 = [1.0 if h.bias == "none" else -xp.expm1(k * xp.log(b)) for b in (h.b1, h.b2)]
        return {"moving": xp.where(h.t > 1, 1.0, 0.0), "c1": c1, "c2": c2}

    @staticmethod
    def matrices(h: H, xp: Any, p: Array) -> Array:
        """Return the first matrices of all axes, end to end."""
        return zeros(xp, p, (sum(n * n for n in _axes(h, p).values()),))

    bases = matrices

    @staticmethod
    def squares(h: H, xp: Any, p: Array) -> Array:
        """Return the first mean of squares."""
        return real_zeros(xp, p, p.shape)

    @staticmethod
    def update(
        h: H,
        xp: Any,
        p: Array,
        g: Array,
        m: Array = 0.0,
        v: Array = "squares",
        s: Array = "matrices",
        q: Array = "bases",
    ) -> tuple[Array, ...]:
        if 0 in p.shape:
            return xp.zeros_like(p), m, v, s, q
        axes = _axes(h, p)
        bases = _squares(xp, q, axes)
        u, m, v = _adam(h, xp, g, m, v, bases, axes)
        if axes:
            b = h.b2 if h.shampoo_b is None else h.shampoo_b
            s = b * s + (1 - b) * _joined(xp, [_moment(xp, g, i, True) for i in axes])
            q, v = either(_due(h), lambda: _renewed(h, xp, _squares(xp, s, axes), bases, v), lambda: (q, v))
        return -(h.lr * h.c2**0.5 / h.c1) * u, m, v, s, q


def _adam(
    h: H, xp: Any, g: Array, m: Array, v: Array, bases: dict[int, Array], axes: dict[int, int]
) -> tuple[Array, Array, Array]:
    """Return the step of Adam in the bases, turned back, and its new moments."""
    back = {i: adjoint(xp, x) for i, x in bases.items()}
    m = m + h.moving * (1 - h.b1) * (g - m)
    v = v + h.moving * (1 - h.b2) * (abs2(xp, _turned(xp, g, back)) - v)
    eps = h.eps if h.eps_mode == "hat" else h.eps * h.c2**0.5
    u = _turned(xp, _cleared(h, xp, _turned(xp, m, back), m, axes) / (xp.sqrt(v) + eps), bases)
    if h.normalize:
        size = _whole_array.rms(xp, u)
        u = xp.where(size == 0, xp.zeros_like(u), u) / (size + 1e-30)  # XLA makes a/b/c of a bare u: a/(b·c)
    return u, m, v


def _axes(h: H, p: Array) -> dict[int, int]:
    """Return the axes that have a basis, and their lengths."""
    return {i: n for i, n in enumerate(p.shape) if n <= h.max_dim and (p.ndim > 1 or h.vectors)}


def _squares(xp: Any, x: Array, axes: dict[int, int]) -> dict[int, Array]:
    """Cut what lies end to end into a matrix for each axis."""
    found, start = {}, 0
    for i, n in axes.items():
        found[i] = xp.reshape(x[start : start + n * n], (n, n))
        start += n * n
    return found


def _turned(xp: Any, x: Array, matrices: dict[int, Array]) -> Array:
    for i, matrix in matrices.items():
        x = _along(xp, matrix, x, i)
    return x


def _cleared(h: H, xp: Any, turned: Array, m: Array, axes: dict[int, int]) -> Array:
    """Make 0 of what may be rounding error of turning m and of averaging it: divided by √v it would be a full step."""
    if not axes:
        return turned
    unit = digits(xp, m)
    noise = 8 * unit * sum(norm(xp, turned, (i,)) for i in axes) + unit / (1 - h.b1) * xp.max(xp.abs(m))
    return xp.where(xp.abs(turned) < noise, xp.zeros_like(turned), turned)


def _eigenvectors(xp: Any, moments: dict[int, Array]) -> Array:
    """Return those of each matrix end to end, that of the largest eigenvalue first."""
    return _joined(xp, [xp.flip(finite_eigh(xp, s)[2], axis=1) for s in moments.values()])


def _renewed(h: H, xp: Any, moments: dict[int, Array], bases: dict[int, Array], v: Array) -> tuple[Array, Array]:
    """Return the eigenvectors in step 1, then a step of the power iteration; v is sorted as its columns are."""

    def first() -> tuple[Array, Array]:
        return _eigenvectors(xp, moments), v

    def later() -> tuple[Array, Array]:
        found, sorted_v = [], v
        for i, q in bases.items():
            s = xp.matmul(moments[i], q)
            shown = xp.sum(conj(xp, q) * s, axis=0)
            order = xp.argsort(-(xp.real(shown) if is_complex(shown) else shown))
            sorted_v = xp.take(sorted_v, order, axis=i)
            found.append(xp.linalg.qr(xp.take(s, order, axis=1))[0])
        return _joined(xp, found), sorted_v

    return either(h.t == 1, first, later)  # type: ignore[no-any-return]
