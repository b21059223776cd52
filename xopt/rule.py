"""What a rule is made of: hyperparameters, static fields, state in the signature; and what can be done with one.

A rule is a frozen object whose fields are its hyperparameters. Its maths is one static method, ``update``, written
against the array-API standard. Everything else (trees, dtypes, libraries, memory) is somebody else's business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, cast

from xopt._fields import hyper as hyper
from xopt._fields import static as static
from xopt._layout import Layout
from xopt._maths import abs2 as abs2
from xopt._maths import inner as inner
from xopt._maths import is_complex as is_complex
from xopt._maths import sign as sign
from xopt._names import Named, named, replaced
from xopt._order import check_order
from xopt._part import Array as Array
from xopt._part import H as H
from xopt._part import Hyper as Hyper
from xopt._part import Link as Link
from xopt._part import Moments as Moments
from xopt._part import Part as Part
from xopt._part import routed as routed
from xopt._pieces import Chains, Piece
from xopt._readout import evaluated
from xopt._scalars import after
from xopt._stages import Stages
from xopt.presets import PRESETS, REQUIRED, Like, preset

RunnerName: TypeAlias = Literal["eager", "tiled", "numba", "cuda"]


class State(NamedTuple):
    """What a rule remembers between steps: a pytree in every library that has pytrees."""

    step: Any
    """Steps taken so far: an int; on JAX a 0-d int32 array, so that a jitted step traces once."""
    slots: dict[str, Any]
    """Place, rule and slot (``"0.adam.m"``) to a tree shaped like the parameters."""
    carry: dict[str, Any]
    """Scalars that a chain keeps for the whole tree."""


class Method(ABC):
    """What rules and chains have in common: ``init``, ``apply`` and ``updates``."""

    __slots__ = ()

    @abstractmethod
    def _parts(self) -> tuple[Part, ...]:
        """Return the links: a rule is a chain of one."""

    @abstractmethod
    def _with(self, values: Mapping[str, Any]) -> Method:
        """Return this rule or chain with other values of some hyperparameters."""

    def _all_links(self) -> list[Named]:
        """Return every link, with those inside of others."""
        return named(self._parts())

    def _pieces(self) -> tuple[Piece, ...]:
        return tuple(part._piece(f"{i}.{part._place()}", (i,)) for i, part in enumerate(self._parts()))

    def _chains(self, layout: Layout) -> Chains:
        """Return the links that each leaf goes through."""
        parts = self._parts()
        if all(type(part)._route is Part._route for part in parts):
            return Chains([self._pieces()], [0] * len(layout.leaves))
        numbers: dict[Any, int] = {}
        chains: list[tuple[Piece, ...]] = []
        of: list[int | None] = []
        for k in range(len(layout.leaves)):
            links = routed(parts, [f"{i}." for i in range(len(parts))], layout, k)
            if links is None:
                of.append(None)
                continue
            key = tuple((link.label, link.role) for link in links)  # not the values: they may be set to others
            if key not in numbers:
                numbers[key] = len(chains)
                chains.append(tuple(link.part._piece(link.label, link.order) for link in links))
            of.append(numbers[key])
        return Chains(chains, of)

    def init(self, params: Any) -> State:
        """Return the state before the first step.

        Parameters
        ----------
        params
            An array of any library, or any nest of dict, list, tuple, namedtuple and dataclass of them, in float16,
            bfloat16, float32, float64, complex64 or complex128.

        Returns
        -------
        State
            Its arrays have the parameters' library, device and shape, in float32 at least.

        Raises
        ------
        TypeError
            For what is not an array, an integer or bool array, or arrays of different libraries.
        """
        layout = Layout(params)
        stages = Stages(self._chains(layout), layout)
        slots = {n: stages.layout.tree(column) for n, column in stages.new_slots().items()}
        return State(stages.new_step(), slots, stages.new_carry())

    def apply(
        self,
        params: Any,
        grads: Any,
        state: State,
        *,
        value: Any = None,
        runner: RunnerName | None = None,
        **overrides: Any,
    ) -> tuple[Any, State]:
        """Take one step and return new parameters and a new state. Pure: what is passed in is never written.

        Parameters
        ----------
        params, grads
            Trees of one structure; shapes, dtypes, library and device agree leaf by leaf. A gradient of None leaves
            its parameter and its state alone.
        state
            From :meth:`init` or the step before.
        value
            The loss, for rules with a link that asks for it.
        runner
            ``"eager"``, ``"tiled"``, ``"numba"`` or ``"cuda"``; None is the best available.
        **overrides
            Hyperparameters for this step only: ``lr=0.1``, in a chain also ``**{"adamw.lr": 0.1}``.

        Raises
        ------
        ValueError, TypeError
            When anything does not fit; the message names the path and both sides.
        """
        return self._step(params, grads, state, runner, overrides, {"value": value}, change=False)

    def updates(
        self,
        params: Any,
        grads: Any,
        state: State,
        *,
        value: Any = None,
        runner: RunnerName | None = None,
        **overrides: Any,
    ) -> tuple[Any, State]:
        """Return what :meth:`apply` would add to the parameters, and the new state.

        Zero where the gradient is None. Arguments and errors are those of :meth:`apply`.
        """
        return self._step(params, grads, state, runner, overrides, {"value": value}, change=True)

    def eval_params(self, params: Any, state: State) -> Any:
        """Return the parameters to evaluate or to ship, which for some rules are not those that are trained.

        Schedule-free rules return their average, chains with a link that averages weights the average; of several such
        links the last is asked. Others return a copy.

        Parameters
        ----------
        params, state
            As :meth:`apply` or :meth:`init` returned them. They are not written.

        Examples
        --------
        >>> import numpy as np
        >>> import xopt
        >>> rule, w = xopt.chain(xopt.SGD(lr=1.0), xopt.EMA(0.5)), np.asarray([2.0])
        >>> w, state = rule.apply(w, np.asarray([1.0]), rule.init(w))
        >>> w, rule.eval_params(w, state)
        (array([1.]), array([1.5]))
        """
        layout = Layout(params)
        return evaluated(Stages(self._chains(layout), layout, "eager"), state)

    def _step(
        self,
        params: Any,
        grads: Any,
        state: State,
        runner: RunnerName | None,
        overrides: Mapping[str, Any],
        inputs: Mapping[str, Any],
        change: bool,
    ) -> tuple[Any, State]:
        layout = Layout(params)
        stages = Stages(self._with(overrides)._chains(layout), layout, runner)
        gs = layout.gradients(grads)
        slots = stages.check_state(state)
        t = after(state.step)
        clocks = stages.clocks(t, state.carry)
        given, inputs = stages.resolve(clocks[""]), stages.given(inputs)
        ps, slots, carry = stages.run(
            clocks, given, layout.leaves, gs, slots, state.carry, inputs=inputs, change=change
        )
        return layout.tree(ps), State(t, {n: layout.tree(column) for n, column in slots.items()}, carry)


class Transform(Part):
    """A link that maps a gradient to a gradient, or behind the rule a step to a step."""


class Rule(Part, Method):
    r"""A link that maps a gradient to a step: the one of a chain that makes it an optimizer.

    Every rule has these fields:

    Parameters
    ----------
    weight_decay
        w ≥ 0, or None for no decay (default).
    decay
        ``"l2"``: g + w p enters the rule. ``"lr"``: the step is less lr·w·p (decoupled, as in AdamW).
        ``"independent"``: the step is less w·p, whatever the learning rate. Some rules have one more value, the
        decay of their paper, which their own maths does.
    maximize
        Climb instead of descend: the gradient changes its sign before anything else.
    complex
        ``"modulus"``: a complex parameter has one second moment, of \|g\|². ``"split"``: real and imaginary part
        are two parameters, as in torch.
    like
        Have every convention and default of another library: see the page on conventions. What is given beside it
        counts.
    """

    weight_decay: Hyper | None = hyper(default=None, ge=0, kw_only=True)
    decay: Literal["l2", "lr", "independent"] = static(default="l2", kw_only=True)
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

    def _parts(self) -> tuple[Part, ...]:
        return (self,)

    def _with(self, values: Mapping[str, Any]) -> Method:
        [new] = replaced((self,), values)
        return cast(Rule, new)

    def _hooks(self) -> tuple[Callable[..., Any], Callable[..., dict[str, Array]] | None]:
        update, reduce, by = type(self).update, type(self).reduce, type(self).decay_by

        def decayed(h: H, p: Array, g: Array) -> Array:
            return g + h.weight_decay * p if h.weight_decay is not None and h.decay == "l2" else g

        def whole(h: H, xp: Any, p: Array, g: Array, **slots: Array) -> tuple[Array, ...]:
            out = update(h, xp, p, decayed(h, p, g), **slots)
            step, *new = out if isinstance(out, tuple) else (out,)
            factor = None if by is None or h.weight_decay is None else decoupled(h, getattr(h, by))
            return (step if factor is None else step - factor * p, *new)

        def terms(h: H, xp: Any, p: Array, g: Array, **slots: Array) -> dict[str, Array]:
            assert reduce is not None
            return reduce(h, xp, p, decayed(h, p, g), **slots)

        return whole, terms if reduce else None

    def _enter(self) -> Callable[..., Any] | None:
        return lambda h, g: -g if h.maximize else g


def decoupled(h: H, rate: Any = None) -> Any:
    """Return the part of p by which decoupled decay shrinks it, or None without such decay.

    The step that ``update`` returns is made less by it afterwards. A rule that must know where p will be asks here.
    ``rate`` is what ``decay="lr"`` multiplies, where that is not lr.
    """
    if h.weight_decay is None or h.decay not in ("lr", "independent"):
        return None
    rate = h.lr if rate is None else rate
    return rate * h.weight_decay if h.decay == "lr" else h.weight_decay


def shrunk(h: H, u: Array, rate: Any, p: Array) -> Array:
    """Add decoupled weight decay at p to what a rule subtracts, in a rule whose ``decay_by`` is None."""
    factor = decoupled(h, rate)
    return u if factor is None else u + factor * p


def check_method(rule: object) -> None:
    """Refuse what is neither a rule nor a chain."""
    if not isinstance(rule, Method):
        got = rule.__name__ if isinstance(rule, type) else type(rule).__name__
        hint = "; make an object of it" if isinstance(rule, type) and issubclass(rule, Part) else ""
        hint = "; put it in a chain with a rule" if isinstance(rule, Part) else hint
        raise TypeError(f"rule: {got}, but it must be a rule or a chain{hint}")


class Chain(Method):
    """Transforms and one rule, applied in order. Made by :func:`chain`; its links are in ``parts``.

    Examples
    --------
    >>> import xopt
    >>> xopt.chain(xopt.ClipByValue(1.0), xopt.SGD()).parts
    (ClipByValue(limit=1.0), SGD())
    """

    __slots__ = ("_links",)
    _links: tuple[Part, ...]

    def __init__(self, parts: tuple[Part, ...]) -> None:
        self._links = parts

    @property
    def parts(self) -> tuple[Part, ...]:
        """The links, in order."""
        return self._links

    def _parts(self) -> tuple[Part, ...]:
        return self.parts

    def _with(self, values: Mapping[str, Any]) -> Method:
        return Chain(replaced(self.parts, values))

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self.parts))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chain) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(self.parts)


def chain(*parts: Part | Chain) -> Chain:
    """Put transforms and exactly one rule together; each link feeds the next.

    A transform in front of the rule changes the gradient, one behind it changes the step. Links that are given the new
    parameters (averages, projections) come last. Chains may be nested.

    Raises
    ------
    TypeError
        For what is neither a transform, a rule nor a chain.
    ValueError
        For a chain with no rule or with more than one, and for a link that cannot stand where it does.

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
    flat: list[Part] = []
    for part in parts:
        if not isinstance(part, Part | Chain):
            raise TypeError(f"chain: {part!r} is neither a transform, a rule nor a chain")
        flat += part.parts if isinstance(part, Chain) else [part]
    rules = [part for part in flat if isinstance(part, Method)]
    if len(rules) != 1:
        names = ", ".join(type(part).__name__ for part in flat) or "nothing"
        raise ValueError(f"chain: {len(rules)} rules in ({names}), but a chain has exactly one")
    check_order(flat, flat.index(rules[0]))
    return Chain(tuple(flat))
