"""least_squares and curve_fit: what failed when these tests were written."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from support import mgh

import xopt

T = np.linspace(0, 4, 30)
DECAY = 2.5 * np.exp(-1.3 * T) + 0.5 + 0.05 * np.random.default_rng(3).standard_normal(30)


def fun(x: Any) -> Any:
    return np.append(x - 2, 0.1 * x[0])


def decay(x: Any) -> Any:
    return x[0] * np.exp(-x[1] * T) + x[2] - DECAY


def exact(residuals: Any) -> Any:
    h = 1e-30
    return lambda x: np.stack([np.asarray(residuals(x + 1j * h * e)).imag / h for e in np.eye(x.size)], axis=-1)


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
def test_differences_at_a_parameter_that_is_nearly_0(jac: Any) -> None:
    """A part of 1e-16 is no step: the column came out as 0, and the fit as converged, at twice the least value."""
    got = xopt.least_squares(mgh.linear, np.ones(10), jac=jac)
    assert 2 * got.cost == pytest.approx(10)
    got = xopt.least_squares(decay, [1.0, 1.0, 1e-14], jac=jac, max_nfev=1)
    np.testing.assert_allclose(got.jac[:, 2], 1, rtol=1e-4)


def test_differences_in_float32_near_0() -> None:
    """An offset that is small beside the data: its column had 14% of noise."""
    f = lambda x: (x[0] * np.exp(-x[1] * T) + x[2] - DECAY + 0.5).astype("float32")
    got = xopt.least_squares(f, np.asarray([2.5, 1.3, 0.003], "float32"), max_nfev=1)
    np.testing.assert_allclose(got.jac[:, 2], 1, rtol=0.01)


def test_differences_of_float32_in_a_tree_of_float64() -> None:
    """The step of float64 did not move what is float32."""
    join = lambda x: np.append(x["a"], x["b"])
    got = xopt.least_squares(lambda x: decay(join(x)), {"a": np.ones(2, "float32"), "b": np.ones(1)})
    want = xopt.least_squares(decay, np.ones(3))
    np.testing.assert_allclose(join(got.x), want.x, rtol=1e-3)


def test_a_jacobian_that_is_turned() -> None:
    """Only its size was looked at: (2, 3) for (3, 2), or flat, gave wrong columns, and success."""
    for j in (np.ones((2, 3)), np.ones(6), np.ones((1, 3, 2))):
        with pytest.raises(ValueError, match=r"jac: shape"):
            xopt.least_squares(fun, np.ones(2), jac=lambda x, j=j: j)
    with pytest.raises(ValueError, match=r"jac: shape \(3, 2, 4\)"):
        xopt.least_squares(
            lambda x: np.concatenate([x, x], axis=-1), np.ones((3, 2)), jac=lambda x: np.ones((3, 2, 4)), batched=True
        )


def test_a_jacobian_that_is_nan() -> None:
    """It came out as a gradient of 0: converged."""
    with pytest.raises(ValueError, match="jac"):
        xopt.least_squares(fun, np.ones(2), jac=lambda x: np.full((3, 2), np.nan))
    got = xopt.least_squares(lambda x: x - 2, np.ones((2, 2)), jac=lambda x: np.full((2, 2, 2), np.nan), batched=True)
    assert not got.success.any()


def test_a_parameter_that_counts_for_nothing() -> None:
    """It stopped by ftol with a cosine of 0.03, where MINPACK goes on to 1e-7."""
    f = lambda x: decay([x[0], x[2], 0.5]) + 0 * x[1]
    for options in ({}, {"bounds": (-9, 9)}, {"jac": "3-point"}):
        given: Any = {"jac": exact(f), **options}
        got = xopt.least_squares(f, [1.0, 0.5, 1.0], **given)
        assert got.optimality < 1e-4
        assert got.cost == pytest.approx(0.0476996014534574, rel=1e-6)


def test_dogleg_with_columns_that_depend_on_each_other() -> None:
    """It went 4.5e9 along what does not change the residuals."""
    f = lambda x: (x[0] + x[1]) * np.exp(-x[2] * T) - DECAY
    got = xopt.least_squares(f, [1.0, 0.5, 1.0], jac=exact(f), method="dogleg")
    assert np.abs(got.x).max() < 1000


def test_infinite_covariances() -> None:
    """Infinity times 0 was NaN, and times -1 negative: SciPy's is infinite throughout."""
    for n in (2, 3):
        got = xopt.least_squares(lambda x: 2 * x - 1, np.zeros(n), jac=lambda x: 2 * np.eye(x.size))
        assert np.isposinf(got.covariance).all()
    _, pcov = xopt.curve_fit(lambda t, a, b: a * t + b, [1.0, 2.0], [2.0, 5.0])
    assert np.isposinf(pcov).all()


