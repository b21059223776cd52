"""minimize: against the minima of the literature, SciPy, every library, and what may go wrong."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import optree
import pytest
from conftest import Lib
from support import mgh
from support.memory import peak
from support.mgh import bowl
from support.mgh import chain as rosenbrock

import xopt
from xopt.solvers import _space

SOLVERS: list[Any] = ["lbfgs", "cg", "gd"]


@pytest.mark.parametrize("problem", mgh.PROBLEMS, ids=lambda p: p.name)
def test_more_garbow_hillstrom(problem: mgh.Problem) -> None:
    x0 = np.asarray(problem.start, "float64")
    got = xopt.minimize(problem, x0, options={"gtol": 1e-8})
    assert got.success, got
    assert any(np.isclose(got.fun, least, rtol=1e-5, atol=1e-12) for least in problem.least), got
    assert np.abs(got.jac).max() <= 1e-8
    assert got.fun == problem(got.x)[0]
    assert np.array_equal(x0, problem.start)


@pytest.mark.parametrize("problem", mgh.PROBLEMS, ids=lambda p: p.name)
def test_float32_finds_what_float64_finds(problem: mgh.Problem) -> None:
    """Also where a tolerance asks for more than float32 has: then it ends by itself."""

    def narrow(x: Any) -> tuple[Any, Any]:
        value, g = problem(x)
        return np.float32(value), g.astype("float32")

    with np.errstate(over="ignore"):
        got = xopt.minimize(narrow, np.asarray(problem.start, "float32"), options={"gtol": 1e-7})
    assert got.x.dtype == np.float32
    assert got.nfev < 2000
    value = problem(got.x)[0]
    assert any(value <= least + 1e-6 * max(1.0, least) for least in problem.least), got


def test_no_more_evaluations_than_scipy() -> None:
    """The totals over all problems that SciPy solves."""
    from scipy.optimize import minimize

    ours = theirs = 0
    for problem in mgh.PROBLEMS:
        x0 = np.asarray(problem.start, "float64")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other = minimize(problem, x0, jac=True, method="L-BFGS-B", options={"gtol": 1e-8, "ftol": 0})
        if any(np.isclose(other.fun, least, rtol=1e-6, atol=1e-8) for least in problem.least):
            ours += xopt.minimize(problem, x0, options={"gtol": 1e-8}).nfev
            theirs += other.nfev
    assert ours <= 1.1 * theirs, (ours, theirs)


@pytest.mark.parametrize("method", SOLVERS)
@pytest.mark.parametrize("name", ["Beale", "Bard", "Brown almost linear", "Linear, full rank", "Kowalik and Osborne"])
def test_other_methods(method: Any, name: str) -> None:
    [problem] = [p for p in mgh.PROBLEMS if p.name == name]
    got = xopt.minimize(problem, np.asarray(problem.start, "float64"), method=method, options={"gtol": 1e-5})
    assert any(np.isclose(got.fun, least, rtol=1e-3, atol=1e-6) for least in problem.least), got


@pytest.mark.parametrize("n", [2, 1000, 10**5])
def test_rosenbrock(n: int) -> None:
    x0 = np.tile([0.9, 1.1], n // 2)
    got = xopt.minimize(rosenbrock, x0, options={"gtol": 1e-6})
    assert got.success
    np.testing.assert_allclose(got.x, 1, atol=1e-4)


@pytest.mark.parametrize("method", [*SOLVERS, xopt.Adam(0.1)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_every_library(lib: Lib, method: Any, dtype: str, rng: np.random.Generator) -> None:
    """Least squares |A·x - b|² + |z|², in a tree; the library, dtype and structure of x0 come back."""
    draw = lambda *s: np.asarray(rng.standard_normal(s) + (1j * rng.standard_normal(s) if "c" in dtype else 0), dtype)
    matrix, b = draw(9, 4), draw(9)
    start = {"x": draw(4), "z": (draw(2, 3), draw(0), draw())}
    x0 = optree.tree_map(lib.array, start)
    if lib.name == "dask":
        with pytest.raises(TypeError, match=r"x0: an array of dask, which computes nothing until the end"):
            xopt.minimize(print, x0)
        return
    A, rhs = lib.array(matrix), lib.array(b)
    xp = lib.module() if lib.name in ("torch", "cupy") else A.__array_namespace__()

    def fun(p: Any) -> tuple[Any, Any]:
        r = A @ p["x"] - rhs
        square = sum(xp.sum(abs(x) ** 2) for x in (r, p["z"][0], p["z"][2]))
        slope = (xp.conj(A.T) if "c" in dtype else A.T) @ r
        return square, {"x": 2 * slope, "z": tuple(2 * x for x in p["z"])}

    chosen = {"rule": method, "maxiter": 600} if isinstance(method, xopt.Rule) else {"method": method}
    before = optree.tree_map(lib.numpy, x0)
    got = xopt.minimize(fun, x0, **chosen, options={"gtol": 1e-3})
    want = np.linalg.lstsq(matrix, b)[0]
    np.testing.assert_allclose(lib.numpy(got.x["x"]), want, atol=2e-3)
    assert got.success, got
    for a, y, first in zip(*map(optree.tree_leaves, (got.x, x0, before)), strict=True):
        assert (a.shape, a.dtype, type(a)) == (y.shape, y.dtype, type(y))
        np.testing.assert_array_equal(lib.numpy(y), first)
        assert not getattr(a, "requires_grad", False)
    assert optree.tree_structure(got.jac) == optree.tree_structure(x0)


@pytest.mark.parametrize("bounds", [None, (-9.0, 0.5)])
def test_arrays_that_cannot_be_written_into(lib: Lib, bounds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not taken for those of JAX; the steps are those of others."""
    if lib.name != "strict":
        pytest.skip("one that stands for those that cannot")
    monkeypatch.setattr("xopt._arrays.libraries.array_api_strict.Own.writes", False)
    x0, seen = lib.array(np.asarray([-1.2, 1.0, 3.0], "float32")), []
    weights = lib.array(np.asarray([1.0, 10.0, 100.0], "float32"))

    def fun(x: Any) -> Any:
        seen.append(lib.numpy(x).copy())
        return (x - 1.0) @ (weights * (x - 1.0)), 2.0 * weights * (x - 1.0)

    found = xopt.minimize(fun, x0, bounds=bounds, options={"gtol": 1e-3})
    assert found.success
    np.testing.assert_allclose(lib.numpy(found.x), 1.0 if bounds is None else 0.5, atol=1e-3)
    ours = [*seen]
    seen.clear()
    monkeypatch.undo()
    xopt.minimize(fun, x0, bounds=bounds, options={"gtol": 1e-3})
    np.testing.assert_allclose(ours, seen, rtol=1e-5)


