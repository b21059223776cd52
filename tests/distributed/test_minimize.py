"""minimize and LBFGS on many ranks: each with its share of the function, of the parameters all or its own part."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.bits import bits
from support.ranks import Rank, World

import xopt
from xopt.distributed import RankError

SIZE = 3
METHODS = ["lbfgs", "cg", "gd", "bfgs"]


class Problem:
    """Least squares of a tree, with terms that ranks share out; complex parameters and real ones."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.matrices = rng.standard_normal((6, 8, 12)) / 3
        self.data = rng.standard_normal((6, 8))

    def start(self) -> dict[str, Any]:
        return {"z": np.full(3, 0.5 + 0.1j), "w": np.zeros((2, 3))}

    def term(self, j: int, x: dict[str, Any]) -> tuple[float, dict[str, Any]]:
        vector = np.concatenate([x["z"].real, x["z"].imag, x["w"].reshape(-1)])
        rest = self.matrices[j] @ vector - self.data[j]
        g = self.matrices[j].T @ rest + 0.1 * vector / 6
        return float(rest @ rest / 2 + 0.05 * vector @ vector / 6), {"z": g[:3] + 1j * g[3:6], "w": g[6:].reshape(2, 3)}

    def fun(self, rank: int, size: int) -> Any:
        """Return the terms of a rank, added one after the other."""

        def both(x: Any) -> Any:
            value, g = self.term(rank, x)
            for j in range(rank + size, 6, size):
                more, other = self.term(j, x)
                value, g = value + more, {n: y + other[n] for n, y in g.items()}
            return value, g

        return both


def settled(result: Any) -> Any:
    found = bits(result.x), bits(result.jac)
    return found, result.fun, result.nit, result.nfev, result.status, result.message


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("total", ["sum", "mean"])
def test_the_sum_of_all_ranks(method: Any, total: Any) -> None:
    """All ranks have the same bits, which are those of one process that adds the terms up in the order of the ranks."""
    problem = Problem()

    def added(x: Any) -> Any:
        value, g = problem.fun(0, SIZE)(x)
        for rank in range(1, SIZE):
            more, other = problem.fun(rank, SIZE)(x)
            value, g = value + more, {n: y + other[n] for n, y in g.items()}
        return (value / SIZE, {n: y / SIZE for n, y in g.items()}) if total == "mean" else (value, g)

    want = settled(xopt.minimize(added, problem.start(), method=method))
    assert want[4] == 0

    def job(comm: Rank) -> Any:
        fun = problem.fun(comm.rank, SIZE)
        return settled(xopt.minimize(fun, problem.start(), method=method, comm=comm, total=total))

    assert World(SIZE).run(job) == [want] * SIZE


def test_bounds_and_large_arrays() -> None:
    """Gradients larger than a message, within bounds, of which a part is active."""
    rng = np.random.default_rng(1)
    goal = rng.standard_normal(300_001)

    def share(rank: int) -> Any:
        return lambda x: ((1 + rank) * float((x - goal) @ (x - goal)) / 12, (1 + rank) * (x - goal) / 6)

    def job(comm: Rank) -> Any:
        found = xopt.minimize(share(comm.rank), np.zeros(300_001), bounds=(-1, 0.5), comm=comm)
        assert found.success
        return found.x

    found = World(SIZE).run(job)
    assert bits(found) == bits(found[:1]) * SIZE
    np.testing.assert_allclose(found[0], goal.clip(-1, 0.5), atol=1e-6)


CUTS = (0, 400, 400, 1001)


@pytest.mark.parametrize("method", METHODS[:3])
def test_each_rank_has_its_own_part(method: Any) -> None:
    """The iterates are those of the whole, to rounding; one rank has nothing."""
    w = np.linspace(1, 30, 1001)

    def whole(x: Any) -> Any:
        return float(w @ (x - 1) ** 2), 2 * w * (x - 1)

    want = xopt.minimize(whole, np.zeros(1001), method=method, options={"gtol": 1e-8})

    def job(comm: Rank) -> Any:
        own = slice(CUTS[comm.rank], CUTS[comm.rank + 1])
        part = w[own]
        fun = lambda x: (float(part @ (x["x"] - 1) ** 2), {"x": 2 * part * (x["x"] - 1), "none": x["none"] * 0})
        x0 = {"x": np.zeros(len(part)), "none": np.zeros(1)}
        sent = comm.sent
        found = xopt.minimize(fun, x0, method=method, comm=comm, owned=True, options={"gtol": 1e-8, "xtol": 1e-300})
        assert comm.sent - sent < 800 * found.nfev + 500
        assert "hess_inv" not in found
        return found

    found = World(SIZE).run(job)
    for x in found:
        assert not isinstance(x, BaseException), x
        assert (x.fun, x.nit, x.nfev, x.status) == (found[0].fun, found[0].nit, found[0].nfev, 0)
    assert abs(found[0].nit - want.nit) <= 1 + want.nit // 20
    np.testing.assert_allclose(np.concatenate([x.x["x"] for x in found]), want.x, atol=1e-8)


