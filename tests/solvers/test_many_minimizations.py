"""minimize with batched=True: many functions at once, each lane as if it were alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import Lib
from scipy.optimize import minimize as scipys
from support import mgh

import xopt

A = Any
K = 200
RNG = np.random.default_rng(8)
WIDE, DEEP = RNG.uniform(0.5, 2, K), RNG.uniform(5, 200, K)
START = np.tile([-1.2, 1.0], (K, 1))


def valleys(x: A, d: A) -> tuple[A, A]:
    """Rosenbrock's function with the minimum at (a, a²) and a depth b of the valley."""
    (a, b), u, v = d, x[:, 0], x[:, 1]
    r, q = a - u, v - u * u
    return r * r + b * q * q, np.stack([-2 * r - 4 * b * q * u, 2 * b * q], axis=-1)


def many(fun: A, x0: A, **options: Any) -> Any:
    return xopt.minimize(fun, x0, batched=True, **options)


@pytest.mark.parametrize("method", ["lbfgs", "bfgs"])
def test_as_scipy_alone(method: Any) -> None:
    """The same minima, for about the evaluations that SciPy takes; some lanes beside SciPy's own run."""
    got = many(valleys, START, data=(WIDE, DEEP), method=method)
    assert got.success.all()
    assert np.abs(got.jac).max() <= 1e-5
    np.testing.assert_allclose(got.x[:, 0], WIDE, atol=1e-4)
    np.testing.assert_allclose(got.x[:, 1], WIDE**2, atol=1e-4)
    value, g = valleys(got.x, (WIDE, DEEP))
    np.testing.assert_array_equal(got.fun, value)
    np.testing.assert_array_equal(got.jac, g)
    theirs = []
    for i in range(0, K, 20):
        one = (WIDE[i : i + 1], DEEP[i : i + 1])
        fun = lambda x, one=one: tuple(y[0] for y in valleys(x[None, :], one))
        theirs.append(scipys(fun, START[i], jac=True, method="BFGS").nit)
    assert got.nit.mean() < 1.3 * np.mean(theirs)


@pytest.mark.parametrize("options", [{"method": "lbfgs"}, {"method": "bfgs"}, {"bounds": (None, [0.9, 9.0])}], ids=str)
def test_lanes_are_independent(options: Any) -> None:
    """A lane has the same bits alone, in a few, in another order, and with or without data by row."""
    got = many(valleys, START, data=(WIDE, DEEP), **options)
    for rows in (np.arange(3, 4), np.arange(0, K, 7), np.arange(K)[::-1]):
        some = many(valleys, START[rows], data=(WIDE[rows], DEEP[rows]), **options)
        for name in ("x", "fun", "jac", "nit", "status"):
            np.testing.assert_array_equal(some[name], got[name][rows], err_msg=name)
    whole = many(lambda x: valleys(x, (WIDE, DEEP)), START, **options)
    np.testing.assert_array_equal(whole.x, got.x)


@pytest.mark.parametrize("method", ["lbfgs", "bfgs"])
@pytest.mark.parametrize("problem", mgh.PROBLEMS, ids=lambda p: p.name)
def test_more_garbow_hillstrom(problem: mgh.Problem, method: Any) -> None:
    """From the standard start and from one nearby, which end apart."""
    x0 = np.asarray([problem.start, 1.02 * np.asarray(problem.start) + 1e-3], "float64")

    def fun(x: A) -> tuple[A, A]:
        pairs = [problem(row) for row in x]
        return np.asarray([value for value, _ in pairs]), np.stack([g for _, g in pairs])

    with np.errstate(all="ignore"):
        got = many(fun, x0, method=method, options={"gtol": 1e-6, "maxfun": 2000})
        alone = xopt.minimize(problem, x0[0], method=method, options={"gtol": 1e-6, "maxfun": 2000})
    near = [any(np.isclose(f, least, rtol=1e-4, atol=1e-5) for least in problem.least) for f in got.fun]
    assert all(near) or got.fun[0] <= alone.fun * (1 + 1e-4) + 1e-6, (got, alone)


def _each(side: A, n: int) -> list[Any]:
    return [*side] if np.ndim(side) else [side] * n


