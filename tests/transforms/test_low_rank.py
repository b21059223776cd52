"""Low-rank projection: the state that it promises, Algorithm 2 of the paper, its authors' code, and what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import Lib
from support import shared_problems as shared
from support.oracles import NEW, assert_close, leaves
from support.runners import one_of

import xopt
from xopt import random

RANK, EVERY, STEPS = 2, 3, 7
SHAPES = {"wide": (3, 5), "tall": (6, 4), "thin": (2, 4), "b": (5,), "kernel": (3, 2, 4)}
runner = one_of("eager", "tiled", "llvm")


def draws(rng: np.random.Generator, dtype: str = "float64") -> tuple[Any, list[Any]]:
    def draw() -> Any:
        part = lambda s: rng.standard_normal(s)
        return {n: (part(s) + 1j * part(s) if "complex" in dtype else part(s)) for n, s in SHAPES.items()}

    return draw(), [draw() for _ in range(STEPS)]


def rule(**options: Any) -> xopt.LowRank:
    return xopt.LowRank(xopt.Adam(0.1, b1=0.8, b2=0.7), **{"rank": RANK, "update_every": EVERY, **options})


def directions(g: Any, k: int, t: int, r: xopt.LowRank) -> Any:
    """Return P of a gradient whose rows are projected."""
    if r.projection == "random":
        like = np.zeros((g.shape[0], r.rank), g.dtype)
        return np.linalg.qr(random.normal(like, (r.seed, 2 * k), t))[0]
    u = np.linalg.svd(g)[0][:, : r.rank]
    top = u[np.argmax(np.abs(u), axis=0), np.arange(r.rank)]
    return u * np.conj(top) / np.abs(top)


def algorithm_2(r: xopt.LowRank, params: Any, grads: list[Any], lr: Any = lambda t: 0.1) -> list[Any]:
    """Zhao et al. 2024, Algorithm 2, with Adam; parameters in the order of their names."""
    out = []
    for k, n in enumerate(sorted(params)):
        p = params[n]
        basis, m, v = None, 0.0, 0.0
        project = p.ndim == 2 and min(p.shape) > r.rank
        left = r.side == "left" or (r.side == "auto" and p.shape[0] <= p.shape[-1])
        for t, g in enumerate((g[n] for g in grads), 1):
            if project:
                if (t - 1) % r.update_every == 0:
                    basis = directions(g if left else g.conj().T, k, t, r)
                g = basis.conj().T @ g if left else g @ basis
            m, v = 0.8 * m + 0.2 * g, 0.7 * v + 0.3 * np.abs(g) ** 2
            u = (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.7**t)) + 1e-8)
            if project:
                u = r.scale * (basis @ u if left else u @ basis.conj().T)
            p = p - lr(t) * u
        out.append(p)
    return out


@pytest.mark.parametrize("dtype", ["float64", "float32", "complex128"])
def test_it_is_algorithm_2(lib: Lib, dtype: str, rng: np.random.Generator) -> None:
    if lib.name == "dask":
        pytest.skip("dask lacks singular vectors of such arrays")
    if lib.name == "jax" and dtype == "float64":
        pytest.skip("JAX compiles what it does in float32")
    params, grads = draws(rng, dtype)
    options: list[dict[str, Any]] = [
        {}, {"side": "left"}, {"side": "right"}, {"scale": 2.0}, {"update_every": 1}, {"rank": 3},
        {"projection": "random"}, {"projection": "random", "seed": 3},
    ]  # fmt: skip
    # singular vectors have the errors of the dtype, over the distance of the singular values
    rtol, atol = (1e-9, 1e-10) if dtype != "float32" else (1e-3, 1e-3)
    if lib.name == "jax":
        params, *grads = ({n: x[n] for n in ("tall", "b")} for x in (params, *grads[:4]))
    for own in options if lib.id == "numpy-plain" else options[:1]:
        method = rule(**own)
        p, *gs = (NEW(lambda x: lib.array(x, dtype), x) for x in (params, *grads))
        apply = lib.module().jit(method.apply) if lib.guise == "jit" else method.apply
        state = method.init(p)
        for g in gs:
            p, state = apply(p, g, state)
        assert_close(NEW(lib.numpy, p), algorithm_2(method, params, grads), rtol, atol)


@pytest.mark.needs("torch")
def test_galore_of_pytorch_optimizer(rng: np.random.Generator, parity: Callable[..., None]) -> None:
    """Within one period: behind it, the signs of singular vectors are the library's choice there."""
    module, torch = pytest.importorskip("pytorch_optimizer"), pytest.importorskip("torch")
    params, grads = draws(rng)
    params, *grads = ({n: x[n] for n in ("wide", "tall", "b")} for x in (params, *grads))
    theirs = {n: torch.tensor(p, requires_grad=True) for n, p in params.items()}
    words = {"rank": RANK, "update_proj_gap": 200, "scale": 0.5, "projection_type": "std"}
    opt = module.GaLore([{"params": [*theirs.values()], **words}], lr=0.1, betas=(0.8, 0.7), eps=1e-3)
    mine = xopt.LowRank(xopt.Adam(0.1, 0.8, 0.7, eps=1e-3, eps_mode="hat"), RANK, scale=0.5)
    got, state = params, mine.init(params)
    for g in grads:
        for n, p in theirs.items():
            p.grad = torch.tensor(g[n])
        opt.step()
        got, state = mine.apply(got, g, state)
    want = [theirs[n].detach().numpy() for n in sorted(theirs)]
    # their singular vectors are of float32
    assert_close(got, want, 1e-5, 1e-5)
    parity("pytorch-optimizer", mine, leaves(got), want)


