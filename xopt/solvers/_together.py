"""A run on many processes: each has its share of the function, and of the parameters all, or its own part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from xopt._arrays.layout import Layout
from xopt._arrays.transfer import to_host
from xopt._engine.program.summation import ordered
from xopt.distributed._exchange import Exchange, LocalGradient
from xopt.distributed._ranks import Ranks
from xopt.distributed._shards import Shards, check_library, check_options, contents, forms, view
from xopt.solvers._objective import Fun
from xopt.solvers._options import Solver
from xopt.solvers._space import Numbers, Space, checked_value, whole_gradients


class Together:
    """What the ranks of a run have to say to each other.

    Parameters
    ----------
    ranks
        Who they are.
    layout
        The parameters, or this rank's part of them.
    total
        ``"sum"`` or ``"mean"``: what the function is of those of the ranks.
    owned
        Whether each rank has its own part of the parameters; then the gradient is its own, too.
    said
        What else must be the same on all ranks, as JSON has it.
    """

    def __init__(self, ranks: Ranks, layout: Layout, total: Any, owned: Any, said: dict[str, Any]) -> None:
        self.ranks = ranks
        self._layout, self._mean, self.owned = layout, total == "mean", owned
        check_options(total, owned)
        check_library(layout)
        ranks.agree()
        ranks.same({"total": total, "owned": owned, **said, **forms(layout, owned)})
        if owned:
            return
        ranks.same(contents(layout))
        shards = Shards.plain(layout, ranks.size)
        self._exchange = Exchange(ranks.comm, layout, shards)
        library, xp = layout.library, layout.xp
        self._sum = [library.empty(xp, p.shape, p.dtype, p) for p in layout.leaves]
        """The gradient of all ranks; the solver copies it."""
        self._own = [
            (view(layout, self._sum, u), self._exchange.own(u.leaf, u.at, u.stop - u.start))
            for u in shards.of[ranks.rank]
        ]

    def fun(self, fun: Fun) -> Fun:
        """Return the function of all ranks."""
        layout = self._layout

        def both(x: Any) -> tuple[Any, Any]:
            value, grads = fun(x)
            value = checked_value(layout.library, value)
            value = value if isinstance(value, float) else float(to_host(value))
            leaves = whole_gradients(layout, grads)
            vectors = None if self.owned else self._exchange.vectors(leaves)
            self.ranks.agree()
            total = ordered(self.ranks.every(np.asarray([value]))[:, 0].tolist())
            total = total / self.ranks.size if self._mean else total
            return total, layout.tree(leaves if vectors is None else self._summed(vectors))

        return both

    def space(self, layout: Layout) -> RankSpace | None:
        """Return the vectors of ranks that have their own parts; None for the usual ones."""
        return RankSpace(layout, self) if self.owned else None

    def _summed(self, leaves: LocalGradient) -> list[Any]:
        """Add gradients up in the order of the ranks, on all of them."""
        self._exchange.reduce([leaves], self._mean)
        for place, own in self._own:
            place[...] = own.reshape(place.shape)
        self._exchange.spread(self._sum)
        return self._sum

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return bool(self.ranks.agree(None, flag=int(flag)))


def joined(
    ranks: Ranks | None, layout: Layout, solver: Solver | None, total: Any, owned: Any, given: Mapping[str, Any]
) -> Together | None:
    """Return the ranks of a run, by a rule if no solver; refuse what does not go with these, or with these alone."""
    if ranks is None:
        if total != "sum" or owned:
            raise TypeError("total and owned go with comm")
        return None
    if solver is None:
        raise TypeError("comm: given with a rule; xopt.Optimizer(x0, rule, comm=comm) takes its steps")
    if solver.hessian:
        raise TypeError(
            f"comm: given with {solver.name!r}, whose Hessian would be that of one rank; 'bfgs' can have it"
        )
    if owned and not solver.parts:
        raise TypeError(f"owned: True, but {solver.name!r} keeps a matrix of all parameters")
    if owned and solver.bounds:
        raise TypeError(f"owned: True, but {solver.name!r} frees variables by the sums of all")
    if "max_time" in given:
        raise TypeError("max_time: given with comm, and the clocks of ranks differ; a callback may end the run")
    options = {n: x for n, x in given.items() if isinstance(x, int | float | str)}
    return Together(ranks, layout, total, owned, {"method": solver.name, **options})


class RankSpace(Space):
    """The vectors of ranks that each have their own part: sums are added rank after rank, on all of them."""

    parted = True

    def __init__(self, layout: Layout, together: Together) -> None:
        super().__init__(layout)
        self._ranks = together.ranks

    def _every(self, *numbers: Numbers) -> list[Numbers]:
        """Return rows of numbers of every rank."""
        flat = np.concatenate([np.reshape(np.asarray(x, np.float64), -1) for x in numbers])
        self._ranks.agree()
        every, at, found = self._ranks.every(flat), 0, list[Numbers]()
        for x in numbers:
            size = np.size(x)
            found.append(every[:, at : at + size].reshape(-1, *np.shape(x)))
            at += size
        return found

    def known(self, value: Any, sums: list[Any], tops: list[Any]) -> tuple[float, Numbers, Numbers]:
        value, *own = super().known(value, sums, tops)
        every_sums, every_tops = self._every(*own)
        return value, ordered(every_sums), every_tops.max(axis=0)

    def total(self, rows: list[Any], function: Callable[..., Any] = np.sum) -> Numbers:
        [every] = self._every(super().total(rows, function))
        found: Numbers = function(every, axis=0)
        return found

    def maxima(self, arrays: list[Any]) -> list[float]:
        [every] = self._every(np.asarray(super().maxima(arrays)))
        found: list[float] = every.max(axis=0).tolist()
        return found
