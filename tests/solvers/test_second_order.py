"""bfgs, newton-cg, trust-ncg and trust-exact: beside SciPy's, and what their steps are."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import linalg, optimize
from support import mgh
from support.logit import multinomial
from support.mgh import chain
from support.second_order import NAMES, beside_scipy

import xopt
from xopt.solvers._trust import least

STUCK = {"trust-exact": {"Biggs EXP6"}}
"""Where from the standard start xopt goes along a valley to infinity, and SciPy, with a step of another length, not."""


@pytest.mark.parametrize("method", NAMES)
def test_no_more_evaluations_than_scipy(method: Any) -> None:
    """All but that are solved; the totals over those that SciPy solves, too, are at most its totals and a tenth."""
    ours, theirs = np.zeros(2), np.zeros(2)
    for problem, mine, other in beside_scipy(method):
        if mine is None:
            assert problem.name in STUCK.get(method, ())
            continue
        assert any(math.isclose(mine.value, v, rel_tol=1e-3, abs_tol=1e-5) for v in problem.least), problem.name
        if other is not None:
            ours += mine[:2]
            theirs += other[:2]
    assert theirs[0] > 400
    assert (ours <= 1.1 * theirs).all(), (ours, theirs)


def test_a_multinomial_logit() -> None:
    """36 parameters and a condition of 4e5: BFGS needs a twentieth of the evaluations of L-BFGS, as SciPy's does."""
    fun, x0 = multinomial()
    full, limited = (xopt.minimize(fun, x0, method=m, options={"gtol": 1e-6}) for m in ("bfgs", "lbfgs"))  # type: ignore[arg-type]
    theirs = optimize.minimize(fun, x0, jac=True, method="BFGS", options={"gtol": 1e-6})
    assert full.success
    assert full.fun == pytest.approx(theirs.fun, abs=1e-9)
    assert full.nfev < limited.nfev / 10
    assert full.nfev < 1.5 * theirs.nfev
    exact = np.asarray([(fun(full.x + 1e-5 * e)[1] - fun(full.x - 1e-5 * e)[1]) / 2e-5 for e in np.eye(36)])
    inverse = np.linalg.inv(exact)
    error = np.linalg.norm(full.hess_inv - inverse) / np.linalg.norm(inverse)
    assert error < 0.5  # SciPy's is about as far off: the last steps alone see the curvature at the minimum
    for method in ("newton-cg", "trust-ncg", "trust-exact"):
        got = xopt.minimize(fun, x0, method=method, hess=hessian_of(fun), options={"gtol": 1e-6})  # type: ignore[arg-type]
        assert got.success
        assert got.nfev < 40
        assert got.fun == pytest.approx(theirs.fun, abs=1e-9)


def hessian_of(fun: Any) -> Any:
    return lambda x: np.asarray([(fun(x + 1e-5 * e)[1] - fun(x - 1e-5 * e)[1]) / 2e-5 for e in np.eye(x.size)])


def test_bfgs_is_that_of_the_books() -> None:
    """H in plain NumPy, from the steps that it took; with a matrix to begin with, that of Nocedal & Wright (6.17)."""
    problem = next(p for p in mgh.PROBLEMS if p.name == "Wood")
    x0 = np.asarray(problem.start, "float64")
    for first in (None, np.diag([1e-3, 2e-3, 1e-3, 3e-3]) + 1e-4):
        points = [x0]
        options = {} if first is None else {"hess_inv0": first}
        got = xopt.minimize(problem, x0, method="bfgs", maxiter=12, callback=points.append, options=options)
        free, fixed, identity = np.eye(4), np.zeros((4, 4)) if first is None else first, np.eye(4)
        for a, b in itertools.pairwise(points):
            s, y = b - a, problem(b)[1] - problem(a)[1]
            v = identity - np.outer(s, y) / (s @ y)
            free, fixed = v @ free @ v.T, v @ fixed @ v.T + np.outer(s, s) / (s @ y)
        scale = np.linalg.norm(s) / np.linalg.norm(y) if first is None else 0.0
        want = scale * free + fixed
        np.testing.assert_allclose(got.hess_inv, want, rtol=1e-6, atol=1e-8 * np.abs(want).max())
        assert np.array_equal(got.hess_inv, got.hess_inv.T)


