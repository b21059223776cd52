"""What the pages take from the package while they are built: tables, and a check that no name is missing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import xopt
from xopt._fields import MISSING
from xopt.rule import Part

_log = logging.getLogger(__name__)


def public(kind: type[Part]) -> list[type[Part]]:
    """Return the public classes of a kind, in the order of their definition."""
    found = [getattr(xopt, n) for n in xopt.__all__]
    found = [x for x in found if isinstance(x, type) and issubclass(x, kind) and x is not kind]
    return sorted(found, key=lambda cls: (cls.__module__ != "xopt.rules.sgd", cls.__module__))


def slots(rule: xopt.Rule) -> list[str]:
    return [name.rpartition(".")[2] for name in rule.init(np.zeros(1, np.float32)).slots]


def options(cls: type[Part]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every single choice of formula that a rule offers."""
    for name, field in cls._fields.items():
        if field.static:
            for value in field.among or ():
                if value != field.default:
                    yield f"{name}={value!r}", {name: value}
        elif field.default is None:
            yield name, {name: 0.5}


def state(cls: type[xopt.Rule]) -> tuple[str, str]:
    """Say which arrays a rule keeps by default and with which option, and how many bytes they take."""
    usual = slots(cls())
    text, most = [", ".join(f"``{n}``" for n in usual) or "none"], len(usual)
    for label, given in options(cls):
        try:
            more = [n for n in slots(cls(**given)) if n not in usual]
        except (TypeError, ValueError):
            continue
        if more:
            text.append(f"with ``{label}`` also {', '.join(f'``{n}``' for n in more)}")
            most += len(more)
    size = f"{4 * len(usual)}" if most == len(usual) else f"{4 * len(usual)} to {4 * most}"
    return "; ".join(text), size


def values(field: Any) -> str:
    if field.among == (True, False):
        return "``True``, ``False``"
    if field.among is not None:
        return ", ".join(f"``{x!r}``" for x in field.among)
    return field.limits() + (", or ``None``" if not field.static and field.default is None else "")


def table(widths: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", ""]
    for row in [head, *rows]:
        lines += [f"   {'* -' if k == 0 else '  -'} {cell}" for k, cell in enumerate(row)]
    return [*lines, ""]


class Generated(SphinxDirective):
    """A directive that writes reStructuredText."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes("\n".join(self.lines()))

    def lines(self) -> list[str]:
        raise NotImplementedError


class StateTable(Generated):
    def lines(self) -> list[str]:
        rows = [(f":class:`~xopt.{cls.__name__}`", *state(cls)) for cls in public(xopt.Rule)]
        return table("2 6 3", ("Rule", "State", "Bytes a float32 parameter"), rows)


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


class Classes(Generated):
    """Document every public class of a kind."""

    required_arguments = 1

    def lines(self) -> list[str]:
        return [f".. autoclass:: xopt.{cls.__name__}\n" for cls in public(getattr(xopt, self.arguments[0]))]


def check(app: Sphinx, env: Any) -> None:
    """Warn of public names that no page describes."""
    known = env.get_domain("py").objects
    modules = {"xopt": xopt, "xopt.schedules": xopt.schedules, "xopt.nn": xopt.nn, "xopt.random": xopt.random}
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
    app.add_directive("state-table", StateTable)
    app.add_directive("field-table", FieldTable)
    app.add_directive("public-classes", Classes)
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}
