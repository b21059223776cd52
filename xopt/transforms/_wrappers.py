"""Rules around a rule, which decide whether it takes a step."""

from __future__ import annotations

from typing import Literal, TypeAlias

from xopt._public import public
from xopt.rule._functional import FunctionalOptimizer, Wrapper
from xopt.transforms._conditional import NONFINITE, Accumulation, LossScaling

__all__ = ["Accumulate", "Guard", "LossScale", "OnNonFinite"]

OnNonFinite: TypeAlias = Literal["propagate", "skip", "raise", "zero"]


@public
class Accumulate(Wrapper):
    r"""Gradient accumulation: a step with every k-th gradient, by the mean of the last k.

    ::

        a ← a + g/k
        t mod k = 0:    p, state ← rule(p, a, state),   a ← 0

    k gradients of small batches then do what the gradient of one large batch would: moments, weight decay, schedules
    and bias corrections are those of the large step.

    Parameters
    ----------
    rule
        A rule or a chain.
    every
        k ≥ 1.
    total
        ``"mean"``, or ``"sum"``: a ← a + g.

    Notes
    -----
    State: that of the rule, and ``accumulate.gradient``, shaped like the parameter: 4 bytes per float32 parameter more.
    ``state.step`` counts gradients, and the rule's own step t is 1 for the first k of them. A parameter whose gradient
    is None in the k-th call takes no part in that step; what it has gathered waits for the next.

    The same as ``optax.MultiSteps(..., every_k_schedule=k)``; torch's habit is the sum, of losses divided by k.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.Accumulate(xopt.SGD(lr=1.0), every=2), np.asarray([0.0])
    >>> state = rule.init(w)
    >>> for g in (1.0, 3.0, 5.0):
    ...     w, state = rule.apply(w, np.asarray([g]), state)
    >>> w
    array([-2.])
    """

    __slots__ = ()

    def __init__(self, rule: FunctionalOptimizer, every: int, total: Literal["mean", "sum"] = "mean") -> None:
        super().__init__(rule, Accumulation(every=every, total=total))

    def __repr__(self) -> str:
        assert isinstance(self._first, Accumulation)
        more = f", total={self._first.total!r}" if self._first.total != "mean" else ""
        return f"Accumulate({self.rule!r}, every={self._first.every}{more})"


@public
class Guard(Wrapper):
    r"""Skip steps with non-finite gradients (infinite or NaN), or zero them, or raise.

    Parameters
    ----------
    rule
        A rule or a chain.
    on_nonfinite
        ``"propagate"``: nothing. ``"skip"``: the whole step is left out, parameters, state and the rule's own step
        count stay as they are; ``state.carry["nonfinite.skipped"]`` counts that. ``"zero"``: such elements count as 0.
        ``"raise"``: `FloatingPointError` with the path of the first such gradient; nothing has moved then.

    Raises
    ------
    TypeError
        For ``"raise"`` inside ``jax.jit``, where nobody may look at a gradient.

    Notes
    -----
    State: that of the rule, with ``"skip"`` one more scalar. ``"skip"`` and ``"raise"`` read the gradients once more.
    Only ``"raise"`` waits for the device; ``"skip"`` decides there. The same as ``optax.apply_if_finite`` without its
    limit. `LossScale` does the same, and scales.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.Guard(xopt.Adam(lr=0.1), on_nonfinite="skip"), np.asarray([1.0, 2.0])
    >>> state = rule.init(w)
    >>> w, state = rule.apply(w, np.asarray([np.nan, 1.0]), state)
    >>> w, state.carry
    (array([1., 2.]), {'nonfinite.skipped': 1.0})
    """

    __slots__ = ()

    def __init__(self, rule: FunctionalOptimizer, on_nonfinite: OnNonFinite) -> None:
        if on_nonfinite != "propagate" and on_nonfinite not in NONFINITE:
            raise ValueError(
                f"on_nonfinite={on_nonfinite!r}, but it must be one of 'propagate', {', '.join(map(repr, NONFINITE))}"
            )
        super().__init__(rule, NONFINITE[on_nonfinite]() if on_nonfinite != "propagate" else None)

    def __repr__(self) -> str:
        action = next((n for n, kind in NONFINITE.items() if type(self._first) is kind), "propagate")
        return f"Guard({self.rule!r}, on_nonfinite={action!r})"


