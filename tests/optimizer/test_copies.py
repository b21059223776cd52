"""An optimizer that is pickled or copied goes on alone, with the bits that it would have had."""

from __future__ import annotations

import copy
import json
import multiprocessing
import pickle
from typing import Any

import numpy as np
import optree
import pytest
from conftest import Lib, tree

import xopt
from xopt._arrays.transfer import to_host

WAYS = {"pickle": lambda x: pickle.loads(pickle.dumps(x)), "deepcopy": copy.deepcopy}
RULES = [
    xopt.chain(
        xopt.ClipByGlobalNorm(1.0), xopt.Adam(lr=xopt.schedules.cosine(0.1, steps=9)), xopt.EMA(0.9, start="zero")
    ),
    xopt.Groups(xopt.LDoG(), ("wide/*", xopt.Muon(lr=0.1)), ("list/0", xopt.Freeze)),
    xopt.LossScale(xopt.Accumulate(xopt.ScheduleFreeAdamW(lr=0.1), 2)),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", RULES, ids=["chain", "groups", "wrapped"])
def test_a_copy_goes_on_with_the_same_bits(lib: Lib, rule: Any, way: str) -> None:
    if lib.guise in ("read-only", "eager") or (lib.name == "strict" and lib.guise != "CPU_DEVICE"):
        pytest.skip("Optimizer cannot write into it, or the other guise has it")
    if lib.name in ("jax", "dask") and (way == "deepcopy") != (rule is RULES[0]):
        pytest.skip("each rule is compiled, or is a large graph")
    if lib.name == "mlx" and way == "pickle":
        pytest.skip("MLX's own pickles of float64 are float32")
    draws = np.random.default_rng(3)
    draw = lambda: optree.tree_map(lib.array, tree(draws, lib=lib))
    opt = xopt.Optimizer(draw(), rule)
    for _ in range(3):
        opt.step(draw())
    before = optree.tree_map(lambda x: lib.numpy(x).copy(), (opt.params, opt.state.slots))
    twin = WAYS[way](opt)
    assert (repr(twin), twin.hyperparams(), twin.runner) == (repr(opt), opt.hyperparams(), opt.runner)
    grads = [draw() for _ in range(3)]
    for g in grads:
        twin.step(g)
    same = lambda a, b: all(map(np.array_equal, *map(optree.tree_leaves, (optree.tree_map(lib.numpy, a), b))))
    assert same((opt.params, opt.state.slots), before)  # the copy has its own
    for g in grads:
        opt.step(g)
    assert same((opt.params, opt.state.slots), optree.tree_map(lib.numpy, (twin.params, twin.state.slots)))
    numbers = lambda carry: {n: to_host(x).tolist() if hasattr(x, "dtype") else x for n, x in carry.items()}
    if lib.name != "dask":
        assert numbers(opt.state.carry) == numbers(twin.state.carry)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("how", [{"rounding": "kahan"}, {"master_weights": True}, {"state_dtype": "int8"}], ids=str)
@pytest.mark.parametrize("runner", ["tiled", "eager"])
def test_every_way_to_keep_digits(way: str, how: Any, runner: Any) -> None:
    p = np.linspace(1, 2, 5000).astype("float16")
    opt = xopt.Optimizer({"w": p}, xopt.Adam(lr=0.01), runner=runner, on_nonfinite="skip", **how)
    g = {"w": np.linspace(-1, 1, 5000).astype("float16")}
    opt.step(g)
    twin = WAYS[way](opt)
    for _ in range(2):
        assert np.array_equal(opt.step(g)["w"], twin.step(g)["w"])
    assert twin.runner == runner
    assert twin.rule == opt.rule


class Tracked(xopt.Optimizer):
    """One with more to remember."""

    losses: list[float]


def test_what_is_shared_stays_shared() -> None:
    """An estimator, and a network, whose arrays the optimizer trains: so it is in the copy."""

    for way in WAYS.values():
        coefficients = np.ones(3)
        opt = Tracked({"w": coefficients}, xopt.SGD(lr=0.5))
        opt.losses = [1.0]
        copied, twin = way((coefficients, opt))
        twin.step({"w": np.ones(3)})
        twin.losses.append(2.0)
        assert (copied.tolist(), coefficients.tolist()) == ([0.5] * 3, [1.0] * 3)
        assert (type(twin), twin.losses, opt.losses) == (Tracked, [1.0, 2.0], [1.0])


def test_what_is_set_and_loaded_is_in_the_copy() -> None:
    opt = xopt.Optimizer(np.ones(2), xopt.Adam(lr=0.1))
    opt.set(lr=0.25)
    opt.load_state_dict(opt.state_dict(only_state=False) | {"step": 41})
    for way in WAYS.values():
        twin = way(opt)
        assert (twin.hyperparams()["lr"], twin.state.step) == (0.25, 41)
        twin.set(lr=0.5)
        assert opt.hyperparams()["lr"] == 0.25
        assert json.dumps(twin.state_dict()["rule"]) != json.dumps(opt.state_dict()["rule"])


def test_arrays_that_come_back_read_only_are_copied() -> None:
    """joblib maps large arrays of a task from a file, read-only."""
    opt = xopt.Optimizer([np.ones(3)], xopt.SGD(lr=0.5, momentum=0.5))
    buffers: list[Any] = []
    data = pickle.dumps(opt, protocol=5, buffer_callback=buffers.append)
    twin = pickle.loads(data, buffers=[bytes(x.raw()) for x in buffers])
    assert twin.step([np.ones(3)])[0].tolist() == [0.5] * 3


def test_what_is_refused() -> None:
    opt = xopt.Optimizer(np.ones(2), xopt.chain(xopt.SGD(), xopt.EMA(0.5)))
    with pytest.raises(TypeError, match=r"use copy\.deepcopy"):
        copy.copy(opt)
    for way in WAYS.values():
        with opt.averaged(), pytest.raises(RuntimeError, match="the parameters are averages"):
            way(opt)
    opt.set(lr=lambda t: 0.1)
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(opt)
    copy.deepcopy(opt).step(np.ones(2))


def stepped(opt: xopt.Optimizer) -> xopt.Optimizer:
    opt.step({"w": np.full(3, 0.5)})
    return opt


def test_it_goes_to_another_process_and_back() -> None:
    opt = xopt.Optimizer({"w": np.ones(3)}, xopt.Adam(lr=0.1), runner="tiled")
    opt.step({"w": np.ones(3)})
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        back = pool.apply(stepped, (opt,))
    assert back.state.step == 2
    assert np.array_equal(stepped(opt).params["w"], back.params["w"])
