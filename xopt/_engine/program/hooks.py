"""The hooks of one component: tried without values, recorded alone, called with the scalars of a step."""

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

    def __init__(self, spec: ComponentSpec, index: int, extra: tuple[str, ...], used: dict[str, None]) -> None:
        self._spec, self._index, self._used = spec, index, used
        self._names = {"t", *spec.hypers, *spec.carry, *spec.inputs, *extra}

    def __getattr__(self, name: str) -> Any:
        if name in self._spec.statics:
            return self._spec.statics[name]
        if name not in self._names:
            known = ", ".join(sorted({*self._names, *self._spec.statics}))
            raise AttributeError(f"{self._spec.key} has no hyperparameter {name!r}; it has {known}")
        self._used[scalar_name(name, self._index)] = None
        return _trace.TracedScalar(scalar_name(name, self._index))


def terms(spec: ComponentSpec) -> tuple[str, ...]:
    """Name what ``reduce`` sums, found by calling it once."""
    if spec.reduce is None:
        return ()
    tape, probe = _trace.Tracer(spec.inexact), Recorded(spec, 0, (), {})
    slots = {n: tape.load(n, _trace.REAL) for n in spec.slots}
    p, g = tape.load("p", _trace.REAL), tape.load("g", _trace.REAL)
    return tuple(spec.reduce(probe, tape, p, g, **slots, **({"grad": g} if spec.asks_sum else {})))


def extra(spec: ComponentSpec) -> tuple[str, ...]:
    """Name what ``reduce`` and ``host`` add to ``h``."""
    names = (*terms(spec), *depends(spec), *(("leaf", "chunk") if spec.storage else ()))
    clash = {*names} & {"t", *spec.hypers, *spec.statics}
    if clash:
        raise TypeError(f"{spec.key}: reduce or host returns {sorted(clash)}, which are names of its hyperparameters")
    return names


def depends(spec: ComponentSpec) -> dict[str, frozenset[str]]:
    """Return for each result of ``host`` the scalars that it depends on, found by trying it without values.

    A ``host`` that looks at a value would work for numbers alone, and is refused here, whatever the library.
    """
    if spec.host is None:
        return {}
    names = ("t", *spec.hypers, *spec.carry, *spec.inputs, *terms(spec), *(("leaf", "chunk") if spec.storage else ()))
    try:
        return probed(spec.host, {**spec.statics, **probes(names)})
    except Looked as error:
        raise TypeError(f"{spec.key}: host could not compute without values: {error}") from error


def check_groups(chains: Iterable[tuple[ComponentSpec, ...]]) -> None:
    """Refuse groups whose hyperparameters would make several numbers of one that is carried for the whole tree."""
    first: dict[str, ComponentSpec] = {}
    for spec in (spec for chain in chains for spec in chain if spec.carry and spec.scope == "tree"):
        one = first.setdefault(spec.key, spec)
        alike = one is spec or all(same(x, one.given.get(n)) for n, x in spec.given.items())
        found = {} if alike else depends(spec)
        for name, field in ((n, field) for n in spec.carry for field in sorted(found.get(n, ()))):
            a, b = one.given.get(field), spec.given.get(field)
            if not same(a, b):
                a, b = ("an array" if hasattr(x, "dtype") else repr(x) for x in (a, b))  # which may be on a device
                raise ValueError(
                    f"{spec.slot(name)}: {field} is {a} in one group and {b} in another, but what is carried from "
                    f"step to step is one number for all groups; give {field} once"
                )


def host_scalars(spec: ComponentSpec, h: Mapping[str, Any]) -> dict[str, Any]:
    """Call the ``host`` of a component."""
    alike = functions if any(isinstance(x, Value) for x in h.values()) else _scalars.floats
    found: dict[str, Any] = spec.host(SimpleNamespace(**h), alike)  # type: ignore[misc]
    return found


_hooks: dict[Hashable, tuple[_trace.Program, dict[str, Any]]] = {}


def hook(
    spec: ComponentSpec, name: str, call: Callable[..., Any], kinds: Mapping[str, str]
) -> tuple[_trace.Program, dict[str, Any]]:
    """Record one hook of a component alone, called with arrays by name: its program, and what it returns by name.

    That is the name of an output, or a number where the hook returned one.
    """
    key = (spec.key, spec.formula, tuple(spec.hypers), name, *kinds.items())
    if key not in _hooks:
        if len(_hooks) >= 1024:
            _hooks.clear()
        tape, used = _trace.Tracer(spec.inexact), dict[str, None]()
        made = call(Recorded(spec, 0, extra(spec), used), tape, {n: tape.load(n, kind) for n, kind in kinds.items()})
        made = made if isinstance(made, dict) else dict(enumerate(made if isinstance(made, tuple) else (made,)))
        found = {str(n): x for n, x in made.items()}
        symbols = {n: x for n, x in found.items() if isinstance(x, _trace.TracedArray)}
        _hooks[key] = tape.finish(symbols, list(used)), {n: n if n in symbols else x for n, x in found.items()}
    return _hooks[key]
