"""Which rank owns what: parameters cut at chunks, in contiguous ranges of about as many bytes for each rank."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xopt._arrays.layout import Layout
from xopt._arrays.transfer import to_host
from xopt._engine.executor import Executor
from xopt._engine.program.contract import Chains
from xopt._engine.program.summation import CHUNK


class Unit(NamedTuple):
    """What one rank owns and does not share: some elements of a parameter, or all of it."""

    leaf: int
    start: int
    stop: int
    owner: int
    at: int
    """Where it lies in the shard of its owner, in bytes."""


class Span(NamedTuple):
    """Elements of a parameter that lie together, also in the shard of their owner."""

    leaf: int
    low: int
    high: int
    at: int
    """Where the first one is there, in bytes."""


class Shards:
    """The units of a tree, in the order of its parameters.

    Parameters
    ----------
    layout
        The parameters.
    cut
        The elements of each unit: a parameter, and from where to where.
    size
        How many ranks.
    owned
        Whether each rank has parameters of its own: then there is such a unit on each rank.
    """

    @classmethod
    def of_chains(cls, executor: Executor, size: int, owned: bool = False) -> Shards:
        """Return those of an optimizer.

        The programs of its chains say what may be cut where: arithmetic element by element, and sums, between any two
        chunks; components that compute with whole arrays nowhere.
        """
        layout, cut = executor.layout, list[tuple[int, int, int]]()
        for k, bucket in enumerate(executor.bucket_of):
            if bucket is not None:  # else it is frozen, and nobody steps it
                whole = owned or not bucket.plan.elementwise
                cut += _cut(layout, k, whole, CHUNK >> bucket.split)  # a complex element may be two
        return cls(layout, cut, size, owned)

    @classmethod
    def plain(cls, layout: Layout, size: int) -> Shards:
        """Return those of arrays that are added up and no more."""
        return cls(layout, [x for k in range(len(layout.leaves)) for x in _cut(layout, k, False, CHUNK)], size)

    def __init__(self, layout: Layout, cut: list[tuple[int, int, int]], size: int, owned: bool = False) -> None:
        self.size, self.owned = size, owned
        bytes_of = [d.itemsize for d in layout.dtypes]
        total, seen = sum((b - a) * bytes_of[k] for k, a, b in cut), 0
        ends, self.units = [0] * size, list[Unit]()
        for k, low, high in cut:
            if owned:
                self.units += [Unit(k, low, high, rank, 0) for rank in range(size)]
                continue
            width = bytes_of[k]
            many = (high - low) * width
            owner = min(size - 1, (2 * seen + many) * size // (2 * total)) if total else 0
            at = -(-ends[owner] // width) * width
            self.units.append(Unit(k, low, high, owner, at))
            ends[owner] = at + many
            seen += many
        self.ends = ends
        """The bytes of each shard."""
        self.of = [[u for u in self.units if u.owner == rank] for rank in range(size)]
        """The units of each rank."""
        number = {id(u): i for units in self.of for i, u in enumerate(units)}
        self.rows = (
            np.asarray([u.owner for u in self.units], np.intp),
            np.asarray([number[id(u)] for u in self.units], np.intp),
        )
        """Where what each unit has is found, if every rank sends what its own ones have: the rank, and which there."""
        self.leaves = np.asarray([u.leaf for u in self.units], np.intp)
        """Which parameter each is a part of."""
        self.most = max(map(len, self.of))

    def spans(self, rank: int, itemsize: Sequence[int]) -> list[Span]:
        """Return what a shard has, in order."""
        found = list[Span]()
        for u in self.of[rank]:
            if found:
                x = found[-1]
                if x.leaf == u.leaf and x.high == u.start and x.at + (x.high - x.low) * itemsize[u.leaf] == u.at:
                    found[-1] = x._replace(high=u.stop)
                    continue
            found.append(Span(u.leaf, u.start, u.stop, u.at))
        return [x for x in found if x.high > x.low]


def _cut(layout: Layout, k: int, whole: bool, size: int) -> list[tuple[int, int, int]]:
    """Cut a parameter into units of so many elements, unless it is to be whole, or its elements do not lie in order."""
    n = layout.sizes[k]
    step = max(n, 1) if whole or not contiguous(layout, k) else size
    return [(k, low, min(low + step, n)) for low in range(0, max(n, 1), step)]


def check_options(total: Any, owned: Any) -> None:
    """Refuse other options than there are."""
    if total not in ("sum", "mean"):
        raise ValueError(f'total={total!r}: there are "sum" and "mean"')
    if not isinstance(owned, bool):
        raise TypeError(f"owned: {owned!r}, but it must be True or False")


def check_library(layout: Layout) -> None:
    """Refuse arrays whose memory nobody can send and write."""
    if not layout.library.writes or not (layout.library.host or layout.library.cuda):
        raise TypeError(
            f"{layout.path(0)}: an array of {layout.library}, but comm= takes arrays of NumPy, CuPy and PyTorch"
        )


def forms(layout: Layout, owned: bool) -> dict[str, Any]:
    """Say what must be the same of the arrays on all ranks; of owned ones shapes may differ."""
    names = [layout.path(k) for k in range(len(layout.leaves))]
    shapes = {} if owned else {f"{n}: shape": [*shape] for n, shape in zip(names, layout.shapes, strict=True)}
    dtypes = {f"{n}: dtype": d.name for n, d in zip(names, layout.dtypes, strict=True)}
    return {"names": dict.fromkeys(names, "a parameter"), **shapes, **dtypes}


def contents(layout: Layout) -> dict[str, str]:
    """Say what is in the arrays, for comparison."""
    sums = [zlib.crc32(to_host(x).reshape(-1).view(np.uint8).data) for x in layout.leaves]
    return {layout.path(k): f"contents of CRC-32 {x:08x}" for k, x in enumerate(sums)}


def contiguous(layout: Layout, k: int) -> bool:
    """Whether a parameter is in C order, so that a part of its elements is a view."""
    return layout.library.contiguous([layout.leaves[k]])[0]


def flat(layout: Layout, x: Any) -> Any:
    """Return the elements of an array in C order: a view, where the array is in C order."""
    return layout.library.detached(x).reshape(-1)


class Parts(Layout):
    """Parameters of which each rank has its own part."""

    def refuse_local(self, k: int, name: str) -> None:
        """Refuse nothing: sums are over all ranks."""


class Shard(Layout):
    """The units of one rank as parameters of their own: views of those of the tree."""

    def __init__(self, whole: Layout, units: list[Unit]) -> None:
        super().__init__([view(whole, whole.leaves, u) for u in units])
        self._whole, self._units = whole, units
        self.library, self.xp = whole.library, whole.xp
        self.kinds = whole.kinds
        self.numbers = [u.leaf for u in units]
        self.sizes = [whole.sizes[k] for k in self.numbers]
        self.starts = [u.start for u in units]

    def path(self, k: int, name: str = "") -> str:
        """Name the parameter that unit ``k`` is a part of."""
        return self._whole.path(self.numbers[k], name)

    @property
    def like(self) -> Any:
        """A parameter of the tree, also where this rank has none."""
        return self._whole.like

    def look(self) -> None:
        """Make the views anew, of parameters that have other memory now."""
        self.leaves[:] = [view(self._whole, self._whole.leaves, u) for u in self._units]

    def chains(self, whole: Chains) -> Chains:
        """Return what each unit goes through."""
        return Chains(whole.chains, [whole.of[k] for k in self.numbers])


def view(whole: Layout, leaves: list[Any], u: Unit) -> Any:
    """Return a unit of arrays that are like the parameters."""
    x = leaves[u.leaf]
    if u.stop - u.start == math.prod(whole.shapes[u.leaf]):
        return whole.library.detached(x)
    return flat(whole, x)[u.start : u.stop]
