"""Rules whose step has the size of the array that it moves: LARS, LAMB, Fromage."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from xopt.rule import Array, Decay, H, Hyper, Moments, Rule, abs2, hyper, static, trust_ratio
from xopt.rules.adam import bias_corrections

__all__ = ["LAMB", "LARS", "Fromage"]


class LARS(Rule):
    r"""LARS (You, Gitman & Ginsburg 2017, arXiv:1708.03888, Algorithm 1): a rate of its own for each array.

    With Euclidean norms of whole arrays::

        ratio = trust·‖p‖ / (‖g‖ + w·‖p‖ + ε), or 1 where ‖p‖ or ‖g‖ is 0
        d = ratio·(g + w·p)
        "lr_inside"     m ← μ·m + lr·d      p ← p - m         Nesterov: p ← p - (μ·m + lr·d)
        "lr_outside"    m ← μ·m + d         p ← p - lr·m      Nesterov: p ← p - lr·(μ·m + d)

    Parameters
    ----------
    lr
        Learning rate, ≥ 0.
    momentum
        μ in [0, 1); None for none.
    trust
        Trust coefficient, > 0.
    eps
        ε ≥ 0, in the unit of ‖g‖.
    nesterov
        Look ahead by one momentum step.
    form
        ``"lr_inside"`` the momentum (the paper, optax) or ``"lr_outside"`` (timm, the SGD of torch).
    weight_decay
        w ≥ 0, or None.
    decay
        ``"ratio"``: as above (the paper, timm). ``"l2"``: ‖g + w·p‖ in the ratio (optax). The others:
        outside the ratio, as for every rule.
    peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`. The norm of a complex array is the same in both ways.

    Notes
    -----
    State: ``m``, shaped like the parameter, 4 bytes per float32 parameter; none without momentum.

    Norms are summed in float64. Biases and scales of normalisation are usually left to another rule.

    References
    ----------
    Y. You, I. Gitman, B. Ginsburg (2017), Large batch training of convolutional networks, arXiv:1708.03888,
    Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.LARS(lr=0.1, trust=1.0), np.asarray([3.0, 4.0])
    >>> rule.apply(w, np.asarray([0.0, 0.02]), rule.init(w))[0]
    array([3. , 3.5])
    """

    lr: Hyper = hyper(default=1e-1, ge=0)
    momentum: Hyper | None = hyper(default=0.9, ge=0, lt=1, optional=True)
    trust: Hyper = hyper(default=1e-3, gt=0)
    eps: Hyper = hyper(default=0.0, ge=0)
    nesterov: bool = False
    form: Literal["lr_inside", "lr_outside"] = "lr_inside"
    decay: Literal["ratio", Decay] = static(default="ratio", kw_only=True)  # type: ignore[assignment]
    scope = "leaf"
    metrics: ClassVar = {"trust_ratio": "ratio"}
    moments: ClassVar[Moments] = {"m": "signed"}

    def _check(self) -> None:
        super()._check()
        extras = [n for n in ("nesterov", "form") if self._given.get(n)]
        if self.momentum is None and extras:
            raise ValueError(f"LARS: {extras[0]} does nothing without momentum")

    @staticmethod
    def reduce(h: H, xp: Any, p: Array, g: Array, m: Array = 0.0) -> dict[str, Array]:
        return {"p2": abs2(xp, p), "g2": abs2(xp, g)}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        size, slope = xp.sqrt(h.p2), xp.sqrt(h.g2)
        shrink = 0.0 if h.weight_decay is None or h.decay != "ratio" else h.weight_decay
        return {"ratio": trust_ratio(xp, h.trust * size, slope + shrink * size + h.eps, size, slope)}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, m: Array = 0.0) -> tuple[Array, ...]:
        g = g + h.weight_decay * p if h.weight_decay is not None and h.decay == "ratio" else g
        inside = h.form == "lr_inside"
        d = (h.lr * h.ratio if inside else h.ratio) * g
        if h.momentum is None:
            return -d, m
        m = h.momentum * m + d
        step = h.momentum * m + d if h.nesterov else m
        return -step if inside else -h.lr * step, m


class LAMB(Rule):
    r"""LAMB (You et al. 2020, arXiv:1904.00962, Algorithm 2): Adam, its step scaled to the norm of the array.

    With c₁ = 1 - β₁ᵗ and c₂ = 1 - β₂ᵗ at step t, and Euclidean norms of whole arrays::

        m ← β₁·m + (1-β₁)·g
        v ← β₂·v + (1-β₂)·|g|²
        d = (m/c₁) / (√(v/c₂) + ε) + w·p
        p ← p - lr·‖p‖/‖d‖·d, or - lr·d where ‖p‖ or ‖d‖ is 0

    Parameters
    ----------
    lr
        Learning rate, ≥ 0, as a part of ‖p‖.
    b1, b2
        β₁ and β₂ in [0, 1).
    eps
        ε ≥ 0, in the unit of the gradient.
    bias
        ``"standard"``, or ``"none"``: 1 in the place of c₁ and c₂.
    most
        Largest ratio ‖p‖/‖d‖, > 0; None for no bound. 1 is timm's ``trust_clip``.
    weight_decay
        w ≥ 0, or None.
    decay
        ``"ratio"``: as above (the paper, optax, timm). ``"lr"``: outside the ratio (Keras). The others as for
        every rule.
    peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`. The norm of a complex array that is split is of both parts.

    Notes
    -----
    State: ``m`` and ``v`` (real), shaped like the parameter, 8 bytes per float32 parameter.

    timm clips the global norm to 1 first, which is ``chain(ClipByGlobalNorm(1.0), LAMB())``, and leaves the ratio out
    where there is no decay. Norms are summed in float64; d is computed twice rather than kept.

    References
    ----------
    Y. You et al. (2020), Large batch optimization for deep learning: training BERT in 76 minutes, arXiv:1904.00962,
    Algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.LAMB(lr=0.1), np.asarray([3.0, 4.0])
    >>> rule.apply(w, np.asarray([0.0, 0.02]), rule.init(w))[0].round(3)
    array([3. , 3.5])
    """

    lr: Hyper = hyper(default=1e-3, ge=0)
    b1: Hyper = hyper(default=0.9, ge=0, lt=1)
    b2: Hyper = hyper(default=0.999, ge=0, lt=1)
    eps: Hyper = hyper(default=1e-6, ge=0)
    bias: Literal["standard", "none"] = "standard"
    most: Hyper | None = hyper(default=None, gt=0)
    decay: Literal["ratio", Decay] = static(default="ratio", kw_only=True)  # type: ignore[assignment]
    scope = "leaf"
    metrics: ClassVar = {"trust_ratio": "ratio"}
    moments: ClassVar[Moments] = {"m": "signed", "v": "square"}

    @staticmethod
    def reduce(h: H, xp: Any, p: Array, g: Array, m: Array = 0.0, v: Array = 0.0) -> dict[str, Array]:
        d, *_ = _direction(h, xp, p, g, m, v)
        return {"p2": abs2(xp, p), "d2": abs2(xp, d)}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        size, length = xp.sqrt(h.p2), xp.sqrt(h.d2)
        ratio = trust_ratio(xp, size, length, size, length)
        return {"ratio": ratio if h.most is None else xp.minimum(ratio, h.most)}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, m: Array = 0.0, v: Array = 0.0) -> tuple[Array, ...]:
        d, m, v = _direction(h, xp, p, g, m, v)
        return -(h.lr * h.ratio) * d, m, v


def _direction(h: H, xp: Any, p: Array, g: Array, m: Array, v: Array) -> tuple[Array, ...]:
    m = h.b1 * m + (1 - h.b1) * g
    v = h.b2 * v + (1 - h.b2) * abs2(xp, g)
    c1, c2 = bias_corrections(h)
    d = (c2**0.5 / c1) * (m / (xp.sqrt(v) + h.eps * c2**0.5))
    return d + h.weight_decay * p if h.weight_decay is not None and h.decay == "ratio" else d, m, v


class Fromage(Rule):
    r"""Fromage (Bernstein et al. 2020, arXiv:2002.03432, Algorithm 1): steps that are a part of the array they move.

    With Euclidean norms of whole arrays, at least ``least``::

        p ← (p - lr·‖p‖/‖g‖·g) / √(1 + lr²), ‖p‖/‖g‖ being 1 where one of them is 0

    Parameters
    ----------
    lr
        Learning rate, ≥ 0, as a part of ‖p‖: 0.01 in the paper.
    least
        What a norm counts as at least, ≥ 0: 0 in the paper, 1e-6 in optax.
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`. The norm of a complex array is the same in both ways.

    Notes
    -----
    State: none, 0 bytes per float32 parameter. Norms are summed in float64.

    References
    ----------
    J. Bernstein, A. Vahdat, Y. Yue, M.-Y. Liu (2020), On the distance between two neural networks and the stability of
    learning, arXiv:2002.03432, Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.Fromage(lr=0.75), np.asarray([3.0, 4.0])
    >>> rule.apply(w, np.asarray([0.0, 0.02]), rule.init(w))[0]
    array([2.4, 0.2])
    """

    lr: Hyper = hyper(default=1e-2, ge=0)
    least: Hyper = hyper(default=0.0, ge=0)
    scope = "leaf"
    metrics: ClassVar = {"trust_ratio": "ratio"}

    @staticmethod
    def reduce(h: H, xp: Any, p: Array, g: Array) -> dict[str, Array]:
        return {"p2": abs2(xp, p), "g2": abs2(xp, g)}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        size, slope = (xp.maximum(xp.sqrt(x), h.least) for x in (h.p2, h.g2))
        return {"ratio": trust_ratio(xp, size, slope, size, slope), "less": xp.expm1(-0.5 * xp.log1p(h.lr**2))}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return h.less * p - ((1 + h.less) * h.lr * h.ratio) * g