def test_the_state_has_the_bytes_that_are_promised() -> None:
    m, n, r = 128, 512, 16
    p = {"w": np.zeros((m, n), np.float32), "v": np.zeros((n, m), np.float32)}
    size = lambda state: sum(x.nbytes for x in leaves(state.slots))
    full, small = xopt.Adam().init(p), xopt.LowRank(xopt.Adam(), r).init(p)
    assert size(full) == 2 * 8 * m * n
    assert size(small) == 2 * (8 * r * n + 4 * r * m)
    eight = xopt.LowRank(xopt.Adam(), r).init(p, state_dtype="int8")
    assert size(eight) == 2 * (2 * r * n * (1 + 4 / 128) + 4 * r * m)
    opt = xopt.Optimizer(p, xopt.LowRank(xopt.Adam(), r))
    assert size(opt.state) == size(small)


def test_all_directions_are_none_left_out(rng: np.random.Generator) -> None:
    """With as many directions as the rank of the gradients, whose columns they span, it is SGD."""
    left = rng.standard_normal((6, 2))
    p, grads = rng.standard_normal((6, 9)), [left @ rng.standard_normal((2, 9)) for _ in range(4)]
    a, b = xopt.LowRank(xopt.SGD(0.1, momentum=0.5), 2, scale=1.0), xopt.SGD(0.1, momentum=0.5)
    x, y, s, t = p, p, a.init(p), b.init(p)
    for g in grads:
        (x, s), (y, t) = a.apply(x, g, s), b.apply(y, g, t)
    np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("projection", ["svd", "random"])
def test_it_converges(projection: Any) -> None:
    """Least squares, condition 100, 20 × 3 parameters, rank 2: to 1/100 in 200 steps, twice what it takes."""
    problem = shared.least_squares()
    method = xopt.LowRank(xopt.Adam(0.2), 2, update_every=5, scale=1.0, projection=projection)
    opt = xopt.Optimizer(problem.start.copy(), method)
    for _ in range(200):
        opt.step(problem(opt.params)[1])
    first, last = (float(problem(x)[0]) - problem.least for x in (problem.start, opt.params))
    assert last <= 1e-2 * first


AROUND: list[Any] = [
    lambda r: r,
    lambda r: xopt.chain(xopt.ClipByGlobalNorm(0.5), r, xopt.EMA(0.5)),
    lambda r: xopt.chain(r, xopt.Cautious()),
    lambda r: xopt.chain(r, xopt.AddDecay(0.1, decay="independent"), xopt.Scale(0.5)),
    lambda r: xopt.Accumulate(r, 2),
    lambda r: xopt.Groups(r, ("wide", {"lr": 0.2}), ("tall", xopt.LowRank(xopt.Lion(0.1), 3)), ("b", xopt.Freeze)),
    lambda r: xopt.LowRank(xopt.chain(xopt.ClipByGlobalNorm(0.5), xopt.Adam(0.1, maximize=True)), 2, update_every=3),
    lambda r: xopt.LowRank(xopt.Groups(xopt.Adam(0.1), ("tall", {"b1": 0.5})), 2),
    lambda r: xopt.Precision(r, state_dtype="int8"),
    lambda r: xopt.Precision(r, rounding="stochastic", state_dtype="bfloat16"),
]


