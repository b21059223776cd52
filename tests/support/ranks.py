"""Ranks as threads of one process: what MPI does, with a barrier."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

_SECONDS = 60.0


class World:
    """So many ranks. Each call of all is a box that everybody puts something into, between two barriers."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size)
        self.box: list[Any] = [None] * size
        self.mail = {(a, b): threading.Semaphore(0) for a in range(size) for b in range(size)}
        self.read = {(a, b): threading.Semaphore(0) for a in range(size) for b in range(size)}
        self.letters: dict[tuple[int, int], Any] = {}

    def run(self, job: Callable[[Rank], Any]) -> list[Any]:
        """Return what each rank returns, or the exception that it raised."""
        found: list[Any] = [None] * self.size

        def work(rank: int) -> None:
            try:
                found[rank] = job(Rank(self, rank))
            except BaseException as error:
                found[rank] = error

        threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * _SECONDS)
            assert not thread.is_alive(), "a rank hangs"
        return found


class Rank:
    """One of them, as :class:`xopt.distributed.Communicator` has it. It counts what it sends."""

    def __init__(self, world: World, rank: int) -> None:
        self._world, self.rank, self.size = world, rank, world.size
        self.sent = 0

    def _swap(self, x: Any, take: Callable[[list[Any]], None]) -> None:
        world = self._world
        world.box[self.rank] = x
        world.barrier.wait(_SECONDS)
        take(world.box)
        world.barrier.wait(_SECONDS)

    def alltoall(self, send: Any, receive: Any) -> None:
        n = len(send) // self.size
        self.sent += n * (self.size - 1)

        def take(box: list[Any]) -> None:
            assert {len(x) for x in box} == {n * self.size}
            for rank, x in enumerate(box):
                receive[rank * n : (rank + 1) * n] = x[self.rank * n : (self.rank + 1) * n]

        self._swap(send, take)

    def allgather(self, send: Any, receive: Any) -> None:
        n = len(send)
        self.sent += n * (self.size - 1)

        def take(box: list[Any]) -> None:
            assert {len(x) for x in box} == {n}
            for rank, x in enumerate(box):
                receive[rank * n : (rank + 1) * n] = x

        self._swap(send, take)

    def largest(self, numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.sent += numbers.nbytes
        found = numbers.copy()
        self._swap(numbers, lambda box: np.max(np.stack(box), axis=0, out=found))
        return found

    def broadcast(self, buffer: Any, root: int) -> None:
        def take(box: list[Any]) -> None:
            assert len(box[root]) == len(buffer)
            if self.rank != root:
                buffer[...] = box[root]

        self._swap(buffer, take)

    def send(self, buffer: Any, to: int) -> None:
        way = self.rank, to
        self._world.letters[way] = buffer
        self._world.mail[way].release()
        assert self._world.read[way].acquire(timeout=_SECONDS), "nobody receives"

    def receive(self, buffer: Any, source: int) -> None:
        way = source, self.rank
        assert self._world.mail[way].acquire(timeout=_SECONDS), "nobody sends"
        assert len(self._world.letters[way]) == len(buffer)
        buffer[...] = self._world.letters.pop(way)
        self._world.read[way].release()