def test_bounds() -> None:
    """The problems of the literature in boxes, beside SciPy's L-BFGS-B."""
    for problem, x0, lower, upper in [*mgh.boxes()][::4]:
        start = np.asarray(x0, "float64")[None, :]
        fun = lambda x, p=problem: (np.asarray([p(x[0])[0]]), p(x[0])[1][None, :])
        with np.errstate(all="ignore"):
            got = many(fun, start, bounds=(lower, upper), options={"gtol": 1e-7, "maxfun": 2000})
            pairs = [*zip(*(_each(side, start.shape[1]) for side in (lower, upper)), strict=True)]
            want = scipys(problem, start[0], jac=True, method="L-BFGS-B", bounds=pairs, options={"maxiter": 3000})
        assert all(low is None or x >= low for x, (low, _) in zip(got.x[0], pairs, strict=True))
        assert all(high is None or x <= high for x, (_, high) in zip(got.x[0], pairs, strict=True))
        inside = [(-np.inf if low is None else low, np.inf if high is None else high) for low, high in pairs]
        step = got.x[0] - np.clip(got.x[0] - got.jac[0], *np.transpose(inside))
        best = got.fun[0] <= want.fun + 1e-4 * max(1, abs(want.fun))
        assert best or np.abs(step).max() <= 1e-7, (problem.name, got, want)  # or another minimum


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_libraries(lib: Lib, dtype: str) -> None:
    """A tree, with gradients given, of the library, or from differences; bounds of each lane."""
    if lib.name == "dask":
        pytest.skip("it computes nothing until the end")
    k = 12
    a = lib.array(np.linspace(0.5, 2, k), dtype)
    x0 = {"u": lib.array(np.full(k, -1.2), dtype), "v": lib.array(np.ones((k, 1)), dtype)}
    xp = lib.module() if lib.name in ("torch", "cupy") else a.__array_namespace__()
    value = lambda x, a: (a - x["u"]) ** 2 + 5 * (x["v"][:, 0] - x["u"] ** 2) ** 2

    def both(x: A, a: A) -> tuple[A, A]:
        q = x["v"][:, 0] - x["u"] ** 2
        return value(x, a), {"u": -2 * (a - x["u"]) - 20 * q * x["u"], "v": 10 * q[:, None]}

    jac = lambda x, a: both(x, a)[1]
    rough = {"gtol": 1e-3 if dtype == "float32" else 1e-5, "ftol": 0.0 if dtype == "float64" else 1e-7}
    forms: list[Any] = [(both, {"jac": True}), (value, {"jac": jac}), (value, {"jac": None})]
    methods: tuple[Any, ...] = ("lbfgs", "bfgs")
    if lib.name == "jax":  # which compiles every operation
        forms, methods = (forms[:1], methods[1:]) if dtype == "float64" else (forms[2:], methods[:1])
    elif lib.name == "strict" and lib.guise != "CPU_DEVICE":
        forms = forms[:1]
    for fun, given in forms:
        for method in methods:
            own = rough | ({"history": 3} if method == "lbfgs" else {})
            got = many(fun, x0, data=a, method=method, options=own, **given)
            assert bool(xp.all(got.success)) or dtype == "float32", got.message
            assert got.x["v"].dtype == a.dtype
            close = 1e-5 if dtype == "float64" else 0.05 if fun is value and given["jac"] is None else 3e-3
            np.testing.assert_allclose(lib.numpy(got.x["u"]), np.linspace(0.5, 2, k), atol=close)
    if lib.name == "jax" and dtype == "float32":
        return
    got = many(both, x0, data=a, bounds=({"u": None, "v": 0.0}, {"u": 1.0, "v": None}), options=rough)
    assert bool(xp.all(got.success)) or dtype == "float32"
    np.testing.assert_allclose(lib.numpy(got.x["u"]), np.minimum(np.linspace(0.5, 2, k), 1), atol=3e-3)
    assert float(xp.max(got.x["u"])) <= 1


def test_complex_parameters(lib: Lib) -> None:
    """Gradients are ∂f/∂Re + i·∂f/∂Im, or with conjugate=True their conjugates."""
    if lib.name == "dask":
        pytest.skip("it computes nothing until the end")
    z = lib.array(RNG.standard_normal((9, 3)) + 1j * RNG.standard_normal((9, 3)))
    x0 = lib.array(np.zeros((9, 3), complex))
    xp = lib.module() if lib.name in ("torch", "cupy") else z.__array_namespace__()
    value = lambda x: xp.sum(xp.abs(x - z) ** 2, axis=-1)
    forms: list[Any] = [
        (lambda x: (value(x), 2 * (x - z)), {}),
        (lambda x: (value(x), 2 * xp.conj(x - z)), {"conjugate": True}),
        (value, {"jac": None}),
    ]
    for fun, given in forms[2 if lib.name == "jax" else 0 :]:
        got = many(fun, x0, **given)
        assert bool(xp.all(got.success))
        np.testing.assert_allclose(lib.numpy(got.x), lib.numpy(z), atol=1e-4)


