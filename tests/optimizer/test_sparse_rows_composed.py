"""Lazy rows with everything that stands around a rule: right, or refused by name before anything is written."""

from __future__ import annotations

import pickle
import re
import tracemalloc
from typing import Any

import numpy as np
import pytest
from conftest import Lib
from support.runners import one_of
from support.sparse_rows import NUMPY, STEPS, N, Problem, integers, row_by_row

import xopt

ADAM = xopt.Adam(lr=0.1)
MOMENTUM = xopt.SGD(0.1, momentum=0.9, weight_decay=0.1)
RIGHT: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "weight decay": (MOMENTUM, "float32", {}),
    "schedule": (xopt.AdamW(xopt.schedules.cosine(0.1, steps=9), weight_decay=0.3), "float32", {}),
    "chain": (
        xopt.chain(xopt.ClipByValue(1.0), xopt.Adam(1.0), xopt.AddDecay(0.1, decay="independent"), xopt.Scale(0.1)),
        "float32",
        {},
    ),
    "cautious": (xopt.chain(ADAM, xopt.Cautious(rescale=False)), "float32", {}),
    "projection": (xopt.chain(MOMENTUM, xopt.NonNegative()), "float32", {}),
    "groups": (xopt.Groups(ADAM, ("table/**", {"lr": 0.5}), ("bias", {"b1": 0.5})), "float32", {}),
    "other rules": (xopt.Groups(xopt.LAMB(0.1), ("table/**", ADAM)), "float32", {}),
    "loss scale": (xopt.LossScale(ADAM, initial=2.0, every=2), "float32", {}),
    "guard": (xopt.Guard(ADAM, "skip"), "float32", {}),
    "zero": (xopt.Guard(ADAM, "zero"), "float32", {}),
    "raise": (xopt.Guard(ADAM, "raise"), "float32", {}),
    "complex": (MOMENTUM, "complex64", {}),
    "split": (xopt.Adam(0.1, complex="split"), "complex64", {}),
    "float64": (ADAM, "float64", {}),
    "bfloat16": (ADAM, "bfloat16", {}),
    "master weights": (ADAM, "bfloat16", {"master_weights": True}),
    "kahan": (ADAM, "bfloat16", {"rounding": "kahan"}),
    "state dtype": (ADAM, "float32", {"state_dtype": "bfloat16"}),
}


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("runner", ["tiled", "eager"])
def test_what_is_right_is_that_of_every_row_alone(name: str, runner: Any) -> None:
    rule, dtype, options = RIGHT[name]
    problem = Problem(dtype)
    params, other = ({n: x.copy() for n, x in problem.params.items()} for _ in range(2))
    pure = xopt.Precision(rule, **options) if options else rule
    opt, state = xopt.Optimizer(params, rule, runner=runner, **options), pure.init(other)
    for g in problem.grads(NUMPY, lazy=True):
        opt.step(g)
        moved = pure.updates(other, g, state)[0]
        new, state = pure.apply(other, g, state)
        if not options and dtype != "bfloat16":
            np.testing.assert_allclose(new["table"] - other["table"], moved["table"], atol=1e-6)
            assert not np.any(moved["table"][[0, N - 1]])
        other = new
    table, bias = row_by_row(rule, problem, runner=runner, **options)
    for found in (params, other):
        np.testing.assert_array_equal(found["table"], table)
        np.testing.assert_array_equal(found["bias"], bias)


compiled = one_of("llvm", "cuda")


