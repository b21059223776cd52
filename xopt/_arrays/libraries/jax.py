"""JAX: arrays are immutable, and steps are compiled."""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from xopt._arrays.library import Array, Library, NDArray, numbers_of_bits

_registering = threading.Lock()
_registered: set[type] = set()
"""What JAX knows as a pytree."""


def _jax() -> Any:
    return importlib.import_module("jax")


class Own(Library):
    packages = ("jax",)
    served = "eager, under jit in Optimizer"
    jits = True
    records = True
    differentiates = True

    def device(self, x: Array) -> Any:
        return None  # it places arrays itself

    def beside(self, x: Array) -> dict[str, Any]:
        # on a mesh: a copy for each device, else what is made lies on one, and a step is compiled anew for the second
        if self.traced(x) or len(x.sharding.device_set) == 1 or not hasattr(x.sharding, "mesh"):
            return {}
        return {"device": _jax().sharding.NamedSharding(x.sharding.mesh, _jax().sharding.PartitionSpec())}

    def full_like(self, xp: Any, p: Array, kind: Any, value: Any) -> Array:
        return xp.full_like(p, value, dtype=kind)  # sharded like the parameter

    def join_complex(self, xp: Any, re: Array, im: Array) -> Array:
        return _jax().lax.complex(re, im)

    def constant(self, xp: Any, like: Array, value: int) -> Any:
        return np.uint32(value)  # a Python int would be int32

    def to_host(self, x: Array) -> Any:
        return x

    def from_host(self, xp: Any, x: NDArray, dtype: str, like: Array) -> Array:
        made = xp.asarray(numbers_of_bits(x, dtype), copy=True)
        # what was committed to a device, or is sharded over several, stays so
        return _jax().device_put(made, like.sharding) if like.committed else made

    def either(self, condition: Array, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
        if self.traced(condition):
            return _jax().lax.cond(condition, yes, no)
        return super().either(condition, yes, no)  # lax.cond compiles both, each time anew

    def jit(self, function: Callable[..., Any], given: tuple[int, ...]) -> Callable[..., Any]:
        compiled: Callable[..., Any] = _jax().jit(function, donate_argnums=given)
        return compiled

    def set_row(self, rows: Array, i: int, values: Array) -> Array:
        return _set_row()(rows, i, values)

    def traced(self, x: Array) -> bool:
        return isinstance(x, _jax().core.Tracer)

    def node(self, kind: type, arrays: tuple[str, ...], fixed: tuple[str, ...]) -> None:
        if kind not in _registered:
            _register(kind, arrays, fixed)

    def places(self, xp: Any, indices: Array) -> Array:
        return indices if indices.dtype.itemsize >= 4 else indices.astype(xp.int32)

    def distinct(self, xp: Any, indices: Array, count: int) -> tuple[Array, Array]:
        found: tuple[Array, Array] = xp.unique(
            _rows_of(xp, indices, count), size=indices.shape[0], fill_value=count, return_inverse=True
        )
        return found

    def add_rows(self, xp: Any, table: Array, at: Array, rows: Array) -> Array:
        return table.at[_rows_of(xp, at, table.shape[0])].add(rows, mode="drop")

    def put_rows(self, xp: Any, table: Array, at: Array, rows: Array) -> Array:
        return table.at[at].set(rows, mode="drop")

    def value_and_grad(self, function: Callable[[list[Array]], Any]) -> Callable[[list[Array]], Any]:
        found = _jax().value_and_grad(function)

        def both(leaves: list[Array]) -> Any:
            value, grads = found(leaves)
            return value, [g.conj() if g.dtype.kind == "c" else g for g in grads]

        return both

    def second(self, function: Callable[[list[Array]], Any]) -> Callable[[list[Array]], Any]:
        slopes, jax = _jax().grad(function), _jax()

        def at(leaves: list[Array]) -> Callable[[list[Array]], list[Array]]:
            along = jax.linearize(slopes, leaves)[1]
            return lambda v: [x.conj() if x.dtype.kind == "c" else x for x in along(v)]

        return at

    def along(self, function: Callable[[Array], Array], x: Array) -> Callable[[Array], Array]:
        derivative: Callable[[Array], Array] = _jax().linearize(function, x)[1]
        return derivative

    def across(self, function: Callable[[Array], Array], x: Array) -> tuple[Array, Callable[[Array], Array]]:
        y, back = _jax().vjp(function, x)
        return y, lambda u: back(u)[0]


@functools.cache
def _set_row() -> Any:
    return _jax().jit(lambda rows, i, values: rows.at[i].set(values), donate_argnums=0)


def _register(kind: type, arrays: tuple[str, ...], fixed: tuple[str, ...]) -> None:
    """Make a class known to JAX, which refuses it a second time."""

    def make(aux: tuple[Any, ...], children: Any) -> Any:
        new: Any = object.__new__(kind)  # not __init__, which would look at what may be no arrays now
        for name, x in zip((*arrays, *fixed), (*children, *aux), strict=True):
            setattr(new, name, x)
        return new

    def take(x: Any) -> Any:
        key = _jax().tree_util.GetAttrKey
        return [(key(n), getattr(x, n)) for n in arrays], tuple(getattr(x, n) for n in fixed)

    with _registering:
        if kind not in _registered:
            _jax().tree_util.register_pytree_with_keys(kind, take, make)
            _registered.add(kind)


def _rows_of(xp: Any, indices: Array, count: int) -> Array:
    """Return indices of rows; ``count`` for what is none, which JAX drops."""
    return xp.where((indices < 0) | (indices >= count), count, indices)
