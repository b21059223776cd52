"""What the cuda runner puts where, and when: tables, scalars, streams, refusals. Run on the host, without a GPU."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optree
import pytest
from conftest import available
from support import host_cuda
from support.host_cuda import STEP, HostDriver
from support.runners import RULES, awkward, same_bits, trajectory

import xopt
from xopt._arrays.layout import Layout
from xopt._engine.program.algebra import Value
from xopt._engine.program.contract import StepScalars
from xopt._engine.runners import choose as _choose
from xopt._engine.runners import eager
from xopt._engine.runners.cuda import templates as _templates
from xopt._engine.runners.cuda.runner import Cuda

CLIPPED = xopt.chain(xopt.ClipByGlobalNorm(0.5), xopt.Adam(0.1))


@pytest.fixture
def driver(kernel_folder: Path) -> HostDriver:
    host_cuda.needs_compiler()
    return HostDriver(kernel_folder)


def leaves(rng: np.random.Generator, sizes: Any = (5, 70_000, 0, 1)) -> list[Any]:
    return [rng.standard_normal(n).astype("f4") for n in sizes]


def new(driver: HostDriver) -> list[str]:
    """Return the launches since the last time."""
    found, driver.launches = driver.launches, []
    return found


def test_one_launch_a_stage(driver: HostDriver, rng: np.random.Generator) -> None:
    """However many leaves; tables go up once, places of gradients when they change."""
    params = [rng.standard_normal((n % 7, 3)) for n in range(100)]
    opt = xopt.Optimizer(params, xopt.Adam(), runner=Cuda(driver))
    grads = [rng.standard_normal(p.shape) for p in params]
    opt.step(grads)
    first = new(driver)
    assert first.count(STEP) == 1
    assert len(first) == 1 + -(-(2 * 100 + 1 + 86 + 4 * 100) // _templates.UPLOAD)
    for _ in range(3):
        opt.step(grads, lr=0.5)
        assert new(driver) == [STEP]
    for g in grads:
        g *= 2
    opt.set(lr=0.25)
    opt.step(grads)
    assert new(driver) == [STEP]
    grads[7] = grads[7].copy()
    opt.step(grads)
    assert new(driver) == ["xopt_store", STEP]
    opt.step(grads)
    assert new(driver) == [STEP]


def test_a_norm_is_two_launches(driver: HostDriver, rng: np.random.Generator) -> None:
    params, grads = leaves(rng), leaves(rng)
    opt = xopt.Optimizer(params, CLIPPED, runner=Cuda(driver))
    opt.step(grads)
    new(driver)
    opt.step(grads)
    assert new(driver) == ["xopt_sums", "xopt_ordered", "xopt_ordered", STEP]


def test_links_of_a_chain_are_no_more_launches(driver: HostDriver, rng: np.random.Generator) -> None:
    rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.AdamW(), xopt.Cautious(rescale=False), xopt.EMA(0.9))
    params, grads = leaves(rng), leaves(rng)
    opt = xopt.Optimizer(params, rule, runner=Cuda(driver))
    opt.step(grads)
    new(driver)
    opt.step(grads)
    assert new(driver) == ["xopt_sums", "xopt_ordered", "xopt_ordered", STEP]


def test_text_is_compiled_once(driver: HostDriver, rng: np.random.Generator) -> None:
    params = leaves(rng)
    opt = xopt.Optimizer(params, CLIPPED, runner=Cuda(driver))
    opt.step(leaves(rng))
    known = set(driver._functions)
    for k in range(3):
        opt.set(lr=0.1 * k, max_norm=1.0 + k)
        opt.step(leaves(rng), b1=0.1 * k)
    xopt.Optimizer(leaves(rng, (9, 4)), CLIPPED, runner=Cuda(driver)).step(leaves(rng, (9, 4)))
    assert set(driver._functions) == known


def test_another_stream_has_its_own_tables(driver: HostDriver, rng: np.random.Generator) -> None:
    """Their memory is given back in the order of the stream that it was taken in."""
    params, grads = leaves(rng), leaves(rng)
    want = trajectory(xopt.Adam(), params, [grads] * 3, "eager")
    opt = xopt.Optimizer(params, xopt.Adam(), runner=Cuda(driver))
    opt.step(grads)
    driver.stream = 7
    new(driver)
    opt.step(grads)
    assert new(driver) == ["xopt_store", STEP]
    opt.step(grads)
    assert new(driver) == [STEP]
    assert all(map(same_bits, optree.tree_leaves((params, opt.state.slots)), want))


def test_capture_is_refused_before_anything(driver: HostDriver, rng: np.random.Generator) -> None:
    for rule in (xopt.Adam(), CLIPPED):
        params, grads = leaves(rng), leaves(rng)
        opt = xopt.Optimizer(params, rule, runner=Cuda(driver))
        opt.step(grads)
        before = [x.copy() for x in optree.tree_leaves((params, opt.state.slots))]
        new(driver)
        driver.captured = True
        with pytest.raises(RuntimeError, match=r"cannot be captured in a CUDA graph.*call step outside"):
            opt.step(grads)
        driver.captured = False
        assert new(driver) == []
        assert opt.state.step == 1
        assert all(map(same_bits, optree.tree_leaves((params, opt.state.slots)), before))


@pytest.mark.parametrize("fails", ["xopt_store", "xopt_sums", "xopt_ordered"])
def test_a_launch_that_fails_leaves_everything(fails: str, driver: HostDriver, rng: np.random.Generator) -> None:
    """And the next step does not believe that the places of gradients went up."""
    params, grads = leaves(rng), leaves(rng)
    opt = xopt.Optimizer(params, CLIPPED, runner=Cuda(driver))
    opt.step(grads)
    before = [x.copy() for x in optree.tree_leaves((params, opt.state.slots))]
    other = [-g for g in grads]

    def launch(function: Any, *args: Any) -> None:
        if function[1] == fails:
            raise RuntimeError("CUDA: no more memory")
        HostDriver.launch(driver, function, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "launch", launch)
        with pytest.raises(RuntimeError, match="no more memory"):
            opt.step(other)
    assert all(map(same_bits, optree.tree_leaves((params, opt.state.slots)), before))
    want = [x.copy() for x in params]
    want, _ = opt.rule.apply(want, other, opt.state, runner="eager")
    opt.step(other)
    assert all(map(same_bits, params, want))


def test_gradients_are_not_kept(driver: HostDriver, rng: np.random.Generator) -> None:
    params = [rng.standard_normal((4, 3)) for _ in range(3)]
    grads = [rng.standard_normal((4, 3)), np.asfortranarray(rng.standard_normal((4, 3))), rng.standard_normal((4, 3))]
    opt = xopt.Optimizer(params, CLIPPED, runner=Cuda(driver))
    gone = [weakref.ref(g) for g in grads]
    for _ in range(2):
        opt.step(grads)
    [tables] = [kept.cache["tables"] for kept in opt._memory]
    assert tables.held == []
    del grads
    assert [g() for g in gone] == [None] * 3


def test_not_contiguous_in_place(driver: HostDriver, rng: np.random.Generator) -> None:
    """Copies are made for the launch and written back; tables of them are not kept."""
    params = [rng.standard_normal((4, 6)).T, rng.standard_normal(20)[::-2], rng.standard_normal(5)]
    grads = [[np.asarray(rng.standard_normal(p.shape)) for p in params] for _ in range(3)]
    want = trajectory(xopt.Adam(), params, grads, "eager")
    opt = xopt.Optimizer(params, xopt.Adam(), runner=Cuda(driver))
    for g in grads:
        opt.step(g)
        assert "tables" not in opt._memory[0].cache
    assert all(map(same_bits, optree.tree_leaves((params, opt.state.slots)), want))


def test_nothing_to_do(driver: HostDriver) -> None:
    """No leaf, only empty ones, no gradient."""
    for params, grads in [([], []), ([np.zeros(0)], [np.ones(0)]), ([np.zeros(3)], [None])]:
        rule = xopt.chain(xopt.ClipByNorm(1.0), xopt.ClipByGlobalNorm(1.0), xopt.Adam())
        opt = xopt.Optimizer(params, rule, runner=Cuda(driver))
        opt.step(grads)
        assert not any(x.any() for x in params)
    assert STEP not in new(driver)


def test_what_has_no_form_runs_eagerly(
    driver: HostDriver, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Root(xopt.Rule):
        inexact = True

        @staticmethod
        def update(h: Any, xp: Any, p: Any, g: Any) -> Any:
            return xp.sqrt(g)

    ran = []
    monkeypatch.setattr(eager, "prepare", lambda *args, real=eager.prepare: ran.append(args) or real(*args))
    p = rng.standard_normal(5) + 1j * rng.standard_normal(5)
    got, _ = Root().apply(p, p, Root().init(p), runner=Cuda(driver))
    assert np.array_equal(got, p + np.sqrt(p))
    assert len(ran) == 1
    assert new(driver) == []


def test_scalars_of_the_host_the_device_and_a_leaf(driver: HostDriver, rng: np.random.Generator) -> None:
    """All three reach the kernel: a number in the arguments, a place, and a place for each leaf."""
    runner, work = Cuda(driver), list[Any]()
    p, rule = leaves(rng, (4, 0, 7)), xopt.SGD(lr=0.5, weight_decay=0.25, momentum=0.5)
    opt = xopt.Optimizer([x.copy() for x in p], rule, runner=runner)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cuda, "prepare", lambda self, w, v, into: work.append((w, v, dict(w.loads))) or (lambda: into))
        opt.step(p)
    [(w, values, loads)] = work
    w, named = replace(w, loads=loads), values.specs[0]
    by_leaf = Value(np.asarray([1.0, 2.0, 4.0]))
    mixed = StepScalars([{**named, "lr": Value(np.asarray(0.125)), "weight_decay": by_leaf}], by_leaf=True)
    fresh = replace(w, loads={n: [x.copy() for x in column] for n, column in w.loads.items()}, cache=None)
    runner.prepare(fresh, mixed, {n: fresh.loads[n] for n in fresh.outputs})()
    for k, decay in enumerate([1.0, 2.0, 4.0]):
        one = StepScalars([{**named, "lr": 0.125, "weight_decay": decay}])
        alone = replace(w, loads={n: [column[k].copy()] for n, column in w.loads.items()}, cache=None)
        eager.prepare(alone, one, {n: alone.loads[n] for n in alone.outputs})()
        for n in fresh.outputs:
            assert same_bits(fresh.loads[n][k], alone.loads[n][0]), (n, k)


def test_refusals(driver: HostDriver) -> None:
    p = np.zeros(3)
    with pytest.raises(ValueError, match=r'runner="cuda" needs CuPy arrays or torch CUDA tensors; these are of numpy'):
        xopt.Optimizer(p, xopt.Adam(), runner="cuda")
    with pytest.raises(ValueError, match='there are "eager", "tiled"'):
        xopt.Optimizer(p, xopt.Adam(), runner="metal")  # type: ignore[arg-type]
    assert Cuda(driver).refuses("numpy", [p]) == ""


@pytest.mark.needs("cupy")
def test_cupy_without_a_gpu() -> None:
    cupy = pytest.importorskip("cupy")
    if cupy.cuda.is_available():
        pytest.skip("there is a GPU")
    place = lambda device: cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(4096, 16, None, device_id=device), 0)
    p, q = (cupy.ndarray((4,), "f4", memptr=place(k)) for k in (0, 1))
    with pytest.raises(ValueError, match=r'runner="cuda" found no CUDA it could use: \w+'):
        _choose.choose(Layout(p), "cuda")
    with pytest.raises(ValueError, match=r"needs all parameters on one device; these are on .* and "):
        _choose.choose(Layout([p, q]), "cuda")
    assert _choose.choose(Layout(p)) is eager


def kept(params: Any, state: Any) -> Any:
    """Return parameters and state; with what rounding lost the sum, because of a tie either neighbour is right."""
    slots, name = dict(state.slots), "precision.error"
    wide = lambda x: x.detach().cdouble() if x.is_complex() else x.detach().double()
    if name in slots:
        slots[name] = optree.tree_map(lambda p, e: wide(p) + wide(e), params, slots[name])
    return params, slots


@pytest.mark.needs("torch")
@pytest.mark.skipif(not available("torch"), reason="torch is not installed")
@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64", "complex64"])
def test_torch_tensors(rule: Any, dtype: str, driver: HostDriver, rng: np.random.Generator) -> None:
    """Tensors by their pointers, in place; a norm stays a 0-d tensor that the kernel reads."""
    import torch

    kind = getattr(torch, dtype)
    tensor = lambda x: torch.from_numpy(np.ascontiguousarray(x)).to(kind)
    params = optree.tree_map(tensor, awkward(rng, "float32" if dtype == "bfloat16" else dtype))
    grads = [optree.tree_map(tensor, awkward(rng, "float32" if dtype == "bfloat16" else dtype)) for _ in range(3)]
    params["turned"] = params["turned"].T.contiguous().T
    want, state = optree.tree_map(torch.clone, params), rule.init(params)
    for g in grads:
        want, state = rule.apply(want, g, state, runner="eager")
    for p in optree.tree_leaves(params):
        p.requires_grad_()
    addresses = [p.data_ptr() for p in optree.tree_leaves(params)]
    opt = xopt.Optimizer(params, rule, runner=Cuda(driver))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("item", "__float__", "__bool__", "tolist", "numpy"):
            patch.setattr(torch.Tensor, name, lambda *a, **k: pytest.fail("the step read a tensor"))
        for g in grads:
            opt.step(g)
    assert addresses == [p.data_ptr() for p in optree.tree_leaves(params)]
    assert all(p.requires_grad and p._version for p in optree.tree_leaves(params))
    tolerance = {"rtol": 2.0**-7 if dtype == "bfloat16" else 1e-5, "atol": 1e-5}
    for x, y in zip(*map(optree.tree_leaves, (kept(params, opt.state), kept(want, state))), strict=True):
        torch.testing.assert_close(x.detach(), y.detach(), **tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float16", "complex64"])
@pytest.mark.parametrize("mode", ["modulus", "split"])
def test_explain_shows_what_is_compiled(driver: HostDriver, dtype: str, mode: str) -> None:
    rule = xopt.chain(xopt.ClipByGlobalNorm(0.5), xopt.Adam(0.1, complex=mode))
    p, runner = np.ones(10, dtype), Cuda(driver)
    text = xopt.explain(rule, p, runner=runner)
    assert "runner cuda" in text
    asked: list[str] = []
    real = driver.function
    driver.function = lambda source, *rest: asked.append(source) or real(source, *rest)
    xopt.Optimizer(p, rule, runner=runner).step(np.ones(10, dtype))
    kernels = {source.rstrip() for source in asked if source != _templates.TOOLS}
    assert len(kernels) == 2
    assert all(source in text for source in kernels)
