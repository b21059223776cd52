"""Rules that divide by a root of summed or averaged squares: Adagrad, Adadelta, RMSProp."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from xopt.rule import Array, H, Hyper, Moments, Rule, abs2, hyper, static

__all__ = ["Adadelta", "Adagrad", "RMSProp"]


def _root(h: H, xp: Any, v: Array) -> Array:
    return xp.sqrt(v + h.eps) if h.eps_mode == "inside" else xp.sqrt(v) + h.eps


class Adagrad(Rule):
    r"""Adagrad (Duchi, Hazan & Singer 2011, Figure 1, diagonal form).

    ::

        v ← v + |g|²
        p ← p - lr·g / (√v + ε)          "inside": p ← p - lr·g / √(v + ε)

    Parameters
    ----------
    lr
        Learning rate, ≥ 0.
    eps
        ε ≥ 0.
    eps_mode
        ``"outside"`` the root (torch) or ``"inside"`` (optax, Keras).
    initial
        First value of v, ≥ 0: 0 in torch, 0.1 in optax and Keras.
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: ``v``, real, shaped like the parameter, 4 bytes per float32 parameter.

    torch's ``lr_decay`` is a schedule: ``lr=xopt.schedules.inverse_time(lr, rate=lr_decay)``.

    References
    ----------
    J. Duchi, E. Hazan, Y. Singer (2011), Adaptive subgradient methods for online learning and stochastic optimization,
    JMLR 12.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.Adagrad(lr=0.5), np.asarray([1.0, -2.0])
    >>> w, _ = rule.apply(w, 2 * w, rule.init(w))
    >>> w.round(3)
    array([ 0.5, -1.5])
    """

    lr: Hyper = hyper(default=1e-2, ge=0)
    eps: Hyper = hyper(default=1e-10, ge=0)
    eps_mode: Literal["outside", "inside"] = "outside"
    initial: float = static(default=0.0, ge=0)

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, v: Array = "initial") -> tuple[Array, ...]:
        v = v + abs2(xp, g)
        return -h.lr * g / _root(h, xp, v), v


class Adadelta(Rule):
    r"""Adadelta (Zeiler 2012, arXiv:1212.5701, Algorithm 1).

    ::

        v ← ρ·v + (1-ρ)·|g|²
        d = √(u + ε) / √(v + ε) · g
        u ← ρ·u + (1-ρ)·|d|²
        p ← p - lr·d

    Parameters
    ----------
    lr
        Factor of the step, ≥ 0; 1 in the paper.
    rho
        ρ in [0, 1).
    eps
        ε ≥ 0, under both roots; it also sets the size of the first steps.
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: ``v`` and ``u``, real, shaped like the parameter, 8 bytes per float32 parameter.

    References
    ----------
    M. D. Zeiler (2012), ADADELTA: an adaptive learning rate method, arXiv:1212.5701.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.Adadelta(), np.asarray([1.0])
    >>> w, _ = rule.apply(w, 2 * w, rule.init(w))
    >>> w.round(5)
    array([0.99684])
    """

    lr: Hyper = hyper(default=1.0, ge=0)
    rho: Hyper = hyper(default=0.9, ge=0, lt=1)
    eps: Hyper = hyper(default=1e-6, ge=0)
    moments: ClassVar[Moments] = {"v": "square", "u": "square"}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, v: Array = 0.0, u: Array = 0.0) -> tuple[Array, ...]:
        v = h.rho * v + (1 - h.rho) * abs2(xp, g)
        d = xp.sqrt(u + h.eps) / xp.sqrt(v + h.eps) * g
        u = h.rho * u + (1 - h.rho) * abs2(xp, d)
        return -h.lr * d, v, u


class RMSProp(Rule):
    r"""RMSProp (Tieleman & Hinton 2012), optionally centered (Graves 2013) and with momentum.

    ::

        v ← ρ·v + (1-ρ)·|g|²
        a ← ρ·a + (1-ρ)·g,  w = max(v - |a|², 0)     centered; otherwise w = v
        d = g / (√w + ε)                             "inside": g / √(w + ε)
        p ← p - lr·d                                 no momentum
        m ← μ·m + d,         p ← p - lr·m            "lr_outside"
        m ← μ·m + lr·d,      p ← p - m               "lr_inside"

    Parameters
    ----------
    lr
        Learning rate, ≥ 0.
    rho
        ρ in [0, 1): 0.99 in torch, 0.9 in Keras, optax and the lecture.
    eps
        ε ≥ 0.
    momentum
        μ in [0, 1); None for none.
    centered
        Divide by an estimate of the standard deviation instead of the root mean square.
    eps_mode
        ``"outside"`` the root (torch, Chainer) or ``"inside"`` (optax, Keras, TensorFlow 1).
    form
        ``"lr_outside"`` the momentum (torch) or ``"lr_inside"`` (optax, Keras).
    initial
        First value of v, ≥ 0: 1 in TensorFlow 1 and timm.
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: ``v``, real, and with ``centered`` ``a``, with momentum ``m``, shaped like the parameter:
    4 to 12 bytes per float32 parameter.

    The variance w is kept from falling below 0 by rounding, where other libraries return NaN.

    References
    ----------
    T. Tieleman, G. Hinton (2012), Lecture 6.5, Neural networks for machine learning.

    A. Graves (2013), Generating sequences with recurrent neural networks, arXiv:1308.0850, equations 38-45.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.RMSProp(lr=0.1, rho=0.9), np.asarray([1.0])
    >>> w, _ = rule.apply(w, 2 * w, rule.init(w))
    >>> w.round(4)
    array([0.6838])
    """

    lr: Hyper = hyper(default=1e-2, ge=0)
    rho: Hyper = hyper(default=0.99, ge=0, lt=1)
    eps: Hyper = hyper(default=1e-8, ge=0)
    momentum: Hyper | None = hyper(default=None, ge=0, lt=1)
    centered: bool = False
    eps_mode: Literal["outside", "inside"] = "outside"
    form: Literal["lr_outside", "lr_inside"] = "lr_outside"
    initial: float = static(default=0.0, ge=0)
    moments: ClassVar[Moments] = {"v": "square", "m": "signed"}

    def _moments(self) -> Moments:
        if not self.centered:  # of the difference of two averages, codes of v leave no digit
            return self.moments
        return {} if self.momentum is None else {"m": "signed"}

    def _check(self) -> None:
        super()._check()
        if self.momentum is None and "form" in self._given:
            raise ValueError("RMSProp: form does nothing without momentum")

    @staticmethod
    def update(
        h: H, xp: Any, p: Array, g: Array, v: Array = "initial", a: Array = 0.0, m: Array = 0.0
    ) -> tuple[Array, ...]:
        v = h.rho * v + (1 - h.rho) * abs2(xp, g)
        w = v
        if h.centered:
            a = h.rho * a + (1 - h.rho) * g
            w = xp.maximum(v - abs2(xp, a), 0.0)
        d = g / _root(h, xp, w)
        if h.momentum is None:
            return -h.lr * d, v, a, m
        if h.form == "lr_inside":
            m = h.momentum * m + h.lr * d
            return -m, v, a, m
        m = h.momentum * m + d
        return -h.lr * m, v, a, m
