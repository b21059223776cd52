"""Metrics and hooks of a step: beside plain NumPy, and without a change of what is computed."""

from __future__ import annotations

import copy
import dataclasses
import functools
import io
import pickle
from collections.abc import Callable
from typing import Any

import catalog
import numpy as np
import pytest
from conftest import Lib

import xopt
from xopt._engine.runners.choose import backend
from xopt._engine.runners.protocol import Runner
from xopt.rule import Array, H, Hyper, hyper

NORMS = ("grad_norm", "param_norm", "update_norm")


def norm(*xs: Any) -> float:
    return float(np.sqrt(sum(np.sum(np.abs(np.asarray(x, np.complex128)) ** 2) for x in xs)))


def number(lib: Lib, x: Any) -> float:
    return float(lib.numpy(x)) if hasattr(x, "dtype") else x


def tree(lib: Lib, seed: int, dtype: str = "float32") -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {"w": lib.array(rng.normal(size=(3, 4)).astype(dtype)), "b": lib.array(rng.normal(size=5).astype(dtype))}


def test_beside_numpy(lib: Lib) -> None:
    schedule = xopt.schedules.polynomial(0.5, end=0.1, steps=4)
    rule = xopt.chain(xopt.ClipByGlobalNorm(2.0), xopt.AdamW(schedule, weight_decay=0.1))
    params = tree(lib, 0)
    state = rule.init(params)
    compiled = lib.module().jit if lib.guise == "jit" else lambda function: function
    apply, updates = (compiled(functools.partial(f, metrics=NORMS)) for f in (rule.apply, rule.updates))
    for t in range(1, 4):
        grads = tree(lib, t)
        new, after, metrics = apply(params, grads, state)
        again, _, others = updates(params, grads, state)
        size, old = norm(*map(lib.numpy, grads.values())), {n: lib.numpy(p) for n, p in params.items()}
        wanted = {
            "param_norm": norm(*old.values()),
            "grad_norm": size,
            "clip_factor": min(1.0, 2.0 / size),
            "lr": schedule(t),
            "update_norm": norm(*map(lib.numpy, again.values())),
        }
        if lib.guise != "jit":  # which sorts the keys of a dict
            assert [*metrics] == [*others] == [*wanted]
        for name, x in wanted.items():
            assert number(lib, metrics[name]) == pytest.approx(x, rel=1e-6), name
            assert number(lib, others[name]) == pytest.approx(x, rel=1e-6), name
        moved = norm(*(lib.numpy(new[n]) - p for n, p in old.items()))
        assert number(lib, metrics["update_norm"]) == pytest.approx(moved, rel=1e-5)
        params, state = lib.settled(new, after)


def test_of_an_optimizer(lib: Lib) -> None:
    """A float of the host where the host computes; elsewhere an array that nobody has read."""
    if lib.guise == "read-only":
        pytest.skip("Optimizer refuses read-only arrays")
    rule = xopt.chain(xopt.ClipByGlobalNorm(0.5), xopt.LAMB(0.1))
    opt = xopt.Optimizer(tree(lib, 0), rule, metrics=["update_norm"])
    assert opt.metrics == {}
    for t in range(1, 6):
        before, grads = [lib.numpy(p).copy() for p in opt.params.values()], tree(lib, t)
        opt.step(grads)
        after = [lib.numpy(p) for p in opt.params.values()]
        metrics = opt.metrics
        assert [*metrics] == ["grad_norm", "clip_factor", "lr", "trust_ratio", "update_norm"]
        assert number(lib, metrics["grad_norm"]) == pytest.approx(norm(*map(lib.numpy, grads.values())), rel=1e-6)
        assert number(lib, metrics["update_norm"]) == pytest.approx(
            norm(*(x - y for x, y in zip(after, before, strict=True))), rel=1e-4
        )
        if t == 1:  # all directions of Adam have elements ±1
            ratios = {n: norm(p) / np.sqrt(p.size) for n, p in zip(opt.params, before, strict=True)}
            assert {n: number(lib, x) for n, x in metrics["trust_ratio"].items()} == pytest.approx(ratios, rel=1e-4)
    host = backend(opt.runner)
    assert isinstance(host, Runner)
    assert isinstance(metrics["grad_norm"], float) == host.host
    flat = xopt.flat_metrics(metrics)
    assert [*flat][-3:] == ["trust_ratio/b", "trust_ratio/w", "update_norm"]
    assert all(type(x) is float for x in flat.values())


