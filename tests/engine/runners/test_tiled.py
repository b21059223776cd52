"""The tiled runner gives the bits of the eager one: any tile size, any number of threads, anything in the data."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import weakref
from typing import Any

import catalog
import numpy as np
import optree
import pytest
from catalog import Row
from support.memory import peak
from support.runners import CHAIN, CHAINS, RULES, after_fork, awkward, poison, same_bits, step_in_threads, trajectory

import xopt
from xopt import _arrays
from xopt._engine.program import plan as _plan
from xopt._engine.program import summation as _summation
from xopt._engine.runners import eager
from xopt._engine.runners.tiled import codegen as _codegen
from xopt._engine.runners.tiled import runner as tiled
from xopt._engine.runners.tiled.runner import Tiled
from xopt._engine.runners.tiled.tiling import Leaves, parts

TILES = [1, 3, 7, 64, 4097]
DTYPES = ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("dtype", ["bfloat16", "complex64"])
def test_tiles(rule: Any, dtype: str, rng: np.random.Generator) -> None:
    params = awkward(rng, dtype)
    grads = [poison(awkward(rng, dtype), rng, rule), awkward(rng, dtype)]
    want = trajectory(rule, params, grads, "eager")
    assert all(map(same_bits, trajectory(rule, params, grads, Tiled(64, 2)), want))


@pytest.mark.parametrize("rule", [xopt.Adam(0.1), CHAIN], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_tile_and_dtype(rule: Any, dtype: str, rng: np.random.Generator) -> None:
    whole = [awkward(rng, dtype) for _ in range(5)]
    poison(whole[3], rng, rule)
    few = [[x for x in optree.tree_leaves(tree) if x.size < 100] for tree in whole]  # else thousands of tasks of one
    for tile in TILES:
        params, *grads = few if tile <= 3 else whole
        want = trajectory(rule, params, grads, "eager")
        for threads in (1, 2, 3, 4) if tile == 64 else (1 + tile % 4,):
            got = trajectory(rule, params, grads, Tiled(tile, threads))
            assert all(map(same_bits, got, want)), (tile, threads)


@pytest.mark.parametrize("row", catalog.TRACED, ids=lambda row: row.rule.__name__)
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_every_option(row: Row, dtype: str, rng: np.random.Generator) -> None:
    params = awkward(rng, dtype)
    grads = [poison(awkward(rng, dtype), rng, row.make()), awkward(rng, dtype)]
    decays = catalog.DECAYS[:1] if dtype == "float32" or row.rule is xopt.AdamW else []
    for options in [*row.options, *catalog.COMMON, *decays]:
        for mode in ("modulus", "split") if "complex" in dtype else ("modulus",):
            rule = row.make(complex=mode, **options)
            want = trajectory(rule, params, grads, "eager")
            assert all(map(same_bits, trajectory(rule, params, grads, Tiled(64, 1)), want)), rule


@pytest.mark.parametrize(
    ("rule", "tile"),
    [*((rule, 64) for rule in RULES), *((rule, tile) for rule in CHAINS for tile in TILES if tile != 64)],
    ids=lambda x: x if isinstance(x, int) else type(x).__name__,
)
def test_in_place_equals_pure(rule: Any, tile: int, rng: np.random.Generator) -> None:
    """Optimizer computes in the arrays themselves, its state in one buffer a slot."""
    params, grads = awkward(rng, "float32"), [awkward(rng, "float32") for _ in range(3)]
    grads[1]["many"][2] = None
    grads[1]["rows"] = np.ascontiguousarray(grads[1]["rows"])
    want = trajectory(rule, params, grads, "eager")
    opt = xopt.Optimizer(params, rule, runner=Tiled(tile, 2))
    for g in grads:
        opt.step(g)
    assert all(map(same_bits, optree.tree_leaves((params, opt.state.slots)), want))


def test_poison_is_poison(rng: np.random.Generator) -> None:
    found = np.concatenate([x.ravel() for x in optree.tree_leaves(poison(awkward(rng, "float32"), rng))])
    assert np.isnan(found).any()
    assert np.isinf(found).any()
    assert ((np.abs(found) < np.finfo("f4").tiny) & (found != 0)).any()
    assert (np.signbit(found) & (found == 0)).any()


def test_two_dtypes_in_one_tree(rng: np.random.Generator) -> None:
    kinds = ["float32", "float64", "float16", "complex64", "float32", "complex128", "float64"]
    draw = lambda: [np.asarray(rng.standard_normal(9), k) for k in kinds]
    params, grads = draw(), [draw() for _ in range(3)]
    for rule in RULES:
        want = trajectory(rule, params, grads, "eager")
        assert all(map(same_bits, trajectory(rule, params, grads, Tiled(7, 2)), want))


def test_which_runner_ran(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison of two runners is worth nothing if one of them ran twice."""
    ran = []
    monkeypatch.setattr(eager, "prepare", lambda *args, real=eager.prepare: ran.append("eager") or real(*args))
    monkeypatch.setattr(Tiled, "prepare", lambda *args, real=Tiled.prepare: ran.append("tiled") or real(*args))
    p, rule = rng.standard_normal(5), xopt.Adam()
    for runner in ("eager", "tiled", None):
        rule.apply(p, p, rule.init(p), runner=runner)
    assert ran == ["eager", "tiled", "tiled"]


