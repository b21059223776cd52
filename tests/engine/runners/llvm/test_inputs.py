"""What the llvm runner looks at before a step: headers of arrays, and where their memory lies."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from support.runners import same_bits

import xopt
from xopt._engine.program import plan as _plan
from xopt._engine.runners.llvm import codegen as _codegen

pytestmark = pytest.mark.needs("llvm")
pytest.importorskip("llvmlite")

from xopt._engine.runners.llvm import compiler as _compiler
from xopt._engine.runners.llvm import headers as _headers


def test_objects_have_the_layout_that_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _headers.readable()
    for name in ("TYPE", "_DATA", "_DIMENSIONS", "_DTYPE", "_FLAGS"):
        with monkeypatch.context() as patch:
            patch.setattr(_headers, name, _headers._HEADER + 8 * 7)
            assert not _headers.readable.__wrapped__(), name
    monkeypatch.setattr(sys.implementation, "name", "pypy")
    assert not _headers.readable.__wrapped__()


class Sub(np.ndarray):
    """Not plainly an array."""


def test_the_inspector_accepts_what_is_plainly_right_and_nothing_else(rng: np.random.Generator) -> None:
    params = [rng.standard_normal((3, 4)), rng.standard_normal(()), np.zeros((0, 2)), rng.standard_normal(5)]
    starts, reach = np.asarray([params[0].ctypes.data]), np.asarray([0, params[0].ctypes.data + 96])
    inspect = _headers.inspector(params, starts, reach)
    assert inspect is not None
    wide = rng.standard_normal((3, 8))
    good = [rng.standard_normal((3, 4)), np.ones(()), np.zeros((0, 2)), wide[1, 2:7]]
    found, same = inspect(good)
    assert same
    assert found is not None
    assert found.tolist() == [g.ctypes.data for g in good]
    inside = np.frombuffer(params[0].data, np.float64)[7:12]
    for k, bad in [
        (0, None),
        (0, [1.0]),
        (0, rng.standard_normal((4, 3))),
        (0, rng.standard_normal(12)),
        (0, rng.standard_normal((3, 4, 1))),
        (0, np.asfortranarray(good[0])),
        (0, wide[:, ::2]),
        (0, good[0].astype("f4")),
        (0, good[0].astype(">f8")),
        (0, good[0].view(Sub)),
        (0, params[0]),
        (3, inside),
        (3, np.ones(4)),
        (1, np.float64(1.0)),
    ]:
        assert inspect([bad if j == k else g for j, g in enumerate(good)]) == (None, True), (k, bad)
    params[3].flags.writeable = False
    assert inspect(good) == (None, False)
    params[3].flags.writeable = True
    assert inspect(good)[0] is not None
    for change, back in [(("shape", (4, 3)), ("shape", (3, 4))), (("shape", (12,)), ("shape", (3, 4)))]:
        setattr(params[0], *change)
        assert inspect(good) == (None, False)
        setattr(params[0], *back)
        assert inspect(good)[0] is not None
    for dtype in ("i8", "f8"):
        params[3].dtype = dtype
        assert inspect(good)[1] == (dtype == "f8")
    params[3].resize(50, refcheck=False)
    assert inspect(good) == (None, False)


def test_a_step_is_looked_at_in_one_loop(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """No Python runs once a leaf in a step where all is plain; what is not gets the same errors as ever."""
    params, grads = ([rng.standard_normal(n, dtype="f4") for n in (3, 4, 5)] for _ in range(2))
    opt = xopt.Optimizer(params, xopt.Adam(0.1))
    opt.step(grads)
    with monkeypatch.context() as patch:
        for name in ("facts", "contiguous", "addresses"):
            patch.setattr(f"xopt._arrays.libraries.numpy.Own.{name}", lambda *a: pytest.fail("looked one by one"))
        opt.step(grads)
    before = [p.copy() for p in params]
    for bad, text in [
        (grads[1][:3], r"grads\[1\]: shape \(3,\), but the parameter has \(4,\)"),
        (grads[1].astype("f8"), r"grads\[1\]: dtype float64, but the parameter has float32"),
        (params[1], r"grads\[1\]: shares memory with params\[1\]"),
        ([1.0] * 4, r"grads"),
    ]:
        with pytest.raises((ValueError, TypeError), match=text):
            opt.step([grads[0], bad, grads[2]])
    params[2].flags.writeable = False
    with pytest.raises(ValueError, match=r"params\[2\]: a read-only array"):
        opt.step(grads)
    assert all(map(same_bits, params, before))


def test_odd_addresses(rng: np.random.Generator) -> None:
    def odd(n: int) -> Any:
        x = np.frombuffer(bytearray(8 * n + 1), np.float64, offset=1, count=n)
        x[...] = rng.standard_normal(n)
        return x

    p, g = odd(100), odd(100)
    assert not p.flags.aligned
    rule = xopt.Adam(0.1)
    want, _ = rule.apply(p, g, rule.init(p), runner="eager")
    xopt.Optimizer(p, rule, runner="llvm").step(g)
    assert np.array_equal(p, want)


def test_more_elements_than_int32_counts() -> None:
    """A task that starts beyond 2**31 elements: the address is right to the byte, and nothing else is touched."""
    low = 2**31 + 5
    plan = _plan.plan(xopt.SGD(lr=1.0)._specs(), False)
    program = plan.body(("p",))
    columns = _codegen.table(program, dict.fromkeys("pgv", "float32"), fresh=False)
    kernel = _compiler.compiled(_codegen.body_source("far", program, columns, "float32"), 3)
    p, g = np.ones(12, np.float32), np.arange(12, dtype=np.float32)
    start = [x.ctypes.data + 4 * 4 - 4 * low for x in (p, g)]  # where the leaf would start for element `low` to be [4]
    tables = np.asarray([0, low, 5]), np.asarray(start), np.asarray([-1.0])
    tasks, addresses, scalars = (x.ctypes.data for x in tables)
    frame = np.asarray([tasks, addresses, 1, scalars, 1, 0])
    kernel(frame.ctypes.data, 0, 1)
    assert np.array_equal(p, [1, 1, 1, 1, -3, -4, -5, -6, -7, 1, 1, 1])
