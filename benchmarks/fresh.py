"""What only a fresh process can tell: how long the first step takes, and how much memory a step needs.

``python -m benchmarks.fresh '<JSON of an Order>'`` is such a process; it prints JSON.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import contenders, problems
from benchmarks.libraries import NumPy


@dataclass(frozen=True)
class Order:
    """What a process is to do.

    Parameters
    ----------
    what
        ``"start"``: time the first steps. ``"memory"``: find the peak.
    device, contender, workload, rule, dtype, threads
        As everywhere.
    """

    what: str
    device: str
    contender: str
    workload: str
    rule: str
    dtype: str
    threads: int


def run(order: Order, cache: str) -> dict[str, Any]:
    """Carry out an order in a new process; its compiled code is kept in the folder ``cache``.

    Returns
    -------
    dict
        What `start` or `memory` found, or ``{"skipped": reason}``.
    """
    env = {**os.environ, "CUPY_CACHE_DIR": cache}
    command = [sys.executable, "-m", "benchmarks.fresh", json.dumps(asdict(order))]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"skipped": "failed: " + (done.stderr.strip().splitlines() or ["no message"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def starts(order: Order, again: bool, repeats: int) -> dict[str, Any]:
    """Return the medians of ``repeats`` processes with an empty cache, and if ``again`` of as many that follow them."""
    rows: dict[str, list[dict[str, float]]] = {"first process": [], "second process": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for which in list(rows)[: 1 + again]:
                found = run(order, cache)
                if "skipped" in found:
                    return found
                rows[which].append(found)
    return {
        which: {name: float(f"{statistics.median(row[name] for row in found):.4g}") for name in found[0]}
        for which, found in rows.items()
        if found
    }


# --- in the process


def start(order: Order) -> dict[str, float]:
    """Time the imports, making the optimizer, and the first two steps, in seconds."""
    entry = contenders.contenders(order.device, order.threads)[order.contender]
    problem = _problem(order)
    times = [time.perf_counter()]
    for name in entry.kind.modules:
        problems.need(name)
    times.append(time.perf_counter())
    contender = entry(problem)
    contender.wait()
    times.append(time.perf_counter())
    grads = contender.adopt(problem.grads)
    for _ in range(2):
        contender.hand(grads)
        begun = time.perf_counter()
        contender.step()
        contender.wait()
        times.append(times[-1] + time.perf_counter() - begun)
    names = ("import", "make", "first", "second")
    return {name: b - a for name, (a, b) in zip(names, itertools.pairwise(times), strict=True)}


def memory(order: Order) -> dict[str, float]:
    """Find the peak memory of steps beyond parameters, gradients and state, in bytes.

    ``"step"``: on the CPU, by how much the resident memory of the process was higher in the second and third step than
    after the first. On a GPU, what the process took from the device in three steps, pools included.
    ``"traced"``, where all memory comes from NumPy: the peak of all that was allocated since before the optimizer was
    made. It has what an optimizer keeps from step to step, too.
    """
    entry = contenders.contenders(order.device, order.threads)[order.contender]
    problem = _problem(order)
    own = sum(p.nbytes + g.nbytes for p, g in zip(problem.params, problem.grads, strict=True))
    own += problem.elements * problem.rule.state * problem.rule.state_itemsize(order.dtype)
    small = entry(problems.problem(problem.rule, ((8,),), order.dtype, order.threads))
    small.hand(small.adopt(small.problem.grads))
    small.step()  # imports, and makes what a process needs once
    small.wait()
    found: dict[str, float] = {}
    before = _taken(entry.device) + own
    contender = _steps(entry, problem, 1)
    if entry.device == "cuda":
        found["step"] = _taken("cuda") - before
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the high water falls to what there is now
        before = _resident("VmRSS")
        contender.step()
        contender.step()
        found["step"] = _resident("VmHWM") - before
    if entry.library is NumPy:
        del contender
        tracemalloc.start()
        _steps(entry, problem, 3)
        found["traced"] = tracemalloc.get_traced_memory()[1] - own
    return found


def _steps(entry: contenders.Entry, problem: problems.Problem, count: int) -> contenders.Contender:
    contender = entry(problem)
    contender.hand(contender.adopt(problem.grads))
    for _ in range(count):
        contender.step()
        contender.wait()
    return contender


def _taken(device: str) -> float:
    """Return what is in use on the GPU, in bytes."""
    if device == "cpu":
        return 0.0
    free, total = problems.need("cupy").cuda.runtime.memGetInfo()
    return float(total - free)


def _resident(field: str) -> float:
    """Return a field of the process's status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024.0 * int(line.split()[1])
    raise problems.Unavailable("this system does not say what memory a process has")


def _problem(order: Order) -> problems.Problem:
    shapes = problems.workload(order.workload).shapes
    return problems.problem(problems.RULES[order.rule], shapes, order.dtype, order.threads)


def main() -> None:
    """Carry out the order on the command line."""
    order = Order(**json.loads(sys.argv[1]))
    try:
        found: dict[str, Any] = {"start": start, "memory": memory}[order.what](order)
    except (problems.Unavailable, OSError) as reason:
        found = {"skipped": str(reason)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
