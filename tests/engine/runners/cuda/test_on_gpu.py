"""The cuda runner on a GPU: `pytest -m cuda`. Where there is none, everything here is skipped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import optree
import pytest
from conftest import available
from support.cuda_rules import EVERY, MODES, near, of
from support.runners import CHAIN, RULES, alike, awkward, poison, same_bits, trajectory

import xopt
from xopt._engine.runners import choose as _choose

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.needs("cupy"),
    pytest.mark.skipif(not available("cupy"), reason="no CuPy, or no GPU that it could use"),
]
CLIPPED = xopt.chain(xopt.ClipByGlobalNorm(0.5), xopt.ClipByNorm(0.4), xopt.Adam(0.1))


@pytest.fixture
def cp() -> Any:
    """CuPy, with a driver that works: a comparison of eager with eager would show nothing."""
    assert _choose.backend("cuda").driver is not None, _choose.backend("cuda")._why
    return pytest.importorskip("cupy")


@pytest.fixture
def launches(cp: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that are launched."""
    driver, seen = _choose.backend("cuda").driver, list[str]()
    real = driver.launch

    def launch(function: Any, *args: Any) -> None:
        names = {id(f): name for (_, name, _), f in driver._functions.items()}
        seen.append(names[id(function)])
        real(function, *args)

    monkeypatch.setattr(driver, "launch", launch)
    return seen


def new(seen: list[str]) -> list[str]:
    found = seen.copy()
    seen.clear()
    return found


def on_gpu(cp: Any, tree: Any) -> Any:
    """Copy a tree to the GPU: every second leaf lies on no 16 bytes, and what is not contiguous stays so."""
    count = iter(range(10**6))

    def move(x: Any) -> Any:
        if not x.flags.c_contiguous:
            wide = cp.zeros((*x.shape, 2), x.dtype)
            wide[..., 0] = cp.asarray(np.ascontiguousarray(x))
            return wide[..., 0]
        shift = next(count) % 2
        buffer = cp.empty(x.size + shift, x.dtype)
        buffer[shift:] = cp.asarray(x.ravel())
        return buffer[shift:].reshape(x.shape)

    return optree.tree_map(move, tree)


def back(tree: Any) -> list[Any]:
    return [x.get() for x in optree.tree_leaves(tree)]


def steps(cp: Any, rule: Any, params: Any, grads: list[Any], runner: Any = None) -> list[Any]:
    """Take steps in place on the GPU and bring parameters and state back."""
    params = on_gpu(cp, params)
    opt = xopt.Optimizer(params, rule, runner=runner)
    assert opt.runner == (runner or "cuda")
    for g in grads:
        opt.step(on_gpu(cp, g))
    return back((params, opt.state.slots))


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"])
def test_bits_of_numpy(cp: Any, rule: Any, dtype: str, rng: np.random.Generator) -> None:
    for mode in MODES if "complex" in dtype else MODES[:1]:
        exact = "complex" not in dtype or mode == "split"
        chosen, params = of(rule, mode), awkward(rng, dtype)
        grads = [poison(awkward(rng, dtype), rng, rule) if exact and k == 2 else awkward(rng, dtype) for k in range(4)]
        want = trajectory(chosen, params, grads, "eager")
        assert all(map(alike(rule) if exact else near, steps(cp, chosen, params, grads), want)), mode


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_every_option(cp: Any, dtype: str, rng: np.random.Generator) -> None:
    params, grads = awkward(rng, dtype), [awkward(rng, dtype) for _ in range(2)]
    for rule in EVERY:
        want = trajectory(rule, params, grads, "eager")
        assert all(map(alike(rule) if dtype == "float32" else near, steps(cp, rule, params, grads), want)), rule


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
def test_pure(cp: Any, rule: Any, rng: np.random.Generator) -> None:
    params, g = awkward(rng, "float32"), awkward(rng, "float32")
    there, g_there = on_gpu(cp, params), on_gpu(cp, g)
    before = back((there, g_there))
    for name in ("apply", "updates"):
        got, state = getattr(rule, name)(there, g_there, rule.init(there))
        want, known = getattr(rule, name)(params, g, rule.init(params), runner="eager")
        assert all(map(alike(rule), back((got, state.slots)), optree.tree_leaves((want, known.slots))))
    assert all(map(same_bits, back((there, g_there)), before))


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
def test_near_eager_cupy(cp: Any, rule: Any, rng: np.random.Generator) -> None:
    """CuPy contracts and flushes denormals, so a few units."""
    params, grads = awkward(rng, "float32"), [awkward(rng, "float32") for _ in range(3)]
    pairs = zip(steps(cp, rule, params, grads), steps(cp, rule, params, grads, "eager"), strict=True)
    for x, y in pairs:
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


