"""Parameters and state are free as soon as nobody has the optimizer: no reference cycle waits for a collection."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import Lib

import xopt

RULES = {
    "plain": lambda: xopt.Adam(),
    "norm": lambda: xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.AdamW()),
    "groups": lambda: xopt.Groups(xopt.AdamW(0.1), ("w", {"lr": 0.2})),
    "scalars": lambda: xopt.Prodigy(),
    "split": lambda: xopt.Adam(complex="split"),
    "matrices": lambda: xopt.Shampoo(),
    "averages": lambda: xopt.chain(xopt.SGD(0.1, momentum=0.9), xopt.EMA(0.9)),
}
CASES = [
    pytest.param(runner, marks=[pytest.mark.needs("llvm")] if runner == "llvm" else [])
    for runner in ("eager", "tiled", "llvm")
]


@pytest.fixture(autouse=True)
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def lives(opt: Any) -> list[Any]:
    """Return weak references to all arrays of an optimizer, and to what takes its steps."""
    arrays = [x for column in opt._slots.values() for x in column if x is not None]
    return [weakref.ref(x) for x in [*arrays, *opt._layout.leaves, opt, opt._executor]]


@pytest.mark.parametrize("runner", CASES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_nothing_outlives_an_optimizer(rule: str, dtype: str, runner: Any) -> None:
    if rule == "matrices" and runner != "eager":
        pytest.skip("whole arrays are the eager runner's")
    for steps in (0, 1, 4):
        opt = xopt.Optimizer({"w": np.ones((3, 100), dtype), "b": np.ones(20_000, dtype)}, RULES[rule](), runner=runner)
        for k in range(steps):
            opt.step({"w": np.ones((3, 100), dtype), "b": np.ones(20_000, dtype) if k != 2 else None})
        held = lives(opt)
        del opt
        assert [x() for x in held if x() is not None] == []


@pytest.mark.parametrize(
    "words", [{"state_dtype": "int8"}, {"rounding": "stochastic"}, {"master_weights": True}], ids=str
)
def test_with_few_digits(words: Any) -> None:
    opt = xopt.Optimizer(np.ones(20_000, "float16"), xopt.Adam(), **words)
    for _ in range(3):
        opt.step(np.ones(20_000, "float16"))
    held = lives(opt)
    del opt
    assert [x() for x in held if x() is not None] == []


def test_on_every_library(lib: Lib) -> None:
    if lib.name == "dask":
        pytest.skip("its graphs are cycles")
    if lib.guise == "read-only":
        pytest.skip("Optimizer refuses read-only arrays")
    params = {"w": lib.array(np.ones((3, 4))), "b": lib.array(np.ones(500))}
    opt = xopt.Optimizer(params, xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.AdamW()))
    for _ in range(3):
        opt.step({"w": lib.array(np.ones((3, 4))), "b": lib.array(np.ones(500))})
    held = [weakref.ref(x) for x in (opt, opt._executor)]
    held += [weakref.ref(x) for column in opt._slots.values() for x in column]
    del opt, params
    assert [x() for x in held if x() is not None] == []
