"""least_squares of many fits at once: as one by one, each stops by itself, on every library."""

from __future__ import annotations

from typing import Any

import numpy as np
import optree
import pytest
from conftest import Lib

import xopt

A = Any
LANES = 7
T = np.linspace(0, 4, 30)
TRUTH = np.stack([np.linspace(1, 4, LANES), np.linspace(0.4, 2.5, LANES), np.linspace(-1, 1, LANES)], axis=-1)
Y = TRUTH[:, :1] * np.exp(-TRUTH[:, 1:2] * T) + TRUTH[:, 2:]
Y = Y + 0.03 * np.random.default_rng(5).standard_normal(Y.shape)
X0 = np.tile([1.0, 1.0, 0.5], (LANES, 1))


def many(x: A, y: A = Y) -> A:
    return x[:, :1] * np.exp(-x[:, 1:2] * T) + x[:, 2:] - y


def many_jac(x: A) -> A:
    e = np.exp(-x[:, 1:2] * T)
    return np.stack([e, -x[:, :1] * T * e, np.ones_like(e)], axis=-1)


def one_by_one(fun: Any, x0: Any, jac: Any = None, each: Any = None, **options: Any) -> list[Any]:
    """Fit the lanes alone: functions of a batch are given a batch of one."""
    found = []
    for i in range(len(x0)):
        alone: dict[str, Any] = {**options, **({} if each is None else each(i))}
        if callable(jac):
            alone["jac"] = lambda x: jac(x[None], i)[0]  # noqa: B023
        elif jac is not None:
            alone["jac"] = jac
        found.append(xopt.least_squares(lambda x: fun(x[None], i)[0], x0[i], **alone))  # noqa: B023
    return found


def agree(got: Any, alone: list[Any], tight: float = 1e-8, steps: bool = True) -> None:
    """Compare a batch with the same fits alone."""
    assert got.x.shape[0] == len(alone)
    for i, want in enumerate(alone):
        np.testing.assert_allclose(got.x[i], want.x, rtol=tight, atol=tight, err_msg=str(i))
        assert got.cost[i] == pytest.approx(want.cost, rel=1e-8 if tight <= 1e-8 else 1e-6, abs=1e-14)
        np.testing.assert_allclose(got.covariance[i], want.covariance, rtol=1e-4, atol=1e-12)
        np.testing.assert_allclose(got.stderr[i], want.stderr, rtol=1e-4)
        np.testing.assert_allclose(got.active_mask[i], want.active_mask)
        np.testing.assert_allclose(got.fun[i], want.fun, atol=10 * tight)
        assert bool(got.success[i]) == want.success
        if steps:
            assert int(got.status[i]) == want.status
            assert int(got.nit[i]) == want.nit


@pytest.mark.parametrize("jac", ["exact", "2-point", "3-point", None])
@pytest.mark.parametrize(
    "options",
    [{}, {"method": "dogleg"}, {"geodesic": True}, {"x_scale": [2.0, 1.0, 0.5]}, {"x_scale": 2.0},
     {"loss": "soft_l1", "f_scale": 0.05}, {"loss": "huber", "f_scale": 0.03}, {"loss": "arctan", "f_scale": 1.0},
     {"loss": "cauchy", "f_scale": 0.1, "method": "dogleg"}, {"bounds": (0, 3)},
     {"max_nfev": 4}],
    ids=str,
)  # fmt: skip
def test_one_by_one(options: Any, jac: Any) -> None:
    """The same steps; with differences the same to their accuracy."""
    given = many_jac if jac == "exact" else jac
    got = xopt.least_squares(many, X0, jac=given, batched=True, **options)
    single = (lambda x, i: many_jac(x)) if jac == "exact" else jac
    alone = one_by_one(lambda x, i: many(x, Y[i]), X0, single, **options)
    agree(got, alone, 1e-8 if jac == "exact" else 1e-6, steps=jac == "exact")
    assert len({int(x) for x in got.nit}) > 1 or "max_nfev" in options
    assert isinstance(got.nfev, int)
    assert "jac" not in got