@pytest.mark.parametrize("around", AROUND, ids=range(len(AROUND)))
def test_optimizer_is_the_pure_form(
    runner: Any, around: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xopt._engine.program.quantize.LEAST", 1)
    method, (params, grads) = around(rule()), draws(rng)
    params, *grads = (NEW(np.float32, x) for x in (params, *grads))
    opt = xopt.Optimizer(NEW(np.copy, params), method, runner=runner)
    p, state = params, method.init(params)
    for t, g in enumerate(grads, 1):
        if t == 4:
            resumed = xopt.Optimizer(NEW(np.zeros_like, params), pickle.loads(pickle.dumps(method)), runner=runner)
            resumed.load_state_dict(opt.state_dict(only_state=False))
            opt = resumed
        opt.step(g)
        p, state = method.apply(p, g, state, runner="eager")
    for x, y in zip(leaves((opt.params, opt.state.slots)), leaves((p, state.slots)), strict=True):
        np.testing.assert_array_equal(x, y)
    assert not np.array_equal(opt.params["wide"], params["wide"])


def test_weight_decay_stands_behind(rng: np.random.Generator) -> None:
    """With a rank that leaves all parameters whole, what errors and docs advise is AdamW."""
    params, grads = draws(rng)
    lr = xopt.schedules.polynomial(0.1, end=0.0, steps=STEPS)
    inside = xopt.LowRank(xopt.Adam(lr=1.0), 64)
    a, b = xopt.AdamW(lr, weight_decay=0.3), xopt.chain(inside, xopt.AddDecay(0.3, "independent"), xopt.Scale(lr))
    x, y, s, t = params, params, a.init(params), b.init(params)
    for g in grads:
        (x, s), (y, t) = a.apply(x, g, s), b.apply(y, g, t)
    assert_close(x, leaves(y), 1e-12, 1e-13)


@pytest.mark.parametrize("names", ["abc", "bca", "cab"])
def test_parameters_in_any_order(names: str, rng: np.random.Generator) -> None:
    p = {n: rng.standard_normal(shape) for n, shape in zip(names, ((3, 5), (4,), (6, 4)), strict=True)}
    method = rule()
    got, state = method.apply(p, p, method.init(p))
    assert_close(got, algorithm_2(method, p, [p]), 1e-9, 1e-10)
    assert [state.slots["0.adam.m"][n].shape for n in names] == [(2, 5), (4,), (6, 2)]


@pytest.mark.parametrize("rank", [3, 90], ids=["projected", "whole"])
def test_8_bits_of_averages_that_begin_elsewhere(runner: Any, rank: int, rng: np.random.Generator) -> None:
    p, g = (rng.standard_normal((70, 90)).astype(np.float32) for _ in range(2))
    for inside in (xopt.RMSProp(0.1, initial=0.5), xopt.Yogi(0.1, initial=0.01)):
        method = xopt.LowRank(inside, rank, scale=1.0)
        begun = method.init(p, state_dtype="int8")
        first = {n: y for n, y in begun.slots.items() if n.endswith(".v")}
        assert sorted(float(y.max()) for y in first.values()) == [np.float32(inside.initial), 255]
        opt = xopt.Optimizer(p.copy(), method, runner=runner, state_dtype="int8")
        opt.step(g)
        want = method.apply(p, g, method.init(p))[0]
        np.testing.assert_allclose(opt.params, want, rtol=0, atol=1e-6)  # the first step reads nothing but first values


def test_maximize_and_schedules(rng: np.random.Generator) -> None:
    params, grads = draws(rng)
    lr = xopt.schedules.polynomial(0.1, end=0.0, steps=STEPS)
    up = xopt.LowRank(xopt.Adam(lr, 0.8, 0.7, maximize=True), RANK, update_every=EVERY)
    p, state = params, up.init(params)
    for g in grads:
        p, state = up.apply(p, NEW(np.negative, g), state)
    assert_close(p, algorithm_2(rule(), params, grads, lr), 1e-9, 1e-10)


def test_set_and_names() -> None:
    opt = xopt.Optimizer(np.ones((4, 6)), rule())
    opt.set(lr=0.2, scale=0.5)
    assert opt.rule == xopt.LowRank(xopt.Adam(0.2, 0.8, 0.7), RANK, update_every=EVERY, scale=0.5)
    assert repr(opt.rule) == "LowRank(Adam(lr=0.2, b1=0.8, b2=0.7), rank=2, update_every=3, scale=0.5)"
    assert (opt.hyperparams()["scale"], opt.hyperparams()["lr"]) == (0.5, 0.2)
    two = xopt.Optimizer({"a": np.ones((4, 6))}, xopt.Groups(rule(), ("a", xopt.LowRank(xopt.Lion(0.1), 2))))
    two.set(**{"0.group0.lowrank.scale": 0.5})
    assert (two.hyperparams()["0.lowrank.scale"], two.hyperparams()["0.group0.lowrank.scale"]) == (0.25, 0.5)
    with pytest.raises(TypeError, match="'rank' is a static field"):
        opt.set(rank=3)


@pytest.mark.parametrize("around", [lambda r: r, lambda r: xopt.chain(xopt.ClipByValue(9.0), r)])
def test_scale_of_a_group(around: Any, rng: np.random.Generator) -> None:
    p = {n: rng.standard_normal((3, 5)) for n in "ab"}
    method = xopt.Groups(around(rule()), ("b", {"scale": 1.0}))
    x, _ = method.apply(p, p, method.init(p))
    assert method != around(rule())
    for n, scale in (("a", 0.25), ("b", 1.0)):
        one = rule(scale=scale)
        np.testing.assert_array_equal(x[n], one.apply(p[n], p[n], one.init(p[n]))[0])


def test_a_parameter_without_a_first_gradient_does_not_stand_still(lib: Lib) -> None:
    if lib.name == "dask":
        pytest.skip("dask lacks singular vectors of such arrays")
    method, p = rule(), {"a": lib.array(np.ones((3, 5))), "b": lib.array(np.ones((5, 3)))}
    nothing = {"a": None, "b": lib.array(np.zeros((5, 3)))}
    if lib.name == "jax":  # that compiles each structure
        p, nothing = {"b": p["b"]}, {"b": nothing["b"]}
    apply = lib.module().jit(method.apply) if lib.guise == "jit" else method.apply
    state = apply(p, nothing, method.init(p))[1]
    moved = NEW(lib.numpy, apply(p, p, state)[0])
    for x in (moved.get("a", moved["b"].T), moved["b"].T):
        assert ((x != 1) == [[True] * 5, [True] * 5, [False] * 5]).all()  # in the first directions


def test_a_gradient_that_is_not_finite() -> None:
    method, p = rule(update_every=1), np.ones((3, 4))
    state = method.apply(p, np.eye(3, 4) + 1.0, method.init(p))[1]
    for bad in (np.nan, np.inf, 0.0):
        _, after = method.apply(p, np.full((3, 4), bad), state)
        np.testing.assert_array_equal(after.slots["0.lowrank.basis"], state.slots["0.lowrank.basis"])
    guarded = xopt.Guard(method, "skip")
    x, _ = guarded.apply(p, np.full((3, 4), np.nan), guarded.init(p))
    np.testing.assert_array_equal(x, p)
    assert np.isfinite(method.apply(p, np.zeros((3, 4)), method.init(p))[0]).all()


WHOLE: list[Any] = [
    xopt.Muon(0.1),
    xopt.NorMuon(0.1),
    xopt.Adafactor(0.1, relative_step=False, scale_parameter=False, b1=0.9),
    xopt.SM3(0.1),
    xopt.Shampoo(0.1, momentum=0.9),
    xopt.SOAP(0.1, update_every=2, max_dim=5),  # the other axis has gradients of rank 3, and directions of rounding
    xopt.KLSOAP(0.1, update_every=2, max_dim=5),
    xopt.PSGDKron(0.1),
    xopt.chain(xopt.Centralize(), xopt.Muon(0.1)),
]


@pytest.mark.parametrize("inner", WHOLE, ids=lambda r: type(r).__name__)
def test_rules_of_whole_arrays(lib: Lib, inner: Any, rng: np.random.Generator) -> None:
    """They take the steps that they take for a parameter with the gradient R, with state of its shape."""
    if lib.name == "dask" or (lib.name == "jax" and not isinstance(inner, xopt.Muon)):
        pytest.skip("dask lacks singular vectors of such arrays, and JAX compiles each of them")
    w, gs = rng.standard_normal((5, 9)), rng.standard_normal((4, 5, 9))
    method = xopt.LowRank(inner, 3, update_every=2, scale=0.5)
    p = lib.array(w)
    state = method.init(p)
    small = np.zeros((3, 9))
    other = inner.init(small)
    shapes = sorted(x.shape for x in leaves(other.slots))
    assert sorted(x.shape for x in leaves(state.slots)) == sorted([*shapes, (5, 3)])
    for t, g in enumerate(gs):
        if t % 2 == 0:
            basis = directions(g, 0, t + 1, method)
        step, other = inner.updates(small, basis.T @ g, other)
        w = w + 0.5 * basis @ step
        p, state = method.apply(p, lib.array(g), state)
        np.testing.assert_allclose(lib.numpy(p), w, rtol=1e-7, atol=1e-9)
    params = {"w": np.zeros((70, 90), "f4"), "v": np.zeros(5, "f4")}
    opt = xopt.Optimizer(params, method, state_dtype="int8" if isinstance(inner, xopt.Muon) else None)
    opt.step({"w": rng.standard_normal((70, 90)).astype("f4"), "v": np.ones(5, "f4")})
    again = pickle.loads(pickle.dumps(opt))
    grads = {"w": rng.standard_normal((70, 90)).astype("f4"), "v": np.ones(5, "f4")}
    for a, b in zip(leaves(opt.step(grads)), leaves(again.step(grads)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_refused() -> None:
    p = np.ones((3, 4))
    for make, words in [
        (lambda: xopt.LowRank(xopt.AdamW(), 2), "AdamW with weight_decay.*: AdamW is chain.LowRank.*AddDecay.*Scale"),
        (lambda: xopt.LowRank(xopt.Adam(weight_decay=0.1), 2), "Adam with weight_decay"),
        (lambda: xopt.LowRank(xopt.Adam, 2), "LowRank: Adam, but it must be a rule"),  # type: ignore[arg-type]
        (lambda: xopt.LowRank(xopt.Accumulate(xopt.Adam(), 2), 2), "Accumulate is for a whole tree; put .* LowRank"),
        (lambda: xopt.LowRank(rule(), 3).init(p), "LowRank: LowRank projects already"),
        (lambda: xopt.chain(rule(), xopt.L1(0.1)).init(p), "L1 behind LowRank .* leave LowRank out"),
        (lambda: xopt.LowRank(xopt.Adam(), 0), "LowRank.rank: 0.0 is out of range"),
        (lambda: xopt.LowRank(xopt.Adam(), 2, seed=1), "seed=1 does nothing without projection='random'"),
        (lambda: xopt.LowRank(xopt.LAMB(), 2).init(p), "LowRank: LAMB computes with the parameters"),
        (lambda: xopt.LowRank(xopt.Adafactor(), 2), "LowRank: Adafactor computes with the parameters"),
        (
            lambda: xopt.LowRank(xopt.chain(xopt.AdaptiveGradientClip(), xopt.Muon()), 2),
            "LowRank: AdaptiveGradientClip computes with the parameters",
        ),
        (lambda: xopt.LowRank(xopt.ScheduleFreeSGD(), 2).init(p), "ScheduleFreeSGD keeps or changes parameters"),
        (lambda: xopt.LowRank(xopt.Sophia(), 2).init(p), "Sophia takes estimates of the curvature"),
        (lambda: xopt.LowRank(xopt.chain(xopt.Adam(), xopt.Cautious()), 2).init(p), "Cautious asks for the gradient"),
        (lambda: xopt.LowRank(xopt.chain(xopt.Adam(), xopt.EMA(0.5)), 2).init(p), "EMA keeps or changes parameters"),
    ]:
        with pytest.raises((ValueError, TypeError), match=words):
            make()
