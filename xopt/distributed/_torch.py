"""Process groups of torch.distributed: gloo for the CPU, NCCL for GPUs, and others that have the same calls."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np


def _torch() -> Any:
    return importlib.import_module("torch")


class Own:
    """A process group, or a device mesh of one dimension."""

    def __init__(self, group: Any) -> None:
        self._torch, self._dist = _torch(), importlib.import_module("torch.distributed")
        group = group.get_group() if hasattr(group, "get_group") else group
        if not isinstance(group, self._dist.ProcessGroup):
            raise TypeError(f"comm: {type(group).__name__}, but of torch it must be a process group")
        self.rank: int = self._dist.get_rank(group)
        self.size: int = self._dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("comm: this process is not in the process group")
        self._group = group
        self._ranks: list[int] = self._dist.get_process_group_ranks(group)
        alone = str(self._dist.get_backend(group)) == "nccl"
        self._device = (
            self._torch.device("cuda", self._torch.cuda.current_device()) if alone else self._torch.device("cpu")
        )
        """Where words are: a backend of GPUs alone moves no others."""

    def _of(self, x: Any) -> Any:
        return self._torch.from_numpy(x).to(self._device) if isinstance(x, np.ndarray) else x

    def _fill(self, x: Any, found: Any) -> None:
        """Put into an array of NumPy what was received elsewhere."""
        if isinstance(x, np.ndarray) and self._device.type != "cpu":
            x[...] = found.cpu().numpy()

    def exchange(self, send: list[list[Any]], receive: list[list[Any]]) -> None:
        every = (self._dist.irecv, receive), (self._dist.isend, send)
        found = [(begin, rank, x, self._of(x)) for begin, lists in every for rank, own in enumerate(lists) for x in own]
        made = [self._dist.P2POp(begin, x, self._ranks[rank], self._group) for begin, rank, _, x in found]
        for work in self._dist.batch_isend_irecv(made) if made else []:
            work.wait()
        for begin, _, x, y in found:
            if begin is self._dist.irecv:
                self._fill(x, y)

    def allgather(self, send: Any, receive: Any) -> None:
        found = self._of(receive)
        gather = getattr(self._dist, "all_gather_single", None) or self._dist.all_gather_into_tensor  # before 2.13
        gather(found, self._of(send), group=self._group)
        self._fill(receive, found)

    def largest(self, numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        found = self._torch.from_numpy(numbers.copy()).to(self._device)
        self._dist.all_reduce(found, self._dist.ReduceOp.MAX, group=self._group)
        made: np.ndarray[Any, Any] = found.cpu().numpy()
        return made

    def broadcast(self, buffer: Any, root: int) -> None:
        found = self._of(buffer)
        self._dist.broadcast(found, self._ranks[root], group=self._group)
        self._fill(buffer, found)
