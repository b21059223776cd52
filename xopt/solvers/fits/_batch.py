"""Many fits or minimizations in turns: those that are done are put aside; of data given by row some go at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from xopt import _arrays
from xopt._arrays.transfer import to_host
from xopt.solvers.fits._linear import Array
from xopt.solvers.fits._residuals import Residuals

_BLOCK = 1 << 18
"""Residuals that are fitted together on a host, so that they stay in the cache."""
_FEWER = 0.7
"""The part of the lanes that still run, from which down the others are put aside."""
_SMALL = 32
"""Lanes of which it is not worth it."""
_LAST = {"f": 0}
Rows = np.ndarray[Any, Any]


class Lane(Protocol):
    """Fits or minimizations of some lanes, which are their last axis."""

    xp: Any
    nfev: int
    njev: int
    begun: bool
    """Whether anything is known."""
    running: Array
    """Which lanes have not ended."""

    def begin(self) -> None:
        """Evaluate the starts."""

    def iterate(self) -> bool:
        """Take a step of all lanes that run; False if there is nothing left to do."""

    def keep(self, rows: Array) -> None:
        """Go on with some lanes, by their numbers here."""

    def found(self, status: int | None = None) -> Any:
        """Return a named tuple of what was found; ``status`` is that of lanes that still run."""


class Kind(NamedTuple):
    """What fits and minimizations differ in."""

    make: Callable[[Array], Lane]
    """Makes a run of starts."""
    nothing: Callable[[Array], Any]
    """Returns what ``found`` would of starts, where nothing is known of them."""
    width: Callable[[], int]
    """Returns the numbers of a lane that should stay in the cache, of the first as it is selected."""
    stopped: int
    """The status of those that a callback ends."""


class Batch:
    """Runs of all lanes. What is done is kept in parts, of each of which the lanes are known by number."""

    def __init__(self, residuals: Residuals, start: Array, kind: Kind) -> None:
        self.residuals, self._start, self._kind = residuals, start, kind
        self._parts: list[tuple[Rows, Any]] = []
        self._fit: Lane | None = None
        self._rows = np.arange(residuals.count)
        self._calls = 0, 0
        self._bar: Any = None

    def run(self, call: Callable[[Any], bool] | None, bar: Any = None) -> int | None:
        """Run all lanes to their end, which a bar counts; return what stopped them before."""
        self._bar = bar
        own, xp, all_of = self.residuals, self.residuals.xp, self.residuals.count
        blocks = [self._rows]
        if call is None and own.given and own.layout.library.host:
            own.select(np.arange(1))
            size = max(_SMALL, _BLOCK // self._kind.width())
            blocks = [self._rows[a : a + size] for a in range(0, all_of, size)]
        for rows in blocks:
            own.select(rows)
            self._rows = rows
            self._fit = fit = self._kind.make(xp.take(self._start, self._index(rows), axis=0))
            fit.begin()
            while fit.iterate():
                if call is not None and call(self):
                    return self._kind.stopped
                self._put_aside(fit)
            self._end(fit)
            self._count(len(self._rows))
        return None

    def _index(self, rows: Rows) -> Array:
        return self.residuals.xp.asarray(rows.astype(np.int32), **_arrays.beside(self._start))

    def _put_aside(self, fit: Lane) -> None:
        """Keep what has ended, if it is much, and go on with the rest."""
        lanes, xp = len(self._rows), fit.xp
        if lanes < _SMALL or self.residuals.layout.library.jits:  # which compiles every operation for each size
            return
        if int(xp.sum(xp.astype(fit.running, xp.int32))) > _FEWER * lanes:
            return
        running = np.asarray(to_host(fit.running))
        if not running.any():
            return
        done, left = np.flatnonzero(~running), np.flatnonzero(running)
        parts = [*self._parts, (self._rows[done], _taken(xp, fit.found(), self._index(done)))]
        self.residuals.select(self._rows[left])
        fit.keep(self._index(left))
        self._parts, self._rows = parts, self._rows[left]
        self._count(len(done))

    def _count(self, done: int) -> None:
        if self._bar is not None:
            self._bar.update(done)

    def _end(self, fit: Lane, status: int | None = None) -> None:
        self._parts.append((self._rows, fit.found(status)))
        self._calls, self._fit = (self.nfev, self.njev), None

    def found(self, status: int | None = None) -> Any:
        """Return what all lanes have found, in order; ``status`` is that of those that had to stop."""
        if self._fit is not None and self._fit.begun:
            self._end(self._fit, status)
        known = np.concatenate([rows for rows, _ in self._parts]) if self._parts else np.arange(0)
        missing = np.setdiff1d(np.arange(self.residuals.count), known)
        if len(missing):
            starts = self.residuals.xp.take(self._start, self._index(missing), axis=0)
            self._parts.append((missing, self._kind.nothing(starts)))
            known = np.concatenate([known, missing])
        xp = self.residuals.xp
        self.residuals.select(np.arange(self.residuals.count))
        order = self._index(np.argsort(known, kind="stable"))
        parts = [part for _, part in self._parts]
        columns = {n: [getattr(part, n) for part in parts] for n in parts[0]._fields}
        joined = {n: x[0] if len(x) == 1 else xp.concat(x, axis=_LAST.get(n, -1)) for n, x in columns.items()}
        every = type(parts[0])(**joined)
        return every if (known == np.arange(len(known))).all() else _taken(xp, every, order)

    @property
    def begun(self) -> bool:
        """Whether anything is known."""
        return bool(self._parts) or (self._fit is not None and self._fit.begun)

    @property
    def nfev(self) -> int:
        """Evaluations of the lanes that took the most."""
        return max(self._calls[0], self._fit.nfev if self._fit is not None else 0)

    @property
    def njev(self) -> int:
        """The same of derivatives."""
        return max(self._calls[1], self._fit.njev if self._fit is not None else 0)

    def now(self, name: str) -> Array:
        """Return x, cost or nit of all lanes as they are."""
        assert self._fit is not None
        xp, rows = self.residuals.xp, np.concatenate([*(rows for rows, _ in self._parts), self._rows])
        every = xp.concat([*(getattr(part, name) for _, part in self._parts), getattr(self._fit, name)], axis=-1)
        return xp.take(every, self._index(np.argsort(rows, kind="stable")), axis=-1)


def _taken(xp: Any, found: Any, rows: Array) -> Any:
    return type(found)(**{n: xp.take(x, rows, axis=_LAST.get(n, -1)) for n, x in found._asdict().items()})