def test_each_lane_has_its_own_end() -> None:
    """One is at its minimum, one has no value, one has none that is least."""
    x0 = np.asarray([0.0, np.nan, 1.0, 1.0, 5.0])
    slow = np.asarray([0.0, 0.0, 0.0, 1.0, 0.0])

    def fun(x: A) -> tuple[A, A]:
        line = np.asarray([0, 0, 1, 0, 0])
        value = (1 - line) * (x**2 + slow * x**8) - line * x
        return value, (1 - line) * (2 * x + 8 * slow * x**7) - line

    seen: list[Any] = []
    keep = lambda intermediate_result: seen.append(intermediate_result)
    with np.errstate(over="ignore", invalid="ignore"):
        got = many(fun, x0, callback=keep)
    assert got.status.tolist() == [0, 2, 2, 0, 0]
    assert got.success.tolist() == (got.status == 0).tolist()
    assert got.nit[0] == 0
    assert np.isnan(got.x[1])
    assert "1 stopped: the value or the gradient at x0 is infinite or NaN" in got.message
    assert [r.nfev for r in seen] == [*range(2, len(seen) + 2)]
    np.testing.assert_array_equal(seen[-1].x, got.x)
    np.testing.assert_array_equal(seen[-1].fun, got.fun)


def test_options() -> None:
    full = many(valleys, START, data=(WIDE, DEEP))
    assert many(valleys, START, data=(WIDE, DEEP), tol=1e-2).nfev < full.nfev
    loose = many(valleys, START, data=(WIDE, DEEP), options={"ftol": 1e-2})
    assert "no more than ftol" in loose.message
    assert (
        "no parameter moved by more than xtol"
        in many(valleys, START, data=(WIDE, DEEP), options={"xtol": 1e-2}).message
    )
    low = many(valleys, START, data=(WIDE, DEEP), options={"target": 0.5})
    assert (low.fun <= 0.5).all()
    assert low.nit.sum() < full.nit.sum()
    few = many(valleys, START, data=(WIDE, DEEP), options={"maxfun": 5})
    assert (few.nfev, (few.status == 1).all(), few.success.any()) == (5, True, False)
    brief = many(valleys, START, data=(WIDE, DEEP), maxiter=2)
    assert (brief.status == 1).all()
    assert (brief.nit == 2).all()
    assert brief.message == "200 stopped: maxiter iterations"
    none = many(valleys, START, data=(WIDE, DEEP), options={"max_time": 0.0})
    assert (none.status == 1).all()
    short = many(valleys, START, data=(WIDE, DEEP), options={"history": 1})
    assert short.nit.sum() > full.nit.sum()
    hasty = many(valleys, START, data=(WIDE, DEEP), maxiter=30, options={"maxls": 1})
    assert hasty.fun.mean() > many(valleys, START, data=(WIDE, DEEP), maxiter=30).fun.mean()
    assert many(valleys, START, data=(WIDE, DEEP), callback=lambda x: True).status.tolist() == [99] * K
    wide = many(
        lambda x, d: valleys(x, d)[0], START, data=(WIDE, DEEP), jac="2-point", maxiter=60, options={"eps": 1e-3}
    )
    assert np.abs(wide.x[:, 0] - WIDE).max() > 1e-4


def test_steps_within_bounds_learn_of_what_is_free() -> None:
    """Quadratic functions whose parameters pull at each other, and end at a bound or between: SciPy's iterations."""
    n, k = 12, 40
    q = np.linalg.qr(RNG.standard_normal((k, n, n)))[0]
    h = np.einsum("kij,j,klj->kil", q, np.geomspace(1, 1e3, n), q)
    b = RNG.standard_normal((k, n)) * 30
    fun = lambda x: ((x * (np.einsum("kij,kj->ki", h, x) / 2 - b)).sum(1), np.einsum("kij,kj->ki", h, x) - b)
    got = many(fun, np.zeros((k, n)), bounds=(-0.1, 0.1), options={"gtol": 1e-6})
    assert got.success.all()
    assert 0.2 < np.mean(np.abs(got.x) == 0.1) < 0.8
    theirs = []
    for i in range(0, k, 4):
        one = lambda x, i=i: (x @ (h[i] @ x / 2 - b[i]), h[i] @ x - b[i])
        want = scipys(one, np.zeros(n), jac=True, method="L-BFGS-B", bounds=[(-0.1, 0.1)] * n,
                      options={"gtol": 1e-6, "ftol": 0.0})  # fmt: skip
        assert got.fun[i] == pytest.approx(want.fun, rel=1e-9)
        theirs.append(want.nit)
    assert got.nit.mean() < 1.5 * np.mean(theirs), (got.nit, theirs)


