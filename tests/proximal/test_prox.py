"""Functions with a prox: against brute minimization, Moreau's identity, their conjugates, and what does not fit."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from conftest import Lib
from scipy import optimize

from xopt import proximal

RNG = np.random.default_rng(5)
X = RNG.standard_normal((3, 4))
Z = X + 1j * RNG.standard_normal((3, 4))
B = RNG.standard_normal((3, 4))
W = RNG.uniform(0.2, 1.5, (3, 4))


def of(name: str) -> Any:
    return {
        "l1": proximal.l1(0.7),
        "weighted l1": proximal.l1(W),
        "group_l1": proximal.group_l1(0.7, axis=0),
        "groups of two axes": proximal.group_l1(0.7, axis=(0, 1)),
        "weighted group_l1": proximal.group_l1(W[:, :1], axis=1),
        "nuclear": proximal.nuclear(0.7),
        "squared": proximal.squared(B, 0.7),
        "weighted squared": proximal.squared(B, W),
        "tv": proximal.tv(0.4, tol=1e-13, maxiter=5000),
        "tv of rows": proximal.tv(0.4, axes=(1,), tol=1e-13, maxiter=5000),
        "box": proximal.box(-0.5, 0.5),
        "box of arrays": proximal.box(-W, None),
        "simplex": proximal.simplex(1.5),
        "simplex of rows": proximal.simplex(1.5, axis=1),
        "zero": proximal.zero(),
    }[name]


NAMES = [
    "l1", "weighted l1", "group_l1", "groups of two axes", "weighted group_l1", "nuclear", "squared",
    "weighted squared", "tv", "tv of rows", "box", "box of arrays", "simplex", "simplex of rows", "zero",
]  # fmt: skip
SETS = ("box", "simplex")
REAL = ("box", "box of arrays", "simplex", "simplex of rows")


@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("name", NAMES)
def test_the_prox_is_a_minimum(name: str, kind: str) -> None:
    """Of f(z) + ‖z - x‖²/2t: no point beside it is lower, in any direction, nearer or farther."""
    if kind == "complex" and name in REAL:
        with pytest.raises(TypeError, match="complex"):
            of(name).prox(Z, 1.0)
        return
    f, x, t = of(name), X if kind == "real" else Z, 0.8

    def total(z: Any) -> float:
        return float(f.value(z)) + float(np.sum(abs(z - x) ** 2)) / (2 * t)

    p = f.prox(x, t)
    least = total(p)
    assert np.isfinite(least)
    for k in range(40):
        step = RNG.standard_normal(x.shape) + (1j * RNG.standard_normal(x.shape) if kind == "complex" else 0)
        for size in (1e-3, 1e-1, 1.0):
            z = p + size * step
            if name.startswith(SETS):  # to points of the set
                z = f.prox(z, 1.0)
            # by strong convexity it is higher by ‖z - p‖²/2t; roundings, and tv ends at a gap of 1e-13
            assert total(z) >= least + 0.999 * float(np.sum(abs(z - p) ** 2)) / (2 * t) - 1e-11, k


@pytest.mark.parametrize("name", ["l1", "group_l1", "nuclear", "squared", "weighted squared"])
def test_against_a_minimizer_of_scipy(name: str) -> None:
    f, t = of(name), 0.8
    found = optimize.minimize(
        lambda z: float(f.value(z.reshape(X.shape))) + np.sum((z - X.ravel()) ** 2) / (2 * t), X.ravel(),
        method="Powell", options={"xtol": 1e-9, "ftol": 1e-14, "maxiter": 20},
    )  # fmt: skip
    p = f.prox(X, t)
    least = float(f.value(p)) + float(np.sum((p - X) ** 2)) / (2 * t)
    assert least <= found.fun + 1e-10
    np.testing.assert_allclose(least, found.fun, rtol=0.02)  # Powell stops somewhat above where f has kinks


@pytest.mark.parametrize("name", NAMES)
def test_the_prox_of_the_conjugate(name: str) -> None:
    """It is what Moreau's identity makes of the prox, and so is that of the conjugate where it is known apart."""
    f = of(name)
    for x in (X, Z) if name not in REAL else (X,):
        for t in (0.3, 2.0):
            want = x - t * f.prox(x / t, 1 / t)
            np.testing.assert_allclose(f.prox_conjugate(x, t), want, atol=1e-6 if "tv" in name else 1e-12)


