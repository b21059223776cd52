"""The numba runner gives the bits of eager NumPy, on real numbers; it compiles once, and never twice."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import tracemalloc
import warnings
import weakref
from pathlib import Path
from typing import Any

import catalog
import ml_dtypes
import numpy as np
import optree
import pytest
from catalog import Row
from conftest import walk
from support.own_rules import Root
from support.random_rules import random_rule
from support.runners import CHAIN, CHAINS, RULES, STORED, alike, awkward, poison, same_bits, step_in_threads, trajectory

import xopt
from xopt._engine.program import plan as _plan
from xopt._engine.program.trace import BOOL, Tracer, replay
from xopt._engine.runners.numba import codegen as _emit_numba
from xopt.rule import Array, H, Hyper, Rule, abs2, hyper

pytestmark = pytest.mark.needs("numba")
pytest.importorskip("numba")

from xopt._engine.runners.numba import cache as _cache
from xopt._engine.runners.numba import headers as _objects
from xopt._engine.runners.numba import runner as numba
from xopt._engine.runners.numba.runner import Numba

CUTS = [(1, 65_536), (1, 7), (2, 64), (3, 1)]


def each(usual: list[str], more: str) -> list[Any]:
    """Pair every rule with the usual dtypes; chains, and rules with precision around them, with one more."""
    pairs = [(rule, dtype) for rule in RULES for dtype in (*usual, *([more] if rule in [*CHAINS, *STORED] else []))]
    return [pytest.param(rule, dtype, id=f"{type(rule).__name__}-{dtype}") for rule, dtype in pairs]


@pytest.mark.parametrize(("rule", "dtype"), each(["bfloat16", "float32", "float64"], "float16"))
def test_bits_of_eager(rule: Any, dtype: str, rng: np.random.Generator) -> None:
    params = awkward(rng, dtype)
    grads = [poison(awkward(rng, dtype), rng, rule) if k == 2 else awkward(rng, dtype) for k in range(4)]
    want = trajectory(rule, params, grads, "eager")
    for threads, task in CUTS:
        got = trajectory(rule, params, grads, Numba(threads, task))
        assert all(map(alike(rule), got, want)), (threads, task)


@pytest.mark.parametrize(("rule", "dtype"), each(["complex64"], "complex128"))
def test_complex_is_within_roundings_of_eager(rule: Any, dtype: str, rng: np.random.Generator) -> None:
    """NumPy multiplies complex numbers by instructions of its own: some roundings of numbers about 1 are allowed."""
    params, grads = awkward(rng, dtype), [awkward(rng, dtype) for k in range(4)]
    want = trajectory(rule, params, grads, "eager")
    got = trajectory(rule, params, grads, Numba(2, 64))
    for x, y in zip(got, want, strict=True):
        assert x.dtype == y.dtype
        assert (np.abs(x - y) <= 8 * np.finfo(x.dtype).eps * (np.abs(y) + 1)).all()


@pytest.mark.parametrize("row", catalog.TRACED, ids=lambda row: row.rule.__name__)
def test_every_option(row: Row, rng: np.random.Generator) -> None:
    params = awkward(rng, "float32")
    grads = [poison(awkward(rng, "float32"), rng, row.make()), awkward(rng, "float32")]
    for options in [*row.options, *catalog.COMMON]:
        rule = row.make(**options)
        want = trajectory(rule, params, grads, "eager")
        assert all(map(alike(rule), trajectory(rule, params, grads, Numba(1)), want)), rule


class Whole(Rule):
    """Complex arithmetic that needs literals of its own: a quotient, a real number in a complex branch."""

    lr: Hyper = hyper(default=0.1)

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, m: Array = 1.0) -> tuple[Array, ...]:
        m = 0.5 * m + g / (p + j_free(xp, g)) + 1.0 / (abs2(xp, g) + 1.0)
        return -h.lr * xp.where(xp.real(g) > 0, m, xp.abs(m)), m


def j_free(xp: Any, g: Any) -> Any:
    return xp.conj(g) + 3.0


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_with_literals(dtype: str, rng: np.random.Generator) -> None:
    params, grads = awkward(rng, dtype), [awkward(rng, dtype)]
    want, got = (trajectory(Whole(), params, grads, runner) for runner in ("eager", "numba"))
    for x, y in zip(got, want, strict=True):
        assert (np.abs(x - y) <= 16 * np.finfo(x.dtype).eps * (np.abs(y) + 1)).all()


def test_complex_split_is_two_reals(rng: np.random.Generator) -> None:
    rule = xopt.Adam(0.1, amsgrad=True, complex="split", weight_decay=0.1)
    params, grads = awkward(rng, "complex64"), [awkward(rng, "complex64") for _ in range(3)]
    want = trajectory(rule, params, grads, "eager")
    assert all(map(same_bits, trajectory(rule, params, grads, Numba(2, 7)), want))


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
def test_in_place_equals_pure(rule: Any, rng: np.random.Generator) -> None:
    params, grads = awkward(rng, "float32"), [awkward(rng, "float32") for _ in range(4)]
    grads[1]["many"][2] = None
    grads[1]["rows"] = np.ascontiguousarray(grads[1]["rows"])
    grads[2]["tall"] = np.asfortranarray(grads[2]["tall"])
    want = trajectory(rule, params, grads, "eager")
    opt = xopt.Optimizer(params, rule, runner=Numba(2, 64))
    for g in grads:
        opt.step(g)
    assert all(map(alike(rule), optree.tree_leaves((params, opt.state.slots)), want))


def test_updates(rng: np.random.Generator) -> None:
    params, grads = awkward(rng, "float32"), awkward(rng, "float32")
    for rule in RULES:
        want, _ = rule.updates(params, grads, rule.init(params), runner="eager")
        got, _ = rule.updates(params, grads, rule.init(params), runner="numba")
        assert all(map(alike(rule), optree.tree_leaves(got), optree.tree_leaves(want)))


def test_dtypes_of_one_tree(rng: np.random.Generator) -> None:
    kinds = ["float32", "float64", "float16", "float32", "float64"]
    draw = lambda: [np.asarray(rng.standard_normal(9), k) for k in kinds]
    params, grads = draw(), [draw() for _ in range(3)]
    want = trajectory(CHAIN, params, grads, "eager")
    assert all(map(same_bits, trajectory(CHAIN, params, grads, Numba(2, 7)), want))


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


@pytest.mark.parametrize("seed", range(40))
def test_random_rules(seed: int, rng: np.random.Generator) -> None:
    """Swapped slots, a slot that is written and never read, two slots of one value: whatever a rule may return."""
    rule = random_rule(seed, complex=False)
    p, grads = rng.standard_normal(67), [rng.standard_normal(67) for _ in range(3)]
    want = trajectory(rule, p, grads, "eager")
    assert all(map(same_bits, trajectory(rule, p, grads, Numba(2, 16)), want))
    opt = xopt.Optimizer(p.copy(), rule, runner="numba")
    for g in grads:
        opt.step(g)
    assert all(map(same_bits, optree.tree_leaves((opt.params, opt.state.slots)), want))


# --- single operations ---------------------------------------------------------------------------------------------

SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.5, -1e-42, 1e-42, 1e38, -1e38, np.inf, -np.inf, np.nan]


def of_every_operation(xp: Any, x: Any, y: Any) -> dict[str, Any]:
    found = {}
    for op in _emit_numba.OPERATIONS:
        if op in ("logical_and", "logical_or"):
            found[op] = xp.where(getattr(xp, op)(x > 0, y > 0), x, y)
        elif op == "logical_not":
            found[op] = xp.where(xp.logical_not(x > y), x, y)
        elif op == "where":
            found[op] = xp.where(x > 0, x, 3.0)
        elif op in ("add", "subtract", "multiply", "divide", "maximum", "minimum", "pow"):
            found[op] = getattr(xp, op)(x, y)
        elif op in ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal"):
            found[op] = xp.where(getattr(xp, op)(x, y), x, y + 1)
        elif op in ("isnan", "isinf", "isfinite"):
            found[op] = xp.where(getattr(xp, op)(x), y, 0.5)
        elif op not in ("hypot", "noise", "largest"):  # complex numbers, few digits and 8 bits have tests of their own
            found[op] = getattr(xp, op)(x)
    return found


@pytest.mark.parametrize("real", ["float32", "float64"])
def test_every_operation(real: str) -> None:
    a, b = (np.asarray(x, real).ravel() for x in np.meshgrid(SPECIAL, SPECIAL))
    tape = Tracer(inexact=True)
    made = of_every_operation(tape, tape.load("p", "real"), tape.load("g", "real"))
    assert all(x.kind != BOOL for x in made.values())
    program = tape.finish(made, [])
    scalars = program.evaluate({})
    with np.errstate(all="ignore"):
        want = replay(program, np, {"p": a, "g": b}, scalars)
    columns = _emit_numba.table(program, dict.fromkeys([*program.loads, *program.outputs], real), fresh=True)
    run = _cache.kernel(_emit_numba.body_source("every operation", program, columns, real))
    got = {n: np.empty_like(a) for n in want}
    arrays = [{"p": a, "g": b}.get(x.name, got.get(x.name[4:])) for x in columns.arrays]
    addresses = np.asarray([[x.ctypes.data] for x in arrays])
    run(np.asarray([[0, 0, a.size]]), addresses, np.asarray([scalars]), 0, 1)
    for name, x in got.items():
        if name in ("exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "pow"):
            np.testing.assert_allclose(x, want[name], rtol=4 * np.finfo(real).eps, err_msg=name)
        else:
            assert same_bits(x, want[name]), name


def test_half_precision() -> None:
    """Every 16-bit pattern is widened, and what lies around every one and half way between two is rounded, rightly."""
    from numba import njit

    from xopt._engine.runners.numba import intrinsics as _jit

    patterns = np.arange(65_536, dtype=np.uint16)
    for name, kind in [("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)]:
        widen, narrow = getattr(_jit, f"of_{name}"), getattr(_jit, f"to_{name}")

        @njit
        def loop(f: Any, x: Any, out: Any) -> None:
            for i in range(x.size):
                out[i] = f(x[i])

        wide = np.empty(65_536, np.float32)
        loop(widen, patterns, wide)
        assert np.array_equal(wide, patterns.view(kind).astype(np.float32), equal_nan=True)
        finite = np.sort(wide[np.isfinite(wide)])
        with np.errstate(all="ignore"):
            middle = finite[:-1] + (finite[1:] - finite[:-1]) / 2
            near = [np.nextafter(x, np.float32(s)) for x in (finite, middle) for s in (np.inf, -np.inf)]
            x = np.concatenate([wide, finite, middle, *near, np.asarray([65519.9, 65520, 3.39e38, 3.4e38], np.float32)])
            want = x.astype(kind)
        out = np.empty(x.size, np.uint16)
        loop(narrow, x, out)
        assert np.array_equal(out.view(kind).astype(np.float32), want.astype(np.float32), equal_nan=True)


def test_pairwise_is_the_order_of_numpy(rng: np.random.Generator) -> None:
    from xopt._engine.runners.numba.intrinsics import pairwise

    for n in [*range(300), 1000, 4097, 65_535, 65_536]:
        x = rng.standard_normal(n) * 10.0 ** rng.integers(-5, 5, n)
        assert pairwise(x, 0, n) == np.add.reduce(x), n


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 200_003])
def test_norm_has_the_bits_of_eager(size: int, rng: np.random.Generator) -> None:
    g = [rng.standard_normal(size), rng.standard_normal(7), rng.standard_normal((5, 4)).T, rng.standard_normal(300)]
    p = [np.zeros(x.shape) for x in g]
    rule = xopt.chain(xopt.ClipByNorm(5.0), xopt.ClipByGlobalNorm(1.0), xopt.SGD(lr=1.0))
    want, _ = rule.apply(p, g, rule.init(p), runner="eager")
    for threads, task in CUTS[:3]:
        got, _ = rule.apply(p, g, rule.init(p), runner=Numba(threads, task))
        assert all(map(same_bits, got, want))


# --- what is looked at before a step -------------------------------------------------------------------------------


def test_objects_have_the_layout_that_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _objects.readable()
    for name in ("_TYPE", "_DATA", "_DIMENSIONS", "_DTYPE", "_FLAGS"):
        with monkeypatch.context() as patch:
            patch.setattr(_objects, name, _objects._HEADER + 8 * 7)
            assert not _objects.readable.__wrapped__(), name
    monkeypatch.setattr(sys.implementation, "name", "pypy")
    assert not _objects.readable.__wrapped__()


class Sub(np.ndarray):
    """Not plainly an array."""


def test_the_inspector_accepts_what_is_plainly_right_and_nothing_else(rng: np.random.Generator) -> None:
    params = [rng.standard_normal((3, 4)), rng.standard_normal(()), np.zeros((0, 2)), rng.standard_normal(5)]
    starts, reach = np.asarray([params[0].ctypes.data]), np.asarray([0, params[0].ctypes.data + 96])
    inspect = _objects.inspector(params, starts, reach)
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
            patch.setattr(f"xopt._arrays.libraries.{name}", lambda *a: pytest.fail("looked one by one"))
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


# --- memory --------------------------------------------------------------------------------------------------------


def test_odd_addresses(rng: np.random.Generator) -> None:
    def odd(n: int) -> Any:
        x = np.frombuffer(bytearray(8 * n + 1), np.float64, offset=1, count=n)
        x[...] = rng.standard_normal(n)
        return x

    p, g = odd(100), odd(100)
    assert not p.flags.aligned
    rule = xopt.Adam(0.1)
    want, _ = rule.apply(p, g, rule.init(p), runner="eager")
    xopt.Optimizer(p, rule, runner="numba").step(g)
    assert np.array_equal(p, want)


def test_more_elements_than_int32_counts() -> None:
    """A task that starts beyond 2**31 elements: the address is right to the byte, and nothing else is touched."""
    low = 2**31 + 5
    plan = _plan.plan(xopt.SGD(lr=1.0)._specs(), False)
    program = plan.body(("p",))
    columns = _emit_numba.table(program, dict.fromkeys("pgv", "float32"), fresh=False)
    run = _cache.kernel(_emit_numba.body_source("far", program, columns, "float32"))
    p, g = np.ones(12, np.float32), np.arange(12, dtype=np.float32)
    start = [x.ctypes.data + 4 * 4 - 4 * low for x in (p, g)]  # where the leaf would start for element `low` to be [4]
    run(np.asarray([[0, low, 5]]), np.asarray(start)[:, None], np.asarray([[-1.0]]), 0, 1)
    assert np.array_equal(p, [1, 1, 1, 1, -3, -4, -5, -6, -7, 1, 1, 1])


def test_peak_memory_of_a_step() -> None:
    p, g = np.ones(2**21, "float32"), np.ones(2**21, "float32")
    opt = xopt.Optimizer(p, xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.AdamW()), runner="numba")
    opt.step(g)
    tracemalloc.start()
    opt.step(g)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e6, f"{peak / 1e6:.1f} MB beside 8 MB of parameters"


def test_gradients_are_not_kept(rng: np.random.Generator) -> None:
    for sizes in ([100], [100, 50, 3]):
        params, grads = ([rng.standard_normal(n) for n in sizes] for _ in range(2))
        opt = xopt.Optimizer(params, xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam()))
        gone = [weakref.ref(g) for g in grads]
        opt.step(grads)
        opt.step(grads)
        with pytest.raises(ValueError, match="shape"):
            opt.step([*grads[:-1], np.ones(1)])
        del grads
        assert [g() for g in gone] == [None] * len(sizes)


def test_large_leaf_uses_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    used, both = set(), threading.Barrier(2, timeout=60)
    p, g = np.ones(10_000, np.float32), np.ones(10_000, np.float32)
    real = numba._compiled

    def spied(*args: Any) -> Any:
        kernel = real(*args)

        def run(*task: Any) -> None:
            if threading.get_ident() not in used:
                used.add(threading.get_ident())
                both.wait()
            kernel.run(*task)

        return kernel._replace(run=run)

    monkeypatch.setattr(numba, "_compiled", spied)
    xopt.Optimizer(p, xopt.SGD(lr=0.5), runner=Numba(2, 1000)).step(g)
    assert len(used) == 2
    assert (p == 0.5).all()


def test_two_threads_step_two_optimizers(rng: np.random.Generator) -> None:
    step_in_threads(Numba(2, 512), rng)


def test_sums_that_overflow_raise_nothing() -> None:
    n = 131_072
    g = np.zeros(n)
    g[0] = g[-1] = 1.2e154
    rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.SGD(lr=1.0))
    for runner in ("eager", "tiled", "numba"):
        p = np.ones(n)
        with np.errstate(all="raise"):
            xopt.Optimizer(p, rule, runner=runner).step(g)
        assert p[0] == 1


def test_results_are_allocated_once(rng: np.random.Generator) -> None:
    p = [np.ones(2**20), np.ones((4, 4)).T]
    g = [np.ones(2**20), np.ones((4, 4))]
    rule = xopt.SGD(lr=0.5)
    state = rule.init(p)
    rule.apply(p, g, state, runner="numba")
    tracemalloc.start()
    rule.apply(p, g, state, runner="numba")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * 8 * 2**20


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


# --- the cache on disk ---------------------------------------------------------------------------------------------

STEP = """
import numpy as np, xopt
from xopt._engine.runners.numba import cache as _cache
p = np.ones(1000, "float32")
opt = xopt.Optimizer(p, xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam(0.1)), runner="numba")
opt.step(np.ones(1000, "float32"))
kernels = list(_cache._loaded.values())
hits, misses = (sum(sum(getattr(k.stats, f"cache_{n}").values()) for k in kernels) for n in ("hits", "misses"))
print(len(kernels), hits, misses, float(p[0]), _cache.folder())
"""


def step(cache: Path | str, code: str = STEP, *args: str, **env: str) -> list[str]:
    given = {**os.environ, "XOPT_CACHE_DIR": str(cache), **env}
    out = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False, env=given)
    assert out.returncode == 0, out.stderr
    return out.stdout.split()


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    first, second = step(tmp_path), step(tmp_path)
    assert first[:3] == ["3", "0", "3"]  # what looks at arrays, the sums, the step
    assert second[:3] == ["3", "3", "0"]
    assert first[3:] == second[3:]
    assert Path(second[4]) == tmp_path / "kernels"
    sources = [path.read_text() for path in (tmp_path / "kernels").glob("*.py")]
    assert len(sources) == 3
    assert any("store(" in x and "# 1.adam.m" in x and "0.clipbyglobalnorm | 1.adam, float32" in x for x in sources)


def test_what_is_loaded_is_what_was_compiled(tmp_path: Path) -> None:
    """Each process numbers its compiled functions; kernels of several processes must not mix them up when loaded."""
    code = """
