"""Adam that looks at how the gradient changes from step to step: Adan, MARS."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from xopt.rule import Array, Decay, H, Hyper, Moments, Rule, abs2, hyper, static

__all__ = ["MARS", "Adan"]


class Adan(Rule):
    r"""Adan (Xie et al. 2022, arXiv:2208.06677, Algorithm 1): Nesterov's momentum by the change of the gradient.

    With g' the gradient before (g itself in step 1), cᵢ = 1 - βᵢᵗ at step t::

        m ← β₁·m + (1-β₁)·g
        d ← β₂·d + (1-β₂)·(g - g')
        v ← β₃·v + (1-β₃)·|g + β₂·(g - g')|²
        p ← (p - lr·(m/c₁ + β₂·d/c₂) / (√(v/c₃ + ε₀) + ε)) / (1 + lr·w)

    Parameters
    ----------
    lr
        Learning rate, ≥ 0; 5 to 10 times larger than that of Adam.
    b1, b2, b3
        β₁, β₂ and β₃ in [0, 1). The paper calls 1 - βᵢ so.
    eps, eps_root
        ε ≥ 0, in the unit of the gradient, and ε₀ ≥ 0, in that of its square: 0 in the paper, 1e-8 in optax.
    form
        ``"paper"``, which is the authors' code too, or ``"optax"``: 1 - β₂ in the place of the factor β₂ in v and p.
    weight_decay
        w ≥ 0, or None.
    decay
        ``"proximal"``: divide by 1 + lr·w (the paper). ``"lr"`` (optax) and the others as for every rule.
    peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: ``m``, ``d``, ``last`` (g') and ``v`` (real), shaped like the parameter, 16 bytes per float32 parameter.

    The paper's algorithm has no c₁, c₂ and c₃; the authors' code and every library do. Restarts are left out.

    References
    ----------
    X. Xie, P. Zhou, H. Li, Z. Lin, S. Yan (2022), Adan: adaptive Nesterov momentum algorithm for faster optimizing deep
    models, arXiv:2208.06677, Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.Adan(lr=0.1), np.asarray([1.0, -2.0])
    >>> rule.apply(w, 2 * w, rule.init(w))[0].round(3)
    array([ 0.9, -1.9])
    """

    lr: Hyper = hyper(default=1e-3, ge=0)
    b1: Hyper = hyper(default=0.98, ge=0, lt=1)
    b2: Hyper = hyper(default=0.92, ge=0, lt=1)
    b3: Hyper = hyper(default=0.99, ge=0, lt=1)
    eps: Hyper = hyper(default=1e-8, ge=0)
    eps_root: Hyper = hyper(default=0.0, ge=0)
    form: Literal["paper", "optax"] = "paper"
    decay: Literal["proximal", Decay] = static(default="proximal", kw_only=True)  # type: ignore[assignment]
    moments: ClassVar[Moments] = {"m": "signed", "d": "signed", "v": "square"}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        return {"again": xp.where(h.t > 1, 1.0, 0.0)}

    @staticmethod
    def update(
        h: H, xp: Any, p: Array, g: Array, m: Array = 0.0, d: Array = 0.0, v: Array = 0.0, last: Array = 0.0
    ) -> tuple[Array, ...]:
        c1, c2, c3 = 1 - h.b1**h.t, 1 - h.b2**h.t, 1 - h.b3**h.t
        ahead = h.b2 if h.form == "paper" else 1 - h.b2
        change = h.again * (g - last)
        m = h.b1 * m + (1 - h.b1) * g
        d = h.b2 * d + (1 - h.b2) * change
        v = h.b3 * v + (1 - h.b3) * abs2(xp, g + ahead * change)
        root = xp.sqrt(v + h.eps_root * c3) + h.eps * c3**0.5
        step = -(h.lr * c3**0.5) * ((m / c1 + (ahead / c2) * d) / root)
        if h.weight_decay is not None and h.decay == "proximal":
            step = (step - h.lr * h.weight_decay * p) / (1 + h.lr * h.weight_decay)
        return step, m, d, v, g


class MARS(Rule):
    r"""MARS-AdamW (Yuan et al. 2024, arXiv:2411.10438, Algorithm 3): AdamW of a gradient with less variance.

    With g' the gradient before, c₁ = 1 - β₁ᵗ and c₂ = 1 - β₂ᵗ at step t, for each array::

        c = g + γ·β₁/(1-β₁)·(g - g')
        c ← c · min(1, max_norm/‖c‖₂)
        m ← β₁·m + (1-β₁)·c
        v ← β₂·v + (1-β₂)·|c|²
        p ← p - lr·((m/c₁) / (√(v/c₂) + ε) + w·p)

    Parameters
    ----------
    lr
        Learning rate, ≥ 0.
    b1, b2
        β₁ and β₂ in [0, 1).
    gamma
        γ ≥ 0, how much of the variance is taken off. 0: AdamW of a clipped gradient.
    eps
        ε ≥ 0, in the unit of c.
    max_norm
        Largest norm of c, > 0; 1 in the paper.
    first
        What g' is in step 1: ``"gradient"``, g itself (the paper, timm), or ``"zero"`` (the authors' code).
    weight_decay, decay
        w ≥ 0, or None; ``"lr"`` is the paper's.
    peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: ``m``, ``last`` (g') and ``v`` (real), shaped like the parameter, 12 bytes per float32 parameter.

    This is the approximate form, in which g' is of the batch before. The authors' code takes AdamW for arrays of less
    than two axes, and a norm of the whole array, as here.

    References
    ----------
    H. Yuan, Y. Liu, S. Wu, X. Zhou, Q. Gu (2024), MARS: unleashing the power of variance reduction for training large
    models, arXiv:2411.10438.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.MARS(lr=0.1), np.asarray([1.0, -2.0])
    >>> rule.apply(w, 2 * w, rule.init(w))[0].round(3)
    array([ 0.9, -1.9])
    """

    lr: Hyper = hyper(default=3e-3, ge=0)
    b1: Hyper = hyper(default=0.95, ge=0, lt=1)
    b2: Hyper = hyper(default=0.99, ge=0, lt=1)
    gamma: Hyper = hyper(default=0.025, ge=0)
    eps: Hyper = hyper(default=1e-8, ge=0)
    max_norm: Hyper = hyper(default=1.0, gt=0)
    first: Literal["gradient", "zero"] = "gradient"
    decay: Decay = static(default="lr", kw_only=True)
    scope = "leaf"
    metrics: ClassVar = {"clip_factor": "scale"}
    moments: ClassVar[Moments] = {"m": "signed", "v": "square"}

    @staticmethod
    def reduce(
        h: H, xp: Any, p: Array, g: Array, m: Array = 0.0, v: Array = 0.0, last: Array = 0.0
    ) -> dict[str, Array]:
        return {"total": abs2(xp, _corrected(h, g, last))}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        return {"scale": h.max_norm / xp.maximum(xp.sqrt(h.total), h.max_norm)}

    @staticmethod
    def update(
        h: H, xp: Any, p: Array, g: Array, m: Array = 0.0, v: Array = 0.0, last: Array = 0.0
    ) -> tuple[Array, ...]:
        c = h.scale * _corrected(h, g, last)
        m = h.b1 * m + (1 - h.b1) * c
        v = h.b2 * v + (1 - h.b2) * abs2(xp, c)
        c1, c2 = 1 - h.b1**h.t, 1 - h.b2**h.t
        return -(h.lr * c2**0.5 / c1) * (m / (xp.sqrt(v) + h.eps * c2**0.5)), m, v, g


def _corrected(h: H, g: Array, last: Array) -> Array:
    again = 1 if h.first == "zero" else 1 - 0.0 ** (h.t - 1)  # 0 in step 1, then 1
    return g + (again * h.gamma * h.b1 / (1 - h.b1)) * (g - last)
