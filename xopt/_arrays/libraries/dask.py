"""dask: arrays are computed when they are asked for, in the dress of array-api-compat."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from xopt._arrays.library import Array, Library, NDArray, numbers_of_bits


class Own(Library):
    packages = ("dask",)
    lazy = True

    def namespace(self, x: Array) -> Any:
        return importlib.import_module("array_api_compat.dask.array")

    def device(self, x: Array) -> Any:
        return None

    def dtype(self, xp: Any, name: str) -> Any:
        # it computes in float16, and does not say so
        return np.float16 if name == "float16" else getattr(xp, name, None)

    def full_like(self, xp: Any, p: Array, kind: Any, value: Any) -> Array:
        return xp.full(p.shape, value, dtype=kind, chunks=p.chunks)

    def constant(self, xp: Any, like: Array, value: int) -> Any:
        return np.uint32(value)

    def to_host(self, x: Array) -> Any:
        return x.compute()

    def from_host(self, xp: Any, x: NDArray, dtype: str, like: Array) -> Array:
        return xp.asarray(numbers_of_bits(x, dtype), chunks=like.chunks)
