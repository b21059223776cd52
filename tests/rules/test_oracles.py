"""Every rule against its oracle: on every library, dtype and runner, and against its peers elsewhere."""

from __future__ import annotations

from typing import Any

import catalog
import numpy as np
import pytest
from catalog import Row, adam, transforms
from conftest import Lib, walk
from support.oracles import NEW, assert_close, by_apply, leaves, length, oracle, problem, run

import xopt
from xopt._arrays import scalars as _scalars
from xopt._engine.program import compose as _compose
from xopt._engine.program import contract as _contract
from xopt._engine.program import plan as _plan
from xopt._engine.program.trace import replay
from xopt._engine.runners.tiled.runner import Tiled


@pytest.fixture(autouse=True)
def able(request: pytest.FixtureRequest) -> None:
    given = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if "lib" in given and "row" in given and given["lib"].name in given["row"].lacking:
        pytest.skip(f"{given['lib'].name} lacks a function that {given['row'].rule.__name__} needs")


def test_every_public_rule_has_a_row() -> None:
    public = {*catalog.public(xopt.Rule)}
    assert public == {row.rule for row in catalog.ROWS}


@pytest.mark.parametrize("row", catalog.ROWS, ids=lambda row: row.rule.__name__)
def test_every_field_is_changed_by_some_row(row: Row) -> None:
    tried = [*row.options, *catalog.COMMON, *catalog.DECAYS, {"lr", "complex", "like"}]
    changed = {n for options in tried for n in options}
    assert changed == set(row.rule._fields)


@pytest.mark.xla
@pytest.mark.parametrize(("row", "rule"), catalog.rules())
def test_float64(lib: Lib, row: Row, rule: xopt.Rule, rng: np.random.Generator) -> None:
    params, grads = problem(rng, "float64", length(lib, row), fewer=row.large and lib.name == "jax")
    rule = rule.replace(lr=xopt.schedules.cosine(row.lr, steps=30, end=row.lr / 10))
    got, _ = run(lib, rule, params, grads)
    # centered RMSProp divides by the root of a difference: an error of u in both terms grows
    rtol = row.rtol if "centered" not in str(rule) else 1e-9
    assert_close(got, oracle(row, rule, params, grads), rtol=rtol, atol=1e-13)


@pytest.mark.parametrize(("row", "rule"), catalog.rules())
def test_float32(lib: Lib, row: Row, rule: xopt.Rule, rng: np.random.Generator) -> None:
    params, grads = problem(rng, "float32", length(lib, row), lib, row.large)
    got, _ = run(lib, rule, params, grads)
    # 20 steps of a few roundings each, in parameters of size 1 (2^-24 = 6e-8); centered amplifies as above
    assert_close(got, oracle(row, rule, params, grads), rtol=2e-5 if "centered" not in str(rule) else 2e-3, atol=4e-6)


