"""Ranks with parameters of their own: nothing is sent but sums, which are those of the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.bits import bits
from support.ranks import Rank, World

import xopt

SIZE = 3
CUTS = {"w": (0, 40, 40, 100), "v": (0, 70_000, 140_000, 150_001)}
"""Where each rank's part begins and ends, along the first axis; one rank has nothing of "w"."""


def whole(key: int) -> dict[str, Any]:
    rng = np.random.default_rng(key)
    return {"w": rng.standard_normal((100, 5)), "v": rng.standard_normal(150_001)}


def part(tree: dict[str, Any], rank: int) -> dict[str, Any]:
    return {n: x[CUTS[n][rank] : CUTS[n][rank + 1]].copy() for n, x in tree.items()}


RULES = {
    "adam": xopt.Adam(lr=0.1),
    "clip": xopt.chain(xopt.ClipByGlobalNorm(0.1), xopt.AdamW(lr=0.1, weight_decay=0.1)),
    "lamb": xopt.LAMB(lr=0.1),
    "prodigy": xopt.Prodigy(d0=0.1),
    "novograd": xopt.NovoGrad(lr=0.1),
    "dog": xopt.chain(xopt.LDoG(), xopt.Ball(3.0)),
    "groups": xopt.chain(xopt.ClipByNorm(0.1), xopt.Groups(xopt.Adam(lr=0.1), ("w", {"lr": 0.01}))),
    "guard": xopt.Guard(xopt.chain(xopt.ClipByGlobalNorm(0.1), xopt.SGD(lr=0.1, momentum=0.9)), "skip"),
}


@pytest.mark.parametrize("name", RULES)
def test_the_steps_are_those_of_the_whole(name: str) -> None:
    """To the last bits of the sums, which are added rank after rank."""
    rule, p = RULES[name], whole(0)
    opt = xopt.Optimizer(p, rule)
    for t in range(1, 5):
        g = whole(t)
        g["v"][80_000] = np.nan if name == "guard" and t == 2 else 0.0
        opt.step(g)

    def one(comm: Rank) -> Any:
        own = xopt.Optimizer(part(whole(0), comm.rank), rule, comm=comm, owned=True)
        sent = comm.sent
        for t in range(1, 5):
            g = whole(t)
            g["v"][80_000] = np.nan if name == "guard" and t == 2 else 0.0
            own.step(part(g, comm.rank))
        assert comm.sent - sent < 2_000
        return own.params, own.state.carry

    found = World(SIZE).run(one)
    for n, x in p.items():
        np.testing.assert_allclose(np.concatenate([own[n] for own, _ in found]), x, rtol=1e-11, atol=1e-13)
    for n, x in opt.state.carry.items():
        for _, carry in found:
            np.testing.assert_allclose(carry[n], x, rtol=1e-12)


def test_a_gradient_on_some_ranks_only_is_zero_on_the_others() -> None:
    def one(comm: Rank) -> Any:
        own = xopt.Optimizer(part(whole(0), comm.rank), xopt.SGD(lr=1.0, momentum=0.5), comm=comm, owned=True)
        own.step(part(whole(1), comm.rank))
        g = part(whole(2), comm.rank)
        own.step({"w": None, "v": g["v"] if comm.rank == 1 else None})
        return own.params

    found = World(SIZE).run(one)
    p, g, h = whole(0), whole(1), whole(2)
    want = p["v"] - g["v"] - 0.5 * g["v"]
    want[70_000:140_000] -= h["v"][70_000:140_000]
    np.testing.assert_allclose(np.concatenate([x["v"] for x in found]), want, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(np.concatenate([x["w"] for x in found]), p["w"] - g["w"], rtol=1e-12, atol=1e-14)


def test_noise_differs_from_rank_to_rank() -> None:
    def one(comm: Rank) -> Any:
        p = np.ones(70_000, np.float16)
        own = xopt.Optimizer(p, xopt.SGD(lr=1.0), comm=comm, owned=True, rounding="stochastic")
        return own.step(np.full(70_000, 1e-4, np.float16)).tolist()

    a, b = World(2).run(one)
    assert a != b
    assert 0.05 < np.mean(np.asarray(a) < 1) < 0.5


def test_each_rank_saves_its_own(tmp_path: Path) -> None:
    rule = xopt.chain(xopt.ClipByGlobalNorm(0.1), xopt.LDoG())

    def one(comm: Rank) -> Any:
        own = xopt.Optimizer(part(whole(0), comm.rank), rule, comm=comm, owned=True)
        own.step(part(whole(1), comm.rank))
        file = own.save(tmp_path / f"{comm.rank}.safetensors")
        new = xopt.Optimizer(part(whole(9), comm.rank), rule, comm=comm, owned=True)
        new.load(file)
        for opt in (own, new):
            opt.step(part(whole(2), comm.rank))
        assert own.metrics["grad_norm"] == new.metrics["grad_norm"] > 100
        return bits(own.params) == bits(new.params)

    assert World(SIZE).run(one) == [True] * SIZE


def test_files_of_ranks_that_are_missing_or_the_same(tmp_path: Path) -> None:
    """Each rank raises; nothing is lost, and nothing moves."""

    def one(comm: Rank) -> Any:
        own = xopt.Optimizer(part(whole(0), comm.rank), xopt.Adam(lr=0.1), comm=comm, owned=True)
        before = bits(own.params)
        own.save(tmp_path / f"{comm.rank}.safetensors")
        with pytest.raises(ValueError, match="on more than one rank"):
            own.save(tmp_path / "all.safetensors")
        missing = FileNotFoundError if comm.rank == 1 else xopt.distributed.RankError
        with pytest.raises(missing, match=r"9\.safetensors"):
            own.load(tmp_path / f"{9 if comm.rank == 1 else comm.rank}.safetensors")
        bad = xopt.CheckpointError if comm.rank == 2 else xopt.distributed.RankError
        with pytest.raises(bad, match="must be a dict"):
            own.load_state_dict({} if comm.rank == 2 else own.state_dict())
        assert bits(own.params) == before
        own.step(part(whole(1), comm.rank))
        return True

    assert World(SIZE).run(one) == [True] * SIZE
    assert len([*tmp_path.iterdir()]) == SIZE


def test_calls_of_one_rank_talk_to_nobody_when_they_fail_either() -> None:
    def one(comm: Rank) -> Any:
        opt = xopt.Optimizer(np.zeros(3), xopt.chain(xopt.SGD(lr=1.0), xopt.EMA(0.5)), comm=comm, owned=True)
        opt.step(np.ones(3))
        with opt.averaged():
            if comm.rank == 0:
                with pytest.raises(RuntimeError, match="averages until"):
                    opt.state_dict()
        return opt.params.tolist()

    assert World(2).run(one) == [[-1.0] * 3] * 2


def test_a_save_that_fails_on_one_rank_is_raised_on_all(tmp_path: Path) -> None:
    for bad in (None, tmp_path / "none" / "x.safetensors"):

        def one(comm: Rank, bad: Any = bad) -> Any:
            opt = xopt.Optimizer(np.zeros(3), xopt.SGD(lr=1.0), comm=comm, owned=True)
            with pytest.raises((OSError, TypeError) if comm.rank else xopt.distributed.RankError):
                opt.save(bad if comm.rank else tmp_path / "0.safetensors")
            return opt.step(np.ones(3)).tolist()

        assert World(2).run(one) == [[-1.0] * 3] * 2
