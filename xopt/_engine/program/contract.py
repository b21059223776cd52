"""What stages and runners agree on: the components of a chain, the work to do, the scalars of a step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from xopt import _arrays
from xopt._arrays import Library
from xopt._engine.program.algebra import Value, merged, same
from xopt._engine.program.trace import Program


class Filled(NamedTuple):
    """The first value of a slot of another shape than the parameter: one number everywhere."""

    number: float
    shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    """The shape of the slot, from that of the parameter."""

    def __call__(self, h: Any, xp: Any, p: Any) -> Any:
        """Make it, with real numbers."""
        like = xp.real(p) if _arrays.is_complex(p) else p
        return xp.full(self.shape(tuple(p.shape)), self.number, dtype=like.dtype, **_arrays.beside(p))


class ComponentSpec(NamedTuple):
    """One component of a chain, as the stages see it. They know no rule."""

    key: str
    """Which component it is, and what its state is filed under: ``"0.adam"``."""
    formula: Hashable
    """Equal for components that record the same program: class and static fields."""
    update: Callable[..., Any]
    slots: Mapping[str, Any]
    """The state that ``update`` takes after g, with its first values: a number; ``"p"``, a copy of the parameter; of a
    component that computes with whole arrays also a function of (h, xp, p), and `Filled` of any."""
    statics: Mapping[str, Any]
    hypers: tuple[str, ...]
    resolve: Callable[..., dict[str, Any]]
    """``resolve(t, library, read)``: the hyperparameters at a step, checked; ``read``: 0-d arrays too, as floats."""
    constants: dict[str, Any] | None = None
    """The hyperparameters, if they are numbers for ever: nothing to resolve."""
    reduce: Callable[..., dict[str, Any]] | None = None
    host: Callable[..., dict[str, Any]] | None = None
    scope: str = "tree"
    carry: Mapping[str, float] = {}
    inexact: bool = False
    order: tuple[int, ...] = (0,)
    """Where it stands, to sort by."""
    enter: Callable[..., Any] | None = None
    """Of a rule: what it makes of the gradient first of all; components behind it may ask for that as ``grad``."""
    asks: bool = False
    """Whether ``update`` takes ``grad``."""
    asks_sum: bool = False
    """Whether ``reduce`` does."""
    on_params: bool = False
    """Whether it is given the new parameters, in place of a gradient or a step."""
    elementwise: bool = True
    """False for one that computes with whole arrays, leaf by leaf."""
    inputs: tuple[str, ...] = ()
    """What the caller of a step must give beside the gradients."""
    gates: bool = False
    """Whether it may hold the step back."""
    clock: Callable[..., Any] | None = None
    """``clock(h, t, carry)``: which step step ``t`` is for the components behind it."""
    refuses: str = ""
    """The sum that must be 0 for every leaf."""
    readout: Callable[..., Any] | None = None
    """What makes the parameters to evaluate of those that are trained and of the state."""
    curvature: Callable[..., Any] | None = None
    """What it makes of its slots when an estimate of the curvature comes."""
    storage: Any = None
    """Of the one that says how parameters and state are kept: a `StoragePolicy`."""
    given: Mapping[str, Any] = {}
    """The hyperparameters as they were given: numbers, arrays, schedules."""
    moments: Mapping[str, str] = {}
    """Slots that may be kept in 8 bits, and which of `CODES` they need."""
    tree: Any = None
    """Of one that takes the arrays of all its leaves at once: a `TreeUpdate`."""
    metrics: Mapping[str, str] = {}
    """Which of its scalars are shown, by the names of these metrics."""
    borrows: Mapping[str, str] = {}
    """What ``update`` is given besides: new slots of components in front, by the names that they have there."""

    def slot(self, name: str) -> str:
        """Return the key of a slot in the state: ``"0.adam.m"``."""
        return f"{self.key}.{name}"


class TreeUpdate(Protocol):
    """What takes the arrays of all its leaves at once, in place of ``update``; its state is filed at one of them."""

    home: int
    """The leaf that has the state."""
    members: tuple[int, ...]
    """The leaves that go through it. In its trees, others are None."""
    like: Mapping[str, Any]
    """The slots, with something of the shape and dtype of each."""

    def bound(self, spec: ComponentSpec, layout: Any, members: tuple[int, ...]) -> ComponentSpec:
        """Return the component for a tree of which these leaves go through it, with its slots."""

    def first(self, layout: Any) -> dict[str, Any]:
        """Return the slots before the first step."""

    def run(
        self, layout: Any, xs: list[Any], ps: list[Any], slots: Mapping[str, Any], h: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Return what becomes of the gradients or steps ``xs`` at parameters ``ps``, and the new slots."""


Place: TypeAlias = tuple[ComponentSpec, tuple[int, int], list[tuple[int, int]]]
"""A component, a chain and the place in it where it stands, and the works that it is in, with its place in them."""


class Chains(NamedTuple):
    """The components of a rule for the leaves of a tree."""

    chains: list[tuple[ComponentSpec, ...]]
    of: list[int | None]
    """For each leaf, which chain is its own; None for a leaf that stays as it is."""


