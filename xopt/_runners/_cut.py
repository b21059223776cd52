"""Cut leaves into tiles: where each tile lies, and what was found out about the arrays once and for all."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

NDArray = np.ndarray[Any, Any]


class Task(NamedTuple):
    """What fills one tile: a part of one leaf, or several small leaves whole."""

    leaves: list[int]
    ends: list[int]
    """Where each leaf ends in the tile."""
    low: int = 0
    """First element of the part, in C order; 0 for whole leaves."""
    block: tuple[Any, ...] | None = None
    """The part as an index of the leaf; None where a slice of flat memory will do."""

    @property
    def size(self) -> int:
        """Elements in the tile."""
        return self.ends[-1]


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
        flags = [[x.flags.c_contiguous for x in column] for column in columns.values()]
        self.plain = [all(row) for row in zip(*flags, strict=True)]
        self._flat: dict[str, list[NDArray]] = {}
        self._tasks: dict[tuple[int, int | None], list[Task]] = {}

    def flat(self, name: str) -> list[NDArray]:
        """Return a column with its plain leaves seen as flat."""
        if name not in self._flat:
            column = zip(self.columns[name], self.plain, strict=True)
            self._flat[name] = [x.reshape(-1) if ok and x.ndim != 1 else x for x, ok in column]
        return self._flat[name]

    def joined(self, columns: dict[str, list[NDArray]]) -> Leaves:
        """Return these leaves with more columns; what is known of these is kept where that is possible."""
        more = Leaves(columns)
        if not (all(more.plain) or more.plain == self.plain):
            return Leaves({**self.columns, **columns})
        more.plain = self.plain
        new = copy.copy(self)  # this one must not hold on to what is only passing through
        new.columns = {**self.columns, **columns}
        new._flat = {n: self.flat(n) for n in self.columns} | {n: more.flat(n) for n in columns}
        return new

    def tasks(self, tile: int, chunk: int | None = None) -> list[Task]:
        """Cut into tiles; consecutive small leaves share one.

        With ``chunk``, a large leaf is cut into chunks of that many elements instead, or left whole if it is not plain.
        """
        if (tile, chunk) not in self._tasks:
            self._tasks[tile, chunk] = self._cut(tile, chunk)
        return self._tasks[tile, chunk]

    def _cut(self, tile: int, chunk: int | None) -> list[Task]:
        tasks: list[Task] = []
        group, room = Task([], []), 0
        for k, (size, plain) in enumerate(zip(self.sizes, self.plain, strict=True)):
            if not size:
                continue
            if plain and size <= tile // 2:
                if size > room:
                    group, room = Task([], []), tile
                    tasks.append(group)
                group.leaves.append(k)
                group.ends.append(size + (group.ends[-1] if group.ends else 0))
                room -= size
            elif plain or chunk is None:
                tasks += [Task([k], [b - a], a, block) for a, b, block in parts(self.shapes[k], plain, chunk or tile)]
            else:
                tasks.append(Task([k], [size], 0, ()))
        return tasks
