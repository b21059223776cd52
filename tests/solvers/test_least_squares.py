"""least_squares of one fit: NIST's certified values, Moré, Garbow & Hillstrom, SciPy, what stops it, trees."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support import mgh
from support.nist import SETS, digits

import xopt

A = Any
TIGHT: dict[str, Any] = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15, "max_nfev": 3000}
LOSSES: list[Any] = ["linear", "soft_l1", "huber", "cauchy", "arctan"]
METHODS: list[Any] = ["lm", "dogleg"]
T = np.linspace(0, 4, 30)
NOISE = 0.05 * np.random.default_rng(3).standard_normal(30)
DECAY = 2.5 * np.exp(-1.3 * T) + 0.5 + NOISE


def exact(residuals: Callable[[A], A]) -> Callable[[A], A]:
    """Return the Jacobian by complex steps, exact to the last digits."""
    h = 1e-30
    return lambda x: np.stack([np.asarray(residuals(x + 1j * h * e)).imag / h for e in np.eye(x.size)], axis=-1)


def decay(x: A) -> A:
    return x[0] * np.exp(-x[1] * T) + x[2] - DECAY


def decay_jac(x: A) -> A:
    e = np.exp(-x[1] * T)
    return np.stack([e, -x[0] * T * e, np.ones_like(T)], axis=-1)


def scipys(fun: Any, x0: Any, **options: Any) -> Any:
    from scipy.optimize import least_squares

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return least_squares(fun, x0, **{"ftol": 1e-14, "xtol": 1e-14, "gtol": 1e-14, "max_nfev": 3000} | options)


def certified(name: str, start: int, **options: Any) -> tuple[float, float]:
    """Return the digits of the parameters, and of their standard deviations."""
    case = SETS[name]
    fun = lambda b: case.residual(np, b)
    jac = lambda b: case.residual(np, b + 1e-30j * np.eye(b.size)).imag.T / 1e-30
    with np.errstate(all="ignore"):
        got = xopt.least_squares(fun, case.starts[start], **{"jac": jac, **TIGHT, **options})
    assert got.success, got
    assert got.x.dtype == got.stderr.dtype == np.float64
    return digits(got.x, case.certified), digits(got.stderr, case.errors)


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("name", SETS)
def test_certified(name: str, start: int) -> None:
    """Errors of Lanczos1 come from a sum of squares of 1e-25, that of the digits which NIST prints."""
    right, errors = certified(name, start)
    assert right >= 6
    assert errors >= 5 or name == "Lanczos1"


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("name", [name for name in SETS if name not in ("MGH17", "MGH09")])
def test_certified_by_dogleg(name: str, start: int) -> None:
    right, errors = certified(name, start, method="dogleg")
    assert right >= 6
    assert errors >= 5 or name == "Lanczos1"


@pytest.mark.parametrize(
    ("least", "options"),
    [
        (6, {"jac": "3-point"}),
        (5, {"jac": "2-point"}),
        (6, {"geodesic": True}),
        (6, {"geodesic": True, "jac": "3-point"}),
        (6, {"x_scale": "certified"}),
        (5, {"jac": "3-point", "diff_step": 1e-5}),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "name", ["Misra1a", "Chwirut2", "DanWood", "Gauss1", "Kirby2", "ENSO", "Thurber", "MGH10", "Eckerle4", "BoxBOD"]
)
def test_certified_in_other_ways(name: str, least: int, options: dict[str, Any]) -> None:
    """Forward differences have half the digits."""
    if "x_scale" in options:
        options = {"x_scale": np.abs(SETS[name].certified)}
    right, errors = certified(name, 1, **options)
    assert right >= least
    assert errors >= 4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("problem", mgh.PROBLEMS, ids=lambda p: p.name)
def test_more_garbow_hillstrom(problem: mgh.Problem, method: Any) -> None:
    """The value is that of the residuals, half their squares, and the gradient is right."""
    if (problem.name, method) == ("Biggs EXP6", "dogleg"):
        pytest.skip("from a start where columns are the same it goes along a valley to infinity")
    x0 = np.asarray(problem.start, "float64")
    with np.errstate(all="ignore"):
        got = xopt.least_squares(problem.residuals, x0, jac=exact(problem.residuals), method=method, gtol=1e-13)
    assert got.success, got
    assert any(np.isclose(2 * got.cost, least, rtol=1e-5, atol=1e-10) for least in problem.least), got
    value, g = problem(got.x)
    assert got.cost == pytest.approx(value / 2, rel=1e-12)
    np.testing.assert_allclose(got.grad, g / 2, rtol=1e-6, atol=1e-9 * max(1, np.abs(got.jac).max()))
    assert np.array_equal(x0, problem.start)


def test_no_more_evaluations_than_minpack() -> None:
    """The totals over all problems of the literature that both solve."""
    ours = theirs = 0
    for problem in mgh.PROBLEMS:
        x0, jac = np.asarray(problem.start, "float64"), exact(problem.residuals)
        with np.errstate(all="ignore"):
            got = xopt.least_squares(problem.residuals, x0, jac=jac)
        other = scipys(problem.residuals, x0, jac=jac, method="lm", ftol=1e-8, xtol=1e-8, gtol=1e-8)
        if np.isclose(got.cost, other.cost, rtol=1e-6, atol=1e-6):
            ours, theirs = ours + got.nfev, theirs + other.nfev
    assert ours <= 1.2 * theirs, (ours, theirs)


@functools.cache
def boxes() -> list[Any]:
    return [*mgh.boxes()]


@pytest.mark.parametrize("method", METHODS)
def test_more_garbow_hillstrom_in_boxes(method: Any) -> None:
    """At the end no slope points inwards; as often the better of two minima as SciPy; never outside."""
    better = worse = 0
    for problem, x0, lower, upper in boxes():
        if problem.name in ("Powell badly scaled", "Biggs EXP6"):  # valleys that float64 does not resolve
            continue
        low, high = (np.full(x0.size, -np.inf if s else np.inf) if x is None else x
                     for s, x in ((1, lower), (0, upper)))  # fmt: skip

        def fun(x: Any, problem: Any = problem, low: Any = low, high: Any = high) -> Any:
            assert (low <= x).all()
            assert (x <= high).all()
            return problem.residuals(x)

        options = {"jac": exact(problem.residuals), "ftol": 1e-13, "xtol": 1e-13, "gtol": 1e-13, "max_nfev": 5000}
        with np.errstate(all="ignore"):
            got = xopt.least_squares(fun, x0, bounds=(lower, upper), method=method, **options)
        other = scipys(fun, np.clip(x0, low, high), bounds=(low, high), x_scale="jac", **options)
        assert got.success, (problem.name, got)
        off = np.clip(got.x - got.grad, low, high) - got.x
        assert np.abs(off).max() <= 1e-5 * max(1.0, got.cost), (problem.name, got)
        np.testing.assert_array_equal(got.active_mask, np.where(got.x == low, -1, np.where(got.x == high, 1, 0)))
        gap = 1e-6 * max(1e-3, other.cost)
        better, worse = better + (got.cost < other.cost - gap), worse + (got.cost > other.cost + gap)
    assert worse <= better + 2, (worse, better)


BOXES = [
    ([0, 0, 0], [10, 10, 10], [1, 1, 1]),  # the solution is inside
    ([0, 0, 0], [10, 1, 10], [1, 0.5, 1]),  # one is at its upper bound
    ([0, 2, 0.6], [10, 9, 3], [1, 3, 1]),  # two at their lower ones
    ([0, 0, 0], [10, 10, 10], [0, 0, 0]),  # the start at bounds
    ([3, 0, -9], [4, 1, 0], [4, 1, 0]),  # at bounds that it has to leave, and a solution at bounds
    ([3, 2, 1], [4, 3, 2], [3.5, 2.5, 1.5]),  # in a corner
]


@pytest.mark.parametrize("jac", [decay_jac, "2-point", "3-point"], ids=["exact", "2-point", "3-point"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("low", "high", "x0"), BOXES)
def test_bounds(low: Any, high: Any, x0: Any, method: Any, jac: Any) -> None:
    """What SciPy finds, whose start must be inside; all evaluations within, those of differences too."""

    def fun(x: Any) -> Any:
        assert (low <= x).all()
        assert (x <= high).all()
        return decay(x)

    got = xopt.least_squares(fun, x0, jac=jac, bounds=(low, high), method=method, gtol=1e-12, ftol=1e-14, xtol=1e-12)
    other = scipys(decay, x0, jac=decay_jac, bounds=(low, high))
    assert got.success
    np.testing.assert_allclose(got.x, other.x, atol=1e-5)
    assert got.cost == pytest.approx(other.cost, rel=1e-6)
    mask = (got.x == high).astype(int) - (got.x == low)
    np.testing.assert_array_equal(got.active_mask, mask)
    np.testing.assert_array_equal(mask, other.active_mask)


def test_forms_of_bounds() -> None:
    from scipy.optimize import Bounds

    want = scipys(decay, [1, 0.5, 1], bounds=([0, 0, 0], [9, 1, 9])).x
    array = np.asarray([9.0, 1, 9])
    forms = [
        ([0, 0, 0], [9, 1, 9]),
        ((0, 0, 0), (9, 1, 9)),
        (0, array),
        (None, array),
        (None, [None, 1, None]),
        ([-np.inf] * 3, [np.inf, 1.0, np.inf]),
        [(0, 9), (0, 1), (0, None)],
        [(None, None), (None, 1), (None, None)],
        Bounds([0, 0, 0], [9, 1, 9]),
        Bounds(0, array),
        Bounds(ub=array),
    ]
    for bounds in forms:
        got = xopt.least_squares(decay, [1, 0.5, 1], jac=decay_jac, bounds=bounds)
        np.testing.assert_allclose(got.x, want, atol=1e-6, err_msg=str(bounds))
        assert got.active_mask.tolist() == [0, 1, 0]
    free = xopt.least_squares(decay, [1, 0.5, 1], jac=decay_jac)
    for open_ in (None, (None, None), (-np.inf, np.inf)):
        got = xopt.least_squares(decay, [1, 0.5, 1], jac=decay_jac, bounds=open_)
        np.testing.assert_allclose(got.x, free.x, rtol=1e-6)
        assert not got.active_mask.any()


def test_equal_bounds_hold_a_parameter() -> None:
    """What is left is the fit of the others. All may be held."""
    want = scipys(lambda p: decay(np.asarray([p[0], 1.0, p[1]])), [1, 1]).x
    for jac in (decay_jac, "2-point", "3-point"):
        got = xopt.least_squares(decay, [1, 5, 1], jac=jac, bounds=([0, 1, 0], [9, 1, 9]))
        np.testing.assert_allclose(got.x, [want[0], 1, want[1]], atol=1e-6)
        assert got.x[1] == 1
    got = xopt.least_squares(decay, [1, 5, 1], jac=decay_jac, bounds=([2, 1, 0], [2, 1, 0]))
    assert got.success
    assert got.x.tolist() == [2, 1, 0]


def test_a_start_outside_is_moved() -> None:
    want = scipys(decay, [3, 0.5, 1], bounds=(0, [4, 1, 9])).x
    got = xopt.least_squares(decay, [7, -5, 1], jac=decay_jac, bounds=(0, [4, 1, 9]))
    np.testing.assert_allclose(got.x, want, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("f_scale", [0.05, 0.3, 1.0, 20.0])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses(loss: Any, f_scale: float, method: Any) -> None:
    """Three outliers. The cost is SciPy's."""
    off = np.zeros(30)
    off[[3, 11, 20]] = 2, -1.5, 4
    fun = lambda x: decay(x) - off
    x0 = [2.0, 1.0, 0.4]
    got = xopt.least_squares(fun, x0, jac=decay_jac, loss=loss, f_scale=f_scale, method=method, gtol=1e-13, ftol=1e-15)
    other = scipys(fun, x0, jac=decay_jac, loss=loss, f_scale=f_scale)
    assert got.success
    assert got.cost == pytest.approx(other.cost, rel=1e-8)
    np.testing.assert_allclose(got.x, other.x, atol=1e-4)
    np.testing.assert_allclose(got.grad, 0, atol=1e-5)
    np.testing.assert_allclose(got.fun, fun(got.x), atol=1e-14)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_of_a_loss(loss: Any) -> None:
    """What is returned after one evaluation is that of SciPy at the start; one residual is 0."""
    fun = lambda x: np.append(decay(x) * 3, 0.0)
    jac = lambda x: np.vstack([3 * decay_jac(x), np.zeros(3)])
    got = xopt.least_squares(fun, [1.0, 0.5, 0.0], jac=jac, loss=loss, f_scale=0.7, max_nfev=1)
    other = scipys(fun, [1.0, 0.5, 0.0], jac=jac, loss=loss, f_scale=0.7, max_nfev=1)
    assert got.nfev == 1
    assert got.cost == pytest.approx(other.cost, rel=1e-12)
    np.testing.assert_allclose(got.grad, other.grad, rtol=1e-8)


