"""Communicators of mpi4py: of arrays on the CPU any MPI, of arrays on a GPU one that reads these."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from xopt import _arrays
from xopt._arrays.once import once

_LARGE = 1 << 30
"""Bytes of a message; some versions of MPI count them in 31 bits."""


@once
def _key(mpi: Any) -> int:
    key: int = mpi.Comm.Create_keyval()
    return key


def _duplicate(mpi: Any, comm: Any) -> Any:
    """Return the duplicate of a communicator, of which there is one: MPI has some thousands at most."""
    if comm.Get_attr(_key(mpi)) is None:
        comm.Set_attr(_key(mpi), comm.Dup())
    return comm.Get_attr(_key(mpi))


class Own:
    """A duplicate of a communicator, so that no message of others can be taken for one of ours."""

    def __init__(self, comm: Any) -> None:
        self._mpi: Any = importlib.import_module("mpi4py.MPI")
        if not isinstance(comm, self._mpi.Intracomm):
            raise TypeError(f"comm: {type(comm).__name__}, but it must be a communicator of one group")
        if comm == self._mpi.COMM_NULL:
            raise ValueError("comm: this process is not in the communicator")
        self._comm = _duplicate(self._mpi, comm)
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()

    def _of(self, x: Any) -> list[Any]:
        """Describe a buffer to MPI, which must not read it before it is computed."""
        library = _arrays.library(x)
        host = None if library is None else library.host_view(x)
        if library is not None and host is None:
            library.synchronize(x)
        return [x if host is None else host, self._mpi.BYTE]

    def _pieces(self, x: Any) -> Iterator[list[Any]]:
        for low in range(0, len(x), _LARGE):
            yield self._of(x[low : low + _LARGE])

    def exchange(self, send: list[list[Any]], receive: list[list[Any]]) -> None:
        begun = []
        for begin, every in ((self._comm.Irecv, receive), (self._comm.Isend, send)):
            begun += [begin(x, rank) for rank, own in enumerate(every) for y in own for x in self._pieces(y)]
        self._mpi.Request.Waitall(begun)

    def allgather(self, send: Any, receive: Any) -> None:
        self._comm.Allgather(self._of(send), self._of(receive))

    def largest(self, numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        found = np.empty_like(numbers)
        self._comm.Allreduce(numbers, found, self._mpi.MAX)
        return found

    def broadcast(self, buffer: Any, root: int) -> None:
        for x in self._pieces(buffer):
            self._comm.Bcast(x, root)
