"""cubed: arrays are computed when they are asked for, chunk by chunk, in bounded memory that a spec gives."""

from __future__ import annotations

import functools
import importlib
import types
from typing import Any

import numpy as np

from xopt._arrays.library import Array, Library, NDArray, numbers_of_bits

_MAKES = ("arange", "asarray", "empty", "eye", "full", "linspace", "ones", "zeros")
_known: list[tuple[Any, Any]] = []


def _beside(spec: Any) -> Any:
    """Return the namespace whose new arrays have a spec: arrays of two cannot be mixed."""
    for known, found in _known:
        if known is spec or known == spec:
            return found
    cubed = importlib.import_module("cubed")
    made = types.ModuleType("cubed")
    vars(made).update({n: x for n, x in vars(cubed).items() if not n.startswith("__")})
    made.__array_namespace_info__ = cubed.__array_namespace_info__  # type: ignore[attr-defined]
    for name in _MAKES:
        setattr(made, name, functools.partial(getattr(cubed, name), spec=spec))
    made.asarray = functools.partial(_asarray, cubed.asarray, spec)  # type: ignore[attr-defined]
    made.linalg = types.ModuleType("cubed.linalg")  # type: ignore[attr-defined]
    vars(made.linalg).update({n: x for n, x in vars(cubed.linalg).items() if not n.startswith("__")})
    made.linalg.__getattr__ = functools.partial(_missing, ".linalg")
    made.__getattr__ = functools.partial(_missing, "")  # type: ignore[method-assign]
    _known.append((spec, made))
    return made


def _missing(where: str, name: str) -> Any:
    raise AttributeError(f"cubed{where} has no {name}, which this rule, or a component beside it, needs")


def _asarray(make: Any, spec: Any, x: Any, /, **given: Any) -> Array:
    """Do not take an array that is there already for one with another spec."""
    return make(x, **given) if hasattr(x, "chunks") else make(x, spec=spec, **given)


class Own(Library):
    packages = ("cubed",)
    lazy = True

    def namespace(self, x: Array) -> Any:
        return _beside(x.spec)

    def device(self, x: Array) -> Any:
        return None

    def full_like(self, xp: Any, p: Array, kind: Any, value: Any) -> Array:
        return xp.full(tuple(p.shape), value, dtype=kind, chunks=_chunks(p))

    def copied(self, xp: Any, p: Array, kind: Any) -> Array:
        return p if p.dtype == kind else xp.astype(p, kind)  # nobody can write into it

    def to_host(self, x: Array) -> Any:
        return x.compute()

    def from_host(self, xp: Any, x: NDArray, dtype: str, like: Array) -> Array:
        return xp.asarray(np.asarray(numbers_of_bits(x, dtype)), chunks=_chunks(like))


def _chunks(x: Array) -> Any:
    """Say how an array is cut: evenly, so that one size of a chunk says it."""
    return x.chunksize if all(x.shape) else "auto"
