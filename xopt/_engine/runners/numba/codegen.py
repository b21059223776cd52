"""Write a program as a module for Numba: one loop over the elements of all leaves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from xopt._arrays.dtypes import TABLE
from xopt._engine.program.lower import PARTS, Unsupported, lower, split_at_block_max, statements
from xopt._engine.program.quantize import BLOCK, is_scale
from xopt._engine.program.trace import COMPLEX, Program

OPERATIONS = {
    "add": "({} + {})",
    "subtract": "({} - {})",
    "multiply": "({} * {})",
    "divide": "({} / {})",
    "negative": "(-{})",
    "sqrt": "math.sqrt({})",
    "abs": "abs({})",
    "hypot": "math.hypot({}, {})",
    "sign": "({0} if {0} != {0} else (ONE if {0} > ZERO else (-ONE if {0} < ZERO else ZERO)))",
    "maximum": "({0} if {0} >= {1} or {0} != {0} else {1})",
    "minimum": "({0} if {0} <= {1} or {0} != {0} else {1})",
    "less": "({} < {})",
    "less_equal": "({} <= {})",
    "greater": "({} > {})",
    "greater_equal": "({} >= {})",
    "equal": "({} == {})",
    "not_equal": "({} != {})",
    "logical_and": "({} and {})",
    "logical_or": "({} or {})",
    "logical_not": "(not {})",
    "isnan": "({0} != {0})",
    "isinf": "(abs({}) == INF)",
    "isfinite": "(abs({}) < INF)",
    "where": "({1} if {0} else {2})",
    "noise": "noise(low + i, {}, {}, {}, {}, {})",
    "largest": "largest({})",
    **{name: f"math.{name}({{}})" for name in ("exp", "expm1", "log", "log1p", "sin", "cos", "tanh")},
    "pow": "({} ** {})",
}
"""How Numba spells each operation on single numbers."""


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


def body_source(title: str, program: Program, columns: Table, real: str) -> str:
    """Write the kernel of a whole step: ``kernel(tasks, addresses, scalars, first, last)``.

    It does the tasks from ``first`` to ``last``. A task is a leaf, an element to start from and a number of elements;
    ``addresses`` has a row per array and a column per leaf, ``scalars`` one row, or one per leaf.
    """
    low = lower(program)
    made = {s.node: f"t{s.node} = {s.expression}" for s in statements(low, OPERATIONS)}
    if any(node.op == "largest" for node in low.nodes):
        return _module(title, real, "", _by_block(low, columns, real, made))
    inside = [*_loads(columns, low, real), *made.values(), *(line for _, line in _stores(columns, low))]
    return _module(title, real, "", [*_start(columns, low, real), "        for i in range(n):", *_indented(12, inside)])


def _indented(n: int, lines: Iterable[str]) -> list[str]:
    return [" " * n + line for line in lines]


def _stores(columns: Table, low: Program) -> Iterator[tuple[int, str]]:
    """Write the statements that store results, each with the node that it stores."""
    for key, column in columns.stores:
        array = columns.arrays[column]
        for part, at in _parts(array):
            node = low.outputs[key + part]
            if low.loads.get(array.name + part) == node:
                continue  # it comes back as it was, where it was
            value = f"t{node}"
            value = f"to_{array.dtype}({value})" if TABLE[array.dtype].converted else value
            yield node, f"store(a{column}, {at}, {column}, {value})  # {key}{part}"


def _by_block(low: Program, columns: Table, real: str, made: dict[int, str]) -> Iterator[str]:
    """Write loops over a block: what comes before the largest numbers, these, and what is made with them."""
    second_pass, maxima, kept = split_at_block_max(low)
    rows, stores = {a: k for k, a in enumerate(kept)}, list(_stores(columns, low))
    size = TABLE[real].itemsize
    first = len(columns.arrays)
    yield f"    rows = np.empty(({len(rows) + 1}, {BLOCK}), np.{real})  # a row more, for what is found"
    yield f"    bits = rows.view(np.int{8 * size})  # of numbers that are not below 0, they have the same order"
    yield from (
        f"    r{k} = {TABLE[real].compiled}_at(rows.ctypes.data + {k * size * BLOCK})  # t{a}" for a, k in rows.items()
    )
    yield from _start(columns, low, real)
    yield f"        for begin in range(0, n, {BLOCK}):"
    yield f"            end = min(begin + {BLOCK}, n)"
    yield "            for i in range(begin, end):"
    yield from _indented(16, _loads(columns, low, real))
    yield from _indented(16, (line for i, line in made.items() if not (i in second_pass or i in maxima)))
    yield from _indented(16, (f"store(r{k}, i - begin, {first + k}, t{a})" for a, k in rows.items()))
    yield from _indented(16, (line for node, line in stores if not (node in second_pass or node in maxima)))
    yield from _indented(12, (f"t{i} = largest(rows, bits, {rows[a]}, end - begin)" for i, a in maxima.items()))
    yield from _indented(12, (line.replace("i //", "begin //", 1) for node, line in stores if node in maxima))
    yield "            for i in range(begin, end):"
    yield from _indented(16, (f"t{a} = load(r{k}, i - begin, {first + k})" for a, k in rows.items()))
    yield from _indented(16, (line for i, line in made.items() if i in second_pass))
    yield from _indented(16, (line for node, line in stores if node in second_pass))


def sums_source(title: str, program: Program, columns: Table) -> str:
    """Write the kernel of a reduction: ``kernel(tasks, addresses, scalars, first, last, terms, out)``.

    Its tasks are whole chunks. ``terms`` is scratch, a row a term; ``out[k]`` gets the sums of task ``k``.
    """
    low = lower(program)
    lines = [*_start(columns, low, "float64"), "        for i in range(n):"]
    lines += [f"            {line}" for line in _loads(columns, low, "float64")]
    lines += [f"            t{s.node} = {s.expression}" for s in statements(low, OPERATIONS)]
    lines += [f"            terms[{j}, i] = t{node}  # {name}" for j, (name, node) in enumerate(low.outputs.items())]
    lines += [f"        out[k, {j}] = pairwise(terms[{j}], 0, n)" for j in range(len(low.outputs))]
    return _module(title, "float64", ", terms, out", lines)


def _parts(array: Array) -> list[tuple[str, str]]:
    """Name the parts of a number, and say where they lie."""
    if array.scales:
        return [("", f"i // {BLOCK}")]
    return [(PARTS[0], "2 * i"), (PARTS[1], "2 * i + 1")] if array.paired else [("", "i")]


def _start(columns: Table, low: Program, real: str) -> Iterator[str]:
    yield "    for k in range(first, last):"
    yield "        leaf, low, n = tasks[k, 0], tasks[k, 1], tasks[k, 2]"
    for k, array in enumerate(columns.arrays):
        kind = TABLE[array.dtype].compiled
        first = f"low // {BLOCK}" if array.scales else "low"
        at = f"addresses[{k}, leaf] + {int(kind[1]) * (1 + array.paired)} * {first}"
        yield f"        a{k} = {kind}_at({at})  # {array.name}, {array.dtype}"
    if low.scalars:
        yield "        row = leaf if scalars.shape[0] > 1 else 0"
    for k, text in enumerate(low.scalars):
        yield f"        s{k} = {real}(scalars[row, {k}])  # {text}"


def _loads(columns: Table, low: Program, real: str) -> Iterator[str]:
    where = {array.name + part: (k, array, at) for k, array in enumerate(columns.arrays) for part, at in _parts(array)}
    for name, node in low.loads.items():
        k, array, at = where[name]
        value = f"load(a{k}, {at}, {k})"
        value = f"of_{array.dtype}({value})" if TABLE[array.dtype].converted else value
        if real == "float64" and array.dtype != "float64":
            value = f"float64({value})"
        yield f"t{node} = {value}  # {name}"


def _module(title: str, real: str, more: str, lines: Iterable[str]) -> str:
    signature = f"void(i8[:, ::1], i8[:, ::1], f8[:, ::1], i8, i8{', f8[:, ::1], f8[:, ::1]' if more else ''})"
    text = "\n".join(lines)
    converted = [d.name for d in TABLE.values() if d.converted]
    helpers = {"largest", "load", "noise", "pairwise", "store", *(f"{d.compiled}_at" for d in TABLE.values())}
    helpers |= {f"{way}_{name}" for way in ("of", "to") for name in converted}
    used = [name for name in sorted(helpers) if f"{name}(" in text]
    values = {"ZERO": f"{real}(0)", "ONE": f"{real}(1)", "INF": f"{real}(math.inf)"}
    constants = [f"{name} = {value}\n" for name, value in values.items() if name in text]
    numpy = "import numpy as np\n" if "np." in text else ""
    imports = [name for name in ("float32", "float64") if f"{name}(" in text + "".join(constants)]
    return f'''"""{title}

Made by xopt. The name of this file is a digest of its text.
"""

import math

{numpy}from numba import {", ".join([*imports, "njit"])}

from xopt._engine.runners.numba.intrinsics import {", ".join(used)}

{"".join(constants)}
@njit("{signature}", nogil=True, cache=True, error_model="numpy")
def kernel(tasks, addresses, scalars, first, last{more}):
{text}
'''
