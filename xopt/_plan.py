"""The programs of a chain: recorded once for each choice of classes, static fields and kind of parameter.

A chain is cut where something must be summed over a leaf or over the tree. Everything else is one elementwise body:
what stands before a sum is recomputed from the same loads rather than kept in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from types import SimpleNamespace
from typing import Any

import numpy as np

from xopt import _scalars, _trace
from xopt._compose import Outcome, compose
from xopt._pieces import Piece, scalar_name


class _Recorded:
    """What a rule sees as ``h`` while it is recorded: static fields as they are, all else as symbols."""

    def __init__(self, piece: Piece, place: int, extra: tuple[str, ...], used: dict[str, None]) -> None:
        self._piece, self._place, self._used = piece, place, used
        self._names = {"t", *piece.hypers, *piece.carry, *piece.inputs, *extra}

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
        self.live: tuple[str, ...]
        """Slots that are read or changed; the others are not allocated."""
        self.changed: tuple[str, ...]
        """Those that may come back as something else."""
        self.kinds: dict[str, str]
        self.kind = first = _trace.COMPLEX if complex else _trace.REAL
        self.terms = {i: terms(piece) for i, piece in enumerate(pieces) if piece.reduce}
        """For each piece that reduces, the names of its sums."""
        self.codes: dict[str, str] = next((piece.statics.get("codes", {}) for piece in pieces if piece.storage), {})
        """Slots that are kept in 8 bits, and how."""
        self.whole = any(piece.whole for piece in pieces)
        """Whether some piece computes with whole arrays: then nothing is recorded, and the eager runner serves."""
        if self.whole:
            ends = tuple(piece for piece in pieces if piece.storage or (piece.after and not piece.whole))
            if any("error" in x.slots for x in ends if x.storage and not self.codes) and len(ends) < len(pieces):
                plan(ends, complex)  # raises where they do not go together
            apart = [
                plan((piece,), complex) for piece in pieces if not piece.whole and not (piece.storage and self.codes)
            ]
            self.live = tuple(
                piece.slot(n)
                for piece in pieces
                for n in piece.slots
                if (piece.whole and piece.slots[n] is not None)
                or (piece.storage and self.codes)
                or any(piece.slot(n) in own.live for own in apart)
            )
            self.kinds = {n: kind for own in apart for n, kind in own.kinds.items()}
            self.changed = self.live
            return
        slots = {piece.slot(n): value for piece in pieces for n, value in piece.slots.items()}
        kinds = {n: first if value == "p" else _trace.REAL for n, value in slots.items()}
        while True:  # a slot is complex only if a complex value reaches it: least fixed point
            tape, used, loads, hs = self._start(first, kinds)
            out, new = compose(self.pieces, hs, tape, loads["p"], loads["g"], loads)
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

    def _check(self, out: Outcome, new: dict[str, Any], complex: bool) -> None:
        for name, x in new.items():
            if not isinstance(x, _trace.Symbol) or x.kind == _trace.BOOL:
                raise TypeError(f"{name}: update returned {_kind(x)}; state must be an array of numbers, like m * 0")
        for x in (out.step, *([] if out.landed is None else [out.landed])):
            if not isinstance(x, _trace.Symbol) or x.kind == _trace.BOOL:
                raise TypeError(f"{self.pieces[-1].place}: update returned {_kind(x)} as the step; it must be an array")
            if not complex and x.kind == _trace.COMPLEX:
                raise TypeError(f"{self.pieces[-1].place}: update made a complex step of real arrays")

    def body(self, outputs: tuple[str, ...]) -> _trace.Program:
        """Return the program that computes these outputs: ``p`` or ``u``, and slots."""
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

    def _sum(self, place: int, first: str, kinds: dict[str, str]) -> _trace.Program:
        tape, used, loads, hs = self._start(first, kinds)
        _, terms = compose(self.pieces, hs, tape, loads["p"], loads["g"], loads, upto=place)
        for name, x in terms.items():
            if not isinstance(x, _trace.Symbol) or x.kind != _trace.REAL:
                raise TypeError(
                    f"{self.pieces[place].place}: reduce must return real arrays to sum; {name!r} is {_kind(x)}"
                )
        return tape.finish(terms, list(used))


def _kind(x: Any) -> str:
    return f"a {x.kind} array" if isinstance(x, _trace.Symbol) else f"a {type(x).__name__}"


def terms(piece: Piece) -> tuple[str, ...]:
    """Name what ``reduce`` sums, found by calling it once."""
    if piece.reduce is None:
        return ()
    tape, probe = _trace.Tape(piece.inexact), _Recorded(piece, 0, (), {})
    slots = {n: tape.load(n, _trace.REAL) for n in piece.slots}
    p, g = tape.load("p", _trace.REAL), tape.load("g", _trace.REAL)
    return tuple(piece.reduce(probe, tape, p, g, **slots, **({"grad": g} if piece.asks_sum else {})))


def _extra(piece: Piece) -> tuple[str, ...]:
    """Name what ``reduce`` and ``host`` add to ``h``, found by calling them once."""
    names = terms(piece)
    if piece.host:
        try:
            hypers = piece.resolve(1, "numpy", read=True)
        except Exception:  # a schedule that fails says so in the step, not where a chain is recorded first
            hypers = dict.fromkeys(piece.hypers, 0.5)
        leaf = piece.scope == "leaf" and names
        one: Any = np.ones(2) if leaf else 1.0
        carry = {n: one * v for n, v in piece.carry.items()}
        h = {
            **piece.statics,
            **hypers,
            **carry,
            **dict.fromkeys(names, one),
            **dict.fromkeys(piece.inputs, 1.0),
            "t": 1,
        }
        try:
            names += tuple(host_scalars(piece, h))
        except (TypeError, ValueError) as error:
            if not leaf:
                raise
            raise TypeError(
                f"{piece.place}: host is given vectors, with a value a leaf, and could not compute with them: {error}; "
                f"use xp.where, not if"
            ) from error
    names += ("leaf",) if piece.storage else ()
    clash = {*names} & {"t", *piece.hypers, *piece.statics}
    if clash:
        raise TypeError(
            f"{piece.place}: reduce or host returns {sorted(clash)}, which are names of its hyperparameters"
        )
    return names


def namespace(values: Any) -> Any:
    """Return what a rule sees as ``h``."""
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


def fitted_plan(chain: tuple[Piece, ...], dtype: Any, complex: bool, size: int, path: Callable[[], str]) -> Plan:
    """Return the programs of a chain for parameters of a dtype and a size, as the caller wants these to be stored.

    ``path`` names one such parameter in an error.
    """
    at = next((i for i, piece in enumerate(chain) if piece.storage), None)
    if at is None:
        return plan(chain, complex)
    storage = chain[at].storage

    def stored(codes: dict[str, str]) -> Plan:
        return plan((*chain[:at], storage.fitted(chain[at], dtype, codes), *chain[at + 1 :]), complex)

    usual = stored({})
    codes = storage.codes(chain, usual.live, dtype, size, path)
    return stored(codes) if codes else usual


def host_scalars(piece: Piece, h: dict[str, Any]) -> dict[str, Any]:
    """Call the ``host`` of a piece."""
    numbers = [x for x in h.values() if isinstance(x, _scalars.Step) or hasattr(x, "dtype")]
    if len(numbers) > 1:
        numbers.sort(key=lambda x: -getattr(x, "ndim", 0))  # a vector lifts numbers to vectors
    found: dict[str, Any] = piece.host(SimpleNamespace(**h), _scalars.space(*numbers))  # type: ignore[misc]
    return found
