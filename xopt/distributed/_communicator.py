"""What moves bytes for a ``comm``."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from xopt.distributed import Communicator
from xopt.distributed._nccl import Pair


def communicator(comm: Any) -> Communicator:
    """Return what moves bytes over a communicator of mpi4py, a process group of torch, or an object like them."""
    if isinstance(comm, tuple) and len(comm) == 2:
        return Pair(comm[0], communicator(comm[1]))
    for kind in type(comm).__mro__:
        name = f"{__package__}._{kind.__module__.partition('.')[0]}"
        if importlib.util.find_spec(name) is not None:
            made: Communicator = importlib.import_module(name).Own(comm)
            return made
    if isinstance(comm, Communicator):
        return comm
    raise TypeError(
        f"comm: {type(comm).__name__}, but it must be a communicator of mpi4py, a process group of "
        f"torch.distributed, or an object with the methods of xopt.distributed.Communicator"
    )