def test_errors_beside_a_parameter_that_is_held() -> None:
    """Differences have no room between equal bounds: a column of 0, and then all errors were infinite."""
    bounds = ([0, 1.2, 0], [9, 1.2, 9])
    want = xopt.least_squares(decay, np.ones(3), jac=exact(decay), bounds=bounds)
    got = xopt.least_squares(decay, np.ones(3), jac="3-point", bounds=bounds)
    assert np.isfinite(want.stderr).all()
    assert np.isfinite(got.stderr[[0, 2]]).all()


def test_lanes_that_are_infinite_warn_of_nothing() -> None:
    """Their differences are inf - inf, which NumPy warned of."""
    y = np.stack([DECAY, DECAY])
    y[1, 3] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for jac in ("2-point", "3-point"):
            got = xopt.least_squares(
                lambda x: x[:, :1] * np.exp(-x[:, 1:2] * T) + x[:, 2:] - y, np.ones((2, 3)), batched=True, jac=jac
            )  # type: ignore[call-overload]
            assert got.status[1] == -3


def test_residuals_whose_squares_are_0() -> None:
    """It was converged at the start."""
    for dtype, size in (("float32", 1e-25), ("float64", 1e-170)):
        small = np.asarray(size, dtype)
        with pytest.raises(ValueError, match="squares are 0"):
            xopt.least_squares(lambda x: (x - 2) * small, np.ones(2, dtype))  # noqa: B023


def test_geodesic_keeps_to_max_nfev() -> None:
    valley = lambda x: np.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])
    for most in (1, 2, 3, 4):
        assert xopt.least_squares(valley, [-1.2, 1.0], geodesic=True, max_nfev=most).nfev <= most


def test_an_exception_at_the_start_has_a_result() -> None:
    """The residuals at x0 are known when the Jacobian fails; so are they where it is interrupted."""

    def fails(error: BaseException) -> Any:
        raise error

    error = ValueError("of the user")
    with pytest.raises(ValueError, match="of the user"):
        xopt.least_squares(fun, np.ones(2), jac=lambda x: fails(error))
    assert error.intermediate_result.nfev == 1  # type: ignore[attr-defined]
    assert xopt.least_squares(fun, np.ones(2), jac=lambda x: fails(KeyboardInterrupt())).status == -1


def test_bounds_that_are_nan() -> None:
    """They bounded nothing; `minimize` refuses them."""
    for bounds in ((np.nan, 1), ([0, np.nan], 3), (0, [np.nan, 3])):
        with pytest.raises(ValueError, match="nan"):
            xopt.least_squares(fun, np.ones(2), bounds=bounds)


def test_what_is_refused_without_its_name() -> None:
    t, y = np.arange(1.0, 6), np.asarray([1.0, 3, 2, 5, 4])
    line = lambda t, a, b: a * t + b
    for match, call in [
        ("method", lambda: xopt.least_squares(fun, np.ones(2), method=["lm"])),  # type: ignore
        ("fun", lambda: xopt.least_squares(lambda x: [[1, 2], [3]], np.ones(2))),
        ("x_scale", lambda: xopt.least_squares(fun, np.ones(2), x_scale=True)),
        ("x_scale", lambda: xopt.least_squares(fun, np.ones(2), x_scale=np.asarray([1j, 1]) + 1)),
        ("sigma", lambda: xopt.curve_fit(line, t, y, sigma=-np.eye(5))),
        ("sigma", lambda: xopt.curve_fit(line, t, y, sigma=1j * y)),
        ("absolute_sigma", lambda: xopt.curve_fit(line, t, y, absolute_sigma="yes")),  # type: ignore[arg-type]
        ("p0", lambda: xopt.curve_fit(line, t, y, p0="ab")),
        ("p0", lambda: xopt.curve_fit(line, t, y, p0=[1j, 2])),
        ("jac", lambda: xopt.curve_fit(line, t, y, jac=lambda t, *p: np.ones((5, 1)))),
        ("jac", lambda: xopt.curve_fit(line, t, y, jac=lambda t, *p: np.ones((5, 3)))),
        ("curve_fit.*unexpected|unexpected.*curve_fit|args", lambda: xopt.curve_fit(line, t, y, args=(3,))),
    ]:
        with pytest.raises((TypeError, ValueError), match=match):
            call()


