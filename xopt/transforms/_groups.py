"""Parameter groups: other hyperparameters, other rules or none for some of the parameters, chosen by path and array."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from xopt._arrays.paths import Predicate, check_predicate, check_unmatched, chosen, shown
from xopt._public import public
from xopt.rule import Chain, Component, FunctionalOptimizer, RoutedComponent, check_method, routed
from xopt.rule._component import Layout
from xopt.rule._fields import Field, check, number
from xopt.rule._names import locate, named, replaced
from xopt.schedules._schedule import combined

__all__ = ["Freeze", "Groups", "scaled"]


@public
class Freeze:
    """Frozen parameters in :class:`Groups`: no state, no step, no part in any norm.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule = xopt.Groups(xopt.SGD(lr=0.5), ("backbone/**", xopt.Freeze))
    >>> params = {"backbone": {"w": np.ones(2)}, "head": np.ones(2)}
    >>> rule.apply(params, params, rule.init(params))[0]
    {'backbone': {'w': array([1., 1.])}, 'head': array([0.5, 0.5])}
    """

    def __init__(self) -> None:
        raise TypeError("Freeze: write xopt.Freeze, the class itself")


What: TypeAlias = Mapping[str, Any] | FunctionalOptimizer | type[Freeze]
"""What becomes of a group: other hyperparameters, another rule, or nothing."""


class Scaled(NamedTuple):
    """A hyperparameter of a group that follows the rule's own. Made by :func:`scaled`."""

    factor: float

    def of(self, value: Any) -> Any:
        """Return the value that is meant, of what the rule itself has."""
        return combined("*", self.factor, value) if callable(value) else self.factor * value

    def __repr__(self) -> str:
        return f"scaled({self.factor!r})"


@public
def scaled(factor: float) -> Scaled:
    """Say that a hyperparameter of a group is ``factor`` times that of the rule, whatever that is or becomes.

    Parameters
    ----------
    factor
        A number ≥ 0.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule = xopt.Groups(xopt.SGD(lr=xopt.schedules.warmup(1.0, steps=2)), ("slow", {"lr": xopt.scaled(0.1)}))
    >>> opt = xopt.Optimizer({"slow": np.zeros(1), "fast": np.zeros(1)}, rule)
    >>> opt.step({"slow": np.ones(1), "fast": np.ones(1)}, lr=0.5)
    {'slow': array([-0.05]), 'fast': array([-0.5])}
    """
    return Scaled(number("scaled: factor", Field(None, static=False, ge=0), factor, ""))


class _Target(NamedTuple):
    """What an override is about."""

    label: str
    """What the state of the component is filed under."""
    field: str
    value: Any


