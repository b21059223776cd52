"""What one library has that the others have not: graphs, tracing, donation, laziness."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from conftest import Lib

import xopt
from xopt import _arrays


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


@pytest.fixture
def jax() -> Any:
    return pytest.importorskip("jax")


# ---- torch


@pytest.mark.needs("torch")
def test_torch_trains_with_its_own_gradients(torch: Any) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    params = dict(model.named_parameters())
    opt = xopt.Optimizer(params, xopt.Adam(lr=0.05))
    x, y = torch.randn(50, 3), torch.randn(50, 2)
    losses = []
    for _ in range(50):
        loss = ((model(x) - y) ** 2).mean()
        model.zero_grad()
        loss.backward()
        opt.step({k: p.grad for k, p in params.items()})
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())
    assert opt.runner == "tiled"


@pytest.mark.needs("torch")
@pytest.mark.parametrize("runner", ["eager", "tiled"])
def test_torch_apply_has_no_graph(torch: Any, runner: str) -> None:
    p = torch.ones(3, requires_grad=True)
    rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.AdamW())
    state = rule.init(p)
    new, state = rule.apply(p, torch.ones(3), state, runner=runner)
    change, _ = rule.updates(p, torch.ones(3), state, runner=runner)
    for x in (new, change, *state.slots.values()):
        assert x.grad_fn is None
        assert not x.requires_grad
    assert p.requires_grad
    g = (p * 2).sum()
    new, _ = rule.apply(p, torch.autograd.grad(g, p, create_graph=True)[0], state, runner=runner)
    assert not new.requires_grad


@pytest.mark.needs("torch")
@pytest.mark.parametrize("runner", ["eager", "tiled"])
def test_torch_knows_that_a_parameter_was_written(torch: Any, runner: str) -> None:
    """A graph that was built before the step raises in backward, instead of using the new values."""
    p = torch.ones(3, requires_grad=True)
    loss = (p * p).sum()
    xopt.Optimizer(p, xopt.SGD(), runner=runner).step(torch.ones(3))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.needs("torch")
@pytest.mark.parametrize("runner", ["eager", "tiled"])
def test_torch_parameter_that_was_given_new_memory(torch: Any, runner: str) -> None:
    p = torch.nn.Parameter(torch.ones(3))
    opt = xopt.Optimizer(p, xopt.SGD(lr=1.0), runner=runner)
    opt.step(torch.ones(3))
    p.data = torch.full((3,), 5.0)
    opt.step(torch.ones(3))
    assert p.tolist() == [4.0, 4.0, 4.0]


@pytest.mark.needs("torch")
def test_torch_bfloat16_and_conjugates(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    p = torch.ones(3, dtype=torch.bfloat16)
    opt = xopt.Optimizer(p, xopt.Adam(lr=0.25))
    assert opt.runner == "tiled"  # through ml_dtypes
    monkeypatch.setattr("xopt._arrays.libraries.torch.bfloat16", lambda: None)
    assert xopt.Optimizer(p, xopt.SGD(lr=0.5)).runner == "eager"
    monkeypatch.undo()
    opt.step(torch.ones(3, dtype=torch.bfloat16))
    assert p.tolist() == [0.75, 0.75, 0.75]
    assert opt.state.slots["0.adam.m"].dtype == torch.float32
    z = torch.zeros(2, dtype=torch.complex128)
    xopt.Optimizer(z, xopt.SGD(lr=1.0)).step(torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex128).conj())
    assert z.tolist() == [-1 + 2j, -3 - 1j]


@pytest.mark.needs("torch")
def test_torch_learning_rate_in_a_tensor(torch: Any) -> None:
    for runner in ("eager", "tiled"):
        p, _ = xopt.SGD().apply(
            torch.ones(3), torch.ones(3), xopt.SGD().init(torch.ones(3)), lr=torch.tensor(0.5), runner=runner
        )
        assert p.tolist() == [0.5, 0.5, 0.5]


@pytest.mark.needs("torch")
@pytest.mark.parametrize("runner", ["eager", "tiled"])
def test_torch_learning_rate_that_is_learned(torch: Any, runner: str) -> None:
    """One with requires_grad is a number like any other: torch warns of reading it, and no graph grows from it."""
    lr, p = torch.tensor(0.5, requires_grad=True), torch.ones(3)
    rule = xopt.chain(xopt.ClipByGlobalNorm(9.0), xopt.NAdam())
    for rate in (lr, lambda t: lr):
        new, state = rule.apply(p, p, rule.init(p), runner=runner, lr=rate)
        want, _ = rule.apply(p, p, rule.init(p), runner=runner, lr=0.5)
        assert torch.allclose(new, want)
        for x in (new, *state.slots.values(), *state.carry.values()):
            assert not getattr(x, "requires_grad", False)


# ---- JAX


@pytest.mark.needs("jax")
def test_a_jitted_step_is_traced_once(jax: Any) -> None:
    """Also when the learning rate follows a schedule, or is an argument."""
    jnp = jax.numpy
    rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.AdamW(lr=xopt.schedules.warmup_cosine(0.1, warmup=3, steps=9)))
    p, g = {"w": jnp.ones((3, 2)), "b": jnp.ones(())}, {"w": jnp.ones((3, 2)), "b": jnp.ones(())}
    q = {k: np.asarray(x) for k, x in p.items()}
    traces = []

    def step(p: Any, g: Any, s: Any, lr: Any) -> Any:
        traces.append(1)
        return rule.apply(p, g, s) if lr is None else rule.apply(p, g, s, lr=lr)

    jitted, state, other = jax.jit(step), rule.init(p), rule.init(q)
    for lr in (None, None, None, 0.5, 0.25, 0.125):
        p, state = jitted(p, g, state, lr)
        q, other = step(q, {k: np.asarray(x) for k, x in g.items()}, other, lr)
        traces.pop()
    assert len(traces) == 2, "one for the schedule, one for the argument"
    for k in p:
        np.testing.assert_allclose(p[k], q[k], rtol=1e-12)
    assert int(state.step) == other.step == 6
    assert state.step.dtype == jnp.int32


@pytest.mark.needs("jax")
def test_optimizer_on_jax_compiles_once_and_spares_the_arrays_of_the_caller(jax: Any) -> None:
    jnp = jax.numpy
    mine = {"w": jnp.ones(4)}
    opt = xopt.Optimizer(mine, xopt.Adam(lr=0.1))
    g = jnp.ones(4)
    with jax.log_compiles(False):
        for k in range(5):
            opt.set(lr=0.1 / (k + 1))
            opt.step({"w": g}, lr=0.01 * (k + 1))
    assert opt._jitted._compiled._cache_size() == 1
    assert mine["w"].tolist() == [1.0] * 4, "the caller's array is alive and as it was"
    assert g.tolist() == [1.0] * 4
    with pytest.raises(ValueError, match=r'grads\["w"\]: shares memory with params\["w"\]'):
        opt.step(opt.params)
    assert isinstance(opt.state.step, int)


@pytest.mark.needs("jax")
def test_a_step_outside_of_jit_compiles_nothing_again(jax: Any, caplog: Any) -> None:
    """Of a rule that computes something every so many steps too: its branches are new functions in each."""
    rule, p = xopt.Shampoo(update_every=2, max_dim=1), jax.numpy.ones(3)
    state = rule.init(p)
    with jax.log_compiles():
        for k in range(6):
            caplog.clear()
            p, state = rule.apply(p, p, state)
            assert caplog.records == [] or k < 2
    jitted = jax.jit(rule.apply)
    for _ in range(3):
        p, state = jitted(p, p, state)
    q, other = np.ones(3), rule.init(np.ones(3))
    for _ in range(9):
        q, other = rule.apply(q, q, other)
    np.testing.assert_allclose(p, q, rtol=1e-12)


@pytest.mark.needs("jax")
def test_jax_transformations(jax: Any) -> None:
    """scan, vmap and eval_shape go through a step as through anything else."""
    jnp = jax.numpy
    rule = xopt.Adam(lr=0.1)
    grads = jnp.asarray(np.linspace(-1, 1, 15).reshape(5, 3))
    p = jnp.ones(3)
    (scanned, state), _ = jax.lax.scan(lambda c, g: (rule.apply(c[0], g, c[1]), None), (p, rule.init(p)), grads)
    q, other = np.ones(3), rule.init(np.ones(3))
    for g in np.asarray(grads):
        q, other = rule.apply(q, g, other)
    np.testing.assert_allclose(scanned, q, rtol=1e-12)
    assert int(state.step) == 5
    batch = jax.vmap(lambda x, g: rule.apply(x, g, rule.init(x))[0])(jnp.ones((5, 3)), grads)
    np.testing.assert_allclose(
        batch[0], rule.apply(np.ones(3), np.asarray(grads[0]), rule.init(np.ones(3)))[0], rtol=1e-12
    )
    shapes = jax.eval_shape(lambda x: rule.init(x), p)
    assert shapes.slots["0.adam.m"].shape == (3,)


@pytest.mark.needs("jax")
def test_bias_correction_under_jit_in_float32(jax: Any) -> None:
    """1 - 0.999**t in float32 is wrong by 1e-5; as -expm1(t log b) it is right, at any step that the counter holds."""
    jnp = jax.numpy
    rule, p = xopt.Adam(lr=1.0, b1=0.0, eps=0.0), jnp.ones(1, jnp.float32)
    state = rule.init(p)
    for step in (0, 1, 9, 999, 10**6, 2**31 - 2):
        slots = {"0.adam.m": jnp.ones(1, jnp.float32), "0.adam.v": jnp.ones(1, jnp.float32)}
        now = state._replace(step=jnp.asarray(step, jnp.int32), slots=slots)
        u, after = jax.jit(rule.updates)(p, jnp.ones(1, jnp.float32), now)
        want = -np.sqrt(-np.expm1((step + 1) * np.log(0.999)))
        np.testing.assert_allclose(u, want, rtol=5e-7)
        assert int(after.step) == step + 1
    full = state._replace(step=jnp.asarray(2**31 - 1, jnp.int32))
    assert int(rule.updates(p, p, full)[1].step) == 2**31 - 1, "the counter stops instead of wrapping"


@pytest.mark.needs("jax")
def test_jax_without_float64() -> None:
    """In a process of its own, with JAX as it comes: float32, int32, no warnings."""
    import subprocess
    import sys

    code = """
