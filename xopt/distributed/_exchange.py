"""Gradients to the ranks that own their parameters, added up in the order of the ranks; new parameters back to all.

What each rank owns goes window by window. In a window, large spans of elements are sent from where they lie and
received where they belong; small ones are put together, and so are those of one dtype that lie side by side when they
are added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from xopt import _arrays
from xopt._arrays.layout import Layout
from xopt._arrays.tree import holes
from xopt.distributed import Communicator
from xopt.distributed._shards import Shards, Span, contiguous, flat

WINDOW = 1 << 22
"""Bytes of each shard that are sent together."""
ALONE = 1 << 18
"""Bytes from which on elements that lie together are a message of their own."""
_ALIGN = 16

_NOTHING = (-0.0, complex(-0.0, -0.0))
"""What changes no number that it is added to, a real and a complex one."""


NDArray = np.ndarray[Any, Any]
Copy: TypeAlias = Callable[[NDArray], None]


class _Group(NamedTuple):
    """Spans of one dtype, side by side in a shard, or one span that is sent from where it lies."""

    spans: list[Span]
    start: int
    stop: int
    """From where to where it is in its window, in bytes."""
    alone: bool
    cuts: list[tuple[int, slice | None]]
    """Of each span the parameter, and how to cut it out of its elements."""


class LocalGradient(NamedTuple):
    """A gradient without gaps: arrays in C order with their addresses, or vectors, None where there is nothing."""

    arrays: list[Any]
    where: NDArray | None = None


class _Window(NamedTuple):
    """What is sent and received together: of each rank its groups, of these the ones that are alone first."""

    groups: list[list[_Group]]
    places: list[list[Any]]
    """Of each group the numbers in what is sent to its owner; to this rank itself, where it puts its own together."""
    rows: list[list[Any]]
    """Of each group of this rank the numbers that each other one has sent."""
    outs: list[Any]
    """And where their sum goes."""
    table: NDArray
    """How to copy what is put together: offset in a gradient, address, and bytes of each span."""
    leaves: NDArray
    """The parameter of each."""


Small: TypeAlias = list[tuple[_Group, Any]]
"""Groups that are put together, and where."""


class _Round(NamedTuple):
    """What is sent and received together of new parameters."""

    send: list[list[Any]]
    receive: list[list[Any]]
    before: Callable[[], None]
    """Puts together what is sent."""
    after: Callable[[], None]
    """Puts in its place what was received."""


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
    copy
        What copies by a table of addresses, as a runner has it; None where the library does.
    window, alone
        Bytes of a window, a multiple of 16, and from which on a span is a message of its own.
    """

    def __init__(
        self,
        comm: Communicator,
        layout: Layout,
        shards: Shards,
        copy: Copy | None = None,
        window: int = WINDOW,
        alone: int = ALONE,
    ) -> None:
        self._comm, self._layout, self._copy = comm, layout, copy
        self._ranks, self._me = range(comm.size), comm.rank
        self._others = [rank for rank in self._ranks if rank != self._me]
        self._itemsize = [d.itemsize for d in layout.dtypes]
        self._stage()
        spans = [shards.spans(rank, self._itemsize) for rank in self._ranks]
        lows = range(0, max(shards.ends), window)
        found = [[self._groups(own, low, low + window, alone) for own in spans] for low in lows]
        size = max((x.stop for every in found for own in every for x in own), default=0)
        self.grads: Any = self._memory(shards.ends[self._me]) if layout.leaves else None
        """The gradients of what this rank owns, as bytes."""
        self._sent = [self._memory(size) for _ in self._ranks]
        self._received = {rank: self._memory(size) for rank in self._others}
        self._windows = [self._window(groups) for groups in found]
        self._bound: tuple[list[Any], list[_Round]] | None = None
        """Arrays, and how they are spread."""

    def _stage(self) -> None:
        """Find the parameters that are sent as a copy."""
        self._staged = {k for k in range(len(self._layout.leaves)) if not contiguous(self._layout, k)}

    def _memory(self, count: int) -> Any:
        xp, like = self._layout.xp, self._layout.like
        return xp.zeros(count, dtype=xp.uint8, **({} if like is None else _arrays.beside(like)))

    def _groups(self, spans: list[Span], low: int, high: int, alone: int) -> list[_Group]:
        """Cut a window out of a shard."""
        large, small, end = list[_Group](), list[list[Span]](), 0
        for leaf, first, last, at in spans:
            width = self._itemsize[leaf]
            a, b = max(first, first + (low - at) // width), min(last, first + (high - at) // width)
            if a >= b:
                continue
            span = Span(leaf, a, b, at + (a - first) * width)
            if (b - a) * width >= alone:
                large.append(self._group([span], end, alone=True))
                end = _aligned(large[-1].stop)
            elif small and self._joins(small[-1][-1], span):
                small[-1].append(span)
            else:
                small.append([span])
        for own in small:
            large.append(self._group(own, end, alone=False))
            end = _aligned(large[-1].stop)
        return large

    def _group(self, spans: list[Span], start: int, alone: bool) -> _Group:
        stop = start + sum((b - a) * self._itemsize[k] for k, a, b, _ in spans)
        cuts = [(k, None if b - a == self._layout.sizes[k] else slice(a, b)) for k, a, b, _ in spans]
        return _Group(spans, start, stop, alone, cuts)

    def _joins(self, a: Span, b: Span) -> bool:
        """Whether a span lies right behind another one and has its dtype."""
        dtypes = self._layout.dtypes
        return dtypes[a.leaf] == dtypes[b.leaf] and a.at + (a.high - a.low) * self._itemsize[a.leaf] == b.at

    def _window(self, groups: list[list[_Group]]) -> _Window:
        own = groups[self._me]
        rows = [[self._typed(memory, x) for x in own] for memory in self._received.values()]
        outs = [self.grads[x.spans[0].at :][: x.stop - x.start].view(self._dtype(x)) for x in own]
        places = [[self._typed(self._sent[rank], x) for x in groups[rank]] for rank in self._ranks]
        small = [
            (x, place) for own in zip(groups, places, strict=True) for x, place in zip(*own, strict=True) if not x.alone
        ]
        table = [row for x, place in small for row in self._rows(x, self._address(place))]
        leaves = [span.leaf for x, _ in small for span in x.spans]
        return _Window(groups, places, rows, outs, _table(table), np.asarray(leaves, np.intp))

    def _rows(self, group: _Group, at: int) -> Iterator[tuple[int, int, int]]:
        """Yield of each span its offset in the parameter, where it lies in a group at an address, and its bytes."""
        for leaf, low, high, _ in group.spans:
            width = self._itemsize[leaf]
            yield low * width, at, (high - low) * width
            at += (high - low) * width

    def _address(self, x: Any) -> int:
        """Return where an array lies, if that matters."""
        return 0 if self._copy is None else self._layout.library.addresses([x])[0]

    def _dtype(self, group: _Group) -> Any:
        return self._layout.raw_dtypes[group.spans[0].leaf]

    def _typed(self, memory: Any, group: _Group) -> Any:
        """Return the numbers of a group in a window."""
        return memory[group.start : group.stop].view(self._dtype(group))

    def own(self, leaf: int, at: int, count: int) -> Any:
        """Return the gradient of a unit of this rank, which `reduce` writes."""
        return self.grads[at : at + count * self._itemsize[leaf]].view(self._layout.raw_dtypes[leaf])

    def reduce(self, parts: Sequence[LocalGradient], mean: bool) -> None:
        """Add up gradients of all ranks, of each its parts in turn; None adds nothing, not even to -0.0."""
        layout, xp = self._layout, self._layout.xp
        flats = [(part, not holes(part.arrays)) for part in parts]
        divisor = len(self._ranks) * len(parts) if mean else 1
        with layout.library.no_grad():
            for window in self._windows:
                kept: list[list[list[Any]]] = [[] for _ in self._ranks]
                for part, full in flats:
                    self._copied(window, part)
                    found = [self._together(window, rank, part, full) for rank in self._ranks]
                    if self._others:
                        self._comm.exchange(*self._messages(window, found))
                    rows = iter(window.rows)
                    for rank in self._ranks:
                        kept[rank].append(found[rank] if rank == self._me else next(rows))
                    if part is not flats[-1][0]:
                        for own in kept:
                            own[-1] = [xp.asarray(x, copy=True) for x in own[-1]]
                for i, out in enumerate(window.outs):
                    half = layout.dtypes[window.groups[self._me][i].spans[0].leaf].half
                    self._add(out, [each[i] for own in kept for each in own], divisor, half)

    def vectors(self, grads: list[Any], where: NDArray | None = None) -> LocalGradient:
        """Return gradients without gaps; ``where`` they lie, if that is known and all are in C order."""
        if where is not None and self._copy is not None:
            return LocalGradient(grads, where.copy())  # whoever found it may look for the next ones
        library = self._layout.library
        if not all(library.contiguous([g for g in grads if g is not None])):
            grads = [None if g is None else library.c_order(self._layout.xp, g) for g in grads]
        return LocalGradient([None if g is None else self._vector(g) for g in grads])

    def _vector(self, g: Any) -> Any:
        return g if g.ndim == 1 else flat(self._layout, g)

    def _copied(self, window: _Window, part: LocalGradient) -> None:
        """Put a gradient together in one loop, if it is known where it lies."""
        if part.where is not None and self._copy is not None:
            table = window.table.copy()
            table[:, 0] += part.where[window.leaves]
            self._copy(table)

    def _together(self, window: _Window, rank: int, part: LocalGradient, full: bool) -> list[Any]:
        """Return of a gradient what belongs to a rank, group by group; ``full``: no part of it is None."""
        (gs, where), made = part, []
        for group, place in zip(window.groups[rank], window.places[rank], strict=True):
            made.append(place)
            if group.alone:
                [(leaf, low, high, _)] = group.spans
                if gs[leaf] is None:
                    place[...] = _NOTHING[self._layout.dtypes[leaf].complex]
                else:
                    made[-1] = self._vector(gs[leaf])[low:high]
            elif where is None:
                pieces = [gs[k] if cut is None else gs[k][cut] for k, cut in group.cuts] if full else None
                self._layout.library.concatenate(pieces or [self._piece(gs, *x) for x in group.spans], place)
        return made

    def _piece(self, part: list[Any], leaf: int, low: int, high: int, at: int) -> Any:
        """Return some elements of a gradient."""
        g = part[leaf]
        if g is not None:
            return g[low:high]
        xp, p = self._layout.xp, self._layout.leaves[leaf]
        made = xp.zeros(high - low, dtype=p.dtype, **_arrays.beside(p))
        made[...] = _NOTHING[self._layout.dtypes[leaf].complex]
        return made

    def _messages(self, window: _Window, found: list[list[Any]]) -> tuple[list[list[Any]], list[list[Any]]]:
        """Return what is sent to each rank, and what is received from it."""
        send: list[list[Any]] = [[] for _ in self._ranks]
        receive: list[list[Any]] = [[] for _ in self._ranks]
        own = window.groups[self._me]
        for rank in self._others:
            alone = zip(window.groups[rank], found[rank], strict=True)
            send[rank] = [x.view(self._layout.xp.uint8) for group, x in alone if group.alone]
            send[rank] += _packed(window.groups[rank], self._sent[rank])
            memory = self._received[rank]
            receive[rank] = [memory[x.start : x.stop] for x in own if x.alone] + _packed(own, memory)
        return send, receive

    def _add(self, out: Any, rows: list[Any], divisor: int, half: bool) -> None:
        """Add from left to right; halves in float32, rounded once."""
        xp = self._layout.xp
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
            rounds = self._bound[1] if self._bound is not None and self._bound[0] is leaves else None
            if rounds is None:
                staged = [(k, layout.library.c_order(layout.xp, x)) for k, x in enumerate(leaves) if k in self._staged]
                flats = [flat(layout, x) for x in {**dict(enumerate(leaves)), **dict(staged)}.values()]
                rounds = [self._round(flats, window) for window in self._windows]
            for x in rounds:
                x.before()
                self._comm.exchange(x.send, x.receive)
                x.after()
            for k, x in staged:
                layout.library.detached(leaves[k])[...] = x
        if not staged:
            self._bound = leaves, rounds

    def forget(self) -> None:
        """Drop what is known of where the parameters lie."""
        self._bound = None
        self._stage()

    def _round(self, flats: list[Any], window: _Window) -> _Round:
        """Find what is sent and received together of arrays like the parameters, of which these are the elements."""
        buffers, small = list[list[Any]](), list[list[tuple[_Group, Any]]]()
        for rank, groups in enumerate(window.groups):
            memory = self._sent[rank] if rank == self._me else self._received[rank]
            large = [x.spans[0] for x in groups if x.alone]
            buffers.append([flats[k][a:b].view(self._layout.xp.uint8) for k, a, b, _ in large])
            buffers[-1] += _packed(groups, memory)
            small.append([(x, self._typed(memory, x)) for x in groups if not x.alone])
        send = [[] if rank == self._me else buffers[self._me] for rank in self._ranks]
        receive = [[] if rank == self._me else own for rank, own in enumerate(buffers)]
        mine, others = small.pop(self._me), [x for own in small for x in own]
        moves = self._by_library if self._copy is None else self._by_address
        return _Round(send, receive, *moves(flats, mine, others))

    def _by_library(self, flats: list[Any], mine: Small, others: Small) -> tuple[Callable[[], None], ...]:
        """Return what puts spans of this rank together, and what takes those of others apart."""
        packs = [([flats[k][a:b] for k, a, b, _ in group.spans], place) for group, place in mine]
        unpacks = list[tuple[Any, Any]]()
        for group, place in others:
            at = 0
            for k, a, b, _ in group.spans:
                unpacks.append((flats[k][a:b], place[at : at + b - a]))
                at += b - a

        def before() -> None:
            for pieces, place in packs:
                self._layout.library.concatenate(pieces, place)

        def after() -> None:
            for place, received in unpacks:
                place[...] = received

        return before, after

    def _by_address(self, flats: list[Any], mine: Small, others: Small) -> tuple[Callable[[], None], ...]:
        """Return the same as two loops that are compiled."""
        assert self._copy is not None
        where, made = self._layout.library.addresses(flats), []
        for own in (mine, others):
            rows = [row for group, place in own for row in self._rows(group, self._address(place))]
            leaves = [span.leaf for group, _ in own for span in group.spans]
            made.append([(where[k] + offset, at, size) for k, (offset, at, size) in zip(leaves, rows, strict=True)])
        tables = _table(made[0]), _table([(at, to, size) for to, at, size in made[1]])
        return tuple(partial(self._copy, table) for table in tables)


def _packed(groups: list[_Group], memory: Any) -> list[Any]:
    """Return the bytes of the groups that are put together, if there are any."""
    small = [x for x in groups if not x.alone]
    return [memory[small[0].start : small[-1].stop]] if small else []


def _table(rows: list[tuple[int, int, int]]) -> NDArray:
    return np.asarray(rows, np.int64).reshape(-1, 3)


def _aligned(x: int) -> int:
    return -(-x // _ALIGN) * _ALIGN