class Groups(Component, FunctionalOptimizer):
    """Parameter groups: other hyperparameters or rules for some parameters, and some that are frozen.

    Groups stands wherever a rule may stand: alone, in :class:`~xopt.Optimizer`, in a :func:`~xopt.chain`, in other
    Groups.

    Parameters
    ----------
    rule
        A rule or a chain: for all parameters that are in no group.
    *groups
        Pairs of a predicate and of what becomes of the parameters that match it. The first that matches wins.

        A predicate is a glob, a compiled regular expression that is searched, or a function of path and array that
        returns whether they belong to the group. A path is the keys of a parameter with slashes between them:
        ``params["encoder"][0].bias`` is ``encoder/0/bias``, and a single array has the empty path. In a glob, ``*`` is
        anything without a slash, ``?`` one character, ``[ab]`` one of these, ``[!ab]`` any other, and ``**`` anything:
        ``**/bias`` is every ``bias``, ``encoder/**`` is ``encoder`` and everything below. A dot is a character like
        any other: names of torch are ``encoder.0.bias``, and match ``encoder.*``.

        What becomes of a group is one of

        - a dict of hyperparameters, under the names that :meth:`xopt.Optimizer.set` takes for the rule: numbers,
          schedules, or :func:`~xopt.scaled`, which follows the rule. The state stays that of the rule;
        - another rule or chain, whose state is filed as that of ``group0``;
        - :class:`~xopt.Freeze`: no state and no step. A gradient may be there or be None.
    unmatched
        ``"error"``: a predicate that chooses nothing is an error, most likely a typing error. ``"ignore"``: it is not.

    Raises
    ------
    ValueError
        For a predicate that chooses nothing, when the parameters are known.
    TypeError
        For names that the rule does not have, and values that it would not take.

    Notes
    -----
    Groups are numbered from 0, those inside of ``rule`` first. Their hyperparameters are called ``group0.lr`` in
    :meth:`xopt.Optimizer.set` and :meth:`xopt.Optimizer.hyperparams`; ``lr`` is that of the rule, and of all groups
    that do not have their own.

    A transform in front of Groups, or behind, sees all parameters but the frozen ones; a transform in the chain of a
    group sees that group alone. Groups that differ in hyperparameters alone are computed together: one kernel, one sum.

    In Groups of Groups a parameter may be in a group of each. The outer one has the last word: its numbers replace
    those of the inner one, and what it scales is what the inner one left.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule = xopt.Groups(
    ...     xopt.AdamW(lr=1e-3, weight_decay=0.1),
    ...     ("head/**", {"lr": 1e-2}),
    ...     (xopt.no_decay_1d, {"weight_decay": 0.0}),
    ... )
    >>> params = {"body": {"w": np.ones((3, 2)), "b": np.ones(2)}, "head": {"w": np.ones((2, 1))}}
    >>> opt = xopt.Optimizer(params, xopt.chain(xopt.ClipByGlobalNorm(1.0), rule))
    >>> {name: x for name, x in opt.hyperparams().items() if x is not None and name.endswith(("lr", "decay"))}
    {'group0.lr': 0.01, 'group1.weight_decay': 0.0, 'weight_decay': 0.1, 'lr': 0.001}
    >>> opt.set(lr=1e-4, **{"group0.lr": 1e-3})
    """

    def __init__(
        self,
        rule: FunctionalOptimizer,
        *groups: tuple[Predicate, What],
        unmatched: Literal["error", "ignore"] = "error",
    ) -> None:
        _check_rule("Groups", rule)
        check_unmatched("Groups", unmatched)
        put = functools.partial(object.__setattr__, self)
        base = rule._parts()
        inside = [link.part for link in named(base) if isinstance(link.part, Groups)]
        first = sum(len(part._groups) for part in inside)
        put("_rule", rule)
        put("_unmatched", unmatched)
        put("_number", first)
        put("_labels", tuple(f"group{first + n}" for n in range(len(groups))))
        put("_given", {})
        fields, targets, kept = dict[str, Field](), list[list[_Target]](), list[tuple[Predicate, Any]]()
        for label, group in zip(self._labels, groups, strict=True):
            if not isinstance(group, tuple) or len(group) != 2:
                raise TypeError(f"Groups: {group!r}, but a group is a pair (predicate, what becomes of it)")
            predicate, what = group
            check_predicate("Groups", predicate)
            if isinstance(what, Mapping):
                what, own = _overrides(label, base, what, fields)
                targets.append(own)
            else:
                if what is not Freeze:
                    _check_rule(label, what, "a dict of hyperparameters, Freeze, a rule")
                targets.append([])
            kept.append((predicate, what))
        put("_groups", tuple(kept))
        put("_targets", targets)
        put("_fields", fields)
        put("_made", {})

    _rule: FunctionalOptimizer
    _groups: tuple[tuple[Predicate, Any], ...]
    _number: int
    """The number of its first group."""
    _labels: tuple[str, ...]
    _targets: list[list[_Target]]
    _unmatched: Literal["error", "ignore"]
    _made: dict[Any, tuple[RoutedComponent, ...]]

    def __repr__(self) -> str:
        groups = [f"({shown(p) if not isinstance(p, str) else repr(p)}, {shown(w)})" for p, w in self._groups]
        end = ["unmatched='ignore'"] if self._unmatched == "ignore" else []
        return f"Groups({', '.join([repr(self._rule), *groups, *end])})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Groups) and self.__reduce__() == other.__reduce__()

    def __hash__(self) -> int:
        return hash((Groups, self._rule, len(self._groups)))

    def __reduce__(self) -> tuple[Any, ...]:
        return Groups._of, ((self._rule, *self._groups), {"unmatched": self._unmatched})

    def _values(self) -> dict[str, Any]:
        values = dict[str, Any]()
        for label, (_, what) in zip(self._labels, self._groups, strict=True):
            if isinstance(what, dict):
                values |= {f"{label}.{n}": x for n, x in what.items()}
        return values

    def _value(self, name: str) -> Any:
        return self._values()[name]

    def _choices(self) -> dict[str, Any]:
        return dict(zip(self._labels, (predicate for predicate, _ in self._groups), strict=True))

    def replace(self, **changes: Any) -> Groups:
        """Return a copy with other hyperparameters of the groups: ``replace(**{"group0.lr": 0.1})``."""
        for n in changes:
            if n not in self._fields:
                raise TypeError(f"Groups has no hyperparameter {n!r}; it has {', '.join(self._fields) or 'none'}")
        groups = [
            (p, {n: changes.get(f"{label}.{n}", x) for n, x in what.items()} if isinstance(what, dict) else what)
            for label, (p, what) in zip(self._labels, self._groups, strict=True)
        ]
        return _groups(self._rule, groups, self._unmatched)

    def _parts(self) -> tuple[Component, ...]:
        return (self,)

    def _with(self, values: Mapping[str, Any]) -> FunctionalOptimizer:
        [new] = replaced((self,), values, self._known)
        assert isinstance(new, Groups)
        return new

    def _methods(self) -> list[tuple[str, FunctionalOptimizer]]:
        """Return the rule and those of the groups, each with what stands before its places."""
        own = [(f"{label}.", what) for label, (_, what) in zip(self._labels, self._groups, strict=True)]
        return [("", self._rule), *((label, what) for label, what in own if isinstance(what, FunctionalOptimizer))]

    def _inner(self) -> tuple[Component, ...]:
        return tuple(part for _, method in self._methods() for part in method._parts())

    def _inner_keys(self) -> tuple[str, ...]:
        return tuple(place for label, method in self._methods() for place in _places(label, method._parts()))

    def _with_inner(self, parts: tuple[Component, ...]) -> Groups:
        rest = list(parts)

        def take(method: FunctionalOptimizer) -> FunctionalOptimizer:
            old = method._parts()
            new = tuple(rest.pop(0) for _ in old)
            return method if all(map(lambda a, b: a is b, old, new)) else _method(new)

        rule = take(self._rule)
        groups = [
            (predicate, take(what) if isinstance(what, FunctionalOptimizer) else what)
            for predicate, what in self._groups
        ]
        return _groups(rule, groups, self._unmatched)

    def _label(self) -> str:
        return ""

    def _route(self, layout: Layout, k: int) -> Sequence[RoutedComponent] | None:
        n = chosen("Groups", tuple(p for p, _ in self._groups), layout, self._unmatched)[k]
        what = None if n is None else self._groups[n][1]
        if what is Freeze:
            return None
        if n is not None and isinstance(what, FunctionalOptimizer):
            parts = what._parts()
            return routed(parts, _places(f"{self._labels[n]}.", parts), layout, k)
        parts = self._rule._parts()
        links = routed(parts, _places("", parts), layout, k)
        if n is None or links is None:
            return links
        key = (n, *((link.label, link.role) for link in links))
        if key not in self._made:
            self._made[key] = tuple(self._other(link, n) for link in links)
        return self._made[key]

    def _other(self, link: RoutedComponent, n: int) -> RoutedComponent:
        """Return a component with the hyperparameters of a group."""
        changes = {}
        for label, field, value in self._targets[n]:
            if label == link.label:
                changes[field] = _of(f"{self._labels[n]}.{field}", value, getattr(link.part, field))
        return link._replace(
            part=link.part.replace(**changes) if changes else link.part, role=(self._number + n, *link.role)
        )


