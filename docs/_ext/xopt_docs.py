"""What the pages take from the package while they are built: tables, and a check that no name is missing."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import folders
import rule_tables
from rule_tables import Generated, public, table
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging

import xopt
from xopt.rule._fields import MISSING

_log = logging.getLogger(__name__)


def values(field: Any) -> str:
    if field.among == (True, False):
        return "``True``, ``False``"
    if field.among is not None:
        return ", ".join(f"``{x!r}``" for x in field.among)
    return field.limits() + (", or ``None``" if not field.static and field.default is None else "")


class FieldTable(Generated):
    def lines(self) -> list[str]:
        rows = []
        for cls in [xopt.Rule, *public(xopt.Rule), *public(xopt.Transform)]:
            first = "every rule" if cls is xopt.Rule else f":class:`~xopt.{cls.__name__}`"
            for name, field in sorted(cls._fields.items(), key=lambda x: x[1].kw_only):
                if cls is xopt.Rule or not issubclass(cls, xopt.Rule) or field != xopt.Rule._fields.get(name):
                    default = "required" if field.default is MISSING else f"``{field.default!r}``"
                    kind = "static" if field.static else "hyperparameter"
                    rows.append((first, f"``{name}``", kind, default, values(field)))
                    first = ""
        return table("3 3 3 2 6", ("Class", "Field", "Kind", "Default", "Range or choices"), rows)


class FolderTable(Generated):
    """List the folders of the package from the highest floor to the lowest, and what each imports."""

    def lines(self) -> list[str]:
        floors, rooms = folders.floors(), folders.rooms()
        rows = [
            (
                str(floors[room]),
                f"``{room}``",
                folders.subject(room),
                ", ".join(f"``{x}``" for x in sorted(rooms[room])),
            )
            for room in sorted(floors, key=lambda x: (-floors[x], x))
        ]
        return table("1 2 6 4", ("Floor", "Folder", "Subject", "Imports"), rows)


class Classes(Generated):
    """Document every public class of a kind."""

    required_arguments = 1

    def lines(self) -> list[str]:
        return [f".. autoclass:: xopt.{cls.__name__}\n" for cls in public(getattr(xopt, self.arguments[0]))]


class Names(Generated):
    """Document every public class and function of a module."""

    required_arguments = 1

    def lines(self) -> list[str]:
        mine = [(n, getattr(xopt, n)) for n, module in xopt._WHERE.items() if module == self.arguments[0]]
        return [f".. auto{'class' if isinstance(x, type) else 'function'}:: xopt.{n}\n" for n, x in mine]


def analyze(app: Sphinx) -> None:
    """Have autodoc find the order of members, and what stands below fields, where a public class says that it is."""
    del app
    places = [xopt, xopt.rule, xopt.schedules]
    classes = {x for place in places for n in dir(place) if isinstance(x := getattr(place, n), type)}
    for cls in classes:
        if written := getattr(cls, "__wrapped__", None):
            found, own = ModuleAnalyzer.for_module(cls.__module__), ModuleAnalyzer.for_module(written.__module__)
            found.analyze()
            own.analyze()
            found.attr_docs |= {key: text for key, text in own.attr_docs.items() if key[0] == cls.__name__}
            found.tagorder |= {n: i for n, i in own.tagorder.items() if n.partition(".")[0] == cls.__name__}


def check(app: Sphinx, env: Any) -> None:
    """Warn of public names that no page describes."""
    known = env.get_domain("py").objects
    parts = {f"xopt.{n}": getattr(xopt, n) for n in ("schedules", "distributed", "nn", "random")}
    modules = {"xopt": xopt, **parts}
    for where, module in modules.items():
        for name in module.__all__:
            full = f"{where}.{name}"
            if full not in known and full not in modules:
                _log.warning("%s is public, but no page describes it", full)


def arguments(gallery_conf: dict[str, Any], script_vars: dict[str, Any]) -> list[str]:
    """Return the command line of an example: its pictures go to a temporary folder."""
    del gallery_conf
    folder = Path(tempfile.gettempdir()) / "xopt-docs"
    folder.mkdir(exist_ok=True)
    if Path(script_vars["src_file"]).stem == "train_digits":
        return ["--library", "numpy", "--output", str(folder / "loss.png")]
    return ["--output-dir", str(folder)]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("catalogue-overview", rule_tables.Overview)
    app.add_directive("catalogue", rule_tables.Catalogue)
    app.add_directive("decay-defaults", rule_tables.DecayDefaults)
    app.add_directive("like", rule_tables.Like)
    app.add_directive("like-shared", rule_tables.Shared)
    app.add_directive("field-table", FieldTable)
    app.add_directive("folder-table", FolderTable)
    app.add_directive("public-classes", Classes)
    app.add_directive("public-names", Names)
    app.connect("builder-inited", analyze)
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}