import sys
import numpy as np, xopt
from numba import njit
for k in range(2 * int(sys.argv[1])):
    njit(lambda x: x + 1)(1.0)
rng = np.random.default_rng(1)
clip = xopt.ClipByGlobalNorm(1.0)
for rule in (xopt.SGD(1.0), xopt.Adam(), xopt.RMSProp(), xopt.Adagrad())[: int(sys.argv[1]) + 1]:
    rule = xopt.chain(clip, rule)
    for size in (20_000, 65_536, 65_535, 40_000):
        p, g = np.zeros(size), rng.standard_normal(size)
        want, got = (rule.apply(p, g, rule.init(p), runner=runner)[0] for runner in ("eager", "numba"))
        assert np.array_equal(want, got), (rule, size)
"""
    for k in range(4):
        step(tmp_path, code, str(k))
    step(tmp_path, code, "3")


def test_a_broken_cache_is_made_anew(tmp_path: Path) -> None:
    want = step(tmp_path)[3]
    for pattern, keep in [("*.py", 40), ("*.nbi", 30), ("*.nbc", 100), ("*.nbc", 0), ("*.nbi", 0), ("*.py", 0)]:
        broken = [*tmp_path.rglob(pattern)]
        assert len(broken) == 3
        for path in broken:
            path.write_bytes(path.read_bytes()[:keep])
        assert step(tmp_path)[3] == want
        assert step(tmp_path)[1:4] == ["3", "0", want], f"{pattern} was not mended"


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    found = step(
        tmp_path / "file" / "cache", XDG_CACHE_HOME=str(tmp_path / "file"), LOCALAPPDATA=str(tmp_path / "file")
    )
    assert found[1:3] == ["0", "3"]
    assert found[4] == "None"


def test_a_cache_can_be_turned_off(tmp_path: Path) -> None:
    found = step("off", XDG_CACHE_HOME=str(tmp_path), LOCALAPPDATA=str(tmp_path))
    assert (found[1:3], found[4]) == (["0", "3"], "None")
    assert not any(tmp_path.iterdir())


owners = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners on this system")


@owners
def test_a_cache_that_others_can_write_is_not_used(tmp_path: Path) -> None:
    """Not read either: what is in it would be run. An own one takes its place, and the user is told."""
    shared, own = tmp_path / "shared", tmp_path / "own"
    assert step(shared)[1:3] == ["0", "3"]
    shared.chmod(0o777)
    before = {path: path.stat().st_mtime_ns for path in shared.rglob("*")}
    code = f"import warnings\nwarnings.simplefilter('ignore', RuntimeWarning)\n{STEP}"
    found = step(shared, code, XDG_CACHE_HOME=str(own))
    assert (found[1:3], Path(found[4])) == (["0", "3"], own / "xopt" / "kernels")
    assert {path: path.stat().st_mtime_ns for path in shared.rglob("*")} == before
    shared.chmod(0o755)
    assert step(shared)[1:3] == ["3", "0"]


@owners
def test_numba_keeps_nothing_where_others_can_write(tmp_path: Path) -> None:
    cache, numbas = tmp_path / "cache", tmp_path / "numba"
    env = {"NUMBA_CACHE_DIR": str(numbas)}
    assert step(cache, **env)[1:3] == ["0", "3"]
    assert step(cache, **env)[1:3] == ["3", "0"]
    numbas.chmod(0o777)
    assert step(cache, **env)[1:3] == ["0", "3"]
    numbas.chmod(0o755)
    for path in numbas.iterdir():
        path.chmod(0o775)
    assert step(cache, **env)[1:3] == ["0", "3"]


@owners
def test_who_may_write_into_a_folder_or_replace_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outer = tmp_path / "a"
    inner, why = _cache._private(str(outer / "b"))
    assert (inner, why) == (outer / "b" / "kernels", "")
    assert inner is not None
    assert inner.stat().st_mode & 0o077 == 0
    for place, mode, words in [
        (outer / "b", 0o775, f"others may write into {outer / 'b'}"),
        (outer / "b", 0o757, f"others may write into {outer / 'b'}"),
        (outer, 0o777, f"others may write into {outer}"),
        (outer, 0o1777, ""),  # sticky: what is in it is its owners'
        (inner, 0o755, f"others may use {inner}"),
        (outer / "b", 0o755, ""),
    ]:
        usual = place.stat().st_mode & 0o7777
        place.chmod(mode)
        assert _cache._private(str(outer / "b"))[1] == words
        place.chmod(usual)
    (tmp_path / "link").symlink_to(outer)
    assert _cache._private(str(tmp_path / "link" / "b"))[0] == inner  # by the path that has no links
    inner.rename(tmp_path / "elsewhere")
    inner.symlink_to(tmp_path / "elsewhere")
    assert "is a link" in _cache._private(str(outer / "b"))[1]
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    assert "belongs to another user" in _cache._private(str(outer / "b"))[1]


@owners
def test_a_refused_cache_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setattr(_cache, "_found", [])
    monkeypatch.setenv("XOPT_CACHE_DIR", str(tmp_path / "open"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.warns(RuntimeWarning, match="XOPT_CACHE_DIR: others may write into .*: compiled code is not kept"):
        _cache.folder()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _cache.folder() is not None
    assert not any((tmp_path / "open").iterdir())


def test_a_cache_that_goes_away_is_done_without(tmp_path: Path) -> None:
    code = """
