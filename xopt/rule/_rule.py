"""What a rule is made of: hyperparameters, static fields, state in the signature; and chains of rules and transforms.

A rule is a frozen object whose fields are its hyperparameters. Its maths is one static method, ``update``, written
against the array-API standard. Everything else (trees, dtypes, libraries, memory) is somebody else's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, TypeAlias, cast

from xopt._public import public
from xopt.rule._component import Array as Array
from xopt.rule._component import Component as Component
from xopt.rule._component import H as H
from xopt.rule._component import Hyper as Hyper
from xopt.rule._component import Moments as Moments
from xopt.rule._component import RoutedComponent as RoutedComponent
from xopt.rule._component import routed as routed
from xopt.rule._component import unchanged as unchanged
from xopt.rule._elementwise import abs2 as abs2
from xopt.rule._elementwise import along
from xopt.rule._elementwise import inner as inner
from xopt.rule._elementwise import is_complex as is_complex
from xopt.rule._elementwise import sign as sign
from xopt.rule._fields import hyper as hyper
from xopt.rule._fields import static as static
from xopt.rule._functional import FunctionalOptimizer as FunctionalOptimizer
from xopt.rule._functional import RunnerName as RunnerName
from xopt.rule._functional import State as State
from xopt.rule._functional import check_method as check_method
from xopt.rule._names import replaced
from xopt.rule._order import check_order
from xopt.rule._presets import PRESETS, REQUIRED, Like, preset

Decay: TypeAlias = Literal["l2", "lr", "independent", "cautious", "corrected"]
"""Kinds of weight decay that every rule has."""


class Transform(Component):
    """A component that maps a gradient to a gradient, or behind the rule a step to a step.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> from xopt.rule import Hyper
    >>> class Shrink(xopt.Transform):
    ...     factor: Hyper = xopt.hyper(default=0.5, ge=0, le=1)
    ...
    ...     @staticmethod
    ...     def update(h, xp, p, g):
    ...         return h.factor * g
    >>> rule = xopt.chain(Shrink(), xopt.SGD(lr=1.0))
    >>> p = np.asarray([2.0])
    >>> rule.apply(p, p, rule.init(p))[0]
    array([1.])
    """


class Rule(Component, FunctionalOptimizer):
    r"""A component that maps a gradient to a step: the one of a chain that makes it an optimizer.

    Every rule has these fields:

    Parameters
    ----------
    weight_decay
        w ≥ 0, or None for no decay (default).
    decay
        ``"l2"``: g + w p enters the rule. ``"lr"``: the step is less lr·w·p (decoupled, as in AdamW).
        ``"independent"``: the step is less w·p, whatever the learning rate. ``"cautious"``: as "lr", but only where
        the step does not go away from 0 (Chen et al. 2025, arXiv:2510.12402, Algorithm 1); of complex numbers, where
        Re(u·p̄) ≥ 0 for the step -u. ``"corrected"``: the step is less lr²·w·p/peak_lr, so that the size of weights
        in front of a normalization does not depend on the schedule (AdamC: Defazio 2025, arXiv:2506.02285). Some rules
        have one more value, the decay of their paper, which their own maths does.
    peak_lr
        With ``decay="corrected"``, and only there: the largest learning rate of the run, > 0; for a group with rates of
        its own, the largest of these. :func:`~xopt.layerwise_decay` sees to that, ``{"lr": scaled(...)}`` does not.
    maximize
        Climb instead of descend: the gradient changes its sign before anything else.
    complex
        ``"modulus"``: a complex parameter has one second moment, of \|g\|². ``"split"``: real and imaginary part
        are two parameters, as in torch.
    like
        Have every convention and default of another library: see the page on conventions. What is given beside it
        counts.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> from xopt.rule import Hyper
    >>> class Momentum(xopt.Rule):
    ...     lr: Hyper = xopt.hyper(default=0.1, ge=0)
    ...     b: Hyper = xopt.hyper(default=0.9, ge=0, lt=1)
    ...
    ...     @staticmethod
    ...     def update(h, xp, p, g, m=0.0):
    ...         m = h.b * m + g
    ...         return -h.lr * m, m
    >>> rule = Momentum(lr=0.5)
    >>> p = np.asarray([2.0])
    >>> rule.apply(p, p, rule.init(p))[0]
    array([1.])
    """

    weight_decay: Hyper | None = hyper(default=None, ge=0, kw_only=True)
    decay: Decay = static(default="l2", kw_only=True)
    peak_lr: Hyper | None = hyper(default=None, gt=0, kw_only=True)
    maximize: bool = static(default=False, kw_only=True)
    complex: Literal["modulus", "split"] = static(default="modulus", kw_only=True)
    like: Like = static(default=None, kw_only=True)

    decay_by: ClassVar[str | None] = "lr"
    """What ``decay="lr"`` multiplies the decay with: a hyperparameter, or what ``host`` returns under this name. None:
    ``update`` sees to decoupled decay itself, with ``shrunk``."""

    def _defaults(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        like = given.get("like")
        if not isinstance(like, str) or like not in PRESETS:  # what is wrong with it is said later
            return {}
        name = type(self).__name__
        call, found = preset(name, like)
        for n, value in found.items():
            if value is REQUIRED and n not in given:
                raise TypeError(f"{name} needs {n}: {call} has no default")
        return found

    def _check(self) -> None:
        if "decay" in self._given and self.weight_decay is None:
            raise ValueError(f"{type(self).__name__}: decay={self.decay!r} does nothing without weight_decay")
        if (self.decay == "corrected" and self.weight_decay is not None) != (self.peak_lr is not None):
            what = "needs peak_lr, the largest learning rate" if self.peak_lr is None else "has no use for peak_lr"
            raise ValueError(f"{type(self).__name__}: decay={self.decay!r} {what}")

    def _parts(self) -> tuple[Component, ...]:
        return (self,)

    def _with(self, values: Mapping[str, Any]) -> FunctionalOptimizer:
        [new] = replaced((self,), values, self._known)
        return cast(Rule, new)

    def _hooks(self) -> tuple[Callable[..., Any], Callable[..., dict[str, Array]] | None]:
        update, reduce, by = type(self).update, type(self).reduce, type(self).decay_by

        def decayed(h: H, p: Array, g: Array) -> Array:
            return g + h.weight_decay * p if h.weight_decay is not None and h.decay == "l2" else g

        def whole(h: H, xp: Any, p: Array, g: Array, **slots: Array) -> tuple[Array, ...]:
            out = update(h, xp, p, decayed(h, p, g), **slots)
            step, *new = out if isinstance(out, tuple) else (out,)
            return (
                step if by is None or h.weight_decay is None else decayed_step(h, xp, step, getattr(h, by), p),
                *new,
            )

        def terms(h: H, xp: Any, p: Array, g: Array, **slots: Array) -> dict[str, Array]:
            assert reduce is not None
            return reduce(h, xp, p, decayed(h, p, g), **slots)

        return whole, terms if reduce else None

    def _enter(self) -> Callable[..., Any] | None:
        return lambda h, g: -g if h.maximize else g


def _decoupled(h: H, rate: Any = None) -> Any:
    """Return the part of p by which decoupled decay shrinks it, or None without such decay.

    ``rate`` is what ``decay="lr"`` multiplies, where that is not lr.
    """
    if h.weight_decay is None or h.decay not in ("lr", "independent", "cautious", "corrected"):
        return None
    if h.decay == "independent":
        return h.weight_decay
    rate = h.lr if rate is None else rate
    return rate * h.weight_decay if h.decay != "corrected" else rate * h.weight_decay * (h.lr / h.peak_lr)


@public
def shrunk(h: H, xp: Any, u: Array, rate: Any, p: Array) -> Array:
    """Add decoupled weight decay at p to what a rule subtracts, in a rule whose ``decay_by`` is None."""
    factor = _decoupled(h, rate)
    if factor is None:
        return u
    more = u + factor * p
    return xp.where(along(xp, u, p) >= 0, more, u) if h.decay == "cautious" else more


@public
def decayed_step(h: H, xp: Any, step: Array, rate: Any, p: Array) -> Array:
    """Return a step less decoupled weight decay at p, as it becomes behind ``update``.

    For a rule that must know where p will be.
    """
    factor = _decoupled(h, rate)
    if factor is None:
        return step
    less = step - factor * p
    return xp.where(along(xp, step, p) <= 0, less, step) if h.decay == "cautious" else less


@public
class Chain(FunctionalOptimizer):
    """Transforms and one rule, applied in order. Made by :func:`chain`; its components are in ``parts``.

    Examples
    --------
    >>> import xopt
    >>> xopt.chain(xopt.ClipByValue(1.0), xopt.SGD()).parts
    (ClipByValue(limit=1.0), SGD())
    """

    __slots__ = ("_links", "_names")
    _links: tuple[Component, ...]
    _names: dict[str, tuple[tuple[int, ...], str]]
    """Where the names of hyperparameters lead."""

    def __init__(
        self, parts: tuple[Component, ...], names: dict[str, tuple[tuple[int, ...], str]] | None = None
    ) -> None:
        self._links, self._names = parts, {} if names is None else names

    @property
    def parts(self) -> tuple[Component, ...]:
        """The components, in order."""
        return self._links

    def _parts(self) -> tuple[Component, ...]:
        return self.parts

    def _with(self, values: Mapping[str, Any]) -> FunctionalOptimizer:
        return Chain(replaced(self.parts, values, self._names), self._names)

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self.parts))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chain) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(self.parts)


@public
def chain(*parts: Component | Chain) -> Chain:
    """Put transforms and exactly one rule together; each component feeds the next.

    A transform in front of the rule changes the gradient, one behind it changes the step. Components that are given the
    new parameters (averages, projections) come last. Chains may be nested.

    Raises
    ------
    TypeError
        For what is neither a transform, a rule nor a chain.
    ValueError
        For a chain with no rule or with more than one, and for a component that cannot stand where it does.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.SGD(lr=0.5))
    >>> w = np.asarray([0.0, 0.0])
    >>> w, state = rule.apply(w, np.asarray([3.0, 4.0]), rule.init(w))
    >>> w
    array([-0.3, -0.4])
    """
    flat: list[Component] = []
    for part in parts:
        if not isinstance(part, Component | Chain):
            raise TypeError(f"chain: {part!r} is neither a transform, a rule nor a chain")
        flat += part.parts if isinstance(part, Chain) else [part]
    rules = [part for part in flat if isinstance(part, FunctionalOptimizer)]
    if len(rules) != 1:
        names = ", ".join(type(part).__name__ for part in flat) or "nothing"
        raise ValueError(f"chain: {len(rules)} rules in ({names}), but a chain has exactly one")
    check_order(flat, flat.index(rules[0]))
    return Chain(tuple(flat))