@pytest.mark.parametrize(
    ("method", "owned", "match"),
    [
        ("bfgs", True, "'bfgs' keeps a matrix"),
        ("newton-cg", False, "'newton-cg', whose Hessian would be that of one rank"),
    ],
)
def test_what_needs_all_of_the_hessian(method: Any, owned: bool, match: str) -> None:
    def job(comm: Rank) -> Any:
        xopt.minimize(lambda x: (x @ x, 2 * x), np.ones(2), method=method, comm=comm, owned=owned)

    assert all(match in str(error) for error in World(SIZE).run(job))


def test_lbfgs_step_by_step() -> None:
    """The class does the same, saves and goes on."""
    problem = Problem()

    def job(comm: Any) -> Any:
        rank, size, more = (0, 1, {}) if comm is None else (comm.rank, SIZE, {"comm": comm})
        fun, solver = problem.fun(rank, size), xopt.LBFGS(history=4, **more)
        solver.init(problem.start())
        for _ in range(3):
            solver.step(fun)
        other = xopt.LBFGS(history=4, **more)
        other.load(solver.state())
        a, b = solver.step(fun), other.step(fun)
        assert a == b
        return bits(solver.x), a.fun

    [first, *rest] = World(SIZE).run(job)
    assert rest == [first] * (SIZE - 1)
    assert first[1] == pytest.approx(job(None)[1], rel=1e-12)


def refuse(x: Any) -> Any:
    raise OSError("no weather")


BAD: dict[str, tuple[Any, type[BaseException], str]] = {
    "fun raises": ({"fun": refuse}, OSError, "no weather"),
    "gradient": ({"fun": lambda x: (0.0, {"z": x["z"], "w": np.ones(7)})}, ValueError, r'grads\["w"\]: shape'),
    "none": ({"fun": lambda x: (0.0, {"z": x["z"], "w": None})}, ValueError, r'grads\["w"\]: None'),
    "value": ({"fun": lambda x: ("x", x)}, TypeError, "value"),
    "x0": ({"x0": {"z": np.zeros(3, complex), "w": np.ones((2, 3))}}, ValueError, r'x0\["w"\]: contents'),
    "shape": ({"x0": {"z": np.zeros(4, complex), "w": np.zeros((2, 3))}}, ValueError, r'x0\["z"\]: shape: \[4\]'),
    "option": ({"options": {"gtol": 1e-3}}, ValueError, "gtol"),
    "no such option": ({"options": {"speed": 1e-3}}, TypeError, "speed"),
    "method": ({"method": "cg"}, ValueError, "method: cg on rank 1, but lbfgs on rank 0"),
    "rule": ({"rule": xopt.SGD()}, TypeError, "comm: given with a rule"),
    "callback": ({"callback": refuse}, OSError, "no weather"),
    "total": ({"total": "max"}, ValueError, "total='max'"),
    "owned": ({"owned": 1}, TypeError, "owned: 1"),
    "interrupt": ({"fun": "interrupt"}, KeyboardInterrupt, ""),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_on_one_rank_ends_all(name: str) -> None:
    problem = Problem()
    more, kind, text = BAD[name]

    def job(comm: Rank) -> Any:
        fun = problem.fun(comm.rank, SIZE)
        words: dict[str, Any] = {"fun": fun, "x0": problem.start(), "comm": comm}
        if comm.rank == 1:
            words |= more
            if name == "interrupt":
                calls = iter(range(10))

                def stopped(x: Any) -> Any:
                    if next(calls) == 3:
                        raise KeyboardInterrupt
                    return fun(x)

                words["fun"] = stopped
        return xopt.minimize(words.pop("fun"), words.pop("x0"), words.pop("rule", None), **words)

    found = World(SIZE).run(job)
    for rank in (0, 2):
        assert isinstance(found[rank], RankError), found
        assert found[rank].rank == 1
    if name == "interrupt":
        assert found[1].status == 3
        return
    assert type(found[1]) is kind
    with pytest.raises(kind, match=text):
        raise found[1]


def test_a_callback_of_one_rank_ends_the_run_of_all() -> None:
    problem = Problem()

    def job(comm: Rank) -> Any:
        seen = []
        stop = (lambda x: seen.append(1) or len(seen) == 2) if comm.rank == 2 else None
        return settled(xopt.minimize(problem.fun(comm.rank, SIZE), problem.start(), callback=stop, comm=comm))

    [first, *rest] = World(SIZE).run(job)
    assert rest == [first] * (SIZE - 1)
    assert first[2:5] == (2, first[3], 99)


def test_what_does_not_go_with_comm() -> None:
    problem = Problem()
    for more, text in (
        ({"options": {"max_time": 3.0}}, "max_time: given with comm"),
        ({"owned": True, "bounds": (None, 1.0)}, "frees variables by the sums of all"),
        ({"jac": "2-point"}, "jac: '2-point', but with comm each rank must return its gradient"),
    ):
        for error in World(2).run(lambda comm: xopt.minimize(problem.fun(0, 1), problem.start(), comm=comm, **more)):  # noqa: B023
            assert text in str(error)
    with pytest.raises(TypeError, match="go with comm"):
        xopt.minimize(problem.fun(0, 1), problem.start(), owned=True)
    with pytest.raises(TypeError, match="go with comm"):
        xopt.minimize(problem.fun(0, 1), problem.start(), xopt.SGD(), total="mean")
