"""Sums over all ranks, in the order of one process: chunk after chunk, parameter after parameter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from xopt._arrays.layout import Layout
from xopt._arrays.transfer import to_host
from xopt._engine.program.algebra import Value
from xopt._engine.program.contract import BucketStep, ComponentSpec, StepScalars
from xopt._engine.program.hooks import host_scalars, terms
from xopt._engine.program.summation import Roots, ordered
from xopt._engine.resolve import ScalarResolver
from xopt.distributed._ranks import Ranks
from xopt.distributed._shards import Shards

NDArray = np.ndarray[Any, Any]


class RankResolver(ScalarResolver):
    """The scalars of a step of one rank, whose sums are those of the whole tree.

    Parameters
    ----------
    layout, host
        The units of this rank, as :class:`ScalarResolver` takes them.
    whole
        The parameters of the tree.
    shards, ranks
        Who has what, and how they talk.
    """

    def __init__(self, layout: Layout, host: bool, whole: Layout, shards: Shards, ranks: Ranks) -> None:
        super().__init__(layout, host)
        self._whole_tree, self._shards, self._ranks = whole, shards, ranks

    def _sum(
        self, spec: ComponentSpec, members: list[tuple[int, int]], works: list[BucketStep], values: list[StepScalars]
    ) -> dict[str, Any]:
        names = terms(spec)
        own = np.zeros((self._shards.most, len(names)))
        for w, i in members:
            found = works[w].runner.sums(works[w], values[w], i)
            for j, n in enumerate(names):
                own[works[w].leaves, j] = _numbers(found[n])
        self._ranks.agree()
        every = self._ranks.every(own)
        rows = np.zeros((len(self._whole_tree.leaves), len(names)))
        with np.errstate(all="ignore"):
            np.add.at(rows, self._shards.leaves, every[self._shards.rows])  # one after the other
            totals = {n: ordered(rows[:, j].tolist()) for j, n in enumerate(names)} if spec.scope == "tree" else {}
        if spec.refuses:
            self._refuse_rows(rows[:, names.index(spec.refuses)])
        if spec.scope == "tree":
            totals = {n: self._scalar(x) for n, x in totals.items()}
        for w, _ in members:
            numbers = [works[w].numbers[k] for k in works[w].leaves]
            values[w].share(totals or {n: Value(self._vector(rows[numbers, j])) for j, n in enumerate(names)})
        return totals

    def run(self, *args: Any) -> Any:
        self.alone = {}
        return super().run(*args)

    def _alone(self, spec: ComponentSpec, h: dict[str, Any], carry: dict[str, Any]) -> Any:
        go = super()._alone(spec, h, carry)
        known = host_scalars(spec, h) if spec.host and spec.scope == "tree" else {}
        self.alone[spec.key] = h | known
        return go

    def _scalar(self, x: float) -> Any:
        """Return a sum as the runner has it: a number on the host, else an array of the library."""
        if self._plain() or self.mixed:
            return x
        layout = self._whole_tree
        return Value(layout.library.from_host(layout.xp, np.asarray(x), "float64", layout.leaves[0]))

    def by_leaf(self, found: Iterable[tuple[Any, list[int]]]) -> Any:
        own, many = super().by_leaf(found), len(self._whole_tree.leaves)
        if self._layout is self._whole_tree:
            return own
        made, first = np.full(many, np.nan), {k: j for j, k in reversed([*enumerate(self._layout.numbers)])}
        if isinstance(own, np.ndarray):
            made[[*first]] = own[[*first.values()]]
            return made
        xp, at = self._layout.xp, [first.get(k, len(own)) for k in range(many)]
        return xp.take(xp.concat([own, self._vector(np.asarray([np.nan]))]), self._index(own, at), axis=0)

    def _refuse_rows(self, counts: NDArray) -> None:
        for k in np.flatnonzero(counts):
            path = self._whole_tree.path(int(k), "grads")
            raise FloatingPointError(f"{path}: {int(counts[k]):,} elements are not finite")


def _numbers(x: Any) -> NDArray:
    """Return the sums of the leaves of a work as float64."""
    if isinstance(x, Roots):
        return np.square(_numbers(x.roots))
    return np.asarray(x if isinstance(x, np.ndarray) else to_host(x), np.float64)