def test_result() -> None:
    got = xopt.least_squares(many, X0, jac=many_jac, batched=True)
    shapes = {"x": (7, 3), "cost": (7,), "fun": (7, 30), "grad": (7, 3), "optimality": (7,), "active_mask": (7, 3),
              "nit": (7,), "covariance": (7, 3, 3), "stderr": (7, 3), "status": (7,), "success": (7,)}  # fmt: skip
    assert {name: x.shape for name, x in got.items() if name not in ("nfev", "njev", "message")} == shapes
    assert got.success.dtype == bool
    assert got.nfev == got.nit.max() + 1
    np.testing.assert_allclose(got.cost, (got.fun**2).sum(axis=-1) / 2)
    np.testing.assert_allclose(got.grad, np.einsum("kmn,km->kn", many_jac(got.x), got.fun), atol=1e-10)
    assert sum(int(part.split()[0]) for part in got.message.split("; ")) == LANES
    np.testing.assert_array_equal(X0, np.tile([1.0, 1.0, 0.5], (LANES, 1)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("options", [{}, {"method": "dogleg"}, {"bounds": (-2, 9)}, {"loss": "huber"}], ids=str)
def test_lanes_that_are_not_finite(options: Any, bad: float) -> None:
    """They stay where they are, with status -3; the others are right."""
    y = Y.copy()
    y[2, 5] = bad
    y[6] = bad
    good = [0, 1, 3, 4, 5]
    for jac in (many_jac, "2-point") if np.isnan(bad) else (many_jac,):
        got = xopt.least_squares(lambda x, y=y: many(x, y), X0, jac=jac, batched=True, **options)  # type: ignore
        want = xopt.least_squares(lambda x: many(x, Y[good]), X0[good], jac=jac, batched=True, **options)  # type: ignore
        assert got.status[[2, 6]].tolist() == [-3, -3]
        assert not got.success[[2, 6]].any()
        assert not got.nit[[2, 6]].any()
        np.testing.assert_array_equal(got.x[[2, 6]], X0[[2, 6]])
        np.testing.assert_allclose(got.x[good], want.x, rtol=1e-8)
        np.testing.assert_array_equal(got.status[good], want.status)
        assert "2 stopped: residuals or derivatives are infinite or NaN" in got.message


def test_all_lanes_are_not_finite() -> None:
    got = xopt.least_squares(lambda x: many(x) * np.nan, X0, batched=True)
    assert (got.status == -3).all()
    assert not got.success.any()
    np.testing.assert_array_equal(got.x, X0)


def test_trials_that_are_infinite_or_nan() -> None:
    """Of some lanes, which take shorter steps; the others do not mind."""
    x0 = np.asarray([[50.0], [1.9], [30.0], [2.0]])

    def fun(x: Any) -> Any:
        with np.errstate(all="ignore"):
            return np.log(x) * np.asarray([1.0, 2.0]) - np.log(2.0)

    got = xopt.least_squares(fun, x0, batched=True, jac=lambda x: np.asarray([[1.0], [2.0]]) / x[:, None])
    assert got.success.all()
    np.testing.assert_allclose(got.x, 2**0.6, rtol=1e-5)
    assert got.nit[0] > got.nit[1]


def test_lanes_that_begin_at_their_minimum() -> None:
    x0 = X0.copy()
    x0[3] = TRUTH[3]
    y = Y.copy()
    y[3] = TRUTH[3, 0] * np.exp(-TRUTH[3, 1] * T) + TRUTH[3, 2]
    got = xopt.least_squares(lambda x: many(x, y), x0, jac=many_jac, batched=True)
    assert (got.nit[3], got.status[3], got.cost[3]) == (0, 1, 0)
    assert (got.nit[[0, 1, 2, 4, 5, 6]] > 0).all()
    assert got.x[3].tolist() == x0[3].tolist()


@pytest.mark.parametrize("method", ["lm", "dogleg"])
def test_bounds_of_one_fit_and_of_all(method: Any) -> None:
    """Every evaluation is within; rows may have their own."""
    low, high = np.asarray([0.0, 0.5, -0.5]), np.asarray([3.0, 2.0, 0.5])
    lows = np.tile(low, (LANES, 1))
    lows[4] = [3.4, -np.inf, -np.inf]
    highs = np.tile(high, (LANES, 1))
    highs[4] = [np.inf, 1.0, np.inf]
    from scipy.optimize import Bounds

    ends: Any = {"method": method}
    forms = [
        ((low, high), low, high),
        (([0, 0.5, -0.5], [3, 2, 0.5]), low, high),
        ([(0, 3), (0.5, 2), (-0.5, 0.5)], low, high),
        (Bounds(low, high), low, high),
        ((lows, highs), lows, highs),
        ((-0.6, None), np.full(3, -0.6), np.full(3, np.inf)),
        ((None, high), np.full(3, -np.inf), high),
    ]
    for bounds, lower, upper in forms:

        def fun(x: Any, lower: Any = lower, upper: Any = upper) -> Any:
            assert (lower <= x).all()
            assert (x <= upper).all()
            return many(x)

        a, b = (np.broadcast_to(side, (LANES, 3)) for side in (lower, upper))
        box = lambda i, a=a, b=b: {"bounds": (a[i], b[i])}
        for jac in (many_jac, "3-point"):
            got = xopt.least_squares(fun, X0, jac=jac, bounds=bounds, batched=True, **ends)  # type: ignore
            alone = one_by_one(lambda x, i: many(x, Y[i]), X0, lambda x, i: many_jac(x), box, **ends)
            agree(got, alone, 1e-8 if jac is many_jac else 1e-5, steps=jac is many_jac)
    assert got.active_mask.any()


def test_equal_bounds_of_lanes() -> None:
    low, high = np.full((LANES, 3), -np.inf), np.full((LANES, 3), np.inf)
    low[2, 1] = high[2, 1] = 1.5
    low[5] = high[5] = TRUTH[5]
    got = xopt.least_squares(many, X0, jac=many_jac, bounds=(low, high), batched=True)
    alone = one_by_one(
        lambda x, i: many(x, Y[i]), X0, lambda x, i: many_jac(x), lambda i: {"bounds": (low[i], high[i])}
    )
    agree(got, alone)
    assert got.x[2, 1] == 1.5
    assert got.x[5].tolist() == TRUTH[5].tolist()


@pytest.mark.parametrize("jac", [True, False], ids=["jac", "differences"])
@pytest.mark.parametrize("options", [{}, {"method": "dogleg"}, {"geodesic": True}, {"bounds": (-2, 3)}], ids=str)
def test_trees(options: Any, jac: bool) -> None:
    x0 = {"b": X0[:, 2], "a": (X0[:, :1], X0[:, 1].reshape(LANES, 1, 1))}
    join = lambda x: np.concatenate([x["a"][0], x["a"][1][:, 0], x["b"][:, None]], axis=-1)

    def columns(x: Any) -> Any:
        j = many_jac(join(x)).reshape(LANES, 5, 6, 3)
        return {"a": (j[..., :1], j[..., 1, None, None]), "b": j[..., 2]}

    given: Any = {"jac": columns} if jac else {}
    got = xopt.least_squares(lambda x: many(join(x)).reshape(LANES, 5, 6), x0, batched=True, **given, **options)
    want = xopt.least_squares(many, X0, batched=True, **({"jac": many_jac} if jac else {}), **options)  # type: ignore
    np.testing.assert_allclose(join(got.x), want.x, rtol=1e-6)
    np.testing.assert_allclose(join(got.stderr), want.stderr, rtol=1e-4)
    np.testing.assert_allclose(got.covariance, want.covariance, rtol=1e-3, atol=1e-9)
    np.testing.assert_array_equal(join(got.active_mask), want.active_mask)
    for name in ("x", "grad", "stderr", "active_mask"):
        assert optree.tree_structure(got[name]) == optree.tree_structure(x0)
        assert [x.shape for x in optree.tree_leaves(got[name])] == [(7, 1), (7, 1, 1), (7,)]


def test_bounds_and_scales_of_trees() -> None:
    join = lambda x: np.concatenate([x["a"], x["b"]], axis=-1)
    x0 = {"a": X0[:, :2].copy(), "b": X0[:, 2:].copy()}
    want = xopt.least_squares(many, X0, batched=True, bounds=([0, 0.5, -0.5], [3, 2, 0.5]))
    one = ({"a": np.asarray([0, 0.5]), "b": -0.5}, {"a": np.asarray([3, 2]), "b": np.asarray([0.5])})
    all_ = ({"a": np.tile([0, 0.5], (7, 1)), "b": -0.5}, {"a": np.tile([3, 2], (7, 1)), "b": np.full((7, 1), 0.5)})
    for bounds in (one, all_):
        got = xopt.least_squares(lambda x: many(join(x)), x0, batched=True, bounds=bounds)
        np.testing.assert_allclose(join(got.x), want.x, rtol=1e-6)
    got = xopt.least_squares(lambda x: many(join(x)), x0, batched=True, x_scale={"a": [1.0, 2.0], "b": 0.5})
    other = xopt.least_squares(many, X0, batched=True, x_scale=[1.0, 2.0, 0.5])
    np.testing.assert_allclose(join(got.x), other.x, rtol=1e-8)


@pytest.mark.parametrize("lanes", [1, 2, 64])
def test_sizes_of_batches(lanes: int) -> None:
    y, x0 = np.resize(Y, (lanes, 30)), np.resize(X0, (lanes, 3))
    got = xopt.least_squares(lambda x: many(x, y), x0, jac=many_jac, batched=True)
    agree(got, one_by_one(lambda x, i: many(x, y[i]), x0, lambda x, i: many_jac(x)))


def test_as_many_lanes_as_parameters() -> None:
    """Bounds and scales of one fit and of all have then one length."""
    fun = lambda x: many(x, Y[:3])
    got = xopt.least_squares(fun, X0[:3], jac=many_jac, batched=True, bounds=(0, [3, 1, 0.2]), x_scale=[1.0, 2.0, 3.0])
    alone = one_by_one(
        lambda x, i: many(x, Y[i]), X0[:3], lambda x, i: many_jac(x), bounds=(0, [3, 1, 0.2]), x_scale=[1.0, 2.0, 3.0]
    )
    agree(got, alone)


@pytest.mark.parametrize("method", ["lm", "dogleg"])
def test_fewer_residuals_than_parameters(method: Any, rng: np.random.Generator) -> None:
    matrix, b = rng.standard_normal((5, 3, 7)), rng.standard_normal((5, 3))
    for jac in (lambda x: matrix, "2-point"):
        got = xopt.least_squares(
            lambda x: np.einsum("kmn,kn->km", matrix, x) - b, np.ones((5, 7)), jac=jac, batched=True, method=method
        )  # type: ignore[arg-type]
        assert got.success.all()
        assert (got.cost < 1e-12).all()
        assert np.isfinite(got.x).all()
        assert np.isinf(got.covariance).all()
        assert np.isinf(got.stderr).all()


def test_a_lane_without_full_rank() -> None:
    """Its errors are infinite, those of the others are not."""
    weight = np.ones((LANES, 1))
    weight[3] = 0
    fun = lambda x: x[:, :1] * np.exp(-x[:, 1:2] * T) + weight * x[:, 2:] - Y
    got = xopt.least_squares(fun, X0, batched=True)
    assert np.isfinite(got.x).all()
    assert np.isinf(np.diagonal(got.covariance[3])).any()
    others = [0, 1, 2, 4, 5, 6]
    assert np.isfinite(got.covariance[others]).all()
    assert got.success[others].all()


def test_linear(rng: np.random.Generator) -> None:
    matrix, b = rng.standard_normal((4, 50, 20)), rng.standard_normal((4, 50))
    got = xopt.least_squares(
        lambda x: (matrix @ x[..., None])[..., 0] - b, np.zeros((4, 20)), jac=lambda x: matrix, batched=True
    )
    assert got.success.all()
    for i in range(4):
        np.testing.assert_allclose(got.x[i], np.linalg.lstsq(matrix[i], b[i])[0], rtol=1e-6, atol=1e-8)
        s2 = 2 * got.cost[i] / 30
        np.testing.assert_allclose(got.covariance[i], s2 * np.linalg.inv(matrix[i].T @ matrix[i]), atol=1e-9)


def test_complex_residuals() -> None:
    fun = lambda x: (
        (x[:, :1] + 1j * x[:, 1:2]) * np.exp((x[:, 2:] * 1j - 0.3) * T)
        - (2 - 1j) * np.exp((np.linspace(0.5, 2, LANES)[:, None] * 1j - 0.3) * T)
    )

    def jac(x: Any) -> Any:
        e = np.exp((x[:, 2:] * 1j - 0.3) * T)
        return np.stack([e, 1j * e, 1j * T * (x[:, :1] + 1j * x[:, 1:2]) * e], axis=-1)

    x0 = np.stack([np.ones(LANES), -np.ones(LANES), np.linspace(0.5, 2, LANES) + 0.1], axis=-1)
    for given in (jac, None, "3-point"):
        got = xopt.least_squares(fun, x0, jac=given, batched=True)  # type: ignore[arg-type]
        assert got.success.all()
        np.testing.assert_allclose(got.x[:, 0], 2, atol=1e-6)
        np.testing.assert_allclose(got.x[:, 2], np.linspace(0.5, 2, LANES), atol=1e-6)
        assert got.grad.dtype == np.float64


def test_callback() -> None:
    """It sees all lanes; costs and steps are arrays."""
    seen: list[Any] = []

    def note(intermediate_result: Any) -> Any:
        seen.append(intermediate_result)
        return len(seen) == 3

    got = xopt.least_squares(many, X0, jac=many_jac, batched=True, callback=note)
    assert all(r.x.shape == (7, 3) and r.cost.shape == r.nit.shape == (7,) for r in seen)
    assert set(got.status.tolist()) <= {-2, 1, 2, 3, 4}
    assert (got.status == -2).any()
    np.testing.assert_array_equal(got.x, seen[-1].x)
    assert "by the callback" in got.message


def test_interrupted() -> None:
    """What has converged keeps its status."""
    x0, calls = X0.copy(), list[int]()
    x0[1] = xopt.least_squares(lambda x: many(x[None], Y[1])[0], X0[1]).x

    def fun(x: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return many(x)

    got = xopt.least_squares(fun, x0, jac=many_jac, batched=True, gtol=1e-4)
    assert got.status[1] == 1
    assert (got.status[[0, 2, 3, 4, 5, 6]] == -1).any()
    assert (got.cost <= (many(x0) ** 2).sum(axis=-1) / 2 + 1e-12).all()


def test_max_nfev() -> None:
    got = xopt.least_squares(many, X0, jac=many_jac, batched=True, max_nfev=3)
    assert got.nfev == 3
    assert (got.status == 0).any()
    assert not got.success[got.status == 0].any()
    assert "max_nfev" in got.message


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", ["None", "jac", "bounds", "2-point", "dogleg", "loss", "geodesic"])
def test_every_library(lib: Lib, options: str, dtype: str) -> None:
    x0 = lib.array(X0.astype(dtype))
    if lib.name == "dask":
        with pytest.raises(TypeError, match=r"dask, which computes nothing until the end"):
            xopt.least_squares(print, x0, batched=True)  # type: ignore[arg-type]
        return
    t, y = lib.array(T.astype(dtype)), lib.array(Y.astype(dtype))
    xp = lib.functions(t)

    def fun(x: Any) -> Any:
        return x[:, :1] * xp.exp(-x[:, 1:2] * t) + x[:, 2:] - y

    def jac(x: Any) -> Any:
        e = xp.exp(-x[:, 1:2] * t)
        return xp.stack([e, -x[:, :1] * t * e, xp.ones_like(e)], axis=-1)

    side = np.asarray([3.0, 2.0, 0.5], dtype)
    given: dict[str, Any] = {
        "None": {},
        "jac": {"jac": jac},
        "bounds": {"jac": jac, "bounds": (None, lib.array(side))},
        "2-point": {"jac": "2-point"},
        "dogleg": {"jac": jac, "method": "dogleg"},
        "loss": {"jac": jac, "loss": "huber", "f_scale": 0.05},
        "geodesic": {"jac": jac, "geodesic": True},
    }[options]
    got = xopt.least_squares(fun, x0, batched=True, **given)
    more = {name: x for name, x in given.items() if name in ("method", "loss", "geodesic", "f_scale")}
    want = xopt.least_squares(
        many, X0, jac=many_jac, batched=True, bounds=(None, side) if options == "bounds" else None, **more
    )
    rough = 2e-2 if dtype == "float32" else 1e-5
    assert lib.numpy(got.success).all()
    np.testing.assert_allclose(lib.numpy(got.x), want.x, rtol=rough, atol=rough / 2)
    np.testing.assert_allclose(lib.numpy(got.stderr), want.stderr, rtol=5 * rough)
    np.testing.assert_array_equal(lib.numpy(got.active_mask), want.active_mask)
    for name in ("x", "grad", "stderr", "active_mask", "fun", "cost", "optimality", "covariance"):
        assert (got[name].dtype, type(got[name])) == (x0.dtype, type(x0)), name
        assert not getattr(got[name], "requires_grad", False)
    for name in ("status", "nit", "success"):
        assert type(got[name]) is type(x0), name
    np.testing.assert_array_equal(lib.numpy(x0), X0.astype(dtype))


def test_lanes_that_are_not_finite_on_every_library(lib: Lib) -> None:
    if lib.name == "dask":
        pytest.skip("least_squares refuses it")
    spoilt = Y.copy()
    spoilt[2, 5] = np.nan
    t, y = lib.array(T), lib.array(spoilt)
    xp = lib.functions(t)
    got = xopt.least_squares(
        lambda x: x[:, :1] * xp.exp(-x[:, 1:2] * t) + x[:, 2:] - y, lib.array(X0), batched=True, bounds=(-2, 3.5)
    )
    want = xopt.least_squares(many, X0, jac=many_jac, batched=True, bounds=(-2, 3.5))
    good = [0, 1, 3, 4, 5, 6]
    assert lib.numpy(got.status).tolist()[2] == -3
    np.testing.assert_allclose(lib.numpy(got.x)[good], want.x[good], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(lib.numpy(got.x)[2], X0[2])
