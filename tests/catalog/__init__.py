"""What is known of every rule: a file a family, with oracles, rows (`ROWS`) and the same rule elsewhere (`PEERS`).

To add a rule, add it to a file of `xopt/rules`, and its oracle, row and peers to the file of the same name here. A
public rule without a row fails `rules/test_oracles.py`.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import pytest

from catalog.base import COMMON, COMMON_REFUSED, DECAYS, Peer, Row, fields, public

__all__ = ["COMMON", "COMMON_REFUSED", "DECAYS", "PEERS", "ROWS", "TRACED", "Peer", "Row", "fields", "public", "rules"]

_FAMILIES = [importlib.import_module(f"catalog.{m.name}") for m in pkgutil.iter_modules(__path__) if m.name != "base"]

ROWS: list[Row] = [row for family in _FAMILIES for row in getattr(family, "ROWS", ())]
TRACED: list[Row] = [row for row in ROWS if row.rule.elementwise]
"""Rules that are recorded as programs; those of whole arrays have but one runner."""
PEERS: list[Peer] = [peer for family in _FAMILIES for peer in getattr(family, "PEERS", ())]


def rules() -> list[Any]:
    """Return every rule with every set of options, named for pytest.

    Options are tried on NumPy; other libraries are given the last of the rule's own with the last of the common ones.
    """
    made = []
    for row in ROWS:
        everywhere = {**COMMON[-1], **row.options[-1]}
        for given in [*row.options, *COMMON, everywhere]:
            name = "-".join([row.rule.__name__, *(f"{k}={v}" for k, v in given.items())])
            marks = [] if given is everywhere else [pytest.mark.options]
            made.append(pytest.param(row, row.make(**given), id=name, marks=marks))
    return made
