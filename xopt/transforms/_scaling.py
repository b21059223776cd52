"""Scales of gradients and steps, and decay of parameters: by a number, by norms, by a mask, by the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from xopt._engine.program.contract import ComponentSpec
from xopt.rule import Array, H, Hyper, Transform, abs2, hyper, static, trust_ratio, unchanged
from xopt.rule._elementwise import along

__all__ = ["AddDecay", "Cautious", "Normalize", "ReduceOnPlateau", "Scale", "TrustRatio"]


class Scale(Transform):
    r"""Scale gradients or steps by a number: ``factor · g``.

    Parameters
    ----------
    factor
        Any number, or a schedule.

    Notes
    -----
    No state. Behind a rule with ``lr=1`` it is the learning rate of everything in front of it, as
    ``optax.scale_by_learning_rate`` is, but without a change of sign: a step of xopt already has its minus.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.chain(xopt.SGD(lr=1.0), xopt.Scale(0.5)), np.asarray([1.0])
    >>> rule.apply(w, np.asarray([1.0]), rule.init(w))[0]
    array([0.5])
    """

    factor: Hyper = hyper()

    @staticmethod
    def steady(h: H) -> Any:
        return abs(h.factor)

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return h.factor * g


class AddDecay(Transform):
    r"""Weight decay as a transform, to stand where another should see it or not see it, or for some arrays only.

    ::

        decay="l2"              g ← g + w·p             in front of the rule
        decay="independent"     step ← step - w·p       behind it

    Parameters
    ----------
    weight_decay
        w ≥ 0.
    decay
        As the field of every rule: ``"l2"`` or ``"independent"``.

    Notes
    -----
    No state. To multiply w by the learning rate, give that to a component behind it:
    ``chain(Adam(lr=1.0), AddDecay(w, decay="independent"), Scale(lr))`` is ``AdamW(lr, weight_decay=w)``, and what
    stands between the last two sees the decay, as in LAMB. The same as ``optax.add_decayed_weights``, whose steps still
    lack their minus sign.

    Raises
    ------
    ValueError
        By ``chain``, where it stands on the other side of the rule, and in front of a rule with ``maximize=True``,
        which would turn the decay into growth: give that rule its own ``weight_decay``.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.chain(xopt.AddDecay(0.5), xopt.SGD(lr=1.0)), np.asarray([2.0])
    >>> rule.apply(w, np.asarray([0.0]), rule.init(w))[0]
    array([1.])
    """

    weight_decay: Hyper = hyper(ge=0)
    decay: Literal["l2", "independent"] = "l2"
    steady = staticmethod(unchanged)

    def _stands(self) -> tuple[str, ...]:
        return ("front",) if self.decay == "l2" else ("behind",)

    def _check_before(self, rule: Any) -> None:
        if self.decay == "l2" and getattr(rule, "maximize", False):
            raise ValueError(
                f"chain: AddDecay in front of {type(rule).__name__}(maximize=True) would make the parameters grow; "
                f"give weight_decay to the rule"
            )

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return g + h.weight_decay * p if h.decay == "l2" else g - h.weight_decay * p


class Normalize(Transform):
    r"""Gradient normalization: divide by the Euclidean norm, of the whole tree or of each array.

    ::

        g ← g / (‖g‖₂ + ε)

    Parameters
    ----------
    eps
        ε ≥ 0. What is all zero stays so, also with 0.
    over
        ``"tree"``: one norm (``optax.normalize_by_update_norm``). ``"leaf"``: that of each array.

    Notes
    -----
    No state. The norm is summed in float64, as by :class:`~xopt.ClipByNorm`. In front of ``SGD`` it is normalized
    gradient descent.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.chain(xopt.Normalize(eps=0.0), xopt.SGD(lr=1.0)), np.asarray([0.0, 0.0])
    >>> rule.apply(w, np.asarray([3.0, 4.0]), rule.init(w))[0]
    array([-0.6, -0.8])
    """

    eps: Hyper = hyper(default=1e-6, ge=0)
    over: Literal["tree", "leaf"] = "tree"
    scope = "over"
    metrics: ClassVar[Mapping[str, str]] = {"norm": "norm"}

    @staticmethod
    def reduce(h: H, xp: Any, p: Array, g: Array) -> dict[str, Array]:
        return {"total": abs2(xp, g)}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        size = xp.sqrt(h.total)
        norm = size + h.eps
        return {"norm": size, "scale": 1 / xp.where(norm == 0, 1.0, norm)}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return h.scale * g


class TrustRatio(Transform):
    r"""Layer-wise trust ratio: scale each array by norm of the parameter over norm of the step (You et al. 2017, 2020).

    ::

        r ← c·max(‖p‖₂, n) / (max(‖u‖₂, n) + ε)       1 where either norm is 0
        u ← r·u

    Parameters
    ----------
    coefficient
        c > 0: 1 in LAMB, 0.001 in LARS.
    eps
        ε ≥ 0.
    min_norm
        Least norm n ≥ 0.

    Notes
    -----
    No state. The norms are summed in float64, as by :class:`~xopt.ClipByNorm`.

    Behind a rule u is its step, which has the learning rate in it: the ratio would cancel that. So the rule has lr = 1
    and the learning rate comes last. LAMB is ``chain(Adam(lr=1.0), AddDecay(w, decay="independent"), TrustRatio(),
    Scale(lr))``; LARS is ``chain(AddDecay(w), TrustRatio(0.001), SGD(lr, momentum=0.9, form="lr_inside"))``, in front
    of the rule. The same as ``optax.scale_by_trust_ratio``; the ratio of timm and Keras leaves out the decay.

    References
    ----------
    Y. You, I. Gitman, B. Ginsburg (2017), Large batch training of convolutional networks, arXiv:1708.03888,
    Algorithm 1.

    Y. You et al. (2020), Large batch optimization for deep learning: training BERT in 76 minutes, arXiv:1904.00962,
    Algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.chain(xopt.SGD(lr=1.0), xopt.TrustRatio(), xopt.Scale(0.1)), np.asarray([3.0, 4.0])
    >>> rule.apply(w, np.asarray([0.0, 100.0]), rule.init(w))[0]
    array([3. , 3.5])
    """

    coefficient: Hyper = hyper(default=1.0, gt=0)
    eps: Hyper = hyper(default=0.0, ge=0)
    min_norm: Hyper = hyper(default=0.0, ge=0)
    scope = "leaf"
    metrics: ClassVar[Mapping[str, str]] = {"trust_ratio": "ratio"}

    @staticmethod
    def reduce(h: H, xp: Any, p: Array, g: Array) -> dict[str, Array]:
        return {"weight": abs2(xp, p), "change": abs2(xp, g)}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        weight = xp.maximum(xp.sqrt(h.weight), h.min_norm)
        change = xp.maximum(xp.sqrt(h.change), h.min_norm)
        return {"ratio": trust_ratio(xp, h.coefficient * weight, change + h.eps, weight, change)}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return h.ratio * g


class Cautious(Transform):
    r"""Cautious optimizer: drop what a step does against the current gradient (Liang et al. 2024).

    ::

        φ ← 0 where Re(u·ḡ) ≥ 0, else 1       u the step, g the gradient: 1 is downhill
        u ← u·φ / max(mean φ, 0.001)          the mean over each array; with rescale=False, u ← u·φ

    Parameters
    ----------
    rescale
        Divide by the share of the array that goes downhill, so that the step is not smaller as a whole. This needs one
        sum more; without it the component adds nothing to the kernel of the rule.

    Notes
    -----
    No state. The gradient is the one that enters the rule, after ``maximize`` and clipping, without its L2 decay. As in
    the authors' code and timm the mean has the lower bound 0.001; Algorithm 1 of the paper has (count + 1)/size.

    A rule with decoupled decay has that in its step, and it is masked too. The authors' code and timm do not mask it:
    ``chain(Adam(lr=1.0), Cautious(), AddDecay(w, decay="independent"), Scale(lr))``.

    References
    ----------
    K. Liang, L. Chen, B. Liu, Q. Liu (2024), Cautious optimizers: improving training with one line of code,
    arXiv:2411.16085, Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.chain(xopt.SGD(lr=1.0, momentum=0.5), xopt.Cautious(rescale=False)), np.asarray([0.0, 0.0])
    >>> w, state = rule.apply(w, np.asarray([4.0, 4.0]), rule.init(w))
    >>> rule.apply(w, np.asarray([1.0, -1.0]), state)[0]  # the second still goes down, against its gradient
    array([-7., -4.])
    """

    rescale: bool = True
    scope = "leaf"

    def _spec(self, key: str, order: tuple[int, ...]) -> ComponentSpec:
        spec = super()._spec(key, order)
        return spec if self.rescale else spec._replace(reduce=None, host=None, asks_sum=False)

    @staticmethod
    def reduce(h: H, xp: Any, p: Array, g: Array, *, grad: Array) -> dict[str, Array]:
        uphill = along(xp, g, grad)
        one = xp.minimum(xp.maximum(xp.where(xp.isnan(uphill), 1.0, uphill), 1.0), 1.0)
        return {"agree": xp.where(uphill >= 0, 0.0, one), "count": one}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        return {"scale": 1 / xp.maximum(h.agree / xp.maximum(h.count, 1.0), 0.001)}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, *, grad: Array) -> Array:
        return xp.where(along(xp, g, grad) >= 0, 0.0, h.scale * g if h.rescale else g)


class ReduceOnPlateau(Transform):
    r"""Reduce on plateau: make the steps smaller when the loss has stopped improving.

    ::

        better   = loss < best·(1 - threshold)        "abs": loss < best - threshold
        best     ← loss where better
        bad      ← 0 where better or cooling, else bad + 1
        cooling  ← max(cooling - 1, 0)
        where bad > patience:   scale ← max(scale·factor, min_scale);  cooling ← cooldown;  bad ← 0
        u        ← scale·u

    Parameters
    ----------
    factor
        What the scale is multiplied by, in (0, 1).
    patience
        So many losses may pass without improvement, ≥ 0.
    threshold
        How much better counts as better, ≥ 0.
    threshold_mode
        ``"rel"``: as a share of the best loss. ``"abs"``: in the unit of the loss.
    cooldown
        So many losses are not counted after a reduction, ≥ 0.
    min_scale
        Where it ends, in [0, 1].
    mode
        ``"min"``: lower is better. ``"max"``: higher is; ``"rel"`` is then best·(1 + threshold).
    accumulation_size
        Means of so many losses are compared, ≥ 1: of minibatches, say an epoch.

    Notes
    -----
    State: six scalars, carried; no bytes per parameter. The loss is given to every step, ``opt.step(grads,
    value=loss)``, and may stay on the device: nothing is read back, and a jitted step is traced once. A loss that is
    NaN is no improvement.

    The loss counts from the step that it is given to, as in optax; with torch's ``ReduceLROnPlateau`` call
    ``scheduler.step(loss)`` before ``optimizer.step()``. optax reduces when ``patience`` losses have passed, torch and
    this at the next one: ``patience`` here is one less than there. ``min_scale`` is torch's ``min_lr`` divided by lr;
    torch leaves out reductions of the learning rate by less than its ``eps``.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule = xopt.chain(xopt.SGD(lr=1.0), xopt.ReduceOnPlateau(factor=0.5, patience=0))
    >>> opt = xopt.Optimizer(np.asarray([0.0]), rule)
    >>> [opt.step(np.asarray([1.0]), value=loss).item() for loss in (3.0, 2.0, 2.0, 1.0)]
    [-1.0, -2.0, -2.5, -3.0]
    """

    factor: Hyper = hyper(default=0.1, gt=0, lt=1)
    patience: int = static(default=10, ge=0)
    threshold: Hyper = hyper(default=1e-4, ge=0)
    threshold_mode: Literal["rel", "abs"] = "rel"
    cooldown: int = static(default=0, ge=0)
    min_scale: Hyper = hyper(default=0.0, ge=0, le=1)
    mode: Literal["min", "max"] = "min"
    accumulation_size: int = static(default=1, ge=1)
    inputs = ("value",)
    carry: ClassVar[Mapping[str, float]] = {
        "best": float("inf"),
        "bad": 0.0,
        "cooling": 0.0,
        "scale": 1.0,
        "seen": 0.0,
        "mean": 0.0,
    }
    metrics: ClassVar[Mapping[str, str]] = {"lr_scale": "scale"}

    def _stands(self) -> tuple[str, ...]:
        return ("behind",)

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        seen, loss = h.seen + 1, -h.value if h.mode == "max" else h.value
        mean = (h.seen * h.mean + loss) / seen
        share = 1 + h.threshold if h.mode == "max" else 1 - h.threshold
        goal = h.best * share if h.threshold_mode == "rel" else h.best - h.threshold
        best = xp.where(mean < goal, mean, h.best)
        bad = xp.where(mean < goal, 0.0, xp.where(h.cooling > 0, 0.0, h.bad + 1))
        reduced = xp.maximum(h.scale * h.factor, h.min_scale)
        new = {
            "best": best,
            "bad": xp.where(bad > h.patience, 0.0, bad),
            "cooling": xp.where(bad > h.patience, float(h.cooldown), xp.maximum(h.cooling - 1, 0.0)),
            "scale": xp.where(bad > h.patience, reduced, h.scale),
            "seen": 0.0 * seen,
            "mean": 0.0 * seen,
        }
        old = {"best": h.best, "bad": h.bad, "cooling": h.cooling, "scale": h.scale, "seen": seen, "mean": mean}
        return {n: xp.where(seen == h.accumulation_size, x, old[n]) for n, x in new.items()}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return h.scale * g
