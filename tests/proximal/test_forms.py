"""FISTA, PDHG and ADMM: what may be given, what comes back, how runs end, and what does not fit."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy.sparse import coo_array, csr_array
from scipy.sparse.linalg import aslinearoperator

import xopt
from proximal.problems import lasso, regression
from xopt import proximal

A = Any
MATRIX, DATA, STRENGTH = regression()
ZERO = np.zeros(MATRIX.shape[1])
F, G = proximal.squared(DATA), proximal.l1(STRENGTH)


def fista(**options: Any) -> Any:
    return proximal.fista(F, ZERO, G, **{"K": MATRIX, **options})


def pdhg(**options: Any) -> Any:
    return proximal.pdhg(F, ZERO, G, **{"K": MATRIX, **options})


def admm(**options: Any) -> Any:
    return proximal.admm(G, ZERO, F, **{"A": MATRIX, **options})


EACH = pytest.mark.parametrize("solve", [fista, pdhg, admm], ids=["fista", "pdhg", "admm"])


@EACH
def test_forms_of_operators(solve: Any) -> None:
    """A matrix, functions, an object of SciPy and a function with its adjoint are the same."""
    name = "A" if solve is admm else "K"

    def forward(x: A) -> A:
        return MATRIX @ x

    pair = (forward, lambda y: MATRIX.T @ y)
    want = solve(maxiter=20)
    assert want.nit == 20
    for K in (pair, aslinearoperator(MATRIX)):
        got = solve(maxiter=20, **{name: K})
        np.testing.assert_allclose(got.x, want.x, atol=1e-12)
    forward.adjoint = pair[1]  # type: ignore[attr-defined]
    np.testing.assert_allclose(solve(maxiter=20, **{name: forward}).x, want.x, atol=1e-12)
    wrong = (forward, lambda y: MATRIX.T @ y + 0.01 * y.sum())
    with pytest.raises(ValueError, match=rf"{name}: Re⟨K·x, y⟩ = .* is not the adjoint"):
        solve(**{name: wrong})
    solve(maxiter=3, check_adjoint=False, **{name: wrong})


@EACH
def test_complex_adjoints_are_conjugated(solve: Any) -> None:
    m = MATRIX[:6, :6] * (1 + 2j)
    f, g, x0 = proximal.squared(DATA[:6]), proximal.l1(0.1), np.zeros(6, complex)
    solver = {fista: proximal.fista, pdhg: proximal.pdhg}.get(solve, proximal.fista)
    with pytest.raises(ValueError, match="adjoint"):
        solver(f, x0, g, K=(lambda x: m @ x, lambda y: m.T @ y))  # type: ignore[operator]
    got = [solver(f, x0, g, K=K, tol=1e-9).x for K in (m, (lambda x: m @ x, lambda y: m.conj().T @ y))]  # type: ignore
    np.testing.assert_allclose(*got, atol=1e-12)


def test_a_complex_matrix_and_real_x() -> None:
    """K* is the adjoint for Re⟨K·x, y⟩, so that x stays real: least squares of both parts."""
    m = MATRIX[:, :9] * (1 + 0.5j) + 1j * MATRIX[:, 9:18]
    b = DATA * (2 - 1j)
    want = np.linalg.lstsq(np.vstack([m.real, m.imag]), np.concatenate([b.real, b.imag]), rcond=None)[0]
    for got in (
        proximal.fista(proximal.squared(b), np.zeros(9), K=m, tol=1e-10),
        proximal.pdhg(proximal.squared(b), np.zeros(9), K=m, tol=1e-10),
        proximal.admm(proximal.zero(), np.zeros(9), proximal.squared(b), A=m, tol=1e-8),
    ):
        np.testing.assert_allclose(got.x, want, atol=1e-7)


def test_sparse_matrices() -> None:
    """As dense ones, also complex ones with real x."""
    for m, b in ((MATRIX, DATA), (MATRIX * (1 + 0.5j), DATA * (2 - 1j))):
        x0 = np.zeros(MATRIX.shape[1])
        want = proximal.fista(proximal.squared(b), x0, proximal.l1(0.1), K=m)
        for K in (csr_array(m), coo_array(m), aslinearoperator(m)):
            got = proximal.fista(proximal.squared(b), x0, proximal.l1(0.1), K=K)
            np.testing.assert_allclose(got.x, want.x, atol=1e-12)
            assert got.x.dtype == float


class Parts(NamedTuple):
    a: Any
    b: Any


def test_tuples_with_names_and_parts_of_f() -> None:
    """Trees that are namedtuples, with functions for their parts in a tuple, too; f of `fista` as well."""
    x0, g = Parts(np.zeros(2), np.zeros(3)), (proximal.l1(0.5), proximal.box(None, 2.0))
    for f in ((proximal.squared(1.0), proximal.squared(3.0)), Parts(proximal.squared(1.0), proximal.squared(3.0))):
        for got in (proximal.fista(f, x0, g), proximal.pdhg(f, x0, g), proximal.admm(g, x0, f)):
            assert type(got.x) is Parts
            np.testing.assert_allclose(got.x.a, 0.5, atol=1e-5)
            np.testing.assert_allclose(got.x.b, 2.0, atol=1e-5)
    with pytest.raises(TypeError, match=r"f: separable\(.*no gradient"):
        proximal.fista((proximal.l1(), proximal.squared()), x0)


@EACH
def test_callbacks(solve: Any) -> None:
    """SciPy's two forms; it may end the run, and write into x."""
    seen: list[Any] = []

    def by_x(x: A) -> None:
        seen.append(x.copy())
        x[:] = np.nan

    plain = solve(maxiter=6)
    got = solve(maxiter=6, callback=by_x)
    assert len(seen) == 6
    np.testing.assert_array_equal(seen[-1], got.x)
    np.testing.assert_array_equal(plain.x, got.x)

    def by_result(intermediate_result: Any) -> bool:
        seen.append(intermediate_result)
        return bool(intermediate_result.nit == 4)

    got = solve(callback=by_result)
    assert (got.nit, got.status, got.success) == (4, 99, False)
    assert seen[-1].fun == pytest.approx(got.fun)
    assert 0 < seen[-1].nfev <= got.nfev + 1

    def stops(x: A) -> None:
        raise StopIteration

    assert solve(callback=stops).status == 99