@pytest.mark.needs("torch")
@pytest.mark.parametrize("method", ["lbfgs", xopt.Adam(0.05)], ids=str)
def test_torch_differentiates(method: Any) -> None:
    torch = pytest.importorskip("torch")
    x0 = {"z": torch.zeros(3, dtype=torch.complex128), "unused": torch.ones(2, dtype=torch.float64)}
    target = torch.tensor([1 + 2j, -3j, 0.5])
    chosen = {"rule": method, "maxiter": 2000} if isinstance(method, xopt.Rule) else {"method": method}
    got = xopt.minimize(lambda p, t: (abs(p["z"] - t) ** 2).sum(), x0, args=(target,), jac=False, **chosen)
    assert torch.allclose(got.x["z"], target.to(torch.complex128), atol=1e-4)
    assert got.x["unused"].tolist() == [1, 1]
    with pytest.raises(TypeError, match="fun: returned 1.0, but with jac=False it must return a tensor"):
        xopt.minimize(lambda p, t: 1.0, x0, args=(target,), jac=False, **chosen)


@pytest.mark.needs("jax")
def test_jax_differentiates() -> None:
    jnp = pytest.importorskip("jax").numpy
    target = jnp.asarray([1 + 2j, -3j, 0.5])
    square = lambda x: jnp.sum(jnp.abs(x - target) ** 2)
    got = xopt.minimize(square, jnp.zeros(3, "complex128"), jac=False)
    np.testing.assert_allclose(got.x, target, atol=1e-6)
    conjugate = xopt.minimize(
        lambda x: (square(x), jnp.conj(2 * (x - target))), jnp.zeros(3, "complex128"), conjugate=True
    )
    np.testing.assert_allclose(conjugate.x, target, atol=1e-6)


