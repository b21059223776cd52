"""The list of faults: lines and tests that are there."""

from __future__ import annotations

import ast
from pathlib import Path

import faults


def test_every_fault_is_a_line_that_is_there_and_has_tests_that_are() -> None:
    """So that neither a changed line nor a renamed test is lost; that they see each other is `nox -s faults`."""
    defined: dict[str, set[str]] = {}
    for name, fault in faults.FAULTS.items():
        assert fault.source, name
        assert fault.tests, name
        for module, old, new in fault.edits:
            assert faults.source(module).count(old) == 1, f"{name}: {old!r} in {module}"
            assert old != new
            ast.parse(faults.source(module).replace(old, new))
        for test in fault.tests:
            path, _, function = test.partition("::")
            if path not in defined:
                body = ast.parse(Path(__file__).parents[1].joinpath(path).read_text(encoding="utf-8"))
                defined[path] = {x.name for x in ast.walk(body) if isinstance(x, ast.FunctionDef)}
            assert function.partition("[")[0] in defined[path], test
