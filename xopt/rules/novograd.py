"""NovoGrad: gradients divided by the norm of their layer."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from xopt.rule import Array, Decay, H, Hyper, Moments, Rule, abs2, hyper, static

__all__ = ["NovoGrad"]


class NovoGrad(Rule):
    r"""NovoGrad (Ginsburg et al. 2019, arXiv:1905.11286, Algorithm 1).

    For each leaf, with one v::

        v ← β₂·v + (1-β₂)·‖g‖²                   first: v = ‖g‖²
        m ← β₁·m + (g/(√v + ε) + w·p)            averaged: β₁·m + (1-β₁)·(g/(√v + ε) + w·p)
        p ← p - lr·m

    Parameters
    ----------
    lr
        Learning rate, ≥ 0.
    b1, b2
        β₁ and β₂ in [0, 1): 0.95 and 0.98 (the paper), 0.9 and 0.25 in optax.
    eps
        ε ≥ 0, in the unit of the gradient.
    averaged
        Multiply what enters m by 1 - β₁ (``grad_averaging`` elsewhere).
    weight_decay
        w ≥ 0, or None for no decay (default).
    decay
        ``"momentum"``: w·p enters m, as in the paper. The others as for every :class:`~xopt.Rule`.
    peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`; the norm of a complex leaf is the same in both modes.

    Notes
    -----
    State: ``m``, shaped like the parameter, 4 bytes per float32 parameter; in ``state.carry`` √v of each leaf
    (``norm``), which is in range where v is not.

    The first gradient of a leaf is the first that is not all 0.

    References
    ----------
    B. Ginsburg et al. (2019), Stochastic gradient methods with layer-wise adaptive moments for training of deep
    networks, arXiv:1905.11286, Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.NovoGrad(lr=0.1), np.asarray([3.0, -4.0])
    >>> rule.apply(w, 2 * w, rule.init(w))[0].round(3)
    array([ 2.94, -3.92])
    """

    lr: Hyper = hyper(default=1e-2, ge=0)
    b1: Hyper = hyper(default=0.95, ge=0, lt=1)
    b2: Hyper = hyper(default=0.98, ge=0, lt=1)
    eps: Hyper = hyper(default=1e-8, ge=0)
    averaged: bool = False
    decay: Literal["momentum", Decay] = static(default="momentum", kw_only=True)  # type: ignore[assignment]
    scope = "leaf"
    carry: ClassVar = {"norm": 0.0}
    moments: ClassVar[Moments] = {"m": "signed"}

    @staticmethod
    def reduce(h: H, xp: Any, p: Array, g: Array, m: Array) -> dict[str, Array]:
        return {"gg": abs2(xp, g)}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        size = xp.sqrt(h.gg)
        norm = xp.where(h.norm > 0, xp.hypot(xp.sqrt(h.b2) * h.norm, xp.sqrt(1 - h.b2) * size), size)
        root = norm + h.eps
        return {"norm": norm, "root": xp.where(root > 0, root, 1.0)}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, m: Array = 0.0) -> tuple[Array, ...]:
        d = g / h.root
        if h.weight_decay is not None and h.decay == "momentum":
            d = d + h.weight_decay * p
        m = h.b1 * m + ((1 - h.b1) * d if h.averaged else d)
        return -h.lr * m, m