def test_gradient_of_its_own() -> None:
    got = xopt.minimize(lambda x, k: k * x @ x, np.ones(3), jac=lambda x, k: 2 * k * x, args=(3.0,))
    assert got.fun < 1e-10
    assert got.nfev == got.njev


@pytest.mark.parametrize("method", SOLVERS)
def test_one_look_at_the_device_an_evaluation(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    listed = _space._listed
    monkeypatch.setattr(_space, "_listed", lambda x: looks.append(1) or listed(x))

    def bowls(x: Any) -> Any:  # of one array of NumPy there is nothing to bring to the host
        (a, da), (b, db) = map(bowl, x)
        return a + b, [da, db]

    got = xopt.minimize(bowls, [np.zeros(20), np.zeros(3)], method=method)
    assert len(looks) == got.nfev
    looks.clear()
    got = xopt.minimize(bowl, np.zeros(20), xopt.Adam(0.1), maxiter=100, options={"every": 25})
    assert len(looks) == 5


def test_options() -> None:
    x0 = np.asarray([-1.2, 1.0])
    run = lambda **options: xopt.minimize(rosenbrock, x0, options=options)
    plain = run()
    assert run(gtol=1e-2).nit < plain.nit < run(gtol=1e-12).nit
    assert xopt.minimize(rosenbrock, x0, tol=1e-2).nit == run(gtol=1e-2, ftol=1e-2).nit < run(gtol=1e-2).nit
    for method in ("cg", "gd"):
        loose = [
            xopt.minimize(rosenbrock, x0, method=method, **given)
            for given in ({"tol": 1e-2}, {"options": {"gtol": 1e-2}})
        ]
        assert loose[0].nit == loose[1].nit
    assert "ftol" in run(ftol=1e-2, gtol=0.0).message
    assert "xtol" in run(xtol=1e-3, gtol=0.0).message
    assert (run(maxfun=9).nfev, run(maxfun=9).status) == (9, 1)
    assert run(target=0.5).fun <= 0.5
    assert "target" in run(target=0.5).message
    assert "max_time" in run(max_time=0.0).message
    assert run(history=1).nit != plain.nit
    assert run(line_search="armijo").nfev != plain.nfev
    assert run(line_search="armijo").success
    assert xopt.minimize(bowl, np.zeros(9), method="cg", options={"line_search": "strong-wolfe"}).success
    assert xopt.minimize(rosenbrock, x0, maxiter=3).nit == 3
    assert xopt.minimize(rosenbrock, x0, maxiter=0).x.tolist() == x0.tolist()
    assert run(maxls=1).fun >= plain.fun
    rule = lambda **options: xopt.minimize(bowl, np.zeros(3), xopt.Adam(0.1), options=options)
    assert rule(every=7).nit % 7 == 0
    assert rule(runner="eager").fun == rule(runner="tiled").fun


def test_numbers_of_numpy() -> None:
    options = {"gtol": np.float32(1e-3), "history": np.int64(2), "maxfun": np.int32(9), "maxls": np.uint8(20)}
    got = xopt.minimize(rosenbrock, np.asarray([-1.2, 1.0]), maxiter=np.int64(5), options=options)
    want = xopt.minimize(
        rosenbrock,
        np.asarray([-1.2, 1.0]),
        maxiter=5,
        options={"gtol": float(np.float32(1e-3)), "history": 2, "maxfun": 9, "maxls": 20},
    )
    assert got.nfev == want.nfev
    assert np.array_equal(got.x, want.x)


def test_steps_that_are_cut_short_are_no_convergence() -> None:
    """At the edge of where a function is defined, steps become small; that is no minimum."""

    def fun(x: Any) -> Any:
        with np.errstate(all="ignore"):
            return np.sqrt(x).sum(), 0.5 / np.sqrt(x)

    got = xopt.minimize(fun, np.asarray([5.0, 1.0]), options={"ftol": 2.2e-9})
    assert (got.status, got.success) == (2, False)


@pytest.mark.parametrize("method", SOLVERS)
@pytest.mark.parametrize("problem", mgh.PROBLEMS[::4], ids=lambda p: p.name)
def test_steps_meet_wolfes_conditions(method: Any, problem: mgh.Problem) -> None:
    """Nocedal & Wright (2006), 3.7, on every step that is not lost in roundings, with the slopes at both its ends."""
    sigma = 0.1 if method == "cg" else 0.9
    for name in ("hager-zhang", "strong-wolfe"):
        found: list[Any] = [(np.asarray(problem.start, "float64"), *problem(np.asarray(problem.start, "float64")))]
        xopt.minimize(
            problem, found[0][0], method=method, maxiter=30, options={"line_search": name},
            callback=lambda x, found=found: found.append((x, *problem(x))),
        )  # fmt: skip
        for (x, value, g), (y, new, h) in itertools.pairwise(found):
            if abs(new - value) < 1e-9 * abs(value) or np.abs(h).max() < 1e-6:
                continue
            falls = new <= value + 0.1 * g @ (y - x) * (1 - 1e-6)
            assert falls or (name == "hager-zhang" and h @ (y - x) <= -0.8 * g @ (y - x))  # the approximate conditions
            assert h @ (y - x) >= sigma * (g @ (y - x)) * (1 + 1e-6)
            if name == "strong-wolfe":
                assert abs(h @ (y - x)) <= sigma * abs(g @ (y - x)) * (1 + 1e-6)


def test_a_line_search_of_ones_own() -> None:
    seen = []

    def search(along: Any, start: Any, first: float, *, tol: float, maxls: int, sigma: float, longest: float) -> Any:
        seen.append((start.value, start.slope, first, tol, maxls, sigma, longest))
        point = along(first)
        while point.value > start.value:
            point = along(point.alpha / 2)
        return point

    got = xopt.minimize(bowl, np.zeros(4), options={"line_search": search, "maxls": 7})
    assert got.success
    assert len(seen) == got.nit
    value, slope, first, tol, maxls, sigma, longest = seen[0]
    assert (value, maxls, sigma, longest) == (10.0, 7, 0.9, np.inf)
    assert slope == pytest.approx(-(bowl(np.zeros(4))[1] @ bowl(np.zeros(4))[1]))
    assert 0 < first <= 1
    assert 0 < tol < 1e-10
    stuck = xopt.minimize(bowl, np.zeros(4), options={"line_search": lambda *a, **k: None})
    assert (stuck.status, stuck.nit, stuck.fun) == (2, 0, 10.0)


@pytest.mark.parametrize("chosen", [{}, {"rule": xopt.Adam(0.1)}], ids=str)
def test_callback(chosen: Any) -> None:
    kept: list[Any] = []
    got = xopt.minimize(bowl, np.zeros(3), maxiter=5, callback=lambda x: kept.append((x, x.copy())), **chosen)
    assert len(kept) == got.nit == 5
    assert all(np.array_equal(a, b) for a, b in kept), "what a callback saw has changed"
    assert np.array_equal(kept[-1][0], got.x)
    results: list[Any] = []

    def look(intermediate_result: Any) -> Any:
        results.append(intermediate_result)
        return len(results) == 2

    got = xopt.minimize(bowl, np.zeros(3), callback=look, **chosen)
    assert (got.status, got.success, got.nit) == (99, False, 2)
    assert [r.nit for r in results] == [1, 2]
    assert results[0].fun == bowl(results[0].x)[0]

    def stop(x: Any) -> None:
        raise StopIteration

    assert xopt.minimize(bowl, np.zeros(3), callback=stop, **chosen).status == 99


@pytest.mark.parametrize("chosen", [{}, {"method": "cg"}, {"rule": xopt.Adam(0.1)}], ids=str)
def test_the_result_belongs_to_its_point(chosen: Any) -> None:
    """Wherever the evaluations end, and of a solver it is the best of them."""
    for maxfun in range(1, 40):
        values: list[float] = []

        def fun(x: Any, values: list[float] = values) -> Any:
            values.append(rosenbrock(x)[0])
            return rosenbrock(x)

        got = xopt.minimize(fun, np.asarray([-1.2, 1.0, -1.2, 1.0]), **chosen, options={"maxfun": maxfun})
        assert got.nfev == maxfun
        assert got.fun == rosenbrock(got.x)[0]
        assert np.array_equal(got.jac, rosenbrock(got.x)[1])
        assert "rule" in chosen or got.fun == min(values)


@pytest.mark.parametrize("method", SOLVERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e15])
def test_any_scale(method: Any, dtype: str, scale: float) -> None:
    """Of the value. It ends by itself and without an error; where nothing under- or overflows, at the minimum."""
    s = np.asarray(scale, dtype)[()]
    fun = lambda x: (s * bowl(x)[0], s * bowl(x)[1])
    with np.errstate(all="ignore"):
        got = xopt.minimize(fun, np.zeros(3, dtype), method=method, options={"gtol": 0.0, "maxfun": 5000})
    assert got.status in (0, 2)
    if scale != 1e-30:
        np.testing.assert_allclose(got.x, 1, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-20, 1e20, 1e30])
