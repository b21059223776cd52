"""The kernels of the cuda runner, their text built by a C++ compiler and run on the host: the bits of eager NumPy."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import catalog
import numpy as np
import optree
import pytest
from catalog import Row
from conftest import walk
from support import host_cuda
from support.cuda_rules import DTYPES, EVERY, MODES, Inexact, near, of
from support.host_cuda import HostDriver, kernels
from support.runners import CHAIN, RULES, alike, awkward, poison, same_bits, trajectory

import xopt
from xopt._engine.program import summation as _summation
from xopt._engine.runners.cuda import codegen as _codegen
from xopt._engine.runners.cuda import templates as _templates
from xopt._engine.runners.cuda.runner import Cuda


@pytest.fixture(scope="module")
def driver(kernel_folder: Path) -> HostDriver:
    """Compile what the tests of this file use most, all at once."""
    host_cuda.needs_compiler()
    made = HostDriver(kernel_folder)
    wanted = [k for rule in RULES for dtype in DTYPES for mode in MODES for k in kernels(of(rule, mode), dtype)]
    wanted += [k for rule in EVERY for dtype in ("float32", "complex64") for k in kernels(rule, dtype)]
    wanted += [k for rule in EVERY for k in kernels(of(rule, "split"), "complex64")]
    wanted += [k for rule in EVERY for dtype in ("float16", "float32") for k in kernels(rule, dtype, False)]
    made.build(wanted)
    return made


def shifted(tree: Any) -> Any:
    """Move every second leaf one element off, so that it lies on no 16 bytes."""
    count = iter(range(10**6))

    def move(x: Any) -> Any:
        if next(count) % 2 or not x.flags.c_contiguous:
            return x
        buffer = np.empty(x.size + 1, x.dtype)
        buffer[1:] = x.ravel()
        return buffer[1:].reshape(x.shape)

    return optree.tree_map(move, tree)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits(rule: Any, dtype: str, driver: HostDriver, rng: np.random.Generator) -> None:
    """Leaves of every shape, misaligned, empty, not contiguous; NaN, infinities and denormals among them."""
    for mode in MODES if "complex" in dtype else ("modulus",):
        exact = "complex" not in dtype or mode == "split"
        chosen, params = of(rule, mode), shifted(awkward(rng, dtype))
        grads = [
            shifted(poison(awkward(rng, dtype), rng, rule)) if exact and k == 2 else awkward(rng, dtype)
            for k in range(4)
        ]
        want = trajectory(chosen, params, grads, "eager")
        got = trajectory(chosen, params, grads, Cuda(driver))
        assert all(map(alike(rule) if exact else near, got, want)), mode


@pytest.mark.parametrize("row", catalog.TRACED, ids=lambda row: row.rule.__name__)
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_every_option(row: Row, dtype: str, driver: HostDriver, rng: np.random.Generator) -> None:
    params, smooth = awkward(rng, dtype), [awkward(rng, dtype), awkward(rng, dtype)]
    decays = catalog.DECAYS[:1] if row.rule in (xopt.AdamW, xopt.ScheduleFreeSGD, xopt.ASGD) else []
    for options in [*row.options, *catalog.COMMON, *decays]:
        for mode in MODES if "complex" in dtype else ("modulus",):
            exact = "complex" not in dtype or mode == "split"
            rule = row.make(complex=mode, **options)
            grads = [poison(optree.tree_map(np.copy, smooth[0]), rng, rule), smooth[1]] if exact else smooth
            want = trajectory(rule, params, grads, "eager")
            assert all(map(alike(rule) if exact else near, trajectory(rule, params, grads, Cuda(driver)), want)), rule


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_in_place(rule: Any, dtype: str, driver: HostDriver, rng: np.random.Generator) -> None:
    params = shifted(awkward(rng, dtype))
    grads = [shifted(poison(awkward(rng, dtype), rng, rule)) for _ in range(3)]
    grads[1]["many"][2] = None
    want = trajectory(rule, params, grads, "eager")
    opt = xopt.Optimizer(params, rule, runner=Cuda(driver))
    for g in grads:
        opt.step(g)
    assert opt.runner == "cuda"
    assert all(map(alike(rule), optree.tree_leaves((params, opt.state.slots)), want))


@pytest.mark.parametrize("rule", [CHAIN, xopt.Adam(0.1, amsgrad=True, complex="split")], ids=["chain", "adam"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_every_dtype(rule: Any, dtype: str, driver: HostDriver, rng: np.random.Generator) -> None:
    rule = of(rule, "split")
    params, grads = shifted(awkward(rng, dtype)), [awkward(rng, dtype) for _ in range(3)]
    want = trajectory(rule, params, grads, "eager")
    opt = xopt.Optimizer(params, rule, runner=Cuda(driver))
    for g in grads:
        opt.step(g)
    assert all(map(same_bits, optree.tree_leaves((params, opt.state.slots)), want))


def test_two_dtypes_and_the_change_alone(driver: HostDriver, rng: np.random.Generator) -> None:
    few = ["float32", "complex128", "float32"]
    for rule in [*RULES, RealStep()]:
        kinds = ["float64", "float16", "complex64", *few, "float64"] if rule in (CHAIN, RULES[0], RealStep()) else few
        params, grads = ([np.asarray(rng.standard_normal(9), k) for k in kinds] for _ in range(2))
        state = rule.init(params)
        for call in (rule.apply, rule.updates):
            got = optree.tree_leaves(call(params, grads, state, runner=Cuda(driver))[0])
            want = optree.tree_leaves(call(params, grads, state, runner="eager")[0])
            for x, y in zip(got, want, strict=True):
                assert (alike(rule) if "complex" not in x.dtype.name else near)(x, y)


class RealStep(xopt.Rule):
    """A step that is real even where the parameter is complex."""

    @staticmethod
    def update(h: Any, xp: Any, p: Any, g: Any) -> Any:
        return -0.5 * xp.abs(g)


def test_wide_where_aligned_and_only_there(tmp_path: Any, rng: np.random.Generator) -> None:
    driver = HostDriver(tmp_path)
    rule = xopt.SGD(0.1)
    for offset in range(9):
        p, g = np.zeros(4110, "f4")[offset:4105], rng.standard_normal(4110).astype("f4")[offset:4105]
        assert p.ctypes.data % 16 == 4 * offset % 16, "NumPy aligns to 16 bytes"
        rule.apply(p, g, rule.init(p), runner=Cuda(driver))
        [kernel] = kernels(rule, "float32")
        count = driver._library(kernel.source).accesses()
        # fresh results lie on 16 bytes; two reads and a write for every four elements
        assert count == (0 if offset % 4 else 3 * (p.size // 4)), offset


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 127, 128, 129, 263, 1000, 65_535, 65_536, 65_537, 200_003])
def test_norm_has_the_bits_of_numpy(n: int, driver: HostDriver, rng: np.random.Generator) -> None:
    g = rng.standard_normal(n) * 10.0 ** rng.integers(-9, 9, n)
    p, rule = np.zeros(n), xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.SGD(lr=1.0))
    want, _ = rule.apply(p, g, rule.init(p), runner="eager")
    got, _ = rule.apply(p, g, rule.init(p), runner=Cuda(driver))
    assert np.array_equal(got, want)


def test_every_length_of_a_chunk(driver: HostDriver, rng: np.random.Generator) -> None:
    """NumPy halves a sum at multiples of eight: how deep it goes depends on the length."""
    lengths = [*range(300), *rng.integers(300, 65_537, 200).tolist(), 65_535, 65_528, 32_767, 4103, 2055]
    g = [rng.standard_normal(n) for n in lengths]
    piece = xopt.chain(xopt.ClipByNorm(1.0), xopt.SGD())
    state, seen = piece.init(g), []
    runner = Cuda(driver)
    real = Cuda.sums
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cuda, "sums", lambda *args: seen.append(real(*args)) or seen[-1])
        piece.apply(g, g, state, runner=runner)
    got = seen[0]["total"]
    assert got.tolist() == [_summation.leaf_sum(x * x) for x in g]


def test_sums_with_real_threads(tmp_path: Any, rng: np.random.Generator) -> None:
    """Threads that run at once and wait for each other where the text says so."""
    team = HostDriver(tmp_path, team=5)
    g = [rng.standard_normal(n).astype("f4") for n in (70_003, 3, 0, 1029)]
    rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.ClipByNorm(0.7), xopt.SGD(lr=1.0))
    want, _ = rule.apply(g, g, rule.init(g), runner="eager")
    got, _ = rule.apply(g, g, rule.init(g), runner=Cuda(team))
    assert all(map(same_bits, got, want))


class Alone(xopt.Rule):
    """Operations that treat NaN, infinities and zeros apart, each with a result of its own."""

    @staticmethod
    def update(
        h: Any, xp: Any, p: Any, g: Any,
        a: Any = 0.0, b: Any = 0.0, c: Any = 0.0, d: Any = 0.0, e: Any = 0.0, f: Any = 0.0, i: Any = 0.0, j: Any = 0.0,
    ) -> Any:  # fmt: skip
        a, b, c = a + xp.sign(g), b + xp.maximum(p, g), c + xp.minimum(g, p)
        d = xp.where(xp.isnan(g), d + 1, d)
        e = xp.where(xp.isinf(g), e + 1, e)
        f = xp.where(xp.isfinite(g), f + 1, f)
        i = xp.where((g > p) | (g == p), i + 1, xp.where((g <= p) & (g != p), i + 2, i + 4))
        return p * 0 + 1, a, b, c, d, e, f, i, xp.where(~((g >= p) & (g < 0.5)), j + 1, xp.abs(j - g))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_special_numbers_one_operation_at_a_time(dtype: str, driver: HostDriver, rng: np.random.Generator) -> None:
    params, grads = poison(awkward(rng, dtype), rng), [poison(awkward(rng, dtype), rng) for _ in range(2)]
    want, got = (trajectory(Alone(), params, grads, r) for r in ("eager", Cuda(driver)))
    assert all(map(same_bits, got, want))


def test_indices_are_wide(tmp_path: Any) -> None:
    """The chunk that holds element 2**31, and the last one of 2**40."""
    call = "const Part c = part(Chunk{0, number}, &size); at[0] = c.first; at[1] = c.size;"
    text = 'extern "C" void where(long long* at, int number, long long size) {' + call + "}\n"
    library = HostDriver(tmp_path)._library(_templates.PREAMBLE + text)
    for size in (2**31 + 1, 2**40 + 77):
        for number in (0, size // _templates.CHUNK):
            at = np.zeros(2, np.int64)
            library.where(ctypes.c_void_p(at.ctypes.data), number, ctypes.c_longlong(size))
            assert at[0] == number * _templates.CHUNK
            assert at[1] == min(_templates.CHUNK, size - at[0])
    [kernel] = kernels(xopt.SGD(), "float16")
    assert "(Half*)a.pointers[0 * a.leaves + c.leaf] + c.first;" in kernel.source


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_every_function(dtype: str, driver: HostDriver, rng: np.random.Generator) -> None:
    """Functions of the C library are not NumPy's to the last bit: a few units."""
    [kernel] = kernels(Inexact(), dtype)
    assert {node.op for node in kernel.program.nodes} >= set(_codegen.operations("float32")) - {"hypot", "noise"}
    params, grads = awkward(rng, dtype), [poison(awkward(rng, dtype), rng)]
    for x, y in zip(*(trajectory(Inexact(), params, grads, r) for r in ("eager", Cuda(driver))), strict=True):
        eps = 2.0**-8 if dtype == "bfloat16" else np.finfo(x.dtype).eps
        np.testing.assert_allclose(y.astype("f8"), x.astype("f8"), rtol=16 * eps, atol=16 * eps)


