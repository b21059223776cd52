"""Trees of arrays: any nest of dict, list, tuple, namedtuple, dataclass and node of JAX, or a single array; of optree.

``None`` in a tree of parameters is an empty place; ``None`` in a tree of gradients is a parameter without one.
"""

from __future__ import annotations

import itertools
import json
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import optree

from xopt import _arrays
from xopt._arrays.nodes import SPACE as _SPACE
from xopt._arrays.nodes import plain_key, register

GIVEN = "the arrays that the optimizer was given"


def flatten(tree: Any) -> tuple[list[Any], optree.PyTreeSpec]:
    """Return the leaves of a tree and its structure. A container is made known when its first instance arrives."""
    while True:
        leaves, spec = optree.tree_flatten(tree, namespace=_SPACE)
        fresh = {type(x): x for x in leaves}
        if not any(not _is_array(x) and register(x) for x in fresh.values()):
            return leaves, spec


def holes(column: list[Any]) -> bool:
    """Whether there is nothing at some leaf; a loop that runs in C."""
    return any(map(operator.is_, column, itertools.repeat(None)))


def _is_array(x: Any) -> bool:
    """Whether this is surely an array and nothing else."""
    library = _arrays.library(x)
    return library is not None and library.known


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
    return ["/".join(map(escaped, keys)) for keys in _keys(spec)]


def escaped(key: str) -> str:
    """Return a key as a part of a pointer."""
    return key.replace("~", "~0").replace("/", "~1")


def unescaped(part: str) -> str:
    """Return the key that a part of a pointer stands for."""
    return part.replace("~1", "/").replace("~0", "~")


def _keys(spec: optree.PyTreeSpec) -> list[list[str]]:
    return [[str(getattr(entry, "field", entry.entry)) for entry in accessor] for accessor in spec.accessors()]


def match(spec: optree.PyTreeSpec, tree: Any, name: str, like: str = "the parameters") -> list[Any]:
    """Return what stands in ``tree`` at each leaf of ``spec``; a ValueError names the first place that differs.

    Lists and tuples may stand for each other, and so may mappings: what belongs together is plain then.
    """
    own = type(tree) is not spec.type and not spec.is_leaf()
    found = _paired(spec, tree) if own else None  # first, because the errors of optree show every array
    if found is not None:
        return found
    try:
        return spec.flatten_up_to(tree)
    except ValueError:
        flatten(tree)  # a container that was never seen
    try:
        return spec.flatten_up_to(tree)
    except ValueError as error:
        found = _paired(spec, tree)
        if found is not None:
            return found
        skeleton = unflatten(spec, [_LEAF] * spec.num_leaves)
        raise ValueError(_difference(skeleton, tree, name, like) or f"{name}: {error}") from None


def _paired(spec: optree.PyTreeSpec, tree: Any) -> list[Any] | None:
    """Return what stands in a tree at each leaf of a structure, if its containers are as good as those."""
    if spec.is_leaf():
        return [tree]
    if spec.type is type(None):
        return [] if tree is None else None
    if tree is None or optree.tree_is_leaf(tree, namespace=_SPACE):
        return None
    node, family = optree.tree_flatten_one_level(tree, namespace=_SPACE), _family(spec.type)
    if family is not _family(node.type) or (family is spec.type and not _same_frame(spec, tree)):
        return None
    inside = dict(zip(map(plain_key, node.entries), node.children, strict=True))
    keys = list(map(plain_key, spec.entries()))
    if {*keys} != {*inside}:
        return None
    if spec.num_leaves == spec.num_nodes - 1:  # nothing but leaves
        return [inside[key] for key in keys]
    found: list[Any] = []
    for key, child in zip(keys, spec.children(), strict=True):
        below = _paired(child, inside[key])
        if below is None:
            return None
        found += below
    return found


def _same_frame(spec: optree.PyTreeSpec, tree: Any) -> bool:
    """Whether the node of a tree is that of a structure, with all that is fixed in it."""
    return spec.one_level() == optree.tree_structure(tree, is_leaf=lambda x: x is not tree, namespace=_SPACE)


def _family(kind: Any) -> Any:
    """Return what types of containers that may stand for each other have in common."""
    if issubclass(kind, Mapping):
        return "mapping"
    return "sequence" if issubclass(kind, list | tuple) and not hasattr(kind, "_fields") else kind


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
        yield dict.values(node)
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
    if _family(a.type) is not _family(b.type):
        return f"{path}: {_kind(got)}, but {like} have {_kind(want)}"
    kinds = [(x.path_entry_type, x.type, x.kind) for x in (a, b)]
    ours, theirs = ([*map(plain_key, x.entries)] for x in (a, b))
    children = dict(zip(theirs, b.children, strict=True))
    named = [(e, x) for x, node in zip(kinds, (a, b), strict=True) for e in node.entries]
    steps = {plain_key(e): path + _step(kind(e, *more)) for e, (kind, *more) in reversed(named)}
    for entry, child in zip(ours, a.children, strict=True):
        if entry not in children:
            return f"{steps[entry]}: missing, but {like} have it"
        found = _difference(child, children[entry], steps[entry], like)
        if found:
            return found
    for entry in theirs:
        if entry not in ours:
            return f"{steps[entry]}: not among {like}"
    same = _family(a.type) is not a.type or a.metadata == b.metadata
    return None if same else f"{path}: what is fixed in this {a.type.__name__} is not what {like} have there"


def _kind(x: Any) -> str:
    if x is None:
        return "None"
    name = type(x).__name__
    if isinstance(x, list | tuple) and not hasattr(x, "_fields"):
        return f"a {name} of {len(x)}"
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
