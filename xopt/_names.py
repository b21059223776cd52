"""Names of hyperparameters in a chain: `lr`, or `adamw.lr` where that is not unique."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Place(NamedTuple):
    """Where a link is: its number in the chain, then in the link that holds it, and so on."""

    path: tuple[int, ...]
    part: Any
    labels: tuple[str, ...]
    """What it may be called, the shortest first: ``adamw``, ``muon.adamw``, ``0.muon.adamw``."""


def _places(parts: tuple[Any, ...], path: tuple[int, ...] = (), outer: tuple[str, ...] = ()) -> Iterator[Place]:
    """Yield the links of a chain, each with those that it holds behind it."""
    names = [type(part).__name__.lower() for part in parts]
    for i, (name, part) in enumerate(zip(names, parts, strict=True)):
        numbered = f"{i}.{name}"
        own = [name] if names.count(name) == 1 or not path else [numbered]
        labels = (*own, *(f"{label}.{own[0]}" for label in outer)) if path else (name, numbered)
        yield Place((*path, i), part, labels)
        yield from _places(part._inner(), (*path, i), labels)


def _spellings(parts: tuple[Any, ...]) -> dict[tuple[tuple[int, ...], str], list[str]]:
    """Return every hyperparameter, and what it may be called, the shortest first."""
    return {
        (place.path, n): [n, *(f"{label}.{n}" for label in place.labels)]
        for place in _places(parts)
        for n, field in place.part._fields.items()
        if not field.static
    }


def qualified_names(parts: tuple[Any, ...]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name every hyperparameter of a chain: ``lr``, or ``adamw.lr`` or ``1.adamw.lr`` where that is not unique."""
    spellings = _spellings(parts)
    every = [name for names in spellings.values() for name in names]
    return {next(n for n in names if every.count(n) == 1): where for where, names in spellings.items()}


def found(parts: tuple[Any, ...], path: tuple[int, ...]) -> Any:
    """Return the link at a path."""
    part = parts[path[0]]
    return found(part._inner(), path[1:]) if path[1:] else part


def replaced(parts: tuple[Any, ...], values: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the links of a chain with other values of some hyperparameters, of the same formula."""
    for name, value in values.items():
        path, field = _locate(parts, name)
        old = getattr(found(parts, path), field)
        if (value is None) != (old is None):
            raise TypeError(f"{name}: {value!r} in place of {old!r} is another formula; make another rule")
        parts = _changed(parts, path, field, value)
    return parts


def _changed(parts: tuple[Any, ...], path: tuple[int, ...], field: str, value: Any) -> tuple[Any, ...]:
    i, rest = path[0], path[1:]
    old = parts[i]
    new = old._with_inner(_changed(old._inner(), rest, field, value)) if rest else old.replace(**{field: value})
    return (*parts[:i], new, *parts[i + 1 :])


def _locate(parts: tuple[Any, ...], name: str) -> tuple[tuple[int, ...], str]:
    """Find which hyperparameter of a chain a name like ``lr`` or ``adamw.lr`` means."""
    spellings, names = _spellings(parts), qualified_names(parts)
    fits = [where for where, called in spellings.items() if name in called]
    if len(fits) == 1:
        return fits[0]
    if fits:
        options = " or ".join(q for q, where in names.items() if where in fits)
        raise TypeError(f"{name!r} is ambiguous: say {options}")
    if any(name.rpartition(".")[2] in place.part._fields for place in _places(parts)):
        raise TypeError(f"{name!r} is a static field: it chooses a formula and cannot change between steps")
    raise TypeError(f"no hyperparameter {name!r}; there are {', '.join(names)}")
