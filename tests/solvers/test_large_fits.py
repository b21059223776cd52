"""least_squares with method="steihaug": products with J and Jᵀ, of whatever the user has them."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from conftest import Lib
from scipy.optimize import least_squares as scipys
from support import mgh

import xopt

A = Any
N = 300
START = np.full(N, -1.0)


def broyden(x: A) -> A:
    """Broyden's tridiagonal system (Moré, Garbow & Hillstrom, 30)."""
    y = (3 - 2 * x) * x + 1
    y[1:] -= x[:-1]
    y[:-1] -= 2 * x[1:]
    return y


def sparse(x: A) -> A:
    ones = np.ones(N - 1)
    return scipy.sparse.diags([3 - 4 * x, -ones, -2 * ones], [0, -1, 1]).tocsr()


def product(x: A, v: A) -> A:
    return sparse(x) @ v


def adjoint(x: A, u: A) -> A:
    return sparse(x).T @ u


def steihaug(fun: A, x0: A, **options: Any) -> Any:
    return xopt.least_squares(fun, x0, method="steihaug", **options)


@pytest.mark.parametrize("options", [{}, {"bounds": (-0.8, -0.5)}, {"loss": "soft_l1", "f_scale": 0.3}], ids=str)
@pytest.mark.parametrize("form", ["products", "sparse", "operator", "dense"])
def test_as_scipy(form: str, options: Any) -> None:
    """Residuals stay: those of the system, and how far x is from what it should be."""
    wanted = np.linspace(-1.0, -0.3, N)
    fun = lambda x: np.concatenate([broyden(x), x - wanted])
    jac = lambda x: scipy.sparse.vstack([sparse(x), scipy.sparse.eye_array(N)]).tocsr()
    forms: Any = {
        "products": (lambda x, v: jac(x) @ v, lambda x, u: jac(x).T @ u),
        "sparse": jac,
        "operator": lambda x: scipy.sparse.linalg.aslinearoperator(jac(x)),
        "dense": lambda x: jac(x).toarray(),
    }
    x0 = np.clip(START, -0.8, -0.5) if "bounds" in options else START
    got = steihaug(fun, x0, jac=forms[form], ftol=1e-12, **options)
    want = scipys(fun, x0, jac=jac, tr_solver="lsmr", gtol=1e-10, ftol=1e-12, **options)
    assert got.success
    assert got.cost == pytest.approx(want.cost, rel=1e-7)
    np.testing.assert_allclose(got.x, want.x, atol=1e-4)
    f = fun(got.x)
    weight = 1 / np.sqrt(1 + (f / 0.3) ** 2) if "loss" in options else 1.0
    np.testing.assert_allclose(got.grad, jac(got.x).T @ (weight * f), atol=1e-9)


def test_at_bounds() -> None:
    """Parameters that end at a bound are pushed against it; the others have no slope."""
    got = steihaug(broyden, START, jac=sparse, bounds=(-0.8, -0.5), gtol=1e-10)
    free = got.active_mask == 0
    assert 0 < free.sum() < N
    assert np.abs(got.grad[free]).max() < 1e-7
    assert (got.grad[got.active_mask < 0] > 0).all()
    assert (got.grad[got.active_mask > 0] < 0).all()
    assert ((got.x >= -0.8) & (got.x <= -0.5)).all()
    assert got.optimality < 1e-6


def test_linear_problems_take_conjugate_gradients() -> None:
    """A tall one, a wide one and one without full rank: the minimum, and of many minima the shortest from 0."""
    rng = np.random.default_rng(1)
    for shape in ((60, 30), (30, 60), (40, 40)):
        a, b = rng.standard_normal(shape), rng.standard_normal(shape[0])
        a[:, -1] = a[:, 0] if shape == (40, 40) else a[:, -1]
        got = steihaug(lambda x, a=a, b=b: a @ x - b, np.zeros(shape[1]), jac=lambda x, a=a: a, gtol=1e-12)
        np.testing.assert_allclose(got.x, np.linalg.lstsq(a, b)[0], atol=1e-5)


@pytest.mark.parametrize("problem", mgh.PROBLEMS, ids=lambda p: p.name)
def test_more_garbow_hillstrom(problem: mgh.Problem) -> None:
    """With the typical size of parameters where these are far apart."""
    x0 = np.asarray(problem.start, "float64")
    badly = {"Powell badly scaled": [1e-5, 1.0], "Brown badly scaled": [1.0, 1e-6]}
    given: Any = {"x_scale": np.asarray(badly[problem.name])} if problem.name in badly else {}

    def jac(x: A) -> A:
        moved = [np.asarray(problem.residuals(x + 1e-30j * e)).imag / 1e-30 for e in np.eye(x.size)]
        return np.stack(moved, axis=-1)

    with np.errstate(all="ignore"):
        got = steihaug(problem.residuals, x0, jac=jac, gtol=1e-13, **given)
    assert got.success, got
    assert any(np.isclose(2 * got.cost, least, rtol=1e-5, atol=1e-9) for least in problem.least), got


