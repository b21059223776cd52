"""Gradients to the ranks that own their parameters, added up in the order of the ranks; new parameters back to all.

What each rank owns goes window by window. In a window, large runs of elements are sent from where they lie and received
where they belong; small ones are put together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from xopt import _arrays
from xopt._arrays.layout import Layout
from xopt.distributed import Communicator
from xopt.distributed._shards import ALIGN, Shards, contiguous, flat

WINDOW = 1 << 22
"""Bytes of each shard that are sent together."""
ALONE = 1 << 18
"""Bytes from which on elements that lie together are a message of their own."""

_NOTHING = (-0.0, complex(-0.0, -0.0))
"""What changes no number that it is added to, a real and a complex one."""


class _Run(NamedTuple):
    """Elements of a parameter that lie together."""

    leaf: int
    low: int
    high: int
    at: int
    """Where they lie in the shard of their owner, in bytes."""
    start: int
    """And in its window, when that is copied."""


class _Message(NamedTuple):
    runs: list[_Run]
    start: int
    stop: int
    """From where to where it is in its window, when that is copied, in bytes."""
    alone: bool
    """Whether it is one run, which need not be copied."""


class _Round(NamedTuple):
    """What is sent and received together of new parameters."""

    send: list[list[Any]]
    receive: list[list[Any]]
    packs: list[tuple[Any, Any]]
    """Where to put what, before that."""
    unpacks: list[tuple[Any, Any]]
    """And after it."""


class Exchange:
    """What a rank sends and receives in a step.

    Parameters
    ----------
    comm
        What moves bytes.
    layout
        The parameters of the tree.
    shards
        Who owns what of them.
    window, alone
        Bytes of a window, a multiple of 16, and from which on a run is a message of its own.
    """

    def __init__(
        self, comm: Communicator, layout: Layout, shards: Shards, window: int = WINDOW, alone: int = ALONE
    ) -> None:
        self._comm, self._layout, self._shards = comm, layout, shards
        self._ranks = range(comm.size)
        self._others = [rank for rank in self._ranks if rank != comm.rank]
        self._itemsize = [d.itemsize for d in layout.dtypes]
        self._staged = {k for k in range(len(layout.leaves)) if not contiguous(layout, k)}
        runs = [shards.runs(rank, self._itemsize) for rank in self._ranks]
        self._windows = [
            [self._messages(own, low, low + window, alone) for own in runs]
            for low in range(0, max(shards.ends), window)
        ]
        """The messages of each rank, window by window."""
        self.grads = self._memory(shards.ends[comm.rank]) if layout.leaves else None
        """The gradients of what this rank owns, as bytes."""
        size = max((x.stop for every in self._windows for own in every for x in own), default=0)
        self._sent = {rank: self._memory(size) for rank in self._others}
        self._received = {rank: self._memory(size) for rank in self._others}
        self._bound: list[_Round] | None = None

    def _memory(self, count: int) -> Any:
        xp = self._layout.xp
        return xp.zeros(count, dtype=xp.uint8, **_arrays.beside(self._layout.like))

    def _messages(self, runs: list[tuple[int, int, int, int]], low: int, high: int, alone: int) -> list[_Message]:
        """Cut a window out of a shard."""
        found, small, end = list[_Message](), list[tuple[int, int, int, int]](), 0
        for leaf, first, last, at in runs:
            width = self._itemsize[leaf]
            a, b = max(first, first + (low - at) // width), min(last, first + (high - at) // width)
            if a >= b:
                continue
            run = leaf, a, b, at + (a - first) * width
            if (b - a) * width < alone:
                small.append(run)
            else:
                found.append(_Message([_Run(*run, end)], end, end + (b - a) * width, alone=True))
                end = _aligned(found[-1].stop)
        start, packed = end, list[_Run]()
        for run in small:
            packed.append(_Run(*run, end))
            end = _aligned(end + (run[2] - run[1]) * self._itemsize[run[0]])
        return [*found, _Message(packed, start, end, alone=False)] if packed else found

    def _typed(self, memory: Any, at: int, leaf: int, count: int) -> Any:
        """Return bytes as numbers of the dtype of a parameter."""
        return memory[at : at + count * self._itemsize[leaf]].view(self._layout.raw_dtypes[leaf])

    def own(self, leaf: int, at: int, count: int) -> Any:
        """Return the gradient of a unit of this rank, which `reduce` writes."""
        return self._typed(self.grads, at, leaf, count)

    def reduce(self, parts: Sequence[list[Any]], mean: bool) -> None:
        """Add up the gradients of all ranks, of each its parts in turn; None adds nothing, not even to -0.0."""
        layout, xp = self._layout, self._layout.xp
        flats: list[list[Any]] = [[None if g is None else flat(layout, g) for g in part] for part in parts]
        divisor = len(self._ranks) * len(parts) if mean else 1
        last = len(flats) - 1
        with layout.library.no_grad():
            for window in self._windows:
                rows: dict[tuple[int, int], Any] = {}
                for j, part in enumerate(flats):
                    send: list[list[Any]] = [[] for _ in self._ranks]
                    receive: list[list[Any]] = [[] for _ in self._ranks]
                    for rank in self._others:
                        send[rank] = [self._gradient(rank, x, part) for x in window[rank]]
                        receive[rank] = [self._received[rank][x.start : x.stop] for x in window[self._comm.rank]]
                    if self._others:
                        self._comm.exchange(send, receive)
                    for rank, row in self._received.items():
                        rows[rank, j] = row if j == last else xp.asarray(row, copy=True)
                for run in (run for x in window[self._comm.rank] for run in x.runs):
                    count, each = run.high - run.low, list[Any]()
                    for rank in self._ranks:
                        for j, part in enumerate(flats):
                            g = part[run.leaf]
                            if rank != self._comm.rank:
                                each.append(self._typed(rows[rank, j], run.start, run.leaf, count))
                            elif g is not None:
                                each.append(g[run.low : run.high])
                    self._add(self._typed(self.grads, run.at, run.leaf, count), each, run.leaf, divisor)

    def _gradient(self, rank: int, message: _Message, part: list[Any]) -> Any:
        """Return as bytes what a rank is sent of a gradient."""
        if message.alone:
            [run] = message.runs
            if part[run.leaf] is not None:
                return part[run.leaf][run.low : run.high].view(self._layout.xp.uint8)
        memory = self._sent[rank]
        for leaf, low, high, _, start in message.runs:
            g = part[leaf]
            own = _NOTHING[self._layout.dtypes[leaf].complex] if g is None else g[low:high]
            self._typed(memory, start, leaf, high - low)[...] = own
        return memory[message.start : message.stop]

    def _add(self, out: Any, rows: list[Any], leaf: int, divisor: int) -> None:
        """Add from left to right; halves in float32, rounded once."""
        xp, half = self._layout.xp, self._layout.dtypes[leaf].half
        if not rows:
            return  # nobody has a gradient
        total = xp.zeros_like(out, dtype=xp.float32) if half else out
        rows = [_arrays.cast(xp, row, xp.float32) for row in rows] if half else rows
        if len(rows) == 1:
            total[...] = rows[0]
        else:
            xp.add(rows[0], rows[1], out=total)
        for row in rows[2:]:
            total += row
        if divisor > 1:
            total /= divisor
        if half:
            out[...] = _arrays.cast(xp, total, out.dtype)

    def spread(self, leaves: list[Any]) -> None:
        """Give all ranks what each has in its own parts of these arrays, which are like the parameters."""
        layout, staged = self._layout, list[tuple[int, Any]]()
        if not self._others:
            return
        with layout.library.no_grad():
            rounds = self._bound if leaves is layout.leaves else None
            if rounds is None:
                staged = [(k, layout.library.c_order(layout.xp, x)) for k, x in enumerate(leaves) if k in self._staged]
                flats = [flat(layout, x) for x in {**dict(enumerate(leaves)), **dict(staged)}.values()]
                rounds = [self._round(flats, window) for window in self._windows]
            for x in rounds:
                for place, own in x.packs:
                    place[...] = own
                self._comm.exchange(x.send, x.receive)
                for place, other in x.unpacks:
                    place[...] = other
            for k, x in staged:
                layout.library.detached(leaves[k])[...] = x
        if leaves is layout.leaves and not staged:
            self._bound = rounds

    def forget(self) -> None:
        """Drop what is known of where the parameters lie."""
        self._bound = None

    def _round(self, flats: list[Any], window: list[list[_Message]]) -> _Round:
        """Find what is sent and received together of arrays like the parameters, of which these are the elements."""
        me = self._comm.rank
        buffers, packs, unpacks = list[list[Any]](), list[tuple[Any, Any]](), list[tuple[Any, Any]]()
        for rank, messages in enumerate(window):
            memory = self._sent[self._others[0]] if rank == me else self._received[rank]
            buffers.append([])
            for message in messages:
                if message.alone:
                    [run] = message.runs
                    buffers[-1].append(flats[run.leaf][run.low : run.high].view(self._layout.xp.uint8))
                    continue
                buffers[-1].append(memory[message.start : message.stop])
                for leaf, low, high, _, start in message.runs:
                    place, own = self._typed(memory, start, leaf, high - low), flats[leaf][low:high]
                    if rank == me:
                        packs.append((place, own))
                    else:
                        unpacks.append((own, place))
        send = [[] if rank == me else buffers[me] for rank in self._ranks]
        return _Round(send, [[] if rank == me else own for rank, own in enumerate(buffers)], packs, unpacks)


def _aligned(x: int) -> int:
    return -(-x // ALIGN) * ALIGN
