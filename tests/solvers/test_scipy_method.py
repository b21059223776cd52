"""scipy_method: beside SciPy's own methods, behind its own function."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import numpy as np
import pytest

import xopt
from xopt.solvers import _minimize

scipy = pytest.importorskip("scipy.optimize")
ROSEN: dict[str, Any] = {"fun": scipy.rosen, "x0": np.asarray([-1.2, 1.0]), "jac": scipy.rosen_der}


def run(method: Any = "lbfgs", **given: Any) -> Any:
    options = given.pop("options", {})
    return scipy.minimize(**{**ROSEN, **given}, method=xopt.scipy_method(method), options=options)


def bowl(x: Any) -> Any:
    return x @ x, 2 * x


@pytest.mark.parametrize(
    ("method", "options"),
    [("lbfgs", {}), ("cg", {}), ("gd", {"gtol": 1e-3}), (xopt.Adam(0.02), {"maxiter": 10_000, "gtol": 1e-4})],
    ids=str,
)
@pytest.mark.parametrize("x0", [[-1.2, 1.0], [0, 2, 1, 0]], ids=str)
def test_methods(method: Any, options: Any, x0: Any) -> None:
    """The minimum of SciPy's own, from lists of floats and of integers."""
    theirs = scipy.minimize(scipy.rosen, x0, jac=scipy.rosen_der, method="L-BFGS-B")
    got = run(method, x0=x0, options=options)
    assert isinstance(got, scipy.OptimizeResult)
    assert got.success, got
    assert {"x", "fun", "jac", "nit", "nfev", "njev", "status", "success", "message"} <= {*got}
    np.testing.assert_allclose(got.x, theirs.x, atol=1e-2)  # a gradient of 1e-3 along a valley of curvature 0.4
    assert got.fun == scipy.rosen(got.x)
    np.testing.assert_array_equal(got.jac, scipy.rosen_der(got.x))
    assert got.nfev == got.njev > got.nit > 0


PLAIN = run()
OPTIONS: list[tuple[Any, dict[str, Any], Any]] = [
    ("lbfgs", {"maxiter": 3}, lambda r: (r.nit, r.status, r.success) == (3, 1, False)),
    ("lbfgs", {"maxiter": 1e3}, lambda r: r.nit == PLAIN.nit),
    ("lbfgs", {"maxiter": np.int64(3)}, lambda r: r.nit == 3),
    ("lbfgs", {"maxfun": 9}, lambda r: (r.nfev, r.status) == (9, 1)),
    ("lbfgs", {"maxfev": 9}, lambda r: (r.nfev, r.status) == (9, 1)),
    ("lbfgs", {"maxls": 1, "maxiter": 5}, lambda r: r.fun > 1),
    ("lbfgs", {"gtol": 1e-2, "ftol": 0}, lambda r: r.nit < PLAIN.nit and "gtol" in r.message),
    ("lbfgs", {"gtol": 0, "ftol": np.float32(1e-2)}, lambda r: r.nit < PLAIN.nit and "ftol" in r.message),
    ("lbfgs", {"gtol": 0, "ftol": 0, "xtol": 1e-3}, lambda r: "xtol" in r.message),
    ("lbfgs", {"gtol": 0}, lambda r: "ftol" in r.message),  # L-BFGS-B's own
    ("lbfgs", {"tol": 1e-2, "gtol": 0}, lambda r: "ftol" in r.message and r.nit < PLAIN.nit),
    ("cg", {"tol": 1.0}, lambda r: "gtol" in r.message and 1e-2 < np.abs(r.jac).max() <= 1),
    ("lbfgs", {"maxcor": 1}, lambda r: r.nit == run(options={"history": 1}).nit != PLAIN.nit),
    ("lbfgs", {"target": 0.5}, lambda r: "target" in r.message),
    ("lbfgs", {"line_search": "armijo"}, lambda r: r.nfev != PLAIN.nfev),
    ("lbfgs", {"maxiter": None, "maxfev": None, "gtol": None, "disp": None}, lambda r: r.nit == PLAIN.nit),
    (xopt.Adam(0.1), {"maxiter": 12, "every": 5}, lambda r: (r.nit, r.nfev) == (12, 13)),
    (xopt.Adam(0.1), {"maxiter": 40, "every": 7, "ftol": 100.0}, lambda r: r.nit == 7 and "ftol" in r.message),
]


