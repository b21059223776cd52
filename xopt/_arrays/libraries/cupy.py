"""CuPy, in the dress of array-api-compat."""

from __future__ import annotations

import importlib
import operator
from typing import Any

import numpy as np

from xopt._arrays.library import Array, Library, NDArray, described

_contiguous, _address = operator.attrgetter("flags.c_contiguous"), operator.attrgetter("data.ptr")
_SHAPE, _DTYPE, _DEVICE = (operator.attrgetter(n) for n in ("shape", "dtype", "device"))


class Own(Library):
    packages = ("cupy", "cupy-cuda13x", "cupy-cuda12x")
    served = "cuda"
    writes = True
    cuda = True

    def namespace(self, x: Array) -> Any:
        return importlib.import_module("array_api_compat.cupy")

    def join_complex(self, xp: Any, re: Array, im: Array) -> Array:
        out = xp.empty(re.shape, dtype=xp.result_type(re.dtype, xp.complex64))
        out.real, out.imag = re, im
        return out

    def constant(self, xp: Any, like: Array, value: int) -> Any:
        return np.uint32(value)

    def to_host(self, x: Array) -> Any:
        return x.get()

    def contiguous(self, column: list[Array]) -> list[bool]:
        return list(map(_contiguous, column))

    def addresses(self, column: list[Array]) -> list[int]:
        return list(map(_address, column))

    def facts(self, column: list[Array]) -> list[Any]:
        return [list(map(fact, column)) for fact in (_DTYPE, _SHAPE, _DEVICE)]

    def phantom(self, x: Array) -> NDArray | None:
        return described(x.data.ptr, x.shape, x.strides, x.itemsize)

    def moving(self, leaves: list[Array], wide: bool, where: bool) -> list[Any]:
        found: list[Any] = [list(map(_SHAPE, leaves)), list(map(_DTYPE, leaves))]
        return [*found, self.addresses(leaves)] if where else found

    def on_device(self, x: Array) -> Any:
        return x.device

    def cuda_stream(self, x: Array) -> tuple[int, int]:
        return x.device.id, importlib.import_module("cupy").cuda.get_current_stream(x.device.id).ptr
