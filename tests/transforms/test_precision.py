"""Parameters and state in few digits: what is lost, what makes up for it, and that nothing else changes."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import optree
import pytest
from conftest import Lib, tree, walk
from support.links import SGD
from support.runners import same_bits

import xopt
from xopt._engine.program import rounding as _rounding
from xopt._engine.runners.tiled.runner import Tiled
from xopt.random import hashed

pytestmark = pytest.mark.xla

BF = np.dtype(ml_dtypes.bfloat16)
HALF = [("bfloat16", 1e-3), ("float16", 1e-4)]
EPS = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24, "complex64": 2.0**-24, "float64": 2.0**-53}
ADAM = xopt.AdamW(lr=xopt.schedules.cosine(0.01, steps=50), weight_decay=0.1)
CHAIN = xopt.chain(xopt.ClipByGlobalNorm(1.0), ADAM, xopt.Box(-1, 1))
MAP = optree.tree_map
HOWS: list[dict[str, Any]] = [
    {"rounding": "kahan"}, {"rounding": "stochastic", "seed": 9}, {"master_weights": True}, {"state_dtype": "bfloat16"}
]  # fmt: skip


def half(name: str) -> Any:
    return BF if name == "bfloat16" else np.dtype(name)


@pytest.mark.parametrize(("dtype", "rate"), HALF)
@pytest.mark.parametrize("pure", [False, True])
def test_small_steps_arrive(lib: Lib, dtype: str, rate: float, pure: bool) -> None:
    """500 steps of the rate from 1.0: with rounding to nearest nothing moves, with either remedy all of them count."""
    if lib.name == "dask" and not pure:
        pytest.skip("the graph of 500 steps")
    steps, found = 40 if lib.name == "dask" else 500, []
    if lib.guise == "read-only" and not pure:
        pytest.skip("Optimizer cannot write into it")
    for how in ({}, {"rounding": "kahan"}, {"master_weights": True}):
        rule = xopt.Precision(xopt.SGD(lr=rate), **how)
        w, g = lib.array(np.ones(3), dtype), lib.array(np.ones(3), dtype)
        if pure:
            apply, state = rule.apply, rule.init(w)
            if lib.guise == "jit":
                apply = lib.module().jit(apply)
            for _ in range(steps):
                w, state = apply(w, g, state)
        else:
            opt = xopt.Optimizer(w, xopt.SGD(lr=rate), **how)
            for _ in range(steps):
                opt.step(g)
            w = opt.params
        assert str(w.dtype).rpartition(".")[2] == dtype
        found.append(float(lib.numpy(w)[0]))
    assert found[0] == 1.0
    np.testing.assert_allclose(found[1:], 1 - steps * rate, atol=EPS[dtype] / 2)


KNOWN = [6385887, 2077477, 13650691]


def edges() -> np.ndarray[Any, Any]:
    """Numbers of float32 of every size, halfway between narrower ones, next to these, denormal, infinite, NaN."""
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32)
    special = np.arange(0, 2**16, 7, dtype=np.uint32)[:, None] << 16
    near = special + np.asarray([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    return np.concatenate([bits, near.ravel()]).view(np.float32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_by_arithmetic_is_rounding(dtype: str) -> None:
    """Like a cast, but for ties, which may go either way; what cannot be held is left to the cast."""
    x = edges()
    with np.errstate(all="ignore"):
        got, cast = _rounding.round_to(np, x, dtype), x.astype(half(dtype))
        again, wide = got.astype(half(dtype)), cast.astype(np.float32)
        inside = np.abs(x) < (2.0**110 if dtype == "bfloat16" else 65504.0)
        assert np.array_equal(got[inside], again.astype(np.float32)[inside])  # storing it loses nothing
        assert (np.abs(got - x) <= np.abs(wide - x))[inside].all()  # no other number is nearer
        assert np.array_equal(again[~inside], cast[~inside], equal_nan=True)
    assert inside.sum() > 50_000
    assert _rounding.round_to(np, x, "float32") is x


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stochastic_rounding_takes_a_neighbour_by_its_nearness(dtype: str) -> None:
    """Each is as likely as x is near to it; what can be held stays; the neighbours are those of the bits."""
    x = np.concatenate([edges()[::400], np.asarray([1.0, 1.0 + 2**-9, 1 - 2**-12, 3e-8, 2**-14 * 0.999], "float32")])
    noise = (np.arange(2048, dtype="float32") + 0.5) / 2048
    with np.errstate(all="ignore"):
        cast = x.astype(half(dtype))
        x = x[np.isfinite(cast.astype("float32")) & (np.abs(x) < 60000) & ((np.abs(x) > 1e-37) | (x == 0))]
        got = _rounding.stochastic_round(np, x[:, None] + 0 * noise, dtype, 0 * x[:, None] + noise)
        assert np.array_equal(got.astype(half(dtype)).astype("float32"), got)
    near = x.astype(half(dtype))
    wide = near.astype("float64")
    away = np.where(x > wide, np.inf, -np.inf).astype(half(dtype))
    other = np.where(x == wide, wide, np.nextafter(near, away).astype("float64"))
    lowest, highest = np.minimum(wide, other)[:, None], np.maximum(wide, other)[:, None]
    assert ((got == lowest) | (got == highest)).all()
    share = np.where(x == wide, 0.0, (x - lowest[:, 0]) / np.where(x == wide, 1.0, (highest - lowest)[:, 0]))
    assert np.abs((got == highest).mean(axis=1) - np.where(x == wide, 1.0, share)).max() <= 1 / 1024
    assert len(x) > 200


def test_noise_is_noise() -> None:
    """Even, and without memory from element to element, step to step, leaf to leaf, seed to seed."""
    index = np.arange(100_000, dtype=np.uint32)
    draw = lambda *key: hashed(np, index, (*map(float, key), 0.0), np.float64)
    x = draw(5, 0, 0, 1, 0)
    second = hashed(np, index[: 100_000 - 2**16], (5, 0, 0, 1, 0, 1), np.float64)
    assert np.array_equal(second, x[2**16 :])  # a part of a leaf that begins with its second chunk
    assert x.min() >= 0
    assert x.max() < 1
    assert np.array_equal(x * 2**24, np.round(x * 2**24))
    counts = np.bincount((x * 256).astype(int), minlength=256)
    assert ((counts - 390.625) ** 2 / 390.625).sum() < 340  # chi-square of 255 degrees: 4 in 10,000 are larger
    others = [np.roll(x, 1), np.roll(x, 2**10)]
    others += [draw(4, 0, 0, 0, 0), draw(7, 0, 0, 3, 0), draw(1, 0, 0, 5, 0)]  # step and seed in each other's place
    others += [draw(6, 0, 0, 1, 0), draw(5, 1, 0, 1, 0), draw(5, 0, 1, 1, 0), draw(5, 0, 0, 2, 0), draw(5, 0, 0, 1, 1)]
    for y in others:
        assert abs(np.corrcoef(x, y)[0, 1]) < 4 / 100_000**0.5
        assert (x == y).sum() < 5
    assert (draw(5, 0, 0, 1, 0)[[0, 1, 99_999]] * 2**24).tolist() == KNOWN  # the same for ever: checkpoints rely on it


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stochastic_rounding_is_the_same_everywhere(lib: Lib, dtype: str) -> None:
    """And right on average: 0.5 ± 0.04 for bfloat16 after 500 steps of 0.001."""
    rate, steps = dict(HALF)[dtype], 20 if lib.name == "dask" else 500
    rule, found = xopt.Precision(xopt.SGD(lr=rate), rounding="stochastic", seed=3), []
    for which in (Lib("numpy", "plain"), lib):
        make = lambda n, which=which: which.array(np.ones(n, "float32"), dtype)
        p, g = ({"a": make(3), "b": make((50, 40))} for _ in range(2))
        apply, state = rule.apply, rule.init(p)
        apply = which.module().jit(apply) if which.guise == "jit" else apply
        for _ in range(steps):
            p, state = apply(p, g, state)
        found.append({n: which.numpy(x).astype("float32") for n, x in p.items()})
    assert all(np.array_equal(found[1][n], x) for n, x in found[0].items())
    assert abs(found[1]["b"].mean() - (1 - steps * rate)) < 0.005
    assert found[1]["b"].std() > rate


def test_what_is_not_finite_stays_so() -> None:
    """The trick with the bits would make numbers of NaN, and NaN of infinities."""
    x = np.asarray([np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 0.0, 1.0, 1.5, -2.0, 2.0**20], "float32")
    for dtype in ("bfloat16", "float16"):
        with np.errstate(all="ignore"):
            for noise in (0.0, 0.5, 1 - 2.0**-24):
                got = _rounding.stochastic_round(np, x, dtype, np.full_like(x, noise)).astype(half(dtype))
                assert same_bits(got, x.astype(half(dtype)))
    largest = np.full(500, 65504, "float16")
    rule = xopt.Precision(xopt.SGD(lr=1.0), rounding="stochastic")
    assert np.isfinite(rule.apply(largest, np.full(500, -3, "float16"), rule.init(largest))[0]).all()


def test_what_the_noise_depends_on() -> None:
    """Two leaves differ; steps beyond 16 bits, and components around, make the noise that the hash says."""
    rule = xopt.Precision(xopt.SGD(lr=1.0), rounding="stochastic", seed=2**16 + 3)
    p, g = {"a": np.ones(400, BF), "b": np.ones(400, BF)}, {"a": np.full(400, 1e-3, BF), "b": np.full(400, 1e-3, BF)}
    inner = xopt.Groups(xopt.SGD(lr=1.0), ("a", xopt.Muon(lr=1.0)))
    groups = xopt.Precision(inner, rounding="stochastic", seed=2**16 + 3)
    for t in (1, 2, 2**16 - 1, 2**16, 2**16 + 5, 2**31):
        got, _ = rule.apply(p, g, rule.init(p)._replace(step=t - 1))
        for leaf, n in enumerate(p):
            noise = hashed(np, np.arange(400, dtype=np.uint32), (t % 2**16, t >> 16, leaf, 3, 1, 0), np.float32)
            x = np.float32(1.0) - g[n].astype("float32")
            assert np.array_equal(got[n].astype("float32"), _rounding.stochastic_round(np, x, "bfloat16", noise))
        assert (got["a"] != got["b"]).any()
        beside, _ = groups.apply(p, g, groups.init(p)._replace(step=t - 1))
        assert same_bits(beside["b"], got["b"])


@pytest.mark.needs("llvm")
@pytest.mark.parametrize("how", HOWS, ids=str)
def test_long_and_mixed_leaves_compiled(how: Any, rng: np.random.Generator) -> None:
    """Leaves of several tasks, and of several dtypes; another seed compiles nothing."""
    from xopt._engine.runners.llvm import compiler as _compiler

    kinds = {"a": BF, "b": np.dtype("float16"), "c": np.dtype("float32"), "d": BF}
    draw = lambda: {n: rng.standard_normal(200_000 if n == "d" else 70).astype(k) for n, k in kinds.items()}
    params, grads = draw(), [draw(), draw()]
    rule = xopt.Precision(ADAM, **how)
    results = [walk(rule, params, grads, runner=runner) for runner in ("eager", "tiled", "llvm")]
    for p, state in results[1:]:
        a, b = optree.tree_leaves((results[0][0], results[0][1].slots)), optree.tree_leaves((p, state.slots))
        assert all(map(same_bits, a, b))
    if "seed" in how:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_compiler, "compiled", lambda *a: pytest.fail("compiled again"))
            other = xopt.Precision(ADAM, rounding="stochastic", seed=77)
            p, _ = walk(other, params, grads, runner="llvm")
        assert not same_bits(p["d"], results[0][0]["d"])


def test_seeds_and_what_they_do() -> None:
    run = lambda **more: walk(
        xopt.Precision(xopt.SGD(lr=1e-3), rounding="stochastic", **more), np.ones(500, BF), [np.ones(500, BF)] * 5
    )[0]
    assert same_bits(run(seed=1), run(seed=1))
    assert all((run(seed=1) != run(seed=s)).any() for s in (0, 2, 2**16 + 1, 2**32 - 1))
    assert (run(seed=1) != walk(xopt.SGD(lr=1e-3), np.ones(500, BF), [np.ones(500, BF)] * 5)[0]).any()
    for dtype in ("float32", "float64", "complex64"):  # nothing to round
        p = np.arange(5.0).astype(dtype)
        a, b = (walk(r, p, [p] * 3)[0] for r in (SGD, xopt.Precision(SGD, rounding="stochastic", seed=4)))
        assert same_bits(a, b)


def reals(x: Any) -> Any:
    """Return the numbers of an array in float64, complex ones as pairs."""
    return (x.view("float32") if x.dtype == "complex64" else x).astype(np.float64)


@pytest.mark.parametrize("dtype", [*EPS])
@pytest.mark.parametrize("runner", ["eager", "tiled"])
def test_kahan_loses_nothing(dtype: str, runner: Any, rng: np.random.Generator) -> None:
    """Parameter and error add up to what they were plus the steps, as far as the error's own digits reach."""
    draw = lambda scale: (rng.standard_normal(400) * scale).astype(half(dtype))
    p, eps, gs = draw(1.0), EPS[dtype], [draw(1e-4) + half(dtype).type(1e-4) for _ in range(300)]
    rule = xopt.Precision(xopt.SGD(lr=1.0), rounding="kahan")
    terms, (new, state) = [reals(p), *(-reals(g) for g in gs)], walk(rule, p, gs, runner=runner)
    exact = np.asarray([math.fsum(column) for column in zip(*terms, strict=True)])
    error, size = state.slots["precision.error"], np.abs(exact) + 1e-3
    assert error.dtype == new.dtype
    assert np.abs(error).max() > 0
    slack = 300 * (eps**2 * size + min(eps, 2.0**-24) * 1e-3) + 2.0**-52 * size  # the last of these sums
    assert (np.abs(reals(new) - exact) <= eps * size + slack).all()
    assert (np.abs(reals(new) + reals(error) - exact) <= slack).all()
    plain, _ = walk(xopt.SGD(lr=1.0), p, gs, runner=runner)
    assert np.abs(reals(plain) - exact).max() > 4 * np.abs(reals(new) - exact).max()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("rule", [ADAM, xopt.Muon(lr=0.01), CHAIN], ids=["AdamW", "Muon", "chain"])
