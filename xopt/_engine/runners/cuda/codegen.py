"""Turn a program into CUDA C++: one kernel that steps all leaves, and one that sums terms in the order of `summation`.

The text needs no header, so that it compiles in milliseconds, and it is C++ as well: where there is no GPU, tests build
the same text with a C++ compiler and a few definitions in front of it. Everything that a kernel is given is a vector of
8-byte words (:class:`Arguments`), and so is every table that it reads.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from xopt import _arrays
from xopt._arrays.dtypes import TABLE
from xopt._engine.program.lower import PARTS, SplitProgram, Unsupported, lower, split_at_block_max, statements
from xopt._engine.program.quantize import BLOCK, is_scale
from xopt._engine.program.trace import BOOL, Program, pruned
from xopt._engine.runners.cuda.templates import BLOCKS, PACKS, PREAMBLE, SUM_THREADS, SUMS, THREADS, TILE

SCALARS = 128
"""Scalars that a kernel takes at most: three words each, in the same 4 KiB."""

SHARED = 48 * 1024
"""Bytes of shared memory that every device has for a block of threads."""

DOUBLES = 20
"""So many loaded numbers of float64 a thread, and half the registers of a multiprocessor are enough: by trial."""

_OPERATIONS = {
    "add": "{0} + {1}",
    "subtract": "{0} - {1}",
    "multiply": "{0} * {1}",
    "divide": "{0} / {1}",
    "negative": "-{0}",
    # fmax and fmin lose a NaN
    "maximum": "{0} >= {1} || {0} != {0} ? {0} : {1}",
    "minimum": "{0} <= {1} || {0} != {0} ? {0} : {1}",
    "sign": "{0} > 0 ? 1 : {0} < 0 ? -1 : {0}",  # NaN stays NaN
    "less": "{0} < {1}",
    "less_equal": "{0} <= {1}",
    "greater": "{0} > {1}",
    "greater_equal": "{0} >= {1}",
    "equal": "{0} == {1}",
    "not_equal": "{0} != {1}",
    "logical_and": "{0} && {1}",
    "logical_or": "{0} || {1}",
    "logical_not": "!{0}",
    "isnan": "{0} != {0}",
    "where": "{0} ? {1} : {2}",
    "noise": "noise(index, {0}, {1}, {2}, {3}, {4}, {5})",
}
_SAME = ("sqrt", "hypot", "exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "pow")
_FUNCTIONS = {"abs": "fabs", **{n: n for n in _SAME}}


@functools.cache
def operations(real: str) -> dict[str, str]:
    """Return the spelling of every operation for a compute dtype."""
    f, largest = ("f", "3.402823466e+38f") if real == "float32" else ("", "1.7976931348623157e+308")
    found = dict(_OPERATIONS)
    for op, function in _FUNCTIONS.items():
        found[op] = f"{function}{f}({{0}}{', {1}' * (op in ('hypot', 'pow'))})"
    found["isinf"] = f"fabs{f}({{0}}) > {largest}"
    found["isfinite"] = f"fabs{f}({{0}}) <= {largest}"
    return found


class CudaKernel(NamedTuple):
    """The text of one kernel, and what it wants to be given."""

    name: str
    source: str
    program: Program
    """Without complex arrays: what its scalars are computed by."""
    stores: tuple[str, ...]
    """The columns that it can write, in the order of the table of results."""


def storage(dtypes: Mapping[str, str], split: bool) -> tuple[tuple[str, str], ...]:
    """Return the columns of the table of pointers: name and dtype, of a split complex one that of its parts."""
    order = ["p", *(n for n in dtypes if n not in ("p", "g")), "g"]
    return tuple((n, _arrays.part(dtypes[n]) if split else dtypes[n]) for n in order)


@functools.lru_cache(maxsize=256)
def step_kernel(program: Program, storage: tuple[tuple[str, str], ...], real: str, fresh: bool) -> CudaKernel:
    """Write the kernel of a step.

    ``storage`` has the dtype of each column of the table of pointers, in its order. Results go where their columns lie,
    or, if ``fresh``, into a table of their own that has them in the order of the program's outputs. Raises
    `Unsupported` for what has no form in CUDA.
    """
    program = lower(program)
    columns = _Columns(program, dict(storage))
    if any(node.op == "largest" for node in program.nodes):
        return _blocks_kernel(program, columns, storage, real, fresh)
    stores = columns.stores
    used = [n for n in dict(storage) if n in columns.loads or (n in stores and not fresh)]
    vector = 16 // min(TABLE[columns.dtype(n)].itemsize for n in [*used, *stores])
    C = TABLE[real].cuda
    bounds = f"{THREADS}, {_blocks(columns, vector, real)}"
    setup = _setup(program, columns, used, list(dict(storage)), C, fresh)
    homes = {n: f"new_{columns.name(n)}" if fresh else columns.name(n) for n in stores}
    pointers = dict.fromkeys([*(columns.name(n) for n in used if n in columns.loads), *homes.values()])
    scalars = "".join(f", s{k}" for k in range(len(program.scalars)))
    packs = {n: f"{columns.name(n)}_pack" for n in [*columns.loads, *(n for n in stores if n not in columns.loads)]}
    wide = [
        *(f"Pack<{columns.type(n)}, {vector}> {pack};" for n, pack in packs.items()),
        *(f"read({packs[n]}, {columns.name(n)}, k);" for n in columns.loads),
        "#pragma unroll",
        f"for (int e = 0; e < {vector}; ++e) {{",
        f"    {columns.element({n: packs[n] + '.at[e]' for n in columns.loads})};",
        f"    body(x{scalars}{_at(program, f'c.first + (long long)k * {vector} + e')});",
        *(f"    {line}" for n in stores for line in columns.put(n, packs[n] + ".at[e]")),
        "}",
        *(f"write({packs[n]}, {home}, k);" for n, home in homes.items()),
    ]
    single = [
        columns.element({n: f"{columns.name(n)}[i]" for n in columns.loads}) + ";",
        f"body(x{scalars}{_at(program, 'c.first + i')});",
        *(line for n, home in homes.items() for line in columns.put(n, home + "[i]")),
    ]
    lines = [
        f'extern "C" __global__ void __launch_bounds__({bounds}) xopt_step(const Arguments a) {{',
        "    const Part c = part(a.chunks[blockIdx.x], a.sizes);",
        *(f"    {line}" for line in setup),
        "    int done = 0;",
        f"    if (!(({' | '.join(f'(Word){p}' for p in pointers)}) & 15)) {{  // all on 16 bytes",
        "        #pragma unroll 1",  # stores of one round would wait for loads of the next
        f"        for (int k = threadIdx.x; k < c.size / {vector}; k += blockDim.x) {{",
        *(f"            {line}" for line in wide),
        "        }",
        f"        done = c.size / {vector} * {vector};",
        "    }",
        "    #pragma unroll 1",
        "    for (int i = done + threadIdx.x; i < c.size; i += blockDim.x) {",
        *(f"        {line}" for line in single),
        "    }",
        "}",
    ]
    source = "\n".join([_head(program), PACKS, columns.struct(C), *_body(program, columns, real), *lines, ""])
    return CudaKernel("xopt_step", source, program, stores)


def _blocks_kernel(
    program: Program, columns: _Columns, storage: tuple[tuple[str, str], ...], real: str, fresh: bool
) -> CudaKernel:
    """Write the kernel of a step with state in 8 bits: its threads wait for the largest number of each block."""
    C, stores, order = TABLE[real].cuda, columns.stores, list(dict(storage))
    cut, prefix = split_at_block_max(program), "new_" if fresh else ""
    if TABLE[real].itemsize * (TILE * len(cut.rows) + 34 * TILE // BLOCK * len(cut.maxima)) > SHARED:
        raise Unsupported(f"{len(cut.rows)} numbers of each element in shared memory")
    used = [n for n in order if n in columns.loads or (n in stores and not fresh)]
    scalars = "".join(f", s{k}" for k in range(len(program.scalars)))
    first = {n: i for n, i in program.outputs.items() if not (i in cut.second_pass or i in cut.maxima)}
    last = {n: i for n, i in program.outputs.items() if i in cut.second_pass}
    fill = {
        "bounds": f"{THREADS}, 2",
        "C": C,
        "rows": len(cut.rows),
        "tops": len(cut.maxima),
        "setup": "\n    ".join(_setup(program, columns, used, order, C, fresh)),
        "element": columns.element({n: columns.at(n, "i") for n in columns.loads}),
        "first": f"first(x, y{scalars}{_at(program, 'c.first + i')});",
        "keep": " ".join(f"rows[{k}][j] = y.t{a};" for k, a in enumerate(cut.rows)),
        "put_first": " ".join(line for n in first for line in columns.put(n, columns.at(n, "i", prefix))),
        "row": "".join(f"k == {k} ? {cut.rows.index(a)} : " for k, a in enumerate(cut.maxima.values())) + "0",
        "put_tops": " ".join(
            f"if (k == {k}) put({columns.at(n, f'(begin + b * {BLOCK})', prefix)}, top);"
            for k, i in enumerate(cut.maxima)
            for n, j in program.outputs.items()
            if i == j
        ),
        "take": " ".join(
            [f"y.t{a} = rows[{k}][j];" for k, a in enumerate(cut.rows)]
            + [f"y.t{i} = tops[{k}][j / {BLOCK}];" for k, i in enumerate(cut.maxima)]
        ),
        "last": f"last(x, y{scalars});",
        "put_last": " ".join(line for n in last for line in columns.put(n, columns.at(n, "i", prefix))),
    }
    kept = f"struct Kept {{ {C} {', '.join(f't{a}' for a in (*cut.rows, *cut.maxima))}; }};"
    both = [*_half(program, columns, real, cut, first, "first"), *_half(program, columns, real, cut, last, "last")]
    source = "\n".join([_head(program), columns.struct(C), kept, *both, BLOCKS.format(**fill)])
    return CudaKernel("xopt_tile", source, program, stores)


def _half(
    program: Program, columns: _Columns, real: str, cut: SplitProgram, outputs: Mapping[str, int], name: str
) -> Iterator[str]:
    """Write what one of the two loops over a block does with an element."""
    C, again = TABLE[real].cuda, name == "last"
    scalars = "".join(f", {C} s{k}" for k in range(len(program.scalars)))
    scalars += "" if again else _at(program, "long long index")
    yield f"static __device__ __forceinline__ void {name}(Element& x, Kept& y{scalars}) {{"
    if again:
        yield from (f"    const {C} t{i} = y.t{i};" for i in (*cut.rows, *cut.maxima))
    else:
        yield from (f"    const {C} t{i} = x.{columns.field(n)};" for n, i in program.loads.items())
    for i, kind, expression in statements(program, {**operations(real), "largest": ""}):
        if i not in cut.maxima and (i in cut.second_pass) == again:
            yield f"    const {'bool' if kind == BOOL else C} t{i} = {expression};"
    if not again:
        yield from (f"    y.t{i} = t{i};" for i in cut.rows)
    yield from (f"    x.{columns.field(n)} = t{i};" for n, i in outputs.items())
    yield "}"


@functools.lru_cache(maxsize=256)
def sum_kernel(program: Program, output: str, storage: tuple[tuple[str, str], ...]) -> CudaKernel:
    """Write the kernel that sums one output of a program over each chunk, in float64."""
    program = lower(pruned(program.nodes, {output: program.outputs[output]}, program.scalars, program.inputs))
    columns = _Columns(program, dict(storage), stores=False)
    order = list(dict(storage))
    setup = [_pointer(columns, n, "pointers", order.index(n)) for n in columns.loads]
    setup += [f"const double s{k} = scalar(a.s[{k}], c.leaf);" for k in range(len(program.scalars))]
    text = SUMS.format(
        name="xopt_sums",
        threads=SUM_THREADS,
        setup="\n    ".join(setup),
        element=columns.element({n: columns.at(n, "i") for n in columns.loads}),
        scalars="".join(f", s{k}" for k in range(len(program.scalars))),
    )
    body = _body(program, columns, "float64", result=f"t{program.outputs[output]}")
    source = "\n".join([_head(program), columns.struct("double"), *body, text])
    return CudaKernel("xopt_sums", source, program, ())


def _at(program: Program, words: str) -> str:
    """Return one argument more, for programs that ask for the number of an element."""
    return f", {words}" if any(node.op == "noise" for node in program.nodes) else ""


def _head(program: Program) -> str:
    count = len(program.scalars)
    if count > SCALARS:
        raise Unsupported(f"{count} scalars")
    return f"""{PREAMBLE}
