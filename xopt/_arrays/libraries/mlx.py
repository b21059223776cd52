"""MLX: arrays are computed when they are asked for, and kept; some of the standard's functions are not there."""

from __future__ import annotations

import functools
import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np

from xopt._arrays.library import Array, Library, NDArray, hypot

BLOCK = 256
"""Numbers that MLX adds one after the other; its float32 sum of 2²⁵ ones is 2²⁴."""
LONG = 4096
"""The same of products of matrices."""
_LINALG = ("cholesky", "eigh", "inv", "qr", "solve")


def _mx() -> Any:
    return importlib.import_module("mlx.core")


class Own(Library):
    packages = ("mlx", "mlx[cpu]", "mlx[cuda13]")

    def namespace(self, x: Array) -> Any:
        return _namespace()

    def device(self, x: Array) -> Any:
        return None  # memory is that of all devices

    def join_complex(self, xp: Any, re: Array, im: Array) -> Array:
        return xp.stack([re, im], axis=-1).view(xp.complex64)[..., 0]

    def to_host(self, x: Array) -> Any:
        return np.asarray(x.view(_mx().uint16) if x.dtype == _mx().bfloat16 else x)

    def from_host(self, xp: Any, x: NDArray, dtype: str, like: Array) -> Array:
        return xp.asarray(x).view(xp.bfloat16) if dtype == "bfloat16" else xp.asarray(x)

    def add_rows(self, xp: Any, table: Array, at: Array, rows: Array) -> Array:
        return table.at[at].add(rows)

    def put_rows(self, xp: Any, table: Array, at: Array, rows: Array) -> Array:
        made = xp.asarray(table, copy=True)
        made[at] = rows  # of an array that is new
        return made

    def dot(self, a: Array, b: Array) -> Array:
        return _namespace().matmul(a, b)


class Namespace:
    """``mlx.core`` with what the standard has beside it; sums are of blocks, and of their sums."""

    __name__ = "mlx.core"

    def __init__(self) -> None:
        mx = self._mx = _mx()
        self.bool = mx.bool_
        self.linalg = _linalg(mx)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._mx, name)
        setattr(self, name, found)
        return found

    def __array_namespace_info__(self) -> Any:
        """Say which dtypes there are: float64 on a CPU alone."""
        names = ["float32", *["float64"] * (self._mx.default_device() == self._mx.Device(self._mx.cpu))]
        return SimpleNamespace(dtypes=lambda device=None, kind=None: {n: getattr(self._mx, n) for n in names})

    def asarray(self, x: Any, dtype: Any = None, copy: bool | None = None) -> Array:
        if isinstance(x, np.ndarray | np.generic) and dtype is None:  # of which MLX makes float32 and complex64
            dtype = getattr(self, x.dtype.name)
        return self._mx.asarray(x, dtype=dtype, copy=copy)

    def astype(self, x: Array, dtype: Any, copy: bool = True) -> Array:
        return x.astype(dtype)

    def hypot(self, x: Array, y: Array) -> Array:
        return hypot(self, x, y)

    def sign(self, x: Array) -> Array:
        return self._mx.where(self._mx.isnan(x), x, self._mx.sign(x))

    # those of MLX for float64 are as good as for float32; these are made of some that are right
    def exp(self, x: Array) -> Array:
        mx = self._mx
        if x.dtype != mx.float64:
            return mx.exp(x)
        size = 1.0 + mx.expm1(mx.abs(x))
        return mx.where(x < 0, 1.0 / size, mx.where(mx.isnan(x), x, size))

    def sin(self, x: Array) -> Array:
        half = self._mx.tan(0.5 * x)
        return self._mx.sin(x) if x.dtype != self._mx.float64 else 2.0 * half / (1.0 + half * half)

    def cos(self, x: Array) -> Array:
        half = self._mx.tan(0.5 * x)
        return self._mx.cos(x) if x.dtype != self._mx.float64 else 2.0 / (1.0 + half * half) - 1.0

    def full(self, shape: Any, value: Any, dtype: Any = None) -> Array:
        made = self._mx.full(shape, value, dtype=dtype)  # of a complex dtype and a real number float32
        return made if dtype is None else made.astype(dtype)

    def sum(self, x: Array, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Array:
        x = x if dtype is None else x.astype(dtype)
        axes = range(x.ndim) if axis is None else [axis] if isinstance(axis, int) else axis
        for k in axes:
            x = self._summed(x, k % x.ndim)
        return x if keepdims else self._mx.squeeze(x, axis=tuple(axes))

    def _summed(self, x: Array, axis: int) -> Array:
        """Sum along an axis, which stays."""
        n = x.shape[axis]
        if x.size == 0:  # which MLX 0.32 may never return from
            return self._mx.zeros((*x.shape[:axis], 1, *x.shape[axis + 1 :]), dtype=x.dtype)
        if n <= BLOCK:
            return self._mx.sum(x, axis=axis, keepdims=True)
        before, after, whole = x.shape[:axis], x.shape[axis + 1 :], n // BLOCK
        head, rest = self._mx.split(x, [whole * BLOCK], axis=axis)
        head = self._mx.sum(self._mx.reshape(head, (*before, whole, BLOCK, *after)), axis=axis + 1)
        return self._summed(head, axis) + self._mx.sum(rest, axis=axis, keepdims=True)

    def mean(self, x: Array, axis: Any = None, keepdims: bool = False) -> Array:
        found = self.sum(x, axis, keepdims=keepdims)
        return found * (found.size / x.size)

    def vecdot(self, x: Array, y: Array, axis: int = -1) -> Array:
        return self.sum(self._mx.conj(x) * y, axis)

    def matmul(self, x: Array, y: Array) -> Array:
        mx, n = self._mx, x.shape[-1]
        if y.ndim == 1 and n > BLOCK:
            return self.sum(x * y, axis=-1)
        if n <= LONG:
            return mx.matmul(x, y)
        cuts = range(0, n, LONG)
        return self.sum(mx.stack([mx.matmul(x[..., k : k + LONG], y[..., k : k + LONG, :]) for k in cuts]), axis=0)


def _linalg(mx: Any) -> Any:
    """Return the functions of ``linalg`` that xopt calls; only a CPU has them."""

    def wide(name: str, x: Array, *more: Array) -> Any:
        if x.dtype != mx.float32:
            return getattr(mx.linalg, name)(x, *more, stream=mx.cpu)
        cast = functools.partial(mx.astype, stream=mx.cpu)
        found = getattr(mx.linalg, name)(*(cast(a, mx.float64) for a in (x, *more)), stream=mx.cpu)
        return tuple(cast(a, mx.float32) for a in found) if isinstance(found, tuple | list) else cast(found, mx.float32)

    made = {name: functools.partial(wide, name) for name in _LINALG}

    def svd(x: Array, full_matrices: bool = True) -> tuple[Array, Array, Array]:
        u, s, vh = mx.linalg.svd(x, stream=mx.cpu)
        r = s.shape[-1]
        return (u, s, vh) if full_matrices else (u[..., :r], s, vh[..., :r, :])

    return SimpleNamespace(**made, svd=svd, svdvals=lambda x: mx.linalg.svd(x, False, stream=mx.cpu))


@functools.cache
def _namespace() -> Namespace:
    return Namespace()
