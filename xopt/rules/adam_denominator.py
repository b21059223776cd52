"""Adam with another denominator: Adamax, RAdam, AdaBelief, Yogi, StableAdamW."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from xopt.rule import Array, Decay, H, Hyper, Moments, Rule, abs2, hyper, static
from xopt.rules.adam import bias_corrections

__all__ = ["AdaBelief", "Adamax", "RAdam", "StableAdamW", "Yogi"]


class Adamax(Rule):
    r"""Adamax (Kingma & Ba 2015, arXiv:1412.6980, Algorithm 2): Adam with the largest gradient of late for v.

    ::

        m ← β₁·m + (1-β₁)·g
        u ← max(β₂·u, |g| + ε)                   "outside": u ← max(β₂·u, |g|)
        p ← p - lr/(1-β₁ᵗ) · m / u                          p ← p - lr/(1-β₁ᵗ) · m / (u + ε)

    Parameters
    ----------
    lr
        Learning rate, ≥ 0.
    b1, b2
        β₁ and β₂ in [0, 1).
    eps
        ε ≥ 0, in the unit of the gradient. The paper has none.
    eps_mode
        ``"inside"`` the maximum (torch, optax) or ``"outside"`` (Keras, MLX).
    bias
        ``"standard"``, or ``"none"``: 1 in the place of 1-β₁ᵗ (MLX).
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: ``m`` and ``u`` (real), shaped like the parameter, 8 bytes per float32 parameter.

    References
    ----------
    D. P. Kingma, J. Ba (2015), Adam: a method for stochastic optimization, arXiv:1412.6980, Algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.Adamax(lr=0.1), np.asarray([1.0, -2.0])
    >>> rule.apply(w, 2 * w, rule.init(w))[0].round(3)
    array([ 0.9, -1.9])
    """

    lr: Hyper = hyper(default=2e-3, ge=0)
    b1: Hyper = hyper(default=0.9, ge=0, lt=1)
    b2: Hyper = hyper(default=0.999, ge=0, lt=1)
    eps: Hyper = hyper(default=1e-8, ge=0)
    eps_mode: Literal["inside", "outside"] = "inside"
    bias: Literal["standard", "none"] = "standard"
    moments: ClassVar[Moments] = {"m": "signed", "u": "square"}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, m: Array = 0.0, u: Array = 0.0) -> tuple[Array, ...]:
        m = h.b1 * m + (1 - h.b1) * g
        inside = h.eps_mode == "inside"
        u = xp.maximum(h.b2 * u, xp.abs(g) + h.eps if inside else xp.abs(g))
        c1 = 1 - h.b1**h.t if h.bias == "standard" else 1.0
        return -(h.lr / c1) * (m / (u if inside else u + h.eps)), m, u


class RAdam(Rule):
    r"""RAdam (Liu et al. 2020, arXiv:1908.03265, Algorithm 2): Adam that waits until v can be relied on.

    With c₁ = 1 - β₁ᵗ, c₂ = 1 - β₂ᵗ, ρ∞ = 2/(1-β₂) - 1 and ρ = ρ∞ - 2t·β₂ᵗ/c₂ at step t::

        m ← β₁·m + (1-β₁)·g
        v ← β₂·v + (1-β₂)·|g|²
        r = √((ρ-4)·(ρ-2)·ρ∞ / ((ρ∞-4)·(ρ∞-2)·ρ))
        p ← p - lr·r·(m/c₁)·√c₂ / (√v + ε)           where ρ ≥ threshold
        p ← p - lr·(m/c₁)                            before; "none": p stays

    Parameters
    ----------
    lr
        Learning rate, ≥ 0.
    b1, b2
        β₁ and β₂ in [0, 1). With β₂ ≤ 2/3, ρ never comes to 5.
    eps
        ε ≥ 0, in the unit of the gradient.
    threshold
        Least ρ at which r counts, ≥ 4: 5 in torch and optax, 4 in the paper. With β₂ = 0.999 and 5 that is step 6.
    otherwise
        Before that, ``"sgd"``: a step of momentum (the paper, torch, optax), or ``"none"``.
    eps_mode
        ``"hat"`` √c₂/(√v + ε) (torch) or ``"outside"`` 1/(√(v/c₂) + ε) (optax).
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: ``m`` and ``v`` (real), shaped like the parameter, 8 bytes per float32 parameter.

    Steps of ``"sgd"`` have the size of the gradient, not of lr.

    References
    ----------
    L. Liu et al. (2020), On the variance of the adaptive learning rate and beyond, arXiv:1908.03265, Algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.RAdam(lr=0.1), np.asarray([1.0, -2.0])
    >>> rule.apply(w, 2 * w, rule.init(w))[0].round(3)
    array([ 0.8, -1.6])
    """

    lr: Hyper = hyper(default=1e-3, ge=0)
    b1: Hyper = hyper(default=0.9, ge=0, lt=1)
    b2: Hyper = hyper(default=0.999, ge=0, lt=1)
    eps: Hyper = hyper(default=1e-8, ge=0)
    threshold: Hyper = hyper(default=5.0, ge=4)
    otherwise: Literal["sgd", "none"] = "sgd"
    eps_mode: Literal["hat", "outside"] = "hat"
    moments: ClassVar[Moments] = {"m": "signed", "v": "square"}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        end = 2 / (1 - h.b2) - 1
        rho = end - 2 * h.t * h.b2**h.t / (1 - h.b2**h.t)
        r = xp.sqrt((rho - 4) * (rho - 2) * end / (xp.maximum((end - 4) * (end - 2), 1e-30) * rho))
        sgd = 1.0 if h.otherwise == "sgd" else 0.0
        return {"r": xp.where(rho >= h.threshold, r, 0.0), "plain": xp.where(rho >= h.threshold, 0.0, sgd)}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, m: Array = 0.0, v: Array = 0.0) -> tuple[Array, ...]:
        m = h.b1 * m + (1 - h.b1) * g
        v = h.b2 * v + (1 - h.b2) * abs2(xp, g)
        c1, c2 = 1 - h.b1**h.t, 1 - h.b2**h.t
        eps = h.eps if h.eps_mode == "hat" else h.eps * c2**0.5
        return -(h.lr / c1) * (m * (h.r * c2**0.5 / (xp.sqrt(v) + eps) + h.plain)), m, v


class AdaBelief(Rule):
    r"""AdaBelief (Zhuang et al. 2020, arXiv:2010.07468, Algorithm 2): large steps where gradients are as expected.

    With c₁ = 1 - β₁ᵗ and c₂ = 1 - β₂ᵗ at step t::

        m ← β₁·m + (1-β₁)·g
        v ← β₂·v + (1-β₂)·|g - m|² + ε₀
        p ← p - lr·(m/c₁) / (√(v/c₂) + ε)

    Parameters
    ----------
    lr
        Learning rate, ≥ 0.
    b1, b2
        β₁ and β₂ in [0, 1).
    eps
        ε ≥ 0, in the unit of the gradient.
    eps_root
        ε₀ ≥ 0, in the unit of its square: added to v in every step, so that v comes to ε₀/(1-β₂) where g = m.
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: ``m`` and ``v`` (real; s in the paper), shaped like the parameter, 8 bytes per float32 parameter.

    The paper has one ε in both places, 1e-16 in its second version as here and in optax.

    References
    ----------
    J. Zhuang et al. (2020), AdaBelief optimizer: adapting stepsizes by the belief in observed gradients,
    arXiv:2010.07468, Algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.AdaBelief(lr=0.1), np.asarray([1.0, -2.0])
    >>> rule.apply(w, 2 * w, rule.init(w))[0].round(3)
    array([ 0.889, -1.889])
    """

    lr: Hyper = hyper(default=1e-3, ge=0)
    b1: Hyper = hyper(default=0.9, ge=0, lt=1)
    b2: Hyper = hyper(default=0.999, ge=0, lt=1)
    eps: Hyper = hyper(default=1e-16, ge=0)
    eps_root: Hyper = hyper(default=1e-16, ge=0)
    moments: ClassVar[Moments] = {"m": "signed", "v": "square"}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, m: Array = 0.0, v: Array = 0.0) -> tuple[Array, ...]:
        m = h.b1 * m + (1 - h.b1) * g
        v = h.b2 * v + (1 - h.b2) * abs2(xp, g - m) + h.eps_root
        c1, c2 = 1 - h.b1**h.t, 1 - h.b2**h.t
        return -(h.lr * c2**0.5 / c1) * (m / (xp.sqrt(v) + h.eps * c2**0.5)), m, v


class Yogi(Rule):
    r"""Yogi (Zaheer et al. 2018, Algorithm 2): v follows the squares by steps that do not depend on v.

    With c₁ = 1 - β₁ᵗ and c₂ = 1 - β₂ᵗ at step t::

        m ← β₁·m + (1-β₁)·g
        v ← v - (1-β₂)·sign(v - |g|²)·|g|²
        p ← p - lr·(m/c₁) / (√(v/c₂) + ε)

    Parameters
    ----------
    lr
        Learning rate, ≥ 0; 0.01 in the paper.
    b1, b2
        β₁ and β₂ in [0, 1).
    eps
        ε ≥ 0, in the unit of the gradient: 1e-3, much larger than that of Adam.
    initial, initial_m
        First values of v (≥ 0) and of m: both 1e-6 in optax and TensorFlow Addons; the paper has none for m.
    bias
        ``"standard"`` (optax), or ``"none"``: 1 in the place of c₁ and c₂ (the paper).
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: ``m`` and ``v`` (real), shaped like the parameter, 8 bytes per float32 parameter.

    References
    ----------
    M. Zaheer, S. Reddi, D. Sachan, S. Kale, S. Kumar (2018), Adaptive methods for nonconvex optimization, NeurIPS 31,
    Algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.Yogi(lr=0.1), np.asarray([1.0, -2.0])
    >>> rule.apply(w, 2 * w, rule.init(w))[0].round(3)
    array([ 0.9, -1.9])
    """

    lr: Hyper = hyper(default=1e-2, ge=0)
    b1: Hyper = hyper(default=0.9, ge=0, lt=1)
    b2: Hyper = hyper(default=0.999, ge=0, lt=1)
    eps: Hyper = hyper(default=1e-3, ge=0)
    initial: float = static(default=1e-6, ge=0)
    initial_m: float = static(default=1e-6)
    bias: Literal["standard", "none"] = "standard"
    moments: ClassVar[Moments] = {"m": "signed", "v": "square"}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, m: Array = "initial_m", v: Array = "initial") -> tuple[Array, ...]:
        g2 = abs2(xp, g)
        m = h.b1 * m + (1 - h.b1) * g
        v = v - (1 - h.b2) * xp.sign(v - g2) * g2
        c1, c2 = bias_corrections(h)
        return -(h.lr * c2**0.5 / c1) * (m / (xp.sqrt(v) + h.eps * c2**0.5)), m, v


class StableAdamW(Rule):
    r"""StableAdamW (Wortsman et al. 2023, arXiv:2304.13013, Algorithm 2): AdamW that slows down where v is too old.

    With c₁ = 1 - β₁ᵗ, c₂ = 1 - β₂ᵗ at step t, and the mean over the elements of an array::

        m ← β₁·m + (1-β₁)·g
        v ← β₂·v + (1-β₂)·|g|²
        η = lr / max(1, √mean(|g|² / max(v/c₂, ε²)))
        p ← p - η·((m/c₁) / (√(v/c₂) + ε) + w·p)

    Parameters
    ----------
    lr
        Learning rate, ≥ 0.
    b1, b2
        β₁ and β₂ in [0, 1).
    eps
        ε > 0, in the unit of the gradient.
    weight_decay
        w ≥ 0.
    decay
        ``"clipped"``: w is multiplied by η (the paper). The others as for every rule.
    peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`. The mean of a complex array that is split is over both parts.

    Notes
    -----
    State: ``m`` and ``v`` (real), shaped like the parameter, 8 bytes per float32 parameter.

    This is the clipping of Adafactor, with a threshold of 1, for each array by itself. The paper's moments, whose
    coefficients follow the step, are m/c₁ and v/c₂.

    References
    ----------
    M. Wortsman et al. (2023), Stable and low-precision training for large-scale vision-language models,
    arXiv:2304.13013, Algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.StableAdamW(lr=0.1, b2=0.5), np.asarray([2.0])
    >>> w, state = rule.apply(w, np.asarray([1.0]), rule.init(w))
    >>> rule.updates(w, np.asarray([10.0]), state)[0].round(3)  # RMS √(100/67)
    array([-0.059])
    """

    lr: Hyper = hyper(default=1e-3, ge=0)
    b1: Hyper = hyper(default=0.9, ge=0, lt=1)
    b2: Hyper = hyper(default=0.99, ge=0, lt=1)
    eps: Hyper = hyper(default=1e-6, gt=0)
    weight_decay: Hyper | None = hyper(default=1e-2, ge=0, kw_only=True)
    decay: Literal["clipped", Decay] = static(default="clipped", kw_only=True)  # type: ignore[assignment]
    scope = "leaf"
    metrics: ClassVar = {"effective_lr": "eta"}
    moments: ClassVar[Moments] = {"m": "signed", "v": "square"}

    @staticmethod
    def reduce(h: H, xp: Any, p: Array, g: Array, m: Array = 0.0, v: Array = 0.0) -> dict[str, Array]:
        g2 = abs2(xp, g)
        v = h.b2 * v + (1 - h.b2) * g2
        share = g2 / xp.maximum(v / (1 - h.b2**h.t), h.eps**2)
        return {"total": share, "count": xp.minimum(xp.maximum(share, 1.0), 1.0)}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        return {"eta": h.lr / xp.maximum(xp.sqrt(h.total / xp.maximum(h.count, 1.0)), 1.0)}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, m: Array = 0.0, v: Array = 0.0) -> tuple[Array, ...]:
        m = h.b1 * m + (1 - h.b1) * g
        v = h.b2 * v + (1 - h.b2) * abs2(xp, g)
        c1, c2 = 1 - h.b1**h.t, 1 - h.b2**h.t
        step = -(h.eta * c2**0.5 / c1) * (m / (xp.sqrt(v) + h.eps * c2**0.5))
        return step - h.eta * h.weight_decay * p if h.decay == "clipped" else step, m, v
