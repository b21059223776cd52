"""Gradients to the ranks that own their parameters, added up in the order of the ranks; new parameters back to all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from xopt import _arrays
from xopt._arrays.layout import Layout
from xopt.distributed import Communicator
from xopt.distributed._shards import Shards, contiguous, flat

BUCKET = 1 << 22
"""Bytes for each rank that are sent together."""


class _Run(NamedTuple):
    """Elements of a parameter that lie together in a bucket."""

    leaf: int
    low: int
    high: int
    place: Any
    """Where they lie in what is sent or received, as numbers of their dtype."""


class _Sum(NamedTuple):
    """What is added up in one go."""

    out: Any
    rows: list[Any]
    """What each rank has sent."""
    half: bool


class _Bucket(NamedTuple):
    send: Any
    receive: Any
    packs: list[_Run]
    """What of its gradients a rank sends, to all ranks."""
    sums: list[_Sum]
    part: Any
    own: list[_Run]
    """What of its own parameters a rank sends, from ``part``."""
    others: list[_Run]
    """What it receives of others."""


class Exchange:
    """What a rank sends and receives in a step: all of it in buckets of equal size, over two buffers.

    Parameters
    ----------
    comm
        What moves bytes.
    layout
        The parameters of the tree.
    shards
        Who owns what of them.
    bucket
        Bytes for each rank that are sent together, a multiple of 16.
    """

    def __init__(self, comm: Communicator, layout: Layout, shards: Shards, bucket: int = BUCKET) -> None:
        self._comm, self._layout, self._shards = comm, layout, shards
        self.grads: Any = None
        """The gradients of what this rank owns, as bytes."""
        self._buckets: list[_Bucket] = []
        self._staged = [k for k in range(len(layout.leaves)) if not contiguous(layout, k)]
        length = max(shards.ends)
        if not length:
            self.grads = self._memory(0) if layout.leaves else None
            return
        width = min(bucket, length)
        self._send, self._receive = self._memory(shards.size * width), self._memory(shards.size * width)
        self.grads = self._memory(shards.ends[comm.rank])
        self._buckets = [self._bucket(low, min(low + width, length)) for low in range(0, length, width)]

    def _memory(self, count: int) -> Any:
        xp, like = self._layout.xp, self._layout.leaves[0]
        return xp.zeros(count, dtype=xp.uint8, **_arrays.beside(like))

    def _bucket(self, low: int, high: int) -> _Bucket:
        ranks, width, me = range(self._shards.size), high - low, self._comm.rank
        send, receive = (x[: self._shards.size * width] for x in (self._send, self._receive))
        itemsize = [d.itemsize for d in self._layout.dtypes]

        def runs(rank: int, memory: Any) -> list[_Run]:
            found = self._shards.runs(rank, low, high, itemsize)
            return [_Run(k, a, b, self._typed(memory, at, k, b - a)) for k, a, b, at in found]

        def row(memory: Any, rank: int) -> Any:
            return memory[rank * width : (rank + 1) * width]

        sums = []
        for k, at, end in self._spans(low, high):
            rows = [self._typed(row(receive, rank), at, k, 0, end) for rank in ranks]
            out = self._typed(self.grads, low + at, k, 0, low + end)
            sums.append(_Sum(out, rows, self._layout.dtypes[k].half))
        return _Bucket(
            send,
            receive,
            [x for rank in ranks for x in runs(rank, row(send, rank))],
            sums,
            send[:width],
            runs(me, send[:width]),
            [x for rank in ranks if rank != me for x in runs(rank, row(receive, rank))],
        )

    def _spans(self, low: int, high: int) -> list[tuple[int, int, int]]:
        """Return what this rank adds up in a bucket: a parameter of that dtype, and from which byte to which."""
        found: list[tuple[int, int, int]] = []
        dtypes = self._layout.dtypes
        for k, a, b, at in self._shards.runs(self._comm.rank, low, high, [d.itemsize for d in dtypes]):
            end = at + (b - a) * dtypes[k].itemsize
            if found and dtypes[found[-1][0]] == dtypes[k]:  # what lies between two units is added too
                found[-1] = (found[-1][0], found[-1][1], end)
            else:
                found.append((k, at, end))
        return found

    def _typed(self, memory: Any, at: int, k: int, count: int, end: int | None = None) -> Any:
        """Return bytes as numbers of the dtype of a parameter."""
        end = at + count * self._layout.dtypes[k].itemsize if end is None else end
        return memory[at:end].view(self._layout.raw_dtypes[k])

    def own(self, leaf: int, at: int, count: int) -> Any:
        """Return the gradient of a unit of this rank, which `reduce` writes."""
        return self._typed(self.grads, at, leaf, count)

    def reduce(self, parts: Sequence[list[Any]], mean: bool) -> None:
        """Add up the gradients of all ranks, of each its parts in turn; None adds nothing, not even to -0.0."""
        layout, xp = self._layout, self._layout.xp
        flats: list[list[Any]] = [[None if g is None else flat(layout, g) for g in part] for part in parts]
        many, nothing = self._shards.size * len(parts), (-0.0, complex(-0.0, -0.0))
        with layout.library.no_grad():
            for bucket in self._buckets:
                kept: list[list[Any]] = [[] for _ in bucket.sums]
                for j, part in enumerate(flats):
                    for k, a, b, place in bucket.packs:
                        g = part[k]
                        place[...] = nothing[layout.dtypes[k].complex] if g is None else g[a:b]
                    self._comm.alltoall(bucket.send, bucket.receive)
                    for rows, x in zip(kept, bucket.sums, strict=True):
                        last = j == len(flats) - 1
                        rows.append(x.rows if last else [xp.asarray(row, copy=True) for row in x.rows])
                for rows, x in zip(kept, bucket.sums, strict=True):
                    _add(xp, x, [row for each in zip(*rows, strict=True) for row in each], many if mean else 1)

    def spread(self, leaves: list[Any]) -> None:
        """Give all ranks what each has in its own parts of these arrays, which are like the parameters."""
        layout = self._layout
        flats: list[Any] = [None if k in self._staged else flat(layout, x) for k, x in enumerate(leaves)]
        with layout.library.no_grad():
            for k in self._staged:
                flats[k] = layout.library.c_order(layout.xp, leaves[k]).reshape(-1)
            for bucket in self._buckets:
                for k, a, b, place in bucket.own:
                    place[...] = flats[k][a:b]
                self._comm.allgather(bucket.part, bucket.receive)
                for k, a, b, place in bucket.others:
                    flats[k][a:b] = place
            for k in self._staged:
                layout.library.detached(leaves[k])[...] = flats[k].reshape(layout.shapes[k])


def _add(xp: Any, x: _Sum, rows: list[Any], divisor: int) -> None:
    """Add from left to right; halves in float32, rounded once."""
    if x.half:
        rows = [_arrays.cast(xp, row, xp.float32) for row in rows]
    total = xp.asarray(rows[0], copy=True) if x.half else x.out
    if not x.half:
        total[...] = rows[0]
    for row in rows[1:]:
        total += row
    if divisor > 1:
        total /= divisor
    if x.half:
        x.out[...] = _arrays.cast(xp, total, x.out.dtype)
