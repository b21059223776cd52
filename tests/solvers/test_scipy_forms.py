"""minimize in the forms of SciPy's, live beside it: names, options, bounds, starts, gradients, differences, results."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import optree
import pytest
from conftest import Lib

import xopt

optimize = pytest.importorskip("scipy.optimize")
rosen, rosen_der = optimize.rosen, optimize.rosen_der
START = [-1.2, 1.0, 0.5]


def both(x: Any) -> tuple[Any, Any]:
    return rosen(x), rosen_der(x)


def theirs(x0: Any = START, method: str = "L-BFGS-B", **given: Any) -> Any:
    return optimize.minimize(given.pop("fun", rosen), x0, jac=given.pop("jac", rosen_der), method=method, **given)


@pytest.mark.parametrize("method", ["L-BFGS-B", "l-bfgs-b", "CG", "cg", "Cg"])
def test_names_of_methods(method: Any) -> None:
    want = theirs(method=method)
    got = xopt.minimize(rosen, START, jac=rosen_der, method=method)
    assert got.success
    np.testing.assert_allclose(got.x, want.x, atol=1e-4)  # of gradients of 1e-5 in a valley of curvature 0.2
    ours = "cg" if method.lower() == "cg" else "lbfgs"
    assert got.nfev == xopt.minimize(both, np.asarray(START), method=ours).nfev


def test_lbfgsb_by_scipys_name_takes_bounds() -> None:
    bounds = [(-2, 0.5)] * 3
    want = theirs(bounds=bounds)
    for method in ("L-BFGS-B", None):
        got = xopt.minimize(rosen, START, jac=rosen_der, method=method, bounds=bounds)  # type: ignore[arg-type]
        np.testing.assert_allclose(got.x, want.x, atol=1e-5)  # curvature is 100 and more where a bound holds x[0]


BOUNDS: list[Any] = [
    [(-2, 0.5), (None, 0.7), (0.1, None)],
    ((-2, 0.5), (None, 0.7), (0.1, None)),
    np.asarray([[-2, 0.5], [-np.inf, 0.7], [0.1, np.inf]]),
    [[-2, 0.5], np.asarray([-np.inf, 0.7]), (0.1, np.inf)],
    optimize.Bounds([-2, -np.inf, 0.1], [0.5, 0.7, np.inf]),
]


@pytest.mark.parametrize("bounds", BOUNDS, ids=lambda b: type(b).__name__)
def test_bounds(bounds: Any) -> None:
    want = theirs(bounds=bounds)
    got = xopt.minimize(both, START, bounds=bounds)
    np.testing.assert_allclose(got.x, want.x, atol=1e-5)
    sides = np.asarray([-2, -np.inf, 0.1]), np.asarray([0.5, 0.7, np.inf])
    assert np.array_equal(got.x, xopt.minimize(both, START, bounds=sides).x)
    solver = xopt.LBFGS(bounds=bounds)
    solver.init(np.asarray(START))
    solver.step(both)
    assert np.all((solver.x >= sides[0]) & (solver.x <= sides[1]))


def test_pairs_of_an_array_of_two_dimensions_are_in_its_order() -> None:
    fun = lambda x: (np.sum((x - 9) ** 2), 2 * (x - 9))
    got = xopt.minimize(fun, np.zeros((2, 2)), bounds=[(0, k) for k in (1, 2, 3, 4)])
    assert got.x.tolist() == [[1, 2], [3, 4]]


OPTIONS: list[tuple[dict[str, Any], Any]] = [
    ({"maxiter": 3}, lambda r: (r.nit, r.status, r.success) == (3, 1, False)),
    ({"maxiter": 1e4}, lambda r: r.success),
    ({"maxiter": np.inf}, lambda r: r.success),
    ({"maxfun": 7}, lambda r: r.nfev >= 7 and r.status == 1),  # SciPy looks after an iteration
    ({"ftol": 1e-2, "gtol": 0}, lambda r: r.success and r.nit < 15),
    ({"gtol": 1e-1, "ftol": 0}, lambda r: r.success and 1e-5 < np.abs(r.jac).max() <= 1e-1),
    ({"maxcor": 1}, lambda r: r.success),
    ({"maxls": 20}, lambda r: r.success),
]


@pytest.mark.parametrize(("options", "seen"), OPTIONS, ids=[str(options) for options, _ in OPTIONS])
def test_options(options: Any, seen: Any) -> None:
    """The same is true of SciPy's result."""
    assert seen(theirs(options=options))
    got = xopt.minimize(rosen, START, jac=rosen_der, method="L-BFGS-B", options=options)
    assert seen(got), got