import os, shutil
import numpy as np, xopt
from xopt._engine.runners.numba import cache as _cache
p = np.ones(3)
xopt.Optimizer(p, xopt.SGD(lr=0.5), runner="numba").step(np.ones(3))
assert _cache.folder().is_absolute()
os.chdir("/")
shutil.rmtree(_cache.folder())
_cache.folder().parent.joinpath(_cache.folder().name).touch()
xopt.Optimizer(p, xopt.Adam(lr=0.25), runner="numba").step(np.ones(3))
print(p[0].round(3))
"""
    given = {**os.environ, "XOPT_CACHE_DIR": "relative", "PYTHONPATH": str(Path(xopt.__file__).parent.parent)}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=given, cwd=tmp_path
    )
    assert out.stdout == "0.25\n", out.stderr


def test_processes_may_race(tmp_path: Path) -> None:
    given = {**os.environ, "XOPT_CACHE_DIR": str(tmp_path)}
    racers = [
        subprocess.Popen([sys.executable, "-c", STEP], stdout=subprocess.PIPE, text=True, env=given) for _ in range(3)
    ]
    found = {racer.communicate(timeout=300)[0].split()[3] for racer in racers}
    assert len(found) == 1
    assert step(tmp_path)[1:3] == ["3", "0"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_after_fork() -> None:
    code = """
