"""The scalars of one step: hyperparameters, sums and what `host` makes of them, place by place along the chains."""

from __future__ import annotations

from typing import Any

import numpy as np

from xopt import _arrays
from xopt._layout import Layout
from xopt._pieces import Column, Piece, Values, Work
from xopt._plan import host_scalars, terms

H = dict[str, Any]


class Resolver:
    """What the scalars of a step are computed with.

    Parameters
    ----------
    layout
        The parameters.
    host
        Whether scalars are Python floats, which may be looked at.
    """

    def __init__(self, layout: Layout, host: bool) -> None:
        self._layout, self._host = layout, host
        self.checked = False
        """Whether gradients have been looked at already, where a link would refuse some."""

    def first(self, piece: Piece, value: float) -> Any:
        """Return the first value of a scalar that is carried from step to step; of scope "leaf", a vector."""
        layout = self._layout
        if piece.scope != "leaf":
            return layout.xp.asarray(value, dtype=self.real()) if layout.library == "jax" else value
        count = len(layout.leaves)
        if self._plain():
            return np.full(count, value)
        return _arrays.full_like(layout.xp, layout.library, self._anchor(count), self._real_name(), value)

    def real(self) -> Any:
        """Return the dtype of scalars that are arrays."""
        return getattr(self._layout.xp, self._real_name())

    def _real_name(self) -> str:
        return "float64" if any(d.real == "float64" for d in self._layout.dtypes) else "float32"

    def _plain(self) -> bool:
        """Whether a vector of scalars is one of NumPy."""
        return self._host or self._layout.library == "numpy"

    def _anchor(self, count: int) -> Any:
        """Return a vector on the device of the first leaf."""
        xp, p = self._layout.xp, self._layout.leaves[0]
        place = _arrays.device(p)
        return xp.zeros(count, dtype=self.real(), **({} if place is None else {"device": place}))

    def run(
        self,
        clocks: dict[str, Any],
        given: list[list[H]],
        chains: list[tuple[Piece, ...]],
        works: list[Work],
        carry: dict[str, Any],
    ) -> tuple[list[Values], dict[str, Any]]:
        """Compute the scalars of each work; sums read the tree.

        ``clocks`` has the step for links by name, under "" for those without a clock of their own; ``given`` the
        hyperparameters, chain by chain.
        """
        values, carry = [Values([]) for _ in works], dict(carry)
        go: Any = None  # 1 or 0, if a link may hold the step back
        for piece, at, members in _places(chains, works):
            step = clocks.get(piece.place, clocks[""])
            before = {piece.slot(n): carry[piece.slot(n)] for n in piece.carry}
            if not members:
                self._alone(piece, {**piece.statics, **given[at[0]][at[1]], "t": step}, carry)
                continue
            sums = []
            for w, i in members:
                work, own = works[w], values[w]
                hs = [self.before(chains[c][i], {**given[c][i], "t": step}, work, carry) for c in work.chains]
                own.add(hs, work.which)
                if piece.reduce:
                    sums.append(work.runner.sums(work, own, i))
            for n in sums[0] if sums else ():
                if piece.scope == "tree":
                    total = self._total([works[w] for w, _ in members], [found[n] for found in sums])
                    for w, _ in members:
                        values[w].merge([{n: total}] * len(works[w].chains))
                else:
                    for (w, _), found in zip(members, sums, strict=True):
                        values[w].merge([{n: Column(found[n])}] * len(works[w].chains))
            if piece.refuses:
                self._refuse(works, members, [found[piece.refuses] for found in sums])
            if piece.host:
                for w, i in members:
                    self._after(chains[works[w].chains[0]][i], works[w], values[w], carry)
            if go is not None:
                carry |= {n: self._held(go, carry[n], x) for n, x in before.items()}
            if piece.gates:
                own_go = values[members[0][0]].pieces[-1]["go"]
                go = own_go if go is None else go * own_go
        return values, carry

    def _held(self, go: Any, new: Any, old: Any) -> Any:
        """Return a carried number after a step that may have been held back."""
        if isinstance(go, float):
            return new if go else old
        xp = self._layout.xp
        new, old = (x if hasattr(x, "dtype") else xp.full_like(go, x) for x in (new, old))
        return xp.where(go > 0.5, new, old)

    def _refuse(self, works: list[Work], members: list[tuple[int, int]], counts: list[Any]) -> None:
        """Raise for the first leaf whose count is not 0. This waits for the device."""
        if self.checked:
            return
        found: dict[int, float] = {}
        for (w, _), column in zip(members, counts, strict=True):
            try:
                numbers = column.tolist() if hasattr(column, "tolist") else map(float, column)
                found |= dict(zip(works[w].leaves, numbers, strict=True))
            except Exception as error:
                if "Concretization" not in type(error).__name__:  # JAX's, for what is being traced
                    raise
                raise TypeError(
                    'on_nonfinite="raise" must see the gradients, which it cannot under jax.jit; use "skip" there'
                ) from None
        for k in sorted(k for k, n in found.items() if n):
            raise FloatingPointError(f"{self._layout.path(k, 'grads')}: {int(found[k]):,} elements are not finite")

    def before(self, piece: Piece, h: H, work: Work, carry: dict[str, Any]) -> H:
        """Return the scalars of a piece as far as they are known before any sum."""
        h = {**piece.statics, **h}
        for n in piece.carry:  # the state may come from a step of another runner
            x = carry[piece.slot(n)]
            if piece.scope == "leaf":
                h[n] = Column(self._taken(self._vector(x), work))
            else:
                h[n] = float(x) if self._host else x
        return h

    def _after(self, piece: Piece, work: Work, own: Values, carry: dict[str, Any]) -> None:
        """Add what ``host`` computes, and keep what is carried."""
        if piece.scope == "leaf":
            plain = {n: x.vector if type(x) is Column else x for n, x in own.pieces[-1].items()}
            with np.errstate(all="ignore"):
                found = host_scalars(piece, plain)
            for n in piece.carry:
                if n in found:
                    carry[piece.slot(n)] = self._spread(self._vector(carry[piece.slot(n)]), found[n], work)
            columns = {n: Column(x) if getattr(x, "ndim", 0) else x for n, x in found.items()}
            own.merge([columns] * len(work.chains))
            return
        many = [host_scalars(piece, h) for h in own.variants()]
        for n in piece.carry:
            if n in many[0]:
                new = [h[n] for h in many]
                if self._host and any(x != new[0] and x == x for x in new):
                    raise ValueError(
                        f"{piece.slot(n)}: {new}, but what is carried from step to step is one number for all groups; "
                        f"give the hyperparameters that it depends on once"
                    )
                carry[piece.slot(n)] = self._kept(new[0])
        own.merge(many)

    def _alone(self, piece: Piece, h: H, carry: dict[str, Any]) -> None:
        """Keep what is carried in a step in which no leaf takes part."""
        if not piece.carry or not piece.host or piece.scope == "leaf":
            return
        for n in piece.carry:
            h[n] = float(carry[piece.slot(n)]) if self._host else carry[piece.slot(n)]
        found = host_scalars(piece, h | dict.fromkeys(terms(piece), 0.0))
        for n in piece.carry:
            if n in found:
                carry[piece.slot(n)] = self._kept(found[n])

    def _kept(self, x: Any) -> Any:
        layout = self._layout
        return layout.xp.asarray(x, dtype=self.real()) if layout.library == "jax" else x

    def _vector(self, x: Any) -> Any:
        """Return a carried vector as an array of the library that computes."""
        if self._plain():
            return np.asarray(x, np.float64)
        if isinstance(x, np.ndarray):
            anchor = self._anchor(0)
            place = _arrays.device(anchor)
            x = self._layout.xp.asarray(x, dtype=anchor.dtype, **({} if place is None else {"device": place}))
        return x

    def _taken(self, vector: Any, work: Work) -> Any:
        """Return the values of the leaves of a work."""
        if len(work.leaves) == len(self._layout.leaves):
            return vector
        if self._plain():
            return vector[work.leaves]
        return self._layout.xp.take(vector, self._index(vector, work.leaves), axis=0)

    def _spread(self, old: Any, new: Any, work: Work) -> Any:
        """Put the values of the leaves of a work back among those of all leaves."""
        xp = self._layout.xp
        if self._plain():
            made = old.copy()
            made[work.leaves] = new
            return made
        new = new if getattr(new, "ndim", 0) else xp.full_like(self._taken(old, work), new)
        new = _arrays.cast(xp, new, old.dtype)
        if len(work.leaves) == len(self._layout.leaves):
            return new
        order = np.arange(len(self._layout.leaves))
        order[work.leaves] = len(order) + np.arange(len(work.leaves))
        return xp.take(xp.concat([old, new]), self._index(old, order), axis=0)

    def _index(self, like: Any, places: Any) -> Any:
        place = _arrays.device(like)
        return self._layout.xp.asarray(np.asarray(places), **({} if place is None else {"device": place}))

    def _total(self, works: list[Work], columns: list[Any]) -> Any:
        """Sum over the tree, in the order of its leaves."""
        xp, total = self._layout.xp, works[0].runner.total
        if len(columns) == 1:
            return total(xp, columns[0])
        order = np.argsort([k for work in works for k in work.leaves])
        if self._host or self._layout.library == "numpy":
            return total(xp, np.concatenate(columns)[order])
        return total(xp, xp.take(xp.concat(columns), self._index(columns[0], order), axis=0))


def _places(
    chains: list[tuple[Piece, ...]], works: list[Work]
) -> list[tuple[Piece, tuple[int, int], list[tuple[int, int]]]]:
    """Return every place of the chains in order: its piece, where that is, and in which works it stands where."""
    found: dict[str, tuple[Piece, tuple[int, int], list[tuple[int, int]]]] = {}
    for c, chain in enumerate(chains):
        for i, piece in enumerate(chain):
            found.setdefault(piece.place, (piece, (c, i), []))
    for w, work in enumerate(works):
        for i, piece in enumerate(work.pieces):
            found[piece.place][2].append((w, i))
    return sorted(found.values(), key=lambda x: x[0].order)