def test_a_master_copy_is_the_run_in_float32(dtype: str, rule: Any, rng: np.random.Generator) -> None:
    """To the bit: the gradients are the same numbers, and what is stored is the master, rounded."""
    params = MAP(lambda x: x.astype(half(dtype)), tree(rng, "float32"))
    grads = [MAP(lambda x: x.astype(half(dtype)), tree(rng, "float32")) for _ in range(6)]
    up = lambda x: MAP(lambda y: np.ascontiguousarray(y.astype(np.float32)).reshape(y.shape), x)
    wide, wide_state = walk(rule, up(params), [up(g) for g in grads], runner="eager")
    new, state = walk(xopt.Precision(rule, master_weights=True), params, grads, runner="eager")
    pairs = [(state.slots["precision.master"], wide), (new, MAP(lambda x: x.astype(half(dtype)), wide))]
    pairs += [(state.slots[n], x) for n, x in wide_state.slots.items()]
    for a, b in pairs:
        assert all(map(same_bits, optree.tree_leaves(a), optree.tree_leaves(b)))
    opt = xopt.Optimizer(params, rule, master_weights=True, runner="tiled")
    for g in grads:
        opt.step(g)
    assert all(map(same_bits, optree.tree_leaves(opt.params), optree.tree_leaves(new)))