SPIN = r"""
extern "C" __global__ void spin(volatile int* released, long long most) {
    const long long start = clock64();
    while (!*released && clock64() - start < most) {}
}
"""


@pytest.fixture
def held(cp: Any) -> Iterator[Any]:
    """A stream whose work waits until the host says so: what returns meanwhile has waited for nothing."""
    memory = cp.cuda.alloc_pinned_memory(4)
    flag = np.frombuffer(memory, np.int32, 1)
    kernel = cp.RawKernel(SPIN, "spin")
    with cp.cuda.Stream(non_blocking=True) as stream:

        def hold() -> None:
            flag[0] = 0
            kernel((1,), (1,), (np.uint64(memory.ptr), np.int64(20_000_000_000)))  # ten seconds at most

        yield stream, hold, lambda: flag.__setitem__(0, 1)
        flag[0] = 1
        stream.synchronize()


@pytest.mark.parametrize("rule", [xopt.Adam(), CLIPPED, CHAIN], ids=["adam", "clipped", "chain"])
def test_no_synchronisation(cp: Any, held: Any, rule: Any) -> None:
    """A step returns while the stream is still busy with what came before it; new gradients too."""
    stream, hold, release = held
    params = [cp.ones(n, "float32") for n in (1000, 3, 70_000)]
    grads = [[cp.full(p.shape, k, "float32") for p in params] for k in (1, 2, 3)]
    opt = xopt.Optimizer(params, rule)
    for g in grads:  # all memory and every kernel
        opt.step(g)
    stream.synchronize()
    hold()
    for g in grads:
        opt.step(g, lr=0.5) if rule is not CHAIN else opt.step(g)
    assert not stream.done, "the step waited for the device"
    release()
    stream.synchronize()
    assert stream.done


def test_launches(cp: Any, launches: list[str]) -> None:
    """One a stage, however many leaves; tables go up once, places of gradients when they change."""
    params = [cp.ones((n % 7, 3)) for n in range(1000)]
    grads = [cp.ones_like(p) for p in params]
    opt = xopt.Optimizer(params, xopt.Adam())
    opt.step(grads)
    assert new(launches).count("xopt_step") == 1
    compiled = len(_choose.backend("cuda").driver._functions)
    for k in range(3):
        opt.set(lr=0.1 * k)
        opt.step(grads)
        assert new(launches) == ["xopt_step"]
    other = [cp.ones_like(p) for p in params]
    opt.step(other)
    assert {*new(launches)} == {"xopt_store", "xopt_step"}
    opt.step(other)
    assert new(launches) == ["xopt_step"]
    assert len(_choose.backend("cuda").driver._functions) == compiled, "a new value compiles nothing"
    clipped = xopt.Optimizer(params, xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam()))
    clipped.step(grads)
    new(launches)
    clipped.step(grads)
    assert new(launches) == ["xopt_sums", "xopt_ordered", "xopt_ordered", "xopt_step"]


def test_more_than_two_to_the_31_elements(cp: Any) -> None:
    n = 2**31 + 1
    free, _ = cp.cuda.runtime.memGetInfo()
    if free < 5 * n:
        pytest.skip(f"{5 * n / 2**30:.0f} GiB are needed, {free / 2**30:.0f} are free")
    p, g = cp.zeros(n, "float16"), cp.ones(n, "float16")
    xopt.Optimizer(p, xopt.SGD(lr=0.5)).step(g)
    try:
        assert p[-1].item() == -0.5
        assert p[0].item() == -0.5
        assert bool((p == -0.5).all())
        rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.SGD(lr=1.0))
        p[...] = 0
        xopt.Optimizer(p, rule).step(g)
        assert p[-1].item() == -np.float16(1 / np.sqrt(n))
    finally:
        del p, g
        cp.get_default_memory_pool().free_all_blocks()


