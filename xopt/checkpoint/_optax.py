"""State of optax, read and written. Its classes are known by their names and fields; it is never imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import optree

from xopt._arrays import tree as _tree
from xopt._arrays.transfer import from_host
from xopt._public import public
from xopt.checkpoint._conversion import Leaving, Side
from xopt.rule import FunctionalOptimizer
from xopt.rules.adam import Adam
from xopt.rules.adaptive import RMSProp
from xopt.rules.sgd import SGD

_THERE = "optax"
_TREES = {
    "ScaleByAdamState": ("mu", "nu"), "TraceState": ("trace",), "ScaleByRmsState": ("nu",),
    "ScaleByRStdDevState": ("mu", "nu"),
}  # fmt: skip
"""States that have trees like the parameters, and which of their fields these are."""
_INSIDE = {
    "MaskedState": "inner_state", "PartitionState": "inner_states", "MultiTransformState": "inner_states",
    "InjectHyperparamsState": "inner_state", "InjectStatefulHyperparamsState": "inner_state",
}  # fmt: skip
"""States around others."""
_COUNTS = (
    "ScaleByAdamState", "ScaleByScheduleState", "WrappedScheduleState", "InjectHyperparamsState",
    "InjectStatefulHyperparamsState",
)  # fmt: skip
"""States that count the steps."""
_WHY = {
    "ScaleByAmsgradState": "its nu_max is the largest corrected v, and that of xopt the largest uncorrected one",
    "ScaleByRmsWithCountState": "of bias_correction=True, which RMSProp of xopt has not",
    "ScaleByRStdDevWithCountState": "of bias_correction=True, which RMSProp of xopt has not",
}


class _Kind(NamedTuple):
    """A rule of optax."""

    slots: dict[tuple[str, str], str]
    """For a state and its field the name here."""
    numbers: dict[str, str]
    """For an argument the name here."""


_KINDS: dict[type, _Kind] = {
    Adam: _Kind(
        {("ScaleByAdamState", "mu"): "m", ("ScaleByAdamState", "nu"): "v"},
        {"learning_rate": "lr", "b1": "b1", "b2": "b2", "eps": "eps", "weight_decay": "weight_decay"},
    ),
    SGD: _Kind({("TraceState", "trace"): "m"}, {"learning_rate": "lr", "momentum": "momentum"}),
    RMSProp: _Kind(
        {
            ("ScaleByRmsState", "nu"): "v", ("ScaleByRStdDevState", "nu"): "v", ("ScaleByRStdDevState", "mu"): "a",
            ("TraceState", "trace"): "m",
        },
        {"learning_rate": "lr", "decay": "rho", "eps": "eps", "momentum": "momentum"},
    ),
}  # fmt: skip


class _Found(NamedTuple):
    """A state that is known, and where it is."""

    where: str
    node: Any
    around: tuple[int, ...]
    """The states with hyperparameters that it is inside of, by identity."""

    @property
    def name(self) -> str:
        """The name of its class."""
        return type(self.node).__name__


@public
def from_optax(state: Any, rule: FunctionalOptimizer, params: Any, *, step: int | None = None) -> dict[str, Any]:
    r"""Read the state of optax's ``adam``, ``adamw``, ``sgd`` or ``rmsprop``, to go on with it here.

    Parameters
    ----------
    state
        What ``init`` or ``update`` returned.
    rule
        A rule of the same formula: of ``like="optax"`` and the same options. It may stand in a chain, in
        :class:`Groups` or in :class:`Guard`.
    params
        The parameters, of any library: a tree of the same structure.
    step
        The number of steps taken, where the state has none: that of ``sgd`` and ``rmsprop`` without a schedule. By
        default it is then 0.

    Returns
    -------
    dict
        What :meth:`Optimizer.state_dict` would return: for :meth:`Optimizer.load_state_dict` and :func:`load_state`.

    Raises
    ------
    CheckpointError
        With everything that is missing, unexpected, of another shape or another formula. Nothing is changed.
    TypeError
        For a rule that is none of Adam, AdamW, SGD and RMSProp.

    Notes
    -----
    ::

        ScaleByAdamState       count, mu, nu      t, m, v
        TraceState             trace              m of SGD, -m of RMSProp
        ScaleByRmsState        nu                 v
        ScaleByRStdDevState    mu, nu             a, v

    They are found by the names of classes and fields, in ``chain``, ``masked``, ``multi_transform`` and
    ``inject_hyperparams``; all counts must agree. Other states with arrays in them are refused: that of ``amsgrad``,
    whose ``nu_max`` is another number than here, that of ``rmsprop(bias_correction=True)``, averages, accumulated
    gradients. The arrays are copied, as the rule keeps them.

    Most hyperparameters are not in the state. Those of ``rule`` count, and so do its ``eps_mode``, ``nesterov`` and
    ``decay``, which nothing can be compared with; nor do ``radam`` or ``yogi`` look other than ``adam``. Numbers of
    ``inject_hyperparams`` are taken over.

    Examples
    --------
    >>> from typing import NamedTuple
    >>> import numpy as np
    >>> import xopt
    >>> class TraceState(NamedTuple):  # as optax has it
    ...     trace: dict
    >>> theirs = (TraceState({"w": np.ones(2)}), ())
    >>> opt = xopt.Optimizer({"w": np.zeros(2)}, xopt.SGD(lr=0.5, momentum=0.9, like="optax"))
    >>> opt.load_state_dict(xopt.from_optax(theirs, opt.rule, opt.params, step=7))
    {}
    >>> opt.step({"w": np.ones(2)})
    {'w': array([-0.95, -0.95])}
    """
    side = Side(rule, params, _THERE, "optax")
    found, wants = _walked(side, state), [dict[str, float]() for _ in side.keys]
    covered: dict[int, list[int]] = {}
    for one in found:
        for field in _TREES.get(one.name, ()):
            column, where = _column(side, getattr(one.node, field), f"{one.where}.{field}"), f"{one.where}.{field}"
            for k in [k for k, x in enumerate(column) if x is not None]:
                slot = _slot(side, k, one, field)
                if slot is None:
                    side.problems.append(f"{where}: {side.keys[k]}: not among the arrays of this rule")
                    continue
                side.put(k, slot, column[k], where, _sign(side, k, slot))
                for n in one.around:
                    covered.setdefault(n, []).append(k)
    for k in side.moving():
        _compare(side, k)
    for one in found:
        for k in covered.get(id(one.node), side.moving()) if hasattr(one.node, "hyperparams") else []:
            wants[k] |= _numbers(side, k, one)
    counts = {f"{one.where}.count": _number(one.node.count) for one in found if one.name in _COUNTS}
    taken = side.count(counts, step)
    if taken is None and side.scheduled():
        side.problems.append("step: there is none in the state, and a schedule of this rule asks for it: give step=")
    side.missing()
    side.set_numbers(wants)
    side.done()
    return side.state_dict(taken or 0)


@public
def to_optax(state_dict: Mapping[str, Any], rule: FunctionalOptimizer, params: Any, like: Any) -> Any:
    """Return a state of xopt as optax's ``adam``, ``adamw``, ``sgd`` or ``rmsprop`` has it, to go on with it there.

    Parameters
    ----------
    state_dict
        What :meth:`Optimizer.state_dict` returned.
    rule, params
        The rule and the parameters that it is of, as for :func:`from_optax`.
    like
        ``init(params)`` of the transformation that is to go on. It is not changed.

    Returns
    -------
    tuple
        The same structure, filled; arrays have its library, dtypes and devices.

    Raises
    ------
    CheckpointError
        With everything that does not fit: what ``like`` has no place for, as an average of the weights, is not dropped.
    TypeError
        For a rule that is none of Adam, AdamW, SGD and RMSProp.

    Notes
    -----
    Every count is the number of steps. Hyperparameters go where ``inject_hyperparams`` keeps them, of a schedule the
    value of the next step; otherwise they are those that the transformation was made with.

    Examples
    --------
    >>> from typing import NamedTuple
    >>> import numpy as np
    >>> import xopt
    >>> class TraceState(NamedTuple):  # as optax has it
    ...     trace: dict
    >>> opt = xopt.Optimizer({"w": np.zeros(2)}, xopt.SGD(lr=0.5, momentum=0.9, like="optax"))
    >>> _ = opt.step({"w": np.ones(2)})
    >>> xopt.to_optax(opt.state_dict(), opt.rule, opt.params, (TraceState({"w": np.zeros(2)}), ()))
    (TraceState(trace={'w': array([1., 1.])}), ())
    """
    side = Leaving(state_dict, rule, params, _THERE, "optax")
    found = _walked(side, like)
    news: dict[int, dict[str, Any]] = {id(one.node): {} for one in found}
    filled, covered = set[tuple[int, str]](), dict[int, list[int]]()
    for one in found:
        for field in _TREES.get(one.name, ()):
            tree, where = getattr(one.node, field), f"{one.where}.{field}"
            column = _column(side, tree, where)
            for k in [k for k, x in enumerate(column) if x is not None]:
                slot = _slot(side, k, one, field)
                shape = side.layout.shapes[k]
                if slot is None or (k, slot) in filled:
                    side.problems.append(f"{where}: {side.keys[k]}: not among the arrays of this rule")
                elif side.array(column[k], f"{where}: {side.keys[k]}", shape):
                    filled.add((k, slot))
                    made = side.take(k, slot, column[k])
                    column[k] = made if _sign(side, k, slot) > 0 else -made
                    for n in one.around:
                        covered.setdefault(n, []).append(k)
            leaves, spec = _tree.flatten(tree)
            made = [x for x in column if x is not None]
            news[id(one.node)][field] = _tree.unflatten(spec, made) if len(made) == len(leaves) else tree
        if one.name in _COUNTS:
            count = np.asarray(min(side.step, 2**31 - 1), np.int32)
            news[id(one.node)]["count"] = from_host(count, "int32", one.node.count)
    for k in side.moving():
        _compare(side, k)
    for one in found:
        if hasattr(one.node, "hyperparams"):
            news[id(one.node)]["hyperparams"] = _filled(side, one, covered.get(id(one.node), side.moving()))
    side.done()
    return _rebuilt(like, news)


def _walked(side: Side, state: Any) -> list[_Found]:
    """Return the states that are known; note the others, unless nothing is in them."""
    return list(_walk(side, state, "state", ()))


def _walk(side: Side, x: Any, where: str, around: tuple[int, ...]) -> Iterator[_Found]:
    name, fields = type(x).__name__, getattr(x, "_fields", ())
    needed = {
        *_TREES.get(name, ()),
        *(["count"] if name in _COUNTS else []),
        *([_INSIDE[name]] if name in _INSIDE else []),
    }
    if needed and needed <= {*fields}:
        if hasattr(x, "hyperparams"):
            around = (*around, id(x))
            yield from _walk(side, getattr(x, "hyperparams_states", ()), f"{where}.hyperparams_states", around)
        yield _Found(where, x, around)
        if name in _INSIDE:
            yield from _walk(side, getattr(x, _INSIDE[name]), f"{where}.{_INSIDE[name]}", around)
    elif isinstance(x, Mapping):
        for key, own in x.items():
            yield from _walk(side, own, f"{where}[{key!r}]", around)
    elif isinstance(x, list | tuple) and not fields:
        for i, own in enumerate(x):
            yield from _walk(side, own, f"{where}[{i}]", around)
    elif optree.tree_leaves(x, namespace="xopt"):
        side.problems.append(f"{where}: {name}: {_WHY.get(name, 'not a state that moves')}")


def _masked(x: Any) -> bool:
    return type(x).__name__ == "MaskedNode"


def _column(side: Side, tree: Any, where: str) -> list[Any]:
    """Return what a tree of optax has for each parameter, None where that is masked."""
    spec, nodes = side.layout.spec, optree.tree_leaves(tree, is_leaf=_masked, namespace="xopt")
    nothing: list[Any] = [None] * len(side.keys)
    if not any(map(_masked, nodes)):
        try:
            return _tree.match(spec, tree, where)
        except ValueError as error:
            side.problems.append(str(error))
            return nothing
    found = []
    for accessor in spec.accessors():
        x = tree
        try:
            for entry in accessor:
                x = x if _masked(x) else entry(x)
        except (LookupError, TypeError, AttributeError):
            side.problems.append(f"{where}: it has not the structure of the parameters")
            return nothing
        found.append(None if _masked(x) else x)
    if sum(x is not None for x in found) != sum(not _masked(x) for x in nodes):
        side.problems.append(f"{where}: it has not the structure of the parameters")
        return nothing
    return found


def _slot(side: Side, k: int, one: _Found, field: str) -> str | None:
    """Return which array of a parameter a field of a state is, if its rule has it."""
    if side.owners[k] is None:
        return None
    slot = _KINDS[side.kind(k)].slots.get((one.name, field))
    return slot if slot in side.wanted(k) else None


def _sign(side: Side, k: int, slot: str) -> int:
    """Return -1 for the momentum of RMSProp: in optax what goes in has its minus sign."""
    return -1 if side.kind(k) is RMSProp and slot == "m" else 1


def _compare(side: Side, k: int) -> None:
    """Note what optax has no choice in, and is another formula here."""
    part = side.part(k)
    if side.kind(k) is Adam:
        side.expect(k, "bias", "standard")
        side.expect(k, "amsgrad", False)
        if part.eps_mode == "hat":
            side.expect(k, "eps_mode", "outside")
    elif side.kind(k) is SGD:
        side.expect(k, "form", "lr_outside")
        if part.dampening:
            side.differs(k, "dampening", None, part.dampening)
    elif part.momentum is not None:
        side.expect(k, "form", "lr_inside")
    if side.layout.dtypes[k].complex and side.kind(k) is not SGD:
        side.expect(k, "complex", "modulus")


def _number(x: Any) -> Any:
    """Return a 0-d array as a number, if it is one."""
    try:
        return x.item()
    except (AttributeError, ValueError, TypeError):
        return x


def _numbers(side: Side, k: int, one: _Found) -> dict[str, float]:
    """Return the hyperparameters of a state of ``inject_hyperparams``, under the names that they have here."""
    found = {}
    for n, mine in _names(side, k).items():
        if n in one.node.hyperparams:
            x = _number(one.node.hyperparams[n])
            if isinstance(x, bool) or not isinstance(x, int | float):
                side.problems.append(f"{one.where}.hyperparams[{n!r}]: {x!r}, but it must be a number")
            else:
                found[mine] = float(x)
    other = "eps_root" if "eps_root" not in _names(side, k) else "eps"
    if side.kind(k) is Adam and _number(one.node.hyperparams.get(other, 0.0)):
        side.differs(k, "eps_mode", "inside" if other == "eps_root" else "outside", side.part(k).eps_mode)
    return found


def _names(side: Side, k: int) -> dict[str, str]:
    """Return what hyperparameters are called there, and here."""
    names = _KINDS[side.kind(k)].numbers
    if side.kind(k) is Adam and side.part(k).eps_mode == "inside":
        return {"eps_root" if n == "eps" else n: mine for n, mine in names.items()}
    return names


def _filled(side: Leaving, one: _Found, leaves: list[int]) -> dict[str, Any]:
    """Return the hyperparameters of a state with those of the rule."""
    found = dict(one.node.hyperparams)
    for n, mine in _names(side, leaves[0]).items() if leaves else ():
        if n in found:
            new = side.common(leaves, mine, f"{one.where}.hyperparams")
            found[n] = from_host(np.asarray(new), "float64", found[n]) if hasattr(found[n], "dtype") else new
    return found


def _rebuilt(x: Any, news: dict[int, dict[str, Any]]) -> Any:
    """Return a state with other values of some fields."""
    if id(x) in news:
        fields = dict(news[id(x)])
        for n in ("hyperparams_states", _INSIDE.get(type(x).__name__, "")):
            if n in x._fields:
                fields[n] = _rebuilt(getattr(x, n), news)
        return x._replace(**fields)
    if hasattr(x, "_fields"):
        return x
    if isinstance(x, Mapping):
        kind: Any = type(x)
        return kind((key, _rebuilt(own, news)) for key, own in x.items())
    if isinstance(x, list | tuple):
        return type(x)(_rebuilt(own, news) for own in x)
    return x