@pytest.mark.parametrize("name", [n for n in NAMES if "tv" not in n])
def test_the_conjugate(name: str) -> None:
    """Fenchel's equality, f(p) + f*(y) = Re⟨p, y⟩ with y = (x - p)/t, and his inequality elsewhere."""
    f, t = of(name), 0.8
    for x in (X, Z) if name not in REAL else (X,):
        p = f.prox(x, t)
        y = (x - p) / t
        assert float(f.value(p)) + float(f.conjugate(y)) == pytest.approx(np.vdot(p, y).real, abs=1e-10)
        for _ in range(20):
            z = RNG.standard_normal(x.shape) * 3
            z = f.prox(z, 1.0) if name in REAL else z
            s = 1.0 if f.scaling is None else float(f.scaling(z))
            assert 0 <= s <= 1
            dual = float(f.conjugate(s * z))
            assert np.isfinite(dual)
            assert float(f.value(p)) + dual >= np.vdot(p, s * z).real - 1e-10


@pytest.mark.parametrize("name", ["squared", "weighted squared", "zero"])
def test_the_gradient(name: str) -> None:
    f, h = of(name), 1e-6
    got = f.gradient(X)
    for k in np.ndindex(X.shape):
        step = np.zeros(X.shape)
        step[k] = h
        assert got[k] == pytest.approx((float(f.value(X + step)) - float(f.value(X - step))) / (2 * h), abs=1e-8)


def test_indicators() -> None:
    assert float(proximal.box(0, 1).value(X)) == np.inf
    assert float(proximal.box(-9, 9).value(X)) == 0
    assert float(proximal.simplex().value(np.asarray([0.5, 0.6]))) == np.inf
    assert float(proximal.simplex().value(np.asarray([1.5, -0.5]))) == np.inf
    assert float(proximal.simplex().value(np.asarray([0.5, 0.5]))) == 0
    assert float(proximal.l1(1.0).conjugate(np.asarray([1.1]))) == np.inf
    assert float(proximal.nuclear(1.0).conjugate(np.eye(2) * 0.99)) == 0


def test_total_variation_by_the_dual_problem() -> None:
    """min ‖div p‖²/2 - ⟨∇x, p⟩, ‖p‖ ≤ λ, by SciPy in polar coordinates of a 1-d signal: -λ ≤ p ≤ λ."""
    x = np.cumsum(RNG.standard_normal(30))
    d = np.diff(np.eye(30), axis=0)
    found = optimize.lsq_linear(d.T, x, bounds=(-0.9, 0.9), tol=1e-14)
    f = proximal.tv(0.9, tol=1e-14, maxiter=20000)
    np.testing.assert_allclose(f.prox(x, 1.0), x - d.T @ found.x, atol=1e-5)
    again = f.prox(x, 1.0)  # begins at the dual that it ended with
    np.testing.assert_allclose(again, x - d.T @ found.x, atol=1e-5)
    assert f.prox(x, 0.5).shape == x.shape
    np.testing.assert_allclose(proximal.tv(0.0).prox(x, 1.0), x)


@pytest.mark.parametrize("axes", [None, (0,), (0, 2), (-1,)])
def test_the_gradient_of_an_image(axes: Any) -> None:
    x = RNG.standard_normal((3, 4, 5)) + 1j * RNG.standard_normal((3, 4, 5))
    got = proximal.gradient(x, axes)
    for k, a in enumerate(range(3) if axes is None else axes):
        want = np.diff(x, axis=a, append=np.take(x, [-1], axis=a))
        np.testing.assert_array_equal(got[k], want)
    p = RNG.standard_normal(got.shape) + 1j * RNG.standard_normal(got.shape)
    assert np.vdot(got, p) == pytest.approx(-np.vdot(x, proximal.divergence(p, axes)))


def test_trees_and_parts() -> None:
    f = proximal.l1({"a": 1.0, "b": W})
    got = f.prox({"a": X, "b": X}, 0.5)
    np.testing.assert_allclose(got["a"], proximal.l1(1.0).prox(X, 0.5))
    np.testing.assert_allclose(got["b"], proximal.l1(W).prox(X, 0.5))
    parts = {"a": of("l1"), "b": (of("box"), of("squared"))}
    f = proximal.separable(parts)
    x = {"a": X, "b": (B, W)}
    p = f.prox(x, 0.5)
    np.testing.assert_allclose(p["b"][1], of("squared").prox(W, 0.5))
    assert float(f.value(p)) == pytest.approx(float(of("l1").value(p["a"])) + float(of("squared").value(p["b"][1])))
    assert f.gradient is None
    both = proximal.separable([of("squared"), of("squared")])
    np.testing.assert_allclose(both.gradient([X, B])[1], of("squared").gradient(B))  # type: ignore[misc]
    y = f.prox_conjugate(x, 2.0)
    np.testing.assert_allclose(y["b"][0], of("box").prox_conjugate(B, 2.0))
    assert repr(proximal.l1(0.5)) == "l1(strength=0.5)"
    assert "l1" in repr(f)