def test_any_scale_of_x(scale: float) -> None:
    r = lambda x: x * scale - 1
    got = xopt.minimize(lambda x: (r(x) @ r(x), 2 * scale * r(x)), np.zeros(2), options={"gtol": 1e-5 * scale})
    assert got.fun < 1e-6


def test_a_search_that_fails_is_begun_anew(rng: np.random.Generator) -> None:
    """In float32 with a condition of 1e5, products of vectors may point the wrong way; -g does not."""
    q = np.linalg.qr(rng.standard_normal((50, 50)))[0].astype("f4")
    matrix = (q * np.logspace(0, 5, 50).astype("f4")) @ q.T
    fun = lambda x: (np.float32(0.5) * (x @ matrix @ x), matrix @ x)
    x0 = rng.standard_normal(50).astype("f4")
    for method, least in (("lbfgs", 1e-5), ("cg", 1.0)):
        got = xopt.minimize(fun, x0, method=method, options={"gtol": 1e-3})
        assert got.fun < least, got


def test_a_search_that_looks_back(rng: np.random.Generator) -> None:
    """It may return any of its points, not only the last."""
    weights = np.arange(1.0, 31)

    def best(along: Any, start: Any, first: float, **_: Any) -> Any:
        found = min((along(first * share) for share in (0.25, 0.5, 1, 2, 4)), key=lambda p: p.value)
        return found if found.value < start.value else None

    fun = lambda x: (0.5 * weights @ (x - 1) ** 2, weights * (x - 1))
    assert xopt.minimize(fun, np.zeros(30), options={"line_search": best}).success


