"""dpnp: Intel's NumPy on SYCL devices. Arrays lie behind a queue, and those of two queues cannot be mixed."""

from __future__ import annotations

import functools
import importlib
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from xopt._arrays.library import DTYPE, SHAPE, Array, NDArray, NumPyLike, described, numbers_of_bits

_queue, _writable = operator.attrgetter("sycl_queue"), operator.attrgetter("flags.writable")
_queues: dict[Any, Any] = {}


@functools.cache
def _numbered() -> Any:
    class Queue(importlib.import_module("dpctl").SyclQueue):  # type: ignore[misc]
        """A queue that can be told from others of its device."""

        def __str__(self) -> str:
            return f"{self.sycl_device.filter_string} (queue {[*_queues].index(self)})"

    return Queue


class Own(NumPyLike):
    packages = ("dpnp",)

    def device(self, x: Array) -> Any:
        queue = x.sycl_queue
        if queue not in _queues:
            _queues[queue] = _numbered()(queue._get_capsule())
        return _queues[queue]

    def full_like(self, xp: Any, p: Array, kind: Any, value: Any) -> Array:
        return xp.full(tuple(p.shape), value, dtype=kind, usm_type=p.usm_type, sycl_queue=p.sycl_queue)

    def copied(self, xp: Any, p: Array, kind: Any) -> Array:
        made = xp.empty(p.shape, dtype=kind, usm_type=p.usm_type, sycl_queue=p.sycl_queue)
        made[...] = p
        return made

    def empty(self, xp: Any, shape: Sequence[int], dtype: Any, like: Array) -> Array:
        return xp.empty(tuple(shape), dtype=dtype, usm_type=like.usm_type, sycl_queue=like.sycl_queue)

    def join_complex(self, xp: Any, re: Array, im: Array) -> Array:
        out = self.empty(xp, re.shape, xp.result_type(re.dtype, xp.complex64), re)
        out.real, out.imag = re, im
        return out

    def to_host(self, x: Array) -> Any:
        return x.asnumpy()  # the only way: np.asarray(x) is refused

    def from_host(self, xp: Any, x: NDArray, dtype: str, like: Array) -> Array:
        return xp.asarray(numbers_of_bits(x, dtype), usm_type=like.usm_type, sycl_queue=like.sycl_queue)

    def all_writable(self, column: list[Array]) -> bool:
        return all(map(_writable, column))

    def addresses(self, column: list[Array]) -> list[int]:
        return list(map(_address, column))

    def facts(self, column: list[Array]) -> list[Any]:
        return [list(map(fact, column)) for fact in (DTYPE, SHAPE, _queue)]

    def phantom(self, x: Array) -> NDArray | None:
        return described(_address(x), x.shape, x.strides, x.itemsize)

    def add_rows(self, xp: Any, table: Array, at: Array, rows: Array) -> Array:
        host = self.to_host(at)  # it cannot add to a place twice: so first the first of each, then the second ones
        order = np.argsort(host, kind="stable")
        steps = np.arange(len(host))
        begins = np.maximum.accumulate(np.where(np.diff(host[order], prepend=-1) != 0, steps, 0))
        turn = np.empty_like(steps)
        turn[order] = steps - begins
        for k in range(int(turn.max(initial=-1)) + 1):
            now = self.from_host(xp, np.flatnonzero(turn == k), "int64", at)
            table[at[now]] += rows[now]
        return table

    def synchronize(self, x: Array) -> None:
        x.sycl_queue.wait()


def _address(x: Array) -> int:
    face = x.__sycl_usm_array_interface__
    return int(face["data"][0]) + face.get("offset", 0) * x.itemsize if math.prod(x.shape) else 0
