"""Checkpoints beside the safetensors library and torch.save, and what is promised of state with its counts.

``python -m benchmarks.checkpoints`` measures, prints, and writes docs/save_and_resume.md. State and parameters of Adam
are saved and loaded, 1 GB in all, each way one after the other in each round; the page cache is warm, and nothing waits
for the disk.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.__main__ import threads_for_all
from benchmarks.report import circumstances, publish, table
from benchmarks.solvers import beside

LEAVES = 24
Results = dict[str, Any]


def ways(folder: Path, size: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """Return what is timed, for saving and for loading."""
    import numpy as np
    import torch
    from safetensors.numpy import load_file, save_file

    import xopt

    count = size // LEAVES // 12
    params = {f"layer{k}": np.full(count, k + 1.0, np.float32) for k in range(LEAVES)}
    opt = xopt.Optimizer(params, xopt.Adam())
    opt.step(params | {n: np.ones_like(x) for n, x in params.items()})
    arrays = {f"{slot}/{n}": x for slot, column in opt.state.slots.items() for n, x in column.items()}
    arrays |= {f"params/{n}": x for n, x in params.items()}
    tensors = {n: torch.from_numpy(x) for n, x in arrays.items()}
    mine, theirs, pickled = (folder / n for n in ("xopt.safetensors", "library.safetensors", "torch.pt"))
    return {
        "save": {
            "xopt": lambda: opt.save(mine, fsync=False),
            "safetensors": lambda: save_file(arrays, theirs),
            "torch.save": lambda: torch.save(tensors, pickled),
            "xopt, synced": lambda: opt.save(mine),
        },
        "load": {
            "xopt, checksums off": lambda: opt.load(mine, checksums=False),
            "xopt": lambda: opt.load(mine),
            "safetensors": lambda: load_file(theirs),
            "torch.load": lambda: torch.load(pickled),
        },
    }


def seconds(size: int, rounds: int, where: str | None) -> Results:
    """Return the median seconds of each way, and the median of its ratio to the safetensors library in each round."""
    found: Results = {"bytes": size, "rounds": rounds}
    with tempfile.TemporaryDirectory(dir=where) as folder:
        for what, calls in ways(Path(folder), size).items():
            times: dict[str, list[float]] = {name: [] for name in calls}
            for number in range(rounds + 1):  # the first is not counted: memory is made, files are made
                for name, call in calls.items():
                    began = time.perf_counter()
                    call()
                    if number:
                        times[name].append(time.perf_counter() - began)
            found[what] = {
                name: [
                    statistics.median(own),
                    statistics.median(b / a for a, b in zip(own, times["safetensors"], strict=True)),
                ]
                for name, own in times.items()
            }
    return found


def worst_ulps(draws: int) -> list[float]:
    """Return the worst errors of p, v and m of AdamW in float32, in units of what is promised a multiple of."""
    import numpy as np

    ulps: Any = beside("tests", "support.ulps").ulps
    rng = np.random.default_rng(0)
    steps = [1, 2, 3, 10, 1000, 2**24 - 1, 2**24, 2**24 + 1, 2**31, 2**53, 10**18]
    found = [ulps(10.0 ** rng.uniform(-18, 12), int(rng.choice(steps)), seed) for seed in range(draws)]
    return [float(x) for x in np.max(found, axis=0)]


def promises(ulps: list[float], draws: int) -> list[str]:
    """Return the table of promises; the counts are those of the tests themselves."""
    names = ("faults", "checkpoint.test_broken_files", "support.resume", "optimizer.test_interrupted")
    modules: list[Any] = [beside("tests", n) for n in names]
    faults, files, resume, interrupted = modules
    runs = [f"{len(resume.rules(x))} runs on {x}" for x in ("numpy", "torch", "jax", "strict", "dask")]
    p, v, m = (f"{x:.1f}" for x in ulps)
    rows = {
        "A run that is saved and resumed in another process has the same bits, for every rule and component": (
            "nox -s tests -- -k resumes",
            ", ".join(runs),
        ),
        "A process that is killed while it saves leaves the old file or the new one": (
            "-k kill_9",
            f"{files.KILLS} killed, 0 destroyed",
        ),
        "A full disk, or a broken one, at any call to the system: the same": ("-k every_call", "each call fails once"),
        "Changed bytes of a file are noticed, and nothing is loaded": (
            "-k no_mutation",
            f"{files.MUTATIONS:,} mutations, 0 accepted",
        ),
        "Headers with right checksums and wrong contents are refused, or loaded whole": (
            "-k no_other_structure",
            f"{files.STRUCTURES:,} headers",
        ),
        "Files made to do harm raise `CheckpointError`, and change nothing": (
            "-k made_to_do_harm",
            f"{len(files.corpus())} files",
        ),
        "After Ctrl-C an optimizer is whole, or says that it is not": (
            "-k signals",
            f"{interrupted.TRIALS} signals on each of 3 runners",
        ),
        "Ten million tiny steps: memory does not grow, the counter does not drift": ("nox -s soak", "10,000,000 steps"),
        "AdamW in float32 is within 8, 5 and 4 u of float64 for p, v and m; gradients 1e-18 to 1e12, t to 10¹⁸": (
            "-k within_its_bounds",
            f"{p}, {v} and {m} u, the worst of {500 * draws:,} elements",
        ),
        "The tests catch the bugs of others, and ours": ("nox -s faults", f"{len(faults.FAULTS)} planted, all caught"),
    }
    lines = table(["promise", "command", "count"], [[text, _command(x), count] for text, (x, count) in rows.items()])
    return [lines[0], "| --- | --- | --- |", *lines[2:]]


def _command(words: str) -> str:
    return f"`{words}`" if words.startswith("nox") else f'`nox -s "tests(numpy)" -- {words}`'


def page(found: Results) -> list[str]:
    """Return what is written into the page."""
    about, times = found["hardware"], found["seconds"]
    gigabytes = times["bytes"] / 1e9
    lines = promises(found["ulps"], found["draws"])
    words = (
        f"{gigabytes:.3g} GB of parameters and state, {found['date']}, {about['cpu']}, {about['cores']} cores; the "
        f"median of {times['rounds']} rounds. The safetensors library has no checksums and does not sync.\n"
    )
    lines += ["## Speed\n", words]
    for what in ("save", "load"):
        rows = [[name, f"{gigabytes / s:.2f}", f"{ratio:.2f}"] for name, (s, ratio) in times[what].items()]
        lines += table([what, "GB/s", "times as fast as safetensors"], rows)
    return lines


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoints", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes; nothing is written")
    parser.add_argument("--folder", help="where the files go, if not where temporary files go")
    args = parser.parse_args(argv)
    threads_for_all(2)
    size, rounds, draws = (2 * 10**7, 3, 100) if args.quick else (10**9, 7, 8000)
    found = circumstances() | {"seconds": seconds(size, rounds, args.folder), "ulps": worst_ulps(draws), "draws": draws}
    publish("checkpoints", found, page(found), "save_and_resume.md", args.quick)


if __name__ == "__main__":
    main()