def test_a_master_copy_is_for_half_precision_only() -> None:
    rule = xopt.Precision(xopt.SGD(lr=0.1), master_weights=True)
    state = rule.init({"a": np.ones(2), "b": np.ones(2, "float16"), "c": np.ones(2, "complex64")})
    master = state.slots["precision.master"]
    assert (master["a"], master["b"].dtype, master["c"]) == (None, np.float32, None)
    both = xopt.Precision(SGD, master_weights=True, state_dtype="bfloat16").init(np.ones(2, BF))
    assert {n: x.dtype.name for n, x in both.slots.items()} == {"precision.master": "float32", "0.sgd.m": "bfloat16"}
    tree = {"a": np.ones(2, BF), "b": np.ones(2, "float16"), "c": np.ones(2)}
    mixed = xopt.Precision(SGD, rounding="kahan").init(tree)
    assert [x.dtype.name for x in mixed.slots["precision.error"].values()] == ["bfloat16", "float16", "float64"]
    assert rule.init({"a": np.ones(2)}).slots == {}


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("rule", [ADAM, SGD, xopt.Muon(lr=0.01)], ids=lambda r: type(r).__name__)
def test_state_in_fewer_digits(stored: str, dtype: str, rule: Any, rng: np.random.Generator) -> None:
    """Each step is one in all digits, of a state that is rounded afterwards; averages keep theirs."""
    rule = xopt.chain(rule, xopt.EMA(0.9))
    params = MAP(lambda x: x.astype(half(dtype)), tree(rng, "float32"))
    grads = [MAP(lambda x: x.astype(half(dtype)), tree(rng, "float32")) for _ in range(4)]
    real = "float64" if dtype == "float64" else "float32"
    narrow = stored if np.dtype(half(stored)).itemsize < np.dtype(real).itemsize else real
    cut = lambda n, x: MAP(lambda y: y if n.endswith("average") else y.astype(half(narrow)).astype(real), x)
    p, state = params, rule.init(params)
    for g in grads:
        p, state = rule.apply(p, g, state, runner="eager")
        state = state._replace(slots={n: cut(n, x) for n, x in state.slots.items()})
    for runner in ("eager", "tiled", Tiled(7, 2)):
        got, own = walk(xopt.Precision(rule, state_dtype=stored), params, grads, runner=runner)
        kinds = {n: {x.dtype.name for x in optree.tree_leaves(column)} for n, column in own.slots.items()}
        assert kinds == {n: {real if n.endswith("average") else narrow} for n in own.slots}
        assert all(map(same_bits, optree.tree_leaves(got), optree.tree_leaves(p)))
        for n, column in own.slots.items():
            wide = MAP(lambda x: x.astype(real), column)
            assert all(map(same_bits, optree.tree_leaves(wide), optree.tree_leaves(state.slots[n])))


