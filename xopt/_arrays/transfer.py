"""Arrays of any library to NumPy and back, bit for bit."""

from __future__ import annotations

import numpy as np

from xopt import _arrays
from xopt._arrays import Array, Library, NDArray


def to_host(x: Array) -> NDArray:
    """Return an array as one of NumPy in C order, perhaps in the same memory; bfloat16 as 16-bit integers."""
    x = _of(x).to_host(x)
    host = np.asarray(x, order="C")
    return host.view(np.uint16) if host.dtype.itemsize == 2 and host.dtype != np.float16 else host


def from_host(x: NDArray, dtype: str, like: Array) -> Array:
    """Return an array of NumPy as one of the library, device and dtype of another one.

    ``dtype`` says what x holds, because bfloat16 comes as 16-bit integers. The memory of x may be taken over.
    """
    library, xp = _of(like), _arrays.namespace(like)
    same = _arrays.dtype_name(like) == dtype
    if dtype == "bfloat16" and not same:  # the same numbers
        x, dtype = (x.astype(np.uint32) << 16).view(np.float32), "float32"
    elif dtype == "float16" and not (same or hasattr(xp, "float16")):
        x, dtype = x.astype(np.float32), "float32"
    made = library.from_host(xp, x, dtype, like)
    return made if same else _arrays.cast(xp, made, like.dtype)


def _of(x: Array) -> Library:
    found = _arrays.library(x)
    if found is None:
        raise TypeError(f"{x!r}: no array")
    return found
