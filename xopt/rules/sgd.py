"""Gradient descent, with and without momentum."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from xopt.rule import Array, H, Hyper, Moments, Rule, hyper

__all__ = ["SGD"]


class SGD(Rule):
    r"""Gradient descent, optionally with momentum (Polyak 1964) or Nesterov's (1983), in the forms in use.

    With μ = ``momentum``, τ = ``dampening`` (0 in the first step), m₀ = 0::

        no momentum     p ← p - lr·g
        "lr_outside"    m ← μ·m + (1-τ)·g        p ← p - lr·m     Nesterov: p ← p - lr·(g + μ·m)
        "lr_inside"     m ← μ·m - (1-τ)·lr·g     p ← p + m        Nesterov: p ← p + μ·m - lr·g
        "ema"           m ← μ·m + (1-μ)·g        p ← p - lr·m     Nesterov: p ← p - lr·(μ·m + (1-μ)·g)

    The first two agree while lr is constant: a later change of lr rescales "lr_outside" at once, "lr_inside" slowly.

    Parameters
    ----------
    lr
        Learning rate, ≥ 0.
    momentum
        μ in [0, 1); None for none: no state is kept then.
    dampening
        τ in [0, 1]; not with ``form="ema"``.
    nesterov
        Look ahead by one momentum step.
    form
        ``"lr_outside"`` (torch, optax), ``"lr_inside"`` (Keras, Chainer) or ``"ema"``.
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: ``m``, shaped like the parameter, 4 bytes per float32 parameter; none without momentum.

    As in torch, the first step is not dampened. Keras and Chainer have no dampening; optax has none either.

    Raises
    ------
    ValueError
        For Nesterov, dampening or a form without momentum, and for dampening with ``form="ema"``.

    References
    ----------
    B. T. Polyak (1964), Some methods of speeding up the convergence of iteration methods.

    Y. Nesterov (1983), A method for solving the convex programming problem with convergence rate O(1/k²).

    I. Sutskever, J. Martens, G. Dahl, G. Hinton (2013), On the importance of initialization and momentum.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule = xopt.SGD(lr=0.1, momentum=0.9)
    >>> w = np.asarray([1.0])
    >>> state = rule.init(w)
    >>> for _ in range(2):
    ...     w, state = rule.apply(w, 2 * w, state)
    >>> w.round(3)
    array([0.46])
    """

    lr: Hyper = hyper(default=1e-3, ge=0)
    momentum: Hyper | None = hyper(default=None, ge=0, lt=1)
    dampening: Hyper | None = hyper(default=None, ge=0, le=1)
    nesterov: bool = False
    form: Literal["lr_outside", "lr_inside", "ema"] = "lr_outside"
    moments: ClassVar[Moments] = {"m": "signed"}

    def _check(self) -> None:
        super()._check()
        if self.momentum is None:  # else dampening may be an array, of which nobody may ask whether it is 0
            extras = [n for n in ("dampening", "nesterov", "form") if self._given.get(n)]
            if extras:
                raise ValueError(f"SGD: {extras[0]} does nothing without momentum")
        if self.form == "ema" and self.dampening is not None:
            raise ValueError('SGD: form="ema" has 1 - momentum in the place of 1 - dampening; give one of the two')

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        return {"gain": 1.0 if h.dampening is None else xp.where(h.t > 1, 1 - h.dampening, 1.0)}

    @staticmethod
    def steady(h: H) -> Any:
        if h.momentum is None or h.form == "ema":
            return 1.0
        m = (1.0 if h.dampening is None else 1 - h.dampening) / (1 - h.momentum)
        return h.momentum * m + 1 if h.nesterov else m

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, m: Array = 0.0) -> tuple[Array, ...]:
        if h.momentum is None:
            return -h.lr * g, m
        if h.form == "lr_inside":
            m = h.momentum * m - h.lr * h.gain * g
            return (h.momentum * m - h.lr * g if h.nesterov else m), m
        gain = 1 - h.momentum if h.form == "ema" else h.gain
        m = h.momentum * m + gain * g
        ahead = (1 - h.momentum) * g if h.form == "ema" else g
        return -h.lr * (h.momentum * m + ahead if h.nesterov else m), m
