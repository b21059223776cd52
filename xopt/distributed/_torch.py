"""Process groups of torch.distributed: gloo for the CPU, NCCL for GPUs, and others that have the same calls."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch


class Own:
    """A process group, or a device mesh of one dimension."""

    def __init__(self, group: Any) -> None:
        self._dist: Any = importlib.import_module("torch.distributed")
        group = group.get_group() if hasattr(group, "get_group") else group
        self.rank: int = self._dist.get_rank(group)
        self.size: int = self._dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("comm: this process is not in the process group")
        self._group = group
        self._ranks: list[int] = self._dist.get_process_group_ranks(group)
        alone = str(self._dist.get_backend(group)) == "nccl"
        self._device = torch.device("cuda", torch.cuda.current_device()) if alone else torch.device("cpu")
        """Where words are: a backend of GPUs alone moves no others."""

    def _of(self, x: Any) -> Any:
        return torch.from_numpy(x).to(self._device) if isinstance(x, np.ndarray) else x

    def _fill(self, x: Any, found: Any) -> None:
        """Put into an array of NumPy what was received elsewhere."""
        if isinstance(x, np.ndarray) and self._device.type != "cpu":
            x[...] = found.cpu().numpy()

    def alltoall(self, send: Any, receive: Any) -> None:
        found = self._of(receive)
        self._dist.all_to_all_single(found, self._of(send), group=self._group)
        self._fill(receive, found)

    def allgather(self, send: Any, receive: Any) -> None:
        found = self._of(receive)
        self._dist.all_gather_into_tensor(found, self._of(send), group=self._group)
        self._fill(receive, found)

    def largest(self, numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        found = torch.from_numpy(numbers.copy()).to(self._device)
        self._dist.all_reduce(found, self._dist.ReduceOp.MAX, group=self._group)
        made: np.ndarray[Any, Any] = found.cpu().numpy()
        return made

    def broadcast(self, buffer: Any, root: int) -> None:
        found = self._of(buffer)
        self._dist.broadcast(found, self._ranks[root], group=self._group)
        self._fill(buffer, found)

    def send(self, buffer: Any, to: int) -> None:
        self._dist.send(self._of(buffer), self._ranks[to], group=self._group)

    def receive(self, buffer: Any, source: int) -> None:
        found = self._of(buffer)
        self._dist.recv(found, self._ranks[source], group=self._group)
        self._fill(buffer, found)
