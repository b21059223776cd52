"""ndonnx: what is computed is recorded as a graph of ONNX, of which no value is known before it is run."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

from xopt._arrays.library import Array, Library, hypot


class Own(Library):
    packages = ("ndonnx",)
    lazy = True
    records = True

    def namespace(self, x: Array) -> Any:
        return _namespace()

    def device(self, x: Array) -> Any:
        return None  # there is none yet

    def to_host(self, x: Array) -> Any:
        return x.unwrap_numpy()

    def either(self, condition: Array, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
        xp, one, other = self.namespace(condition), yes(), no()  # both are computed
        return _chosen(xp, condition, one, other)


def _chosen(xp: Any, condition: Array, yes: Any, no: Any) -> Any:
    if isinstance(yes, list | tuple):
        return type(yes)(_chosen(xp, condition, a, b) for a, b in zip(yes, no, strict=True))
    return yes if yes is no else xp.where(condition, yes, no)


class _Namespace:
    """ndonnx, with what it only names: it raises NotImplementedError there."""

    def __init__(self) -> None:
        self._own = importlib.import_module("ndonnx")
        self.__name__ = self._own.__name__

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def hypot(self, x: Array, y: Array) -> Array:
        return hypot(self._own, x, y)


@functools.cache
def _namespace() -> Any:
    return _Namespace()