def test_conversions_of_sixteen_bits(driver: HostDriver) -> None:
    """Every float16 and bfloat16 there is, stored again; halfway cases to even."""
    import ml_dtypes

    rule = xopt.SGD(1.0)
    for kind in (np.float16, ml_dtypes.bfloat16):
        p = np.arange(2**16, dtype=np.uint16).view(kind)
        got, _ = rule.apply(p, np.zeros_like(p), rule.init(p), runner=Cuda(driver))
        want, _ = rule.apply(p, np.zeros_like(p), rule.init(p), runner="eager")
        assert np.array_equal(np.isnan(got), np.isnan(want))
        assert np.array_equal(got[~np.isnan(got)].view("u2"), want[~np.isnan(got)].view("u2"))
        half = (np.arange(1, 2**14, 2, dtype="f4") * np.float32(2.0**-20)).astype(kind)
        got, want = (rule.apply(p[: half.size], half, rule.init(half), runner=r)[0] for r in (Cuda(driver), "eager"))
        assert np.array_equal(got, want, equal_nan=True)


def test_state_walks_on(driver: HostDriver, rng: np.random.Generator) -> None:
    """The state of one runner goes on in another."""
    p, grads = rng.standard_normal(50), [rng.standard_normal(50) for _ in range(4)]
    rule = xopt.chain(xopt.ClipByGlobalNorm(2.0), xopt.Adam())
    want, _ = walk(rule, p, grads)
    half, state = walk(rule, p, grads[:2], runner=Cuda(driver))
    for g in grads[2:]:
        half, state = rule.apply(half, g, state)
    assert np.array_equal(half, want)
