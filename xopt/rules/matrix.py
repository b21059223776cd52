"""Rules that take a matrix for a matrix: Muon."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from xopt.rule import Array, H, Hyper, RoutedComponent, Rule, hyper, static
from xopt.rule._whole_array import adjoint, at_least, norm
from xopt.rules.adam import Adam

__all__ = ["Muon"]


class Muon(Rule):
    r"""Muon (Jordan et al. 2024): momentum, made almost orthogonal by a Newton-Schulz iteration.

    For a matrix of r rows and c columns::

        m ← μ·m + (1-μ)·g                            "sum": m ← μ·m + g
        u = μ·m + (1-μ)·g                            "sum": u = μ·m + g; not nesterov: u = m
        X = u / (‖u‖₂ + ε)                           "max": u / max(‖u‖₂, ε)
        X ← a·X + (b·A + c·A²)·X,  A = X·Xᴴ          ns_steps times
        p ← p - lr·s·X

    with s = max(1, r/c)½ ("original"), max(1, c/r)½ ("in_out"), (r/c)½ ("ratio"), rms·max(r, c)½ ("match_rms") or 1
    ("none"). Every other leaf goes to ``other``.

    Parameters
    ----------
    lr
        Learning rate, ≥ 0: 0.02 with "original", that of AdamW with "match_rms".
    momentum
        μ in [0, 1).
    a, b, c
        Coefficients of the iteration.
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
        Rule for leaves that are no matrices. None: :class:`~xopt.Adam` with this rule's lr, weight_decay and decay, as
        in optax; that one rate suits both with "match_rms" only.
    weight_decay, decay, maximize, complex, like
        As for every :class:`~xopt.Rule`; ``decay="lr"`` in every library but MLX. The last two hold for ``other`` too.

    Notes
    -----
    State: ``m``, shaped like the parameter, 4 bytes per float32 parameter; of other leaves that of ``other``.

    Computed in the dtype of the arithmetic, float32 at least; torch and Jordan use bfloat16, which is another result
    from the third digit on. A singular value that is 0 but for rounding grows with the others, a times in each step of
    the iteration: to 6e-5 of the largest in five, and in float32 to 1 in a dozen. A NaN in the gradient makes the whole
    matrix NaN. Embeddings and the last layer are
    matrices too; the authors leave these to AdamW. Complex matrices have conjugate transposes.

    References
    ----------
    K. Jordan et al. (2024), Muon: an optimizer for hidden layers in neural networks,
    https://kellerjordan.github.io/posts/muon.

    J. Liu et al. (2025), Muon is scalable for LLM training, arXiv:2502.16982, equation 4.

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
    a: Hyper = hyper(default=3.4445)
    b: Hyper = hyper(default=-4.7750)
    c: Hyper = hyper(default=2.0315)
    eps: Hyper = hyper(default=1e-7, gt=0)
    rms: Hyper | None = hyper(default=None, ge=0)
    ns_steps: int = static(default=5, ge=1)
    nesterov: bool = True
    form: Literal["ema", "sum", "corrected"] = "ema"
    scale: Literal["original", "in_out", "ratio", "match_rms", "none"] = "match_rms"
    eps_mode: Literal["add", "max"] = "add"
    other: Rule | None = None
    decay: Literal["l2", "lr", "independent"] = static(default="lr", kw_only=True)
    elementwise = False

    def _check(self) -> None:
        super()._check()
        if self.rms is not None and self.scale != "match_rms":
            raise ValueError(f"Muon: rms does nothing with scale={self.scale!r}")
        given = {} if self.other is None else self.other._given
        for n in ("maximize", "complex"):
            if n in given and given[n] != getattr(self, n):
                raise ValueError(f"Muon: {n}={getattr(self, n)!r}, but {n}={given[n]!r} in other")

    def _route(self, layout: Any, k: int) -> Iterable[RoutedComponent] | None:
        if len(layout.shapes[k]) == 2:
            return super()._route(layout, k)
        if self.other is None:
            same = ("lr", "maximize", "complex", *(() if self.weight_decay is None else ("weight_decay", "decay")))
            other: Rule = Adam(**{n: getattr(self, n) for n in same})
        else:
            other = self.other.replace(maximize=self.maximize, complex=self.complex)
        links = other._route(layout, k)
        return links and [link._replace(order=(1, *link.order)) for link in links]

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, m: Array = 0.0) -> tuple[Array, ...]:
        gain = 1.0 if h.form == "sum" else 1 - h.momentum
        m = h.momentum * m + gain * g
        x = _iterated(h, xp, _ahead(h, gain, m, g))
        return -h.lr * _scale(h, *p.shape) * x, m


def _ahead(h: H, gain: Any, m: Array, g: Array) -> Array:
    if h.form == "corrected":
        now, then = 1 - h.momentum**h.t, 1 - h.momentum * h.momentum**h.t
        return h.momentum / then * m + gain / now * g if h.nesterov else m / now
    return h.momentum * m + gain * g if h.nesterov else m


def _iterated(h: H, xp: Any, u: Array) -> Array:
    """Bring the singular values near 1: p(p(…)) with p(σ) = aσ + bσ³ + cσ⁵, on the shorter side."""
    size = norm(xp, u)
    x = u / (size + h.eps if h.eps_mode == "add" else at_least(xp, size, h.eps))
    tall = x.shape[0] > x.shape[1]
    x = adjoint(xp, x) if tall else x
    for _ in range(h.ns_steps):
        gram = xp.matmul(x, adjoint(xp, x))
        x = h.a * x + xp.matmul(h.b * gram + h.c * xp.matmul(gram, gram), x)
    return adjoint(xp, x) if tall else x


def _scale(h: H, rows: int, columns: int) -> Any:
    rows, columns = max(rows, 1), max(columns, 1)
    scales = {"original": max(1.0, rows / columns), "in_out": max(1.0, columns / rows), "ratio": rows / columns}
    if h.scale == "match_rms":
        return (0.2 if h.rms is None else h.rms) * max(rows, columns) ** 0.5
    return scales.get(h.scale, 1.0) ** 0.5
