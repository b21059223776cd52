"""What xopt knows about array libraries: namespaces, dtypes, devices, memory.

Every fact about a particular library lives here. ``array_api_compat`` is imported when the first array arrives that
is not NumPy's, never before.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import operator
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

Array = Any
"""An array of any library. There is no static type that covers them all."""


class DType(NamedTuple):
    """A dtype that a parameter may have, apart from the library that spells it."""

    name: str
    real: str
    """The real dtype that arithmetic is done in."""
    complex: bool = False

    @property
    def itemsize(self) -> int:
        """Bytes a number."""
        return BYTES[self.name]

    @property
    def part(self) -> str:
        """What is stored: of complex numbers, the dtype of their parts."""
        return self.real if self.complex else self.name

    @property
    def compute(self) -> str:
        """The dtype that a parameter of this dtype is computed in: float32 at least."""
        return COMPLEX_OF[self.real] if self.complex else self.real


DTYPES = {
    d.name: d
    for d in (
        DType("float16", "float32"),
        DType("bfloat16", "float32"),
        DType("float32", "float32"),
        DType("float64", "float64"),
        DType("complex64", "float32", complex=True),
        DType("complex128", "float64", complex=True),
    )
}

BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "complex64": 8, "complex128": 16}
BYTES |= {"int8": 1, "uint8": 1}  # of state

COMPLEX_OF = {"float32": "complex64", "float64": "complex128"}

_COMPAT = {"torch": "torch", "cupy": "cupy", "dask": "dask.array"}
_LIBRARIES = {"numpy": "numpy", "torch": "torch", "cupy": "cupy", "dask": "dask", "jax": "jax", "jaxlib": "jax"}
_contiguous, _cupy_address = operator.attrgetter("flags.c_contiguous"), operator.attrgetter("data.ptr")
_torch_contiguous, _torch_address = operator.methodcaller("is_contiguous"), operator.methodcaller("data_ptr")
_conj, _neg = operator.methodcaller("is_conj"), operator.methodcaller("is_neg")
_FACTS = {
    name: [operator.attrgetter(fact) for fact in facts]
    for name, facts in {
        "numpy": ("dtype", "shape"),
        "torch": ("dtype", "shape", "device", "layout"),
        "cupy": ("dtype", "shape", "device"),
    }.items()
}
_IN_PLACE = {"numpy", "torch", "cupy", "array_api_strict"}
LIBRARIES = frozenset(_LIBRARIES.values()) | {"array_api_strict"}
"""Those whose arrays are arrays and nothing else."""
_seen: dict[type, str | None] = {}


def library(x: object) -> str | None:
    """Name the library that an array belongs to; None for what is not an array."""
    kind = type(x)
    if kind not in _seen:
        _seen[kind] = _find_library(x, kind)
    return _seen[kind]


def _find_library(x: object, kind: type) -> str | None:
    if issubclass(kind, np.ndarray):  # of which matrices, masked arrays and units mean other things by + and *
        other = issubclass(kind, np.matrix | np.ma.MaskedArray) or hasattr(kind, "unit") or hasattr(kind, "units")
        return None if other else "numpy"
    if issubclass(kind, np.generic):
        return "numpy"
    if not (hasattr(x, "shape") and hasattr(x, "dtype")):
        return None
    for base in kind.__mro__:
        found = _LIBRARIES.get(base.__module__.partition(".")[0])
        if found is not None:
            return found
    return kind.__module__.partition(".")[0] if hasattr(x, "__array_namespace__") else None


def namespace(x: Array) -> Any:
    """Return the array-API namespace of an array."""
    name = library(x)
    if name == "numpy":
        return np
    if name in _COMPAT:
        return importlib.import_module(f"array_api_compat.{_COMPAT[name]}")
    return x.__array_namespace__()


def part(dtype: str) -> str:
    """Return the dtype that is stored: of complex numbers, that of their parts."""
    return DTYPES[dtype].part if dtype in DTYPES else dtype


def in_place(name: str) -> bool:
    """Whether arrays of this library can be written into."""
    return name in _IN_PLACE


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
    return "complex" in str(x.dtype)


def device(x: Array) -> Any:
    """Return the device of an array, or None where it is not ours to compare (JAX places arrays itself)."""
    name = library(x)
    if name in ("numpy", "jax", "dask"):
        return None
    return x.device


def beside(x: Array) -> dict[str, Any]:
    """Say where to make an array, so that it is on the device of another one: an argument of ``xp.zeros`` and so on."""
    place = device(x)
    return {} if place is None else {"device": place}


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


def dtype_of(xp: Any, dtype: str) -> Any:
    """Return what a library calls a dtype."""
    name = getattr(xp, "__name__", "")
    found = bfloat16() if xp is np and dtype == "bfloat16" else getattr(xp, dtype, None)
    if found is None and dtype == "float16" and name.endswith("dask.array"):
        found = np.float16  # it computes in this dtype, and does not say so
    if found is None:
        raise TypeError(f"{name} has no {dtype}{': pip install ml_dtypes' if xp is np else ''}")
    return found


def full_like(xp: Any, name: str, p: Array, dtype: str, value: float) -> Array:
    """Make a state array for a parameter: its shape and device, C order, never part of a graph."""
    kind = dtype_of(xp, dtype)
    value = int(value) if "int" in dtype else value
    if name == "numpy":
        return np.full(p.shape, value, kind)
    if name == "jax":  # sharded like the parameter
        return xp.full_like(p, value, dtype=kind)
    if name == "dask":
        return xp.full(p.shape, value, dtype=kind, chunks=p.chunks)
    return xp.full(tuple(p.shape), value, dtype=kind, device=p.device)


def detached(name: str, x: Any) -> Any:
    """Return an array, or a number, without its graph."""
    return x.detach() if name == "torch" and hasattr(x, "detach") else x


def copied(xp: Any, name: str, p: Array, dtype: str) -> Array:
    """Copy a parameter into a state array: its shape and device, C order, never part of a graph."""
    kind = dtype_of(xp, dtype)
    if name == "numpy":
        return np.array(p, kind, order="C")
    if name == "torch":
        x = p.detach().resolve_conj().resolve_neg()
        return x.to(kind, copy=True).contiguous()
    return xp.asarray(p, dtype=kind, copy=True) if p.dtype == kind else xp.astype(p, kind, copy=True)


def empty(xp: Any, shape: tuple[int, ...], dtype: Any, like: Array) -> Array:
    """Allocate an array in C order on the device of another one."""
    return np.empty(shape, dtype) if xp is np else xp.empty(tuple(shape), dtype=dtype, device=like.device)


def contiguous(name: str, column: list[Array]) -> list[bool]:
    """Say of arrays of one library whether their memory is in C order without gaps: NumPy, CuPy or torch."""
    return list(map(_torch_contiguous if name == "torch" else _contiguous, column))


def addresses(name: str, column: list[Array]) -> list[int]:
    """Return where the first element of each array lies: NumPy, CuPy or torch."""
    if name == "torch":
        return list(map(_torch_address, column))
    if name == "numpy":
        return [x.__array_interface__["data"][0] for x in column]
    return list(map(_cupy_address, column))


def facts(name: str, column: list[Array]) -> list[Any]:
    """Return what arrays must have in common with others to be computed with them; loops that run in C.

    Nothing of a library that is not known well enough, and of torch tensors that stand for the conjugate of another.
    """
    if name == "torch" and (any(map(_conj, column)) or any(map(_neg, column))):
        return []
    return [list(map(fact, column)) for fact in _FACTS.get(name, ())]


def plain_type(name: str) -> list[type]:
    """Return the type that arrays of a library mostly have, where there is one."""
    if name == "torch":
        return [importlib.import_module("torch").Tensor]
    return [np.ndarray] if name == "numpy" else []


def aligned(size: int, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Allocate a flat NumPy array that starts on a cache line."""
    raw = np.empty(size * dtype.itemsize + 64, np.uint8)
    skip = -raw.ctypes.data % 64
    return raw[skip : skip + size * dtype.itemsize].view(dtype)


