"""least_squares with complex parameters: the fit of their real and imaginary parts, on every library."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import Lib
from scipy.optimize import least_squares as scipys

import xopt

A = Any
T = np.linspace(0, 3, 12)
RNG = np.random.default_rng(5)
NOISE = 0.05 * (RNG.standard_normal(12) + 1j * RNG.standard_normal(12))
SIGNAL = (2 - 1j) * np.exp((-0.5 + 2j) * T) + NOISE
FIRST = {"a": np.asarray([1.5 - 0.5j]), "rate": np.asarray(-0.4 + 1.9j), "offset": np.asarray(0.1)}


def wave(x: A) -> A:
    return x["a"][0] * np.exp(x["rate"] * T) + x["offset"] - SIGNAL


def wave_jac(x: A) -> A:
    e = np.exp(x["rate"] * T)
    return {"a": e[:, None], "rate": x["a"][0] * T * e, "offset": np.ones(12)}


def pairs(v: A) -> A:
    """Return the residuals as SciPy has to be given them: real numbers of real numbers."""
    f = wave({"a": [v[0] + 1j * v[1]], "offset": v[2], "rate": v[3] + 1j * v[4]})
    return np.concatenate([f.real, f.imag])


def joined(x: A) -> A:
    """Return the numbers of a tree in their order: of complex arrays the real parts, then the imaginary ones."""
    return np.asarray([x["a"][0].real, x["a"][0].imag, x["offset"], x["rate"].real, x["rate"].imag])


WANT = scipys(pairs, joined(FIRST), jac="3-point", xtol=1e-15, ftol=1e-15, gtol=1e-15)
COVARIANCE = 2 * WANT.cost / (24 - 5) * np.linalg.inv(WANT.jac.T @ WANT.jac)


@pytest.mark.parametrize(
    "options",
    [{"jac": wave_jac}, {}, {"jac": "3-point"}, {"jac": wave_jac, "method": "dogleg"},
     {"jac": wave_jac, "geodesic": True},
     {"jac": wave_jac, "bounds": ({"a": None, "rate": None, "offset": -5.0}, None)},
     {"jac": wave_jac, "x_scale": {"a": [2.0], "rate": 1.0, "offset": 0.5}}],
    ids=lambda o: " ".join(n if callable(x) else f"{n}={x}" for n, x in o.items()) or "differences",
)  # fmt: skip
def test_as_pairs_of_real_numbers(options: Any) -> None:
    got = xopt.least_squares(wave, FIRST, **options)
    assert got.success
    assert got.cost == pytest.approx(WANT.cost, rel=1e-10)
    np.testing.assert_allclose(joined(got.x), WANT.x, rtol=1e-5)
    np.testing.assert_allclose(got.covariance, COVARIANCE, rtol=1e-3, atol=1e-8)
    np.testing.assert_allclose(joined(got.stderr), np.sqrt(np.diag(COVARIANCE)), rtol=1e-4)
    assert (got.x["a"].dtype, got.x["rate"].dtype, got.x["offset"].dtype) == (complex, complex, float)
    assert got.jac.shape == (24, 5)
    np.testing.assert_allclose(joined(got.grad), 0, atol=1e-4)


@pytest.mark.parametrize("jac", [True, False], ids=["jac", "differences"])
def test_real_residuals(jac: bool) -> None:
    """The derivative of a real residual is ∂f/∂Re + i·∂f/∂Im, as everywhere in xopt: here of |⟨a, z⟩|²."""
    a = RNG.standard_normal((40, 6)) + 1j * RNG.standard_normal((40, 6))
    z = RNG.standard_normal(6) + 1j * RNG.standard_normal(6)
    y = np.abs(a @ z) ** 2
    given: Any = {"jac": lambda x: 2 * a.conj() * (a @ x)[:, None]} if jac else {}
    got = xopt.least_squares(lambda x: np.abs(a @ x) ** 2 - y, z + 0.1, **given)
    assert got.success
    turn = np.vdot(got.x, z) / abs(np.vdot(got.x, z))  # the phase of all is not known
    np.testing.assert_allclose(got.x * turn, z, rtol=1e-6)


def test_many_fits() -> None:
    rates = np.linspace(1.0, 2.0, 40)
    y = (2 - 1j) * np.exp((-0.5 + 1j * rates[:, None]) * T)
    x0 = np.stack([np.full(40, 1.5 - 0.5j), -0.4 + 1j * (rates + 0.1)], axis=-1)
    fun = lambda x, y: x[:, :1] * np.exp(x[:, 1:] * T) - y

    def jac(x: A, y: A) -> A:
        e = np.exp(x[:, 1:] * T)
        return np.stack([e, x[:, :1] * T * e], axis=-1)

    for given in (jac, None):
        got = xopt.least_squares(fun, x0, jac=given, batched=True, data=y)
        assert got.success.all()
        np.testing.assert_allclose(got.x[:, 0], 2 - 1j, atol=1e-6)
        np.testing.assert_allclose(got.x[:, 1], -0.5 + 1j * rates, atol=1e-6)
        assert got.covariance.shape == (40, 4, 4)
        assert got.stderr.dtype == complex


@pytest.mark.parametrize("method", ["lm", "steihaug"])
@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_libraries(lib: Lib, dtype: str, method: Any) -> None:
    """With derivatives of the library where it has them, else with those of the user."""
    if lib.name == "dask":
        pytest.skip("it computes nothing until the end")
    if lib.name == "jax" and (dtype == "complex64") != (method == "steihaug"):
        pytest.skip("it compiles every operation")
    rough = 1e-3 if dtype == "complex64" else 1e-6
    z = lib.array(np.asarray([1.5 - 0.5j, -0.4 + 1.9j]), dtype)
    t, y = lib.array(T.astype(dtype)), lib.array((SIGNAL - 0.1).astype(dtype))
    xp = lib.module() if lib.name in ("torch", "cupy") else z.__array_namespace__()
    seen: list[Any] = []

    def fun(x: A) -> A:
        seen.append(x)
        return x[0] * xp.exp(x[1] * t) - y

    def jac(x: A) -> A:
        e = xp.exp(x[1] * t)
        return xp.stack([e, x[0] * t * e], axis=-1)

    given: Any = {} if lib.name in ("torch", "jax") else {"jac": jac}
    got = xopt.least_squares(fun, z, method=method, **given)
    assert got.success
    assert got.x.dtype == z.dtype
    want = xopt.least_squares(
        lambda x: x[0] * np.exp(x[1] * T) - (SIGNAL - 0.1), np.asarray([1.5 - 0.5j, -0.4 + 1.9j]), jac="3-point"
    )
    np.testing.assert_allclose(lib.numpy(got.x), want.x, rtol=rough)
    if method == "lm":
        np.testing.assert_allclose(lib.numpy(got.stderr), want.stderr, rtol=30 * rough)


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (TypeError, r"x0\[?.*dtype complex128, but only real numbers have bounds", {"bounds": (0, None)}),
        (TypeError, r"x_scale: it must be .* complex numbers", {"x_scale": {"a": [1j], "rate": 1.0, "offset": 1.0}}),
    ],
    ids=["bounds", "scale"],
)
def test_errors(error: Any, message: str, options: Any) -> None:
    with pytest.raises(error, match=message):
        xopt.least_squares(wave, FIRST, jac=wave_jac, **options)
