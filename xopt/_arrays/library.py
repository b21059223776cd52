"""What xopt has to know of an array library, and what it takes for granted: the Python Array API standard.

A library that does anything otherwise has a file of its own in ``libraries``, named as its package is, with a subclass
of `Library` that is called ``Own``. No other module asks which library an array belongs to.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import operator
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, ClassVar, TypeAlias

import numpy as np

Array: TypeAlias = Any
"""An array of any library. There is no static type that covers them all."""
NDArray: TypeAlias = np.ndarray[Any, Any]
SHAPE, DTYPE = operator.attrgetter("shape"), operator.attrgetter("dtype")
_contiguous = operator.attrgetter("flags.c_contiguous")


class Library:
    """An array library that keeps to the standard, as far as nothing is known of it: arrays cannot be written into."""

    packages: ClassVar[tuple[str, ...]] = ()
    """Which distributions it comes in, the likeliest first."""
    served: ClassVar[str] = "eager"
    """Which runner serves it, for people."""
    known: ClassVar[bool] = True
    """Whether its arrays are surely arrays and nothing else, such as a container."""
    host: ClassVar[bool] = False
    """Whether it is NumPy, the library of the host."""
    writes: bool = False
    """Whether arrays can be written into, also through parts of them."""
    jits: ClassVar[bool] = False
    """Whether it compiles steps itself, and arrays may be given away to them."""
    records: ClassVar[bool] = False
    """Whether a step may be recorded once and run many times: what changes from step to step must be arrays."""
    lazy: bool = False
    """Whether nothing is computed before the end: a step, or a solver, cannot look at values."""
    differentiates: ClassVar[bool] = False
    """Whether it computes gradients of functions."""
    graphs: ClassVar[bool] = False
    """Whether arrays remember what they were computed from, and count how often they were written."""
    cuda: ClassVar[bool] = False
    """Whether arrays may lie on a CUDA GPU, where a kernel can be given their address."""
    random_dtype: str = "uint32"
    """The integers that random numbers are computed in: 32 bits that wrap, or more of them."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[Any, ...]:
        return _named, (self.name,)  # there is one of each

    def meet(self, x: Array) -> None:
        """Find out what is not known of the library, on the first array of each of its classes."""

    # --- arrays

    def namespace(self, x: Array) -> Any:
        """Return the array-API namespace of an array."""
        return x.__array_namespace__()

    def device(self, x: Array) -> Any:
        """Return the device of an array, or None where it is not ours to compare."""
        return getattr(x, "device", None)

    def beside(self, x: Array) -> dict[str, Any]:
        """Say where to make an array, so that it is on the device of another one: an argument of ``xp.zeros``."""
        place = self.device(x)
        return {} if place is None else {"device": place}

    def dtype(self, xp: Any, name: str) -> Any:
        """Return what the library calls a dtype; None if it has none."""
        return getattr(xp, name, None)

    def reason(self, x: Array) -> str:
        """Say why an array cannot be computed with as one; nothing if it can."""
        return ""

    def all_writable(self, column: list[Array]) -> bool:
        """Whether none of these arrays was made read-only."""
        return True

    def stands_for(self, x: Array) -> str:
        """Name what has a shape and a dtype but no numbers; nothing where an array has some."""
        return ""

    def is_part(self, x: Array) -> bool:
        """Whether an array is known to be a part of a larger one, of which other processes have the rest."""
        return False

    def resolved(self, x: Array) -> Array:
        """Return an array whose memory has its elements as they are: not, say, their conjugates."""
        return x

    def is_plain(self, x: Array) -> bool:
        """Whether the memory of an array has its elements as they are."""
        return True

    def detached(self, x: Array) -> Array:
        """Return an array, or a number, without its graph."""
        return x

    def ordered(self, x: Array, matrix: bool) -> Array:
        """Return an array in the order of memory that its results must not hang on; ``matrix``: all of it, as one."""
        return x

    def layout(self, x: Array) -> Any:
        """Return what else must be the same of two arrays beside shape, dtype and device."""
        return None

    # --- new arrays

    def full_like(self, xp: Any, p: Array, kind: Any, value: Any) -> Array:
        """Make an array of one value beside another one: its shape and device, C order, never part of a graph."""
        return xp.full(tuple(p.shape), value, dtype=kind, **self.beside(p))

    def copied(self, xp: Any, p: Array, kind: Any) -> Array:
        """Copy an array: its shape and device, C order, never part of a graph."""
        return xp.asarray(p, dtype=kind, copy=True) if p.dtype == kind else xp.astype(p, kind, copy=True)

    def empty(self, xp: Any, shape: Sequence[int], dtype: Any, like: Array) -> Array:
        """Allocate an array in C order on the device of another one."""
        return xp.empty(tuple(shape), dtype=dtype, **self.beside(like))

    def join_complex(self, xp: Any, re: Array, im: Array) -> Array:
        """Make a complex array of two real ones; where it can be, without the NaN that inf · 1j has."""
        return re + im * 1j

    def constant(self, xp: Any, like: Array, value: int) -> Any:
        """Make an integer that mixes with ``like``, without a transfer to a device where a host scalar will do."""
        return xp.asarray(value, dtype=like.dtype, **self.beside(like))

    def dot(self, a: Array, b: Array) -> Array:
        """Return a·b, of vectors and matrices that may be long."""
        return a @ b

    # --- the host

    def host_view(self, x: Array) -> NDArray | None:
        """Return a NumPy array on the same memory, or None where there is no such thing."""
        return None

    def to_host(self, x: Array) -> Any:
        """Return an array as one of NumPy, perhaps in the same memory; bfloat16 perhaps as 16-bit integers."""
        try:
            return np.from_dlpack(x)
        except Exception as error:  # in whichever way it refuses
            if not hasattr(x, "__array__"):
                raise TypeError(
                    f"an array of {self}, which cannot be brought to the host: it must have __dlpack__ or __array__"
                ) from error
            return np.asarray(x)

    def from_host(self, xp: Any, x: NDArray, dtype: str, like: Array) -> Array:
        """Return an array of NumPy beside another one; ``dtype`` says what it holds: bfloat16 comes as integers."""
        return xp.asarray(numbers_of_bits(x, dtype), **self.beside(like))

    def shared(self, x: NDArray, dtype: str) -> Array:
        """Return an array in the memory of one of NumPy."""
        raise NotImplementedError  # asked of those that have host views

    # --- writing

    def overwrite(self, places: list[Array], values: list[Array]) -> None:
        """Write arrays into others, if the library allows it."""
        with self.no_grad():
            for place, x in zip(places, values, strict=True):
                self.detached(place)[...] = x

    def concatenate(self, pieces: list[Array], out: Array) -> None:
        """Write vectors end to end into another one, which they fill."""
        at = 0
        for x in pieces:
            out[at : at + len(x)] = x
            at += len(x)

    def written(self, arrays: list[Array]) -> None:
        """Take note that arrays were written behind the library's back."""

    def no_grad(self) -> Any:
        """Return a context in which no graph is recorded and NumPy raises no floating-point warning."""
        return np.errstate(all="ignore")

    # --- memory

    def contiguous(self, column: list[Array]) -> list[bool]:
        """Say of arrays whether their memory is in C order without gaps."""
        raise NotImplementedError  # asked of those whose memory a compiled runner reads

    def addresses(self, column: list[Array]) -> list[int]:
        """Return where the first element of each array lies."""
        raise NotImplementedError  # asked of the same

    def facts(self, column: list[Array]) -> list[Any]:
        """Return what arrays must have in common with others to be computed with them; loops that run in C.

        Nothing of a library that is not known well enough.
        """
        return []

    def marked(self, column: list[Array], wide: bool) -> bool:
        """Whether any array is a view that stands for the negative, or if ``wide`` the conjugate, of its memory."""
        return False

    def unmapped(self, x: Array) -> bool:
        """Whether an array has elements, but no memory that could be read."""
        return False

    def plain_types(self) -> list[type]:
        """Return the type that arrays mostly have, where there is one."""
        return []

    def phantom(self, x: Array) -> NDArray | None:
        """Describe the memory of an array as a NumPy array that must not be read: for address arithmetic only."""
        return None

    def c_order(self, xp: Any, x: Array) -> Array:
        """Copy an array into memory in C order."""
        made = self.empty(xp, x.shape, x.dtype, x)
        made[...] = self.detached(x)
        return made

    def moving(self, leaves: list[Array], wide: bool) -> list[Any]:
        """Say of parameters what can change without them, such as their memory: of complex ones, if ``wide``, more."""
        return []

    # --- rows

    def traced(self, x: Array) -> bool:
        """Whether an array stands for values that are not known yet."""
        return False

    def node(self, kind: type, arrays: tuple[str, ...], fixed: tuple[str, ...]) -> None:
        """Make a class known to the library as a container of these attributes, if it wants to know."""

    def places(self, xp: Any, indices: Array) -> Array:
        """Return integers in a dtype that takes part in everything, and that the number of rows of a table fits."""
        return indices

    def distinct(self, xp: Any, indices: Array, count: int) -> tuple[Array, Array]:
        """Return the different ones among indices, which are below ``count``, and which of these each index is."""
        host = self.to_host(indices)
        rows, place = np.unique(host, return_inverse=True)
        place = place.astype(np.int32)  # not every device has int64
        return self.from_host(xp, rows, host.dtype.name, indices), self.from_host(xp, place, "int32", indices)

    def add_rows(self, xp: Any, table: Array, at: Array, rows: Array) -> Array:
        """Add rows, one after the other, to those of a new array in C order, perhaps in its memory."""
        if not self.writes:
            return self._by_host(np.add.at, table, at, rows)
        for j in range(rows.shape[0]):
            table[int(at[j]), ...] = table[int(at[j]), ...] + rows[j, ...]
        return table

    def put_rows(self, xp: Any, table: Array, at: Array, rows: Array) -> Array:
        """Put rows in the place of others, each of another one; in its memory, where arrays can be written into."""
        if not self.writes:
            return self._by_host(np.ndarray.__setitem__, table, at, rows)
        for j in range(rows.shape[0]):
            table[int(at[j]), ...] = rows[j, ...]
        return table

    def _by_host(self, change: Callable[..., Any], table: Array, at: Array, rows: Array) -> Array:
        made = np.array(self.to_host(table))
        change(made, np.asarray(self.to_host(at)), np.asarray(self.to_host(rows)))
        return self.from_host(self.namespace(table), made, made.dtype.name, table)

    # --- devices

    def on_device(self, x: Array) -> Any:
        """Return a context in which the library works on the device of an array."""
        return nullcontext()

    def cuda_stream(self, x: Array) -> tuple[int, int]:
        """Return the device of a CUDA array and the stream that is current there."""
        raise NotImplementedError  # asked of those that have CUDA arrays

    def on_cuda(self, x: Array) -> bool:
        """Whether an array lies on a CUDA GPU."""
        return self.cuda

    def synchronize(self, x: Array) -> None:
        """Wait until an array is computed, for readers that know nothing of streams."""

    # --- functions

    def either(self, condition: Array, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
        """Return one of two results of the same shapes, as a 0-d array says."""
        return yes() if bool(condition) else no()

    def jit(self, function: Callable[..., Any], given: tuple[int, ...]) -> Callable[..., Any]:
        """Compile a function that may use the memory of the arguments with these numbers."""
        raise NotImplementedError  # asked of those that compile steps

    def set_row(self, rows: Array, i: int, values: Array) -> Array:
        """Return a matrix with another row, perhaps in its memory, where arrays cannot be written into."""
        raise NotImplementedError  # asked of those that compile steps

    def value_and_grad(self, function: Callable[[list[Array]], Any]) -> Callable[[list[Array]], Any]:
        """Make a function of arrays return its value and the list of gradients, ∂f/∂Re + i·∂f/∂Im."""
        raise NotImplementedError  # asked of those that differentiate

    def second(self, function: Callable[[list[Array]], Any]) -> Callable[[list[Array]], Any]:
        """Make a function of arrays return, at a point, v ↦ H·v: the products of its second derivatives with arrays."""
        raise NotImplementedError  # asked of those that differentiate

    def along(self, function: Callable[[Array], Array], x: Array) -> Callable[[Array], Array]:
        """Return v ↦ J·v, the derivative of a function at x along a direction."""
        raise NotImplementedError  # asked of those that differentiate

    def across(self, function: Callable[[Array], Array], x: Array) -> tuple[Array, Callable[[Array], Array]]:
        """Return a function at x, and u ↦ Jᵀ·u, the gradient there of its product with u."""
        raise NotImplementedError  # asked of those that differentiate


class NumPyLike(Library):
    """A library whose arrays have the attributes of NumPy's: NumPy, and CuPy."""

    writes = True

    def join_complex(self, xp: Any, re: Array, im: Array) -> Array:
        out = xp.empty(re.shape, dtype=xp.result_type(re.dtype, xp.complex64))
        out.real, out.imag = re, im
        return out

    def constant(self, xp: Any, like: Array, value: int) -> Any:
        return np.uint32(value)

    def contiguous(self, column: list[Array]) -> list[bool]:
        return list(map(_contiguous, column))

    def distinct(self, xp: Any, indices: Array, count: int) -> tuple[Array, Array]:
        found = xp.unique_inverse(indices)
        return found.values, found.inverse_indices

    def add_rows(self, xp: Any, table: Array, at: Array, rows: Array) -> Array:
        # NumPy adds to places that occur several times a number at a time: so only the second values and later ones
        order, first = xp.arange(len(at)), xp.zeros(len(table), dtype=xp.int64)
        first[at[::-1]] = order[::-1]
        again = first[at] != order
        table[at[~again]] += rows[~again]
        width = math.prod(table.shape[1:])  # and of many numbers several times as fast where there are no rows
        places = at[again].astype(xp.int64)[:, None] * width + xp.arange(width)
        xp.add.at(table.reshape(-1), places.reshape(-1), rows[again].reshape(-1))
        return table

    def put_rows(self, xp: Any, table: Array, at: Array, rows: Array) -> Array:
        table[at] = rows
        return table

    def moving(self, leaves: list[Array], wide: bool) -> list[Any]:
        strides = list(map(operator.attrgetter("strides"), leaves))
        return [*shapes_and_dtypes(leaves), strides, self.addresses(leaves)]


def shapes_and_dtypes(leaves: list[Array]) -> list[Any]:
    """Return the shapes of arrays, and their dtypes; loops that run in C."""
    return [list(map(SHAPE, leaves)), list(map(DTYPE, leaves))]


def _named(name: str) -> Library:
    found: Library = importlib.import_module("xopt._arrays").named(name)
    return found


@functools.cache
def ml_dtype(name: str) -> Any:
    """Return a dtype that NumPy has by way of ml_dtypes, such as bfloat16, or None."""
    found = importlib.util.find_spec("ml_dtypes")
    return found and getattr(importlib.import_module("ml_dtypes"), name, None)


def bfloat16() -> Any:
    """Return NumPy's bfloat16, or None."""
    return ml_dtype("bfloat16")


def numbers_of_bits(x: NDArray, dtype: str) -> NDArray:
    """Return what integers stand for, if they stand for numbers of a dtype that NumPy itself has not."""
    return x if hasattr(np, dtype) else x.view(ml_dtype(dtype))


def hypot(xp: Any, x: Array, y: Array) -> Array:
    """Return the root of x² + y² without squares of either, for libraries that have no such function."""
    x, y = xp.abs(x), xp.abs(y)
    most, least = xp.maximum(x, y), xp.minimum(x, y)
    differ = most > least  # else both are 0 or infinite, perhaps, or one is NaN
    ratio = xp.where(differ, least / xp.where(differ, most, xp.ones_like(most)), xp.ones_like(most))
    return most * xp.sqrt(1 + ratio * ratio)


def exported(x: Array) -> NDArray | None:
    """Return the memory of an array that it lends by DLPack; None if it lends none."""
    try:
        return np.from_dlpack(x)
    except Exception:  # in whichever way it refuses
        return None


def described(pointer: int, shape: Any, strides: Any, size: int) -> NDArray | None:
    """Describe memory as a NumPy array that must not be read; None if there is none."""
    if pointer == 0 or math.prod(shape) == 0:
        return None
    face = {"data": (pointer, True), "shape": tuple(shape), "strides": strides, "typestr": f"|V{size}", "version": 3}
    return np.asarray(SimpleNamespace(__array_interface__=face))
