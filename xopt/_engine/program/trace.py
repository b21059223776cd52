"""Record a rule by calling it: with symbols for arrays and hyperparameters, and a recorder in place of ``xp``.

What comes out is a :class:`Program`: a list of elementwise array operations, and Python expressions for the scalars
that they take. The recorder accepts what gives one answer on every library, and refuses the rest by name.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

REAL, COMPLEX, BOOL = "real", "complex", "bool"

_BINARY = frozenset(["add", "subtract", "multiply", "divide", "maximum", "minimum"])
_COMPARE = frozenset(["less", "less_equal", "greater", "greater_equal", "equal", "not_equal"])
_LOGICAL = frozenset(["logical_and", "logical_or", "logical_not"])
_TEST = frozenset(["isnan", "isinf", "isfinite"])
_UNARY = frozenset(["negative", "sqrt", "abs", "sign", "real", "imag", "conj"])
_INEXACT = frozenset(["exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "pow"])
_ARITY = dict.fromkeys(_UNARY | _TEST | {"logical_not"} | _INEXACT - {"pow"}, 1)
_REAL_ONLY = _COMPARE - {"equal", "not_equal"} | {"maximum", "minimum", "sign", "real", "imag"}
FUNCTIONS = _BINARY | _COMPARE | _LOGICAL | _TEST | _UNARY | _INEXACT | {"where", "square"}
"""Every function a rule may call. Names and meanings are the array-API standard's."""


class Node(NamedTuple):
    """One operation on arrays. Arguments are earlier nodes (int) or scalars (str)."""

    op: str
    args: tuple[int | str, ...]
    kind: str


class TracedScalar:
    """A hyperparameter, or an expression of them. The host computes it once a step, in float64."""

    __slots__ = ("text",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, text: str) -> None:
        self.text = text

    def _refuse(self, *_: Any) -> NoReturn:
        raise TypeError(
            f"a rule may not look at the value of a hyperparameter ({self.text}): it changes from step to step and "
            f"may live on a device. Choose formulas by static fields, and values in `host` by xp.where"
        )

    __bool__ = __float__ = __int__ = __index__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = _refuse

    def __neg__(self) -> TracedScalar:
        return TracedScalar(f"(-{self.text})")


def _literal(x: object) -> str | None:
    if type(x) not in (int, float):  # a NumPy scalar beside an array would be a strong float64
        return None
    text = repr(x)
    return f"({text})" if text.startswith("-") else text


def _scalar_operator(symbol: str, reverse: bool) -> Any:
    def operate(self: TracedScalar, other: Any) -> Any:
        other = float(other) if isinstance(other, float) else other
        text = other.text if isinstance(other, TracedScalar) else _literal(other)
        if text is None:
            return NotImplemented
        if symbol == "**" and reverse and text.startswith("(-"):
            raise TypeError(
                f"{text} to the power of a hyperparameter ({self.text}): a negative base has no real powers"
            )
        return TracedScalar(f"({text} {symbol} {self.text})" if reverse else f"({self.text} {symbol} {text})")

    return operate


for _name, _symbol in {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "pow": "**"}.items():
    setattr(TracedScalar, f"__{_name}__", _scalar_operator(_symbol, reverse=False))
    setattr(TracedScalar, f"__r{_name}__", _scalar_operator(_symbol, reverse=True))


class TracedArray:
    """An array inside a rule that is being recorded."""

    __slots__ = ("index", "kind", "tape")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, tape: Tracer, index: int, kind: str) -> None:
        self.tape, self.index, self.kind = tape, index, kind

    def __array_namespace__(self, api_version: str | None = None) -> Tracer:
        return self.tape

    def __bool__(self) -> NoReturn:
        raise TypeError("a rule may not branch on an array: use xp.where")

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a rule sees elements, not arrays: it may not use .{name}")

    def __pow__(self, power: Any) -> TracedArray:
        if isinstance(power, int | float) and power == 2:
            return self.tape.emit("multiply", self, self)
        return self.tape.emit("pow", self, power)

    def __rpow__(self, base: Any) -> TracedArray:
        return self.tape.emit("pow", base, self)


def _symbol_operator(op: str, reverse: bool = False) -> Any:
    def operate(self: TracedArray, other: Any) -> TracedArray:
        return self.tape.emit(op, other, self) if reverse else self.tape.emit(op, self, other)

    return operate


