"""Rules that average: the parameters (ASGD), or all gradients so far (FTRL, MADGRAD)."""

from __future__ import annotations

from typing import Any, ClassVar

from xopt.rule import Array, H, Hyper, Rule, abs2, decayed_step, hyper, sign, static

__all__ = ["ASGD", "FTRL", "MADGRAD"]


class ASGD(Rule):
    r"""Averaged gradient descent (Polyak & Juditsky 1992, in the form of Bottou 2010): descend, and keep the mean.

    At step t::

        η = lr / (1 + λ·lr·(t-1))^α
        p ← p - η·(g + λ·p)
        mean ← mean + (p - mean) / max(1, t - 1 - t0)

    Parameters
    ----------
    lr
        First learning rate, ≥ 0.
    lambd
        λ ≥ 0: how fast the rate falls, and a decay of p.
    alpha
        α ≥ 0, the power by which the rate falls.
    t0
        The step after which the mean begins, ≥ 0; until then it is p.
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: ``mean``, shaped like the parameter, 4 bytes per float32 parameter. It is the result, which
    :meth:`~xopt.Rule.eval_params` returns. It does not see what a component behind the rule does to the step.

    torch's numbers, whose ``ax`` the mean is; but a schedule of lr counts at once, in torch one step later.

    References
    ----------
    B. T. Polyak, A. B. Juditsky (1992), Acceleration of stochastic approximation by averaging.

    L. Bottou (2010), Large-scale machine learning with stochastic gradient descent.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.ASGD(lr=0.1, t0=0), np.asarray([1.0])
    >>> state = rule.init(w)
    >>> for g in (1.0, -1.0, 1.0, -1.0, 1.0):
    ...     w, state = rule.apply(w, np.asarray([g]), state)
    >>> w.round(3), rule.eval_params(w, state).round(3)
    (array([0.9]), array([0.95]))
    """

    lr: Hyper = hyper(default=1e-2, ge=0)
    lambd: Hyper = hyper(default=1e-4, ge=0)
    alpha: Hyper = hyper(default=0.75, ge=0)
    t0: Hyper = hyper(default=1e6, ge=0)
    metrics: ClassVar = {"effective_lr": "eta"}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        eta = h.lr / (1 + h.lambd * h.lr * (h.t - 1)) ** h.alpha
        return {"eta": eta, "share": 1 / xp.maximum(h.t - 1 - h.t0, 1.0)}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, mean: Array = "p") -> tuple[Array, ...]:
        step = -h.eta * (g + h.lambd * p)
        new = p + decayed_step(h, xp, step, h.lr, p)
        return step, mean + h.share * (new - mean)

    @staticmethod
    def readout(h: H, xp: Any, p: Array, mean: Array) -> Array:
        return mean


class FTRL(Rule):
    r"""FTRL-Proximal (McMahan et al. 2013, Algorithm 1): gradient descent to sparse parameters.

    ::

        n' = n + |g|²
        z ← z + g - (n'^power - n^power)/lr · p
        n ← n'
        p ← -sign(z)·max(|z| - λ₁, 0) / ((β + n^power)/lr + λ₂)

    Parameters
    ----------
    lr
        Learning rate (α in the paper), > 0.
    l1
        λ₁ ≥ 0: elements with \|z\| ≤ λ₁ are exactly 0.
    l2
        λ₂ ≥ 0; twice the ``l2_regularization_strength`` of Keras.
    beta
        β ≥ 0: 1 in the paper, 0 in Keras.
    power
        In [0, 1]: 1/2 in the paper; ``-learning_rate_power`` of Keras.
    initial
        First value of n, ≥ 0: 0 in the paper, 0.1 in Keras. Where it is 0 and β and λ₂ are 0 too, an element without
        gradient becomes NaN.
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`. Of a complex z the modulus is shrunk.

    Notes
    -----
    State: ``z`` and ``n`` (real), shaped like the parameter, 8 bytes per float32 parameter.

    p is made anew from z, which begins at 0: the first step takes p to (1 - (initial/n)^power) of itself. The method is
    meant for parameters that start at 0.

    References
    ----------
    H. B. McMahan et al. (2013), Ad click prediction: a view from the trenches, KDD, Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.FTRL(lr=0.5, l1=1.0), np.zeros(2)
    >>> rule.apply(w, np.asarray([3.0, -0.5]), rule.init(w))[0].round(3)
    array([-0.331,  0.   ])
    """

    lr: Hyper = hyper(default=1e-3, gt=0)
    l1: Hyper = hyper(default=0.0, ge=0)
    l2: Hyper = hyper(default=0.0, ge=0)
    beta: Hyper = hyper(default=0.0, ge=0)
    power: float = static(default=0.5, ge=0, le=1)
    initial: float = static(default=0.1, ge=0)
    inexact = True

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, z: Array = 0.0, n: Array = "initial") -> tuple[Array, ...]:
        before, n = n, n + abs2(xp, g)
        old, new = ((xp.sqrt(x) if h.power == 0.5 else xp.pow(x, h.power)) for x in (before, n))
        z = z + g - (new - old) / h.lr * p
        short = sign(xp, z) * xp.maximum(xp.abs(z) - h.l1, 0.0)
        return -short / ((h.beta + new) / h.lr + h.l2) - p, z, n


class MADGRAD(Rule):
    r"""MADGRAD (Defazio & Jelassi 2021, arXiv:2101.11075, Algorithm 1): averages all gradients, from the start on.

    At step t, with p₀ the parameter when the state was made::

        s ← s + lr·√t·g
        v ← v + lr·√t·|g|²
        p ← μ·p + (1-μ)·(p₀ - s / (∛v + ε))

    Parameters
    ----------
    lr
        Learning rate, ≥ 0.
    momentum
        μ in [0, 1), the paper's 1 - c.
    eps
        ε ≥ 0, in the unit of ∛v.
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`. Decay fits it badly: p₀ is not shrunk.

    Notes
    -----
    State: ``s``, ``v`` (real) and ``start`` (p₀), shaped like the parameter, 12 bytes per float32 parameter.

    The authors' code and optax add ε to lr: their lr=0.1 is ``lr=0.1 + 1e-6`` here.

    References
    ----------
    A. Defazio, S. Jelassi (2021), Adaptivity without compromise: a momentumized, adaptive, dual averaged gradient
    method for stochastic optimization, arXiv:2101.11075, Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.MADGRAD(lr=0.1, momentum=0.5), np.asarray([1.0, -2.0])
    >>> rule.apply(w, 2 * w, rule.init(w))[0].round(3)
    array([ 0.864, -1.829])
    """

    lr: Hyper = hyper(default=1e-2, ge=0)
    momentum: Hyper = hyper(default=0.9, ge=0, lt=1)
    eps: Hyper = hyper(default=1e-6, ge=0)
    inexact = True

    @staticmethod
    def update(
        h: H, xp: Any, p: Array, g: Array, s: Array = 0.0, v: Array = 0.0, start: Array = "p"
    ) -> tuple[Array, ...]:
        rate = h.lr * h.t**0.5
        s = s + rate * g
        v = v + rate * abs2(xp, g)
        z = start - s / (xp.pow(v, 1 / 3) + h.eps)
        return (1 - h.momentum) * (z - p), s, v, start