def test_tol_is_scipys() -> None:
    """Of L-BFGS-B both tolerances, where they are not given; of the others that of the gradient."""
    run = lambda **given: xopt.minimize(both, START, **given).nit
    assert run(tol=1e-2) == run(options={"ftol": 1e-2, "gtol": 1e-2}) < run(options={"gtol": 1e-2})
    assert run(tol=1e-2, options={"ftol": 0}) == run(options={"gtol": 1e-2})
    assert run(tol=1e-2, method="cg") == run(options={"gtol": 1e-2}, method="cg")
    assert theirs(tol=1e-2).nit == theirs(options={"ftol": 1e-2, "gtol": 1e-2}).nit


def test_maxcor_is_history_and_maxfev_maxfun() -> None:
    run = lambda **options: xopt.minimize(both, START, options=options)
    assert run(maxcor=1).nfev == run(history=1).nfev != run().nfev
    assert run(maxfev=6).nfev == run(maxfun=6).nfev == 6
    assert run(maxiter=None, maxcor=None, ftol=None).nfev == run().nfev


@pytest.mark.parametrize(("options", "lines"), [({"disp": True}, 2), ({"disp": False}, 0), ({}, 0)])
@pytest.mark.parametrize("rule", [None, xopt.Adam(0.1)], ids=str)
def test_disp(options: Any, lines: int, rule: Any, capsys: pytest.CaptureFixture[str]) -> None:
    got = xopt.minimize(both, START, rule, maxiter=5, options=options)
    out = capsys.readouterr().out
    assert len(out.splitlines()) == lines
    assert not lines or (got.message in out and f"{got.nfev} evaluations" in out)


@pytest.mark.parametrize("given", [2.0, (2.0,), [2.0], np.float64(2)], ids=repr)
def test_args(given: Any) -> None:
    fun = lambda x, k: float(np.ravel(k)[0] * x @ x + x.sum())
    jac = lambda x, k: 2 * np.ravel(k)[0] * x + 1
    want = theirs(fun=fun, jac=jac, args=given)
    np.testing.assert_allclose(xopt.minimize(fun, START, jac=jac, args=given).x, want.x, atol=1e-6)


