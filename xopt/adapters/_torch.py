"""Parameter groups and states of torch, as rules have them."""

from __future__ import annotations

import numbers
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch

from xopt._arrays.rows import SparseRows
from xopt.rule import FunctionalOptimizer
from xopt.rule._functional import Wrapper
from xopt.transforms._groups import Groups

BETAS = ("b1", "b2")


class _Kept:
    """A tensor of a state on its way through torch, which would cast it to the dtype of its parameter."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x


def is_number(x: Any) -> bool:
    return isinstance(x, numbers.Real) and not isinstance(x, bool)


def defaults(hyper: dict[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters that are numbers, under the names that groups have for them."""
    found = {n: float(x) if isinstance(x, torch.Tensor) else x for n, x in hyper.items()}
    found = {n: x for n, x in found.items() if is_number(x)}
    if all(name in found for name in BETAS):
        found["betas"] = tuple(found.pop(name) for name in BETAS)
    return found


def _pair(betas: Any) -> dict[str, Any]:
    if not isinstance(betas, tuple | list) or len(betas) != len(BETAS):
        raise ValueError(f"betas: {betas!r}, but it must be a pair of numbers")
    return dict(zip(BETAS, betas, strict=True))


def given(rule: FunctionalOptimizer, hyperparams: dict[str, Any]) -> FunctionalOptimizer:
    """Return a rule with hyperparameters that were given beside it, some of them under torch's names."""
    found = dict(hyperparams)
    if "betas" in found:
        found |= _pair(found.pop("betas"))
    return rule._with(found) if found else rule


def hyperparams_of(group: dict[str, Any], hyper: dict[str, Any], needed: Iterable[str]) -> dict[str, float]:
    """Return the hyperparameters of a group under the names that the rule has for them."""
    alias = "betas" in needed
    given = {n: group[n] for n in hyper if n in group and not (alias and n in BETAS)}
    missing = [n for n in needed if n not in group]
    if missing:
        raise ValueError(f"{missing[0]}: missing in a parameter group")
    if alias:
        given |= _pair(group["betas"])
    found = {}
    for name, x in given.items():
        if x is None and hyper[name] is None:
            continue
        if isinstance(x, str | bool) or not hasattr(x, "__float__"):
            more = "; a schedule of xopt goes into the rule" if callable(x) else ""
            raise TypeError(f"{name}: {x!r} in a parameter group, but it must be a number{more}")
        found[name] = float(x)
    return found


def gradient(g: Any, lazy: bool) -> Any:
    """Return a gradient as rules take it: by rows, if it is sparse in its first axis alone."""
    if g is None or g.layout is not torch.sparse_coo or g.sparse_dim() != 1:
        return g
    return SparseRows(g._indices()[0], g._values(), lazy=lazy)  # also where rows occur several times


def scalar(x: Any) -> torch.Tensor:
    return torch.as_tensor(x, dtype=torch.float64, device=x.device if isinstance(x, torch.Tensor) else "cpu")


def with_groups(rule: FunctionalOptimizer, rows: list[Any]) -> FunctionalOptimizer:
    """Return a rule with groups; what is around a rule stays around them."""
    if not isinstance(rule, Wrapper):
        return Groups(rule, *rows)
    new = object.__new__(type(rule))
    new.rule, new._first = with_groups(rule.rule, rows), rule._first
    return new


def short(slots: Iterable[str]) -> dict[str, str]:
    """Name slots by component and field alone, which stay what they are when groups are added."""
    found: dict[str, str] = {}
    count: defaultdict[str, int] = defaultdict(int)
    for slot in slots:
        name = ".".join(word for word in slot.split(".") if not word.isdigit())
        count[name] += 1
        found[slot] = name if count[name] == 1 else f"{name}.{count[name]}"
    return found


def in_order(state_dict: dict[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Put saved parameters into the order and the groups of ours, where all have names; refuse other names."""
    saved = state_dict["param_groups"]
    named = all(group.get("param_names") for group in (*saved, *groups))
    lists = [[n for group in rows for n in group["param_names"]] for rows in (saved, groups)] if named else []
    if not named or any(len({*names}) < len(names) for names in lists):
        return {**state_dict, "param_groups": [{k: x for k, x in g.items() if k != "param_names"} for g in saved]}
    number = {n: k for group in saved for n, k in zip(group["param_names"], group["params"], strict=True)}
    names = {n for group in groups for n in group["param_names"]}
    if len(saved) == len(groups) and names != {*number}:
        raise ValueError(
            f"state: parameters are called {', '.join(sorted({*number} - names)) or 'nothing'} there, which are not "
            f"here, and {', '.join(sorted(names - {*number})) or 'nothing'} here, which are not there"
        )
    if len(saved) != len(groups):
        return state_dict
    pairs = zip(saved, groups, strict=True)
    found = [
        {**old, "params": [number[n] for n in own["param_names"]], "param_names": own["param_names"]}
        for old, own in pairs
    ]
    return {**state_dict, "param_groups": found}


def kept(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Hide the tensors of a state from torch's casts."""
    state = {
        i: {n: _Kept(x) if isinstance(x, torch.Tensor) else x for n, x in own.items()} if isinstance(own, dict) else own
        for i, own in state_dict["state"].items()
    }
    return {**state_dict, "state": state}


def tensor(x: Any, p: torch.Tensor) -> Any:
    """Return what was hidden, beside its parameter; scalars stay on the host."""
    return x.x.detach().to(p.device if x.x.ndim else "cpu", copy=True) if isinstance(x, _Kept) else x
