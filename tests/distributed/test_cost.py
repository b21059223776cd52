"""What a rank keeps and what it sends: 1/N of the state, and the parameters twice but for its own part."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from support.ranks import Rank, World

import xopt
from xopt._engine.program.summation import CHUNK

TREES: dict[str, list[tuple[int, ...]]] = {
    "vector": [(1_500_001,)],
    "object of 3 leaves": [(700, 1000), (700, 1000), (128, 128)],
    "many": [(400, 300), (300,)] * 20,
}


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_state_and_bytes(name: str, size: int) -> None:
    rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam(lr=0.1))
    total = sum(4 * int(np.prod(shape)) for shape in TREES[name])

    def one(comm: Rank) -> Any:
        params = [np.ones(shape, np.float32) for shape in TREES[name]]
        opt: Any = xopt.Optimizer(params, rule, comm=comm)
        state = sum(x.nbytes for column in opt._slots.values() for x in column)
        before = comm.sent
        opt.step([np.ones_like(x) for x in params])
        return state, comm.sent - before

    found = World(size).run(one)
    assert sum(state for state, _ in found) == 2 * total
    for state, sent in found:
        assert state <= 2 * total / size + 2 * 4 * CHUNK
        least = 2 * (size - 1) / size * total
        assert sent <= 1.01 * least + 4 * CHUNK * size  # a bucket is as long as the longest shard


def test_what_is_frozen_is_not_sent() -> None:
    def one(comm: Rank) -> int:
        params = {"a": np.ones(200_000), "b": np.ones(100)}
        opt = xopt.Optimizer(params, xopt.Groups(xopt.Adam(), ("a", xopt.Freeze)), comm=comm)
        before = comm.sent
        opt.step({n: x * 1 for n, x in params.items()})
        return comm.sent - before

    assert max(World(3).run(one)) < 5_000


def test_metrics_and_hooks_are_those_of_every_rank() -> None:
    def one(comm: Any) -> Any:
        more = {} if comm is None else {"comm": comm}
        opt: Any = xopt.Optimizer(
            {"w": np.ones(3 * CHUNK), "b": np.ones(3)},
            xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.LAMB(lr=0.1)),
            metrics=["update_norm", "param_norm"],
            **more,
        )
        seen = []
        opt.on_step(lambda opt: seen.append(opt.steps_taken))
        g = {"w": np.full(3 * CHUNK, 2.0), "b": np.ones(3)}
        opt.step(g if comm is None or comm.rank == 0 else dict.fromkeys(g))
        assert seen == [1]
        assert comm is None or (opt.rank == comm.rank and f"rank {comm.rank} of 4" in repr(opt))
        return opt.metrics

    want, found = one(None), World(4).run(one)
    for x in found:
        ratios = [x.pop("trust_ratio"), {n: y for n, y in want.items() if n == "trust_ratio"}["trust_ratio"]]
        assert x == {n: y for n, y in want.items() if n != "trust_ratio"}
        for n in ("w", "b"):
            assert np.isnan(ratios[0][n]) or ratios[0][n] == ratios[1][n]
        x["ratios"] = ratios[0]
    assert [bool(np.isnan(x["ratios"]["b"])) for x in found] == [False, True, True, True]
    assert [bool(np.isnan(x["ratios"]["w"])) for x in found] == [False, True, False, False]  # rank 1 has nothing


def test_metrics_of_groups() -> None:
    """What differs from group to group is a tree on every rank, also on those that have one group alone."""

    def one(comm: Any) -> Any:
        rule = xopt.Groups(xopt.Adam(lr=0.1), ("b", {"lr": 0.01}), ("c", xopt.SGD(lr=1.0)))
        opt = xopt.Optimizer({n: np.ones(40_000) for n in "abcd"}, rule, **({} if comm is None else {"comm": comm}))
        g = {n: np.ones(40_000) for n in "abcd"}
        opt.step({**g, "d": None})
        assert opt.metrics["adam.lr"]["b"] == 0.01
        return repr(opt.metrics)

    assert World(4).run(one) == [one(None)] * 4


def test_a_schedule_is_called_once_a_step() -> None:
    def one(comm: Any) -> Any:
        calls = []
        lr = lambda t: calls.append(t) or 0.5 / len(calls)
        opt = xopt.Optimizer(np.ones(3), xopt.SGD(lr=lr), **({} if comm is None else {"comm": comm}))
        calls.clear()
        for _ in range(3):
            opt.step(np.ones(3) if comm is None or comm.rank == 0 else None)
        return calls, opt.params.tolist()

    assert World(3).run(one) == [one(None)] * 3


def test_a_progress_bar_of_rank_0() -> None:
    pytest.importorskip("tqdm")

    def one(comm: Rank) -> Any:
        text, opt = io.StringIO(), xopt.Optimizer(np.ones(3), xopt.SGD(lr=0.5), comm=comm)
        with xopt.ProgressBar(2, file=text, every=1, mininterval=0, leave=True) as bar:
            opt.on_step(bar)
            for _ in range(2):
                opt.step(np.ones(3))
        return text.getvalue().rpartition("\r")[2]

    first, second = World(2).run(one)
    assert "2/2" in first
    assert "lr=0.5" in first
    assert "lr" not in second


def test_a_hook_that_raises_on_one_rank() -> None:
    """The step is done everywhere by then; the next one goes on."""

    def one(comm: Rank) -> Any:
        opt = xopt.Optimizer(np.ones(3), xopt.SGD(lr=0.5), comm=comm)
        if comm.rank == 1:
            end = opt.on_step(lambda opt: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                opt.step(np.ones(3))
            end()
        else:
            opt.step(np.ones(3))
        return opt.step(np.ones(3)).tolist()

    assert World(3).run(one) == [[-2.0] * 3] * 3
