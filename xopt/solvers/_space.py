"""Parameters as one vector of real numbers, which a solver computes with."""

from __future__ import annotations

import contextvars
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xopt import _arrays
from xopt._arrays import Library
from xopt._arrays import tree as _tree
from xopt._arrays.layout import Layout
from xopt._arrays.transfer import to_host

Array = Any
Numbers = np.ndarray[Any, Any]
CHUNK = 2**16
"""Elements that are read at a time on a host, so that they stay in the cache."""
SMALL = 2**12
"""Elements of which a temporary costs less than a call."""


class Vectors(NamedTuple):
    """A point, the gradient g there, and P·g; without a preconditioner P that is g itself."""

    x: Array
    g: Array
    z: Array


class Space:
    """The way from a tree to a vector and back; a complex number is two real ones, so that products are Re⟨a, b⟩."""

    parted = False
    """Whether the vectors are parts of those that other processes have, too."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.xp, self.library = layout.xp, layout.library
        if not layout.leaves:
            raise ValueError("x0: no arrays, so there is nothing to minimize over")
        for k, d in enumerate(layout.dtypes):
            if d.itemsize < 4:
                raise TypeError(f"{layout.path(k)}: dtype {d.name}, but a solver needs float32, float64 or complex")
        self.real = "float64" if any(d.real == "float64" for d in layout.dtypes) else "float32"
        self.dtype = getattr(self.xp, self.real)
        self.sizes = [math.prod(s) * (1 + d.complex) for s, d in zip(layout.shapes, layout.dtypes, strict=True)]
        self.size = sum(self.sizes)
        if not self.size:
            raise ValueError("x0: no elements, so there is nothing to minimize over")
        self.eps = float(max(np.finfo(d.real).eps for d in layout.dtypes))
        self.writes = self.library.writes
        """Whether arrays can be written into."""
        host = self.library.writes and _arrays.device_name(layout.leaves[0]) == "cpu"
        self.chunks = self.pieces(CHUNK) if host else [None]
        """Slices of a vector, None for all of it: on a host, what stays in the cache."""

    def pieces(self, size: int) -> list[slice | None]:
        """Return slices of so many elements."""
        if size >= self.size or not self.writes:
            return [None]
        return [slice(k, min(k + size, self.size)) for k in range(0, self.size, size)]

    def vector(self, leaves: list[Array]) -> Array:
        """Return one array a parameter as a vector; it may be the memory of the array itself."""
        xp, parts = self.xp, list[Array]()
        for x, d in zip(leaves, self.layout.dtypes, strict=True):
            x = _arrays.detached(x)
            halves = (xp.real(x), xp.imag(x)) if d.complex else (x,)
            parts += [_arrays.cast(xp, xp.reshape(y, (-1,)), self.dtype) for y in halves]
        return parts[0] if len(parts) == 1 else xp.concat(parts)

    def gradient(self, grads: Any, name: str = "grads") -> Array:
        """Return a gradient as a vector in memory of its own, or say what does not fit the parameters."""
        leaves = whole_gradients(self.layout, grads, name)
        vector = self.vector(leaves)
        return vector if len(leaves) > 1 or self.layout.dtypes[0].complex else self.copied(vector)

    def preconditioned(self, precondition: Callable[[Any], Any] | None, g: Array) -> Array:
        """Return P·g, by a function of the user; without one g itself."""
        return g if precondition is None else self.gradient(precondition(self.tree(g)), "preconditioner")

    def tree(self, vector: Array) -> Any:
        """Put a vector into the structure of the parameters."""
        xp, leaves, start = self.xp, [], 0
        rows = zip(self.layout.shapes, self.layout.dtypes, self.layout.raw_dtypes, self.sizes, strict=True)
        for shape, d, raw, size in rows:
            part = vector[start : start + size] if size < self.size else vector
            start += size
            if d.complex:
                part = self.library.join_complex(xp, part[: size // 2], part[size // 2 :])
            leaves.append(xp.reshape(_arrays.cast(xp, part, raw), shape))
        return self.layout.tree(leaves)

    def place(self, i: int) -> tuple[int, int]:
        """Return which parameter an element of a vector belongs to, and its number there."""
        for k, size in enumerate(self.sizes):
            if i < size:
                return k, i % math.prod(self.layout.shapes[k])
            i -= size
        raise IndexError(i)

    def numbers(self, value: Any, arrays: list[Array]) -> list[float]:
        """Bring a value and 0-d or 1-d arrays to the host, in one transfer."""
        return numbers(self.xp, value, [self.xp.reshape(x, (-1,)) for x in arrays])

    def maxima(self, arrays: list[Array]) -> list[float]:
        """Return the largest absolute value of each."""
        return self.numbers(0.0, [self.largest(x) for x in arrays])[1:]

    def host(self, x: Array) -> np.ndarray[Any, Any]:
        """Bring a vector, or a number of 0 dimensions, to the host in float64."""
        return np.asarray(self.numbers(0.0, [x])[1:])

    def total(self, rows: list[Any], function: Any = np.sum) -> np.ndarray[Any, Any]:
        """Bring one row a chunk to the host, and add them up, or whatever the function does."""
        found: np.ndarray[Any, Any] = function(np.reshape(self.numbers(0.0, rows)[1:], (len(rows), -1)), axis=0)
        return found

    def beside(self, x: Array) -> Array:
        """Return an array of NumPy, or of the library of the parameters, beside them."""
        if _arrays.library(x) not in (_arrays.NUMPY, self.library):
            raise TypeError(f"state: an array of {_arrays.library(x)}, but the parameters are arrays of {self.library}")
        return self.xp.asarray(x, dtype=self.dtype, **_arrays.beside(self.layout.leaves[0]))

    def uploaded(self, numbers: np.ndarray[Any, Any]) -> Array:
        """Return numbers of the host as a vector beside the parameters."""
        return self.xp.asarray(numbers.astype(self.real), **_arrays.beside(self.layout.leaves[0]))

    def zeros(self, *shape: int) -> Array:
        """Make zeros beside the parameters."""
        return self.xp.zeros(shape, dtype=self.dtype, **_arrays.beside(self.layout.leaves[0]))

    def dot(self, a: Array, b: Array) -> Array:
        """Return a·b, of vectors and matrices."""
        return self.library.dot(a, b)

    def row(self, *numbers: Array) -> Any:
        """Make a vector of 0-d arrays, for `joined`, `known` and `total`."""
        return self.xp.stack(numbers)

    def joined(self, *rows: Any) -> Any:
        """Make one vector of several."""
        return self.xp.concat(rows)

    def quietly(self, function: Any, *args: Any) -> Any:
        """Call a function of ours, without warnings of numbers that overflow or are none."""
        with np.errstate(all="ignore"):
            return function(*args)

    def known(self, value: Any, sums: list[Array], tops: list[Array]) -> tuple[float, Numbers, Numbers]:
        """Bring a value, rows to be added up and rows to take maxima of to the host, in one transfer."""
        value, *found = self.numbers(value, [*sums, *tops])
        numbers, shape = np.asarray(found), (len(sums), -1)
        cut = len(found) - len(tops) * tops[0].shape[0]
        return value, numbers[:cut].reshape(shape).sum(0), numbers[cut:].reshape(shape).max(0)

    def put(self, rows: Array, i: int, chunk: slice | None, values: Array) -> Array:
        """Write into a row of a matrix, perhaps in place: the old matrix is gone then."""
        if self.library.jits:
            return self.library.set_row(rows, i, values)
        if not self.writes:
            row = self.zeros(1, self.size) + values
            return self.xp.concat([rows[:i, :], row, rows[i + 1 :, :]])
        rows[i, slice(None) if chunk is None else chunk] = values
        return rows

    def put_difference(self, rows: Array, i: int, chunk: slice | None, a: Array, b: Array) -> Array:
        """Write a - b into a row of a matrix, without a temporary where the library can."""
        if not self.writes:
            return self.put(rows, i, chunk, a - b)
        row = rows[i, slice(None) if chunk is None else chunk]
        row[...] = a
        row -= b
        return rows

    def scale(self, rows: Array, i: int, chunk: slice | None, factor: float) -> Array:
        """Multiply a row of a matrix."""
        if not self.writes:
            return self.put(rows, i, chunk, factor * rows[i, :])
        row = rows[i, slice(None) if chunk is None else chunk]
        row *= factor
        return rows

    def largest(self, x: Array) -> Array:
        """Return the largest absolute value; no temporary is made."""
        return self.xp.abs(self.xp.maximum(self.xp.max(x), -self.xp.min(x)))

    def copied(self, x: Array) -> Array:
        """Return a vector in memory of its own."""
        return self.xp.asarray(x, copy=True)


class Single(Space):
    """The way of one array of real numbers of NumPy, which is a vector: as few calls as can be, for small ones."""

    @staticmethod
    def fits(layout: Layout) -> bool:
        if not layout.library.host or len(layout.leaves) != 1:
            return False
        [x] = layout.given
        return type(x) is np.ndarray and x.dtype in (np.float32, np.float64) and x.dtype.isnative

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        [self._shape], self._bare = layout.shapes, layout.spec.is_leaf()
        self._whole = len(self.chunks) == 1
        self._quiet = contextvars.copy_context()
        """Where NumPy does not warn: to enter it takes a tenth of what ``np.errstate`` does."""
        self._quiet.run(np.seterr, all="ignore")

    def gradient(self, grads: Any, name: str = "grads") -> Array:
        if self._bare and type(grads) is np.ndarray and grads.shape == self._shape and grads.dtype == self.dtype:
            return grads.flatten()
        return super().gradient(grads, name)

    def tree(self, vector: Array) -> Any:
        x = vector.reshape(self._shape)
        return x if self._bare else self.layout.tree([x])

    def dot(self, a: Array, b: Array) -> Array:
        return a.dot(b) if self._whole else a @ b  # the same numbers in a third of the time; of chunks it makes copies

    def row(self, *numbers: Array) -> Any:
        return list(map(float, numbers))

    def known(self, value: Any, sums: list[Any], tops: list[Any]) -> tuple[float, Any, Any]:
        if len(sums) > 1 or type(value) is not float:
            return super().known(value, list(map(np.asarray, sums)), list(map(np.asarray, tops)))
        return value, sums[0], tops[0]

    def total(self, rows: list[Any], function: Any = np.sum) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = function(rows, axis=0)
        return found

    def quietly(self, function: Any, *args: Any) -> Any:
        return self._quiet.run(function, *args)

    def uploaded(self, numbers: np.ndarray[Any, Any]) -> Array:
        return numbers.astype(self.dtype, copy=False)

    def largest(self, x: Array) -> Array:
        if x.size > SMALL or not x.ndim:
            return super().largest(x)
        sizes = np.abs(x)
        return sizes[sizes.argmax()]  # NaN, if there is one


def space(layout: Layout) -> Space:
    """Return the way of these parameters."""
    return (Single if Single.fits(layout) else Space)(layout)


def gradients(layout: Layout, grads: Any, name: str = "grads") -> list[Any]:
    """Return gradients leaf by leaf as `Layout` does; dimensions of 1 may be more or fewer than in the parameters.

    Beside parameters of NumPy, numbers and lists of numbers go, too.
    """
    found = _tree.match(layout.spec, grads, name)
    return [layout.accept(k, _shaped(layout, k, g, name), name) for k, g in enumerate(found)]


def whole_gradients(layout: Layout, grads: Any, name: str = "grads") -> list[Any]:
    """Return gradients of all parameters leaf by leaf."""
    leaves = gradients(layout, grads, name)
    for k, g in enumerate(leaves):
        if g is None:
            raise ValueError(f"{layout.path(k, name)}: None, but a solver needs every gradient")
    return leaves


def not_positive(square: Any) -> ValueError:
    """Say that g·P·g is negative."""
    return ValueError(f"preconditioner: g·P·g = {square}, but it must be positive, for any g")


def _shaped(layout: Layout, k: int, g: Any, name: str) -> Any:
    """Bring what stands for a gradient into the shape of its parameter, where that leaves no doubt."""
    if layout.library.host:
        bare = isinstance(g, list | tuple) or (isinstance(g, int | float | complex) and not isinstance(g, bool))
        if bare or (isinstance(g, np.ndarray | np.generic) and g.dtype.kind in "iu"):
            x = numbers_of(g, layout.path(k, name)) if not bare or is_numbers(g) else None
            if x is not None and (x.dtype.kind != "c" or layout.dtypes[k].complex):
                g = x.astype(layout.raw_dtypes[k])
    shape = getattr(g, "shape", None)
    if shape is None or tuple(shape) == layout.shapes[k] or _arrays.library(g) != layout.library:
        return g
    if [n for n in shape if n != 1] != [n for n in layout.shapes[k] if n != 1]:
        return g
    return layout.xp.reshape(np.asarray(g) if isinstance(g, np.generic) else g, layout.shapes[k])


def is_numbers(x: Any) -> bool:
    """Whether something is a list of numbers, or of such lists."""
    if type(x) in (list, tuple):
        return len(x) > 0 and all(map(is_numbers, x))
    return isinstance(x, int | float | complex | np.number) and not isinstance(x, bool)


def numbers_of(x: Any, name: str) -> np.ndarray[Any, Any]:
    """Return numbers, or lists of them, as an array of float64 or complex128; a float of NumPy stays what it is."""
    try:
        found = np.asarray(x)
        if isinstance(x, np.floating | np.complexfloating):
            return found
        return found.astype(complex if found.dtype.kind == "c" else float)
    except ValueError:
        raise ValueError(f"{name}: a list whose parts have different lengths") from None
    except OverflowError:
        raise ValueError(f"{name}: a number that is too large for float64") from None


def part(x: Array, chunk: slice | None) -> Array:
    """Return a chunk of a vector, or of each row of a matrix."""
    return x if chunk is None else x[..., chunk]


def checked_value(library: Library, x: Any) -> Any:
    """Check what a function returned as its value: a number, or a 0-d array of the library of the parameters."""
    if type(x) is float or type(x) is np.float64:
        return float(x)
    if isinstance(x, bool | complex | str) or not (isinstance(x, int | float) or hasattr(x, "dtype")):
        raise TypeError(f"value: {x!r} is a {type(x).__name__}, but it must be a real number")
    if not hasattr(x, "dtype"):
        return float(x)
    if any(n != 1 for n in x.shape):
        raise ValueError(f"value: shape {tuple(x.shape)}, but it must be one number")
    if tuple(x.shape) != ():
        x = _arrays.namespace(x).reshape(x, ())
    if isinstance(x, np.generic | np.ndarray) and x.dtype.kind in "iuf":
        return float(x)
    if "float" not in str(x.dtype):
        raise TypeError(f"value: dtype {_arrays.dtype_name(x)}, but it must be a real number")
    if _arrays.library(x) != library:
        raise TypeError(f"value: an array of {_arrays.library(x)}, but the parameters are arrays of {library}")
    return _arrays.detached(x)


def numbers(xp: Any, value: Any, vectors: list[Array]) -> list[float]:
    """Bring a value and vectors to the host, in one transfer."""
    if isinstance(value, float):
        return [value, *_listed(xp.concat(vectors))] if vectors else [value]
    dtypes = {x.dtype for x in (value, *vectors)}
    wide = next((d for d in dtypes if "64" in str(d)), next((d for d in dtypes if "32" in str(d)), value.dtype))
    return _listed(xp.concat([_arrays.cast(xp, x, wide) for x in (xp.reshape(value, (1,)), *vectors)]))


def _listed(x: Array) -> list[float]:
    found: list[float] = x.tolist() if hasattr(x, "tolist") else to_host(x).tolist()
    return found
