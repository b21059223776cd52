"""An optimizer of many processes: :class:`xopt.Optimizer` with ``comm``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import numpy as np

from xopt import _arrays
from xopt._arrays.layout import AliasGuard, Layout
from xopt._arrays.rows import SparseRows
from xopt._arrays.transfer import to_host
from xopt._arrays.tree import holes
from xopt._engine import buffers as _buffers
from xopt._engine import curvature as _curvature
from xopt._engine.eval_params import evaluated
from xopt._engine.exclusive import Writing
from xopt._engine.executor import Executor, StepInputs
from xopt._engine.metrics import Row, Seen, rows, shaped
from xopt._engine.program.algebra import Value
from xopt._engine.program.contract import Chains
from xopt._engine.program.summation import CHUNK, ordered
from xopt._sharded_saving import SavedTogether
from xopt.checkpoint import _snapshot as _snapshot
from xopt.distributed._exchange import Exchange, LocalGradient
from xopt.distributed._ranks import Ranks, digest_of
from xopt.distributed._shards import (
    Parts,
    Shard,
    Shards,
    check_library,
    check_options,
    contents,
    contiguous,
    forms,
    view,
)
from xopt.distributed._sums import RankResolver
from xopt.rule import FunctionalOptimizer, State
from xopt.rule._metrics import measured


class AgreedWriting(Writing):
    """A block that writes on all ranks or on none: what stops one before the first write stops all."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self._ranks = ranks

    def begin(self) -> None:
        """Say that the first write comes now, when all ranks are as far."""
        if not self.alone:
            self._ranks.agree()
        super().begin()

    def cancel(self) -> None:
        """Take nothing back: other ranks may have written."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None or self.alone:
            super().__exit__(kind, error, trace)
            if error is not None and not self.alone:
                self._ranks.tell(error)
        elif self._begun:  # torn until all ranks have written
            self._ranks.agree()
            self.torn = False


class ShardedOptimizer(SavedTogether):
    """An optimizer of which each rank has a part of the state, see :class:`Optimizer`.

    Its own arrays are those of :attr:`_layout`: the units of this rank, or, if each rank owns its parameters, these.
    """

    def __init__(
        self,
        params: Any,
        rule: FunctionalOptimizer,
        *,
        comm: Any,
        total: str = "sum",
        owned: bool = False,
        parts: int | None = None,
        **options: Any,
    ) -> None:
        self._ranks = Ranks(comm)
        self._mean, self._owned, self._parts = total == "mean", owned, parts
        with self._ranks:
            check_options(total, owned)
            if parts is not None:
                self._check_parts(parts)
            super().__init__(params, rule, **options)
            said = {} if owned else contents(self._whole)
        self._ranks.agree()
        self._ranks.same(self._said(total, parts))
        self._ranks.same(said)
        if owned:
            self._number_elements()

    def _check_parts(self, parts: int) -> None:
        size = self._ranks.size
        if isinstance(parts, bool) or not isinstance(parts, int) or parts < 1 or parts % size:
            raise ValueError(f"parts: {parts!r}, but it must be a multiple of the number of ranks, {size}")
        if self._owned:
            raise ValueError("parts: what each rank owns has one gradient; there is nothing to add up")

    def _said(self, total: str, parts: int | None) -> dict[str, Any]:
        """Return what must be the same on all ranks."""
        layout, rule = self._whole, _snapshot.described(self._rule)
        names = [layout.path(k) for k in range(len(layout.leaves))]
        return {
            "total": total, "owned": self._owned, "parts": parts, "library": layout.library.name,
            "runner": self._executor.runner.name, "number of parameters": len(names),
            **forms(layout, self._owned),
            **{f"{n}: order": order for n, order in zip(names, self._orders(), strict=True)},
            "metrics": [*self._asked], "rule": ", ".join(f"{x['place']} {x['rule']}" for x in rule),
            **{x["place"]: {**x["static"], **x["hyper"]} for x in rule},
        }  # fmt: skip

    def _orders(self) -> list[str]:
        """Say of each parameter in which order its elements are, where that decides on how it is cut."""
        whole, free = self._whole, self._owned
        large = [b is not None and n > CHUNK // 2 for b, n in zip(self._all.bucket_of, whole.sizes, strict=True)]
        return ["any" if free or not x else "C" if contiguous(whole, k) else "not C" for k, x in enumerate(large)]

    def _number_elements(self) -> None:
        """Count the elements of what each rank owns one rank after the other, so that their noise differs."""
        own = [-(-size // CHUNK) for size in self._whole.sizes]
        every = self._ranks.every(np.asarray(own, np.int64))
        self._whole.starts = (every[: self._ranks.rank].sum(axis=0) * CHUNK).tolist()

    # --- what the arrays are

    def _ready(self, params: Any, runner: Any) -> Executor:
        whole = (Parts if self._owned else Layout)(params, writable=True)
        self._whole = whole
        check_library(whole)
        chains = self._full_chains(self._rule)
        full, self._of = Executor(chains, whole, runner), chains.of
        for k, bucket in enumerate(full.bucket_of):
            trees = [spec.key for spec in bucket.specs if spec.tree is not None] if bucket else []
            if trees:
                raise TypeError(f"{trees[0]}: it takes the arrays of a whole tree, which no rank has")
            if self._owned and bucket is not None and not bucket.plan.elementwise:
                keys = [spec.key for spec in bucket.specs if not spec.elementwise]
                raise TypeError(
                    f"{whole.path(k)}: {keys[0]} takes whole arrays, but owned=True says that this is a part"
                )
        self._all, self._shards = full, Shards.of_chains(full, self._ranks.size, self._owned)
        mixed = full.scalars.mixed
        if self._owned:
            self._layout, executor = whole, full
        else:
            self._layout = Shard(whole, self._shards.of[self._ranks.rank])
            executor = Executor(self._chains(self._rule), self._layout, full.runner)
        executor.scalars = RankResolver(self._layout, executor.runner.host, whole, self._shards, self._ranks)
        executor.scalars.mixed = mixed
        executor.writing = AgreedWriting(self._ranks)
        return executor

    def _full_chains(self, rule: FunctionalOptimizer) -> Chains:
        return measured(rule._chains(self._whole), self._asked)

    def _chains(self, rule: FunctionalOptimizer) -> Chains:
        full = self._full_chains(rule)
        return self._layout.chains(full) if isinstance(self._layout, Shard) else full

    def _begin(self, rule: FunctionalOptimizer, params: Any, runner: Any) -> None:
        super()._begin(rule, params, runner)
        self._outer = self._guard if self._owned else AliasGuard(self._whole, [], self._executor.runner.inspector)
        self._bind()

    def _bind(self) -> None:
        """Find what is sent and received."""
        self._exchange = Exchange(self._ranks.comm, self._whole, self._shards, self._executor.runner.copy)
        layout, units = self._layout, self._shards.of[self._ranks.rank]
        shapes = [] if self._owned else zip(units, layout.shapes, strict=True)
        self._local = [self._exchange.own(u.leaf, u.at, u.stop - u.start).reshape(shape) for u, shape in shapes]
        self._outer.moved = False

    def _moved(self) -> None:
        """Go on with parameters that have other memory."""
        assert isinstance(self._layout, Shard)
        for k in {u.leaf for u in self._shards.units if u.stop - u.start < self._whole.sizes[u.leaf]}:
            if not contiguous(self._whole, k):
                raise ValueError(
                    f"{self._whole.path(k)}: not in C order now, as it was when the optimizer was made and cut it; "
                    f"assign p.data = x.contiguous()"
                )
        self._layout.look()
        self._exchange.forget()
        held = _buffers.arrays(self._executor, self._slots, self._memory)
        self._guard = AliasGuard(self._layout, held, self._executor.runner.inspector)
        self._forget()
        self._outer.moved = False

    def _fit(self, what: str, torn: bool = False) -> None:
        self._ranks.begin()
        self._executor.writing.alone = False
        try:
            super()._fit(what, torn)
        except BaseException as error:
            if not (self._owned and what in ("state_dict", "eval_params", "averaged")):  # these talk to nobody
                self._ranks.tell(error)
            raise

    # --- a step

    def _step(self, grads: Any, value: Any, overrides: dict[str, Any]) -> Any:
        ranks, writing = self._ranks, self._executor.writing
        with ranks:
            parts = self._given(grads)
            inputs = {"value": value} if value is not None or self._executor.inputs else {}
            chains = self._chains(self._rule._with(overrides)).chains if overrides else None
            step = self._executor.begin(self._taken, self._carry, inputs, chains)
            own = step.inputs.get("value")
            value = None if own is None else float(own if isinstance(own, float) else to_host(own))
            some = any(holes(part.arrays) for part in parts)
            digest = digest_of(repr(self._numbers(step)))
        missing = ranks.agree(None, digest, int(some), lambda: {"step": self._taken + 1, **self._named(step)})
        self._has = has = self._with_gradients(parts) if missing else None
        if value is not None:
            value = ordered(ranks.every(np.asarray([value]))[:, 0].tolist())
            value = value / (self._parts or ranks.size) if self._mean else value
            step = step._replace(inputs=self._executor.given({"value": value}))
        self._begun, writing.entered = step, False
        try:
            gs, where = self._guard.gradients(self._reduced(parts, has))
            if self._guard.moved:
                self._forget()
            self._take(step, gs, where)
        except BaseException as error:
            if not writing.entered:
                ranks.tell(error)
            raise
        if not self._owned:
            writing.torn = True
            self._exchange.spread(self._whole.leaves)
            self._whole.library.written(self._whole.leaves)
            writing.torn = False
        return self._tree

    def _observe(self, curvature: Any) -> None:
        """Take estimates of all ranks, which are sent as gradients are."""
        ranks, writing = self._ranks, self._executor.writing
        with ranks:
            each = curvature if self._parts is not None and isinstance(curvature, list | tuple) else [curvature]
            trees = [self._whole.tree(_curvature.as_gradients(self._all, x)) for x in each]
            parts = self._given(trees[0] if self._parts is None else trees)
            some = any(holes(part.arrays) for part in parts)
        missing = ranks.agree(None, digest_of(repr(self._taken)), int(some), lambda: {"step": self._taken + 1})
        has, writing.entered = self._with_gradients(parts) if missing else None, False
        try:
            found = self._reduced(parts, has)
            found = self._layout.spec.flatten_up_to(found) if self._owned else found
            self._take_curvature(_curvature.of_gradients(self._executor, found))
        except BaseException as error:
            if not writing.entered:
                ranks.tell(error)
            raise

    def _given(self, grads: Any) -> list[LocalGradient]:
        """Return the gradients that this rank has: one, or one for each of its parts."""
        many = 1 if self._parts is None else self._parts // self._ranks.size
        if self._parts is None:
            each = [grads]
        elif isinstance(grads, list | tuple) and len(grads) == many:
            each = [*grads]
        else:
            what = f"{len(grads)} of them" if isinstance(grads, list | tuple) else f"a {type(grads).__name__}"
            raise ValueError(f"grads: {what}, but with parts={self._parts} each rank has a list of {many}")
        if self._owned:
            return [LocalGradient(self._checked(x)[0]) for x in each]
        found = [self._exchange.vectors(*self._checked(x)) for x in each]
        if self._outer.moved:
            self._moved()
        return found

    def _checked(self, grads: Any) -> tuple[list[Any], Any]:
        """Return a gradient leaf by leaf, and the addresses; refuse rows, of which each rank would have others."""
        found, where = self._outer.gradients(grads)
        for k, g in enumerate(found):
            if isinstance(g, SparseRows):
                path = self._whole.path(k, "grads")
                raise TypeError(f"{path}: SparseRows with lazy=True, which comm= cannot add up; use lazy=False")
        return found, where

    def _with_gradients(self, parts: list[LocalGradient]) -> list[bool]:
        """Say of each parameter whether any rank has a gradient for it."""
        own = [any(part.arrays[k] is not None for part in parts) for k in range(len(self._whole.leaves))]
        found: list[bool] = (self._ranks.comm.largest(np.asarray(own, np.int64)) > 0).tolist()
        return found

    def _reduced(self, parts: list[LocalGradient], has: list[bool] | None) -> Any:
        """Return the gradients of what this rank owns, of all ranks; ``has`` is None where there is one for each."""
        if not self._owned:
            self._exchange.reduce(parts, self._mean)
            if has is None:
                return self._local
            return [g if has[k] else None for g, k in zip(self._local, self._layout.numbers, strict=True)]
        xp, gs = self._whole.xp, parts[0].arrays
        found = [
            xp.zeros_like(_arrays.detached(p)) if g is None and has is not None and has[k] else g
            for k, (p, g) in enumerate(zip(self._whole.leaves, gs, strict=True))
        ]
        return self._whole.tree(found)

    def _hypers(self, step: StepInputs) -> Iterator[tuple[int, str, str, float]]:
        """Yield the hyperparameters of a step that are numbers: chain, component, name and number of each."""
        for c, (chain, hs) in enumerate(zip(self._executor.chains, step.given, strict=True)):
            for spec, h in zip(chain, hs, strict=True):
                for n, x in h.items():
                    if isinstance(x, int | float):
                        yield c, spec.key, n, x
                    elif hasattr(x, "dtype") and x.ndim == 0 and str(_arrays.device(x)) in ("None", "cpu"):
                        yield c, spec.key, n, float(to_host(x))  # others would wait for the device

    def _named(self, step: StepInputs) -> dict[str, float]:
        """Return the hyperparameters of a step that are numbers, by name."""
        found = {f"{key}.{n}" + f" of group {c}" * (c > 0): x for c, key, n, x in self._hypers(step)}
        return {**found, "value given": float("value" in step.inputs)}

    def _numbers(self, step: StepInputs) -> tuple[Any, ...]:
        """Return what must be the same on all ranks."""
        return self._taken, "value" in step.inputs, *(x for *_, x in self._hypers(step))

    # --- what is known of all ranks

    @property
    def rank(self) -> int:
        """Which of the processes this is, from 0 on."""
        return self._ranks.rank

    @property
    def state(self) -> State:
        """The state, where each rank has its own; of shards there is none: see :meth:`state_dict` and :meth:`save`."""
        if not self._owned:
            raise RuntimeError("state: each rank has a part of it; state_dict() and save() put it together")
        return super().state

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics of the last step; what each parameter has its own of is NaN where another rank has it."""
        if self._owned:
            return super().metrics
        executor = self._executor
        if isinstance(executor.seen, Seen):
            known = {n: h for n, h in executor.seen.alone.items() if n in self._stepped()}
            executor.seen = executor.seen._replace(alone=known)
        carry = dict(self._carry)
        for n, (spec, _) in executor.state.carried.items():
            if spec.scope == "leaf":
                carry[n] = executor.scalars.by_leaf([(Value(carry[n]), [*range(len(self._layout.leaves))])])
        found = executor.metrics(carry)
        return shaped({**found, **self._of_groups(found)}, self._whole)

    def _of_groups(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Return hyperparameters in which groups differ, for each parameter; a rank may have but one of the groups."""
        made, has = {}, self._has or [True] * len(self._of)
        for row in rows(self._executor.chains) if found else []:
            each = [self._hyper(row, c) for c in range(len(self._executor.chains))]
            values = {x for x in each if x is not None}
            if len(values) > 1:
                own = [None if c is None or not ok else each[c] for c, ok in zip(self._of, has, strict=True)]
                made[row.name] = np.asarray([math.nan if x is None else x for x in own], np.float64)
        return made

    def _hyper(self, row: Row, c: int) -> float | None:
        """Return a hyperparameter of the last step for a chain, if it is a number."""
        pairs: Any = zip(self._executor.chains[c], self._begun.given[c], strict=True)
        found = next((h.get(row.field) for spec, h in pairs if spec.key == row.key), None)
        return found if isinstance(found, int | float) else None

    def _of_units(self, x: Any) -> Any:
        numbers, xp = [*self._layout.numbers], self._layout.xp
        if isinstance(x, np.ndarray):
            return x[numbers]
        return xp.take(x, xp.asarray(np.asarray(numbers, np.int32), **_arrays.beside(x)), axis=0)

    def _stepped(self) -> set[str]:
        """Return the components that some parameter of any rank went through in the last step."""
        every = zip(self._all.bucket_of, self._has or [True] * len(self._whole.leaves), strict=True)
        return {spec.key for bucket, has in every if bucket is not None and has for spec in bucket.specs}

    def _averages(self) -> Any:
        """Return the parameters to evaluate, on all ranks."""
        if self._owned:
            return super()._averages()
        layout = self._whole
        with self._ranks:
            self._outer.look()
            if self._outer.moved:
                self._moved()
            slots = {n: self._layout.tree(column) for n, column in self._slots.items()}
            found = evaluated(self._executor, State(self._taken, slots, self._carry))
            made = [layout.xp.asarray(_arrays.detached(p), copy=True) for p in layout.leaves]
            new = [view(layout, made, u) for u in self._shards.of[self.rank]]
            layout.library.overwrite(new, found)
        self._ranks.agree()
        self._exchange.spread(made)
        return layout.params(made)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("an Optimizer with comm= cannot be copied or pickled: use save and load, or state_dict")

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, rank {self.rank} of {self._ranks.size})"
