"""Who imports whom in the package, read from its source: the test of the floors and docs/design.md draw this."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "xopt"


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Return every module by its name without the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found[name.removesuffix("__init__").removesuffix(".")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(tree: ast.Module) -> set[str]:
    """Return the modules that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            inside = [f"{node.module}.{a.name}" for a in node.names]
            known = {f"xopt.{m}" for m in modules() if m}
            found |= {m if m in known else str(node.module) for m in inside}
    return found


def rooms() -> dict[str, set[str]]:
    """Return what each folder, and each module beside the folders, imports of the others."""
    found: dict[str, set[str]] = {}
    for name, tree in modules().items():
        own = name.partition(".")[0]
        used = {x.removeprefix("xopt.").partition(".")[0] for x in imports(tree) if x.startswith("xopt.")}
        if own:
            found.setdefault(own, set()).update(used - {own})
    return found


def floors() -> dict[str, int]:
    """Return on which floor each room is: above all that it imports. Rooms that import each other are on none."""
    left, found = rooms(), dict[str, int]()
    while free := [room for room, used in left.items() if used <= {*found}]:
        found |= {room: 1 + max((found[x] for x in left[room]), default=-1) for room in free}
        left = {room: used for room, used in left.items() if room not in found}
    return found


def subject(room: str) -> str:
    """Return the first sentence of the docstring of a room."""
    return (ast.get_docstring(modules()[room]) or "").partition("\n")[0].partition(". ")[0].rstrip(".")
