"""What moves bytes for a ``comm``."""

from __future__ import annotations

import importlib
from typing import Any

from xopt.distributed import Communicator
from xopt.distributed._nccl import Pair

_LIBRARIES = ("mpi4py", "torch")


def communicator(comm: Any) -> Communicator:
    """Return what moves bytes over a communicator of mpi4py, a process group of torch, or an object like them."""
    if isinstance(comm, tuple) and len(comm) == 2:
        return Pair(comm[0], communicator(comm[1]))
    if isinstance(comm, Communicator):
        return comm
    for kind in type(comm).__mro__:
        name = kind.__module__.partition(".")[0]
        if name in _LIBRARIES:
            made: Communicator = importlib.import_module(f"{__package__}._{name}").Own(comm)
            return made
    if isinstance(comm, int):
        raise TypeError(f"comm: {comm}, which new_group of torch.distributed returns where this process is not in it")
    raise TypeError(
        f"comm: {type(comm).__name__}, but it must be a communicator of mpi4py, a process group of "
        f"torch.distributed, or an object with the methods of xopt.distributed.Communicator"
    )