RULES: dict[str, Callable[[], Any]] = {
    "plain": lambda: xopt.SGD(0.1, momentum=0.9),
    "clip first": lambda: xopt.chain(xopt.ClipByGlobalNorm(0.5), xopt.Adam(0.1)),
    "clip inside": lambda: xopt.chain(xopt.ClipByValue(0.3), xopt.ClipByGlobalNorm(0.5), xopt.Adam(0.1)),
    "clips behind": lambda: xopt.chain(xopt.Adam(0.1), xopt.ClipByGlobalNorm(0.5)),
    "decay": lambda: xopt.AdamW(0.1, weight_decay=0.5, maximize=True),
    "projection": lambda: xopt.chain(xopt.SGD(0.1), xopt.NonNegative()),
    "average": lambda: xopt.chain(xopt.SGD(0.1), xopt.EMA(0.9)),
    "groups": lambda: xopt.Groups(xopt.Adam(0.1), ("b", {"lr": 0.5})),
    "other rules": lambda: xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Groups(xopt.Adam(0.1), ("b", xopt.SGD(0.3)))),
    "frozen": lambda: xopt.Groups(xopt.Adam(0.1), ("b", xopt.Freeze)),
    "masked": lambda: xopt.chain(xopt.Masked(xopt.ClipByNorm(0.5), "w"), xopt.SGD(0.1)),
    "accumulate": lambda: xopt.Accumulate(xopt.Adam(0.1), 2),
    "guard": lambda: xopt.Guard(xopt.Adam(0.1), "skip"),
    "loss scale": lambda: xopt.LossScale(xopt.Accumulate(xopt.Adam(0.1), 2)),
    "parameter-free": lambda: xopt.Prodigy(),
    "layer-wise": lambda: xopt.LDoG(),
    "split": lambda: xopt.Adam(0.1, complex="split"),
    "matrices": lambda: xopt.chain(xopt.Muon(0.1), xopt.ClipByGlobalNorm(0.5)),
    "stochastic": lambda: xopt.Precision(xopt.Adam(0.1), rounding="stochastic"),
    "8 bits": lambda: xopt.Precision(xopt.Adam(0.1), state_dtype="int8"),
}


@pytest.mark.parametrize("runner", ["eager", "tiled", pytest.param("llvm", marks=pytest.mark.needs("llvm"))])
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("name", RULES)
def test_they_change_no_bit(name: str, dtype: str, runner: Any) -> None:
    """Asked for or not: parameters and state are the same, and each norm is that of what is there."""
    if dtype == "complex64" and name in ("matrices", "projection", "8 bits", "stochastic"):
        pytest.skip("not of complex parameters")
    numpy, rule = Lib("numpy", "plain"), RULES[name]()
    plain = xopt.Optimizer(tree(numpy, 0, dtype), rule, runner=runner)
    shown = xopt.Optimizer(tree(numpy, 0, dtype), rule, runner=runner, metrics=NORMS)
    for t in range(1, 7):
        grads = tree(numpy, t, dtype) | ({"b": None} if t == 5 else {})
        before = {n: p.copy() for n, p in shown.params.items()}
        plain.step(grads)
        shown.step(grads)
        moving = [n for n in before if not (n == "b" and name == "frozen")]
        metrics, there = shown.metrics, [n for n in moving if grads[n] is not None]
        if name not in ("projection", "stochastic", "accumulate", "loss scale"):
            moved = norm(*(shown.params[n] - before[n] for n in there))
            assert metrics["update_norm"] == pytest.approx(moved, rel=1e-3, abs=1e-6)
        if name not in ("accumulate", "loss scale"):
            assert metrics["grad_norm"] == pytest.approx(norm(*(grads[n] for n in there)), rel=1e-6)
        assert metrics["param_norm"] == pytest.approx(norm(*(before[n] for n in there)), rel=1e-6)
        if name in ("accumulate", "loss scale"):
            assert (metrics["update_norm"] > 0) == (t % 2 == 0)
    assert all(np.array_equal(plain.params[n], shown.params[n]) for n in plain.params)
    assert plain.state_dict()["state"].keys() == shown.state_dict()["state"].keys()
    for n, slot in plain.state.slots.items():
        assert all(np.array_equal(x, shown.state.slots[n][k]) for k, x in slot.items() if x is not None), n


