"""Other numbers for one step: hyperparameters that are given to ``step`` and need no other rule made for them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import CodeType
from typing import Any, TypeAlias

from xopt.rule._component import Component
from xopt.rule._fields import Field, check
from xopt.rule._names import locate

Known: TypeAlias = dict[str, tuple[tuple[str, str], str, Field] | None]
"""What is known of names: key and field of a component, what messages say, the field; None where it is not so plain."""


def plain_numbers(rule: Any, values: Mapping[str, Any], known: Known) -> dict[tuple[str, str], float] | None:
    """Return the numbers by key and field of their component, checked as when the rule is made.

    None where a value or a component is more than that: it has to be made anew then, and may be refused.
    """
    found = {}
    for name, value in values.items():
        if type(value) is not float and type(value) is not int:
            return None
        if name not in known:
            known[name] = _plain(rule, name)
        where = known[name]
        if where is None:
            return None
        place, label, field = where
        plain = type(value) is float and math.isfinite(value) and field.holds(value)
        found[place] = value if plain else check(label, field, value)
    return found


def _plain(rule: Any, name: str) -> tuple[tuple[str, str], str, Field] | None:
    """Return where a number goes that nothing else hangs on."""
    parts = rule._parts()
    if any(type(part)._route is not Component._route or part._penalty for part in parts):
        return None
    link, field = locate(parts, name)
    cls = type(link.part)
    made = (cls.replace, cls.__init__) == (Component.replace, Component.__init__)
    looked_at = _looked_at(cls)
    if len(link.path) > 1 or not made or looked_at is None or field in looked_at:
        return None
    if type(link.part._value(field)) is not float:
        return None
    return (link.key, field), f"{cls.__name__}.{field}", link.part._fields[field]


def _looked_at(cls: type[Component]) -> frozenset[str] | None:
    """Return the names in the code of the checks of a class, which are about fields that contradict each other.

    None where a check is not of this package: it may look at fields in whichever way.
    """
    owners = [base for base in cls.__mro__ if "_check" in vars(base)]
    if any(base.__module__.partition(".")[0] != "xopt" for base in owners):
        return None
    return frozenset(name for base in owners for name in _names(vars(base)["_check"].__code__))


def _names(x: Any) -> Iterator[str]:
    if isinstance(x, str):
        yield x
    elif isinstance(x, tuple | frozenset):
        for inner in x:
            yield from _names(inner)
    elif isinstance(x, CodeType):
        yield from x.co_names
        yield from _names(x.co_consts)
