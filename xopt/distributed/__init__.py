"""Optimizer state sharded over processes (ZeRO-1), by MPI or torch.distributed: ``xopt.Optimizer(..., comm=comm)``."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np

__all__ = ["Communicator", "RankError"]

Bytes = Any
"""A flat array of uint8: of NumPy, or in the memory of an array of another library."""


class RankError(RuntimeError):
    """What another rank found wrong: all ranks raise, and nothing has moved on any of them.

    Attributes
    ----------
    rank
        The rank that has the error, and raises it as it is.

    Examples
    --------
    >>> import xopt
    >>> try:
    ...     raise xopt.distributed.RankError(1, 'ValueError: grads["w"]: shape (3,), but the parameter has (2,)')
    ... except xopt.distributed.RankError as error:
    ...     print(error)
    rank 1: ValueError: grads["w"]: shape (3,), but the parameter has (2,)
    """

    def __init__(self, rank: int, text: str) -> None:
        self.rank, self.text = rank, text
        super().__init__(f"rank {rank}: {text}")

    def __reduce__(self) -> tuple[Any, ...]:
        return RankError, (self.rank, self.text)


@runtime_checkable
class Communicator(Protocol):
    """What ``comm`` of :class:`xopt.Optimizer` may be beside communicators of mpi4py and process groups of PyTorch.

    These are calls that every rank makes in the same order; of ``exchange``, those that send or receive. Buffers are
    flat arrays of uint8 in contiguous memory: of NumPy, or of the library of the parameters. What one rank sends to
    another has the size that this one expects.

    Examples
    --------
    A world of one rank:

    >>> import numpy as np
    >>> import xopt
    >>> class Alone:
    ...     rank, size = 0, 1
    ...     def exchange(self, send, receive):
    ...         pass
    ...     def allgather(self, send, receive):
    ...         receive[...] = send
    ...     def largest(self, numbers):
    ...         return numbers
    ...     def broadcast(self, buffer, root):
    ...         pass
    >>> isinstance(Alone(), xopt.distributed.Communicator)
    True
    >>> opt = xopt.Optimizer(np.ones(2), xopt.SGD(lr=0.5), comm=Alone())
    >>> opt.step(np.ones(2))
    array([0.5, 0.5])
    """

    @property
    def rank(self) -> int:
        """Which process this is, from 0 on."""

    @property
    def size(self) -> int:
        """How many there are."""

    def exchange(self, send: list[list[Bytes]], receive: list[list[Bytes]]) -> None:
        """Send what the r-th list has to rank r, and receive what it sends into those of the other r-th list."""

    def allgather(self, send: Bytes, receive: Bytes) -> None:
        """Receive what rank r sends as the r-th of ``size`` equal parts."""

    def largest(self, numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the largest of each int64 over all ranks."""

    def broadcast(self, buffer: Bytes, root: int) -> None:
        """Receive what rank ``root`` has in its buffer."""