def test_a_preconditioner_saves_products() -> None:
    """And leaves the minimum where it is; so does the scale of parameters."""
    size = np.geomspace(1, 1e3, N)
    fun = lambda x: broyden(size * x)
    jac = lambda x: sparse(size * x) @ scipy.sparse.diags(size)
    x0 = START / size
    plain = steihaug(fun, x0, jac=jac)
    for given in ({"preconditioner": lambda g: g / size**2}, {"x_scale": 1 / size}):
        got = steihaug(fun, x0, jac=jac, **given)
        assert got.success
        assert got.nprod < plain.nprod / 3
        np.testing.assert_allclose(size * got.x, steihaug(broyden, START, jac=sparse).x, rtol=1e-4)


@pytest.mark.parametrize("first", range(2, 30, 3))
def test_a_preconditioner_that_becomes_nan_ends_the_fit(first: int) -> None:
    calls: list[int] = []

    def precondition(g: A) -> A:
        calls.append(1)
        return g if len(calls) < first else np.nan * g

    got = steihaug(broyden, START, jac=sparse, preconditioner=precondition)
    assert (got.status, got.success) == (-3, False)
    np.testing.assert_array_equal(got.fun, broyden(got.x))


def test_a_tree() -> None:
    """Of real and complex arrays; an operator sees their numbers one after the other."""
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((2, 50, 4)), rng.standard_normal((50, 3))
    a = a[0] + 1j * a[1]
    x0 = {"z": np.zeros((2, 2), complex), "r": np.zeros(3)}
    y = rng.standard_normal((5, 10)) + 1j * rng.standard_normal((5, 10))
    fun = lambda x: (a @ x["z"].ravel() + b @ x["r"]).reshape(5, 10) - y
    jvp = lambda x, v: (a @ v["z"].ravel() + b @ v["r"]).reshape(5, 10)
    vjp = lambda x, u: {"z": (a.conj().T @ u.ravel()).reshape(2, 2), "r": b.T @ u.ravel()}
    whole = np.concatenate([b, a], axis=1)  # "r" comes first
    columns = (
        np.concatenate([b, np.zeros((50, 3))]),
        np.concatenate([a.real, a.imag]),
        np.concatenate([-a.imag, a.real]),
    )
    want, *_ = np.linalg.lstsq(np.concatenate(columns, axis=1), np.concatenate([y.real.ravel(), y.imag.ravel()]))
    for given in ((jvp, vjp), lambda x: scipy.sparse.csr_array(whole)):
        got = steihaug(fun, x0, jac=given, gtol=1e-12)
        assert got.success
        assert (got.x["z"].dtype, got.x["r"].dtype) == (complex, float)
        np.testing.assert_allclose(got.x["r"], want[:3], atol=1e-6)
        np.testing.assert_allclose(got.x["z"].ravel(), want[3:7] + 1j * want[7:], atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_libraries(lib: Lib, dtype: str) -> None:
    """torch and JAX differentiate; of others the products are given."""
    if lib.name == "dask":
        pytest.skip("it computes nothing until the end")
    rng = np.random.default_rng(3)
    a = lib.array(rng.standard_normal((60, 8)) / 4, dtype)
    y, x0 = lib.array(np.tanh(rng.standard_normal(60)), dtype), lib.array(np.full(8, 0.1), dtype)
    xp = lib.module() if lib.name in ("torch", "cupy") else x0.__array_namespace__()
    fun = lambda x: xp.tanh(a @ x) - y
    slope = lambda x: 1 - xp.tanh(a @ x) ** 2
    products = (lambda x, v: slope(x) * (a @ v), lambda x, u: a.T @ (slope(x) * u))
    host = lib.numpy(a).astype("float64"), lib.numpy(y).astype("float64")
    want = scipys(lambda x: np.tanh(host[0] @ x) - host[1], np.full(8, 0.1), gtol=1e-12)
    forms: list[Any] = [products, None] if lib.name in ("torch", "jax") else [products]
    boxes: list[Any] = [{}, {"bounds": (-9.0, 9.0)}]
    if lib.name == "jax":  # which compiles every operation
        forms, boxes = (forms[1:], boxes[1:]) if dtype == "float32" else (forms[:1], boxes[:1])
    for jac in forms:
        for options in boxes:
            got = steihaug(fun, x0, jac=jac, **options)
            assert got.success
            assert got.x.dtype == x0.dtype
            np.testing.assert_allclose(lib.numpy(got.x), want.x, atol=2e-3 if dtype == "float32" else 1e-5)


def test_parameters_of_two_dtypes() -> None:
    """Jᵀ·u of those of float32 is rounded to float32, and may be beside others of float64."""
    x0 = {"a": np.asarray([2.1], "float32"), "b": np.asarray([1e-3])}
    fun = lambda x: np.concatenate([np.pi * x["a"] + x["b"] - 1, 0.1 * x["b"]])
    jvp = lambda x, v: np.concatenate([np.pi * v["a"] + v["b"], 0.1 * v["b"]])
    vjp = lambda x, u: {"a": (np.pi * u[:1]).astype("float32"), "b": u[:1] + 0.1 * u[1:]}
    got = steihaug(fun, x0, jac=(jvp, vjp))
    assert got.success
    assert got.cost < 1e-12
    with pytest.raises(ValueError, match="one Jacobian"):
        steihaug(fun, x0, jac=(jvp, lambda x, u: {"a": 1.01 * vjp(x, u)["a"], "b": vjp(x, u)["b"]}))


@pytest.mark.parametrize("which", [0, 1])
def test_products_that_become_nan(which: int) -> None:
    """The fit ends where they were known, and does not count as converged."""
    calls: list[int] = []

    def late(*args: A) -> A:
        calls.append(0)
        return (product, adjoint)[which](*args) * (np.nan if len(calls) > 12 else 1)

    given = (late, adjoint) if which == 0 else (product, late)
    with np.errstate(invalid="ignore"):
        got = steihaug(broyden, START, jac=given)
    assert (got.status, got.success) == (-3, False)
    assert got.nfev < 10
    np.testing.assert_array_equal(got.fun, broyden(got.x))


def test_result_and_callback() -> None:
    seen: list[Any] = []
    got = steihaug(broyden, START, jac=sparse, callback=lambda intermediate_result: seen.append(intermediate_result))
    assert [*got] == [
        "x", "cost", "fun", "grad", "optimality", "active_mask", "nit", "nfev", "njev", "nprod", "status", "success",
        "message",
    ]  # fmt: skip
    assert [r.nit for r in seen] == [*range(1, got.nit + 1)]
    np.testing.assert_array_equal(seen[-1].x, got.x)
    np.testing.assert_array_equal(got.fun, broyden(got.x))
    for name, kind in (("cost", float), ("optimality", float), ("nit", int), ("nprod", int), ("status", int)):
        assert type(got[name]) is kind
    assert steihaug(broyden, START, jac=sparse, callback=lambda x: True).status == -2
    assert steihaug(broyden, START, jac=sparse, max_nfev=3).nfev == 3


def test_what_users_raise_comes_with_what_was_reached() -> None:
    calls: list[Any] = []

    def limited(x: A, u: A) -> A:
        calls.append(x)
        if len(calls) > 20:
            raise RuntimeError("mine")
        return adjoint(x, u)

    with pytest.raises(RuntimeError, match="mine") as caught:
        steihaug(broyden, START, jac=(product, limited))
    assert caught.value.intermediate_result.cost < np.sum(broyden(START) ** 2) / 2  # type: ignore[attr-defined]

    def interrupted(x: A, u: A) -> A:
        calls.append(x)
        if len(calls) > 60:
            raise KeyboardInterrupt
        return adjoint(x, u)

    got = steihaug(broyden, START, jac=(product, interrupted))
    assert (got.status, got.success) == (-1, False)
    np.testing.assert_array_equal(got.fun, broyden(got.x))


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (TypeError, r"jac: None, but method=\"steihaug\" needs products", {"jac": None}),
        (TypeError, r"jac: '3-point', but method=\"steihaug\" needs products", {"jac": "3-point"}),
        (ValueError, r"jac: ⟨f, J·v⟩ is .* one Jacobian", {"jac": (product, lambda x, u: -adjoint(x, u))}),
        (ValueError, r"jac: ⟨f, J·v⟩ is .* one Jacobian", {"jac": (product, product)}),
        (ValueError, r"jvp: returned shape \(299,\), but the residuals have \(300,\)",
         {"jac": (lambda x, v: v[1:], adjoint)}),
        (TypeError, r"jvp: returned a NoneType", {"jac": (lambda x, v: None, adjoint)}),
        (ValueError, r"vjp: shape \(2,\), but the parameter has \(300,\)", {"jac": (product, lambda x, u: u[:2])}),
        (TypeError, r"jvp: returned complex numbers, but the residuals are real",
         {"jac": (lambda x, v: 1j * v, adjoint)}),
        (ValueError, r"jac: returned shape \(300, 299\), but it must be \(300, 300\)",
         {"jac": lambda x: sparse(x)[:, 1:]}),
        (ValueError, r"jac: derivatives that are infinite or NaN", {"jac": lambda x: np.nan * sparse(x)}),
        (ValueError, r"preconditioner: g·P·g = -", {"preconditioner": lambda g: -g}),
        (ValueError, r"preconditioner: shape \(299,\)", {"preconditioner": lambda g: g[1:]}),
        (TypeError, r"preconditioner: 3, but it must be a function", {"preconditioner": 3}),
        (ValueError, r"preconditioner: goes with", {"preconditioner": lambda g: g, "bounds": (0, 1)}),
        (ValueError, r"preconditioner: goes with", {"preconditioner": lambda g: g, "x_scale": np.ones(N)}),
        (ValueError, r"preconditioner: goes with", {"preconditioner": lambda g: g, "method": "lm"}),
        (TypeError, r"jac: .*products with it go with method=\"steihaug\"",
         {"jac": (product, adjoint), "method": "lm"}),
        (ValueError, r"batched: True, but", {"batched": True}),
        (ValueError, r"geodesic: goes with", {"geodesic": True}),
        (TypeError, r"diff_step: 0.1, but", {"diff_step": 0.1}),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, dict) else "",
)  # fmt: skip
def test_errors(error: Any, message: str, options: Any) -> None:
    with np.errstate(invalid="ignore"), pytest.raises(error, match=message):
        xopt.least_squares(broyden, START, **{"method": "steihaug", "jac": sparse, **options})