@pytest.mark.parametrize("row", [row for row in catalog.ROWS if row.results], ids=lambda row: row.rule.__name__)
def test_results_in_the_state(row: Row, rng: np.random.Generator) -> None:
    params, grads = problem(rng, "float64")
    for options in [*row.options, *catalog.COMMON, *catalog.DECAYS]:
        rule = row.make(**options)
        _, state = walk(rule, params, grads)
        for k, p in enumerate(leaves(params)):
            kept: dict[str, Any] = {}
            for t, g in enumerate(grads, 1):
                p = row.reference(p, leaves(g)[k], kept, t, **catalog.fields(rule))
            for name in row.results:
                [column] = [x for n, x in state.slots.items() if n.endswith(f".{name}")]
                np.testing.assert_allclose(leaves(column)[k], kept[name], rtol=row.rtol, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("row", catalog.ROWS, ids=lambda row: row.rule.__name__)
def test_half(lib: Lib, row: Row, dtype: str, rng: np.random.Generator) -> None:
    rule = row.make()
    params, grads = problem(rng, "float32", 1, lib)
    back = lambda x: lib.numpy(lib.array(x, dtype)).astype(np.float32)
    params, grads = NEW(back, params), [NEW(back, g) for g in grads]
    got, state = run(lib, rule, params, grads, dtype)
    # one rounding on store: half a unit in the last place, and a little for the float32 arithmetic before it
    assert_close(got, oracle(row, rule, params, grads), rtol={"float16": 5e-4, "bfloat16": 4e-3}[dtype], atol=1e-6)
    assert all("float32" in str(x.dtype) for x in leaves(state.slots))


@pytest.mark.parametrize("mode", ["modulus", "split"])
@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize("row", catalog.ROWS, ids=lambda row: row.rule.__name__)
def test_complex(lib: Lib, row: Row, dtype: str, mode: str, rng: np.random.Generator) -> None:
    params, grads = problem(rng, dtype, length(lib, row), lib, row.large)
    for options in row.options if (lib.id, dtype) == ("numpy-plain", "complex128") else row.options[-1:]:
        rule = row.make(complex=mode, **options)
        got, state = run(lib, rule, params, grads)
        tol = {"complex64": (2e-4, 2e-5), "complex128": (1e-12, 1e-13)}[dtype]
        if "centered" in options:
            tol = (tol[0] * 1e3, tol[1] * 1e3)
        assert_close(got, oracle(row, rule, params, grads), *tol)
        second = [x for n, x in state.slots.items() if n.endswith((".v", ".u", ".top"))]
        assert all(("complex" in str(x.dtype)) == (mode == "split") for x in leaves(second))


@pytest.mark.parametrize(("row", "rule"), catalog.rules())
def test_optimizer_equals_apply(lib: Lib, row: Row, rule: xopt.Rule, rng: np.random.Generator) -> None:
    params, grads = problem(rng, "float64", 5, lib)
    want, want_state = run(by_apply(lib), rule, params, grads)
    if lib.guise == "read-only":
        pytest.skip("Optimizer refuses read-only arrays")
    mine = NEW(lib.array, params)
    opt = xopt.Optimizer(mine, rule)
    for g in grads:
        opt.step(NEW(lib.array, g))
    assert (opt.params is mine) == lib.writable
    exact = lib.name != "jax"  # XLA fuses a jitted step otherwise than single operations
    for x, y in zip(leaves(opt.params), leaves(want), strict=True):
        np.testing.assert_allclose(lib.numpy(x), y, rtol=0 if exact else 1e-12, atol=0 if exact else 1e-13)
    for x, y in zip(leaves(opt.state.slots), leaves(want_state.slots), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        np.testing.assert_allclose(lib.numpy(x), lib.numpy(y), rtol=0 if exact else 1e-12, atol=0 if exact else 1e-13)
    assert opt.state.step == 5
    for x in leaves(opt.params):
        assert lib.name != "torch" or x.requires_grad == (lib.guise == "grad")


@pytest.mark.parametrize(("row", "rule"), catalog.rules())
def test_updates_are_what_apply_adds(lib: Lib, row: Row, rule: xopt.Rule, rng: np.random.Generator) -> None:
    params, grads = problem(rng, "float64", 3, lib)
    p = NEW(lib.array, params)
    state = other = rule.init(p)
    for g in grads:
        g = NEW(lib.array, g)
        change, other = rule.updates(p, g, other)
        new, state = rule.apply(p, g, state)
        for a, b, c in zip(leaves(p), leaves(change), leaves(new), strict=True):
            np.testing.assert_allclose(lib.numpy(a) + lib.numpy(b), lib.numpy(c), rtol=1e-15, atol=1e-15)
        p = NEW(lambda x: lib.array(lib.numpy(x)), new)


@pytest.mark.parametrize(("row", "rule"), [x for x in catalog.rules() if x.values[0] in catalog.TRACED])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
def test_replayed_trace_is_eager_to_the_bit(row: Row, rule: xopt.Rule, dtype: str, rng: np.random.Generator) -> None:
    """The recording against the rule called with NumPy itself; and no result is wider than it should be."""
    draw = lambda: np.asarray(rng.standard_normal(300) + (1j * rng.standard_normal(300) if "c" in dtype else 0), dtype)
    with np.errstate(all="ignore"):
        arrays = {"p": draw(), "g": draw()}
        arrays["g"][:4] = [np.nan, np.inf, -0.0, 1e-42]
    [spec] = rule._specs()
    plan = _plan.plan((spec,), "complex" in dtype)
    for name in plan.live:
        x = np.abs(draw()) if plan.kinds[name] == "real" else draw()
        arrays[name] = x
    values = {"t": 3, **spec.resolve(3, "numpy", read=True)}
    h = {**spec.statics, **spec.carry, **values}
    if spec.reduce:  # what it sums is tested elsewhere: any positive number will do
        slots = {n: arrays[spec.slot(n)] for n in spec.slots if spec.slot(n) in plan.live}
        with np.errstate(all="ignore"):
            h |= dict.fromkeys(spec.reduce(_plan.namespace(h), np, arrays["p"], arrays["g"], **slots), 2.5)
    if spec.host:
        h |= spec.host(_plan.namespace(h), _scalars.floats)
    program = plan.body(("p", "u", *plan.live))
    scalars = program.evaluate({_contract.scalar_name(n, 0): v for n, v in h.items()})
    with np.errstate(all="ignore"):
        got = replay(program, np, arrays, scalars)
        slots = {n: x for n, x in arrays.items() if n in plan.live}
        out, new = _compose.compose((spec,), [_plan.namespace(h)], np, arrays["p"], arrays["g"], slots)
        want = {"p": arrays["p"] + out.step, "u": out.step, **new}
    for name, x in got.items():
        assert want[name].dtype.itemsize <= arrays["p"].dtype.itemsize, f"{name} is wider than the compute dtype"
        np.testing.assert_array_equal(x, want[name], err_msg=name)


@pytest.mark.parametrize("row", catalog.ROWS, ids=lambda row: row.rule.__name__)
def test_every_hyperparameter_and_option_matters(row: Row, rng: np.random.Generator) -> None:
    params, grads = problem(rng, "float64", steps=8)

    def outcome(rule: xopt.Rule) -> Any:
        new, state = walk(rule, params, grads)
        if rule.curvature:
            state = rule.update_curvature(new, NEW(lambda g: np.asarray(1e4 * np.abs(g)), grads[-1]), state)
            new, state = rule.apply(new, grads[-1], state)
        read = [x for n, x in state.slots.items() if n.split(".")[-1] in row.results]
        return np.concatenate([x.ravel() for x in leaves([new, *read])])

    seen = {row.make(lr=row.lr * 2): outcome(row.make(lr=row.lr * 2))}
    for options in [*row.options, *catalog.COMMON, *catalog.DECAYS]:
        rule = row.make(**options)
        if rule not in seen:
            now = outcome(rule)
            assert not any(np.array_equal(now, other) for other in seen.values()), options
            seen[rule] = now
    assert len(seen) > len(row.options)


@pytest.mark.parametrize(("row", "rule"), catalog.rules())
def test_every_state_array_changes_and_none_is_idle(row: Row, rule: xopt.Rule, rng: np.random.Generator) -> None:
    draw = lambda: [rng.standard_normal(5), rng.standard_normal((4, 3))]
    p, start, grads = draw(), rule.init(draw()), [draw() for _ in range(3)]
    states = [start]
    for g in grads:
        p, state = rule.apply(p, g, states[-1])
        assert {*state.slots} == {*start.slots}
        states.append(state)
    for name, first in start.slots.items():
        owners = [k for k, x in enumerate(first) if x is not None]
        assert owners, f"no leaf has {name}"
        if all(any(np.all(state.slots[name][k] != first[k]) for state in states) for k in owners):
            continue
        last = states[-1]
        far = [1e6 * np.sign(g) for g in grads[0]]  # a slot that sets a maximum is shaken hard
        new = []
        for way in (0, 1, -1):
            shake = [None if x is None else x + (way * far[k] if way and x.shape == far[k].shape else 0.1)
                     for k, x in enumerate(last.slots[name])]  # fmt: skip
            new.append(rule.apply(p, grads[0], last._replace(slots={**last.slots, name: shake}))[0])
        now = rule.apply(p, grads[0], last)[0]
        moved = [np.all(np.any([x[k] != now[k] for x in new], axis=0)) for k in owners]
        assert all(moved), f"{name} never changes, nor does anything hang on it"


@pytest.mark.parametrize("row", catalog.ROWS, ids=lambda row: row.rule.__name__)
def test_refused_options(row: Row) -> None:
    for options in [*row.refused, *catalog.COMMON_REFUSED]:
        with pytest.raises((ValueError, TypeError)) as caught:
            row.rule(**options)
        assert row.rule.__name__ in str(caught.value)
        assert any(name in str(caught.value) for name in options), str(caught.value)


@pytest.mark.parametrize("row", catalog.ROWS, ids=lambda row: row.rule.__name__)
def test_schedules_of_every_hyperparameter(row: Row, rng: np.random.Generator) -> None:
    """Any hyperparameter may follow the step; the oracle is given its values one by one."""
    for options in row.options:
        rule = row.make(**options)
        ramps = {
            n: (lambda t, v=v, down=(f.ge or 0) < 1: v * (1 - 0.02 * t if down else 1 + 0.02 * t))
            for n, v, f in ((n, v, row.rule._fields[n]) for n, v in catalog.fields(rule).items())
            if not f.static and v is not None
        }
        scheduled = rule.replace(**ramps)
        params, grads = problem(rng, "float64", steps=8)
        got = walk(scheduled, params, grads)[0]
        assert_close(got, oracle(row, scheduled, params, grads), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("row", catalog.ROWS, ids=lambda row: row.rule.__name__)
def test_a_changed_hyperparameter_records_nothing_anew(row: Row, rng: np.random.Generator) -> None:
    p, g = rng.standard_normal(9), rng.standard_normal(9)
    opt = xopt.Optimizer(p, row.make())
    opt.step(g)
    plans = dict(_plan._plans)
    for lr in (0.5, 0.25, 0.125):
        opt.set(lr=lr)
        opt.step(g, lr=lr / 3)
        row.make(lr=lr).apply(p, g, row.make(lr=lr).init(p))
    assert _plan._plans.keys() == plans.keys()


TRANSFORMS = [
    (xopt.ClipByValue, transforms.clip_by_value, 0.7),
    (xopt.ClipByNorm, transforms.clip_by_norm, 1.5),
    (xopt.ClipByGlobalNorm, transforms.clip_by_global_norm, 3.0),
]


@pytest.mark.parametrize("dtype", ["float64", "float32", "complex128"])
@pytest.mark.parametrize(("transform", "reference", "limit"), TRANSFORMS, ids=lambda x: getattr(x, "__name__", None))
def test_transforms(
    lib: Lib, transform: Any, reference: Any, limit: float, dtype: str, rng: np.random.Generator
) -> None:
    params, grads = problem(rng, dtype, 6, lib)
    rule = xopt.chain(transform(limit), xopt.SGD(lr=0.1, momentum=0.5))
    got, _ = run(lib, rule, params, grads)
    wide = lambda g: [x.astype("complex128" if "c" in dtype else "float64") for x in leaves(g)]
    clipped = [reference(wide(g), limit) for g in grads]
    assert any(
        not np.allclose(a, b) for g, c in zip(grads, clipped, strict=True) for a, b in zip(leaves(g), c, strict=True)
    )
    want, _ = run(Lib("numpy", "plain"), xopt.SGD(lr=0.1, momentum=0.5), wide(params), clipped)
    tol = 1e-13 if dtype != "float32" else 2e-6
    assert_close(got, leaves(want), rtol=tol, atol=tol)


def test_two_reductions_and_a_transform_of_the_step(lib: Lib, rng: np.random.Generator) -> None:
    """Clip, clip globally, step, clip the step: each component sees what the one before made of it."""
    params, grads = problem(rng, "float64", 4, lib)
    rule = xopt.chain(xopt.ClipByNorm(2.0), xopt.ClipByGlobalNorm(2.5), xopt.Adam(lr=0.1), xopt.ClipByGlobalNorm(0.2))
    got, _ = run(lib, rule, params, grads)
    p = [np.asarray(x) for x in leaves(params)]
    states: list[dict[str, Any]] = [{} for _ in p]
    h = catalog.fields(xopt.Adam(lr=0.1))
    for t, g in enumerate(grads, 1):
        gs = transforms.clip_by_global_norm(transforms.clip_by_norm(leaves(g), 2.0), 2.5)
        steps = [adam.adam(x, y, s, t, **h) - x for x, y, s in zip(p, gs, states, strict=True)]
        p = [x + u for x, u in zip(p, transforms.clip_by_global_norm(steps, 0.2), strict=True)]
    assert_close(got, p, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("runner", ["eager", Tiled(7, 2), None])
def test_runners_by_name(runner: Any, rng: np.random.Generator) -> None:
    p = rng.standard_normal(50)
    opt = xopt.Optimizer(p, xopt.Adam(), runner=runner)
    assert opt.runner == ("eager" if runner == "eager" else "tiled")
    opt.step(rng.standard_normal(50))


@pytest.mark.parametrize(
    "row", [row for row in catalog.ROWS if not row.rule.elementwise], ids=lambda row: row.rule.__name__
)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite(lib: Lib, row: Row, bad: float, rng: np.random.Generator) -> None:
    """It shows in its own array, and in no other; nothing raises."""
    params, good = problem(rng, "float64", 1, lib, row.large and lib.name == "jax")
    grads = [NEW(np.copy, good[0]) for _ in range(2)]
    grads[0]["tall"][1, 1] = bad
    rule = row.make()
    got, _ = run(lib, rule, params, grads)
    want, _ = run(lib, rule, params, [good[0], good[0]])
    assert np.isnan(got["tall"]).any()
    for x, y in zip(leaves({**got, "tall": 0}), leaves({**want, "tall": 0}), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_rule_of_matrices_with_another_for_the_rest(lib: Lib, rng: np.random.Generator) -> None:
    """Hyperparameters of both can be set by name, and each keeps state for its own leaves only."""
    params = {"w": lib.array(rng.standard_normal((3, 2))), "b": lib.array(rng.standard_normal(4))}
    grads = {"w": lib.array(rng.standard_normal((3, 2))), "b": lib.array(rng.standard_normal(4))}
    rule = xopt.Muon(0.1, other=xopt.SGD(0.5, momentum=0.5))
    if lib.guise in ("read-only", "grad"):
        pytest.skip("as for the others")
    state = rule.init(params)
    assert state.slots["0.muon.m"]["b"] is None
    assert state.slots["0.sgd.m"]["w"] is None
    opt = xopt.Optimizer(params, rule)
    assert {"muon.lr": 0.1, "sgd.lr": 0.5, "eps": 1e-7}.items() <= opt.hyperparams().items()
    opt.set(**{"sgd.lr": 0.25, "0.muon.lr": 0.2, "0.sgd.momentum": 0.0})
    with pytest.raises(TypeError, match="'lr' is ambiguous: say muon.lr or sgd.lr"):
        opt.set(lr=0.1)
    before = NEW(lambda x: lib.numpy(x).copy(), params)
    after = NEW(lib.numpy, opt.step(grads, **{"sgd.lr": 1.0}))
    np.testing.assert_allclose(after["b"], before["b"] - lib.numpy(grads["b"]), rtol=1e-15)
    assert np.any(after["w"] != before["w"])
    assert repr(rule) == "Muon(lr=0.1, other=SGD(lr=0.5, momentum=0.5))"


def test_mean_is_what_is_evaluated(rng: np.random.Generator) -> None:
    params, grads = problem(rng, "float64", steps=6)
    rule = xopt.ASGD(lr=0.1, t0=2)
    p, state = walk(rule, params, grads)
    mean = leaves(rule.eval_params(p, state))
    assert_close(mean, leaves(state.slots["0.asgd.mean"]), rtol=0, atol=0)
    assert not np.array_equal(mean[0], leaves(p)[0])
