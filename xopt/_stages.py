"""One step of a chain over a tree: programs, validation, scalars, and the choice of a runner.

A chain is cut where something must be summed over a leaf or over the tree. Everything else is one elementwise body:
what stands before a sum is recomputed from the same loads rather than kept in memory.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Hashable
from types import SimpleNamespace
from typing import Any

import numpy as np

from xopt import _arrays, _scalars, _trace, _tree
from xopt._choice import choose
from xopt._layout import Layout
from xopt._pieces import Column, Piece, Values, Work, compose, scalar_name


class _Recorded:
    """What a rule sees as ``h`` while it is recorded: static fields as they are, all else as symbols."""

    def __init__(self, piece: Piece, place: int, extra: tuple[str, ...], used: dict[str, None]) -> None:
        self._piece, self._place, self._used = piece, place, used
        self._names = {"t", *piece.hypers, *piece.carry, *extra}

    def __getattr__(self, name: str) -> Any:
        if name in self._piece.statics:
            return self._piece.statics[name]
        if name not in self._names:
            known = ", ".join(sorted({*self._names, *self._piece.statics}))
            raise AttributeError(f"{self._piece.place} has no hyperparameter {name!r}; it has {known}")
        self._used[scalar_name(name, self._place)] = None
        return _trace.Scalar(scalar_name(name, self._place))


class Plan:
    """The programs of a chain for real or for complex parameters."""

    def __init__(self, pieces: tuple[Piece, ...], complex: bool) -> None:
        self.pieces = pieces
        self.kind = first = _trace.COMPLEX if complex else _trace.REAL
        slots = {piece.slot(n): value for piece in pieces for n, value in piece.slots.items()}
        kinds = {n: first if value == "p" else _trace.REAL for n, value in slots.items()}
        while True:  # a slot is complex only if a complex value reaches it: least fixed point
            tape, used, loads, u, new = self._record(first, kinds)
            for name, x in new.items():
                if not isinstance(x, _trace.Symbol) or x.kind == _trace.BOOL:
                    raise TypeError(
                        f"{name}: update returned {_kind(x)}; state must be an array of numbers, like m * 0"
                    )
            if not isinstance(u, _trace.Symbol) or u.kind == _trace.BOOL:
                raise TypeError(f"{pieces[-1].place}: update returned {_kind(u)} as the step; it must be an array")
            if not complex and u.kind == _trace.COMPLEX:
                raise TypeError(f"{pieces[-1].place}: update made a complex step of real arrays")
            wider = {n for n, x in new.items() if x.kind != kinds[n] and kinds[n] == _trace.REAL}
            if not wider:
                break
            kinds |= dict.fromkeys(wider, _trace.COMPLEX)
        p = loads["p"]
        self.live = tuple(n for n in slots if not tape.idle(loads[n], list(new.values()), new[n]))
        """Slots that are read or changed; the others are not allocated."""
        self.kinds = {n: kinds[n] for n in self.live}
        self._tape, self._used = tape, list(used)
        self._outputs = {"p": p + u, "u": u, **new}
        self._bodies: dict[tuple[str, ...], _trace.Program] = {}
        self.sums = {i: self._sum(i, first, kinds) for i, piece in enumerate(pieces) if piece.reduce}

    def body(self, outputs: tuple[str, ...]) -> _trace.Program:
        """Return the program that computes these outputs: ``p`` or ``u``, and the live slots."""
        if outputs not in self._bodies:
            self._bodies[outputs] = self._tape.finish({n: self._outputs[n] for n in outputs}, self._used)
        return self._bodies[outputs]

    def _start(
        self, first: str, kinds: dict[str, str]
    ) -> tuple[_trace.Tape, dict[str, None], dict[str, Any], list[Any]]:
        tape, used = _trace.Tape(any(piece.inexact for piece in self.pieces)), dict[str, None]()
        loads: dict[str, Any] = {"p": tape.load("p", first), "g": tape.load("g", first)}
        loads |= {name: tape.load(name, kind) for name, kind in kinds.items()}
        hs = [_Recorded(piece, i, _extra(piece), used) for i, piece in enumerate(self.pieces)]
        return tape, used, loads, hs

    def _record(
        self, first: str, kinds: dict[str, str]
    ) -> tuple[Any, dict[str, None], dict[str, Any], Any, dict[str, Any]]:
        tape, used, loads, hs = self._start(first, kinds)
        u, new = compose(self.pieces, hs, tape, loads["p"], loads["g"], loads)
        return tape, used, loads, u, new

    def _sum(self, place: int, first: str, kinds: dict[str, str]) -> _trace.Program:
        tape, used, loads, hs = self._start(first, kinds)
        _, terms = compose(self.pieces, hs, tape, loads["p"], loads["g"], loads, reduce_at=place)
        for name, x in terms.items():
            if not isinstance(x, _trace.Symbol) or x.kind != _trace.REAL:
                raise TypeError(
                    f"{self.pieces[place].place}: reduce must return real arrays to sum; {name!r} is {_kind(x)}"
                )
        return tape.finish(terms, list(used))


def _kind(x: Any) -> str:
    return f"a {x.kind} array" if isinstance(x, _trace.Symbol) else f"a {type(x).__name__}"


def _extra(piece: Piece) -> tuple[str, ...]:
    """Name what ``reduce`` and ``host`` add to ``h``, found by calling them once."""
    names: tuple[str, ...] = ()
    if piece.reduce:
        tape, probe = _trace.Tape(piece.inexact), _Recorded(piece, 0, (), {})
        slots = {n: tape.load(n, _trace.REAL) for n in piece.slots}
        names = tuple(piece.reduce(probe, tape, tape.load("p", _trace.REAL), tape.load("g", _trace.REAL), **slots))
    if piece.host:
        hypers = piece.resolve(1, "numpy", read=True)
        leaf = piece.scope == "leaf" and names
        sums: Any = np.ones(2) if leaf else 1.0
        h = {**piece.statics, **hypers, **piece.carry, **dict.fromkeys(names, sums), "t": 1}
        try:
            names += tuple(_host_scalars(piece, h))
        except (TypeError, ValueError) as error:
            if not leaf:
                raise
            raise TypeError(
                f"{piece.place}: host is given vectors, with a value a leaf, and could not compute with them: {error}; "
                f"use xp.where, not if"
            ) from error
    clash = {*names} & {"t", *piece.hypers, *piece.statics}
    if clash:
        raise TypeError(
            f"{piece.place}: reduce or host returns {sorted(clash)}, which are names of its hyperparameters"
        )
    return names


def _namespace(values: Any) -> Any:
    return SimpleNamespace(**values)


_plans: dict[Hashable, Plan] = {}


def plan(pieces: tuple[Piece, ...], complex: bool) -> Plan:
    """Return the programs of a chain; a chain of the same classes and static fields is recorded once."""
    key = (tuple((piece.place, piece.key, tuple(piece.hypers)) for piece in pieces), complex)
    if key not in _plans:
        if len(_plans) >= 512:
            _plans.clear()
        _plans[key] = Plan(pieces, complex)
    return _plans[key]


class Batch:
    """Leaves of one dtype on one device, which are computed alike."""

    def __init__(self, plan: Plan, dtype: _arrays.DType, split: bool) -> None:
        self.plan, self.dtype, self.split = plan, dtype, split
        self.leaves: list[int] = []


class Stages:
    """A chain made ready for the parameters of one tree."""

    def __init__(self, pieces: tuple[Piece, ...], layout: Layout, runner: Any = None) -> None:
        self.layout = layout
        self.split = any(piece.statics.get("complex") == "split" for piece in pieces)
        self.runner = choose(layout, runner)
        self.batches: list[Batch] = []
        self.batch_of: list[Batch] = []
        by_kind: dict[Hashable, Batch] = {}
        for k, d in enumerate(layout.dtypes):
            kind = (d, str(layout.devices[k]))
            if kind not in by_kind:
                split = d.complex and self.split
                by_kind[kind] = Batch(plan(pieces, d.complex and not split), d, split)
                self.batches.append(by_kind[kind])
            by_kind[kind].leaves.append(k)
            self.batch_of.append(by_kind[kind])
        self.plan = self.batches[0].plan if self.batches else plan(pieces, False)
        self.live = self.plan.live
        self.pieces = pieces
        self.carried = {piece.slot(n): v for piece in pieces for n, v in piece.carry.items()}
        self.first = {piece.slot(n): v for piece in pieces for n, v in piece.slots.items()}

    def slot_dtype(self, name: str, k: int) -> str:
        """Name the dtype of a slot of parameter ``k``: that of its arithmetic."""
        d = self.layout.dtypes[k]
        if not d.complex:
            return d.real
        return d.compute if self.split or self.batch_of[k].plan.kinds[name] == _trace.COMPLEX else d.real

    def new_slots(self) -> dict[str, list[Any]]:
        """Make the state before the first step."""
        xp, library = self.layout.xp, self.layout.library
        made: dict[str, list[Any]] = {}
        for name in self.live:
            column = []
            for k, p in enumerate(self.layout.leaves):
                dtype = self.slot_dtype(name, k)
                first = self.first_value(name, k)
                if first is p:
                    column.append(_arrays.copied(xp, library, p, dtype))
                else:
                    column.append(_arrays.full_like(xp, library, p, dtype, first))
            made[name] = column
        return made

    def first_value(self, name: str, k: int) -> Any:
        """Return the first value of a slot of parameter ``k``: a number, or the parameter itself.

        Of a split complex one, both parts have the number.
        """
        value: Any = self.first[name]
        if value == "p":
            return self.layout.leaves[k]
        return complex(value, value) if self.split and self.layout.dtypes[k].complex else value

    def new_carry(self) -> dict[str, Any]:
        """Make the scalars that live from step to step, before the first step."""
        return {n: self._carried(v) for n, v in self.carried.items()}

    def new_step(self) -> Any:
        """Return the number of steps taken: a Python int, on JAX an int32 array, so that a jitted step traces once."""
        return self.layout.xp.asarray(0, dtype=self.layout.xp.int32) if self.layout.library == "jax" else 0

    def _carried(self, x: Any) -> Any:
        return self.layout.xp.asarray(x, dtype=self._scalar_dtype()) if self.layout.library == "jax" else x

    def _scalar_dtype(self) -> Any:
        reals = {d.real for d in self.layout.dtypes}
        return getattr(self.layout.xp, "float64" if "float64" in reals else "float32")

    def check_state(self, state: Any) -> dict[str, list[Any]]:
        """Return the slots of a state leaf by leaf, or say what does not fit this chain and these parameters."""
        for field in ("step", "slots", "carry"):
            if not hasattr(state, field):
                raise TypeError(f"state: a {type(state).__name__}, but rule.init returns a State")
        _same_keys("state.slots", state.slots, self.live)
        _same_keys("state.carry", state.carry, self.carried)
        step = state.step
        traced = self.layout.library == "jax" and getattr(step, "shape", None) == () and "int" in str(step.dtype)
        if isinstance(step, bool) or not (isinstance(step, int) or traced):
            raise TypeError(f"state.step: {step!r}, but the number of steps taken is an int")
        if isinstance(step, int) and step < 0:
            raise ValueError(f"state.step: {step}, but the number of steps taken is at least 0")
        found = {}
        for name in self.live:
            path = f'state.slots["{name}"]'
            column = _tree.match(self.layout.spec, state.slots[name], path)
            for k, x in enumerate(column):
                self.layout.same(path, k, x, self._slot_dtype_object(name, k))
            found[name] = column
        return found

    def _slot_dtype_object(self, name: str, k: int) -> Any:
        kind = getattr(self.layout.xp, self.slot_dtype(name, k))
        return np.dtype(kind) if isinstance(kind, type) else kind

    def resolve(self, t: Any, pieces: tuple[Piece, ...] | None = None) -> list[dict[str, Any]]:
        """Return the hyperparameters of step ``t``, checked, piece by piece."""
        if not isinstance(t, int):
            t = self.layout.xp.astype(t, self._scalar_dtype())
        library, host = self.layout.library, self.runner.host
        return [piece.constants or piece.resolve(t, library, host) for piece in pieces or self.pieces]

    def run(
        self,
        t: Any,
        given: list[dict[str, Any]],
        ps: list[Any],
        gs: list[Any],
        slots: dict[str, list[Any]],
        carry: dict[str, Any],
        *,
        change: bool = False,
        write: bool = False,
        memory: list[tuple[dict[str, Any], dict[str, Any]]] | None = None,
        where: Any = None,
    ) -> tuple[list[Any], dict[str, list[Any]], dict[str, Any]]:
        """Take one step: the new parameters (or, with ``change``, what to add to them), slots and carry.

        With ``write`` the results land in ``ps`` and ``slots`` themselves. ``memory`` has, for each batch, its arenas
        and what its runner keeps between steps; ``where`` the addresses of the gradients, if they are known. Everything
        that can fail for what the caller gave has been checked before the first write.
        """
        first = "u" if change else "p"
        works = self._works(first, ps, gs, slots, memory, where)
        try:
            values, carry = self._scalars(t, given, works, carry)
            jobs = []
            for (_, work), scalars in zip(works, values, strict=False):
                into = {n: work.loads[n] for n in work.outputs} if write else None
                jobs.append(self.runner.prepare(work, scalars, into))
            found = [job() for job in jobs]
        finally:
            for _, work in works:  # the next step may use it again, and gradients are not ours to keep
                del work.loads["g"]
                work.where = None
        if write:
            return ps, slots, carry
        news, new_slots = list(ps), {n: list(column) for n, column in slots.items()}
        if change:
            news = [self.layout.xp.zeros_like(p) if g is None else None for p, g in zip(ps, gs, strict=True)]
        for (leaves, _), out in zip(works, found, strict=True):
            for n, column in out.items():
                target = news if n == first else new_slots[n]
                for k, x in zip(leaves, column, strict=True):
                    target[k] = x
        return news, new_slots, carry

    def _works(
        self,
        first: str,
        ps: list[Any],
        gs: list[Any],
        slots: dict[str, list[Any]],
        memory: list[tuple[dict[str, Any], dict[Any, Any]]] | None,
        where: Any,
    ) -> list[tuple[list[int], Work]]:
        """Put the arrays of each batch together, without the leaves that have no gradient."""
        works = []
        holes = where is None and any(map(operator.is_, gs, itertools.repeat(None)))
        for number, batch in enumerate(self.batches):
            leaves = [k for k in batch.leaves if gs[k] is not None] if holes else batch.leaves
            whole = len(leaves) == len(batch.leaves)
            arenas, kept = memory[number] if memory and whole else (None, None)
            pick = None if len(leaves) == len(ps) else leaves
            work = kept.get("work") if kept else None
            if work is not None:
                work.pieces = self.pieces
            elif leaves:
                columns = {"p": ps, **{n: slots[n] for n in self.live}}
                work = Work(
                    self.pieces, self.layout.library, self.layout.xp, batch.dtype, batch.split,
                    {n: _picked(x, pick) for n, x in columns.items()}, (first, *self.live), batch.plan, arenas, kept,
                )  # fmt: skip
                if kept is not None:
                    kept["work"] = work
            else:
                continue
            work.loads["g"] = _picked(gs, pick)
            work.where = where if where is None or pick is None else where[leaves]
            works.append((leaves, work))
        return works

    def _scalars(
        self, t: Any, given: list[dict[str, Any]], works: list[tuple[list[int], Work]], carry: dict[str, Any]
    ) -> tuple[list[Values], dict[str, Any]]:
        """Compute the scalars of a step, for each work, in the order of the chain; sums read the tree."""
        values, carry = [Values([]) for _ in range(max(1, len(works)))], dict(carry)
        step = t if isinstance(t, int | float) else _scalars.Step(self.layout.xp.astype(t, self._scalar_dtype()))
        for i, piece in enumerate(self.pieces):
            h = {**piece.statics, **given[i], "t": step}
            for n in piece.carry:  # the state may come from a step of another runner
                h[n] = float(carry[piece.slot(n)]) if self.runner.host else carry[piece.slot(n)]
            for own in values:
                own.pieces.append(dict(h))
            if piece.reduce:
                found = [self.runner.sums(work, own, i) for (_, work), own in zip(works, values, strict=False)]
                for n in self.plan.sums[i].outputs:
                    if piece.scope == "tree":
                        total = self._total([leaves for leaves, _ in works], [sums[n] for sums in found])
                        for own in values:
                            own.pieces[i][n] = total
                    else:
                        for own, sums in zip(values, found, strict=False):
                            own.pieces[i][n], own.by_leaf = Column(sums[n]), True
            if piece.host and piece.scope == "leaf":
                for own in values[: len(works)]:
                    own.pieces[i] |= _host_by_leaf(piece, own.pieces[i])
            elif piece.host:
                more = _host_scalars(piece, values[0].pieces[i])
                for n in piece.carry:
                    if n in more:
                        carry[piece.slot(n)] = self._carried(more[n])
                for own in values:
                    own.pieces[i] |= more
        return values, carry

    def _total(self, leaves: list[list[int]], columns: list[Any]) -> Any:
        """Sum over the tree, in the order of its leaves."""
        if not columns:
            return 0.0
        if len(columns) == 1:
            return self.runner.total(self.layout.xp, columns[0])
        order = np.argsort([k for own in leaves for k in own])
        if self.runner.host or self.layout.library == "numpy":
            return self.runner.total(self.layout.xp, np.concatenate(columns)[order])
        xp, dev = self.layout.xp, _arrays.device(columns[0])
        places = xp.asarray(order) if dev is None else xp.asarray(order, device=dev)
        return self.runner.total(xp, xp.take(xp.concat(columns), places, axis=0))


def _picked(column: list[Any], leaves: list[int] | None) -> list[Any]:
    return column if leaves is None else [column[k] for k in leaves]


def _host_by_leaf(piece: Piece, h: dict[str, Any]) -> dict[str, Any]:
    """Compute the scalars of a piece for all leaves at once."""
    plain = {n: x.vector if type(x) is Column else x for n, x in h.items()}
    with np.errstate(all="ignore"):
        found = _host_scalars(piece, plain)
    return {n: Column(x) if getattr(x, "ndim", 0) else x for n, x in found.items()}


def _host_scalars(piece: Piece, h: dict[str, Any]) -> dict[str, Any]:
    numbers = [x for x in h.values() if isinstance(x, _scalars.Step) or hasattr(x, "dtype")]
    numbers.sort(key=lambda x: -getattr(x, "ndim", 0))  # a vector lifts numbers to vectors
    found: dict[str, Any] = piece.host(_namespace(h), _scalars.space(*numbers))  # type: ignore[misc]
    return found


def _same_keys(path: str, got: Any, want: Any) -> None:
    if not isinstance(got, dict):
        raise TypeError(f"{path}: a {type(got).__name__}, but it must be a dict")
    if {*got} != {*want}:
        raise ValueError(
            f"{path}: {sorted(got)}, but this rule keeps {sorted(want)}; "
            f"the state belongs to another rule or to other options"
        )
