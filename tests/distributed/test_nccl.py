"""NCCL through CuPy, with a stand-in that records the calls: tensors of torch on the CPU for arrays on a GPU."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.bits import bits
from support.ranks import Rank, World

import xopt

pytestmark = pytest.mark.needs("torch")


class Nccl(types.ModuleType):
    """``cupy.cuda.nccl``: what is sent in a group goes when it ends."""

    def __init__(self) -> None:
        super().__init__("cupy.cuda.nccl")
        self.calls: list[str] = []

    def groupStart(self) -> None:
        self.calls.append("groupStart")

    def groupEnd(self) -> None:
        self.calls.append("groupEnd")


class Backend:
    """``cupyx.distributed.NCCLBackend``, as far as it is used; groups end where the next one of this rank begins."""

    def __init__(self, comm: Rank, seen: list[tuple[str, int, int]]) -> None:
        self.rank, self._comm, self._seen = comm.rank, comm, seen

    def send(self, array: Any, peer: int, stream: Any = None) -> None:
        assert type(array).__module__ == "torch"
        self._seen.append(("send", peer, len(array)))
        world = self._comm._world
        world.letters[self.rank, peer].append(array.clone())
        world.mail[self.rank, peer].release()

    def recv(self, out_array: Any, peer: int, stream: Any = None) -> None:
        assert type(out_array).__module__ == "torch"
        self._seen.append(("recv", peer, len(out_array)))
        self._comm._world.letters.setdefault(("wanted", self.rank), []).append((out_array, peer))  # type: ignore


class Ended(Nccl):
    """Receive what is wanted when the group of a thread ends."""

    def __init__(self, backends: dict[int, Any]) -> None:
        super().__init__()
        self.backends = backends

    def groupEnd(self) -> None:
        super().groupEnd()
        import threading

        backend = self.backends[threading.get_ident()]
        world = backend._comm._world
        for out, peer in world.letters.pop(("wanted", backend.rank), []):
            assert world.mail[peer, backend.rank].acquire(timeout=60)
            out[...] = world.letters[peer, backend.rank].popleft()


def test_steps_and_checkpoints(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The bits of one process; arrays go through NCCL alone, words and files through the other communicator."""
    torch = importlib.import_module("torch")
    import threading

    backends: dict[int, Any] = {}
    nccl = Ended(backends)
    monkeypatch.setitem(sys.modules, "cupy", types.ModuleType("cupy"))
    monkeypatch.setitem(sys.modules, "cupy.cuda", types.ModuleType("cupy.cuda"))
    monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", nccl)
    rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam(lr=0.1))

    def tree(key: int) -> Any:
        rng = np.random.default_rng(key)
        return {"w": torch.from_numpy(rng.standard_normal((70, 1300))), "b": torch.from_numpy(rng.standard_normal(5))}

    def run(comm: Any, seen: Any, path: Path) -> Any:
        opt = xopt.Optimizer(tree(0), rule, comm=comm)
        for t in range(1, 4):
            g = tree(t)
            opt.step(g if comm is None or comm[1].rank == t % 3 else dict.fromkeys(g))
        opt.load(opt.save(path, fsync=False))
        return bits(opt.params)

    def job(comm: Rank) -> Any:
        seen: list[tuple[str, int, int]] = []
        backends[threading.get_ident()] = backend = Backend(comm, seen)
        found = run((backend, comm), seen, tmp_path / "ranks")
        return found, sum(n for what, _, n in seen if what == "send"), comm.sent

    want, size = run(None, [], tmp_path / "one"), 8 * (70 * 1300 + 5)
    for found, sent, words in World(3).run(job):
        assert found == want
        assert 3 * size <= sent < 3 * 1.8 * size
        assert words < 2.1 * size  # of which most is the file
    assert (tmp_path / "ranks").read_bytes() == (tmp_path / "one").read_bytes()
    assert nccl.calls.count("groupStart") == nccl.calls.count("groupEnd") > 0


def test_what_is_no_pair() -> None:
    def job(comm: Rank) -> Any:
        for bad, text in (((3, comm), "must be an NCCLBackend"), ((comm, comm, comm), "comm: tuple, but")):
            with pytest.raises(TypeError, match=text):
                xopt.Optimizer(np.ones(3), xopt.SGD(), comm=bad)
        other = Backend(comm, [])
        other.rank = 7
        with pytest.raises(ValueError, match="rank 7 of NCCL is rank"):
            xopt.Optimizer(np.ones(3), xopt.SGD(), comm=(other, comm))

    assert World(2).run(job) == [None, None]
