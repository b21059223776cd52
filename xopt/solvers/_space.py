"""Parameters as one vector of real numbers, which a solver computes with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xopt import _arrays
from xopt._layout import Layout

Array = Any


class Space:
    """The way from a tree to a vector and back; a complex number is two real ones, so that products are Re⟨a, b⟩."""

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

    def vector(self, leaves: list[Array]) -> Array:
        """Return one array a parameter as a vector; it may be the memory of the array itself."""
        xp, parts = self.xp, list[Array]()
        for x, d in zip(leaves, self.layout.dtypes, strict=True):
            x = _arrays.detached(self.library, x)
            halves = (xp.real(x), xp.imag(x)) if d.complex else (x,)
            parts += [_arrays.cast(xp, xp.reshape(y, (-1,)), self.dtype) for y in halves]
        return parts[0] if len(parts) == 1 else xp.concat(parts)

    def gradient(self, grads: Any) -> Array:
        """Return a gradient as a vector in memory of its own, or say what does not fit the parameters."""
        leaves = self.layout.gradients(grads)
        for k, g in enumerate(leaves):
            if g is None:
                raise ValueError(f"{self.layout.path(k, 'grads')}: None, but a solver needs every gradient")
        vector = self.vector(leaves)
        return vector if len(leaves) > 1 or self.layout.dtypes[0].complex else self.copied(vector)

    def tree(self, vector: Array) -> Any:
        """Put a vector into the structure of the parameters."""
        xp, leaves, start = self.xp, [], 0
        rows = zip(self.layout.shapes, self.layout.dtypes, self.layout.raw_dtypes, self.sizes, strict=True)
        for shape, d, raw, size in rows:
            part = vector[start : start + size] if size < self.size else vector
            start += size
            if d.complex:
                part = _arrays.join_complex(xp, self.library, part[: size // 2], part[size // 2 :])
            leaves.append(xp.reshape(_arrays.cast(xp, part, raw), shape))
        return self.layout.tree(leaves)

    def numbers(self, value: Any, arrays: list[Array]) -> list[float]:
        """Bring a value and 0-d or 1-d arrays to the host, in one transfer."""
        return numbers(self.xp, value, [self.xp.reshape(x, (-1,)) for x in arrays])

    def uploaded(self, numbers: np.ndarray[Any, Any]) -> Array:
        """Return numbers of the host as a vector beside the parameters."""
        return self.xp.asarray(numbers.astype(self.real), **_arrays.beside(self.layout.leaves[0]))

    def zeros(self, *shape: int) -> Array:
        """Make zeros beside the parameters."""
        return self.xp.zeros(shape, dtype=self.dtype, **_arrays.beside(self.layout.leaves[0]))

    def put(self, rows: Array, i: int, row: Array) -> Array:
        """Write a row of a matrix, in place where the library can."""
        if _arrays.in_place(self.library):
            rows[i, :] = row
            return rows
        return rows.at[i].set(row)

    def copied(self, x: Array) -> Array:
        """Return a vector in memory of its own."""
        return self.xp.asarray(x, copy=True)


def checked_value(library: str, x: Any) -> Any:
    """Check what a function returned as its value: a number, or a 0-d array of the library of the parameters."""
    if isinstance(x, bool | complex | str) or not (isinstance(x, int | float) or hasattr(x, "dtype")):
        raise TypeError(f"value: {x!r} is a {type(x).__name__}, but it must be a real number")
    if not hasattr(x, "dtype"):
        return float(x)
    if tuple(x.shape) != ():
        raise ValueError(f"value: shape {tuple(x.shape)}, but it must be one number")
    if isinstance(x, np.generic | np.ndarray) and x.dtype.kind in "iuf":
        return float(x)
    if "float" not in str(x.dtype):
        raise TypeError(f"value: dtype {_arrays.dtype_name(x)}, but it must be a real number")
    if _arrays.library(x) != library:
        raise TypeError(f"value: an array of {_arrays.library(x)}, but the parameters are arrays of {library}")
    return _arrays.detached(library, x)


def numbers(xp: Any, value: Any, vectors: list[Array]) -> list[float]:
    """Bring a value and vectors to the host, in one transfer."""
    if isinstance(value, float):
        return [value, *_listed(xp.concat(vectors))] if vectors else [value]
    dtypes = {x.dtype for x in (value, *vectors)}
    wide = next((d for d in dtypes if "64" in str(d)), next((d for d in dtypes if "32" in str(d)), value.dtype))
    return _listed(xp.concat([_arrays.cast(xp, x, wide) for x in (xp.reshape(value, (1,)), *vectors)]))


def _listed(x: Array) -> list[float]:
    found: list[float] = x.tolist() if hasattr(x, "tolist") else [float(x[k]) for k in range(x.shape[0])]
    return found
