"""Sharded optimizer state on two ranks, beside what people do today: MPI, and torch.distributed over gloo.

``python -m benchmarks.distributed`` starts the ranks, measures and prints; ``--check`` fails where a figure misses its
target. Each contender takes a step in turn, in rounds, after a barrier; a step takes as long as its slowest rank, and
what is reported is the median. Memory is that of a process of its own for each contender: the highest resident set
above that with parameters and gradients.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.problems import MANY, resnet50

Shapes = tuple[tuple[int, ...], ...]
TREES: dict[str, tuple[str, Shapes]] = {
    "vector": ("one vector of 20 M", ((20_000_000,),)),
    "resnet50": ("ResNet-50", tuple(resnet50())),
    "object": ("an object in 3 arrays", ((4096, 2048), (4096, 2048), (512, 512))),
    "many": ("1,000 × 1,000", MANY),
}
ROUNDS = 15
BUCKET = 25 * 2**20
RANKS = 2
Step = Callable[[], Any]


class Target(NamedTuple):
    """A ratio of times, or of bytes, that must not be more than a number."""

    title: str
    engine: str
    tree: str
    one: str
    other: str
    limit: float
    key: str = "seconds"


TARGETS = [
    *(Target("MPI: of in-place Allreduce and a replicated step", "mpi", t, "sharded", "allreduce", 1.1)
      for t in ("vector", "resnet50", "object", "many")),
    *(Target("MPI: of buckets of 25 MiB and a replicated step", "mpi", t, "sharded", "buckets", 0.8)
      for t in ("vector", "resnet50", "object", "many")),
    *(Target("gloo: of torch's ZeroRedundancyOptimizer", "gloo", t, "sharded", "zero", limit)
      for t, limit in (("vector", 0.8), ("resnet50", 0.8), ("many", 0.07))),
    *(Target("peak above parameters and gradients: of replicated", "mpi", t, "sharded", "buckets", 0.75, "peak")
      for t in ("vector", "resnet50")),
]  # fmt: skip


def arrays(tree: str, scale: float = 1.0) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return [np.asarray(scale * rng.standard_normal(shape), np.float32) for shape in TREES[tree][1]]


def replicated_mpi(comm: Any, tree: str, buckets: bool) -> tuple[Step, Callable[[], int]]:
    """Add the gradients up on all ranks, then take the whole step on each."""
    import xopt

    params, grads = arrays(tree), arrays(tree, 0.1)
    opt = xopt.Optimizer(params, xopt.Adam(lr=1e-3))
    in_place = __import__("mpi4py.MPI").MPI.IN_PLACE
    groups: list[list[Any]] = [[]]
    for g in grads:
        if sum(x.nbytes for x in groups[-1]) + g.nbytes > BUCKET and groups[-1]:
            groups.append([])
        groups[-1].append(g)
    buffers = [np.empty(sum(x.size for x in group), np.float32) for group in groups] if buckets else []

    def step() -> None:
        if not buckets:
            for g in grads:
                comm.Allreduce(in_place, g)
        for buffer, group in zip(buffers, groups if buckets else [], strict=True):
            np.concatenate([x.reshape(-1) for x in group], out=buffer)
            comm.Allreduce(in_place, buffer)
            at = 0
            for x in group:
                x.reshape(-1)[...] = buffer[at : at + x.size]
                at += x.size
        opt.step(grads)  # they double from step to step, some thirty times

    return step, lambda: 2 * sum(x.nbytes for x in params)


def sharded(comm: Any, tree: str, array: Callable[[Any], Any] = lambda x: x) -> tuple[Step, Callable[[], int]]:
    import xopt

    params, grads = [array(x) for x in arrays(tree)], [array(x) for x in arrays(tree, 0.1)]
    opt: Any = xopt.Optimizer(params, xopt.Adam(lr=1e-3), comm=comm)

    return lambda: opt.step(grads), lambda: sum(x.nbytes for column in opt._slots.values() for x in column)


def replicated_gloo(tree: str, how: str) -> tuple[Step, Callable[[], int]]:
    """Add up with all_reduce, then torch's fused Adam, sharded by torch or not."""
    import torch
    import torch.distributed as dist
    from torch.distributed.optim import ZeroRedundancyOptimizer

    params = [torch.nn.Parameter(torch.from_numpy(x)) for x in arrays(tree)]
    for p, g in zip(params, arrays(tree, 0.1), strict=True):
        p.grad = torch.from_numpy(g)
    opt: Any
    if how == "zero":
        opt = ZeroRedundancyOptimizer(params, torch.optim.Adam, lr=1e-3, fused=True)
    else:
        opt = torch.optim.Adam(params, lr=1e-3, fused=True)
    groups: list[list[Any]] = [[]]
    for p in params:
        if sum(4 * x.numel() for x in groups[-1]) + 4 * p.numel() > BUCKET and groups[-1]:
            groups.append([])
        groups[-1].append(p.grad)
    buffers = [torch.empty(sum(x.numel() for x in group)) for group in groups]

    def step() -> None:
        for buffer, group in zip(buffers, groups, strict=True):  # as DistributedDataParallel does
            torch.cat([x.reshape(-1) for x in group], out=buffer)
            dist.all_reduce(buffer)
            for x, y in zip(group, buffer.split([x.numel() for x in group]), strict=True):
                x.copy_(y.view_as(x))
        opt.step()

    def state() -> int:
        held = getattr(opt, "optim", opt).state
        return sum(x.nbytes for own in held.values() for x in own.values() if x.numel() > 1)

    return step, state


