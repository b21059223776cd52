"""bfgs, newton-cg, trust-ncg and trust-exact: every library, trees, forms of the Hessian, and what is refused."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import optree
import pytest
from conftest import Lib
from scipy import optimize, sparse
from scipy.sparse.linalg import LinearOperator
from support.mgh import bowl, chain

import xopt

METHODS: list[Any] = ["bfgs", "newton-cg", "trust-ncg", "trust-exact"]
SECOND: list[Any] = METHODS[1:]
X0 = np.asarray([-1.2, 1.0, 0.3])


@pytest.mark.parametrize(
    ("method", "dtype"),
    [("bfgs", "complex64"), ("newton-cg", "complex128"), ("trust-ncg", "float32"),
     ("trust-exact", "complex128")],
)  # fmt: skip
def test_every_library(lib: Lib, method: Any, dtype: str, rng: np.random.Generator) -> None:
    """Least squares |A·x - b|² + |z|⁴, in a tree, with products, and from differences of gradients."""
    if lib.name == "dask":
        pytest.skip("it must not be looked at")
    if lib.name == "jax" and method in ("newton-cg", "trust-ncg"):
        pytest.skip("it compiles every operation; with derivatives of its own below")
    draw = lambda *s: np.asarray(rng.standard_normal(s) + (1j * rng.standard_normal(s) if "c" in dtype else 0), dtype)
    matrix, b = draw(9, 3), draw(9)
    start = {"x": draw(3), "z": [draw(2, 1), draw()]}
    x0 = optree.tree_map(lib.array, start)
    A, rhs = lib.array(matrix), lib.array(b)
    xp = lib.module() if lib.name in ("torch", "cupy") else A.__array_namespace__()
    adjoint = (lambda m: xp.conj(m.T)) if "c" in dtype else (lambda m: m.T)
    square = (lambda x: xp.real(xp.conj(x) * x)) if "c" in dtype else (lambda x: x * x)
    inner = (lambda x, p: xp.real(xp.conj(x) * p)) if "c" in dtype else (lambda x, p: x * p)

    def fun(p: Any) -> Any:
        r = A @ p["x"] - rhs
        value = xp.sum(square(r)) + sum(xp.sum(square(z) + square(z) ** 2) for z in p["z"])
        return value, {"x": 2 * adjoint(A) @ r, "z": [(2 + 4 * square(z)) * z for z in p["z"]]}

    def hessp(x: Any, p: Any) -> Any:
        parts = zip(x["z"], p["z"], strict=True)
        return {
            "x": 2 * adjoint(A) @ (A @ p["x"]),
            "z": [(2 + 4 * square(z)) * q + 8 * inner(z, q) * z for z, q in parts],
        }

    before = optree.tree_map(lib.numpy, x0)
    for given in [{}] if method == "bfgs" else [{"hessp": hessp}, {}]:
        got = xopt.minimize(fun, x0, method=method, options={"gtol": 1e-3}, **given)  # type: ignore[arg-type]
        assert got.success, got
        np.testing.assert_allclose(lib.numpy(got.x["x"]), np.linalg.lstsq(matrix, b)[0], atol=2e-3)
        assert all(np.abs(lib.numpy(z)).max() < 2e-3 for z in got.x["z"])
        for a, y, first in zip(*map(optree.tree_leaves, (got.x, x0, before)), strict=True):
            assert (a.shape, a.dtype, type(a)) == (y.shape, y.dtype, type(y))
            np.testing.assert_array_equal(lib.numpy(y), first)
        if method == "bfgs":
            size = sum(x.size for x in optree.tree_leaves(before)) * (1 + ("c" in dtype))
            assert tuple(got.hess_inv.shape) == (size, size)
            assert type(got.hess_inv) is type(x0["x"])
        else:
            assert (got.nhev > 0) == bool(given)


@pytest.mark.parametrize(("method", "dtype"), [("newton-cg", "float64"), ("trust-ncg", "complex128")])
def test_by_automatic_differentiation(lib: Lib, method: Any, dtype: str) -> None:
    """The steps are those with the products in closed form; an argument that does not matter is left where it is."""
    if lib.name not in ("torch", "jax"):
        pytest.skip("it does not differentiate")
    one = np.asarray(1.5 - 0.5j if "c" in dtype else 1.5, dtype)
    x0 = optree.tree_map(lib.array, {"a": np.zeros((2, 2), dtype), "b": np.ones(2), "c": np.ones(1)})

    def value(x: Any) -> Any:
        u, v = x["a"] - lib.array(one), x["b"] - 3.0
        square = (u.conj() * u).real if "c" in dtype else u * u
        return (square + square**2).sum() + (square.sum() * v * v).sum() + (v * v).sum()

    def numbers(x: Any) -> Any:
        u, v = lib.numpy(x["a"]) - one, lib.numpy(x["b"]) - 3.0
        return u, v, (np.conj(u) * u).real

    def grad(x: Any) -> Any:
        u, v, s = numbers(x)
        slope = {"a": (2 + 4 * s + 2 * v @ v) * u, "b": 2 * v * (1 + s.sum()), "c": np.zeros(1)}
        return optree.tree_map(lib.array, slope)

    def hessp(x: Any, p: Any) -> Any:
        u, v, s = numbers(x)
        q, w = lib.numpy(p["a"]), lib.numpy(p["b"])
        inner = (np.conj(u) * q).real
        found = {
            "a": (2 + 4 * s + 2 * v @ v) * q + 8 * inner * u + 4 * (v @ w) * u,
            "b": 2 * w * (1 + s.sum()) + 4 * v * inner.sum(),
            "c": np.zeros(1),
        }
        return optree.tree_map(lib.array, found)

    got = xopt.minimize(value, x0, method=method, jac=False, options={"gtol": 1e-7})
    want = xopt.minimize(value, x0, method=method, jac=grad, hessp=hessp, options={"gtol": 1e-7})
    assert got.success
    assert (got.nit, got.nhev) == (want.nit, want.nhev)
    np.testing.assert_allclose(lib.numpy(got.x["a"]), lib.numpy(want.x["a"]), rtol=1e-9)
    np.testing.assert_allclose(lib.numpy(got.x["b"]), 3.0, atol=1e-6)
    assert lib.numpy(got.x["c"]) == 1
    assert not getattr(got.x["a"], "requires_grad", False)
    assert xopt.minimize(value, x0, method=method, jac=None, options={"gtol": 1e-7}).nhev == got.nhev


@pytest.mark.parametrize("method", ["trust-ncg", "trust-exact"])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.func itself
def test_a_hessian_as_a_tree_of_trees(lib: Lib, method: Any) -> None:
    """As jax.hessian and torch.func.hessian return it, which are called here; else from blocks."""
    if lib.name == "dask":
        pytest.skip("solvers refuse what is lazy")
    x0 = optree.tree_map(lambda x: lib.array(x), {"a": np.zeros((2, 2)), "b": (np.ones(3), np.ones(1))})
    xp = lib.module() if lib.name in ("torch", "cupy") else x0["a"].__array_namespace__()

    def value(x: Any) -> Any:
        a, b, c = x["a"], *x["b"]
        return xp.sum((a - 2) ** 4) + xp.sum(a**2) * xp.sum((b - 1) ** 2) + xp.sum((b * c - 3) ** 2) + xp.sum(c**2)

    def grad(x: Any) -> Any:
        a, b, c = x["a"], *x["b"]
        square, far, r = xp.sum(a**2), xp.sum((b - 1) ** 2), b * c - 3
        slopes = 2 * (b - 1) * square + 2 * r * c, xp.reshape(2 * xp.sum(r * b), (1,)) + 2 * c
        return {"a": 4 * (a - 2) ** 3 + 2 * a * far, "b": slopes}

    def blocks(x: Any) -> Any:
        a, b, c = lib.numpy(x["a"]), *map(lib.numpy, x["b"])
        flat, r = a.reshape(-1), b * c - 3
        aa = np.diag(12 * (flat - 2) ** 2) + 2 * np.eye(4) * np.sum((b - 1) ** 2)
        ab, bc = 4 * flat[:, None] * (b - 1), (2 * b * c + 2 * r)[:, None]
        bb, cc = 2 * np.eye(3) * (np.sum(flat**2) + c * c), np.full((1, 1), 2 * b @ b + 2)
        found = {
            "a": {"a": aa.reshape(2, 2, 2, 2), "b": [ab.reshape(2, 2, 3), np.zeros((2, 2, 1))]},
            "b": ({"a": ab.T, "b": (bb, bc)}, {"a": np.zeros((1, 2, 2)), "b": (bc.T, cc)}),
        }
        return optree.tree_map(lib.array, found)

    own = {"torch": lambda: xp.func.hessian(value), "jax": lambda: lib.module().hessian(value)}
    want = xopt.minimize(value, x0, method=method, jac=grad, hess=blocks, options={"gtol": 1e-7})
    got = xopt.minimize(value, x0, method=method, jac=grad, hess=own.get(lib.name, lambda: blocks)(),
                        options={"gtol": 1e-7})  # fmt: skip
    assert want.success
    assert (got.nit, got.nfev) == (want.nit, want.nfev)
    matrix, found = np.zeros((8, 8)), optree.tree_map(lib.numpy, blocks(want.x))
    rows = optree.tree_leaves(found)
    matrix[:4] = np.concatenate([x.reshape(4, -1) for x in rows[:3]], axis=1)
    matrix[4:7] = np.concatenate([x.reshape(3, -1) for x in rows[3:6]], axis=1)
    matrix[7:] = np.concatenate([x.reshape(1, -1) for x in rows[6:]], axis=1)
    np.testing.assert_allclose(lib.numpy(want.hess), matrix, rtol=1e-12, atol=1e-12)
    for a, b in zip(*map(optree.tree_leaves, (got.x, want.x)), strict=True):
        np.testing.assert_allclose(lib.numpy(a), lib.numpy(b), rtol=1e-9)


@pytest.mark.parametrize("method", ["trust-exact"])
def test_linear_functions_have_no_curvature(lib: Lib, method: Any) -> None:
    """The graph of the gradient is empty then."""
    if lib.name not in ("torch", "jax"):
        pytest.skip("it does not differentiate")
    got = xopt.minimize(lambda x: x.sum(), lib.array(np.zeros(2)), method=method, jac=False, maxiter=5)
    assert got.status in (1, 2)
    assert got.fun < -1


@pytest.mark.parametrize("method", SECOND)
def test_conjugate_products(method: Any) -> None:
    """JAX's convention for gradient and product; without the word the steps go astray."""
    fun = lambda x: (float(np.sum(np.abs(x - 1j) ** 2) + np.sum((x.real * x.imag) ** 2)), grad(x))

    def grad(x: Any) -> Any:
        a, b = x.real, x.imag
        return 2 * (x - 1j) + 2 * a * b * b + 2j * a * a * b

    def hessp(x: Any, p: Any) -> Any:
        a, b, u, v = x.real, x.imag, p.real, p.imag
        return 2 * p + 2 * (b * b * u + 2 * a * b * v) + 2j * (2 * a * b * u + a * a * v)

    x0 = np.asarray([0.5 + 0.3j, -1 + 2j])
    want = xopt.minimize(fun, x0, method=method, hessp=hessp)
    got = xopt.minimize(lambda x: (fun(x)[0], np.conj(grad(x))), x0, method=method, conjugate=True,
                        hessp=lambda x, p: np.conj(hessp(x, p)))  # fmt: skip
    assert want.success
    np.testing.assert_array_equal(got.x, want.x)
    np.testing.assert_allclose(want.x, 1j, atol=1e-5)