@pytest.mark.parametrize(
    ("x0", "shape"),
    [
        ([3, 1], (2,)), ((3.0, 1), (2,)), ([np.float32(3), np.int8(1)], (2,)), (np.asarray([3, 1]), (2,)),
        (np.asarray([3, 1], "uint8"), (2,)), ([[3, 1], [2, 2]], (2, 2)), (3, ()), (3.5, ()), (np.int64(3), ()),
    ],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("rule", [None, xopt.Adam(0.3)], ids=str)
def test_starts_that_are_no_floats(x0: Any, shape: Any, rule: Any) -> None:
    seen = []

    def fun(x: Any) -> Any:
        seen.append((type(x), x.dtype.name, x.shape))
        return np.sum((x - 0.5) ** 2), 2 * (x - 0.5)

    got = xopt.minimize(fun, x0, rule, maxiter=400)
    assert {*seen} == {(np.ndarray, "float64", shape)}
    np.testing.assert_allclose(got.x, np.full(shape, 0.5), atol=1e-4)


def test_integers_of_every_library(lib: Lib) -> None:
    """They become the widest floats that there are; leaves of a tree too, and what are floats stay."""
    if lib.name == "dask":
        pytest.skip("minimize refuses it")
    if lib.guise == "grad":
        pytest.skip("integers of torch have no gradients")
    kept = lib.array(np.ones(2, "float32"))
    x0 = {"i": lib.array(np.asarray([3, -2])), "f": kept}

    def fun(p: Any) -> Any:
        squares = p["i"] @ p["i"] + 0.0, p["f"] @ p["f"]
        return float(squares[0]) + float(squares[1]), {n: 2 * p[n] for n in p}

    got = xopt.minimize(fun, x0)
    narrow = lib.guise in ("no_float64", "no_x64")
    assert str(got.x["i"].dtype).endswith("float32" if narrow else "float64")
    assert got.x["f"].dtype == kept.dtype
    assert got.success


@pytest.mark.parametrize("rule", [None, xopt.Adam(0.3)], ids=str)
def test_gradients_of_other_shapes(lib: Lib, rule: Any) -> None:
    """Dimensions of 1 leave no doubt which element is which; others do."""
    if lib.name == "dask":
        pytest.skip("minimize refuses it")
    for shape, others in [
        ((3,), [(3, 1), (1, 3)]),
        ((3, 1), [(3,), (1, 3)]),
        ((), [(1,), (1, 1)]),
        ((1,), [(), (1, 1)]),
    ]:
        x0 = lib.array(np.ones(shape, "float32"))
        xp = lib.functions(x0)
        plain = lambda x, xp=xp: (xp.sum((x - 0.25) ** 2), 2 * (x - 0.25))
        want = lib.numpy(xopt.minimize(plain, x0, rule, maxiter=20).x)
        for other in others:
            for value in ((), (1,), (1, 1)):

                def fun(x: Any, xp: Any = xp, other: Any = other, value: Any = value) -> Any:
                    found, g = xp.sum((x - 0.25) ** 2), 2 * (x - 0.25)
                    return xp.reshape(found, value), xp.reshape(g, other)

                got = xopt.minimize(fun, x0, rule, maxiter=20)
                assert tuple(got.x.shape) == tuple(got.jac.shape) == shape
                np.testing.assert_array_equal(lib.numpy(got.x), want)


@pytest.mark.parametrize("rule", [None, xopt.Adam(0.3)], ids=str)
def test_gradients_that_are_lists_or_integers(rule: Any) -> None:
    for jac in (lambda x: [2 * x[0], 2 * x[1]], lambda x: (float(2 * x[0]), 2 * x[1]), lambda x: (2 * x).tolist()):
        assert np.abs(xopt.minimize(lambda x: x @ x, [1.0, 2.0], rule, jac=jac, maxiter=400).x).max() < 1e-4
    got = xopt.minimize(lambda x: x.sum(), [5.0, 2.0], jac=lambda x: np.asarray([1, 1]), bounds=[(0, 9), (1, 9)])
    assert got.x.tolist() == [0, 1]
    got = xopt.minimize(lambda x: x * x, 2.0, rule, jac=lambda x: float(2 * x), maxiter=400)
    assert abs(got.x) < 1e-4
    for bad in (lambda x: ["a", "b"], lambda x: [True, False], lambda x: [1j, 2]):
        with pytest.raises(TypeError, match="grads: a list, but the parameter is an array of numpy"):
            xopt.minimize(lambda x: x @ x, [1.0, 2.0], rule, jac=bad)


class Counted:
    def __init__(self, fun: Any) -> None:
        self.fun, self.calls = fun, list[Any]()

    def __call__(self, x: Any, *args: Any) -> Any:
        self.calls.append(np.array(x))
        return self.fun(x, *args)


@pytest.mark.parametrize(("jac", "points"), [(None, 1), ("2-point", 1), ("3-point", 2)])
@pytest.mark.parametrize("method", ["lbfgs", "cg"])
def test_differences(jac: Any, points: int, method: Any) -> None:
    """As good as SciPy's, with the evaluations that are promised, which nfev and maxfun count."""
    want = optimize.minimize(rosen, START, method="CG" if method == "cg" else "L-BFGS-B", jac=jac)
    fun = Counted(rosen)
    got = xopt.minimize(fun, START, jac=jac, method=method)
    assert got.nfev == len(fun.calls) == got.njev * (1 + 3 * points)
    assert np.abs(got.x - 1).max() <= max(1e-4, 2 * np.abs(want.x - 1).max())
    for maxfun in (1, 8, 23):
        fun = Counted(rosen)
        got = xopt.minimize(fun, START, jac=jac, method=method, options={"maxfun": maxfun})
        assert got.nfev == len(fun.calls) <= max(maxfun, 1 + 3 * points)
        assert f"{got.nfev} evaluations" in got.message


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("jac", "power"), [("2-point", 1 / 2), ("3-point", 2 / 3)])
def test_steps_of_differences_suit_the_dtype(lib: Lib, dtype: str, jac: Any, power: float) -> None:
    """Errors of some ε^(1/2) and ε^(2/3), of the coarser dtype of x and of the value; of every library."""
    if lib.name == "dask":
        pytest.skip("minimize refuses it")
    point = np.asarray([0.5, -3.0, 40.0, 0.0], dtype)
    x0 = lib.array(point)
    xp = lib.functions(x0)
    want = np.cos(point.astype(float)) + point.astype(float)
    eps = float(np.finfo(dtype).eps)
    got = xopt.minimize(lambda x: xp.sum(xp.sin(x) + 0.5 * x * x), x0, jac=jac, maxiter=0)
    # the value is some 800 and has errors of 800 ε, over a step of ε^(1/2) or ε^(1/3) of x
    np.testing.assert_allclose(lib.numpy(got.jac), want, rtol=0, atol=2000 * eps**power)
    assert got.jac.dtype == x0.dtype
    narrow = lib.array(point.astype("float32"))
    if dtype == "float64":
        value = lambda x: float(np.float32(np.sum(np.sin(lib.numpy(x)) + 0.5 * lib.numpy(x) ** 2)))
        single = lambda x: np.float32(value(x))
        wrong, right = (xopt.minimize(f, x0, jac=jac, maxiter=0).jac for f in (value, single))
        error = [np.abs(lib.numpy(g) - want).max() for g in (wrong, right)]
        assert error[1] < 2000 * np.finfo("f4").eps ** power < error[0]
    assert narrow.dtype != x0.dtype or dtype == "float32"


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize("at", ["lower", "upper", "inside", "narrow", "one ulp"])
def test_differences_are_taken_within_bounds(jac: Any, at: str) -> None:
    """On the side where there is room, with the same accuracy; held variables cost nothing."""
    x = np.asarray([1.5, 0.75])
    low, high = {
        "lower": (x, x + 1), "upper": (x - 1, x), "inside": (x - 1, x + 1), "narrow": (x - 1e-7, x + 2e-7),
        "one ulp": (x, np.nextafter(x, np.inf)),
    }[at]  # fmt: skip

    def fun(y: Any) -> Any:
        assert np.all((y >= low) & (y <= high))
        return np.exp(y).sum()

    counted = Counted(fun)
    got = xopt.minimize(counted, x, jac=jac, bounds=(low, high), maxiter=0)
    plain = 1e-7 if jac == "2-point" else 1e-9
    # 4 ε over steps of 1e-7 is 1e-8, and the slope is right to half a step; over one ulp there are no digits left
    tolerance = {"narrow": 1e-6, "one ulp": 9.0}.get(at, plain)
    np.testing.assert_allclose(got.jac, np.exp(x), atol=tolerance)
    assert at == "one ulp" or got.nfev == len(counted.calls) == 1 + 2 * (1 if jac == "2-point" else 2)
    held = Counted(fun)
    xopt.minimize(held, x, jac=jac, bounds=(np.asarray([x[0], low[1]]), np.asarray([x[0], high[1]])), maxiter=0)
    assert len(held.calls) < len(counted.calls)
    assert all(y[0] == x[0] for y in held.calls)


