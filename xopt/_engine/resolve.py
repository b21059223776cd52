"""The scalars of one step: hyperparameters, sums and what `host` makes of them, place by place along the chains."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np

from xopt import _arrays
from xopt._arrays.layout import Layout
from xopt._engine.program.algebra import Square, Value, functions
from xopt._engine.program.contract import BucketStep, ComponentSpec, Place, StepScalars
from xopt._engine.program.hooks import host_scalars, terms
from xopt._engine.program.summation import CHUNK, Roots, root_of_squares

H = dict[str, Any]


class Rest(NamedTuple):
    """Parameters and state, and the state of leaves without a gradient that is new all the same, by slot."""

    params: list[Any]
    slots: dict[str, list[Any]]
    made: dict[str, tuple[int, Any]]


class ScalarResolver:
    """What the scalars of a step are computed with.

    Parameters
    ----------
    layout
        The parameters.
    host
        Whether scalars are Python floats, which may be looked at.
    """

    def __init__(self, layout: Layout, host: bool) -> None:
        self._layout, self._host = layout, host
        self.mixed = False
        """Whether the host's runner leaves some leaves to the eager one, whose sums are arrays of the library."""
        self.as_saved = False
        """Whether what is loaded is an array where it was one, although the host would compute with numbers."""
        self.alone: dict[str, H] = {}
        """The scalars of components without leaves here, where other processes have such; by key."""
        self.checked = False
        """Whether gradients have been looked at already, where a component would refuse some."""

    def first(self, spec: ComponentSpec, value: float) -> Any:
        """Return the first value of a scalar that is carried from step to step; of scope "leaf", a vector."""
        return self.carried(spec, [value] * len(self._layout.leaves) if spec.scope == "leaf" else value)

    def carried(self, spec: ComponentSpec, value: Any, dtype: str | None = None) -> Any:
        """Return a carried scalar, or a list with one per leaf, as it is kept.

        ``dtype`` is that of the array of this library that it was; None where it was a number.
        """
        layout, host = self._layout, np.asarray(value, np.float64)
        if layout.library.records:
            return layout.xp.asarray(host, dtype=self.wide, **layout.near)
        if dtype is not None and not layout.library.host and (self.as_saved or not self._host):
            kind = layout.xp.float32 if dtype == "float32" else self.wide
            return layout.xp.asarray(host, dtype=kind, **layout.near)
        if spec.scope == "leaf":
            return host if self._plain() else self._vector(host)
        return host.item()

    def _real_name(self) -> str:
        return "float64" if any(d.real == "float64" for d in self._layout.dtypes) else "float32"

    @functools.cached_property
    def wide(self) -> Any:
        """The dtype in which scalars that are arrays are computed: float64 where the device has it."""
        layout, real = self._layout, self._real_name()
        device = None if layout.like is None else _arrays.device(layout.like)
        return getattr(layout.xp, _arrays.widest_real(layout.xp, device, real))

    def scalars(self, given: H) -> H:
        """Return numbers as they are, and arrays as scalars that nobody may look at."""
        if self._host:
            return given
        return {n: self._value(x) if hasattr(x, "dtype") else x for n, x in given.items()}

    def _value(self, x: Any) -> Value:
        return Value(x if isinstance(x, np.ndarray) else _arrays.cast(self._layout.xp, x, self.wide))

    def _plain(self) -> bool:
        """Whether a vector of scalars is one of NumPy."""
        return self._host or self._layout.library.host

    def run(
        self,
        clocks: dict[str, Any],
        given: list[list[H]],
        places: list[Place],
        works: list[BucketStep],
        carry: dict[str, Any],
        rest: Rest,
    ) -> tuple[list[StepScalars], dict[str, Any]]:
        """Compute the scalars of each work; sums read the tree.

        ``rest`` is what leaves without a gradient have, for components that take whole trees.

        ``clocks`` has the step for components by name, under "" for those without a clock of their own; ``given`` the
        hyperparameters, chain by chain.
        """
        carry = dict(carry)
        with nullcontext() if self._host else self._layout.library.no_grad():
            values = [StepScalars([]) for _ in works]
            go: Any = None  # 1 or 0, if a component may hold the step back
            for spec, (c, at), members in places:
                step = clocks[spec.key if spec.key in clocks else ""]
                before = {spec.slot(n): carry[spec.slot(n)] for n in spec.carry} if spec.carry else {}
                for w, i in members:
                    self.open(spec, i, step, given, works[w], values[w], carry)
                totals = self._sum(spec, members, works, values) if spec.reduce else {}
                if not members:
                    own = {**spec.statics, **self.scalars(given[c][at]), "t": step, **totals}
                    own_go = self._alone(spec, own, carry)
                if members and spec.tree is not None:
                    self._whole(spec, members, works, values, rest)
                if members and spec.host:
                    self._after(spec, members, works, values, carry)
                if go is not None:
                    carry |= {n: self._held(go, carry[n], x) for n, x in before.items()}
                if spec.gates:
                    own_go = values[members[0][0]].specs[-1]["go"] if members else own_go
                    go = own_go if go is None else go * own_go
            return values, carry

    def open(
        self,
        spec: ComponentSpec,
        i: int,
        step: Any,
        given: list[list[H]],
        work: BucketStep,
        own: StepScalars,
        carry: dict[str, Any],
    ) -> None:
        """Append the scalars of the ``i``-th component of a work, as far as they are known before any sum."""
        chains = work.chains if spec.hypers else work.chains[:1]
        own.add([{**spec.statics, **self.scalars(given[c][i]), "t": step} for c in chains], work.chain_of_leaf)
        if spec.carry:
            own.share(self._carried(spec, work, carry))
        if spec.storage and spec.host:
            layout = self._layout
            own.share({"leaf": self._each(layout.numbers, work), "chunk": 0.0})
            if any(layout.starts):
                own.share({"chunk": self._each([start / CHUNK for start in layout.starts], work)})

    def _each(self, numbers: Sequence[float], work: BucketStep) -> Value:
        """Return numbers, one for each leaf of the tree, as a scalar of the leaves of a work."""
        return Value(self._taken(self._vector(np.asarray(numbers, np.float64)), work.leaves))

    def _held(self, go: Any, new: Any, old: Any) -> Any:
        """Return a carried number after a step that may have been held back."""
        if isinstance(go, float):
            return new if go else old
        new, old = (Value(x) if hasattr(x, "dtype") else x for x in (new, old))
        return self._stored(functions.where(go > 0.5, new, old))

    def _stored(self, x: Any) -> Any:
        """Return a scalar as it is carried to the next step: a number or an array."""
        x = x.array if isinstance(x, Value) else x
        if self._layout.library.records:
            return self._layout.xp.asarray(x, dtype=self.wide)
        return x

    def _refuse(self, works: list[BucketStep], members: list[tuple[int, int]], counts: list[Any]) -> None:
        """Raise for the first leaf whose count is not 0. This waits for the device."""
        if self.checked:
            return
        found: dict[int, float] = {}
        for (w, _), column in zip(members, counts, strict=True):
            try:
                numbers = column.tolist() if hasattr(column, "tolist") else map(float, column)
                found |= dict(zip(works[w].leaves, numbers, strict=True))
            except Exception as error:
                if "Concretization" not in type(error).__name__:  # JAX's, for what is being traced
                    raise
                raise TypeError(
                    'on_nonfinite="raise" must see the gradients, which it cannot under jax.jit; use "skip" there'
                ) from None
        for k in sorted(k for k, n in found.items() if n):
            raise FloatingPointError(f"{self._layout.path(k, 'grads')}: {int(found[k]):,} elements are not finite")

    def _carried(self, spec: ComponentSpec, work: BucketStep, carry: dict[str, Any]) -> H:
        """Return what a component has from the step before, which another runner may have taken."""
        if spec.scope == "leaf":
            return {n: Value(self._taken(self._vector(carry[spec.slot(n)]), work.leaves)) for n in spec.carry}
        return {n: self._number(carry[spec.slot(n)]) for n in spec.carry}

    def _number(self, x: Any) -> Any:
        """Return a carried number of the whole tree."""
        if self._host:
            return float(x)
        return self._value(x) if hasattr(x, "dtype") else x

    def _sum(
        self, spec: ComponentSpec, members: list[tuple[int, int]], works: list[BucketStep], values: list[StepScalars]
    ) -> H:
        """Add what ``reduce`` sums over the leaves or over the tree; return the sums over the tree."""
        if not members:
            return dict.fromkeys(terms(spec), 0.0)
        totals: H = {}
        sums = [works[w].runner.sums(works[w], values[w], i) for w, i in members]
        if self.mixed:
            sums = [{n: np.asarray(x, np.float64) for n, x in found.items()} for found in sums]
        if spec.scope == "tree":
            found = {n: self._total(n, sums, members, works) for n in sums[0]}
            totals = {n: _sum_of(x) for n, x in found.items()}
            for w, _ in members:
                values[w].share(totals)
        else:
            for (w, _), found in zip(members, sums, strict=True):
                values[w].share({n: _sum_of(x) for n, x in found.items()})
        if spec.refuses:
            self._refuse(works, members, [found[spec.refuses] for found in sums])
        return totals

    def _whole(
        self,
        spec: ComponentSpec,
        members: list[tuple[int, int]],
        works: list[BucketStep],
        values: list[StepScalars],
        rest: Rest,
    ) -> None:
        """Let a component take all of its leaves; one without a gradient has 0, and its step is not taken."""
        none: list[Any] = [None] * len(self._layout.leaves)
        xs, ps, slots = none.copy(), none.copy(), dict[str, Any]()
        for w, i in members:
            found = works[w].runner.entering(works[w], values[w], i)
            for k, (x, p, own) in zip(works[w].leaves, found, strict=True):
                xs[k], ps[k] = x, p
                slots |= own if k == spec.tree.home else {}
        xp = self._layout.xp
        for k in spec.tree.members:
            if xs[k] is None:
                ps[k] = _arrays.cast(xp, rest.params[k], getattr(xp, self._layout.dtypes[k].compute))
                xs[k] = xp.zeros_like(ps[k])
        slots = slots or {n: rest.slots[spec.slot(n)][spec.tree.home] for n in spec.slots}
        steps, new = spec.tree.run(self._layout, xs, ps, slots, values[members[0][0]].specs[-1])
        for w, _ in members:
            works[w].trees[spec.key] = {k: (steps[k], new if k == spec.tree.home else {}) for k in works[w].leaves}
        if not any(spec.tree.home in works[w].leaves for w, _ in members):
            rest.made.update({spec.slot(n): (spec.tree.home, x) for n, x in new.items()})

    def _after(
        self,
        spec: ComponentSpec,
        members: list[tuple[int, int]],
        works: list[BucketStep],
        values: list[StepScalars],
        carry: dict[str, Any],
    ) -> None:
        """Add what ``host`` computes, and keep what is carried."""
        if spec.scope == "leaf":
            new = {n: self._vector(carry[spec.slot(n)]) for n in spec.carry}
            for w, _ in members:
                with np.errstate(all="ignore"):
                    found = host_scalars(spec, values[w].specs[-1])
                new = {n: self._spread(x, found[n], works[w].leaves) if n in found else x for n, x in new.items()}
                values[w].share(found)
            carry |= {spec.slot(n): x for n, x in new.items()}
            return
        for w, _ in members:
            many = [host_scalars(spec, h) for h in values[w].sets]
            values[w].merge(many)
        carry |= {spec.slot(n): self._stored(many[0][n]) for n in spec.carry if n in many[0]}

    def _alone(self, spec: ComponentSpec, h: H, carry: dict[str, Any]) -> Any:
        """Keep what is carried in a step in which no leaf takes part, and say whether it would be held back."""
        if not (spec.carry or spec.gates) or not spec.host or spec.scope == "leaf":
            return None
        h |= {n: self._number(carry[spec.slot(n)]) for n in spec.carry}
        found = host_scalars(spec, h)
        carry |= {spec.slot(n): self._stored(found[n]) for n in spec.carry if n in found}
        return found.get("go")

    def _vector(self, x: Any) -> Any:
        """Return a carried vector as an array of the library that computes."""
        if self._plain():
            return np.asarray(x, np.float64)
        if isinstance(x, np.ndarray):
            x = self._layout.xp.asarray(x, dtype=self.wide, **self._layout.near)
        return x

    def _taken(self, vector: Any, leaves: list[int]) -> Any:
        """Return the values of some leaves."""
        if len(leaves) == len(self._layout.leaves):
            return vector
        if self._plain():
            return vector[leaves]
        return self._layout.xp.take(vector, self._index(vector, leaves), axis=0)

    def _spread(self, old: Any, new: Any, leaves: list[int]) -> Any:
        """Put the values of some leaves back among those of all leaves."""
        xp, new = self._layout.xp, new.array if isinstance(new, Value) else new
        if self._plain():
            made = old.copy()
            made[leaves] = new
            return made
        new = _arrays.cast(xp, self._vector(new), old.dtype) if hasattr(new, "dtype") else new
        new = new if getattr(new, "ndim", 0) else xp.zeros_like(self._taken(old, leaves)) + new
        if len(leaves) == len(self._layout.leaves):
            return new
        order = np.arange(len(self._layout.leaves))
        order[leaves] = len(order) + np.arange(len(leaves))
        return xp.take(xp.concat([old, new]), self._index(old, order), axis=0)

    def by_leaf(self, found: Iterable[tuple[Any, list[int]]]) -> Any:
        """Return a vector over all leaves of scalars that some have, NaN for the others; of several devices, a list."""
        if not self._plain() and len({*map(str, self._layout.devices)}) > 1:
            each: list[Any] = [float("nan")] * len(self._layout.leaves)
            for x, leaves in found:
                for j, k in enumerate(leaves):
                    each[k] = x.at(j) if isinstance(x, Value) else x
            return each
        made = self._vector(np.full(len(self._layout.leaves), np.nan))
        for x, leaves in found:
            made = self._spread(made, x, leaves)
        return made

    def _index(self, like: Any, places: Any) -> Any:
        return self._layout.xp.asarray(np.asarray(places, np.int32), **_arrays.beside(like))  # some have no int64

    def _total(self, n: str, sums: list[H], members: list[tuple[int, int]], works: list[BucketStep]) -> Any:
        """Sum over the tree, in the order of its leaves."""
        xp, total = self._layout.xp, works[members[0][0]].runner.total
        columns = [found[n] for found in sums]
        if isinstance(columns[0], Roots):
            return Roots(root_of_squares(xp, *(x.roots for x in columns)))
        if len(members) == 1:
            return total(xp, columns[0])
        order = np.argsort([k for w, _ in members for k in works[w].leaves])
        if self._host or self._layout.library.host:
            return total(xp, np.concatenate(columns)[order])
        return total(xp, xp.take(xp.concat(columns), self._index(columns[0], order), axis=0))


def _sum_of(x: Any) -> Any:
    """Return a sum as a scalar."""
    return Square(x.roots) if isinstance(x, Roots) else Value(x) if hasattr(x, "dtype") else x


def places(chains: list[tuple[ComponentSpec, ...]], works: Iterable[tuple[ComponentSpec, ...]]) -> list[Place]:
    """Return every place of the chains in order, for works with these components."""
    found: dict[str, Place] = {}
    for c, chain in enumerate(chains):
        for i, spec in enumerate(chain):
            found.setdefault(spec.key, (spec, (c, i), []))
    for w, specs in enumerate(works):
        for i, spec in enumerate(specs):
            found[spec.key][2].append((w, i))
    return sorted(found.values(), key=lambda x: x[0].order)
