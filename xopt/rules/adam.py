"""Adam and its family."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from xopt.rule import Array, Decay, H, Hyper, Moments, Rule, abs2, hyper, static

__all__ = ["Adam", "AdamW"]


class Adam(Rule):
    r"""Adam (Kingma & Ba 2015, arXiv:1412.6980, Algorithm 1).

    With c₁ = 1 - β₁ᵗ and c₂ = 1 - β₂ᵗ at step t::

        m ← β₁·m + (1-β₁)·g
        v ← β₂·v + (1-β₂)·|g|²
        p ← p - lr·(m/c₁) / (√(v/c₂) + ε)

    Parameters
    ----------
    lr
        Learning rate α, ≥ 0.
    b1, b2
        β₁ and β₂ in [0, 1).
    eps
        ε ≥ 0, in the unit of the gradient ("inside": of its square).
    amsgrad
        Divide by the largest v so far, V ← max(V, v) (Reddi et al. 2018).
    eps_mode
        Where ε stands: ``"outside"`` √(v/c₂) + ε (the paper's Algorithm 1, torch, optax); ``"inside"`` √(v/c₂ + ε);
        ``"hat"`` (√v + ε)/√c₂, which is the paper's "ε hat" (Keras, TensorFlow, Chainer, Thinc).
    bias
        ``"standard"``; ``"first"``: c₁ and c₂ stay as in step 1; ``"none"``: both are 1.
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: ``m`` and ``v`` (real), with amsgrad ``top``, shaped like the parameter: 8 or 12 bytes per float32 parameter.

    Computed as lr·√c₂/c₁ · (m / (√v + ε·√c₂)): the same numbers with one array division. With amsgrad the largest
    *uncorrected* v is kept, as in torch; optax keeps the largest corrected one.

    References
    ----------
    D. P. Kingma, J. Ba (2015), Adam: a method for stochastic optimization, arXiv:1412.6980, Algorithm 1.

    S. J. Reddi, S. Kale, S. Kumar (2018), On the convergence of Adam and beyond, arXiv:1904.09237, Algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.Adam(lr=0.1), {"w": np.asarray([1.0, -2.0])}
    >>> w, state = rule.apply(w, {"w": 2 * w["w"]}, rule.init(w))
    >>> w["w"].round(3)
    array([ 0.9, -1.9])
    """

    lr: Hyper = hyper(default=1e-3, ge=0)
    b1: Hyper = hyper(default=0.9, ge=0, lt=1)
    b2: Hyper = hyper(default=0.999, ge=0, lt=1)
    eps: Hyper = hyper(default=1e-8, ge=0)
    amsgrad: bool = False
    eps_mode: Literal["outside", "inside", "hat"] = "outside"
    bias: Literal["standard", "first", "none"] = "standard"
    moments: ClassVar[Moments] = {"m": "signed", "v": "square"}

    @staticmethod
    def update(
        h: H, xp: Any, p: Array, g: Array, m: Array = 0.0, v: Array = 0.0, top: Array = 0.0
    ) -> tuple[Array, ...]:
        m = h.b1 * m + (1 - h.b1) * g
        v = h.b2 * v + (1 - h.b2) * abs2(xp, g)
        top = xp.maximum(top, v) if h.amsgrad else top
        c1, c2 = bias_corrections(h)
        eps = {"outside": h.eps * c2**0.5, "inside": h.eps * c2, "hat": h.eps}[h.eps_mode]
        w = top if h.amsgrad else v
        root = xp.sqrt(w + eps) if h.eps_mode == "inside" else xp.sqrt(w) + eps
        return -(h.lr * c2**0.5 / c1) * (m / root), m, v, top


def bias_corrections(h: H) -> tuple[Any, Any]:
    """Return c₁ = 1 - β₁ᵗ and c₂ = 1 - β₂ᵗ, by which m and v are divided, or what ``bias`` says instead."""
    if h.bias == "none":
        return 1.0, 1.0
    t = 1 if h.bias == "first" else h.t
    return 1 - h.b1**t, 1 - h.b2**t


class AdamW(Adam):
    r"""AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101, Algorithm 2): Adam with decoupled weight decay.

    ::

        p ← p - lr·((m/c₁) / (√(v/c₂) + ε) + w·p)

    Parameters
    ----------
    lr, b1, b2, eps, amsgrad, eps_mode, bias
        As for :class:`~xopt.Adam`.
    weight_decay
        w ≥ 0.
    decay
        ``"lr"``: w is multiplied by lr (torch, optax, Keras). ``"independent"``: by 1; the paper's own form has a
        schedule there, which is ``weight_decay=schedule``. ``"l2"``: Adam again. ``"cautious"`` and ``"corrected"``
        (AdamC) as for every rule.
    peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: that of Adam, 8 or 12 bytes per float32 parameter.

    The decay joins the step before the one rounding of p. Multiplying p by 1 - lr·w first, as torch does, loses it in
    float32 when lr·w is below 1e-7.

    References
    ----------
    I. Loshchilov, F. Hutter (2019), Decoupled weight decay regularization, arXiv:1711.05101, Algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.AdamW(lr=0.1, weight_decay=0.5), np.asarray([2.0])
    >>> w, _ = rule.apply(w, np.asarray([0.0]), rule.init(w))
    >>> w
    array([1.9])
    """

    weight_decay: Hyper | None = hyper(default=1e-2, ge=0, kw_only=True)
    decay: Decay = static(default="lr", kw_only=True)