@pytest.mark.parametrize(("method", "options", "seen"), OPTIONS, ids=[f"{m},{options}" for m, options, _ in OPTIONS])
def test_options(method: Any, options: Any, seen: Any) -> None:
    got = run(method, options=options)
    assert seen(got), got


def test_tol_is_passed_by_scipy() -> None:
    assert run(tol=1e-2).nit == run(options={"tol": 1e-2}).nit < PLAIN.nit


@pytest.mark.parametrize(("options", "lines"), [({"disp": True}, 2), ({"iprint": 0}, 2), ({"iprint": -1}, 0), ({}, 0)])
def test_what_is_printed(options: Any, lines: int, capsys: pytest.CaptureFixture[str]) -> None:
    got = run(options=options)
    out = capsys.readouterr().out
    assert len(out.splitlines()) == lines
    assert not lines or f"{got.nit} iterations" in out


@pytest.mark.parametrize("jac", [None, False, "2-point", "3-point", "cs"])
def test_finite_differences(jac: Any) -> None:
    """All are forward differences by now. Each gradient costs an evaluation more for each parameter."""
    calls: list[Any] = []
    got = run(fun=lambda x: calls.append(x) or scipy.rosen(x), x0=np.zeros(3), jac=jac)
    assert got.success, got
    assert got.nfev == len(calls) == 4 * got.njev
    np.testing.assert_allclose(got.x, 1, atol=1e-3)  # the differences are wrong by 1e-8·f'', which is 1e-5
    assert run(x0=np.zeros(3), jac=jac, options={"maxfun": 20}).nfev == 20
    assert not np.array_equal(got.x, run(x0=np.zeros(3), jac=jac, options={"eps": 1e-3}).x)


def test_values_and_gradients_together() -> None:
    calls: list[Any] = []

    def both(x: Any, k: float) -> Any:
        calls.append(x)
        return np.asarray([k * x @ x]), [2 * k * v for v in x]  # an array of one, and a list: SciPy takes both

    got = run(fun=both, x0=[1.0, 2.0], jac=True, args=(3.0,))
    assert got.fun < 1e-9
    assert got.nfev == len(calls)


def test_what_it_is_given_may_be_written_into() -> None:
    def spoilt(x: Any) -> Any:
        value = scipy.rosen(x)
        x[:] = np.nan
        return value

    assert run(fun=spoilt).nfev == PLAIN.nfev


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64"])
def test_dtypes(dtype: str) -> None:
    """float32 goes through to `fun` and comes back, also with gradients in float64; the others become float64."""
    want = dtype if dtype == "float32" else "float64"
    seen = set()
    got = run(fun=lambda x: seen.add(x.dtype.name) or float(bowl(x)[0]), x0=np.ones(3, dtype), jac=lambda x: 2.0 * x)
    assert (seen, got.x.dtype, got.jac.dtype, got.fun) == ({want}, want, want, pytest.approx(0, abs=1e-12))
    got = run(fun=lambda x: float(7 + bowl(x - 1)[0]), x0=np.zeros(3, dtype), jac=None)  # in float32 only 6e-7 is seen
    assert got.x.dtype == want
    np.testing.assert_allclose(got.x, 1, atol=1e-4)


def test_complex() -> None:
    target = np.asarray([1 + 2j, -3j])
    got = run(fun=lambda z: np.sum(abs(z - target) ** 2), x0=np.zeros(2, complex), jac=lambda z: 2 * (z - target))
    np.testing.assert_allclose(got.x, target, atol=1e-5)


@pytest.mark.parametrize("method", ["lbfgs", xopt.Adam(0.1)], ids=str)
def test_callbacks(method: Any) -> None:
    seen: list[Any] = []
    got = run(method, callback=lambda xk: seen.append(xk) or xk, options={"maxiter": 5})  # SciPy ignores what returns
    assert len(seen) == got.nit == 5
    assert np.array_equal(seen[-1], got.x)

    def third(intermediate_result: Any) -> None:
        assert isinstance(intermediate_result, scipy.OptimizeResult)
        assert intermediate_result.fun == scipy.rosen(intermediate_result.x)
        seen.append(intermediate_result)
        if len(seen) == 5 + 3:
            raise StopIteration

    got = run(method, callback=third)
    assert (got.nit, got.status, got.success) == (3, 99, False)