def test_what_is_carried() -> None:
    opt = xopt.Optimizer(np.ones(3), xopt.LossScale(xopt.DAdaptAdam(), initial=8.0), on_nonfinite="propagate")
    for g in (1.0, 2.0, np.inf):
        opt.step(np.full(3, g))
    metrics = opt.metrics
    assert metrics["loss_scale"] == opt.loss_scale == 4.0
    assert metrics["skipped_steps"] == 1.0
    assert metrics["d"] == opt.state.carry["0.dadaptadam.d"] > 1e-6
    opt = xopt.Optimizer(np.ones(3), xopt.chain(xopt.SGD(0.1), xopt.ReduceOnPlateau(0.5, patience=0)))
    for _ in range(3):
        opt.step(np.ones(3), value=1.0)
    assert opt.metrics == {"lr": 0.1, "lr_scale": 0.25}


@pytest.mark.parametrize("row", catalog.ROWS, ids=lambda row: row.rule.__name__)
def test_every_rule(row: catalog.Row) -> None:
    """All that a rule says it shows is there."""
    every_rule = row.make(**row.options[-1])
    opt = xopt.Optimizer({"w": np.ones((3, 2)), "b": np.ones(3)}, every_rule)
    opt.step({"w": np.ones((3, 2)), "b": np.ones(3)})
    flat = xopt.flat_metrics(opt.metrics)
    assert np.isfinite([*flat.values()]).all()
    own = type(every_rule).metrics
    assert {n.partition("/")[0] for n in flat} - {"muon.lr", "normuon.lr", "sgd.lr", "lr"} == {*own} - {"lr"}
    assert [x for n, x in flat.items() if n.endswith("lr") and n != "effective_lr"]


def test_trust_ratio_and_effective_rate() -> None:
    w, g = np.asarray([3.0, 4.0]), np.asarray([0.6, 0.8])
    opt = xopt.Optimizer(w.copy(), xopt.LARS(0.1, momentum=None, trust=0.5))
    opt.step(g)
    assert opt.metrics["trust_ratio"] == pytest.approx(0.5 * 5.0, rel=1e-6)
    opt = xopt.Optimizer(w.copy(), xopt.chain(xopt.SGD(1.0), xopt.TrustRatio(), xopt.Scale(0.1)))
    opt.step(g)
    assert opt.metrics["trust_ratio"] == pytest.approx(5.0, rel=1e-6)
    opt = xopt.Optimizer(w.copy(), xopt.ASGD(0.1, lambd=1.0, alpha=1.0))
    opt.step(g)
    opt.step(g)
    assert opt.metrics["effective_lr"] == pytest.approx(0.1 / 1.1, rel=1e-12)
    opt = xopt.Optimizer(w.copy(), xopt.ScheduleFreeSGD(0.1, warmup=4))
    opt.step(g)
    assert opt.metrics["effective_lr"] == pytest.approx(0.025, rel=1e-12)
    opt = xopt.Optimizer(w.copy(), xopt.MARS(0.1, max_norm=0.5))
    opt.step(g)
    assert opt.metrics["clip_factor"] == pytest.approx(0.5, rel=1e-6)
    opt = xopt.Optimizer(w.copy(), xopt.chain(xopt.Normalize(), xopt.DoG(first="distance", reps_rel=0.01)))
    opt.step(g)
    assert opt.metrics["grad_norm"] == pytest.approx(1.0, rel=1e-12)
    assert opt.metrics["distance"] == 0.01
    assert opt.metrics["effective_lr"] == pytest.approx(0.01, rel=1e-3)


