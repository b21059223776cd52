"""Arrays of any library to NumPy and back, bit for bit."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from xopt._arrays import libraries as _arrays

Array = Any


def to_host(x: Array) -> np.ndarray[Any, Any]:
    """Return an array as one of NumPy in C order, perhaps in the same memory; bfloat16 as 16-bit integers."""
    name = _arrays.library(x)
    if name == "torch":
        x = x.detach().resolve_conj().resolve_neg()
        if _arrays.dtype_name(x) == "bfloat16":
            x = x.view(importlib.import_module("torch").int16)
        x = x.cpu().contiguous().numpy()
    elif name == "cupy":
        x = x.get()
    elif name == "dask":
        x = x.compute()
    elif name not in ("numpy", "jax"):
        x = np.from_dlpack(x)
    host = np.asarray(x, order="C")
    return host.view(np.uint16) if host.dtype.itemsize == 2 and host.dtype != np.float16 else host


def from_host(x: np.ndarray[Any, Any], dtype: str, like: Array) -> Array:
    """Return an array of NumPy as one of the library, device and dtype of another one.

    ``dtype`` says what x holds, because bfloat16 comes as 16-bit integers. The memory of x may be taken over.
    """
    name, xp = _arrays.library(like), _arrays.namespace(like)
    same = _arrays.dtype_name(like) == dtype
    if dtype == "bfloat16" and not same:
        x = (x.astype(np.uint32) << 16).view(np.float32)  # the same numbers
    elif dtype == "float16" and not (same or hasattr(xp, "float16")):
        x = x.astype(np.float32)
    elif dtype == "bfloat16" and name != "torch":
        x = x.view(_arrays.bfloat16())
    if name == "torch":
        made = shared(x, dtype if same else "").to(like.device)
    elif name == "jax":
        made = xp.asarray(x, copy=True)
        if like.committed:  # to a device, or sharded over several
            made = importlib.import_module("jax").device_put(made, like.sharding)
    elif name == "dask":
        made = xp.asarray(x, chunks=like.chunks)
    else:
        made = xp.asarray(x, **_arrays.beside(like))
    return made if same else _arrays.cast(xp, made, like.dtype)


def shared(x: np.ndarray[Any, Any], dtype: str) -> Array:
    """Return a tensor of torch in the memory of an array of NumPy; of bfloat16, x has the 16-bit integers."""
    torch = importlib.import_module("torch")
    return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if dtype == "bfloat16" else torch.from_numpy(x)
