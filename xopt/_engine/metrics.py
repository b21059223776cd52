"""Metrics: scalars that the components of a step have anyway, by the names under which they are shown.

Nothing is computed for them, and nothing is read before somebody asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from xopt._arrays.layout import Layout
from xopt._engine.program.algebra import Value, functions, same
from xopt._engine.program.contract import ComponentSpec, Place, StepScalars
from xopt._engine.program.hooks import extra

ByLeaf: TypeAlias = Callable[[list[tuple[Any, list[int]]]], Any]

NORM = "norm"
"""What a component calls a norm that is of the gradient in front of the rule, and of the update behind it."""
OWN = "metrics"
"""How the keys of components begin that are there for metrics alone: their names are never qualified."""
UPDATE = f"{OWN}.update"
"""The one at the end of the chain."""


class Seen(NamedTuple):
    """The scalars of a step that was taken."""

    places: list[Place]
    leaves: list[list[int]]
    """Of each bucket, the leaves that took part."""
    values: list[StepScalars]
    alone: Mapping[str, Mapping[str, Any]] = {}
    """The scalars of components of which other processes have the leaves, by key."""


class Row(NamedTuple):
    """A metric: what it is called, and which scalar of which component it is."""

    name: str
    key: str
    field: str


def rows(chains: list[tuple[ComponentSpec, ...]]) -> list[Row]:
    """Name the metrics of chains: ``grad_norm``, or ``clipbynorm.grad_norm`` where that is not unique."""
    found: dict[str, tuple[tuple[int, ...], Row]] = {}
    for chain in chains:
        behind = False
        for spec in chain:
            behind = behind or spec.enter is not None
            for name, field in spec.metrics.items():
                if spec.statics.get(field, field) is None:  # a hyperparameter that there is not
                    continue
                shown = f"{'update' if behind else 'grad'}_{NORM}" if name == NORM else name
                found.setdefault(f"{spec.key}.{name}", (spec.order, Row(shown, spec.key, field)))
                _check(spec, name, field)
    every = [row for _, row in sorted(found.values(), key=lambda pair: pair[0])]
    alike = Counter(row.name for row in every)
    labels = Counter(f"{_label(row.key)}.{row.name}" for row in every)
    named = []
    for row in every:
        label = f"{_label(row.key)}.{row.name}"
        if alike[row.name] > 1 and not row.key.startswith(OWN):
            row = row._replace(name=label if labels[label] == 1 else f"{row.key}.{row.name}")
        named.append(row)
    return named


def _label(key: str) -> str:
    return key.rpartition(".")[2]


def _check(spec: ComponentSpec, name: str, field: str) -> None:
    if field in spec.hypers or field in spec.carry:
        return
    known = (*spec.hypers, *spec.statics, *spec.carry, *extra(spec))
    if field not in known:
        raise TypeError(
            f"{spec.key}.metrics: {name!r} is {field!r}, but there is no such scalar; it has {', '.join(known)}"
        )


def read(
    own: list[Row],
    seen: Seen,
    carry: Mapping[str, Any],
    by_leaf: ByLeaf,
    now: Mapping[tuple[str, str], float],
) -> dict[str, Any]:
    """Return the metrics of a step: numbers or 0-d arrays, and vectors of what each leaf has its own of.

    ``by_leaf`` makes a vector over all leaves of scalars that some have. ``carry`` is that after the step; ``now`` are
    hyperparameters that this step alone had.
    """
    by_key = {spec.key: (spec, members) for spec, _, members in seen.places}
    found = {}
    for name, key, field in own:
        spec, members = by_key[key]
        if field in spec.carry:
            found[name] = carry[spec.slot(field)]
        elif field in spec.statics:
            found[name] = spec.statics[field]
        elif (key, field) in now:
            found[name] = now[key, field]
        else:
            found[name] = _of(spec, field, members, seen, by_leaf)
        if key == UPDATE:
            found[name] = _taken(found[name], seen)
    return found


def _taken(norm: Any, seen: Seen) -> Any:
    """Return the norm of a step, 0 where a component held it back."""
    x = norm if isinstance(norm, float) else Value(norm)
    for spec, _, members in seen.places:
        if spec.gates and (members or spec.key in seen.alone):
            [w, i] = members[0] if members else (-1, -1)
            h = seen.values[w].specs[i] if members else seen.alone[spec.key]
            x = functions.where(h["go"] > 0.5, x, 0.0)
    return x.array if isinstance(x, Value) else x


def _of(spec: ComponentSpec, field: str, members: list[tuple[int, int]], seen: Seen, by_leaf: ByLeaf) -> Any:
    """Return a scalar of the last step, or a vector with one per leaf, which is NaN where a leaf took no part."""
    many = [seen.values[w].specs[i] for w, i in members]
    alike = all(same(h[n], many[0][n]) for h in many[1:] for n in spec.hypers)
    one = spec.scope == "tree" or field in spec.hypers
    if one and alike and not any(_by_leaf(h[field]) for h in many):
        x = many[0][field] if many else seen.alone.get(spec.key, {}).get(field, float("nan"))
        return x.array if isinstance(x, Value) else x
    return by_leaf([(h[field], seen.leaves[w]) for h, (w, _) in zip(many, members, strict=True)])


def _by_leaf(x: Any) -> bool:
    return isinstance(x, Value) and x.by_leaf


def shaped(found: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """Return metrics as users see them: where there is a vector over the leaves, a tree like the parameters."""
    return {
        n: layout.tree([_number(x[k]) for k in range(len(layout.leaves))]) if _each(x) else _number(x)
        for n, x in found.items()
    }


def _each(x: Any) -> bool:
    """Whether each leaf has its own."""
    return isinstance(x, list) or (hasattr(x, "shape") and len(x.shape) > 0)


def _number(x: Any) -> Any:
    """Return a number of the host as a float."""
    return float(x) if isinstance(x, np.ndarray | np.generic | int) else x
