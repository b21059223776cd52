"""State of optax in files of Flax (msgpack): read into a checkpoint, and written from one."""

from __future__ import annotations

import importlib
import os
from collections import namedtuple
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xopt._arrays import tree as _tree
from xopt.checkpoint._atomic import replacing
from xopt.checkpoint._files import read_whole
from xopt.checkpoint._optax import from_optax, to_optax
from xopt.checkpoint._safetensors import CheckpointError
from xopt.optimizer import Optimizer
from xopt.rule import FunctionalOptimizer

_BY_FIELDS = {
    ("count", "mu", "nu"): "ScaleByAdamState",
    ("count", "mu", "nu", "nu_max"): "ScaleByAmsgradState",
    ("mu", "nu"): "ScaleByRStdDevState",
    ("nu",): "ScaleByRmsState",
    ("count", "nu"): "ScaleByRmsWithCountState",
    ("trace",): "TraceState",
    ("count",): "ScaleByScheduleState",
    ("inner_state",): "MaskedState",
    ("inner_states",): "PartitionState",
    ("count", "hyperparams", "hyperparams_states", "inner_state"): "InjectStatefulHyperparamsState",
}
"""States of optax by the names of their fields, which are all that a file of Flax has of them."""
_LIKE_PARAMS = {"mu", "nu", "nu_max", "trace"}
_KINDS = {fields: namedtuple(name, fields) for fields, name in _BY_FIELDS.items()}
MaskedNode = namedtuple("MaskedNode", ())


def _flax() -> Any:
    return importlib.import_module("flax.serialization")


def _loaded(path: str) -> dict[str, Any]:
    """Load a file of Flax: numbers and arrays alone, no code."""
    data = Path(path).read_bytes()
    try:
        found = _flax().msgpack_restore(data)
    except ImportError:
        raise
    except Exception as error:  # msgpack's own, and whatever an array with a wrong header raises
        raise CheckpointError(path, [f"Flax cannot load it: {str(error).partition(chr(10))[0]}"]) from None
    if not isinstance(found, dict):
        raise CheckpointError(path, ["it is no file of Flax: no dict"])
    return found


def _numbered(x: Mapping[str, Any]) -> bool:
    """Whether a dict was a tuple or a list."""
    return all(key == str(i) for i, key in enumerate(x))


def _state(x: Any, path: str, where: str) -> Any:
    """Return a state as optax has it, of what a file of Flax has."""
    if not isinstance(x, dict):
        return x
    fields = tuple(sorted(x))
    if fields in _KINDS:
        own = {n: _tree_of(v) if n in _LIKE_PARAMS else _inside(n, v, path, f"{where}.{n}") for n, v in x.items()}
        return _KINDS[fields](**own)
    if _numbered(x):
        return tuple(_state(v, path, f"{where}[{n}]") for n, v in x.items())
    raise CheckpointError(path, [f"{where}: {', '.join(x)}: no state of optax that can be read"])


def _inside(name: str, x: Any, path: str, where: str) -> Any:
    if name in ("inner_states", "hyperparams_states") and isinstance(x, dict):
        return {n: _state(v, path, f"{where}.{n}") for n, v in x.items()}
    return x if name in ("hyperparams", "count") else _state(x, path, where)


def _tree_of(x: Any) -> Any:
    """Return a tree like the parameters, in which an empty dict is a parameter that is masked."""
    if isinstance(x, dict):
        return {n: _tree_of(v) for n, v in x.items()} if x else MaskedNode()
    return x


def _raw(x: Any) -> Any:
    """Return what a file of Flax has of a state."""
    if hasattr(x, "_fields"):
        return {n: _raw(getattr(x, n)) for n in x._fields}
    if isinstance(x, list | tuple):
        return {str(i): _raw(v) for i, v in enumerate(x)}
    return {n: _raw(v) for n, v in x.items()} if isinstance(x, Mapping) else x


def _in_place(like: Any, params: Any) -> Any:
    """Return parameters with the modules of another file that have none."""
    if not isinstance(like, dict) or not isinstance(params, dict):
        return params
    empty = {n: x for n, x in like.items() if isinstance(x, dict) and n not in params and not _tree.flatten(x)[0]}
    return {**empty, **{n: _in_place(like.get(n), x) for n, x in params.items()}}


def _parts(path: str, model: str | None) -> tuple[dict[str, Any], Any, dict[str, Any] | None]:
    """Return all of a file, the state of the optimizer in it, and the parameters, from there or from another."""
    found = _loaded(path)
    whole = "opt_state" in found
    params = found.get("params") if whole else None
    if model is not None:
        params = _loaded(model)
        params = params.get("params", params)
    return found, _state(found["opt_state"] if whole else found, path, "opt_state" if whole else "state"), params


def to_checkpoint(source: str, target: str, rule: FunctionalOptimizer, model: str | None, step: int | None) -> int:
    """Write the state and the parameters of a run of Flax as a checkpoint; return how many parameters there are."""
    found, state, params = _parts(source, model)
    if params is None:
        raise ValueError("--model: missing, but it is needed: the file has no params beside opt_state")
    leaves, spec = _tree.flatten(params)
    params = _tree.unflatten(spec, [np.array(x) for x in leaves])
    steps = found.get("step") if step is None else step
    own = from_optax(state, rule, params, step=None if steps is None else int(steps))
    opt = Optimizer(params, rule)
    opt.load_state_dict(own)
    opt.save(target)
    return len(leaves)


def to_flax_file(source: str, target: str, rule: FunctionalOptimizer, like: str) -> int:
    """Write the state of a checkpoint as Flax saves that of optax; return how many parameters there are."""
    found, state, _ = _parts(like, None)

    def array(x: Any, dtype: str) -> Any:
        return x.view(importlib.import_module("ml_dtypes").bfloat16) if dtype == "bfloat16" else x

    kept, pointers = read_whole(source, array)
    params = dict[str, Any]()
    for pointer, x in pointers.items():
        own = params
        *folders, last = map(_tree.unescaped, pointer.split("/"))
        for folder in folders:
            own = own.setdefault(folder, {})
        own[last] = x
    made = _raw(to_optax(kept, rule, params, state))
    if "opt_state" in found:
        made = {**found, "step": kept["step"], "params": _in_place(found.get("params"), params), "opt_state": made}
    with replacing(target, True) as fd, os.fdopen(os.dup(fd), "wb") as out:
        out.write(_flax().msgpack_serialize(made))
    return len(_tree.flatten(params)[0])