HESSIANS: dict[str, Any] = {
    "matrix": {"hess": optimize.rosen_hess},
    "list": {"hess": lambda x: optimize.rosen_hess(x).tolist()},
    "sparse": {"hess": lambda x: sparse.csr_array(optimize.rosen_hess(x))},
    "operator": {
        "hess": lambda x: LinearOperator((3, 3), lambda p: optimize.rosen_hess_prod(x, p.reshape(-1)), dtype=float)
    },
    "product": {"hessp": optimize.rosen_hess_prod},
    "not symmetric": {"hess": lambda x: optimize.rosen_hess(x) * np.asarray([[1, 2, 2], [0, 1, 2], [0, 0, 1]])},
}  # fmt: skip


@pytest.mark.parametrize("method", SECOND)
@pytest.mark.parametrize("form", HESSIANS)
def test_every_form_of_a_hessian(method: Any, form: str) -> None:
    want = xopt.minimize(chain, X0, method=method, hess=optimize.rosen_hess)
    got = xopt.minimize(chain, X0, method=method, **HESSIANS[form])
    assert got.success
    assert got.nit == want.nit
    np.testing.assert_allclose(got.x, want.x, rtol=1e-6)


def test_shapes_and_arguments() -> None:
    """A matrix of the shape of x twice, one row a leaf of a tree; args go to all functions; dtypes follow x0."""
    fun = lambda x, s: (s * chain(x.reshape(-1))[0], s * chain(x.reshape(-1))[1].reshape(2, 2))
    hess = lambda x, s: s * optimize.rosen_hess(x.reshape(-1)).reshape(2, 2, 2, 2)
    got = xopt.minimize(fun, np.zeros((2, 2)), method="trust-exact", hess=hess, args=3.0)
    assert got.success
    np.testing.assert_allclose(got.x, 1, atol=1e-4)
    assert got.hess.shape == (4, 4)
    np.testing.assert_allclose(got.hess, 3 * optimize.rosen_hess(got.x.reshape(-1)))
    assert xopt.minimize(fun, np.zeros((2, 2)), method="newton-cg", args=(2.0,), hessp=lambda x, p, s: s * (
        optimize.rosen_hess_prod(x.reshape(-1), p.reshape(-1)).reshape(2, 2)
    )).success  # fmt: skip
    tree = lambda x: (chain(np.concatenate(x))[0], [*np.split(chain(np.concatenate(x))[1], [1])])
    got = xopt.minimize(tree, [np.zeros(1), np.zeros(2)], method="trust-ncg",
                        hess=lambda x: optimize.rosen_hess(np.concatenate(x)))  # fmt: skip
    np.testing.assert_allclose(np.concatenate(got.x), 1, atol=1e-4)
    scalar = xopt.minimize(lambda x: ((x - 3) ** 4, 4 * (x - 3) ** 3), np.asarray(0.0), method="trust-exact",
                           hess=lambda x: 12 * (x - 3) ** 2)  # fmt: skip
    assert scalar.x.shape == ()
    assert abs(scalar.x - 3) < 0.05
    single = xopt.minimize(lambda x: (chain(x)[0], chain(x)[1].astype("f4")), X0.astype("f4"), method="trust-exact",
                           hess=optimize.rosen_hess, options={"gtol": 1e-3})  # fmt: skip
    assert single.hess.dtype == np.float32


