"""Make a failing composition small: whatever can be left out is, as long as it fails in the same way."""

from __future__ import annotations

import ast
import copy
import time
from collections.abc import Callable, Iterator
from typing import Any

from fuzz import cases
from fuzz.cases import Case, Leaf, Step


def smaller(case: Case, fails: Callable[[Case], bool], seconds: float) -> Case:
    """Return the smallest case that was found in so many seconds."""
    stop, again = time.monotonic() + seconds, True
    tried = {repr(case)}
    while again:
        again = False
        for new in candidates(case):
            if repr(new) in tried or len(repr(new)) > len(repr(case)) + 4:
                continue
            tried.add(repr(new))
            if time.monotonic() > stop:
                return case
            if _fails(fails, new):
                case, again = new, True
                break
    return case


def _fails(fails: Callable[[Case], bool], case: Case) -> bool:
    try:
        return fails(case)
    except Exception:  # of text that makes no rule
        return False


def candidates(case: Case) -> Iterator[Case]:
    """Yield cases with less in them, those with much less first."""
    for i in reversed(range(len(case.events))):
        yield case._replace(events=case.events[:i] + case.events[i + 1 :])
    if case.keeping:
        yield case._replace(keeping={})
    for n in case.keeping:
        yield case._replace(keeping={m: x for m, x in case.keeping.items() if m != n})
    if case.updates:
        yield case._replace(updates=False)
    for text in texts(case.rule):
        yield case._replace(rule=text)
    leaves = cases.leaves(case.params)
    yield from (case._replace(params=tree) for tree in without(case.params))
    for i, event in enumerate(case.events):
        for new in events(event, len(leaves)):
            yield case._replace(events=(*case.events[:i], new, *case.events[i + 1 :]))
    for k, leaf in enumerate(leaves):
        for change in ({"layout": "C"}, {"dtype": "float32"}, {"dtype": "float64"}, {"shape": (3,)}, {"shape": ()}):
            if leaf._replace(**change) != leaf:
                yield case._replace(
                    params=cases.mapped(lambda j, x, k=k, c=change: x._replace(**c) if j == k else x, case.params)
                )
    if case.seed:
        yield case._replace(seed=0)


def without(tree: Any) -> Iterator[Any]:
    """Yield trees without a leaf or a branch, and branches alone."""
    if isinstance(tree, Leaf):
        return
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    items = {n: tree[n] for n in keys}

    def made(parts: dict[Any, Any]) -> Any:
        return parts if isinstance(tree, dict) else type(tree)(parts.values())

    yield from items.values()
    if len(keys) > 1:
        yield from (made({m: x for m, x in items.items() if m != n}) for n in keys)
    for n in keys:
        yield from (made({**items, n: x}) for x in without(items[n]))


def events(event: Any, count: int) -> Iterator[Any]:
    """Yield simpler events."""
    if not isinstance(event, Step):
        return
    yield Step(value=event.value)
    if event.layout != "C":
        yield event._replace(layout="C")
    if event.overrides:
        yield event._replace(overrides={})
    yield from (event._replace(overrides={n: 0.5}) for n, x in event.overrides.items() if x != 0.5)
    if isinstance(event.grads, tuple):
        yield from (event._replace(grads=kind) for kind in dict.fromkeys(event.grads[:count]))
        for k in range(min(count, len(event.grads))):
            if event.grads[k] != "normal":
                yield event._replace(grads=(*event.grads[:k], "normal", *event.grads[k + 1 : count]))


def texts(text: str) -> Iterator[str]:
    """Yield Python with less in it: a call is one of its arguments, or has one less."""
    tree = ast.parse(text, mode="eval")
    for number, node in enumerate(ast.walk(tree)):
        for change in _changes(node):
            made = copy.deepcopy(tree)
            for other, found in enumerate(ast.walk(made)):
                if other == number:
                    made = _Put(found, change(found)).visit(made)
                    break
            yield ast.unparse(ast.fix_missing_locations(made))


class _Put(ast.NodeTransformer):
    """Puts a node in the place of another."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else super().generic_visit(node)


def _changes(node: ast.AST) -> Iterator[Callable[[Any], Any]]:
    """Yield what may be done to a node, as functions of a copy of it."""
    if isinstance(node, ast.Call):
        for i, x in enumerate(node.args):
            if isinstance(x, ast.Call | ast.Constant):
                yield lambda n, i=i: n.args[i]
        for i in range(len(node.args)):
            yield lambda n, i=i: ast.Call(n.func, n.args[:i] + n.args[i + 1 :], n.keywords)
        for i in range(len(node.keywords)):
            yield lambda n, i=i: ast.Call(n.func, n.args, n.keywords[:i] + n.keywords[i + 1 :])
    if isinstance(node, ast.Lambda):
        yield lambda n: ast.Constant(0.5)
    if isinstance(node, ast.Dict):
        for i in range(len(node.keys)):
            yield lambda n, i=i: ast.Dict(n.keys[:i] + n.keys[i + 1 :], n.values[:i] + n.values[i + 1 :])
