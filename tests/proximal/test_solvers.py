"""FISTA, PDHG and ADMM: against second solvers, each other, the published numbers of iterations, on every library."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import Lib
from scipy import optimize

import xopt
from proximal.problems import blurred, lasso, picture, regression, smoothed
from xopt import proximal

A = Any
MATRIX, DATA, STRENGTH = regression()
ZERO = np.zeros(MATRIX.shape[1])


def by(solver: str, f: Any, x0: Any, g: Any, K: Any = None, **options: Any) -> Any:
    """Solve min f(K·x) + g(x), f smooth, with one of the three."""
    if solver == "fista":
        return proximal.fista(f, x0, g, K=K, **options)
    if solver == "pdhg":
        return proximal.pdhg(f, x0, g, K=K, **options)
    return proximal.admm(g, x0, f, A=K, **options)


SOLVERS = ["fista", "pdhg", "admm"]


@pytest.mark.parametrize("solver", SOLVERS)
def test_lasso_as_a_second_solver(solver: str) -> None:
    """To 1e-8, and the support too; the second solver has all digits."""
    got = by(solver, proximal.squared(DATA), ZERO, proximal.l1(STRENGTH), MATRIX, tol=1e-11)
    assert got.success, got.message
    at = got.z if solver == "admm" else got.x
    np.testing.assert_allclose(at, lasso().x, atol=1e-8)
    assert got.fun == pytest.approx(lasso().fun, rel=1e-8)
    if solver != "pdhg":  # whose x is a prox too, but of another point
        np.testing.assert_array_equal(at != 0, lasso().x != 0)
    assert got.residual <= 1e-11


def test_lasso_in_few_iterations() -> None:
    """To 1e-6 in at most 300 where proximal gradient takes more than 1500: 120 × 600, with dependent columns."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((120, 600))
    for j in range(1, 600):
        a[:, j] = 0.9 * a[:, j - 1] + np.sqrt(1 - 0.9**2) * a[:, j]
    x = np.zeros(600)
    x[rng.choice(600, 20, replace=False)] = rng.standard_normal(20)
    b = a @ x + 0.1 * rng.standard_normal(120)
    strength = 0.02 * float(np.abs(a.T @ b).max())
    f, g = proximal.squared(b), proximal.l1(strength)
    least = proximal.fista(f, np.zeros(600), g, K=a, gap_tol=1e-8)
    assert 0 <= least.gap <= 1e-8 * least.fun  # which no point can be lower than by more

    def steps(**options: Any) -> int:
        enough = lambda intermediate_result: bool(intermediate_result.fun <= (1 + 1e-6) * least.fun)
        return int(proximal.fista(f, np.zeros(600), g, K=a, tol=0, callback=enough, maxiter=1500, **options).nit)

    accelerated, unrestarted, plain = steps(), steps(restart=False), steps(momentum=False)
    print(f"iterations to 1e-6: FISTA {accelerated}, without restart {unrestarted}, proximal gradient {plain}")
    assert accelerated <= 300
    assert plain == 1500  # which is not enough
    assert unrestarted >= 2 * accelerated


@pytest.mark.parametrize(
    ("solver", "blur"), [("fista", True), ("pdhg", True), ("admm", True), ("pdhg", False)], ids=str
)
def test_total_variation_as_a_second_solver(solver: str, blur: bool) -> None:
    """To 1e-7: an interior method, which knows no prox, finds the same."""
    image, _ = picture()
    a = blurred() if blur else np.eye(image.size)
    b, want = a @ image.ravel(), smoothed(0.1, blur)
    blur_of, back = lambda x: a @ x.ravel(), lambda y: (a.T @ y).reshape(image.shape)
    x0, misfit, rough = np.zeros(image.shape), proximal.squared(b), proximal.group_l1(0.1)
    if solver == "fista":
        got = proximal.fista(misfit, x0, proximal.tv(0.1, tol=1e-12), K=(blur_of, back), tol=1e-8)
    elif solver == "pdhg":
        K = lambda x: (proximal.gradient(x), blur_of(x)), lambda y: back(y[1]) - proximal.divergence(y[0])
        got = proximal.pdhg((rough, misfit), x0, K=K, tol=1e-8)
    else:
        got = proximal.admm(rough, x0, misfit, K=proximal.gradient, A=(blur_of, back), tol=1e-8)
    assert got.success, got.message
    assert got.fun == pytest.approx(want.fun, rel=1e-7)
    np.testing.assert_allclose(got.x, want.x, atol=1e-5)  # half the digits of the objective and more


