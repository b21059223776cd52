"""Write a program as a module for Numba: one loop over the elements of all leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from xopt._lower import PARTS, Unsupported, lower, statements
from xopt._trace import COMPLEX, Program

_TYPES = {"float32": "f4", "float64": "f8"}
_HALVES = {"float16", "bfloat16"}

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
    **{name: f"math.{name}({{}})" for name in ("exp", "expm1", "log", "log1p", "sin", "cos", "tanh")},
    "pow": "({} ** {})",
}
"""How Numba spells each operation on single numbers."""


class Array(NamedTuple):
    """One column of the address table: the arrays, one a leaf, that a kernel calls by one name."""

    name: str
    dtype: str
    """As stored; of complex numbers, that of their parts."""
    paired: bool
    """Whether the numbers are complex."""


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
    ``addresses`` has a row an array and a column a leaf, ``scalars`` one row, or one a leaf.
    """
    low = lower(program)
    lines = [*_start(columns, low, real), "        for i in range(n):"]
    lines += [f"            {line}" for line in _loads(columns, low, real)]
    lines += [f"            t{s.node} = {s.expression}" for s in statements(low, OPERATIONS)]
    for key, column in columns.stores:
        array = columns.arrays[column]
        for part, at in _parts(array):
            node = low.outputs[key + part]
            if low.loads.get(array.name + part) == node:
                continue  # it comes back as it was, where it was
            value = f"t{node}"
            value = f"to_{array.dtype}({value})" if array.dtype in _HALVES else value
            lines.append(f"            store(a{column}, {at}, {column}, {value})  # {key}{part}")
    return _module(title, real, "", lines)


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
    return [(PARTS[0], "2 * i"), (PARTS[1], "2 * i + 1")] if array.paired else [("", "i")]


def _start(columns: Table, low: Program, real: str) -> Iterator[str]:
    yield "    for k in range(first, last):"
    yield "        leaf, low, n = tasks[k, 0], tasks[k, 1], tasks[k, 2]"
    for k, array in enumerate(columns.arrays):
        size = 2 if array.dtype in _HALVES else int(_TYPES[array.dtype][1])
        kind = "u2" if array.dtype in _HALVES else _TYPES[array.dtype]
        at = f"addresses[{k}, leaf]"
        yield f"        a{k} = {kind}_at({at} + {size * (1 + array.paired)} * low)  # {array.name}, {array.dtype}"
    if low.scalars:
        yield "        row = leaf if scalars.shape[0] > 1 else 0"
    for k, text in enumerate(low.scalars):
        yield f"        s{k} = {real}(scalars[row, {k}])  # {text}"


def _loads(columns: Table, low: Program, real: str) -> Iterator[str]:
    where = {array.name + part: (k, array, at) for k, array in enumerate(columns.arrays) for part, at in _parts(array)}
    for name, node in low.loads.items():
        k, array, at = where[name]
        value = f"load(a{k}, {at}, {k})"
        value = f"of_{array.dtype}({value})" if array.dtype in _HALVES else value
        if real == "float64" and array.dtype != "float64":
            value = f"float64({value})"
        yield f"t{node} = {value}  # {name}"


def _module(title: str, real: str, more: str, lines: list[str]) -> str:
    signature = f"void(i8[:, ::1], i8[:, ::1], f8[:, ::1], i8, i8{', f8[:, ::1], f8[:, ::1]' if more else ''})"
    text = "\n".join(lines)
    helpers = ["f4_at", "f8_at", "load", "noise", "of_bfloat16", "of_float16", "pairwise", "store", "to_bfloat16"]
    used = [name for name in [*helpers, "to_float16", "u2_at"] if f"{name}(" in text]
    values = {"ZERO": f"{real}(0)", "ONE": f"{real}(1)", "INF": f"{real}(math.inf)"}
    constants = [f"{name} = {value}\n" for name, value in values.items() if name in text]
    imports = [name for name in ("float32", "float64") if f"{name}(" in text + "".join(constants)]
    return f'''"""{title}

Made by xopt. The name of this file is a digest of its text.
"""

import math

from numba import {", ".join([*imports, "njit"])}

from xopt._runners._jit import {", ".join(used)}

{"".join(constants)}
@njit("{signature}", nogil=True, cache=True, error_model="numpy")
def kernel(tasks, addresses, scalars, first, last{more}):
{text}
'''
