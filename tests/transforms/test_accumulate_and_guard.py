"""Accumulate and Guard: on every library, pure and in place, against runs that do by hand what they promise."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from conftest import Lib, tree, walk
from support.wrappers import MAP, RULES, leaves, same, send, slots

import xopt


def run(lib: Lib, rule: Any, params: Any, grads: list[Any]) -> tuple[Any, Any]:
    """Run the pure form, under jit where that is the guise: the last parameters and state, in NumPy."""
    params = send(lib, params)
    state = rule.init(params)
    apply, traced = jitted(rule) if lib.guise == "jit" else (rule.apply, [])
    before = len(traced)
    for g in grads:
        params, state = apply(params, send(lib, g), state)
        params, slots, carry = lib.settled(params, state.slots, state.carry)
        state = state._replace(slots=slots, carry=carry)
    assert len(traced) <= before + 1
    return MAP(lib.numpy, params), state


@functools.cache
def jitted(rule: Any) -> tuple[Any, list[int]]:
    """Return a step under jit, compiled once for the runs of a test, and a list that grows when it is traced."""
    traced: list[int] = []
    return pytest.importorskip("jax").jit(lambda p, g, s: traced.append(1) or rule.apply(p, g, s)), traced


def run_in_place(lib: Lib, rule: Any, params: Any, grads: list[Any], **kwargs: Any) -> tuple[Any, Any]:
    opt = xopt.Optimizer(send(lib, params), rule, **kwargs)
    for g in grads:
        opt.step(send(lib, g))
    return MAP(lib.numpy, opt.params), opt.state


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: repr(rule)[:20])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_k_small_batches_are_one_large_one(lib: Lib, rule: Any, dtype: str, rng: np.random.Generator) -> None:
    if dtype == "complex128" and lib.name in ("jax", "dask"):
        pytest.skip("the others have it; here each step is compiled, or a graph")
    params, k = tree(rng, dtype, lib=lib), 3
    micro = [tree(rng, dtype, lib=lib) for _ in range(4 * k)]
    large = []
    for j in range(4):
        total = MAP(lambda x: 0.0 * x, micro[0])
        for g in micro[k * j : k * j + k]:
            total = MAP(lambda a, b: a + b / k, total, g)
        large.append(total)
    want, state = run(lib, rule, params, large)
    wrapped = xopt.Accumulate(rule, every=k)
    forms = [run, run_in_place] if lib.guise != "read-only" and lib.name != "dask" else [run]
    for form in forms:
        got, after = form(lib, wrapped, params, micro)
        same(lib, got, want)
        same(lib, slots(lib, after), slots(lib, state))
        assert all(not np.any(lib.numpy(x)) for x in leaves(after.slots["accumulate.gradient"]))
        assert int(after.step) == 4 * k
        before, held = form(lib, wrapped, params, micro[: 2 * k])
        between, also_held = form(lib, wrapped, params, micro[: 3 * k - 1])
        same(lib, between, before)
        same(lib, slots(lib, also_held), slots(lib, held))


@pytest.mark.parametrize("total", ["mean", "sum"])
def test_mean_or_sum(total: Any, rng: np.random.Generator) -> None:
    p, grads = rng.standard_normal(5), [rng.standard_normal(5) for _ in range(2)]
    got, _ = walk(xopt.Accumulate(xopt.SGD(0.1), every=2, total=total), p, grads)
    np.testing.assert_allclose(got, p - 0.1 * (grads[0] + grads[1]) / (2 if total == "mean" else 1), rtol=1e-14)


def test_a_micro_batch_that_is_not_finite_is_gone_with_its_batch(lib: Lib, rng: np.random.Generator) -> None:
    """Accumulate outside Guard: the whole large batch is left out, and the next starts from nothing."""
    params = tree(rng, lib=lib)
    grads = [tree(rng, lib=lib) for _ in range(6)]
    poisoned = [MAP(np.copy, g) for g in grads]
    poisoned[2]["tall"][0, 0] = np.nan
    rule = xopt.Accumulate(xopt.Guard(RULES[1], "skip"), every=2)
    got, state = run(lib, rule, params, poisoned)
    want, _ = run(lib, xopt.Accumulate(RULES[1], every=2), params, [*grads[:2], *grads[4:]])
    same(lib, got, want)
    assert float(state.carry["nonfinite.skipped"]) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: repr(rule)[:20])
def test_a_skipped_step_never_was(lib: Lib, rule: Any, bad: float, rng: np.random.Generator) -> None:
    """Bias corrections and schedules too go on from the last step that was taken."""
    params, grads = tree(rng, lib=lib), [tree(rng, lib=lib) for _ in range(6)]
    poisoned = [*grads[:1], *[MAP(np.copy, g) for g in grads[1:3]], *grads[1:]]
    poisoned[1]["list"][0][...] = bad
    poisoned[2]["turned" if "turned" in params else "tall"][1, 1] = bad
    want, state = run(lib, rule, params, grads)
    guarded = xopt.Guard(rule, "skip")
    got, after = run(lib, guarded, params, poisoned)
    tol = 1e-12 if lib.guise != "jit" else 1e-11  # a step number in an array takes another way to 1 - b**t
    same(lib, got, want, tol)
    assert float(after.carry["nonfinite.skipped"]) == 2
    if lib.guise != "read-only" and lib.name != "dask":
        got, after = run_in_place(lib, rule, params, poisoned, on_nonfinite="skip")
        same(lib, got, want, tol)
        same(lib, slots(lib, after), slots(lib, state), tol)


def test_zero(lib: Lib, rng: np.random.Generator) -> None:
    for dtype in ("float64", "complex128"):
        params, grads = tree(rng, dtype, lib=lib), [tree(rng, dtype, lib=lib) for _ in range(3)]
        clean = [MAP(np.copy, g) for g in grads]
        grads[1]["tall"][1], clean[1]["tall"][1] = np.nan, 0.0
        grads[1]["wide"]["b"][0], clean[1]["wide"]["b"][0] = np.inf, 0.0
        want, _ = run(lib, RULES[2], params, clean)
        got, _ = run(lib, xopt.Guard(RULES[2], "zero"), params, grads)
        same(lib, got, want)


def test_raise_names_the_gradient_and_moves_nothing(lib: Lib, rng: np.random.Generator) -> None:
    params, good, bad = tree(rng), tree(rng), tree(rng)
    bad["wide"]["w"][0, :2] = np.nan
    bad["strided"][1][...] = np.inf
    rule = xopt.Guard(RULES[1], "raise")
    words = r'grads\["strided"\]\[1\]: 18 elements are not finite'
    p = send(lib, params)
    if lib.guise == "jit":
        with pytest.raises(TypeError, match="cannot under jax.jit"):
            lib.module().jit(rule.apply)(p, send(lib, bad), rule.init(p))
    else:
        p, state = rule.apply(p, send(lib, good), rule.init(p))
        with pytest.raises(FloatingPointError, match=words):
            rule.apply(p, send(lib, bad), state)
    if lib.guise == "read-only":
        return
    opt = xopt.Optimizer(send(lib, params), RULES[1], on_nonfinite="raise")
    opt.step(send(lib, good))
    before = MAP(lambda x: np.array(lib.numpy(x)), (opt.params, opt.state.slots))
    with pytest.raises(FloatingPointError, match=words):
        opt.step(send(lib, bad))
    for a, b in zip(leaves(before), leaves(MAP(lib.numpy, (opt.params, opt.state.slots))), strict=True):
        np.testing.assert_array_equal(a, b)
    opt.step(send(lib, good))
    want, _ = run(lib, RULES[1], params, [good, good])
    same(lib, MAP(lib.numpy, opt.params), want)


def test_propagate_is_no_guard(rng: np.random.Generator) -> None:
    p, g = rng.standard_normal(3), np.asarray([1.0, np.nan, 2.0])
    assert np.isnan(walk(xopt.Guard(xopt.SGD(0.1), "propagate"), p, [g])[0]).tolist() == [False, True, False]
    opt = xopt.Optimizer(p, xopt.SGD(0.1), on_nonfinite="propagate")
    assert np.isnan(opt.step(g)).tolist() == [False, True, False]


def test_hyperparameters_are_those_of_the_rule() -> None:
    rule = xopt.Accumulate(xopt.Guard(xopt.SGD(lr=0.1), "skip"), every=2)
    opt = xopt.Optimizer(np.zeros(2), rule)
    opt.set(lr=0.5)
    assert opt.hyperparams() == {"lr": 0.5, "momentum": None, "dampening": None, "weight_decay": None, "peak_lr": None}
    assert repr(opt.rule) == "Accumulate(Guard(SGD(lr=0.5), on_nonfinite='skip'), every=2)"
    assert opt.rule == xopt.Accumulate(xopt.Guard(xopt.SGD(lr=0.5), "skip"), every=2)
    assert hash(opt.rule) == hash(xopt.Accumulate(xopt.Guard(xopt.SGD(lr=0.5), "skip"), every=2))


def test_what_is_refused() -> None:
    rule = xopt.SGD()
    for make, words in [
        (lambda: xopt.Accumulate(rule, every=0), "every: 0.0 is out of range"),
        (lambda: xopt.Accumulate(rule, every=2.0), "must be an int"),
        (lambda: xopt.Accumulate(rule, every=2, total="max"), "total"),
        (lambda: xopt.Accumulate(xopt.SGD, every=2), "make an object of it"),
        (lambda: xopt.Accumulate(xopt.Accumulate(rule, every=2), every=2), "there is one already inside"),
        (lambda: xopt.Guard(xopt.Accumulate(xopt.Guard(rule, "zero"), 2), "skip"), "there is one already inside"),
        (lambda: xopt.Guard(rule, "ignore"), "must be one of 'propagate', 'skip', 'raise', 'zero'"),
        (lambda: xopt.Optimizer(np.zeros(1), rule, on_nonfinite="drop"), "must be one of"),
    ]:
        with pytest.raises((TypeError, ValueError), match=words):
            make()


@pytest.mark.needs("jax")
def test_optax_multi_steps_and_apply_if_finite(rng: np.random.Generator) -> None:
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    p, grads = rng.standard_normal(6), [rng.standard_normal(6) for _ in range(9)]
    for mine, theirs, gs in [
        (
            xopt.Accumulate(xopt.Adam(0.1), every=3),
            optax.MultiSteps(optax.adam(0.1), 3, accumulator_dtype="float64"),
            grads,
        ),
        (xopt.Guard(xopt.Adam(0.1), "skip"), optax.apply_if_finite(optax.adam(0.1), 9), [*grads[:2], p * np.nan, p]),
    ]:
        x = jax.numpy.asarray(p)
        state = theirs.init(x)
        for g in gs:
            updates, state = theirs.update(jax.numpy.asarray(g), state, x)
            x = optax.apply_updates(x, updates)
        np.testing.assert_allclose(walk(mine, p, gs)[0], x, rtol=1e-12)