def test_an_interrupt_is_raised() -> None:
    """xopt.minimize returns; a search that calls a hundred local ones should end."""
    calls = []

    def fun(x: Any) -> Any:
        calls.append(x)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return scipy.rosen(x)

    with pytest.raises(KeyboardInterrupt) as caught:
        run(fun=fun)
    assert caught.value.intermediate_result.fun < 24.2  # type: ignore[attr-defined]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_number_at_the_start(bad: float) -> None:
    """SciPy returns, so that searches with many starts go on."""
    got = run(fun=lambda x: bad, jac=lambda x: x)
    assert (got.status, got.success, got.nit, got.nfev) == (2, False, 0, 1)
    assert got.x.tolist() == ROSEN["x0"].tolist()
    assert run(jac=lambda x: x * bad).status == 2


@pytest.mark.parametrize(("name", "given"), [("hess", scipy.rosen_hess), ("hessp", scipy.rosen_hess_prod)])
def test_hessians_are_not_used(name: str, given: Any) -> None:
    with pytest.warns(RuntimeWarning, match=f"{name}: given, but .*'lbfgs'.* does not use it") as caught:
        assert run(**{name: given}).nit == PLAIN.nit
    assert caught[0].filename == __file__


def test_basinhopping() -> None:
    """With a function that is infinite in a part of the plane, where some hops end."""
    values: list[float] = []

    def fun(x: Any) -> Any:
        values.append(np.inf if np.any(x > 1.2) else np.sum(np.cos(14.5 * x - 0.3) + (x + 0.2) * x))
        return values[-1]

    def jac(x: Any) -> Any:
        return -14.5 * np.sin(14.5 * x - 0.3) + 2 * x + 0.2

    found = []
    seed = "rng" if "rng" in inspect.signature(scipy.basinhopping).parameters else "seed"  # before SciPy 1.15
    for method in ("L-BFGS-B", xopt.scipy_method("lbfgs")):
        values.clear()
        given = {"minimizer_kwargs": {"method": method, "jac": jac}, seed: np.random.default_rng(3)}
        found.append(scipy.basinhopping(fun, [1.0, 1.0], niter=40, **given))
        assert np.inf in values
    assert found[1].fun == pytest.approx(found[0].fun, rel=1e-9)  # gtol² over the curvature, 1e-10/200
    assert found[1].lowest_optimization_result.success


def test_it_can_be_pickled() -> None:
    for method in ("lbfgs", xopt.Adam(0.1)):
        made = pickle.loads(pickle.dumps(xopt.scipy_method(method)))
        assert scipy.minimize(**ROSEN, method=made).nit == run(method).nit


def test_bounds_that_bind_nothing() -> None:
    for bounds in (scipy.Bounds(), [(None, None)] * 2, [(-np.inf, np.inf)] * 2):
        assert run(bounds=bounds).nit == PLAIN.nit


BOUNDS: list[tuple[Any, Any]] = [
    (scipy.Bounds([-2, -np.inf], [0.5, np.inf]), ([-2, -np.inf], [0.5, np.inf])),
    ([(-2, 0.5), (None, None)], ([-2, -np.inf], [0.5, np.inf])),
    (np.asarray([[-2, 0.5], [-np.inf, 3.0]]), ([-2, -np.inf], [0.5, 3.0])),
    (scipy.Bounds(ub=0.5), ([-np.inf] * 2, [0.5] * 2)),
]


