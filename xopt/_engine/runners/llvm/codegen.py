"""Write a program as LLVM IR: one loop over the elements of all leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from xopt._arrays.dtypes import TABLE
from xopt._engine.program.lower import KNOWN, PARTS, Unsupported, lower, split_at_block_max
from xopt._engine.program.quantize import BLOCK, is_scale
from xopt._engine.program.trace import BOOL, COMPLEX, Program
from xopt._engine.runners.llvm.templates import FUNCTIONS, module
from xopt._engine.runners.llvm.text import REALS, STORED, Text, constant, frame

OPERATIONS = {
    "add": "fadd {T} {0}, {1}",
    "subtract": "fsub {T} {0}, {1}",
    "multiply": "fmul {T} {0}, {1}",
    "divide": "fdiv {T} {0}, {1}",
    "negative": "fneg {T} {0}",
    "sqrt": "call {T} @llvm.sqrt.{F}({T} {0})",
    "abs": "call {T} @llvm.fabs.{F}({T} {0})",
    "sign": "call {T} @sign({T} {0})",
    "maximum": "call {T} @maximum({T} {0}, {T} {1})",
    "minimum": "call {T} @minimum({T} {0}, {T} {1})",
    "less": "fcmp olt {T} {0}, {1}",
    "less_equal": "fcmp ole {T} {0}, {1}",
    "greater": "fcmp ogt {T} {0}, {1}",
    "greater_equal": "fcmp oge {T} {0}, {1}",
    "equal": "fcmp oeq {T} {0}, {1}",
    "not_equal": "fcmp une {T} {0}, {1}",
    "logical_and": "and i1 {0}, {1}",
    "logical_or": "or i1 {0}, {1}",
    "logical_not": "xor i1 {0}, true",
    "isnan": "fcmp uno {T} {0}, {0}",
    "isinf": "fcmp oeq {T} {0}, 0x7FF0000000000000",
    "isfinite": "fcmp olt {T} {0}, 0x7FF0000000000000",
    "where": "select i1 {0}, {K} {1}, {K} {2}",
    "noise": "call {T} @noise(i64 {at}, {T} {0}, {T} {1}, {T} {2}, {T} {3}, {T} {4}, {T} {5})",
    **{name: f"call float @{name}(float {{0}}, float {{1}})" for name in KNOWN},
    **{
        name: f"call {{T}} @{name}{{E}}({', '.join(f'{{T}} {{{k}}}' for k in range(count))})"
        for name, count in FUNCTIONS.items()
    },
}
"""How LLVM spells each operation on single numbers."""
_OF_SIZE = {"isinf", "isfinite"}
_OF_TRUTH = {"logical_and", "logical_or", "logical_not"}
_WORDS = {"tasks": "ptr", "addresses": "ptr", "leaves": "i64", "scalars": "ptr", "rows": "i64", "out": "ptr"}
"""What a kernel finds in the frame that it is given."""


class Array(NamedTuple):
    """One column of the address table: the arrays, one per leaf, that a kernel calls by one name."""

    name: str
    dtype: str
    """As stored; of complex numbers, that of their parts."""
    paired: bool
    """Whether the numbers are complex."""

    @property
    def scales(self) -> bool:
        """Whether there is one number a block."""
        return is_scale(self.name.removeprefix("new "))


class Table(NamedTuple):
    """What a kernel gets: which arrays it reads, and where each output goes."""

    arrays: tuple[Array, ...]
    stores: tuple[tuple[str, int], ...]
    """Output and its column."""


def table(program: Program, stored: Mapping[str, str], fresh: bool | None) -> Table:
    """Lay out the columns of the address table: what is read, and what is written over it or, if ``fresh``, beside it.

    ``stored`` has the dtype of each array, of complex ones that of their parts; ``u`` is stored as ``p``. With
    ``fresh=None`` nothing is stored.
    """
    arrays = [Array(key, stored[key], program.nodes[i].kind == COMPLEX) for key, i in program.loads.items()]
    columns = {x.name: k for k, x in enumerate(arrays)}
    wide = any(program.nodes[i].kind == COMPLEX for i in program.loads.values())
    stores = []
    for key, i in program.outputs.items() if fresh is not None else ():
        kind, old = program.nodes[i].kind, program.loads.get(key)
        if kind != COMPLEX and (wide if key == "u" else old is not None and program.nodes[old].kind == COMPLEX):
            raise Unsupported(f"{key}: real numbers for a complex array")
        if fresh or key not in columns:
            dtype = stored["p" if key == "u" else key]
            arrays.append(Array(f"new {key}" if fresh else key, dtype, kind == COMPLEX))
        stores.append((key, len(arrays) - 1 if fresh or key not in columns else columns[key]))
    return Table(tuple(arrays), tuple(stores))


class _Store(NamedTuple):
    """What is stored, and in which column."""

    node: int
    name: str
    part: str
    column: int


def lowered(program: Program) -> Program:
    """Return a program as it is written."""
    return lower(program, frozenset(KNOWN))


class _Loop:
    """The loop of a program: its arithmetic, and how it gets at memory."""

    def __init__(self, program: Program, columns: Table, real: str) -> None:
        self.low, self.columns, self.real = lowered(program), columns, real
        self.type, self.suffix, _ = REALS[real]
        self.text = Text()
        self.names = dict[int, str]()
        self.block = ""
        """The number of the block, in loops over blocks."""
        self.scalars = {k: text for k, text in enumerate(self.low.scalars) if _literal(text) is None}
        """Those that a kernel is given; what is a number for ever is written as such."""
        self._constants = {f"s{k}": constant(_literal(text), real) for k, text in enumerate(self.low.scalars)}
        self._where = {a.name + part: (k, part) for k, a in enumerate(columns.arrays) for part in _parts(a)}

    @property
    def arguments(self) -> list[str]:
        """What the loop of a task is given: arrays from its first element on, scalars, and which elements these are."""
        arrays = [f"ptr noalias %a{k}" for k in range(len(self.columns.arrays))]
        return [*arrays, *[f"{self.type} %s{k}" for k in self.scalars], "i64 %low", "i64 %n"]

    def array(self, name: str) -> Array:
        """Return the column of what is loaded by a name."""
        return self.columns.arrays[self._where[name][0]]

    def compute(self, node: int, at: str) -> None:
        """Write one operation."""
        op, args, kind = self.low.nodes[node]
        if op not in OPERATIONS:
            raise Unsupported(op)
        truth = op in _OF_TRUTH
        names = [self._as(a, truth or (op == "where" and (k == 0 or kind == BOOL))) for k, a in enumerate(args)]
        if op in _OF_SIZE:
            names = [self.text.do(OPERATIONS["abs"].format(names[0], T=self.type, F=self.suffix))]
        if op == "noise":
            at = self.text.do(f"add i64 %low, {at}")
        spelled = OPERATIONS[op].format(
            *names, T=self.type, F=self.suffix, E="f" if self.type == "float" else "", at=at,
            K="i1" if kind == BOOL else self.type,
        )  # fmt: skip
        self.names[node] = self.text.let(f"t{node}", spelled)

    def value(self, node: int) -> str:
        """Return a value as a number."""
        return self._as(node, truth=False)

    def _as(self, x: int | str, truth: bool) -> str:
        """Return a value as a number, or as a truth value."""
        if isinstance(x, str):
            name, is_truth = self._constants[x] or f"%{x}", False
        else:
            name, is_truth = self.names[x], self.low.nodes[x].kind == BOOL
        if truth and not is_truth:
            return self.text.do(f"fcmp une {self.type} {name}, 0.0")
        if is_truth and not truth:
            return self.text.do(f"uitofp i1 {name} to {self.type}")
        return name

    def load(self, name: str, node: int, i: str) -> None:
        """Write the load of one element, or of the scale of its block."""
        k, part = self._where[name]
        array = self.columns.arrays[k]
        value = self.text.load(STORED[array.dtype], f"%a{k}", self._index(array, part, i))
        whole = STORED[array.dtype] == "i8"
        if TABLE[array.dtype].converted:
            kind = self.type if whole else "float"
            value = self.text.do(f"call {kind} @of_{array.dtype}({STORED[array.dtype]} {value})")
        if self.real != TABLE[array.dtype].real and not whole:
            value = self.text.do(f"fpext float {value} to double")
        self.names[node] = value
        self.text.note(name)

    def store(self, what: _Store, i: str) -> None:
        """Write the store of one element, or of the scale of its block."""
        array = self.columns.arrays[what.column]
        value = self.value(what.node)
        kind, whole = STORED[array.dtype], STORED[array.dtype] == "i8"
        if self.real != TABLE[array.dtype].real and not whole:
            value = self.text.do(f"fptrunc double {value} to float")
        if TABLE[array.dtype].converted:
            given = self.type if whole else "float"
            value = self.text.do(f"call {kind} @to_{array.dtype}({given} {value})")
        self.text.store(kind, value, f"%a{what.column}", self._index(array, what.part, i), what.name + what.part)

    def _index(self, array: Array, part: str, i: str) -> str:
        if array.scales:
            return self.block
        if not array.paired:
            return i
        i = self.text.do(f"shl nsw i64 {i}, 1")
        return i if part == PARTS[0] else self.text.do(f"or disjoint i64 {i}, 1")

    def stores(self) -> list[_Store]:
        """List what is stored."""
        found = []
        for key, column in self.columns.stores:
            array = self.columns.arrays[column]
            for part in _parts(array):
                node = self.low.outputs[key + part]
                if self.low.loads.get(array.name + part) != node:  # else it comes back as it was, where it was
                    found.append(_Store(node, key, part, column))
        return found


def _literal(text: str) -> float | None:
    """Return the number that a scalar is for ever; None of one that has to be computed."""
    try:
        return float(text)
    except ValueError:
        return None


def _parts(array: Array) -> tuple[str, ...]:
    """Name the parts of a number."""
    return PARTS if array.paired else ("",)


def body_source(title: str, program: Program, columns: Table, real: str, half: bool = False) -> str:
    """Write the kernel of a whole step: ``kernel(frame, first, last)`` does the tasks from ``first`` to ``last``.

    The frame is a table of words. A task is a leaf, an element to start from and a number of elements; ``addresses``
    has a row per array and a column per leaf, ``scalars`` one row, or one per leaf. ``half``: the processor converts
    float16.
    """
    loop = _Loop(program, columns, real)
    if any(a.scales for a in columns.arrays):
        _by_block(loop)
    else:
        with loop.text.loop("i", "0", "%n") as i:
            for name, node in loop.low.loads.items():
                loop.load(name, node, i)
            _compute(loop, i, lambda node: True)
            for what in loop.stores():
                loop.store(what, i)
    elements = loop.text.function("elements", loop.arguments, how=" noinline")
    return module(title, real, [_tasks(loop, "elements"), elements], half)


def _compute(loop: _Loop, i: str, wanted: Callable[[int], bool]) -> None:
    for node, (op, _, _) in enumerate(loop.low.nodes):
        if op != "load" and wanted(node):
            loop.compute(node, i)


def _by_block(loop: _Loop) -> None:
    """Write loops over a block: what comes before the largest numbers, these, and what is made with them."""
    low, text, kind = loop.low, loop.text, loop.type
    second_pass, maxima, kept = split_at_block_max(low)
    scales = {node: name for name, node in low.loads.items() if loop.array(name).scales}
    rows = {node: text.do(f"alloca [{BLOCK} x {kind}], align 64") for node in kept if node not in scales}
    late = {*second_pass, *maxima}
    with text.loop("b", "0", text.do(f"sdiv i64 {text.do(f'add i64 %n, {BLOCK - 1}')}, {BLOCK}")) as block:
        loop.block = block
        begin = text.do(f"mul nsw i64 {block}, {BLOCK}")
        left = text.do(f"sub nsw i64 %n, {begin}")
        short = text.do(f"icmp slt i64 {left}, {BLOCK}")
        count = text.do(f"select i1 {short}, i64 {left}, i64 {BLOCK}")
        for node, name in scales.items():
            loop.load(name, node, block)
        with text.loop("i", "0", count) as j:
            i = text.do(f"add nsw i64 {begin}, {j}")
            for name, node in low.loads.items():
                if node not in scales:
                    loop.load(name, node, i)
            _compute(loop, i, lambda node: node not in late)
            for node, row in rows.items():
                text.store(kind, loop.value(node), row, j)
            for what in loop.stores():
                if what.node not in late:
                    loop.store(what, i)
        for node, of in maxima.items():
            loop.names[node] = text.let(f"t{node}", f"call {kind} @largest(ptr {rows[of]}, i64 {count})")
        for what in loop.stores():
            if what.node in maxima:
                loop.store(what, block)
        if not second_pass:
            return
        with text.loop("j", "0", count) as j:
            i = text.do(f"add nsw i64 {begin}, {j}")
            for node, row in rows.items():
                value = text.load(kind, row, j)
                loop.names[node] = text.do(f"fcmp une {kind} {value}, 0.0") if low.nodes[node].kind == BOOL else value
            _compute(loop, i, lambda node: node in second_pass)
            for what in loop.stores():
                if what.node in second_pass:
                    loop.store(what, i)


def sums_source(title: str, program: Program, columns: Table, half: bool = False) -> str:
    """Write the kernel of a reduction: its tasks are whole chunks, and ``out[k]`` gets the sums of task ``k``.

    The order is NumPy's: halves, down to blocks of 128 numbers, of which eight are summed side by side.
    """
    loop = _Loop(program, columns, "float64")
    text, count = loop.text, len(loop.low.outputs)
    terms = [text.do(f"alloca [{BLOCK} x double], align 64") for _ in range(count)]
    with text.loop("i", "0", "%n") as i:
        if any(a.scales for a in columns.arrays):  # of which the first of the leaf is given, not of the block
            loop.block = text.do(f"sdiv i64 {text.do(f'add nsw i64 %low, {i}')}, {BLOCK}")
        for name, node in loop.low.loads.items():
            loop.load(name, node, i)
        _compute(loop, i, lambda node: True)
        for row, node in zip(terms, loop.low.outputs.values(), strict=True):
            text.store("double", loop.value(node), row, i)
    for j, (row, name) in enumerate(zip(terms, loop.low.outputs, strict=True)):
        text.store("double", text.do(f"call double @sum(ptr {row}, i64 %n)"), "%out", str(j), name)
    block = text.function("block", [*loop.arguments, "ptr %out"], how=" noinline")
    return module(title, "float64", [_tasks(loop, "pairwise", count), _pairwise(loop, count), block], half)


def _pairwise(loop: _Loop, count: int) -> str:
    """Write the function that halves a chunk until its parts are blocks."""
    text = Text()
    scalars = [f"{loop.type} %s{k}" for k in loop.scalars]

    def call(name: str, first: str, n: str, out: str) -> None:
        arrays = []
        for k, array in enumerate(loop.columns.arrays):
            at = text.do(f"shl nsw i64 {first}, 1") if array.paired else first
            at = "0" if array.scales else at
            arrays.append(f"ptr {text.element(STORED[array.dtype], f'%a{k}', at)}")
        low = text.do(f"add nsw i64 %low, {first}")
        text.line(f"call void @{name}({', '.join([*arrays, *scalars, f'i64 {low}', f'i64 {n}', f'ptr {out}'])})")

    other = text.do(f"alloca [{count} x double]")
    small = text.do(f"icmp sle i64 %n, {BLOCK}")
    text.line(f"br i1 {small}, label %whole, label %halves")
    text.lines.append("whole:")
    call("block", "0", "%n", "%out")
    text.line("ret void")
    text.lines.append("halves:")
    half = text.do("lshr i64 %n, 1")
    half = text.do(f"and i64 {half}, -8")
    call("pairwise", "0", half, "%out")
    call("pairwise", half, text.do(f"sub nsw i64 %n, {half}"), other)
    for j in range(count):
        one, two = text.load("double", "%out", str(j)), text.load("double", other, str(j))
        text.store("double", text.do(f"fadd double {one}, {two}"), "%out", str(j))
    return text.function("pairwise", [*loop.arguments, "ptr %out"])


def _tasks(loop: _Loop, name: str, sums: int = 0) -> str:
    """Write the loop over tasks: it finds the arrays and scalars of each, and calls what does it, or its ``sums``."""
    text = Text()
    frame(text, _WORDS)
    with text.loop("k", "%first", "%last") as k:
        task = text.do(f"mul nsw i64 {k}, 3")
        leaf = text.load("i64", "%tasks", task)
        low = text.load("i64", "%tasks", text.do(f"add nsw i64 {task}, 1"))
        n = text.load("i64", "%tasks", text.do(f"add nsw i64 {task}, 2"))
        given = []
        for j, array in enumerate(loop.columns.arrays):
            row = text.do(f"mul nsw i64 %leaves, {j}")
            pointer = text.load("ptr", "%addresses", text.do(f"add nsw i64 {row}, {leaf}"))
            first = ("0" if sums else text.do(f"sdiv i64 {low}, {BLOCK}")) if array.scales else low
            first = text.do(f"shl nsw i64 {first}, 1") if array.paired else first
            given.append(f"ptr {text.element(STORED[array.dtype], pointer, first)}")
            text.note(f"{array.name}, {array.dtype}")
        one = text.do("icmp sgt i64 %rows, 1")
        row = text.do(f"select i1 {one}, i64 {leaf}, i64 0")
        row = text.do(f"mul nsw i64 {row}, {len(loop.low.scalars)}")
        for j, scalar in loop.scalars.items():
            value = text.load("double", "%scalars", text.do(f"add nsw i64 {row}, {j}"))
            value = value if loop.type == "double" else text.do(f"fptrunc double {value} to float")
            text.note(scalar)
            given.append(f"{loop.type} {value}")
        given += [f"i64 {low}", f"i64 {n}"]
        if sums:
            at = text.do(f"mul nsw i64 {k}, {sums}")
            given.append(f"ptr {text.element('double', '%out', at)}")
        text.line(f"call void @{name}({', '.join(given)})")
    return text.function("kernel", ["ptr %frame", "i64 %first", "i64 %last"])
