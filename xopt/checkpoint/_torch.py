"""State of torch.optim, read and written. Torch itself is imported where its tensors are made."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import optree

from xopt._public import public
from xopt.checkpoint._conversion import Leaving, Side
from xopt.checkpoint._safetensors import CheckpointError
from xopt.rule import FunctionalOptimizer
from xopt.rules.adam import Adam
from xopt.rules.adaptive import RMSProp
from xopt.rules.sgd import SGD

_THERE = "torch.optim"


class _Kind(NamedTuple):
    """An optimizer of torch: for each name here the one there."""

    slots: dict[str, str]
    numbers: dict[str, str]
    flags: tuple[str, ...]
    fixed: dict[str, Any]
    """What torch has no choice in."""
    counts: bool = True
    """Whether the state has the step."""


_COMMON = {"lr": "lr", "weight_decay": "weight_decay"}
_KINDS: dict[type, _Kind] = {
    Adam: _Kind(
        {"m": "exp_avg", "v": "exp_avg_sq", "top": "max_exp_avg_sq"},
        {**_COMMON, "b1": "betas.0", "b2": "betas.1", "eps": "eps"},
        ("amsgrad",),
        {"eps_mode": "outside", "bias": "standard"},
    ),
    SGD: _Kind(
        {"m": "momentum_buffer"},
        {**_COMMON, "momentum": "momentum", "dampening": "dampening"},
        ("nesterov",),
        {"form": "lr_outside"},
        counts=False,
    ),
    RMSProp: _Kind(
        {"v": "square_avg", "a": "grad_avg", "m": "momentum_buffer"},
        {**_COMMON, "rho": "alpha", "eps": "eps", "momentum": "momentum"},
        ("centered",),
        {"eps_mode": "outside", "form": "lr_outside"},
    ),
}


@public
def from_torch(
    state_dict: Mapping[str, Any],
    rule: FunctionalOptimizer,
    params: Any,
    *,
    step: int | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    r"""Read the state of ``torch.optim``'s Adam, AdamW, SGD or RMSprop, to go on with it here.

    Parameters
    ----------
    state_dict
        What ``state_dict()`` of the optimizer returned, or ``torch.load`` of its file.
    rule
        A rule of the same formula: of ``like="torch"`` and the same options. It may stand in a chain, in
        :class:`Groups` or in :class:`Guard`.
    params
        The parameters, of any library: what :class:`Optimizer` is given.
    step
        The number of steps taken, where the state has none: that of SGD.
    names
        The paths of the parameters in torch's order, ``[n for n, _ in model.named_parameters()]``. Dots in them are as
        good as slashes. By default they are the ``"param_names"`` of the state, if these are paths of ``params``.
        Without either, the order is that in which Python runs through ``params``, and dicts keep theirs.

    Returns
    -------
    dict
        What :meth:`Optimizer.state_dict` would return: for :meth:`Optimizer.load_state_dict` and :func:`load_state`.

    Raises
    ------
    CheckpointError
        With everything that is missing, unexpected, of another shape or another formula. Nothing is changed.
    TypeError
        For a rule that is none of these four.

    Notes
    -----
    ::

        Adam, AdamW    step, exp_avg, exp_avg_sq, max_exp_avg_sq          t, m, v, top
        SGD            momentum_buffer                                    m
        RMSprop        step, square_avg, grad_avg, momentum_buffer        t, v, a, m

    The arrays are copied, as the rule keeps them: state of bfloat16 becomes float32, which is exact; state of float64
    for parameters of float32 is rounded. lr, betas, eps, weight decay, momentum and dampening become hyperparameters of
    the same value; a schedule of ``rule`` stays, and goes on at the step. Options that choose a formula must be the
    same: amsgrad, nesterov, centered, maximize, momentum or none, decay decoupled or not.

    One step counts for all parameters: they must have been moved together. SGD keeps none. It is then ``step``, else 1
    where there are buffers, because the first step is not dampened, and 0 without; a schedule needs the right one. A
    parameter of SGD without a buffer never had a gradient, and begins with 0, which is the same but for dampening.

    Arrays of components that torch has not, such as averages, are not in the result: ``strict=False`` loads it.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> group = {"lr": 0.5, "momentum": 0.9, "dampening": 0, "weight_decay": 0, "nesterov": False, "params": [0]}
    >>> theirs = {"state": {0: {"momentum_buffer": np.ones(2)}}, "param_groups": [group]}
    >>> opt = xopt.Optimizer({"w": np.zeros(2)}, xopt.SGD(momentum=0.9, like="torch"))
    >>> opt.load_state_dict(xopt.from_torch(theirs, opt.rule, opt.params, step=7))
    {}
    >>> opt.rule, opt.state.step
    (SGD(lr=0.5, momentum=0.9, like='torch'), 7)
    >>> opt.step({"w": np.ones(2)})
    {'w': array([-0.95, -0.95])}
    """
    side = Side(rule, params, _THERE, "torch")
    groups, entries = _groups(state_dict), state_dict.get("state")
    if not isinstance(entries, Mapping):
        raise CheckpointError(f"state of {_THERE}", ["it must be a dict, as state_dict() returns it"])
    where = _places(side, groups, names)
    side.problems += [
        f"state: {i!r}: not among param_groups" for i in entries if all(i not in group["params"] for group in groups)
    ]
    side.done()
    entries = {i: _entry(side, i, x) for i, x in entries.items()}
    frozen = [place[1] for place, link in zip(where, side.owners, strict=True) if place and link is None]
    side.problems += [f"state: {i!r}: not empty, but the parameter is frozen here" for i in frozen if entries.get(i)]
    wants: list[dict[str, float]] = [{} for _ in side.keys]
    steps, bare, dampened = dict[str, Any](), list[int](), False
    for k in side.moving():
        number, i = where[k]
        group, kind, path = groups[number], _KINDS[side.kind(k)], f"{side.layout.path(k)} ({i!r})"
        wants[k] = _compare(side, k, group, number)
        entry = dict(entries.get(i, {}))
        if kind.counts and "step" in entry:
            steps[path] = entry.pop("step")
        elif kind.counts and entry:
            side.problems.append(f"step: {path}: missing")
        theirs = {there: slot for slot, there in kind.slots.items() if slot in side.wanted(k)}
        dampened = dampened or bool(wants[k].get("dampening"))
        for there in sorted(entry):
            if there in theirs:
                side.put(k, theirs[there], entry[there], f"{i!r}.{there}")
            else:
                side.problems.append(f"state: {i!r}.{there}: not among the arrays of this rule")
        if theirs and not {*theirs} & {*entry}:
            bare.append(k)
    counts = any(_KINDS[side.kind(k)].counts for k in side.moving())
    taken = side.count(steps, step)
    if not counts and taken is None:
        unknown = side.filled or all(not side.wanted(k) for k in side.moving())
        if side.scheduled() and unknown:
            side.problems.append(
                "step: there is none in the state, and a schedule of this rule asks for it: give step="
            )
        taken = 1 if side.filled else 0
    elif not counts and side.filled and taken == 0:
        side.problems.append("step: 0, but there are momentum buffers, so that there was a step")
    if not side.filled or (not counts and not dampened):  # as torch begins
        for k in bare if not counts or not taken else []:
            side.filled |= {(n, k) for n in side.wanted(k).values()}
            if side.kind(k) is RMSProp:
                side.expect(k, "initial", 0.0)
    side.missing()
    side.set_numbers(wants)
    side.done()
    return side.state_dict(taken or 0)


@public
def to_torch(
    state_dict: Mapping[str, Any],
    rule: FunctionalOptimizer,
    params: Any,
    like: Mapping[str, Any],
    *,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return a state of xopt as ``torch.optim``'s Adam, AdamW, SGD or RMSprop loads it, to go on with it there.

    Parameters
    ----------
    state_dict
        What :meth:`Optimizer.state_dict` returned.
    rule, params
        The rule and the parameters that it is of, as for :func:`from_torch`.
    like
        ``state_dict()`` of the optimizer that is to go on: it has the groups and the options. Its state is not read.
    names
        As for :func:`from_torch`; by default they are in ``like``.

    Returns
    -------
    dict
        For ``load_state_dict`` of that optimizer. Its tensors are copies, in the dtype of the parameter, which torch
        keeps state in: for parameters of float16 and bfloat16 they are rounded.

    Raises
    ------
    CheckpointError
        With everything that does not fit: what torch has no place for, as an average of the weights, is not dropped.
    TypeError
        For a rule that is none of these four.

    Notes
    -----
    Hyperparameters go into the groups; of a schedule it is the value of the next step. SGD of torch keeps no step.

    Examples
    --------
    >>> from importlib.util import find_spec
    >>> import xopt
    >>> if find_spec("torch"):
    ...     import torch
    ...
    ...     w = torch.ones(2, requires_grad=True)
    ...     opt = xopt.Optimizer({"w": w}, xopt.Adam(lr=0.5, like="torch"))
    ...     _ = opt.step({"w": torch.ones(2)})
    ...     theirs = torch.optim.Adam([("w", w)])
    ...     theirs.load_state_dict(xopt.to_torch(opt.state_dict(), opt.rule, opt.params, theirs.state_dict()))
    ...     assert theirs.param_groups[0]["lr"] == 0.5 and theirs.state[w]["step"] == 1
    """
    side = Leaving(state_dict, rule, params, _THERE, "torch")
    groups, before = _groups(like), len(side.problems)
    where = _places(side, groups, names)
    if len(side.problems) > before:
        Side.done(side)  # there is no saying what else does not fit
    torch = importlib.import_module("torch")
    state: dict[Any, Any] = {}
    members: list[list[int]] = [[] for _ in groups]
    for k in side.moving():
        number, i = where[k]
        members[number].append(k)
        kind = _KINDS[side.kind(k)]
        _compare(side, k, groups[number], number)
        p, dtype = side.layout.leaves[k], getattr(torch, side.layout.dtypes[k].name)
        proto = p if isinstance(p, torch.Tensor) else torch.empty((), dtype=dtype)
        made = {there: side.take(k, slot, proto) for slot, there in kind.slots.items() if slot in side.wanted(k)}
        if kind.counts:
            exact = torch.float32 if side.step <= 2**24 else torch.float64
            made = {"step": torch.tensor(float(side.step), dtype=exact), **made}
        elif not side.step or not side.number(k, "momentum"):
            made = {}  # the first step makes the buffer, or none does
        if made:
            state[i] = made
    news = [_filled(side, group, members[n], n) for n, group in enumerate(groups)]
    side.done()
    return {"state": dict(sorted(state.items())), "param_groups": news}