ON_LIBRARIES = [(name, "float32") for name in ("l1", "group_l1", "nuclear", "squared", "tv", "box", "simplex", "zero")]
ON_LIBRARIES += [(name, "complex64") for name in ("l1", "group_l1", "nuclear", "tv")]


COMPILED = [("nuclear", "complex64"), ("tv", "float32")]


@pytest.mark.parametrize(("name", "dtype"), ON_LIBRARIES)
def test_libraries(lib: Lib, name: str, dtype: str) -> None:
    if lib.name == "dask":
        pytest.skip("solvers must look at values")
    if lib.guise in ("device2", "no_x64"):
        pytest.skip("as on device1 and without float64")
    if lib.name == "jax" and (name, dtype) not in COMPILED:
        pytest.skip("compiles for each shape and dtype; the rest is in solvers and in xopt.Simplex")
    f = {"squared": proximal.squared(0.5, 0.7), "tv": proximal.tv(0.4)}.get(name) or of(name)
    x = (X if dtype == "float32" else Z).astype(dtype)
    given = lib.array(x)
    for got, want in (
        (f.prox(given, 0.8), f.prox(x.astype("complex128" if dtype == "complex64" else "float64"), 0.8)),
        (f.prox_conjugate(given, 0.8), f.prox_conjugate(x, 0.8)),
    ):
        assert str(got.dtype).endswith(dtype)
        np.testing.assert_allclose(lib.numpy(got), want, atol=1e-3 if name == "tv" else 1e-6)
    assert float(f.value(given)) == pytest.approx(float(f.value(x)), rel=1e-6)
    if f.conjugate is not None:
        y = f.prox_conjugate(given, 0.8)
        assert float(f.conjugate(y)) == pytest.approx(float(f.conjugate(lib.numpy(y))), rel=1e-5, abs=1e-5)
        if f.scaling is not None:
            assert float(f.scaling(given)) == pytest.approx(float(f.scaling(x)), rel=1e-5)


def test_data_of_no_weight() -> None:
    """Weights of 0, where data are missing and elements free: a duality gap is there all the same."""
    w, x0, b, one = np.asarray([1.0, 0.0, 2.0]), np.zeros(3), np.asarray([3.0, 5.0, -3.0]), np.ones(3)
    misfit = proximal.squared(b, w)
    np.testing.assert_allclose(misfit.prox_conjugate(one, 2.0), one - 2 * misfit.prox(one / 2, 0.5), atol=1e-15)
    assert float(misfit.conjugate(np.asarray([1.0, 0.0, 1.0]))) == 0.5 + 3 + 0.25 - 3
    assert float(misfit.conjugate(np.asarray([1.0, 0.1, 1.0]))) == np.inf
    assert [float(misfit.scaling(np.asarray([1.0, y, 1.0]))) for y in (0.0, 0.1)] == [1, 0]
    free = proximal.l1(np.asarray([1.0, 0.0, 0.5]))
    assert [float(free.scaling(np.asarray([2.0, y, 0.0]))) for y in (0.0, 1e-20)] == [0.5, 0]
    assert float(free.conjugate(0 * b)) == 0
    for got in (
        proximal.fista(misfit, x0, proximal.l1(1.0)),
        proximal.pdhg(misfit, x0, proximal.l1(1.0), gap_tol=1e-9),
    ):
        assert got.success
        np.testing.assert_allclose(got.x, [2.0, 0.0, -2.5], atol=1e-4)
        assert 0 <= got.gap < 1e-5


def test_total_variation_forgets_what_was_nan() -> None:
    f, x = proximal.tv(0.4), X.copy()
    want = f.prox(X, 1.0)
    x[0, 0] = np.nan
    assert np.isnan(f.prox(x, 1.0)).any()
    np.testing.assert_allclose(f.prox(X, 1.0), want, atol=2e-3)  # both within a gap of 1e-6


@pytest.mark.parametrize("name", ["l1", "group_l1", "squared", "box", "zero"])
def test_arrays_of_no_elements(name: str) -> None:
    f, x = of(name) if name != "squared" else proximal.squared(), np.zeros((0, 3))
    assert f.prox(x, 1.0).shape == f.prox_conjugate(x, 1.0).shape == x.shape
    assert float(f.value(x)) == float(f.conjugate(x)) == 0


def test_nan_is_in_no_set() -> None:
    nan = np.asarray([[np.nan, 0.5]])
    for f in (proximal.box(0.0), proximal.box(None, 1.0), proximal.simplex()):
        assert float(f.value(nan)) == np.inf  # type: ignore[misc]
    for f in (proximal.l1(1.0), proximal.group_l1(1.0), proximal.zero()):
        assert float(f.conjugate(nan)) == np.inf  # type: ignore[misc]


