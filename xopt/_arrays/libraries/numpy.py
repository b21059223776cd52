"""NumPy: the library of the host."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from xopt._arrays.library import Array, NDArray, NumPyLike, ml_dtype, shapes_and_dtypes

_writeable = operator.attrgetter("flags.writeable")


class Own(NumPyLike):
    packages = ("numpy",)
    served = "llvm if installed, else tiled"
    host = True

    def namespace(self, x: Array) -> Any:
        return np

    def device(self, x: Array) -> Any:
        return None

    def dtype(self, xp: Any, name: str) -> Any:
        return getattr(np, name, None) or ml_dtype(name)

    def all_writable(self, column: list[Array]) -> bool:
        return all(map(_writeable, column))

    def ordered(self, x: Array, matrix: bool) -> Array:
        # NumPy's complex loops round otherwise where the stride is negative, and its sums follow the memory
        return np.require(x, requirements="C") if matrix or x.dtype.kind == "c" else x

    def full_like(self, xp: Any, p: Array, kind: Any, value: Any) -> Array:
        return np.full(p.shape, value, kind)

    def copied(self, xp: Any, p: Array, kind: Any) -> Array:
        return np.array(p, kind, order="C")

    def empty(self, xp: Any, shape: Sequence[int], dtype: Any, like: Array) -> Array:
        return np.empty(shape, dtype)

    def concatenate(self, pieces: list[Array], out: Array) -> None:
        np.concatenate(pieces, out=out)

    def host_view(self, x: Array) -> NDArray:
        return np.asarray(x)

    def to_host(self, x: Array) -> Any:
        return x

    def shared(self, x: NDArray, dtype: str) -> Array:
        return x

    def addresses(self, column: list[Array]) -> list[int]:
        return [x.__array_interface__["data"][0] for x in column]

    def facts(self, column: list[Array]) -> list[Any]:
        return shapes_and_dtypes(column)

    def plain_types(self) -> list[type]:
        return [np.ndarray]

    def phantom(self, x: Array) -> NDArray:
        return np.asarray(x)
