"""What a rank of MPI or of gloo does in `test_engines.py`: prints what it has, once a rank."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import xopt

SHAPES = {"wide": (70, 1300), "b": (7,), "empty": (0, 3), "scalar": (), "long": (65536 + 9,), "small": (5, 4)}
RULES = {
    "adam": xopt.Adam(lr=0.1),
    "clip": xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.AdamW(lr=0.1, weight_decay=0.1), xopt.EMA(0.9)),
    "prodigy": xopt.Prodigy(),
    "lamb": xopt.LAMB(lr=0.1),
    "muon": xopt.Groups(xopt.Adam(lr=0.1), ("small", xopt.Muon(lr=0.1))),
}


def rules() -> dict[str, Any]:
    """Return some rules and compositions, or all of them."""
    if not os.environ.get("XOPT_TEST_EVERY_RULE"):
        return RULES
    import catalog

    from distributed.test_bits import COMPOSED

    return RULES | {row.rule.__name__: row.make(**row.options[-1]) for row in catalog.ROWS} | COMPOSED


def tree(key: int, array: Callable[[Any], Any], dtype: str) -> dict[str, Any]:
    rng = np.random.default_rng(key)
    return {n: array(np.asarray(rng.standard_normal(shape), dtype)) for n, shape in SHAPES.items()}


def gradient(key: int, array: Callable[[Any], Any], dtype: str, mine: bool) -> Any:
    found = tree(key, array, dtype)
    return found if mine else dict.fromkeys(found)


def job(comm: Any, folder: Path, array: Callable[[Any], Any] = lambda x: x) -> list[str]:
    """Return lines: the bits of every rule, and what the other ranks say of a wrong gradient."""
    found = []
    rank, size = (0, 1) if comm is None else comm[:2] if isinstance(comm, tuple) else (comm.rank, comm.size)
    group = comm[2] if isinstance(comm, tuple) else comm
    for name, rule in rules().items():
        dtype = "complex64" if name == "clip" else "float32"
        opt: Any = xopt.Optimizer(
            tree(0, array, dtype), rule, runner="tiled", **({} if comm is None else {"comm": group})
        )
        for t in range(1, 4):
            mine = t % size == rank
            opt.step(gradient(t, array, dtype, mine), value=1 / t if mine else 0.0)
        file = opt.save(folder / f"{name}-{rank if comm is None else 'ranks'}.safetensors", fsync=False)
        opt.load(file)
        opt.step(gradient(4, array, dtype, rank == 0), value=0.25 if rank == 0 else 0.0)
        digest = hashlib.sha256(file.read_bytes())
        for x in opt.params.values():
            digest.update(np.ascontiguousarray(np.asarray(x)).tobytes())
        found.append(f"{name} {digest.hexdigest()[:16]}")
    if size > 1:
        bad = gradient(5, array, dtype, True)
        bad["b"] = array(np.zeros(8, dtype)) if rank == 1 else bad["b"]
        try:
            opt.step(bad, value=0.0)
        except (ValueError, RuntimeError) as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


def mpi(folder: Path) -> None:
    from mpi4py import MPI

    lines = MPI.COMM_WORLD.gather(job(MPI.COMM_WORLD, folder))
    if lines is not None:
        for rank, own in enumerate(lines):
            for line in own:
                print(rank, line)


def gloo(folder: Path) -> None:
    import torch
    import torch.distributed as dist

    rank, size = int(sys.argv[3]), int(sys.argv[4])
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=size)
    for line in job((rank, size, dist.group.WORLD), folder, torch.from_numpy):
        print(rank, line)
    print("parts", local_parts(rank, size))
    dist.destroy_process_group()


def local_parts(rank: int, size: int) -> bool:
    """Whether LAMB on the local parts of DTensors, as FSDP2 has them, takes the steps of the whole."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (size,))
    rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.LAMB(lr=0.1))
    whole = {n: x for n, x in tree(0, torch.from_numpy, "float64").items() if x.ndim > 0}
    split = {n: torch.nn.Parameter(distribute_tensor(x.clone(), mesh, [Shard(0)])) for n, x in whole.items()}
    local = {n: x.to_local() for n, x in split.items()}
    one, own = xopt.Optimizer(whole, rule), xopt.Optimizer(local, rule, comm=mesh, owned=True)
    for t in range(1, 4):
        g = {n: x for n, x in tree(t, torch.from_numpy, "float64").items() if n in whole}
        one.step(g)
        own.step({n: distribute_tensor(x, mesh, [Shard(0)]).to_local() for n, x in g.items()})
    dist.barrier()
    return all(torch.allclose(x.full_tensor(), whole[n], rtol=1e-12, atol=1e-14) for n, x in split.items())


def death(folder: Path) -> None:
    """Rank 1 of gloo is killed between two steps; the others say what they get, and what the step after it is."""
    import os
    import signal

    import torch
    import torch.distributed as dist

    rank, size = int(sys.argv[3]), int(sys.argv[4])
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=size)
    params = tree(0, torch.from_numpy, "float32")
    opt = xopt.Optimizer(params, RULES["clip"], comm=dist.group.WORLD)
    opt.step(gradient(1, torch.from_numpy, "float32", rank == 0))
    before = {n: x.clone() for n, x in params.items()}
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        opt.step(gradient(2, torch.from_numpy, "float32", rank == 0))
    except RuntimeError:
        print(
            rank, "moved nothing" if all(torch.equal(x, params[n]) for n, x in before.items()) else "moved", flush=True
        )
    os._exit(0)  # a group that has lost a rank cannot be left


if __name__ == "__main__":
    {"mpi": mpi, "gloo": gloo, "death": death}[sys.argv[1]](Path(sys.argv[2]))
