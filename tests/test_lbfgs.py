"""LBFGS by hand: the steps of minimize, warm starts, states that are saved; and preconditioners."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import optree
import pytest
from conftest import Lib
from mgh import chain as rosenbrock

import xopt
from xopt.solvers import _space


def problem(lib: Lib, dtype: str = "float64") -> tuple[Any, Any]:
    """Least squares of a tree, complex in parts."""
    rng = np.random.default_rng(3)
    A = lib.array(rng.standard_normal((9, 6)))
    b = lib.array(rng.standard_normal(9))
    x0 = {"x": lib.array(np.zeros(6)), "z": lib.array(np.ones((2, 2), "complex128"))}

    def fun(p: Any) -> Any:
        r = A @ p["x"] - b
        xp = x0["z"].__array_namespace__() if lib.name not in ("torch", "cupy") else lib.module()
        square = xp.abs(p["z"]) ** 2
        return r @ r + xp.sum(square * square), {"x": 2 * (A.T @ r), "z": 4 * p["z"] * square}

    return x0, fun


def same(a: Any, b: Any, lib: Lib) -> bool:
    pairs = zip(optree.tree_leaves(a), optree.tree_leaves(b), strict=True)
    return all(np.array_equal(lib.numpy(x), lib.numpy(y)) for x, y in pairs)


@pytest.mark.parametrize("bounds", [None, (-0.5, 1.1)])
def test_the_steps_of_minimize(bounds: Any) -> None:
    x0 = np.tile([-1.2, 1.0], 5)
    solver = xopt.LBFGS(history=4, bounds=bounds)
    solver.init(x0)
    for k in range(1, 12):
        result = solver.step(rosenbrock)
        want = xopt.minimize(rosenbrock, x0, bounds=bounds, maxiter=k, options={"history": 4, "gtol": 0.0})
        assert (result.fun, result.nit, result.nfev) == (want.fun, k, want.nfev)
        assert np.array_equal(solver.x, want.x)
        assert np.array_equal(solver.gradient, want.jac)
        assert result.success
        assert "a step of length" in result.message


@pytest.mark.parametrize("history", [1, 3, 10])
@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("at", [1, 2, 7])
def test_a_saved_state_goes_on_with_the_same_bits(history: int, bounded: bool, at: int) -> None:
    x0 = np.tile([-1.2, 1.0], 5)
    make = lambda: xopt.LBFGS(history=history, bounds=(-0.5, 1.1) if bounded else None)
    first, file = make(), io.BytesIO()
    first.init(x0)
    for _ in range(at):
        first.step(rosenbrock)
    np.savez(file, **first.state())
    second = make()
    second.load(np.load(io.BytesIO(file.getvalue())))
    assert np.array_equal(first.x, second.x)
    for _ in range(12):
        assert first.step(rosenbrock) == second.step(rosenbrock)
        assert np.array_equal(first.x, second.x)


def test_states_of_every_library(lib: Lib) -> None:
    """Of a tree; and the vectors may come from NumPy."""
    if lib.name == "dask":
        pytest.skip("minimize refuses it")
    x0, fun = problem(lib)
    first = xopt.LBFGS(history=3)
    first.init(x0)
    for _ in range(5):
        first.step(fun)
    state = first.state()
    kept = optree.tree_map(lib.numpy, state["vectors"])
    for vectors in (state["vectors"], kept):
        second = xopt.LBFGS(history=3)
        second.load({**state, "vectors": vectors})
        third = xopt.LBFGS(history=3)
        third.load(state)
        for _ in range(3):
            assert second.step(fun) == third.step(fun)
        assert same(second.x, third.x, lib)
        assert optree.tree_structure(second.x) == optree.tree_structure(x0)
    assert np.array_equal(lib.numpy(state["vectors"]), kept), "a step has written into the state"
    for _ in range(3):
        first.step(fun)
    assert same(first.x, second.x, lib)


@pytest.mark.parametrize("bounds", [None, (-0.5, 0.5)])
def test_a_warm_start_saves_steps(bounds: Any) -> None:
    """Of logistic regression, when some labels have changed."""
    rng, scales = np.random.default_rng(0), np.logspace(0, 1.5, 40)
    X = rng.standard_normal((400, 40)) * scales
    labels = np.sign(X @ (rng.standard_normal(40) / scales) + rng.standard_normal(400))

    def logistic(labels: Any) -> Any:
        def fun(w: Any) -> Any:
            margins = labels * (X @ w)
            slope = -(X.T @ (labels / (1 + np.exp(margins)))) / 400 + 1e-3 * w
            return np.mean(np.logaddexp(0, -margins)) + 5e-4 * (w @ w), slope

        return fun

    first = xopt.LBFGS(history=20, bounds=bounds)
    first.init(np.zeros(40))
    while first.step(logistic(labels)).optimality > 1e-3:
        pass
    changed = logistic(np.where(np.arange(400) < 10, -labels, labels))
    runs = [xopt.LBFGS(history=20, bounds=bounds) for _ in range(2)]
    runs[0].init(first.x)
    runs[1].init(first.x, warm=first.state())
    for steps in (1, 10, 30):  # in all, 41
        cold, warm = (([run.step(changed) for _ in range(steps)][-1]) for run in runs)
        assert warm.fun < cold.fun


@pytest.mark.parametrize("bounds", [None, (-0.5, 1.1)])
def test_a_function_that_raises_loses_nothing(bounds: Any) -> None:
    x0 = np.tile([-1.2, 1.0], 5)
    plain, other = (xopt.LBFGS(history=3, bounds=bounds) for _ in range(2))
    plain.init(x0)
    other.init(x0)

    def broken(x: Any) -> Any:
        raise ZeroDivisionError

    for _ in range(12):
        with pytest.raises(ZeroDivisionError):
            other.step(broken)
        plain.step(rosenbrock)
        other.step(rosenbrock)
    # the oldest pair made room for the direction that failed, so the steps are not the same; but they are as good
    assert other.step(rosenbrock).fun < 1.1 * plain.step(rosenbrock).fun


@pytest.mark.parametrize("bounds", [None, (-2.0, 2.0)])
def test_nan_before_an_exception_does_not_stay(bounds: Any) -> None:
    solver, calls = xopt.LBFGS(history=3, bounds=bounds), []
    solver.init(np.tile([-1.2, 1.0], 5))
    for _ in range(6):
        solver.step(rosenbrock)

    def bad(x: Any) -> Any:
        calls.append(x)
        if len(calls) == 1:
            return np.inf, np.full_like(x, np.nan)
        raise ZeroDivisionError

    before = solver.x
    with pytest.raises(ZeroDivisionError):
        solver.step(bad)
    assert np.isfinite(solver.state()["vectors"]).all()
    assert np.array_equal(solver.x, before)
    while (result := solver.step(rosenbrock)).optimality > 1e-6:
        assert result.success
        assert result.nfev < 300


@pytest.mark.parametrize("history", [1, 2, 5])
@pytest.mark.parametrize("warm", [False, True])
def test_directions_are_those_of_the_two_loops(history: int, warm: bool) -> None:
    """Nocedal (1980), as in Nocedal & Wright (2006), Algorithm 7.4, on the steps and gradients that were seen."""
    x = np.tile([-1.2, 1.0], 4)
    solver = xopt.LBFGS(history=history)
    solver.init(x)
    solver.step(rosenbrock)
    pairs = [(solver.x - x, solver.gradient - rosenbrock(x)[1])]
    for k in range(15):
        if warm and k == 7:  # somewhere else, with what is known
            state, start = solver.state(), solver.x + 0.1
            solver = xopt.LBFGS(history=history)
            solver.init(start, warm=state)
            x, g = start, rosenbrock(start)[1]
        else:
            x, g = solver.x, solver.gradient
        q, shares = g.copy(), []
        for s, y in reversed(pairs[-history:]):
            shares.append(s @ q / (s @ y))
            q -= shares[-1] * y
        s, y = pairs[-1]
        q *= s @ y / (y @ y)
        for (s, y), share in zip(pairs[-history:], reversed(shares), strict=True):
            q += s * (share - y @ q / (s @ y))
        solver.step(rosenbrock)
        step = solver.x - x
        np.testing.assert_allclose(step / np.linalg.norm(step), -q / np.linalg.norm(q), atol=1e-7)
        pairs.append((step, solver.gradient - g))


def test_a_state_has_all_that_a_step_depends_on() -> None:
    """Preconditioned, on a mixed tree, with gradients that are conjugates, until there is no better point."""
    x0 = {"a": np.ones(3, "f4"), "b": np.ones(2), "c": np.full((), 1 - 1j, "complex64")}

    def fun(p: Any) -> Any:
        a, b, c = p["a"].astype(float) - 0.3, p["b"] - np.pi, p["c"] - (2 + 0.7j)
        grads = {"a": (4 * a**3 + a).astype("f4"), "b": 20 * b, "c": np.complex64(2 * c.conjugate())}
        return np.sum(a**4 + a**2 / 2) + 10 * b @ b + abs(c) ** 2, grads

    def make() -> xopt.LBFGS:
        return xopt.LBFGS(
            history=3, conjugate=True, preconditioner=lambda g: {"a": g["a"], "b": g["b"] / 10, "c": g["c"] / 2}
        )

    first = make()
    first.init(x0)
    for _ in range(40):
        first.step(fun)
        second = make()
        second.load(first.state())
        assert second.step(fun) == (result := first.step(fun))
        assert all(map(np.array_equal, optree.tree_leaves(second.x), optree.tree_leaves(first.x)))
        np.testing.assert_array_equal(second.state()["numbers"], first.state()["numbers"])
    assert result.status == 2
    assert abs(first.x["c"] - (2 + 0.7j)) < 1e-3


def test_a_search_that_returns_an_old_point() -> None:
    """It is one that was not evaluated along this direction; the length counts."""
    kept: list[Any] = []

    def search(along: Any, start: Any, first: float, **_: Any) -> Any:
        kept.append(along(first))
        return start._replace(alpha=kept[0].alpha)

    got = xopt.minimize(lambda x: (x @ x, 2 * x), np.ones(2), maxiter=3, options={"line_search": search})
    assert got.fun == got.x @ got.x
    with np.errstate(over="ignore"):
        far = lambda along, start, first, **_: start._replace(alpha=1e300)  # where it never was, and nothing is finite
        got = xopt.minimize(lambda x: (x @ x, 2 * x), np.ones(2), maxiter=3, options={"line_search": far})
    assert (got.status, got.fun) == (2, 2.0)


def test_the_end() -> None:
    solver = xopt.LBFGS()
    solver.init(np.zeros(3))
    result = solver.step(lambda x: (x @ x, 2 * x))
    assert (result.success, result.status, result.nit) == (True, 0, 0)
    assert "gradient is 0" in result.message
    solver.init(np.ones(3))
    result = solver.step(lambda x: (x @ x, -2 * x))
    assert (result.success, result.status) == (False, 2)
    assert solver.x.tolist() == [1, 1, 1]


def test_what_does_not_fit() -> None:
    solver, other = xopt.LBFGS(history=3), xopt.LBFGS(history=3)
    for call in (solver.state, lambda: solver.x, lambda: solver.step(rosenbrock)):
        with pytest.raises(ValueError, match=r"LBFGS: nothing to go on with; call init\(x0\) or load\(state\) first"):
            call()
    solver.init(np.zeros(4))
    assert solver.gradient is None
    with pytest.raises(ValueError, match="state: no step was taken yet"):
        solver.state()
    solver.step(rosenbrock)
    state = solver.state()
    for error, match, call in [
        (ValueError, r"history: 0", lambda: xopt.LBFGS(history=0)),
        (ValueError, r"line_search: 'no'", lambda: xopt.LBFGS(line_search="no")),  # type: ignore[arg-type]
        (TypeError, r"preconditioner: given with bounds", lambda: xopt.LBFGS(bounds=(0, 1), preconditioner=abs)),
        (ValueError, r"state: x, numbers missing", lambda: other.load({})),
        (ValueError, r"state: vectors missing", lambda: other.load({k: v for k, v in state.items() if k != "vectors"})),
        (ValueError, r"state: free missing", lambda: xopt.LBFGS(history=3, bounds=(0, 1)).load(state)),
        (
            ValueError,
            r"state: vectors has shape \(8, 4\), but x0 and history=4 need \(10, 4\)",
            lambda: xopt.LBFGS(history=4).load(state),
        ),
        (ValueError, r"state: vectors has shape \(8, 4\)", lambda: other.init(np.zeros(5), warm=state)),
        (TypeError, r"x0: dtype int64", lambda: other.init(np.zeros(5, int))),
        (
            ValueError,
            r"state: order is \[77\], but it must be",
            lambda: other.load({**state, "order": np.asarray([77])}),
        ),
        (ValueError, r"state: 3 numbers, but there must be 11", lambda: other.load({**state, "numbers": np.ones(3)})),
    ]:
        with pytest.raises(error, match=match):
            call()


@pytest.mark.parametrize("method", ["lbfgs", "cg", "gd"])
@pytest.mark.parametrize("chunk", [3, 2**16])
def test_a_preconditioner_is_a_change_of_variables(method: Any, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With P = C·Cᵀ the steps in x are those without it in C⁻¹·x (Nocedal & Wright 2006, chapter 5)."""
    monkeypatch.setattr(_space, "CHUNK", chunk)
    x0 = np.tile([-1.2, 1.0], 4)
    C = np.linalg.cholesky(np.diag(np.arange(1.0, 9)) + 0.5)

    def inner(y: Any) -> Any:
        value, g = rosenbrock(C @ y)
        return value, C.T @ g

    for k in (1, 2, 5, 9):
        options = {"gtol": 0.0}
        got = xopt.minimize(
            rosenbrock, x0, method=method, maxiter=k, options={**options, "preconditioner": lambda g: C @ (C.T @ g)}
        )
        want = xopt.minimize(inner, np.linalg.solve(C, x0), method=method, maxiter=k, options=options)
        assert got.nfev == want.nfev
        np.testing.assert_allclose(got.x, C @ want.x, rtol=1e-7)  # roundings grow from step to step