def test_state_of_complex_parameters(rng: np.random.Generator) -> None:
    p = rng.standard_normal(5) + 1j * rng.standard_normal(5)
    opt = xopt.Optimizer(p, ADAM, state_dtype="float32")
    opt.step(p.copy())
    assert {n: x.dtype.name for n, x in opt.state.slots.items()} == {"0.adamw.m": "complex64", "0.adamw.v": "float32"}
    with pytest.raises(TypeError, match=r"params: state_dtype='float16', but 0.adamw.m is complex"):
        xopt.Optimizer(p, ADAM, state_dtype="float16")


@pytest.mark.parametrize("runner", ["eager", "tiled"])
def test_the_first_parameter_that_is_refused_is_named(runner: Any) -> None:
    """One bucket after the other, or one slot after the other: the message is the same."""
    params = [np.ones((), "complex128"), np.ones((2, 1, 2), "complex128")]
    with pytest.raises(TypeError, match=r"params\[0\]: state_dtype='float16', but 0.adafactor.v is complex"):
        xopt.Optimizer(params, xopt.Adafactor(complex="split"), runner=runner, state_dtype="float16")
    with pytest.raises(TypeError, match=r"params\[0\]: state_dtype='float16', but 0.adafactor.v is complex"):
        xopt.Adafactor(complex="split").init(params, state_dtype="float16")


