"""One step of a chain over a tree: bucketes of leaves, state, validation, and the choice of a runner."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Hashable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from xopt._arrays import libraries as _arrays
from xopt._arrays import scalars as _scalars
from xopt._arrays import tree as _tree
from xopt._arrays.layout import Layout
from xopt._engine.program import trace as _trace
from xopt._engine.program.algebra import Count
from xopt._engine.program.contract import BucketStep, Chains, ComponentSpec
from xopt._engine.program.hooks import check_groups
from xopt._engine.program.plan import Plan, fitted_plan, plan
from xopt._engine.program.quantize import SCALE, is_scale
from xopt._engine.program.storage import ERROR, USUAL, StoragePolicy
from xopt._engine.resolve import ScalarResolver, places
from xopt._engine.runners.choose import backend, choose


class Bucket:
    """Leaves of one dtype on one device that go through the same formulas."""

    def __init__(self, plan: Plan, dtype: _arrays.DType, split: bool, runner: Any) -> None:
        self.plan, self.dtype, self.split, self.runner = plan, dtype, split, runner
        self.leaves: list[int] = []
        self.chains: list[int] = []
        """Chains whose hyperparameters some leaf has."""
        self.which: list[int] = []
        """For each leaf, which of these is its own."""
        self.pick: list[int] | None = None
        """The leaves, unless they are all of the tree."""

    def add(self, k: int, chain: int) -> None:
        """Take in a leaf."""
        if chain not in self.chains:
            self.chains.append(chain)
        self.leaves.append(k)
        self.which.append(self.chains.index(chain))

    @property
    def specs(self) -> tuple[ComponentSpec, ...]:
        """The links, but for their hyperparameters."""
        return self.plan.specs


class Executor:
    """Chains made ready for the parameters of one tree."""

    def __init__(self, chains: Chains, layout: Layout, runner: Any = None) -> None:
        self.layout = layout
        self.chains = chains.chains
        check_groups(self.chains)
        specs = {spec.place: spec for chain in self.chains for spec in chain}
        self.runner = choose(layout, runner)
        self.scalars = ScalarResolver(layout, self.runner.host)
        self.buckets: list[Bucket] = []
        self.bucket_of: list[Bucket | None] = []
        by_kind: dict[Hashable, Bucket] = {}
        for k, (d, chain) in enumerate(zip(layout.dtypes, chains.of, strict=True)):
            if chain is None:
                self.bucket_of.append(None)
                continue
            split = d.complex and any(spec.statics.get("complex") == "split" for spec in self.chains[chain])
            for spec in self.chains[chain]:
                if spec.reduce or spec.whole:
                    layout.refuse_local(k, spec.place)
            size, path = math.prod(layout.shapes[k]), partial(layout.path, k)
            own = fitted_plan(self.chains[chain], d, d.complex and not split, size, path)
            kind = (id(own), d, str(layout.devices[k]))
            if kind not in by_kind:
                by_kind[kind] = Bucket(own, d, split, backend("eager") if own.whole else self.runner)
                self.buckets.append(by_kind[kind])
            by_kind[kind].add(k, chain)
            self.bucket_of.append(by_kind[kind])
        for bucket in self.buckets:
            bucket.pick = None if len(bucket.leaves) == len(layout.leaves) else bucket.leaves
        self.scalars.mixed = self.runner.host and any(bucket.plan.whole for bucket in self.buckets)
        plans = [bucket.plan for bucket in self.buckets] or [plan(chain, False) for chain in self.chains]
        self._places = places(self.chains, [bucket.specs for bucket in self.buckets])
        self.live = tuple(dict.fromkeys(n for own in plans for n in own.live))
        self.inputs = {n for spec in specs.values() for n in spec.inputs}
        self.carried = {spec.slot(n): (spec, v) for spec in specs.values() for n, v in spec.carry.items()}
        every = [*specs.values(), *(spec for own in plans for spec in own.specs)]
        self._owner = {spec.slot(n): spec for spec in every for n in spec.slots}
        self._storage: StoragePolicy = next((spec.storage for spec in every if spec.storage), USUAL)
        self.refuses = any(spec.refuses for spec in specs.values())
        self._clocks = [spec for spec in specs.values() if spec.clock]
        self._likes: dict[tuple[str, int], Any] = {}
        self._compiled: Any = None
        self.torn = False
        """Whether a step began to write; who counts the steps says when it has ended."""

    def has(self, name: str, k: int) -> bool:
        """Whether parameter ``k`` has this slot."""
        bucket = self.bucket_of[k]
        return bucket is not None and name in bucket.plan.live and self._first(name, k) is not None

    def _split(self, k: int) -> bool:
        """Whether parameter ``k`` is computed as pairs of reals."""
        bucket = self.bucket_of[k]
        return bucket is not None and bucket.split

    def _first(self, name: str, k: int) -> Any:
        """Return the first value of a slot of parameter ``k``: a number, ``"p"``, a new array, or None for no slot."""
        spec = self._owner[name]
        value = spec.slots[name.removeprefix(f"{spec.place}.")]
        if not callable(value):
            return value
        if (name, k) not in self._likes:
            layout = self.layout
            p, h = _arrays.detached(layout.leaves[k]), SimpleNamespace(**spec.statics)
            split = self._split(k)
            x = value(h, layout.xp, layout.xp.real(p) if split else p)
            if x is not None:
                kind = layout.dtypes[k].compute if split or _arrays.is_complex(x) else layout.dtypes[k].real
                x = _arrays.cast(layout.xp, x, getattr(layout.xp, kind))
                if split:
                    x = layout.library.join_complex(layout.xp, layout.xp.real(x), layout.xp.real(x))
            self._likes[name, k] = x
        return self._likes[name, k]

    def slot_dtype(self, name: str, k: int) -> str:
        """Name the dtype of a slot of parameter ``k``: that of its arithmetic, unless the caller wants another one."""
        bucket = self.bucket_of[k]
        codes = bucket.plan.codes if bucket else {}
        return self._storage.slot(self._owner[name], name, self.layout.dtypes[k], self._usual_dtype(name, k), codes)

    def _usual_dtype(self, name: str, k: int) -> str:
        d, bucket = self.layout.dtypes[k], self.bucket_of[k]
        if not d.complex or bucket is None:
            return d.real
        if name in bucket.plan.kinds:
            return d.compute if bucket.split or bucket.plan.kinds[name] == _trace.COMPLEX else d.real
        first = self._first(name, k)
        return _arrays.dtype_name(first) if hasattr(first, "dtype") else d.compute

    def new_slots(self) -> dict[str, list[Any]]:
        """Make the state before the first step."""
        made = {n: [self.new_slot(n, k) for k in range(len(self.layout.leaves))] for n in self.live}
        self._likes.clear()
        return made

    def new_slot(self, name: str, k: int) -> Any:
        """Make a slot of parameter ``k``; None if it has no such one."""
        if not self.has(name, k):
            return None
        xp, library, p = self.layout.xp, self.layout.library, self.layout.leaves[k]
        first = self.first_value(name, k)
        if hasattr(first, "dtype"):
            return _arrays.copied(library, xp, first, self.slot_dtype(name, k))
        return _arrays.full_like(library, xp, p, self.slot_dtype(name, k), first)

    def first_value(self, name: str, k: int) -> Any:
        """Return the first value of a slot of parameter ``k``: a number, or an array.

        Of a split complex one, both parts have the number.
        """
        value = self._first(name, k)
        if isinstance(value, str):
            return self.layout.leaves[k]
        if hasattr(value, "dtype"):
            return value
        return complex(value, value) if self._split(k) else value

    def renewed(self, name: str, k: int) -> Any:
        """Make a slot of parameter ``k`` anew, of the parameter as it is now."""
        self._likes.clear()
        made = self.new_slot(name, k)
        self._likes.clear()
        return made

    def owner(self, name: str) -> ComponentSpec:
        """Return the link that a slot belongs to; scales belong where their codes do."""
        return self._owner[name.removeprefix(SCALE)]

    def follows(self, name: str) -> bool:
        """Whether the first value of a slot hangs on the parameter, or what it holds does."""
        first = self._owner[name].slots[name.removeprefix(f"{self._owner[name].place}.")]
        return (isinstance(first, str) or callable(first) or name == ERROR) and not is_scale(name)

    def new_carry(self) -> dict[str, Any]:
        """Make the scalars that live from step to step, before the first step."""
        return {n: self.scalars.first(spec, v) for n, (spec, v) in self.carried.items()}

    def new_step(self, taken: int = 0) -> Any:
        """Return the number of steps taken: a Python int, on JAX an int32 array, so that a jitted step traces once."""
        xp = self.layout.xp
        return xp.asarray(min(taken, 2**31 - 1), dtype=xp.int32) if self.layout.library.jits else taken

    def check_state(self, state: Any) -> dict[str, list[Any]]:
        """Return the slots of a state leaf by leaf, or say what does not fit this chain and these parameters."""
        for field in ("step", "slots", "carry"):
            if not hasattr(state, field):
                raise TypeError(f"state: a {type(state).__name__}, but rule.init returns a State")
        _same_keys("state.slots", state.slots, self.live)
        _same_keys("state.carry", state.carry, self.carried)
        step = state.step
        traced = self.layout.library.jits and getattr(step, "shape", None) == () and "int" in str(step.dtype)
        if isinstance(step, bool) or not (isinstance(step, int) or traced):
            raise TypeError(f"state.step: {step!r}, but the number of steps taken is an int")
        if isinstance(step, int) and step < 0:
            raise ValueError(f"state.step: {step}, but the number of steps taken is at least 0")
        found = {}
        for name in self.live:
            path = f'state.slots["{name}"]'
            column = _tree.match(self.layout.spec, state.slots[name], path)
            for k, x in enumerate(column):
                if self.has(name, k):
                    first = self._first(name, k)
                    shape = tuple(first.shape) if hasattr(first, "dtype") else self.layout.shapes[k]
                    self.layout.same(path, k, x, self._slot_dtype_object(name, k), shape)
                elif x is not None:
                    raise ValueError(
                        f"{self.layout.path(k, path)}: an array, but the rule keeps none for this parameter"
                    )
            found[name] = column
        for name, (spec, _) in self.carried.items():
            shape = (len(self.layout.leaves),) if spec.scope == "leaf" else ()
            if tuple(np.shape(state.carry[name])) != shape:
                raise ValueError(
                    f'state.carry["{name}"]: shape {np.shape(state.carry[name])}, but the rule keeps {shape}'
                )
        return found

    def _slot_dtype_object(self, name: str, k: int) -> Any:
        kind = _arrays.dtype_of(self.layout.library, self.layout.xp, self.slot_dtype(name, k))
        return np.dtype(kind) if isinstance(kind, type) else kind

    def resolve(self, t: Any, chains: list[tuple[ComponentSpec, ...]] | None = None) -> list[list[dict[str, Any]]]:
        """Return the hyperparameters of step ``t``, checked, component by component of every chain."""
        library, host = self.layout.library, self.runner.host
        return [
            [spec.constants or spec.resolve(t, library, host) for spec in chain]
            for chain in (self.chains if chains is None else self.checked(chains))
        ]

    def checked(self, chains: list[tuple[ComponentSpec, ...]]) -> list[tuple[ComponentSpec, ...]]:
        """Return chains with other hyperparameters, or say which of these must be one for all groups."""
        check_groups(chains)
        return chains

    def clocks(self, t: Any, carry: Mapping[str, Any]) -> dict[str, Any]:
        """Return which step step ``t`` is, for links by name, and under "" for all others.

        It is another one behind links that hold steps back.
        """
        if not self._clocks:
            return {"": t}
        found, t = {}, self.step(t)
        for spec in self._clocks:
            found[spec.place] = t
            own = {n: self._whole(carry[spec.slot(n)]) for n in spec.carry}
            t = spec.clock(SimpleNamespace(**spec.statics), t, own)  # type: ignore[misc]
        return {n: x.exact if isinstance(x, Count) else x for n, x in {**found, "": t}.items()}

    def _whole(self, x: Any) -> Any:
        """Return a carried number of steps."""
        if self.runner.host or isinstance(x, float):
            return int(x)
        return Count(self.layout.xp.astype(x, self.layout.xp.int32), self.scalars.wide)

    def given(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what links ask for beside the gradients, or say what is missing; what none asks for is checked too."""
        for n, x in inputs.items():
            if x is None and n in self.inputs:
                raise TypeError(f"{n}: missing, but a link of this rule needs it: step(grads, {n}=...)")
        library, host = self.layout.library, self.runner.host
        found = {n: _scalars.taken(n, x, library, host) for n, x in inputs.items() if x is not None}
        return {n: x for n, x in found.items() if n in self.inputs}

    def run(
        self,
        clocks: dict[str, Any],
        given: list[list[dict[str, Any]]],
        ps: list[Any],
        gs: list[Any],
        slots: dict[str, list[Any]],
        carry: dict[str, Any],
        *,
        inputs: Mapping[str, Any] | None = None,
        change: bool = False,
        write: bool = False,
        memory: list[tuple[dict[str, Any], dict[str, Any]]] | None = None,
        where: Any = None,
    ) -> tuple[list[Any], dict[str, list[Any]], dict[str, Any]]:
        """Take one step: the new parameters (or, with ``change``, what to add to them), slots and carry.

        With ``write`` the results land in ``ps`` and ``slots`` themselves. ``memory`` has, for each bucket, its arenas
        and what its runner keeps between steps; ``where`` the addresses of the gradients, if they are known. Everything
        that can fail for what the caller gave has been checked before the first write.
        """
        first = "u" if change else "p"
        holes = where is None and any(map(operator.is_, gs, itertools.repeat(None)))
        works = self.works(first, ps, gs, slots, memory, where, holes)
        try:
            steps = clocks
            if self._clocks or type(clocks[""]) is not int:
                steps = {n: self.step(t) for n, t in clocks.items()}
            if inputs:
                given = [[{**h, **inputs} for h in chain] for chain in given]
            at = places(self.chains, [work.specs for work in works]) if holes else self._places
            values, carry = self.scalars.run(steps, given, at, works, carry)
            jobs = []
            for work, scalars in zip(works, values, strict=True):
                into = {n: work.loads[n] for n in work.outputs} if write else None
                jobs.append(work.runner.prepare(work, scalars, into))
            self.torn = write
            try:
                found = [job() for job in jobs]
            except Exception:  # of a scalar that no one could look at before
                self.torn = write and any(work.stored != 0 for work in works)
                raise
        finally:
            for work in works:  # the next step may use it again, and gradients are not ours to keep
                del work.loads["g"]
                work.where = None
        if write:
            return ps, slots, carry
        news, new_slots = list(ps), {n: list(column) for n, column in slots.items()}
        if change:
            moved = {k for work in works for k in work.leaves}
            news = [None if k in moved else self.layout.xp.zeros_like(p) for k, p in enumerate(ps)]
        for work, out in zip(works, found, strict=True):
            for n, column in out.items():
                target = news if n == first else new_slots[n]
                for k, x in zip(work.leaves, column, strict=True):
                    target[k] = x
        return news, new_slots, carry

    def donated(self, *args: Any) -> Any:
        """Take a whole step on JAX, compiled once; parameters, slots and carry are donated, all else is an argument."""
        if self._compiled is None:

            def step(ps: Any, gs: Any, slots: Any, carry: Any, clocks: Any, given: Any, inputs: Any) -> Any:
                return self.run(clocks, given, ps, gs, slots, carry, inputs=inputs)

            self._compiled = self.layout.library.jit(step, given=(0, 2, 3))
        try:
            return self._compiled(*args)
        finally:  # what came in may be gone, and what comes out may never arrive
            self.torn = any(x.is_deleted() for x in args[0])

    def step(self, t: Any) -> Any:
        """Return what rules see as ``h.t``."""
        return t if isinstance(t, int | float) else Count(t, self.scalars.wide)

    def works(
        self,
        first: str,
        ps: list[Any],
        gs: list[Any],
        slots: dict[str, list[Any]],
        memory: list[tuple[dict[str, Any], dict[Any, Any]]] | None,
        where: Any,
        holes: bool,
    ) -> list[BucketStep]:
        """Put the arrays of each bucket together, without the leaves that have no gradient."""
        works = []
        for number, bucket in enumerate(self.buckets):
            leaves, which = bucket.leaves, bucket.which
            arenas, kept = memory[number] if memory else (None, None)
            pick = bucket.pick
            if holes:
                some = [j for j, k in enumerate(leaves) if gs[k] is not None]
                leaves, which = [leaves[j] for j in some], [which[j] for j in some]
                if len(leaves) < len(bucket.leaves):
                    arenas, kept, pick = None, None, leaves
            work = kept.get("work") if kept else None
            if work is None and leaves:
                columns = {"p": ps, **{n: slots[n] for n in bucket.plan.live}}
                work = BucketStep(
                    bucket.specs, self.layout.library, self.layout.xp, bucket.dtype, bucket.split,
                    {n: _picked(x, pick) for n, x in columns.items()}, (first, *bucket.plan.changed), bucket.plan,
                    bucket.runner, leaves, bucket.chains, np.asarray(which) if len(bucket.chains) > 1 else None, arenas,
                    kept,
                )  # fmt: skip
                if kept is not None:
                    kept["work"] = work
            if work is not None:
                work.loads["g"] = _picked(gs, pick)
                work.where = where if where is None or pick is None else where[leaves]
                works.append(work)
        return works


def _picked(column: list[Any], leaves: list[int] | None) -> list[Any]:
    return column if leaves is None else [column[k] for k in leaves]


def _same_keys(path: str, got: Any, want: Any) -> None:
    if not isinstance(got, dict):
        raise TypeError(f"{path}: a {type(got).__name__}, but it must be a dict")
    if {*got} != {*want}:
        raise ValueError(
            f"{path}: {sorted(got, key=str)}, but this rule keeps {sorted(want)}; "
            f"the state belongs to another rule or to other options"
        )