def test_a_loss_within_bounds() -> None:
    off = np.where(np.arange(30) == 5, 3.0, 0.0)
    bounds = ([0, 0, 0.6], [2.0, 9, 9])
    got = xopt.least_squares(
        lambda x: decay(x) - off, [1, 1, 1], jac=decay_jac, loss="soft_l1", f_scale=0.1, bounds=bounds, gtol=1e-12
    )
    other = scipys(lambda x: decay(x) - off, [1, 1, 1], loss="soft_l1", f_scale=0.1, bounds=bounds)
    np.testing.assert_allclose(got.x, other.x, atol=1e-5)
    np.testing.assert_array_equal(got.active_mask, other.active_mask)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("x_scale", ["jac", 1.0, 3, np.asarray([10.0, 0.1, 1.0]), [10.0, 0.1, 1]], ids=str)
def test_x_scale(x_scale: Any, method: Any) -> None:
    got = xopt.least_squares(decay, [1, 1, 1], jac=decay_jac, x_scale=x_scale, method=method)
    np.testing.assert_allclose(got.x, scipys(decay, [1, 1, 1]).x, atol=1e-6)


def test_units_do_not_matter() -> None:
    """With ``x_scale="jac"``, or the sizes of the parameters, steps are the same in any units."""
    unit = np.asarray([1e6, 1e-6, 1e3])
    for mine, theirs in (("jac", "jac"), (1.0, unit)):
        one = xopt.least_squares(decay, np.ones(3), jac=decay_jac, x_scale=mine)
        two = xopt.least_squares(
            lambda x: decay(x / unit), unit.copy(), jac=lambda x: decay_jac(x / unit) / unit, x_scale=theirs
        )
        assert (one.nfev, one.nit, one.status) == (two.nfev, two.nit, two.status)
        np.testing.assert_allclose(two.x / unit, one.x, rtol=1e-8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(200, 60), (60, 60), (3, 1), (1, 1)], ids=str)