@pytest.mark.parametrize(("bounds", "want"), BOUNDS, ids=lambda x: "")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bounds_are_passed_on(bounds: Any, want: Any, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As lower and upper arrays like x0, which is clipped as in SciPy; differences are taken on the inside."""
    seen: dict[str, Any] = {}
    calls: list[Any] = []

    def solve(fun: Any, x0: Any, rule: Any, **given: Any) -> Any:
        seen.update(given, x0=x0, rule=rule)
        return _minimize.solve(fun, x0, None, method=None, bounds=None, callback=None, options=given["options"])

    monkeypatch.setattr("xopt.solvers._scipy.solve", solve)
    run(
        "lbfgs-b",
        fun=lambda x: calls.append(x) or float(x @ x),
        x0=np.asarray([3, 0.4], dtype),
        jac=None,
        bounds=bounds,
    )
    assert (seen["rule"], seen["method"]) == (None, "lbfgs-b")
    for got, side, none in zip(seen["bounds"], want, (-np.inf, np.inf), strict=True):
        assert [none if x is None else x for x in got] == side
    assert seen["x0"].tolist() == np.asarray([0.5, 0.4], dtype).tolist()
    assert all(np.all(x >= want[0]) and np.all(x <= want[1]) for x in calls[:3])


@pytest.mark.parametrize("jac", [scipy.rosen_der, None], ids=["jac", "differences"])
@pytest.mark.parametrize(("bounds", "want"), BOUNDS, ids=lambda x: "")
def test_the_bounded_minimum_of_scipy(bounds: Any, want: Any, jac: Any) -> None:
    given = {"fun": scipy.rosen, "x0": [0.3, 0.4], "jac": jac, "bounds": bounds}
    theirs = scipy.minimize(**given, method="L-BFGS-B")
    got = run("lbfgs-b", **given)
    assert np.array_equal(run(None, **given).x, got.x)
    assert got.success, got
    assert np.all(got.x >= want[0])
    assert np.all(got.x <= want[1])
    np.testing.assert_allclose(
        got.x, theirs.x, atol=1e-3
    )  # of a gradient of 1e-5 in a valley of curvature 0.4, doubled


@pytest.mark.parametrize("bounds", [[(0, 0), (None, None)], [(0, 1e-9), (0, 5)], [(-1e-9, 1e-10), (None, 3 + 1e-9)]])
def test_differences_within_narrow_bounds(bounds: Any) -> None:
    low, high = (
        np.asarray([d if x is None else x for x in side])
        for side, d in zip(zip(*bounds, strict=True), (-np.inf, np.inf), strict=True)
    )

    def fun(x: Any) -> float:
        assert np.all(x >= low)
        assert np.all(x <= high)
        return float(x[0] + (x[1] - 3) ** 2)

    got = scipy.minimize(fun, [0.0, 1.0], method=xopt.scipy_method(), bounds=bounds)
    np.testing.assert_allclose(got.x, [low[0], 3], atol=1e-6)


def test_what_does_not_fit() -> None:
    pairs = [(0, 1), (None, 2)]
    for error, match, call in [
        (TypeError, r"options: xatol, but for lbfgs there are .*gtol", lambda: run(options={"xatol": 1})),
        (TypeError, r"options: maxcor, but for cg there are", lambda: run("cg", options={"maxcor": 1})),
        (TypeError, r"options: maxls, but for rule there are", lambda: run(xopt.Adam(), options={"maxls": 1})),
        (TypeError, r"maxcor and history are the same", lambda: run(options={"maxcor": 1, "history": 1})),
        (TypeError, r"maxfev and maxfun are the same", lambda: run(options={"maxfev": 1, "maxfun": 1})),
        (ValueError, r"gtol: -1", lambda: run(options={"gtol": -1.0})),
        (ValueError, r"method: 'sgd', but it must be one of", lambda: run("sgd")),
        (TypeError, r"rule", lambda: xopt.scipy_method(xopt.Adam)),
        (ValueError, r"bounds: given, but .*'lbfgs'.* cannot have any; use \"lbfgs-b\"", lambda: run(bounds=pairs)),
        (ValueError, r"use a chain with xopt.Box", lambda: run(xopt.Adam(), bounds=scipy.Bounds([0, 0], 1))),
        (ValueError, r"bounds: a list of length 1, but .* each of 2", lambda: run(bounds=pairs[:1])),
        (ValueError, r"bounds: of shape \(3,\), but x0 has shape \(2,\)", lambda: run(bounds=scipy.Bounds([0] * 3))),
        (ValueError, r"constraints: given", lambda: run(constraints={"type": "eq", "fun": np.sum})),
        (ValueError, r"fun: returned an array of shape \(2,\)", lambda: run(fun=lambda x: x)),
        (TypeError, r"jac: returned complex", lambda: run(jac=lambda x: x * 1j)),
        (TypeError, r"jac: None, but x0 is complex", lambda: run(x0=[1j, 0], jac=None)),
        (ValueError, r"grads: shape \(1,\)", lambda: run(jac=lambda x: x[:1])),
    ]:
        with pytest.raises(error, match=match):
            call()
    assert ROSEN["x0"].tolist() == [-1.2, 1.0]
