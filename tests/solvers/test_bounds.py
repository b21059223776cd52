"""minimize within bounds: against SciPy's L-BFGS-B, NNLS, every library, and what may go wrong."""

from __future__ import annotations

import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import optree
import pytest
from conftest import Lib
from support import mgh

import xopt
from xopt.solvers import _space
from xopt.solvers._sides import inward


def scipys(problem: Any, x0: Any, lower: Any, upper: Any) -> Any:
    from scipy.optimize import Bounds, minimize

    low, high = (
        np.full(x0.size, -np.inf) if lower is None else lower,
        np.full(x0.size, np.inf) if upper is None else upper,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return minimize(problem, x0, jac=True, method="L-BFGS-B", bounds=Bounds(low, high),
                        options={"gtol": 1e-7, "ftol": 0, "maxcor": 10})  # fmt: skip


def test_more_garbow_hillstrom_in_boxes() -> None:
    """At the end no slope points inwards; no more evaluations than SciPy's, and as often the better of two minima."""
    ours = theirs = better = worse = 0
    for problem, x0, lower, upper in mgh.boxes():
        low, high = -np.inf if lower is None else lower, np.inf if upper is None else upper

        def fun(x: Any, problem: Any = problem, low: Any = low, high: Any = high) -> Any:
            assert (x >= low).all()
            assert (x <= high).all()
            return problem(x)

        got = xopt.minimize(fun, x0, bounds=(lower, upper), options={"gtol": 1e-7})
        other = scipys(problem, x0, lower, upper)
        assert got.fun == problem(got.x)[0]
        if not got.success:  # in two valleys that float64 does not resolve; SciPy's are no better
            assert problem.name in ("Powell badly scaled", "Biggs EXP6"), (problem.name, got)
            assert got.fun < 1.01 * other.fun or got.fun < 1e-6
            continue
        assert np.abs(np.clip(got.x - got.jac, low, high) - got.x).max() <= 1e-7
        ours, theirs = ours + got.nfev, theirs + other.nfev
        gap = 1e-6 * max(1e-3, abs(other.fun))
        better, worse = better + (got.fun < other.fun - gap), worse + (got.fun > other.fun + gap)
    assert ours <= 1.1 * theirs, (ours, theirs)
    assert worse <= better + 2, (worse, better)


@pytest.mark.parametrize("chunk", [3, 2**16])
def test_a_preconditioner_is_a_change_of_variables(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With P = C², C of powers of 2, the steps in x are those without it in x/C, within bounds/C, to the bit.

    Every box is there, so variables are held and let go, and projections climb.
    """
    monkeypatch.setattr(_space, "CHUNK", chunk)
    steps = 0
    for problem, x0, lower, upper in mgh.boxes():
        c = 2.0 ** (np.arange(x0.size) % 5 - 2)
        scaled = [None if side is None else side / c for side in (lower, upper)]
        given: Any = {"gtol": 0.0, "ftol": 1e-14}

        def fun(x: Any, problem: Any = problem, lower: Any = lower, upper: Any = upper) -> Any:
            assert lower is None or (x >= lower).all()
            assert upper is None or (x <= upper).all()
            return problem(x)

        def inner(y: Any, fun: Any = fun, c: Any = c) -> Any:
            value, g = fun(c * y)
            return value, c * g

        got = xopt.minimize(fun, x0, bounds=(lower, upper), maxiter=30,
                            options={**given, "preconditioner": lambda g, c=c: c * c * g})  # fmt: skip
        want = xopt.minimize(inner, x0 / c, bounds=tuple(scaled), maxiter=30, options=given)
        assert got.nfev == want.nfev
        np.testing.assert_array_equal(got.x, c * want.x)
        steps += got.nit
    assert steps > 500


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_preconditioner_libraries(lib: Lib, dtype: str) -> None:
    """Of a tree, within bounds: fewer evaluations, and warm by hand the same steps."""
    if lib.name == "dask":
        pytest.skip("solvers refuse what is lazy")
    d = {"a": np.logspace(0, 4, 6), "b": np.logspace(0, 3, 6).reshape(2, 3)}
    scale = optree.tree_map(lambda x: lib.array(x, dtype), d)
    xp = lib.module() if lib.name in ("torch", "cupy") else scale["a"].__array_namespace__()

    def fun(x: Any) -> Any:
        parts = optree.tree_map(lambda s, p: (s * (p - 2) ** 2 / 2, s * (p - 2)), scale, x)
        value = sum(xp.sum(parts[n][0]) for n in "ab")
        return value, {n: parts[n][1] for n in "ab"}

    x0 = optree.tree_map(lambda x: 0 * x, scale)
    precondition = lambda g: optree.tree_map(lambda s, x: x / s, scale, g)
    kind: Any = {"bounds": (None, 1.5), "options": {"gtol": 1e-3, "maxfun": 300}}
    plain = xopt.minimize(fun, x0, **kind)
    kind["options"]["preconditioner"] = precondition
    helped = xopt.minimize(fun, x0, **kind)
    assert helped.success
    assert helped.nfev < plain.nfev
    for n in "ab":
        np.testing.assert_array_equal(lib.numpy(helped.x[n]), 1.5)
    one, other = (xopt.LBFGS(bounds=(None, 3), preconditioner=precondition) for _ in range(2))
    one.init(x0)
    for _ in range(3):
        one.step(fun)
    other.init(x0)
    other.load(one.state())
    for _ in range(2):
        assert one.step(fun) == other.step(fun)
        for n in "ab":
            np.testing.assert_array_equal(lib.numpy(one.x[n]), lib.numpy(other.x[n]))


def least_squares(lib: Lib, dtype: str, rng: np.random.Generator) -> Any:
    matrix, b = rng.standard_normal((30, 12)), rng.standard_normal(30)
    A, rhs = lib.array(matrix.astype(dtype)), lib.array(b.astype(dtype))

    def fun(x: Any) -> Any:
        r = A @ x - rhs
        return 0.5 * (r @ r), A.T @ r

    return matrix, b, fun


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("chunk", [5, 2**16])
def test_non_negative_least_squares(
    lib: Lib, dtype: str, chunk: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against Lawson & Hanson's own algorithm, in SciPy; and in chunks of any size."""
    from scipy.optimize import nnls

    if lib.name == "dask":
        pytest.skip("minimize refuses it")
    monkeypatch.setattr(_space, "CHUNK", chunk)
    matrix, b, fun = least_squares(lib, dtype, rng)
    want, _ = nnls(matrix, b)
    assert 2 < np.count_nonzero(want) < 11
    single = dtype == "float32"
    got = xopt.minimize(
        fun, lib.array(np.ones(12, dtype)), bounds=(0.0, None), options={"gtol": 2e-5 if single else 1e-9}
    )
    assert got.success, got
    np.testing.assert_allclose(lib.numpy(got.x), want, atol=1e-4 if single else 1e-8)
    assert np.array_equal(lib.numpy(got.x) == 0, want == 0)


def test_bounds_of_any_form(lib: Lib) -> None:
    """Numbers, arrays and None, for all or for each array of a tree, and SciPy's class."""
    if lib.name == "dask":
        pytest.skip("minimize refuses it")
    x0 = {"a": lib.array(np.zeros(3)), "b": [lib.array(np.zeros((2, 2))), lib.array(np.zeros(()))]}
    xp = lib.module() if lib.name in ("torch", "cupy") else x0["a"].__array_namespace__()

    def fun(p: Any) -> Any:  # the minimum is at 5
        leaves = [p["a"] - 5, p["b"][0] - 5, p["b"][1] - 5]
        return sum(xp.sum(x * x) for x in leaves), {"a": 2 * leaves[0], "b": [2 * leaves[1], 2 * leaves[2]]}

    upper = {"a": lib.array(np.asarray([1.0, 2.0, np.inf])), "b": [3.0, None]}
    for bounds, want in [
        ((None, upper), ([1, 2, 5], [[3, 3], [3, 3]], 5)),
        ((6.5, None), ([6.5] * 3, [[6.5] * 2] * 2, 6.5)),
        ((upper, {"a": 7, "b": [7, 1]}), None),
        ((-1, 1), ([1] * 3, [[1] * 2] * 2, 1)),
        ((2.0, 2.0), ([2] * 3, [[2] * 2] * 2, 2)),
        ((None, None), ([5] * 3, [[5] * 2] * 2, 5)),
        (
            (
                {"a": np.zeros(3), "b": [np.zeros((2, 2)), np.int8(6)]},
                {"a": np.asarray([0, 4, 9]), "b": [4, np.float32(8)]},
            ),
            ([0, 4, 5], [[4] * 2] * 2, 6),
        ),
    ]:
        if want is None:
            with pytest.raises(
                ValueError, match=r'x0\["a"\]: element 2 has the bounds inf and 7, and no number of float64'
            ):
                xopt.minimize(fun, x0, bounds=bounds)
            continue
        got = xopt.minimize(fun, x0, bounds=bounds, options={"gtol": 1e-9})
        assert got.success
        for x, y in zip(optree.tree_leaves(got.x), want, strict=True):
            np.testing.assert_allclose(lib.numpy(x), y, rtol=1e-9)


def test_scipys_bounds() -> None:
    from scipy.optimize import Bounds

    fun = lambda x: (np.sum(x * x), 2 * x)
    for bounds, want in [
        (Bounds([0.5, -1, -1, -1], [2, 2, 2, 2]), [0.5, 0, 0, 0]),
        (Bounds(0.5, 1), [0.5] * 4),
        (Bounds([0.5], [1.0]), [0.5] * 4),
        (Bounds(), [0] * 4),
        (Bounds([-1, 0.25, 0.5, -1]), [0, 0.25, 0.5, 0]),
    ]:
        for shape in ((4,), (2, 2)):
            got = xopt.minimize(fun, np.ones(shape), bounds=bounds)
            np.testing.assert_allclose(got.x, np.reshape(want, shape), atol=1e-6)


def test_complex_numbers_have_no_bounds_but_others_beside_them_do() -> None:
    t = 1 + 2j
    fun = lambda p: ((p["a"] ** 2).sum() + (abs(p["c"] - t) ** 2).sum(), {"a": 2 * p["a"], "c": 2 * (p["c"] - t)})
    x0 = {"a": np.ones(2), "c": np.full(2, 3 + 4j)}
    for bounds in (({"a": 0.5, "c": None}, {"a": 2, "c": None}), ({"a": 0.5, "c": None}, None)):
        got = xopt.minimize(fun, x0, bounds=bounds)
        np.testing.assert_allclose(got.x["c"], t, atol=1e-6)
        np.testing.assert_allclose(got.x["a"], 0.5)


def test_steps_below_the_last_digit_of_x() -> None:
    """Where x + d is x, the direction is not lost."""
    far = np.float32(9990)
    fun = lambda x: (np.float32(1e-4) * ((x - far) @ (x - far)), np.float32(2e-4) * (x - far))
    got = xopt.minimize(fun, np.full(2, 9992, "f4"), bounds=(0.0, None))
    assert got.success
    assert got.x.tolist() == [9990, 9990]


def test_a_bound_is_reached_exactly(rng: np.random.Generator) -> None:
    """Not but for the roundings of x + (bound - x), or it would be taken for free."""
    upper = rng.random(200) * 10 ** rng.uniform(-3, 3, 200)
    fun = lambda x: (0.5 * (x - 1e4) @ (x - 1e4), x - 1e4)
    got = xopt.minimize(fun, -rng.random(200), bounds=(-1e4, upper))
    assert got.x.tolist() == upper.tolist()
    assert got.nit == 1


def test_a_search_that_goes_too_far_is_held_within() -> None:
    seen = []

    def far(along: Any, start: Any, first: float, *, longest: float, **_: Any) -> Any:
        seen.append(longest)
        return min((along(a) for a in (1.7 * longest, longest, 0.5 * longest)), key=lambda p: p.value)

    def fun(x: Any) -> Any:
        assert (np.abs(x) <= 0.7).all()
        return (x - 1) @ (x - 1), 2 * (x - 1)

    got = xopt.minimize(fun, np.asarray([0.0, 0.1, 0.3]), bounds=(-0.7, 0.7), options={"line_search": far})
    assert got.x.tolist() == [0.7] * 3
    assert all(0 < x < np.inf for x in seen)


def test_products_that_overflow_end_it() -> None:
    calls = []

    def fun(x: Any) -> Any:
        calls.append(x)
        return float(-x.sum()), -np.ones_like(x) if len(calls) == 1 else np.full_like(x, 1e20)

    got = xopt.minimize(fun, np.zeros(2, "f4"), bounds=(-5, 5))
    assert got.status in (0, 2)


def test_a_model_that_cannot_be_solved_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    solve, calls = np.linalg.solve, []

    def broken(*args: Any) -> Any:
        calls.append(args)
        if len(calls) in (5, 6, 11):
            raise np.linalg.LinAlgError
        return solve(*args)

    fun = lambda x: (np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2), optimize.rosen_der(x))
    optimize = pytest.importorskip("scipy.optimize")
    monkeypatch.setattr(np.linalg, "solve", broken)
    got = xopt.minimize(fun, np.tile([-1.2, 1.0], 3), bounds=(-2, 2), options={"history": 4})
    assert len(calls) > 11
    assert got.success


@pytest.mark.parametrize("history", [2, 6])
def test_directions_are_those_of_the_paper(history: int, rng: np.random.Generator) -> None:
    """Byrd, Lu, Nocedal & Zhu (1995): B of formula 3.1 as a dense matrix, and its minimum over the free variables."""
    n, low, high = 12, -0.3, 0.4
    q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    H, b = (q * np.logspace(0, 2, n)) @ q.T, 3 * rng.standard_normal(n)
    fun = lambda x: (0.25 * (x @ x) ** 2 + 0.5 * x @ H @ x - b @ x, (x @ x) * x + H @ x - b)
    solver = xopt.LBFGS(history=history, bounds=(low, high))
    solver.init(np.zeros(n))
    pairs: list[Any] = []
    solver.step(fun)
    x, g, checked = solver.x, solver.gradient, 0
    pairs.append((x, g - fun(np.zeros(n))[1]))
    for _ in range(12):
        S, Y = (np.stack(v, axis=1) for v in zip(*pairs[-history:], strict=True))
        theta = Y[:, -1] @ Y[:, -1] / (S[:, -1] @ Y[:, -1])
        B = theta * np.eye(n)
        for s, y in zip(S.T, Y.T, strict=True):  # BFGS, one pair after the other
            B = B - np.outer(B @ s, B @ s) / (s @ B @ s) + np.outer(y, y) / (y @ s)
        free = ~(((x <= low) & (g > 0)) | ((x >= high) & (g < 0)))
        d = np.zeros(n)
        d[free] = -np.linalg.solve(B[np.ix_(free, free)], g[free])
        want = np.clip(x + d, low, high) - x
        result = solver.step(fun)
        if not result.success or result.optimality < 1e-9:
            break
        step, after = solver.x - x, solver.gradient
        if want @ g < 0:
            np.testing.assert_allclose(step / np.linalg.norm(step), want / np.linalg.norm(want), atol=1e-6)
            checked += 1
        pairs.append((step, after - g))
        x, g = solver.x, after
    assert checked >= 5
    assert not free.all()


def test_a_start_outside_is_moved_inside() -> None:
    x0, seen = np.asarray([5.0, -5.0]), []

    def fun(x: Any) -> Any:
        seen.append(x.copy())
        return x @ x, 2 * x

    got = xopt.minimize(fun, x0, bounds=(-1.0, 1.0), maxiter=0)
    assert seen[0].tolist() == got.x.tolist() == [1, -1]
    assert x0.tolist() == [5, -5]


def test_projected_steps_that_climb(rng: np.random.Generator) -> None:
    """Strongly coupled variables: the projection of a descent direction may climb, and then another one is taken."""
    from xopt.solvers._bounded import Bounded

    taken = []
    feasible = Bounded.instead
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bounded, "instead", lambda self, here: taken.append(feasible(self, here)) or taken[-1])
        for _ in range(20):
            q = np.linalg.qr(rng.standard_normal((20, 20)))[0]
            H, b = (q * np.logspace(0, 4, 20)) @ q.T, 100 * rng.standard_normal(20)
            got = xopt.minimize(lambda x, H=H, b=b: (0.5 * x @ H @ x - b @ x, H @ x - b), np.ones(20),
                                bounds=(0.0, 2.0), options={"gtol": 1e-6})  # fmt: skip
            want = scipys(
                lambda x, H=H, b=b: (0.5 * x @ H @ x - b @ x, H @ x - b), np.ones(20), np.zeros(20), np.full(20, 2.0)
            )
            assert got.success
            assert got.fun <= want.fun + 1e-9 * abs(want.fun)
    assert any(line is not None for line in taken)