@pytest.mark.parametrize("method", ["lbfgs", "bfgs"])
def test_parameters_of_two_dtypes(method: Any) -> None:
    """Those of float32 move by what float32 can hold, so that lanes end in its rounding noise, and soon."""
    u, v = RNG.standard_normal((20, 3)) * 1e3, RNG.standard_normal(20)

    def fun(x: A) -> tuple[A, A]:
        r, q = x["u"].astype("float64") - u, x["v"] - v
        both = 0.2 * (r.sum(1) + q)
        value = (r**2).sum(1) + q**2 + 2.5 * both**2
        return value, {"u": (2 * r + both[:, None]).astype("float32"), "v": 2 * q + both}

    x0 = {"u": np.zeros((20, 3), "float32"), "v": np.zeros(20)}
    got = many(fun, x0, method=method, options={"maxfun": 5000})
    assert got.nfev < 500
    assert (got.status != 1).all()
    np.testing.assert_allclose(got.x["u"], u, atol=3e-4)  # two spacings of float32
    value, g = fun(got.x)
    np.testing.assert_array_equal(got.fun, value)
    np.testing.assert_array_equal(got.jac["v"], g["v"])


def test_differences_as_of_one() -> None:
    """Steps are those of a minimization alone, all evaluations are counted, and ``maxfun`` is of these."""
    seen: list[A] = []

    def fun(x: A) -> A:
        seen.append(x.copy())
        return valleys(x, (1.0, 100.0))[0]

    start = np.asarray([[1000.0, 0.001]])
    for options in ({}, {"eps": 1e-3}, {"eps": [1e-3, 1e-5]}, {"eps": 1e-30}):
        for jac in ("2-point", "3-point"):
            whole: Any = {"jac": jac, "maxiter": 0, "options": options}
            got = many(fun, start, **whole)
            assert got.nfev == len(seen)
            mine, seen[:] = np.stack(seen)[:, 0], []
            one = xopt.minimize(lambda x: fun(x[None, :])[0], start[0], **whole)
            np.testing.assert_array_equal(mine, np.stack(seen)[:, 0])
            assert (got.nfev, got.njev) == (one.nfev, one.njev)
            seen.clear()
    few = many(fun, start, jac="2-point", options={"maxfun": 30})
    assert few.nfev == len(seen) == 30
    for wrong in (0.0, -1e-6, "x", [1e-3] * 3):
        with pytest.raises(ValueError, match=r"eps: .*, but it must be a number > 0, or one for each of 2 reals"):
            many(fun, start, jac="2-point", options={"eps": wrong})


def test_time_is_that_of_all_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where these go some at a time."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr("xopt.solvers.fits._batch._BLOCK", 1)

    def fun(x: A, d: A) -> tuple[A, A]:
        clock[0] += 1.0
        return valleys(x, d)

    got = many(fun, START, data=(WIDE, DEEP), options={"max_time": 10.5})
    assert clock[0] <= 11 + K / 32
    assert got.status.tolist().count(1) > K // 2


def test_lists() -> None:
    got = many(lambda x: ([*((x - 1) ** 2)], [*(2 * (x - 1))]), np.arange(5.0))
    np.testing.assert_allclose(got.x, 1)


def test_what_torch_cannot_differentiate(lib: Lib) -> None:
    if lib.name != "torch":
        pytest.skip("of torch")
    x0 = lib.array(np.ones((3, 2)), "float32")
    with pytest.raises(TypeError, match="fun: returned values that do not depend on x"):
        many(lambda x: (x.detach() ** 2).sum(1), x0, jac=None)
    with pytest.raises(TypeError, match="fun: returned an array of numpy, but x0 has arrays of torch"):
        many(lambda x: (x.detach().numpy() ** 2).sum(1), x0, jac=None)


def test_a_slope_that_never_falls_ends(rng: np.random.Generator) -> None:
    """|x| falls by a half in every step, to the smallest numbers there are; many and one end where that is nothing."""
    x0 = rng.standard_normal((20, 4))
    got = many(lambda x: (np.abs(x).sum(axis=1), np.sign(x)), x0)
    assert got.nfev < 1500
    assert (got.fun < 1e-28).all()
    for method in ("lbfgs", "bfgs", "lbfgs-b"):
        one = xopt.minimize(lambda x: (np.abs(x).sum(), np.sign(x)), x0[0], method=method)  # type: ignore[arg-type]
        assert one.nfev < 1500
        assert one.fun < 1e-28
        assert not one.success