import os, time, warnings
import numpy as np, xopt
from xopt._engine.runners.numba.runner import Numba
from xopt._engine.runners import threads as _pool
warnings.simplefilter("ignore")
p, g = np.ones(5000), np.linspace(-1, 1, 5000)
opt = xopt.Optimizer(p, xopt.Adam(), runner=Numba(2, 64))
opt.step(g)
time.sleep(0.5)  # until its threads are idle
assert _pool._started > 0
want, _ = xopt.Adam().apply(p, g, opt.state, runner="eager")
child = os.fork()
if child == 0:
    opt.step(g)
    xopt.Optimizer(np.ones(9), xopt.RMSProp(), runner="numba").step(np.ones(9))
    os._exit(0 if np.array_equal(p, want) else 1)
_, status = os.waitpid(child, 0)
assert status == 0, status
opt.step(g)
print("done" if np.array_equal(p, want) else "the parent is wrong")
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert out.stdout == "done\n", out.stderr


def test_warnings_as_errors_do_not_stop_a_step_half_way() -> None:
    code = """
import numpy as np, xopt
from xopt._engine.runners.numba.runner import Numba
np.seterr(all="raise")
p, g = np.ones(1000, "float32"), np.full(1000, 3e38, "float32")
g[7], g[500], g[501] = np.nan, np.inf, 0
for rule in (xopt.Adam(lr=1e300, eps=0.0), xopt.chain(xopt.ClipByGlobalNorm(1e-300), xopt.RMSProp(eps=0.0))):
    xopt.Optimizer(p, rule, runner=Numba(3, 64)).step(g)
assert np.isnan(p[7])
print("done")
"""
    assert step("", code) == ["done"]


