"""Many fits in turns: those that are done are put aside, and of data that are given by row, some rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from xopt import _arrays
from xopt._arrays.transfer import to_host
from xopt.solvers.fits._fit import CALLBACK, INTERRUPTED, Fit, Found, Rules
from xopt.solvers.fits._linear import Array
from xopt.solvers.fits._residuals import Columns, Residuals

_BLOCK = 1 << 18
"""Residuals that are fitted together on a host, so that they stay in the cache."""
_FEWER = 0.7
"""The part of the lanes that still run, from which down the others are put aside."""
_SMALL = 32
"""Lanes of which it is not worth it."""
_LAST = {"f": 0}
Rows = np.ndarray[Any, Any]


class Batch:
    """Fits of all lanes. What is done is kept in parts, of each of which the lanes are known by number."""

    def __init__(self, residuals: Residuals, columns: Columns, rules: Rules, start: Array) -> None:
        self.residuals, self._columns, self._rules, self._start = residuals, columns, rules, start
        self._parts: list[tuple[Rows, Found]] = []
        self._fit: Fit | None = None
        self._rows = np.arange(residuals.count)
        self.nfev = self.njev = 0

    def run(self, call: Callable[[Any], bool] | None) -> int | None:
        """Run all fits to their end; return what stopped them before."""
        own, xp, all_of = self.residuals, self.residuals.xp, self.residuals.count
        blocks = [self._rows]
        if call is None and own.given and own.layout.library.host:
            size = self._size()
            blocks = [self._rows[a : a + size] for a in range(0, all_of, size)]
        for rows in blocks:
            own.select(rows)
            self._rows = rows
            self._fit = fit = Fit(own, self._columns, self._rules, xp.take(self._start, self._index(rows), axis=0))
            fit.begin()
            while fit.iterate():
                if call is not None and call(self):
                    return CALLBACK
                self._put_aside(fit)
            self._end(fit)
        return None

    def _index(self, rows: Rows) -> Array:
        return self.residuals.xp.asarray(rows.astype(np.int32), **_arrays.beside(self._start))

    def _size(self) -> int:
        """Return how many fits are a block: what one has of residuals is found out from the first one."""
        own = self.residuals
        own.select(np.arange(1))
        many: int = own(self._start[:1, ...]).shape[-1]
        return max(_SMALL, _BLOCK // many)

    def _put_aside(self, fit: Fit) -> None:
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

    def _end(self, fit: Fit, status: int | None = None) -> None:
        self._parts.append((self._rows, fit.found(status)))
        self.nfev, self.njev, self._fit = max(self.nfev, fit.nfev), max(self.njev, fit.njev), None

    def found(self, status: int | None = None) -> Found:
        """Return what all lanes have found, in order; ``status`` is that of those that had to stop."""
        if self._fit is not None and self._fit.begun:
            self._end(self._fit, status)
        known = np.concatenate([rows for rows, _ in self._parts]) if self._parts else np.arange(0)
        missing = np.setdiff1d(np.arange(self.residuals.count), known)
        if len(missing):
            self._parts.append((missing, self._nothing(missing)))
            known = np.concatenate([known, missing])
        xp = self.residuals.xp
        self.residuals.select(np.arange(self.residuals.count))
        order = self._index(np.argsort(known, kind="stable"))
        parts = [part for _, part in self._parts]
        columns = {n: [getattr(part, n) for part in parts] for n in Found._fields}
        joined = {n: x[0] if len(x) == 1 else xp.concat(x, axis=_LAST.get(n, -1)) for n, x in columns.items()}
        if (known == np.arange(len(known))).all():
            return Found(**joined)
        return _taken(xp, Found(**joined), order)

    def _nothing(self, rows: Rows) -> Found:
        """Return what is known of fits that have not begun."""
        own, xp, near = self.residuals, self.residuals.xp, _arrays.beside(self._start)
        x = xp.permute_dims(xp.take(self._start, self._index(rows), axis=0), (1, 0))
        nan = xp.full_like(x[0, ...], math.nan)
        none = xp.zeros(len(rows), dtype=xp.int32, **near)
        many = xp.full((len(rows), own.m or 1), math.nan, dtype=own.dtype, **near)
        whole = xp.full((own.n, own.n, len(rows)), math.inf, dtype=own.dtype, **near)
        return Found(x, nan, many, xp.full_like(x, math.nan), nan, none + INTERRUPTED, none, whole)

    @property
    def begun(self) -> bool:
        """Whether anything is known."""
        return bool(self._parts) or (self._fit is not None and self._fit.begun)

    def now(self, name: str) -> Array:
        """Return x, cost or nit of all lanes as they are."""
        assert self._fit is not None
        xp, rows = self.residuals.xp, np.concatenate([*(rows for rows, _ in self._parts), self._rows])
        every = xp.concat([*(getattr(part, name) for _, part in self._parts), getattr(self._fit, name)], axis=-1)
        return xp.take(every, self._index(np.argsort(rows, kind="stable")), axis=-1)


def _taken(xp: Any, found: Found, rows: Array) -> Found:
    return Found(**{n: xp.take(x, rows, axis=_LAST.get(n, -1)) for n, x in found._asdict().items()})
