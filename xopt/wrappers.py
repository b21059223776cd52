"""Rules around a rule, which decide whether it takes a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from xopt._gates import NONFINITE, Accumulation
from xopt._layout import Layout
from xopt._names import Named
from xopt._part import Part
from xopt._pieces import Chains
from xopt.rule import Method, check_method

__all__ = ["Accumulate", "Guard", "OnNonFinite"]

OnNonFinite: TypeAlias = Literal["propagate", "skip", "raise", "zero"]


class _Around(Method):
    """A rule with a link in front of everything."""

    __slots__ = ("_first", "rule")

    def __init__(self, rule: Method, first: Part | None) -> None:
        check_method(rule)
        self.rule, self._first = rule, first
        inner = rule
        while isinstance(inner, _Around):
            if first is not None and inner._first is not None and inner._first._place() == first._place():
                raise ValueError(f"{type(self).__name__}: there is one already inside")
            inner = inner.rule

    def _parts(self) -> tuple[Part, ...]:
        return self.rule._parts()

    def _all_links(self) -> list[Named]:
        own = [] if self._first is None else [Named((), self._first._place(), self._first._place(), self._first)]
        return own + self.rule._all_links()

    def _with(self, values: Mapping[str, Any]) -> Method:
        new = object.__new__(type(self))
        new.rule, new._first = self.rule._with(values), self._first
        return new

    def _chains(self, layout: Layout) -> Chains:
        chains, of = self.rule._chains(layout)
        if self._first is None:
            return Chains(chains, of)
        place = min((piece.order[0] for chain in chains for piece in chain), default=0) - 1
        first = self._first._piece(self._first._place(), (place,))
        return Chains([(first, *chain) for chain in chains], of)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and (self.rule, self._first) == (other.rule, other._first)

    def __hash__(self) -> int:
        return hash((type(self), self.rule, self._first))


class Accumulate(_Around):
    r"""Take a step of a rule with every k-th gradient, by the mean of the last k.

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
    State: that of the rule, and ``accumulate.gradient``, shaped like the parameter: 4 bytes a float32 parameter more.
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

    def __init__(self, rule: Method, every: int, total: Literal["mean", "sum"] = "mean") -> None:
        super().__init__(rule, Accumulation(every=every, total=total))

    def __repr__(self) -> str:
        assert isinstance(self._first, Accumulation)
        more = f", total={self._first.total!r}" if self._first.total != "mean" else ""
        return f"Accumulate({self.rule!r}, every={self._first.every}{more})"


class Guard(_Around):
    r"""Say what a rule does with gradients that have an element which is infinite or NaN.

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
    limit, and as torch's ``GradScaler``, which leaves steps out.

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

    def __init__(self, rule: Method, on_nonfinite: OnNonFinite) -> None:
        if on_nonfinite != "propagate" and on_nonfinite not in NONFINITE:
            raise ValueError(
                f"on_nonfinite={on_nonfinite!r}, but it must be one of 'propagate', {', '.join(map(repr, NONFINITE))}"
            )
        super().__init__(rule, NONFINITE[on_nonfinite]() if on_nonfinite != "propagate" else None)

    def __repr__(self) -> str:
        action = next((n for n, kind in NONFINITE.items() if type(self._first) is kind), "propagate")
        return f"Guard({self.rule!r}, on_nonfinite={action!r})"
