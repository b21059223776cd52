"""What the recorder accepts, what it refuses by name, and what it makes of a rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.random_rules import make, random_rule

import xopt
from xopt._engine.program import contract as _contract
from xopt._engine.program import plan as _plan
from xopt._engine.program.algebra import Value
from xopt._engine.program.trace import TracedScalar, Tracer, replay
from xopt._engine.runners.tiled.codegen import numpy_kernel
from xopt._engine.runners.tiled.runner import Tiled
from xopt.rule import Array, H, Hyper, Rule, Transform, abs2, hyper

REFUSED = [
    (lambda h, xp, p, g: xp.sum(g), AttributeError, "xp.sum is not elementwise"),
    (lambda h, xp, p, g: xp.linalg.norm(g), AttributeError, "xp.linalg"),
    (lambda h, xp, p, g: g.sum(), AttributeError, "it may not use .sum"),
    (lambda h, xp, p, g: g.shape[0] * g, AttributeError, "it may not use .shape"),
    (lambda h, xp, p, g: g[0] * g, TypeError, "not subscriptable"),
    (lambda h, xp, p, g: xp.sqrt(2.0) * g, TypeError, "xp.sqrt needs an array"),
    (lambda h, xp, p, g: xp.sqrt(h.lr) * g, TypeError, "xp.sqrt needs an array"),
    (lambda h, xp, p, g: xp.maximum(h.lr, 1.0) * g, TypeError, "xp.maximum needs an array"),
    (lambda h, xp, p, g: xp.where(g, g, p), TypeError, "needs a boolean array as its condition"),
    (lambda h, xp, p, g: xp.where(h.lr, g, p), TypeError, "needs a boolean array as its condition"),
    (lambda h, xp, p, g: xp.where(g > 0, 1.0, -1.0) * g, TypeError, "needs an array in one branch"),
    (lambda h, xp, p, g: (g > 0) * g, TypeError, "xp.multiply of a boolean array"),
    (lambda h, xp, p, g: -(g > 0) * g, TypeError, "xp.negative of a boolean array"),
    (lambda h, xp, p, g: xp.where(g & p, g, p), TypeError, "xp.logical_and needs boolean arrays"),
    (lambda h, xp, p, g: xp.where(g > 0, g > 1, p > 1), TypeError, "boolean branches"),
    (lambda h, xp, p, g: g**3, TypeError, "xp.pow differs in the last bits"),
    (lambda h, xp, p, g: g**0.5, TypeError, "for a root use xp.sqrt"),
    (lambda h, xp, p, g: xp.exp(g), TypeError, "a class that needs it says inexact = True"),
    (lambda h, xp, p, g: g if h.lr > 0 else p, TypeError, "may not look at the value of a hyperparameter"),
    (lambda h, xp, p, g: g if h.lr == 0 else p, TypeError, "may not look at the value of a hyperparameter"),
    (lambda h, xp, p, g: g * max(h.lr, 1.0), TypeError, "may not look at the value of a hyperparameter"),
    (lambda h, xp, p, g: g * float(h.lr), TypeError, "may not look at the value of a hyperparameter"),
    (lambda h, xp, p, g: g if h.t > 1 else p, TypeError, "may not look at the value of a hyperparameter"),
    (lambda h, xp, p, g: g if g > 0 else p, TypeError, "a rule may not branch on an array"),
    (lambda h, xp, p, g: g * h.rate, AttributeError, "has no hyperparameter 'rate'; it has"),
    (lambda h, xp, p, g: g * np.float64(2), TypeError, "float64"),
    (lambda h, xp, p, g: g * np.ones(3), TypeError, "ndarray"),
    (lambda h, xp, p, g: g * True, TypeError, "bool"),
    (lambda h, xp, p, g: g * 1j, TypeError, "complex"),
    (lambda h, xp, p, g: g * "x", TypeError, "str"),
    (lambda h, xp, p, g: xp.sqrt(g, p), TypeError, "xp.sqrt takes 1 argument, got 2"),
    (lambda h, xp, p, g: xp.imag(g), TypeError, "needs a complex array"),
    (lambda h, xp, p, g: h.lr, TypeError, "update returned a scalar as the step"),
    (lambda h, xp, p, g: g > 0, TypeError, "update returned a bool array as the step"),
    (
        lambda h, xp, p, g, m=0.0: g,
        TypeError,
        "update returned 0 state arrays after the step, but its signature declares 1",
    ),
    (
        lambda h, xp, p, g: (g, g),
        TypeError,
        "update returned 1 state arrays after the step, but its signature declares 0",
    ),
    (lambda h, xp, p, g, m=0.0: (g, 0.0), TypeError, "0.mine.m: update returned a float; state must be an array"),
]


@pytest.mark.parametrize(("update", "exception", "message"), REFUSED, ids=lambda x: None)
def test_refusals(update: Any, exception: Any, message: str) -> None:
    for runner in ("eager", "tiled"):
        with pytest.raises(exception) as caught:
            xopt.Optimizer(np.ones(3), make(update), runner=runner)
        assert message in str(caught.value), str(caught.value)


def in_place(h: H, xp: Any, p: Array, g: Array) -> Array:
    g *= 2
    return g


def test_in_place_operators_are_refused() -> None:
    with pytest.raises(TypeError, match="a rule is pure: write m = m"):
        make(in_place).init(np.ones(3))


def test_complex_refusals() -> None:
    for update, text in [
        (lambda h, xp, p, g: xp.maximum(g, p), "xp.maximum of a complex array has no one meaning"),
        (lambda h, xp, p, g: xp.sign(g), "xp.sign of a complex array"),
        (lambda h, xp, p, g: xp.where(g > 0, g, p), "xp.greater of a complex array"),
        (lambda h, xp, p, g: xp.square(g), "for the squared modulus use abs2"),
    ]:
        make(update).init(np.ones(3))
        with pytest.raises(TypeError, match=text):
            make(update).init(np.ones(3, complex))


def test_bad_declarations() -> None:
    def no_start(h: H, xp: Any, p: Array, g: Array, m: Array) -> Any: ...
    def stars(h: H, xp: Any, p: Array, g: Array, *slots: Array) -> Any: ...
    def short(h: H, xp: Any, p: Array) -> Any: ...
    def unknown(h: H, xp: Any, p: Array, g: Array, m: Array = "start") -> Any: ...

    for update, text in [
        (no_start, "state array 'm' needs its first value, like m=0.0"),
        (stars, r"must take \(h, xp, p, g\) and then one parameter for each state array"),
        (short, r"must take \(h, xp, p, g\)"),
        (unknown, "m='start' names no field of Mine"),
    ]:
        with pytest.raises(TypeError, match=text):
            make(update)
    with pytest.raises(TypeError, match="Bad.mode: a static field must be annotated bool, int, float or Literal"):

        class Bad(Rule):
            mode: str = "fast"


class Everything(Rule):
    """Uses every function that a real rule may use."""

    lr: Hyper = hyper(default=0.1)
    inexact = True

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, m: Array = 0.5) -> tuple[Array, ...]:
        a = xp.where((g > 0) & (p <= 0) | ~(m < g), xp.sqrt(abs(g)), -xp.square(p))
        b = xp.maximum(xp.minimum(a, 1.0), -1.0) + xp.sign(g) * xp.abs(p) / 3
        c = xp.where(xp.isfinite(b) & ~xp.isnan(b) & ~xp.isinf(b), b, 0.0)
        d = xp.where((g >= p) | (g == m) & (g != p), c, xp.tanh(c))
        e = xp.exp(-xp.abs(d)) + xp.expm1(d) * 0.1 + xp.log(1 + d * d) + xp.log1p(xp.abs(d))
        f = xp.add(xp.subtract(e, 1), xp.multiply(xp.divide(d, 2), xp.negative(e))) + 2**d + xp.abs(d) ** 1.5
        k = xp.where(xp.logical_or(xp.less(f, 1), xp.logical_not(xp.greater(d, 0))), f, xp.sin(f) + xp.cos(d))
        k = k + 0.1 * xp.where(xp.less_equal(f, d), f, d) + xp.where(xp.greater_equal(f, d), f, d)
        k = xp.where(xp.equal(k, d) | xp.not_equal(k, f) & xp.logical_and(k > 0, k < 9), k, f)
        return -h.lr * k, m + 0.1 * d


def test_everything_that_is_allowed(rng: np.random.Generator) -> None:
    p, g = rng.standard_normal(1000), rng.standard_normal(1000)
    rule = Everything()
    want, state = rule.apply(p, g, rule.init(p), runner="eager")
    for tile in (1, 7, 64, 1000):
        got, other = rule.apply(p, g, rule.init(p), runner=Tiled(tile, 1))
        assert np.array_equal(got, want)
        assert np.array_equal(other.slots["0.everything.m"], state.slots["0.everything.m"])


@pytest.mark.parametrize("complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("seed", range(150))
def test_random_rules_have_the_same_bits_on_both_runners(seed: int, complex: bool) -> None:
    """Swapped slots, a slot that is set to the gradient, two slots of one value: whatever a rule may return."""
    rule = random_rule(seed, complex)
    rng = np.random.default_rng(seed)
    draw = lambda: rng.standard_normal(67) + (1j * rng.standard_normal(67) if complex else 0)
    p, grads = draw(), [draw() for _ in range(3)]
    want, state = p, rule.init(p)
    for g in grads:
        want, state = rule.apply(want, g, state, runner="eager")
    for tile in (1, 5, 100):
        pure, mine = p, rule.init(p)
        opt = xopt.Optimizer(p.copy(), rule, runner=Tiled(tile, 1))
        plain = xopt.Optimizer(p.copy(), rule, runner="eager")
        for g in grads:
            pure, mine = rule.apply(pure, g, mine, runner=Tiled(tile, 1))
            opt.step(g)
            plain.step(g)
        for got, slots in (
            (pure, mine.slots),
            (opt.params, opt.state.slots),
            (plain.params, plain.state.slots),
        ):
            assert np.array_equal(got, want, equal_nan=True)
            assert slots.keys() == state.slots.keys()
            assert all(np.array_equal(slots[n], x, equal_nan=True) for n, x in state.slots.items())


def test_random_rules_are_varied() -> None:
    """The rules above do swap, alias and drop state."""
    swapped = idle = shared = 0
    for seed in range(150):
        [spec] = random_rule(seed, False)._specs()
        plan = _plan.plan((spec,), False)
        program = plan.body(("p", *plan.live))
        idle += len(plan.live) < len(spec.slots)
        shared += len(set(program.outputs.values())) < len(program.outputs)
        swapped += any(program.nodes[i].op == "load" for n, i in program.outputs.items() if n != "p")
    assert min(swapped, shared) >= 5
    assert idle


def test_a_value_is_computed_once() -> None:
    tape = Tracer()
    g = tape.load("g", "real")
    assert (g * g).index == (g * g).index
    program = tape.finish({"x": g * g + g * g}, [])
    assert [n.op for n in program.nodes] == ["load", "multiply", "add"]


def test_scalars_are_computed_by_the_host_in_float64() -> None:
    """1 - b2**t is folded before it is rounded to float32: the last bit is right at b2 = 0.999."""
    [spec] = xopt.Adam()._specs()
    plan = _plan.plan((spec,), False)
    program = plan.body(("p", *plan.live))
    values = {_contract.scalar_name(n, 0): v for n, v in spec.resolve(1, "numpy", read=True).items()} | {"t": 1}
    assert (1 - 0.999) in program.evaluate(values)
    assert "(1 - (b2_0 ** t))" in program.source


def test_a_plan_has_one_body_for_a_whole_chain() -> None:
    """Clip, rule and clip of the step are one elementwise body and one sum: nothing is kept in between."""
    rule = xopt.chain(xopt.ClipByValue(1.0), xopt.ClipByGlobalNorm(1.0), xopt.AdamW(), xopt.ClipByValue(0.1))
    plan = _plan.plan(rule._specs(), False)
    assert list(plan.sums) == [1]
    body = plan.body(("p", *plan.live))
    assert set(body.loads) == {"p", "g", "2.adamw.m", "2.adamw.v"}
    assert set(plan.sums[1].loads) == {"g"}, "the norm reads the gradient alone"
    kernel = numpy_kernel(body)
    assert len(kernel.registers) <= 3


def test_slots_that_are_not_used_are_not_allocated() -> None:
    for rule, slots in [
        (xopt.SGD(), []),
        (xopt.SGD(momentum=0.9), ["0.sgd.m"]),
        (xopt.Adam(), ["0.adam.m", "0.adam.v"]),
        (xopt.Adam(amsgrad=True), ["0.adam.m", "0.adam.v", "0.adam.top"]),
        (xopt.RMSProp(), ["0.rmsprop.v"]),
        (xopt.RMSProp(centered=True, momentum=0.5), ["0.rmsprop.v", "0.rmsprop.a", "0.rmsprop.m"]),
        (xopt.chain(xopt.ClipByNorm(1.0), xopt.SGD(momentum=0.9)), ["1.sgd.m"]),
    ]:
        assert list(rule.init(np.ones(3)).slots) == slots


class ClipByRunningNorm(Transform):
    """Clip to a multiple of the average norm so far: a sum, a host hook and a scalar that lives between steps."""

    factor: Hyper = hyper(default=1.5, gt=0)
    carry = {"average": 1.0}

    @staticmethod
    def reduce(h: H, xp: Any, p: Array, g: Array) -> dict[str, Array]:
        return {"total": abs2(xp, g)}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        norm = xp.sqrt(h.total)
        limit = h.factor * h.average
        scale = xp.where(norm > limit, limit / xp.maximum(norm, 1e-30), 1.0)
        return {"scale": scale, "average": 0.9 * h.average + 0.1 * norm * scale}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return h.scale * g


def test_carry(lib: Any, rng: np.random.Generator) -> None:
    """A rule of one's own with every hook, on every library, pure, jitted and in place."""
    rule = xopt.chain(ClipByRunningNorm(1.2), xopt.SGD(lr=0.1))
    start = {"a": rng.standard_normal((3, 2)), "b": rng.standard_normal(())}
    grads = [{k: rng.standard_normal(x.shape) * s for k, x in start.items()} for s in (0.3, 1, 3, 10)]
    want, average = {k: x.copy() for k, x in start.items()}, 1.0
    for g in grads:
        norm = float(np.sqrt(sum((x**2).sum() for x in g.values())))
        scale = min(1.0, 1.2 * average / norm)
        average = 0.9 * average + 0.1 * norm * scale
        want = {k: x - 0.1 * scale * g[k] for k, x in want.items()}
    send = lambda tree: {k: lib.array(x) for k, x in tree.items()}
    params = send(start)
    state = rule.init(params)
    apply = lib.module().jit(lambda p, g, s: rule.apply(p, g, s)) if lib.guise == "jit" else rule.apply
    for g in grads:
        params, state = apply(params, send(g), state)
    for k in want:
        np.testing.assert_allclose(lib.numpy(params[k]), want[k], rtol=1e-12)
    assert list(state.carry) == ["0.clipbyrunningnorm.average"]
    carried = state.carry["0.clipbyrunningnorm.average"]
    np.testing.assert_allclose(
        float(carried) if isinstance(carried, float) else lib.numpy(carried), average, rtol=1e-12
    )
    if lib.guise != "read-only":
        opt = xopt.Optimizer(send(start), rule)
        for g in grads:
            opt.step(send(g))
        for k in want:
            np.testing.assert_allclose(lib.numpy(opt.params[k]), want[k], rtol=1e-12)


