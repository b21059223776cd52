"""A record of how far rules are from the same rules in other libraries, for the pages of the documentation.

``pytest --record-parity=docs/parity.json`` runs the tests that use the fixture ``parity``, and no others.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import catalog
import numpy as np
import pytest

LIKE, PEER = "like", "peer"
"""What is compared: a cell of the table of presets, a peer of the catalogue."""
NAMES = {"sklearn": "scikit-learn"}


def compared(kind: str, library: str, what: Any, ours: Sequence[Any], theirs: Sequence[Any]) -> dict[str, Any]:
    """Return a line of the record: the largest difference is that of an element, as a share of its array's largest."""
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if a.size:
            worst = max(worst, float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-300)))
    links = [type(part).__name__ for part in getattr(what, "_parts", lambda: (what,))()]
    return {"kind": kind, "library": library, "links": links, "difference": float(f"{worst:.1e}")}


class Recorder:
    """A plugin of pytest that gathers these lines, and writes them when there is one of every comparison."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines, self.lacking = path, list[dict[str, Any]](), list[str]()

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if "parity" in getattr(item, "fixturenames", ())]

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self.lacking += [item.nodeid for item in items]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self.lacking.append(report.nodeid)
        if report.when == "call":
            self.lines += [value for name, value in report.user_properties if name == "parity"]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.lacking += [f"any {kind}" for kind in (LIKE, PEER) if not any(x["kind"] == kind for x in self.lines)]
        if self.lacking:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        else:
            text = json.dumps(self.record(), indent=1)
            pairs = re.sub(r"\[\s+([^],]+),\s+([^]]+?)\s+\]", r"[\1, \2]", text)
            self.path.write_text(pairs + "\n", encoding="utf-8")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        what = (
            f"not written, without {', '.join(self.lacking[:3])}" if self.lacking else f"{len(self.lines)} comparisons"
        )
        terminalreporter.section("parity")
        terminalreporter.line(f"{self.path}: {what}")

    def record(self) -> dict[str, Any]:
        """Return what is written: of rules how many cases agree, and how far the worst is off."""
        rules: dict[str, dict[str, Any]] = {row.rule.__name__: {} for row in catalog.ROWS}
        like: dict[str, dict[str, float]] = {}
        for line in self.lines:
            library, difference = line["library"], line["difference"]
            if line["kind"] == LIKE:
                like.setdefault(library, {})[line["links"][0]] = difference
                continue
            for name in dict.fromkeys(line["links"]):
                count, worst = rules.setdefault(name, {}).get(library, (0, 0.0))
                rules[name][library] = (count + 1, max(worst, difference))
        used = sorted({line["library"] for line in self.lines})
        version = lambda name: importlib.metadata.version(NAMES.get(name, name)).partition("+")[0]
        return {"versions": {n: version(n) for n in used}, "like": like, "rules": dict(sorted(rules.items()))}