def test_copies_of_parameters_keep_their_digits() -> None:
    """State that begins as the parameter is a parameter: rounded, it would take the place of it."""
    for rule in (xopt.ScheduleFreeSGD(lr=1e-3), xopt.ScheduleFreeAdamW(lr=1e-3), xopt.MADGRAD(lr=1e-3)):
        w = np.ones(4, "float32")
        plain, _ = walk(rule, w, [np.ones(4, "float32")] * 100)
        few, state = walk(xopt.Precision(rule, state_dtype="bfloat16"), w, [np.ones(4, "float32")] * 100)
        np.testing.assert_allclose(few, plain, rtol=0.05)  # sums of gradients have few digits too
        assert "float32" in {x.dtype.name for x in state.slots.values()}


@pytest.mark.parametrize("how", [{"rounding": "kahan"}, {"master_weights": True}], ids=str)
def test_what_is_evaluated_has_all_digits(how: Any) -> None:
    rule, w, g = xopt.ScheduleFreeSGD(lr=1e-3), np.ones(4, BF), np.ones(4, BF)
    wide, wide_state = walk(rule, np.ones(4, "float32"), [np.ones(4, "float32")] * 50)
    p, state = walk(xopt.Precision(rule, **how), w, [g] * 50)
    want = rule.eval_params(wide, wide_state)
    got = xopt.Precision(rule, **how).eval_params(p, state)
    np.testing.assert_allclose(got.astype("float32"), want, rtol=2.0**-8)


def test_a_step_that_is_held_back_changes_nothing() -> None:
    rule = xopt.Guard(xopt.Precision(xopt.SGD(lr=1e-4), master_weights=True), "skip")
    p, g = np.ones(3, BF), np.ones(3, BF)
    p, state = rule.apply(p, g, rule.init(p))
    assert (state.slots["precision.master"] != p.astype("float32")).all()
    change, _ = rule.updates(p, np.full(3, np.nan, BF), state)
    assert change.tolist() == [0.0] * 3