@pytest.mark.parametrize("name", [n for n in NAMES if n != "tv"])
def test_pickles_and_copies(name: str) -> None:
    """As a call of the function that made it; one of the user's functions, and parts of a tree, likewise."""
    f = proximal.separable({"a": of(name), "b": proximal.Prox(np.multiply, np.sum, convexity=0.5)})
    for g in (pickle.loads(pickle.dumps(f)), copy.deepcopy(f)):
        assert repr(g) == repr(f)
        x = {"a": X, "b": B}
        np.testing.assert_allclose(g.prox(x, 0.5)["a"], f.prox(x, 0.5)["a"], atol=1e-6)  # tv begins elsewhere
        assert float(g.value(x)) == float(f.value(x))


def test_nan_stays() -> None:
    x = np.asarray([[np.nan, 2.0], [1.0, -3.0]])
    for name in ("l1", "box", "zero", "groups of two axes"):
        assert np.isnan(of(name).prox(x, 1.0)[0, 0])


ERRORS = [
    (lambda: proximal.l1(-1.0), ValueError, r"strength: -1.0, but it must be ≥ 0"),
    (lambda: proximal.l1(np.inf), ValueError, "strength: inf, but it must be ≥ 0 and finite"),
    (lambda: proximal.l1(-W), ValueError, "strength: an element that is not ≥ 0 and finite"),
    (lambda: proximal.l1({"a": W, "b": W * np.nan}), ValueError, "strength: an element that is not ≥ 0"),
    (lambda: proximal.l1(Z), TypeError, "strength: complex, but it must be real"),
    (lambda: proximal.group_l1(W * np.inf), ValueError, "strength: an element"),
    (lambda: proximal.squared(B, -W), ValueError, "strength: an element"),
    (lambda: proximal.box(np.nan), ValueError, "box: lower: NaN"),
    (lambda: proximal.box(0.0, W * np.nan), ValueError, "box: upper: an element that is not a bound"),
    (lambda: proximal.group_l1(1.0, axis=(0, -2)).prox(X, 1.0), ValueError, "group_l1: axis"),
    (lambda: proximal.tv().prox(np.ones(()), 1.0), ValueError, "axes: an array of no dimensions"),
    (lambda: proximal.gradient(np.ones(())), ValueError, "axes: an array of no dimensions"),
    (lambda: proximal.l1("a").prox(X, 1.0), TypeError, "l1: strength: a str, but x is one of numpy"),
    (lambda: proximal.l1(W).prox(X[:2], 1.0), ValueError, r"l1: strength: shape \(3, 4\), but x has \(2, 4\)"),
    (lambda: proximal.l1(1.0).prox([1.0], 1.0), TypeError, "l1: x: a float"),
    (lambda: proximal.squared(Z).prox(X, 1.0), TypeError, "squared: target: complex, but x is real"),
    (lambda: proximal.squared(B, 0.0), ValueError, "strength"),
    (lambda: proximal.group_l1(1.0, axis=5).prox(X, 1.0), ValueError, "group_l1: axis 5"),
    (lambda: proximal.group_l1(W, axis=0).prox(X, 1.0), ValueError, "group_l1: strength"),
    (lambda: proximal.group_l1(1.0, axis=1.5), TypeError, "axis"),  # type: ignore[arg-type]
    (lambda: proximal.group_l1(1.0).prox(X, W), TypeError, "group_l1: steps of different lengths"),
    (lambda: proximal.nuclear(1.0).prox(X[0], 1.0), ValueError, "nuclear"),
    (lambda: proximal.box(), ValueError, "box"),
    (lambda: proximal.box(1.0, 0.0), ValueError, "box"),
    (lambda: proximal.simplex(0.0), ValueError, "sum"),
    (lambda: proximal.simplex(axis="a"), TypeError, "axis"),  # type: ignore[arg-type]
    (lambda: proximal.tv(1.0, axes=(0, 0)), TypeError, "axes"),
    (lambda: proximal.tv(1.0, axes=(3,)).prox(X, 1.0), ValueError, "axes"),
    (lambda: proximal.tv(1.0, maxiter=0), ValueError, "maxiter"),
    (lambda: proximal.divergence(X), ValueError, "divergence"),
    (lambda: proximal.separable(3), TypeError, "functions"),
    (lambda: proximal.separable((3,)), TypeError, r"functions\[0\]"),
    (lambda: proximal.separable((of("l1"),)).prox(X, 1.0), ValueError, "separable"),
    (lambda: proximal.Prox(3), TypeError, "prox: 3"),  # type: ignore[arg-type]
    (lambda: proximal.Prox(lambda x, t: x, convexity=-1), ValueError, "convexity"),
]


@pytest.mark.parametrize(("call", "error", "text"), ERRORS)
def test_errors(call: Any, error: Any, text: Any) -> None:
    with pytest.raises(error, match=text):
        call()
