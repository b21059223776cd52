"""Components behind the step that keep averages of the parameters: to evaluate with, or to step back to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from xopt.rule import Array, H, Hyper, Transform, hyper, static, unchanged

__all__ = ["EMA", "SWA", "Lookahead"]


def _averaged(h: H, average: Array, p: Array) -> Array:
    """Move an average towards p: by the share ``h.rate``, and with ``h.keep`` = 0 to p itself, to the bit.

    In this form the average of equal numbers is that number; decay and 1 - decay, rounded apart, do not add up to 1.
    """
    base = h.keep * average + (1 - h.keep) * p
    return base + h.rate * (p - base)


class _Average(Transform):
    """An average of the parameters, which stay as they are; ``host`` says how it moves."""

    on_params = True
    steady = staticmethod(unchanged)

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, average: Array = "p") -> tuple[Array, Array]:
        return g, _averaged(h, average, g)

    @staticmethod
    def readout(h: H, xp: Any, p: Array, average: Array) -> Array:
        return average


class EMA(_Average):
    r"""Weight averaging by an exponential moving average (EMA) of the parameters (Polyak & Juditsky 1992).

    ::

        a ← d·a + (1-d)·p       p is the new parameter, which stays as it is

    Parameters
    ----------
    decay
        d in [0, 1], or a schedule.
    start
        ``"params"``: a₀ = p₀, the parameters before the first step (timm). ``"first"``: a₁ = p₁, those after it (torch,
        Keras). ``"zero"``: a₀ = 0, and what is read is divided by the sum of the weights, 1 - dᵗ (``optax.ema``).
    warmup
        ``"none"``. ``"ratio"``: d is at most (1 + t)/(10 + t) (TensorFlow). ``"power"``: at most
        1 - (1 + (t-1)/gamma)^-power (timm).
    gamma, power
        > 0, of ``warmup="power"``. timm: 1 and 2/3; 3/4 is said to suit runs of fewer steps.

    Notes
    -----
    State: ``average``, 4 bytes per float32 parameter; a float16 parameter has it in float32. It is what
    :meth:`~xopt.Optimizer.eval_params` returns and :meth:`~xopt.Optimizer.averaged` puts in place. With
    ``start="zero"`` it is kept divided already, and the sum of the weights is carried.

    An array whose gradient is None does not move, and neither does its average in that step.

    References
    ----------
    B. T. Polyak, A. B. Juditsky (1992), Acceleration of stochastic approximation by averaging, SIAM Journal on Control
    and Optimization 30(4).

    D. P. Kingma, J. Ba (2015), Adam: a method for stochastic optimization, arXiv:1412.6980, section 7.2: ``"zero"``.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> w = np.asarray([0.0])
    >>> opt = xopt.Optimizer(w, xopt.chain(xopt.SGD(lr=1.0), xopt.EMA(0.5)))
    >>> [(opt.step(np.asarray([-1.0])).item(), opt.eval_params().item()) for _ in range(3)]
    [(1.0, 0.5), (2.0, 1.25), (3.0, 2.125)]
    """

    decay: Hyper = hyper(default=0.999, ge=0, le=1)
    start: Literal["params", "first", "zero"] = "params"
    warmup: Literal["none", "ratio", "power"] = "none"
    gamma: Hyper = hyper(default=1.0, gt=0)
    power: Hyper = hyper(default=2 / 3, gt=0)
    carry: ClassVar[Mapping[str, float]] = {"weight": 0.0}

    def _check(self) -> None:
        for name in {"gamma", "power"} & {*self._given}:
            if self.warmup != "power":
                raise ValueError(f'EMA: {name} does nothing without warmup="power"')

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        d = h.decay
        if h.warmup == "ratio":
            d = xp.minimum(d, (1 + h.t) / (10 + h.t))
        if h.warmup == "power":
            d = xp.minimum(d, -xp.expm1(-h.power * xp.log1p((h.t - 1) / h.gamma)))
        if h.start == "first":
            d = xp.where(h.t <= 1, 0.0, d)
        weight = d * h.weight + (1 - d)
        rate = xp.where(weight > 0, (1 - d) / xp.where(weight > 0, weight, 1.0), 0.0) if h.start == "zero" else 1 - d
        return {"rate": rate, "keep": xp.where(rate >= 1, 0.0, 1.0), "weight": weight}


class SWA(_Average):
    r"""Stochastic weight averaging (SWA): the equal average of the parameters (Izmailov et al. 2018).

    ::

        at step t = start, start + every, …:     n ← n + 1;  a ← a + (p - a)/n

    Parameters
    ----------
    start
        The first step whose parameters count, ≥ 1.
    every
        Steps from one to the next, ≥ 1.

    Notes
    -----
    State: ``average``, 4 bytes per float32 parameter. Before step ``start`` it is the parameters themselves. It is what
    :meth:`~xopt.Optimizer.eval_params` returns. The same as ``torch.optim.swa_utils.AveragedModel``, updated at those
    steps. ``start=1, every=1`` is the average of Polyak and Ruppert. For the high learning rate of the paper give the
    rule a schedule; statistics of batch normalization are the model's to update.

    References
    ----------
    P. Izmailov, D. Podoprikhin, T. Garipov, D. Vetrov, A. G. Wilson (2018), Averaging weights leads to wider optima and
    better generalization, arXiv:1803.05407, Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> opt = xopt.Optimizer(np.asarray([0.0]), xopt.chain(xopt.SGD(lr=1.0), xopt.SWA(start=2)))
    >>> [(opt.step(np.asarray([-1.0])).item(), opt.eval_params().item()) for _ in range(4)]
    [(1.0, 1.0), (2.0, 2.0), (3.0, 2.5), (4.0, 3.0)]
    """

    start: int = static(default=1, ge=1)
    every: int = static(default=1, ge=1)

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        since = h.t - h.start
        n = xp.floor(since / h.every) + 1
        rate = xp.where(since <= 0, 1.0, xp.where(since % h.every == 0, 1 / xp.maximum(n, 1.0), 0.0))
        return {"rate": rate, "keep": xp.where(rate >= 1, 0.0, 1.0)}


class Lookahead(Transform):
    r"""Lookahead: every k steps, go back part of the way to where the last k began (Zhang et al. 2019).

    ::

        at step t = k, 2k, …:     slow ← slow + α·(p - slow);  p ← slow

    Parameters
    ----------
    alpha
        Share α of the way that is kept, in [0, 1].
    k
        Steps from one return to the next, ≥ 1.
    start
        ``"params"``: the first k steps begin at the first parameters (the paper, optax). ``"first"``: the slow weights
        are made after k steps, which count in full (timm).

    Notes
    -----
    State: ``slow``, 4 bytes per float32 parameter; the state of the rule is not touched by a return. The slow weights
    are what :meth:`~xopt.Optimizer.eval_params` returns: between returns those of the last, with ``start="first"`` and
    before the first one the parameters. In optax they are a part of the parameters. k is 5 in the paper and 6 in timm.

    References
    ----------
    M. R. Zhang, J. Lucas, G. Hinton, J. Ba (2019), Lookahead optimizer: k steps forward, 1 step back, arXiv:1907.08610,
    Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> opt = xopt.Optimizer(np.asarray([0.0]), xopt.chain(xopt.SGD(lr=1.0), xopt.Lookahead(k=2)))
    >>> [opt.step(np.asarray([-1.0])).item() for _ in range(4)]
    [1.0, 1.0, 2.0, 2.0]
    """

    alpha: Hyper = hyper(default=0.5, ge=0, le=1)
    k: int = static(default=5, ge=1)
    start: Literal["params", "first"] = "params"
    on_params = True

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        back = xp.where(h.t % h.k == 0, 1.0, 0.0)
        keep = xp.where(h.t <= h.k, 0.0, 1.0) if h.start == "first" else 1.0 + 0.0 * back
        return {"back": back, "keep": keep, "rate": h.alpha * back}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, slow: Array = "p") -> tuple[Array, Array]:
        slow = _averaged(h, slow, g)
        return h.back * slow + (1 - h.back) * g, slow

    @staticmethod
    def readout(h: H, xp: Any, p: Array, slow: Array) -> Array:
        return slow
