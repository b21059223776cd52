"""minimize with batched=True and a preconditioner: lanes as of variables in which it is the identity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import Lib

import xopt

A = Any
K, N = 40, 6
RNG = np.random.default_rng(11)
WIDE, DEEP = RNG.uniform(0.5, 2, K), RNG.uniform(5, 200, K)
POWERS = 2.0 ** RNG.integers(-12, 12, (K, 2))
"""Scales by which products are exact."""
START = np.tile([-1.2, 1.0], (K, 1))


def valleys(x: A, d: A) -> tuple[A, A]:
    """Rosenbrock's function of scaled variables."""
    a, b, scales = d
    u, v = (x * scales)[:, 0], (x * scales)[:, 1]
    r, q = a - u, v - u * u
    return r * r + b * q * q, scales * np.stack([-2 * r - 4 * b * q * u, 2 * b * q], axis=-1)


def many(fun: A, x0: A, p: A = None, **options: Any) -> Any:
    of_solver = {name: options.pop(name) for name in ("gtol", "history", "maxls") if name in options}
    return xopt.minimize(fun, x0, batched=True, options={**of_solver, "preconditioner": p}, **options)


@pytest.mark.parametrize("whole", [False, True], ids=["rows", "whole"])
@pytest.mark.parametrize("bounds", [None, ([-9.0, 0.5], [0.9, 9.0])], ids=["free", "bounds"])
def test_bits_of_scaled_variables(bounds: Any, whole: bool) -> None:
    """x = C·z with P = C·Cᵀ gives the iterates of z, also where lanes have ended, and within bounds."""
    near = None if bounds is None else tuple(np.asarray(side) / POWERS for side in bounds)
    got_data, want_data = (WIDE, DEEP, POWERS), (WIDE, DEEP, np.ones((K, 2)))
    for maxiter in (4, 15):
        options: dict[str, Any] = {"maxiter": maxiter, "gtol": 0.0}
        if whole:
            got = many(lambda x: valleys(x, got_data), START / POWERS, lambda g: g / POWERS**2, bounds=near, **options)
        else:
            p = lambda g, d: g / d[2] ** 2
            got = many(valleys, START / POWERS, p, bounds=near, data=got_data, **options)
        want = many(valleys, START, bounds=bounds, data=want_data, **options)
        same = got.nit == want.nit  # when a lane has converged is judged by gradients as they are given
        assert same.all() or (maxiter == 15 and bounds is not None and same.sum() > K / 2)
        np.testing.assert_array_equal((got.x * POWERS)[same], want.x[same])
        np.testing.assert_array_equal(got.fun[same], want.fun[same])


