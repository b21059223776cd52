"""Adam with another momentum: NAdam, LaProp, ADOPT, AdEMAMix."""

from __future__ import annotations

from typing import Any, ClassVar

from xopt.rule import Array, Decay, H, Hyper, Moments, Rule, abs2, hyper, is_complex, static

__all__ = ["ADOPT", "AdEMAMix", "LaProp", "NAdam"]


class NAdam(Rule):
    r"""NAdam (Dozat 2016, Algorithm 2): Adam with Nesterov's momentum, warmed up.

    With ψ = ``momentum_decay`` and μₜ = β₁·(1 - ½·0.96^(t·ψ)), or β₁ without it; C = 1 - μ₁···μₜ, C' = 1 - μ₁···μₜ₊₁
    and c₂ = 1 - β₂ᵗ at step t::

        m ← β₁·m + (1-β₁)·g
        v ← β₂·v + (1-β₂)·|g|²
        p ← p - lr·(μₜ₊₁/C'·m + (1-μₜ)/C·g) / (√(v/c₂) + ε)

    Parameters
    ----------
    lr
        Learning rate, ≥ 0.
    b1, b2
        β₁ and β₂ in [0, 1).
    eps
        ε ≥ 0, in the unit of the gradient.
    momentum_decay
        ψ ≥ 0: 0.004 in the paper and torch, 1 in Keras. None: no warmup (optax).
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: ``m`` and ``v`` (real), shaped like the parameter, 8 bytes per float32 parameter; and C for the whole tree.

    m is averaged with β₁ and corrected with the μ of the schedule, as in torch and Keras.

    References
    ----------
    T. Dozat (2016), Incorporating Nesterov momentum into Adam, ICLR workshop, Algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.NAdam(lr=0.1, momentum_decay=None), np.asarray([1.0, -2.0])
    >>> rule.apply(w, 2 * w, rule.init(w))[0].round(3)
    array([ 0.853, -1.853])
    """

    lr: Hyper = hyper(default=2e-3, ge=0)
    b1: Hyper = hyper(default=0.9, ge=0, lt=1)
    b2: Hyper = hyper(default=0.999, ge=0, lt=1)
    eps: Hyper = hyper(default=1e-8, ge=0)
    momentum_decay: Hyper | None = hyper(default=4e-3, ge=0, optional=True)
    carry: ClassVar = {"left": 0.0}  # C itself, not the product: nothing is lost to cancellation
    moments: ClassVar[Moments] = {"m": "signed", "v": "square"}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        mu = ahead = h.b1
        if h.momentum_decay is not None:
            mu = h.b1 * (1 - 0.5 * 0.96 ** (h.t * h.momentum_decay))
            ahead = h.b1 * (1 - 0.5 * 0.96 ** ((h.t + 1) * h.momentum_decay))
        left = 1 - mu + mu * h.left
        return {"left": left, "now": (1 - mu) / left, "ahead": ahead / (1 - ahead + ahead * left)}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, m: Array = 0.0, v: Array = 0.0) -> tuple[Array, ...]:
        m = h.b1 * m + (1 - h.b1) * g
        v = h.b2 * v + (1 - h.b2) * abs2(xp, g)
        root = (1 - h.b2**h.t) ** 0.5
        return -(h.lr * root) * ((h.ahead * m + h.now * g) / (xp.sqrt(v) + h.eps * root)), m, v


class LaProp(Rule):
    r"""LaProp (Ziyin, Wang & Ueda 2020, arXiv:2002.04839, Algorithm 1): momentum of what Adam divides, not before it.

    With c₁ = 1 - β₁ᵗ and c₂ = 1 - β₂ᵗ at step t::

        v ← β₂·v + (1-β₂)·|g|²
        m ← β₁·m + (1-β₁)·g / (√(v/c₂) + ε)
        p ← p - lr·m/c₁

    Parameters
    ----------
    lr
        Learning rate, ≥ 0.
    b1, b2
        β₁ (the paper's μ) and β₂ (ν) in [0, 1). Unlike Adam, it is stable for β₁² > β₂.
    eps
        ε ≥ 0, in the unit of the gradient.
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: ``m`` and ``v`` (real), shaped like the parameter, 8 bytes per float32 parameter.

    The authors' code has lr inside the momentum, the paper outside as here: the same while lr is constant.

    References
    ----------
    L. Ziyin, Z. T. Wang, M. Ueda (2020), LaProp: separating momentum and adaptivity in Adam, arXiv:2002.04839,
    Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.LaProp(lr=0.1), np.asarray([1.0, -2.0])
    >>> rule.apply(w, 2 * w, rule.init(w))[0].round(3)
    array([ 0.9, -1.9])
    """

    lr: Hyper = hyper(default=4e-4, ge=0)
    b1: Hyper = hyper(default=0.9, ge=0, lt=1)
    b2: Hyper = hyper(default=0.999, ge=0, lt=1)
    eps: Hyper = hyper(default=1e-15, ge=0)
    moments: ClassVar[Moments] = {"m": "signed", "v": "square"}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, m: Array = 0.0, v: Array = 0.0) -> tuple[Array, ...]:
        v = h.b2 * v + (1 - h.b2) * abs2(xp, g)
        root = (1 - h.b2**h.t) ** 0.5
        m = h.b1 * m + ((1 - h.b1) * root) * (g / (xp.sqrt(v) + h.eps * root))
        return -(h.lr / (1 - h.b1**h.t)) * m, m, v