def test_bfgs_begins_with_what_is_known() -> None:
    """The exact inverse makes a quadratic one step of it; what another run has found makes the next one short."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((8, 8))
    h, goal = a @ a.T + np.eye(8), rng.standard_normal(8)
    fun = lambda x: ((x - goal) @ h @ (x - goal) / 2, h @ (x - goal))
    got = xopt.minimize(fun, np.zeros(8), method="bfgs", options={"hess_inv0": np.linalg.inv(h), "gtol": 1e-8})
    assert (got.nit, got.nfev) == (1, 2)
    for method in ("bfgs", "lbfgs"):
        before = xopt.minimize(fun, np.zeros(8), method=method, options={"gtol": 1e-8})  # type: ignore[arg-type]
        again = xopt.minimize(fun, np.ones(8), method="bfgs", options={"hess_inv0": before.hess_inv, "gtol": 1e-8})
        assert again.nfev < before.nfev / 2
    np.testing.assert_array_equal(xopt.minimize(fun, goal, method="bfgs").hess_inv, np.eye(8))


def test_the_inverse_is_close_to_scipys_at_the_minimum() -> None:
    got = xopt.minimize(chain, np.zeros(4), method="bfgs", options={"gtol": 1e-9})
    theirs = optimize.minimize(chain, np.zeros(4), jac=True, method="BFGS", options={"gtol": 1e-9})
    exact = np.linalg.inv(optimize.rosen_hess(np.ones(4)))
    mine, other = (np.linalg.norm(h - exact) / np.linalg.norm(exact) for h in (got.hess_inv, theirs.hess_inv))
    assert mine < max(0.05, 2 * other)


@pytest.mark.parametrize("method", ["newton-cg", "trust-ncg", "trust-exact"])
def test_a_quadratic_takes_a_few_steps(method: Any) -> None:
    """Exactly one of `trust-exact`; conjugate gradients end early, but not where all eigenvalues are the same."""
    for h, most in ((np.diag(np.arange(1.0, 7)), 1 if method == "trust-exact" else 3), (3 * np.eye(6), 1)):
        fun = lambda x, h=h: ((x - 1) @ h @ (x - 1) / 2, h @ (x - 1))
        got = xopt.minimize(fun, np.full(6, 1.0001), method=method, hess=lambda x, h=h: h, options={"gtol": 1e-7})
        assert got.success
        assert got.nit <= most
        assert got.nfev == got.nit + 1
        if method != "newton-cg":
            np.testing.assert_array_equal(got.hess, h)


@pytest.mark.parametrize("n", [100, 10_000])
def test_rosenbrock_in_many_dimensions(n: int) -> None:
    x0 = np.tile([0.9, 1.1], n // 2)
    for method in ("newton-cg", "trust-ncg"):
        got = xopt.minimize(chain, x0, method=method, hessp=optimize.rosen_hess_prod, options={"gtol": 1e-6})  # type: ignore[arg-type]
        assert got.success
        np.testing.assert_allclose(got.x, 1, atol=1e-4)
        assert got.nfev < 60


def saddle(x: Any) -> Any:
    """x⁴/4 - x²/2 of the first, and the others squared: a saddle at 0, minima at ±1."""
    g = x.copy()
    g[0] = x[0] ** 3 - x[0]
    return x[0] ** 4 / 4 - x[0] ** 2 / 2 + x[1:] @ x[1:] / 2, g


@pytest.mark.parametrize("method", ["newton-cg", "trust-ncg", "trust-exact"])
@pytest.mark.parametrize("near", [1e-3, 1e-9])
def test_away_from_a_saddle(method: Any, near: float) -> None:
    """Where the Hessian is indefinite the step goes down, to a minimum and not to the saddle."""
    x0 = np.asarray([near, 0.5, -0.3])
    hess = lambda x: np.diag([3 * x[0] ** 2 - 1, 1.0, 1.0])
    got = xopt.minimize(saddle, x0, method=method, hess=hess, options={"gtol": 1e-7 if near > 1e-6 else 1e-10})
    assert got.success
    np.testing.assert_allclose(got.x, [1, 0, 0], atol=1e-6)


@pytest.mark.parametrize("method", NAMES)
def test_singular_hessians(method: Any) -> None:
    """Flat directions in a quadratic, and a minimum where the Hessian is zero."""
    h = np.diag([1.0, 2.0, 0.0, 0.0])
    fun = lambda x: (x @ h @ x / 2, h @ x)
    given = {} if method == "bfgs" else {"hess": lambda x: h}
    got = xopt.minimize(fun, np.ones(4), method=method, **given)  # type: ignore[arg-type]
    assert got.success
    np.testing.assert_allclose(got.x, [0, 0, 1, 1], atol=1e-5)
    quartic = lambda x: (np.sum(x**4), 4 * x**3)
    given = {} if method == "bfgs" else {"hess": lambda x: np.diag(12 * x**2)}
    assert xopt.minimize(quartic, np.ones(3), method=method, **given).success  # type: ignore[arg-type]


def test_the_step_within_a_radius_is_the_least(rng: np.random.Generator) -> None:
    """By its conditions (Moré & Sorensen 1983, 2.3), with λ from the step; the hard case too."""
    for kind in range(200):
        n = int(rng.integers(1, 8))
        w = np.sort(rng.standard_normal(n) + (2.0 if kind % 3 == 0 else 0.0))
        c = rng.standard_normal(n)
        if kind % 4 == 0:
            c[0] = 0.0
        radius = float(10.0 ** rng.integers(-3, 3))
        y, edge = least(w, c, radius, 2.0**-52)
        assert np.linalg.norm(y) <= radius * (1 + 1e-12)
        lam = max(0.0, -(y @ (w * y + c)) / (y @ y)) if edge else 0.0
        size = np.abs(c).max() + np.abs(w).max() * radius
        np.testing.assert_allclose((w + lam) * y, -c, atol=1e-5 * size)  # ‖y‖ is the radius to 1e-6
        assert w[0] + lam >= -1e-5 * np.abs(w).max()
        assert edge == (np.linalg.norm(y) >= radius * (1 - 1e-5)) or not edge


def test_trust_exact_is_scipys_on_a_first_step() -> None:
    """The model's minimum within the first radius, which SciPy finds to a tenth of the radius."""
    x0 = np.asarray([-1.2, 1.0, 0.3])
    g, h = optimize.rosen_der(x0), optimize.rosen_hess(x0)
    got = xopt.minimize(chain, x0, method="trust-exact", hess=optimize.rosen_hess, maxiter=1,
                        options={"eta": 0.0, "initial_trust_radius": 0.1})  # fmt: skip
    p = got.x - x0
    assert np.linalg.norm(p) == pytest.approx(0.1, rel=1e-5)
    model = lambda p: g @ p + p @ h @ p / 2
    best = min(model(0.1 * q / np.linalg.norm(q)) for q in np.random.default_rng(0).standard_normal((20_000, 3)))
    assert model(p) <= best + 1e-9


