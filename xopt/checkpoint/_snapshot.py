"""What is saved of a run, as plain data and named arrays; and a state dict as a source of these."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from xopt import _arrays
from xopt._arrays import tree as _tree
from xopt._arrays.layout import Layout
from xopt._arrays.paths import shown
from xopt._arrays.transfer import to_host
from xopt._engine.executor import Executor
from xopt._engine.program.storage import LABEL
from xopt.checkpoint._safetensors import CheckpointError, Tensor, memory
from xopt.rule import FunctionalOptimizer
from xopt.rule._fields import MISSING

SCHEMA = 1


class Listing(Protocol):
    """What there is in a source: all but the arrays."""

    where: str
    meta: dict[str, Any]

    @property
    def tensors(self) -> Mapping[str, Any]:
        """Return what there is; each has a dtype and a shape."""


class Source(Listing, Protocol):
    """A file, or a dict in memory."""

    def verify(self) -> None:
        """Raise CheckpointError if anything cannot be relied on."""

    def into(self, name: str, out: np.ndarray[Any, Any]) -> None:
        """Put an array into memory of its dtype in C order."""

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """Return an array in memory of its own, bfloat16 as 16-bit integers."""


class Place(NamedTuple):
    """Where an array is."""

    slot: str
    """Which part of the state it is of; "" for a parameter."""
    key: str
    column: list[Any]
    k: int

    @property
    def array(self) -> Any:
        """The array."""
        return self.column[self.k]


class TrainingRun(NamedTuple):
    """Parameters and state of a run: what is saved, or what is overwritten."""

    rule: FunctionalOptimizer
    layout: Layout
    executor: Executor
    slots: dict[str, list[Any]]
    carry: Mapping[str, Any]

    def places(self, params: bool) -> dict[str, Place]:
        """Name every array of the state, and every parameter."""
        keys = _tree.pointers(self.layout.spec)
        twice = [key for key, n in Counter(keys).items() if n > 1]
        if twice:
            raise ValueError(f"params: two arrays are called {twice[0]!r}, so that a file could not tell them apart")
        columns = {**self.slots, **({"": self.layout.leaves} if params else {})}
        found = [Place(n, key, own, k) for n, own in columns.items() for k, key in enumerate(keys)]
        return {f"state/{x.slot}/{x.key}" if x.slot else f"params/{x.key}": x for x in found if x.array is not None}


def links(rule: FunctionalOptimizer) -> list[Any]:
    """Return the components of a rule in the order in which they are saved."""
    return sorted(rule._all_links(), key=lambda link: link.key != LABEL)


def defaults(part: Any) -> dict[str, Any]:
    """Return what fields are that a file need not have, as it would be saved: those that choose a formula."""
    fields = {n: f for n, f in part._fields.items() if f.default is not MISSING}
    return {n: _plain(f.default) for n, f in fields.items() if f.static or f.default is None}


def described(rule: FunctionalOptimizer) -> list[dict[str, Any]]:
    """Return the components of a rule as data: names, static fields, and hyperparameters; functions as text.

    The one that says how all is kept comes first: it does the same inside and outside of other wrappers.
    """
    found = []
    for link in links(rule):
        static = {n: _plain(v) for n, v in link.part._choices().items()}
        hyper = {n: _plain(v) for n, v in link.part._values().items() if not link.part._fields[n].static}
        found.append({"place": link.key, "rule": type(link.part).__name__, "static": static, "hyper": hyper})
    return found


def _plain(x: Any) -> Any:
    """Return a value as JSON has it: a number as it is, a schedule or another function as text."""
    if x is None or isinstance(x, bool | int | float | str):
        return x
    if hasattr(x, "dtype") and not callable(x):
        return float(x)
    return re.sub(r" at 0x[0-9a-fA-F]+", "", shown(x))


def metadata(run: TrainingRun, step: Any, extra: Mapping[str, Any] | None, version: str) -> Any:
    """Return all that is saved beside the arrays."""
    try:
        extra = {} if extra is None else dict(extra)
        copied = json.loads(json.dumps(extra, allow_nan=False))
        if copied != extra:
            raise TypeError("it does not come back as it was")
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"extra: it must be a dict that JSON can hold: {error}") from None
    numbers, arrays = dict[str, Any](), dict[str, str]()
    keys = _tree.pointers(run.layout.spec)
    for n, x in run.carry.items():
        host = to_host(x) if hasattr(x, "dtype") else np.asarray(float(x))
        numbers[n] = dict(zip(keys, map(_number, host.tolist()), strict=True)) if host.ndim else _number(host.item())
        if not isinstance(x, np.ndarray | np.generic | float | int):
            arrays[n] = _arrays.dtype_name(x)
    return {
        "schema": SCHEMA, "xopt": version, "library": run.layout.library.name, "rule": described(run.rule),
        "step": int(step), "carry": numbers, "arrays": arrays, "extra": copied,
    }  # fmt: skip


def _number(x: float) -> float | str:
    return x if math.isfinite(x) else str(x)


def tensors(run: TrainingRun, params: bool) -> dict[str, Tensor]:
    """Return all arrays that are saved; each is brought to the host when it is asked for."""
    return {name: _tensor(place.array) for name, place in run.places(params).items()}


def _tensor(x: Any) -> Tensor:
    return Tensor(_arrays.dtype_name(x), tuple(x.shape), lambda: to_host(x))


class StateDictSource:
    """A state dict as a source."""

    where = "state dict"

    def __init__(self, state: Any) -> None:
        if not isinstance(state, Mapping) or not isinstance(state.get("state"), Mapping):
            raise CheckpointError(self.where, ["it must be a dict, as state_dict() returns it"])
        self.meta = {n: x for n, x in state.items() if n not in ("state", "params")}
        self._arrays = {f"state/{n}/{key}": x for n, own in state["state"].items() for key, x in _items(own)}
        self._arrays |= {f"params/{key}": x for key, x in _items(state.get("params", {}))}
        self.tensors = {}
        for name, x in self._arrays.items():
            if _arrays.library(x) is None or _arrays.dtype_name(x) not in _arrays.TABLE:
                raise CheckpointError(self.where, [f"{name}: {type(x).__name__}, but it must be an array of numbers"])
            self.tensors[name] = _tensor(x)

    def __enter__(self) -> StateDictSource:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def verify(self) -> None:
        """Memory is relied on."""

    def into(self, name: str, out: np.ndarray[Any, Any]) -> None:
        """Copy an array."""
        memory(out)[:] = memory(self.tensors[name].get())

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """Copy an array."""
        return np.array(self.tensors[name].get())


def _items(x: Any) -> list[tuple[str, Any]]:
    if not isinstance(x, Mapping):
        raise CheckpointError(StateDictSource.where, [f"a {type(x).__name__} in the place of a dict of arrays"])
    return [(str(key), value) for key, value in x.items()]


def state_dict(run: TrainingRun, meta: dict[str, Any], params: bool) -> dict[str, Any]:
    """Return what is saved as plain dicts with copies of the arrays."""
    state: dict[str, dict[str, Any]] = {n: {} for n in run.slots}
    own: dict[str, Any] = {}
    for place in run.places(params).values():
        x = _arrays.detached(place.array)
        (state[place.slot] if place.slot else own)[place.key] = run.layout.xp.asarray(x, copy=True)
    return {**meta, "state": state, **({"params": own} if params else {})}