def _no_in_place(self: TracedArray, other: Any) -> NoReturn:
    raise TypeError("a rule is pure: write m = m * x, not m *= x, which would write into the caller's array")


_OPERATORS = {"add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide"}
for _name, _op in _OPERATORS.items():
    setattr(TracedArray, f"__{_name}__", _symbol_operator(_op))
    setattr(TracedArray, f"__r{_name}__", _symbol_operator(_op, reverse=True))
for _name in (*_OPERATORS, "pow", "and", "or", "xor"):
    setattr(TracedArray, f"__i{_name}__", _no_in_place)
for _name, _op in {
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
    "eq": "equal",
    "ne": "not_equal",
    "and": "logical_and",
    "or": "logical_or",
}.items():
    setattr(TracedArray, f"__{_name}__", _symbol_operator(_op))
for _name, _op in {"neg": "negative", "abs": "abs", "invert": "logical_not"}.items():
    setattr(TracedArray, f"__{_name}__", lambda self, _op=_op: self.tape.emit(_op, self))


class Tracer:
    """The namespace that a rule is recorded with: ``xp``."""

    def __init__(self, inexact: bool = False) -> None:
        self._inexact = inexact
        self._nodes: list[Node] = []
        self._known: dict[Node, int] = {}
        self._scalars: dict[str, str] = {}

    def load(self, name: str, kind: str) -> TracedArray:
        """Stand for an array that the program reads."""
        return self._append(Node("load", (name,), kind))

    def __getattr__(self, name: str) -> Callable[..., TracedArray]:
        if name not in FUNCTIONS:
            raise AttributeError(
                f"xp.{name} is not elementwise, or differs between libraries; "
                f"a rule may use {', '.join(sorted(FUNCTIONS))}"
            )
        return lambda *args: self.emit(name, *args)

    def emit(self, op: str, *args: Any) -> TracedArray:
        """Record one operation."""
        arrays = [x for x in args if isinstance(x, TracedArray)]
        if not arrays:
            raise TypeError(f"xp.{op} needs an array: compute scalars with Python operators, or in `host`")
        wanted = 3 if op == "where" else 1 if op == "square" else _ARITY.get(op, 2)
        if len(args) != wanted:
            raise TypeError(f"xp.{op} takes {wanted} argument{'s' * (wanted > 1)}, got {len(args)}")
        if op in _INEXACT and not self._inexact:
            hint = "; x ** 2 is a product and is exact; for a root use xp.sqrt" if op == "pow" else ""
            raise TypeError(
                f"xp.{op} differs in the last bits between libraries; a class that needs it says inexact = True{hint}"
            )
        kind = self._kind_of(op, args, {x.kind for x in arrays})
        if op == "square":
            return self.emit("multiply", args[0], args[0])
        if op in ("real", "conj") and arrays[0].kind == REAL:
            return arrays[0]
        return self._append(Node(op, tuple(self._argument(op, x) for x in args), kind))

    def noise(self, *key: Any) -> TracedArray:
        """Record numbers in [0, 1) that depend on the element and on these scalars, as `random.noise` makes them."""
        return self._append(Node("noise", tuple(self._argument("noise", x) for x in key), REAL))

    def known(self, op: str, found: TracedArray, *args: TracedArray) -> TracedArray:
        """Record that what was found is an operation of these arguments, which some languages have: see `lower`."""
        return self._append(Node(op, (found.index, *(x.index for x in args)), REAL))

    def largest(self, size: TracedArray) -> TracedArray:
        """Record the largest of the numbers, none below 0, of the block that an element is in."""
        return self._append(Node("largest", (size.index,), REAL))

    def _kind_of(self, op: str, args: tuple[Any, ...], kinds: set[str]) -> str:
        if op == "where":
            if not (isinstance(args[0], TracedArray) and args[0].kind == BOOL):
                raise TypeError("xp.where needs a boolean array as its condition")
            branches = {x.kind for x in args[1:] if isinstance(x, TracedArray)}
            if not branches:
                raise TypeError(
                    "xp.where needs an array in one branch: of two scalars, libraries make different dtypes"
                )
            if BOOL in branches:
                raise TypeError("xp.where of boolean branches: use the logical functions")
            return COMPLEX if COMPLEX in branches else REAL
        if op in _LOGICAL:
            if kinds != {BOOL} or not all(isinstance(x, TracedArray) for x in args):
                raise TypeError(f"xp.{op} needs boolean arrays")
            return BOOL
        if BOOL in kinds:
            raise TypeError(f"xp.{op} of a boolean array: libraries promote it differently; use xp.where")
        if COMPLEX in kinds and op in _REAL_ONLY - {"real", "imag"}:
            raise TypeError(f"xp.{op} of a complex array has no one meaning; take abs2, xp.real or xp.imag first")
        if op == "square" and COMPLEX in kinds:
            raise TypeError("xp.square of a complex array: for the squared modulus use abs2(xp, x)")
        if op == "imag" and COMPLEX not in kinds:
            raise TypeError("xp.imag needs a complex array")
        if op in _COMPARE | _TEST:
            return BOOL
        return REAL if op in ("abs", "real", "imag") or COMPLEX not in kinds else COMPLEX

    def _argument(self, op: str, x: Any) -> int | str:
        if isinstance(x, TracedArray):
            if x.tape is not self:
                raise TypeError("an array of another recording: a rule may keep nothing between calls")
            return x.index
        text = x.text if isinstance(x, TracedScalar) else _literal(x)
        if text is None:
            raise TypeError(
                f"xp.{op} got {x!r} ({type(x).__name__}): a rule computes with its arrays, its hyperparameters and "
                f"Python numbers"
            )
        return self._scalars.setdefault(text, f"s{len(self._scalars)}")

    def _append(self, node: Node) -> TracedArray:
        if node not in self._known:
            self._known[node] = len(self._nodes)
            self._nodes.append(node)
        return TracedArray(self, self._known[node], node.kind)

    def idle(self, slot: TracedArray, outputs: list[TracedArray], output: TracedArray) -> bool:
        """Whether a slot comes back unchanged and nothing reads it, not even what is thrown away later."""
        read = any(slot.index in node.args for node in self._nodes)
        return output.index == slot.index and not read and [x.index for x in outputs].count(slot.index) == 1

    def finish(self, outputs: Mapping[str, TracedArray], inputs: list[str]) -> Program:
        """Close the recording: drop what no output needs, and compile the scalars."""
        texts = tuple(self._scalars)
        return pruned(self._nodes, {name: x.index for name, x in outputs.items()}, texts, tuple(inputs))