def test_nonnegative_least_squares_and_bounds() -> None:
    a, b = MATRIX[:, :20], DATA
    want, _ = optimize.nnls(a, b)
    for solver in SOLVERS:
        got = by(solver, proximal.squared(b), np.zeros(20), proximal.box(0.0), a, tol=1e-12)
        np.testing.assert_allclose(got.z if solver == "admm" else got.x, want, atol=1e-8)
    want = optimize.lsq_linear(a, b, bounds=(-0.1, 0.2), tol=1e-14, method="bvls").x
    for solver in ("fista", "pdhg"):
        got = by(solver, proximal.squared(b), np.zeros(20), proximal.box(-0.1, 0.2), a, gap_tol=1e-12)
        assert got.success
        assert 0 <= got.gap <= 1e-12 * got.fun
        np.testing.assert_allclose(got.x, want, atol=1e-5)  # half of the digits of the objective


def test_a_linear_program() -> None:
    """min ⟨c, x⟩, A·x = b, x ≥ 0, by PDHG: h linear, f the indicator of a point."""
    rng = np.random.default_rng(3)
    a, c = rng.uniform(0, 1, (4, 9)), rng.uniform(0.1, 1, 9)
    b = a @ rng.uniform(0, 1, 9)
    want = optimize.linprog(c, A_eq=a, b_eq=b)
    got = proximal.pdhg(
        proximal.box(b, b), np.zeros(9), proximal.box(0.0), K=a, h=lambda x: (c @ x, c), smoothness=1e-3, tol=1e-8,
        maxiter=40000,
    )  # fmt: skip
    assert got.success, got.message
    assert c @ got.x == pytest.approx(want.fun, rel=1e-6)
    assert np.abs(a @ got.x - b).max() < 1e-6


def test_portfolio_on_the_simplex() -> None:
    """A quadratic on the simplex, beside SLSQP."""
    q = MATRIX[:12, :12].T @ MATRIX[:12, :12] + np.eye(12)
    fun = lambda x: (float(x @ q @ x) / 2 - x.sum(), q @ x - 1)
    want = optimize.minimize(
        lambda x: fun(x)[0], np.full(12, 1 / 12), jac=lambda x: fun(x)[1], bounds=[(0, None)] * 12, method="SLSQP",
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1}, options={"ftol": 1e-15},
    )  # fmt: skip
    got = proximal.fista(fun, np.full(12, 1 / 12), proximal.simplex(), tol=1e-10)
    np.testing.assert_allclose(got.x, want.x, atol=1e-6)
    assert got.fun <= want.fun + 1e-12
    assert got.nfev <= 2 * got.nit + 8


def test_completion_of_a_matrix() -> None:
    """A matrix of rank 2 from 60 % of its elements, with the conditions of a minimum: ‖∇‖₂ ≤ λ, and λ on its range."""
    rng = np.random.default_rng(2)
    truth = rng.standard_normal((20, 2)) @ rng.standard_normal((2, 15))
    known = rng.uniform(size=truth.shape) < 0.6
    fun = lambda x: (float(np.sum((x - truth)[known] ** 2)) / 2, np.where(known, x - truth, 0.0))
    got = proximal.fista(fun, np.zeros(truth.shape), proximal.nuclear(0.1), tol=1e-10)
    assert np.linalg.matrix_rank(got.x, tol=1e-6) == 2
    assert np.linalg.norm(got.x - truth) < 0.1 * np.linalg.norm(truth)
    u, _, vh = np.linalg.svd(got.x)
    slope = -fun(got.x)[1]
    assert np.linalg.norm(slope, 2) <= 0.1 * (1 + 1e-6)
    np.testing.assert_allclose(u[:, :2].T @ slope @ vh[:2].T, 0.1 * np.eye(2), atol=1e-7)


@pytest.mark.parametrize("solver", SOLVERS)
def test_complex_from_few_fourier_coefficients(solver: str) -> None:
    """A sparse complex signal: the conditions of a minimum, and all three agree."""
    rng = np.random.default_rng(4)
    n = 48
    truth = np.where(np.arange(n) % 11 == 3, rng.standard_normal(n) + 1j * rng.standard_normal(n), 0)
    rows = np.sort(rng.choice(n, 24, replace=False))

    def K(x: A) -> A:
        return np.fft.fft(x, norm="ortho")[rows]

    def back(y: A) -> A:
        full = np.zeros(n, complex)
        full[rows] = y
        return np.fft.ifft(full, norm="ortho")

    b = K(truth)
    got = by(solver, proximal.squared(b), np.zeros(n, complex), proximal.l1(0.02), (K, back), tol=1e-9)
    assert got.success
    x = got.z if solver == "admm" else got.x
    slope = back(K(x) - b)
    some = np.abs(x) > 1e-9
    assert some.sum() == 5
    assert np.abs(slope).max() <= 0.02 * (1 + 1e-7)
    np.testing.assert_allclose(slope[some], -0.02 * x[some] / np.abs(x[some]), atol=1e-7)
    assert np.abs(x - truth).max() < 0.1


