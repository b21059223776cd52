"""A program as statements about single real numbers: what languages without complex arrays are given."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from xopt._engine.program.trace import BOOL, COMPLEX, REAL, Node, Program, pruned

PARTS = (".re", ".im")
"""What is appended to the name of a complex array to name its parts."""

_Value = int | str
_Pair = tuple[_Value, _Value]


class Unsupported(Exception):
    """What a program does has no real-number form here; a runner of whole arrays has to compute it."""


class Statement(NamedTuple):
    """One operation on single numbers: ``t<node> = expression``."""

    node: int
    kind: str
    expression: str


def statements(program: Program, operations: Mapping[str, str]) -> Iterator[Statement]:
    """Spell every operation of a lowered program, loads left out, in the words of a language.

    ``operations`` has a format string for each name; arguments are ``t<node>`` of earlier nodes and ``s<k>`` of
    scalars. Raises `Unsupported` for what the language does not have.
    """
    for i, (op, args, kind) in enumerate(program.nodes):
        if op == "load":
            continue
        if op not in operations:
            raise Unsupported(op)
        yield Statement(i, kind, operations[op].format(*[f"t{a}" if isinstance(a, int) else a for a in args]))


class SplitProgram(NamedTuple):
    """A program with the largest numbers of blocks, as two loops over a block: before these are known, and after."""

    second_pass: frozenset[int]
    """What is computed in the second loop."""
    maxima: dict[int, int]
    """Each largest number, and what it is the largest of."""
    rows: tuple[int, ...]
    """What the first loop leaves for the second one."""


def split_at_block_max(program: Program) -> SplitProgram:
    """Cut a lowered program in two; a largest number may not depend on another one."""
    maxima = {i: int(args[0]) for i, (op, args, _) in enumerate(program.nodes) if op == "largest"}
    second_pass: set[int] = set()
    read: set[int] = set()
    for i, (_, args, _) in enumerate(program.nodes):
        nodes = {a for a in args if isinstance(a, int)}
        if i in maxima or nodes & ({*maxima} | second_pass):
            read |= nodes
            if i not in maxima:
                second_pass.add(i)
    assert not second_pass & {*maxima.values()}
    return SplitProgram(frozenset(second_pass), maxima, tuple(sorted(read - second_pass - {*maxima})))


KNOWN = ("stochastic_bfloat16", "stochastic_float16")
"""Operations that are recorded beside what they are made of: ``(made, arguments...)``."""


@functools.lru_cache(maxsize=256)
def spelled(program: Program, has: frozenset[str] = frozenset()) -> Program:
    """Return a program without known operations, but for those that a language has itself, as ``(arguments...)``."""
    if all(node.op not in KNOWN for node in program.nodes):
        return program
    nodes, place = list[Node](), dict[int, int]()
    for i, (op, args, kind) in enumerate(program.nodes):
        if op in KNOWN and op not in has:
            place[i] = place[int(args[0])]
            continue
        own = args if op == "load" else tuple(place[a] if isinstance(a, int) else a for a in args)
        place[i] = len(nodes)
        nodes.append(Node(op, own[1:] if op in KNOWN else own, kind))
    return pruned(nodes, {n: place[i] for n, i in program.outputs.items()}, program.scalars, program.inputs)


@functools.lru_cache(maxsize=256)
def lower(program: Program, has: frozenset[str] = frozenset()) -> Program:
    """Rewrite complex numbers as pairs of real ones, and known operations that a language does not have.

    A complex array ``p`` becomes two, ``p.re`` and ``p.im``; scalars may be added. A product is
    (ac - bd) + (ad + bc)i, a quotient is Smith's, a modulus is ``hypot``. Other functions of complex arrays (sqrt, exp)
    raise `Unsupported`.
    """
    program = spelled(program, has)
    if all(node.kind != COMPLEX for node in program.nodes):
        return program
    return _Lowering(program).result()


class _Lowering:
    def __init__(self, program: Program) -> None:
        self._program = program
        self._nodes: list[Node] = []
        self._known: dict[Node, int] = {}
        self._scalars = list(program.scalars)

    def result(self) -> Program:
        program, done = self._program, list[_Value | _Pair]()
        for op, args, kind in program.nodes:
            if op == "load" and kind == COMPLEX:
                name = str(args[0])
                done.append((self._add("load", name + PARTS[0]), self._add("load", name + PARTS[1])))
                continue
            given = [done[a] if isinstance(a, int) and op != "load" else a for a in args]
            if any(isinstance(x, tuple) for x in given):
                made = self._of_pairs(op, given, kind)
            else:
                made = self._add(op, *given, kind=kind)  # type: ignore[arg-type]  # no pairs among them
            done.append(made)
        outputs = {}
        for name, i in program.outputs.items():
            value = done[i]
            for part, x in zip(PARTS, value, strict=True) if isinstance(value, tuple) else [("", value)]:
                assert isinstance(x, int)  # only an operand can be a scalar
                outputs[name + part] = x
        return pruned(self._nodes, outputs, tuple(self._scalars), program.inputs)

    def _add(self, op: str, *args: _Value, kind: str = REAL) -> int:
        node = Node(op, args, kind)
        if node not in self._known:
            self._known[node] = len(self._nodes)
            self._nodes.append(node)
        return self._known[node]

    def _literal(self, x: float) -> str:
        text = repr(x)
        if text not in self._scalars:
            self._scalars.append(text)
        return f"s{self._scalars.index(text)}"

    def _of_pairs(self, op: str, given: list[_Value | _Pair], kind: str) -> _Value | _Pair:
        if op == "where":
            condition, (ar, ai), (br, bi) = given[0], self._pair(given[1]), self._pair(given[2])
            assert not isinstance(condition, tuple)
            return self._add("where", condition, ar, br), self._add("where", condition, ai, bi)
        if op in ("real", "imag", "conj", "negative", "abs", "isnan", "isinf", "isfinite"):
            return self._of_one(op, *self._pair(given[0]), kind)
        if op in ("multiply", "divide") and not isinstance(given[1], tuple):
            return self._each(op, *self._pair(given[0]), given[1])
        if op == "multiply" and not isinstance(given[0], tuple):
            return self._each(op, *self._pair(given[1]), given[0])
        if op not in ("add", "subtract", "multiply", "divide", "equal", "not_equal"):
            raise Unsupported(f"{op} of a complex array")
        (ar, ai), (br, bi) = map(self._pair, given)
        if op in ("equal", "not_equal"):
            parts = self._add(op, ar, br, kind=BOOL), self._add(op, ai, bi, kind=BOOL)
            return self._add("logical_and" if op == "equal" else "logical_or", *parts, kind=BOOL)
        if op == "multiply":
            re = self._add("subtract", self._add(op, ar, br), self._add(op, ai, bi))
            return re, self._add("add", self._add(op, ar, bi), self._add(op, ai, br))
        if op == "divide":
            return self._quotient(ar, ai, br, bi)
        return self._sum(op, ar, br), self._sum(op, ai, bi)

    def _pair(self, x: _Value | _Pair) -> _Pair:
        return x if isinstance(x, tuple) else (x, self._literal(0.0))

    def _each(self, op: str, re: _Value, im: _Value, x: _Value) -> _Pair:
        return self._add(op, re, x), self._add(op, im, x)

    def _sum(self, op: str, x: _Value, y: _Value) -> _Value:
        """Add or subtract, of which one may be the absent imaginary part."""
        zero = self._literal(0.0)
        if y == zero:
            return x
        if x == zero:
            return y if op == "add" else self._add("negative", y)
        return self._add(op, x, y)

    def _of_one(self, op: str, re: _Value, im: _Value, kind: str) -> _Value | _Pair:
        if op in ("real", "imag"):
            return re if op == "real" else im
        if op == "conj":
            return re, self._add("negative", im)
        if op == "negative":
            return self._add(op, re), self._add(op, im)
        if op == "abs":
            return self._add("hypot", re, im)
        both = self._add(op, re, kind=BOOL), self._add(op, im, kind=BOOL)
        return self._add("logical_and" if op == "isfinite" else "logical_or", *both, kind=BOOL)

    def _quotient(self, ar: _Value, ai: _Value, br: _Value, bi: _Value) -> _Pair:
        """Divide as Smith did (1962, Algorithm 116), scaled by the larger part of the divisor, like NumPy."""
        one = self._literal(1.0)

        def scaled(x: _Value, y: _Value) -> _Pair:  # x is the larger part: y/x and 1/(x + y·(y/x))
            ratio = self._add("divide", y, x)
            return ratio, self._add("divide", one, self._add("add", x, self._add("multiply", y, ratio)))

        def part(op: str, x: _Value, y: _Value, scale: _Value) -> _Value:
            return self._add("multiply", self._add(op, x, y), scale)

        q, s = scaled(br, bi)
        first = part("add", ar, self._add("multiply", ai, q), s), part("subtract", ai, self._add("multiply", ar, q), s)
        q, s = scaled(bi, br)
        other = part("add", self._add("multiply", ar, q), ai, s), part("subtract", self._add("multiply", ai, q), ar, s)
        larger = self._add("greater_equal", self._add("abs", br), self._add("abs", bi), kind=BOOL)
        return self._add("where", larger, first[0], other[0]), self._add("where", larger, first[1], other[1])
