"""CuPy, in the dress of array-api-compat."""

from __future__ import annotations

import importlib
import operator
from typing import Any

from xopt._arrays.library import DTYPE, SHAPE, Array, NDArray, NumPyLike, described

_address, _device = operator.attrgetter("data.ptr"), operator.attrgetter("device")


class Own(NumPyLike):
    packages = ("cupy", "cupy-cuda13x", "cupy-cuda12x")
    served = "cuda"
    cuda = True

    def namespace(self, x: Array) -> Any:
        return importlib.import_module("array_api_compat.cupy")

    def to_host(self, x: Array) -> Any:
        return x.get()

    def concatenate(self, pieces: list[Array], out: Array) -> None:
        importlib.import_module("cupy").concatenate(pieces, out=out)

    def addresses(self, column: list[Array]) -> list[int]:
        return list(map(_address, column))

    def facts(self, column: list[Array]) -> list[Any]:
        return [list(map(fact, column)) for fact in (DTYPE, SHAPE, _device)]

    def phantom(self, x: Array) -> NDArray | None:
        return described(x.data.ptr, x.shape, x.strides, x.itemsize)

    def add_rows(self, xp: Any, table: Array, at: Array, rows: Array) -> Array:
        if table.dtype.kind != "c":
            return super().add_rows(xp, table, at, rows)
        add = super().add_rows  # which for complex numbers is not there
        re, im = (add(xp, xp.zeros_like(part(table)), at, part(rows)) for part in (xp.real, xp.imag))
        return table + self.join_complex(xp, re, im)

    def on_device(self, x: Array) -> Any:
        return x.device

    def synchronize(self, x: Array) -> None:
        importlib.import_module("cupy").cuda.get_current_stream(x.device.id).synchronize()

    def cuda_stream(self, x: Array) -> tuple[int, int]:
        return x.device.id, importlib.import_module("cupy").cuda.get_current_stream(x.device.id).ptr