def test_replay_is_the_plainest_interpreter() -> None:
    tape = Tracer()
    x = tape.load("x", "real")
    program = tape.finish({"y": xopt_like(tape, x)}, [])
    scalars = program.evaluate({})
    got = replay(program, np, {"x": np.asarray([1.0, -4.0])}, scalars)
    assert np.array_equal(got["y"], [2.0, 4.0])


def xopt_like(xp: Any, x: Any) -> Any:
    return xp.sqrt(xp.abs(x)) + xp.where(x < 0, 2.0 + 0 * x, 1.0)


def test_scalars_of_all_leaves_are_those_of_each_leaf_to_the_bit(rng: np.random.Generator) -> None:
    """NumPy's powers are not Python's in the last bit; a root of a negative number is an error either way."""
    tape, h = Tracer(), {n: TracedScalar(n) for n in ("lr_0", "b1_0", "b2_0", "t")}
    x = tape.load("p", "real")
    rate = h["lr_0"] * (1 - h["b2_0"] ** h["t"]) ** 0.5 / (1 - h["b1_0"] ** h["t"]) * 0.96 ** h["b1_0"]
    program = tape.finish({"p": tape.emit("multiply", x, rate)}, [*h])
    columns = [*rng.random((3, 500))]
    [found] = program.compute([*map(Value, columns), 7])
    assert type(found) is np.ndarray
    assert found.tolist() == [program.compute([*(float(x[k]) for x in columns), 7])[0] for k in range(500)]
    columns[1][3] = 1.5
    columns[2][3] = 1.5
    with pytest.raises(ValueError, match="a root or power of a negative number"):
        program.compute([*map(Value, columns), 7])