def test_differences_of_trees_and_complex_numbers(lib: Lib) -> None:
    """∂f/∂Re + i·∂f/∂Im, two reals a number; beside what is differentiated where that is possible."""
    if lib.name == "dask":
        pytest.skip("minimize refuses it")
    x0 = {"z": lib.array(np.asarray([3 + 4j, 1 - 1j], "complex64")), "r": lib.array(np.ones((2, 1), "float32"))}
    xp = lib.functions(x0["r"])
    calls: list[Any] = []

    def fun(p: Any) -> Any:
        calls.append(p)
        return xp.sum(xp.abs(p["z"] - (1 + 2j)) ** 2) + xp.sum((p["r"] - 3) ** 2)

    got = xopt.minimize(fun, x0, jac="2-point", maxiter=0)
    assert len(calls) == got.nfev == 1 + 4 + 2
    np.testing.assert_allclose(lib.numpy(got.jac["z"]), [4 + 4j, -6j], atol=0.05)  # 17 ε over ε^(1/2)
    np.testing.assert_allclose(lib.numpy(got.jac["r"]), [[-4], [-4]], atol=0.05)
    assert optree.tree_structure(got.jac) == optree.tree_structure(x0)
    calls.clear()
    best = xopt.minimize(fun, x0, jac=None, options={"gtol": 0.1})
    np.testing.assert_allclose(lib.numpy(best.x["z"]), [1 + 2j] * 2, atol=0.1)
    assert best.nfev == best.njev * (1 if lib.name in ("torch", "jax") else 7)


