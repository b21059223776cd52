"""One step of a chain over a tree: its leaves in buckets, each with a runner, and what a step is given."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from xopt._arrays import scalars as _scalars
from xopt._arrays.layout import Layout
from xopt._arrays.rows import SparseRows
from xopt._arrays.scalars import after
from xopt._arrays.tree import holes
from xopt._engine import metrics as _metrics
from xopt._engine.again import Again
from xopt._engine.bucket import Bucket
from xopt._engine.exclusive import Writing
from xopt._engine.lazy_rows import LazyRows
from xopt._engine.program.algebra import Count
from xopt._engine.program.contract import BucketStep, Chains, ComponentSpec
from xopt._engine.program.hooks import check_groups
from xopt._engine.program.plan import fitted_plan, plan
from xopt._engine.resolve import Rest, ScalarResolver, places
from xopt._engine.runners.choose import backend, choose
from xopt._engine.state import StateSpec

Results: TypeAlias = tuple[list[Any], dict[str, list[Any]], dict[str, Any]]
"""Parameters or changes, slots and carry after a step."""


class Kept(NamedTuple):
    """What a bucket keeps between steps."""

    arenas: dict[str, Any]
    """The buffers of the state, with the place of each leaf."""
    cache: dict[Any, Any]
    """What its runner keeps."""
    work: list[BucketStep]
    """What was put together, if anything; not in the cache, which it refers to: so parameters and state are free as
    soon as nobody has the optimizer."""


class StepInputs(NamedTuple):
    """What a step has beside arrays."""

    t: Any
    """Which step it is: the first is 1."""
    clocks: dict[str, Any]
    """Which it is for components by name, and under "" for all others."""
    given: list[list[dict[str, Any]]]
    """The hyperparameters, component by component of every chain."""
    inputs: dict[str, Any]
    """What components ask for beside the gradients."""


class Executor:
    """Chains made ready for the parameters of one tree."""

    def __init__(self, chains: Chains, layout: Layout, runner: Any = None) -> None:
        self.layout = layout
        self._trees: dict[str, ComponentSpec] = {}
        """Components that take all of their leaves at once, which know these."""
        trees = {spec.key: spec for chain in chains.chains for spec in chain if spec.tree is not None}
        for key, spec in trees.items():
            through = {c for c, chain in enumerate(chains.chains) if key in {x.key for x in chain}}
            members = tuple(k for k, c in enumerate(chains.of) if c in through)
            self._trees[key] = spec.tree.bound(spec, layout, members)
        self.chains = self._bound(chains.chains)
        check_groups(self.chains)
        specs = {spec.key: spec for chain in self.chains for spec in chain}
        self.runner = choose(layout, runner)
        self.scalars = ScalarResolver(layout, self.runner.host)
        self.buckets: list[Bucket] = []
        self.bucket_of: list[Bucket | None] = []
        by_kind: dict[Hashable, Bucket] = {}
        home: dict[str, int] = {}
        for k, (d, chain) in enumerate(zip(layout.dtypes, chains.of, strict=True)):
            if chain is None:
                self.bucket_of.append(None)
                continue
            split = d.complex and any(spec.statics.get("complex") == "split" for spec in self.chains[chain])
            for spec in self.chains[chain]:
                if spec.reduce and spec.scope == "tree":
                    layout.refuse_apart(home.setdefault(spec.key, k), k, spec.key)
                if spec.reduce or not spec.elementwise:
                    layout.refuse_local(k, spec.key)
            path = partial(layout.path, k)
            own = fitted_plan(self.chains[chain], d, d.complex and not split, layout.sizes[k], path)
            kind = (id(own), d, str(layout.devices[k]))
            if kind not in by_kind:
                by_kind[kind] = Bucket(own, d, split, self.runner if own.elementwise else backend("eager"))
                self.buckets.append(by_kind[kind])
            by_kind[kind].add(k, chain)
            self.bucket_of.append(by_kind[kind])
        for bucket in self.buckets:
            bucket.pick = None if len(bucket.leaves) == len(layout.leaves) else bucket.leaves
        self.scalars.mixed = self.runner.host and any(not bucket.plan.elementwise for bucket in self.buckets)
        plans = [bucket.plan for bucket in self.buckets] or [plan(chain, False) for chain in self.chains]
        self._places = places(self.chains, [bucket.specs for bucket in self.buckets])
        live = tuple(dict.fromkeys(n for own in plans for n in own.live))
        self.inputs = {n for spec in specs.values() for n in spec.inputs}
        carried = {spec.slot(n): (spec, v) for spec in specs.values() for n, v in spec.carry.items()}
        every = [*specs.values(), *(spec for own in plans for spec in own.specs)]
        self.state = StateSpec(layout, self.bucket_of, every, live, carried)
        self.state.check_dtypes()
        self.refuses = any(spec.refuses for spec in specs.values())
        self._clocks = [spec for spec in specs.values() if spec.clock]
        self.writing = Writing()
        self._constants: tuple[Any, list[list[dict[str, Any]]]] = None, []
        """Chains whose hyperparameters are numbers for ever, and these."""
        self._steady = self.runner.host and not any(
            spec.reduce or spec.carry or spec.clock or spec.gates or (spec.host and spec.scope == "leaf")
            for spec in specs.values()
        )
        """Whether all scalars of a step are made of hyperparameters and its number."""
        self._again: Again | None = None
        self.seen: _metrics.Seen | dict[str, Any] | None = None
        """The scalars of the last step, or the metrics that were made of them already."""
        self._rows: list[_metrics.Row] | None = None

    def new_carry(self) -> dict[str, Any]:
        """Make the scalars that live from step to step, before the first step."""
        return {n: self.scalars.first(spec, v) for n, (spec, v) in self.state.carried.items()}

    def resolve(self, t: Any, chains: list[tuple[ComponentSpec, ...]] | None = None) -> list[list[dict[str, Any]]]:
        """Return the hyperparameters of step ``t``, checked, component by component of every chain."""
        if chains is None and self._constants[0] is self.chains:
            return self._constants[1]
        library, host, own = self.layout.library, self.runner.host, chains is None
        chains = self.chains if chains is None else self.checked(chains)
        found = [[spec.constants or spec.resolve(t, library, host) for spec in chain] for chain in chains]
        if own and all(spec.constants is not None for chain in chains for spec in chain):
            self._constants = chains, found
        return found

    def checked(self, chains: list[tuple[ComponentSpec, ...]]) -> list[tuple[ComponentSpec, ...]]:
        """Return chains with other hyperparameters, or say which of these must be one for all groups."""
        check_groups(chains)
        return self._bound(chains)

    def _bound(self, chains: list[tuple[ComponentSpec, ...]]) -> list[tuple[ComponentSpec, ...]]:
        """Return chains whose components know the tree."""
        if not self._trees:
            return chains
        return [tuple(self._trees.get(spec.key, spec) for spec in chain) for chain in chains]

    def clocks(self, t: Any, carry: Mapping[str, Any]) -> dict[str, Any]:
        """Return which step step ``t`` is, for components by name, and under "" for all others.

        It is another one behind components that hold steps back.
        """
        if not self._clocks:
            return {"": t}
        found, t = {}, self.step(t)
        for spec in self._clocks:
            found[spec.key] = t
            own = {n: self._whole(carry[spec.slot(n)]) for n in spec.carry}
            t = spec.clock(SimpleNamespace(**spec.statics), t, own)  # type: ignore[misc]
        return {n: x.exact if isinstance(x, Count) else x for n, x in {**found, "": t}.items()}

    def _whole(self, x: Any) -> Any:
        """Return a carried number of steps."""
        if self.runner.host or isinstance(x, float):
            return int(x)
        return Count(self.layout.xp.astype(x, self.layout.xp.int32), self.scalars.wide)

    def given(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what components ask for beside the gradients, or say what is missing; all is checked."""
        for n, x in inputs.items():
            if x is None and n in self.inputs:
                raise TypeError(f"{n}: missing, but a component of this rule needs it: step(grads, {n}=...)")
        library, host = self.layout.library, self.runner.host
        found = {n: _scalars.taken(n, x, library, host) for n, x in inputs.items() if x is not None}
        return {n: x for n, x in found.items() if n in self.inputs}

    def begin(
        self,
        taken: Any,
        carry: Mapping[str, Any],
        inputs: Mapping[str, Any],
        chains: list[tuple[ComponentSpec, ...]] | None = None,
    ) -> StepInputs:
        """Return all that the step after ``taken`` ones has beside arrays, checked.

        ``inputs`` are what the caller gives by name; ``chains`` have other hyperparameters for this step only.
        """
        t = after(taken)
        clocks = self.clocks(t, carry)
        return StepInputs(t, clocks, self.resolve(clocks[""], chains), self.given(inputs) if inputs else {})

    def run(
        self,
        step: StepInputs,
        ps: list[Any],
        gs: list[Any],
        slots: dict[str, list[Any]],
        carry: dict[str, Any],
        *,
        change: bool = False,
        writing: Writing | None = None,
        memory: list[Kept] | None = None,
        where: Any = None,
    ) -> Results:
        """Take one step: the new parameters (or, with ``change``, what to add to them), slots and carry.

        In a ``writing`` block the results land in ``ps`` and ``slots`` themselves. ``memory`` has, for each bucket, its
        arenas and what its runner keeps between steps; ``where`` the addresses of the gradients, if they are known.
        Everything that can fail for what the caller gave has been checked before the first write.
        """
        if where is None and SparseRows in {*map(type, gs)}:
            rows = LazyRows(self.layout, self.bucket_of, ps, gs, slots, owned=writing is not None)
            kept = memory and rows.kept(self.buckets, memory)
            made = self.run(step, rows.ps, rows.gs, rows.slots, carry, change=change, writing=writing, memory=kept)
            return rows.spread(made, change)
        first, write = "u" if change else "p", writing is not None
        some = where is None and holes(gs)
        works = self.works(first, ps, gs, slots, memory, where, some)
        try:
            clocks, given = step.clocks, step.given
            if self._clocks or type(clocks[""]) is not int:
                clocks = {n: self.step(t) for n, t in clocks.items()}
            if step.inputs:
                given = [[{**h, **step.inputs} for h in chain] for chain in given]
            at = places(self.chains, [work.specs for work in works]) if some else self._places
            rest = Rest(ps, slots, {})
            values, carry = self.scalars.run(clocks, given, at, works, carry, rest)
            seen = _metrics.Seen(at, [work.leaves for work in works], values, self.scalars.alone)
            jobs = []
            for work, scalars in zip(works, values, strict=True):
                into = {n: work.loads[n] for n in work.outputs} if write else None
                jobs.append(work.runner.prepare(work, scalars, into))
            if memory is not None and where is not None and not step.inputs:
                self._keep(works, seen, memory)
            if writing is not None:
                writing.begin()
            try:
                found = [job() for job in jobs]
            except Exception:  # of a scalar that no one could look at before
                if writing is not None and all(work.stored == 0 for work in works):
                    writing.cancel()
                raise
        finally:
            for work in works:  # the next step may use it again, and gradients are not ours to keep
                del work.loads["g"]
                work.where = None
        self.seen = seen
        if write:
            return ps, slots, carry
        results = self._collected(first, works, found, ps, slots, carry)
        for n, (k, x) in rest.made.items():
            results[1][n][k] = x
        return results

    def metrics(self, carry: Mapping[str, Any]) -> dict[str, Any]:
        """Return the metrics of the last step, of which this is the carry, see `metrics.read`."""
        if self.seen is None:
            return {}
        if self._rows is None:
            self._rows = _metrics.rows(self.chains)
        if isinstance(self.seen, dict):
            return {row.name: self.seen[row.name] for row in self._rows}
        again = self._again
        now = again.now if again is not None and again.seen is self.seen else {}
        return _metrics.read(self._rows, self.seen, carry, self.scalars.by_leaf, now)

    def again(self, memory: Any) -> Again | None:
        """Return a step with the arrays and the hyperparameters of the last one, if there is such a thing."""
        found = self._again
        if found is not None and not (found.memory is memory and found.chains is self.chains):
            self._again = found = None
        return found

    def _keep(self, works: list[BucketStep], seen: _metrics.Seen, memory: Any) -> None:
        """Remember a step that is ready, if there is anything to be had of that."""
        if works and self._again is None and self._steady and len(self.chains) == 1:
            jobs = [work.runner.again(work, own) for work, own in zip(works, seen.values, strict=True)]
            if None not in jobs:
                self._again = Again(works, seen, jobs, [bucket.pick for bucket in self.buckets], memory, self.chains)

    def _collected(
        self,
        first: str,
        works: list[BucketStep],
        found: list[dict[str, list[Any]]],
        ps: list[Any],
        slots: dict[str, list[Any]],
        carry: dict[str, Any],
    ) -> Results:
        """Return what the buckets have made, leaf by leaf."""
        news, new_slots = list(ps), {n: list(column) for n, column in slots.items()}
        if first == "u":
            moved = {k for work in works for k in work.leaves}
            news = [None if k in moved else self.layout.xp.zeros_like(p) for k, p in enumerate(ps)]
        for work, out in zip(works, found, strict=True):
            for n, column in out.items():
                target = news if n == first else new_slots[n]
                for k, x in zip(work.leaves, column, strict=True):
                    target[k] = x
        return news, new_slots, carry

    def step(self, t: Any) -> Any:
        """Return what rules see as ``h.t``."""
        return t if isinstance(t, int | float) else Count(t, self.scalars.wide)

    def works(
        self,
        first: str,
        ps: list[Any],
        gs: list[Any],
        slots: dict[str, list[Any]],
        memory: list[Kept] | None,
        where: Any,
        holes: bool,
    ) -> list[BucketStep]:
        """Put the arrays of each bucket together, without the leaves that have no gradient."""
        works = []
        for number, bucket in enumerate(self.buckets):
            leaves, chain_of_leaf = bucket.leaves, bucket.chain_of_leaf
            arenas, cache, kept = memory[number] if memory else (None, None, None)
            pick = bucket.pick
            if holes:
                some = [j for j, k in enumerate(leaves) if gs[k] is not None]
                leaves, chain_of_leaf = [leaves[j] for j in some], [chain_of_leaf[j] for j in some]
                if len(leaves) < len(bucket.leaves):
                    arenas, cache, kept, pick = None, None, None, leaves
            work = kept[0] if kept else None
            if work is None and leaves:
                columns = {"p": ps, **{n: slots[n] for n in bucket.plan.live}}
                work = BucketStep(
                    bucket.specs, self.layout.library, self.layout.xp, bucket.dtype, bucket.split,
                    {n: _picked(x, pick) for n, x in columns.items()}, (first, *bucket.plan.changed), bucket.plan,
                    bucket.runner, leaves, self.layout.numbers, bucket.chains,
                    np.asarray(chain_of_leaf) if len(bucket.chains) > 1 else None, arenas, cache,
                )  # fmt: skip
                if kept is not None:
                    kept.append(work)
            if work is not None:
                work.loads["g"] = _picked(gs, pick)
                work.where = where if where is None or pick is None else where[leaves]
                works.append(work)
        return works


def _picked(column: list[Any], leaves: list[int] | None) -> list[Any]:
    return column if leaves is None else [column[k] for k in leaves]