class ADOPT(Rule):
    r"""ADOPT (Taniguchi et al. 2024, arXiv:2411.02853, Algorithm 2): divides by the v of before this gradient.

    At step t, where step 1 does nothing but v ← \|g\|²::

        d = g / max(√v, ε), kept within ±(t-1)^clip
        m ← β₁·m + (1-β₁)·d
        p ← p - lr·m
        v ← β₂·v + (1-β₂)·|g|²

    Parameters
    ----------
    lr
        Learning rate, ≥ 0.
    b1, b2
        β₁ and β₂ in [0, 1). It converges for any β₂.
    eps
        ε > 0, in the unit of the gradient.
    clip
        Exponent of the bound, ≥ 0: 1/4 in the paper and optax, 1/3 in timm. None: no bound (Algorithm 1).
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`. Of a complex d the modulus is bounded.

    Notes
    -----
    State: ``m`` and ``v`` (real), shaped like the parameter, 8 bytes per float32 parameter.

    Decoupled decay shrinks p in step 1 too.

    References
    ----------
    S. Taniguchi et al. (2024), ADOPT: modified Adam can converge with any β₂ with the optimal rate, arXiv:2411.02853,
    Algorithms 1 and 2.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.ADOPT(lr=0.1), np.asarray([1.0, -2.0])
    >>> w, state = rule.apply(w, 2 * w, rule.init(w))
    >>> w, rule.apply(w, 2 * w, state)[0].round(3)
    (array([ 1., -2.]), array([ 0.99, -1.99]))
    """

    lr: Hyper = hyper(default=1e-3, ge=0)
    b1: Hyper = hyper(default=0.9, ge=0, lt=1)
    b2: Hyper = hyper(default=0.9999, ge=0, lt=1)
    eps: Hyper = hyper(default=1e-6, gt=0)
    clip: Hyper | None = hyper(default=0.25, ge=0, optional=True)
    moments: ClassVar[Moments] = {"m": "signed", "v": "square"}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        limit = 1.0 if h.clip is None else xp.maximum(h.t - 1, 1.0) ** h.clip
        return {"limit": limit, "new": xp.where(h.t > 1, 1 - h.b1, 0.0), "old": xp.where(h.t > 1, h.b2, 0.0)}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, m: Array = 0.0, v: Array = 0.0) -> tuple[Array, ...]:
        d = g / xp.maximum(xp.sqrt(v), h.eps)
        if h.clip is not None and is_complex(g):
            d = d * (h.limit / xp.maximum(xp.abs(d), h.limit))
        elif h.clip is not None:
            d = xp.minimum(xp.maximum(d, -h.limit), h.limit)
        m = h.b1 * m + h.new * d
        return -h.lr * m, m, h.old * v + (1 - h.old) * abs2(xp, g)


class AdEMAMix(Rule):
    r"""AdEMAMix (Pagliardini, Ablin & Grangier 2024, arXiv:2409.03137, Algorithm 1): AdamW with a second, slow average.

    With c₁ = 1 - β₁ᵗ and c₂ = 1 - β₂ᵗ at step t::

        m ← β₁·m + (1-β₁)·g
        s ← β₃·s + (1-β₃)·g
        v ← β₂·v + (1-β₂)·|g|²
        p ← p - lr·((m/c₁ + α·s) / (√(v/c₂) + ε) + w·p)

    Parameters
    ----------
    lr
        Learning rate, ≥ 0.
    b1, b2, b3
        β₁, β₂ and β₃ in [0, 1); β₃ > 0.
    alpha
        α ≥ 0, the weight of the slow average: 4 to 10.
    eps
        ε ≥ 0, in the unit of the gradient.
    warmup
        T > 0: within the first T steps α grows from 0 in a line, β₃ from β₁ so that its half-life does (equations of
        section 3). None: both are what they are at once; they may also be schedules.
    weight_decay, decay
        w ≥ 0, or None; ``"lr"`` is the paper's.
    peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: ``m``, ``s`` and ``v`` (real), shaped like the parameter, 12 bytes per float32 parameter.

    References
    ----------
    M. Pagliardini, P. Ablin, D. Grangier (2024), The AdEMAMix optimizer: better, faster, older, arXiv:2409.03137,
    Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.AdEMAMix(lr=0.1, warmup=100), np.asarray([1.0, -2.0])
    >>> rule.apply(w, 2 * w, rule.init(w))[0].round(3)
    array([ 0.9, -1.9])
    """

    lr: Hyper = hyper(default=1e-3, ge=0)
    b1: Hyper = hyper(default=0.9, ge=0, lt=1)
    b2: Hyper = hyper(default=0.999, ge=0, lt=1)
    b3: Hyper = hyper(default=0.9999, gt=0, lt=1)
    alpha: Hyper = hyper(default=5.0, ge=0)
    eps: Hyper = hyper(default=1e-8, ge=0)
    warmup: Hyper | None = hyper(default=None, gt=0)
    decay: Decay = static(default="lr", kw_only=True)
    moments: ClassVar[Moments] = {"m": "signed", "v": "square"}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        if h.warmup is None:
            return {"weight": h.alpha, "slow": h.b3}
        x = xp.minimum(h.t / h.warmup, 1.0)
        slow = xp.exp(1 / ((1 - x) / xp.log(h.b1) + x / xp.log(h.b3)))
        return {"weight": x * h.alpha, "slow": xp.minimum(slow, h.b3)}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, m: Array = 0.0, s: Array = 0.0, v: Array = 0.0) -> tuple[Array, ...]:
        c1, c2 = 1 - h.b1**h.t, 1 - h.b2**h.t
        m = h.b1 * m + (1 - h.b1) * g
        s = h.slow * s + (1 - h.slow) * g
        v = h.b2 * v + (1 - h.b2) * abs2(xp, g)
        return -(h.lr * c2**0.5) * ((m / c1 + h.weight * s) / (xp.sqrt(v) + h.eps * c2**0.5)), m, s, v