def test_differences_of_a_rule() -> None:
    fun = Counted(lambda x: (x - 0.5) @ (x - 0.5))
    got = xopt.minimize(fun, [3.0, 1.0], xopt.Adam(0.3), jac=None, maxiter=400)
    np.testing.assert_allclose(got.x, 0.5, atol=1e-4)
    assert got.nfev == len(fun.calls) == 3 * got.njev
    fun = Counted(lambda x: x @ x)
    xopt.minimize(fun, [3.0, 1.0], xopt.Adam(0.3), jac=None, options={"maxfun": 7})
    assert len(fun.calls) == 6


def test_the_step_of_differences_is_an_option() -> None:
    fun = Counted(lambda x: float(np.exp(x).sum()))
    got = xopt.minimize(fun, [1.0, 2.0], jac="2-point", options={"eps": 0.25}, maxiter=0)
    assert [y.tolist() for y in fun.calls] == [[1, 2], [1.25, 2], [1, 2.25]]
    np.testing.assert_allclose(got.jac, (np.exp([1.25, 2.25]) - np.exp([1, 2])) / 0.25)
    fun = Counted(lambda x: float(np.exp(x).sum()))
    xopt.minimize(fun, [1.0, 2.0], jac="2-point", options={"eps": [0.25, 0.5]}, maxiter=0)
    assert [y.tolist() for y in fun.calls] == [[1, 2], [1.25, 2], [1, 2.5]]
    fun = Counted(lambda x: float(x @ x))
    got = xopt.minimize(fun, [1e10], jac="2-point", options={"eps": 1e-8}, maxiter=0)  # which would be lost there
    np.testing.assert_allclose(got.jac, 2e10, rtol=1e-6)


def test_results_are_scipys() -> None:
    """Attributes are keys, whichever way they are set; copies and pickles are results."""
    ours, other = xopt.OptimizeResult(x=np.ones(2), fun=0.5), optimize.OptimizeResult(x=np.ones(2), fun=0.5)
    for r in (ours, other):
        r.x = np.zeros(2)
        r["nit"] = 3
        r.note = "new"
        r.fun += 1
        assert (r["x"].tolist(), r.nit, r["note"], r["fun"]) == ([0, 0], 3, "new", 1.5)
        assert {*dir(r)} == {"x", "fun", "nit", "note"} == {*r}
        del r.note
        del r["nit"]
        assert not hasattr(r, "note")
        assert not hasattr(r, "nit")
        r.update(fun=2.0)
        assert r.fun == 2.0
        for again in (copy.copy(r), copy.deepcopy(r), pickle.loads(pickle.dumps(r))):
            assert type(again) is type(r)
            assert again.x.tolist() == [0, 0]
            again.fun = 9.0
            assert (again["fun"], r.fun) == (9.0, 2.0)
    with pytest.raises(AttributeError, match="nope: there is x, fun"):
        del ours.nope
    with pytest.raises(AttributeError, match="nope: there is x, fun"):
        _ = ours.nope
    shown = repr(xopt.OptimizeResult(x=np.eye(2), message="a"))
    assert shown == "      x: array([[1., 0.],\n                [0., 1.]])\nmessage: 'a'"
    assert repr(xopt.OptimizeResult()) == repr(optimize.OptimizeResult())
    odd = xopt.OptimizeResult({3: 1})  # type: ignore[dict-item]
    assert "3: 1" in repr(odd)
    assert not hasattr(odd, "x")