def test_a_tile_fits_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    for cache, want in [(1 << 20, 32_768), (1 << 21, 65_536), (1 << 30, 131_072), (1 << 12, 8_192)]:
        monkeypatch.setattr("xopt._engine.runners.threads.cache", lambda cache=cache: cache)
        assert tiled.fitting(4, _arrays.DTYPES["float32"], split=False) == want
    monkeypatch.setattr("xopt._engine.runners.threads.cache", lambda: 1 << 21)
    for arrays, dtype, split, want in [
        (2, "float32", False, 131_072),
        (4, "float16", False, 65_536),
        (4, "float64", False, 32_768),
        (4, "complex64", False, 32_768),
        (4, "complex64", True, 65_536),
    ]:
        assert tiled.fitting(arrays, _arrays.DTYPES[dtype], split) == want
    used = set()
    real = Leaves.tasks
    monkeypatch.setattr(Leaves, "tasks", lambda self, tile, *a, **k: used.add(tile) or real(self, tile, *a, **k))
    opt = xopt.Optimizer(np.zeros(9), xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam()), runner="tiled")
    opt.step(np.ones(9))
    assert used == {32_768}


def test_large_leaf_uses_threads(rng: np.random.Generator) -> None:
    used = set()
    real = _codegen.numpy_kernel(_plan.plan(xopt.SGD()._specs(), False).body(("p",)))
    n = 5 * 32_768 + 3
    p, g = rng.standard_normal(n, dtype="float32"), rng.standard_normal(n, dtype="float32")
    want = p - np.float32(0.1) * g

    both = threading.Barrier(2, timeout=60)

    def spy(*args: Any) -> None:
        name = threading.current_thread().name
        if name not in used:
            used.add(name)
            both.wait()  # the first task of each thread: neither can do all of them
        real.run(*args)

    opt = xopt.Optimizer(p, xopt.SGD(lr=0.1), runner=Tiled(4096, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_codegen, "numpy_kernel", lambda program: real._replace(run=spy))
        opt.step(g)
    assert len(used) == 2
    assert np.array_equal(p, want)


def test_warnings_as_errors_do_not_stop_a_step_half_way() -> None:
    """Overflow, division by zero and invalid values in a pool thread, with every warning an error."""
    code = """
import numpy as np, xopt
from xopt._engine.runners.tiled.runner import Tiled
np.seterr(all="raise")
for runner in ("eager", Tiled(64, 3)):
    p = np.ones(1000, "float32")
    g = np.full(1000, 3e38, "float32")
    g[7], g[500], g[501] = np.nan, np.inf, 0
    for rule in (xopt.Adam(eps=0.0), xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.RMSProp(eps=0.0))):
        xopt.Optimizer(p, rule, runner=runner).step(g)
    assert np.isnan(p[7]) and np.isnan(p[501])
print("done")
"""
    out = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert out.stdout == "done\n", out.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_after_fork() -> None:
    """The child starts threads of its own instead of waiting for ever."""
    after_fork("xopt._engine.runners.tiled.runner", "Tiled(64, 2)")  # with more than one helper, it would anyway


def test_two_threads_step_two_optimizers(rng: np.random.Generator) -> None:
    step_in_threads(Tiled(512, 2), rng)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (5, 0), (3, 4), (2, 3, 5), (1, 1, 9), (40, 2)])
@pytest.mark.parametrize("tile", [1, 2, 3, 7, 100])
def test_parts_cover_a_leaf_once_and_in_order(shape: tuple[int, ...], tile: int) -> None:
    x = np.arange(int(np.prod(shape))).reshape(shape)
    for plain in (True, False):
        seen: list[int] = []
        for low, high, block in parts(shape, plain, tile):
            assert 0 < high - low <= tile
            part = x.reshape(-1)[low:high] if block is None else x[block]
            assert part.size == high - low
            seen += part.reshape(-1).tolist()
        assert seen == list(range(x.size))