def test_errors_are_those_of_absolute_sigma() -> None:
    line = lambda t, a, b: a * t + b
    got = [
        xopt.curve_fit(line, T, DECAY, sigma=0.1, absolute_sigma=flag, full_output=True)[2] for flag in (False, True)
    ]
    scale = 2 * got[0].cost / (len(T) - 2)
    np.testing.assert_allclose(got[0].covariance, scale * got[1].covariance, rtol=1e-10)
    np.testing.assert_allclose(got[0].stderr, np.sqrt(scale) * got[1].stderr, rtol=1e-10)


def test_data_that_are_nan_are_named() -> None:
    line = lambda t, a, b: a * t + b
    with pytest.raises(ValueError, match="xdata: infinite or NaN"):
        xopt.curve_fit(line, np.where(T > 3, np.nan, T), DECAY)


def test_a_jacobian_of_curve_fit_that_is_turned() -> None:
    line = lambda t, a, b: a * t + b
    with pytest.raises(ValueError, match=r"jac: returned shape \(2, 30\), but it must be \(30, 2\)"):
        xopt.curve_fit(line, T, DECAY, jac=lambda t, a, b: np.stack([t, np.ones_like(t)]))
    popt, _ = xopt.curve_fit(line, T, DECAY, jac=lambda t, a, b: [[x, 1.0] for x in t])
    np.testing.assert_allclose(popt, xopt.curve_fit(line, T, DECAY)[0], rtol=1e-6)


def test_lanes_that_are_infinite_have_no_optimality() -> None:
    y = np.stack([DECAY, np.full(30, np.nan)])
    got = xopt.least_squares(lambda x: x - y[:, :3], np.ones((2, 3)), batched=True)  # type: ignore[call-overload]
    assert np.isnan(got.optimality).tolist() == [False, True]
    assert np.isposinf(got.covariance[1]).all()


def test_fits_that_are_done_are_put_aside() -> None:
    """With data, the function is called with the rows of those that run, all of a block; without, with all."""
    rng = np.random.default_rng(0)
    x0 = np.stack([rng.uniform(0.5, 4, 500), rng.uniform(0.2, 3, 500)], axis=-1)
    y = x0[:, :1] * np.exp(-x0[:, 1:] * T) + 0.02 * rng.standard_normal((500, 30))
    seen: list[int] = []

    def fun(x: Any, rows: Any = y) -> Any:
        seen.append(len(x))
        return x[:, :1] * np.exp(-x[:, 1:] * T) - rows

    whole = xopt.least_squares(fun, np.ones((500, 2)), batched=True)
    assert {*seen} == {500}
    seen.clear()
    got = xopt.least_squares(fun, np.ones((500, 2)), batched=True, data=y)
    assert min(seen[3:]) < 250
    for name in ("x", "cost", "fun", "grad", "nit", "status", "covariance"):
        np.testing.assert_allclose(got[name], whole[name], rtol=1e-6, atol=1e-6, err_msg=name)


def test_data_that_do_not_fit() -> None:
    with pytest.raises(TypeError, match="data: goes with batched=True"):
        xopt.least_squares(fun, np.ones(2), data=np.ones(2))
    with pytest.raises(ValueError, match=r"data: shape \(4, 3\) at 0, but the first axis numbers 3 fits"):
        xopt.least_squares(lambda x, y: x - y, np.ones((3, 3)), data=np.ones((4, 3)), batched=True)
    with pytest.raises(TypeError, match=r"data: a list at 0|data: a float at 0"):
        xopt.least_squares(lambda x, y: x - y, np.ones((3, 3)), data=[1.0, 2.0, 3.0], batched=True)
