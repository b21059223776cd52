"""Rules that take a matrix for a matrix: Muon, NorMuon."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

from xopt.rule import Array, Decay, H, Hyper, Moments, RoutedComponent, Rule, abs2, hyper, static
from xopt.rule._newton_schulz import Coefficients, checked, table
from xopt.rule._whole_array import adjoint, at_least, mean, norm, real_zeros
from xopt.rules.adam import Adam

__all__ = ["Muon", "NorMuon"]


class Muon(Rule):
    r"""Muon (Jordan et al. 2024): momentum, made almost orthogonal by a Newton-Schulz iteration.

    For a matrix of r rows and c columns::

        m ← μ·m + (1-μ)·g                            "sum": m ← μ·m + g
        u = μ·m + (1-μ)·g                            "sum": u = μ·m + g; not nesterov: u = m
        X = u / (‖u‖₂ + ε)                           "max": u / max(‖u‖₂, ε)
        X ← a·X + (b·A + c·A²)·X,  A = X·Xᴴ          ns_steps times, with a, b, c of each step
        p ← p - lr·s·X

    with s = max(1, r/c)½ ("original"), max(1, c/r)½ ("in_out"), (r/c)½ ("ratio"), rms·max(r, c)½ ("match_rms") or 1
    ("none"). ``matrices`` says which leaves are matrices; every other one goes to ``other``.

    Parameters
    ----------
    lr
        Learning rate, ≥ 0: 0.02 with "original", that of AdamW with "match_rms".
    momentum
        μ in [0, 1).
    a, b, c
        Coefficients of the iteration, the same in each step; None beside ``coefficients``.
    eps
        ε > 0, in the unit of the gradient.
    rms
        Root mean square of a step with "match_rms", ≥ 0, in units of lr; None: 0.2.
    ns_steps
        Steps of the iteration, ≥ 1.
    nesterov
        Look ahead by one more step of the momentum.
    form
        ``"ema"``: an average (Jordan, torch, MLX). ``"sum"``: as in SGD (Keras). ``"corrected"``: an average without
        its bias, u = μ·m/(1-μᵗ⁺¹) + (1-μ)·g/(1-μᵗ) or m/(1-μᵗ) (optax).
    scale
        The factor s. ``"original"`` (Jordan, torch, MLX), ``"in_out"``, for weights stored as (inputs, outputs)
        (optax), ``"ratio"``, ``"match_rms"`` (Liu et al. 2025; torch's "match_rms_adamw", Keras), ``"none"``.
    eps_mode
        ``"add"`` ε to the norm (Jordan, optax, Keras) or take the larger of both: ``"max"`` (torch).
    other
        Rule for leaves that are no matrices. None: :class:`~xopt.Adam` with this rule's lr, weight_decay and decay;
        optax's has the lr too, but a Nesterov step and no decay. One rate suits both with "match_rms" only.
    coefficients
        In the place of a, b, c, others in each step. ``"polar_express"``: the polynomials that are best for singular
        values in [0.001, 1], each for what the one before left (Amsel et al. 2025). ``"cans"``: those that take the
        longest [ℓ, 1] into [0.7, 1.3] in so many steps (Grishina et al. 2025). Or (a, b, c), or such a triple for each
        step. Where there are fewer than steps, the last is repeated, and of more the first are
        used; the two tables have 8.
    safety
        Divide X by this number ≥ 1 before each step, so that rounding errors do not take singular values out of the
        interval; not where the last of ``coefficients`` stands. None: 1.01 with "polar_express", as in the paper, else
        1.
    matrices
        ``"2d"``: leaves with two axes are matrices. With more axes, all leaves that have two: ``"batched"``, the last
        two of each, and those in front number them; ``"out_in"``, the first and all others as one (convolutions of
        torch: output channels first); ``"in_out"``, the last and all others as one (those of JAX and Keras).
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`; ``decay="lr"`` in every library but MLX. ``maximize`` and ``complex`` hold for
        ``other`` too, ``like`` for matrices alone.

    Notes
    -----
    State: ``m``, shaped like the parameter, 4 bytes per float32 parameter; of other leaves that of ``other``.

    Computed in the dtype of the arithmetic, float32 at least; torch and Jordan use bfloat16, which is another result
    from the third digit on. A singular value that is 0 but for rounding grows with the others, a times in each step of
    the iteration: to 6e-5 of the largest in five, and in float32 to 1 in a dozen. What "cans" makes of a singular value
    swings between 0.7 and 1.3 so often that five steps in float32 leave four digits of it. A NaN in the gradient makes
    the whole matrix NaN. Embeddings and the last layer are matrices too; the authors leave these to AdamW. Complex
    matrices have conjugate transposes.

    References
    ----------
    K. Jordan et al. (2024), Muon: an optimizer for hidden layers in neural networks,
    https://kellerjordan.github.io/posts/muon.

    J. Liu et al. (2025), Muon is scalable for LLM training, arXiv:2502.16982, equation 4.

    N. Amsel, D. Persson, C. Musco, R. M. Gower (2025), The Polar Express: optimal matrix sign methods and their
    application to the Muon algorithm, arXiv:2505.16932, Algorithm 2.

    E. Grishina, M. Smirnov, M. Rakhuba (2025), Accelerating Newton-Schulz iteration for orthogonalization via
    Chebyshev-type polynomials, arXiv:2506.10935.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule = xopt.Muon(lr=0.1, other=xopt.SGD(lr=0.5))
    >>> w = {"w": np.eye(2), "b": np.ones(2)}
    >>> w, state = rule.apply(w, {"w": 3 * w["w"], "b": w["b"]}, rule.init(w))
    >>> w["w"].round(3), w["b"]
    (array([[0.969, 0.   ],
           [0.   , 0.969]]), array([0.5, 0.5]))
    >>> list(state.slots)
    ['0.muon.m']
    """

    lr: Hyper = hyper(default=1e-3, ge=0)
    momentum: Hyper = hyper(default=0.95, ge=0, lt=1)
    a: Hyper | None = hyper(default=3.4445, optional=True)
    b: Hyper | None = hyper(default=-4.7750, optional=True)
    c: Hyper | None = hyper(default=2.0315, optional=True)
    eps: Hyper = hyper(default=1e-7, gt=0)
    rms: Hyper | None = hyper(default=None, ge=0)
    ns_steps: int = static(default=5, ge=1)
    nesterov: bool = True
    form: Literal["ema", "sum", "corrected"] = "ema"
    scale: Literal["original", "in_out", "ratio", "match_rms", "none"] = "match_rms"
    eps_mode: Literal["add", "max"] = "add"
    other: Rule | None = None
    coefficients: Coefficients = static(default=None, convert=checked)
    safety: Hyper | None = hyper(default=None, ge=1)
    matrices: Literal["2d", "batched", "out_in", "in_out"] = "2d"
    decay: Decay = static(default="lr", kw_only=True)
    elementwise = False
    moments: ClassVar[Moments] = {"m": "signed"}

    def _defaults(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        none = {} if given.get("coefficients") is None else dict.fromkeys("abc")
        return {**super()._defaults(given), **none}

    def _check(self) -> None:
        super()._check()
        name = type(self).__name__
        if self.rms is not None and self.scale != "match_rms":
            raise ValueError(f"{name}: rms does nothing with scale={self.scale!r}")
        for n in "abc":
            if (getattr(self, n) is None) == (self.coefficients is None):
                what = "is missing without" if self.coefficients is None else "does nothing beside"
                raise ValueError(f"{name}: {n}={getattr(self, n)!r} {what} coefficients")
        if self.safety is not None and (self.coefficients is None or len(table(self.coefficients, self.ns_steps)) < 2):
            raise ValueError(f"{name}: safety={self.safety!r} does nothing with coefficients of one step alone")
        given = {} if self.other is None else self.other._given
        for n in ("maximize", "complex"):
            if n in given and given[n] != getattr(self, n):
                raise ValueError(f"{name}: {n}={getattr(self, n)!r}, but {n}={given[n]!r} in other")

    def _route(self, layout: Any, k: int) -> Iterable[RoutedComponent] | None:
        axes = len(layout.shapes[k])
        if axes == 2 or (axes > 2 and self.matrices != "2d"):
            return super()._route(layout, k)
        if self.other is None:
            decay = () if self.weight_decay is None else ("weight_decay", "decay", "peak_lr")
            same = ("lr", "maximize", "complex", *decay)
            other: Rule = Adam(**{n: getattr(self, n) for n in same})
        else:
            other = self.other.replace(maximize=self.maximize, complex=self.complex)
        links = other._route(layout, k)
        return links and [link._replace(order=(1, *link.order)) for link in links]

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, m: Array = 0.0) -> tuple[Array, ...]:
        m, x = _orthogonal(h, xp, g, m)
        return -h.lr * _scale(h, *x.shape[-2:]) * _reshaped(xp, x, p.shape), m


class NorMuon(Muon):
    r"""NorMuon (Li et al. 2025, arXiv:2510.05491, Algorithm 1): Muon with steps of one size for every neuron.

    With X as in :class:`~xopt.Muon`, of which each row belongs to a neuron::

        v ← β₂·v + (1-β₂)·mean |X|²                  the mean over each row
        Y = X / (√v + ε₂)
        p ← p - lr·rms·Y / RMS(Y)                    "match_rms"
        p ← p - lr·s·Y·‖X‖₂ / (‖Y‖₂ + ε₂)            with the other scales, whose s is that of Muon

    Parameters
    ----------
    lr, momentum, a, b, c, eps, rms, ns_steps, nesterov, form
        As for :class:`~xopt.Muon`; the Algorithm of the paper has no Nesterov step, the authors' code has one.
    scale
        ``"match_rms"``: the root mean square of every step is lr·rms, as in the paper. ``"original"``, as in the
        authors' code, and the others: the norm of a step is that of Muon's.
    eps_mode, other, coefficients, safety, matrices
        As for :class:`~xopt.Muon`.
    b2
        β₂ in [0, 1).
    eps2
        ε₂ > 0, in the unit of X, which has none.
    units
        Which axis of a matrix counts the neurons. ``"first"``: weights stored as (outputs, inputs), as in torch;
        ``"last"``: as (inputs, outputs), as in JAX and Keras; the mean is then one over each column.
    weight_decay, decay, peak_lr, maximize, complex, like
        As for :class:`~xopt.Muon`.

    Notes
    -----
    State: ``m``, shaped like the parameter, 4 bytes per float32 parameter, and ``v`` (real), 4 bytes for each neuron;
    of other leaves that of ``other``.

    v has no bias correction: a factor that all its elements share is divided out again. The rows of X all but vanish
    where a neuron has no gradient, and stay so.

    References
    ----------
    Z. Li, L. Liu, C. Liang, W. Chen, T. Zhao (2025), NorMuon: making Muon more efficient and scalable,
    arXiv:2510.05491, Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.NorMuon(lr=0.1, rms=1.0), np.eye(2)
    >>> rule.apply(w, np.asarray([[3.0, 0.0], [0.0, 0.5]]), rule.init(w))[0].round(3)
    array([[0.859, 0.   ],
           [0.   , 0.859]])
    """

    b2: Hyper = hyper(default=0.95, ge=0, lt=1)
    eps2: Hyper = hyper(default=1e-10, gt=0)
    units: Literal["first", "last"] = "first"
    moments: ClassVar[Moments] = {"m": "signed"}

    @staticmethod
    def neurons(h: H, xp: Any, p: Array) -> Array:
        """Return the first means of squares."""
        *batch, rows, columns = _shape(h, p.shape)
        return real_zeros(xp, p, (*batch, rows, 1) if h.units == "first" else (*batch, 1, columns))

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, m: Array = 0.0, v: Array = "neurons") -> tuple[Array, ...]:
        m, x = _orthogonal(h, xp, g, m)
        v = h.b2 * v + (1 - h.b2) * mean(xp, abs2(xp, x), (-1 if h.units == "first" else -2,))
        y = x / (xp.sqrt(v) + h.eps2)
        rows, columns = x.shape[-2:]
        if h.scale == "match_rms":
            size, scale = math.sqrt(rows * columns), 0.2 if h.rms is None else h.rms
        else:
            size, scale = norm(xp, x, (-2, -1)), _scale(h, rows, columns)
        y = y * (size / (norm(xp, y, (-2, -1)) + h.eps2))
        return -h.lr * scale * _reshaped(xp, y, p.shape), m, v


def _orthogonal(h: H, xp: Any, g: Array, m: Array) -> tuple[Array, Array]:
    """Return the new momentum, and the matrices of the step with their singular values near 1."""
    gain = 1.0 if h.form == "sum" else 1 - h.momentum
    m = h.momentum * m + gain * g
    u = _ahead(h, gain, m, g)
    return m, _iterated(h, xp, _reshaped(xp, u, _shape(h, u.shape)))


def _ahead(h: H, gain: Any, m: Array, g: Array) -> Array:
    if h.form == "corrected":
        now, then = 1 - h.momentum**h.t, 1 - h.momentum * h.momentum**h.t
        return h.momentum / then * m + gain / now * g if h.nesterov else m / now
    return h.momentum * m + gain * g if h.nesterov else m


def _shape(h: H, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a leaf as matrices: the last two axes."""
    if h.matrices == "out_in":
        return shape[0], math.prod(shape[1:])
    return (math.prod(shape[:-1]), shape[-1]) if h.matrices == "in_out" else shape


def _reshaped(xp: Any, x: Array, shape: tuple[int, ...]) -> Array:
    return x if x.shape == shape else xp.reshape(x, shape)


def _iterated(h: H, xp: Any, u: Array) -> Array:
    """Bring the singular values near 1: p(p(…)) with p(σ) = aσ + bσ³ + cσ⁵, on the shorter side."""
    size = norm(xp, u, (-2, -1))
    x = u / (size + h.eps if h.eps_mode == "add" else at_least(xp, size, h.eps))
    tall = x.shape[-2] > x.shape[-1]
    x = adjoint(xp, x) if tall else x
    for a, b, c in _polynomials(h):
        gram = xp.matmul(x, adjoint(xp, x))
        x = a * x + xp.matmul(b * gram + c * xp.matmul(gram, gram), x)
    return adjoint(xp, x) if tall else x


def _polynomials(h: H) -> list[tuple[Any, Any, Any]]:
    """Return the coefficients of each step."""
    if h.coefficients is None:
        return [(h.a, h.b, h.c)] * h.ns_steps
    *rows, last = table(h.coefficients, h.ns_steps)
    safety = (1.01 if h.coefficients == "polar_express" else 1.0) if h.safety is None else h.safety
    divided = [(a / safety, b / safety**3, c / safety**5) for a, b, c in rows]
    return (divided + [last] * h.ns_steps)[: h.ns_steps]


def _scale(h: H, rows: int, columns: int) -> Any:
    rows, columns = max(rows, 1), max(columns, 1)
    scales = {"original": max(1.0, rows / columns), "in_out": max(1.0, columns / rows), "ratio": rows / columns}
    if h.scale == "match_rms":
        return (0.2 if h.rms is None else h.rms) * max(rows, columns) ** 0.5
    return scales.get(h.scale, 1.0) ** 0.5
