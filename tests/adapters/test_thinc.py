"""A rule as a Thinc optimizer: in the loop of a Thinc model, beside Thinc's own, called with one array at a time."""

from __future__ import annotations

import copy
import pickle
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xopt

pytestmark = pytest.mark.needs("jax")  # in whose session Thinc is
pytest.importorskip("thinc")
import thinc.api as thinc

NINE = hasattr(thinc.Optimizer, "step")
"""Whether this is Thinc 9, whose schedules are asked for a step; those of Thinc 8 are generators."""
CLOSE = 2e-5
"""After twelve steps in float32, in which Thinc computes: parameters of size 1, whose rounding the gradients see."""
X = np.random.default_rng(0).standard_normal((96, 3)).astype("float32")
Y = np.sin(X.sum(1, keepdims=True)).astype("float32")


def adapted(*args: Any) -> Any:
    from xopt.adapters.thinc import Optimizer

    return Optimizer(*args)


def built() -> Any:
    thinc.fix_random_seed(1)
    return thinc.chain(thinc.Maxout(4, 3, nP=2, normalize=True), thinc.Linear(1, 4)).initialize(X, Y)


def fit(opt: Any, steps: int = 12, model: Any = None) -> Any:
    """Take steps as loops of Thinc do; a step has a batch of its own."""
    model = built() if model is None else model
    for k in range(steps):
        part = slice(24 * (k % 4), 24 * (k % 4 + 1))
        guess, backprop = model.begin_update(X[part])
        backprop((guess - Y[part]) / 24)
        model.finish_update(opt)
        opt.step_schedules()
    return model


def weights(model: Any) -> list[Any]:
    return [node.get_param(n).copy() for node in model.walk() for n in node.param_names]


def apart(a: Any, b: Any) -> float:
    return max(float(np.max(np.abs(x - y))) for x, y in zip(weights(a), weights(b), strict=True))


def same(a: Any, b: Any) -> bool:
    return all(map(np.array_equal, weights(a), weights(b)))


def theirs(make: Callable[..., Any], rate: Any, **options: Any) -> Any:
    return make(rate, **{"grad_clip": 0.0, "use_averages": False, "L2": 0.0, **options})


def warmup(rate: float) -> Any:
    return thinc.warmup_linear(rate, 4, 20)


ADAM = xopt.Adam(0.05, like="thinc")
BESIDE: dict[str, Callable[[], tuple[Any, Any]]] = {
    "adam": lambda: (adapted(ADAM), theirs(thinc.Adam, 0.05)),
    "sgd": lambda: (adapted(xopt.SGD(0.05)), theirs(thinc.SGD, 0.05)),
    "clip": lambda: (
        adapted(xopt.chain(xopt.ClipByNorm(0.1), ADAM)),
        theirs(thinc.Adam, 0.05, grad_clip=0.1),
    ),
    "decay of the gradient": lambda: (
        adapted(xopt.chain(xopt.AddDecay(0.1), ADAM)),
        theirs(thinc.Adam, 0.05, L2=0.1, L2_is_weight_decay=False),
    ),
    "number in place of the rule's": lambda: (adapted(ADAM, 0.02), theirs(thinc.Adam, 0.02)),
    "list": lambda: (adapted(ADAM, [0.05, 0.01, 0.02]), theirs(thinc.Adam, [0.05, 0.01, 0.02])),
    "schedule": lambda: (adapted(ADAM, warmup(0.05)), theirs(thinc.Adam, warmup(0.05))),
    "schedule of ours": lambda: (
        adapted(ADAM.replace(lr=lambda t: 0.05 * min(t - 1, 4) / 4 if t < 6 else 0.05 * (21 - t) / 16)),
        theirs(thinc.Adam, warmup(0.05)),
    ),
}


@pytest.mark.parametrize("name", BESIDE)
def test_twelve_steps_beside_thinc(name: str) -> None:
    ours, other = BESIDE[name]()
    got, want = fit(ours), fit(other)
    assert apart(got, want) <= CLOSE
    assert apart(got, built()) > 1e-2
    assert {*ours.nr_update.values()} == {12}


