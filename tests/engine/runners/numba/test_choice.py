"""When the numba runner is chosen, what it compiles, and what it leaves to others."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import optree
import pytest
from support.own_rules import Root
from support.runners import awkward, same_bits, trajectory

import xopt

pytestmark = pytest.mark.needs("numba")
pytest.importorskip("numba")

from xopt._engine.runners.numba import cache as _cache
from xopt._engine.runners.numba import runner as numba


def test_which_runner_ran(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the default where it is installed, and it does not leave the work to the tiled runner."""
    p = rng.standard_normal(50)
    opt = xopt.Optimizer(p, xopt.Adam())
    assert opt.runner == "numba"
    monkeypatch.setattr(
        "xopt._engine.runners.tiled.runner.Tiled.prepare", lambda *a: pytest.fail("the tiled runner ran")
    )
    ran = []
    kernel = numba._compiled
    monkeypatch.setattr(numba, "_compiled", lambda *a: ran.append(a) or kernel(*a))
    opt.step(p.copy())
    assert len(ran) == 1
    opt.step(p.copy())
    assert len(ran) == 1, "a second step asks for no kernel"


def test_a_changed_rate_compiles_nothing(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    p, g = np.ones(5), np.ones(5)
    opt = xopt.Optimizer(p, xopt.SGD(lr=0.5), runner="numba")
    opt.step(g)
    monkeypatch.setattr(_cache, "kernel", lambda source: pytest.fail("compiled again"))
    opt.step(g, lr=0.25)
    opt.set(lr=0.125)
    opt.step(g)
    assert np.array_equal(p, np.full(5, 1 - 0.875))
    numba._compiled.cache_clear()
    with pytest.raises(BaseException, match="compiled again"):
        xopt.Optimizer(p, xopt.SGD(lr=0.5), runner="numba").step(g)


def test_what_has_no_form_is_left_to_the_tiled_runner(rng: np.random.Generator) -> None:
    params, grads = awkward(rng, "complex128"), [awkward(rng, "complex128")]
    want = trajectory(Root(), params, grads, "tiled")
    assert all(map(same_bits, trajectory(Root(), params, grads, "numba"), want))
    assert all(
        map(
            same_bits,
            trajectory(Root(), *real_parts(params, grads), "numba"),
            trajectory(Root(), *real_parts(params, grads), "eager"),
        )
    )


def real_parts(*trees: Any) -> Any:
    return optree.tree_map(lambda x: np.abs(x), trees)


def test_errors_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba, "missing", lambda: "Numba cannot be imported: it needs another NumPy")
    assert xopt.Optimizer(np.ones(3), xopt.Adam()).runner == "tiled"
    with pytest.raises(ValueError, match='runner="numba": Numba cannot be imported: it needs another NumPy'):
        xopt.Optimizer(np.ones(3), xopt.Adam(), runner="numba")


def test_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = numba.missing.__wrapped__
    assert reason() == ""
    monkeypatch.setattr(sys.modules["numba"].config, "DISABLE_JIT", 1)
    assert reason() == "NUMBA_DISABLE_JIT is set"
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setattr(numba.importlib.util, "find_spec", lambda name: object())
    assert reason().startswith("Numba cannot be imported")
    monkeypatch.setattr(numba.importlib.util, "find_spec", lambda name: None)
    assert 'pip install "xopt-array[numba]"' in reason()
