"""NumPy: the library of the host."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from xopt._arrays.library import Array, Library, NDArray, ml_dtype

_contiguous = operator.attrgetter("flags.c_contiguous")
_dtype, _shape = operator.attrgetter("dtype"), operator.attrgetter("shape")


class Own(Library):
    packages = ("numpy",)
    served = "numba if installed, else tiled"
    host = True
    writes = True

    def namespace(self, x: Array) -> Any:
        return np

    def device(self, x: Array) -> Any:
        return None

    def dtype(self, xp: Any, name: str) -> Any:
        return getattr(np, name, None) or ml_dtype(name)

    def ordered(self, x: Array, whole: bool) -> Array:
        # NumPy's complex loops round otherwise where the stride is negative, and its sums follow the memory
        return np.require(x, requirements="C") if whole or x.dtype.kind == "c" else x

    def full_like(self, xp: Any, p: Array, kind: Any, value: Any) -> Array:
        return np.full(p.shape, value, kind)

    def copied(self, xp: Any, p: Array, kind: Any) -> Array:
        return np.array(p, kind, order="C")

    def empty(self, xp: Any, shape: Sequence[int], dtype: Any, like: Array) -> Array:
        return np.empty(shape, dtype)

    def join_complex(self, xp: Any, re: Array, im: Array) -> Array:
        out = np.empty(re.shape, np.result_type(re.dtype, np.complex64))
        out.real, out.imag = re, im
        return out

    def constant(self, xp: Any, like: Array, value: int) -> Any:
        return np.uint32(value)

    def host_view(self, x: Array) -> NDArray:
        return np.asarray(x)

    def to_host(self, x: Array) -> Any:
        return x

    def shared(self, x: NDArray, dtype: str) -> Array:
        return x

    def contiguous(self, column: list[Array]) -> list[bool]:
        return list(map(_contiguous, column))

    def addresses(self, column: list[Array]) -> list[int]:
        return [x.__array_interface__["data"][0] for x in column]

    def facts(self, column: list[Array]) -> list[Any]:
        return [list(map(_dtype, column)), list(map(_shape, column))]

    def plain_types(self) -> list[type]:
        return [np.ndarray]

    def phantom(self, x: Array) -> NDArray:
        return np.asarray(x)

    def moving(self, leaves: list[Array], wide: bool, where: bool) -> list[Any]:
        found: list[Any] = [list(map(_shape, leaves)), list(map(_dtype, leaves))]
        return [*found, self.addresses(leaves)] if where else found
