"""The programs of a chain: recorded once for each choice of classes, static fields and kind of parameter.

A chain is cut where something must be summed over a leaf or over the tree. Everything else is one elementwise body:
what stands before a sum is recomputed from the same loads rather than kept in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from types import SimpleNamespace
from typing import Any

from xopt._engine.program import trace as _trace
from xopt._engine.program.compose import LeafUpdate, compose
from xopt._engine.program.contract import ComponentSpec
from xopt._engine.program.hooks import Recorded, extra, terms


class Plan:
    """The programs of a chain for real or for complex parameters."""

    def __init__(self, specs: tuple[ComponentSpec, ...], complex: bool) -> None:
        self.specs = specs
        self.live: tuple[str, ...]
        """Slots that are read or changed; the others are not allocated."""
        self.changed: tuple[str, ...]
        """Those that may come back as something else."""
        self.kinds: dict[str, str]
        self.kind = first = _trace.COMPLEX if complex else _trace.REAL
        self.terms = {i: terms(spec) for i, spec in enumerate(specs) if spec.reduce}
        """For each component that reduces, the names of its sums."""
        self.codes: dict[str, str] = next((spec.statics.get("codes", {}) for spec in specs if spec.storage), {})
        """Slots that are kept in 8 bits, and how."""
        self.elementwise = all(spec.elementwise for spec in specs)
        """Whether some component computes with whole arrays: then nothing is recorded, and the eager runner serves."""
        if not self.elementwise:
            ends = tuple(spec for spec in specs if spec.storage or (spec.on_params and spec.elementwise))
            if any("error" in x.slots for x in ends if x.storage and not self.codes) and len(ends) < len(specs):
                plan(ends, complex)  # raises where they do not go together
            apart = [plan((spec,), complex) for spec in specs if spec.elementwise and not (spec.storage and self.codes)]
            self.live = tuple(
                spec.slot(n)
                for spec in specs
                for n in spec.slots
                if (not spec.elementwise and spec.slots[n] is not None)
                or (spec.storage and self.codes)
                or any(spec.slot(n) in own.live for own in apart)
            )
            self.kinds = {n: kind for own in apart for n, kind in own.kinds.items()}
            self.changed = self.live
            return
        slots = {spec.slot(n): value for spec in specs for n, value in spec.slots.items()}
        kinds = {n: first if value == "p" else _trace.REAL for n, value in slots.items()}
        while True:  # a slot is complex only if a complex value reaches it: least fixed point
            tape, used, loads, hs = self._start(first, kinds)
            out, new = compose(self.specs, hs, tape, loads["p"], loads["g"], loads)
            self._check(out, new, complex)
            wider = {n for n, x in new.items() if x.kind != kinds[n] and kinds[n] == _trace.REAL}
            if not wider:
                break
            kinds |= dict.fromkeys(wider, _trace.COMPLEX)
        self.sums = {i: self._sum(i, first, kinds) for i in self.terms}
        summed = {n for program in self.sums.values() for n in program.loads}
        self.live = tuple(n for n in slots if n in summed or not tape.idle(loads[n], list(new.values()), new[n]))
        self.changed = tuple(n for n in self.live if new[n].index != loads[n].index)
        self.kinds = {n: kinds[n] for n in self.live}
        self._tape, self._used = tape, list(used)
        self._outputs = {"p": out.params(loads["p"]), "u": out.change(loads["p"]), **new}
        self._bodies: dict[tuple[str, ...], _trace.Program] = {}

    def _check(self, out: LeafUpdate, new: dict[str, Any], complex: bool) -> None:
        for name, x in new.items():
            if not isinstance(x, _trace.TracedArray) or x.kind == _trace.BOOL:
                raise TypeError(f"{name}: update returned {_kind(x)}; state must be an array of numbers, like m * 0")
        for x in (out.step, *([] if out.landed is None else [out.landed])):
            if not isinstance(x, _trace.TracedArray) or x.kind == _trace.BOOL:
                raise TypeError(f"{self.specs[-1].key}: update returned {_kind(x)} as the step; it must be an array")
            if not complex and x.kind == _trace.COMPLEX:
                raise TypeError(f"{self.specs[-1].key}: update made a complex step of real arrays")

    def body(self, outputs: tuple[str, ...]) -> _trace.Program:
        """Return the program that computes these outputs: ``p`` or ``u``, and slots."""
        if outputs not in self._bodies:
            self._bodies[outputs] = self._tape.finish({n: self._outputs[n] for n in outputs}, self._used)
        return self._bodies[outputs]

    def reads(self, load: str, first: str) -> bool:
        """Whether ``first`` or a slot is computed with ``p``, ``g`` or a slot; of whole arrays nobody knows."""
        if not self.elementwise:
            return True
        return any(load in program.loads for program in (self.body((first, *self.changed)), *self.sums.values()))

    def _start(
        self, first: str, kinds: dict[str, str]
    ) -> tuple[_trace.Tracer, dict[str, None], dict[str, Any], list[Any]]:
        tape, used = _trace.Tracer(any(spec.inexact for spec in self.specs)), dict[str, None]()
        loads: dict[str, Any] = {"p": tape.load("p", first), "g": tape.load("g", first)}
        loads |= {name: tape.load(name, kind) for name, kind in kinds.items()}
        hs = [Recorded(spec, i, extra(spec), used) for i, spec in enumerate(self.specs)]
        return tape, used, loads, hs

    def _sum(self, index: int, first: str, kinds: dict[str, str]) -> _trace.Program:
        tape, used, loads, hs = self._start(first, kinds)
        _, terms = compose(self.specs, hs, tape, loads["p"], loads["g"], loads, upto=index)
        for name, x in terms.items():
            if not isinstance(x, _trace.TracedArray) or x.kind != _trace.REAL:
                raise TypeError(
                    f"{self.specs[index].key}: reduce must return real arrays to sum; {name!r} is {_kind(x)}"
                )
        return tape.finish(terms, list(used))


def _kind(x: Any) -> str:
    if isinstance(x, _trace.TracedScalar):
        return "a scalar"
    return f"a {x.kind} array" if isinstance(x, _trace.TracedArray) else f"a {type(x).__name__}"


def namespace(values: Any) -> Any:
    """Return what a rule sees as ``h``."""
    return SimpleNamespace(**values)


_plans: dict[Hashable, Plan] = {}


def plan(specs: tuple[ComponentSpec, ...], complex: bool) -> Plan:
    """Return the programs of a chain; a chain of the same classes and static fields is recorded once."""
    key = (tuple((spec.key, spec.formula, tuple(spec.hypers)) for spec in specs), complex)
    if key not in _plans:
        if len(_plans) >= 512:
            _plans.clear()
        _plans[key] = Plan(specs, complex)
    return _plans[key]


def fitted_plan(
    chain: tuple[ComponentSpec, ...], dtype: Any, complex: bool, size: int, path: Callable[[], str]
) -> Plan:
    """Return the programs of a chain for parameters of a dtype and a size, as the caller wants these to be stored.

    ``path`` names one such parameter in an error.
    """
    at = next((i for i, spec in enumerate(chain) if spec.storage), None)
    if at is None:
        return plan(chain, complex)
    storage = chain[at].storage

    def stored(codes: dict[str, str]) -> Plan:
        return plan((*chain[:at], storage.fitted(chain[at], dtype, codes, first), *chain[at + 1 :]), complex)

    first = {spec.slot(n): x for spec in chain for n, x in spec.slots.items()}
    usual = stored({})
    codes = storage.codes(chain, usual.live, dtype, size, path)
    return stored(codes) if codes else usual
