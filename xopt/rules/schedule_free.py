"""Rules without a schedule: the parameters to evaluate are an average of what the base rule visits."""

from __future__ import annotations

from typing import Any, ClassVar

from xopt.rule import Array, Decay, H, Hyper, Moments, Rule, abs2, hyper, shrunk, static

__all__ = ["ScheduleFreeAdamW", "ScheduleFreeSGD"]


def _average(h: H, xp: Any) -> dict[str, Any]:
    """Return the rate γ of this step, and what becomes of y, given that x = y + (1/β - 1)·(y - z)."""
    rate = h.lr * xp.minimum(h.t / h.warmup, 1.0) if h.warmup else h.lr
    top = xp.maximum(h.top, rate)
    weight = h.t**h.r * top**h.weight_lr_power
    total = h.total + weight
    c = weight / xp.where(total > 0, total, 1.0)
    ratio = h.b1 / h.beta
    pull, push = 1 - ratio + ratio * c, 1 - h.b1 * (1 - c)
    return {"rate": rate, "top": top, "total": total, "beta": h.b1, "pull": pull, "push": push}


class ScheduleFreeSGD(Rule):
    r"""Schedule-free gradient descent (Defazio et al. 2024, arXiv:2405.15682, equations 3 to 5).

    Gradients are taken at the parameters p (the paper's y); x is what to evaluate, :meth:`Optimizer.eval_params`::

        γ = lr·min(1, t/warmup),  w = tʳ·(max γ so far)^weight_lr_power,  c = w/(sum of w)
        z ← z - γ·g
        x ← (1-c)·x + c·z
        p ← (1-β)·z + β·x

    Parameters
    ----------
    lr
        Learning rate, ≥ 0; a schedule may warm up but need not decay.
    b1
        β in (0, 1]: where the gradient is taken, from z to x.
    warmup
        Steps of linear growth of γ, ≥ 0.
    r
        Power of t in the weight of a step, ≥ 0.
    weight_lr_power
        Power of the rate in that weight, ≥ 0; with 0 (and r = 0) x is the plain mean of z.
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`; ``decay="lr"`` multiplies w by γ, and the decay is taken at p, from z.

    Notes
    -----
    State: ``z``, which starts as the parameter, 4 bytes per float32 parameter; x is computed from p and z. In
    ``state.carry``, for each leaf, the sum of weights, the largest γ and the last β, so β may have a schedule too.

    Computed as p ← p - c·(p - z) - (1 - β·(1-c))·γ·g, as by the authors, which does not lose the step in the rounding
    of x. ``optax.contrib.schedule_free_sgd`` has no r, and begins its warm-up with a rate of 0.

    References
    ----------
    A. Defazio, X. Yang, H. Mehta, K. Mishchenko, A. Khaled, A. Cutkosky (2024), The road less scheduled,
    arXiv:2405.15682.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> opt = xopt.Optimizer(np.asarray([1.0, -2.0]), xopt.ScheduleFreeSGD(lr=0.2))
    >>> for _ in range(300):
    ...     _ = opt.step(2 * opt.params)
    >>> bool(np.abs(opt.eval_params()).max() < 0.05)
    True
    """

    lr: Hyper = hyper(default=1.0, ge=0)
    b1: Hyper = hyper(default=0.9, gt=0, le=1)
    warmup: int = static(default=0, ge=0)
    r: Hyper = hyper(default=0.0, ge=0)
    weight_lr_power: Hyper = hyper(default=2.0, ge=0)
    scope = "leaf"
    carry: ClassVar = {"top": 0.0, "total": 0.0, "beta": 1.0}
    host = staticmethod(_average)
    metrics: ClassVar = {"effective_lr": "rate"}
    decay_by = None

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, z: Array = "p") -> tuple[Array, ...]:
        u = shrunk(h, xp, h.rate * g, h.rate, p)
        return -h.pull * (p - z) - h.push * u, z - u

    @staticmethod
    def readout(h: H, xp: Any, p: Array, z: Array) -> Array:
        return p + (1 / h.beta - 1) * (p - z)


class ScheduleFreeAdamW(ScheduleFreeSGD):
    r"""Schedule-free AdamW (Defazio et al. 2024, arXiv:2405.15682, Algorithm 1).

    As :class:`~xopt.ScheduleFreeSGD` with a step of Adam without momentum::

        v ← β₂·v + (1-β₂)·|g|²
        z ← z - γ·(g/(√(v/(1-β₂ᵗ)) + ε) + w·p)

    Parameters
    ----------
    lr, b1
        As for :class:`~xopt.ScheduleFreeSGD`.
    b2
        β₂ in [0, 1).
    eps
        ε ≥ 0, in the unit of the gradient.
    warmup, r, weight_lr_power
        As for :class:`~xopt.ScheduleFreeSGD`.
    weight_decay
        w ≥ 0, or None for no decay (default).
    decay
        ``"lr"``: w is multiplied by γ (the authors, optax). ``"independent"``: by 1. ``"l2"``: g + w·p enters the rule.
        ``"cautious"``: as "lr", but only where the step of z does not lead p away from 0. ``"corrected"`` as for every
        rule.
    peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: ``z`` and ``v`` (real), 8 bytes per float32 parameter.

    The paper's Algorithm 1 has γ = lr·√(1-β₂ᵗ)·min(1, t/warmup) and √v + ε; the authors' code since, and this rule,
    correct v alone. Keras weights all steps alike: ``weight_lr_power=0``.

    References
    ----------
    A. Defazio, X. Yang, H. Mehta, K. Mishchenko, A. Khaled, A. Cutkosky (2024), The road less scheduled,
    arXiv:2405.15682, Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> opt = xopt.Optimizer(np.asarray([1.0, -2.0]), xopt.ScheduleFreeAdamW(lr=0.1))
    >>> for _ in range(300):
    ...     _ = opt.step(2 * opt.params)
    >>> bool(np.abs(opt.eval_params()).max() < 0.05)
    True
    """

    lr: Hyper = hyper(default=2.5e-3, ge=0)
    b2: Hyper = hyper(default=0.999, ge=0, lt=1)
    eps: Hyper = hyper(default=1e-8, ge=0)
    decay: Decay = static(default="lr", kw_only=True)
    metrics: ClassVar = {"effective_lr": "rate"}
    moments: ClassVar[Moments] = {"v": "square"}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        return {**_average(h, xp), "root": xp.sqrt(1 - h.b2**h.t)}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, z: Array = "p", v: Array = 0.0) -> tuple[Array, ...]:
        v = h.b2 * v + (1 - h.b2) * abs2(xp, g)
        u = shrunk(h, xp, h.rate * h.root * g / (xp.sqrt(v) + h.eps * h.root), h.rate, p)
        return -h.pull * (p - z) - h.push * u, z - u, v
