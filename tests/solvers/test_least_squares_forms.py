"""least_squares of one fit: what may be given, what comes back, what comes in between, on every library."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import optree
import pytest
from conftest import Lib

import xopt

A = Any
T = np.linspace(0, 4, 30)
DECAY = 2.5 * np.exp(-1.3 * T) + 0.5 + 0.05 * np.random.default_rng(3).standard_normal(30)


def decay(x: A) -> A:
    return x[0] * np.exp(-x[1] * T) + x[2] - DECAY


def decay_jac(x: A) -> A:
    e = np.exp(-x[1] * T)
    return np.stack([e, -x[0] * T * e, np.ones_like(T)], axis=-1)


def flat() -> Any:
    """Return the result for one array of parameters."""
    return xopt.least_squares(decay, np.ones(3), jac=decay_jac)


def space(lib: Lib, x: Any) -> Any:
    """Return the namespace of an array."""
    return lib.functions(x)


@pytest.mark.parametrize("options", [{}, {"method": "dogleg"}, {"geodesic": True}, {"bounds": (None, 9)}], ids=str)
@pytest.mark.parametrize("jac", [True, False], ids=["jac", "differences"])
def test_trees(jac: bool, options: Any) -> None:
    """The steps are those of one array; rows of the covariance are in the order of the arrays."""
    x0 = {"b": np.ones((1, 1)), "a": (np.ones(()), np.ones((1, 1, 1)))}  # "a" comes first: amplitude, offset, rate
    order = [0, 2, 1]
    pick = lambda x: np.stack([x["a"][0], x["b"][0, 0], x["a"][1][0, 0, 0]])

    def columns(x: Any) -> Any:
        j = decay_jac(pick(x))
        return {"a": (j[:, 0], j[:, 2].reshape(30, 1, 1, 1)), "b": j[:, 1].reshape(30, 1, 1)}

    given: Any = {"jac": columns} if jac else {}
    got = xopt.least_squares(lambda x: decay(pick(x)), x0, **given, **options)
    want = xopt.least_squares(decay, np.ones(3), **({"jac": decay_jac} if jac else {}), **options)  # type: ignore
    assert got.nfev == want.nfev or options
    np.testing.assert_allclose(pick(got.x), want.x, rtol=1e-5)
    np.testing.assert_allclose(pick(got.stderr), want.stderr, rtol=1e-3)
    np.testing.assert_allclose(got.covariance, want.covariance[np.ix_(order, order)], rtol=1e-3)
    np.testing.assert_allclose(got.jac, want.jac[:, order], atol=1e-4)
    for name in ("x", "grad", "stderr", "active_mask"):
        assert optree.tree_structure(got[name]) == optree.tree_structure(x0)
        assert [x.shape for x in optree.tree_leaves(got[name])] == [(), (1, 1, 1), (1, 1)]


def test_bounds_of_trees() -> None:
    fun = lambda x: decay(np.append(x["a"], x["b"]))
    x0 = {"a": np.ones(2), "b": np.ones(1)}
    want = xopt.least_squares(decay, np.ones(3), jac=decay_jac, bounds=([2, 0, 0], [9, 1, 9]))
    assert want.active_mask.tolist() == [0, 1, 0]
    for low in ({"a": np.asarray([2, 0]), "b": np.zeros(1)}, {"a": 0, "b": None}, None, 0):
        for high in ({"a": np.asarray([9, 1]), "b": np.asarray([9])}, {"a": np.asarray([np.inf, 1]), "b": None}):
            got = xopt.least_squares(fun, x0, bounds=(low, high))
            np.testing.assert_allclose(np.append(got.x["a"], got.x["b"]), want.x, rtol=1e-5)
            assert got.active_mask["a"].tolist() == [0, 1]
            assert got.active_mask["b"].tolist() == [0]


def test_x_scale_of_trees() -> None:
    fun = lambda x: decay(np.append(x["a"], x["b"]))
    x0 = {"a": np.ones(2), "b": np.ones(1)}
    got = xopt.least_squares(fun, x0, x_scale={"a": np.asarray([2.0, 1.0]), "b": 0.5})
    want = xopt.least_squares(decay, np.ones(3), x_scale=[2.0, 1.0, 0.5])
    assert got.nfev == want.nfev
    np.testing.assert_allclose(np.append(got.x["a"], got.x["b"]), want.x, rtol=1e-8)


@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 5), (30, 1), (1, 30)], ids=str)
def test_residuals_of_any_shape(shape: Any) -> None:
    got = xopt.least_squares(
        lambda x: decay(x).reshape(shape), np.ones(3), jac=lambda x: decay_jac(x).reshape(*shape, 3)
    )
    want = flat()
    assert (got.nfev, got.cost) == (want.nfev, want.cost)
    np.testing.assert_array_equal(got.x, want.x)
    np.testing.assert_array_equal(np.ravel(got.fun), want.fun)
    assert got.jac.shape == (30, 3)


def test_one_residual() -> None:
    got = xopt.least_squares(lambda x: x @ x - 2, [1.0, 2.0])  # a NumPy number
    assert got.success
    assert got.x @ got.x == pytest.approx(2)
    assert xopt.least_squares(lambda x: float(x[0]) - 3, [1.0]).x[0] == pytest.approx(3)


def test_complex_residuals() -> None:
    """Real and imaginary parts are residuals each."""
    y = (2 - 1j) * np.exp((-0.5 + 2j) * T) + 0.1 * DECAY
    fun = lambda x: (x[0] + 1j * x[1]) * np.exp((x[2] + 1j * x[3]) * T) - y

    def jac(x: Any) -> Any:
        e = np.exp((x[2] + 1j * x[3]) * T)
        slope = (x[0] + 1j * x[1]) * T * e
        return np.stack([e, 1j * e, slope, 1j * slope], axis=-1)

    split = lambda z: np.concatenate([z.real, z.imag])
    want = xopt.least_squares(lambda x: split(fun(x)), [1.0, -1.0, -0.4, 1.8], jac=lambda x: split(jac(x)))
    for given in ({"jac": jac}, {"jac": "3-point"}, {}, {"jac": jac, "loss": "huber", "f_scale": 100.0}):
        got = xopt.least_squares(fun, [1.0, -1.0, -0.4, 1.8], **given)  # type: ignore[arg-type]
        assert got.success
        np.testing.assert_allclose(got.x, want.x, rtol=1e-5)
        np.testing.assert_allclose(got.stderr, want.stderr, rtol=1e-4)
        assert got.jac.shape == (60, 4)
        assert got.cost == pytest.approx(np.sum(np.abs(fun(got.x)) ** 2) / 2)
        assert got.grad.dtype == np.float64


@pytest.mark.parametrize(
    ("x0", "shape"),
    [(1, ()), (1.0, ()), (np.float64(1), ()), ([1], (1,)), ((1, 1), (2,)), (np.asarray([[1, 1]]), (1, 2)),
     (np.ones(3, "int32"), (3,)), (np.asarray(1), ())],
    ids=str,
)  # fmt: skip
def test_numbers_lists_and_integers(x0: Any, shape: tuple[int, ...]) -> None:
    if isinstance(x0, tuple):
        x0 = list(x0)
    got = xopt.least_squares(lambda x: x**2 - 2, x0)
    assert isinstance(got.x, np.ndarray)
    assert (got.x.shape, got.x.dtype, got.grad.shape, got.stderr.shape) == (shape, np.float64, shape, shape)
    np.testing.assert_allclose(got.x, 2**0.5, rtol=1e-7)


@pytest.mark.parametrize("options", [{}, {"jac": "2-point"}, {"jac": "3-point"}, {"method": "dogleg"}], ids=str)
def test_float32(options: Any) -> None:
    """Also tolerances that are less than its ε; and bounds are rounded inwards."""
    fun = lambda x: (x[0] * np.exp(-x[1] * T) + x[2] - DECAY).astype("float32")
    given = {"jac": lambda x: decay_jac(x).astype("float32"), **options}
    want = flat()
    for more in ({}, {"ftol": 1e-15, "xtol": 1e-15, "gtol": 0}, {"bounds": (0.1, 4.1)}):
        got = xopt.least_squares(fun, np.ones(3, "float32"), **given, **more)
        assert got.success
        assert got.nfev < 100
        for name in ("x", "grad", "stderr", "fun", "jac", "covariance"):
            assert got[name].dtype == np.float32, name
        np.testing.assert_allclose(got.x, want.x, rtol=2e-3)
        np.testing.assert_allclose(got.stderr, want.stderr, rtol=1e-2)
        assert isinstance(got.cost, float)
        assert got.cost == pytest.approx(want.cost, rel=1e-4)
    seen: list[Any] = []
    keep = lambda x: (seen.append(x), fun(x))[1]  # type: ignore[func-returns-value]
    got = xopt.least_squares(keep, np.ones(3, "float32"), bounds=(0.1, [9, 1.1, 9]))
    assert all((np.float64(x) >= 0.1).all() and float(x[1]) <= 1.1 for x in seen)
    assert got.active_mask.tolist() == [0, 1, 0]


def test_float32_and_float64_in_a_tree() -> None:
    join = lambda x: np.append(x["a"], x["b"])
    jac = lambda x: {"a": decay_jac(join(x))[:, :2], "b": decay_jac(join(x))[:, 2:]}
    got = xopt.least_squares(lambda x: decay(join(x)), {"a": np.ones(2, "float32"), "b": np.ones(1)}, jac=jac)
    assert got.success
    assert (got.x["a"].dtype, got.x["b"].dtype) == (np.float32, np.float64)
    np.testing.assert_allclose(join(got.x), flat().x, rtol=1e-4)


def test_args() -> None:
    fun = lambda x, t, y: x[0] * np.exp(-x[1] * t) + x[2] - y
    jac = lambda x, t, y: decay_jac(x)
    for more in ({"jac": jac}, {"jac": "3-point"}, {}):
        got = xopt.least_squares(fun, np.ones(3), args=(T, DECAY), **more)  # type: ignore[arg-type]
        np.testing.assert_allclose(got.x, flat().x, rtol=1e-6)
    got = xopt.least_squares(lambda x, y: decay(x) + DECAY - y, np.ones(3), args=DECAY)
    np.testing.assert_allclose(got.x, flat().x, rtol=1e-6)


def test_result() -> None:
    got = flat()
    assert isinstance(got, xopt.OptimizeResult)
    assert [*got] == (
        [
            "x",
            "cost",
            "fun",
            "grad",
            "optimality",
            "active_mask",
            "nit",
            "nfev",
            "njev",
            "covariance",
            "stderr",
            "status",
            "success",
            "message",
            "jac",
        ]
    )
    for name, kind in (("cost", float), ("optimality", float), ("nit", int), ("nfev", int), ("njev", int),
                       ("status", int), ("success", bool), ("message", str)):  # fmt: skip
        assert type(got[name]) is kind, name
    np.testing.assert_array_equal(got.fun, decay(got.x))
    np.testing.assert_array_equal(got.jac, decay_jac(got.x))
    np.testing.assert_allclose(got.grad, got.jac.T @ got.fun, atol=1e-12)
    assert got.cost == pytest.approx(got.fun @ got.fun / 2, rel=1e-14)
    want = 2 * got.cost / 27 * np.linalg.inv(got.jac.T @ got.jac)
    np.testing.assert_allclose(got.covariance, want, rtol=1e-8)
    np.testing.assert_allclose(got.stderr, np.sqrt(np.diag(want)), rtol=1e-8)


def test_callback() -> None:
    """Called after every step tried: with x, or with a result."""
    seen: list[Any] = []
    results: list[Any] = []
    got = xopt.least_squares(decay, np.ones(3), callback=seen.append)
    assert len(seen) == got.nit
    np.testing.assert_array_equal(seen[-1], got.x)

    def note(intermediate_result: Any) -> None:
        results.append(intermediate_result)

    xopt.least_squares(decay, np.ones(3), callback=note)
    assert [r.nit for r in results] == [*range(1, got.nit + 1)]
    assert [r.nfev for r in results] == [*range(2, got.nit + 2)]
    for x, r in zip(seen, results, strict=True):
        assert set(r) == {"x", "cost", "nit", "nfev"}
        np.testing.assert_array_equal(x, r.x)
        assert r.cost == pytest.approx(decay(x) @ decay(x) / 2)
    assert all(a.cost >= b.cost for a, b in itertools.pairwise(results))


def test_a_callback_ends_the_run() -> None:
    def stop(x: Any) -> Any:
        raise StopIteration

    for callback in (stop, lambda x: True, lambda intermediate_result: True):
        got = xopt.least_squares(decay, np.ones(3), callback=callback)
        assert (got.status, got.success, got.nit) == (-2, False, 1)
        assert "callback" in got.message
    for callback in (lambda x: 1, lambda x: None, lambda x: False, lambda x: "yes"):
        assert xopt.least_squares(decay, np.ones(3), callback=callback).success


def test_a_callback_gets_a_tree_of_its_own() -> None:
    def spoil(x: Any) -> None:
        x["a"][...] = np.nan

    got = xopt.least_squares(lambda x: decay(x["a"]), {"a": np.ones(3)}, callback=spoil)
    np.testing.assert_allclose(got.x["a"], flat().x, rtol=1e-6)


@pytest.mark.parametrize("where", ["fun", "jac", "2-point"])
def test_interrupted(where: str) -> None:
    """The best point so far comes back."""
    costs: list[float] = []

    def late(calls: list[int], n: int) -> None:
        calls.append(1)
        if len(calls) == n:
            raise KeyboardInterrupt

    a, b = list[int](), list[int]()

    def fun(x: Any) -> Any:
        if where != "jac":
            late(a, 5)
        return decay(x)

    def jac(x: Any) -> Any:
        if where == "jac":
            late(b, 4)
        return decay_jac(x)

    def note(intermediate_result: Any) -> None:
        costs.append(intermediate_result.cost)

    given: Any = {"jac": jac} if where != "2-point" else {}
    got = xopt.least_squares(fun, np.ones(3), callback=note, xtol=1e-15, ftol=1e-15, gtol=0, **given)
    assert (got.status, got.success) == (-1, False)
    assert "interrupted" in got.message
    assert got.cost <= min(costs, default=np.inf)
    assert got.cost == pytest.approx(decay(got.x) @ decay(got.x) / 2)


@pytest.mark.parametrize("where", ["fun", "jac", "2-point", "callback"])
def test_an_exception_comes_through(where: str) -> None:
    error, calls = ArithmeticError("of the user"), list[int]()

    def late(found: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise error
        return found

    given: dict[str, Any] = {"jac": decay_jac}
    fun = decay
    if where == "callback":
        given["callback"] = late
    elif where == "jac":
        given["jac"] = lambda x: late(decay_jac(x))
    elif where == "fun":
        fun = lambda x: late(decay(x))
    else:
        given, fun = {}, lambda x: late(decay(x)) if calls or x[0] != 1 or (x == 1).all() else decay(x)
    with pytest.raises(ArithmeticError) as caught:
        xopt.least_squares(fun, np.ones(3), **given)
    assert caught.value is error
    assert error.__cause__ is None
    if where != "2-point":  # of that it is raised at the start
        found = error.intermediate_result  # type: ignore[attr-defined]
        assert found.status == -1
        assert found.cost == pytest.approx(decay(found.x) @ decay(found.x) / 2)


def test_nothing_is_written_into() -> None:
    """Read-only arrays do for everything, and the parts of the result are not x0."""
    fixed = lambda *x: [a for a in map(np.asarray, x) if a.setflags(write=False) is None]
    x0, low, high, size = fixed(np.ones(3), np.zeros(3), np.asarray([9.0, 1, 9]), np.ones(3))
    held = decay(np.ones(3))
    held.setflags(write=False)

    def fun(x: Any) -> Any:
        x.setflags(write=False)
        f = decay(x)
        f.setflags(write=False)
        return f

    def jac(x: Any) -> Any:
        j = decay_jac(x)
        j.setflags(write=False)
        return j

    for options in ({}, {"bounds": (low, high)}, {"x_scale": size}, {"loss": "cauchy"}, {"geodesic": True}):
        for given in ({"jac": jac}, {}):
            got = xopt.least_squares(fun, x0, **given, **options)  # type: ignore[arg-type]
            assert got.success
            assert not np.shares_memory(got.x, x0)
    assert (x0.tolist(), low.tolist(), high.tolist()) == ([1, 1, 1], [0, 0, 0], [9, 1, 9])
    at_once = xopt.least_squares(lambda x: x - 1, x0)
    assert not np.shares_memory(at_once.x, x0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", ["None", "jac", "bounds", "3-point", "dogleg", "loss", "geodesic"])
def test_every_library(lib: Lib, options: str, dtype: str) -> None:
    """The library, dtype and structure of x0 come back. Without ``jac`` torch and JAX differentiate."""
    x0 = {"a": lib.array(np.ones(2, dtype)), "b": lib.array(np.ones((), dtype))}
    if lib.name == "dask":
        with pytest.raises(TypeError, match=r"dask, which computes nothing until the end"):
            xopt.least_squares(print, x0)  # type: ignore[arg-type]
        return
    t, y = lib.array(T.astype(dtype)), lib.array(DECAY.astype(dtype))
    xp = space(lib, t)
    calls: list[Any] = []

    def fun(x: Any) -> Any:
        calls.append(1)
        return x["a"][0] * xp.exp(-x["a"][1] * t) + x["b"] - y

    def jac(x: Any) -> Any:
        e = xp.exp(-x["a"][1] * t)
        return {"a": xp.stack([e, -x["a"][0] * t * e], axis=-1), "b": xp.ones_like(t)}

    given: dict[str, Any] = {
        "None": {},
        "jac": {"jac": jac},
        "bounds": {"jac": jac, "bounds": (0, {"a": lib.array(np.asarray([2.0, 9.0], dtype)), "b": None})},
        "3-point": {"jac": "3-point"},
        "dogleg": {"jac": jac, "method": "dogleg"},
        "loss": {"jac": jac, "loss": "soft_l1"},
        "geodesic": {"jac": jac, "geodesic": True},
    }[options]
    rough = 1e-2 if dtype == "float32" else 1e-6
    got = xopt.least_squares(fun, x0, **given)
    assert got.success
    more = {name: x for name, x in given.items() if name in ("method", "loss", "geodesic")}
    if options == "bounds":
        more["bounds"] = (0, [2.0, 9.0, np.inf])
        assert [float(x) for x in lib.numpy(got.active_mask["a"])] == [1, 0]
    want = xopt.least_squares(decay, np.ones(3), jac=decay_jac, **more)
    both = lambda x: np.append(lib.numpy(x["a"]), lib.numpy(x["b"]))
    np.testing.assert_allclose(both(got.x), want.x, rtol=rough)
    np.testing.assert_allclose(both(got.stderr), want.stderr, rtol=10 * rough)
    np.testing.assert_allclose(lib.numpy(got.covariance), want.covariance, rtol=10 * rough, atol=10 * rough**2)
    for name in ("x", "grad", "stderr", "active_mask"):
        for a, b in zip(optree.tree_leaves(got[name]), optree.tree_leaves(x0), strict=True):
            assert (a.shape, a.dtype, type(a)) == (b.shape, b.dtype, type(b))
            assert getattr(a, "device", None) == getattr(b, "device", None)
            assert not getattr(a, "requires_grad", False)
    assert (type(got.fun), type(got.jac)) == (type(t), type(t))
    assert (type(got.cost), type(got.success)) == (float, bool)
    np.testing.assert_array_equal(both(x0), 1)
    if options == "None":
        derived = lib.name in ("torch", "jax")
        e = np.exp(-both(got.x)[1] * T)
        right = np.stack([e, -both(got.x)[0] * T * e, np.ones_like(T)], axis=-1)
        off = np.abs(lib.numpy(got.jac) - right).max()
        if derived:  # as exact as the dtype is, from one call for each column at most
            assert off < (1e-5 if dtype == "float32" else 1e-13)
            assert len(calls) <= got.nfev + 3 * got.njev
        else:
            assert len(calls) == got.nfev + 3 * got.njev


def test_derivatives_are_taken_where_the_library_can(lib: Lib) -> None:
    """They are exact where differences are 0: x is rounded to steps of 0.01 in a way that has a derivative."""
    if lib.name not in ("torch", "jax"):
        pytest.skip("it does not differentiate")
    x0 = lib.array(np.asarray([0.7, 1.9]))
    xp = space(lib, x0) if lib.name == "torch" else lib.module().numpy
    stop = (lambda x: x.detach()) if lib.name == "torch" else lib.module().lax.stop_gradient
    fun = lambda x: xp.stack([x[0] - 2 * stop(x[0]), x[1] - stop(x[1]) + 1, 0.1 * x[1]])
    got = xopt.least_squares(fun, x0, max_nfev=1)
    np.testing.assert_allclose(lib.numpy(got.jac), [[1, 0], [0, 1], [0, 0.1]], atol=1e-15)


def test_another_library_for_bounds_and_scales(lib: Lib) -> None:
    """Arrays of NumPy do for these."""
    if lib.name == "dask":
        pytest.skip("least_squares refuses it")
    t, y = lib.array(T), lib.array(DECAY)
    xp = space(lib, t)
    fun = lambda x: x[0] * xp.exp(-x[1] * t) + x[2] - y
    for side in (np.asarray([9.0, 1.0, 9.0]), lib.array(np.asarray([9.0, 1.0, 9.0])), [9, 1, 9]):
        got = xopt.least_squares(fun, lib.array(np.ones(3)), bounds=(0, side), x_scale=np.ones(3))
        want = xopt.least_squares(decay, np.ones(3), jac=decay_jac, bounds=(0, [9, 1, 9]))
        np.testing.assert_allclose(lib.numpy(got.x), want.x, rtol=1e-5)
