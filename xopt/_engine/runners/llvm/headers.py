"""Look at NumPy arrays as C does: a compiled loop reads their headers, a thousand in microseconds.

What a gradient must be is checked one by one for an error message, but first for all at once, and nearly always that
is the end of it. The layout of an array object is that of NumPy's C interface, the layout of a list that of CPython's;
both are compared with what Python says before they are relied on.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np

from xopt._engine.runners.llvm import compiler as _compiler
from xopt._engine.runners.llvm.text import Text, frame

NDArray = np.ndarray[Any, Any]

_HEADER = object.__basicsize__
TYPE = _HEADER - 8
_ITEMS = list.__basicsize__ - 16
_DATA, _DIMENSIONS, _SHAPE, _STRIDES, _DTYPE, _FLAGS = (_HEADER + 8 * k for k in (0, 1, 2, 3, 5, 6))
_CONTIGUOUS, _WRITEABLE = 0x1, 0x400


def source() -> str:
    """Write the kernel: how many gradients, from the first on, are plainly what they must be.

    -1 where a parameter is not what it was. A row of ``facts`` is a leaf: dtype, dimensions, where its shape begins in
    ``sizes``, bytes, and where the parameter lies.
    """
    text = Text()
    frame(text, _WORDS)
    with rows(text, "p", "%params") as (_, p, dtype, dimensions, first, _, place):
        flags = text.do(f"and i32 {field(text, 'i32', p, _FLAGS)}, {_WRITEABLE}")
        text.leave(text.do(f"icmp eq i32 {flags}, 0"), "-1")
        text.leave(text.do(f"icmp ne i64 {field(text, 'i64', p, _DATA)}, {place}"), "-1")
        _same_shape(text, "d", p, dtype, dimensions, first, "-1")
        same(text, "s", field(text, "ptr", p, _STRIDES), "%strides", dimensions, first, "-1")
    with rows(text, "g", "%grads") as (k, g, dtype, dimensions, first, size, _):
        text.leave(text.do(f"icmp ne i64 {field(text, 'i64', g, TYPE)}, %array_type"), k)
        flags = text.do(f"and i32 {field(text, 'i32', g, _FLAGS)}, {_CONTIGUOUS}")
        text.leave(text.do(f"icmp eq i32 {flags}, 0"), k)
        _same_shape(text, "e", g, dtype, dimensions, first, k)
        low = field(text, "i64", g, _DATA)
        text.leave(overlaps(text, low, size), k)
        text.store("i64", low, "%out", k)
    return finished(text, "the headers of arrays")


_WORDS = {
    "params": "ptr", "array_type": "i64", "facts": "ptr", "leaves": "i64", "sizes": "ptr",
    "strides": "ptr", "starts": "ptr", "count": "i64", "reach": "ptr", "out": "ptr",
}  # fmt: skip


def finished(text: Text, title: str) -> str:
    """Return the module of a kernel ``kernel(grads, frame)`` that has found every leaf right."""
    text.line("ret i64 %leaves")
    return f"; {title}\n\n" + text.function("kernel", ["ptr %grads", "ptr %frame"], "i64") + _BEFORE


def overlaps(text: Text, low: str, size: str) -> str:
    """Return whether memory reaches into what the step writes."""
    high = text.do(f"add i64 {low}, {size}")
    count = text.do(f"call i64 @before(ptr %starts, i64 %count, i64 {high})")
    reach = text.load("i64", "%reach", count)  # of all that the step writes and that starts before the end of this
    return text.do(f"icmp sgt i64 {reach}, {low}")


@contextmanager
def rows(text: Text, name: str, items: str) -> Iterator[tuple[str, ...]]:
    """Write a loop over leaves; yield the number of each, the object, and its five facts."""
    objects = field(text, "ptr", items, _ITEMS)
    with text.loop(name, "0", "%leaves") as k:
        x = text.load("ptr", objects, k)
        row = text.do(f"mul i64 {k}, 5")
        yield k, x, *[text.load("i64", "%facts", text.do(f"add i64 {row}, {j}")) for j in range(5)]


def field(text: Text, kind: str, x: str, offset: int) -> str:
    """Read a field of an object, or of a struct."""
    return text.do(f"load {kind}, ptr {text.element('i8', x, str(offset))}")


def _same_shape(text: Text, name: str, x: str, dtype: str, dimensions: str, first: str, wrong: str) -> None:
    """Return ``wrong`` for another dtype or shape."""
    text.leave(text.do(f"icmp ne i64 {field(text, 'i64', x, _DTYPE)}, {dtype}"), wrong)
    found = text.do(f"sext i32 {field(text, 'i32', x, _DIMENSIONS)} to i64")
    text.leave(text.do(f"icmp ne i64 {found}, {dimensions}"), wrong)
    same(text, name, field(text, "ptr", x, _SHAPE), "%sizes", dimensions, first, wrong)


def same(text: Text, name: str, found: str, known: str, dimensions: str, first: str, wrong: str) -> None:
    """Return ``wrong`` for other numbers, one a dimension, than are known."""
    with text.loop(name, "0", dimensions) as j:
        wanted = text.load("i64", known, text.do(f"add i64 {first}, {j}"))
        text.leave(text.do(f"icmp ne i64 {text.load('i64', found, j)}, {wanted}"), wrong)


_BEFORE = """define internal i64 @before(ptr %starts, i64 %count, i64 %high) nounwind {
entry:
  br label %check
check:
  %a = phi i64 [ 0, %entry ], [ %a.next, %loop ]
  %b = phi i64 [ %count, %entry ], [ %b.next, %loop ]
  %on = icmp slt i64 %a, %b
  br i1 %on, label %loop, label %end
loop:
  %both = add i64 %a, %b
  %middle = lshr i64 %both, 1
  %at = getelementptr i64, ptr %starts, i64 %middle
  %start = load i64, ptr %at
  %below = icmp slt i64 %start, %high
  %up = add i64 %middle, 1
  %a.next = select i1 %below, i64 %up, i64 %a
  %b.next = select i1 %below, i64 %b, i64 %middle
  br label %check
end:
  ret i64 %a
}
"""
"""How many arrays that the step writes start before an address."""


@functools.cache
def readable() -> bool:
    """Whether objects have the layout that is expected, by all that can be compared."""
    if sys.implementation.name != "cpython" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    word, half = ctypes.c_int64.from_address, ctypes.c_int32.from_address
    for x in (np.zeros((3, 5), np.float32), np.zeros((4, 2, 6)).T, np.zeros((), np.complex64)):
        at, items = id(x), [x, None]
        flags = half(at + _FLAGS).value
        shape = [word(word(at + _SHAPE).value + 8 * k).value for k in range(x.ndim)]
        x.flags.writeable = False
        same = (
            word(at + TYPE).value == id(np.ndarray),
            word(at + _DATA).value == x.ctypes.data,
            half(at + _DIMENSIONS).value == x.ndim,
            shape == list(x.shape),
            [word(word(at + _STRIDES).value + 8 * k).value for k in range(x.ndim)] == list(x.strides),
            word(at + _DTYPE).value == id(x.dtype),
            bool(flags & _CONTIGUOUS) == x.flags.c_contiguous,
            flags & _WRITEABLE != 0 == half(at + _FLAGS).value & _WRITEABLE,
            word(word(id(items) + _ITEMS).value).value == at,
        )
        if not all(same):
            return False
    return True


@functools.cache
def _look() -> Callable[..., int]:
    return _compiler.compiled(source(), 2, reads=True)


Inspect: TypeAlias = Callable[[list[Any]], tuple[NDArray | None, bool]]


def inspector(params: list[Any], starts: NDArray, reach: NDArray) -> Inspect | None:
    """Return a function that says where gradients lie, if all of them are plainly right; None if it cannot be told.

    It also says whether the parameters are what they were. ``starts`` and ``reach`` say where lies what gradients must
    not overlap, as `AliasGuard` has them.
    """
    if not readable() or not params:
        return None
    look, count = _look(), len(params)
    firsts = [0, *itertools.accumulate(x.ndim for x in params)]
    facts = [(id(x.dtype), x.ndim, first, x.nbytes, x.ctypes.data) for x, first in zip(params, firsts, strict=False)]
    out = np.empty(count, np.int64)
    sizes = np.asarray([n for x in params for n in x.shape], np.int64)
    strides = np.asarray([n for x in params for n in x.strides], np.int64)
    # an address says nothing of an object that is gone
    tables, held = (np.asarray(facts, np.int64), sizes, strides, starts, reach, out), [x.dtype for x in params]
    table, shapes, steps, lows, highs, found = (x.ctypes.data for x in tables)
    words = (ctypes.c_int64 * len(_WORDS))(
        id(params), id(np.ndarray), table, count, shapes, steps, lows, len(starts), highs, found
    )
    at = ctypes.addressof(words)

    def inspect(grads: list[Any]) -> tuple[NDArray | None, bool]:
        right = look(id(grads), at)
        return (out if right == count and words and tables and held else None), right >= 0

    return inspect
