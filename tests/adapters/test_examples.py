"""The examples of the adapters, each where its library is: pytest cannot collect what it cannot import."""

from __future__ import annotations

import doctest
import importlib.util
import os
from typing import Any

import folders
import pytest

NEEDS = {
    "keras": ["jax", "torch"],
    "optax": ["jax"],
    "torch": ["torch"],
    "thinc": ["jax"],
    "onnx": ["ndonnx"],
    "pennylane": ["clients"],  # which has no --library
}
"""The sessions of each adapter."""
NAMES = [name for name in folders.modules() if name.startswith("adapters.") and "._" not in name]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.needs(x) for x in NEEDS[n.partition(".")[2]]]) for n in NAMES],
    ids=NAMES,
)
def test_examples(name: str) -> None:
    library = name.partition(".")[2]
    os.environ.setdefault("KERAS_BACKEND", "jax" if importlib.util.find_spec("jax") else "torch")
    pytest.importorskip(library)
    module: Any = importlib.import_module(f"xopt.{name}")
    found = doctest.testmod(module, raise_on_error=True)
    assert found.attempted >= 5
    assert module.__all__