# --- torch on the CPU ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_torch_tensors_in_place(dtype: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    start = [
        rng.standard_normal((5, 3)),
        rng.standard_normal(200),
        rng.standard_normal(()),
        rng.standard_normal((4, 3)).T,
    ]
    params = [torch.tensor(x).to(kind) if k < 3 else torch.tensor(x.T).to(kind).T for k, x in enumerate(start)]
    own = [x.detach().clone() for x in params]
    for x in params:
        x.requires_grad_()
    memory = [x.data_ptr() for x in params]
    rule = xopt.chain(xopt.ClipByGlobalNorm(3.0), xopt.AdamW(0.1, weight_decay=0.1))
    state = rule.init(own)
    opt = xopt.Optimizer(params, rule)
    assert opt.runner == "numba"
    for _ in range(3):
        loss = sum((x.float() ** 2 * y).sum() for x, y in zip(params, (3.0, 1.0, 2.0, 0.5), strict=True))
        for x in params:
            x.grad = None
        loss.backward()
        stale = params[1] * params[1]
        own, state = rule.apply(own, [x.grad for x in params], state, runner="eager")
        opt.step([x.grad for x in params])
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            stale.sum().backward()
    assert [x.data_ptr() for x in params] == memory
    for x, y in zip(params, own, strict=True):
        assert x.requires_grad
        if dtype in ("float16", "bfloat16"):
            assert torch.equal(x.detach(), y)
        else:
            torch.testing.assert_close(x.detach(), y, rtol=1e-6, atol=0)
    slots = optree.tree_leaves(opt.state.slots)
    assert all(isinstance(x, torch.Tensor) for x in slots)


