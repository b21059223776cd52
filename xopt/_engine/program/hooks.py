"""The hooks of one piece: tried without values, recorded alone, called with the scalars of a step."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from xopt._arrays import scalars as _scalars
from xopt._engine.program import trace as _trace
from xopt._engine.program.algebra import Looked, Value, functions, probed, probes, same
from xopt._engine.program.contract import ComponentSpec, scalar_name


class Recorded:
    """What a rule sees as ``h`` while it is recorded: static fields as they are, all else as symbols."""

    def __init__(self, piece: ComponentSpec, place: int, extra: tuple[str, ...], used: dict[str, None]) -> None:
        self._piece, self._place, self._used = piece, place, used
        self._names = {"t", *piece.hypers, *piece.carry, *piece.inputs, *extra}

    def __getattr__(self, name: str) -> Any:
        if name in self._piece.statics:
            return self._piece.statics[name]
        if name not in self._names:
            known = ", ".join(sorted({*self._names, *self._piece.statics}))
            raise AttributeError(f"{self._piece.place} has no hyperparameter {name!r}; it has {known}")
        self._used[scalar_name(name, self._place)] = None
        return _trace.TracedScalar(scalar_name(name, self._place))


def terms(piece: ComponentSpec) -> tuple[str, ...]:
    """Name what ``reduce`` sums, found by calling it once."""
    if piece.reduce is None:
        return ()
    tape, probe = _trace.Tracer(piece.inexact), Recorded(piece, 0, (), {})
    slots = {n: tape.load(n, _trace.REAL) for n in piece.slots}
    p, g = tape.load("p", _trace.REAL), tape.load("g", _trace.REAL)
    return tuple(piece.reduce(probe, tape, p, g, **slots, **({"grad": g} if piece.asks_sum else {})))


def extra(piece: ComponentSpec) -> tuple[str, ...]:
    """Name what ``reduce`` and ``host`` add to ``h``."""
    names = (*terms(piece), *depends(piece), *(("leaf",) if piece.storage else ()))
    clash = {*names} & {"t", *piece.hypers, *piece.statics}
    if clash:
        raise TypeError(
            f"{piece.place}: reduce or host returns {sorted(clash)}, which are names of its hyperparameters"
        )
    return names


def depends(piece: ComponentSpec) -> dict[str, frozenset[str]]:
    """Return for each result of ``host`` the scalars that it depends on, found by trying it without values.

    A ``host`` that looks at a value would work for numbers alone, and is refused here, whatever the library.
    """
    if piece.host is None:
        return {}
    names = ("t", *piece.hypers, *piece.carry, *piece.inputs, *terms(piece), *(("leaf",) if piece.storage else ()))
    try:
        return probed(piece.host, {**piece.statics, **probes(names)})
    except Looked as error:
        raise TypeError(f"{piece.place}: host could not compute without values: {error}") from error


def check_groups(chains: Iterable[tuple[ComponentSpec, ...]]) -> None:
    """Refuse groups whose hyperparameters would make several numbers of one that is carried for the whole tree."""
    first: dict[str, ComponentSpec] = {}
    for piece in (piece for chain in chains for piece in chain if piece.carry and piece.scope == "tree"):
        one = first.setdefault(piece.place, piece)
        alike = one is piece or all(same(x, one.given.get(n)) for n, x in piece.given.items())
        found = {} if alike else depends(piece)
        for name, field in ((n, field) for n in piece.carry for field in sorted(found.get(n, ()))):
            a, b = one.given.get(field), piece.given.get(field)
            if not same(a, b):
                a, b = ("an array" if hasattr(x, "dtype") else repr(x) for x in (a, b))  # which may be on a device
                raise ValueError(
                    f"{piece.slot(name)}: {field} is {a} in one group and {b} in another, but what is carried from "
                    f"step to step is one number for all groups; give {field} once"
                )


def host_scalars(piece: ComponentSpec, h: Mapping[str, Any]) -> dict[str, Any]:
    """Call the ``host`` of a piece."""
    alike = functions if any(isinstance(x, Value) for x in h.values()) else _scalars.floats
    found: dict[str, Any] = piece.host(SimpleNamespace(**h), alike)  # type: ignore[misc]
    return found


_hooks: dict[Hashable, tuple[_trace.Program, dict[str, Any]]] = {}


def hook(
    piece: ComponentSpec, name: str, call: Callable[..., Any], kinds: Mapping[str, str]
) -> tuple[_trace.Program, dict[str, Any]]:
    """Record one hook of a piece alone, called with arrays by name: its program, and what it returns by name.

    That is the name of an output, or a number where the hook returned one.
    """
    key = (piece.place, piece.key, tuple(piece.hypers), name, *kinds.items())
    if key not in _hooks:
        if len(_hooks) >= 1024:
            _hooks.clear()
        tape, used = _trace.Tracer(piece.inexact), dict[str, None]()
        made = call(Recorded(piece, 0, extra(piece), used), tape, {n: tape.load(n, kind) for n, kind in kinds.items()})
        made = made if isinstance(made, dict) else dict(enumerate(made if isinstance(made, tuple) else (made,)))
        found = {str(n): x for n, x in made.items()}
        symbols = {n: x for n, x in found.items() if isinstance(x, _trace.TracedArray)}
        _hooks[key] = tape.finish(symbols, list(used)), {n: n if n in symbols else x for n, x in found.items()}
    return _hooks[key]