def _entry(side: Side, i: Any, x: Any) -> dict[str, Any]:
    """Return what torch keeps for one parameter; None is what is not there yet."""
    if not isinstance(x, Mapping):
        side.problems.append(f"state: {i!r}: {type(x).__name__}, but it must be a dict")
        return {}
    return {str(n): y for n, y in x.items() if y is not None}


def _groups(state_dict: Any) -> list[dict[str, Any]]:
    """Return the groups of a state of torch."""
    groups = state_dict.get("param_groups") if isinstance(state_dict, Mapping) else None
    if not isinstance(groups, list | tuple) or not all(
        isinstance(group, Mapping)
        and isinstance(group.get("params"), list | tuple)
        and all(isinstance(i, int | str) for i in group["params"])
        for group in groups
    ):
        raise CheckpointError(f"state of {_THERE}", ["it must be a dict, as state_dict() returns it"])
    return [dict(group) for group in groups]


def _places(side: Side, groups: list[dict[str, Any]], names: Sequence[str] | None) -> list[tuple[int, Any]]:
    """Return for each parameter the number of its group and what torch calls it in the state."""
    ids = [(n, i) for n, group in enumerate(groups) for i in group["params"]]
    mine = [name.replace("/", ".") for name in side.layout.names()]
    found: list[Any] = [None] * len(mine)
    theirs: list[str] | None
    if names is None:
        theirs = [name for group in groups for name in group.get("param_names") or ()]
        theirs = theirs if theirs and len(theirs) == len(ids) and {*theirs} & {*mine} else None
    else:
        theirs = [name.replace("/", ".") for name in names]
        if len(theirs) != len(ids):
            side.problems.append(f"names: {len(theirs)} of them, but {_THERE} has {len(ids)} parameters")
    if theirs is None:
        if len(ids) != len(mine):
            side.problems.append(f"param_groups: {len(ids)} parameters, but here there are {len(mine)}")
        for k, place in zip(_in_order(side.params, side.layout.tree([*range(len(mine))])), ids, strict=False):
            found[k] = place
        return found
    twice = [name for column in (mine, theirs) for name, n in Counter(column).items() if n > 1]
    side.problems += [f"names: {name!r} is that of two parameters" for name in twice]
    place_of = dict(zip(theirs, ids, strict=False))
    for k, name in enumerate(mine):
        found[k] = place_of.get(name)
        if found[k] is None and side.owners[k] is not None:
            side.problems.append(f"{side.layout.path(k)}: missing in {_THERE}")
    side.problems += [f"{name}: not among the parameters of this run" for name in theirs if name not in mine]
    return found