def test_matrices() -> None:
    """Of quadratic functions and their inverse Hessians: one step of a length to find. And of any others as of z."""
    q = np.linalg.qr(RNG.standard_normal((K, N, N)))[0]
    h = np.einsum("kij,j,klj->kil", q, np.geomspace(1, 1e4, N), q)
    inverse = np.einsum("kij,j,klj->kil", q, np.geomspace(1, 1e-4, N), q)
    b = RNG.standard_normal((K, N))
    fun = lambda x: ((x * (np.einsum("kij,kj->ki", h, x) / 2 - b)).sum(1), np.einsum("kij,kj->ki", h, x) - b)
    plain = many(fun, np.zeros((K, N)))
    helped = many(fun, np.zeros((K, N)), lambda g: np.einsum("kij,kj->ki", inverse, g))
    assert helped.success.all()
    assert helped.nit.max() <= 5 < plain.nit.min()
    np.testing.assert_allclose(helped.x, np.einsum("kij,kj->ki", inverse, b), atol=1e-5)  # gtol over the least slope
    p = np.einsum("kij,j,klj->kil", np.roll(q, 1, axis=0), np.geomspace(0.1, 1, N), np.roll(q, 1, axis=0))
    c = np.linalg.cholesky(p)

    def of_z(z: A) -> tuple[A, A]:
        value, g = fun(np.einsum("kij,kj->ki", c, z))
        return value, np.einsum("kji,kj->ki", c, g)

    got = many(fun, np.zeros((K, N)), lambda g: np.einsum("kij,kj->ki", p, g), maxiter=8, gtol=0.0)
    want = many(of_z, np.zeros((K, N)), maxiter=8, gtol=0.0)
    # roundings grow with the condition number of 10⁴ in eight steps
    np.testing.assert_allclose(got.fun, want.fun, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_libraries(lib: Lib, dtype: str) -> None:
    """A tree of real and complex arrays; all lanes are alike in other scales, and so are their iterations."""
    if lib.name == "dask":
        pytest.skip("it computes nothing until the end")
    if lib.name == "jax" and dtype != "float32":
        pytest.skip("every operation is compiled for each dtype, which is all that this would show")
    scales = 4.0 ** np.arange(6)
    t = {"u": lib.array(np.tile([1.0, 2.0, 3.0], (6, 1)), dtype), "v": lib.array(np.full(6, 2.0), dtype)}
    s = {"u": lib.array(scales[:, None] * np.ones(3), dtype), "v": lib.array(np.ones(6), dtype)}
    xp = lib.module() if lib.name in ("torch", "cupy") else t["u"].__array_namespace__()

    def fun(x: A) -> tuple[A, A]:
        r = {n: s[n] * x[n] - t[n] for n in "uv"}
        square = {n: xp.real(xp.conj(r[n]) * r[n]) if "complex" in dtype else r[n] * r[n] for n in "uv"}
        value = xp.sum(square["u"] + square["u"] ** 2, axis=1) + square["v"]
        inner = {"u": 2 * r["u"] * (1 + 2 * square["u"]), "v": 2 * r["v"]}
        return value, {n: s[n] * inner[n] for n in "uv"}

    x0 = {"u": lib.array(np.zeros((6, 3)), dtype), "v": lib.array(np.zeros(6), dtype)}
    p = lambda g: {"u": g["u"] / s["u"] ** 2, "v": g["v"]}
    some, got = many(fun, x0, p, maxiter=5, gtol=0.0), many(fun, x0, p, gtol=1e-3)
    assert lib.numpy(got.success).all()
    same = lib.numpy(some.x["u"] * s["u"])
    np.testing.assert_allclose(same, np.broadcast_to(same[:1], same.shape), rtol=0 if lib.name == "numpy" else 1e-5)
    for n in "uv":
        # gtol/2 over a lane's scale, ≥ 1
        np.testing.assert_allclose(lib.numpy(got.x[n]), lib.numpy(t[n]) / lib.numpy(s[n]), atol=1e-3)


def test_calls() -> None:
    """With the gradients of the lanes that run and their rows of the data; finite ones, also where values are not."""
    seen: list[int] = []

    def p(g: A, d: A) -> A:
        assert np.isfinite(g).all()
        assert g.shape == d[2].shape
        seen.append(len(g))
        return g / d[2] ** 2

    def fun(x: A, d: A) -> tuple[A, A]:
        value, g = valleys(x, d)
        value = np.where(np.abs(x * d[2])[:, 0] > 3, np.inf, value)
        return value, np.where(np.isfinite(value)[:, None], g, np.nan)

    start = np.where(np.arange(K)[:, None] == 3, 5.0, START)
    got = many(fun, start / POWERS, p, data=(WIDE, DEEP, POWERS), gtol=1e-6)
    assert (got.status == 0).sum() == K - 1
    assert "the value or the gradient at x0 is infinite or NaN" in got.message
    assert max(seen) == K > min(seen)
    assert len(seen) <= 2 * got.nfev


@pytest.mark.parametrize(
    ("error", "message", "p", "options"),
    [
        (TypeError, r"preconditioner: 3, but it must be a function of the gradient", 3, {}),
        (ValueError, r"preconditioner: g·P·g = -\d.*, but it must be positive", lambda g, d: g * [1.0, -1e3], {}),
        (ValueError, r"preconditioner: shape \(40,\), but it must be \(40, 2\)", lambda g, d: g[:, 0], {}),
        (TypeError, r"preconditioner: a NoneType", lambda g, d: None, {}),
        (TypeError, r"preconditioner: complex, but", lambda g, d: g * 1j, {}),
        (TypeError, r"options: preconditioner, but for bfgs there are", lambda g, d: g, {"method": "bfgs"}),
        (ValueError, r"preconditioner: no diagonal matrices", lambda g, d: g + 0.1 * g[:, ::-1], {"bounds": (0, 9)}),
        (ValueError, r"preconditioner: numbers from 0.0 to 1.0", lambda g, d: g * [1.0, 0.0], {"bounds": (-9, 9)}),
    ],
    ids=["number", "negative", "shape", "none", "complex", "bfgs", "not diagonal", "singular"],
)  # fmt: skip
def test_errors(error: Any, message: str, p: Any, options: Any) -> None:
    with pytest.raises(error, match=message):
        many(valleys, START, p, data=(WIDE, DEEP, np.ones((K, 2))), **options)


def test_one_lane_is_not_positive() -> None:
    signs = np.where(np.arange(K)[:, None] == 7, -1.0, 1.0)
    with pytest.raises(ValueError, match=r"preconditioner: g·P·g = -"):
        many(lambda x, d: valleys(x, d[:3]), START, lambda g, d: g * d[3], data=(WIDE, DEEP, np.ones((K, 2)), signs))
