"""Measure the loops of frameworks and write the table of docs/adapters.md: `nox -s frameworks -- table`."""

from __future__ import annotations

import tempfile
import warnings
from importlib import metadata
from pathlib import Path

import numpy as np

from frameworks.loops import LOOPS, STEPS, apart

PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"
BEGIN, END = "<!-- frameworks: written by nox -s frameworks -- table -->\n", "<!-- end -->\n"
PACKAGES = {"pyro": "pyro-ppl"}


def main() -> None:
    warnings.simplefilter("ignore")
    rows = [f"| loop | version | largest difference after {STEPS} steps | resumed |", "|---|---|---|---|"]
    for name, loop in LOOPS.items():
        ours = loop.run(loop.ours, None)
        far, resumed = apart(ours, loop.run(loop.theirs, None)), "no checkpoints"
        if loop.saves:
            with tempfile.TemporaryDirectory() as folder:
                same = all(map(np.array_equal, loop.run(loop.ours, Path(folder)), ours))
            resumed = "same bits" if same else "other bits"
        version = metadata.version(PACKAGES.get(loop.package, loop.package))
        rows.append(f"| {name} | {version} | {far:.0e} | {resumed} |")
        print(rows[-1], flush=True)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + "\n".join(rows) + "\n" + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
