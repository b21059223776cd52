"""State of torch.optim: a run that moves over in the middle ends where it would have ended, and back."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.moves import AFTER, BEFORE, EXACT, SHAPES, Arrays, Move, adam, close, draw, plain, problems

import xopt


def ours(rule: Any, params: Any, state: Any, grads: list[Arrays], as_array: Callable[[Any], Any] = np.array) -> Any:
    """Go on in an optimizer."""
    opt = xopt.Optimizer({n: as_array(x) for n, x in params.items()}, rule)
    opt.load_state_dict(state)
    for g in grads:
        opt.step({n: as_array(x) for n, x in g.items()})
    return opt


def torch_opt(move: Move, params: Any, names: bool = False) -> tuple[Any, Any]:
    torch = importlib.import_module("torch")
    theirs = {n: torch.tensor(x, requires_grad=True) for n, x in params.items()}
    return theirs, move.make(torch.optim, list(theirs.items()) if names else list(theirs.values()))


def torch_walk(opt: Any, theirs: Any, grads: list[Arrays]) -> Arrays:
    torch = importlib.import_module("torch")
    for g in grads:
        for n, p in theirs.items():
            p.grad = torch.tensor(g[n])
        opt.step()
    return {n: p.detach().numpy().copy() for n, p in theirs.items()}


TORCH = [
    adam("Adam", lr=0.1),
    adam("Adam", lr=0.1, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.3, amsgrad=True),
    adam("Adam", lr=0.1, maximize=True),
    adam("Adam", complex=True, lr=0.1, amsgrad=True, weight_decay=0.1),
    adam("AdamW", lr=0.1, weight_decay=0.3),
    adam("AdamW", lr=0.1, weight_decay=0.3, amsgrad=True),
    adam("AdamW", complex=True, lr=0.1),
    plain("SGD", xopt.SGD(0.05, like="torch"), lr=0.05),
    plain("SGD", xopt.SGD(0.05, momentum=0.9, like="torch"), lr=0.05, momentum=0.9),
    plain("SGD", xopt.SGD(0.05, momentum=0.9, dampening=0.5, weight_decay=0.2, like="torch"),
          lr=0.05, momentum=0.9, dampening=0.5, weight_decay=0.2),
    plain("SGD", xopt.SGD(0.05, momentum=0.9, nesterov=True, maximize=True, like="torch"),
          lr=0.05, momentum=0.9, nesterov=True, maximize=True),
    plain("SGD", xopt.SGD(0.05, momentum=0.9, like="torch"), complex=True, lr=0.05, momentum=0.9),
    plain("RMSprop", xopt.RMSProp(0.02, like="torch"), lr=0.02),
    plain("RMSprop", xopt.RMSProp(0.02, rho=0.9, eps=1e-3, momentum=0.8, centered=True, weight_decay=0.1, like="torch"),
          lr=0.02, alpha=0.9, eps=1e-3, momentum=0.8, centered=True, weight_decay=0.1),
    plain("RMSprop", xopt.RMSProp(0.02, momentum=0.8, like="torch"), complex=True, lr=0.02, momentum=0.8),
]  # fmt: skip


@pytest.mark.needs("torch")
@pytest.mark.parametrize("where", ["torch", "numpy"])
@pytest.mark.parametrize("move", TORCH)
def test_from_torch(move: Move, where: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    params, grads = draw(rng, move.complex)
    theirs, opt = torch_opt(move, params)
    middle = torch_walk(opt, theirs, grads[:BEFORE])
    as_array = torch.tensor if where == "torch" else np.array
    other = move.rule.replace(lr=77.0)  # torch has the number
    state = xopt.from_torch(opt.state_dict(), other, {n: as_array(x) for n, x in middle.items()})
    got = ours(other, middle, state, grads[BEFORE:], as_array)
    close(got.params, torch_walk(opt, theirs, grads[BEFORE:]))
    kept = {n.rpartition(".")[0] for n in state["state"]}
    assert got.state.step == AFTER + (BEFORE if kept != {"0.sgd"} and kept else len(kept))
    pure = xopt.load_state(state, move.rule, middle)
    now = {n: x.copy() for n, x in middle.items()}
    for g in grads[BEFORE:]:
        now, pure = move.rule.apply(now, g, pure.state if isinstance(pure, xopt.Restored) else pure)
    close(now, {n: p.detach().numpy() for n, p in theirs.items()})


@pytest.mark.needs("torch")
@pytest.mark.parametrize("where", ["torch", "numpy"])
@pytest.mark.parametrize("move", TORCH)
def test_to_torch(move: Move, where: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    params, grads = draw(rng, move.complex)
    as_array = torch.tensor if where == "torch" else np.array
    own = xopt.Optimizer({n: as_array(x) for n, x in params.items()}, move.rule)
    for g in grads[:BEFORE]:
        own.step({n: as_array(x) for n, x in g.items()})
    theirs, opt = torch_opt(move, {n: np.asarray(x) for n, x in own.params.items()})
    like = opt.state_dict()
    for group in like["param_groups"]:
        group["lr"] = 77.0  # the rule has the number
    opt.load_state_dict(xopt.to_torch(own.state_dict(), own.rule, own.params, like))
    got = torch_walk(opt, theirs, grads[BEFORE:])
    whole, uninterrupted = torch_opt(move, params)
    close(got, torch_walk(uninterrupted, whole, grads))


@pytest.mark.needs("torch")
@pytest.mark.parametrize("move", TORCH)
def test_there_and_back_is_the_same(move: Move, rng: np.random.Generator) -> None:
    """What to_torch writes, from_torch reads; before the first step too."""
    pytest.importorskip("torch")
    params, grads = draw(rng, move.complex)
    for steps in (0, 1, 4):
        own = xopt.Optimizer({n: x.copy() for n, x in params.items()}, move.rule)
        for g in grads[:steps]:
            own.step(g)
        saved = own.state_dict()
        _, opt = torch_opt(move, params)
        opt.load_state_dict(xopt.to_torch(saved, own.rule, own.params, opt.state_dict()))
        back = xopt.from_torch(opt.state_dict(), move.rule, params, step=steps)
        assert {n: x for n, x in back.items() if n != "state"} == {n: x for n, x in saved.items() if n != "state"}
        assert back["state"].keys() == saved["state"].keys()
        for slot, own_arrays in saved["state"].items():
            for n, x in own_arrays.items():
                assert np.array_equal(x, back["state"][slot][n])
                assert back["state"][slot][n].dtype == x.dtype


def adam_run(rng: np.random.Generator, names: bool = False, **options: Any) -> tuple[Arrays, Any]:
    """Take some steps of Adam in torch."""
    params, grads = draw(rng)
    theirs, opt = torch_opt(Move(None, lambda o, p: o.Adam(p, **options)), params, names)
    return torch_walk(opt, theirs, grads[:3]), opt.state_dict()


@pytest.mark.needs("torch")
def test_parameters_are_matched_by_name_or_in_the_order_of_python(rng: np.random.Generator) -> None:
    """Not in the order of optree, which sorts: four of these have one shape."""
    pytest.importorskip("torch")
    rule = xopt.Adam(like="torch")
    params, saved = adam_run(rng)
    want = dict(zip(SHAPES, (x["exp_avg"].numpy() for x in saved["state"].values()), strict=True))
    check = lambda found: [np.testing.assert_array_equal(found["state"]["0.adam.m"][n], x) for n, x in want.items()]
    check(xopt.from_torch(saved, rule, params))
    turned = dict(sorted(params.items(), reverse=True))
    check(xopt.from_torch(saved, rule, turned, names=[*SHAPES]))
    nested = {"net": {}, "norm": {}, **{n: params[n] for n in ("scale", "none")}}
    for n in ("norm.weight", "norm.bias", "net.weight", "net.bias"):
        nested[n.partition(".")[0]][n.partition(".")[2]] = params[n]
    found = xopt.from_torch(saved, rule, nested, names=[*SHAPES])["state"]["0.adam.m"]
    np.testing.assert_array_equal(found["norm/bias"], want["norm.bias"])
    named_params, named = adam_run(np.random.default_rng(20260101), names=True)
    want = dict(zip(SHAPES, (x["exp_avg"].numpy() for x in named["state"].values()), strict=True))
    check(xopt.from_torch(named, rule, dict(sorted(named_params.items(), reverse=True))))
    as_list = xopt.from_torch(named, rule, [*params.values()])["state"]["0.adam.m"]
    np.testing.assert_array_equal(as_list["3"], want["norm.bias"])
    back = xopt.to_torch(xopt.Optimizer(turned, rule).state_dict(), rule, turned, named)
    assert [tuple(x["exp_avg"].shape) for x in back["state"].values()] == [*SHAPES.values()]
    assert problems(lambda: xopt.from_torch(named, rule, {**params, "more": np.ones(2)})) == [
        'params["more"]: missing in torch.optim'
    ]
    assert problems(lambda: xopt.from_torch(saved, rule, params, names=["scale"] * 2 + [*SHAPES][:4])) == [
        "names: 'scale' is that of two parameters", 'params["none"]: missing in torch.optim'
    ]  # fmt: skip
    assert problems(lambda: xopt.from_torch(saved, rule, [*params.values()][:5])) == [
        "param_groups: 6 parameters, but here there are 5"
    ]


@pytest.mark.needs("torch")
def test_groups_move(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    params, grads = draw(rng)
    heavy = [n for n in SHAPES if n.endswith("weight")]
    light = [n for n in SHAPES if n not in heavy]

    def make(theirs: Any) -> Any:
        own = {n: theirs[n] for n in heavy}, {n: theirs[n] for n in light}
        groups = [{"params": own[0].items(), "weight_decay": 0.3}, {"params": own[1].items(), "lr": 0.02}]
        return torch.optim.AdamW(groups, lr=0.1, weight_decay=0.0)

    theirs = {n: torch.tensor(x, requires_grad=True) for n, x in params.items()}
    opt = make(theirs)
    middle = torch_walk(opt, theirs, grads[:BEFORE])
    rule = xopt.Groups(
        xopt.AdamW(1.0, weight_decay=0.5, like="torch"), ("*.bias", {"lr": 0.5, "weight_decay": 0.9}),
        (lambda path, x: x.ndim < 1 or x.size == 0, {"lr": 2.0, "weight_decay": 0.1}),
    )  # fmt: skip
    state = xopt.from_torch(opt.state_dict(), rule, middle)
    got = ours(rule, middle, state, grads[BEFORE:])
    assert got.hyperparams()["group0.lr"] == got.hyperparams()["group1.lr"] == 0.02
    assert (got.hyperparams()["lr"], got.hyperparams()["weight_decay"]) == (0.1, 0.3)
    again = {n: torch.tensor(x, requires_grad=True) for n, x in middle.items()}
    other = make(again)
    half = ours(rule, middle, state, [])
    other.load_state_dict(xopt.to_torch(half.state_dict(), half.rule, half.params, other.state_dict()))
    assert [group["weight_decay"] for group in other.param_groups] == [0.3, 0.0]
    want = torch_walk(opt, theirs, grads[BEFORE:])
    close(got.params, want)
    close(torch_walk(other, again, grads[BEFORE:]), want)
    alone = xopt.AdamW(like="torch")
    light_words, heavy_words = "net.bias, none, norm.bias and 1 more", "net.weight, norm.weight"
    assert problems(lambda: xopt.from_torch(opt.state_dict(), alone, middle)) == [
        f"rule: {n}: {a} for {light_words}, {b} for {heavy_words} in torch.optim: such parameters need Groups"
        for n, a, b in [("weight_decay", 0.0, 0.3), ("lr", 0.02, 0.1)]
    ]
    scaled = xopt.Groups(xopt.AdamW(like="torch", weight_decay=0.0), ("*.bias", {"lr": xopt.scaled(0.1)}))
    own = xopt.Optimizer(middle, scaled)
    found = problems(lambda: xopt.to_torch(own.state_dict(), scaled, middle, adam_like(torch, "AdamW", middle)))
    [text] = found
    assert text.startswith(
        "rule: lr: 0.0001 for net.bias, norm.bias, 0.001 for net.weight, none, norm.weight and 1 more"
    )
    assert text.endswith(", but group 0 of torch.optim has one for all of them")


def adam_like(torch: Any, name: str, params: Arrays, **options: Any) -> Any:
    """Return the state of a fresh optimizer of torch."""
    return getattr(torch.optim, name)([torch.tensor(x) for x in params.values()], **options).state_dict()


@pytest.mark.needs("torch")
def test_a_scaled_group_keeps_its_factor(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    theirs = {n: torch.ones(2, requires_grad=True) for n in ("head", "tail")}
    rule = xopt.Groups(xopt.SGD(like="torch"), ("head", {"lr": xopt.scaled(0.1)}))
    make = lambda lr: torch.optim.SGD([{"params": [theirs["head"]], "lr": lr}, {"params": [theirs["tail"]], "lr": 0.5}])
    params = {n: np.ones(2) for n in theirs}
    opt = xopt.Optimizer(params, rule)
    opt.load_state_dict(xopt.from_torch(make(0.05).state_dict(), rule, params))
    assert opt.hyperparams()["lr"] == 0.5
    assert problems(lambda: xopt.from_torch(make(0.06).state_dict(), rule, params)) == [
        "rule: 0.sgd.lr: 0.06 in torch.optim, but here it is 0.05"
    ]


@pytest.mark.needs("torch")
def test_low_precision_state(rng: np.random.Generator) -> None:
    """torch keeps state of bfloat16; upwards that is exact, downwards it is rounded to nearest even."""
    torch = pytest.importorskip("torch")
    p = torch.ones(64, dtype=torch.bfloat16, requires_grad=True)
    opt = torch.optim.Adam([p], lr=0.1)
    for _ in range(3):
        p.grad = torch.randn(64).to(torch.bfloat16)
        opt.step()
    rule = xopt.Adam(like="torch")
    state = xopt.from_torch(opt.state_dict(), rule, {"w": p})
    assert state["state"]["0.adam.v"]["w"].dtype == torch.float32
    assert torch.equal(state["state"]["0.adam.v"]["w"], opt.state[p]["exp_avg_sq"].float())
    own = ours(rule, {"w": p.detach().clone()}, state, [{"w": torch.randn(64).to(torch.bfloat16)}], lambda x: x)
    back = xopt.to_torch(own.state_dict(), own.rule, own.params, opt.state_dict())["state"][0]
    assert torch.equal(back["exp_avg"], own.state.slots["0.adam.m"]["w"].to(torch.bfloat16))
    assert (back["step"].dtype, float(back["step"])) == (torch.float32, 4.0)
    wide, narrow = adam_run(rng)[1], {n: np.zeros(s, "float32") for n, s in SHAPES.items()}
    found = xopt.from_torch(wide, rule, narrow)["state"]["0.adam.m"]["net.weight"]
    assert found.dtype == np.float32
    assert np.array_equal(found, wide["state"][0]["exp_avg"].numpy().astype("float32"))


@pytest.mark.needs("torch")
def test_what_torch_has_is_copied(rng: np.random.Generator) -> None:
    pytest.importorskip("torch")
    rule, (params, saved) = xopt.Adam(like="torch"), adam_run(rng)
    found = xopt.from_torch(saved, rule, params)
    before = copy.deepcopy(found["state"]["0.adam.m"]["norm.bias"])
    saved["state"][3]["exp_avg"].zero_()
    assert np.array_equal(found["state"]["0.adam.m"]["norm.bias"], before)
    back = xopt.to_torch(found, rule, params, saved)
    back["state"][3]["exp_avg"].zero_()
    assert np.array_equal(found["state"]["0.adam.m"]["norm.bias"], before)


@pytest.mark.needs("torch")
def test_another_formula_is_refused(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    params, saved = adam_run(rng, weight_decay=0.1, amsgrad=True)
    own = xopt.AdamW(eps_mode="hat", bias="none", maximize=True)
    found = problems(lambda: xopt.from_torch(saved, own, params))
    assert [x for x in found if x.startswith("rule")] == [
        "rule: 0.adamw.amsgrad: True in torch.optim, but here it is False",
        "rule: 0.adamw.maximize: False in torch.optim, but here it is True",
        "rule: 0.adamw.eps_mode: 'outside' in torch.optim, but here it is 'hat'",
        "rule: 0.adamw.bias: 'standard' in torch.optim, but here it is 'none'",
        "rule: 0.adamw.decay: 'l2' in torch.optim, but here it is 'lr'",
    ]
    assert len([x for x in found if "max_exp_avg_sq: not among" in x]) == len(SHAPES)
    back = problems(lambda: xopt.to_torch(xopt.Optimizer(params, own).state_dict(), own, params, saved))
    assert back == [x for x in found if x.startswith("rule")]
    fresh = lambda name, **options: adam_like(torch, name, {"w": np.ones(2)}, **options)
    w = {"w": np.ones(2)}
    for name, options, rule, text in [
        ("SGD", {}, xopt.Adam(), "param_groups: 0: without betas, so it is not of torch.optim.Adam"),
        ("NAdam", {}, xopt.Adam(), "param_groups: 0: without amsgrad, so it is not of torch.optim.Adam"),
        ("RAdam", {}, xopt.Adam(), "param_groups: 0: without amsgrad, so it is not of torch.optim.Adam"),
        ("Adam", {}, xopt.SGD(), "param_groups: 0: without momentum, so it is not of torch.optim.SGD"),
        ("RMSprop", {}, xopt.SGD(), "param_groups: 0: without dampening, so it is not of torch.optim.SGD"),
        ("SGD", {"momentum": 0.9}, xopt.SGD(), "rule: 0.sgd.momentum: 0.9 in torch.optim, but here it is None"),
        ("SGD", {}, xopt.SGD(momentum=0.9), "rule: 0.sgd.momentum: 0.0 in torch.optim, but here it is 0.9"),
        ("SGD", {"momentum": 0.9, "nesterov": True}, xopt.SGD(momentum=0.9),
         "rule: 0.sgd.nesterov: True in torch.optim, but here it is False"),
        ("SGD", {"momentum": 0.9, "dampening": 0.5}, xopt.SGD(momentum=0.9),
         "rule: 0.sgd.dampening: 0.5 in torch.optim, but here it is None"),
        ("SGD", {"momentum": 0.9}, xopt.SGD(momentum=0.9, form="ema"),
         "rule: 0.sgd.form: 'lr_outside' in torch.optim, but here it is 'ema'"),
        ("SGD", {"weight_decay": 0.1}, xopt.SGD(), "rule: 0.sgd.weight_decay: 0.1 in torch.optim, but here it is None"),
        ("SGD", {"weight_decay": 0.1}, xopt.SGD(weight_decay=0.1, decay="lr"),
         "rule: 0.sgd.decay: 'l2' in torch.optim, but here it is 'lr'"),
        ("RMSprop", {"centered": True}, xopt.RMSProp(),
         "rule: 0.rmsprop.centered: True in torch.optim, but here it is False"),
        ("RMSprop", {}, xopt.RMSProp(like="optax", lr=0.1),
         "rule: 0.rmsprop.eps_mode: 'outside' in torch.optim, but here it is 'inside'"),
        ("RMSprop", {}, xopt.RMSProp(initial=1.0), "rule: 0.rmsprop.initial: 0.0 in torch.optim, but here it is 1.0"),
    ]:  # fmt: skip
        assert problems(lambda n=name, o=options, r=rule: xopt.from_torch(fresh(n, **o), r, w)) == [text]
    z = {"z": np.ones(2, "complex128")}
    assert problems(lambda: xopt.from_torch(adam_like(torch, "Adam", z), xopt.Adam(), z)) == [
        "rule: 0.adam.complex: 'split' in torch.optim, but here it is 'modulus'"
    ]
    for rule in (xopt.Lion(), xopt.NAdam(), xopt.Accumulate(xopt.SGD(), every=2)):
        with pytest.raises(TypeError, match="but the rules whose state moves are Adam|counts other steps than torch"):
            xopt.from_torch(fresh("Adam"), rule, w)


@pytest.mark.needs("torch")
def test_everything_wrong_is_said_at_once(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    params, saved = adam_run(rng)
    state = saved["state"]
    known = {"net.bias": 1, "norm.bias": 3, "norm.weight": 2}
    state[0]["step"] = torch.tensor(9.0)
    state[1]["exp_avg"] = torch.ones(5)
    del state[2]["exp_avg_sq"]
    state[3]["more"] = torch.ones(1)
    state[4]["exp_avg"] = [1.0]
    state[4]["step"] = torch.tensor(float("inf"))
    state[5] = {}
    state[9] = {"step": torch.tensor(3.0)}
    found = problems(lambda: xopt.from_torch(saved, xopt.Adam(like="torch"), params))
    assert found == ["state: 9: not among param_groups"]
    del state[9]
    found = problems(lambda: xopt.from_torch(saved, xopt.Adam(like="torch"), params))
    words, first = ", ".join(f'params["{n}"] ({i})' for n, i in known.items()), 'params["net.weight"] (0)'
    assert sorted(found) == [
        "state/0.adam.m/net.bias: 1.exp_avg: shape (5,), but here it is (4,)",
        "state/0.adam.m/none: missing",
        "state/0.adam.m/scale: 4.exp_avg: list, but it must be an array of numbers",
        "state/0.adam.v/none: missing",
        "state/0.adam.v/norm.weight: missing",
        "state: 3.more: not among the arrays of this rule",
        f"step: 3 in {words}, 9 in {first}; but there is one step for all",
        'step: params["scale"] (4): tensor(inf), but it must be a whole number from 0 on',
    ]
    unhashable = {"state": {}, "param_groups": [{"params": [[0]]}]}
    for wrong in (None, {}, {"state": {}}, {"state": [], "param_groups": []}, {"param_groups": [{}]}, unhashable):
        text = "it must be a dict, as state_dict() returns it"
        assert problems(lambda x=wrong: xopt.from_torch(x, xopt.Adam(), params)) == [text]
    group = {**saved["param_groups"][0], "lr": "fast"}
    wrong = {"state": {0: 3}, "param_groups": [group]}
    assert "param_groups: 0: lr: 'fast', but it must be a number" in problems(
        lambda: xopt.from_torch(wrong, xopt.Adam(), params)
    )


@pytest.mark.needs("torch")
def test_the_step_of_sgd(rng: np.random.Generator) -> None:
    """torch keeps none; it matters for schedules, and the first step is not dampened."""
    torch = pytest.importorskip("torch")
    params, grads = draw(rng)
    move = Move(None, lambda o, p: o.SGD(p, lr=0.1, momentum=0.9, dampening=0.5))
    theirs, opt = torch_opt(move, params)
    rule = xopt.SGD(momentum=0.9, dampening=0.5, like="torch")
    fresh = opt.state_dict()
    assert xopt.from_torch(fresh, rule, params)["step"] == 0
    torch_walk(opt, theirs, grads[:3])
    saved = opt.state_dict()
    assert xopt.from_torch(saved, rule, params)["step"] == 1
    assert xopt.from_torch(saved, rule, params, step=3)["step"] == 3
    assert problems(lambda: xopt.from_torch(saved, rule, params, step=0)) == [
        "step: 0, but there are momentum buffers, so that there was a step"
    ]
    scheduled = rule.replace(lr=xopt.schedules.cosine(0.1, steps=20))
    assert problems(lambda: xopt.from_torch(saved, scheduled, params)) == [
        "step: there is none in the state, and a schedule of this rule asks for it: give step="
    ]
    found = xopt.from_torch(saved, scheduled, params, step=3)
    assert found["rule"][0]["hyper"]["lr"] == "cosine(0.1, steps=20)"
    assert xopt.from_torch(fresh, scheduled, params)["step"] == 0
    with pytest.raises(TypeError, match="step: 1.5"):
        xopt.from_torch(saved, rule, params, step=1.5)
    saved["state"][1]["momentum_buffer"] = None
    assert problems(lambda: xopt.from_torch(saved, rule, params, step=3)) == ["state/0.sgd.m/net.bias: missing"]
    undampened = {**saved, "param_groups": [{**saved["param_groups"][0], "dampening": 0.0}]}
    assert not xopt.from_torch(undampened, rule, params)["state"]["0.sgd.m"]["net.bias"].any()
    steps = adam_run(rng)[1]
    [text] = problems(lambda: xopt.from_torch(steps, xopt.Adam(), params, step=4))
    assert text.startswith(
        'step: 3 in params["net.bias"] (1), params["net.weight"] (0), params["none"] (5) and 3 more, '
    )
    assert text.endswith("4 in the argument; but there is one step for all")
    own = xopt.Optimizer(params, xopt.SGD(lr=xopt.schedules.cosine(1.0, steps=10), like="torch"))
    group = xopt.to_torch(own.state_dict(), own.rule, params, adam_like(torch, "SGD", params))["param_groups"][0]
    assert group["lr"] == own.hyperparams()["lr"](1)


@pytest.mark.needs("torch")
def test_chains_guards_and_frozen_parameters(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    params, grads = draw(rng)
    move = Move(None, lambda o, p: o.Adam(p, lr=0.1))
    theirs, opt = torch_opt(move, params, names=True)
    frozen = "norm.weight"
    theirs[frozen].requires_grad_(False)
    for g in grads[:3]:
        for n, p in theirs.items():
            p.grad = None if n == frozen else torch.tensor(g[n])
        opt.step()
    plain = xopt.Adam(like="torch")
    assert problems(lambda: xopt.from_torch(opt.state_dict(), plain, params)) == [
        f"state/0.adam.m/{frozen}: missing", f"state/0.adam.v/{frozen}: missing"
    ]  # fmt: skip
    rule = xopt.Guard(xopt.chain(xopt.ClipByValue(1e9), xopt.Groups(plain, (frozen, xopt.Freeze))), "skip")
    own = xopt.Optimizer({n: x.detach().numpy().copy() for n, x in theirs.items()}, rule)
    own.load_state_dict(xopt.from_torch(opt.state_dict(), rule, own.params))
    own.step({n: np.full_like(x, np.nan) for n, x in grads[3].items()})  # left out
    for g in grads[3:6]:
        own.step(g)
    saved = own.state_dict()
    assert (saved["step"], saved["carry"]) == (7, {"nonfinite.skipped": 1.0})
    back = xopt.to_torch(saved, own.rule, own.params, opt.state_dict())
    assert [*back["state"]] == [0, 1, 3, 4, 5]
    assert float(back["state"][0]["step"]) == 6
    for g in grads[3:6]:
        for n, p in theirs.items():
            p.grad = None if n == frozen else torch.tensor(g[n])
        opt.step()
    for i, entry in opt.state_dict()["state"].items():
        np.testing.assert_allclose(back["state"][i]["exp_avg"], entry["exp_avg"], rtol=EXACT)
    full = adam_run(rng, names=True)[1]
    assert problems(lambda: xopt.from_torch(full, rule, params)) == [
        "state: 2: not empty, but the parameter is frozen here"
    ]
    averaged = xopt.Optimizer(params, xopt.chain(plain, xopt.ReduceOnPlateau(), xopt.EMA(0.9)))
    found = problems(lambda: xopt.to_torch(averaged.state_dict(), averaged.rule, params, full))
    assert "state/2.ema.average/scale: torch.optim has no place for it" in found
    assert any(x.startswith("carry: 1.reduceonplateau") for x in found)


@pytest.mark.needs("torch")
def test_from_torch_over_numpy_to_a_file_and_back(rng: np.random.Generator, tmp_path: Any) -> None:
    """What from_torch returns is what an optimizer's own state is: it can be saved, and moved on."""
    pytest.importorskip("torch")
    params, saved = adam_run(rng)
    rule = xopt.Adam(like="torch")
    own = xopt.Optimizer({n: x.copy() for n, x in params.items()}, rule)
    found = xopt.from_torch(saved, rule, params)
    own.load_state_dict(found)
    assert own.state_dict().keys() == found.keys()
    file = own.save(tmp_path / "run")
    other = xopt.Optimizer({n: np.zeros_like(x) for n, x in params.items()}, rule)
    other.load(file)
    again = xopt.to_torch(other.state_dict(only_state=False), other.rule, other.params, saved)
    assert again["param_groups"] == saved["param_groups"]
    for i, entry in saved["state"].items():
        for n, x in entry.items():
            assert np.array_equal(x.numpy(), again["state"][i][n].numpy())
            assert x.dtype == again["state"][i][n].dtype