def test_names() -> None:
    clip = xopt.ClipByGlobalNorm(1.0)
    names = lambda rule, *more: [*_stepped(rule, *more).metrics]
    assert names(xopt.chain(clip, xopt.SGD(0.1), clip)) == [
        "grad_norm", "0.clipbyglobalnorm.clip_factor", "lr", "update_norm", "2.clipbyglobalnorm.clip_factor",
    ]  # fmt: skip
    assert names(xopt.chain(xopt.ClipByNorm(1.0), clip, xopt.SGD(0.1))) == [
        "clipbynorm.grad_norm", "clipbynorm.clip_factor", "clipbyglobalnorm.grad_norm", "clipbyglobalnorm.clip_factor",
        "lr",
    ]  # fmt: skip
    assert sorted(names(xopt.Groups(xopt.Adam(0.1), ("b", xopt.SGD(0.1))))) == ["adam.lr", "sgd.lr"]
    assert names(xopt.chain(clip, xopt.SGD(0.1)), "grad_norm") == ["grad_norm", "clip_factor", "lr"]
    opt = _stepped(xopt.chain(xopt.ClipByValue(0.1), clip, xopt.SGD(0.1)), "grad_norm")
    assert [*opt.metrics] == ["grad_norm", "clipbyglobalnorm.grad_norm", "clip_factor", "lr"]
    assert opt.metrics["grad_norm"] > opt.metrics["clipbyglobalnorm.grad_norm"]


def _stepped(rule: Any, *names: str) -> xopt.Optimizer:
    numpy = Lib("numpy", "plain")
    opt = xopt.Optimizer(tree(numpy, 0), rule, metrics=names)
    opt.step(tree(numpy, 1))
    return opt


def test_what_each_parameter_has_its_own() -> None:
    opt = _stepped(xopt.Groups(xopt.SGD(0.1), ("b", {"lr": 0.5})))
    assert opt.metrics["lr"] == {"w": 0.1, "b": 0.5}
    opt.set(lr=0.5)
    opt.step({"w": np.ones((3, 4), np.float32), "b": np.ones(5, np.float32)})
    assert opt.metrics["lr"] == 0.5
    params = {"w": np.ones(2), "b": np.ones(2, np.float32)}  # of two dtypes, computed apart
    opt = xopt.Optimizer(params, xopt.Groups(xopt.SGD(0.1), ("b", {"lr": 0.5})), metrics=["grad_norm"])
    opt.step({n: np.ones_like(p) for n, p in params.items()})
    assert opt.metrics == {"lr": {"w": 0.1, "b": 0.5}, "grad_norm": 2.0}
    opt = _stepped(xopt.Groups(xopt.LARS(0.1), ("b", xopt.Freeze)))
    assert np.isnan(opt.metrics["trust_ratio"]["b"])
    assert opt.metrics["trust_ratio"]["w"] > 0


@pytest.mark.parametrize("runner", ["eager", "tiled", pytest.param("llvm", marks=pytest.mark.needs("llvm"))])
def test_hyperparameters_of_one_step(runner: Any) -> None:
    """Also where a step is taken again with little looked up."""
    opt, g = xopt.Optimizer(np.ones(3), xopt.SGD(lambda t: t / 8), runner=runner), np.ones(3)
    found = []
    for over in ({}, {}, {"lr": 0.75}, {}, {"lr": 1.0}):
        opt.step(g, **over)
        found.append(opt.metrics["lr"])
    assert found == [0.125, 0.25, 0.75, 0.5, 1.0]
    opt = xopt.Optimizer(np.ones(3), xopt.SGD(0.5), runner=runner)
    for over, lr in (({}, 0.5), ({}, 0.5), ({"lr": 0.75}, 0.75), ({}, 0.5)):
        opt.step(g, **over)
        assert opt.metrics["lr"] == lr


@pytest.mark.parametrize("runner", ["eager", "tiled", pytest.param("llvm", marks=pytest.mark.needs("llvm"))])
def test_a_first_step_with_another_rate(runner: Any) -> None:
    opt, g = xopt.Optimizer(np.ones(3), xopt.Adam(0.1), runner=runner), np.ones(3)
    for over, lr in (({"lr": 0.7}, 0.7), ({}, 0.1), ({"lr": 0.2}, 0.2)):
        opt.step(g, **over)
        assert opt.metrics["lr"] == lr


