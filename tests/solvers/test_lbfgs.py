"""LBFGS by hand: the steps of minimize, warm starts, states that are saved; and preconditioners."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import optree
import pytest
from conftest import Lib
from support.mgh import chain as rosenbrock

import xopt
from xopt.solvers import _space
from xopt.solvers._directions import Inverse


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


def test_an_inverse_in_a_ring(rng: np.random.Generator) -> None:
    """NumPy's of the triangle of the columns that are left, in their order."""
    inverse, columns, order = Inverse(5), np.zeros((5, 5)), list[int]()
    for step in range(23):
        if len(order) == 5 or step == 13:
            inverse.drop(order.pop(0))
        slot = next(i for i in range(5) if i not in order)
        columns[:, slot] = rng.standard_normal(5) * 10.0 ** rng.integers(-9, 9)
        columns[slot, slot] = abs(columns[slot, slot]) + 1e-3
        inverse.append(slot, columns[:, slot])
        order.append(slot)
        want = np.zeros((5, 5))
        want[np.ix_(order, order)] = np.linalg.inv(np.triu(columns[np.ix_(order, order)]))
        np.testing.assert_allclose(inverse.numbers, want, rtol=1e-9, atol=0)


@pytest.mark.parametrize("method", ["lbfgs", "lbfgs-b", "cg", "gd"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tree", [False, True])
def test_one_array_of_numpy_takes_the_steps_of_all_others(
    method: Any, dtype: str, tree: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x0 = np.tile([-1.2, 1.0], 4).astype(dtype).reshape(2, 2, 2)

    def fun(x: Any) -> Any:
        value, g = rosenbrock((x["x"] if tree else x).reshape(-1).astype(float))
        g = g.astype(dtype).reshape(x0.shape)
        return value, {"x": g} if tree else g

    def run() -> Any:
        bounds = (-0.5, 0.9) if method == "lbfgs-b" else None
        found = xopt.minimize(fun, {"x": x0} if tree else x0, method=method, maxiter=40, bounds=bounds)
        return found, found.x["x"] if tree else found.x

    one, x = run()
    assert x.shape == x0.shape
    monkeypatch.setattr(_space.Single, "fits", staticmethod(lambda layout: False))
    other, y = run()
    assert (one.nfev, one.fun) == (other.nfev, other.fun)
    assert np.array_equal(x, y)


def test_a_step_that_is_not_remembered_leaves_the_others() -> None:
    """y·y overflows in float32 where the gradient jumps; nothing infinite is left to be multiplied by their zeros."""
    weights = np.linspace(1, 3, 8, dtype="float32")
    far = np.full(8, 1e30, "float32")

    def fun(x: Any) -> Any:
        return float(0.5 * (weights @ (x * x))), weights * x

    solver = xopt.LBFGS(history=4)
    solver.init(np.linspace(1, 2, 8, dtype="float32"))
    for _ in range(3):
        solver.step(fun)
    run: Any = solver._run
    method, here, order = run.method, run.here, list(run.method.order)
    method.direction(here, run.square)
    with np.errstate(all="ignore"):
        asked = method.sums(here, here._replace(g=far, z=far), method.memory[2 * method.slot])
        sums = run.space.known(0.0, *asked)[1]
        method.accept(1.0, -1.0, -1.0, sums)
    assert not np.isfinite(sums).all()
    assert method.order == order
    assert np.isfinite(method.with_gradient).all()


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


WIDE: dict[str, Any] = {"a": np.ones(3), "b": np.full((2, 1), 0.25)}


def slope(p: Any) -> Any:
    """Least at 5, with another curvature of each element."""
    value = 0.5 * sum(np.sum((k + 1.0) * (x - 5) ** 2) for k, x in enumerate(p.values()))
    return value, {n: (k + 1.0) * (x - 5) for k, (n, x) in enumerate(p.items())}


@pytest.mark.parametrize("was", [None, (0, 2), ({"a": 0, "b": np.zeros((2, 1))}, 2)], ids=["free", "numbers", "arrays"])
@pytest.mark.parametrize(
    ("now", "match"),
    [
        (None, "of a solver with bounds, but this one is without bounds"),
        (
            (0, 1),
            r'state\["upper"\]\["a"\]: element 0 is 2.0, but this solver has 1.0; init\(x, warm=state\) begins anew',
        ),
        ((0, 3), r'state\["upper"\]\["a"\]: element 0 is 2.0, but this solver has 3.0'),
        ((None, 2), r'state\["lower"\]\["a"\]: element 0 is 0.0, but this solver has -inf'),
        ((0, {"a": 2, "b": np.asarray([[2], [1.5]])}), r'state\["upper"\]\["b"\]: element 1 is 2.0, but .* has 1.5'),
    ],
    ids=["free", "tighter", "wider", "half open", "one element"],
)
def test_a_state_within_other_bounds_is_refused(was: Any, now: Any, match: str) -> None:
    """x may be outside, and which variables are free is another question; warm, it goes on from the nearest point."""
    first = xopt.LBFGS(history=3, bounds=was)
    first.init(WIDE)
    for _ in range(3):
        first.step(slope)
    state, other = first.state(), xopt.LBFGS(history=3, bounds=now)
    if was is None:
        match = "of a solver without bounds, but this one is with bounds"
    if (was is None) == (now is None) and was is None:
        other.load(state)
        return
    with pytest.raises(ValueError, match=match):
        other.load(state)
    with pytest.raises(ValueError, match="nothing to go on with"):
        _ = other.x
    again = xopt.LBFGS(history=3, bounds=was)
    again.load(state)
    assert all(map(np.array_equal, optree.tree_leaves(again.x), optree.tree_leaves(first.x)))
    if was is None or now is None:
        with pytest.raises(ValueError, match=match):
            other.init(first.x, warm=state)
        return
    other.init(first.x, warm=state)
    for _ in range(9):
        result = other.step(slope)
    upper = now[1]["b"] if isinstance(now[1], dict) else np.full((2, 1), now[1])
    np.testing.assert_allclose(other.x["b"], upper)
    assert result.optimality == 0


def test_bounds_of_another_form_are_the_same(lib: Lib) -> None:
    """Numbers, arrays and what rounds to the same; the next step has the same bits."""
    if lib.name == "dask":
        pytest.skip("minimize refuses it")
    x0 = lib.array(np.linspace(-1, 1, 6), "float32")
    fun = lambda x: (float(((x - 3) * (x - 3)).sum() if lib.name != "strict" else 0.0), 2 * (x - 3))
    if lib.name == "strict":
        xp = x0.__array_namespace__()
        fun = lambda x: (xp.sum((x - 3) ** 2), 2 * (x - 3))
    first = xopt.LBFGS(history=2, bounds=(-1, 0.1))
    first.init(x0)
    first.step(fun)
    state = first.state()
    want = first.step(fun)
    for bounds in ((np.full(6, -1.0), 0.1 - 1e-12), ([-1] * 6, np.full(6, 0.1)), [(-1, 0.1)] * 6):
        again = xopt.LBFGS(history=2, bounds=bounds)
        again.load(state)
        assert again.step(fun) == want


def test_a_state_that_was_changed_is_refused() -> None:
    make = lambda **more: xopt.LBFGS(history=3, bounds=(0, 2), **more)
    first = make()
    first.init(WIDE)
    for _ in range(2):
        first.step(slope)
    state, size = first.state(), 5
    outside = {"a": np.full(3, 2.5), "b": state["x"]["b"]}
    vectors = state["vectors"].copy()
    vectors[-2, :3] = 2.5
    other_x = {"a": state["x"]["a"], "b": np.asarray([[1.0], [0.5]])}
    numbers = state["numbers"].copy()
    numbers[5] = np.nan
    kept = {n: np.array(v) for n, v in state.items() if n != "x"}
    for error, match, change in [
        (ValueError, r'state\["x"\]\["b"\]: element 0 is 1.0, but the vectors have', {"x": other_x}),
        (ValueError, r'state\["x"\]\["a"\]: element 0 is 2.5, but within the bounds it is 2.0',
         {"x": outside, "vectors": vectors}),
        (TypeError, r'state: vectors has dtype float32, but x0 and history=3 need float64',
         {"vectors": state["vectors"].astype("f4")}),
        (ValueError, r"state: vectors has shape \(8, 5\), but", {"x": {"a": np.ones(3), "b": np.ones((3, 1))}}),
        (TypeError, r"state: products has dtype int64", {"products": state["products"].astype(int)}),
        (ValueError, r"state: free has shape \(3, 3\), but", {"free": state["free"][:3, :3]}),
        (ValueError, r"state: order is \[0\], but it must be", {"order": np.asarray([0.5])}),
        (ValueError, r"state: order is", {"order": np.asarray([0, 0])}),
        (ValueError, r"state: order is", {"order": np.asarray(1)}),
        (ValueError, r"state: numbers are .*nan", {"numbers": numbers}),
        (ValueError, r"state: numbers is an array of complex128", {"numbers": numbers + 0j}),
        (ValueError, r"state: lower has shape \(2,\), but x0 needs \(5,\)", {"lower": np.zeros(2)}),
        (ValueError, r"state: lower missing", {"lower": None}),
        (ValueError, r"state: preconditioned missing", {"preconditioned": None}),
        (ValueError, r"state: vectors missing", {"vectors": None}),
        (TypeError, r"x0\[\"a\"\]: a str, but a parameter must be an array", {"x": {"a": "no", "b": np.ones(2)}}),
        (ValueError, r"of a solver with a preconditioner, but this one is without", {"preconditioned": np.True_}),
    ]:  # fmt: skip
        changed = {n: v for n, v in {**state, **change}.items() if v is not None}
        with pytest.raises(error, match=match):
            make().load(changed)
    assert all(np.array_equal(v, kept[n]) for n, v in state.items() if n != "x")
    assert state["vectors"].shape[1] == size
    plain, helped = xopt.LBFGS(history=3), xopt.LBFGS(history=3, preconditioner=lambda g: g)
    for solver in (plain, helped):
        solver.init(WIDE)
        solver.step(slope)
    for mine, its in ((plain, helped), (helped, plain)):
        for call in (lambda: mine.load(its.state()), lambda: mine.init(WIDE, warm=its.state())):  # noqa: B023
            with pytest.raises(ValueError, match="of a solver with(out)? a preconditioner, but this one is with"):
                call()


def test_a_warm_state_is_of_the_same_tree() -> None:
    """Not only of the same number of elements."""
    first = xopt.LBFGS(history=3)
    first.init(WIDE)
    first.step(slope)
    for error, match, x0 in [
        (TypeError, r'state\["x"\]: a dict, but it must be an array', np.ones(5)),
        (ValueError, r'state\["x"\]\["c"\]: missing, but x0 have it', {"a": np.ones(3), "c": np.ones((2, 1))}),
        (ValueError, r'state\["x"\]\["a"\]: shape \(3,\), dtype float64, but x0 has shape \(2,\)',
         {"a": np.ones(2), "b": np.ones((3, 1))}),
        (ValueError, r"dtype float64, but x0 has shape \(3,\), dtype float32",
         {"a": np.ones(3, "f4"), "b": np.ones((2, 1))}),
    ]:  # fmt: skip
        with pytest.raises(error, match=match):
            xopt.LBFGS(history=3).init(x0, warm=first.state())


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
        (ValueError, r"state: x, numbers missing", lambda: other.load({})),
        (ValueError, r"state: vectors missing", lambda: other.load({k: v for k, v in state.items() if k != "vectors"})),
        (
            ValueError,
            r"state: of a solver without bounds, but this one is with bounds",
            lambda: xopt.LBFGS(history=3, bounds=(0, 1)).load(state),
        ),
        (
            ValueError,
            r"state: vectors has shape \(8, 4\), but x0 and history=4 need \(10, 4\)",
            lambda: xopt.LBFGS(history=4).load(state),
        ),
        (
            ValueError,
            r"state\[\"x\"\]: shape \(4,\), .* x0 has shape \(5,\)",
            lambda: other.init(np.zeros(5), warm=state),
        ),
        (TypeError, r"x0: dtype bool", lambda: other.init(np.zeros(5, bool))),
        (
            ValueError,
            r"state: order is \[77\], but it must be",
            lambda: other.load({**state, "order": np.asarray([77])}),
        ),
        (
            ValueError,
            r"state: numbers is .* \(3,\), but there must be 11",
            lambda: other.load({**state, "numbers": np.ones(3)}),
        ),
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