def test_a_preconditioner_of_a_tree_on_every_library(lib: Lib) -> None:
    if lib.name == "dask":
        pytest.skip("minimize refuses it")
    x0, fun = problem(lib)
    seen = []

    def halved(grads: Any) -> Any:
        seen.append(optree.tree_structure(grads))
        return optree.tree_map(lambda g: 0.5 * g, grads)

    got = xopt.minimize(fun, x0, options={"preconditioner": halved, "gtol": 1e-4})
    assert got.success
    assert got.nfev == len(seen)
    assert {*seen} == {optree.tree_structure(x0)}
    solver, whole = (xopt.LBFGS(preconditioner=p) for p in (halved, lambda grads: grads))
    for s in (solver, whole):
        s.init(x0)
        s.step(fun)
    assert not same(solver.x, whole.x, lib)


def test_preconditioners_that_are_none() -> None:
    run = lambda p: xopt.minimize(rosenbrock, np.zeros(4), options={"preconditioner": p})
    for error, match, p in [
        (TypeError, "preconditioner: 3, but it must be a function of the gradient", 3),
        (ValueError, r"preconditioner: g·P·g = -.*, but it must be positive", lambda g: -g),
        (ValueError, r"preconditioner: shape \(2,\), but the parameter has \(4,\)", lambda g: g[:2]),
        (TypeError, r"preconditioner: dtype float32", lambda g: g.astype("f4")),
    ]:
        with pytest.raises(error, match=match):
            run(p)