def _in_order(tree: Any, numbers: Any) -> list[int]:
    """Return the numbers of the leaves in the order in which Python runs through a tree."""
    if isinstance(numbers, int):
        return [numbers]
    if numbers is None:
        return []
    if isinstance(tree, Mapping):
        pairs = [(tree[key], numbers[key]) for key in tree]
    else:
        one = [optree.tree_flatten_one_level(x, namespace="xopt").children for x in (tree, numbers)]
        pairs = list(zip(*one, strict=True))
    return [k for child, own in pairs for k in _in_order(child, own)]


def _flat(group: Mapping[str, Any]) -> dict[str, Any]:
    betas = group.get("betas")
    pair = dict(zip(("betas.0", "betas.1"), betas, strict=False)) if isinstance(betas, list | tuple) else {}
    return {**group, **pair}


def _compare(side: Side, k: int, group: Mapping[str, Any], number: int) -> dict[str, float]:
    """Note what is another formula in a group; return its numbers, under the names that they have here."""
    kind, part, flat = _KINDS[side.kind(k)], side.part(k), _flat(group)
    missing = [n.partition(".")[0] for n in (*kind.numbers.values(), *kind.flags) if n not in flat]
    if missing:
        side.problems.append(f"param_groups: {number}: without {missing[0]}, so it is not of {side.call(k)}")
        return {}
    found = {}
    for n, there in kind.numbers.items():
        try:
            found[n] = float(flat[there])
        except (TypeError, ValueError):
            side.problems.append(f"param_groups: {number}: {there}: {flat[there]!r}, but it must be a number")
            return {}
    for flag in (*kind.flags, "maximize"):
        side.expect(k, flag, bool(flat.get(flag, False)))
    for field, value in kind.fixed.items():
        if field != "form" or getattr(part, "momentum", None) is not None:
            side.expect(k, field, value)
    decay = side.number(k, "weight_decay") if isinstance(side, Leaving) else found["weight_decay"]
    decoupled = flat.get("decoupled_weight_decay", part.decay == "lr") if side.kind(k) is Adam else False
    if decay:
        side.expect(k, "decay", "lr" if decoupled else "l2")
    if side.layout.dtypes[k].complex and side.kind(k) is not SGD:
        side.expect(k, "complex", "split")
    if "momentum" in found and not isinstance(side, Leaving):
        side.check_momentum(k, found["momentum"])
    return found


def _filled(side: Leaving, group: dict[str, Any], leaves: list[int], number: int) -> dict[str, Any]:
    """Return a group of torch with the hyperparameters of some parameters."""
    if not leaves:
        return group
    flat = _flat(group)
    for n, there in _KINDS[side.kind(leaves[0])].numbers.items():
        if there in flat:
            new = side.common(leaves, n, f"group {number} of {_THERE}") if hasattr(side.part(leaves[0]), n) else 0.0
            old = flat[there]
            flat[there] = old.detach().clone().fill_(new) if hasattr(old, "detach") else new
    if "betas" in flat:
        flat["betas"] = (flat.pop("betas.0"), flat.pop("betas.1"))
    return flat