def test_arrays_are_written_in_place_and_gradients_are_zeroed() -> None:
    opt, w, g = adapted(xopt.SGD(0.5)), np.ones((2, 3), "float32"), np.full((2, 3), 2.0, "float32")
    found = opt((3, "W"), w, g)
    assert found[0] is w
    assert found[1] is g
    assert np.all(w == 0)
    assert not g.any()
    opt((3, "W"), w, np.full((2, 3), 2.0, "float32"), lr_scale=0.5)
    assert np.all(w == -0.5)
    g = np.full((2, 3), np.nan, "float32")
    adapted(xopt.Guard(xopt.SGD(0.5), "zero"))((3, "W"), w, g)
    assert np.all(w == -0.5)
    assert not g.any()  # NaN times 0 is NaN
    for empty in ((0,), (0, 3)):
        none = np.zeros(empty, "float32")
        assert opt((4, "E"), none, none.copy())[0] is none
    scalar = np.ones((), "float32")
    opt((5, "s"), scalar, np.ones((), "float32"))
    assert scalar == 0.5


def test_each_key_has_its_own_count_of_steps() -> None:
    """A layer that comes later begins at the first step of a schedule, and with the bias correction of that."""
    opt = adapted(xopt.Adam(lambda t: 1.0 if t == 1 else 0.0))
    a, b = np.zeros(2, "float32"), np.zeros(2, "float32")
    for _ in range(3):
        opt((1, "b"), a, np.ones(2, "float32"))
    opt((2, "b"), b, np.ones(2, "float32"))
    np.testing.assert_array_equal(a, b)
    assert np.all(a != 0)
    assert opt.nr_update == {(1, "b"): 3, (2, "b"): 1}


def test_lr_scale_of_schedules_and_of_rules_with_several_rates() -> None:
    w = np.zeros(1, "float32")
    adapted(xopt.SGD(lambda t: 1.0 / t))("key", w, np.ones(1, "float32"), lr_scale=0.25)
    assert w == -0.25
    two = adapted(xopt.Groups(xopt.SGD(1.0), ("b", xopt.Adam(1.0)), unmatched="ignore"))
    with pytest.raises(TypeError, match=r"lr_scale of 'key': 0\.25, but .* has no single lr"):
        two("key", w, np.ones(1, "float32"), lr_scale=0.25)
    two("key", w, np.ones(1, "float32"))
    assert w == -1.25


def test_globs_see_layers_and_parameters() -> None:
    model, opt = built(), adapted(xopt.Groups(xopt.SGD(0.1), ("**/b", xopt.Freeze), unmatched="ignore"))
    last = model.layers[-1].id
    fit(opt, 4, model)
    moved = {
        (node.id, n): not np.array_equal(node.get_param(n), first.get_param(n))
        for node, first in zip(model.walk(), built().walk(), strict=True)
        for n in node.param_names
    }
    assert moved[last, "W"]
    assert not moved[last, "b"]
    assert {n for (_, n), yes in moved.items() if yes} == {"W", "G"}


AVERAGED = {
    "ema": lambda: xopt.chain(xopt.SGD(0.1), xopt.EMA(0.5, start="first")),
    "schedule-free": lambda: xopt.ScheduleFreeAdamW(0.05),
}


@pytest.mark.parametrize("name", AVERAGED)
def test_averages_are_those_of_an_optimizer_of_the_tree(name: str) -> None:
    opt = adapted(AVERAGED[name]())
    model = fit(opt)
    assert {*opt.averages} == {(node.id, n) for node in model.walk() for n in node.param_names}
    before, trained = weights(model), model.predict(X)
    with model.use_params(opt.averages):
        inside = weights(model)
        assert np.any(model.predict(X) != trained)
    assert all(map(np.array_equal, weights(model), before))
    twin, rows = built(), []
    tree = xopt.Optimizer([node.get_param(n) for node in twin.walk() for n in node.param_names], AVERAGED[name]())

    def record(key: Any, w: Any, g: Any) -> tuple[Any, Any]:
        rows.append((key, g.copy()))
        g *= 0
        return w, g

    record.step_schedules = lambda: None  # type: ignore[attr-defined]
    for k in range(12):
        rows.clear()
        part = slice(24 * (k % 4), 24 * (k % 4 + 1))
        guess, backprop = twin.begin_update(X[part])
        backprop((guess - Y[part]) / 24)
        twin.finish_update(record)
        tree.step([g for _, g in rows])
    assert all(map(np.array_equal, inside, tree.eval_params()))


