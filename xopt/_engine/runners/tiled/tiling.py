"""Cut leaves into tiles: where each tile lies, and what was found out about the arrays once and for all."""

from __future__ import annotations

import copy
import itertools
import math
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np

NDArray = np.ndarray[Any, Any]
_contiguous = operator.attrgetter("flags.c_contiguous")


class Task:
    """What fills one tile: a part of one leaf, or several small leaves whole."""

    __slots__ = ("block", "leaves", "low", "pick", "size", "slices")

    def __init__(self, leaves: list[int], sizes: list[int], low: int = 0, block: tuple[Any, ...] | None = None) -> None:
        self.leaves = leaves
        ends = list(itertools.accumulate(sizes))
        self.size = ends[-1]
        """Elements in the tile."""
        self.slices = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        """Where each leaf lies in the tile."""
        self.pick = operator.itemgetter(*leaves)
        """Takes the leaves of this task from a column: a tuple, if there are several."""
        self.low = low
        """First element of the part, in C order; 0 for whole leaves."""
        self.block = block
        """The part as an index of the leaf; None where a slice of flat memory will do."""


def parts(shape: tuple[int, ...], plain: bool, tile: int) -> Iterator[tuple[int, int, tuple[Any, ...] | None]]:
    """Cut a leaf into tiles: flat slices of a plain one, blocks of whole rows of any other."""
    size = math.prod(shape)
    if plain:
        for low in range(0, size, tile):
            yield low, min(size, low + tile), None
    elif size and not shape:
        yield 0, 1, ()
    elif size:
        row = size // shape[0]
        step = max(1, tile // row)
        for first in range(0, shape[0], step):
            last = min(shape[0], first + step)
            if row <= tile:
                yield first * row, last * row, (slice(first, last),)
            else:
                for low, high, block in parts(shape[1:], plain, tile):
                    yield first * row + low, first * row + high, (first, *(block or ()))


def pairs(x: NDArray) -> NDArray:
    """View a complex array as one of reals with a last axis of two."""
    re = x.real
    return np.lib.stride_tricks.as_strided(re, (*re.shape, 2), (*re.strides, re.itemsize), writeable=x.flags.writeable)


class Leaves:
    """Arrays of one step or of every step: one column a name, one array a leaf."""

    def __init__(self, columns: dict[str, list[NDArray]]) -> None:
        self.columns = columns
        first = next(iter(columns.values()))
        self.shapes = [x.shape for x in first]
        self.sizes = [x.size for x in first]
        self.plain = [all(row) for row in zip(*_plain(columns), strict=True)]
        self._one_axis = all(len(shape) == 1 for shape in self.shapes)
        self._flat = {n: self._flatten(column) for n, column in columns.items()}
        self._tasks: dict[tuple[int, int, bool, bool], list[Task]] = {}

    def _flatten(self, column: list[NDArray]) -> list[NDArray]:
        if self._one_axis:
            return column
        return [x.reshape(-1) if ok and x.ndim != 1 else x for x, ok in zip(column, self.plain, strict=True)]

    def flat(self, name: str) -> list[NDArray]:
        """Return a column with its plain leaves seen as flat."""
        return self._flat[name]

    def joined(self, columns: dict[str, list[NDArray]]) -> Leaves:
        """Return these leaves with more columns; what is known of these is kept where that is possible."""
        more = _plain(columns)
        if not all(map(all, more)):
            plain = [all(row) for row in zip(self.plain, *more, strict=True)]
            if plain != self.plain:
                return Leaves({**self.columns, **columns})
        new = copy.copy(self)  # this one must not hold on to what is only passing through
        new.columns = {**self.columns, **columns}
        new._flat = self._flat | {n: self._flatten(column) for n, column in columns.items()}
        return new

    def cut_like(self, other: Leaves) -> bool:
        """Whether these have the very tasks of others, so that what is known of one holds for the other."""
        return self._tasks is other._tasks

    def tasks(self, tile: int, part: int, whole: bool = False, apart: bool = False) -> list[Task]:
        """Cut into tasks: leaves of at most half a tile share one, in their order; others are cut into parts.

        With ``whole``, a large leaf whose memory is not plain is left whole. With ``apart``, no leaves share a tile.
        """
        if (tile, part, whole, apart) not in self._tasks:
            self._tasks[tile, part, whole, apart] = self._cut(tile, part, whole, apart)
        return self._tasks[tile, part, whole, apart]

    def _cut(self, tile: int, part: int, whole: bool, apart: bool) -> list[Task]:
        tasks: list[Task] = []
        group: list[int] = []
        room = tile
        for k, (size, plain) in enumerate(zip(self.sizes, self.plain, strict=True)):
            if plain and 0 < size <= tile // 2 and not apart:
                if size > room:
                    tasks.append(Task(group, [self.sizes[i] for i in group]))
                    group, room = [], tile
                group.append(k)
                room -= size
            elif size and (plain or not whole):
                tasks += [Task([k], [b - a], a, block) for a, b, block in parts(self.shapes[k], plain, part)]
            elif size:
                tasks.append(Task([k], [size], 0, ()))
        if group:
            tasks.append(Task(group, [self.sizes[i] for i in group]))
        return tasks


def _plain(columns: dict[str, list[NDArray]]) -> list[list[bool]]:
    """Say of each array whether its memory is in C order without gaps."""
    return [list(map(_contiguous, column)) for column in columns.values()]
