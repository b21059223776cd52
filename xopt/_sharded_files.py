"""Checkpoints of many processes: the very file that one process would write, one array at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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
from xopt.checkpoint._snapshot import Place, Run, Source
from xopt.distributed import RankError
from xopt.distributed._ranks import Ranks
from xopt.distributed._shards import Shards, Unit
from xopt.rule import FunctionalOptimizer

NDArray = np.ndarray[Any, Any]
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

    All methods but `place` are calls of all ranks.

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

    def run(self, rule: FunctionalOptimizer, carry: Mapping[str, Any]) -> Run:
        """Return a run of one process. The arrays of its state have shapes and dtypes, and no memory."""
        state, layout = self._executor.state, self._layout
        slots = {n: [self._hollow(n, k) for k in range(len(layout.leaves))] for n in state.live}
        return Run(rule, layout, self._executor, slots, self.carry(carry))

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

    def tensors(self, run: Run, params: bool, announce: Callable[[int], Any]) -> dict[str, Tensor]:
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

    def serve(self, run: Run) -> str:
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
        dtype, me = _arrays.dtype_name(place.array), self._ranks.rank
        pieces = self._pieces(place)
        own = [self._own(place.slot, i) for rank, i, _, _ in pieces if rank == me]
        if me:
            if own:
                self._ranks.send(np.concatenate(own), 0)
            return None
        whole = np.empty(math.prod(place.array.shape) * TABLE[dtype].itemsize, np.uint8)
        for rank in range(self._ranks.size):
            spans = [(low, high) for r, _, low, high in pieces if r == rank]
            if not spans:
                continue
            many = sum(high - low for low, high in spans)
            got = np.concatenate(own) if rank == 0 else np.empty(many, np.uint8)
            if rank and many:
                self._ranks.receive(got, rank)
            at = 0
            for low, high in spans:
                whole[low:high] = got[at : at + high - low]
                at += high - low
        return whole.view(TABLE[dtype].bits).reshape(place.array.shape)

    def _own(self, slot: str, i: int) -> NDArray:
        return np.frombuffer(memory(to_host(self._slots[slot][i])), np.uint8)

    def _pieces(self, place: Place) -> list[tuple[int, int, int, int]]:
        """Return who has an array of the state: a rank, the number of the unit there, and from which byte to which."""
        width, size = TABLE[_arrays.dtype_name(place.array)].itemsize, math.prod(place.array.shape)
        found = []
        for rank, units in enumerate(self._shards.of):
            for i, u in enumerate(units):
                if u.leaf == place.k:
                    low, high = self._span(u, place.slot, size)
                    found += [(rank, i, low * width, high * width)] if high > low else []
        return found

    def _span(self, u: Unit, slot: str, size: int) -> tuple[int, int]:
        if u.stop - u.start == self._layout.sizes[u.leaf]:
            return 0, size
        return (u.start // BLOCK, -(-u.stop // BLOCK)) if is_scale(slot) else (u.start, u.stop)

    def broadcast(self, place: Place, found: NDArray | None) -> NDArray:
        """Return on all ranks an array that rank 0 has."""
        dtype, shape = _arrays.dtype_name(place.array), tuple(place.array.shape)
        whole = np.empty(math.prod(shape) * TABLE[dtype].itemsize, np.uint8)
        if found is not None:
            whole[:] = memory(found)
        if len(whole):
            self._ranks.comm.broadcast(whole, 0)
        return whole.view(TABLE[dtype].bits).reshape(shape)

    def scatter(self, place: Place, found: NDArray | None) -> None:
        """Write what rank 0 has of a parameter, or of an array of the state, where it belongs on all ranks."""
        if not place.slot:
            self.write(place, self.broadcast(place, found))
            return
        pieces, me = self._pieces(place), self._ranks.rank
        by_rank = [[(i, low, high) for r, i, low, high in pieces if r == rank] for rank in range(self._ranks.size)]
        if found is not None:
            data = np.frombuffer(memory(found), np.uint8)
            for rank, own in enumerate(by_rank):
                if rank and own:
                    self._ranks.send(np.concatenate([data[low:high] for _, low, high in own]), rank)
            self.write(place, found)
            return
        got = np.empty(sum(high - low for _, low, high in by_rank[me]), np.uint8)
        if len(got):
            self._ranks.receive(got, 0)
        at = 0
        for i, low, high in by_rank[me]:
            self._into(self._slots[place.slot][i], _arrays.dtype_name(place.array), got[at : at + high - low])
            at += high - low

    def write(self, place: Place, found: NDArray) -> None:
        """Write an array that this rank has into its own places."""
        dtype = _arrays.dtype_name(place.array)
        data = np.frombuffer(memory(found), np.uint8)
        if not place.slot:
            self._into(place.array, dtype, data)
            return
        for rank, i, low, high in self._pieces(place):
            if rank == self._ranks.rank:
                self._into(self._slots[place.slot][i], dtype, data[low:high])

    def _into(self, x: Any, dtype: str, data: NDArray) -> None:
        host = np.array(data).view(TABLE[dtype].bits).reshape(tuple(x.shape))
        self._layout.library.overwrite([x], [from_host(host, dtype, x)])


def converted(source: Source, name: str, place: Place) -> NDArray:
    """Return an array of a source in the dtype of the place where it goes, as bits of NumPy."""
    return to_host(_restore.taken(source, name, place.array))


def _dtype(x: Any) -> str | None:
    return None if isinstance(x, np.ndarray) else _arrays.dtype_name(x)
