"""Functions that write what they return into the same arrays each time: what a solver goes on with is its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.optimize import rosen_hess, rosen_hess_prod

import xopt

A = Any
START = np.asarray([[-1.2, 1.0], [2.0, 3.0], [0.0, -2.0]])


def valley(x: A) -> A:
    return np.stack([10 * (x[..., 1] - x[..., 0] ** 2), 1 - x[..., 0]], axis=-1)


def slope(x: A) -> A:
    one = np.ones_like(x[..., 0])
    rows = [np.stack([-20 * x[..., 0], 10 * one], axis=-1), np.stack([-one, 0 * one], axis=-1)]
    return np.stack(rows, axis=-2)


def reused(function: Callable[..., A]) -> Callable[..., A]:
    """Return a function with its results in the arrays of the first one."""
    kept: list[A] = []

    def again(*args: A) -> A:
        found = function(*args)
        each = found if isinstance(found, tuple) else (found,)
        if not kept:
            kept.extend(y.copy() for y in each)
        for old, new in zip(kept, each, strict=True):
            old[...] = new
        return tuple(kept) if isinstance(found, tuple) else kept[0]

    return again


def both(x: A) -> tuple[A, A]:
    f = valley(x)
    return np.sum(f * f, axis=-1), 2 * np.sum(slope(x) * f[..., None], axis=-2)


@pytest.mark.parametrize("options", [{}, {"method": "bfgs"}, {"bounds": (-1.0, 0.8)}], ids=str)
def test_many_minimizations(options: Any) -> None:
    want = xopt.minimize(both, START, batched=True, **options)
    for fun, jac in ((reused(both), True), (reused(lambda x: both(x)[0]), reused(lambda x: both(x)[1]))):
        got = xopt.minimize(fun, START, jac=jac, batched=True, **options)
        for name in ("x", "fun", "jac", "nit"):
            np.testing.assert_array_equal(got[name], want[name], err_msg=name)


@pytest.mark.parametrize("jac", [slope, "2-point", "3-point"], ids=["given", "2-point", "3-point"])
@pytest.mark.parametrize("many", [False, True])
def test_fits(many: bool, jac: Any) -> None:
    x0 = START if many else START[0]
    want = xopt.least_squares(valley, x0, jac=jac, batched=many)
    assert np.all(want.success)
    np.testing.assert_allclose(want.x, np.ones_like(x0), atol=1e-6)
    again = jac if isinstance(jac, str) else reused(jac)
    got = xopt.least_squares(reused(valley), x0, jac=again, batched=many)
    for name in ("x", "fun", "nit"):
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def test_products() -> None:
    """Also a preconditioner."""
    products = (lambda x, v: slope(x) @ v, lambda x, u: slope(x).T @ u)
    want = xopt.least_squares(valley, START[0], jac=products, method="steihaug", preconditioner=lambda g: 2 * g)
    got = xopt.least_squares(
        reused(valley), START[0], jac=(reused(products[0]), reused(products[1])), method="steihaug",
        preconditioner=reused(lambda g: 2 * g),
    )  # fmt: skip
    for name in ("x", "fun", "grad", "nit", "nprod"):
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


@pytest.mark.parametrize("method", ["newton-cg", "trust-ncg", "trust-exact"])
def test_hessians(method: Any) -> None:
    for name, function in (("hess", rosen_hess), ("hessp", rosen_hess_prod)):
        want = xopt.minimize(both, START[0], method=method, **{name: function})
        got = xopt.minimize(reused(lambda x: tuple(map(np.asarray, both(x)))), START[0], method=method,
                            **{name: reused(function)})  # fmt: skip
        np.testing.assert_array_equal(got.x, want.x)
