"""One component of a chain: a frozen object whose fields are hyperparameters, with hooks that the stages call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self, TypeAlias, dataclass_transform

from xopt._arrays import Library
from xopt._arrays.scalars import value_at
from xopt._engine.program.contract import ComponentSpec
from xopt._public import offered, public
from xopt.rule._fields import MISSING, Field, check, check_moments, declared, hyper, number, signature, static

if TYPE_CHECKING:
    from xopt._arrays.layout import Layout as Layout
else:
    Layout = Any  # optree comes with it

Array: TypeAlias = Any
"""An array of any library that speaks the array-API standard."""
H: TypeAlias = Any
"""In ``update``: the hyperparameters as attributes, and ``h.t``, the number of this step, from 1 on."""
Hyper: TypeAlias = float | Callable[[Any], Any]
"""A hyperparameter: a number, or a schedule, that is a callable of the step."""
Moments: TypeAlias = Mapping[str, Literal["signed", "square"]]
"""Slots that may be kept in 8 bits."""


class RoutedComponent(NamedTuple):
    """What a component of a chain is for some leaf."""

    order: tuple[int, ...]
    """Its place among the components that its like may stand for."""
    label: str
    """What its state is filed under. Components of one label differ in nothing but the values of hyperparameters."""
    part: Component
    role: tuple[int, ...] = ()
    """What tells components of one label apart that have other values, also when these happen to be equal."""


_RESERVED = {
    "t", "leaf", "update", "replace", "init", "apply", "updates", "params", "grads", "state", "runner", "scope",
    "steady", "carry", "on_params", "elementwise", "inputs", "value", "readout", "curvature", "update_curvature",
    "decay_by", "moments", "metrics", "eval_params",
}  # fmt: skip


@public
@dataclass_transform(field_specifiers=(hyper, static), frozen_default=True)
class Component:
    """One component of a chain. Subclasses declare fields with :func:`hyper`, :func:`static` or a plain annotation."""

    update: ClassVar[Callable[..., Any]]
    """``update(h, xp, p, g, *slots) -> step`` or ``(step, *slots)``.

    Behind the rule, ``g`` is the step. With ``*, grad`` the component is also given what entered the rule.
    """
    reduce: ClassVar[Callable[..., dict[str, Array]] | None] = None
    """``reduce(h, xp, p, g, *slots) -> {name: terms}``: summed over ``scope``, they become ``h.name``."""
    host: ClassVar[Callable[..., dict[str, Any]] | None] = None
    """``host(h, xp) -> {name: value}``: more scalars, once a step; ``xp`` has scalar functions."""
    scope: ClassVar[str] = "tree"
    """What ``reduce`` sums over: ``"tree"`` or ``"leaf"``, or the name of a static field that says which."""
    carry: ClassVar[Mapping[str, float | str]] = {}
    """Scalars kept between steps, with their first values: numbers or names of static fields; ``host`` returns the new
    ones."""
    inexact: ClassVar[bool] = False
    """Whether ``update`` may use functions that differ in the last bits between libraries (exp, pow …)."""
    on_params: ClassVar[bool] = False
    """Whether the component stands behind ``p + step``: its ``g`` is the new parameter, and so is what it returns."""
    elementwise: ClassVar[bool] = True
    """False if ``update`` takes whole arrays, and any function of ``xp``; then no kernel is made of it.

    It is called for one leaf after the other. The first value of a slot may then also name a static method
    ``(h, xp, p) -> array`` of any shape, or None where this leaf has no such slot; ``h`` has the static fields. In
    ``update``, ``h.leaf`` is a number that no other array of the tree has.
    """
    gates: ClassVar[bool] = False
    """Whether the component may hold the step back: see ``_gates``."""
    clock: ClassVar[Callable[..., Any] | None] = None
    refuses: ClassVar[str] = ""
    readout: ClassVar[Callable[..., Array] | None] = None
    """``readout(h, xp, p, *slots) -> array``: the parameters to evaluate, of those that are trained; elementwise. It
    names the slots that it needs; ``h`` has no results of ``host`` but what is carried."""
    curvature: ClassVar[Callable[..., Any] | None] = None
    """``curvature(h, xp, x, *slots) -> slots``: what becomes of the slots that it names when an estimate ``x`` of the
    diagonal of the Hessian comes between steps, by ``update_curvature``; elementwise."""
    moments: ClassVar[Moments] = {}
    """Slots that begin with 0 and may be kept in 8 bits (``state_dtype="int8"``): averages of numbers of both signs, or
    averages of squares. A subclass with another ``update`` says so anew."""
    metrics: ClassVar[Mapping[str, str]] = {}
    """Scalars of ``h``, by the names that they have in :attr:`xopt.Optimizer.metrics`: ``{"trust_ratio": "ratio"}``."""
    steady: ClassVar[Callable[..., Any] | None] = None
    """``steady(h)``: what a gradient that stays the same is multiplied by once all averages have settled; of a rule,
    the step divided by -lr times it. None: there is no such number, and ``L1`` and ``L2`` may not stand behind."""
    _penalty: ClassVar[str] = ""
    """Of a penalty: the hyperparameter that is multiplied by ``steady`` of all components in front."""
    _holder: ClassVar[str] = ""
    """Of one that is several components for a leaf: what the label of that with its hyperparameters ends with."""
    inputs: ClassVar[tuple[str, ...]] = ()
    """What the caller of a step must give beside the gradients, to be found in ``h``: ``("value",)`` is the loss."""

    _fields: ClassVar[dict[str, Field]] = {}
    _slots: ClassVar[dict[str, float | str]] = {}
    _asking: ClassVar[tuple[bool, bool]] = (False, False)
    """Whether ``update`` and ``reduce`` take what entered the rule."""
    _given: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        found = dict(cls._fields)
        for name, hint in inspect.get_annotations(cls).items():
            if name.startswith("_") or "ClassVar" in str(hint):
                continue
            if name in _RESERVED:
                raise TypeError(
                    f"{cls.__name__}.{name}: this name means something else in a rule; call the field otherwise"
                )
            found[name] = declared(cls, name, hint)
            if name in vars(cls):
                delattr(cls, name)
        cls._fields = found
        if not cls.elementwise and cls.reduce is not None:
            raise TypeError(f"{cls.__name__}: a component of whole arrays sums by itself; it has no reduce")
        if "update" in vars(cls):
            cls._slots = _slots_of(cls)
            cls.moments = vars(cls).get("moments", {})  # of another formula, those of the base may be anything
            cls.steady = vars(cls).get("steady")
            cls.curvature = vars(cls).get("curvature")
        if "host" in vars(cls):
            cls.metrics = vars(cls).get("metrics", {})
        if "moments" in vars(cls):
            check_moments(cls.__name__, cls.moments, cls._slots, found)
        if cls.curvature is not None:
            _check_curvature(cls)
        cls._asking = _asks(getattr(cls, "update", None)), _asks(cls.reduce)
        own = inspect.signature(cls.__init__) if "__init__" in vars(cls) else None
        shown = own.replace(parameters=list(own.parameters.values())[1:]) if own else signature(found)
        cls.__signature__ = shown  # type: ignore[attr-defined]
        if offered(cls):
            public(cls)

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
        defaults = self._defaults(given)
        for n, f in fields.items():
            value = check(f"{name}.{n}", f, given[n]) if n in given else defaults.get(n, f.default)
            if value is MISSING:
                raise TypeError(f"{name} needs {n}")
            object.__setattr__(self, n, value)
            if n in given:
                given[n] = value
        object.__setattr__(self, "_given", given)
        self._check()

    def _defaults(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return defaults that take the place of those of the class."""
        del given
        return {}

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

    def _value(self, name: str) -> Any:
        return getattr(self, name)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with other values of some fields; what was left to its default stays so.

        Examples
        --------
        >>> import xopt
        >>> xopt.Adam(lr=0.1).replace(b1=0.5)
        Adam(lr=0.1, b1=0.5)
        """
        return type(self)(**{**self._given, **changes})

    def _altered(self, values: dict[str, Any]) -> Self:
        """Return a copy with other numbers, of the same formula: what `_spec` found out stays known."""
        cls = type(self)
        if cls.replace is not Component.replace or cls.__init__ is not Component.__init__:
            return self.replace(**values)
        found = {n: check(f"{cls.__name__}.{n}", self._fields[n], x) for n, x in values.items()}
        new = object.__new__(cls)
        new.__dict__.update(self.__dict__, **found, _given={**self._given, **found})
        new._check()
        return new

    @classmethod
    def _of(cls, args: tuple[Any, ...], given: dict[str, Any]) -> Self:
        """Make a component, as pickles do: they name the class alone."""
        return cls(*args, **given)

    def __getstate__(self) -> dict[str, Any]:
        return {n: x for n, x in self.__dict__.items() if n != "_memo"}

    @property
    def _known(self) -> dict[Any, Any]:
        """What was found out about this component and all that differ from it in numbers alone."""
        found: dict[Any, Any] = self.__dict__.setdefault("_memo", {})
        return found

    def _inner(self) -> tuple[Component, ...]:
        """Return the components that this one holds: its fields that are components."""
        return tuple(getattr(self, n) for n in self._held())

    def _with_inner(self, parts: tuple[Component, ...]) -> Self:
        """Return a copy that holds other components."""
        return self.replace(**dict(zip(self._held(), parts, strict=True)))

    def _held(self) -> list[str]:
        return [n for n, f in self._fields.items() if f.kinds and getattr(self, n) is not None]

    def _route(self, layout: Layout, k: int) -> Iterable[RoutedComponent] | None:
        """Return what this is for leaf ``k``: itself, other components, none; or None, if the leaf is to stay."""
        del layout, k
        return (RoutedComponent((), self._label(), self),)

    def _stands(self) -> tuple[str, ...]:
        """Return where in a chain this component may stand: in "front" of the rule, "behind" it, "after" the step."""
        if self.on_params:
            return ("after",)
        return ("behind",) if any(self._asking) else ("front", "behind")

    def _check_before(self, rule: Any) -> None:
        """Refuse a rule that this component does not go with. Subclasses extend it."""

    def _inner_keys(self) -> tuple[str, ...]:
        """Return what stands before the names of the components inside, and before the labels that their state has."""
        return ("",) * len(self._inner())

    def _choices(self) -> dict[str, Any]:
        """Return what chooses the formula and who goes through it: what cannot change from step to step."""
        return {n: getattr(self, n) for n, f in self._fields.items() if f.static and not f.kinds and n != "like"}

    def _hooks(self) -> tuple[Callable[..., Any], Callable[..., dict[str, Array]] | None]:
        """Return update and reduce as the stages call them."""
        return type(self).update, type(self).reduce

    def _label(self) -> str:
        """Return what the state of this component is filed under."""
        return type(self).__name__.lower()

    def _spec(self, key: str, order: tuple[int, ...]) -> ComponentSpec:
        fields = self._fields
        spec = self._known.get((key, order))
        if spec is None:
            spec = self._base_spec(key, order)
            if all(n not in fields or fields[n].static for n in map(str, self._slots.values())):
                self._known[key, order] = spec
        numbers = {n: getattr(self, n) for n in spec.hypers}
        moving = {n: x for n, x in numbers.items() if type(x) is not float}
        resolve = partial(_resolve, type(self), numbers, moving)
        return spec._replace(resolve=resolve, constants=None if moving else numbers, given=numbers)

    def _base_spec(self, key: str, order: tuple[int, ...]) -> ComponentSpec:
        """Return the component but for its numbers."""
        cls, values = type(self), self._values()
        values = {n: v for n, v in values.items() if self._fields[n].kinds is None}
        fixed = {n: v for n, v in values.items() if self._fields[n].static or v is None}
        hypers = tuple(n for n in values if n not in fixed)
        first = {n: self._first(v) for n, v in self._slots.items()}
        carry = {n: self._first_carried(n, v) for n, v in cls.carry.items()}
        update, reduce = self._hooks()
        scope = getattr(self, cls.scope) if cls.scope in self._fields else cls.scope
        metrics = {**({"lr": "lr"} if "lr" in hypers else {}), **cls.metrics}
        return ComponentSpec(
            key, (cls, *fixed.items()), update, first, fixed, hypers, partial(_resolve, cls, {}, {}), None, reduce,
            cls.host, scope, carry, cls.inexact, order, self._enter(), *cls._asking, cls.on_params, cls.elementwise,
            cls.inputs, cls.gates, cls.clock, cls.refuses, cls.readout, cls.curvature, moments=self._moments(),
            metrics=metrics,
        )  # fmt: skip

    def _moments(self) -> Moments:
        """Return the slots that may be kept in 8 bits, with these options."""
        return self.moments

    def _first(self, value: float | str) -> Any:
        """Return the first value of a slot or of a scalar that is carried, from what the class says.

        None where a component of whole arrays has no such slot with these options.
        """
        if not isinstance(value, str) or value == "p":
            return value
        return getattr(self, value)

    def _first_carried(self, name: str, value: float | str) -> float:
        """Return the first value of a scalar that is carried."""
        field = self._fields.get(value) if isinstance(value, str) else None
        if isinstance(value, str) and not (field and field.static):
            raise TypeError(f"{type(self).__name__}.carry: {name}={value!r} names no static field")
        return float(getattr(self, value) if isinstance(value, str) else value)

    def _enter(self) -> Callable[..., Any] | None:
        """Return what a rule does to a gradient first of all."""
        return None


public(RoutedComponent)  # it names Component


def _resolve(
    cls: type[Component], numbers: dict[str, Any], moving: dict[str, Any], t: Any, library: Library | None, read: bool
) -> dict[str, Any]:
    """Return the hyperparameters at a step, of which those that are no plain numbers have to be looked at."""
    found = dict(numbers)
    for n, value in moving.items():
        why = ""
        if callable(value):
            when = f" at step {t}" if isinstance(t, int) else ""  # an array may not be read
            value, why = value_at(value, t), f"the schedule returned this{when}"
        found[n] = number(f"{cls.__name__}.{n}", cls._fields[n], value, why, library, read)
    return found


@public
def unchanged(h: Any) -> float:
    """Say as ``steady`` of a component that it leaves a gradient that stays the same as it is, at the end."""
    return 1.0


@public
def routed(parts: Iterable[Component], prefixes: Iterable[str], layout: Layout, k: int) -> list[RoutedComponent] | None:
    """Return the components that stand for those of a chain at leaf ``k``, in order; None if the leaf is to stay."""
    found: list[RoutedComponent] = []
    for i, (part, prefix) in enumerate(zip(parts, prefixes, strict=True)):
        route = part._route(layout, k)
        if route is None:
            return None
        found += [RoutedComponent((i, *link.order), prefix + link.label, link.part, link.role) for link in route]
    return found


_GRAD = ("grad", inspect.Parameter.KEYWORD_ONLY)


def _asks(function: Callable[..., Any] | None) -> bool:
    """Whether a hook takes what entered the rule."""
    found = inspect.signature(function).parameters.get("grad") if function else None
    return found is not None and (found.name, found.kind) == _GRAD


def _slots_of(cls: type[Component]) -> dict[str, float | str]:
    """Read the state of a rule from the signature of its update."""
    names = [p for p in inspect.signature(cls.update).parameters.values() if (p.name, p.kind) != _GRAD]
    if len(names) < 4 or any(p.kind not in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in names):
        raise TypeError(f"{cls.__name__}.update must take (h, xp, p, g) and then one parameter for each state array")
    found: dict[str, float | str] = {}
    for p in names[4:]:
        if p.default is p.empty:
            raise TypeError(f"{cls.__name__}.update: state array {p.name!r} needs its first value, like {p.name}=0.0")
        if isinstance(p.default, bool) or not isinstance(p.default, int | float | str):
            raise TypeError(
                f"{cls.__name__}.update: {p.name}={p.default!r}, but a first value is a number or names a field"
            )
        method = isinstance(p.default, str) and isinstance(inspect.getattr_static(cls, p.default, None), staticmethod)
        if isinstance(p.default, str) and p.default not in ("p", *cls._fields) and not (method and not cls.elementwise):
            raise TypeError(
                f'{cls.__name__}.update: {p.name}={p.default!r} names no field of {cls.__name__}, nor is it "p", the '
                f"parameter itself{', nor a static method' if not cls.elementwise else ''}"
            )
        found[p.name] = p.default
    return found


def _check_curvature(cls: type[Component]) -> None:
    """Refuse a hook for estimates of the curvature that names no state of the rule."""
    names = list(inspect.signature(cls.curvature).parameters)[3:]  # type: ignore[arg-type]
    if not names or not {*names} <= {*cls._slots} or not cls.elementwise:
        raise TypeError(
            f"{cls.__name__}.curvature must take (h, xp, x) and then state arrays of update, which is elementwise; "
            f"those are {', '.join(cls._slots) or 'none'}"
        )