def test_fista_with_a_function_of_the_user() -> None:
    """Logistic regression with an L1 penalty, beside L-BFGS-B on positive and negative parts."""
    y = np.sign(DATA)

    def fun(x: A) -> A:
        margins = y * (MATRIX @ x)
        p = np.exp(-np.logaddexp(0, margins))
        return np.logaddexp(0, -margins).sum(), -MATRIX.T @ (y * p)

    got = proximal.fista(fun, ZERO, proximal.l1(2.0), tol=1e-10)
    n = ZERO.size

    def parts(u: A) -> A:
        value, slope = fun(u[:n] - u[n:])
        return value + 2 * u.sum(), np.concatenate([slope, -slope]) + 2

    want = optimize.minimize(
        parts, np.zeros(2 * n), jac=True, bounds=[(0, None)] * (2 * n), method="L-BFGS-B",
        options={"ftol": 1e-16, "gtol": 1e-10, "maxiter": 9999},
    )  # fmt: skip
    assert got.success
    assert got.fun == pytest.approx(want.fun, rel=1e-10)


def test_pdhg_with_a_smooth_part() -> None:
    image, _ = picture()
    a, want = blurred(), smoothed(0.1, True)
    b = a @ image.ravel()

    def h(x: A) -> A:
        r = a @ x.ravel() - b
        return float(r @ r) / 2, (a.T @ r).reshape(x.shape)

    for options in ({}, {"adaptive": False, "ratio": 0.2, "smoothness": 1.0}):
        given: Any = options
        got = proximal.pdhg(proximal.group_l1(0.1), np.zeros(image.shape), K=proximal.gradient, h=h, tol=1e-6, **given)
        assert got.success, got.message
        assert got.fun == pytest.approx(want.fun, rel=1e-5)
        assert np.isnan(got.gap)


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_libraries(lib: Lib, solver: str, dtype: str) -> None:
    """A tree of two arrays, as on NumPy in double precision, within roundings of the single one."""
    if lib.name == "dask":
        with pytest.raises(TypeError, match="dask"):
            proximal.fista(proximal.squared(0.0), lib.array(ZERO))
        return
    if lib.guise in ("device2", "no_x64"):
        pytest.skip("as on device1 and without float64")
    if lib.name == "jax" and dtype != {"fista": "float32", "pdhg": "complex64", "admm": "float32"}[solver]:
        pytest.skip("compiles for each dtype")
    a, b, twice = MATRIX[:, :12] / 10, DATA[:, None] / 10, 1 + 1j if dtype == "complex64" else 1

    def solve(array: Any, dtype: str) -> Any:
        m, target = array((a * twice).astype(dtype)), array((b * twice).astype(dtype))
        back = array(np.conj(a * twice).T.astype(dtype).copy())
        K = lambda x: {"p": m @ x[0], "q": x[1]}, lambda y: (back @ y["p"], y["q"])
        x0 = (array(np.zeros((12, 1), dtype)), array(np.ones(2, dtype)))
        g = proximal.separable((proximal.l1(0.05), proximal.squared(0.0, 0.1)))
        f = {"p": proximal.squared(target), "q": proximal.squared(2.0)}
        if solver == "admm":
            f, g = g, proximal.separable(f)
            return proximal.admm(f, x0, g, A=K, tol=1e-5)
        return (proximal.fista if solver == "fista" else proximal.pdhg)(proximal.separable(f), x0, g, K=K, tol=1e-5)

    got = solve(lib.array, dtype)
    want = solve(lambda x: x, "complex128" if dtype == "complex64" else "float64")
    assert got.success
    assert abs(got.fun / want.fun - 1) < 1e-5
    for x, y in zip(got.x, want.x, strict=True):
        assert str(x.dtype).endswith(dtype)
        np.testing.assert_allclose(lib.numpy(x), y, atol=2e-3)
    assert xopt.OptimizeResult is type(got)
