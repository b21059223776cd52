"""Checkpoints of many processes: the very file that one process would write, one array at a time."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from xopt import _arrays
from xopt._arrays.dtypes import TABLE
from xopt._arrays.layout import Layout
from xopt._arrays.transfer import from_host, to_host
from xopt._engine.executor import Executor
from xopt._engine.program.quantize import BLOCK, is_scale
from xopt.checkpoint import _restore as _restore
from xopt.checkpoint import _snapshot as _snapshot
from xopt.checkpoint._safetensors import Tensor, memory
from xopt.checkpoint._snapshot import Place, Source, TrainingRun
from xopt.distributed import RankError
from xopt.distributed._ranks import Ranks
from xopt.distributed._shards import Shards, Unit
from xopt.rule import FunctionalOptimizer

NDArray = np.ndarray[Any, Any]
Part: TypeAlias = tuple[int, int, int]
"""Of an array what a unit has: the number of the unit on its rank, and from which byte to which."""
_END, _FAILED = -1, -2


class _Stored(NamedTuple):
    dtype: str
    shape: tuple[int, ...]


class Header:
    """What rank 0 says of a source: all but the arrays."""

    def __init__(self, text: str) -> None:
        said = json.loads(text)
        self.where: str = said["where"]
        self.meta: dict[str, Any] = said["meta"]
        self.tensors = {n: _Stored(dtype, tuple(shape)) for n, (dtype, shape) in said["tensors"].items()}

    @staticmethod
    def said(source: Source) -> str:
        """Return such a text."""
        tensors = {n: (x.dtype, x.shape) for n, x in source.tensors.items()}
        return json.dumps({"where": source.where, "meta": source.meta, "tensors": tensors})


class Assembly:
    """The state of all ranks as that of one process.

    `carry`, `gather`, `broadcast` and `scatter` are calls of all ranks. In these nothing is sent before all have the
    memory for it.

    Parameters
    ----------
    ranks, shards
        Who has what, and how they talk.
    executor
        The chains of the whole tree.
    slots
        The state of this rank, by unit.
    """

    def __init__(self, ranks: Ranks, shards: Shards, executor: Executor, slots: dict[str, list[Any]]) -> None:
        self._ranks, self._shards, self._executor, self._slots = ranks, shards, executor, slots
        self._layout: Layout = executor.layout
        self._first = {u.leaf: (u.owner, i) for us in shards.of for i, u in reversed([*enumerate(us)]) if u.start == 0}
        """The rank and the number there of the first unit of each parameter."""

    def run(self, rule: FunctionalOptimizer, carry: Mapping[str, Any]) -> TrainingRun:
        """Return a run of one process. The arrays of its state have shapes and dtypes, and no memory."""
        state, layout = self._executor.state, self._layout
        slots = {n: [self._hollow(n, k) for k in range(len(layout.leaves))] for n in state.live}
        return TrainingRun(rule, layout, self._executor, slots, self.carry(carry))

    def _hollow(self, name: str, k: int) -> Any:
        state, layout = self._executor.state, self._layout
        if not state.has(name, k):
            return None
        xp, dtype = layout.xp, _arrays.dtype_of(layout.library, layout.xp, state.slot_dtype(name, k))
        return xp.broadcast_to(xp.zeros((), dtype=dtype, **_arrays.beside(layout.leaves[k])), state.slot_shape(name, k))

    def carry(self, carry: Mapping[str, Any]) -> dict[str, Any]:
        """Return the scalars that live from step to step, of all parameters."""
        made = self._executor.new_carry()
        for n, (spec, _) in self._executor.state.carried.items():
            if spec.scope != "leaf":
                made[n] = carry[n]
                continue
            own = np.zeros(self._shards.most)
            x = carry[n] if isinstance(carry[n], np.ndarray) else to_host(carry[n])
            own[: len(x)] = x
            every, found = self._ranks.every(own), to_host(made[n]).astype(np.float64)
            for k, at in self._first.items():
                found[k] = every[at]
            made[n] = self._executor.scalars.carried(spec, found.tolist(), _dtype(made[n]))
        return made

    def tensors(self, run: TrainingRun, params: bool, announce: Callable[[int], Any]) -> dict[str, Tensor]:
        """Return all arrays that rank 0 saves; for those of the state it calls the others first."""
        places = run.places(params)
        numbers = {name: i for i, name in enumerate(run.places(False))}

        def get(name: str, place: Place) -> NDArray:
            if not place.slot:
                return to_host(place.array)
            announce(numbers[name])
            found = self.gather(place)
            assert found is not None
            return found

        def tensor(name: str, place: Place) -> Tensor:
            return Tensor(_arrays.dtype_name(place.array), tuple(place.array.shape), lambda: get(name, place))

        return {name: tensor(name, place) for name, place in places.items()}

    def serve(self, run: TrainingRun) -> str:
        """Send what rank 0 asks for until it is done, and return what it says then."""
        places = [*run.places(False).values()]
        while (number := self.word(0)) >= 0:
            self.gather(places[number])
        said = self._ranks.text("", 0)
        if number == _FAILED:
            raise RankError(0, said)
        return said

    def word(self, number: int) -> int:
        """Return a number that rank 0 has."""
        found = np.asarray([number], np.int64)
        self._ranks.comm.broadcast(found.view(np.uint8), 0)
        return int(found[0])

    def end(self, said: str, failed: bool = False) -> None:
        """Tell the others, on rank 0, that all is done, or has failed."""
        self.word(_FAILED if failed else _END)
        self._ranks.text(said, 0)

    def gather(self, place: Place) -> NDArray | None:
        """Return an array of the state on rank 0."""
        with self._ranks:
            parts, dtype = self._parts(place), _arrays.dtype_name(place.array)
            own = [self._own(place.slot, i) for i, _, _ in parts[self._ranks.rank]]
            sent = np.concatenate(own) if own else _room(0)
            whole = None if self._ranks.rank else _room(math.prod(place.array.shape) * TABLE[dtype].itemsize)
            others = [] if self._ranks.rank else [_room(_bytes(part)) for part in parts[1:]]
        self._ranks.agree()
        if whole is None:
            if len(sent):
                self._ranks.send(sent, 0)
            return None
        for rank, (part, got) in enumerate(zip(parts, [sent, *others], strict=True)):
            if rank and len(got):
                self._ranks.receive(got, rank)
            for (_, low, high), piece in zip(part, _split(got, part), strict=True):
                whole[low:high] = piece
        return whole.view(TABLE[dtype].bits).reshape(place.array.shape)

    def _own(self, slot: str, i: int) -> NDArray:
        return np.frombuffer(memory(to_host(self._slots[slot][i])), np.uint8)

    def _parts(self, place: Place) -> list[list[Part]]:
        """Return of each rank what it has of an array of the state."""
        width, size = TABLE[_arrays.dtype_name(place.array)].itemsize, math.prod(place.array.shape)
        spans = [
            [(i, *self._span(u, place.slot, size)) for i, u in enumerate(us) if u.leaf == place.k]
            for us in self._shards.of
        ]
        return [[(i, low * width, high * width) for i, low, high in own if high > low] for own in spans]

    def _span(self, u: Unit, slot: str, size: int) -> tuple[int, int]:
        if u.stop - u.start == self._layout.sizes[u.leaf]:
            return 0, size
        return (u.start // BLOCK, -(-u.stop // BLOCK)) if is_scale(slot) else (u.start, u.stop)

    def broadcast(self, place: Place, take: Callable[[], NDArray] | None) -> NDArray:
        """Return on all ranks an array that rank 0 has, which ``take`` returns there."""
        with self._ranks:
            dtype, shape = _arrays.dtype_name(place.array), tuple(place.array.shape)
            whole = _room(math.prod(shape) * TABLE[dtype].itemsize)
            if take is not None:
                whole[:] = memory(take())
        self._ranks.agree()
        if len(whole):
            self._ranks.comm.broadcast(whole, 0)
        return whole.view(TABLE[dtype].bits).reshape(shape)

    def everywhere(self, place: Place) -> NDArray:
        """Return an array of the state on all ranks."""
        found = self.gather(place)
        return self.broadcast(place, None if found is None else lambda: found)

    def scatter(self, place: Place, take: Callable[[], NDArray] | None) -> None:
        """Write what rank 0 has of a parameter, or of an array of the state, where it belongs on all ranks."""
        if not place.slot:
            self.write(place, self.broadcast(place, take))
            return
        with self._ranks:
            parts, sent = self._parts(place), list[NDArray]()
            if take is not None:
                found = take()
                data = np.frombuffer(memory(found), np.uint8)
                sent = [np.concatenate([data[a:b] for _, a, b in part]) if part else _room(0) for part in parts[1:]]
            own = parts[self._ranks.rank]
            got = _room(0 if take is not None else _bytes(own))
        self._ranks.agree()
        for rank, x in enumerate(sent, 1):
            if len(x):
                self._ranks.send(x, rank)
        if take is not None:
            self.write(place, found)
            return
        if len(got):
            self._ranks.receive(got, 0)
        for (i, _, _), piece in zip(own, _split(got, own), strict=True):
            self._into(self._slots[place.slot][i], _arrays.dtype_name(place.array), piece)

    def write(self, place: Place, found: NDArray) -> None:
        """Write an array that this rank has into its own places."""
        dtype = _arrays.dtype_name(place.array)
        data = np.frombuffer(memory(found), np.uint8)
        if not place.slot:
            self._into(place.array, dtype, data)
            return
        for i, low, high in self._parts(place)[self._ranks.rank]:
            self._into(self._slots[place.slot][i], dtype, data[low:high])

    def _into(self, x: Any, dtype: str, data: NDArray) -> None:
        host = np.array(data).view(TABLE[dtype].bits).reshape(tuple(x.shape))
        self._layout.library.overwrite([x], [from_host(host, dtype, x)])


def _room(size: int) -> NDArray:
    return np.empty(size, np.uint8)


def _bytes(part: list[Part]) -> int:
    return sum(high - low for _, low, high in part)


def _split(x: NDArray, part: list[Part]) -> list[NDArray]:
    """Return of bytes that lie end to end those of each piece."""
    ends = [*itertools.accumulate(high - low for _, low, high in part)]
    return [x[end - (high - low) : end] for end, (_, low, high) in zip(ends, part, strict=True)]


def converted(source: Source, name: str, place: Place) -> NDArray:
    """Return an array of a source in the dtype of the place where it goes, as bits of NumPy."""
    return to_host(_restore.taken(source, name, place.array))


def _dtype(x: Any) -> str | None:
    return None if isinstance(x, np.ndarray) else _arrays.dtype_name(x)