def _sparse_forms(lib: Lib) -> list[Any]:
    """Return functions that make sparse matrices of arrays."""
    if lib.name == "torch":
        return [lambda x: x.detach().to_sparse(), lambda x: x.detach().to_sparse_csr()]
    if lib.name == "jax":
        return [importlib.import_module("jax.experimental.sparse").BCOO.fromdense]
    return [lambda x: scipy.sparse.csr_array(lib.numpy(x))] if lib.name == "numpy" else []


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_sparse_matrices_libraries(lib: Lib, dtype: str, rng: np.random.Generator) -> None:
    """Of torch, JAX or SciPy, as Jacobians and as K of proximal solvers; other methods refuse them by name."""
    kinds = _sparse_forms(lib)
    if not kinds or (lib.name == "jax" and "c" not in dtype):
        pytest.skip("it has none, or compiles every operation")
    matrix = np.triu(rng.standard_normal((6, 6)), 3) + 3 * np.eye(6)
    matrix = matrix * (1 + 0.5j) if "c" in dtype else matrix
    a, y = lib.array(matrix.astype(dtype)), lib.array(np.arange(1, 7).astype(dtype))
    want = np.linalg.solve(matrix, np.arange(1, 7))
    residual, start = lambda x: a @ x - y, 0 * y
    for made in kinds:
        jac = lambda x, made=made: made(a)
        got = xopt.least_squares(residual, start, jac=jac, method="steihaug", gtol=1e-12)
        np.testing.assert_allclose(lib.numpy(got.x), want, rtol=1e-9)
        f, g = xopt.proximal.squared(y), xopt.proximal.zero()
        found = [xopt.proximal.fista(f, start, g, K=k, tol=1e-10).x for k in (made(a), a)]
        np.testing.assert_allclose(*map(lib.numpy, found), rtol=1e-7)
        with pytest.raises(TypeError, match='jac: a sparse matrix, which method="steihaug" takes'):
            xopt.least_squares(residual, start, jac=jac)
        if lib.name == "torch" and "c" not in dtype:
            with pytest.raises(TypeError, match="hess: a sparse matrix, but only that of SciPy"):
                xopt.minimize(lambda x: (x @ x, 2 * x), start + 1, method="newton-cg", hess=jac)


def test_what_torch_cannot_differentiate(lib: Lib) -> None:
    """It is said, where a derivative of 0 would be the end of the fit."""
    if lib.name != "torch":
        pytest.skip("of torch")
    x0 = lib.array(np.ones(3), "float32")
    for method in ("lm", "dogleg", "steihaug"):
        with pytest.raises(TypeError, match="fun: returned values that do not depend on x"):
            xopt.least_squares(lambda x: x.detach() ** 2 - 2, x0, method=method)
    half = xopt.least_squares(lambda x: lib.module().cat([x**2 - 2, x.detach()]), x0)
    assert half.success
    with pytest.raises(RuntimeError, match="of the user"):
        xopt.least_squares(lambda x: _raise(RuntimeError("of the user")), x0)


def _raise(error: Exception) -> Any:
    raise error