def test_several_streams(cp: Any, rng: np.random.Generator) -> None:
    """Optimizers on streams of their own, and one that moves from stream to stream."""
    params = [rng.standard_normal(100_000).astype("f4") for _ in range(3)]
    grads = [rng.standard_normal(100_000).astype("f4") for _ in range(6)]
    want = [trajectory(CLIPPED, [p], [[g] for g in grads], "eager") for p in params]
    streams = [cp.cuda.Stream(non_blocking=True) for _ in params]
    there, g_there = [cp.asarray(p) for p in params], [cp.asarray(g) for g in grads]
    cp.cuda.Device().synchronize()
    opts = []
    for p, s in zip(there, streams, strict=True):
        with s:
            opts.append(xopt.Optimizer([p], CLIPPED))
    for g in g_there:
        for opt, s in zip(opts, streams, strict=True):
            with s:
                opt.step([g])
    cp.cuda.Device().synchronize()
    for opt, w in zip(opts, want, strict=True):
        assert all(map(same_bits, back((opt.params, opt.state.slots)), w))
    moving = xopt.Optimizer([cp.asarray(params[0])], CLIPPED)
    last = cp.cuda.get_current_stream()
    for k, g in enumerate(g_there):
        s = streams[k // 2]
        s.wait_event(last.record())
        with s:
            moving.step([g])
        last = s
    cp.cuda.Device().synchronize()
    assert all(map(same_bits, back((moving.params, moving.state.slots)), want[0]))


def test_capture_is_refused(cp: Any) -> None:
    p, g = cp.ones(10, "float32"), cp.ones(10, "float32")
    for rule in (xopt.Adam(), CLIPPED):
        opt = xopt.Optimizer(p, rule)
        opt.step(g)
        before = p.get()
        stream = cp.cuda.Stream(non_blocking=True)
        with stream:
            stream.begin_capture()
            with pytest.raises(RuntimeError, match="cannot be captured in a CUDA graph"):
                opt.step(g)
            stream.end_capture()
        assert np.array_equal(p.get(), before)
        opt.step(g)
        assert not np.array_equal(p.get(), before)


def test_two_devices(cp: Any) -> None:
    if cp.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one GPU")
    with cp.cuda.Device(1):
        p, g = cp.ones(10), cp.ones(10)
    with cp.cuda.Device(0):
        opt = xopt.Optimizer(p, CLIPPED)
        opt.step(g)
        assert opt.runner == "cuda"
        with pytest.raises(ValueError, match="needs all parameters on one device"):
            xopt.Optimizer([p, cp.ones(3)], CLIPPED, runner="cuda")
    want, _ = CLIPPED.apply(np.ones(10), np.ones(10), CLIPPED.init(np.ones(10)))
    assert np.array_equal(p.get(), want)


@pytest.fixture
def torch(cp: Any) -> Any:
    module = pytest.importorskip("torch")
    if not module.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    return module


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_torch_in_place(torch: Any, dtype: str, rng: np.random.Generator) -> None:
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    arrays = [rng.standard_normal(s).astype("f4") for s in [(), (0,), (3, 4), (70_001,)]]
    grads = [[rng.standard_normal(x.shape).astype("f4") for x in arrays] for _ in range(3)]
    tensor = lambda x: torch.tensor(x, device="cuda").to(getattr(torch, dtype))
    params = [tensor(x).requires_grad_() for x in arrays]
    places = [p.data_ptr() for p in params]
    opt = xopt.Optimizer(params, CLIPPED)
    assert opt.runner == "cuda"
    torch.cuda.set_sync_debug_mode("error")
    try:
        for g in grads:
            torch.cuda.set_sync_debug_mode("default")
            there = [tensor(x) for x in g]
            torch.cuda.set_sync_debug_mode("error")
            opt.step(there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    half = lambda tree: [np.asarray(x, kind) for x in tree]
    want = trajectory(CLIPPED, half(arrays), [half(g) for g in grads], "eager")
    got = [x.detach().double().cpu().numpy() for x in optree.tree_leaves((params, opt.state.slots))]
    assert places == [p.data_ptr() for p in params]
    assert all(p.requires_grad and p._version for p in params)
    assert all(np.array_equal(x, y.astype("f8")) for x, y in zip(got, want, strict=True))


def test_torch_stream_and_capture(torch: Any) -> None:
    p = torch.ones(100_000, device="cuda")
    opt = xopt.Optimizer(p, xopt.SGD(lr=0.5))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        g = torch.ones_like(p)
        for _ in range(10):
            g = g * 2  # on this stream; the step must come behind it
        opt.step(g)
    stream.synchronize()
    assert float(p[-1]) == 1 - 0.5 * 1024
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="cannot be captured in a CUDA graph"), torch.cuda.graph(graph):
        opt.step(g)
