"""curve_fit: against SciPy, alone and many at once, on every library, and what does not fit."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import pytest
from conftest import Lib
from support.nist import SETS, digits

import xopt

A = Any
T = np.linspace(0, 4, 40)
NOISE = 0.05 * np.random.default_rng(11).standard_normal((6, 40))
TRUTH = np.stack([np.linspace(2, 3, 6), np.linspace(0.8, 1.6, 6), np.linspace(-0.2, 0.6, 6)], axis=-1)
MANY = TRUTH[:, :1] * np.exp(-TRUTH[:, 1:2] * T) + TRUTH[:, 2:] + NOISE
Y = MANY[3]
SIGMA = np.linspace(0.02, 0.2, 40)
CORRELATED = np.diag(SIGMA**2) + 0.0004 * np.exp(-np.abs(T[:, None] - T))


def model(t: A, a: A, b: A, c: A) -> A:
    return a * np.exp(-b * t) + c


def slope(t: A, a: A, b: A, c: A) -> A:
    e = np.exp(-b * t)
    return np.stack([e, -a * t * e, np.ones_like(e)], axis=-1)


def scipys(f: Any, t: Any, y: Any, *args: Any, **options: Any) -> Any:
    from scipy.optimize import curve_fit

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return curve_fit(f, t, y, *args, **options)


def agree(got: Any, want: Any, tight: float = 1e-6) -> None:
    assert got[0].shape == want[0].shape
    assert got[1].shape == want[1].shape
    np.testing.assert_allclose(got[0], want[0], rtol=tight, atol=tight)
    scale = np.sqrt(np.diag(want[1]))
    np.testing.assert_allclose(got[1] / np.outer(scale, scale), want[1] / np.outer(scale, scale), atol=1e3 * tight)


@pytest.mark.parametrize("jac", [slope, None, "2-point", "3-point"], ids=["exact", "None", "2-point", "3-point"])
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("sigma", ["none", "each", "covariance", "correlated"])
@pytest.mark.parametrize("p0", [None, [1, 2, 0], (2.0, 1.0, 0.5), np.ones(3)], ids=["None", "list", "tuple", "array"])
def test_scipy(p0: Any, sigma: str, absolute: bool, jac: Any) -> None:
    given: Any = {"none": None, "each": SIGMA, "covariance": np.diag(SIGMA**2), "correlated": CORRELATED}[sigma]
    got = xopt.curve_fit(model, T, Y, p0, given, absolute, jac=jac)
    agree(got, scipys(model, T, Y, p0, given, absolute, jac=slope))


def test_a_number_and_lists_as_sigma() -> None:
    want = scipys(model, T, Y, sigma=np.full(40, 0.3), absolute_sigma=True)
    for sigma in (0.3, np.float64(0.3), [0.3] * 40, np.full(1, 0.3), np.asarray(0.3)):
        agree(xopt.curve_fit(model, T, Y, sigma=sigma, absolute_sigma=True), want)


@pytest.mark.parametrize("method", ["lm", "dogleg"])
@pytest.mark.parametrize(
    "bounds",
    [(0, 9), (0, [9, 1, 9]), ([0, 0, 0.5], [9, 9, 9]), ([2, 0.5, -1], [2.2, 2, 1]), (-np.inf, np.inf)],
    ids=str,
)
def test_bounds(bounds: Any, method: Any) -> None:
    p0 = [2.1, 0.9, 0.6]
    got = xopt.curve_fit(model, T, Y, p0, jac=slope, bounds=bounds, method=method, ftol=1e-12)
    want = scipys(model, T, Y, p0, jac=slope, bounds=bounds, ftol=1e-14, xtol=1e-14, gtol=1e-14)
    agree(got, want, 1e-5)


@pytest.mark.parametrize("loss", ["soft_l1", "huber", "cauchy", "arctan"])
def test_losses(loss: Any) -> None:
    y = Y + np.where(np.arange(40) == 7, 2.0, 0.0)
    got, _ = xopt.curve_fit(model, T, y, sigma=SIGMA, jac=slope, loss=loss, f_scale=2.0, ftol=1e-12)
    want, _ = scipys(model, T, y, sigma=SIGMA, jac=slope, loss=loss, f_scale=2.0, method="trf", ftol=1e-14)
    np.testing.assert_allclose(got, want, rtol=1e-4)


@pytest.mark.parametrize("name", ["Misra1a", "Chwirut2", "Thurber", "Nelson", "Gauss2"])
def test_certified(name: str) -> None:
    """Also where x has more than one column."""
    case = SETS[name]
    f = lambda x, *b: case.model(np, np.stack(b, axis=-1), x)
    got, covariance, result = xopt.curve_fit(
        f, case.x, case.y, case.starts[1], jac="3-point", full_output=True, ftol=1e-14, xtol=1e-14
    )
    assert digits(got, case.certified) > 6
    assert digits(np.sqrt(np.diag(covariance)), case.errors) > 5
    assert 2 * result.cost == pytest.approx(case.rss, rel=1e-6)


def test_full_output() -> None:
    popt, pcov, result = xopt.curve_fit(model, T, Y, sigma=SIGMA, full_output=True)
    assert isinstance(result, xopt.OptimizeResult)
    assert result.success
    np.testing.assert_array_equal(result.x, popt)
    np.testing.assert_array_equal(result.covariance, pcov)
    np.testing.assert_allclose(result.fun, (model(T, *popt) - Y) / SIGMA, atol=1e-12)
    popt, pcov, result = xopt.curve_fit(model, T, Y, sigma=SIGMA, absolute_sigma=True, full_output=True)
    np.testing.assert_array_equal(pcov, result.covariance)
    np.testing.assert_allclose(np.sqrt(np.diag(pcov)), result.stderr, rtol=1e-12)


def test_not_converged() -> None:
    with pytest.raises(RuntimeError, match=r"max_nfev") as caught:
        xopt.curve_fit(model, T, Y, max_nfev=2)
    found = caught.value.intermediate_result  # type: ignore[attr-defined]
    assert (found.status, found.nfev) == (0, 2)
    popt, pcov, result = xopt.curve_fit(model, T, MANY, max_nfev=2, batched=True, full_output=True)
    assert not result.success.any()
    assert (popt.shape, pcov.shape) == ((6, 3), (6, 3, 3))


def test_the_data_do_not_determine_the_parameters() -> None:
    """As in SciPy, all of the covariance is infinite: m = n, and two parameters that do one thing."""
    popt, pcov = xopt.curve_fit(
        lambda t, a, b: (a + b) * t, T, 3 * T + NOISE[0], jac=lambda t, a, b: np.stack([t, t], -1)
    )
    assert popt.sum() == pytest.approx(3, abs=0.01)
    assert np.isposinf(pcov).all()
    popt, pcov = xopt.curve_fit(lambda t, a: a * t, [2.0], [6.0])
    assert popt[0] == pytest.approx(3)
    assert np.isposinf(pcov).all()
    _, pcov = xopt.curve_fit(lambda t, a: a * t, [2.0], [6.0], sigma=[0.5], absolute_sigma=True)
    assert pcov[0, 0] == pytest.approx(0.0625)


@pytest.mark.parametrize("jac", [True, False], ids=["exact", "differences"])
@pytest.mark.parametrize("sigma", [None, SIGMA], ids=["none", "each"])
def test_complex_data(sigma: Any, jac: bool) -> None:
    """As SciPy does for the real and the imaginary parts in a row."""
    f = lambda t, a, b, w: a * np.exp((1j * w - b) * t)
    y = f(T, 2.0, 0.3, 1.7) + NOISE[0] + 1j * NOISE[1]

    def derivative(t: Any, a: Any, b: Any, w: Any) -> Any:
        e = np.exp((1j * w - b) * t)
        return np.stack([e, -a * t * e, 1j * a * t * e], axis=-1)

    split = lambda z: np.concatenate([z.real, z.imag])
    twice = None if sigma is None else np.tile(sigma, 2)
    given: Any = {"jac": derivative} if jac else {}
    for absolute in (False, True):
        got = xopt.curve_fit(f, T, y, [1.5, 0.2, 1.6], sigma, absolute, **given)
        agree(got, scipys(lambda t, *p: split(f(t, *p)), T, split(y), [1.5, 0.2, 1.6], twice, absolute))
        assert got[0].dtype == got[1].dtype == np.float64


def test_what_f_may_be() -> None:
    class Model:
        def __call__(self, t: Any, a: Any, b: Any, c: Any) -> Any:
            return model(t, a, b, c)

        def method(self, t: Any, a: Any, b: Any, c: Any) -> Any:
            return model(t, a, b, c)

    want = scipys(model, T, Y)
    for f in (Model(), Model().method, lambda t, a, b, c=3.0: model(t, a, b, c)):
        agree(xopt.curve_fit(f, T, Y), want)
    agree(xopt.curve_fit(lambda t, *p: model(t, *p), T, Y, np.ones(3)), want)
    two = functools.partial(model, c=0.3)
    agree(xopt.curve_fit(two, T, Y), scipys(two, T, Y))
    pair = lambda x, a, b, c: model(x[0], a, b, c) + x[1]
    agree(xopt.curve_fit(pair, (T, 2.0), Y + 2), want)
    agree(xopt.curve_fit(model, T.tolist(), Y.tolist()), want)


def test_data_of_any_shape_and_integers() -> None:
    f = lambda t, a, b, c: model(t, a, b, c).reshape(8, 5)
    agree(xopt.curve_fit(f, T, Y.reshape(8, 5)), scipys(model, T, Y))
    agree(xopt.curve_fit(f, T, Y.reshape(8, 5), sigma=SIGMA.reshape(8, 5)), scipys(model, T, Y, sigma=SIGMA))
    x, y = np.arange(1, 7), np.asarray([2, 5, 6, 8, 11, 12])
    line = lambda x, a, b: a * x + b
    agree(xopt.curve_fit(line, x, y), scipys(line, x, y))
    agree(xopt.curve_fit(line, x, y.tolist(), [1, 1]), scipys(line, x, y))


def test_check_finite() -> None:
    """Data that are not finite are refused; the residuals are, too, without the check."""
    bad = Y.copy()
    bad[3] = np.nan
    with pytest.raises(ValueError, match=r"ydata: infinite or NaN"):
        xopt.curve_fit(model, T, bad)
    with pytest.raises(ValueError, match=r"sigma: infinite or NaN"):
        xopt.curve_fit(model, T, Y, sigma=np.where(np.arange(40) == 3, np.inf, 1.0))
    with pytest.raises(ValueError, match=r"infinite or NaN at x0"):
        xopt.curve_fit(model, T, bad, check_finite=False)
    many = MANY.copy()
    many[2, 7] = np.inf
    with pytest.raises(ValueError, match=r"ydata: infinite or NaN"):
        xopt.curve_fit(model, T, many, batched=True)
    popt, _, result = xopt.curve_fit(model, T, many, batched=True, check_finite=False, jac=slope, full_output=True)
    assert (result.status == -3).tolist() == [False, False, True, False, False, False]
    np.testing.assert_allclose(popt[3], scipys(model, T, Y)[0], rtol=1e-6)
    unlimited = xopt.curve_fit(model, T, Y, sigma=np.where(np.arange(40) == 3, np.inf, SIGMA), check_finite=False)
    rest = np.arange(40) != 3
    want = scipys(model, T[rest], Y[rest], sigma=SIGMA[rest])
    np.testing.assert_allclose(unlimited[0], want[0], rtol=1e-6)


@pytest.mark.parametrize("jac", [slope, None, "3-point"], ids=["exact", "None", "3-point"])
@pytest.mark.parametrize("p0", ["none", "one", "all"])
@pytest.mark.parametrize("sigma", ["none", "number", "one", "all"])
def test_batched(sigma: str, p0: str, jac: Any) -> None:
    """As SciPy in a loop."""
    widths = np.linspace(1, 3, 6)[:, None] * SIGMA
    given: Any = {"none": None, "number": 0.1, "one": SIGMA, "all": widths}[sigma]
    start: Any = {"none": None, "one": [2.0, 1.0, 0.0], "all": 0.9 * TRUTH}[p0]
    for absolute in (False, True):
        popt, pcov = xopt.curve_fit(model, T, MANY, start, given, absolute, batched=True, jac=jac)
        assert (popt.shape, pcov.shape) == ((6, 3), (6, 3, 3))
        for i in range(6):
            first = start[i] if p0 == "all" else start
            width = None if given is None else np.broadcast_to(given, (6, 40))[i]
            agree((popt[i], pcov[i]), scipys(model, T, MANY[i], first, width, absolute, jac=slope))


def test_batched_with_x_of_each_curve() -> None:
    """And with bounds, of data with more axes, where a parameter has as many dimensions as these."""
    t = np.linspace(0.8, 1.2, 6)[:, None] * T
    y = TRUTH[:, :1] * np.exp(-TRUTH[:, 1:2] * t) + TRUTH[:, 2:] + NOISE
    popt, pcov = xopt.curve_fit(model, t, y, batched=True, bounds=([0, 0, -0.1], [2.7, 9, 9]), ftol=1e-12)
    cube, _ = xopt.curve_fit(
        model, t.reshape(6, 8, 5), y.reshape(6, 8, 5), batched=True, bounds=([0, 0, -0.1], [2.7, 9, 9]), ftol=1e-12
    )
    np.testing.assert_allclose(cube, popt, rtol=1e-6)
    for i in range(6):
        want = scipys(model, t[i], y[i], bounds=([0, 0, -0.1], [2.7, 9, 9]), ftol=1e-14, xtol=1e-14, gtol=1e-14)
        np.testing.assert_allclose(popt[i], want[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(pcov[i], want[1], rtol=1e-2, atol=1e-7)


def test_batched_complex_data() -> None:
    f = lambda t, a, w: a * np.exp(1j * w * t)
    rates = np.linspace(1.5, 1.9, 6)[:, None]
    popt, pcov = xopt.curve_fit(f, T, f(T, 2.0, rates) + 1j * NOISE, [1.0, 1.7], batched=True)
    np.testing.assert_allclose(popt[:, 0], 2, atol=0.05)
    np.testing.assert_allclose(popt[:, 1], rates[:, 0], atol=0.02)
    assert pcov.dtype == np.float64


def test_nothing_is_written_into() -> None:
    given = [np.copy(x) for x in (T, Y, np.ones(3), SIGMA)]
    for x in given:
        x.setflags(write=False)
    xopt.curve_fit(model, *given)
    xopt.curve_fit(model, *given, bounds=(given[2] - 2, given[2] + 5))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sigma", ["none", "each", "covariance"])
@pytest.mark.parametrize("batched", [False, True], ids=["one", "many"])
def test_every_library(lib: Lib, batched: bool, sigma: str, dtype: str) -> None:
    t, y = lib.array(T.astype(dtype)), lib.array((MANY if batched else Y).astype(dtype))
    if lib.name == "dask":
        with pytest.raises(TypeError, match=r"dask, which computes nothing until the end"):
            xopt.curve_fit(model, t, y)
        return
    if sigma == "covariance" and batched:
        pytest.skip("of one curve")
    xp = lib.functions(t)
    f = lambda t, a, b, c: a * xp.exp(-b * t) + c

    def derivative(t: Any, a: Any, b: Any, c: Any) -> Any:
        e = xp.exp(-b * t)
        return xp.stack([e, -a * t * e, xp.ones_like(e)], axis=-1)

    own: Any = {"none": None, "each": SIGMA, "covariance": CORRELATED}[sigma]
    given = own if own is None else lib.array(own.astype(dtype))
    rough = 2e-3 if dtype == "float32" else 1e-6
    exact = [derivative, *([None] if lib.name in ("torch", "jax") else [])]
    for jac in exact if dtype == "float32" else (derivative, None, "3-point"):
        popt, pcov = xopt.curve_fit(f, t, y, None, given, True, jac=jac, batched=batched)
        for found in (popt, pcov):
            assert (type(found), found.dtype) == (type(t), t.dtype)
            assert not getattr(found, "requires_grad", False)
        want, other = xopt.curve_fit(model, T, MANY if batched else Y, None, own, True, jac=slope, batched=batched)
        np.testing.assert_allclose(lib.numpy(popt), want, rtol=rough, atol=rough)
        np.testing.assert_allclose(lib.numpy(pcov), other, rtol=20 * rough, atol=1e-3 * np.abs(other).max())


def test_what_does_not_fit() -> None:
    fit = lambda f=model, t=T, y=Y, **options: xopt.curve_fit(f, t, y, **options)
    for error, match, call in [
        (TypeError, r"f: 3, but it must be a function", lambda: fit(3)),
        (ValueError, r"f: returned shape \(3,\), but ydata has \(40,\)", lambda: fit(lambda t, a: a * t[:3])),
        (ValueError, r"f: returned shape \(\), but ydata has \(40,\)", lambda: fit(lambda t, a: a)),
        (TypeError, r"ydata: dtype object", lambda: fit(y=None)),
        (TypeError, r"ydata: dtype str", lambda: fit(y=["a"] * 40)),
        (TypeError, r"ydata: dtype float16, but it must be float32, float64 or complex", lambda: fit(y=Y.astype("f2"))),
        (ValueError, r"p0: None, but f does not say", lambda: fit(lambda t: t)),
        (ValueError, r"p0: None, but f does not say", lambda: fit(lambda t, *p: t)),
        (ValueError, r"p0: shape \(2, 3\), but it must be n numbers", lambda: fit(p0=np.ones((2, 3)))),
        (ValueError, r"p0: shape \(3, 3\), but", lambda: fit(y=MANY, batched=True, p0=np.ones((3, 3)))),
        (ValueError, r"sigma: shape \(3,\), but ydata has \(40,\)", lambda: fit(sigma=np.ones(3))),
        (ValueError, r"sigma: shape \(40, 1\), but", lambda: fit(sigma=np.ones((40, 1)))),
        (ValueError, r"sigma: shape \(40, 40\), but", lambda: fit(y=MANY, batched=True, sigma=CORRELATED)),
        (ValueError, r"sigma: numbers ≤ 0", lambda: fit(sigma=-SIGMA)),
        (ValueError, r"sigma: numbers ≤ 0", lambda: fit(sigma=np.zeros(40))),
        (ValueError, r"sigma: numbers ≤ 0", lambda: fit(sigma=0)),
        (ValueError, r"ydata: shape \(40,\), but with batched=True", lambda: fit(batched=True)),
        (TypeError, r"batched: 'yes', but it must be True or False", lambda: fit(y=MANY, batched="yes")),
        (TypeError, r"jac: 'cs', but it must be", lambda: fit(jac="cs")),
        (ValueError, r"bounds: the lower one is 3.0, but the upper one 1.0", lambda: fit(bounds=(3, 1))),
        (ValueError, r"method: 'trf', but there are", lambda: fit(method="trf")),
        (TypeError, r"foo", lambda: fit(foo=1)),
    ]:
        with pytest.raises(error, match=match):
            call()
