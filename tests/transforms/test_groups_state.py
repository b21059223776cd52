"""State and names of groups: what is frozen, how slots and numbers are called, how groups are shown and pickled."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import numpy as np
import optree
import pytest
from conftest import Lib
from support.groups import CASES, TreeScale, tree
from support.runners import one_of, same_bits

import xopt

runner = one_of("eager", "tiled", "cuda", "llvm")


def test_frozen(lib: Lib, rng: np.random.Generator) -> None:
    """No state; a gradient that is None or fits; one that does not is refused."""
    rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Groups(xopt.Adam(0.1), ("body/*", xopt.Freeze)))
    draw = lambda: {"body": [lib.array(rng.standard_normal(3))], "head": lib.array(rng.standard_normal(3))}
    params, grads = draw(), draw()
    state = rule.init(params)
    assert {n: x["body"] for n, x in state.slots.items()} == {"1.adam.m": [None], "1.adam.v": [None]}
    new, after = rule.apply(params, grads, state)
    assert np.array_equal(lib.numpy(new["body"][0]), lib.numpy(params["body"][0]))
    other, _ = rule.apply(params, {**grads, "body": [None]}, state)
    assert np.array_equal(lib.numpy(new["head"]), lib.numpy(other["head"]))
    change, _ = rule.updates(params, grads, state)
    assert not lib.numpy(change["body"][0]).any()
    assert lib.numpy(change["head"]).any()
    again, _ = rule.apply(new, grads, after)
    assert not np.array_equal(lib.numpy(again["head"]), lib.numpy(new["head"]))
    with pytest.raises(ValueError, match=r'grads\["body"\]\[0\]: shape \(2,\)'):
        rule.apply(params, {**grads, "body": [lib.array(np.zeros(2))]}, state)


def test_all_frozen(runner: Any) -> None:
    rule = xopt.chain(TreeScale(), xopt.Groups(xopt.Adam(), ("**", xopt.Freeze)))
    p = [np.ones(3)]
    opt = xopt.Optimizer(p, rule, runner=runner)
    opt.step([np.ones(3)])
    assert p[0].tolist() == [1.0] * 3
    assert opt.state == (1, {}, {})
    assert rule.init([]).slots == {}


@pytest.mark.needs("torch")
def test_frozen_parameters_of_torch_are_not_written() -> None:
    """Autograd counts writes: a frozen parameter may be part of a graph that is still to be gone through."""
    torch = pytest.importorskip("torch")
    params = {"a": torch.ones(3, requires_grad=True), "b": torch.ones(3, requires_grad=True)}
    opt = xopt.Optimizer(params, xopt.Groups(xopt.SGD(), ("a", xopt.Freeze)))
    opt.step({"a": torch.ones(3), "b": torch.ones(3)})
    assert params["a"]._version == 0
    assert params["b"]._version > 0


def test_explain_says_what_is_frozen() -> None:
    text = xopt.explain(xopt.Groups(xopt.Adam(), ("a", xopt.Freeze)), {"a": np.ones(7), "b": np.ones(2)})
    assert "frozen: 1 array, 7 parameters\n" in text
    assert "float64: 1 array, 2 parameters, 16 bytes of state each" in text


# --- state


def test_state_has_none_where_a_rule_is_not(rng: np.random.Generator) -> None:
    rule = xopt.Groups(xopt.Adam(), ("head/*", xopt.chain(xopt.ClipByValue(1.0), xopt.SGD(momentum=0.9))))
    params = tree(rng, "float32")
    state = rule.init(params)
    assert list(state.slots) == ["0.adam.m", "0.adam.v", "0.group0.1.sgd.m"]
    assert state.slots["0.adam.m"]["head"] == {"w": None, "b": None}
    assert state.slots["0.group0.1.sgd.m"]["embed"] == {"w": None, "scale": None}
    wrong = copy.deepcopy(state)
    wrong.slots["0.adam.m"]["head"]["w"] = params["head"]["w"]
    with pytest.raises(
        ValueError, match=r'state.slots\["0.adam.m"\]\["head"\]\["w"\]: an array, but the rule keeps none'
    ):
        rule.apply(params, params, wrong)
    wrong = copy.deepcopy(state)
    wrong.slots["0.group0.1.sgd.m"]["head"]["b"] = None
    with pytest.raises(TypeError, match=r'state.slots\["0.group0.1.sgd.m"\]\["head"\]\["b"\]: a NoneType'):
        rule.apply(params, params, wrong)
    with pytest.raises(ValueError, match=r"state.slots: \['0.adam.m', '0.adam.v'\], but this rule keeps"):
        rule.apply(params, params, xopt.Adam().init(params))


def test_numbers_of_groups_leave_the_state_of_the_rule(rng: np.random.Generator) -> None:
    """A checkpoint of the plain rule goes on with groups."""
    params = tree(rng, "float32")
    rule = xopt.Groups(xopt.Adam(), ("head/*", {"lr": 0.1}))
    assert [*rule.init(params).slots] == [*xopt.Adam().init(params).slots]
    rule.apply(params, params, xopt.Adam().init(params))


def test_state_moves_between_apply_and_optimizer(rng: np.random.Generator) -> None:
    rule, _ = CASES["norms of leaves"]
    params, grads = tree(rng, "float64"), tree(rng, "float64")
    opt = xopt.Optimizer(optree.tree_map(np.copy, params), rule, runner="tiled")
    opt.step(grads)
    start, state = copy.deepcopy((opt.params, opt.state))
    opt.step(grads)
    pure, after = rule.apply(start, grads, pickle.loads(pickle.dumps(state)))
    assert all(map(same_bits, optree.tree_leaves(pure), optree.tree_leaves(opt.params)))
    assert after.carry["0.1.leaftrust.norm"].shape == (len(optree.tree_leaves(params)),)


# --- names


def test_names(rng: np.random.Generator) -> None:
    rule = xopt.chain(
        xopt.ClipByGlobalNorm(1.0),
        xopt.Groups(
            xopt.AdamW(lr=0.1),
            ("head/*", {"lr": 0.5, "adamw.b1": 0.5}),
            ("embed/*", xopt.SGD(lr=0.2, momentum=0.9)),
            ("blocks/0/*", xopt.Freeze),
            ("blocks/1/*", {"lr": xopt.scaled(2.0)}),
        ),
    )
    opt = xopt.Optimizer(tree(rng, "float32"), rule)
    names = opt.hyperparams()
    assert names["max_norm"] == 1.0
    assert (names["adamw.lr"], names["sgd.lr"], names["group0.lr"], names["group0.adamw.b1"]) == (0.1, 0.2, 0.5, 0.5)
    assert names["group3.lr"] == xopt.scaled(2.0)
    assert names["b1"] == 0.9
    opt.set(**{"adamw.lr": 0.3, "1.group1.sgd.lr": 0.4, "group0.lr": xopt.scaled(0.5), "1.group0.adamw.b1": 0.25})
    names = opt.hyperparams()
    assert (names["adamw.lr"], names["sgd.lr"], names["group0.lr"]) == (0.3, 0.4, xopt.scaled(0.5))
    assert names["group0.adamw.b1"] == 0.25
    for name in names:
        opt.set(**{name: names[name]})
    for name, error in [
        ("lr", "'lr' is ambiguous: say adamw.lr or sgd.lr"),
        ("group1.lr", "no hyperparameter 'group1.lr'; there are"),
        ("group0.eps", "no hyperparameter 'group0.eps'"),
        ("nesterov", "static field"),
    ]:
        with pytest.raises(TypeError, match=error):
            opt.set(**{name: 0.1})
    with pytest.raises(ValueError, match="group0.lr: -1.0 is out of range"):
        opt.set(**{"group0.lr": -1.0})
    with pytest.raises(TypeError, match="another formula"):
        opt.set(**{"group0.lr": None})
    assert opt.hyperparams() == names


def test_set_moves_the_rule_and_what_follows_it() -> None:
    p = {n: np.zeros(1) for n in "abc"}
    rule = xopt.Groups(xopt.SGD(lr=1.0), ("a", {"lr": 3.0}), ("b", {"lr": xopt.scaled(0.5)}))
    opt = xopt.Optimizer(p, rule)
    opt.set(lr=2.0)
    opt.step({n: np.ones(1) for n in "abc"})
    assert [p[n].item() for n in "abc"] == [-3.0, -1.0, -2.0]
    opt.step({n: np.ones(1) for n in "abc"}, lr=lambda t: 4.0 * t)
    assert [p[n].item() for n in "abc"] == [-6.0, -5.0, -10.0]
    assert opt.rule == xopt.Groups(xopt.SGD(lr=2.0), ("a", {"lr": 3.0}), ("b", {"lr": xopt.scaled(0.5)}))


def test_groups_are_numbered_through() -> None:
    inner = xopt.Groups(xopt.SGD(), ("a", xopt.Adam()), ("b", {"lr": 0.5}))
    outer = xopt.Groups(inner, ("c", xopt.Lion()), ("d", {"sgd.lr": 0.25}), ("e", xopt.Signum()))
    opt = xopt.Optimizer({n: np.zeros(1) for n in "abcde"}, outer)
    assert [*opt.state.slots] == ["0.group0.adam.m", "0.group0.adam.v", "0.group2.lion.m", "0.group4.signum.m"]
    names = opt.hyperparams()
    assert {"group1.lr": 0.5, "group3.sgd.lr": 0.25}.items() <= names.items()
    opt.set(**{"group1.lr": 0.1, "group3.sgd.lr": 0.2, "lion.lr": 0.3})
    assert opt.hyperparams()["group1.lr"] == 0.1


def test_masked_names() -> None:
    rule = xopt.chain(xopt.Masked(xopt.ClipByNorm(1.0), "a"), xopt.SGD(0.1), xopt.ClipByNorm(2.0))
    opt = xopt.Optimizer({"a": np.zeros(1), "b": np.zeros(1)}, rule)
    assert opt.hyperparams()["0.clipbynorm.max_norm"] == 1.0
    opt.set(**{"0.clipbynorm.max_norm": 0.5})
    assert opt.rule.parts[0] == xopt.Masked(xopt.ClipByNorm(0.5), "a")  # type: ignore[attr-defined]


# --- shown


def test_shown_compared_pickled() -> None:
    rules = [
        xopt.Groups(
            xopt.Adam(0.1), ("a/**", {"lr": xopt.scaled(0.5)}), (xopt.no_decay_1d, xopt.Freeze), unmatched="ignore"
        ),
        xopt.Groups(xopt.chain(xopt.ClipByValue(1.0), xopt.SGD()), (re.compile("x"), xopt.Adam())),
        xopt.layerwise_decay(xopt.SGD(), ["a", "b"]),
        xopt.chain(xopt.Masked(xopt.ClipByValue(1.0), re.compile("x"), unmatched="ignore"), xopt.SGD()),
    ]
    for rule in rules:
        for again in (
            eval(repr(rule), {"re": re, **{n: getattr(xopt, n) for n in xopt.__all__}}),
            pickle.loads(pickle.dumps(rule)),
            copy.deepcopy(rule),
        ):
            assert again == rule
            assert hash(again) == hash(rule)
            assert repr(again) == repr(rule)
    assert rules[0] != rules[1]
    assert rules[0] != xopt.Groups(xopt.Adam(0.1), ("a/**", {"lr": 0.5}), (xopt.no_decay_1d, xopt.Freeze))
    with pytest.raises(AttributeError, match="Groups is immutable"):
        rules[0]._unmatched = "error"  # type: ignore[union-attr,assignment]