def test_a_rule_without_averages_has_none() -> None:
    opt = adapted(xopt.SGD(0.1))
    model = fit(opt, 1)
    assert opt.averages is None
    with pytest.raises(AttributeError, match="averages: cannot be set here"):
        opt.averages = {}
    assert same(model, fit(adapted(xopt.SGD(0.1)), 1))


KEPT = {
    "adam": lambda: adapted(xopt.Adam(0.05)),
    "chain": lambda: adapted(xopt.chain(xopt.ClipByNorm(0.1), xopt.AdamW(0.05), xopt.EMA(0.9))),
    "one for each array": lambda: adapted(xopt.LDoG()),
    "matrices": lambda: adapted(xopt.Muon(0.01)),
    "bfloat16": lambda: adapted(xopt.Precision(xopt.Adam(0.05), state_dtype="bfloat16")),
    "accumulated": lambda: adapted(xopt.Accumulate(xopt.Adam(0.05), every=2)),
    "schedule": lambda: adapted(xopt.Adam(xopt.schedules.cosine(0.05, steps=12))),
    "schedule of thinc": lambda: adapted(ADAM, warmup(0.05)),
}
COPIES: dict[str, Callable[[Any], Any]] = {"pickle": lambda x: pickle.loads(pickle.dumps(x)), "deepcopy": copy.deepcopy}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", KEPT)
def test_a_copy_goes_on_with_the_same_bits(name: str, how: str) -> None:
    if name == "schedule of thinc" and not NINE:
        pytest.skip("a generator cannot be copied")
    opt = KEPT[name]()
    model = fit(opt, 5)
    other, twin = COPIES[how](opt), model.copy()
    for node, first in zip(twin.walk(), model.walk(), strict=True):
        node.id = first.id  # the keys of the state; copies of a model have ids of their own
        for n in node.param_names:
            node.set_param(n, first.get_param(n).copy())
    if other.averages is not None:
        for key, x in opt.averages.items():
            np.testing.assert_array_equal(x, other.averages[key])
    before = weights(twin)
    fit(opt, 5, model)
    assert all(map(np.array_equal, weights(twin), before))
    fit(other, 5, twin)
    assert same(model, twin)
    assert other.rule == opt.rule
    assert not same(model, fit(KEPT[name](), 5))


def test_weights_that_are_put_in_their_place_go_on_with_the_state() -> None:
    """As after ``from_bytes``; views of the same memory, as those of PyTorch layers, are the same weights."""
    opt, twin = adapted(xopt.Adam(0.05)), adapted(xopt.Adam(0.05))
    w, v = np.ones((2, 2), "float32"), np.ones((2, 2), "float32")
    used = set()
    for k in range(4):
        g = np.full((2, 2), 1.0 + k, "float32")
        w = w.copy() if k == 2 else w
        opt((1, "W"), w[:] if k == 1 else w, g.copy())
        twin((1, "W"), v, g.copy())
        np.testing.assert_array_equal(w, v)
        used.add(opt._held[1, "W"][1])
    assert len(used) == 2  # what takes the steps was made anew for the other memory alone
    other = np.ones((3, 2), "float32")
    with pytest.raises(ValueError, match=r"weights of \(1, 'W'\): shape \(3, 2\), but those before had \(2, 2\)"):
        opt((1, "W"), other, np.ones((3, 2), "float32"))
    assert np.all(other == 1)


def test_learn_rate_is_moved_as_in_thinc() -> None:
    ours, other = BESIDE["adam"]()
    a, b = fit(ours, 4), fit(other, 4)
    ours.learn_rate = warmup(0.02)
    if NINE:
        other.learn_rate = warmup(0.02)
        ours.last_score = other.last_score = 0.5
        assert ours.last_score == other.last_score == (4, 0.5)
        assert ours.step == other.step == 4
        assert ours.learn_rate(ours.step) == pytest.approx(0.02)
    else:
        other._set_attr_or_schedule("learn_rate", warmup(0.02))
    assert apart(fit(ours, 8, a), fit(other, 8, b)) <= CLOSE
    ours.learn_rate = 0.0
    before = weights(a)
    fit(ours, 4, a)
    assert all(map(np.array_equal, weights(a), before))