def test_linear(shape: tuple[int, int], method: Any, rng: np.random.Generator) -> None:
    matrix, b = rng.standard_normal(shape), rng.standard_normal(shape[0])
    got = xopt.least_squares(lambda x: matrix @ x - b, np.zeros(shape[1]), jac=lambda x: matrix, method=method)
    assert got.success
    want, *_ = np.linalg.lstsq(matrix, b)
    np.testing.assert_allclose(got.x, want, rtol=1e-6, atol=1e-8 * np.abs(want).max())
    if shape[0] == shape[1]:
        assert np.isinf(got.covariance).all()
        return
    s2 = 2 * got.cost / (shape[0] - shape[1])
    np.testing.assert_allclose(got.covariance, s2 * np.linalg.inv(matrix.T @ matrix), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(got.stderr, np.sqrt(np.diag(got.covariance)), rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("jac", [True, False], ids=["jac", "differences"])
def test_fewer_residuals_than_parameters(jac: bool, method: Any, rng: np.random.Generator) -> None:
    matrix, b = rng.standard_normal((3, 7)), rng.standard_normal(3)
    options: Any = {"jac": lambda x: matrix} if jac else {}
    got = xopt.least_squares(lambda x: matrix @ x - b, np.ones(7), method=method, **options)
    assert got.success
    assert got.cost < 1e-12
    assert got.jac.shape == (3, 7)
    assert np.isinf(got.covariance).all()
    assert np.isinf(got.stderr).all()


@pytest.mark.parametrize("options", [{}, {"geodesic": True}, {"bounds": (-9, 9)}], ids=str)
def test_a_jacobian_without_full_rank(options: Any) -> None:
    """Only the sum of two parameters counts: finite, and the errors are infinite."""
    fun = lambda x: (x[0] + x[1]) * np.exp(-x[2] * T) - DECAY
    got = xopt.least_squares(fun, [1.0, 0.5, 1.0], jac=exact(fun), **options)
    two = scipys(lambda x, fun=fun: fun([x[0], 0.5, x[1]]), [0.5, 1.0])
    assert got.success
    assert np.abs(got.x).max() < 1000  # MINPACK's is 117
    assert got.cost == pytest.approx(two.cost, rel=1e-6)
    assert np.isinf(got.covariance).all()
    assert np.isinf(got.stderr).all()


def test_residuals_that_are_0_at_the_start() -> None:
    truth = np.asarray([2.5, 1.3])
    for options in ({}, {"jac": "3-point"}, {"method": "dogleg"}, {"bounds": (0, 9)}, {"geodesic": True}):
        got = xopt.least_squares(
            lambda x: x[0] * np.exp(-x[1] * T) - 2.5 * np.exp(-1.3 * T), truth, **options  # type: ignore[arg-type]
        )  # fmt: skip
        assert (got.status, got.nit, got.nfev, got.cost, got.optimality) == (1, 0, 1, 0, 0)
        assert got.x.tolist() == truth.tolist()
        assert not got.grad.any()


def valley(x: A) -> A:
    return np.stack([10 * (x[1] - x[0] ** 2), 1 - x[0], 0.1 * x[0]])


@pytest.mark.parametrize("name", ["Freudenstein and Roth", "Jennrich and Sampson", "Kowalik and Osborne"])
def test_what_stops_it(name: str) -> None:
    """Each tolerance by itself, the others as small as they can be."""
    [problem] = [p for p in mgh.PROBLEMS if p.name == name]
    jac, off = exact(problem.residuals), {"ftol": 0, "xtol": 0, "gtol": 0}
    run = lambda **more: xopt.least_squares(problem.residuals, problem.start, jac=jac, **{**off, **more})
    for tolerance, status in (("gtol", 1), ("ftol", 2), ("xtol", 3)):
        rough, fine = run(**{tolerance: 1e-3}), run(**{tolerance: 1e-6})
        for got in (rough, fine):
            assert (got.status, got.success) == (status, True)
            assert tolerance in got.message
        assert rough.nit < fine.nit
    got = run(gtol=1e-3)
    cosines = np.abs(jac(got.x).T @ got.fun) / np.linalg.norm(jac(got.x), axis=0) / np.linalg.norm(got.fun)
    assert got.optimality == pytest.approx(cosines.max(), rel=1e-6)
    assert got.optimality <= 1e-3
    assert run(ftol=1e-3, xtol=10.0).status in (3, 4)
    assert run().status in (2, 3, 4)  # the ε of float64


@pytest.mark.parametrize("options", [{}, {"jac": "2-point"}, {"bounds": (-9, 9)}, {"method": "dogleg"}], ids=str)
@pytest.mark.parametrize("most", [1, 2, 5])
def test_max_nfev(most: int, options: Any) -> None:
    got = xopt.least_squares(valley, [-1.2, 1.0], max_nfev=most, **options)
    assert (got.status, got.success, got.nfev) == (0, False, most)
    assert got.nit == most - 1
    assert "max_nfev" in got.message
    assert got.cost <= 12.1 + 0.5 * 0.12**2 + 1e-9


def test_counts_of_evaluations() -> None:
    """Those of differences are not in nfev."""
    for jac, more in (("2-point", 2), ("3-point", 4), (None, 2), (exact(valley), 0)):
        calls: list[Any] = []

        def fun(x: Any, calls: Any = calls) -> Any:
            calls.append(x)
            return valley(x)

        got = xopt.least_squares(fun, [-1.2, 1.0], jac=jac)  # type: ignore[arg-type]
        assert got.nfev + more * got.njev <= len(calls) <= got.nfev + 2 * more * got.njev  # some by a larger step
        assert got.njev <= got.nfev
        assert got.nfev == got.nit + 1


def test_diff_step() -> None:
    """A part of the size of each parameter, of 1 where that is 0."""
    seen: list[Any] = []
    for jac, signs in (("2-point", 1), ("3-point", 2)):
        seen.clear()
        fun = lambda x: (seen.append(x.copy()), valley(x))[1]  # type: ignore[func-returns-value]
        xopt.least_squares(fun, [-2.0, 0.0], jac=jac, diff_step=1e-3, max_nfev=1)  # type: ignore[arg-type]
        steps = np.abs(np.asarray(seen[1:]) - seen[0])
        np.testing.assert_allclose(steps, np.repeat(np.diag([2e-3, 1e-3]), signs, axis=0), rtol=1e-9)


def test_trials_that_are_infinite_or_nan() -> None:
    """They count as bad steps: shorter ones follow."""
    for options in ({}, {"method": "dogleg"}, {"jac": "2-point"}, {"geodesic": True}, {"bounds": (-100, 100)}):
        bad: list[bool] = []

        def fun(x: Any, bad: Any = bad) -> Any:
            f = np.log(x) * np.asarray([1.0, 2.0]) - np.log(2.0)
            bad.append(not np.isfinite(f).all())
            return f

        with np.errstate(all="ignore"):
            given: Any = {"jac": lambda x: np.asarray([[1 / x[0]], [2 / x[0]]]), **options}
            got = xopt.least_squares(fun, [50.0], x_scale=1e-3 if options == {} else "jac", **given)
        assert got.success
        assert got.x[0] == pytest.approx(2**0.6, rel=1e-5)
        assert any(bad)


def test_the_settings_of_numpy_are_those_of_the_caller_in_fun() -> None:
    seen: list[Any] = []
    with np.errstate(over="raise", invalid="ignore", divide="warn"):
        want = np.geterr()
        xopt.least_squares(lambda x: (seen.append(np.geterr()), valley(x))[1], [-1.2, 1.0])  # type: ignore
        assert np.geterr() == want
    assert all(x == want for x in seen)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_start_that_is_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="residuals that are infinite or NaN at x0"):
        xopt.least_squares(lambda x: np.append(valley(x), bad), [-1.2, 1.0])