class StepScalars:
    """The scalars of one step: for each component of the chain, its static fields, hyperparameters, sums and the step.

    A scalar is a Python number or a `Value`.
    """

    def __init__(self, specs: list[dict[str, Any]], by_leaf: bool = False) -> None:
        self.specs, self.by_leaf = specs, by_leaf
        """Whether any scalar differs from leaf to leaf."""
        self.sets: list[dict[str, Any]] = []
        """The scalars of the last component: one set for all leaves, or several."""
        self._chain_of_leaf: Any = None

    def add(self, sets: list[dict[str, Any]], chain_of_leaf: Any) -> None:
        """Append a component that has one or several sets of scalars, and for each leaf which is its own."""
        if all(same(h[n], x) for h in sets[1:] for n, x in sets[0].items()):
            self.sets = sets[:1]
            self.specs.append(self.sets[0])
            return
        self.sets, self._chain_of_leaf = [{} for _ in sets], chain_of_leaf
        self.specs.append({})
        self.merge(sets)

    def merge(self, more: list[dict[str, Any]]) -> None:
        """Add scalars to each set of the last component."""
        for h, new in zip(self.sets, more, strict=True):
            h |= new
        found = more[0]
        if len(more) > 1:
            found = {n: merged([h[n] for h in more], self._chain_of_leaf) for n in more[0]}
            self.specs[-1] |= found
        self.by_leaf = self.by_leaf or any(map(differs, found.values()))

    def share(self, scalars: dict[str, Any]) -> None:
        """Add scalars that all sets of the last component have."""
        self.merge([scalars] * len(self.sets))

    def leaf(self, k: int, cast: Callable[[Any], Any], upto: int | None = None) -> list[SimpleNamespace]:
        """Return numbers and arrays for ``h`` of leaf ``k``, component by component. ``cast`` is applied to arrays."""
        return [
            SimpleNamespace(**{n: plain(x.at(k), cast) if isinstance(x, Value) else x for n, x in spec.items()})
            for spec in self.specs[:upto]
        ]

    def of(self, leaves: list[int]) -> StepScalars:
        """Return the scalars of some leaves."""
        specs = [{n: x.of(leaves) if differs(x) else x for n, x in spec.items()} for spec in self.specs]
        return StepScalars(specs, self.by_leaf)

    def scalars(self, program: Program) -> tuple[Any, ...]:
        """Compute the scalars of a program: numbers, 0-d arrays, and vectors of what differs from leaf to leaf."""
        return program.compute([self.specs[index][name] for index, name in scalar_places(program.inputs)])


def differs(x: Any) -> bool:
    """Whether a scalar has a value for each leaf."""
    return isinstance(x, Value) and x.by_leaf


def plain(x: Any, cast: Callable[[Any], Any]) -> Any:
    """Return a number, or an array in the dtype of a computation."""
    return cast(x) if hasattr(x, "dtype") else x


def scalar_name(name: str, index: int) -> str:
    """Return what a program calls a hyperparameter: ``lr`` of the second component is ``lr_1``; the step is ``t``.

    Components that have another step than those behind them use it in ``host`` alone.
    """
    return "t" if name == "t" else f"{name}_{index}"


@functools.lru_cache(maxsize=1024)
def scalar_places(names: tuple[str, ...]) -> tuple[tuple[int, str], ...]:
    """Undo `scalar_name`."""
    parts = (name.rpartition("_") for name in names)
    return tuple((int(index), name) if name else (-1, "t") for name, _, index in parts)


@dataclass(slots=True)
class BucketStep:
    """Leaves that are computed alike, and what to compute."""

    specs: tuple[ComponentSpec, ...]
    library: Library
    xp: Any
    dtype: Any
    """The `DType` of the parameters and gradients; state has that of the arithmetic."""
    split: bool
    """Whether a complex leaf is computed as pairs of reals."""
    loads: dict[str, list[Any]]
    """``p``, ``g`` and every live slot: one array a leaf."""
    outputs: tuple[str, ...]
    """What is wanted back: ``p`` (or ``u``, the change alone) and every slot that changes."""
    plan: Any
    runner: Any
    leaves: list[int]
    """Which leaves of the tree they are."""
    numbers: Sequence[int]
    """For every leaf of the tree, which parameter it is, see `Layout`."""
    chains: list[int]
    """Chains whose hyperparameters some leaf has."""
    chain_of_leaf: np.ndarray[Any, Any] | None
    """For each leaf, which of these is its own; None where there is one for all."""
    arenas: dict[str, tuple[Any, list[int]]] | None = None
    """Slots whose leaves lie end to end in one buffer, with the place of each leaf: nothing to gather."""
    cache: dict[Any, Any] | None = None
    """Where a runner may keep what it found out about these very arrays, parameters and slots, for the next step."""
    where: Any = None
    """The addresses of the gradients, if they are known and all are in C order."""
    trees: dict[str, dict[int, tuple[Any, Mapping[str, Any]]]] = field(default_factory=dict)
    """What components of whole trees made, by key and leaf: the step, and the slots of the leaf that has them."""
    stored: int | None = None
    """How many leaves were written in this step, from a runner that may yet fail; None from one that does not."""

    @property
    def real(self) -> str:
        """The real dtype of the arithmetic."""
        real: str = self.dtype.real
        return real


def chosen(xp: Any, go: Any, new: Any, old: Any) -> Any:
    """Select by a scalar, 1 or 0, that nobody may look at; None stands for 0."""
    like = old if new is None else new
    zero = 0.0 * xp.where(xp.isfinite(like), like, 0.0)
    return xp.where(xp.real(zero) + go > 0.5, zero if new is None else new, zero if old is None else old)


def called(specs: tuple[ComponentSpec, ...], dtype: Any, index: int | None = None) -> str:
    """Say what the programs of a chain are for, in their text."""
    chain = " | ".join(spec.key for spec in specs)
    return f"{chain}{'' if index is None else f': the sums of {specs[index].key}'}, {dtype.name}"