class Program:
    """Elementwise operations in order, what they produce, and the scalars that they take."""

    def __init__(
        self, nodes: tuple[Node, ...], outputs: dict[str, int], scalars: tuple[str, ...], inputs: tuple[str, ...]
    ) -> None:
        self.nodes, self.outputs, self.scalars, self.inputs = nodes, outputs, scalars, inputs
        self.loads: dict[str, int] = {str(n.args[0]): i for i, n in enumerate(nodes) if n.op == "load"}
        self.source = f"def scalars({', '.join(inputs)}):\n    return ({''.join(s + ', ' for s in scalars)})\n"
        made: dict[str, Any] = {"inf": math.inf, "nan": math.nan}
        exec(compile(self.source, "<xopt scalars>", "exec"), made)
        self._scalars: Callable[..., tuple[Any, ...]] = made["scalars"]
        self.last_use: dict[int, int] = {a: i for i, n in enumerate(nodes) for a in n.args if isinstance(a, int)}

    def evaluate(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """Compute the scalars of one step from the named values of :attr:`inputs`: Python floats, or 0-d arrays.

        This is where a formula of scalars that cannot be computed raises, before any array is touched.
        """
        return self.compute([values[n] for n in self.inputs])

    def compute(self, given: list[Any]) -> tuple[Any, ...]:
        """Do what :meth:`evaluate` does with the values in the order of :attr:`inputs`.

        What is a :class:`~xopt._engine.program.algebra.Value` comes out as an array.
        """
        arrays = [x.array for x in given if hasattr(x, "array")]
        if arrays and all(isinstance(x, np.ndarray) and x.ndim == 1 for x in arrays):
            return self._compute_by_leaf(given)
        found = self._scalars(*given)
        if {*map(type, found)} == {float}:
            return found
        return tuple(_real(x) if isinstance(x, int | float | complex) else x.array for x in found)

    def _compute_by_leaf(self, given: list[Any]) -> tuple[Any, ...]:
        """Do the same for all leaves at once: a NumPy vector has a value for each of them."""
        try:
            with np.errstate(over="ignore", under="ignore", divide="raise", invalid="raise"):
                found = [getattr(x, "array", x) for x in self._scalars(*given)]
            if not any(map(_is_complex, found)):
                return tuple(x if isinstance(x, np.ndarray) else _real(x) for x in found)
        except FloatingPointError:
            pass  # let Python say what it thinks of that
        count = next(len(x.array) for x in given if hasattr(x, "array"))
        leaves = ([x.at(k) if hasattr(x, "array") else x for x in given] for k in range(count))
        rows = [[_real(x) for x in self._scalars(*own)] for own in leaves]
        return tuple(np.asarray(column) for column in zip(*rows, strict=True))


def pruned(
    nodes: Sequence[Node], outputs: Mapping[str, int], scalars: tuple[str, ...], inputs: tuple[str, ...]
) -> Program:
    """Return a program without the operations and scalars that no output needs."""
    wanted = list(outputs.values())
    keep: set[int] = set()
    while wanted:
        i = wanted.pop()
        if i not in keep:
            keep.add(i)
            wanted += [a for a in nodes[i].args if isinstance(a, int)]
    order = {old: new for new, old in enumerate(sorted(keep))}
    names: dict[str, str] = {}
    kept = []
    for op, args, kind in (nodes[i] for i in order):
        if op != "load":
            args = tuple(order[a] if isinstance(a, int) else names.setdefault(a, f"s{len(names)}") for a in args)
        kept.append(Node(op, args, kind))
    texts = tuple(scalars[int(name[1:])] for name in names)
    return Program(tuple(kept), {name: order[i] for name, i in outputs.items()}, texts, inputs)


def _is_complex(x: Any) -> bool:
    return x.dtype.kind == "c" if isinstance(x, np.ndarray) else isinstance(x, complex)


def _real(x: Any) -> float:
    if isinstance(x, complex):
        raise ValueError(f"a root or power of a negative number among the hyperparameters is {x}; it must be real")
    return float(x)


@functools.lru_cache(maxsize=256)
def rooted(program: Program) -> tuple[Program, dict[str, tuple[str, ...]]]:
    """Return a program that stops before the squares, and for each output that is a sum of squares, what is squared.

    These are outputs in its place; others stay as they are.
    """

    def roots(i: int) -> list[int]:
        op, args, _ = program.nodes[i]
        if op == "multiply" and args[0] == args[1] and isinstance(args[0], int):
            return [args[0]]
        if op == "add" and all(isinstance(a, int) for a in args):
            parts = [roots(int(a)) for a in args]
            return [x for own in parts for x in own] if all(parts) else []
        return []

    names: dict[str, tuple[str, ...]] = {}
    outputs: dict[str, int] = {}
    for n, i in program.outputs.items():
        found = {f"{n}.{j}": x for j, x in enumerate(roots(i))}
        names |= {n: tuple(found)} if found else {}
        outputs |= found or {n: i}
    return pruned(program.nodes, outputs, program.scalars, program.inputs), names


_OPERATORS_OF: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "negative": operator.neg,
    "less": operator.lt,
    "less_equal": operator.le,
    "greater": operator.gt,
    "greater_equal": operator.ge,
    "equal": operator.eq,
    "not_equal": operator.ne,
}
"""Operations that a scalar may come first in; functions of some libraries want an array there."""


def replay(
    program: Program,
    xp: Any,
    arrays: Mapping[str, Any],
    scalars: Sequence[Any],
    special: Mapping[str, Callable[..., Any]] = {},
) -> dict[str, Any]:
    """Run a program one whole-array operation at a time with a library's own functions: the plainest interpreter.

    An array is let go after its last use. ``special`` has what no library has.
    """
    done: list[Any] = []
    wanted = {*program.outputs.values()}
    for i, (op, args, _) in enumerate(program.nodes):
        if op == "load":
            done.append(arrays[str(args[0])])
            continue
        given = [done[a] if isinstance(a, int) else scalars[int(a[1:])] for a in args]
        done.append((special.get(op) or _OPERATORS_OF.get(op) or getattr(xp, op))(*given))
        for a in args:
            if isinstance(a, int) and program.last_use[a] == i and a not in wanted:
                done[a] = None
    return {name: done[i] for name, i in program.outputs.items()}