@pytest.mark.parametrize("name", ["groups", "master weights"])
def test_compiled_runners(name: str, compiled: Any) -> None:
    rule, dtype, options = RIGHT[name]
    problem = Problem(dtype)
    params = {n: x.copy() for n, x in problem.params.items()}
    opt = xopt.Optimizer(params, rule, runner=compiled, **options)
    for g in problem.grads(NUMPY, lazy=True):
        opt.step(g)
    table, bias = row_by_row(rule, problem, runner="eager", **options)
    np.testing.assert_array_equal(params["table"], table)
    np.testing.assert_array_equal(params["bias"], bias)


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "whole arrays": (xopt.Muon(0.1), {}, "0.muon computes with whole arrays"),
    "whole arrays behind a sum": (xopt.Guard(xopt.Muon(0.1), "skip"), {}, "0.muon computes with whole arrays"),
    "factored": (xopt.Adafactor(), {}, "0.adafactor computes with whole arrays"),
    "noise": (xopt.chain(xopt.AddNoise(0.1), ADAM), {}, "0.addnoise computes with whole arrays"),
    "norm of parameters": (xopt.LAMB(0.1), {}, "0.lamb sums over parameters or state"),
    "trust ratio": (xopt.chain(ADAM, xopt.TrustRatio()), {}, "1.trustratio sums over parameters or state"),
    "norm of the step": (xopt.chain(ADAM, xopt.ClipByGlobalNorm(1.0)), {}, "1.clipbyglobalnorm sums over"),
    "cautious": (xopt.chain(ADAM, xopt.Cautious()), {}, "1.cautious sums over parameters or state"),
    "EMA": (xopt.chain(ADAM, xopt.EMA()), {}, "1.ema keeps an average of all rows"),
    "lookahead": (xopt.chain(ADAM, xopt.Lookahead()), {}, "1.lookahead keeps an average of all rows"),
    "schedule-free": (xopt.ScheduleFreeSGD(0.1), {}, "0.schedulefreesgd keeps an average of all rows"),
    "accumulate": (xopt.Accumulate(ADAM, every=2), {}, "accumulate adds gradients up"),
    "8 bits": (ADAM, {"state_dtype": "int8"}, "precision keeps state in blocks of 8 bits"),
    "stochastic": (ADAM, {"rounding": "stochastic"}, "precision rounds with noise that follows the place"),
    "update_norm": (ADAM, {"metrics": ("update_norm",)}, "metrics.* sums over parameters or state"),
    "param_norm": (ADAM, {"metrics": ("param_norm",)}, "metrics.* sums over parameters or state"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_would_be_wrong_is_refused_and_nothing_moves(name: str) -> None:
    rule, options, why = WRONG[name]
    dtype = "bfloat16" if name == "stochastic" else "float32"
    problem = Problem(dtype, row=(500,) if name == "8 bits" else (3,))
    params = {n: x.copy() for n, x in problem.params.items()}
    opt = xopt.Optimizer(params, rule, **options)
    before, [g, *_] = pickle.dumps((params, opt.state)), problem.grads(NUMPY, lazy=True)
    match = rf'^grads\["table"\]: SparseRows with lazy=True, but {why}.*; use lazy=False$'
    with pytest.raises(TypeError, match=match):
        opt.step(g)
    assert pickle.dumps((params, opt.state)) == before
    opt.step(problem.grads(NUMPY, lazy=False)[0])
    scattered = {n: x.copy() for n, x in problem.params.items()}
    xopt.Optimizer(scattered, rule, **options).step({"table": problem.scattered(0), "bias": problem.steps[0][2]})
    for n, x in params.items():
        np.testing.assert_array_equal(x, scattered[n])
    options, metrics = {n: x for n, x in options.items() if n != "metrics"}, options.get("metrics")
    state = rule.init(problem.params, **options)
    with pytest.raises(TypeError, match=match):
        rule.apply(problem.params, g, state, metrics=metrics)


def test_a_sum_that_counts_elements_is_refused() -> None:
    class Mean(xopt.Transform):
        @staticmethod
        def reduce(h: Any, xp: Any, p: Any, g: Any) -> dict[str, Any]:
            return {"total": g, "count": g * 0 + 1}

        @staticmethod
        def host(h: Any, xp: Any) -> dict[str, Any]:
            return {"mean": h.total / h.count}

        @staticmethod
        def update(h: Any, xp: Any, p: Any, g: Any) -> Any:
            return g - h.mean

    problem = Problem()
    with pytest.raises(TypeError, match="0.mean sums over parameters or state, or counts rows"):
        xopt.Optimizer(problem.params, xopt.chain(Mean(), xopt.SGD(0.1))).step(problem.grads(NUMPY, lazy=True)[0])


def rows(lib: Lib, indices: Any, values: Any, lazy: bool) -> xopt.SparseRows:
    return xopt.SparseRows(integers(lib, indices), lib.array(np.asarray(values, "float32")), lazy=lazy)


@pytest.mark.parametrize("lazy", [True, False])
def test_errors_come_before_anything_is_written(lib: Lib, lazy: bool) -> None:
    params = {"t": lib.array(np.ones((4, 2), "float32")), "s": lib.array(np.ones((), "float32"))}
    state = ADAM.init(params)
    one, two = np.ones((1, 2), "float32"), np.ones((2, 2), "float32")
    if lib.name == "dask":
        with pytest.raises(TypeError, match=r'grads\["t"\]: SparseRows, which arrays of dask cannot have'):
            ADAM.apply(params, {"t": rows(lib, [0], one, lazy), "s": None}, state)
        return
    wide = Lib(lib.name, lib.guise).array(np.ones((1, 2), "float16" if lib.name != "strict" else "float32"))
    for given, kind, text in [
        (rows(lib, [4], one, lazy), IndexError, r"\.indices: 4, but the parameter has 4 rows"),
        (rows(lib, [0, -1], two, lazy), IndexError, r"\.indices: -1, but the parameter has 4 rows"),
        (rows(lib, [[0]], one, lazy), ValueError, r"\.indices: shape \(1, 1\), but it must have one axis"),
        (rows(lib, [0], two, lazy), ValueError, r"\.values: shape \(2, 2\), but of 1 rows of a parameter of shape \(4"),
        (
            xopt.SparseRows(lib.array(np.ones(1, "float32")), lib.array(one), lazy=lazy),
            TypeError,
            r"\.indices: dtype float32, but indices must be integers",
        ),
        (xopt.SparseRows(integers(lib, [0]), wide, lazy=lazy), TypeError, r"\.values: dtype float16, but the para"),
    ]:
        if wide is given.values and lib.name == "strict":
            continue
        with pytest.raises(kind, match=rf'^grads\["t"\]{text}'):
            ADAM.apply(params, {"t": given, "s": None}, state)
    with pytest.raises(ValueError, match=r'^grads\["s"\]: SparseRows, but the parameter is a scalar and has no rows'):
        ADAM.apply(params, {"t": None, "s": rows(lib, [0], [1.0], lazy)}, state)
    if lib.name != "numpy":
        with pytest.raises(TypeError, match=r'^grads\["t"\].indices: an array of numpy, but the parameter is an array'):
            ADAM.apply(params, {"t": xopt.SparseRows(np.zeros(1, int), lib.array(one), lazy=lazy), "s": None}, state)
    np.testing.assert_array_equal(lib.numpy(params["t"]), np.ones((4, 2)))


def test_what_is_no_rows_at_all() -> None:
    with pytest.raises(TypeError, match="SparseRows: values is a list, but it must be an array"):
        xopt.SparseRows(np.zeros(1, int), [1.0])
    with pytest.raises(TypeError, match="SparseRows: lazy=1, but it must be True or False"):
        xopt.SparseRows(np.zeros(1, int), np.ones(1), lazy=1)  # type: ignore[arg-type]
    table = np.ones((3, 2))
    opt = xopt.Optimizer(table, ADAM)
    with pytest.raises(ValueError, match="grads: shares memory with params, which the step writes"):
        opt.step(xopt.SparseRows(np.asarray([0]), table[:1], lazy=True))
    with pytest.raises(TypeError, match=r"params: a xopt.SparseRows, but a parameter must be an array"):
        xopt.Optimizer(xopt.SparseRows(np.asarray([0]), table[:1]), ADAM)
    assert repr(xopt.SparseRows(np.asarray([0]), table[:1])) == (
        "SparseRows(indices of shape (1,), values (1, 2), lazy=False)"
    )


@pytest.mark.parametrize("row", [(), (2, 3)], ids=str)
@pytest.mark.parametrize("many", [0, 1, 40])
def test_shapes(row: tuple[int, ...], many: int) -> None:
    problem = Problem(row=row, many=many)
    params = {n: x.copy() for n, x in problem.params.items()}
    opt = xopt.Optimizer(params, ADAM)
    for g in problem.grads(NUMPY, lazy=True, bias=False):
        opt.step(g)
    problem.steps = [(i, v, None) for i, v, _ in problem.steps]
    table, bias = row_by_row(ADAM, problem)
    np.testing.assert_array_equal(params["table"], table)
    np.testing.assert_array_equal(params["bias"], bias)
    assert opt.steps_taken == STEPS


def test_frozen_and_empty_tables() -> None:
    params = {"a": np.ones((3, 2)), "b": np.ones((0, 2))}
    opt = xopt.Optimizer(params, xopt.Groups(xopt.Muon(0.1), ("a", xopt.Freeze)))
    nothing = xopt.SparseRows(np.zeros(0, int), np.ones((0, 2)))
    opt.step({"a": xopt.SparseRows(np.asarray([1]), np.ones((1, 2)), lazy=True), "b": nothing})
    np.testing.assert_array_equal(params["a"], np.ones((3, 2)))


def test_lazy_steps_between_others() -> None:
    problem = Problem()
    params, pure = ({n: x.copy() for n, x in problem.params.items()} for _ in range(2))
    opt, state = xopt.Optimizer(params, ADAM), ADAM.init(pure)
    lazy = problem.grads(NUMPY, lazy=True)
    for t in (0, 1, 2, 3, 0, 1):
        for g in (lazy[t], {"table": problem.scattered(t), "bias": problem.steps[t][2]}):
            opt.step(g)
            pure, state = ADAM.apply(pure, g, state, runner="eager")
    for n, x in pure.items():
        np.testing.assert_array_equal(params[n], x)


def test_the_norm_is_that_of_the_sums() -> None:
    problem, rule = Problem(), xopt.chain(xopt.ClipByGlobalNorm(0.5), ADAM)
    opt = xopt.Optimizer(problem.params, rule, metrics=("grad_norm",))
    want = np.sqrt(np.sum(problem.scattered(0) ** 2) + np.sum(problem.steps[0][2] ** 2))
    opt.step(problem.grads(NUMPY, lazy=True)[0])
    np.testing.assert_allclose(opt.metrics["grad_norm"], want, rtol=1e-6)  # summed in float32


def test_sam_and_bad_gradients() -> None:
    problem = Problem()
    [lazy, *_], [dense, *_] = (problem.grads(NUMPY, lazy=lazy) for lazy in (True, False))
    got, want = (xopt.SAM(0.1).perturb(problem.params, g) for g in (lazy, dense))
    np.testing.assert_allclose(got["table"], want["table"], rtol=1e-6)
    lazy["table"].values[0, 0] = np.nan
    opt = xopt.Optimizer({n: x.copy() for n, x in problem.params.items()}, ADAM, on_nonfinite="raise")
    with pytest.raises(FloatingPointError, match=re.escape('grads["table"]: 1 elements are not finite')):
        opt.step(lazy)
    skipping = xopt.Optimizer(opt.params, ADAM, on_nonfinite="skip")
    skipping.step(lazy)
    assert skipping.metrics["skipped_steps"] == 1
    np.testing.assert_array_equal(opt.params["table"], problem.params["table"])


def test_memory_is_that_of_the_rows() -> None:
    table = np.zeros((50_000, 16), "float32")
    opt = xopt.Optimizer(table, ADAM)
    g = xopt.SparseRows(np.arange(0, 50_000, 500), np.ones((100, 16), "float32"), lazy=True)
    opt.step(g)
    tracemalloc.start()
    opt.step(g)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < table.nbytes / 10  # 100 rows of 16, a dozen times, and what Python allocates


@pytest.mark.needs("jax")
def test_jax_drops_rows_that_are_none_and_compiles_once() -> None:
    import jax
    import jax.numpy as jnp

    traces, rule = [], xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam(0.1))

    @jax.jit
    def apply(p: Any, g: Any, s: Any) -> Any:
        traces.append(1)
        return rule.apply(p, g, s)

    table = jnp.ones((4, 2))
    state = rule.init(table)
    want, after = apply(table, xopt.SparseRows(jnp.asarray([1, 3, 1]), jnp.ones((3, 2)), lazy=True), state)
    for indices in ([1, 4, 3, 1, -1], [3, 1, 9, 1, 4]):
        values = np.where(np.isin(indices, (1, 3))[:, None], np.ones(2), 7.0)
        got, found = apply(table, xopt.SparseRows(jnp.asarray(indices), jnp.asarray(values), lazy=True), state)
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(found.slots["1.adam.v"], after.slots["1.adam.v"])
    assert len(traces) == 2
    got, _ = apply(table, xopt.SparseRows(jnp.asarray([-1, 4]), jnp.ones((2, 2)), lazy=False), state)
    np.testing.assert_array_equal(got, table)
    with pytest.raises(TypeError, match="0.muon computes with whole arrays; use lazy=False"):
        xopt.Optimizer(table, xopt.Muon(0.1)).step(xopt.SparseRows(jnp.asarray([1]), jnp.ones((1, 2)), lazy=True))
