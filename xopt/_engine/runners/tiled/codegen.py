"""Turn a program into source text. NumPy's spelling of an operation is the standard's own name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xopt._engine.program.lower import spelled
from xopt._engine.program.quantize import fill_largest
from xopt._engine.program.trace import BOOL, COMPLEX, Node, Program
from xopt.random import hashed


class TileKernel(NamedTuple):
    """A program as one Python function over a tile: every NumPy call writes into memory that exists already."""

    run: Callable[..., None]
    """``run(loads..., stores..., scalars..., registers...)``; a store may be the very memory of its load."""
    source: str
    registers: tuple[str, ...]
    """The kind of each scratch array that it needs."""
    counts: bool = False
    """Whether it takes one array more, with the number of each element in its leaf."""


@functools.lru_cache(maxsize=256)
def numpy_kernel(program: Program) -> TileKernel:
    """Write the kernel of a program.

    A result goes straight to where it is stored when the old value there is dead, and so does what leads to it, so
    that most operations work in place, which is the fastest. The rest goes to registers, used again as soon as their
    value is dead.
    """
    program = _with_copies(spelled(program))
    nodes, last = program.nodes, program.last_use
    home = _in_place_outputs(program)
    lodger = _reusable_buffers(program, home)
    buffer = {name: f"o_{k}" for k, name in enumerate(program.outputs)}
    where_is = {i: f"l_{k}" for k, i in enumerate(program.loads.values())}
    registers: list[str] = []
    free: dict[str, list[int]] = {}
    held: dict[int, int] = {}
    kept = set(program.outputs.values())
    lines = []
    for i, (op, args, kind) in enumerate(nodes):
        if op == "load":
            continue
        dying = [a for a in dict.fromkeys(args) if isinstance(a, int) and last[a] == i and a in held and a not in kept]
        aliasing = _may_alias(program, i)
        if aliasing:
            _release(dying, held, free, nodes)
        if i in home or i in lodger:
            out = buffer[home.get(i) or lodger[i]]
        else:
            stock = free.setdefault(kind, [])
            if not stock:
                stock.append(len(registers))
                registers.append(kind)
            held[i] = stock.pop()
            out = f"r_{held[i]}"
        if not aliasing:
            _release(dying, held, free, nodes)
        where_is[i] = out
        lines += _call(op, [where_is[a] if isinstance(a, int) else a for a in args], out)
    for name, i in program.outputs.items():
        target = buffer[name]
        if program.loads.get(name) == i:
            lines.append(f"if {target} is not {where_is[i]}: copyto({target}, {where_is[i]})")
        elif home.get(i) != name:
            lines.append(f"copyto({target}, {where_is[i]})")
    names = [f"l_{k}" for k in range(len(program.loads))] + [f"o_{k}" for k in range(len(program.outputs))]
    names += [f"s{k}" for k in range(len(program.scalars))] + [f"r_{k}" for k in range(len(registers))]
    counts = any(node.op == "noise" for node in nodes)
    names += ["index"] if counts else []
    source = f"def kernel({', '.join(names)}):\n" + "".join(f"    {x}\n" for x in lines or ["pass"])
    own = {"copyto": np.copyto, "noise": _noise, "largest": fill_largest}
    made: dict[str, Any] = {n.op: getattr(np, n.op) for n in nodes if n.op not in ("load", *own)} | own
    exec(compile(source, "<xopt tile>", "exec"), made)
    return TileKernel(made["kernel"], source, tuple(registers), counts)


def _with_copies(program: Program) -> Program:
    """Make an operation of every output that is the old value of another one, so that swapped state is in order."""
    nodes, outputs = list(program.nodes), dict(program.outputs)
    for name, i in program.outputs.items():
        if program.nodes[i].op == "load" and program.loads.get(name) != i:
            outputs[name] = len(nodes)
            nodes.append(Node("copy", (i,), program.nodes[i].kind))
    return Program(tuple(nodes), outputs, program.scalars, program.inputs)


def _release(dying: list[int], held: dict[int, int], free: dict[str, list[int]], nodes: Any) -> None:
    for a in dying:
        free.setdefault(nodes[a].kind, []).append(held.pop(a))


def _may_alias(program: Program, i: int) -> bool:
    """Whether an operation may write over its own operands.

    NumPy multiplies complex arrays of one element differently in place, so these never do; neither does what takes
    two calls (where) or reads parts (real, imag).
    """
    op, args, kind = program.nodes[i]
    if op in ("where", "real", "imag"):
        return False
    kinds = {program.nodes[a].kind for a in args if isinstance(a, int)}
    return not (op in ("multiply", "divide") and COMPLEX in {kind, *kinds})


def _in_place_outputs(program: Program) -> dict[int, str]:
    """Map each node that may be computed in its output's own memory to that output."""
    home: dict[int, str] = {}
    for name, i in program.outputs.items():
        node = program.nodes[i]
        if node.op == "load" or i in home or node.kind == BOOL:
            continue
        old = program.loads.get(name)
        if old is not None:
            if program.nodes[old].kind != node.kind or program.last_use.get(old, -1) > i:
                continue
            if old in program.outputs.values() or (old in node.args and not _may_alias(program, i)):
                continue
        home[i] = name
    return home


def _reusable_buffers(program: Program, home: dict[int, str]) -> dict[int, str]:
    """Map nodes to the output's memory that they may use as a register until the output itself is written.

    A lodger moves in once the old value is dead, and is dead when the output is computed.
    """
    nodes, last = program.nodes, program.last_use
    found: dict[int, str] = {}
    for final, name in sorted(home.items()):  # the nearest goal first: what leads to m is computed in the memory of m
        old = program.loads.get(name)
        free_from = last.get(old, -1) if old is not None else 0
        for i in range(final):
            node = nodes[i]
            if node.op == "load" or i in home or i in found or i in program.outputs.values():
                continue
            reads_old = old in node.args and not _may_alias(program, i)
            if i < free_from or reads_old or last[i] > final or node.kind != nodes[final].kind:
                continue
            if last[i] == final and not _may_alias(program, final):
                continue
            found[i] = name
            free_from = last[i] if _may_alias(program, last[i]) else last[i] + 1
    return found


def _noise(index: Any, *key: Any, out: Any) -> None:
    out[...] = hashed(np, index, key, out.dtype)


def _call(op: str, args: list[Any], out: str) -> list[str]:
    if op == "noise":
        return [f"noise(index, {', '.join(args)}, out={out})"]
    if op == "where":
        return [f"copyto({out}, {args[2]})", f"copyto({out}, {args[1]}, where={args[0]})"]
    if op in ("real", "imag"):
        return [f"copyto({out}, {args[0]}.{op})"]
    if op == "copy":
        return [f"copyto({out}, {args[0]})"]
    return [f"{op}({', '.join(args)}, out={out})"]