def test_parameters_that_are_loaded_without_a_master_copy(lib: Lib, tmp_path: Path) -> None:
    """They become it: the next step starts from them, not from what was there before."""
    if lib.guise in ("read-only", "grad") or lib.name in ("strict", "dask"):
        pytest.skip("no such dtype, or the other guise has it")
    saved = xopt.Optimizer(lib.array(np.full(3, 5.0), "float16"), SGD)
    file = saved.save(tmp_path / "run")
    for how in ({"master_weights": True}, {"rounding": "kahan"}):
        opt = xopt.Optimizer(lib.array(np.ones(3), "float16"), SGD, **how)  # type: ignore[arg-type]
        opt.step(lib.array(np.full(3, 0.003), "float16"))
        opt.load(file, strict=False)
        pure = xopt.load_state(file, opt.rule, opt.params, strict=False)
        zero = lib.array(np.zeros(3), "float16")
        assert lib.numpy(opt.step(zero)).tolist() == [5.0] * 3
        assert lib.numpy(opt.rule.apply(pure.params, zero, pure.state)[0]).tolist() == [5.0] * 3


def test_accumulated_gradients_keep_their_digits() -> None:
    state = xopt.Precision(xopt.Accumulate(SGD, every=2), state_dtype="float16").init(np.ones(2, "float32"))
    assert {n: x.dtype.name for n, x in state.slots.items()} == {
        "accumulate.gradient": "float32", "0.sgd.m": "float16"
    }  # fmt: skip


@pytest.mark.parametrize("how", HOWS, ids=str)
@pytest.mark.parametrize("runner", ["eager", "tiled"])
def test_with_everything_else(how: Any, runner: Any, tmp_path: Path, rng: np.random.Generator) -> None:
    """Groups, gates, gradients of None; changes that add up to the step; saved in the middle; the same in place."""
    params = MAP(lambda x: x.astype(BF), tree(rng, "float32"))
    grads = [MAP(lambda x: x.astype(BF), tree(rng, "float32")) for _ in range(8)]
    grads[2]["one"] = None
    grads[4]["tall"] = np.full_like(grads[4]["tall"], np.nan)
    inner = xopt.chain(xopt.Groups(ADAM, ("wide/**", {"lr": 1e-3}), ("one", SGD)), xopt.EMA(0.9))
    rule = xopt.Guard(xopt.Accumulate(xopt.Precision(inner, **how), every=2), "skip")
    want, state = walk(rule, params, grads, runner="eager")
    opt = xopt.Optimizer(MAP(np.copy, params), rule, runner=runner)
    pure, own = params, rule.init(params)
    for k, g in enumerate(grads):
        opt.step(g)
        if k == 3:
            file = opt.save(tmp_path / "run")
            opt = xopt.Optimizer(MAP(np.zeros_like, params), rule, runner=runner)
            opt.load(file)
        change, after = rule.updates(pure, g, own, runner=runner)
        added = MAP(lambda p, u: (p.astype("f4") + u.astype("f4")).astype(BF), pure, change)
        pure, own = rule.apply(pure, g, own, runner=runner)
        for a, b in zip(optree.tree_leaves((added, after.slots)), optree.tree_leaves((pure, own.slots)), strict=True):
            np.testing.assert_allclose(a.astype("f4"), b.astype("f4"), rtol=2.0**-7, atol=1e-6)
    for a in ((opt.params, opt.state.slots), (pure, own.slots)):
        assert all(map(same_bits, optree.tree_leaves(a), optree.tree_leaves((want, state.slots))))
    assert opt.eval_params()["tall"].dtype == BF


@pytest.mark.parametrize("how", [*HOWS[:3], {"state_dtype": "float16"}, {"state_dtype": "int8"}], ids=str)
def test_a_state_that_says_how_it_is_kept(lib: Lib, how: Any, tmp_path: Path, rng: np.random.Generator) -> None:
    """``init`` with the words of Precision: the same bits as with Precision around the rule, and after a checkpoint."""
    rule, size = xopt.chain(ADAM, xopt.EMA(0.5)), 5000 if "int8" in how.values() else 9
    around = xopt.Precision(rule, **how)
    w, *gs = (lib.array(x, "float16") for x in rng.standard_normal((5, size)))
    applies = [rule.apply, around.apply]
    if lib.guise == "jit":
        applies = [*map(lib.module().jit, applies)]
    ours, theirs = (w, rule.init(w, **how)), (w, around.init(w))
    for k, g in enumerate(gs):
        if k == 2:
            file = xopt.save_state(tmp_path / "run", rule, *ours)
            ours = xopt.load_state(file, rule, w)[:2]
            assert {*xopt.load_state(file, around, w).state.slots} == {*theirs[1].slots}
        same = [
            xopt.save_state(tmp_path / str(i), x, *own) for i, (x, own) in enumerate([(rule, ours), (around, theirs)])
        ]
        assert same[0].read_bytes() == same[1].read_bytes()
        changes = [x.updates(own[0], g, own[1])[0] for x, own in ((rule, ours), (around, theirs))]
        assert same_bits(*map(lib.numpy, changes))
        ours, theirs = applies[0](ours[0], g, ours[1]), applies[1](theirs[0], g, theirs[1])
    assert len({*ours[1].slots} - {*theirs[1].slots}) == 1
    assert same_bits(lib.numpy(ours[0]), lib.numpy(theirs[0]))
    assert same_bits(*map(lib.numpy, (rule.eval_params(*ours), around.eval_params(*theirs))))
    for n, x in theirs[1].slots.items():
        assert same_bits(lib.numpy(ours[1].slots[n]), lib.numpy(x)), n