def test_searches_that_return_nonsense() -> None:
    x0 = np.zeros(3)
    for returned in (lambda start: start, lambda start: start._replace(alpha=1.0, value=np.nan)):
        got = xopt.minimize(bowl, x0, options={"line_search": lambda a, s, f, returned=returned, **k: returned(s)})
        assert (got.status, got.nit) == (2, 0)
    with pytest.raises(TypeError, match="line_search: returned a float, but it must return a point"):
        xopt.minimize(bowl, x0, options={"line_search": lambda *a, **k: 0.5})


def test_a_callback_without_a_signature() -> None:
    """Such as what is written in C and tells nothing about itself."""
    assert xopt.minimize(bowl, np.zeros(3), callback=str).success


def test_a_callback_may_do_as_it_likes() -> None:
    def spoil(x: Any) -> Any:
        x += 1
        return np.all(x > 100)

    got = xopt.minimize(bowl, np.zeros(3), callback=spoil)
    assert got.fun == bowl(got.x)[0] < 1e-9
    assert xopt.minimize(bowl, np.zeros(3), callback=lambda x: np.all(x < 100)).status == 99
    assert xopt.minimize(bowl, np.zeros(3), callback=lambda x: True).status == 99
    for returned in (np.ones(3), np.ones(3, bool), 1.0, "yes", np.False_, np.float64(1)):
        assert xopt.minimize(bowl, np.zeros(3), callback=lambda x, returned=returned: returned).success


def test_a_rule_that_diverges_ends() -> None:
    with np.errstate(all="ignore"):
        got = xopt.minimize(bowl, np.zeros(3), xopt.SGD(1e3), maxiter=5000)
    assert (got.status, got.success) == (2, False)
    assert got.nit < 500
    assert "the value is" in got.message


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    xopt.minimize(bowl, np.zeros(3), maxiter=4, progress=True)
    assert "4/4" in capsys.readouterr().err