def test_what_does_not_fit() -> None:
    run = lambda **given: xopt.minimize(**{"fun": both, "x0": START, **given})
    for error, match, call in [
        (
            ValueError,
            r"method: 'Nelder-Mead', but it must be one of .*'L-BFGS-B', or give",
            lambda: run(method="Nelder-Mead"),
        ),
        (ValueError, r"method: Adam.*, but it must be one of", lambda: run(method=xopt.Adam(0.1))),
        (TypeError, r"options: xatol, but for lbfgs there are .*maxcor", lambda: run(options={"xatol": 1})),
        (TypeError, r"options: maxcor, but for cg there are", lambda: run(method="CG", options={"maxcor": 1})),
        (TypeError, r"maxiter: given twice", lambda: run(maxiter=3, options={"maxiter": 3})),
        (TypeError, r"maxcor and history are the same", lambda: run(options={"maxcor": 3, "history": 3})),
        (TypeError, r"maxfev and maxfun are the same", lambda: run(options={"maxfev": 3, "maxfun": 3})),
        (TypeError, r"maxiter: 0.0015", lambda: run(maxiter=1.5e-3)),
        (TypeError, r"maxiter: nan", lambda: run(maxiter=np.nan)),
        (ValueError, r"maxiter: -1", lambda: run(maxiter=-1.0)),
        (TypeError, r"history: inf", lambda: run(options={"history": np.inf})),
        (TypeError, r"options: a str, but it must be a dictionary", lambda: run(options="maxiter")),
        (ValueError, r"x0: a number that is too large for float64", lambda: run(x0=[10**400, 1])),
        (ValueError, r"grads: a list whose parts have", lambda: run(jac=lambda x: [1, [2, 3], 4], fun=rosen)),
        (ValueError, r"grads: a number that is too large", lambda: run(jac=lambda x: [10**400, 3, 4], fun=rosen)),
        (TypeError, r"callback: 3, but it must be a function", lambda: run(callback=3)),
        (TypeError, r"eps: 0.1, but with jac=True no differences", lambda: run(options={"eps": 0.1})),
        (ValueError, r"eps: \[1, 1\], but .* each of 3 reals", lambda: run(jac=None, options={"eps": [1, 1]})),
        (ValueError, r"eps: 0, but it must be a number > 0", lambda: run(jac=None, options={"eps": 0})),
        (TypeError, r"jac: 'cs', but it must be .*'3-point'", lambda: run(jac="cs")),
        (TypeError, r"value: .*, but it must be a real number", lambda: run(fun=both, jac=None)),
        (TypeError, r"x0: dtype float16, but a solver", lambda: run(x0=np.ones(2, "f2"))),
        (ValueError, r"bounds: a list of length 1, but .* each of 3", lambda: run(bounds=[(0, 1)])),
        (ValueError, r"bounds: a list with entries that are none", lambda: run(bounds=[(0, 1), (0, 1), 3])),
        (TypeError, r"bounds: lower: 'a', but each", lambda: run(bounds=[("a", 1)] * 3)),
        (ValueError, r"x0: element 1 has the bounds 3 and 2,", lambda: run(bounds=[(0, 1), (3, 2), (0, 1)])),
    ]:
        with pytest.raises(error, match=match):
            call()