import jax, jax.numpy as jnp, numpy as np, xopt
assert not jax.config.jax_enable_x64
rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.AdamW(lr=xopt.schedules.cosine(0.1, steps=10)))
p, q = jnp.ones(5), np.ones(5, "float32")
s, r = rule.init(p), rule.init(q)
opt = xopt.Optimizer(jnp.ones(5), rule)
step = jax.jit(rule.apply)
for k in range(8):
    g = np.linspace(-1, k, 5, dtype="float32")
    p, s = step(p, jnp.asarray(g), s)
    q, r = rule.apply(q, g, r)
    opt.step(jnp.asarray(g))
assert p.dtype == opt.params.dtype == jnp.float32
np.testing.assert_allclose(p, q, rtol=2e-6)
np.testing.assert_allclose(opt.params, q, rtol=2e-6)
print(xopt.nn.Dropout(0.5).forward(jnp.ones(4)), end="")
"""
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"JAX_PLATFORMS": "cpu", "PYTHONPATH": ":".join(sys.path)},
    )
    assert out.returncode == 0, out.stderr
    assert out.stdout == str(xopt.nn.Dropout(0.5).forward(np.ones(4)))


# ---- dask


@pytest.mark.needs("dask")
def test_dask_computes_nothing() -> None:
    pytest.importorskip("dask.array")
    import dask
    import dask.array as da

    rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam(lr=0.1))
    p, g = da.ones(10, chunks=4), da.ones(10, chunks=4)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a step must not compute")

    with dask.config.set(scheduler=refuse):
        state = rule.init(p)
        new, state = rule.apply(p, g, state)
        opt = xopt.Optimizer(p, rule)
        opt.step(g)
    assert new.chunks == p.chunks
    assert state.slots["1.adam.m"].chunks == p.chunks
    want, _ = rule.apply(np.ones(10), np.ones(10), rule.init(np.ones(10)))
    np.testing.assert_allclose(new.compute(), want, rtol=1e-14)
    np.testing.assert_allclose(opt.params.compute(), want, rtol=1e-14)
    with pytest.raises(ValueError, match="known shape"):
        rule.init(p[p > 0])


# ---- all


def test_float32_stays_float32(lib: Lib) -> None:
    """No hyperparameter, schedule, norm or step counter may widen anything; NumPy scalars may not either."""
    rule = xopt.chain(
        xopt.ClipByGlobalNorm(np.float64(1.0)), xopt.AdamW(lr=lambda t: np.float64(0.1), b1=np.float32(0.9))
    )
    p, g = lib.array(np.ones(3, "float32")), lib.array(np.ones(3, "float32"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = rule.init(p)
        for _ in range(3):
            new, state = rule.apply(p, g, state, weight_decay=np.float64(0.5))
    for x in (new, *state.slots.values()):
        assert str(x.dtype).endswith("float32")


def test_zero_gradients_of_half_precision_move_nothing(lib: Lib) -> None:
    """eps = 1e-8 is 0 in float16: 0/0 elsewhere (optax #1754, chainer #6299)."""
    for rule in (
        xopt.Adam(),
        xopt.RMSProp(),
        xopt.Adagrad(),
        xopt.Adadelta(),
        xopt.AdamW(weight_decay=0.0),
        xopt.SGD(),
    ):
        p = lib.array(np.ones(3), "float16")
        new, _ = rule.apply(p, lib.array(np.zeros(3), "float16"), rule.init(p))
        assert lib.numpy(new).tolist() == [1.0, 1.0, 1.0]


def test_norms_at_the_edges(lib: Lib) -> None:
    """Norms that float32 and float16 cannot hold, zero, infinite and NaN ones (pytorch #46849)."""
    rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.SGD(lr=1.0))

    def clipped(g: Any, dtype: str) -> Any:
        p = lib.array(np.zeros(2), dtype)
        with np.errstate(all="ignore"):  # dask computes here
            return -lib.numpy(rule.apply(p, lib.array(np.asarray(g), dtype), rule.init(p))[0])

    wide = lib.guise not in ("no_float64", "no_x64")
    if wide:
        np.testing.assert_allclose(clipped([3e25, 4e25], "float32"), [0.6, 0.8], rtol=1e-6)
    assert clipped([0.0, 0.0], "float32").tolist() == [0.0, 0.0]
    assert np.isnan(clipped([np.nan, 1.0], "float32")).all()
    found = clipped([np.inf, 1.0], "float32")
    assert np.isnan(found[0])
    assert found[1] == 0
    np.testing.assert_allclose(clipped([300.0, 400.0], "float16"), [0.6, 0.8], rtol=1e-3)


