"""Training steps as ONNX models, run by onnxruntime, beside the same steps on NumPy."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import catalog
import numpy as np
import pytest

import xopt

pytestmark = pytest.mark.needs("ndonnx")

SHAPES = {"w": (4, 3), "b": [(3,), ()]}


def tree(rng: np.random.Generator, dtype: str) -> Any:
    return {
        "w": rng.normal(size=(4, 3)).astype(dtype),
        "b": [rng.normal(size=3).astype(dtype), np.asarray(rng.normal(), dtype)],
    }


def session(model: Any) -> Any:
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options)


def ran(model: Any, values: dict[str, Any], given: list[dict[str, Any]]) -> dict[str, Any]:
    """Take the steps of a model, each with its inputs."""
    runs = session(model)
    names = [x.name for x in runs.get_outputs()]
    for x in given:
        out = dict(zip(names, runs.run(names, {**values, **x}), strict=True))
        values = {n.removeprefix("next/"): v for n, v in out.items() if n.startswith("next/")}
    return values


def compare(rule: Any, dtype: str, steps: int, bound: float, bad: bool = False) -> None:
    from xopt.adapters import onnx

    rng = np.random.default_rng(0)
    params, grads = tree(rng, dtype), [tree(rng, dtype) for _ in range(steps)]
    if bad:
        grads[1]["w"][0, 0] = np.nan
    state = rule.init(params)
    model = onnx.export(rule, params)
    got = ran(
        model,
        onnx.feeds(params, state),
        [{n.replace("params", "grads"): x for n, x in onnx.feeds(g).items()} for g in grads],
    )
    p, s = params, state
    for g in grads:
        p, s = rule.apply(p, g, s, runner="eager")
    want = onnx.feeds(p, s)
    assert [*got] == [*want]
    for n, x in want.items():
        assert got[n].dtype == x.dtype, n
        assert np.abs(got[n] - x).max(initial=0) <= bound * max(1, np.abs(x).max(initial=0)), n


SCHEDULE = xopt.schedules.warmup_cosine(3e-3, warmup=20, steps=150)
PLAIN = {
    "adam": xopt.Adam(),
    "adamw": xopt.AdamW(),
    "lion": xopt.Lion(),
    "momentum": xopt.SGD(lr=0.01, momentum=0.9),
    "rmsprop": xopt.RMSProp(),
    "adagrad": xopt.Adagrad(lr=0.01),
    "clip, schedule": xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.AdamW(lr=SCHEDULE, weight_decay=0.1)),
}
ROUNDING = {"float32": 5e-6, "float64": 1e-14}
"""Of the largest number: a few units in the last place, which 200 steps add up."""


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("rule", PLAIN.values(), ids=PLAIN)
def test_two_hundred_steps(rule: Any, dtype: str) -> None:
    compare(rule, dtype, 200, ROUNDING[dtype])


REFUSED = {"KLShampoo", "KLSOAP", "PSGDKron", "Shampoo", "SOAP"}  # ONNX has no decompositions of matrices


@pytest.mark.parametrize("row", catalog.ROWS, ids=lambda row: row.rule.__name__)
def test_every_rule(row: catalog.Row) -> None:
    if row.rule.__name__ not in REFUSED:
        compare(row.make(), "float32", 5, ROUNDING["float32"])
        return
    with pytest.raises(TypeError, match="step: needs linalg, which ndonnx has not"):
        compare(row.make(), "float32", 5, ROUNDING["float32"])


BESIDE = {  # with Adam, where it goes
    "value": (xopt.ClipByValue(0.5), None),
    "norm": (xopt.ClipByNorm(0.5), None),
    "adaptive": (xopt.AdaptiveGradientClip(0.3), None),
    "centralize": (xopt.Centralize(), None),
    "normalize": (xopt.Normalize(), None),
    "decay": (xopt.AddDecay(0.3), None),
    "scale": (None, xopt.Scale(0.5)),
    "trust": (None, xopt.TrustRatio()),
    "cautious": (None, xopt.Cautious()),
    "average": (None, xopt.EMA(0.9, warmup="ratio")),
    "swa": (None, xopt.SWA(start=2, every=2)),
    "lookahead": (None, xopt.Lookahead(k=2)),
    "box": (None, xopt.Box(low=-0.3, high=0.4)),
    "masked": (xopt.Masked(xopt.ClipByNorm(0.5), "b/*"), None),
    "ball": (None, xopt.Ball(0.7, over="leaf")),
}


@pytest.mark.parametrize(("front", "behind"), BESIDE.values(), ids=BESIDE)
def test_transforms(front: Any, behind: Any) -> None:
    parts = [x for x in (front, xopt.Adam(lr=0.1), behind) if x is not None]
    compare(xopt.chain(*parts), "float64", 5, ROUNDING["float64"])


AROUND = {
    "accumulate": lambda rule: xopt.Accumulate(rule, 2),
    "skip": lambda rule: xopt.Guard(rule, "skip"),
    "zero": lambda rule: xopt.Guard(rule, "zero"),
    "loss scale": lambda rule: xopt.LossScale(rule, initial=8.0, every=2),
    "groups": lambda rule: xopt.Groups(rule, ("b/*", {"lr": xopt.scaled(0.5)}), ("w", xopt.SGD(lr=0.1))),
    "frozen": lambda rule: xopt.Groups(rule, ("w", xopt.Freeze)),
    "8 bits": lambda rule: xopt.Precision(rule, state_dtype="int8"),
    "noise": lambda rule: xopt.Precision(rule, rounding="stochastic", seed=3),
    "Kahan": lambda rule: xopt.Precision(rule, rounding="kahan"),
}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_wrappers(around: Any) -> None:
    dtype = "float16" if around in (AROUND["Kahan"], AROUND["noise"]) else "float32"
    compare(around(xopt.Adam(lr=0.1)), dtype, 5, ROUNDING["float32"], bad=around in (AROUND["skip"], AROUND["zero"]))


def test_half_precision() -> None:
    compare(xopt.Adam(lr=0.1), "float16", 5, 1e-3)  # what is near the middle of two may go to either
    compare(xopt.Precision(xopt.Adam(lr=0.1), master_weights=True), "float16", 5, 1e-3)


@pytest.mark.parametrize(
    ("rule", "message"),
    [(xopt.Guard(xopt.Adam(), "raise"), "step: looks at a value"), (xopt.LowRank(xopt.Adam(), rank=2), "needs linalg")],
    ids=["raise", "low rank"],
)
def test_what_cannot_be_recorded(rule: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        compare(rule, "float32", 2, 1e-3)


# ---- a whole step


X, Y = np.random.default_rng(1).normal(size=(40, 3)), np.random.default_rng(2).normal(size=(40, 1))
RULE = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.AdamW(lr=SCHEDULE))


def fit(params: Any, state: Any, x: Any, y: Any, rule: Any = RULE) -> Any:
    """Take a step of linear regression, in any library."""
    xp = x.__array_namespace__()
    r = xp.matmul(x, params["w"]) + params["b"] - y
    loss = xp.mean(r * r)
    scale = 2 / xp.sum(xp.ones_like(r))
    w = xp.reshape(xp.matmul(xp.permute_dims(x, (1, 0)), r), (3, 1))  # else its shape is not known
    grads = {"w": scale * w, "b": scale * xp.sum(r)}
    params, state = rule.apply(params, grads, state)
    return params, state, {"loss": loss}


START = {"w": np.ones((3, 1)), "b": np.zeros(())}


def test_a_whole_step_with_batches_of_any_length() -> None:
    import ndonnx as ndx

    from xopt.adapters import onnx

    state = RULE.init(START)
    lengths = [ndx.argument(shape=("n", width), dtype=ndx.float64) for width in (3, 1)]
    model = onnx.export(fit, START, state, *lengths)
    assert [x.name for x in model.graph.input] == [
        "params/b", "params/w", "x", "y", "state/step", "state/1.adamw.m/b", "state/1.adamw.m/w", "state/1.adamw.v/b",
        "state/1.adamw.v/w",
    ]  # fmt: skip
    given = [(X[k : k + n], Y[k : k + n]) for k, n in ((0, 7), (7, 20), (27, 13))] * 10
    got = ran(model, onnx.feeds(START, state), [{"x": x, "y": y} for x, y in given])
    p, s = START, state
    for x, y in given:
        p, s, _ = fit(p, s, x, y)
    new, last = onnx.restore(got, START, state)
    for n, x in p.items():
        assert np.allclose(new[n], x, rtol=1e-13, atol=0)
    assert last.step == 30
    assert isinstance(last.step, int)
    RULE.apply(new, new, last)  # which goes on
    runs = session(model)
    value = runs.run(["output/loss"], {**onnx.feeds(START, state), "x": X, "y": Y})[0]
    assert np.isclose(value, fit(START, state, X, Y)[2]["loss"], rtol=1e-14)


def test_it_runs_where_there_is_no_xopt(tmp_path: Path) -> None:
    from xopt.adapters import onnx

    state = RULE.init(START)
    onnx.export(fit, START, state, X, Y, path=tmp_path / "step.onnx")
    np.savez(tmp_path / "first.npz", x=X, y=Y, **onnx.feeds(START, state))
    program = (
        "import sys, numpy as np, onnxruntime as ort; sys.modules['xopt'] = sys.modules['ndonnx'] = None\n"
        "run = ort.InferenceSession('step.onnx'); names = [x.name for x in run.get_outputs()]\n"
        "first = dict(np.load('first.npz')); values = dict(first)\n"
        "for _ in range(200):\n"
        "    out = dict(zip(names, run.run(names, values)))\n"
        "    values |= {n.removeprefix('next/'): x for n, x in out.items() if n.startswith('next/')}\n"
        "np.savez('last.npz', **values)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    p, s = START, state
    for _ in range(200):
        p, s, _ = fit(p, s, X, Y)
    with np.load(tmp_path / "last.npz") as found:
        new, last = onnx.restore(dict(found), START, state)
    assert last.step == 200
    for n, x in p.items():
        assert np.allclose(new[n], x, rtol=1e-12, atol=0)


def test_hyperparameters_that_are_inputs() -> None:
    from xopt.adapters import onnx

    rule = xopt.Adam(b1=0.5)
    model = onnx.export(rule, START, hyperparams=["lr", "b2"])
    given = [{"lr": np.asarray(lr), "b2": np.asarray(b2)} for lr, b2 in ((0.1, 0.9), (0.2, 0.99))]
    first = onnx.feeds(START, rule.init(START))
    grads = {"grads/w": np.ones((3, 1)), "grads/b": np.asarray(2.0)}
    got = ran(model, first, [{**grads, **x} for x in given])
    p, s = START, rule.init(START)
    for x in given:
        p, s = rule.apply(p, {"w": np.ones((3, 1)), "b": np.asarray(2.0)}, s, lr=float(x["lr"]), b2=float(x["b2"]))
    assert np.allclose(got["params/w"], p["w"], rtol=1e-14, atol=0)


def test_any_tree_is_a_state() -> None:
    from xopt.adapters import onnx

    def step(params: Any, state: Any, lr: Any) -> Any:
        p = params - lr * state["v"]
        return p, {"v": 0.5 * state["v"], "seen": state["seen"] + 1, "name": None}

    state = {"v": np.ones(2), "seen": 3, "name": None}
    model = onnx.export(step, np.zeros(2), state, 0.5)
    got = ran(model, onnx.feeds(np.zeros(2), state), [{"lr": np.asarray(0.5)}] * 2)
    params, state = onnx.restore(got, np.zeros(2), state)
    assert params.tolist() == [-0.75, -0.75]
    assert state["v"].tolist() == [0.25, 0.25]
    assert (state["seen"], state["name"]) == (5, None)


@pytest.mark.parametrize("rule", [xopt.Adam(amsgrad=True), xopt.Adan(), xopt.LossScale(xopt.Prodigy())], ids=repr)
def test_what_is_restored_is_what_was_fed(rule: Any) -> None:
    """Each slot in its place, also where their names are not in the order of the alphabet."""
    from xopt.adapters import onnx

    rng = np.random.default_rng(0)
    params, state = START, rule.init(START)
    for _ in range(2):
        params, state = rule.apply(params, {n: rng.normal(size=x.shape) for n, x in START.items()}, state)
    new, last = onnx.restore(onnx.feeds(params, state), params, state)
    assert [*last.slots] == [*state.slots]
    for name, tree in state.slots.items():
        for n, x in tree.items():
            assert np.array_equal(last.slots[name][n], x), (name, n)
    assert (last.step, last.carry) == (state.step, state.carry)
    assert all(np.array_equal(new[n], x) for n, x in params.items())


def test_state_of_other_libraries() -> None:
    strict = pytest.importorskip("array_api_strict")
    from xopt.adapters import onnx

    there = {n: strict.asarray(x) for n, x in START.items()}
    got, want = onnx.feeds(there, RULE.init(there)), onnx.feeds(START, RULE.init(START))
    assert [*got] == [*want]
    for n, x in want.items():
        assert got[n].dtype == x.dtype
        assert np.array_equal(got[n], x)


def test_the_example_trains(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib").use("Agg")
    found = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "examples" / "onnx_digits.py"))
    assert found["accuracy"] >= 0.96
    assert "400 steps" in capsys.readouterr().out


# ---- what is refused


def _looks(params: Any, state: Any) -> Any:
    return (params, state) if params["b"] > 0 else (params, None)


def _unknown(params: Any, state: Any, x: Any) -> Any:
    state = xopt.SGD().init(params)
    return xopt.SGD().apply(params, {"w": x[:3, :1], "b": params["b"]}, state)


def _any_length() -> Any:
    import ndonnx as ndx

    return ndx.argument(shape=("n", "m"), dtype=ndx.float64)


REFUSALS: dict[str, tuple[Any, str]] = {
    "complex": (lambda export: export(xopt.SGD(), {"w": np.ones(2, np.complex64)}), r"params/w: dtype complex64, but"),
    "no array": (lambda export: export(xopt.SGD(), {"w": "text"}), "params/w: str, but it must be an array"),
    "a look": (lambda export: export(_looks, START, None), "step: looks at a value"),
    "one thing": (lambda export: export(lambda p, s: p, START), "step: returned a dict, but it must return"),
    "four": (lambda export: export(lambda p, s: (p, s, 1, 2), START), "step: returned 4 things"),
    "lost": (lambda export: export(lambda p, s: ({"w": p["w"]}, s), START), "params/b: lost by the step"),
    "made": (lambda export: export(lambda p, s: ({**p, "c": p["b"]}, s), START), "params/c: made by the step"),
    "shape": (
        lambda export: export(lambda p, s: ({**p, "w": p["b"]}, s), START),
        r"params/w: float64 of shape \(\) behind",
    ),
    "batch": (lambda export: export(xopt.SGD(), START, None, X), "state, batch: only of a function"),
    "hyperparams": (lambda export: export(fit, START, None, X, Y, hyperparams=["lr"]), "hyperparams: only of a rule"),
    "sizes": (lambda export: export(_unknown, START, None, _any_length()), "None is a size that is not known before"),
    "a name": (lambda export: export(xopt.SGD(), START, hyperparams=["rate"]), "rate"),
}


@pytest.mark.parametrize(("call", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(call: Any, message: str, tmp_path: Path) -> None:
    from xopt.adapters import onnx

    path = tmp_path / "step.onnx"
    with pytest.raises((TypeError, ValueError), match=message):
        call(lambda *args, **kwargs: onnx.export(*args, path=path, **kwargs))
    assert not path.exists()


def test_a_value_that_is_not_there() -> None:
    from xopt.adapters import onnx

    with pytest.raises(ValueError, match="params/w: no value for it"):
        onnx.restore({"next/params/b": np.zeros(())}, START)
