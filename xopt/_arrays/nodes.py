"""Containers that optree does not know: dataclasses, subclasses of dict, list and tuple, and what JAX knows."""

from __future__ import annotations

import json
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable
from dataclasses import fields, is_dataclass
from typing import Any

import optree

from xopt._arrays.rows import SparseRows

SPACE = "xopt"
_Taken = tuple[Any, Any, tuple[Any, ...]]


def register(x: Any) -> bool:
    """Make the class of a container known; False where it is none."""
    kind = type(x)
    if _is_node_of_jax(x):
        _add(kind, _take_apart, lambda frame, children: frame.unflatten(children), _JaxEntry)
    elif isinstance(x, dict):
        _add(kind, _take_dict, _make_dict, optree.MappingEntry)
    elif isinstance(x, list | tuple):
        _add(kind, _take_sequence, _make_sequence, optree.SequenceEntry)
    elif is_dataclass(x) and not isinstance(x, type):
        names = tuple(f.name for f in fields(x))
        _add(
            kind,
            lambda x: (tuple(getattr(x, n) for n in names), None, names),
            lambda _, children: _filled(kind, dict(zip(names, children, strict=True))),
            optree.DataclassEntry,
        )
    else:
        return False
    return True


def _add(kind: type, take: Callable[[Any], _Taken], make: Callable[[Any, Any], Any], entry: Any) -> None:
    optree.register_pytree_node(kind, take, make, path_entry_type=entry, namespace=SPACE)


def _filled(kind: type, values: dict[str, Any]) -> Any:
    new: Any = object.__new__(kind)  # not __init__, which may check or convert what are no arrays now
    for name, x in values.items():
        object.__setattr__(new, name, x)
    return new


class _Frame:
    """What a subclass of dict, list or tuple is beside what is in it; all are alike that have the same keys."""

    def __init__(self, x: Any, keys: tuple[Any, ...] = ()) -> None:
        self.kind: Any = type(x)
        self.keys, self.own = keys, dict(getattr(x, "__dict__", {}))
        self.order = list(x) if keys else []
        self.default = x.default_factory if isinstance(x, defaultdict) else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Frame) and (self.kind, self.keys) == (other.kind, other.keys)

    def __hash__(self) -> int:
        return hash((self.kind, self.keys))


def _take_dict(x: Any) -> _Taken:
    try:
        keys = tuple(sorted(dict.keys(x)))
    except TypeError:
        keys = tuple(dict.keys(x))
    return [dict.__getitem__(x, key) for key in keys], _Frame(x, keys), keys


def _make_dict(frame: _Frame, children: Any) -> Any:
    new, inside = frame.kind.__new__(frame.kind), dict(zip(frame.keys, children, strict=True))
    put = OrderedDict.__setitem__ if issubclass(frame.kind, OrderedDict) else dict.__setitem__
    for key in frame.order:
        put(new, key, inside[key])
    if frame.default is not None:
        new.default_factory = frame.default
    if frame.own:
        vars(new).update(frame.own)
    return new


def _take_sequence(x: Any) -> _Taken:
    return tuple(x), _Frame(x), tuple(range(len(x)))


def _make_sequence(frame: _Frame, children: Any) -> Any:
    if issubclass(frame.kind, tuple):
        new: Any = tuple.__new__(frame.kind, children)
    else:
        new = frame.kind.__new__(frame.kind)
        list.extend(new, children)
    if frame.own:
        vars(new).update(frame.own)
    return new


def _is_node_of_jax(x: Any) -> bool:
    """Whether JAX, if it was imported, takes this for a container: no library is imported for that."""
    jax = sys.modules.get("jax")
    return jax is not None and not isinstance(x, SparseRows) and not jax.tree_util.all_leaves([x])


def _take_apart(x: Any) -> _Taken:
    jax = sys.modules["jax"]
    found, frame = jax.tree_util.tree_flatten_with_path(x, is_leaf=lambda y: y is not x)
    return [child for _, child in found], frame, tuple(path[0] for path, _ in found)


def plain_key(entry: Hashable) -> Any:
    """Return what a key of JAX stands for: the key of a mapping, the name of an attribute, a number."""
    if type(entry) in (str, int) or not type(entry).__module__.startswith("jax"):
        return entry
    return next(getattr(entry, field) for field in ("key", "name", "idx") if hasattr(entry, field))


class _JaxEntry(optree.PyTreeEntry):
    """The name of what is in a node of JAX."""

    @property
    def field(self) -> Any:
        return plain_key(self.entry)

    def codify(self, node: str = "") -> str:
        if hasattr(self.entry, "name"):
            return f"{node}.{self.field}"
        return f"{node}[{json.dumps(self.field, ensure_ascii=False) if isinstance(self.field, str) else self.field}]"