def test_an_array_of_jax_before_0_6_is_one_of_jax() -> None:
    """Its class says that it is in jaxlib, and has no base in jax."""
    old = type("ArrayImpl", (), {"__module__": "jaxlib.xla_extension", "shape": (), "dtype": np.dtype("f4")})
    assert _arrays.library(old()) is _arrays.named("jax")


def test_threads_are_given_the_same_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where they ask for it first at the same time: arrays of two would belong to two libraries."""
    inside = threading.Barrier(4, timeout=30)

    class Slow(_arrays.Library):
        def __init__(self, name: str) -> None:
            inside.wait()
            super().__init__(name)

    monkeypatch.setattr(_arrays, "_Unknown", Slow)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(_arrays.named, ["first seen by many"] * 4))
    assert all(library is found[0] for library in found)
    assert _arrays.named("first seen by many") is found[0]


@pytest.mark.parametrize("name", [*_arrays.KNOWN, "unheard"])
def test_there_is_one_of_each_library(name: str) -> None:
    library = _arrays.named(name)
    assert str(library) == name
    assert library.known == (name != "unheard")
    assert pickle.loads(pickle.dumps(library)) is copy.deepcopy(library) is library


# ---- sparse


class COO:
    """What an array of PyData's sparse looks like."""

    shape, dtype, device = (3,), np.dtype(float), "cpu"

    def __array_namespace__(self) -> Any:
        return np


COO.__module__ = "sparse.numba_backend._coo.core"


def test_sparse_arrays_are_refused_by_name() -> None:
    x, plain, rule = COO(), np.zeros(3), xopt.Adam()
    opt = xopt.Optimizer({"a": plain}, rule)
    calls = {
        "params": lambda: rule.init(x),
        'params["a"]': lambda: xopt.Optimizer({"a": x}, rule),
        'grads["a"]': lambda: opt.step({"a": x}),
        "grads": lambda: rule.apply(plain, x, rule.init(plain)),
        "x0": lambda: xopt.minimize(lambda v: (v.sum(), v), x),
    }
    for path, call in calls.items():
        with pytest.raises(TypeError) as found:
            call()
        assert str(found.value) == (
            f"{path}: a sparse array; pass x.todense(), and a gradient that has few rows as xopt.SparseRows"
        )
    assert opt.state.step == 0
