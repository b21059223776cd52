"""What a rule is made of: hyperparameters, static fields, state in the signature; and what can be done with one.

A rule is a frozen object whose fields are its hyperparameters. Its maths is one static method, ``update``, written
against the array-API standard. Everything else (trees, dtypes, libraries, memory) is somebody else's business.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeAlias, cast, dataclass_transform

from xopt._fields import MISSING, Field, check, declared, number, signature
from xopt._fields import hyper as hyper
from xopt._fields import static as static
from xopt._layout import Layout
from xopt._names import replaced
from xopt._pieces import Piece
from xopt._scalars import after
from xopt._stages import Stages

Array: TypeAlias = Any
"""An array of any library that speaks the array-API standard."""
H: TypeAlias = Any
"""In ``update``: the hyperparameters as attributes, and ``h.t``, the number of this step, from 1 on."""
Hyper: TypeAlias = float | Callable[[Any], Any]
"""A hyperparameter: a number, or a schedule, that is a callable of the step."""


def abs2(xp: Any, x: Array) -> Array:
    """Square the modulus of an array: x² of a real one, Re² + Im² (real) of a complex one.

    Examples
    --------
    >>> import numpy as np
    >>> from xopt.rule import abs2
    >>> abs2(np, np.asarray([3.0 + 4.0j]))
    array([25.])
    """
    if not is_complex(x):
        return x * x
    re, im = xp.real(x), xp.imag(x)
    return re * re + im * im


def is_complex(x: Array) -> bool:
    """Whether an array is complex, in a rule that is running or being recorded.

    Examples
    --------
    >>> import numpy as np
    >>> from xopt.rule import is_complex
    >>> is_complex(np.zeros(2, np.complex64))
    True
    """
    kind = getattr(type(x), "kind", None)
    return x.kind == "complex" if kind is not None else "complex" in str(x.dtype)


class State(NamedTuple):
    """What a rule remembers between steps: a pytree in every library that has pytrees."""

    step: Any
    """Steps taken so far: an int; on JAX a 0-d int32 array, so that a jitted step traces once."""
    slots: dict[str, Any]
    """Place, rule and slot (``"0.adam.m"``) to a tree shaped like the parameters."""
    carry: dict[str, Any]
    """Scalars that a chain keeps for the whole tree."""


class Method:
    """What rules and chains have in common: ``init``, ``apply`` and ``updates``."""

    __slots__ = ()

    def _parts(self) -> tuple[Part, ...]:
        raise NotImplementedError

    def _with(self, values: Mapping[str, Any]) -> Method:
        """Return this rule or chain with other values of some hyperparameters."""
        raise NotImplementedError

    def _pieces(self, overrides: Mapping[str, Any] | None = None) -> tuple[Piece, ...]:
        parts = replaced(self._parts(), overrides) if overrides else self._parts()
        return tuple(part._piece(i) for i, part in enumerate(parts))

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
        stages = Stages(self._pieces(), Layout(params))
        slots = {n: stages.layout.tree(column) for n, column in stages.new_slots().items()}
        return State(stages.new_step(), slots, stages.new_carry())

    def apply(
        self, params: Any, grads: Any, state: State, *, runner: str | None = None, **overrides: Any
    ) -> tuple[Any, State]:
        """Take one step and return new parameters and a new state. Pure: what is passed in is never written.

        Parameters
        ----------
        params, grads
            Trees of one structure; shapes, dtypes, library and device agree leaf by leaf. A gradient of None leaves
            its parameter and its state alone.
        state
            From :meth:`init` or the step before.
        runner
            ``"eager"`` or ``"tiled"``; None is the best available.
        **overrides
            Hyperparameters for this step only: ``lr=0.1``, in a chain also ``**{"adamw.lr": 0.1}``.

        Raises
        ------
        ValueError, TypeError
            When anything does not fit; the message names the path and both sides.
        """
        return self._step(params, grads, state, runner, overrides, change=False)

    def updates(
        self, params: Any, grads: Any, state: State, *, runner: str | None = None, **overrides: Any
    ) -> tuple[Any, State]:
        """Return what :meth:`apply` would add to the parameters, and the new state.

        Zero where the gradient is None. Arguments and errors are those of :meth:`apply`.
        """
        return self._step(params, grads, state, runner, overrides, change=True)

    def _step(
        self, params: Any, grads: Any, state: State, runner: str | None, overrides: Mapping[str, Any], change: bool
    ) -> tuple[Any, State]:
        layout = Layout(params)
        stages = Stages(self._pieces(overrides), layout, runner)
        gs = layout.gradients(grads)
        slots = stages.check_state(state)
        t = after(state.step)
        ps, slots, carry = stages.run(t, stages.resolve(t), layout.leaves, gs, slots, state.carry, change=change)
        return layout.tree(ps), State(t, {n: layout.tree(column) for n, column in slots.items()}, carry)


@dataclass_transform(field_specifiers=(hyper, static), frozen_default=True)
class Part:
    """One link of a chain. Subclasses declare fields with :func:`hyper`, :func:`static` or a plain annotation."""

    update: ClassVar[Callable[..., Any]]
    """``update(h, xp, p, g, *slots) -> step`` or ``(step, *slots)``."""
    reduce: ClassVar[Callable[..., dict[str, Array]] | None] = None
    """``reduce(h, xp, p, g, *slots) -> {name: terms}``: summed over ``scope``, they become ``h.name``."""
    host: ClassVar[Callable[..., dict[str, Any]] | None] = None
    """``host(h, xp) -> {name: value}``: more scalars, once a step; ``xp`` has scalar functions."""
    scope: ClassVar[str] = "tree"
    """What ``reduce`` sums over: ``"tree"`` or ``"leaf"``."""
    carry: ClassVar[Mapping[str, float]] = {}
    """Scalars kept between steps with their first values; ``host`` returns the new ones."""
    inexact: ClassVar[bool] = False
    """Whether ``update`` may use functions that differ in the last bits between libraries (exp, pow …)."""

    _fields: ClassVar[dict[str, Field]] = {}
    _slots: ClassVar[dict[str, float | str]] = {}
    _given: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        found = dict(cls._fields)
        for name, hint in inspect.get_annotations(cls).items():
            if name.startswith("_") or "ClassVar" in str(hint):
                continue
            found[name] = declared(cls, name, hint)
            if name in vars(cls):
                delattr(cls, name)
        cls._fields = found
        if "update" in vars(cls):
            cls._slots = _slots_of(cls)
        cls.__signature__ = signature(found)  # type: ignore[attr-defined]

    def __init__(self, *args: Any, **given: Any) -> None:
        fields = self._fields
        places = [n for n, f in fields.items() if not f.kw_only]
        name = type(self).__name__
        if len(args) > len(places):
            raise TypeError(f"{name} takes {len(places)} positional arguments ({', '.join(places)}), got {len(args)}")
        for place, value in zip(places, args, strict=False):
            if place in given:
                raise TypeError(f"{name}: {place} is given twice")
            given[place] = value
        for n in given:
            if n not in fields:
                raise TypeError(f"{name} has no hyperparameter {n!r}; it has {', '.join(fields)}")
        for n, f in fields.items():
            if n not in given and f.default is MISSING:
                raise TypeError(f"{name} needs {n}")
            value = check(f"{name}.{n}", f, given[n]) if n in given else f.default
            object.__setattr__(self, n, value)
            if n in given:
                given[n] = value
        object.__setattr__(self, "_given", given)
        self._check()

    def _check(self) -> None:
        """Refuse fields that contradict each other. Subclasses extend it."""

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable; use replace({name}={value!r}) or Optimizer.set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __repr__(self) -> str:
        order = sorted(self._fields, key=lambda n: self._fields[n].kw_only)
        return f"{type(self).__name__}({', '.join(f'{n}={self._given[n]!r}' for n in order if n in self._given)})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), *self._values().items()))

    def _values(self) -> dict[str, Any]:
        return {n: getattr(self, n) for n in self._fields}

    def replace(self, **changes: Any) -> Self:
        """Return a copy with other values of some fields; what was left to its default stays so.

        Examples
        --------
        >>> import xopt
        >>> xopt.Adam(lr=0.1).replace(b1=0.5)
        Adam(lr=0.1, b1=0.5)
        """
        return type(self)(**{**self._given, **changes})

    def _update(self) -> Callable[..., Any]:
        return type(self).update

    def _piece(self, place: int) -> Piece:
        cls, values = type(self), self._values()
        fixed = {n: v for n, v in values.items() if self._fields[n].static or v is None}
        hypers = tuple(n for n in values if n not in fixed)
        first = {n: float(values[v]) if isinstance(v, str) else v for n, v in self._slots.items()}
        return Piece(
            f"{place}.{cls.__name__.lower()}", (cls, *fixed.items()), self._update(), first, fixed, hypers,
            self._resolve, cls.reduce, cls.host, cls.scope, cls.carry, cls.inexact,
        )  # fmt: skip

    def _resolve(self, t: Any) -> dict[str, Any]:
        found = {}
        for n, f in self._fields.items():
            value = getattr(self, n)
            if not f.static and value is not None:
                if callable(value):
                    value = number(f"{type(self).__name__}.{n}", f, value(t), f"the schedule returned this at step {t}")
                found[n] = value
        return found


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
        ``"independent"``: the step is less w·p, whatever the learning rate.
    maximize
        Climb instead of descend: the gradient changes its sign before anything else.
    complex
        ``"modulus"``: a complex parameter has one second moment, of \|g\|². ``"split"``: real and imaginary part
        are two parameters, as in torch.
    """

    weight_decay: Hyper | None = hyper(default=None, ge=0, kw_only=True)
    decay: Literal["l2", "lr", "independent"] = static(default="l2", kw_only=True)
    maximize: bool = static(default=False, kw_only=True)
    complex: Literal["modulus", "split"] = static(default="modulus", kw_only=True)

    def _check(self) -> None:
        if "decay" in self._given and self.weight_decay is None:
            raise ValueError(f"{type(self).__name__}: decay={self.decay!r} does nothing without weight_decay")

    def _parts(self) -> tuple[Part, ...]:
        return (self,)

    def _with(self, values: Mapping[str, Any]) -> Method:
        [new] = replaced((self,), values)
        return cast(Rule, new)

    def _update(self) -> Callable[..., Any]:
        update = type(self).update

        def whole(h: H, xp: Any, p: Array, g: Array, **slots: Array) -> tuple[Array, ...]:
            if h.maximize:
                g = -g
            if h.weight_decay is None:
                return _tuple(update(h, xp, p, g, **slots))
            if h.decay == "l2":
                return _tuple(update(h, xp, p, g + h.weight_decay * p, **slots))
            step, *new = _tuple(update(h, xp, p, g, **slots))
            factor = h.lr * h.weight_decay if h.decay == "lr" else h.weight_decay
            return (step - factor * p, *new)

        return whole