@pytest.mark.needs("strict")
def test_several_devices() -> None:
    """What each parameter has its own of stays where it is; a norm over both is refused, and nothing has moved."""
    strict = pytest.importorskip("array_api_strict")
    there = strict.Device("device1")
    tree = lambda: {"w": strict.ones(4, device=there), "b": strict.ones(1)}
    opt = xopt.Optimizer(tree(), xopt.LAMB(0.1))
    opt.step(tree())
    ratios = opt.metrics["trust_ratio"]
    assert {n: str(x.device) for n, x in ratios.items()} == {n: str(p.device) for n, p in tree().items()}
    assert [float(x) for x in ratios.values()] == pytest.approx([1.0, 1.0], rel=1e-4)
    for rule, names in ((xopt.Adam(0.1), ["grad_norm"]), (xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam(0.1)), [])):
        with pytest.raises(
            ValueError, match=r'params\["\w"\]: on .* and .* sums over both; make an optimizer for each'
        ):
            xopt.Optimizer(tree(), rule, metrics=names)
    frozen = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Groups(xopt.Adam(0.1), ("w", xopt.Freeze)))
    xopt.Optimizer(tree(), frozen).step(tree())


def test_nothing_is_computed_that_was_not_asked_for() -> None:
    sums = lambda *names: [len(b.plan.sums) for b in _stepped(xopt.SGD(0.1), *names)._executor.buckets]
    assert sums() == [0]
    assert sums("grad_norm") == sums("param_norm") == sums("grad_norm", "param_norm") == sums("update_norm") == [1]
    clip = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.SGD(0.1))
    assert len(_stepped(clip, "grad_norm")._executor.buckets[0].plan.sums) == 1


def test_errors() -> None:
    w = np.ones(2)
    for wrong in ("grad_norm", 3):
        with pytest.raises(TypeError, match="it must be a tuple of names"):
            xopt.Optimizer(w, xopt.SGD(0.1), metrics=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="metrics: 'loss' cannot be asked for, but grad_norm, param_norm, update_norm"):
        xopt.SGD(0.1).apply(w, w, xopt.SGD(0.1).init(w), metrics=["loss"])
    landed = xopt.chain(xopt.SGD(0.1), xopt.NonNegative())
    grads = {"a": np.ones(2), "w": np.ones(2)}
    inside = xopt.Groups(xopt.SGD(0.1), ("w", landed))
    opt = xopt.Optimizer({"a": w, "w": w + 1}, inside, metrics=["update_norm"])
    opt.step(grads)
    assert opt.metrics["update_norm"] == pytest.approx(0.2)
    inside = xopt.Groups(xopt.chain(xopt.ClipByNorm(0.5), xopt.SGD(0.1), xopt.Scale(0.5)), ("w", landed))
    xopt.Optimizer({"a": w, "w": w + 1}, inside).step(grads)
    with pytest.raises(ValueError, match="group0.*follows the step of a group alone"):
        xopt.Optimizer({"a": w, "w": w + 1}, inside, metrics=["update_norm"])


@dataclasses.dataclass
class Pair:
    a: Any
    b: Any


class Measured(xopt.Rule):
    """A rule of a user."""

    lr: Hyper = hyper(ge=0)
    metrics = {"mean_square": "m2", "rate": "lr"}

    @staticmethod
    def reduce(h: H, xp: Any, p: Array, g: Array) -> dict[str, Array]:
        return {"g2": g * g}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        return {"m2": h.g2 / 2}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return -h.lr * g


def test_a_rule_of_a_user(lib: Lib) -> None:
    params, rule = lib.array([1.0, 2.0]), Measured(0.5)
    _, _, metrics = rule.apply(params, lib.array([3.0, 4.0]), rule.init(params), metrics=())
    assert {n: number(lib, x) for n, x in metrics.items()} == {"lr": 0.5, "mean_square": 12.5, "rate": 0.5}

    class Other(Measured):
        @staticmethod
        def host(h: H, xp: Any) -> dict[str, Any]:
            return {"m3": h.g2}

    assert Other.metrics == {}  # of other scalars those of the base may not be there

    class Decayed(Measured):
        metrics = {"shrink": "weight_decay"}

    for more, shown in (({}, {}), ({"weight_decay": 0.5}, {"shrink": 0.5})):
        once = Decayed(0.5, **more)
        found = once.apply(params, lib.array([3.0, 4.0]), once.init(params), metrics=())[2]
        assert {n: number(lib, x) for n, x in found.items()} == {"lr": 0.5, **shown}

    class Wrong(Measured):
        metrics = {"x": "nothing"}

    with pytest.raises(TypeError, match=r"wrong\.metrics: 'x' is 'nothing', but there is no such scalar; it has lr, "):
        Wrong(0.5).apply(params, params, Wrong(0.5).init(params), metrics=())


