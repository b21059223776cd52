"""Which cells there are, and a run over them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import contenders, fresh, machine, measure, problems
from benchmarks.problems import Unavailable

Cell = tuple[str, str, str]
"""Workload, rule and dtype."""

LARGE = {"cpu": 2**25, "cuda": 2**28}
"""The vector of the targets, in elements."""


def cells(device: str, quick: bool) -> dict[str, list[Cell]]:
    """Return the cells of every suite."""
    if quick:
        sizes, middle, models = [10**3, 10**5, 10**6], 10**5, []
    else:
        sizes, middle = [*(10**k for k in range(3, 9)), LARGE[device]], 10**7 if device == "cpu" else 10**8
        models = ["gpt2", "resnet50"]
    return {
        "vector": [(f"vector-{n}", "adam", "float32") for n in sorted(sizes)],
        "many": [(key, "adam", "float32") for key in ("many-fresh", "many")],
        "models": [(key, "adam", "float32") for key in models] + [("resnet50", "sgd", "float32")] * (not quick),
        "rules": [(f"vector-{middle}", key, "float32") for key in ("sgd", "adamw", "lion", "clip")],
        "dtypes": [(f"vector-{middle}", "adam", dtype) for dtype in ("float16", "bfloat16", "float32", "float64")]
        + [(f"vector-{middle}", "stochastic", "bfloat16"), (f"vector-{middle}", "int8", "float32")],
        "ten": [("ten", "adam", "float32")],
    }


SUITES = ("vector", "many", "models", "rules", "dtypes", "ten", "start", "memory")


def entrants(device: str, workload: str, threads: int) -> dict[str, contenders.Entry]:
    """Return who takes part in a cell: the default runner and the loops alone are of interest for small arrays only.

    The adapter is, for models and small arrays.
    """
    found = contenders.contenders(device, threads)
    if workload.startswith("vector"):
        found = {name: x for name, x in found.items() if not name.endswith("adapter")}
    if workload not in ("many", "ten"):
        found = {name: x for name, x in found.items() if not name.endswith(("loops alone", "default"))}
    return found


def run(
    device: str, only: list[str], quick: bool, settings: measure.Settings, save: Callable[[dict[str, Any]], None]
) -> None:
    """Measure the suites ``only``; hand every finding to ``save`` as soon as there is one."""
    for suite, todo in cells(device, quick).items():
        for workload, rule, dtype in todo if suite in only else []:
            print(f"{suite}: {problems.workload(workload).title}, {problems.RULES[rule].title}, {dtype}", flush=True)
            who = entrants(device, workload, settings.threads)
            try:
                what, title = problems.workload(workload), problems.RULES[rule]
                found = measure.cell(what, title, dtype, who, settings)
            except Unavailable as reason:  # no ml_dtypes: no bfloat16
                print(f"  skipped: {reason}")
                continue
            show(found)
            save({"kind": "cell", "suite": suite, **found})
    for order, again in orders(device, quick, settings.threads):
        if ("start" if order.what == "start" else "memory") in only:
            if order.what == "start":
                answer = fresh.starts(order, again, repeats=1 if quick else 3)
            else:
                with tempfile.TemporaryDirectory() as cache:
                    answer = fresh.run(order, cache)
            print(f"{order.what}: {order.contender}, {problems.workload(order.workload).title}: {answer}", flush=True)
            save({"kind": order.what, **asdict(order), "found": answer})


def orders(device: str, quick: bool, threads: int) -> Iterator[tuple[fresh.Order, bool]]:
    """Yield what fresh processes are to do, and whether a second one is to follow that finds a cache."""
    large = f"vector-{10**6 if quick else LARGE[device]}"
    for name, entry in contenders.contenders(device, threads).items():
        if quick and name not in ("xopt llvm", "xopt cuda", "xopt tiled", "NumPy", "torch fused", "optax"):
            continue
        caches = entry.kind.caches and device == "cuda"
        if name.startswith(("stream", "copy")) or name.endswith(("loops alone", "adapter")):
            continue
        for workload in ["vector-1000"] if quick else ["vector-1000000", "many"]:
            yield fresh.Order("start", device, name, workload, "adam", "float32", threads), caches
        for workload in [large] if quick else [large, "many"]:
            yield fresh.Order("memory", device, name, workload, "adam", "float32", threads), False


def show(found: dict[str, Any]) -> None:
    """Print a cell."""
    ceiling = bandwidth_of_ceiling(found)
    for name, x in found["results"].items():
        rate = x["bytes"] / x["median"]
        part = f"{rate / ceiling:7.2f}" if ceiling else ""
        spread = f"({x['low'] * 1e3:.4g} to {x['high'] * 1e3:.4g})"
        print(f"  {name:26}{x['median'] * 1e3:11.4g} ms {spread:26}{rate / 1e9:9.3g} GB/s{part}", flush=True)
    if (found["others"] or 0) > measure.QUIET:
        print(f"  beware: other processes used {found['others']} cores meanwhile", flush=True)
    for name, reason in found["skipped"].items():
        print(f"  {name:26} skipped: {reason}", flush=True)


def bandwidth_of_ceiling(found: dict[str, Any]) -> float | None:
    """Return the bandwidth of the fastest stream of a cell, in bytes per second."""
    rates = [x["bytes"] / x["median"] for name, x in found["results"].items() if name.startswith("stream")]
    return max(rates, default=None)


class Results:
    """A file of results that grows with every finding. A finding replaces the one of the same cell.

    Parameters
    ----------
    folder
        Where to write a new file.
    device
        ``"cpu"`` or ``"cuda"``.
    options
        What the run was asked to do, for the file.
    into
        A file to go on with instead.
    """

    def __init__(self, folder: Path, date: str, device: str, options: dict[str, Any], into: Path | None) -> None:
        about: dict[str, Any] = {
            "date": date,
            "device": device,
            "hardware": machine.hardware(device),
            "versions": machine.versions(),
        }
        kind = "gpu" if device == "cuda" else "cpu"
        self.path = into or folder / f"{date}-{kind}-{machine.short(about['hardware'])}.json"
        self.data = {**about, "options": options, "findings": []}
        if into:
            self.data = json.loads(into.read_text())
            for key in ("hardware", "versions"):
                if self.data[key] != about[key]:
                    raise SystemExit(f"{into.name} was measured with other {key}: {self.data[key]}, not {about[key]}")

    def save(self, finding: dict[str, Any]) -> None:
        """Add a finding and write the file."""
        same = _identity(finding)
        self.data["findings"] = [x for x in self.data["findings"] if _identity(x) != same] + [finding]
        self.write()

    def write(self) -> None:
        """Write the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".part")
        new.write_text(json.dumps(self.data, indent=1, ensure_ascii=False) + "\n")
        new.replace(self.path)


def _identity(finding: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(finding.get(k) for k in ("kind", "suite", "workload", "rule", "dtype", "contender"))
