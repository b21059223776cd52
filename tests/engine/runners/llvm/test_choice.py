"""When the llvm runner is chosen, what it compiles, and what it leaves to others."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import optree
import pytest
from support.own_rules import Root
from support.runners import awkward, same_bits, trajectory

import xopt

pytestmark = pytest.mark.needs("llvm")
pytest.importorskip("llvmlite")

from xopt._engine.runners.llvm import compiler as _compiler
from xopt._engine.runners.llvm import runner as llvm


def test_which_runner_ran(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the default where it is installed, and it does not leave the work to the tiled runner."""
    p = rng.standard_normal(50)
    opt = xopt.Optimizer(p, xopt.Adam())
    assert opt.runner == "llvm"
    monkeypatch.setattr(
        "xopt._engine.runners.tiled.runner.Tiled.prepare", lambda *a: pytest.fail("the tiled runner ran")
    )
    ran = []
    kernel = llvm._compiled
    monkeypatch.setattr(llvm, "_compiled", lambda *a: ran.append(a) or kernel(*a))
    opt.step(p.copy())
    assert len(ran) == 1
    opt.step(p.copy())
    assert len(ran) == 1, "a second step asks for no kernel"


def test_a_changed_rate_compiles_nothing(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    p, g = np.ones(5), np.ones(5)
    opt = xopt.Optimizer(p, xopt.SGD(lr=0.5), runner="llvm")
    opt.step(g)
    monkeypatch.setattr(_compiler, "compiled", lambda *a: pytest.fail("compiled again"))
    opt.step(g, lr=0.25)
    opt.set(lr=0.125)
    opt.step(g)
    assert np.array_equal(p, np.full(5, 1 - 0.875))
    llvm._compiled.cache_clear()
    with pytest.raises(BaseException, match="compiled again"):
        xopt.Optimizer(p, xopt.SGD(lr=0.5), runner="llvm").step(g)


def test_what_has_no_form_is_left_to_the_tiled_runner(rng: np.random.Generator) -> None:
    params, grads = awkward(rng, "complex128"), [awkward(rng, "complex128")]
    want = trajectory(Root(), params, grads, "tiled")
    assert all(map(same_bits, trajectory(Root(), params, grads, "llvm"), want))
    assert all(
        map(
            same_bits,
            trajectory(Root(), *real_parts(params, grads), "llvm"),
            trajectory(Root(), *real_parts(params, grads), "eager"),
        )
    )


def real_parts(*trees: Any) -> Any:
    return optree.tree_map(lambda x: np.abs(x), trees)


def test_errors_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compiler, "missing", lambda: "llvmlite cannot be imported: no libz")
    assert xopt.Optimizer(np.ones(3), xopt.Adam()).runner == "tiled"
    with pytest.raises(ValueError, match='runner="llvm": llvmlite cannot be imported: no libz'):
        xopt.Optimizer(np.ones(3), xopt.Adam(), runner="llvm")


def test_a_class_may_have_any_name(rng: np.random.Generator) -> None:
    """It is in comments of what is compiled, and ends none."""
    rule = type("odd\nret void\r\u2028é", (xopt.SGD,), {})(lr=0.5, momentum=0.5)
    p, g = rng.standard_normal(5), [rng.standard_normal(5)] * 2
    assert all(
        map(same_bits, trajectory(rule, p, g, "llvm"), trajectory(xopt.SGD(lr=0.5, momentum=0.5), p, g, "eager"))
    )
    assert "  ; 0.odd?ret void??é.m" in xopt.explain(rule, p, runner="llvm")


def test_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = _compiler.missing.__wrapped__
    assert reason() == ""
    with monkeypatch.context() as patch:
        patch.setattr(_compiler.ctypes, "sizeof", lambda kind: 4)
        assert reason() == "this is a process of 32 bits"
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    assert reason().startswith("llvmlite cannot be imported")
    monkeypatch.setattr(_compiler.importlib.util, "find_spec", lambda name: None)
    assert "pip install llvmlite" in reason()
