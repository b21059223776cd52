"""Tables of the rules: what each computes and keeps, what it is called elsewhere, and how far it is from that.

The numbers are those of ``docs/parity.json``, which the tests write.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from docutils import nodes
from numpydoc.docscrape import NumpyDocString
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import xopt
from xopt.rule import Component
from xopt.rule._presets import PRESETS, REQUIRED

_log = logging.getLogger(__name__)

PARITY = Path(__file__).parent.parent / "parity.json"
COMMAND = "nox -s parity"
SHARED = ("complex", "decay")
"""Fields that a library has alike in all rules: they are said once."""
FLOAT32 = ("thinc",)
"""Libraries that compute in float32: left out of the largest differences in float64."""
EXACT = 1e-12
SHOWN = {"keras": "Keras", "thinc": "Thinc", "sklearn": "scikit-learn", "autograd": "Autograd"}


def public(kind: type[Component]) -> list[type[Component]]:
    """Return the public classes of a kind, family by family, in the order of their definition."""
    found = [getattr(xopt, n) for n in xopt.__all__]
    found = [x for x in found if isinstance(x, type) and issubclass(x, kind) and x is not kind]
    order = {cls: inspect.getsourcelines(cls.__wrapped__)[1] for cls in found}
    return sorted(found, key=lambda cls: (family(cls) != "xopt.rules.sgd", family(cls), order[cls]))


def family(cls: Any) -> str:
    """Return the module that a class is written in."""
    return str(cls.__wrapped__.__module__)


def slots(rule: xopt.Rule) -> dict[str, tuple[int, ...]]:
    """Return the state of a rule with its shapes; that of a matrix, where the rule looks at matrices."""
    p = np.zeros((1,) if rule.elementwise else (5, 3), np.float32)
    found = rule.init(p).slots.items()
    return {name.rpartition(".")[2]: np.shape(x) for name, x in found if x is not None}


def options(cls: type[Component]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every single choice of formula that a rule offers."""
    for name, field in cls._fields.items():
        if name == "like":
            continue
        for value in field.among or ():
            if field.static and value != field.default:
                yield f"{name}={value!r}", {name: value}
        if not field.static and field.default is None:
            yield name, {name: 0.5}
        elif not field.static and field.optional:
            yield f"{name}=None", {name: None}


def state(cls: type[xopt.Rule]) -> tuple[str, str]:
    """Say which arrays a rule keeps by default and with which option, and how many bytes they take."""
    usual = slots(cls())
    text = [", ".join(f"``{n}``" for n in usual) or "none"]
    least, most = 4 * len(usual), 4 * len(usual)
    for label, given in options(cls):
        try:
            found = slots(cls(**given))
        except (TypeError, ValueError):
            continue
        more, less = [n for n in found if n not in usual], [n for n in usual if n not in found]
        if more:
            text.append(f"with ``{label}`` also {', '.join(f'``{n}``' for n in more)}")
        if less:
            text.append(f"with ``{label}`` not {', '.join(f'``{n}``' for n in less)}")
        least, most = min(least, 4 * len(found)), most + 4 * len(more)
    if not cls.elementwise and any(shape != (5, 3) for shape in usual.values()):
        return "; ".join(text), "see below"
    return "; ".join(text), f"{most}" if least == most else f"{least} to {most}"


def scope(cls: type[Component]) -> str:
    """Say of what the step of an element depends: on that element, its array or the whole tree."""
    if not cls.elementwise:
        return "leaf"
    return cls.scope if cls.reduce is not None else "element"


def conventions(cls: type[Component]) -> list[str]:
    """Return the choices of formula of a class beside those of every rule, the default first."""
    found = []
    for name, field in cls._fields.items():
        if field == xopt.Rule._fields.get(name) or name == "weight_decay":
            continue
        if field.static and field.among:
            values = sorted(field.among, key=lambda x: x != field.default)
            found.append(f"``{name}``: {', '.join(map(code, values))}")
        elif not field.static and (field.optional or field.default is None):
            found.append(
                f"``{name}``: {code(field.default)}" + (" or a number" if field.default is None else " or None")
            )
    return found


def said(doc: NumpyDocString) -> str:
    """Return what a docstring says of the state: the first paragraph of its notes."""
    first = "\n".join(doc["Notes"]).partition("\n\n")[0]
    return " ".join(first.split()).removeprefix("State: ").rstrip(".")


