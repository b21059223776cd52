"""A rule as a torch.optim.Optimizer, in loops that know torch's own."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest

import xopt

pytestmark = pytest.mark.needs("torch")
torch = pytest.importorskip("torch")
from torch.optim import lr_scheduler as schedulers

STEPS = 12


def adapted(*args: Any, **kwargs: Any) -> Any:
    from xopt.adapters.torch import Optimizer

    return Optimizer(*args, **kwargs)


def model(dtype: Any = None) -> Any:
    torch.manual_seed(1)
    made = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    return made.to(dtype) if dtype else made


def loss(net: Any) -> Any:
    dtype = next(net.parameters()).dtype
    x = torch.linspace(-1, 1, 100, dtype=torch.float64).reshape(20, 5).to(dtype)
    return ((net(x) - x.sum(1, keepdim=True) ** 2) ** 2).mean()


def train(net: Any, opt: Any, scheduler: Any = None, steps: int = STEPS, clip: float | None = None) -> Any:
    for _ in range(steps):
        opt.zero_grad()
        value = loss(net)
        value.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        opt.step()
        if scheduler is not None:
            scheduler.step(*([value.item()] if isinstance(scheduler, schedulers.ReduceLROnPlateau) else []))
    return net


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def apart(a: Any, b: Any) -> float:
    return max(float((p - q).detach().abs().max()) for p, q in zip(a.parameters(), b.parameters(), strict=True))


PEERS: list[tuple[Any, Any, dict[str, Any]]] = [
    (xopt.AdamW(1e-2), "AdamW", {"lr": 1e-2}),
    (xopt.Adam(1e-2, weight_decay=0.1), "Adam", {"lr": 1e-2, "weight_decay": 0.1}),
    (xopt.SGD(0.05, momentum=0.9), "SGD", {"lr": 0.05, "momentum": 0.9}),
    (xopt.NAdam(1e-2), "NAdam", {"lr": 1e-2}),
    (xopt.Adagrad(1e-2, like="torch"), "Adagrad", {"lr": 1e-2}),
    (xopt.RMSProp(1e-2, like="torch"), "RMSprop", {"lr": 1e-2}),
]


@pytest.mark.parametrize(("rule", "peer", "options"), PEERS, ids=lambda x: x if isinstance(x, str) else "")
def test_steps_are_those_of_torch(rule: Any, peer: str, options: dict[str, Any]) -> None:
    mine, theirs = model(), model()
    train(mine, adapted(mine.parameters(), rule))
    train(theirs, getattr(torch.optim, peer)(theirs.parameters(), **options))
    assert apart(mine, model()) > 0
    assert apart(mine, theirs) < 1e-6


SCHEDULERS: dict[str, Any] = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda t: 0.9**t),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: schedulers.StepLR(o, 3),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, 0.3, 4),
    "LinearLR": lambda o: schedulers.LinearLR(o, 0.1, 1.0, 6),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 10, 2.0),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 8),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 4),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 1e-4, 1e-2, 3, cycle_momentum=True),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.05, total_steps=STEPS + 1),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=0, threshold=0.5),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, 1.0, 4), schedulers.ExponentialLR(o, 0.8)], [4]
    ),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o, 0.5, 4), schedulers.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=1e-3, anneal_epochs=5),
}


def test_every_scheduler_of_torch_is_tried() -> None:
    known = {n for n in schedulers.__all__ if n not in ("LRScheduler",)}
    assert known <= {*SCHEDULERS}


@pytest.mark.filterwarnings("ignore:The epoch parameter")
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("momentum", [False, True])
def test_schedulers_of_torch(name: str, momentum: bool) -> None:
    rule: Any = xopt.SGD(0.01, momentum=0.9) if momentum else xopt.AdamW(1e-2)
    peer: Any = torch.optim.SGD if momentum else torch.optim.AdamW
    options = {"lr": 0.01, "momentum": 0.9} if momentum else {"lr": 1e-2}
    mine, theirs = model(), model()
    opt, other = adapted(mine.parameters(), rule), peer(theirs.parameters(), **options)
    train(mine, opt, SCHEDULERS[name](opt))
    train(theirs, other, SCHEDULERS[name](other))
    assert opt.param_groups[0]["lr"] == other.param_groups[0]["lr"]
    assert apart(mine, theirs) < 1e-6


def groups(net: Any) -> list[dict[str, Any]]:
    return [
        {"params": list(net[0].parameters()), "lr": 1e-3, "name": "body"},
        {"params": list(net[2].parameters()), "weight_decay": 0.3, "betas": (0.8, 0.99)},
    ]


def test_groups_have_their_own_hyperparameters() -> None:
    mine, theirs = model(), model()
    opt, other = adapted(groups(mine), xopt.AdamW(1e-2)), torch.optim.AdamW(groups(theirs), lr=1e-2)
    train(mine, opt, SCHEDULERS["StepLR"](opt))
    train(theirs, other, SCHEDULERS["StepLR"](other))
    opt.param_groups[1]["eps"] = other.param_groups[1]["eps"] = 1e-3
    train(mine, opt), train(theirs, other)
    assert apart(mine, theirs) < 1e-6


def test_a_norm_is_that_of_all_groups() -> None:
    mine, theirs = model(), model()
    train(mine, adapted(groups(mine), xopt.chain(xopt.ClipByGlobalNorm(0.1), xopt.AdamW(1e-2))))
    train(theirs, torch.optim.AdamW(groups(theirs), lr=1e-2), clip=0.1)
    assert apart(mine, theirs) < 1e-6


def test_groups_that_come_later() -> None:
    mine, theirs = model(), model()
    first, second = (groups(net) for net in (mine, theirs))
    opt, other = adapted([first[0]], xopt.SGD(0.1, momentum=0.9)), torch.optim.SGD([second[0]], lr=0.1, momentum=0.9)
    for pair in ((mine, opt), (theirs, other)):
        train(*pair)
    for made, group in ((opt, first[1]), (other, second[1])):
        del group["betas"], group["weight_decay"]
        made.add_param_group(group | {"lr": 0.05})
    for pair in ((mine, opt), (theirs, other)):
        train(*pair)
    assert apart(mine, theirs) < 1e-5
    assert {int(opt.state[p]["step"]) for p in mine.parameters()} == {2 * STEPS}


RULES: list[Any] = [
    xopt.AdamW(1e-2),
    xopt.DAdaptAdam(),
    xopt.LDoG(),  # a number for each parameter
    xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.ScheduleFreeAdamW(1e-2)),
    xopt.Adafactor(1e-2),
    xopt.Accumulate(xopt.chain(xopt.Adam(1e-2), xopt.EMA(0.9), xopt.EMA(0.99)), 3),
    xopt.LossScale(xopt.SGD(xopt.schedules.cosine(0.1, steps=30), momentum=0.9)),
]


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize("two", [False, True])
def test_a_saved_state_goes_on_with_the_same_bits(rule: Any, names: bool, two: bool) -> None:
    def made(net: Any) -> Any:
        parts = [net[0], net[2]] if two else [net]
        rows = [{"params": list(part.named_parameters() if names else part.parameters())} for part in parts]
        return adapted(rows, rule)

    net = model()
    opt, file = made(net), io.BytesIO()
    train(net, opt, steps=5)
    torch.save([net.state_dict(), opt.state_dict()], file)
    other = model()
    again = made(other)
    weights, state = torch.load(io.BytesIO(file.getvalue()))
    other.load_state_dict(weights)
    again.load_state_dict(state_dict=state)
    assert same(train(net, opt), train(other, again))
    assert int(again.state[other[0].bias]["step"]) == 5 + STEPS


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_copies_go_on_with_the_same_bits(how: str, rule: Any) -> None:
    net = model()
    opt = adapted(net.parameters(), rule)
    train(net, opt, steps=5)
    other, again = copy.deepcopy((net, opt)) if how == "deepcopy" else pickle.loads(pickle.dumps((net, opt)))
    before = [p.detach().clone() for p in other.parameters()]
    train(net, opt)
    assert all(torch.equal(p, q) for p, q in zip(other.parameters(), before, strict=True))
    assert same(net, train(other, again))


def test_state_keeps_its_dtype() -> None:
    """Torch casts a loaded state to the dtype of its parameter."""
    net = model(torch.bfloat16)
    opt = adapted(net.parameters(), xopt.AdamW(1e-2), rounding="stochastic", seed=3)
    train(net, opt, steps=5)
    other = copy.deepcopy(net)
    again = adapted(other.parameters(), xopt.AdamW(1e-2), rounding="stochastic", seed=3)
    again.load_state_dict(opt.state_dict())
    assert again.state[other[0].weight]["adamw.m"].dtype == torch.float32
    assert same(train(net, opt), train(other, again))


@pytest.mark.parametrize(
    "options",
    [{"state_dtype": "int8"}, {"master_weights": True}, {"rounding": "kahan"}, {"on_nonfinite": "skip"}],
    ids=str,
)
def test_precision(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    dtype = None if "state_dtype" in options else torch.bfloat16
    net = torch.nn.Sequential(torch.nn.Linear(5, 4096), torch.nn.Linear(4096, 1)).to(dtype)
    opt = adapted(net.parameters(), xopt.AdamW(1e-2), **options)
    train(net, opt, steps=3)
    other = copy.deepcopy(net)
    again = adapted(other.parameters(), xopt.AdamW(1e-2), **options)
    again.load_state_dict(opt.state_dict())
    kinds = {x.dtype for own in again.state.values() for n, x in own.items() if n.endswith(("m", "master", "error"))}
    assert (torch.int8 in kinds) == ("state_dtype" in options)
    assert same(train(net, opt, steps=3), train(other, again, steps=3))


def test_a_group_that_came_after_the_last_step_is_saved() -> None:
    net, other = model(), model()
    opt = adapted(net[0].parameters(), xopt.Adam(1e-2))
    train(net, opt, steps=2)
    opt.add_param_group({"params": list(net[2].parameters())})
    again = adapted([{"params": list(other[0].parameters())}, {"params": list(other[2].parameters())}], xopt.Adam(1e-2))
    other.load_state_dict(net.state_dict())
    again.load_state_dict(opt.state_dict())
    assert same(train(net, opt), train(other, again))


def test_a_loss_scale() -> None:
    net = model()
    opt = adapted(groups(net), xopt.LossScale(xopt.AdamW(1e-2)))
    (loss(net) * opt.loss_scale).backward()
    net[0].weight.grad[0, 0] = torch.inf
    opt.step()
    assert float(opt.loss_scale) == 2.0**15
    assert same(net, model())


def test_estimates_of_the_curvature() -> None:
    """By parameter, in groups, to the same bits as in xopt.Optimizer."""
    torch.manual_seed(0)
    values = [torch.randn(3, 4), torch.randn(5), torch.randn(2)]
    ours, theirs = ([x.clone().requires_grad_() for x in values] for _ in range(2))
    rule = xopt.Sophia(lr=0.1, b1=0.5, b2=0.5, gamma=1.0)
    opt = adapted([{"params": ours[:2]}, {"params": ours[2:]}], rule)
    other = xopt.Optimizer([theirs[:2], theirs[2:]], rule)
    for t in range(4):
        estimates = [torch.rand_like(x) for x in values]
        if t % 2 == 0:
            opt.update_curvature({ours[0]: estimates[0], ours[2]: estimates[2]})
            other.update_curvature([[estimates[0], None], [estimates[2]]])
        grads = [torch.randn_like(x) for x in values]
        for p, g in zip(ours, grads, strict=True):
            p.grad = g.clone()
        opt.step()
        other.step([[g.clone() for g in grads[:2]], [grads[2].clone()]])
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)
    assert opt.state[ours[0]]["sophia.hessian"].abs().sum() > 0
    with pytest.raises(KeyError, match="curvature: a tensor that is no parameter"):
        opt.update_curvature({values[0]: values[0]})
    with pytest.raises(TypeError, match="no rule here takes estimates of the curvature"):
        adapted(ours, xopt.Adam()).update_curvature({ours[0]: values[0]})


def test_a_state_of_other_order_is_loaded_by_name() -> None:
    net = model()
    opt = adapted(net.named_parameters(), xopt.Adam(1e-2))
    train(net, opt, steps=5)
    other = copy.deepcopy(net)
    again = adapted(list(other.named_parameters())[::-1], xopt.Adam(1e-2))
    again.load_state_dict(opt.state_dict())
    assert same(train(net, opt), train(other, again))


def test_names_are_what_groups_of_a_rule_match() -> None:
    net = model()
    rule = xopt.Groups(xopt.SGD(0.1), ("2.*", xopt.Freeze))
    train(net, adapted(net.named_parameters(), rule))
    assert torch.equal(net[2].weight, model()[2].weight)
    assert not torch.equal(net[0].weight, model()[0].weight)
    two = [{"params": list(part.named_parameters())} for part in (net[0], net[2])]
    with pytest.raises(ValueError, match="2 groups, and the rule has groups too"):
        train(net, adapted(two, xopt.Groups(xopt.SGD(0.1), ("1/*", {"lr": 0.2}))))


def test_what_does_not_fit_is_refused_and_nothing_changes() -> None:
    net = model()
    opt = adapted(net.parameters(), xopt.Adam(1e-2))
    train(net, opt, steps=3)
    good, kept = copy.deepcopy(opt.state_dict()), [p.detach().clone() for p in net.parameters()]
    for change, match in (
        (lambda s: s["state"][1].pop("adam.v"), r"state: parameter 1 has no adam.v, but Adam"),
        (lambda s: s["state"].pop(2), r"state: nothing for parameter 2, of shape \(1, 4\)"),
        (lambda s: s["state"][0].update(more=torch.ones(1)), "state: parameter 0 has more, of which Adam"),
        (lambda s: s["state"][0].update({"adam.m": torch.ones(3)}), "shape"),
        (lambda s: s["state"][0].update(step=torch.tensor(9)), "state: step is 3, 9, but it must be the same"),
        (lambda s: s["param_groups"].append(s["param_groups"][0]), "number of parameter groups"),
    ):
        bad = copy.deepcopy(good)
        change(bad)
        with pytest.raises(ValueError, match=match):
            opt.load_state_dict(bad)
        now = opt.state_dict()
        assert now["param_groups"] == good["param_groups"]
        assert all(torch.equal(now["state"][k][n], x) for k, own in good["state"].items() for n, x in own.items())
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), kept, strict=True))
    with pytest.raises(TypeError, match=r"momentum: no hyperparameter of Adam\(lr=0.01\), which has"):
        adapted([{"params": list(net.parameters()), "momentum": 0.9}], xopt.Adam(1e-2))
    with pytest.raises(ValueError, match="params: 'w' twice in a group"):
        adapted([("w", p) for p in net.parameters()], xopt.Adam(1e-2))
    with pytest.raises(ValueError, match=r"weight_decay: 0.1 in group 1, but None in SGD"):
        adapted([{"params": [net[0].bias]}, {"params": [net[2].bias], "weight_decay": 0.1}], xopt.SGD(0.1)).step()
    opt.param_groups[0]["lr"] = -1
    with pytest.raises(ValueError, match=r"Adam.lr: -1.0"):
        opt.step()


def test_names_that_are_others_are_refused() -> None:
    a, b, c = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    opt = adapted([{"params": [("a", a)]}, {"params": [("b", b)]}], xopt.SGD(0.1, momentum=0.9))
    a.grad, b.grad = torch.ones(2), torch.full((2,), 7.0)
    opt.step()
    other = adapted([{"params": [("b", b)]}, {"params": [("a", a)]}], xopt.SGD(0.1, momentum=0.9))
    other.load_state_dict(opt.state_dict())
    assert other.state[b]["sgd.m"].tolist() == [7, 7]
    assert [g["param_names"] for g in other.param_groups] == [["b"], ["a"]]
    third = adapted([("b", b), ("c", c)], xopt.SGD(0.1, momentum=0.9))
    with pytest.raises(ValueError, match=r"called a there, which are not here, and c here"):
        third.load_state_dict(adapted([("a", a), ("b", b)], xopt.SGD(0.1, momentum=0.9)).state_dict())


@pytest.mark.parametrize("rule", [xopt.ScheduleFreeAdamW(0.1), xopt.chain(xopt.SGD(0.1), xopt.EMA(0.9))], ids=repr)
def test_what_begins_at_the_parameters_begins_with_the_first_step(rule: Any) -> None:
    net = model()
    opt = adapted(net.parameters(), rule)
    opt.load_state_dict(opt.state_dict())
    assert opt.loss_scale == 1
    with torch.no_grad():
        for p in net.parameters():
            p += 1
            p.grad = torch.zeros_like(p)
    before = copy.deepcopy(net)
    opt.step()
    assert apart(net, before) < 1e-6
    with opt.averaged():
        assert apart(net, before) < 1e-6


def test_parameters_and_state_that_were_replaced() -> None:
    a, b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    opt = adapted([a], xopt.SGD(0.1, momentum=0.9))
    a.grad, b.grad = torch.ones(2), torch.ones(2)
    opt.step()
    opt.param_groups[0]["params"][0] = b
    opt.step()
    assert torch.allclose(a, torch.tensor(0.9))
    assert torch.allclose(b, torch.tensor(0.9))
    opt.state.clear()
    opt.step()  # the momentum begins anew
    assert torch.allclose(b, torch.tensor(0.8))
    opt.state[b]["sgd.m"] = torch.zeros(2)
    opt.step()
    assert torch.allclose(b, torch.tensor(0.7))
    opt.param_groups[0]["params"].append(a)
    opt.step()
    assert torch.allclose(a, torch.tensor(0.8))
    opt.state[a]["step"].fill_(77)
    opt.step()
    assert int(opt.state[b]["step"]) == 78
    assert {*opt.state_dict()["state"]} == {0, 1}


def test_names_with_slashes() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    opt = adapted([("a/x~1", p)], xopt.AdamW(0.1))
    p.grad = torch.ones(2)
    opt.step()
    opt.load_state_dict(opt.state_dict())
    assert opt.state[p]["adamw.m"].abs().sum() > 0


def test_a_bad_group_is_refused_at_once() -> None:
    net = model()
    opt = adapted([net[0].weight], xopt.AdamW(0.1))
    train(net, opt, steps=1)
    tensor = torch.tensor(5.0)
    for group, match in (
        ({"momentum": 0.9}, "momentum: no hyperparameter"),
        ({"nesterov": True}, "nesterov: no hyperparameter"),
        ({"learning_rate": tensor}, "learning_rate: no hyperparameter"),
        ({"b1": 0.5}, "b1: no hyperparameter"),
        ({"lr": "0.5"}, "lr: '0.5' in a parameter group, but it must be a number"),
        ({"lr": xopt.schedules.constant(1.0)}, "a schedule of xopt goes into the rule"),
        ({"lr": -1.0}, "-1.0"),
    ):
        with pytest.raises((TypeError, ValueError), match=match):
            opt.add_param_group({"params": [net[0].bias], **group})
    assert len(opt.param_groups) == 1
    train(net, opt, steps=1)
    for bad in ("0.5", None):
        opt.param_groups[0]["lr"] = bad
        with pytest.raises(TypeError, match="lr: "):
            opt.step()
    del opt.param_groups[0]["lr"]
    with pytest.raises(ValueError, match="lr: missing"):
        opt.step()
    opt.param_groups[0]["lr"] = np.asarray(0.25)
    train(net, opt, steps=1)
    assert opt._seen[0]["lr"] == 0.25
    assert adapted([net[0].weight], xopt.AdamW(torch.tensor(0.1))).param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_copies_before_a_group_has_stepped(how: str) -> None:
    net = model()
    opt = adapted(net[0].parameters(), xopt.Adam(1e-2))
    train(net, opt, steps=2)
    opt.add_param_group({"params": list(net[2].parameters())})
    other, again = copy.deepcopy((net, opt)) if how == "deepcopy" else pickle.loads(pickle.dumps((net, opt)))
    assert same(train(net, opt), train(other, again))


def test_under_another_default_device() -> None:
    with torch.device("meta"):
        p = torch.nn.Parameter(torch.ones(2, device="cpu"))
        opt = adapted([p], xopt.DAdaptAdam())
        p.grad = torch.ones(2, device="cpu")
        opt.step()
    assert int(opt.state[p]["step"]) == 1
    assert opt.state[p]["carry.dadaptadam.d"].device.type == "cpu"


def test_closure_hooks_and_the_loss() -> None:
    net, calls = model(), []
    opt = adapted(
        net.parameters(), xopt.chain(xopt.SGD(0.1), xopt.ReduceOnPlateau(factor=0.5, patience=0, threshold=0.99))
    )
    opt.register_step_pre_hook(lambda *_: calls.append("before"))
    opt.register_step_post_hook(lambda *_: calls.append("after"))

    def closure() -> Any:
        calls.append("closure")
        opt.zero_grad()
        value = loss(net)
        value.backward()
        return value

    values = [float(opt.step(closure).detach()) for _ in range(4)]
    assert values[-1] < values[0]
    assert calls == ["before", "closure", "after"] * 4
    assert float(opt.state[net[0].bias]["carry.reduceonplateau.scale"]) < 1
    opt.zero_grad()
    assert net[0].bias.grad is None


def test_averages() -> None:
    net = model()
    opt = adapted(net.parameters(), xopt.chain(xopt.SGD(0.1), xopt.EMA(0.9)))
    train(net, opt)
    last = net[0].weight.detach().clone()
    with opt.averaged():
        assert not torch.equal(net[0].weight, last)
    assert torch.equal(net[0].weight, last)


def test_a_gradient_scaler() -> None:
    mine, theirs = model(), model()
    for net, opt in (
        (mine, adapted(mine.parameters(), xopt.AdamW(1e-2))),
        (theirs, torch.optim.AdamW(theirs.parameters(), lr=1e-2)),
    ):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
        for k in range(6):
            opt.zero_grad()
            scaler.scale(loss(net)).backward()
            if k == 3:
                net[0].weight.grad[0, 0] = torch.inf
            scaler.unscale_(opt)
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            scaler.step(opt)
            scaler.update()
    assert apart(mine, theirs) < 1e-6


def test_a_model_of_another_dtype() -> None:
    net = model()
    opt = adapted(net.parameters(), xopt.Adam(1e-2))
    net.double()
    train(net, opt, steps=2)
    assert opt.state[net[0].weight]["adam.m"].dtype == torch.float64
    net.float()
    with pytest.raises((TypeError, ValueError), match=r"params\[0\]"):
        train(net, opt, steps=1)


def test_distributed_checkpoints() -> None:
    from torch.distributed.checkpoint import state_dict as dcp

    net = model()
    opt = adapted(net.parameters(), xopt.AdamW(1e-2))
    train(net, opt, steps=4)
    saved = dcp.get_optimizer_state_dict(net, opt)
    assert "adamw.m" in saved["state"]["0.weight"]
    other = copy.deepcopy(net)
    again = adapted(other.parameters(), xopt.AdamW(1e-2))
    dcp.set_optimizer_state_dict(other, again, copy.deepcopy(saved))
    assert same(train(net, opt), train(other, again))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_around_a_step() -> None:
    import torch._dynamo as dynamo

    net, other = model(), model()
    opt, peer = adapted(net.parameters(), xopt.AdamW(1e-2)), adapted(other.parameters(), xopt.AdamW(1e-2))
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def body() -> Any:
        value = loss(net)
        value.backward()
        opt.step()
        opt.zero_grad()
        return value

    dynamo.reset()
    step = torch.compile(body, backend=backend)
    step(), step()
    known = len(graphs)
    for rate in (1e-2, 5e-3, 1e-3):
        opt.param_groups[0]["lr"] = rate
        step()
    assert len(graphs) == known
    train(other, peer, steps=3)
    for rate in (5e-3, 1e-3):
        peer.param_groups[0]["lr"] = rate
        train(other, peer, steps=1)
    assert apart(net, other) < 1e-6


def test_hyperparameters_beside_the_rule() -> None:
    """As trainers give them: skorch passes lr to every optimizer."""
    net = model()
    opt = adapted(net.parameters(), xopt.AdamW(0.1, weight_decay=0.2), lr=0.5, betas=(0.5, 0.6))
    assert opt.rule == xopt.AdamW(0.5, weight_decay=0.2, b1=0.5, b2=0.6)
    assert opt.param_groups[0]["lr"] == 0.5
    with pytest.raises(TypeError, match="no hyperparameter 'momentum'; there are weight_decay, peak_lr, lr"):
        adapted(net.parameters(), xopt.AdamW(), momentum=0.9)
    with pytest.raises(ValueError, match=r"betas: \(0\.1,\), but it must be a pair of numbers"):
        adapted(net.parameters(), xopt.AdamW(), betas=(0.1,))
    opt.param_groups[0]["betas"] = 0.5
    with pytest.raises(ValueError, match=r"betas: 0\.5, but it must be a pair of numbers"):
        train(net, opt, steps=1)


def test_metrics() -> None:
    """Beside torch's own norm, also where there are several groups and none was asked for before the first step."""
    w, b = (torch.nn.Parameter(torch.ones(n)) for n in (3, 2))
    rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.SGD(0.1))
    opt = adapted([{"params": [w]}, {"params": [b], "lr": 0.5}], rule, metrics=["update_norm"])
    assert opt.metrics == {}
    ((w * 2).sum() + b.sum()).backward()
    before = [p.detach().clone() for p in (w, b)]
    norm = torch.nn.utils.get_total_norm([w.grad, b.grad])
    opt.step()
    assert opt.metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-6)
    assert opt.metrics["lr"] == [[0.1], [0.5]]
    moved = torch.nn.utils.get_total_norm([p.detach() - old for p, old in zip((w, b), before, strict=True)])
    assert opt.metrics["update_norm"] == pytest.approx(moved.item(), rel=1e-5)
    with pytest.raises(ValueError, match="metrics: 'loss' cannot be asked for"):
        adapted([w], rule, metrics=["loss"])
