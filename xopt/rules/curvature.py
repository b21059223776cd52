"""Rules that divide by a curvature which is estimated now and then: Sophia."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from xopt.rule import Array, Decay, H, Hyper, Moments, Rule, hyper, static

__all__ = ["Sophia"]


class Sophia(Rule):
    r"""Sophia (Liu et al. 2023, arXiv:2305.14342, Algorithm 3): Newton's step for each element, clipped to lr.

    An estimate ĥ of the diagonal of the Hessian comes every ten steps or so, by ``update_curvature``::

        hessian ← β₂·hessian + (1-β₂)·ĥ              only then

        m ← β₁·m + (1-β₁)·g
        p ← p - lr·(clip(m / max(γ·hessian, ε), -1, 1) + w·p)

    Parameters
    ----------
    lr
        Size of the largest step, ≥ 0, in the unit of the parameter.
    b1, b2
        β₁ and β₂ in [0, 1); β₂ counts estimates.
    gamma
        γ ≥ 0: larger for fewer steps that are clipped; of the right size where half to nine tenths are. 0.01 for
        :func:`~xopt.hutchinson`, 0.05 for Gauss-Newton-Bartlett in the paper.
    eps
        ε > 0, in the unit of the gradient.
    eps_mode
        ``"max"``: as above; ``"add"``: max(γ·hessian, 0) + ε in its place (the authors' code, whose estimates are
        never negative).
    bias
        ``"none"``, or ``"standard"``: m/(1-β₁ᵗ) in the place of m (optax).
    weight_decay
        w ≥ 0; 0.2 in the paper.
    decay
        ``"lr"``: w is multiplied by lr, as in the paper.
    peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`. With ``maximize`` the estimate is that of the function that is maximized.

    Notes
    -----
    State: ``m`` and ``hessian`` (real), shaped like the parameter, 8 bytes per float32 parameter.

    Without estimates, and where the curvature is not positive, this is momentum whose step is lr times its sign, of a
    complex number its phase: a step never has more than the size lr. Estimates are of the loss whose gradients the rule
    is given, unscaled and without weight decay, at the parameters before a step; see :doc:`/curvature` for Hutchinson's
    and for Gauss-Newton-Bartlett.

    Other code clips to another bound c, as pytorch_optimizer's ``p`` and optax's ``clip_threshold`` do: that is here
    lr·c for lr, c·γ for γ and c·ε for ε.

    References
    ----------
    H. Liu, Z. Li, D. Hall, P. Liang, T. Ma (2023), Sophia: a scalable stochastic second-order optimizer for language
    model pre-training, arXiv:2305.14342, Algorithm 3.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> a, w = np.asarray([1.0, 100.0]), np.asarray([1.0, 1.0])
    >>> rule = xopt.Sophia(lr=0.5, b1=0.0, b2=0.0, gamma=1.0)
    >>> state = rule.update_curvature(w, xopt.hutchinson(lambda u: a * u, w), rule.init(w))
    >>> rule.apply(w, a * w, state)[0]
    array([0.5, 0.5])
    """

    lr: Hyper = hyper(default=1e-4, ge=0)
    b1: Hyper = hyper(default=0.96, ge=0, lt=1)
    b2: Hyper = hyper(default=0.99, ge=0, lt=1)
    gamma: Hyper = hyper(default=0.01, ge=0)
    eps: Hyper = hyper(default=1e-12, gt=0)
    eps_mode: Literal["max", "add"] = "max"
    bias: Literal["none", "standard"] = "none"
    decay: Decay = static(default="lr", kw_only=True)
    moments: ClassVar[Moments] = {"m": "signed", "hessian": "signed"}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, m: Array = 0.0, hessian: Array = 0.0) -> tuple[Array, ...]:
        m = h.b1 * m + (1 - h.b1) * g
        top = m if h.bias == "none" else m / (1 - h.b1**h.t)
        d = h.gamma * hessian
        d = xp.maximum(d, h.eps) if h.eps_mode == "max" else xp.maximum(d, 0.0) + h.eps
        return -h.lr * (top / xp.maximum(d, xp.abs(top))), m, hessian

    @staticmethod
    def curvature(h: H, xp: Any, x: Array, hessian: Array) -> Array:
        return h.b2 * hessian + (1 - h.b2) * x