def contenders(engine: str, comm: Any, tree: str) -> dict[str, Callable[[], tuple[Step, Callable[[], int]]]]:
    if engine == "mpi":
        return {
            "sharded": lambda: sharded(comm, tree),
            "allreduce": lambda: replicated_mpi(comm, tree, buckets=False),
            "buckets": lambda: replicated_mpi(comm, tree, buckets=True),
        }
    import torch

    return {
        "sharded": lambda: sharded(comm, tree, torch.from_numpy),
        "fused": lambda: replicated_gloo(tree, "fused"),
        "zero": lambda: replicated_gloo(tree, "zero"),
    }


def peak() -> int:
    """Return the highest resident set so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measured(engine: str, comm: Any, barrier: Step, tree: str, only: str | None) -> dict[str, dict[str, float]]:
    """Return what this rank sees: seconds of each round, and bytes."""
    chosen = {n: x for n, x in contenders(engine, comm, tree).items() if only in (None, n)}
    if only is not None:
        kept = arrays(tree), arrays(tree, 0.1)
        before = peak()
        del kept
    made = {n: make() for n, make in chosen.items()}
    for step, _ in made.values():
        step()
        step()
    found: dict[str, Any] = {n: {"seconds": [], "state": state()} for n, (_, state) in made.items()}
    if only is not None:
        found[only]["peak"] = peak() - before
        return found
    names = [*made]
    for number in range(ROUNDS):
        for n in names[number % len(names) :] + names[: number % len(names)]:
            made[n][0]()  # the caches are those of another one
            barrier()
            begin = time.perf_counter()
            made[n][0]()
            barrier()
            found[n]["seconds"].append(time.perf_counter() - begin)
    return found


def pinned(rank: int) -> None:
    """Keep a rank on a core of its own, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})


def rank_of_mpi(tree: str, only: str | None) -> None:
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    pinned(comm.rank)
    rows = comm.gather(measured("mpi", comm, comm.Barrier, tree, only))
    if rows is not None:
        print(json.dumps(rows))


def rank_of_gloo(tree: str, only: str | None, folder: str, rank: int) -> None:
    import torch.distributed as dist

    pinned(rank)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=RANKS)
    rows: list[Any] = [None] * RANKS
    dist.all_gather_object(rows, measured("gloo", dist.group.WORLD, dist.barrier, tree, only))
    if rank == 0:
        print(json.dumps(rows))
    dist.destroy_process_group()


def run(engine: str, tree: str, only: str | None = None) -> dict[str, dict[str, float]]:
    """Start the ranks, and return what they found: medians of the slowest rank, the most bytes."""
    me = [sys.executable, "-m", "benchmarks.distributed", "--rank-of", engine, "--tree", tree]
    me += ["--only", only] if only else []
    env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if engine == "mpi":
        beside = Path(sys.executable).with_name("mpiexec")
        command = [str(beside) if beside.exists() else "mpiexec", "-n", str(RANKS), *me]
        text = subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout
    else:
        with tempfile.TemporaryDirectory() as folder:
            ranks = [
                subprocess.Popen([*me, "--meet", folder, "--rank", str(k)], stdout=subprocess.PIPE, text=True, env=env)
                for k in range(RANKS)
            ]
            text = "".join(x.communicate()[0] for x in ranks)
    rows = json.loads(text.splitlines()[-1])
    found: dict[str, dict[str, float]] = {}
    for n in rows[0]:
        found[n] = {"state": max(row[n]["state"] for row in rows)}
        if only is None:
            slowest = [max(x) for x in zip(*(row[n]["seconds"] for row in rows), strict=True)]
            found[n]["seconds"] = statistics.median(slowest)
        else:
            found[n]["peak"] = max(row[n]["peak"] for row in rows)
    return found


def main() -> int:
    """Measure, print, and return whether a figure missed its target."""
    parser = argparse.ArgumentParser(prog="benchmarks.distributed", description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where a figure misses its target")
    parser.add_argument("--trees", nargs="+", default=[*TREES], choices=[*TREES])
    parser.add_argument("--engines", nargs="+", default=["mpi", "gloo"], choices=["mpi", "gloo"])
    for name in ("--rank-of", "--tree", "--only", "--meet", "--rank"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank_of == "mpi":
        rank_of_mpi(given.tree, given.only)
        return 0
    if given.rank_of == "gloo":
        rank_of_gloo(given.tree, given.only, given.meet, int(given.rank))
        return 0
    cells: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for engine in given.engines:
        for tree in given.trees:
            cells[engine, tree] = run(engine, tree)
            for n in cells[engine, tree]:
                cells[engine, tree][n] |= {"peak": run(engine, tree, n)[n]["peak"]}
                x = cells[engine, tree][n]
                total = 4 * sum(math.prod(shape) for shape in TREES[tree][1])
                line = f"{engine:5}{TREES[tree][0]:24}{n:10}{1e3 * x['seconds']:9.2f} ms"
                line += f"  state {x['state'] / total:.3f} x parameters  peak {x['peak'] / 2**20:7.0f} MiB"
                print(line, flush=True)
    missed = 0
    for t in TARGETS:
        if (t.engine, t.tree) in cells:
            cell = cells[t.engine, t.tree]
            ratio = cell[t.one][t.key] / cell[t.other][t.key]
            missed += ratio > t.limit
            end = "" if ratio <= t.limit else "  MISSED"
            print(f"{t.title}, {TREES[t.tree][0]}: {ratio:.2f}, target ≤ {t.limit}{end}")
    return int(given.check and missed > 0)


if __name__ == "__main__":
    sys.exit(main())
