"""Arrays of any library: which one an array belongs to, dtypes, devices, memory, and trees of arrays.

What a library does otherwise than the standard says is in its own file of ``libraries``.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import Any

import numpy as np

from xopt._arrays import libraries as _libraries
from xopt._arrays.dtypes import COMPLEX_OF as COMPLEX_OF
from xopt._arrays.dtypes import DTYPES as DTYPES
from xopt._arrays.dtypes import TABLE as TABLE
from xopt._arrays.dtypes import DType as DType
from xopt._arrays.dtypes import part as part
from xopt._arrays.libraries.numpy import Own
from xopt._arrays.library import Array as Array
from xopt._arrays.library import Library as Library
from xopt._arrays.library import NDArray as NDArray
from xopt._arrays.library import bfloat16 as bfloat16
from xopt._arrays.once import once
from xopt._arrays.unknown import Unknown as _Unknown

NUMPY: Library = Own("numpy")
KNOWN = tuple(sorted(module.name for module in pkgutil.iter_modules(_libraries.__path__)))
"""The libraries of which something is known beyond the standard."""
_ROOTS = {"jaxlib": "jax"} | {name: name for name in KNOWN}
"""Packages that have arrays of these: JAX has its class in another one, and before 0.6 says so."""
_seen: dict[type, Library | None] = {np.ndarray: NUMPY}


@once
def named(name: str) -> Library:
    """Return the library whose package has this name."""
    if name == NUMPY.name:
        return NUMPY
    if name not in KNOWN:
        return _Unknown(name)
    found: Library = importlib.import_module(f"{_libraries.__name__}.{name}").Own(name)
    return found


def library(x: object) -> Library | None:
    """Return the library that an array belongs to; None for what is not an array."""
    kind = type(x)
    if kind not in _seen:
        _seen[kind] = _find_library(x, kind)
    return _seen[kind]


def _find_library(x: object, kind: type) -> Library | None:
    if issubclass(kind, np.ndarray):  # of which matrices, masked arrays and units mean other things by + and *
        other = issubclass(kind, np.matrix | np.ma.MaskedArray) or hasattr(kind, "unit") or hasattr(kind, "units")
        return None if other else NUMPY
    if issubclass(kind, np.generic):
        return NUMPY
    # of the class first: a lazy parameter of torch raises where it is asked for its shape
    if not all(hasattr(kind, name) or hasattr(x, name) for name in ("shape", "dtype")):
        return None
    for base in kind.__mro__:
        root = base.__module__.partition(".")[0]
        if root in _ROOTS:
            return named(_ROOTS[root])
    if not hasattr(x, "__array_namespace__"):
        return None
    found = named(kind.__module__.partition(".")[0])
    found.meet(x)
    return found


def on_host(x: object) -> bool:
    """Whether this is an array, or a scalar, of NumPy."""
    return library(x) is NUMPY


def namespace(x: Array) -> Any:
    """Return the array-API namespace of an array."""
    found = library(x)
    return x.__array_namespace__() if found is None else found.namespace(x)


def dtype_name(x: Array) -> str:
    """Name the dtype of an array as the standard does: ``"float32"``."""
    dtype = x.dtype
    if isinstance(dtype, np.dtype):
        return _numpy_name(dtype)
    return str(dtype).rpartition(".")[2]


@functools.cache
def _numpy_name(dtype: np.dtype[Any]) -> str:
    return dtype.name if dtype.isnative else f"{dtype.str} (byte-swapped)"


def is_complex(x: Array) -> bool:
    """Whether an array is complex."""
    dtype = x.dtype
    return dtype.kind == "c" if isinstance(dtype, np.dtype) else "complex" in str(dtype)


def device(x: Array) -> Any:
    """Return the device of an array, or None where it is not ours to compare."""
    found = library(x)
    return getattr(x, "device", None) if found is None else found.device(x)


def beside(x: Array) -> dict[str, Any]:
    """Say where to make an array, so that it is on the device of another one: an argument of ``xp.zeros`` and so on."""
    found = library(x)
    return {"device": x.device} if found is None else found.beside(x)


def device_name(x: Array) -> str:
    """Name a device for an error message."""
    found = device(x)
    return "cpu" if found is None else str(found)


def widest_real(xp: Any, dev: Any, default: str) -> str:
    """Return ``"float64"`` where the device has it, otherwise the default."""
    if xp is np:
        return "float64"
    try:
        known = xp.__array_namespace_info__().dtypes(device=dev, kind="real floating")
    except (AttributeError, ValueError, TypeError):
        return default
    return "float64" if "float64" in known else default


def cast(xp: Any, x: Array, dtype: Any) -> Array:
    """Cast without a copy where nothing changes."""
    if x.dtype == dtype:
        return x
    return x.astype(dtype, copy=False) if xp is np else xp.astype(x, dtype, copy=False)


def detached(x: Any) -> Any:
    """Return an array, or a number, without its graph."""
    found = library(x)
    return x if found is None else found.detached(x)


def plain(x: Any) -> Any:
    """Return the array in a scalar of NumPy, which makes such of 0-d results, and in an array of another class."""
    odd = isinstance(x, np.generic | np.ndarray) and type(x) is not np.ndarray and on_host(x)
    return np.asarray(x) if odd else x


def dtype_of(library: Library, xp: Any, dtype: str) -> Any:
    """Return what a library calls a dtype."""
    found = library.dtype(xp, dtype)
    if found is None:
        hint = ": pip install ml_dtypes" if library.host else ""
        raise TypeError(f"{getattr(xp, '__name__', library)} has no {dtype}{hint}")
    return found


def full_like(library: Library, xp: Any, p: Array, dtype: str, value: float) -> Array:
    """Make a state array for a parameter: its shape and device, C order, never part of a graph."""
    return library.full_like(xp, p, dtype_of(library, xp, dtype), int(value) if "int" in dtype else value)


def copied(library: Library, xp: Any, p: Array, dtype: str) -> Array:
    """Copy a parameter into a state array: its shape and device, C order, never part of a graph."""
    return library.copied(xp, p, dtype_of(library, xp, dtype))


def host_view(x: Array) -> NDArray | None:
    """Return a NumPy array on the same memory, or None where there is no such thing."""
    found = library(x)
    return None if found is None else found.host_view(x)


def aligned(size: int, dtype: np.dtype[Any], skip: int = 0) -> NDArray:
    """Allocate a flat NumPy array that starts on a cache line, after so many that are left free."""
    raw = np.empty(size * dtype.itemsize + 64 * (skip + 1), np.uint8)
    start = -raw.ctypes.data % 64 + 64 * skip
    return raw[start : start + size * dtype.itemsize].view(dtype)


def _phantom(x: Array) -> NDArray | None:
    found = library(x)
    return None if found is None else found.phantom(x)


def extent(x: Array) -> tuple[int, int]:
    """Return the first byte of an array's memory and the one after the last; (0, 0) when empty or unknown."""
    seen = _phantom(x)
    if seen is None or seen.size == 0:
        return 0, 0
    low, high = np.lib.array_utils.byte_bounds(seen)
    return int(low), int(high)


def overlap(x: Array, y: Array) -> bool:
    """Whether two arrays share a byte. Exact but for hopeless strides, where it says yes."""
    a, b = _phantom(x), _phantom(y)
    if a is None or b is None:
        return x is y
    try:
        return np.shares_memory(a, b, max_work=10_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def overlaps_itself(x: Array) -> bool:
    """Whether two elements of one array share memory (a broadcast view, or strides made by hand)."""
    seen = _phantom(x)
    if seen is None or seen.size <= 1:
        return False
    span = seen.itemsize
    for stride, size in sorted((abs(s), n) for s, n in zip(seen.strides, seen.shape, strict=True) if n > 1):
        if stride < span:
            return True
        span = stride * (size - 1) + span
    return False


def owner(x: object) -> object:
    """Return the object that owns the memory of a NumPy array."""
    root: Any = x
    while type(root) is np.ndarray and root.base is not None:
        root = root.base
    return root