def test_torch_data_refused_is_refused_again() -> None:
    torch = pytest.importorskip("torch")
    for runner in ("numba", "tiled", "eager"):
        p, q = torch.ones(5), torch.full((5,), 2.0)
        opt = xopt.Optimizer([p, q], xopt.SGD(lr=0.5), runner=runner)
        opt.step([torch.ones(5)] * 2)
        old, p.data = p.data, q.data
        for _ in range(2):
            with pytest.raises(ValueError, match=r"params\[1\]: shares memory with params\[0\]"):
                opt.step([torch.ones(5)] * 2)
        assert old.tolist() == [0.5] * 5
        p.data = old
        opt.step([torch.ones(5)] * 2)
        assert p.tolist() == [0.0] * 5
        z = torch.tensor([1 + 2j])
        opt = xopt.Optimizer(z, xopt.SGD(lr=1.0), runner=runner)
        z.data = z.data.conj()
        with pytest.raises(ValueError, match="stands for the conjugate"):
            opt.step(torch.ones(1, dtype=z.dtype))


def test_torch_data_replaced(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    p = torch.ones(5)
    opt = xopt.Optimizer([p], xopt.SGD(lr=0.5), runner="numba")
    opt.step([torch.ones(5)])
    p.data = torch.full((5,), 3.0)
    opt.step([torch.ones(5)])
    assert torch.equal(p, torch.full((5,), 2.5))
    new, _ = walk(xopt.SGD(lr=0.5), [p], [[torch.ones(5)]], runner="numba")
    assert torch.equal(new[0], torch.full((5,), 2.0))
    assert torch.equal(p, torch.full((5,), 2.5))
