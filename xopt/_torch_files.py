"""State of ``torch.optim`` in files: read into a checkpoint, and written from one."""

from __future__ import annotations

import importlib
import os
from typing import Any

from xopt._arrays.tree import unescaped
from xopt.checkpoint._atomic import replacing
from xopt.checkpoint._files import read_whole
from xopt.checkpoint._safetensors import CheckpointError
from xopt.checkpoint._torch import from_torch, to_torch
from xopt.optimizer import Optimizer
from xopt.rule import FunctionalOptimizer


def _loaded(path: str) -> Any:
    """Load a file of torch: numbers and tensors alone, no code."""
    torch = importlib.import_module("torch")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # pickle's, zipfile's and torch's own
        raise CheckpointError(path, [f"torch cannot load it: {str(error).partition(chr(10))[0]}"]) from None


def _state(path: str) -> dict[str, Any]:
    found = _loaded(path)
    if not isinstance(found, dict) or not isinstance(found.get("param_groups"), list):
        raise CheckpointError(path, ["it is no state_dict of an optimizer of torch: it has no param_groups"])
    return found


def _names(groups: list[dict[str, Any]], weights: dict[str, Any] | None, model: str | None) -> list[str]:
    """Return the names of the parameters in the order of an optimizer: its own, or those of the tensors of a model."""
    names = [n for group in groups for n in group.get("param_names", [])]
    wanted = sum(len(group["params"]) for group in groups)
    if len(names) == wanted:
        return names
    if len(groups) > 1:
        raise ValueError(
            f"the optimizer has {len(groups)} groups and no names of its parameters, which stand group by group; make "
            f"it of model.named_parameters()"
        )
    if weights is None or model is None:
        raise ValueError("--model: missing, but it is needed: the optimizer has no names of its parameters")
    if len(weights) != wanted:
        wrong = f"{len(weights)} tensors, but the optimizer has {wanted} parameters and no names of them; make it of "
        raise CheckpointError(model, [wrong + "model.named_parameters(), or save the parameters alone"])
    return list(weights)


def _weights(model: str) -> dict[str, Any]:
    found = _loaded(model)
    if not isinstance(found, dict) or not found or not all(hasattr(x, "dtype") for x in found.values()):
        raise CheckpointError(model, ["it is no state_dict of a model: no dict of tensors"])
    return found


def to_checkpoint(source: str, target: str, rule: FunctionalOptimizer, model: str) -> int:
    """Write the state and the parameters of a run of torch as a checkpoint; return how many parameters have state."""
    state, weights = _state(source), _weights(model)
    names = _names(state["param_groups"], weights, model)
    missing = [n for n in names if n not in weights]
    if missing:
        raise CheckpointError(model, [f"{n}: missing, but the optimizer has it" for n in missing])
    opt = Optimizer({n: weights[n].detach() for n in names}, rule)
    opt.load_state_dict(from_torch(state, rule, opt.params, names=names))
    opt.save(target)
    return len(state["state"])


def to_torch_file(source: str, target: str, rule: FunctionalOptimizer, like: str, model: str | None) -> int:
    """Write the state of a checkpoint as torch saves that of its optimizer; return how many parameters have state."""
    torch = importlib.import_module("torch")
    groups = _state(like)
    names = _names(groups["param_groups"], None if model is None else _weights(model), model)

    def tensor(x: Any, dtype: str) -> Any:
        made = torch.from_numpy(x)
        return made.view(torch.bfloat16) if dtype == "bfloat16" else made

    kept, pointers = read_whole(source, tensor)
    params = {unescaped(pointer): x for pointer, x in pointers.items()}
    found = to_torch(kept, rule, params, groups, names=names)
    with replacing(target, True) as fd, os.fdopen(os.dup(fd), "wb") as out:
        torch.save(found, out)
    return len(found["state"])
