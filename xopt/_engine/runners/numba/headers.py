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
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

NDArray = np.ndarray[Any, Any]

_HEADER = object.__basicsize__
_TYPE = _HEADER - 8
_ITEMS = list.__basicsize__ - 16
_DATA, _DIMENSIONS, _SHAPE, _DTYPE, _FLAGS = (_HEADER + 8 * k for k in (0, 1, 2, 5, 6))
_CONTIGUOUS, _WRITEABLE = 0x1, 0x400

SOURCE = f'''"""The headers of arrays: how many gradients, from the first on, are plainly what they must be.

-1 where a parameter is not what it was.

Made by xopt. The name of this file is a digest of its text.
"""

from numba import njit

from xopt._engine.runners.numba.intrinsics import i4_at, i8_at, load


@njit("i8(i8, i8, i8, i8[:, ::1], i8[::1], i8[::1], i8[::1], i8[::1])", nogil=True, cache=True)
def kernel(grads, params, array_type, facts, sizes, starts, reach, out):
    grads = load(i8_at(grads + {_ITEMS}), 0, 99)
    params = load(i8_at(params + {_ITEMS}), 0, 99)
    for k in range(facts.shape[0]):
        dtype, dimensions, first, place = facts[k, 0], facts[k, 1], facts[k, 2], facts[k, 4]
        p = load(i8_at(params), k, 99)
        if load(i4_at(p + {_FLAGS}), 0, 99) & {_WRITEABLE} == 0 or load(i8_at(p + {_DATA}), 0, 99) != place:
            return -1
        if load(i8_at(p + {_DTYPE}), 0, 99) != dtype or load(i4_at(p + {_DIMENSIONS}), 0, 99) != dimensions:
            return -1
        shape = load(i8_at(p + {_SHAPE}), 0, 99)
        for j in range(dimensions):
            if load(i8_at(shape), j, 99) != sizes[first + j]:
                return -1
    for k in range(facts.shape[0]):
        dtype, dimensions, first, bytes_ = facts[k, 0], facts[k, 1], facts[k, 2], facts[k, 3]
        g = load(i8_at(grads), k, 99)
        if load(i8_at(g + {_TYPE}), 0, 99) != array_type:
            return k
        if load(i8_at(g + {_DTYPE}), 0, 99) != dtype or load(i4_at(g + {_DIMENSIONS}), 0, 99) != dimensions:
            return k
        if load(i4_at(g + {_FLAGS}), 0, 99) & {_CONTIGUOUS} == 0:
            return k
        shape = load(i8_at(g + {_SHAPE}), 0, 99)
        for j in range(dimensions):
            if load(i8_at(shape), j, 99) != sizes[first + j]:
                return k
        low = load(i8_at(g + {_DATA}), 0, 99)
        a, b = 0, starts.size
        while a < b:  # how many arrays that the step writes start before the end of this one
            middle = (a + b) // 2
            if starts[middle] < low + bytes_:
                a = middle + 1
            else:
                b = middle
        if reach[a] > low:
            return k
        out[k] = low
    return facts.shape[0]
'''


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
            word(at + _TYPE).value == id(np.ndarray),
            word(at + _DATA).value == x.ctypes.data,
            half(at + _DIMENSIONS).value == x.ndim,
            shape == list(x.shape),
            word(at + _DTYPE).value == id(x.dtype),
            bool(flags & _CONTIGUOUS) == x.flags.c_contiguous,
            flags & _WRITEABLE != 0 == half(at + _FLAGS).value & _WRITEABLE,
            word(word(id(items) + _ITEMS).value).value == at,
        )
        if not all(same):
            return False
    return True


Inspect: TypeAlias = Callable[[list[Any]], tuple[NDArray | None, bool]]


def inspector(params: list[Any], starts: NDArray, reach: NDArray) -> Inspect | None:
    """Return a function that says where gradients lie, if all of them are plainly right; None if it cannot be told.

    It also says whether the parameters are what they were. ``starts`` and ``reach`` say where lies what gradients must
    not overlap, as `AliasGuard` has them.
    """
    if not readable() or not params:
        return None
    from xopt._engine.runners.numba import cache as _cache

    look, count, array_type = _cache.kernel(SOURCE), len(params), id(np.ndarray)
    firsts = [0, *itertools.accumulate(x.ndim for x in params)]
    facts = [(id(x.dtype), x.ndim, first, x.nbytes, x.ctypes.data) for x, first in zip(params, firsts, strict=False)]
    table = np.asarray(facts, np.int64)
    sizes = np.asarray([n for x in params for n in x.shape], np.int64)
    held = [x.dtype for x in params]  # an address says nothing of an object that is gone

    def inspect(grads: list[Any]) -> tuple[NDArray | None, bool]:
        out = np.empty(count, np.int64)
        right = look(id(grads), id(params), array_type, table, sizes, starts, reach, out)
        return (out if right == count and held else None), right >= 0

    return inspect