def c_order(xp: Any, name: str, x: Array) -> Array:
    """Copy an array into memory in C order."""
    made = empty(xp, x.shape, x.dtype, x)
    made[...] = x.detach() if name == "torch" else x
    return made


def on_device(name: str, x: Array) -> Any:
    """Return a context in which a library works on the device of an array."""
    if name == "torch" and x.device.type == "cuda":
        return importlib.import_module("torch").cuda.device(x.device)
    return x.device if name == "cupy" else nullcontext()


def cuda_stream(x: Array) -> tuple[int, int]:
    """Return the device of a CuPy or torch array and the stream that is current there."""
    if library(x) == "torch":
        device = x.device
        return device.index, importlib.import_module("torch").cuda.current_stream(device).cuda_stream
    return x.device.id, importlib.import_module("cupy").cuda.get_current_stream(x.device.id).ptr


def join_complex(xp: Any, name: str, re: Array, im: Array) -> Array:
    """Make a complex array of two real ones, without the NaN that ``re + 1j * im`` makes of an infinity."""
    if name == "torch":
        return importlib.import_module("torch").complex(re, im)
    if name == "jax":
        return importlib.import_module("jax").lax.complex(re, im)
    if name in ("numpy", "cupy"):
        out = xp.empty(re.shape, dtype=xp.result_type(re.dtype, xp.complex64))
        out.real, out.imag = re, im
        return out
    return re + im * 1j