def test_a_state_says_it_once() -> None:
    p, kahan = np.ones(3, "float16"), {"rounding": "kahan"}
    with pytest.raises(ValueError, match="Precision: there is one already inside"):
        xopt.Guard(xopt.Precision(SGD, **kahan), "skip").init(p, master_weights=True)  # type: ignore[arg-type]
    state = SGD.init(p, **kahan)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Precision: there is one already inside"):
        xopt.Precision(SGD, master_weights=True).apply(p, p, state)
    with pytest.raises(ValueError, match="seed=3 does nothing without"):
        SGD.init(p, seed=3)
    with pytest.raises(ValueError, match="no averages that may be kept in 8 bits"):
        xopt.Adagrad().init(p, state_dtype="int8")
    with pytest.raises(ValueError, match="Precision.rounding"):
        SGD.init(p, rounding="down")  # type: ignore[arg-type]
    bad = ["precision=", "precision={", "precision=[1]", 'precision={"rounding": "down"}', 'precision={"x": 1}']
    for key in (*bad, f"precision={'[' * 200_000}", 1, b"precision=", None, ("precision=",)):
        with pytest.raises(ValueError, match=r"state.slots: .*, but this rule keeps \['0.sgd.m'\]"):
            SGD.apply(p, p, state._replace(slots={**SGD.init(p).slots, key: {}}))
    [key] = {*state.slots} - {"0.sgd.m", "precision.error"}
    with pytest.raises(ValueError, match="but this rule keeps"):
        SGD.apply(p, p, state._replace(slots={**state.slots, key: p}))
    with pytest.raises(ValueError, match="seed=3 does nothing without"):
        SGD.apply(p, p, state._replace(slots={**SGD.init(p).slots, 'precision={"seed": 3}': {}}))
    with pytest.raises(TypeError, match="rule.init returns a State"):
        SGD.apply(p, p, SimpleNamespace(slots={"precision={}": {}}))  # type: ignore[arg-type]
    opt = xopt.Optimizer(p.copy(), SGD, rounding="kahan")
    opt.step(p)
    back = xopt.load_state(opt.state_dict(only_state=False), SGD, p)
    assert np.array_equal(SGD.apply(back.params, p, back.state)[0], opt.step(p))
    with pytest.raises(xopt.CheckpointError, match="precision.rounding: 'kahan', but here it is 'nearest'"):
        xopt.load_state(opt.state_dict(), xopt.Precision(SGD, master_weights=True), p)
    with pytest.raises(xopt.CheckpointError, match="precision Precision, 0.sgd SGD; but here it is 0.sgd SGD"):
        xopt.Optimizer(p.copy(), SGD).load_state_dict(opt.state_dict())


def test_what_does_not_go_together() -> None:
    p = np.ones(3, "float16")
    for rounding in ("kahan", "stochastic"):
        with pytest.raises(ValueError, match="one is enough"):
            xopt.Optimizer(p, SGD, rounding=rounding, master_weights=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed=3 does nothing without"):
        xopt.Optimizer(p, SGD, seed=3)
    for seed in (-1, 2**32, 1.5):
        with pytest.raises((ValueError, TypeError), match="seed"):
            xopt.Optimizer(p, SGD, rounding="stochastic", seed=seed)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r'rounding="kahan" with a component that moves the new parameter'):
        xopt.Optimizer(p, xopt.chain(SGD, xopt.Box(0, 1)), rounding="kahan")
    with pytest.raises(TypeError, match=r'rounding="kahan" with a component that moves the new parameter'):
        xopt.Optimizer(np.ones((3, 3), "float16"), xopt.chain(xopt.Muon(lr=0.1), xopt.Box(0, 1)), rounding="kahan")
    for make in (partial(xopt.Optimizer, p, SGD), partial(SGD.init, p)):
        for bad in (
            {"rounding": "down"}, {"state_dtype": "int16"}, {"state_dtype": "float64"}, {"master_weights": 1},
            {"master_weights": 0},
        ):  # fmt: skip
            with pytest.raises(ValueError, match="must be one of"):
                make(**bad)  # type: ignore[arg-type]
        for seed in (False, 0.0, np.asarray([1, 2])):
            with pytest.raises(TypeError, match=r"Precision\.seed"):
                make(seed=seed)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="rule: int, but it must be a rule or a chain"):
        xopt.Precision(3, state_dtype="int8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there is one already inside"):
        xopt.Precision(xopt.Precision(SGD, rounding="kahan"), rounding="kahan")


