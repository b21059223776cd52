"""Names of hyperparameters in a chain: `lr`, or `adamw.lr` where that is not unique, or `0.adamw.lr`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Named(NamedTuple):
    """A component of a chain, or a component inside of one, and what it is called."""

    path: tuple[int, ...]
    """Its number in the chain, then among the inner components of that one, and so on."""
    key: str
    """What its state is filed under: ``"0.adamw"``."""
    label: str
    part: Any


def named(parts: Iterable[Any], prefixes: Iterable[str] | None = None, path: tuple[int, ...] = ()) -> list[Named]:
    """Return every component of a chain, each followed by those inside of it."""
    found = []
    parts = tuple(parts)
    for i, (part, prefix) in enumerate(zip(parts, prefixes or [f"{i}." for i in range(len(parts))], strict=True)):
        label, inner = part._label(), part._inner()
        found.append(Named((*path, i), prefix + label if label else prefix.removesuffix("."), label, part))
        if inner:
            found += named(inner, [prefix + more for more in part._inner_keys()], (*path, i))
    return found


def qualified_names(parts: Iterable[Any]) -> dict[str, tuple[Named, str]]:
    """Name every hyperparameter of a chain: ``lr``, or ``adamw.lr`` or ``1.adamw.lr`` where that is not unique."""
    links = named(parts)
    labels = [link.label for link in links]
    every = [(link, n) for link in links for n, f in link.part._fields.items() if not f.static]
    fields = [n for _, n in every]
    found = {}
    for link, n in every:
        label = link.label if link.label and labels.count(link.label) == 1 else link.key
        found[n if fields.count(n) == 1 else f"{label}.{n}"] = (link, n)
    return found


def learning_rates(names: Mapping[str, tuple[Named, str]]) -> str:
    """Say which of the names are those of learning rates."""
    return ", ".join(name for name, (_, field) in names.items() if field == "lr") or "none"


def replaced(
    parts: tuple[Any, ...], values: Mapping[str, Any], known: dict[str, tuple[tuple[int, ...], str]]
) -> tuple[Any, ...]:
    """Return the components of a chain with other values of some hyperparameters, of the same formula.

    ``known`` is where the names lead, which is the same for all chains that differ in numbers alone.
    """
    changes: dict[tuple[int, ...], dict[str, Any]] = {}
    for name, value in values.items():
        if name not in known:
            link, field = locate(parts, name)
            known[name] = link.path, field
        path, field = known[name]
        old = _at(parts, path)._value(field)
        if (value is None) != (old is None):
            raise TypeError(f"{name}: {value!r} in place of {old!r} is another formula; make another rule")
        changes.setdefault(path, {})[field] = value
    for path, own in changes.items():  # those of a component together: bounds may move past each other
        parts = _put(parts, path, _at(parts, path)._altered(own))
    return parts


def _at(parts: tuple[Any, ...], path: tuple[int, ...]) -> Any:
    """Return a component, however deep inside."""
    i, *rest = path
    return _at(parts[i]._inner(), tuple(rest)) if rest else parts[i]


def _put(parts: tuple[Any, ...], path: tuple[int, ...], new: Any) -> tuple[Any, ...]:
    """Put another component in the place of one, however deep inside."""
    i, *rest = path
    if rest:
        new = parts[i]._with_inner(_put(parts[i]._inner(), tuple(rest), new))
    return (*parts[:i], new, *parts[i + 1 :])


def locate(parts: Iterable[Any], name: str) -> tuple[Named, str]:
    """Find which hyperparameter of a chain a name like ``lr`` or ``adamw.lr`` means."""
    names = qualified_names(parts)
    if name in names:
        return names[name]
    prefix, _, field = name.rpartition(".")
    fits = [(link, n) for link, n in names.values() if n == field and prefix in ("", link.label, link.key)]
    fits += [(link, n) for link, n in names.values() if "." in n and name == f"{link.key}.{n}"]
    if len(fits) == 1:
        return fits[0]
    if fits:
        options = " or ".join(q for q, found in names.items() if found in fits)
        raise TypeError(f"{name!r} is ambiguous: say {options}")
    if any(field in link.part._fields for link in named(parts) if prefix in ("", link.label, link.key)):
        raise TypeError(f"{name!r} is a static field: it chooses a formula and cannot change between steps")
    raise TypeError(f"no hyperparameter {name!r}; there are {', '.join(names) or 'none'}")