@pytest.mark.skipif(not NINE, reason="of Thinc 9")
def test_a_schedule_of_thinc_is_given_the_key_and_the_last_score() -> None:
    seen = []

    def look(schedule: Any, step: int, **words: Any) -> float:
        seen.append((step, words))
        return 0.1

    opt = adapted(xopt.SGD(), thinc.Schedule("look", look))
    opt((1, "W"), np.ones(1, "float32"), np.ones(1, "float32"))
    opt.step_schedules()
    opt.last_score = 0.5
    opt((1, "W"), np.ones(1, "float32"), np.ones(1, "float32"))
    assert seen == [(0, {"key": (1, "W"), "last_score": None}), (1, {"key": (1, "W"), "last_score": (1, 0.5)})]


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "global norm": (
        lambda: xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.SGD()),
        "ClipByGlobalNorm looks at all gradients, and Thinc gives its optimizers one at a time; ClipByNorm clips each",
    ),
    "inside": (
        lambda: xopt.chain(xopt.Masked(xopt.ClipByGlobalNorm(1.0), "**/W", unmatched="ignore"), xopt.SGD()),
        "ClipByGlobalNorm looks at all gradients",
    ),
    "norm": (lambda: xopt.chain(xopt.Normalize(), xopt.SGD()), 'Normalize looks at .*; over="leaf" is the norm'),
    "ball": (lambda: xopt.chain(xopt.SGD(), xopt.Ball(1.0)), 'Ball looks at all gradients.*; over="leaf"'),
    "parameter-free": (lambda: xopt.Prodigy(), "Prodigy looks at all gradients.*; LDoG finds a rate for each array"),
    "skip": (lambda: xopt.Guard(xopt.SGD(), "skip"), 'Guard looks at all gradients.*; "zero" takes 0'),
    "raise": (lambda: xopt.Guard(xopt.SGD(), "raise"), 'Guard looks at all gradients.*; "zero" takes 0'),
    "curvature": (lambda: xopt.Sophia(), "Sophia asks for estimates of the curvature, and Thinc gives none"),
    "scale": (lambda: xopt.LossScale(xopt.SGD()), "LossScale looks at all gradients.*; PyTorch layers of Thinc have"),
    "loss": (lambda: xopt.chain(xopt.SGD(), xopt.ReduceOnPlateau()), "ReduceOnPlateau needs the loss, and Thinc gives"),
    "noise": (lambda: xopt.chain(xopt.AddNoise(0.1), xopt.SGD()), "AddNoise draws the random numbers of an array by"),
    "rounding": (
        lambda: xopt.Precision(xopt.Adam(), state_dtype="bfloat16", rounding="stochastic"),
        "Precision draws the random numbers of an array by its place",
    ),
    "typing errors": (
        lambda: xopt.Groups(xopt.SGD(), ("**/b", xopt.Freeze)),
        'Groups looks for what its predicates choose .*; say unmatched="ignore"',
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_more_than_one_array_is_refused_by_name(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(TypeError, match=message):
        adapted(make())


def test_what_is_of_one_array_alone_is_not_refused() -> None:
    for rule in (
        xopt.chain(xopt.Normalize(over="leaf"), xopt.SGD(), xopt.Ball(9.0, over="leaf")),
        xopt.Precision(xopt.Adam(), state_dtype="bfloat16"),
        *(xopt.NAdam(), xopt.LAMB(), xopt.LDoG(), xopt.Shampoo(), xopt.ScheduleFreeSGD(0.1), xopt.NovoGrad()),
    ):
        assert not same(fit(adapted(rule), 2), built())


def test_errors() -> None:
    with pytest.raises(TypeError, match="rule: Adam, but it must be a rule or a chain; make an object of it"):
        adapted(xopt.Adam)
    two = xopt.Groups(xopt.SGD(0.1), ("**/b", xopt.Adam(0.2)), unmatched="ignore")
    with pytest.raises(TypeError, match=r"learn_rate: 0\.1, but .* has no single lr; it has sgd\.lr, adam\.lr"):
        adapted(two, 0.1)
    with pytest.raises(ValueError, match=r"SGD\.lr: -0\.5"):
        adapted(xopt.SGD(), -0.5)
    with pytest.raises(ValueError, match="Invalid schedule"):
        adapted(xopt.SGD(), "fast")
    own = adapted(xopt.SGD(xopt.schedules.cosine(0.1, steps=8)))
    assert own.learn_rate == xopt.schedules.cosine(0.1, steps=8)
    with pytest.raises(TypeError, match="learn_rate: cannot be set, because it is the business of SGD"):
        own.learn_rate = 0.1
    opt, w = adapted(xopt.SGD(0.1)), np.ones(2, "float32")
    for name in ("b1", "L2", "grad_clip", "alpha"):
        with pytest.raises(AttributeError, match=rf"{name}: cannot be set here; hyperparameters are those of SGD"):
            setattr(opt, name, 0.5)
    g = np.ones(2, "float32")
    g.flags.writeable = False
    frozen = w.copy()
    frozen.flags.writeable = False
    for error, message, *pair in (
        (TypeError, r"weights of \(1, 'W'\): a list, but it must be an array of NumPy or CuPy", [1.0], g),
        (TypeError, r"gradient of \(1, 'W'\): a list", w, [1.0]),
        (ValueError, r"gradient of \(1, 'W'\): a read-only array, which cannot be set to 0", w, g),
        (ValueError, re.escape('params[1]["W"]: a read-only array'), frozen, w.copy()),
        (ValueError, re.escape('grads[1]["W"]: shape (3,), but the parameter has (2,)'), w, np.ones(3, "float32")),
        (TypeError, re.escape('grads[1]["W"]: dtype float64, but the parameter has float32'), w, np.ones(2)),
        (ValueError, re.escape('grads[1]["W"]: shares memory'), w, w),
    ):
        with pytest.raises(error, match=message):  # type: ignore[call-overload]
            opt((1, "W"), *pair)
        assert np.all(w == 1)
        assert not opt.nr_update
    falls = adapted(xopt.SGD(), [0.1, -0.1])
    falls((1, "W"), w, np.ones(2, "float32"))
    falls.step_schedules()
    with pytest.raises(ValueError, match=r"SGD\.lr: -0\.1"):
        falls((1, "W"), w, np.ones(2, "float32"))


CONFIG = """
[optimizer]
@optimizers = "xopt.v1"
rule = "chain(ClipByNorm(0.1), Adam(lr=0.05, like='thinc'))"

[optimizer.learn_rate]
@schedules = "warmup_linear.v1"
initial_rate = 0.05
warmup_steps = 4
total_steps = 20
"""


def test_configurations() -> None:
    from xopt.adapters.thinc import Optimizer, configured

    made = thinc.registry.resolve(thinc.Config().from_str(CONFIG))["optimizer"]
    assert type(made) is Optimizer
    assert isinstance(made, thinc.Optimizer)  # for which spaCy looks
    assert apart(fit(made), fit(theirs(thinc.Adam, warmup(0.05), grad_clip=0.1))) <= CLOSE
    with pytest.raises(ValueError, match=r"rule: 'print' at character 1 is no part of a rule of xopt"):
        configured("print(1)")
    project = Path(__file__).parents[2] / "pyproject.toml"
    points = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["entry-points"]
    assert points == {"thinc_optimizers": {"xopt.v1": "xopt.adapters.thinc:configured"}}
    assert thinc.registry.optimizers.entry_point_namespace == "thinc_optimizers"
    assert configured("SGD(0.5)").rule == xopt.SGD(0.5)


@pytest.mark.filterwarnings("ignore:.torch.cuda.amp:FutureWarning")  # of Thinc
def test_layers_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    found = []
    for opt in BESIDE["adam"]():
        torch.manual_seed(0)
        model = thinc.PyTorchWrapper(torch.nn.Linear(3, 1)).initialize(X, Y)
        fit(opt, 12, model)
        found.append([p.detach().numpy().copy() for p in model.shims[0]._model.parameters()])
    for got, want in zip(*found, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=CLOSE)