def test_a_library_without_the_dtype(lib: Lib) -> None:
    if lib.name != "strict" or lib.guise != "CPU_DEVICE":
        pytest.skip("the others have bfloat16")
    with pytest.raises(TypeError, match="has no bfloat16"):
        xopt.Optimizer(lib.array(np.ones(3)), SGD, state_dtype="bfloat16")


def test_a_file_cannot_ask_for_what_is_not_possible_here(lib: Lib) -> None:
    """A plain rule takes the precision of a file; where that does not go, it is the difference that is reported."""
    p, q = np.ones(3, "float16"), np.ones(5000, "float32")
    boxed = xopt.chain(SGD, xopt.Box(0, 1))
    kahan = xopt.Optimizer(p, SGD, rounding="kahan").state_dict()
    with pytest.raises(xopt.CheckpointError, match="precision Precision, 0.sgd SGD; but here it is 0.sgd SGD, 1.box"):
        xopt.load_state(kahan, boxed, lib.array(p))
    assert len(xopt.load_state(kahan, boxed, lib.array(p), strict=False).state.slots) == 1
    codes = xopt.Optimizer(q, SGD, state_dtype="int8").state_dict()
    with pytest.raises(xopt.CheckpointError, match="precision Precision, 0.sgd SGD; but here it is 0.sgd SGD"):
        xopt.load_state(codes, SGD, lib.array(q, "complex64"))


@pytest.mark.parametrize("around", [
    lambda r: xopt.Guard(r, "skip"), lambda r: xopt.Accumulate(r, every=2), xopt.LossScale, lambda r: r
], ids=["Guard", "Accumulate", "LossScale", "none"])  # fmt: skip
def test_precision_inside_and_outside_of_others_is_the_same(around: Any) -> None:
    p = np.linspace(1, 2, 5).astype("float16")
    for how in HOWS[:3]:
        runs = [(around(xopt.Precision(SGD, **how)), {}), (xopt.Precision(around(SGD), **how), {}), (around(SGD), how)]
        found: list[Any] = [(p, rule.init(p, **words)) for rule, words in runs]
        for _ in range(4):
            found = [rule.apply(*(x[0], x[0], x[1])) for (rule, _), x in zip(runs, found, strict=True)]
        opt = xopt.Optimizer(p.copy(), around(SGD), **how)
        opt.load_state_dict(xopt.Optimizer(p, around(xopt.Precision(SGD, **how))).state_dict())
        saved = [xopt.Optimizer(p, rule).state_dict()["rule"] for rule, _ in runs[:2]]
        assert saved[0] == saved[1]
        assert all(same_bits(x[0], found[0][0]) for x in found)


def test_another_precision_is_another_rule() -> None:
    p = np.ones(3, "float16")
    saved = xopt.Optimizer(p, SGD, rounding="kahan").state_dict()
    with pytest.raises(xopt.CheckpointError) as error:
        xopt.Optimizer(p, SGD, master_weights=True).load_state_dict(saved)
    assert "rule: precision.rounding: 'kahan', but here it is 'nearest'" in error.value.problems
    assert "state/precision.master/: missing" in error.value.problems


def test_explain_counts_the_bytes() -> None:
    """Bytes of the state of a bfloat16 parameter with Adam, as the docstring says them."""
    p = np.ones(64, BF)
    counts = [({}, 8), ({"rounding": "kahan"}, 10), ({"master_weights": True}, 12), ({"state_dtype": "bfloat16"}, 4)]
    for how, count in counts:
        state = xopt.Precision(xopt.Adam(), **how).init(p)
        assert sum(x.nbytes for x in state.slots.values()) == 64 * count
        text = str(xopt.explain(xopt.Precision(xopt.Adam(), **how), p))
        assert f"{count} bytes" in text, text
