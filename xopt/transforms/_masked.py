"""Transforms for some of the parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from xopt._arrays.paths import Predicate, check_predicate, check_unmatched, chosen, shown
from xopt.rule import Component, FunctionalOptimizer, RoutedComponent, Transform, routed
from xopt.rule._component import Layout

__all__ = ["Masked"]


class Masked(Transform):
    """Masked transform: for some of the parameters; the others do not go through it.

    Parameters
    ----------
    link
        A transform.
    predicate
        Which parameters: a glob, a compiled regular expression or a function of path and array, as in
        :class:`~xopt.Groups`.
    unmatched
        What becomes of a predicate that matches nothing: ``"error"`` or ``"ignore"``.

    Raises
    ------
    ValueError
        For a predicate that matches nothing, when the parameters are known.

    Notes
    -----
    State and hyperparameters are those of the transform, under its names. A norm over the tree is over the parameters
    that match.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule = xopt.chain(xopt.Masked(xopt.ClipByValue(1.0), "w"), xopt.SGD(lr=1.0))
    >>> params = {"b": np.zeros(1), "w": np.zeros(1)}
    >>> rule.apply(params, {"b": np.full(1, 3.0), "w": np.full(1, 3.0)}, rule.init(params))[0]
    {'b': array([-3.]), 'w': array([-1.])}
    """

    def __init__(
        self, link: Transform, predicate: Predicate, *, unmatched: Literal["error", "ignore"] = "error"
    ) -> None:
        if not isinstance(link, Transform):
            hint = "; for a rule there is Groups" if isinstance(link, FunctionalOptimizer) else ""
            raise TypeError(f"Masked: {shown(link)}, but it must be a transform{hint}")
        check_predicate("Masked", predicate)
        check_unmatched("Masked", unmatched)
        for name, value in (("_link", link), ("_predicate", predicate), ("_unmatched", unmatched), ("_given", {})):
            object.__setattr__(self, name, value)

    _link: Transform
    _predicate: Predicate
    _unmatched: Literal["error", "ignore"]

    def __repr__(self) -> str:
        predicate = repr(self._predicate) if isinstance(self._predicate, str) else shown(self._predicate)
        end = ", unmatched='ignore'" if self._unmatched == "ignore" else ""
        return f"Masked({self._link!r}, {predicate}{end})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Masked) and self.__reduce__() == other.__reduce__()

    def __hash__(self) -> int:
        return hash((Masked, self._link))

    def __reduce__(self) -> tuple[Any, ...]:
        return Masked._of, ((self._link, self._predicate), {"unmatched": self._unmatched})

    def _inner(self) -> tuple[Component, ...]:
        return (self._link,)

    def _with_inner(self, parts: tuple[Component, ...]) -> Masked:
        return _masked(parts[0], self._predicate, self._unmatched)

    def _label(self) -> str:
        return ""

    def _choices(self) -> dict[str, Any]:
        return {"predicate": self._predicate}

    def _stands(self) -> tuple[str, ...]:
        return self._link._stands()

    def _check_before(self, rule: Any) -> None:
        self._link._check_before(rule)

    def _route(self, layout: Layout, k: int) -> Sequence[RoutedComponent]:
        [found] = chosen("Masked", (self._predicate,), layout, self._unmatched)[k : k + 1]
        return [] if found is None else routed((self._link,), [""], layout, k) or []


def _masked(link: Any, predicate: Predicate, unmatched: Literal["error", "ignore"]) -> Masked:
    return Masked(link, predicate, unmatched=unmatched)