@EACH
def test_interrupts_and_errors_of_the_user(solve: Any) -> None:
    def break_off(intermediate_result: Any) -> None:
        if intermediate_result.nit == 5:
            raise KeyboardInterrupt

    got = solve(callback=break_off)
    assert (got.status, got.nit, got.success) == (3, 5, False)
    assert np.isfinite(got.x).all()

    def fail(intermediate_result: Any) -> None:
        if intermediate_result.nit == 5:
            raise RuntimeError("of the user")

    with pytest.raises(RuntimeError, match="of the user") as caught:
        solve(callback=fail)
    assert caught.value.intermediate_result.nit == 5  # type: ignore[attr-defined]


@EACH
def test_warm_starts(solve: Any) -> None:
    """The result of an earlier run, with its dual variable and steps: few iterations are left."""
    solver, first, last = {
        fista: (proximal.fista, F, G), pdhg: (proximal.pdhg, F, G), admm: (proximal.admm, G, F)
    }[solve]  # fmt: skip
    options = {"A" if solve is admm else "K": MATRIX, "tol": 1e-8}
    whole = solve(tol=1e-8)
    again = solver(first, whole, last, **options)
    assert again.success
    assert again.nit <= 10 < whole.nit
    half = solve(maxiter=whole.nit // 2, tol=0)
    rest = solver(first, half, last, **options)
    assert rest.success
    assert rest.nit < whole.nit
    bare = solver(first, half.x, last, **options)
    assert rest.nit <= bare.nit or solve is fista  # which keeps no more than a step
    assert whole.message.startswith("converged: the relative residual is ")


@EACH
def test_limits(solve: Any) -> None:
    none = solve(maxiter=0)
    assert (none.nit, none.status) == (0, 1)
    np.testing.assert_array_equal(none.x, ZERO)
    assert none.x is not ZERO
    assert none.fun == pytest.approx(DATA @ DATA / 2)
    few = solve(maxiter=7, tol=0)
    assert (few.nit, few.status, few.message) == (7, 1, "stopped: maxiter = 7 iterations")
    far, near = solve(tol=1e-3), solve(tol=1e-6)
    assert far.nit < near.nit
    assert near.residual <= 1e-6 < 1e-3
    if solve is not admm:  # whose linear systems are never solved to roundings
        ends = solve(tol=0, maxiter=100_000)  # at differences that are roundings
        assert ends.success
        assert ends.nit < 100_000


@pytest.mark.parametrize("solve", [fista, pdhg])
def test_the_duality_gap(solve: Any) -> None:
    """It bounds the distance from the minimum, and stops the run."""
    least = fista(tol=1e-13).fun
    for gap_tol in (1e-2, 1e-5, 1e-9):
        got = solve(gap_tol=gap_tol)
        assert got.success
        assert "duality gap" in got.message
        assert 0 <= got.fun - least <= got.gap + 1e-12
        assert got.gap <= gap_tol * got.fun
    assert np.isfinite(solve(maxiter=3).gap)
    own = proximal.fista(lambda z: (0.5 * (z - DATA) @ (z - DATA), z - DATA), ZERO, G, K=MATRIX)
    assert np.isnan(own.gap)
    denoised = proximal.admm(
        proximal.group_l1(0.1), MATRIX, proximal.squared(MATRIX), K=proximal.gradient, gap_tol=1e-3
    )
    assert denoised.success
    assert 0 <= denoised.gap <= 1e-3 * denoised.fun


def test_fista_looks_seldom_with_a_fixed_step() -> None:
    step = 1 / np.linalg.norm(MATRIX, 2) ** 2
    want = fista(tol=1e-7)
    for options in ({"every": 1}, {"every": 10}, {"every": 10, "restart": False, "maxiter": 20000}):
        given: Any = options
        got = fista(step=step, backtracking=False, tol=1e-7, **given)
        assert got.success
        assert got.step == step
        assert got.nit % given["every"] == 0
        np.testing.assert_allclose(got.x, want.x, atol=1e-4)
        assert got.restarts > 0 or "restart" in given
    long = fista(step=100.0, tol=1e-7)  # backtracked to the same
    np.testing.assert_allclose(long.x, want.x, atol=1e-4)
    assert long.step < 1.2 * step / 0.5
    assert fista(momentum=False, maxiter=500).restarts == 0


def test_fista_counts_evaluations() -> None:
    count = [0]

    def fun(x: A) -> A:
        count[0] += 1
        r = MATRIX @ x - DATA
        return float(r @ r) / 2, MATRIX.T @ r

    got = proximal.fista(fun, ZERO, G)
    assert got.success
    assert got.nfev == count[0] <= 2 * got.nit + 10


@pytest.mark.parametrize("solve", [fista, pdhg])
def test_preconditioners(solve: Any) -> None:
    """Columns of very different sizes: with their inverse squares as weights it takes the steps of equal columns."""
    sizes = 10.0 ** np.linspace(-2, 2, ZERO.size)
    f, g = proximal.squared(DATA), proximal.l1(STRENGTH / sizes)
    solver: Any = proximal.fista if solve is fista else proximal.pdhg
    weights: Any = sizes**2 if solve is fista else (sizes**2, None)
    got = solver(f, ZERO, g, K=MATRIX / sizes, preconditioner=weights, tol=1e-8, maxiter=5000)
    want = solve(tol=1e-8, maxiter=5000)
    np.testing.assert_allclose(got.x / sizes, want.x, atol=1e-5)
    plain = solver(f, ZERO, g, K=MATRIX / sizes, maxiter=got.nit, tol=0)
    assert plain.fun > got.fun * (1 + 1e-6)
    if solve is pdhg:
        both = pdhg(preconditioner=(None, np.linspace(0.5, 2, DATA.size)), tol=1e-9)
        np.testing.assert_allclose(both.x, want.x, atol=1e-5)


def test_preconditioned_conjugate_gradients() -> None:
    """With the inverse, one step of conjugate gradients is enough, and one is what ``cg_maxiter`` allows."""

    def inverse(r: A, rho: float) -> A:
        return np.linalg.solve(MATRIX.T @ MATRIX + rho * np.eye(r.size), r)

    plain, quick = (admm(tol=1e-7, check_adjoint=False, preconditioner=p) for p in (None, inverse))
    assert quick.nfev < 2.5 * quick.nit < plain.nfev / 2
    short = admm(tol=1e-7, check_adjoint=False, cg_maxiter=1)
    assert short.nfev < 2.5 * short.nit
    for got in (plain, quick, short):
        assert got.success
        np.testing.assert_allclose(got.z, lasso().x, atol=1e-5)


def test_admm_with_a_solution_of_the_users() -> None:
    """An exact step of x by a factorization, beside conjugate gradients."""

    def solve(v: A, rho: float) -> A:
        return np.linalg.solve(MATRIX.T @ MATRIX + rho * np.eye(v.size), MATRIX.T @ DATA + rho * v)

    misfit = proximal.Prox(lambda x, t: x, lambda x: 0.5 * np.sum((MATRIX @ x - DATA) ** 2))
    got = proximal.admm(G, ZERO, misfit, solve=solve, tol=1e-7)
    want = fista(tol=1e-11)
    np.testing.assert_allclose(got.z, want.x, atol=1e-5)
    assert got.fun == pytest.approx(want.fun, rel=1e-6)
    for options in ({"relaxation": 1.0}, {"adaptive": False}, {"rho": 30.0}, {"every": 7}):
        given: Any = options
        other = proximal.admm(G, ZERO, misfit, solve=solve, tol=1e-7, **given)
        assert other.nit != got.nit
        np.testing.assert_allclose(other.z, want.x, atol=1e-5)


def test_options_of_pdhg() -> None:
    want = pdhg(tol=1e-7)
    for options in ({"relaxation": 1.0}, {"adaptive": False}, {"ratio": 30.0}, {"every": 7}, {"norm": 60.0}):
        given: Any = options
        other = pdhg(tol=1e-7, maxiter=20000, **given)
        assert other.nit != want.nit
        np.testing.assert_allclose(other.x, want.x, atol=1e-5)
    small = pdhg(norm=0.5 * np.linalg.norm(MATRIX, 2), tol=1e-7, every=1)  # half of the right one: it is raised
    assert small.success
    assert small.norm > 0.9 * np.linalg.norm(MATRIX, 2)
    assert want.norm == pytest.approx(np.linalg.norm(MATRIX, 2), rel=0.02)
    y0 = pdhg(maxiter=20, tol=0, y0=want.y, ratio=want.ratio)
    assert y0.fun < pdhg(maxiter=20, tol=0, ratio=want.ratio).fun


@pytest.mark.parametrize("part", [1e-1, 1e-6])
def test_a_norm_that_is_much_too_small(part: float) -> None:
    """It is raised before anything overflows, in float32 too: the first steps are taken again."""
    m, b = MATRIX.astype(np.float32), DATA.astype(np.float32)
    norm = float(np.linalg.norm(m, 2))
    f, x0, g = proximal.squared(b), ZERO.astype(np.float32), proximal.l1(STRENGTH)
    got = proximal.pdhg(f, x0, g, K=m, norm=part * norm, tol=1e-5)
    assert got.success, got.message
    assert 0.9 * norm < got.norm < 1.1 * norm
    assert got.nit <= 1.5 * proximal.pdhg(f, x0, g, K=m, tol=1e-5).nit + 20


def test_acceleration() -> None:
    """O(1/k²) for a g that is strongly convex: 4 times the iterations, a sixteenth of the gap, about."""
    rng = np.random.default_rng(7)
    b = np.add.outer(np.arange(20) > 9, np.arange(20) > 6) + 0.1 * rng.standard_normal((20, 20))
    f, g = proximal.group_l1(0.5), proximal.squared(b)
    solve = lambda k, **options: proximal.pdhg(f, b, g, K=proximal.gradient, tol=0, maxiter=k, **options)
    for mu in (True, 0.5):
        early, late = solve(50, accelerate=mu), solve(200, accelerate=mu)
        assert 0 < late.gap < early.gap / 6
        assert late.ratio > 4 * early.ratio > 16  # σ grows and τ falls, both by about k


def test_a_callable_prox() -> None:
    """A plain function stands for one with a prox; then the objective is not known."""
    shrink = lambda x, t: np.sign(x) * np.maximum(np.abs(x) - t * STRENGTH, 0)
    got = proximal.fista(F, ZERO, shrink, K=MATRIX, tol=1e-9)
    np.testing.assert_allclose(got.x, fista(tol=1e-9).x, atol=1e-12)
    assert np.isnan(got.fun)
    got = proximal.pdhg(F, ZERO, shrink, K=MATRIX, tol=1e-9)
    np.testing.assert_allclose(got.x, lasso().x, atol=1e-6)
    got = proximal.admm(shrink, ZERO, F, A=MATRIX, tol=1e-9)
    np.testing.assert_allclose(got.z, lasso().x, atol=1e-6)


def test_numbers_that_become_none() -> None:
    with pytest.raises(ValueError, match="x0: the value of f there is nan"):
        proximal.fista(lambda x: (np.nan, x), ZERO)
    with pytest.raises(FloatingPointError, match="f: infinite"):
        proximal.fista(lambda x: (0.0 if x.sum() == 0 else np.nan, np.ones(x.size)), ZERO)
    got = proximal.pdhg(lambda x, t: x * np.nan, ZERO, K=MATRIX, every=1)
    assert (got.status, got.success) == (2, False)


ERRORS = [
    (lambda: proximal.fista(G, ZERO), TypeError, r"f: l1\(.*\), which has no gradient"),
    (lambda: proximal.fista(3, ZERO), TypeError, "f: 3"),
    (lambda: proximal.fista(lambda x: x, ZERO[:3]), TypeError, "f: it must return a pair"),
    (lambda: proximal.fista(lambda x: (0.0, x[:2]), ZERO), ValueError, r"gradient: shape \(2,\)"),
    (lambda: fista(K=MATRIX[:, :3]), ValueError, None),
    (lambda: fista(K=3), TypeError, "K: 3, but it must be a pair"),
    (lambda: fista(K=(lambda x: [1.0], lambda y: y)), TypeError, r"K\(x\)"),
    (lambda: fista(backtracking=False), TypeError, "step: None"),
    (lambda: fista(step=0.0), ValueError, "step: 0.0, but it must be > 0"),
    (lambda: fista(preconditioner=2.0), TypeError, "preconditioner: 2.0"),
    (lambda: fista(preconditioner=np.full(ZERO.size, np.nan)), ValueError, "preconditioner: an element"),
    (lambda: fista(preconditioner=np.full(ZERO.size, np.inf)), ValueError, "preconditioner: an element"),
    (lambda: fista(K=MATRIX * np.nan), ValueError, "K: infinite or NaN"),
    (lambda: fista(step=np.inf), ValueError, "step: inf, but it must be > 0 and finite"),
    (lambda: pdhg(h=lambda x: x), TypeError, "h: it must return a pair"),
    (lambda: pdhg(h=lambda x: (1.0, x, x)), TypeError, "h: it must return a pair"),
    (lambda: proximal.admm(G, pdhg(maxiter=1), F, A=MATRIX), ValueError, r"x0\.y: shape \(40,\)"),
    (lambda: fista(preconditioner=-np.ones(ZERO.size)), ValueError, "preconditioner: an element"),
    (lambda: proximal.fista(F, ZERO, proximal.simplex(), K=MATRIX, preconditioner=ZERO + 1), TypeError, "simplex"),
    (lambda: fista(maxiter=-1), ValueError, "maxiter"),
    (lambda: fista(every=0), ValueError, "every"),
    (lambda: fista(tol=-1.0), ValueError, "tol"),
    (lambda: fista(callback=3), TypeError, "callback: 3"),
    (lambda: proximal.fista(F, ZERO, proximal.tv(), K=MATRIX, gap_tol=1e-3), TypeError, r"gap_tol: .* tv\(.*conjugate"),
    (lambda: proximal.fista(F, ZERO.astype(np.float16), G), TypeError, "float16"),
    (lambda: proximal.fista(F, np.zeros(0), G), ValueError, "x0: no elements"),
    (lambda: proximal.fista(F, xopt.OptimizeResult(fun=1.0), G), ValueError, "x0"),
    (lambda: proximal.fista(F, ZERO, 3), TypeError, "g: 3, but it must be a function such as"),
    (lambda: pdhg(accelerate=True), ValueError, "accelerate: True"),
    (lambda: pdhg(accelerate="x"), TypeError, "accelerate: 'x', but it must be a number"),
    (lambda: pdhg(accelerate=None), TypeError, "accelerate: None"),
    (lambda: pdhg(relaxation=2.0), ValueError, "relaxation: 2, but it must be < 2"),
    (lambda: pdhg(smoothness=1.0), TypeError, "smoothness: given without h"),
    (lambda: pdhg(h=3), TypeError, "h: 3"),
    (lambda: pdhg(h=lambda x: (0.0, x), gap_tol=1e-3), TypeError, "there is h"),
    (lambda: pdhg(y0=ZERO), ValueError, "y0: shape"),
    (lambda: pdhg(preconditioner=ZERO), TypeError, "preconditioner: it must be a pair"),
    (lambda: proximal.admm(G, ZERO, G, A=MATRIX), TypeError, r"g: l1\(.*\), but with K or A it must be squared"),
    (lambda: admm(solve=lambda v, rho: v), TypeError, "solve: given with A"),
    (lambda: admm(solve=3), TypeError, "solve: 3"),
    (lambda: admm(rho=0.0), ValueError, "rho"),
    (lambda: admm(relaxation=2.0), ValueError, "relaxation"),
    (lambda: proximal.admm(G, ZERO, G, preconditioner=lambda r, rho: r), TypeError, "preconditioner: given, but"),
    (lambda: admm(gap_tol=1e-3), TypeError, "there is A"),
]


@pytest.mark.parametrize(("call", "error", "text"), ERRORS)
def test_errors(call: Any, error: Any, text: Any) -> None:
    with pytest.raises(error, match=text):
        call()


@pytest.mark.filterwarnings("ignore:overflow")
def test_what_diverges_has_not_converged() -> None:
    """A step that is too long, and not made shorter: x grows until its squares are infinite."""
    for every in (1, 10):
        got = fista(step=4 / np.linalg.norm(MATRIX, 2) ** 2, backtracking=False, every=every)
        assert (got.status, got.success, got.message) == (2, False, "stopped: infinite or NaN")


def test_admm_evaluates_f_at_z() -> None:
    """With a constraint as f, whose z meets it, and x only about."""
    data, misfit = np.linspace(-1, 2, 20), proximal.squared(MATRIX)
    got = proximal.admm(proximal.box(0.0, 1.0), np.zeros(20), proximal.squared(data))
    assert got.success
    assert got.fun == pytest.approx(np.sum((got.z - data) ** 2) / 2, rel=1e-4)
    few = admm(maxiter=5)
    want = F.value(MATRIX @ few.x) + G.value(few.z)
    assert few.fun == pytest.approx(float(want), rel=1e-12)
    denoised = proximal.admm(proximal.group_l1(0.1), MATRIX, misfit, K=proximal.gradient, maxiter=5)
    assert denoised.fun == pytest.approx(float(proximal.group_l1(0.1).value(denoised.z) + misfit.value(denoised.x)))
    assert denoised.gap > 0
