"""The two plots: bandwidth against the size of a vector, and how xopt compares with each peer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

Results = dict[str, Any]

BLUE, SKY, RED, GREEN, PINK, BLACK, GREY = (
    "#0072B2", "#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#000000", "#888888",
)  # fmt: skip
LOOKS = {
    "xopt llvm": (BLUE, "-", "o"),
    "xopt cuda": (BLUE, "-", "o"),
    "xopt tiled": (SKY, "-", "s"),
    "xopt eager": (SKY, ":", "v"),
    "torch fused": (RED, "-", "^"),
    "torch foreach": (RED, "--", "D"),
    "torch single": (RED, ":", "v"),
    "optax": (GREEN, "-", "P"),
    "Keras": (GREEN, "--", "X"),
    "Thinc": (PINK, "-", "<"),
    "cupy.fuse": (PINK, "-", "<"),
    "NumPy": (BLACK, "-", "."),
    "CuPy": (BLACK, "-", "."),
    "copy": (GREY, ":", ""),
}
"""Colour (safe for the colour-blind), line and marker of each contender that is drawn."""

PANELS = (f"vector-{2**28}", f"vector-{2**25}", "many-fresh", "many", "gpt2", "resnet50", "ten")


def champion(cell: Results) -> str:
    """Name the contender of a cell that stands for xopt; empty if there is none."""
    return next((n for n in ("xopt cuda", "xopt llvm", "xopt tiled", "xopt eager") if n in cell["results"]), "")


def ceiling(cell: Results) -> float | None:
    """Return the bandwidth of the fastest stream of a cell, in bytes per second."""
    rates = [x["bytes"] / x["median"] for name, x in cell["results"].items() if name.startswith("stream")]
    return max(rates, default=None)


def draw(results: Results, folder: Path) -> dict[Path, str]:
    """Draw what the results have and return the files, each with a description in words."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams |= {
        "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "xopt",
    }  # fmt: skip
    kind = "gpu" if results["device"] == "cuda" else "cpu"
    done = {}
    figure = by_size(results)
    if figure is not None:
        done[folder / f"benchmarks-{kind}-size.svg"] = (figure, "Bandwidth of a step of Adam against the vector's size")
    figure = by_peer(results)
    if figure is not None:
        done[folder / f"benchmarks-{kind}-peers.svg"] = (figure, "Time of a step of each peer, in that of xopt")
    for path, (drawn, _) in done.items():
        drawn.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    return {path: alt for path, (_, alt) in done.items()}


def by_size(results: Results) -> Any:
    """Return a figure of gigabytes per second against the size of one vector, Adam, float32."""
    from matplotlib.figure import Figure

    cells = [x for x in results["findings"] if x["kind"] == "cell" and x["suite"] == "vector"]
    cells.sort(key=lambda x: x["elements"])
    if len(cells) < 2:
        return None
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    top = [(x["elements"], (ceiling(x) or math.nan) / 1e9) for x in cells]
    axes.plot(*zip(*top, strict=True), color="#CCCCCC", linewidth=7, solid_capstyle="round", zorder=1)
    ends = [(top[-1][1], "ceiling", "#777777", top[-1])]
    for name, (colour, line, marker) in LOOKS.items():
        rows = [(x["elements"], x["results"].get(name)) for x in cells]
        points = [(n, y["bytes"] / y["median"] / 1e9, y) for n, y in rows if y]
        if not points:
            continue
        n, rate = [p[0] for p in points], [p[1] for p in points]
        own = name == champion(cells[-1])
        axes.plot(
            n, rate, line, color=colour, marker=marker, markersize=6 if own else 4.5, linewidth=2.8 if own else 1.4,
            zorder=4 if own else 3,
        )  # fmt: skip
        low, high = ([y["bytes"] / y[k] / 1e9 for _, _, y in points] for k in ("high", "low"))
        axes.fill_between(n, low, high, color=colour, alpha=0.15, linewidth=0, zorder=2)
        ends.append((rate[-1], name, colour, (n[-1], rate[-1])))
    axes.set(xscale="log", yscale="log", xlabel="elements of the vector", ylabel="GB/s")
    axes.set_title("Adam, float32: memory moved a second", loc="left", fontweight="bold")
    axes.grid(which="major", color="#E5E5E5", linewidth=0.7)
    axes.set_axisbelow(True)
    _label(axes, ends)
    return figure


def _label(axes: Any, ends: list[tuple[float, str, str, tuple[float, float]]]) -> None:
    """Write the names beside the ends of their lines, pushed apart where they would overlap."""
    low, high = (math.log10(y) for y in axes.get_ylim())
    gap = (high - low) / 21
    ends = sorted(ends)
    heights = [math.log10(y) for y, *_ in ends]
    for _ in range(200):
        for k in range(len(heights) - 1):
            push = max(0.0, gap - (heights[k + 1] - heights[k])) / 2
            heights[k], heights[k + 1] = heights[k] - push, heights[k + 1] + push
        heights[0], heights[-1] = max(heights[0], low), min(heights[-1], high)
    right = axes.get_xlim()[1]
    for (_, name, colour, point), height in zip(ends, heights, strict=True):
        axes.annotate(
            name, point, (right * 1.12, 10**height), color=colour, va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6, "shrinkA": 1, "shrinkB": 3},
        )  # fmt: skip


def by_peer(results: Results) -> Any:
    """Return a figure of the time of each contender over that of xopt, a panel for each workload, Adam, float32."""
    from matplotlib.figure import Figure

    found = {
        x["workload"]: x
        for x in results["findings"]
        if x["kind"] == "cell" and (x["rule"], x["dtype"]) == ("adam", "float32") and champion(x)
    }
    panels = [found[key] for key in PANELS if key in found]
    if not panels:
        return None
    drawn = {name for x in panels for name in x["results"]} - {champion(panels[0])}
    names = [n for n in LOOKS if n in drawn and n != "copy"]
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(2.9 * columns + 1, (0.27 * len(names) + 0.75) * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).reshape(-1)
    least, most = 0.7, 1.0
    for axes, cell in zip(grid, panels, strict=False):
        own = cell["results"][champion(cell)]["median"]
        for k, name in enumerate(names):
            x = cell["results"].get(name)
            if x is None:
                axes.text(1.08, k, "not measured", va="center", color=GREY, fontsize=8)
                continue
            ratio = x["median"] / own
            least, most = min(least, ratio), max(most, ratio)
            axes.barh(k, ratio - 1, left=1, color=LOOKS[name][0], height=0.68, alpha=0.9)
            text = f"{ratio:.0f}×" if ratio >= 20 else f"{ratio:.2g}×"
            axes.text(max(ratio, 1) * 1.08, k, text, va="center", fontsize=9)
        axes.axvline(1, color=BLUE, linewidth=1.5)
        axes.set_title(cell["title"][0].upper() + cell["title"][1:], loc="left", fontsize=9.5, fontweight="bold")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    grid[0].set(xscale="log", xlim=(least / 1.5, most * 4), yticks=range(len(names)), yticklabels=names)
    grid[0].invert_yaxis()
    grid[0].xaxis.set_major_formatter(lambda x, _: f"{x:g}×")
    grid[0].xaxis.set_minor_formatter("")
    figure.suptitle(
        f"Adam, float32: time of a step, as a multiple of {champion(panels[0])}'s (blue line)",
        x=0.01, ha="left", fontsize=11, fontweight="bold",
    )  # fmt: skip
    return figure