@public
class LossScale(Wrapper):
    r"""Dynamic loss scaling for mixed precision: unscale the gradients, and find the largest scale without overflow.

    ::

        all g finite:   p, state ← rule(p, g/scale, state);   good ← good + 1
                        good = every:  scale ← min(scale·growth, most),  good ← 0
        otherwise:      the step is left out;  scale ← max(scale·backoff, least),  good ← 0

    Gradients below 3e-8 are 0 in float16. Multiply the loss by ``opt.loss_scale``, in the pure form by
    ``state.carry["lossscale.scale"]``, and all gradients are multiplied on the way back.

    Parameters
    ----------
    rule
        A rule or a chain.
    initial
        The first scale, from 2\ :sup:`-126` to 2\ :sup:`126`, as are all scales, between ``least`` and ``most``.
    growth
        What the scale is multiplied by after ``every`` finite gradients in a row, ≥ 1. 1: it never grows.
    backoff
        What it is multiplied by after one that is not finite, in (0, 1]. 1: it never falls.
    every
        That number, from 1 to 2\ :sup:`24`.
    least, most
        Where it stops falling, and where it stops growing.

    Raises
    ------
    ValueError
        For an option that does nothing beside ``growth=1`` or ``backoff=1``; with a `Guard` or another `LossScale`
        inside; and for a `Guard` around it, also that of ``on_nonfinite=``. `minimize` refuses it: its values are not
        scaled.

    Notes
    -----
    State: that of the rule, and three scalars, carried: the scale, ``lossscale.good`` and ``lossscale.skipped``, the
    number of steps left out. Parameters, state and the rule's own step count stay as they are in these, so schedules
    and bias corrections see the steps that are taken. ``growth=1, backoff=1`` is a static scale, which still leaves
    out what overflows. A call in which every gradient is None counts as finite.

    The gradients are read once more, to look for what is not finite; nothing is read back, and a jitted step is
    traced once. The scale is a float where the host computes (NumPy, torch on the CPU), else a 0-d array of the
    library: multiply a loss in float32 by it, for 65,536 is infinite in float16. The gradients are divided in the
    dtype of the arithmetic, float32 for float16, in the same pass as everything else and before clipping, noise and
    decay; by powers of two exactly. A loss given as ``value=`` is the one that is not scaled.

    ``Accumulate(LossScale(rule), every=k)`` has one scale for k gradients, and leaves all of them out when one is not
    finite, as in torch's recipe; ``LossScale(Accumulate(rule, every=k))`` leaves out that one alone, and the step has
    the mean of the next k that are finite.

    The same as torch's ``GradScaler``, which has no ``least`` and ``most``, in one call.

    References
    ----------
    P. Micikevicius, S. Narang, J. Alben, G. Diamos, E. Elsen, D. Garcia, B. Ginsburg, M. Houston, O. Kuchaiev,
    G. Venkatesh, H. Wu (2018), Mixed precision training, ICLR, arXiv:1710.03740, section 3.2.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> w = np.asarray([1.0], np.float16)
    >>> opt = xopt.Optimizer(w, xopt.LossScale(xopt.SGD(lr=2.0**22)))
    >>> for _ in range(3):  # the loss is w**2/2**27, and its gradient 0 in float16
    ...     upstream = np.float32(opt.loss_scale) * 2**-27
    ...     _ = opt.step((2 * w * upstream).astype(np.float16))
    >>> w, opt.loss_scale
    (array([0.824], dtype=float16), 65536.0)
    >>> _ = opt.step(np.asarray([np.inf], np.float16))
    >>> w, opt.loss_scale, opt.state.carry["lossscale.skipped"]
    (array([0.824], dtype=float16), 32768.0, 1.0)
    """

    __slots__ = ()

    def __init__(
        self,
        rule: FunctionalOptimizer,
        initial: float = 2.0**16,
        growth: float = 2.0,
        backoff: float = 0.5,
        every: int = 2000,
        least: float = 1.0,
        most: float = 2.0**24,
    ) -> None:
        super().__init__(rule, LossScaling(initial, growth, backoff, every, least, most))

    def __repr__(self) -> str:
        assert self._first is not None
        fields = self._first._fields
        given = [f", {n}={x!r}" for n, x in self._first._values().items() if x != fields[n].default]
        return f"LossScale({self.rule!r}{''.join(given)})"
