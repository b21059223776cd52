"""A rule around a rule, which says how parameters and state are kept between steps."""

from __future__ import annotations

from xopt._public import public
from xopt.rule import _precision as _precision
from xopt.rule._functional import FunctionalOptimizer, Wrapper, check_method
from xopt.rule._precision import Rounding, StateDType

__all__ = ["Precision"]


@public
class Precision(Wrapper):
    r"""Mixed and low precision: the dtypes of parameters and optimizer state, and what limits rounding error.

    A step is computed in float32 at least, and rounded when it is stored. In bfloat16, 1 - 0.001 is 1: a parameter does
    not move by steps of less than 1/256 of itself, however many. ::

        nearest      p ← round(p + u)
        stochastic   p ← one of the two neighbours of p + u, the nearer one more likely: E p = p + u
        kahan        p ← round(p + (u + c)),   c ← (u + c) - (p_new - p_old)
        master       w ← w + u,   p ← round(w)

    Parameters
    ----------
    rule
        A rule or a chain.
    rounding
        ``"nearest"``: what is lost is lost. ``"stochastic"``: it is lost or doubled, and right on average (float16 and
        bfloat16). ``"kahan"``: it is kept in c, in the dtype of the parameter, and added to the next step (Kahan 1965).
    master_weights
        Keep float16 and bfloat16 parameters in float32 too: the rule works on w. What others write into p is not seen.
        For parameters of more digits it does nothing.
    state_dtype
        In which dtype the state is kept; arithmetic stays in float32 at least. None is that of the arithmetic. State of
        complex numbers can be ``"float32"`` only. ``"int8"`` keeps averages of gradients and of their squares in codes
        of 8 bits, of parameters with 4096 elements or more; all other state is not changed by it. They are those of
        SGD, Lion, Signum, LARS, NovoGrad; Adam, AdamW, Adamax, NAdam, RAdam, AdaBelief, Yogi, LaProp, ADOPT, AdEMAMix,
        Adan, MARS, StableAdamW, LAMB, Sophia, RMSProp, Adadelta, DAdaptAdam, Prodigy, ScheduleFreeAdamW; Muon, NorMuon,
        Adafactor, Shampoo, SOAP, KLShampoo, KLSOAP, PSGDKron; ``moments`` of a rule says which they are. Sums
        (Adagrad), averages of which a difference is taken (RMSProp's, centered) or that hardly change in a step
        (AdEMAMix's slow one) are not among them. Averages of parameters (:class:`~xopt.EMA`), state that begins as a
        copy of them (of schedule-free rules, say) and gradients that are added up (:class:`~xopt.Accumulate`) stay in
        the dtype of the arithmetic, because they would stall.
    seed
        Of stochastic rounding: 0 to 2³² - 1.

    Raises
    ------
    ValueError, TypeError
        For ``"kahan"`` or ``"stochastic"`` with master weights, of which one is enough; for a seed without
        ``"stochastic"``; for ``"int8"`` with a rule that has no such moments, or a complex parameter; for ``"kahan"``
        with a component that moves the new parameter, such as :class:`~xopt.Box`; for a state dtype that the library
        does not have.

    Notes
    -----
    State: that of the rule. ``precision.error`` takes 2 bytes per bfloat16 parameter, 4 a float32 one;
    ``precision.master`` 4 bytes per parameter of half precision. With the gradient and the two moments of Adam, bytes a
    bfloat16 parameter: 12 plain, 14 with ``"kahan"``, 16 with master weights, 8 with ``state_dtype="bfloat16"``.

    In 8 bits (Dettmers et al. 2022), 128 numbers that follow each other in C order share a scale s, the largest size
    among them: an average c of int8 stands for ±(c/127)²·s, an average of squares c of uint8 for (c/255)⁴·s. The
    nearest is kept, by roots; a square that is not 0 does not become 0. Slots ``m`` of int8 and ``v`` of uint8, and for
    each one more, ``precision.scale.0.adam.m`` and so on, a vector with a number per block in the dtype of the
    arithmetic: in float32 together 2.06 bytes per parameter for Adam, 1.03 for Lion (8-bit block-wise quantization).
    First moments of less than 1/65,000 of the largest of their block are 0: a parameter hardly moves beside one whose
    gradients are a million times larger.
    An infinity or a NaN in a block makes all of its moments such.

    Codes are 1 to 2 % of a second moment apart, so that v + (g² - v)/1000 is often v again. With b2 = 0.999 and normal
    gradients of one size, v comes to 1.3 times the truth; where gradients become smaller, and others of the block stay
    as they were, it hardly falls: 7,500 steps after they fell to a tenth, v was 40 times too large, and steps a sixth
    of what they should be. With b2 = 0.99 it follows.

    Second moments in bfloat16 stop to follow at about a quarter of the truth with b2 = 0.999, because v + (g² - v)/1000
    rounds to v; in float16 they are 0 for gradients below 1e-3, and infinite for sums above 65504.

    The noise of stochastic rounding is counted, not drawn: it depends on the seed, the step, the parameter and the
    element, and is the same on every library and runner. An element is one of 2³², a step one of 2³²; on JAX without
    64-bit numbers, steps above 2²⁴ share their noise with others.

    A limit of :class:`~xopt.Box` that the dtype does not have is rounded like everything else.

    :class:`~xopt.Optimizer` takes these arguments too, and puts this around its rule; so does :meth:`Rule.init`, whose
    state remembers them.

    References
    ----------
    W. Kahan (1965), Further remarks on reducing truncation errors, Communications of the ACM 8 (1), page 40.
    P. Zamirai, J. Zhang, C. Aberger, C. De Sa (2020), Revisiting bfloat16 training, arXiv:2010.06192, Algorithm 4.
    T. Dettmers, M. Lewis, S. Shleifer, L. Zettlemoyer (2022), 8-bit optimizers via block-wise quantization,
    arXiv:2110.02861, sections 2 and 3 (there with blocks of 2048, and codes of another spacing).
    P. Micikevicius et al. (2018), Mixed precision training, arXiv:1710.03740, section 3.1 (master weights).

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> def moved(**precision):
    ...     w = np.ones(1000, "float16")
    ...     opt = xopt.Optimizer(w, xopt.SGD(lr=1e-4), **precision)
    ...     for _ in range(1000):
    ...         _ = opt.step(np.ones(1000, "float16"))
    ...     return round(float(w.mean()), 2)
    >>> moved(), moved(rounding="kahan"), moved(master_weights=True), moved(rounding="stochastic")
    (1.0, 0.9, 0.9, 0.9)
    """

    __slots__ = ()

    def __init__(
        self,
        rule: FunctionalOptimizer,
        *,
        rounding: Rounding = "nearest",
        master_weights: bool = False,
        state_dtype: StateDType = None,
        seed: int = 0,
    ) -> None:
        check_method(rule)
        super().__init__(rule, _precision.asked(rule, rounding, master_weights, state_dtype, seed))

    def __repr__(self) -> str:
        assert isinstance(self._first, _precision.StoragePrecision)
        return f"Precision({', '.join([repr(self.rule), *(f'{n}={v!r}' for n, v in self._first._values().items())])})"
