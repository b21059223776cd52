"""Gradients by rows: dense ones have the bits of the scattered gradient, lazy ones leave all other rows alone."""

from __future__ import annotations

import pickle
from typing import Any

import catalog
import numpy as np
import pytest
from conftest import Lib
from support.sparse_rows import NUMPY, STEPS, N, Problem, row_by_row

import xopt
from xopt import _arrays

ADAM = xopt.Adam(lr=0.1, eps=1e-3, eps_mode="hat")


def send(lib: Lib, params: dict[str, Any]) -> dict[str, Any]:
    found = {n: lib.array(x) for n, x in params.items()}
    return {n: x.copy() for n, x in found.items()} if lib.name == "numpy" else found


def back(lib: Lib, params: dict[str, Any]) -> dict[str, Any]:
    return {n: lib.numpy(x).copy() for n, x in params.items()}


def both(lib: Lib, rule: Any, params: dict[str, Any], grads: list[Any], **options: Any) -> dict[str, Any]:
    """Take steps by `Optimizer` and by `apply`: the parameters, after a look whether they are the same."""
    state = rule.init(send(lib, params), **options)
    pure = send(lib, params)
    apply = lib.module().jit(rule.apply) if lib.guise == "jit" else rule.apply
    for g in grads:
        pure, state = apply(pure, g, state)
    if lib.guise == "read-only":
        return back(lib, pure)
    opt = xopt.Optimizer(send(lib, params), rule, **options)
    for g in grads:
        opt.step(g)
    found = back(lib, opt.params)
    for n, x in back(lib, pure).items():
        close(lib, found[n], x)
    return found


def close(lib: Lib, got: Any, want: Any, norms: bool = False) -> None:
    """Compare bits; what XLA fuses in one way and in another, and norms summed in another order, to some roundings."""
    if norms or lib.name == "jax":
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    else:
        np.testing.assert_array_equal(got, want)


def on(lib: Lib) -> None:
    if lib.name == "dask":
        pytest.skip("refused: see the errors")


def test_dense_has_the_bits_of_the_scattered_gradient(lib: Lib) -> None:
    on(lib)
    problem, rule = Problem(), xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.SGD(0.1, momentum=0.9, weight_decay=0.1))
    grads = [{"table": lib.array(problem.scattered(t)), "bias": lib.array(problem.steps[t][2])} for t in range(STEPS)]
    want = both(lib, rule, problem.params, grads)
    got = both(lib, rule, problem.params, problem.grads(lib, lazy=False))
    for n, x in want.items():
        close(lib, got[n], x)


def lazy_adam(problem: Problem) -> Any:
    """Adam of the rows that occur, in float64: m, v and p of the others wait, t does not."""
    p = problem.params["table"].astype("float64")
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, (i, _, _) in enumerate(problem.steps, 1):
        g = problem.scattered(t - 1).astype("float64")
        for row in {*i.tolist()}:
            m[row] = 0.9 * m[row] + 0.1 * g[row]
            v[row] = 0.999 * v[row] + 0.001 * g[row] ** 2
            p[row] -= 0.1 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m[row] / (np.sqrt(v[row]) + 1e-3)
    return p


def test_lazy_adam_beside_numpy(lib: Lib) -> None:
    on(lib)
    problem = Problem()
    got = both(lib, ADAM, problem.params, problem.grads(lib, lazy=True))["table"]
    # four steps of 0.1, a dozen roundings of float32 each
    np.testing.assert_allclose(got, lazy_adam(problem), rtol=1e-5, atol=1e-6)
    others = sorted({*range(N)} - {*np.concatenate([i for i, _, _ in problem.steps]).tolist()})
    assert others
    np.testing.assert_array_equal(got[others], problem.params["table"][others])


SAME = {
    "sgd": xopt.SGD(0.1),
    "adagrad": xopt.Adagrad(0.1),
    "clip": xopt.chain(xopt.ClipByGlobalNorm(0.5), xopt.Adagrad(0.1)),
    "leaf": xopt.chain(xopt.Normalize(over="leaf"), xopt.SGD(0.1), xopt.Scale(0.5)),
    "scale": xopt.LossScale(xopt.Adagrad(0.1), initial=4.0),
    "skip": xopt.Guard(xopt.Adagrad(0.1), "skip"),
    "novograd": xopt.NovoGrad(0.1, b1=0.0),
}


@pytest.mark.parametrize("name", SAME)
def test_lazy_is_dense_where_rows_without_a_gradient_stay(lib: Lib, name: str) -> None:
    on(lib)
    if lib.name == "jax" and name != "clip":
        pytest.skip("each is compiled four times: norms are what may differ")
    problem, rule = Problem(), SAME[name]
    got, want = (both(lib, rule, problem.params, problem.grads(lib, lazy=lazy)) for lazy in (True, False))
    for n, x in want.items():
        close(lib, got[n], x, norms=name in ("clip", "leaf", "novograd"))


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("row", [(), (3,), (2, 3)], ids=str)
def test_rows_are_added_in_their_order(dtype: str, row: tuple[int, ...]) -> None:
    problem = Problem(dtype, row=row, many=40)
    at, values, _ = problem.steps[0]
    for name in ("numpy", "cupy"):  # the latter with arrays of NumPy, which it has the methods of
        got = _arrays.named(name).add_rows(np, np.zeros((N, *row), dtype), at, values)
        np.testing.assert_array_equal(got, problem.scattered(0))


@pytest.mark.parametrize("row", catalog.ROWS, ids=lambda row: row.rule.__name__)
def test_every_rule_takes_some_rows_or_says_why_not(row: Any) -> None:
    rule, problem = row.make(**row.options[-1]), Problem()
    params = {n: x.copy() for n, x in problem.params.items()}
    opt = xopt.Optimizer(params, rule)
    sums = rule.reduce is not None and type(rule) is not xopt.NovoGrad
    if not rule.elementwise or sums or rule.readout is not None:
        before = pickle.dumps((params, opt.state))
        with pytest.raises(TypeError, match=rf'grads\["table"\]: SparseRows with lazy=True, but 0.{rule._label()} '):
            opt.step(problem.grads(NUMPY, lazy=True)[0])
        assert pickle.dumps((params, opt.state)) == before
        return
    for g in problem.grads(NUMPY, lazy=True):
        opt.step(g)
    table, bias = row_by_row(rule, problem)
    np.testing.assert_array_equal(params["bias"], bias)
    if type(rule) is not xopt.NovoGrad:  # whose norm is that of the table
        np.testing.assert_array_equal(params["table"], table)