class Chain(Method):
    """Transforms and one rule, applied in order. Made by :func:`chain`; its links are in ``parts``.

    Examples
    --------
    >>> import xopt
    >>> xopt.chain(xopt.ClipByValue(1.0), xopt.SGD()).parts
    (ClipByValue(limit=1.0), SGD())
    """

    __slots__ = ("parts",)
    parts: tuple[Part, ...]

    def __init__(self, parts: tuple[Part, ...]) -> None:
        self.parts = parts

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

    A transform in front of the rule changes the gradient, one behind it changes the step. Chains may be nested.

    Raises
    ------
    TypeError
        For what is neither a transform, a rule nor a chain.
    ValueError
        For a chain with no rule or with more than one.

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
    rules = [part for part in flat if isinstance(part, Rule)]
    if len(rules) != 1:
        names = ", ".join(type(part).__name__ for part in flat) or "nothing"
        raise ValueError(f"chain: {len(rules)} rules in ({names}), but a chain has exactly one")
    return Chain(tuple(flat))


def _slots_of(cls: type[Part]) -> dict[str, float | str]:
    """Read the state of a rule from the signature of its update."""
    names = list(inspect.signature(cls.update).parameters.values())
    if len(names) < 4 or any(p.kind not in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in names):
        raise TypeError(f"{cls.__name__}.update must take (h, xp, p, g) and then one parameter for each state array")
    found: dict[str, float | str] = {}
    for p in names[4:]:
        if p.default is p.empty:
            raise TypeError(f"{cls.__name__}.update: state array {p.name!r} needs its first value, like {p.name}=0.0")
        if isinstance(p.default, str) and p.default not in cls._fields:
            raise TypeError(f"{cls.__name__}.update: {p.name}={p.default!r} names no field of {cls.__name__}")
        found[p.name] = p.default
    return found


def _tuple(x: Any) -> tuple[Any, ...]:
    return x if isinstance(x, tuple) else (x,)