struct Arguments {{
    const Word* pointers;  // a row for each column, an entry for each leaf
    const Word* results;
    const long long* sizes;
    const Chunk* chunks;
    long long leaves;
    Scalar s[{max(count, 1)}];
}};"""


def _blocks(columns: _Columns, vector: int, real: str) -> int:
    """Return how many blocks a multiprocessor must hold: if it is not told, ptxas saves registers until it spills."""
    numbers = vector * sum(2 if "complex" in columns.dtype(n) else 1 for n in columns.loads)
    return 1 if real == "float64" and numbers > DOUBLES else 2


def _setup(program: Program, columns: _Columns, used: list[str], order: list[str], C: str, fresh: bool) -> list[str]:
    """Declare what a step has for all elements of its chunk: where the columns lie, and the scalars."""
    lines = [_pointer(columns, n, "pointers", order.index(n)) for n in used]
    if fresh:
        lines += [_pointer(columns, n, "results", row, "new_") for row, n in enumerate(columns.stores)]
    return lines + [f"const {C} s{k} = ({C})scalar(a.s[{k}], c.leaf);" for k in range(len(program.scalars))]


def _pointer(columns: _Columns, name: str, table: str, row: int, prefix: str = "") -> str:
    kind, own = columns.type(name), prefix + columns.name(name)
    first = f"c.first / {BLOCK}" if is_scale(name) else "c.first"
    return f"{kind}* const {own} = ({kind}*)a.{table}[{row} * a.leaves + c.leaf] + {first};"


def _body(program: Program, columns: _Columns, real: str, result: str = "") -> Iterator[str]:
    """Write the arithmetic of one element as a function, so that it stands once for wide and for single accesses."""
    C = TABLE[real].cuda
    scalars = "".join(f", {C} s{k}" for k in range(len(program.scalars))) + _at(program, "long long index")
    yield f"static __device__ __forceinline__ {C if result else 'void'} body(Element& x{scalars}) {{"
    for name, i in program.loads.items():
        yield f"    const {C} t{i} = x.{columns.field(name)};"
    for i, kind, expression in statements(program, operations(real)):
        yield f"    const {'bool' if kind == BOOL else C} t{i} = {expression};"
    if result:
        yield f"    return {result};"
    else:
        for name, i in program.outputs.items():
            yield f"    x.{columns.field(name)} = t{i};"
    yield "}"


class _Columns:
    """The arrays of a lowered program under names that are C."""

    def __init__(self, program: Program, storage: Mapping[str, str], stores: bool = True) -> None:
        self._program, self._storage = program, storage
        self._own = {
            n: n if "." not in n else _identifier(n, k)
            for k, n in enumerate([*storage, *_whole(program.outputs, storage)])
        }
        self.loads = tuple(_whole(program.loads, storage))
        self.stores = tuple(_whole(program.outputs, storage)) if stores else ()

    def name(self, column: str) -> str:
        """Name a column: ``0.adam.m`` is ``m_0``."""
        return self._own[column]

    def at(self, column: str, i: str, prefix: str = "") -> str:
        """Say where element ``i`` of a column is."""
        return f"{prefix}{self._own[column]}[{i}{f' / {BLOCK}' if is_scale(column) else ''}]"

    def dtype(self, column: str) -> str:
        """Name the dtype that a column is stored in; the change ``u`` is stored like the parameter."""
        return self._storage["p" if column == "u" else column]

    def type(self, column: str) -> str:
        """Name the C type that a column is stored in."""
        return TABLE[self.dtype(column)].cuda

    def field(self, name: str) -> str:
        """Name the field of the element that is this number: ``p.re`` is ``p_re``."""
        for part in PARTS:
            if name not in self._own and name.endswith(part) and name.removesuffix(part) in self._own:
                return f"{self._own[name.removesuffix(part)]}_{part[1:]}"
        return self._own[name]

    def struct(self, C: str) -> str:
        """Declare the numbers of one element."""
        fields = [f for n in self.loads for f in self._fields(n)]
        fields += [self.field(n) for n in self._program.outputs if self.stores]
        return f"struct Element {{ {C} {', '.join(dict.fromkeys(fields))}; }};"

    def _fields(self, column: str) -> list[str]:
        own = self._own[column]
        return [f"{own}_re", f"{own}_im"] if "complex" in self.dtype(column) else [own]

    def element(self, places: Mapping[str, str]) -> str:
        """Declare an element with the numbers that lie at these places."""
        lines = ["Element x"]
        for n, target in places.items():
            if "complex" in self.dtype(n):
                own = self._own[n]
                lines += [f"x.{own}_re = get({target}.re)", f"x.{own}_im = get({target}.im)"]
            else:
                lines.append(f"x.{self._own[n]} = get({target})")
        return "; ".join(lines)

    def put(self, column: str, target: str) -> list[str]:
        """Store a result, of a complex column both parts."""
        own = self._own[column]
        if "complex" not in self.dtype(column):
            return [f"put({target}, x.{own});"]
        if column in self._program.outputs:  # a real step of a complex parameter
            return [f"put({target}.re, x.{own});", f"put({target}.im, 0);"]
        return [f"put({target}.re, x.{own}_re);", f"put({target}.im, x.{own}_im);"]


def _whole(names: Iterable[str], columns: Mapping[str, str]) -> list[str]:
    """Return the columns that lowered names are the parts of, each once."""
    found: dict[str, None] = {}
    for name in names:
        part = "" if name in columns else next((part for part in PARTS if name.endswith(part)), "")
        found[name.removesuffix(part)] = None
    return list(found)


def _identifier(column: str, k: int) -> str:
    target, name = column.partition(".")[0], column.rpartition(".")[2]
    target = f"scale{k}" if is_scale(column) else target
    return f"{name if name.isascii() else f'x{k}'}_{target}"
