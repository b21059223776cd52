"""What xopt must show, as code: each figure with the least (or most) that it must be, computed from results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Results = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """A figure.

    Parameters
    ----------
    title
        What it is.
    limit
        What it must be: at least this, or at most where ``most``.
    figure
        Computes it from the results; None where they do not have it.
    device
        Whose results it is about.
    """

    title: str
    limit: float
    figure: Callable[[Results], float | None]
    most: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Verdict:
    """A target and the figure that was measured."""

    target: Target
    figure: float | None

    @property
    def word(self) -> str:
        """Say ``"met"``, ``"missed"`` or ``"not measured"``."""
        if self.figure is None:
            return "not measured"
        met = self.figure <= self.target.limit if self.target.most else self.figure >= self.target.limit
        return "met" if met else "missed"

    @property
    def limit(self) -> str:
        """Say what it must be."""
        return f"{'≤' if self.target.most else '≥'} {self.target.limit:g}"

    @property
    def number(self) -> str:
        """Say what it is."""
        return "–" if self.figure is None else f"{self.figure:.3g}"

    def line(self) -> str:
        """Return a line of text."""
        return f"{self.word:13}{self.number:>8}  ({self.limit})  {self.target.title}"


def cell(results: Results, workload: str, rule: str = "adam", dtype: str = "float32") -> Results | None:
    """Return a cell of the results."""
    for x in results["findings"]:
        if (x["kind"], x["workload"], x["rule"], x["dtype"]) == ("cell", workload, rule, dtype):
            found: Results = x
            return found
    return None


def rate(results: Results, workload: str, name: str, *what: str) -> float | None:
    """Return bytes per second of a contender; ``"stream"`` is the fastest of the streams. ``what``: rule and dtype."""
    found = cell(results, workload, *what)
    rates = [
        x["bytes"] / x["median"]
        for key, x in (found or {"results": {}})["results"].items()
        if key == name or (name == "stream" and key.startswith("stream"))
    ]
    return max(rates, default=None)


def ratio(workload: str, name: str, other: str, *what: str) -> Callable[[Results], float | None]:
    """Return a figure: how many times as many bytes per second ``name`` moves as ``other``.

    ``what``: rule and dtype, of others than Adam in float32.
    """

    def figure(results: Results) -> float | None:
        mine, theirs = rate(results, workload, name, *what), rate(results, workload, other, *what)
        return None if mine is None or theirs is None else mine / theirs

    return figure


def time_ratio(workload: str, name: str, other: str) -> Callable[[Results], float | None]:
    """Return a figure: how many times as long ``name`` takes as ``other``."""
    return ratio(workload, other, name)


def fresh(kind: str, name: str, workload: str) -> Callable[[Results], dict[str, Any]]:
    """Return what fresh processes found."""

    def figure(results: Results) -> dict[str, Any]:
        for x in results["findings"]:
            if (x["kind"], x.get("contender"), x["workload"]) == (kind, name, workload):
                found: dict[str, Any] = x["found"]
                return found
        return {}

    return figure


def extra(name: str, workload: str) -> Callable[[Results], float | None]:
    """Return a figure: the peak of extra memory, in MB."""

    def figure(results: Results) -> float | None:
        found = fresh("memory", name, workload)(results)
        bytes = [found[k] for k in ("step", "traced") if k in found]
        return max(bytes) / 1e6 if bytes else None

    return figure


def first_step(name: str, workload: str) -> Callable[[Results], float | None]:
    """Return a figure: seconds from the first import after NumPy to the end of the first step, nothing cached."""

    def figure(results: Results) -> float | None:
        found = fresh("start", name, workload)(results).get("first process")
        return sum(found[k] for k in ("import", "make", "first")) if found else None

    return figure


BIG, HUGE, MILLION, MIDDLE = f"vector-{2**25}", f"vector-{2**28}", "vector-1000000", "vector-10000000"
VECTOR, NEW, SAME = "Adam, 2²⁵", "1,000 × 1,000, new gradients", "1,000 × 1,000, reused"
FIRST = "first step in a fresh process, s after NumPy"
TEN = "one parameter of 10: time of the default runner, of torch fused's"
GPU = "Adam, 2²⁸"
TARGETS = (
    Target(f"{VECTOR}: llvm, of the ceiling", 0.95, ratio(BIG, "xopt llvm", "stream")),
    Target(f"{VECTOR}: llvm, × torch fused", 1.0, ratio(BIG, "xopt llvm", "torch fused")),
    Target(f"{VECTOR}: llvm, × textbook NumPy", 12, ratio(BIG, "xopt llvm", "NumPy")),
    Target(f"{VECTOR}: tiled, × textbook NumPy", 5, ratio(BIG, "xopt tiled", "NumPy")),
    Target(f"{VECTOR}: tiled, × torch foreach", 1.0, ratio(BIG, "xopt tiled", "torch foreach")),
    Target(f"{NEW}: llvm, × torch fused", 5, ratio("many-fresh", "xopt llvm", "torch fused")),
    Target(f"{NEW}: llvm, × optax", 5, ratio("many-fresh", "xopt llvm", "optax")),
    Target(f"{SAME}: llvm, × torch fused", 12, ratio("many", "xopt llvm", "torch fused")),
    Target(f"{SAME}: llvm's loops alone, of the ceiling", 0.8, ratio("many", "xopt llvm, loops alone", "stream")),
    Target(f"{NEW}: tiled, × textbook NumPy", 3, ratio("many-fresh", "xopt tiled", "NumPy")),
    Target(f"{SAME}: tiled, × textbook NumPy", 3, ratio("many", "xopt tiled", "NumPy")),
    Target("GPT-2 small: llvm, × torch fused", 1.0, ratio("gpt2", "xopt llvm", "torch fused")),
    Target(
        "ResNet-50: adapter for PyTorch, time of xopt.Optimizer's",
        1.1,
        time_ratio("resnet50", "xopt torch adapter", "xopt llvm, torch"),
        most=True,
    ),
    Target(
        "ResNet-50: adapter for PyTorch, × torch fused", 1.0, ratio("resnet50", "xopt torch adapter", "torch fused")
    ),
    Target("clip + AdamW, 10⁷: llvm, of the ceiling", 0.85, ratio(MIDDLE, "xopt llvm", "stream", "clip")),
    Target("clip + AdamW, 10⁷: llvm, × torch fused", 1.2, ratio(MIDDLE, "xopt llvm", "torch fused", "clip")),
    Target("Adam, 10⁷: llvm, of the ceiling", 0.9, ratio(MIDDLE, "xopt llvm", "stream")),
    Target("Adam, 10⁷: llvm, × torch fused", 1.0, ratio(MIDDLE, "xopt llvm", "torch fused")),
    Target("Adam, 10⁷, float16: llvm, of the ceiling", 0.8, ratio(MIDDLE, "xopt llvm", "stream", "adam", "float16")),
    Target(
        "Adam, 10⁷, bfloat16, stochastic: llvm, of the ceiling",
        0.8,
        ratio(MIDDLE, "xopt llvm", "stream", "stochastic", "bfloat16"),
    ),
    Target("Adam, 10⁷, state in 8 bits: llvm, of the ceiling", 0.6, ratio(MIDDLE, "xopt llvm", "stream", "int8")),
    Target(
        f"{SAME}: llvm on torch, time of that on NumPy",
        2.0,
        time_ratio("many", "xopt llvm, torch", "xopt llvm"),
        most=True,
    ),
    Target(f"{VECTOR}: llvm, extra memory, MB", 4.0, extra("xopt llvm", BIG), most=True),
    Target(f"{VECTOR}: tiled, extra memory, MB", 4.0, extra("xopt tiled", BIG), most=True),
    Target("1,000 × 1,000: llvm, extra memory, MB", 4.0, extra("xopt llvm", "many"), most=True),
    Target("1,000 × 1,000: tiled, extra memory, MB", 4.0, extra("xopt tiled", "many"), most=True),
    Target(f"10⁶: {FIRST}", 0.2, first_step("xopt llvm", MILLION), most=True),
    Target(f"1,000 × 1,000: {FIRST}", 0.25, first_step("xopt llvm", "many"), most=True),
    Target(TEN, 0.2, time_ratio("ten", "xopt default", "torch fused"), most=True),
    Target(
        "one parameter of 10: time of the default runner, of textbook NumPy's",
        1.0,
        time_ratio("ten", "xopt default", "NumPy"),
        most=True,
    ),
    Target(f"{GPU}: cuda, of a copy's bandwidth", 0.9, ratio(HUGE, "xopt cuda", "copy"), device="cuda"),
    Target(f"{GPU}: cuda, × torch fused", 1.0, ratio(HUGE, "xopt cuda", "torch fused"), device="cuda"),
    Target(f"{GPU}: cuda, × cupy.fuse", 1.3, ratio(HUGE, "xopt cuda", "cupy.fuse"), device="cuda"),
    Target(f"{GPU}: cuda, × plain CuPy", 5, ratio(HUGE, "xopt cuda", "CuPy"), device="cuda"),
    Target(f"{NEW}: cuda, × torch fused", 1.0, ratio("many-fresh", "xopt cuda", "torch fused"), device="cuda"),
    Target(f"{SAME}: cuda, × torch fused", 1.0, ratio("many", "xopt cuda", "torch fused"), device="cuda"),
)


def judge(results: Results) -> Iterator[Verdict]:
    """Yield the targets of the device that the results are from."""
    for target in TARGETS:
        if target.device == results["device"]:
            yield Verdict(target, target.figure(results))