def test_small_leaves_share_a_tile() -> None:
    leaves = Leaves({"p": [np.zeros(10) for _ in range(50)] + [np.zeros(1000), np.zeros(3), np.zeros((4, 4)).T]})
    tasks = leaves.tasks(100, 100)
    assert sorted(len(task.leaves) for task in tasks)[-5:] == [10] * 5
    assert all(task.size <= 100 for task in tasks)
    assert sum(task.size for task in tasks) == 50 * 10 + 1000 + 3 + 16


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 200_003])
@pytest.mark.parametrize("layout", ["plain", "strided", "turned"])
def test_norm_is_summed_in_one_order(size: int, layout: str, rng: np.random.Generator) -> None:
    """A norm has the same bits for any tile and thread count, and is close to the exact one."""
    g = rng.standard_normal(2 * size)[::2] if layout == "strided" else rng.standard_normal(size)
    if layout == "turned":
        g = np.asfortranarray(g[: size // 7 * 7].reshape(7, -1))
    p = np.zeros(g.shape)
    rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.SGD(lr=1.0))
    state = rule.init(p)
    want, _ = rule.apply(p, g, state, runner="eager")
    for tile, threads in [(64, 3), (4097, 1), (32_768, 2), (65_536, 2), (100_000, 1)]:
        got, _ = rule.apply(p, g, state, runner=Tiled(tile, threads))
        assert np.array_equal(got, want), (tile, threads)
    if g.size:
        np.testing.assert_allclose(np.linalg.norm(want), 1, rtol=1e-14)


def test_chunk_is_a_constant_of_the_format() -> None:
    """The order of summation is part of the promise: a change of the chunk changes the last bits of every norm."""
    assert _summation.CHUNK == 65_536


def test_peak_memory_of_a_step_is_scratch_only(rng: np.random.Generator) -> None:
    p, g = np.ones(2**21, "float32"), np.ones(2**21, "float32")
    opt = xopt.Optimizer(p, xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.AdamW()))
    opt.step(g)
    most = peak(lambda: opt.step(g))
    assert most < 2e6, f"{most / 1e6:.1f} MB beside 8 MB of parameters"


def test_gradients_are_not_kept(rng: np.random.Generator) -> None:
    for sizes in ([100], [100, 50, 3]):
        params = [rng.standard_normal(n) for n in sizes]
        grads = [rng.standard_normal(n) for n in sizes]
        opt = xopt.Optimizer(params, xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam()))
        gone = [weakref.ref(g) for g in grads]
        for _ in range(2):
            opt.step(grads)
        del grads
        assert [g() for g in gone] == [None] * len(sizes)


def test_an_optimizer_does_not_grow(rng: np.random.Generator) -> None:
    """Gradients that are now in C order and now not: other tasks each time, and nothing is kept of them."""
    params = [rng.standard_normal((4, 5)) for _ in range(6)]
    opt = xopt.Optimizer(params, xopt.Adam(0.1))
    want, state = [p.copy() for p in params], opt.rule.init(params)
    sizes = set()
    for k in range(30):
        grads = [rng.standard_normal((4, 5)) for _ in params]
        if k % 2:
            grads[k % 6] = np.asfortranarray(grads[k % 6])
        opt.step(grads)
        want, state = opt.rule.apply(want, grads, state, runner="eager")
        if k > 2:
            sizes.add(len(opt._memory[0].cache))
    assert len(sizes) == 1
    assert all(map(same_bits, params, want))


def test_kernel_source_uses_memory_that_is_there() -> None:
    """Adam: no NumPy call without `out=`, and one register."""
    plan = _plan.plan(xopt.Adam()._specs(), False)
    kernel = _codegen.numpy_kernel(plan.body(("p", *plan.live)))
    lines = kernel.source.splitlines()[1:]
    assert all("out=" in line for line in lines)
    assert len(lines) == 12
    assert kernel.registers == ("real",)
    assert "multiply(s0, l_2, out=o_1)" in kernel.source, "what leads to m is computed in the memory of m"


def test_state_arrays_begin_at_other_lines_of_their_pages() -> None:
    """Large arrays begin where pages do; reads and writes at one place in their pages would wait for each other."""
    p = np.zeros(2**20, "float32")
    opt = xopt.Optimizer(p, xopt.Adam(lr=0.1, amsgrad=True))
    begins = [x.ctypes.data for x in opt.state.slots.values()]
    assert len(begins) == 3
    assert all(n % 64 == 0 for n in begins)
    assert len({n % 4096 // 64 for n in [*begins, p.ctypes.data]}) == 4