@pytest.mark.parametrize("method", SECOND)
def test_differences_of_gradients(method: Any) -> None:
    """They count as evaluations, and ``maxfun`` ends them; of gradients that are differences themselves, too."""
    got = xopt.minimize(chain, X0, method=method)
    want = xopt.minimize(chain, X0, method=method, hess=optimize.rosen_hess)
    assert got.success
    assert got.nhev == 0
    assert abs(got.nit - want.nit) <= 5  # newton-cg takes 146 along the valley
    assert got.nfev == got.njev > want.nfev + want.nit
    np.testing.assert_allclose(got.x, want.x, atol=1e-5)
    short = xopt.minimize(chain, X0, method=method, options={"maxfun": 7})
    assert (short.status, short.nfev) == (1, 7)
    assert short.fun == chain(short.x)[0]
    for jac in ("2-point", "3-point"):
        rough = xopt.minimize(lambda x: chain(x)[0], X0, method=method, jac=jac, options={"gtol": 1e-4})  # type: ignore[arg-type]
        assert rough.success
        np.testing.assert_allclose(rough.x, 1, atol=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_limits_and_callbacks(method: Any) -> None:
    given: dict[str, Any] = {} if method == "bfgs" else {"hess": optimize.rosen_hess}
    run = lambda **more: xopt.minimize(chain, X0, method=method, **given, **more)
    assert run(maxiter=3).nit == 3
    assert run(options={"maxfun": 4}).nfev == 4
    assert run(options={"target": 1.0}).fun <= 1.0
    assert run(options={"max_time": 0.0}).status == 1
    assert "xtol" in run(options={"gtol": 0.0, "xtol": 1e-3}).message
    assert "ftol" in run(options={"gtol": 0.0, "ftol": 1e-3}).message
    assert run(tol=1e-9).nit >= run(tol=1e-2).nit
    assert np.abs(run(tol=1e-9).jac).max() <= 1e-9
    seen: list[Any] = []
    got = run(callback=lambda intermediate_result: seen.append(intermediate_result) or len(seen) == 4)
    assert (got.status, got.nit, len(seen)) == (99, 4, 4)
    assert seen[-1].fun == chain(seen[-1].x)[0]
    for maxfun in range(1, 20):
        values: list[float] = []

        def fun(x: Any, values: list[float] = values) -> Any:
            values.append(chain(x)[0])
            return chain(x)

        found = xopt.minimize(fun, X0, method=method, options={"maxfun": maxfun}, **given)
        assert found.fun == chain(found.x)[0] == min(values)
        assert np.array_equal(found.jac, chain(found.x)[1])


@pytest.mark.parametrize("method", SECOND)
@pytest.mark.parametrize("name", ["hess", "hessp"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_what_a_hessian_raises(method: Any, name: str, error: Any) -> None:
    calls = []

    def second(x: Any, *p: Any) -> Any:
        calls.append(1)
        if len(calls) == 9:
            raise error("nine")
        return optimize.rosen_hess_prod(x, *p) if p else optimize.rosen_hess(x)

    given: dict[str, Any] = {name: second}
    if error is KeyboardInterrupt:
        got = xopt.minimize(chain, X0, method=method, **given)
        assert got.status == 3
    else:
        with pytest.raises(ZeroDivisionError, match="nine") as caught:
            xopt.minimize(chain, X0, method=method, **given)
        got = caught.value.intermediate_result  # type: ignore[attr-defined]
    assert got.fun == chain(got.x)[0] < chain(X0)[0]


@pytest.mark.parametrize("method", SECOND)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_hessian_that_is_no_number(method: Any, bad: float) -> None:
    """newton-cg goes along -g then; a trust region has no model, and ends."""
    for given in ({"hess": lambda x: np.full((3, 3), bad)}, {"hessp": lambda x, p: np.full(3, bad)}):
        got = xopt.minimize(bowl, np.zeros(3), method=method, **given)  # type: ignore[arg-type]
        assert got.success if method == "newton-cg" else (got.status, got.nit) == (2, 0)


def test_the_user_hears_numpys_warnings() -> None:
    """xopt computes without; the functions of the user are called with the settings there are."""
    for given in ({"hess": lambda x: np.eye(3) / np.zeros(3)}, {"hessp": lambda x, p: p / np.zeros(3)}):
        with pytest.raises(RuntimeWarning, match="divide by zero"):
            xopt.minimize(bowl, np.zeros(3), method="newton-cg", **given)  # type: ignore[arg-type]
    with pytest.raises(RuntimeWarning, match="divide by zero"):
        xopt.minimize(lambda x: (1.0, x + np.float64(1) / (np.ones(1) if x[0] == 0 else np.zeros(1))), np.zeros(3),
                      method="newton-cg")  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_behind_scipy(method: Any) -> None:
    """The same run with SciPy's arguments, counts and statuses; and its hess_inv, a matrix."""
    given: list[dict[str, Any]] = [{}]
    if method != "bfgs":
        given = [{"hess": optimize.rosen_hess}, {"hessp": optimize.rosen_hess_prod}, {"hess": "2-point"}, {}]
    for more in given:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            got = optimize.minimize(
                optimize.rosen, X0, jac=optimize.rosen_der, method=xopt.scipy_method(method), **more
            )
        assert got.success
        np.testing.assert_allclose(got.x, 1, atol=1e-4)
        if method == "bfgs":
            assert type(got.hess_inv) is np.ndarray
            assert got.hess_inv.shape == (3, 3)
        else:
            assert (got.nhev > 0) == callable(next(iter(more.values()), None))
    if method != "bfgs":
        with pytest.raises(ValueError, match="jac: None, but .* needs the gradient"):
            optimize.minimize(optimize.rosen, X0, method=xopt.scipy_method(method))
        with pytest.raises(TypeError, match="hess: 3, but it must be a function"):
            optimize.minimize(optimize.rosen, X0, jac=optimize.rosen_der, hess=3, method=xopt.scipy_method(method))
    bounded = {"jac": optimize.rosen_der, "bounds": [(0, 2)] * 3, "method": xopt.scipy_method(method)}
    with pytest.raises(ValueError, match="bounds: given, but"):
        optimize.minimize(optimize.rosen, X0, **bounded)


def test_names() -> None:
    for name in ("BFGS", "Newton-CG", "trust-ncg", "TRUST-EXACT"):
        assert xopt.minimize(bowl, np.zeros(3), method=name).success  # type: ignore[arg-type]


def test_what_does_not_fit() -> None:
    eye, product = (lambda x: np.eye(3)), (lambda x, p: p)
    run: Any = lambda method="newton-cg", **more: xopt.minimize(bowl, np.zeros(3), method=method, **more)
    tree = lambda **more: xopt.minimize(lambda x: (x["a"] @ x["a"], {"a": 2 * x["a"]}), {"a": np.ones(2)},
                                        method="trust-ncg", **more)  # fmt: skip
    complex_: Any = lambda **more: xopt.minimize(lambda x: (1.0, x), np.ones(2) * 1j, method="trust-ncg", **more)
    one, pair = np.ones((1, 1)), {"a": np.ones(1), "b": np.ones(1)}
    nested = lambda found: xopt.minimize(
        lambda x: (x["a"][0] ** 2, pair), pair, method="trust-ncg", hess=lambda x: found
    )
    for error, match, call in [
        (TypeError, r"hess: given with method 'lbfgs'; 'newton-cg' or .*exact' uses", lambda: run("lbfgs", hess=eye)),
        (TypeError, r"hessp: given with method 'bfgs'; ", lambda: run("bfgs", hessp=product)),
        (TypeError, r"hess: given with a rule, which does not", lambda: run(None, rule=xopt.Adam(), hess=eye)),
        (TypeError, r"hess and hessp: both are given", lambda: run(hess=eye, hessp=product)),
        (TypeError, r"hess: '2-point', but it must be a function", lambda: run(hess="2-point")),
        (TypeError, r"hessp: 3, but it must be a function", lambda: run(hessp=3)),
        (TypeError, r"bounds: given with method 'newton-cg'; 'lbfgs-b' has bounds", lambda: run(bounds=(0, 1))),
        (TypeError, r"bounds: given with method 'bfgs'", lambda: run("bfgs", bounds=(0, 1))),
        (ValueError, r"hess: shape \(2, 2\), but x0 has 3 numbers, so it must be \(3, 3\)",
         lambda: run(hess=lambda x: np.eye(2))),
        (ValueError, r"hess: shape \(2, 3\), but it must be \(3, 3\)",
         lambda: run(hess=lambda x: sparse.csr_array(np.ones((2, 3))))),
        (TypeError, r"hess: returned a NoneType, but x0 has arrays of numpy", lambda: run(hess=lambda x: None)),
        (TypeError, r"hess: dtype complex128", lambda: run(hess=lambda x: 1j * np.eye(3))),
        (ValueError, r'hess\["b"\]: missing, but x0 and its leaves have it', lambda: nested({"a": {"a": one}})),
        (ValueError, r'hess\["a"\]\["b"\]: missing', lambda: nested({"a": {"a": one}, "b": {"a": one, "b": one}})),
        (
            ValueError,
            r'hess\["b"\]\["a"\]: shape \(2, 1\), but it must be \(1, 1\)',
            lambda: nested({"a": {"a": one, "b": one}, "b": {"a": np.ones((2, 1)), "b": one}}),
        ),
        (
            TypeError,
            r'hess\["a"\]\["a"\]: dtype complex128, but it must be real',
            lambda: nested({"a": {"a": 1j * one, "b": one}, "b": {"a": one, "b": one}}),
        ),
        (TypeError, r"hess: returned a list that is no matrix", lambda: run(hess=lambda x: [[1, 2], [3]])),
        (TypeError, r"hess: given, but x0 is complex; give hessp", lambda: complex_(hess=eye)),
        (ValueError, r"hessp: shape \(2,\), but the parameter has \(3,\)", lambda: run(hessp=lambda x, p: p[:2])),
        (TypeError, r"hessp: dtype float32, but", lambda: run(hessp=lambda x, p: p.astype("f4"))),
        (ValueError, r'hessp\["a"\]: shape \(1,\)', lambda: tree(hessp=lambda x, p: {"a": p["a"][:1]})),
        (ValueError, r'hessp\["a"\]: None', lambda: tree(hessp=lambda x, p: {"a": None})),
        ((TypeError, ValueError), r"hessp", lambda: tree(hessp=lambda x, p: {"b": p["a"]})),
        (ValueError, r"hess_inv0: shape \(2, 2\), but x0 has 3 real",
         lambda: run("bfgs", options={"hess_inv0": np.eye(2)})),
        (ValueError, r"hess_inv0: not positive definite", lambda: run("bfgs", options={"hess_inv0": -np.eye(3)})),
        (ValueError, r"hess_inv0: not symmetric", lambda: run("bfgs", options={"hess_inv0": np.tri(3)})),
        (TypeError, r"hess_inv0: a str, but", lambda: run("bfgs", options={"hess_inv0": "eye"})),
        (TypeError, r"options: maxls, but for trust-ncg there are", lambda: run("trust-ncg", options={"maxls": 3})),
        (TypeError, r"options: maxcg, but for trust-exact", lambda: run("trust-exact", options={"maxcg": 3})),
        (TypeError, r"options: preconditioner, but for bfgs", lambda: run("bfgs", options={"preconditioner": abs})),
        (ValueError, r"maxcg: 0, but it must be ≥ 1", lambda: run(options={"maxcg": 0})),
        (ValueError, r"eta: 0.25, but it must be ≥ 0 and < 0.25", lambda: run("trust-ncg", options={"eta": 0.25})),
        (ValueError, r"initial_trust_radius: 0, but", lambda: run("trust-ncg", options={"initial_trust_radius": 0})),
        (ValueError, r"initial_trust_radius: inf, but it must be finite",
         lambda: run("trust-exact", options={"initial_trust_radius": math.inf})),
        (ValueError, r"initial_trust_radius: 2.0, but max_trust_radius is 1.0",
         lambda: run("trust-exact", options={"initial_trust_radius": 2, "max_trust_radius": 1})),
        (ValueError, r"x0: the value there is nan", lambda: xopt.minimize(
            lambda x: (math.nan, x), np.ones(2), method="trust-exact")),
    ]:  # fmt: skip
        with pytest.raises(error, match=match):
            call()


@pytest.mark.parametrize("method", SECOND)
def test_where_the_value_is_infinite(method: Any) -> None:
    """A step into it is too long; the run goes on."""

    def fun(x: Any) -> Any:
        if x[0] > 1.05:
            return math.inf, np.full(2, math.nan)
        return float(-np.log(1.1 - x[0]) - 3 * x[0] + x[1] ** 2), np.asarray([1 / (1.1 - x[0]) - 3, 2 * x[1]])

    hess = lambda x: np.diag([1 / (1.1 - x[0]) ** 2, 2.0])
    got = xopt.minimize(fun, np.asarray([-40.0, 3.0]), method=method, hess=hess, options={"gtol": 1e-7})
    assert got.success
    np.testing.assert_allclose(got.x, [1.1 - 1 / 3, 0], atol=1e-6)


def test_how_often_the_device_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once an evaluation, and once a product; a matrix is looked at by its eigenvalues."""
    from xopt.solvers import _space

    looks = []
    original = _space.numbers
    monkeypatch.setattr(_space, "numbers", lambda *a: looks.append(1) or original(*a))
    start = {"a": X0[:1], "b": X0[1:]}  # a tree, whose vectors take the way of every library
    fun = lambda x: (lambda v, g: (v, {"a": g[:1], "b": g[1:]}))(*chain(np.concatenate([x["a"], x["b"]])))
    hess = lambda x: optimize.rosen_hess(np.concatenate([x["a"], x["b"]]))
    for method, more in (("bfgs", {}), *((m, {"hess": hess}) for m in SECOND)):
        calls: list[int] = []
        looks.clear()
        given: dict[str, Any] = dict(more)
        if method in ("newton-cg", "trust-ncg"):
            given = {"hessp": lambda x, p, calls=calls: calls.append(1) or (
                lambda h: {"a": h[:1], "b": h[1:]})(hess(x) @ np.concatenate([p["a"], p["b"]]))}  # fmt: skip
        got = xopt.minimize(fun, start, method=method, **given)
        assert got.success
        most = got.nfev + len(calls) + (got.nhev - 1 if method == "trust-exact" else 0)  # the last is in the result
        assert len(looks) == most