def test_hooks(lib: Lib) -> None:
    if lib.guise == "read-only":
        pytest.skip("Optimizer refuses read-only arrays")
    opt, seen = xopt.Optimizer(lib.array(np.ones(3)), xopt.SGD(0.25)), list[Any]()
    end = opt.on_step(lambda o: seen.append((o.steps_taken, float(o.metrics["lr"]), lib.numpy(o.params).tolist())))
    opt.on_step(lambda o: o.set(lr=0.5) or seen.append("set"), every=2)
    g = lib.array(np.ones(3))
    for _ in range(3):
        opt.step(g)
    assert seen == [(1, 0.25, [0.75] * 3), (2, 0.25, [0.5] * 3), "set", (3, 0.5, [0.0] * 3)]
    end()
    end()
    opt.step(g)
    assert seen[4:] == ["set"]


def test_a_hook_that_raises_is_behind_the_step() -> None:
    opt = xopt.Optimizer(np.ones(1), xopt.SGD(0.5))

    def hook(_: Any) -> None:
        raise RuntimeError("stop here")

    end = opt.on_step(hook)
    with pytest.raises(RuntimeError, match="stop here"):
        opt.step(np.ones(1))
    assert opt.params.tolist() == [0.5]
    end()
    assert opt.step(np.ones(1)).tolist() == [0.0]
    for wrong in (None, 3):
        with pytest.raises(TypeError, match="must be a function of the optimizer"):
            opt.on_step(wrong)  # type: ignore[arg-type]
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match="a whole number ≥ 1"):
            opt.on_step(print, every=wrong)  # type: ignore[arg-type]


def test_copies_and_loads() -> None:
    opt = xopt.Optimizer(np.ones(2), xopt.Adam(0.1), metrics=["param_norm"])
    opt.on_step(lambda o: pytest.fail("of another optimizer") if o is not opt else None)
    opt.step(np.ones(2))
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert other.metrics == {}
        other.step(np.ones(2))
        assert [*other.metrics] == ["param_norm", "lr"]
    opt.load_state_dict(opt.state_dict())
    assert opt.metrics == {}
    opt.set(lr=0.5)
    opt.step(np.ones(2), b1=0.5)
    assert opt.metrics["lr"] == 0.5


def test_progress_bar() -> None:
    pytest.importorskip("tqdm")
    text, opt = io.StringIO(), xopt.Optimizer({"w": np.zeros(2)}, xopt.chain(xopt.ClipByNorm(1.0), xopt.SGD(0.5)))
    with xopt.ProgressBar(4, every=2, file=text, mininterval=0, desc="fit") as bar:
        opt.on_step(bar)
        for _ in range(4):
            opt.step({"w": np.asarray([3.0, 4.0])})
    last = text.getvalue().rpartition("\r")[2]
    assert "fit: 100%" in last
    assert "4/4" in last
    assert "lr=0.5" in last
    assert "norm" not in last  # which each parameter has its own of
    with xopt.ProgressBar(file=text, metrics=["grad_norm/w"], every=1) as bar:
        bar(opt)
        assert "grad_norm/w=5" in str(bar._bar)
    held = xopt.Optimizer(Pair(np.ones(2), np.ones(1)), xopt.LAMB(0.5))
    held.step(Pair(np.ones(2), np.ones(1)))
    with xopt.ProgressBar(file=text, every=1) as bar:
        bar(held)
        assert "lr=0.5" in str(bar._bar)
        assert "trust" not in str(bar._bar)
    with xopt.ProgressBar(file=text, metrics=["loss"], every=1) as bar, pytest.raises(KeyError, match="no 'loss' here"):
        bar(opt)
    with pytest.raises(TypeError, match="must be a tuple of names"):
        xopt.ProgressBar(metrics="lr")
    with pytest.raises(ValueError, match="whole number"):
        xopt.ProgressBar(every=0)
