"""Rules that step by a sign: SignSGD, Signum, Lion, Rprop."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from xopt.rule import Array, Decay, H, Hyper, Moments, Rule, hyper, is_complex, sign, static

__all__ = ["Lion", "Rprop", "SignSGD", "Signum"]


class SignSGD(Rule):
    r"""Gradient descent by the sign of the gradient (Bernstein et al. 2018, arXiv:1802.04434, Algorithm 1).

    ::

        p ← p - lr·sign(g)

    Parameters
    ----------
    lr
        Size of every step, ≥ 0, in the unit of the parameter.
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: none, 0 bytes per float32 parameter. An element with gradient 0 stays. The sign of a complex number is its
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
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: ``m``, shaped like the parameter, 4 bytes per float32 parameter.

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
    moments: ClassVar[Moments] = {"m": "signed"}

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
    peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: ``m``, shaped like the parameter, 4 bytes per float32 parameter. The sign of a complex number is its phase.

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
    decay: Decay = static(default="lr", kw_only=True)
    moments: ClassVar[Moments] = {"m": "signed"}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, m: Array = 0.0) -> tuple[Array, ...]:
        step = sign(xp, h.b1 * m + (1 - h.b1) * g)
        return -h.lr * step, h.b2 * m + (1 - h.b2) * g


class Rprop(Rule):
    r"""Rprop (Riedmiller & Braun 1993; iRprop⁻ of Igel & Hüsken 2000): a step size for each element, by signs alone.

    With g' the gradient before, at first 0, and s = lr in step 1::

        g·g' > 0    s ← min(s·grow, largest)
        g·g' < 0    s ← max(s·shrink, smallest), g ← 0          "rprop-": g stays
        p ← p - s·sign(g)                                       "rprop+": where g·g' < 0, p goes back

    Parameters
    ----------
    lr
        First step size, ≥ 0, in the unit of the parameter. Later values do nothing.
    shrink, grow
        Factors of the step size: in (0, 1) and > 1.
    smallest, largest
        Bounds of the step size, > 0.
    form
        Where the sign changed, ``"irprop-"``: stay, and take the next gradient as the first (torch);
        ``"rprop-"``: go on with the smaller step; ``"rprop+"``: undo the step before, then as "irprop-" (1993).
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: ``last`` (g') and ``size`` (real), with "rprop+" ``move``, shaped like the parameter: 8 or 12
    bytes per float32 parameter.

    For gradients of whole data sets: the sign of a noisy gradient changes without need. g·g' of complex numbers is the
    real part of g times the conjugate of g', and the sign is the phase. ``optax.rprop`` (0.2.8) makes each of these
    steps one step later, and none in step 1.

    References
    ----------
    M. Riedmiller, H. Braun (1993), A direct adaptive method for faster backpropagation learning: the RPROP algorithm.

    C. Igel, M. Hüsken (2000), Improving the Rprop learning algorithm.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.Rprop(lr=0.1), np.asarray([1.0, -2.0])
    >>> w, state = rule.apply(w, 2 * w, rule.init(w))
    >>> w, rule.apply(w, 2 * w, state)[0]
    (array([ 0.9, -1.9]), array([ 0.78, -1.78]))
    """

    lr: Hyper = hyper(default=1e-2, ge=0)
    shrink: Hyper = hyper(default=0.5, gt=0, lt=1)
    grow: Hyper = hyper(default=1.2, gt=1)
    smallest: Hyper = hyper(default=1e-6, gt=0)
    largest: Hyper = hyper(default=50.0, gt=0)
    form: Literal["irprop-", "rprop-", "rprop+"] = "irprop-"

    @staticmethod
    def update(
        h: H, xp: Any, p: Array, g: Array, last: Array = 0.0, size: Array = 0.0, move: Array = 0.0
    ) -> tuple[Array, ...]:
        same = xp.real(g * xp.conj(last)) if is_complex(g) else g * last
        size = xp.where(size > 0, size, h.lr)
        size = xp.where(same > 0, h.grow * size, xp.where(same < 0, h.shrink * size, size))
        size = xp.minimum(xp.maximum(size, h.smallest), h.largest)
        g = g if h.form == "rprop-" else xp.where(same < 0, 0.0, g)
        step = -size * sign(xp, g)
        if h.form == "rprop+":
            step = move = xp.where(same < 0, -move, step)
        return step, g, size, move