def test_the_trust_region_of_the_options() -> None:
    steps: list[Any] = [np.zeros(2)]
    fun = lambda x: ((x - 9) @ (x - 9), 2 * (x - 9))
    for method in ("trust-ncg", "trust-exact"):
        for first, largest in ((0.5, 0.5), (0.5, 1.0), (1.0, math.inf)):
            steps[:] = [np.zeros(2)]
            options = {"initial_trust_radius": first, "max_trust_radius": largest}
            xopt.minimize(fun, np.zeros(2), method=method, hess=lambda x: 2 * np.eye(2), callback=steps.append,  # type: ignore[arg-type]
                          options=options)  # fmt: skip
            lengths = np.linalg.norm(np.diff(steps, axis=0), axis=1)
            assert lengths[0] == pytest.approx(first)
            assert lengths[1] == pytest.approx(min(2 * first, largest))
            assert lengths.max() <= largest * (1 + 1e-12)
    rises = [  # with eta just below 1/4 some steps are refused that with 0 are taken
        xopt.minimize(chain, np.asarray([-1.2, 1.0]), method="trust-ncg", hessp=optimize.rosen_hess_prod,
                      options={"eta": eta}).nit
        for eta in (0.0, 0.2499)
    ]  # fmt: skip
    assert rises[0] != rises[1]


def test_a_step_that_is_not_taken_may_be_the_best() -> None:
    """The value falls there, but by less than ``eta`` asks for; a run that ends at once returns it."""
    other = 0
    for maxfun in range(2, 40):
        seen: list[tuple[float, Any]] = []

        def fun(x: Any, seen: list[tuple[float, Any]] = seen) -> Any:
            seen.append((chain(x)[0], x.copy()))
            return chain(x)

        taken = [np.asarray([-1.2, 1.0])]
        got = xopt.minimize(fun, taken[0], method="trust-ncg", hessp=optimize.rosen_hess_prod, callback=taken.append,
                            options={"eta": 0.2499, "maxfun": maxfun})  # fmt: skip
        value, x = min(seen, key=lambda pair: pair[0])
        assert got.fun == value
        np.testing.assert_array_equal(got.x, x)
        other += not np.array_equal(x, taken[-1])
    assert other