def overwrite(name: str, places: list[Array], values: list[Array]) -> None:
    """Write arrays into others of a library that allows it."""
    with no_grad(name):
        for place, x in zip(places, values, strict=True):
            detached(name, place)[...] = x


def no_grad(name: str) -> Any:
    """Return a context in which a library records no graph and NumPy raises no floating-point warning."""
    if name == "torch":
        return importlib.import_module("torch").no_grad()
    return np.errstate(all="ignore")


def either(condition: Array, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """Return one of two results of the same shapes, as a 0-d array of JAX says, which nobody may read."""
    return importlib.import_module("jax").lax.cond(condition, yes, no)


def host_view(x: Array) -> np.ndarray[Any, Any] | None:
    """Return a NumPy array on the same memory, or None where there is no such thing."""
    name = library(x)
    if name == "numpy":
        return np.asarray(x)
    if name != "torch" or x.device.type != "cpu" or x.is_conj() or x.is_neg():
        return None
    view: np.ndarray[Any, Any]
    if dtype_name(x) != "bfloat16":
        view = x.detach().numpy()
    elif bfloat16() is None:
        return None
    else:
        view = x.detach().view(importlib.import_module("torch").int16).numpy().view(bfloat16())
    return view


@functools.cache
def bfloat16() -> Any:
    """Return NumPy's bfloat16, which is that of ml_dtypes, or None."""
    found = importlib.util.find_spec("ml_dtypes")
    return found and importlib.import_module("ml_dtypes").bfloat16


def written(arrays: list[Array]) -> None:
    """Tell torch that its tensors were written behind its back, so that a stale graph raises instead of lying."""
    importlib.import_module("torch").autograd.graph.increment_version(arrays)


def _phantom(x: Array) -> np.ndarray[Any, Any] | None:
    """Describe the memory of an array as a NumPy array that must not be read: for address arithmetic only."""
    name = library(x)
    if name == "numpy":
        return np.asarray(x)
    try:
        if name == "torch":
            pointer, size = x.data_ptr(), x.element_size()
            strides = tuple(s * size for s in x.stride())
        elif name == "cupy":
            pointer, size, strides = x.data.ptr, x.itemsize, x.strides
        elif name == "array_api_strict":
            return np.from_dlpack(x)
        else:
            return None
    except (RuntimeError, TypeError, BufferError, ValueError):
        return None
    if pointer == 0 or math.prod(x.shape) == 0:
        return None
    face = {"data": (pointer, True), "shape": tuple(x.shape), "strides": strides, "typestr": f"|V{size}", "version": 3}
    return np.asarray(SimpleNamespace(__array_interface__=face))


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
