"""Look at the tensors of another library as C does, through the function that DLPack has for that.

It fills in a description of a tensor, which a compiled loop compares with what a gradient must be, and a parameter was:
a thousand in some dozen microseconds. The struct and the table of functions are those of DLPack's header, major version
1, as PyTorch 2.13 has them.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from xopt._arrays.layout import Layout
from xopt._engine.runners.llvm import compiler as _compiler
from xopt._engine.runners.llvm import headers as _headers
from xopt._engine.runners.llvm.headers import field
from xopt._engine.runners.llvm.text import Text, frame

NDArray = np.ndarray[Any, Any]

_MAJOR, _FUNCTION = 1, 5
"""Which version of the table is known, and which of its words is the function."""
_DATA, _DEVICE, _KIND, _SHAPE, _STRIDES, _OFFSET, _BYTES = 0, 8, 16, 24, 32, 40, 48
"""Where in a description is what; dimensions and dtype are one word, and so are type and number of a device."""


class _Described(ctypes.Structure):
    _fields_ = (("words", ctypes.c_int64 * 6),)


def function(kind: type) -> int:
    """Return the address of the function that describes arrays of a type; 0 if there is none that is known."""
    capsule = getattr(kind, "__dlpack_c_exchange_api__", None)
    if capsule is None or not _headers.readable():
        return 0
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    table = pointer(capsule, b"dlpack_exchange_api")
    if ctypes.c_uint32.from_address(table).value != _MAJOR:
        return 0
    return ctypes.c_int64.from_address(table + 8 * _FUNCTION).value


def described(at: int, x: Any) -> tuple[int, int, list[int], list[int], int]:
    """Return the words of an array for its kind and device, its shape and strides, and where it lies."""
    found = _Described()
    ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)(at)(x, ctypes.addressof(found))
    data, device, kind, shape, strides, offset = found.words
    many = kind & 0xFFFFFFFF
    sizes, steps = ((ctypes.c_int64 * many).from_address(p)[:] if many else [] for p in (shape, strides))
    return kind, device, sizes, steps, data + offset


def source(kinds: int) -> str:
    """Write the kernel: how many gradients, from the first on, are plainly what they must be.

    -1 where a parameter is not what it was, and -2 with an exception of the function. A row of ``facts`` is a leaf:
    kind, device, where its shape begins in ``sizes``, bytes, and where the parameter lies. ``own`` has the strides of
    parameters, ``flat`` those in C order; those that may be any are -1.
    """
    text = Text()
    frame(text, _WORDS)
    found = text.do(f"alloca [{_BYTES} x i8], align 8")
    with _rows(text, "p", "%params", found, 0) as (_, first, _, place):
        text.leave(text.do(f"icmp ne i64 {_address(text, found)}, {place}"), "-1")
        _same(text, "d", found, first, "%own", "-1")
    with _rows(text, "g", "%grads", found, kinds) as (k, first, size, _):
        _same(text, "e", found, first, "%flat", k)
        low = _address(text, found)
        nowhere, some = text.do(f"icmp eq i64 {low}, 0"), text.do(f"icmp ne i64 {size}, 0")
        text.leave(text.do(f"and i1 {nowhere}, {some}"), k)
        text.leave(_headers.overlaps(text, low, size), k)
        text.store("i64", low, "%out", k)
    return _headers.finished(text, "descriptions of tensors")


_WORDS = {
    "params": "ptr", "describe": "ptr", "types": "ptr", "facts": "ptr", "leaves": "i64", "sizes": "ptr", "own": "ptr",
    "flat": "ptr", "starts": "ptr", "count": "i64", "reach": "ptr", "out": "ptr",
}  # fmt: skip


@contextmanager
def _rows(text: Text, name: str, items: str, found: str, kinds: int) -> Iterator[tuple[str, ...]]:
    """Write a loop over leaves, each described; yield its number, and its facts but for kind and device.

    The function takes objects of its library alone: the type is looked at first, where it may be any.
    """
    with _headers.rows(text, name, items) as (k, x, kind, device, *more):
        wrong = k if kinds else "-1"
        if kinds:
            own = field(text, "i64", x, _headers.TYPE)
            known = [text.do(f"icmp eq i64 {own}, {text.load('i64', '%types', str(j))}") for j in range(kinds)]
            right = functools.reduce(lambda a, b: text.do(f"or i1 {a}, {b}"), known)
            text.leave(text.do(f"xor i1 {right}, true"), wrong)
        failed = text.do(f"call i32 %describe(ptr {x}, ptr {found})")
        text.leave(text.do(f"icmp ne i32 {failed}, 0"), "-2")
        text.leave(text.do(f"icmp ne i64 {field(text, 'i64', found, _KIND)}, {kind}"), wrong)
        text.leave(text.do(f"icmp ne i64 {field(text, 'i64', found, _DEVICE)}, {device}"), wrong)
        yield k, *more


def _address(text: Text, found: str) -> str:
    return text.do(f"add i64 {field(text, 'i64', found, _DATA)}, {field(text, 'i64', found, _OFFSET)}")


def _same(text: Text, name: str, found: str, first: str, strides: str, wrong: str) -> None:
    """Return ``wrong`` for another shape, or other strides than these."""
    many = text.do(f"and i64 {field(text, 'i64', found, _KIND)}, 4294967295")
    _headers.same(text, name, field(text, "ptr", found, _SHAPE), "%sizes", many, first, wrong)
    steps = field(text, "ptr", found, _STRIDES)
    with text.loop(f"{name}.steps", "0", many) as j:
        wanted = text.load("i64", strides, text.do(f"add i64 {first}, {j}"))
        other = text.do(f"icmp ne i64 {text.load('i64', steps, j)}, {wanted}")
        asked = text.do(f"icmp ne i64 {wanted}, -1")
        text.leave(text.do(f"and i1 {other}, {asked}"), wrong)


@functools.cache
def _look(kinds: int) -> Callable[..., int]:
    return _compiler.compiled(source(kinds), 2, reads=True)


def inspector(layout: Layout, starts: NDArray, reach: NDArray) -> _headers.Inspect | None:
    """Return a function that says where gradients lie, as `headers.inspector` does; None where there is none."""
    params, kinds, marked = layout.leaves, layout.kinds, layout.library.marked
    at = function(type(params[0])) if params else 0
    if not at or any(function(kind) != at for kind in kinds):
        return None
    look, count = _look(len(kinds)), len(params)
    rows = [described(at, p) for p in params]
    firsts = [0, *itertools.accumulate(len(sizes) for _, _, sizes, _, _ in rows)]
    nbytes = [p.nbytes for p in params]
    facts = [
        (kind, device, first, size, place)
        for (kind, device, _, _, place), first, size in zip(rows, firsts, nbytes, strict=False)
    ]
    flat = [x for (_, _, sizes, _, _), size in zip(rows, nbytes, strict=True) for x in _flat(sizes, size)]
    out = np.empty(count, np.int64)
    columns = [[n for row in rows for n in row[2]], [n for row in rows for n in row[3]], flat]
    lists = [sorted(map(id, kinds)), facts, *columns]
    tables = [*(np.asarray(x, np.int64) for x in lists), starts, reach, out]
    types, table, sizes, own, plain, lows, highs, found = (x.ctypes.data for x in tables)
    words = (ctypes.c_int64 * len(_WORDS))(
        id(params), at, types, table, count, sizes, own, plain, lows, len(starts), highs, found
    )
    frame_at, wide = ctypes.addressof(words), any(d.complex for d in layout.dtypes)

    def inspect(grads: list[Any]) -> tuple[NDArray | None, bool]:
        try:
            right = look(id(grads), frame_at)
        except Exception:  # of a tensor that has no memory: the caller says what is wrong with it
            return None, False
        if right < 0 or (wide and marked(params, wide)):
            return None, False
        return (out if right == count and words and tables and not marked(grads, wide) else None), True

    return inspect


def _flat(sizes: list[int], nbytes: int) -> list[int]:
    """Return the strides of C order, -1 where there is no second element to stride to."""
    steps = [1, *itertools.accumulate(reversed(sizes[1:]), lambda a, b: a * b)][::-1] if sizes else []
    return [step if n > 1 and nbytes else -1 for step, n in zip(steps, sizes, strict=True)]
