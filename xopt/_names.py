"""Names of hyperparameters in a chain: `lr`, or `adamw.lr` where that is not unique."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def qualified_names(parts: tuple[Any, ...]) -> dict[str, tuple[int, str]]:
    """Name every hyperparameter of a chain: ``lr``, or ``adamw.lr`` or ``1.adamw.lr`` where that is not unique."""
    labels = [type(part).__name__.lower() for part in parts]
    every = [(i, n) for i, part in enumerate(parts) for n, f in part._fields.items() if not f.static]
    fields = [n for _, n in every]
    found = {}
    for i, n in every:
        label = labels[i] if labels.count(labels[i]) == 1 else f"{i}.{labels[i]}"
        found[n if fields.count(n) == 1 else f"{label}.{n}"] = (i, n)
    return found


def replaced(parts: tuple[Any, ...], values: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the links of a chain with other values of some hyperparameters, of the same formula."""
    new = list(parts)
    for name, value in values.items():
        i, field = _locate(parts, name)
        if (value is None) != (getattr(new[i], field) is None):
            raise TypeError(
                f"{name}: {value!r} in place of {getattr(new[i], field)!r} is another formula; make another rule"
            )
        new[i] = new[i].replace(**{field: value})
    return tuple(new)


def _locate(parts: tuple[Any, ...], name: str) -> tuple[int, str]:
    """Find which hyperparameter of a chain a name like ``lr`` or ``adamw.lr`` means."""
    names = qualified_names(parts)
    if name in names:
        return names[name]
    prefix, _, field = name.rpartition(".")
    labels = [type(part).__name__.lower() for part in parts]
    fits = [(i, n) for i, n in names.values() if n == field and prefix in ("", labels[i], f"{i}.{labels[i]}")]
    if len(fits) == 1:
        return fits[0]
    if fits:
        options = " or ".join(q for q, place in names.items() if place in fits)
        raise TypeError(f"{name!r} is ambiguous: say {options}")
    if any(field in part._fields for part in parts):
        raise TypeError(f"{name!r} is a static field: it chooses a formula and cannot change between steps")
    raise TypeError(f"no hyperparameter {name!r}; there are {', '.join(names)}")
