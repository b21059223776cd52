"""`hess_inv`: the matrix that the updates of BFGS make of the last steps, on every library."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from conftest import Lib

import xopt
from xopt import _arrays

METHODS = ["lbfgs", "lbfgs-b"]


def bfgs(steps: Any, changes: Any) -> Any:
    """Update γ·I by every pair, as Nocedal & Wright (2006), equation 6.17, have it; in float64."""
    size = steps.shape[1]
    gamma = steps[-1] @ changes[-1] / (changes[-1] @ changes[-1])
    found = gamma * np.eye(size)
    for s, y in zip(steps, changes, strict=True):
        rho, eye = 1 / (s @ y), np.eye(size)
        found = (eye - rho * np.outer(s, y)) @ found @ (eye - rho * np.outer(y, s)) + rho * np.outer(s, s)
    return found


def rosenbrock(x: Any) -> tuple[Any, Any]:
    a, b = x[1:] - x[:-1] ** 2, 1 - x[:-1]
    g = np.zeros_like(x)
    g[:-1] = -400 * x[:-1] * a - 2 * b
    g[1:] += 200 * a
    return np.sum(100 * a**2 + b**2), g


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("maxiter", [1, 3, 7, 8, 9, 30, 200])
def test_it_is_the_matrix_of_bfgs(method: Any, maxiter: int) -> None:
    """While the history fills, when it is full, and at the end."""
    seen: list[Any] = []
    found = xopt.minimize(
        rosenbrock, np.full(6, -1.0), method=method, maxiter=maxiter, options={"history": 8},
        callback=lambda intermediate_result: seen.append(intermediate_result.x),
    )  # fmt: skip
    points = [np.full(6, -1.0), *seen]
    gradients = [rosenbrock(x)[1] for x in points]
    steps, changes = np.diff(points, axis=0)[-8:], np.diff(gradients, axis=0)[-8:]
    s, y = found.hess_inv.pairs()
    kept = len(s)
    assert 1 <= kept <= min(8, found.nit)
    if kept == len(steps):
        np.testing.assert_allclose(s, steps, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(y, changes, rtol=1e-5, atol=1e-9)
    want = bfgs(s, y)
    got = found.hess_inv
    assert got.shape == (6, 6)
    np.testing.assert_allclose(got.todense(), want, rtol=1e-6, atol=1e-9 * np.abs(want).max())
    v = np.linspace(-1, 2, 6)
    for product in (got @ v, got.matvec(v), got.dot(v)):
        np.testing.assert_allclose(product, want @ v, rtol=1e-6, atol=1e-9 * np.abs(want).max())


def test_near_the_minimum_it_is_the_inverse() -> None:
    a = np.diag([1.0, 3.0, 10.0])
    found = xopt.minimize(lambda x: (x @ a @ x / 2, a @ x), np.asarray([1.0, -2.0, 0.5]), tol=1e-10)
    np.testing.assert_allclose(found.hess_inv.todense(), np.linalg.inv(a), atol=2e-2)


def test_every_library(lib: Lib) -> None:
    """A tree, in the arrays of the library, and a complex parameter as two real ones."""
    if lib.name == "dask":
        pytest.skip("minimize refuses what computes nothing until the end")
    weights = {"w": np.asarray([1.0, 4.0]), "z": np.asarray([2.0 + 0j])}

    def fun(p: Any) -> Any:
        w, z = p["w"], p["z"]
        xp = _arrays.namespace(w)
        half = xp.sum(lib.array(weights["w"]) * w * w) / 2 + xp.sum(xp.real(z) ** 2 + xp.imag(z) ** 2)
        return half, {"w": lib.array(weights["w"]) * w, "z": 2 * z}

    x0 = {"w": lib.array(np.asarray([1.0, -1.0])), "z": lib.array(np.asarray([1.0 - 2.0j]))}
    found = xopt.minimize(fun, x0, tol=1e-9)
    v = {"w": lib.array(np.asarray([1.0, 4.0])), "z": lib.array(np.asarray([2.0 + 2.0j]))}
    got = found.hess_inv @ v
    assert found.hess_inv.shape == (4, 4)
    assert type(got["w"]).__module__ == type(found.x["w"]).__module__
    flat = np.concatenate([lib.numpy(v["w"]), lib.numpy(v["z"]).real, lib.numpy(v["z"]).imag])
    want = found.hess_inv.todense() @ flat
    mine = np.concatenate([lib.numpy(got["w"]), lib.numpy(got["z"]).real, lib.numpy(got["z"]).imag])
    np.testing.assert_allclose(mine, want, rtol=1e-9, atol=1e-12)
    s, y = found.hess_inv.pairs()
    np.testing.assert_allclose(found.hess_inv.todense() @ y[-1], s[-1], rtol=1e-9, atol=1e-12)  # the secant equation
    np.testing.assert_allclose(found.hess_inv.todense(), bfgs(s, y), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_pickles_prints_and_is_absent_where_there_is_none(method: Any) -> None:
    found = xopt.minimize(rosenbrock, np.zeros(3), method=method, maxiter=6)
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.hess_inv.todense(), found.hess_inv.todense())
    np.testing.assert_array_equal(again.hess_inv @ np.ones(3), found.hess_inv @ np.ones(3))
    assert "<InverseHessian of 3 numbers, from 6 steps>" in repr(found)
    none = xopt.minimize(lambda x: (x @ x, 2 * x), np.zeros(3), method=method)  # at the minimum, no step
    np.testing.assert_array_equal(none.hess_inv.todense(), np.eye(3))
    np.testing.assert_array_equal(none.hess_inv @ np.ones(3), np.ones(3))
    assert "hess_inv" not in xopt.minimize(rosenbrock, np.zeros(3), method="cg", maxiter=3)
    assert "hess_inv" not in xopt.minimize(rosenbrock, np.zeros(3), xopt.Adam(), maxiter=3)
    own = {"preconditioner": lambda g: g / 2}
    if method == "lbfgs":
        assert "hess_inv" not in xopt.minimize(rosenbrock, np.zeros(3), maxiter=3, options=own)


def test_what_does_not_fit() -> None:
    found = xopt.minimize(rosenbrock, np.zeros(3), maxiter=6)
    with pytest.raises(ValueError, match=r"v: shape \(4,\), but|v.*\(4,\)"):
        found.hess_inv @ np.ones(4)
    with pytest.raises(TypeError, match="v"):
        found.hess_inv @ "x"


@pytest.mark.parametrize("method", [None, "lbfgs"])
def test_in_scipy(method: Any) -> None:
    """It is of SciPy's own class there, of the same steps."""
    optimize = pytest.importorskip("scipy.optimize")
    own = xopt.scipy_method() if method is None else xopt.scipy_method(method)
    found = optimize.minimize(optimize.rosen, np.zeros(4), jac=optimize.rosen_der, method=own)
    assert isinstance(found.hess_inv, optimize.LbfgsInvHessProduct)
    assert found.hess_inv.shape == (4, 4)
    s, y = found.hess_inv.sk, found.hess_inv.yk
    np.testing.assert_allclose(found.hess_inv @ y[-1], s[-1], rtol=1e-6, atol=1e-12)  # the secant equation
    hessian = optimize.rosen_hess(found.x)
    np.testing.assert_allclose(hessian @ s[-1], y[-1], rtol=1e-2, atol=1e-6)
    theirs = optimize.minimize(optimize.rosen, np.zeros(4), jac=optimize.rosen_der, method="L-BFGS-B").hess_inv
    assert type(theirs) is type(found.hess_inv)
    assert "hess_inv" not in optimize.minimize(
        optimize.rosen, np.zeros(4), jac=optimize.rosen_der, method=xopt.scipy_method("cg")
    )