def code(value: Any) -> str:
    return "required" if value is REQUIRED else f"``{value!r}``"


def table(widths: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Make a table with a row of headings; without one, the first column has the headings."""
    head = [*head]
    kind = "   :header-rows: 1" if head else "   :stub-columns: 1"
    lines = [".. list-table::", kind, f"   :widths: {widths}", ""]
    for row in [head, *rows] if head else rows:
        lines += [f"   {'* -' if k == 0 else '  -'} {cell}".rstrip() for k, cell in enumerate(row)]
    return [*lines, ""]


def number(x: float) -> str:
    return "0" if x == 0 else f"{x:.1e}".replace("e-0", "e-")


def parity() -> Any:
    return json.loads(PARITY.read_text(encoding="utf-8"))


def peers(name: str) -> dict[str, tuple[int, float]]:
    """Return with what a class was compared: in how many cases, presets among them, and the largest difference."""
    record = parity()
    found = {library: tuple(x) for library, x in record["rules"].get(name, {}).items()}
    for library, cells in record["like"].items():
        if name in cells:
            count, worst = found.get(library, (0, 0.0))
            found[library] = (count + 1, max(worst, cells[name]))
    return found


class Generated(SphinxDirective):
    """A directive that writes reStructuredText."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        return self.parse_text_to_nodes("\n".join(self.lines()), allow_section_headings=True)

    def lines(self) -> list[str]:
        raise NotImplementedError


class Overview(Generated):
    """One line for every rule."""

    def lines(self) -> list[str]:
        rows = []
        for cls in public(xopt.Rule):
            found = peers(cls.__name__)
            worst = max((x for n, (_, x) in found.items() if n not in FLOAT32), default=None)
            libraries = ", ".join(SHOWN.get(n, n) for n in found) or "the paper alone"
            name = f"`{cls.__name__} <#{nodes.make_id(cls.__name__)}>`__"
            rows.append((name, *state(cls), scope(cls), libraries, "" if worst is None else number(worst)))
        head = ("Rule", "State", "Bytes a float32 parameter", "Scope", "Compared with", "Largest difference")
        large = [
            f"{cls.__name__} of {SHOWN.get(library, library)}"
            for cls in public(xopt.Rule)
            for library, (_, worst) in peers(cls.__name__).items()
            if worst > EXACT and library not in FLOAT32 and cls.__name__ != "LaProp"
        ]
        text = "The last column is without Thinc. What is above 1e-12 has some of its numbers in float32: "
        other = " LaProp of pytorch-optimizer adds 1e-15 to v, whatever ε is."
        return [*table("3 6 2 2 4 2", head, rows), text + ", ".join(large) + "." + other]


class Catalogue(Generated):
    """A section for every class of a kind."""

    required_arguments = 1

    def lines(self) -> list[str]:
        record, lines = parity(), list[str]()
        last = ""
        for cls in public(getattr(xopt, self.arguments[0])):
            name = cls.__name__
            if not hasattr(cls, "update"):  # Masked: its maths is that of another
                continue
            if issubclass(cls, xopt.Rule) and name not in record["rules"]:
                _log.warning("%s is public, but %s has no entry for it; run `%s`", name, PARITY.name, COMMAND)
            if last != family(cls):
                last = family(cls)
                lines += headed(
                    (importlib.import_module(last).__doc__ or name).partition("\n")[0].partition(":")[0], "-"
                )
            lines += [*headed(name, "~"), *self.entry(cls)]
        return lines

    def entry(self, cls: type[Component]) -> list[str]:
        doc = NumpyDocString(inspect.getdoc(cls))
        lines = [
            ".. py:currentmodule:: xopt",
            "",
            f":class:`xopt.{cls.__name__}`: {' '.join(doc['Summary'])}",
            "",
            *doc["Extended Summary"],
            "",
        ]
        rows = [("Scope", scope(cls))]
        if issubclass(cls, xopt.Rule):
            arrays, size = state(cls)
            kept = f"{arrays}: {size} bytes per float32 parameter" if arrays != "none" else arrays
            rows.insert(0, ("State", said(doc) if size == "see below" else kept))
        else:
            rows.insert(0, ("State", said(doc).partition(". ")[0].replace("No state", "none")))
        rows.append(
            (
                "Conventions",
                "; ".join(conventions(cls)) or ("those of every rule" if issubclass(cls, xopt.Rule) else "none"),
            )
        )
        like = [f"``{n!r}``" for n, rules in PRESETS.items() if cls.__name__ in rules]
        if like:
            rows.append(("``like=``", ", ".join(like)))
        if compared := self.compared(cls):
            rows.append(("Compared with", compared))
        references = [x for x in re.split(r"\n\s*\n", "\n".join(doc["References"])) if x.strip()]
        if references:
            rows.append(("Reference", "\\" + "; ".join(" ".join(x.split()).rstrip(".") for x in references)))
        return [*lines, *table("2 9", (), rows)]

    def compared(self, cls: type[Component]) -> str:
        versions, paper = parity()["versions"], ["the paper, in float64 NumPy"]
        found = [
            f"{SHOWN.get(n, n)} {versions[n]}: {count} {'case' if count == 1 else 'cases'}, {number(worst)}"
            for n, (count, worst) in peers(cls.__name__).items()
        ]
        return "; ".join([*found, *(paper if issubclass(cls, xopt.Rule) else [])])


class Like(Generated):
    """What a rule is in other libraries; without a name, all rules that the page does not name."""

    optional_arguments = 1

    def lines(self) -> list[str]:
        if self.arguments:
            return self.rule(self.arguments[0])
        named = re.findall(r"like:: (\w+)", Path(self.env.doc2path(self.env.docname)).read_text(encoding="utf-8"))
        everywhere = [cls.__name__ for cls in public(xopt.Rule) if any(cls.__name__ in r for r in PRESETS.values())]
        return [line for n in everywhere if n not in named for line in [*headed(n, "~"), *self.rule(n)]]

    def rule(self, name: str) -> list[str]:
        cls, record = getattr(xopt, name), parity()["like"]
        cells = {library: rules[name] for library, rules in PRESETS.items() if name in rules}
        fields = sorted(cls._fields.items(), key=lambda x: x[1].kw_only)
        own = {
            library: {
                n: cell.fields[n] for n, f in fields if n in cell.fields and self.told(library, n, cell.fields[n], f)
            }
            for library, cell in cells.items()
        }
        differ = [n for n, _ in fields if any(n in found for found in own.values())]
        rows = [("xopt", f":class:`~xopt.{name}`", *(code(cls._fields[n].default) for n in differ), "")]
        for library, cell in cells.items():
            seen = record.get(library, {}).get(name)
            values = [code(own[library][n]) if n in own[library] else "" for n in differ]
            rows.append((f"``{library!r}``", f"``{cell.call}``", *values, "source" if seen is None else number(seen)))
        head = ("``like=``", "the same as", *(f"``{n}``" for n in differ), "Difference")
        return table(" ".join(["3", "6", *("2" for _ in differ), "2"]), head, rows)

    def told(self, library: str, name: str, value: Any, field: Any) -> bool:
        """Whether a field is worth a column: one that differs, and not in all rules of the library."""
        return bool(value != field.default and name not in shared(library))


class Shared(Generated):
    """What all rules of a library have in common."""

    def lines(self) -> list[str]:
        fields = {library: ", ".join(f"``{n}={v!r}``" for n, v in shared(library).items()) for library in PRESETS}
        versions = parity()["versions"]
        rows = [(f"``{n!r}``", versions.get(n, "its source"), fields[n], ", ".join(PRESETS[n])) for n in PRESETS]
        return table("3 3 4 10", ("``like=``", "Compared with", "All rules", "Rules"), rows)


class DecayDefaults(Generated):
    """Which kind of weight decay is whose default."""

    def lines(self) -> list[str]:
        found: dict[str, list[str]] = {}
        for cls in public(xopt.Rule):
            found.setdefault(cls._fields["decay"].default, []).append(f":class:`~xopt.{cls.__name__}`")
        rows = [(f"``{kind!r}``", ", ".join(names)) for kind, names in found.items()]
        return table("2 9", ("``decay=``", "Default of"), rows)


def shared(library: str) -> dict[str, Any]:
    """Return the fields that differ from the defaults in all rules of a library, and alike."""
    cells = [cell.fields for cell in PRESETS[library].values()]
    return {n: cells[0][n] for n in SHARED if all(n in c and c[n] == cells[0].get(n) for c in cells)}


def headed(title: str, mark: str) -> list[str]:
    return [title.rstrip("."), mark * len(title), ""]