def test_lanes_that_are_done_are_put_aside() -> None:
    rows: list[int] = []

    def fun(x: A, d: A) -> tuple[A, A]:
        rows.append(len(x))
        return valleys(x, d)

    got = many(fun, START, data=(WIDE, DEEP))
    assert got.success.all()
    assert rows[0] == K
    assert rows[-1] < K / 2


def test_what_users_raise_comes_with_what_was_reached() -> None:
    calls: list[int] = []

    def fun(x: A, d: A, error: Any) -> tuple[A, A]:
        calls.append(len(x))
        if len(calls) % 10 == 0:
            raise error
        return valleys(x, d)

    with pytest.raises(RuntimeError, match="mine") as caught:
        many(fun, START, data=(WIDE, DEEP), args=(RuntimeError("mine"),))
    reached = caught.value.intermediate_result  # type: ignore[attr-defined]
    assert (reached.fun < valleys(START, (WIDE, DEEP))[0]).all()
    got = many(fun, START, data=(WIDE, DEEP), args=(KeyboardInterrupt(),))
    assert (got.status == 3).all()
    np.testing.assert_array_equal(got.fun, valleys(got.x, (WIDE, DEEP))[0])


def test_an_interrupt_of_the_first_evaluation() -> None:
    """As of one minimization: x0, of which nothing is known."""

    def fun(x: A) -> tuple[A, A]:
        raise KeyboardInterrupt

    got = many(fun, START)
    assert (got.status == 3).all()
    assert np.isnan(got.fun).all()
    np.testing.assert_array_equal(got.x, START)


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, r"method: 'cg', but with batched=True there are 'lbfgs', 'lbfgs-b', 'bfgs'", {"method": "cg"}),
        (ValueError, r"method: 'newton-cg', but with batched=True", {"method": "newton-cg"}),
        (TypeError, r"bounds: given with method 'bfgs'", {"method": "bfgs", "bounds": (0, 1)}),
        (TypeError, r"batched: True, but not with a rule", {"rule": xopt.Adam()}),
        (TypeError, r"batched: True, but not with owned", {"owned": True}),
        (TypeError, r"batched: 1, but it must be True or False", {"batched": 1}),
        (TypeError, r"options: line_search, but not with batched=True", {"options": {"line_search": "armijo"}}),
        (TypeError, r"options: hess_inv0, but not with", {"method": "bfgs", "options": {"hess_inv0": np.eye(2)}}),
        (TypeError, r"options: nonsense, but for lbfgs there are", {"options": {"nonsense": 1}}),
        (TypeError, r"jac: False, but numpy does not differentiate", {"jac": False}),
        (TypeError, r"jac: 'cs', but it must be True", {"jac": "cs"}),
        (TypeError, r"callback: 3, but it must be a function", {"callback": 3}),
        (TypeError, r"hess: given with method 'lbfgs'", {"hess": lambda x: x}),
        (TypeError, r"eps: 0.1, but with jac=True no differences are taken", {"options": {"eps": 0.1}}),
        (ValueError, r"data: shape \(3,\) at 0, but the first axis numbers 200 fits", {"data": np.ones(3)}),
        (ValueError, r"fun: returned shape \(200, 2\), but it must be a real number for each lane, \(200,\)",
         {"fun": lambda x, d: (x, x)}),
        (ValueError, r"grads: shape \(200,\), but it must be \(200, 2\)", {"fun": lambda x, d: (x[:, 0], x[:, 0])}),
        (TypeError, r"fun: returned a ndarray, but with jac=True", {"fun": lambda x, d: x[:, 0]}),
        (TypeError, r"grads: a NoneType", {"fun": lambda x, d: (x[:, 0], None)}),
        (TypeError, r"grads: complex", {"fun": lambda x, d: (x[:, 0], 1j * x)}),
        (TypeError, r"fun: 3, but it must be a function", {"fun": 3}),
        (ValueError, r"x0: shape \(\), but with batched=True the first axis numbers the fits", {"x0": np.asarray(1.0)}),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, dict) else "",
)  # fmt: skip
def test_errors(error: Any, message: str, options: Any) -> None:
    with pytest.raises(error, match=message):
        xopt.minimize(**{"fun": valleys, "x0": START, "data": (WIDE, DEEP), "batched": True, **options})


def test_data_goes_with_many() -> None:
    with pytest.raises(TypeError, match="data: goes with batched=True"):
        xopt.minimize(valleys, START[0], data=WIDE)