def test_conjugate_gradients_end_at_maxcg(rng: np.random.Generator) -> None:
    h = linalg.hilbert(10) + 1e-6 * np.eye(10)
    fun = lambda x: (x @ h @ x / 2 - x.sum(), h @ x - 1)
    for method in ("newton-cg", "trust-ncg"):
        for most in (1, 3):
            got = xopt.minimize(fun, np.zeros(10), method=method, hessp=lambda x, p: h @ p, maxiter=4,  # type: ignore[arg-type]
                                options={"maxcg": most, "gtol": 1e-12})  # fmt: skip
            assert got.nhev == 4 * most if most == 1 else 4 < got.nhev <= 4 * most


@pytest.mark.parametrize("method", ["newton-cg", "trust-ncg"])
def test_a_preconditioner_saves_products(method: Any) -> None:
    d = np.logspace(0, 5, 60)
    fun = lambda x: (d @ (x - 1) ** 2 / 2 + np.sum((x - 1) ** 4), d * (x - 1) + 4 * (x - 1) ** 3)
    hessp = lambda x, p: (d + 12 * (x - 1) ** 2) * p
    plain, helped = (
        xopt.minimize(fun, np.zeros(60), method=method, hessp=hessp, options={"gtol": 1e-6, **more})
        for more in ({}, {"preconditioner": lambda g: g / d})
    )
    assert plain.success
    assert helped.success
    assert helped.nhev < plain.nhev / 3
    np.testing.assert_allclose(helped.x, 1, atol=1e-6)


@pytest.mark.parametrize("method", ["newton-cg", "trust-ncg"])
def test_a_preconditioner_is_a_change_of_variables(method: Any) -> None:
    """With P = C·Cᵀ the steps in x are those without it in y = C⁻¹·x, where ‖d‖ of the region is that of y."""
    x0, c = np.tile([-1.2, 1.0], 4), np.linalg.cholesky(np.diag(np.arange(1.0, 9)) + 0.5)
    fun, product = lambda x: (optimize.rosen(x), optimize.rosen_der(x)), optimize.rosen_hess_prod
    edges = 0
    for k in (1, 3, 6, 12):
        more: Any = {"method": method, "maxiter": k}
        if method == "trust-ncg":
            more["options"] = {"initial_trust_radius": 0.1}
        seen: Any = []
        got = xopt.minimize(
            fun, x0, hessp=product, callback=lambda x, seen=seen: seen.append(np.linalg.solve(c, x)),
            **{**more, "options": {**more.get("options", {}), "preconditioner": lambda g: c @ (c.T @ g)}},
        )  # fmt: skip
        want = xopt.minimize(
            lambda y: (fun(c @ y)[0], c.T @ fun(c @ y)[1]), np.linalg.solve(c, x0), **more,
            hessp=lambda y, p: c.T @ product(c @ y, c @ p),
        )  # fmt: skip
        assert got.nhev == want.nhev
        assert got.nfev == want.nfev
        np.testing.assert_allclose(got.x, c @ want.x, rtol=1e-7)
        edges += k == 1 and np.isclose(np.linalg.norm(seen[0] - np.linalg.solve(c, x0)), 0.1, rtol=1e-12)
    assert edges == (method == "trust-ncg")


@pytest.mark.parametrize("method", NAMES)
def test_in_rounding_noise_it_ends(method: Any) -> None:
    """With tolerances of 0, in both precisions, after few evaluations that bring nothing."""
    for dtype in ("float32", "float64"):
        for name in ("Bard", "Brown and Dennis"):
            problem = next(p for p in mgh.PROBLEMS if p.name == name)
            kind = np.dtype(dtype).type

            def fun(x: Any, problem: Any = problem, kind: Any = kind) -> Any:
                value, g = problem(x)
                return kind(value), g.astype(kind)

            given = {} if method == "bfgs" else {"hess": lambda x, p=problem, k=kind: p.hess(np.float64(x)).astype(k)}
            with np.errstate(over="ignore"):
                got = xopt.minimize(fun, np.asarray(problem.start, dtype), method=method,
                                    options={"gtol": 0.0, "maxfun": 3000}, **given)  # type: ignore[arg-type]  # fmt: skip
            assert got.status in (0, 2), (name, dtype, got)
            assert got.nfev < 1000
            value = problem(np.float64(got.x))[0]
            assert any(value <= v * (1 + 1e-3) + 1e-5 for v in problem.least), (name, dtype, got)


def test_a_function_without_a_minimum() -> None:
    for method in NAMES:
        given = {} if method == "bfgs" else {"hess": lambda x: -np.eye(2)}
        with np.errstate(all="ignore"):
            got = xopt.minimize(lambda x: (-x @ x / 2, -x), np.ones(2), method=method, **given)  # type: ignore[arg-type]
        assert got.status == 2  # by itself, where numbers end
        assert got.nit < 1000
        assert got.fun < -1e100
