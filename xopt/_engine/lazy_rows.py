"""Steps of tables of which only some rows have a gradient: these are taken out, computed with, and put back.

A step does not know of it: in the place of a table and of each of its slots it is given an array of the rows that
occur. That is right for what is computed element by element, and for sums to which a row whose gradient is 0 adds
nothing; everything else is refused here, by its name.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from xopt import _arrays
from xopt._arrays.layout import Layout
from xopt._arrays.rows import SparseRows, summed
from xopt._engine.bucket import Bucket
from xopt._engine.program.plan import Plan
from xopt._engine.program.trace import COMPLEX, Program, replay


class LazyRows:
    """Parameters, gradients and state of a step, with some rows in the place of those tables that have no others.

    Parameters
    ----------
    layout
        The parameters.
    bucket_of
        For each leaf what computes it; None for one that stays as it is.
    ps, gs, slots
        Those of the step. Of the gradients some are `SparseRows`.
    owned
        Whether the step writes into parameters and state, in place of making new ones.

    Raises
    ------
    TypeError
        For a component that needs the other rows.
    """

    def __init__(
        self,
        layout: Layout,
        bucket_of: Sequence[Bucket | None],
        ps: list[Any],
        gs: list[Any],
        slots: dict[str, list[Any]],
        *,
        owned: bool,
    ) -> None:
        self._layout, self._owned = layout, owned
        self._whole = ps, slots
        self.ps, self.gs, self.slots = list(ps), list(gs), {n: list(column) for n, column in slots.items()}
        self._rows: dict[int, Any] = {}
        for k, g in enumerate(gs):
            bucket = bucket_of[k]
            if not isinstance(g, SparseRows):
                continue
            self.gs[k] = None
            if bucket is not None:
                _refuse(bucket.plan, layout.path(k, "grads"))
                with layout.library.no_grad():
                    self._take(k, g)

    def _take(self, k: int, g: SparseRows) -> None:
        xp, jits = self._layout.xp, self._layout.library.jits
        rows, self.gs[k] = summed(self._layout, k, g)
        self._rows[k] = rows
        near = xp.minimum(rows, self._layout.shapes[k][0] - 1) if jits else rows  # what is no row is read somewhere
        for column in (self.ps, *self.slots.values()):
            if column[k] is not None:
                column[k] = xp.take(_arrays.detached(column[k]), near, axis=0)

    def kept(self, buckets: list[Bucket], memory: Any) -> Any:
        """Return what buckets keep between steps; those with such rows begin anew."""
        return [
            type(own)({}, {}, []) if self._rows.keys() & {*bucket.leaves} else own
            for bucket, own in zip(buckets, memory, strict=bool(memory))
        ]

    def spread(self, found: tuple[list[Any], dict[str, list[Any]], Any], change: bool) -> tuple[Any, Any, Any]:
        """Put the rows that a step made into the tables that they were taken from, or into new ones."""
        ps, slots, carry = found
        old_ps, old_slots = self._whole
        with self._layout.library.no_grad():
            for k in self._rows:
                ps[k] = self._put(k, old_ps[k], ps[k], zero=change)
                for n, column in slots.items():
                    if column[k] is not None:
                        column[k] = self._put(k, old_slots[n][k], column[k])
        return (old_ps, old_slots, carry) if self._owned else (ps, slots, carry)

    def _put(self, k: int, table: Any, rows: Any, zero: bool = False) -> Any:
        xp, library = self._layout.xp, self._layout.library
        table = _arrays.detached(table)
        if zero:
            table = xp.zeros_like(table)
        elif not self._owned and library.writes:
            table = xp.asarray(table, copy=True)
        return library.put_rows(xp, table, self._rows[k], rows)


def _refuse(plan: Plan, path: str) -> None:
    why = _reason(plan)
    if why:
        raise TypeError(f"{path}: SparseRows with lazy=True, but {why}; use lazy=False")


@functools.lru_cache(maxsize=512)
def _reason(plan: Plan) -> str:
    """Say why a chain needs rows without a gradient; nothing if it does not."""
    whole = next((spec for spec in plan.specs if not spec.elementwise or spec.tree is not None), None)
    if whole is not None:  # of such a chain nothing is recorded
        return f"{whole.key} computes with whole arrays"
    for i, spec in enumerate(plan.specs):
        if spec.readout is not None:
            return f"{spec.key} keeps an average of all rows"
        if spec.gates and spec.slots:
            return f"{spec.key} adds gradients up, also for rows that do not occur in the last one"
        if spec.storage and plan.codes:
            return f"{spec.key} keeps state in blocks of 8 bits, which are no rows"
        if spec.storage and spec.statics.get("noisy"):
            return f"{spec.key} rounds with noise that follows the place in the array"
        if spec.reduce is not None and not _of_gradients(plan.sums[i], plan.kind):
            return f"{spec.key} sums over parameters or state, or counts rows"
    return ""


def _of_gradients(program: Program, kind: str) -> bool:
    """Whether sums are those of gradients alone, to which one that is 0 adds nothing."""
    if {*program.loads} - {"g"} or any(node.op == "noise" for node in program.nodes):
        return False
    g = np.zeros(1, np.complex128 if kind == COMPLEX else np.float64)
    scalars = [0.6 + 0.1 * j for j in range(len(program.scalars))]
    return all(not np.any(x) for x in replay(program, np, {"g": g}, scalars).values())
