"""Trees of arrays: any nest of dict, list, tuple, namedtuple and dataclass, or a single array. Built on optree.

``None`` in a tree of parameters is an empty place; ``None`` in a tree of gradients is a parameter without one.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import optree

_SPACE = "xopt"
GIVEN = "the arrays that the optimizer was given"


def flatten(tree: Any) -> tuple[list[Any], optree.PyTreeSpec]:
    """Return the leaves of a tree and its structure. A dataclass is recognised when its first instance arrives."""
    while True:
        leaves, spec = optree.tree_flatten(tree, namespace=_SPACE)
        fresh = {type(x) for x in leaves if is_dataclass(x)}
        if not fresh:
            return leaves, spec
        for kind in fresh:
            _register(kind)


def _register(kind: type) -> None:
    names = tuple(f.name for f in fields(kind))

    def take(x: Any) -> tuple[tuple[Any, ...], None, tuple[str, ...]]:
        return tuple(getattr(x, n) for n in names), None, names

    def make(_: None, children: Any) -> Any:
        new: Any = object.__new__(kind)  # not __init__, which may check or convert what are no arrays now
        for name, child in zip(names, children, strict=True):
            object.__setattr__(new, name, child)
        return new

    optree.register_pytree_node(kind, take, make, path_entry_type=optree.DataclassEntry, namespace=_SPACE)  # type: ignore[arg-type]


def unflatten(spec: optree.PyTreeSpec, leaves: list[Any]) -> Any:
    """Put leaves back into a structure."""
    return optree.tree_unflatten(spec, leaves)


def paths(spec: optree.PyTreeSpec, name: str) -> list[str]:
    """Name every leaf as Python would reach it: ``params["layer1"]["w"]``."""
    return [name + "".join(_step(entry) for entry in accessor) for accessor in spec.accessors()]


def _step(entry: Any) -> str:
    code = str(entry.codify(""))
    return (
        f"[{json.dumps(entry.entry, ensure_ascii=False)}]" if isinstance(entry.entry, str) and code[:1] == "[" else code
    )


def names(spec: optree.PyTreeSpec) -> list[str]:
    """Name every leaf by its keys: ``layer1/w``; of a namedtuple or a dataclass, those are the names of its fields."""
    return ["/".join(keys) for keys in _keys(spec)]


def pointers(spec: optree.PyTreeSpec) -> list[str]:
    """Name every leaf so that no two differ in where a slash comes from: a slash in a key is ``~1``, a tilde ``~0``."""
    return ["/".join(key.replace("~", "~0").replace("/", "~1") for key in keys) for keys in _keys(spec)]


def _keys(spec: optree.PyTreeSpec) -> list[list[str]]:
    return [[str(getattr(entry, "field", entry.entry)) for entry in accessor] for accessor in spec.accessors()]


def match(spec: optree.PyTreeSpec, tree: Any, name: str, like: str = "the parameters") -> list[Any]:
    """Return what stands in ``tree`` at each leaf of ``spec``; a ValueError names the first place that differs."""
    try:
        return spec.flatten_up_to(tree)
    except ValueError:
        flatten(tree)  # a dataclass that was never seen
    try:
        return spec.flatten_up_to(tree)
    except ValueError as error:
        skeleton = unflatten(spec, [_LEAF] * spec.num_leaves)
        raise ValueError(_difference(skeleton, tree, name, like) or f"{name}: {error}") from None


class Watch:
    """Notices that a tree has other arrays than it had.

    Containers that can change are asked for what is in them, which for dicts and lists costs no more than a comparison
    of addresses; the tree is flattened again only where something is another one.
    """

    def __init__(self, tree: Any, spec: optree.PyTreeSpec, leaves: list[Any]) -> None:
        self._tree, self._spec, self._leaves = tree, spec, leaves
        self._nodes = [(inside, list(inside)) for inside in _live(tree)]

    def changed(self, name: str) -> int | None:
        """Return which array is another one, if any is; a ValueError says what is of another structure."""
        for inside, known in self._nodes:
            if len(inside) != len(known) or not all(map(operator.is_, inside, known)):
                break
        else:
            return None
        found = match(self._spec, self._tree, name, GIVEN)
        for k, (now, x) in enumerate(zip(found, self._leaves, strict=True)):
            if now is not x:
                return k
        self._nodes = [(inside, list(inside)) for inside in _live(self._tree)]
        return None


class _Children:
    """What is in a node that shows it only when it is taken apart."""

    def __init__(self, node: Any) -> None:
        self._node = node

    def __iter__(self) -> Iterator[Any]:
        return iter(optree.tree_flatten_one_level(self._node, namespace=_SPACE).children)

    def __len__(self) -> int:
        return len(optree.tree_flatten_one_level(self._node, namespace=_SPACE).children)


def _live(node: Any) -> Iterator[Any]:
    """Yield, for each container of a tree that can change, what shows what is in it at any time."""
    if node is None or optree.tree_is_leaf(node, namespace=_SPACE):
        return
    children = optree.tree_flatten_one_level(node, namespace=_SPACE).children
    if isinstance(node, dict):
        yield node.values()
    elif isinstance(node, list):
        yield node
    elif not isinstance(node, tuple):
        yield _Children(node)
    for child in children:
        yield from _live(child)


class _Leaf:
    """Stands for any array when two structures are compared."""


_LEAF = _Leaf()


def _difference(want: Any, got: Any, path: str, like: str) -> str | None:
    if want is _LEAF:
        return None
    if optree.tree_is_leaf(want, namespace=_SPACE) or want is None:
        return f"{path}: {_kind(got)}, but {like} have {_kind(want)}" if got is not want else None
    a = optree.tree_flatten_one_level(want, namespace=_SPACE)
    if got is None or optree.tree_is_leaf(got, namespace=_SPACE):
        return f"{path}: {_kind(got)}, but {like} have {_kind(want)}"
    b = optree.tree_flatten_one_level(got, namespace=_SPACE)
    if a.kind != b.kind and not {a.kind, b.kind} <= _DICTS:
        return f"{path}: {_kind(got)}, but {like} have {_kind(want)}"
    children = dict(zip(b.entries, b.children, strict=True))
    kind = a.path_entry_type
    steps = {e: path + _step(kind(e, a.type, a.kind)) for e in (*a.entries, *b.entries)}
    for entry, child in zip(a.entries, a.children, strict=True):
        if entry not in children:
            return f"{steps[entry]}: missing, but {like} have it"
        found = _difference(child, children[entry], steps[entry], like)
        if found:
            return found
    for entry in b.entries:
        if entry not in a.entries:
            return f"{steps[entry]}: not among {like}"
    return None if a.type is b.type or a.kind in _DICTS else f"{path}: {_kind(got)}, but {like} have {_kind(want)}"


_DICTS = {optree.PyTreeKind.DICT, optree.PyTreeKind.ORDEREDDICT, optree.PyTreeKind.DEFAULTDICT}


def _kind(x: Any) -> str:
    if x is None:
        return "None"
    name = type(x).__name__
    if isinstance(x, list | tuple) and not hasattr(x, "_fields"):
        return f"a {name} of {len(x)}"
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
