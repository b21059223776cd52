"""Ranks as threads of one process: what MPI does, with a barrier."""

from __future__ import annotations

import threading
from collections import deque
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
        self.letters: dict[tuple[int, int], deque[Any]] = {way: deque() for way in self.mail}

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

    def exchange(self, send: list[list[Any]], receive: list[list[Any]]) -> None:
        """Letters wait in the memory of who sends, until they are read."""
        world = self._world
        for to, own in enumerate(send):
            for x in own:
                self.sent += len(x)
                world.letters[self.rank, to].append(x)
                world.mail[self.rank, to].release()
        for source, own in enumerate(receive):
            for x in own:
                way = source, self.rank
                assert world.mail[way].acquire(timeout=_SECONDS), "nobody sends"
                letter = world.letters[way].popleft()
                assert len(letter) == len(x)
                x[...] = letter
                world.read[way].release()
        for to, own in enumerate(send):
            for _ in own:
                assert world.read[self.rank, to].acquire(timeout=_SECONDS), "nobody receives"

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
