"""The examples of the adapters, each where its library is: pytest cannot collect what it cannot import."""

from __future__ import annotations

import doctest
import importlib
from typing import Any

import folders
import pytest

NEEDS = {"optax": "jax", "torch": "torch"}
"""The session of each adapter; the others are in that of NumPy."""
NAMES = [name for name in folders.modules() if name.startswith("adapters.") and "._" not in name]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.needs(NEEDS[n.partition(".")[2]])) for n in NAMES], ids=NAMES
)
def test_examples(name: str) -> None:
    library = name.partition(".")[2]
    pytest.importorskip(library)
    module: Any = importlib.import_module(f"xopt.{name}")
    found = doctest.testmod(module, raise_on_error=True)
    assert found.attempted >= 5
    assert module.__all__
