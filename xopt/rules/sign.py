"""Rules that step by a sign: SignSGD, Signum, Lion."""

from __future__ import annotations

from typing import Any, Literal

from xopt.rule import Array, H, Hyper, Rule, hyper, sign, static

__all__ = ["Lion", "SignSGD", "Signum"]


class SignSGD(Rule):
    r"""Gradient descent by the sign of the gradient (Bernstein et al. 2018, arXiv:1802.04434, Algorithm 1).

    ::

        p ← p - lr·sign(g)

    Parameters
    ----------
    lr
        Size of every step, ≥ 0, in the unit of the parameter.
    weight_decay, decay, maximize, complex
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: none, 0 bytes a float32 parameter. An element with gradient 0 stays. The sign of a complex number is its
    phase g/\|g\|.

    References
    ----------
    J. Bernstein, Y.-X. Wang, K. Azizzadenesheli, A. Anandkumar (2018), signSGD: compressed optimisation for non-convex
    problems, arXiv:1802.04434, Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.SignSGD(lr=0.1), np.asarray([1.0, -2.0, 0.0])
    >>> rule.apply(w, 2 * w, rule.init(w))[0]
    array([ 0.9, -1.9,  0. ])
    """

    lr: Hyper = hyper(default=1e-3, ge=0)

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return -h.lr * sign(xp, g)


class Signum(Rule):
    r"""SignSGD with momentum (Bernstein et al. 2018, arXiv:1802.04434, Algorithm 2).

    ::

        m ← μ·m + (1-μ)·g
        p ← p - lr·sign(m)

    Parameters
    ----------
    lr
        Size of every step, ≥ 0, in the unit of the parameter.
    momentum
        μ in [0, 1).
    weight_decay, decay, maximize, complex
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: ``m``, shaped like the parameter, 4 bytes a float32 parameter.

    References
    ----------
    J. Bernstein, Y.-X. Wang, K. Azizzadenesheli, A. Anandkumar (2018), signSGD: compressed optimisation for non-convex
    problems, arXiv:1802.04434, Algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.Signum(lr=0.1), np.asarray([1.0, -2.0])
    >>> rule.apply(w, 2 * w, rule.init(w))[0]
    array([ 0.9, -1.9])
    """

    lr: Hyper = hyper(default=1e-3, ge=0)
    momentum: Hyper = hyper(default=0.9, ge=0, lt=1)

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, m: Array = 0.0) -> tuple[Array, ...]:
        m = h.momentum * m + (1 - h.momentum) * g
        return -h.lr * sign(xp, m), m


class Lion(Rule):
    r"""Lion (Chen et al. 2023, arXiv:2302.06675, Algorithm 2).

    ::

        p ← p - lr·(sign(β₁·m + (1-β₁)·g) + w·p)
        m ← β₂·m + (1-β₂)·g

    Parameters
    ----------
    lr
        Size of every step, ≥ 0, in the unit of the parameter; 3 to 10 times smaller than that of Adam.
    b1, b2
        β₁ (of the step) and β₂ (of what is kept) in [0, 1).
    weight_decay
        w ≥ 0; 3 to 10 times larger than that of AdamW.
    decay
        ``"lr"``: w is multiplied by lr, as in the paper and every library.
    maximize, complex
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: ``m``, shaped like the parameter, 4 bytes a float32 parameter. The sign of a complex number is its phase.

    References
    ----------
    X. Chen et al. (2023), Symbolic discovery of optimization algorithms, arXiv:2302.06675, Algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.Lion(lr=0.1), np.asarray([1.0, -2.0])
    >>> rule.apply(w, 2 * w, rule.init(w))[0]
    array([ 0.9, -1.9])
    """

    lr: Hyper = hyper(default=1e-4, ge=0)
    b1: Hyper = hyper(default=0.9, ge=0, lt=1)
    b2: Hyper = hyper(default=0.99, ge=0, lt=1)
    decay: Literal["l2", "lr", "independent"] = static(default="lr", kw_only=True)

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, m: Array = 0.0) -> tuple[Array, ...]:
        step = sign(xp, h.b1 * m + (1 - h.b1) * g)
        return -h.lr * step, h.b2 * m + (1 - h.b2) * g
