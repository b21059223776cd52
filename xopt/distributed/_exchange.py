"""Gradients to the ranks that own their parameters, added up in the order of the ranks; new parameters back to all.

What a rank owns is cut into messages: large runs of elements are sent from where they lie and received where they
belong, small ones are put together. The n-th messages of all ranks are sent in one go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from xopt import _arrays
from xopt._arrays.layout import Layout
from xopt.distributed import Communicator
from xopt.distributed._shards import ALIGN, Shards, contiguous, flat

MESSAGE = 1 << 22
"""Bytes of the largest message."""
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
    """And where in their message."""


class _Message(NamedTuple):
    runs: list[_Run]
    size: int
    """In bytes."""
    alone: bool
    """Whether it is one run, which need not be copied."""


class _Round(NamedTuple):
    """What is sent and received together of new parameters."""

    send: list[Any]
    receive: list[Any]
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
    largest, alone
        Bytes of the largest message, and from which on a run is one of its own.
    """

    def __init__(
        self, comm: Communicator, layout: Layout, shards: Shards, largest: int = MESSAGE, alone: int = ALONE
    ) -> None:
        self._comm, self._layout, self._shards = comm, layout, shards
        self._ranks = range(comm.size)
        self._others = [rank for rank in self._ranks if rank != comm.rank]
        self._itemsize = [d.itemsize for d in layout.dtypes]
        every = [[*self._messages(rank, largest, alone)] for rank in self._ranks]
        self._staged = {k for k in range(len(layout.leaves)) if not contiguous(layout, k)}
        count = max(map(len, every))
        none = _Message([], 0, alone=False)
        self._rounds = [[own[n] if n < len(own) else none for own in every] for n in range(count)]
        """The n-th messages of all ranks."""
        self._own = [row[comm.rank] for row in self._rounds]
        self.grads = self._memory(shards.ends[comm.rank]) if layout.leaves else None
        """The gradients of what this rank owns, as bytes."""
        packed = max((x.size for own in every for x in own if not x.alone), default=0)
        received = max((x.size for own in every for x in own), default=0)
        self._sent = {rank: self._memory(packed) for rank in self._others}
        self._received = {rank: self._memory(received) for rank in self._others}
        self._bound: list[_Round] | None = None

    def _memory(self, count: int) -> Any:
        xp = self._layout.xp
        return xp.zeros(count, dtype=xp.uint8, **_arrays.beside(self._layout.like))

    def _messages(self, rank: int, largest: int, alone: int) -> Iterator[_Message]:
        """Cut what a rank owns."""
        small: list[_Run] = []
        size = 0
        for leaf, low, high, at in self._shards.runs(rank, self._itemsize):
            width = self._itemsize[leaf]
            if (high - low) * width >= alone:
                step = largest // width
                for first in range(low, high, step):
                    last = min(first + step, high)
                    run = _Run(leaf, first, last, at + (first - low) * width, 0)
                    yield _Message([run], (last - first) * width, alone=True)
                continue
            many = -(-(high - low) * width // ALIGN) * ALIGN
            if small and size + many > largest:
                yield _Message(small, size, alone=False)
                small, size = [], 0
            small.append(_Run(leaf, low, high, at, size))
            size += many
        if small:
            yield _Message(small, size, alone=False)

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
            for messages, own in zip(self._rounds, self._own, strict=True):
                rows: dict[tuple[int, int], Any] = {}
                for j, part in enumerate(flats):
                    send, receive = [None] * len(self._ranks), [None] * len(self._ranks)
                    for rank in self._others:
                        send[rank] = self._gradient(rank, messages[rank], part)
                        receive[rank] = self._received[rank][: own.size] if own.size else None
                    if self._others:
                        self._comm.exchange(send, receive)
                    for rank in self._others:
                        row = receive[rank]
                        rows[rank, j] = row if j == last or row is None else xp.asarray(row, copy=True)
                for run in own.runs:
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
        if not message.size:
            return None
        if message.alone:
            [run] = message.runs
            g = part[run.leaf]
            if g is not None:
                return g[run.low : run.high].view(self._layout.xp.uint8)
            xp, nothing = self._layout.xp, _NOTHING[self._layout.dtypes[run.leaf].complex]
            made = self._typed(self._memory(message.size), 0, run.leaf, run.high - run.low)
            made[...] = nothing
            return made.view(xp.uint8)
        memory = self._sent[rank]
        for leaf, low, high, _, start in message.runs:
            g = part[leaf]
            own = _NOTHING[self._layout.dtypes[leaf].complex] if g is None else g[low:high]
            self._typed(memory, start, leaf, high - low)[...] = own
        return memory[: message.size]

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
                rounds = [self._round(flats, messages) for messages in self._rounds]
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

    def _round(self, flats: list[Any], messages: list[_Message]) -> _Round:
        """Find what is sent and received together of arrays like the parameters, of which these are the elements."""
        me = self._comm.rank
        send: list[Any] = [None] * len(self._ranks)
        receive, packs, unpacks = send.copy(), list[tuple[Any, Any]](), list[tuple[Any, Any]]()
        for rank, message in enumerate(messages):
            if not message.size:
                continue
            if message.alone:
                [run] = message.runs
                memory = flats[run.leaf][run.low : run.high].view(self._layout.xp.uint8)
            else:
                memory = self._sent[self._others[0]] if rank == me else self._received[rank]
                memory = memory[: message.size]
                for leaf, low, high, _, start in message.runs:
                    pair = self._typed(memory, start, leaf, high - low), flats[leaf][low:high]
                    (packs if rank == me else unpacks).append(pair if rank == me else pair[::-1])
            if rank == me:
                send = [None if other == me else memory for other in self._ranks]
            else:
                receive[rank] = memory
        return _Round(send, receive, packs, unpacks)