def _groups(rule: FunctionalOptimizer, groups: Sequence[Any], unmatched: Literal["error", "ignore"]) -> Groups:
    return Groups(rule, *groups, unmatched=unmatched)


def _method(parts: tuple[Component, ...]) -> FunctionalOptimizer:
    """Return a rule for one component that is one, else a chain."""
    return parts[0] if len(parts) == 1 and isinstance(parts[0], FunctionalOptimizer) else Chain(parts)


def _places(label: str, parts: Sequence[Component]) -> list[str]:
    """Return what stands before the labels of the components of a rule or a chain."""
    return [label] if len(parts) == 1 else [f"{label}{i}." for i in range(len(parts))]


def _check_rule(label: str, what: Any, other: str = "a rule") -> None:
    try:
        check_method(what)
    except TypeError as error:
        got = str(error).removeprefix("rule: ").replace("a rule", other, 1)
        raise TypeError(f"{label}: {got}") from None
    if not isinstance(what, Component | Chain):
        around = label if label == "LowRank" else "Groups"
        raise TypeError(f"{label}: {type(what).__name__} is for a whole tree; put it around {around}")


def _of(name: str, value: Any, old: Any) -> Any:
    """Return the hyperparameter of a group, in place of another."""
    if old is None and isinstance(value, Scaled):
        raise TypeError(f"{name}: {value!r} of None, but the rule must have a value that can be scaled")
    if (value is None) != (old is None):
        raise TypeError(f"{name}: {value!r} in place of {old!r} is another formula; give the group another rule")
    return value.of(old) if isinstance(value, Scaled) else value


def _overrides(
    label: str, base: tuple[Component, ...], what: Mapping[str, Any], fields: dict[str, Field]
) -> tuple[dict[str, Any], list[_Target]]:
    """Check the hyperparameters of a group; find whose they are, and add to ``fields`` what they are."""
    labels = {link.path: link.key + link.part._holder for link in named(base, _places("", base))}
    values, targets = {}, []
    for name, value in what.items():
        try:
            link, field = locate(base, name)
        except TypeError as error:
            raise TypeError(f"{label}: {error}") from None
        if isinstance(link.part, Groups):
            raise TypeError(f"{label}: {name!r} is what another group has; say which hyperparameter of a rule you mean")
        bounds, where = link.part._fields[field], f"{label}.{name}"
        values[name] = new = value if isinstance(value, Scaled) else check(where, bounds, value)
        link.part.replace(**{field: _of(where, new, getattr(link.part, field))})
        fields[where] = bounds
        targets.append(_Target(labels[link.path], field, new))
    return values, targets
