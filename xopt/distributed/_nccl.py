"""NCCL through CuPy, for arrays on GPUs, with another communicator for words, so that no word waits for a GPU."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from xopt.distributed import Communicator


class Pair:
    """A ``cupyx.distributed.NCCLBackend``, and a communicator of the same ranks.

    Parameters
    ----------
    backend
        What sends and receives arrays of CuPy, in the order of the current stream.
    words
        What moves arrays of NumPy: agreements, sums and checkpoints.
    """

    def __init__(self, backend: Any, words: Communicator) -> None:
        for name in ("send", "recv", "rank"):
            if not hasattr(backend, name):
                raise TypeError(
                    f"comm: {type(backend).__name__}, but the first of a pair must be an NCCLBackend of CuPy"
                )
        if backend.rank != words.rank:
            raise ValueError(f"comm: rank {backend.rank} of NCCL is rank {words.rank} of the other communicator")
        self._backend, self._words = backend, words
        self._nccl: Any = importlib.import_module("cupy.cuda.nccl")
        self.rank, self.size = words.rank, words.size

    def exchange(self, send: list[list[Any]], receive: list[list[Any]]) -> None:
        if any(isinstance(x, np.ndarray) for lists in (send, receive) for own in lists for x in own):
            self._words.exchange(send, receive)
            return
        self._nccl.groupStart()
        for rank in range(self.size):
            for x in receive[rank]:
                self._backend.recv(x, rank)
            for x in send[rank]:
                self._backend.send(x, rank)
        self._nccl.groupEnd()

    def allgather(self, send: Any, receive: Any) -> None:
        self._words.allgather(send, receive)

    def largest(self, numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return self._words.largest(numbers)

    def broadcast(self, buffer: Any, root: int) -> None:
        self._words.broadcast(buffer, root)