def test_progress_of_other_solvers(capsys: pytest.CaptureFixture[str]) -> None:
    """Steps and what falls; of many problems how many have ended, also where some are left out as they end."""
    pytest.importorskip("tqdm")

    def shown(run: Any) -> str:
        run()
        return capsys.readouterr().err.split("\r")[-1]

    seen: list[Any] = []
    fit = lambda **more: xopt.least_squares(lambda x: x**2 - 2, np.ones(3), progress=True, **more)
    assert "cost=" in shown(fit)
    assert f"{fit(callback=seen.append).nit}it" in capsys.readouterr().err.replace("it ", "it")
    assert seen
    assert "cost=" in shown(lambda: fit(method="steihaug", jac=lambda x: np.diag(2 * x)))
    x = np.linspace(0, 1, 9)
    assert "cost=" in shown(lambda: xopt.curve_fit(lambda x, a: np.exp(a * x), x, np.exp(2 * x), progress=True))
    y = np.linspace(1, 2, 3000)[:, None]
    squares = lambda x, y: (((x - y) ** 4)[:, 0], 4 * (x - y) ** 3)
    many = {"batched": True, "data": y, "progress": True}
    for more in ({}, {"callback": lambda x: None}):
        assert "3000/3000" in shown(lambda more=more: xopt.minimize(squares, 0 * y, **many, **more))
        assert "3000/3000" in shown(lambda more=more: xopt.least_squares(lambda x, y: x**2 - y, y, **many, **more))
    prox = {"g": xopt.proximal.l1(0.1), "maxiter": 3, "tol": 0.0, "progress": True}
    smooth = lambda x: (np.sum((x - 1) ** 2) / 2, x - 1)
    assert "3/3" in shown(lambda: xopt.proximal.fista(smooth, np.zeros(3), **prox))
    for solver in (xopt.proximal.pdhg, xopt.proximal.admm):
        assert "residual=" in shown(lambda solver=solver: solver(xopt.proximal.squared(1.0), np.zeros(3), **prox))


@pytest.mark.parametrize(
    ("method", "history", "vectors", "chunk"),
    [
        ("lbfgs", 5, 2 * 5 + 4, 2**13),
        ("lbfgs", 10, 2 * 10 + 4, 2**13),
        ("lbfgs", 10, 2 * 10 + 4, 2**18),  # all at once, as on a GPU
        ("lbfgs-b", 5, 2 * 5 + 6, 2**13),
        ("cg", 0, 5, 2**13),
        ("gd", 0, 5, 2**13),
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_memory(
    method: Any, history: int, vectors: int, chunk: int, several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is promised, and two vectors more where a search takes several evaluations."""
    n = 2**18
    monkeypatch.setattr(_space, "CHUNK", chunk)
    x0, g, square = np.zeros(n), np.empty(n), np.empty(n)
    weights = np.linspace(1, 50, n)

    def fun(x: Any) -> Any:  # without temporaries
        np.subtract(x, 1, out=g)
        np.multiply(g, g, out=square)
        value = 0.5 * float(square @ weights)
        np.multiply(g, weights, out=g)
        return value, g

    def search(along: Any, start: Any, first: float, **_: Any) -> Any:
        length = first if method == "lbfgs-b" else first / 3 if first == 1 else 1 / 60  # so that each step descends
        if several:
            along(length / 2), along(length / 1.5)
        return along(length)

    options: Any = {"history": history} if history else {}
    options |= {"line_search": search, "gtol": 0.0}
    xopt.minimize(fun, x0, maxiter=2, method=method, options=options)
    found = []
    most = peak(lambda: found.append(xopt.minimize(fun, x0, maxiter=12, method=method, options=options))) / (8 * n)
    assert found[0].nit == 12
    chunks = (2 * history + 4) * 2**13 / n
    assert most <= vectors + 2 * several + chunks


@pytest.mark.parametrize("method", [*SOLVERS, "lbfgs-b"])
def test_functions_without_a_minimum(method: Any) -> None:
    """It ends by itself, and says so where it can."""
    with np.errstate(all="ignore"):
        line = xopt.minimize(
            lambda x: (-x.sum(), -np.ones_like(x)), np.ones(3), method=method, options={"ftol": 2.2e-9}
        )
        hill = xopt.minimize(lambda x: (-(x @ x), -2 * x), np.ones(3), method=method)
    assert line.status == hill.status == 2
    assert max(line.fun, hill.fun) < -1e20
    assert method == "lbfgs-b" or line.message == "stopped: the value is -inf, so there is no minimum"
