"""The text of a rule, as ``repr`` writes it, made a rule again. Nothing is executed but names of xopt."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from typing import Any

from xopt.rule import FunctionalOptimizer, check_method
from xopt.rule._component import Component
from xopt.schedules import Schedule

_OTHERS = ("Freeze", "chain", "layerwise_decay", "no_decay_1d", "scaled")
_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow, ast.BitOr: operator.or_, ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip


def parse_rule(text: str, known: Callable[[str], Any] = lambda name: None) -> FunctionalOptimizer:
    """Return the rule of which ``text`` is the ``repr``, or which a person wrote so.

    ``known`` is asked for names that are not those of xopt, and returns a class of components, a function that is a
    hyperparameter or chooses parameters, or None. Raises ValueError, which says what is no part of a rule and where it
    stands, and what the rule itself raises.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
        found = _Reader(text.strip(), known).read(tree.body)
    except ArithmeticError as error:
        raise ValueError(f"rule: {text!r} cannot be computed: {error}") from None
    except SyntaxError as error:
        raise ValueError(f"rule: {text!r} cannot be read: {error.msg} at character {error.offset}") from None
    except RecursionError:
        raise ValueError(f"rule: nested too deeply: {text[:40]!r}…") from None
    check_method(found)
    rule: FunctionalOptimizer = found
    return rule


def _offered() -> dict[str, Any]:
    """Return what may stand in a rule: rules, components and what wraps them, schedules."""
    import xopt

    public = {n: getattr(xopt, n) for n in xopt.__all__}
    found = {
        n: x
        for n, x in public.items()
        if n in _OTHERS or (isinstance(x, type) and issubclass(x, Component | FunctionalOptimizer))
    }
    patterns = {"re.compile": re.compile, **{f"re.{n}": x for n, x in re.RegexFlag.__members__.items()}}
    schedules = {n: getattr(xopt.schedules, n) for n in xopt.schedules.__all__ if n != "Schedule"}
    return {**patterns, **schedules, **found, "inf": math.inf, "nan": math.nan}


class _Reader:
    def __init__(self, text: str, known: Callable[[str], Any]) -> None:
        self._text, self._known, self._names = text, known, _offered()

    def read(self, node: ast.AST) -> Any:
        match node:
            case ast.Constant(value=None | bool() | int() | float() | complex() | str()):
                return node.value
            case ast.Name():
                return self._named(node, node.id)
            case ast.Attribute():
                return self._named(node, ast.unparse(node).removeprefix("xopt.").removeprefix("schedules."))
            case ast.Tuple() | ast.List():
                return (tuple if isinstance(node, ast.Tuple) else list)(map(self.read, node.elts))
            case ast.Dict() if None not in node.keys:
                return {self.read(k): self.read(x) for k, x in zip(node.keys, node.values, strict=True) if k}
            case ast.UnaryOp() if type(node.op) in _OPERATORS:
                return _OPERATORS[type(node.op)](self.read(node.operand))
            case ast.BinOp() if type(node.op) in _OPERATORS:
                return self._computed(node, self.read(node.left), self.read(node.right))
            case ast.Call() if len({k.arg for k in node.keywords} - {None}) == len(node.keywords):
                made, own = self.read(node.func), self._names.values()
                if made not in own and not (isinstance(made, type) and issubclass(made, Component)):
                    raise self._refused(node)
                given = {str(k.arg): self.read(k.value) for k in node.keywords}
                return made(*map(self.read, node.args), **given)
        raise self._refused(node)

    def _named(self, node: ast.AST, name: str) -> Any:
        found = self._names[name] if name in self._names else self._known(name)
        if found is None:
            raise self._refused(node)
        return found

    def _computed(self, node: ast.BinOp, left: Any, right: Any) -> Any:
        many = left, right
        kinds = {ast.Pow: Schedule, ast.BitOr: re.RegexFlag}  # powers of numbers may be very large
        of_kind = [isinstance(x, kinds.get(type(node.op), object)) for x in many]
        fine = all(of_kind) if isinstance(node.op, ast.BitOr) else any(of_kind)
        if not fine or any(isinstance(x, str | tuple | list | dict | bool | None) for x in many):
            raise self._refused(node)
        return _OPERATORS[type(node.op)](left, right)

    def _refused(self, node: Any) -> ValueError:
        part = ast.get_source_segment(self._text, node) or self._text
        return ValueError(f"rule: {part[:60]!r} at character {node.col_offset + 1} is no part of a rule of xopt")