def test_looks_at_the_device(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    """One an evaluation, and one for the bounds; two more in each round for another direction."""
    looks: list[int] = []
    listed = _space._listed
    monkeypatch.setattr(_space, "_listed", lambda x: looks.append(1) or listed(x))
    i = np.arange(1, 31)

    def fun(x: dict[str, Any]) -> tuple[Any, Any]:  # of one array of NumPy there is nothing to bring to the host
        return i @ (x["a"] - 1) ** 2 + x["b"] @ x["b"], {"a": 2 * i * (x["a"] - 1), "b": 2 * x["b"]}

    upper = {"a": np.where(i < 9, 0.5, 9), "b": 9.0}
    got = xopt.minimize(fun, {"a": np.zeros(30), "b": np.ones(2)}, bounds=(0.0, upper))
    assert len(looks) == got.nfev + 1


def exact(x: Any) -> Fraction:
    """A number, or a NumPy scalar of any width, as a fraction: what comparisons are right with."""
    return Fraction(*x.as_integer_ratio()) if hasattr(x, "as_integer_ratio") else Fraction(int(x))


WIDE = [2**53 + 1, -(2**63) - 1, 2**70 + 1, 3, 0, -0.0, 2**24 + 1, 0.1, 1 - 1e-9, 5e-324, 1e-45, 1e300, -1e300, 10**400]
WIDE += [np.int64(2**62 + 3), np.uint64(2**64 - 1), np.longdouble(1) / 3, np.float32(0.1), np.float16(0.1)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("normal", [False, True])
def test_inward_is_the_nearest_number_within(dtype: str, sign: int, normal: bool, rng: np.random.Generator) -> None:
    """With fractions as the oracle; one at a time, in arrays, and with None among them."""
    drawn = rng.standard_normal(400) * 10.0 ** rng.integers(-330, 308, 400)
    numbers, kind = [*drawn.tolist(), *WIDE, *(-x for x in WIDE if not isinstance(x, np.uint64))], np.dtype(dtype)
    together = inward(np.asarray([*numbers, None], object), dtype, sign, normal=normal)
    assert together[-1] == sign * np.inf
    for x, found in zip(numbers, together, strict=False):
        assert inward(x, dtype, sign, normal=normal) == found
        if not np.isfinite(found):  # only where there is no number on that side
            assert sign * exact(x) < -exact(np.finfo(kind).max)
            continue
        assert sign * exact(found) <= sign * exact(x)
        assert not normal or found == 0 or abs(found) >= np.finfo(kind).tiny
        with np.errstate(all="ignore"):
            beyond = np.nextafter(found, kind.type(sign * np.inf))
        if np.isfinite(beyond) and not normal:
            assert sign * exact(beyond) > sign * exact(x)
    for width in ("int8", "uint16", "int32", "int64", "float16", "float64", "longdouble"):
        some = np.asarray([0, 1, 100, 127], width)
        assert inward(some, dtype, sign).tolist() == [0, 1, 100, 127]


FORMS: list[tuple[str, Any, Any]] = [
    ("numbers", lambda lib: (0.1, 1 - 1e-9), lambda a: (0.1, 1 - 1e-9)),
    ("half open", lambda lib: (None, 0.1), lambda a: (-np.inf, 0.1)),
    ("the other half", lambda lib: (0.7 + 1e-10, np.inf), lambda a: (0.7 + 1e-10, np.inf)),
    ("integers", lambda lib: (-(2**24) - 1, 2**53 + 1), lambda a: (-(2**24) - 1, 2**53 + 1)),
    ("integers of 64 bits", lambda lib: (None, np.asarray([3, -(2**60) - 1, 2**62 + 1])), [3, -(2**60) - 1, 2**62 + 1]),
    ("float64", lambda lib: (np.asarray([0.1, 0.7, 0.3]), None), [0.1, 0.7, 0.3]),
    ("float64 of the library", lambda lib: (None, lib.array(np.asarray([0.1, 0.7, 0.3]))), [0.1, 0.7, 0.3]),
    (
        "long double",
        lambda lib: (None, np.asarray([1, 2, 5], "longdouble") / 7),
        np.asarray([1, 2, 5], "longdouble") / 7,
    ),
    ("pairs", lambda lib: [(0.1, 0.7), (None, 0.3), (1e-60, None)], ([0.1, -np.inf, 1e-60], [0.7, 0.3, np.inf])),
    ("beyond float32", lambda lib: (-1e300, 1e300), lambda a: (-1e300, 1e300)),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("form", "want"), [f[1:] for f in FORMS], ids=[f[0] for f in FORMS])
@pytest.mark.parametrize("far", [-1e9, 1e9, 0.0])
def test_every_evaluation_is_within_the_bounds_as_written(
    lib: Lib, dtype: str, form: Any, want: Any, far: float
) -> None:
    """Not within bounds that were rounded to the nearest number of the parameters."""
    if lib.name == "dask":
        pytest.skip("minimize refuses it")
    bounds = form(lib)
    if callable(want):
        low, high = ([side] * 3 for side in want(None))
    elif isinstance(want, tuple):
        low, high = want
    else:
        low, high = ([-np.inf] * 3, want) if bounds[0] is None else (want, [np.inf] * 3)
    seen: list[Any] = []

    def fun(x: Any) -> Any:
        seen.append(lib.numpy(x).copy())
        return ((x - far) * (x - far)).sum() if lib.name != "strict" else xp.sum((x - far) ** 2), 2 * (x - far)

    x0 = lib.array(np.asarray([0.1, 0.7, 2.0], dtype))
    xp = None if lib.name != "strict" else x0.__array_namespace__()
    found = [xopt.minimize(fun, x0, bounds=bounds, maxiter=20).x]
    solver = xopt.LBFGS(bounds=bounds)
    solver.init(x0)
    solver.step(fun)
    for x in [*seen, *map(lib.numpy, [*found, solver.x])]:
        assert x.dtype == dtype
        for one, a, b in zip(x, low, high, strict=True):
            assert a == -np.inf or exact(one) >= exact(a)
            assert b == np.inf or exact(one) <= exact(b)


@pytest.mark.parametrize("jac", [True, "2-point", "3-point"])
def test_a_mixed_tree_has_bounds_of_its_dtypes(jac: Any) -> None:
    """float64 is not rounded to float32 because that is beside it; differences are taken within."""
    x0, top = {"a": np.zeros(2, "f4"), "b": np.zeros(2)}, 1 - 1e-9

    def fun(p: Any) -> Any:
        assert all(float(x) <= top for leaf in p.values() for x in leaf)
        value = float(np.sum((p["a"] - 5) ** 2, dtype=float) + np.sum((p["b"] - 5) ** 2))
        return (value, {n: 2 * (x - 5) for n, x in p.items()}) if jac is True else value

    got = xopt.minimize(fun, x0, jac=jac, bounds=(None, top))
    assert got.x["a"].tolist() == [float(np.nextafter(np.float32(1), np.float32(0)))] * 2
    assert got.x["b"].tolist() == [top] * 2


def test_scipys_form_rounds_inwards_too() -> None:
    from scipy import optimize

    def fun(x: Any) -> Any:
        assert x.dtype == "f4" or jac is None
        assert (x.astype(float) <= 1 - 1e-9).all()
        assert (x.astype(float) >= 0.1).all()
        return float(np.sum((x - 5) ** 2))

    for jac in (None, lambda x: 2 * (x - 5)):
        for bounds in ([(0.1, 1 - 1e-9)] * 2, optimize.Bounds([0.1] * 2, 1 - 1e-9)):
            got = optimize.minimize(fun, np.zeros(2, "f4"), jac=jac, method=xopt.scipy_method(), bounds=bounds)
            assert got.x.tolist() == [float(np.nextafter(np.float32(1), np.float32(0)))] * 2


def test_no_number_of_the_dtype_within() -> None:
    fun = lambda x: (np.sum(x * x), 2 * x)
    low, high = 1 + 1e-9, 1 + 2e-9
    for bounds in ((low, high), [(low, high)] * 2, (np.full(2, low), np.full(2, high)), (np.float64(low), high)):
        with pytest.raises(
            ValueError, match=r"x0: element 0 has the bounds 1.000000001 and 1.000000002, and no .*float32"
        ):
            xopt.minimize(fun, np.zeros(2, "f4"), bounds=bounds)
        assert xopt.minimize(fun, np.zeros(2), bounds=bounds).x.tolist() == [low] * 2
    both = {"a": 0.1, "b": np.asarray([1, 0.1])}
    with pytest.raises(ValueError, match=r'x0\["b"\]: element 1 has the bounds 0.1 and 0.1, and no number of float32'):
        xopt.minimize(fun, {"a": np.zeros(2), "b": np.zeros(2, "f4")}, bounds=(both, both))


def test_bounds_that_are_far_apart_overflow_nothing() -> None:
    """Differences of such bounds do, which is no news to anybody."""
    fun = lambda x: (-float((x / 4).sum(dtype=float)), -np.ones_like(x) / 4)
    for dtype, far in (("float32", 1e300), ("float64", 1.7e308)):
        largest = float(np.finfo(dtype).max)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            got = xopt.minimize(fun, np.full(3, -0.9 * largest, dtype), bounds=(-far, far), maxiter=40)
        assert (np.abs(got.x.astype(float)) <= far).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("more", [{}, {"rounding": "stochastic"}, {"master_weights": True}], ids=str)
def test_what_box_promises(lib: Lib, dtype: str, more: Any, rng: np.random.Generator) -> None:
    """Bounds rounded to the nearest numbers of the dtype; with noise, one number more on either side."""
    if lib.name == "dask" or not lib.writable:
        pytest.skip("nothing to write into, or nothing to look at yet")
    if more and dtype in ("float32", "float64"):
        pytest.skip("of half precision")
    w = lib.array(np.zeros(200), dtype)
    rule = xopt.chain(xopt.SGD(0.3), xopt.Box(-0.7, 0.1))
    try:
        opt = xopt.Optimizer(w, rule, **more)
    except TypeError as error:
        pytest.skip(str(error))
    low, high = (float(lib.numpy(lib.array(np.asarray(x), dtype))) for x in (-0.7, 0.1))
    room = {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(dtype, 0.0) if more == {"rounding": "stochastic"} else 0.0
    seen = []
    for _ in range(10):
        opt.step(lib.array(rng.standard_normal(200), dtype))
        seen.append(lib.numpy(w).astype(float))
        assert seen[-1].min() >= low * (1 + room)
        assert seen[-1].max() <= high * (1 + room)
    assert any((x == low).any() and (x == high).any() for x in seen)


def test_what_does_not_fit() -> None:
    x0 = np.zeros(3)
    fun = lambda x: (x @ x, 2 * x)
    run = lambda bounds=(0, 1), x=x0, **more: xopt.minimize(fun, x, bounds=bounds, **more)
    for error, match, call in [
        (ValueError, r"bounds: a list of length 2, but .* a pair \(low, high\) for each of 3", lambda: run([0, 1])),
        (ValueError, r"bounds: a tuple with entries that are none, but", lambda: run((0, 1, 2))),
        (TypeError, r"bounds: 3, but it must be \(lower, upper\)", lambda: run(3)),
        (TypeError, r"bounds: \[\(0, 1\)\], but it must be \(lower, upper\)", lambda: run([(0, 1)], [x0])),
        (
            ValueError,
            r"x0: element 0 has the bounds 2 and 1, and no number of float64 is within them",
            lambda: run((2, 1)),
        ),
        (ValueError, r"x0: element 1 has the bounds 5.0 and 1,", lambda: run((np.asarray([0.0, 5, 5]), 1))),
        (ValueError, r"x0: element 0 has the bounds nan and 1,", lambda: run((np.nan, 1))),
        (ValueError, r"bounds: upper: shape \(2,\), but the parameter has \(3,\)", lambda: run((0, np.ones(2)))),
        (
            TypeError,
            r"bounds: .* may be two pairs or two sides",
            lambda: run(((0, 1), (0, 2)), x0[:2]),
        ),
        (ValueError, r"bounds: lower: shape \(2,\), but the parameter has \(3,\)", lambda: run(([0, 1], [0, 2, 3]))),
        (TypeError, r"bounds: lower: a bool", lambda: run((True, None))),
        (TypeError, r"bounds: lower: a str", lambda: run(("a", None))),
        (TypeError, r"bounds: upper: a complex", lambda: run((None, 1j))),
        (ValueError, r"x0: element 0 has the bounds inf and inf", lambda: run((np.inf, None))),
        (TypeError, r"x0: dtype complex128, but only real numbers have bounds", lambda: run(x=x0 + 0j)),
        (TypeError, r"bounds: given with method 'cg'; 'lbfgs-b' has bounds", lambda: run(method="cg")),
        (TypeError, r"bounds: given with a rule, which xopt.Box behind it keeps", lambda: run(rule=xopt.Adam(0.1))),
        (ValueError, r"preconditioner: no diagonal matrix", lambda: run(options={"preconditioner": abs})),
        (
            ValueError,
            r"preconditioner: no diagonal matrix",
            lambda: run(options={"preconditioner": lambda g: np.arange(3) @ g + g}),
        ),
        *(
            (
                ValueError,
                r"preconditioner: numbers from .* on its diagonal",
                lambda d=d: run(options={"preconditioner": lambda g: g * [1, d, 2]}),
            )
            for d in (0.0, -1.0, np.inf, np.nan)
        ),
    ]:
        with pytest.raises(error, match=match):
            call()
    assert x0.tolist() == [0, 0, 0]
