"""LossScale: against float64 NumPy, torch's GradScaler, the same rule without it, and problems that need it."""

from __future__ import annotations

from typing import Any

import numpy as np
import optree
import pytest
from conftest import Lib, tree
from support.wrappers import MAP, RULES, leaves, same, send, slots

import xopt

SCALE = "lossscale.scale"
OPTIONS: list[dict[str, Any]] = [
    {"initial": 8.0, "growth": 4.0, "backoff": 0.25, "every": 2, "least": 0.5, "most": 32.0},
    {"every": 3},
    {"initial": 2.0**30, "growth": 1.0},
    {"initial": 0.25, "growth": 1.0, "backoff": 1.0},
    {"backoff": 1.0, "every": 2},
    {"initial": 3.0, "growth": 1.5, "backoff": 0.3, "every": 1, "most": 100.0},
]
BAD = [0, 3, 8, 9, 10, 11, 12, 13]
"""Of twenty gradients, those that are not finite."""


def small(rng: np.random.Generator, dtype: str = "float64") -> Any:
    """A few awkward leaves: each is a graph to compile, or to walk, of its own."""
    whole = tree(rng, dtype)
    return {n: whole[n] for n in ("tall", "one", "turned", "list")} if dtype == "float64" else {"one": whole["one"]}


def forms(lib: Lib) -> list[Any]:
    return [pure, in_place] if lib.guise != "read-only" and lib.name != "dask" else [pure]


def pure(lib: Lib, rule: Any, params: Any, grads: list[Any]) -> tuple[Any, Any, list[float]]:
    """Give each gradient multiplied by the scale; under jit where that is the guise. The scales are of before."""
    params = send(lib, params)
    state, scales, traced = rule.init(params), [], []

    def step(params: Any, grads: Any, state: Any) -> Any:
        traced.append(1)
        with np.errstate(invalid="ignore"):  # a complex infinity
            grads = MAP(lambda g: g * state.carry[SCALE], grads)
        return rule.apply(params, grads, state)

    take = lib.module().jit(step) if lib.guise == "jit" else step
    for g in grads:
        scales.append(float(state.carry[SCALE]))
        params, state = take(params, send(lib, g), state)
        params, made, carry = lib.settled(params, state.slots, state.carry)
        state = state._replace(slots=made, carry=carry)
    assert lib.guise != "jit" or len(traced) == 1
    return MAP(lib.numpy, params), state, scales


def in_place(lib: Lib, rule: Any, params: Any, grads: list[Any]) -> tuple[Any, Any, list[float]]:
    opt, scales = xopt.Optimizer(send(lib, params), rule), []
    for g in grads:
        scales.append(float(opt.loss_scale))
        with np.errstate(invalid="ignore"):
            scaled = MAP(lambda x: x * opt.loss_scale, send(lib, g))
        opt.step(scaled)
    if lib.name == "jax":
        assert opt._jitted._compiled._cache_size() == 1
    return MAP(lib.numpy, opt.params), opt.state, scales


def scales_of(bad: list[int], steps: int, **given: Any) -> list[float]:
    """The scale before each step, in plain Python."""
    o = {"initial": 2.0**16, "growth": 2.0, "backoff": 0.5, "every": 2000, "least": 1.0, "most": 2.0**24, **given}
    scale, good, found = o["initial"], 0, []
    for k in range(steps):
        found.append(scale)
        if k in bad:
            scale, good = scale if o["backoff"] == 1 else max(scale * o["backoff"], o["least"]), 0
        else:
            good += 1
            if good == o["every"]:
                scale, good = scale if o["growth"] == 1 else min(scale * o["growth"], o["most"]), 0
    return found


def adam(p: Any, grads: list[Any], bad: list[int]) -> Any:
    """Adam with a rate of 0.1/t, t counting the steps that are taken."""
    m, v, t = 0.0, 0.0, 0
    for k, g in enumerate(grads):
        if k not in bad:
            t, m, v = t + 1, 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * np.abs(g) ** 2
            p = p - 0.1 / t * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return p


@pytest.mark.parametrize(
    "given", [OPTIONS[0], *[pytest.param(given, marks=pytest.mark.options) for given in OPTIONS[1:]]], ids=repr
)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_oracle(lib: Lib, given: dict[str, Any], dtype: str, rng: np.random.Generator) -> None:
    params, grads = small(rng, dtype), [small(rng, dtype) for _ in range(20)]
    poisoned = [MAP(np.copy, g) for g in grads]
    for k in BAD:
        poisoned[k]["turned" if k % 2 and len(params) > 1 else "one"].flat[-1] = [np.nan, np.inf, -np.inf][k % 3]
    want = MAP(lambda p, *gs: adam(p, gs, BAD), params, *grads)
    rule = xopt.LossScale(xopt.Adam(lr=lambda t: 0.1 / t), **given)
    for form in forms(lib):
        got, state, scales = form(lib, rule, params, poisoned)
        assert scales == pytest.approx(scales_of(BAD, 20, **given), rel=1e-14)
        assert float(state.carry["lossscale.skipped"]) == len(BAD)
        assert int(state.step) == 20
        for x, y in zip(leaves(got), leaves(want), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-13)  # 1 - b**t of a step in an array


@pytest.mark.parametrize("field", ["initial", "growth", "backoff", "every", "least", "most"])
def test_every_option_matters(field: str) -> None:
    plain = {"initial": 4.0, "growth": 2.0, "backoff": 0.5, "every": 2, "least": 2.0, "most": 16.0}
    other = {"initial": 8.0, "growth": 4.0, "backoff": 0.25, "every": 3, "least": 1.0, "most": 32.0}
    grads = [np.asarray([np.inf if k in (1, 2, 3, 18) else 1.0]) for k in range(20)]
    a, b = (in_place(Lib("numpy", "plain"), xopt.LossScale(xopt.SGD(), **given), np.ones(1), grads)[2]
            for given in (plain, plain | {field: other[field]}))  # fmt: skip
    assert a != b


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: repr(rule)[:20])
def test_the_rule_does_not_notice(lib: Lib, rule: Any, rng: np.random.Generator) -> None:
    """Powers of two divide exactly, clips and norms see what is divided, and a step left out never was: same bits."""
    params, grads = small(rng), [small(rng) for _ in range(6)]
    broken = MAP(lambda g: g * np.inf, grads[0])
    state, want = rule.init(send(lib, params)), send(lib, params)
    for g in grads:
        want, state = rule.apply(want, send(lib, g), state)
        want, made = lib.settled(want, state.slots)
        state = state._replace(slots=made)
    for form in forms(lib):
        got, after, scales = form(
            lib, xopt.LossScale(rule, every=2), params, [broken, *grads[:3], broken, broken, *grads[3:]]
        )
        assert scales[0] != scales[-1]
        tol = 1e-12 if lib.name != "jax" else 1e-11  # a step number in an array takes another way to 1 - b**t
        same(lib, got, MAP(lib.numpy, want), tol)
        same(lib, slots(lib, after), slots(lib, state), tol)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
def test_what_is_left_of_half_precision_is_divided_in_float32(lib: Lib, dtype: str) -> None:
    """2**-24, the smallest of float16, by 2**16; times a rate of 2**38 that is 1/4. And nothing moves with NaN."""
    p = np.asarray([1.0, 2.0, 0.5], dtype if "complex" in dtype else "float32")
    g = np.asarray([2.0**-24, 0.0, -(2.0**-24)], p.dtype)
    rule = xopt.LossScale(xopt.SGD(lr=2.0**38))
    x = lib.array(p, dtype)
    state = rule.init(x)
    apply = lib.module().jit(rule.apply) if lib.guise == "jit" else rule.apply
    x, state = apply(x, lib.array(g, dtype), state)
    np.testing.assert_array_equal(lib.numpy(x), [0.75, 2.0, 0.75])
    for bad in (np.nan, np.inf, -np.inf):
        x, state = apply(x, lib.array(np.where([True, False, True], g, bad), dtype), state)
        np.testing.assert_array_equal(lib.numpy(x), [0.75, 2.0, 0.75])
    assert float(state.carry[SCALE]) == 2.0**13


def test_float16_learns_what_it_does_not_without(lib: Lib, rng: np.random.Generator) -> None:
    """The gradients of |w - goal|² / 2**28 are at most 1.5e-8, and 0 in float16."""
    if lib.guise == "read-only" or lib.name == "dask":
        pytest.skip("written in place; dask would compute all steps for each look")
    goal = rng.uniform(-1, 1, 50).astype(np.float16)
    moved = []
    for rule in (xopt.SGD(lr=2.0**26), xopt.LossScale(xopt.SGD(lr=2.0**26), every=5)):
        opt = xopt.Optimizer(lib.array(np.zeros(50), "float16"), rule)
        for _ in range(60):
            upstream = np.float16(float(opt.loss_scale) * 2.0**-27)  # the first step back
            with np.errstate(over="ignore", invalid="ignore"):
                opt.step(lib.array((lib.numpy(opt.params) - goal) * upstream))
        moved.append(lib.numpy(opt.params))
    assert not moved[0].any()
    np.testing.assert_allclose(moved[1], goal, atol=1e-3)  # half of a digit of float16 at 1, twice


@pytest.mark.needs("torch")
def test_a_network_in_float16_of_torch() -> None:
    torch = pytest.importorskip("torch")
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 4, generator=rng).half(), torch.randn(64, 1, generator=rng)
    found = []
    for rule in (xopt.Adam(lr=0.02, eps=1e-12), xopt.LossScale(xopt.Adam(lr=0.02, eps=1e-12), every=10)):
        weights = {"a": torch.randn(4, 32, generator=rng).half(), "b": 0.1 * torch.randn(32, 1, generator=rng).half()}
        for w in weights.values():
            w.requires_grad_()
        opt, losses = xopt.Optimizer(weights, rule), []
        for _ in range(100):
            error = (torch.relu(x @ weights["a"]) @ weights["b"]).float() - y
            losses.append((error**2).mean().item())
            grads = torch.autograd.grad(1e-7 * (error**2).mean() * opt.loss_scale, weights.values())
            opt.step(dict(zip(weights, grads, strict=True)))
        found.append(losses[-1] / losses[0])
    assert found[0] == 1
    assert found[1] < 0.5


@pytest.mark.needs("torch")
@pytest.mark.parametrize("runner", ["eager", "tiled"])
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_grad_scaler(name: str, runner: Any, rng: np.random.Generator) -> None:
    """The same scales, the same steps left out, the same parameters; 1e35 overflows by the scale alone."""
    torch = pytest.importorskip("torch")
    draws = [rng.standard_normal(6).astype(np.float32) for _ in range(40)]
    for k, bad in ((2, np.inf), (3, np.nan), (11, 1e35), (12, -np.inf), (30, 1e37), (31, 1e37), (32, 1e37)):
        draws[k][k % 6] = bad
    more = {"momentum": 0.9} if name == "SGD" else {}
    theirs = torch.ones(6, requires_grad=True)
    ours = torch.ones(6, requires_grad=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_factor=4.0, backoff_factor=0.25, growth_interval=3)
    peer = getattr(torch.optim, name)([theirs], lr=0.1, **more)
    rule = xopt.LossScale(
        getattr(xopt, name)(lr=0.1, like="torch", **more), 2.0**14, 4.0, 0.25, 3, least=2.0**-126, most=2.0**126
    )
    opt, skipped = xopt.Optimizer(ours, rule, runner=runner), 0
    for g in draws:
        assert float(opt.loss_scale) == scaler.get_scale()
        peer.zero_grad()
        scaler.scale((theirs * torch.from_numpy(g)).sum()).backward()
        scaler.step(peer)
        before = scaler.get_scale()
        scaler.update()
        skipped += scaler.get_scale() < before
        [grad] = torch.autograd.grad((ours * torch.from_numpy(g)).sum() * opt.loss_scale, [ours])
        opt.step(grad)
        assert float(opt.state.carry["lossscale.skipped"]) == skipped
        np.testing.assert_allclose(ours.detach(), theirs.detach(), rtol=1e-5, atol=1e-6)  # float32, 40 steps
    assert skipped >= 7
    if name == "Adam":
        assert peer.state[theirs]["step"] == len(draws) - skipped


@pytest.mark.needs("torch")
def test_nothing_is_read_back() -> None:
    torch = pytest.importorskip("torch")
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):  # type: ignore[misc]
        seen: list[str] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen.append(str(func))
            return func(*args, **(kwargs or {}))

    w = torch.ones(5, requires_grad=True)
    opt = xopt.Optimizer(w, xopt.Accumulate(xopt.LossScale(xopt.Adam(), every=1), every=2), runner="eager")
    with Watch() as watch:
        for factor in (1.0, 1.0, float("inf"), 1.0, 1.0, 1.0):
            [g] = torch.autograd.grad(factor * (w * w).sum() * opt.loss_scale, [w])
            opt.step(g)
    assert watch.seen
    assert not [n for n in watch.seen if "_local_scalar_dense" in n or "is_nonzero" in n or "equal" in n]
    assert tuple(opt.loss_scale.shape) == ()
    assert float(opt.loss_scale) == 2.0**17  # up, down, up


def test_one_counter() -> None:
    """A schedule is asked for the number of the step that is taken; rates of 1, 2 and 3 make 6."""
    opt = xopt.Optimizer(np.zeros(1), xopt.LossScale(xopt.SGD(lr=lambda t: 1.0 * t)))
    for g in (1.0, np.inf, 1.0, np.nan, np.nan, 1.0):
        opt.step(np.asarray([g]) * opt.loss_scale)
    assert opt.params == [-6.0]
    assert opt.state.step == 6
    assert opt.state.carry == {SCALE: 2.0**13, "lossscale.good": 1.0, "lossscale.skipped": 3.0}


@pytest.mark.parametrize("bad", [2, pytest.param(3, marks=pytest.mark.options)])
def test_around_accumulate_and_inside_of_it(lib: Lib, bad: int, rng: np.random.Generator) -> None:
    """Inside, the batches of the step are gone together and have one scale; outside, the one that is not finite."""
    params, grads = small(rng), [small(rng) for _ in range(8)]
    poisoned = [MAP(np.copy, g) for g in grads]
    poisoned[bad]["tall"][0, 0] = np.nan
    together = [g for k, g in enumerate(grads) if k // 2 != bad // 2]
    alone = [g for k, g in enumerate(grads) if k != bad]
    for form in forms(lib):
        for rule, kept, wanted in [
            (xopt.Accumulate(xopt.LossScale(RULES[1], every=1), every=2), together, 2),
            (xopt.LossScale(xopt.Accumulate(RULES[1], every=2), every=1), alone, 1),
        ]:
            got, state, scales = form(lib, rule, params, poisoned)
            assert float(state.carry["lossscale.skipped"]) == 1
            each = scales_of([bad // wanted], 8 // wanted, every=1)
            assert scales == [x for x in each for _ in range(wanted)]
            plain = xopt.Accumulate(RULES[1], every=2)
            want, own = send(lib, params), plain.init(send(lib, params))
            for g in kept:
                want, own = plain.apply(want, send(lib, g), own)
                want, made = lib.settled(want, own.slots)
                own = own._replace(slots=made)
            same(lib, got, MAP(lib.numpy, want), 1e-11)


def test_gradients_that_are_none(lib: Lib) -> None:
    rule = xopt.LossScale(xopt.SGD(lr=1.0), every=2)
    params = {"a": lib.array(np.ones(2)), "b": lib.array(np.ones(2))}
    state = rule.init(params)
    for a, b, scale in [(None, 0.5, 2.0**16), (0.5, None, 2.0**17), (None, np.inf, 2.0**16), (None, None, 2.0**16)]:
        grads = {n: None if g is None else lib.array(np.full(2, g * 2.0**16)) for n, g in (("a", a), ("b", b))}
        params, state = rule.apply(params, grads, state)
        assert float(state.carry[SCALE]) == scale
    np.testing.assert_array_equal(lib.numpy(params["a"]), [0.5, 0.5])
    np.testing.assert_array_equal(lib.numpy(params["b"]), [0.5, 0.5])
    assert float(state.carry["lossscale.good"]) == 1


def test_a_batch_without_any_gradient_counts_with_its_step_only(lib: Lib) -> None:
    """What is carried behind a component that holds the step back waits, also where no gradient is given at all."""
    rule = xopt.Accumulate(
        xopt.LossScale(xopt.chain(xopt.SGD(lr=1.0), xopt.ReduceOnPlateau(factor=0.5, patience=0)), every=2), every=2
    )
    w = lib.array(np.ones(2))
    state = rule.init(w)
    for k in range(4):
        w, state = rule.apply(w, None, state, value=1.0)
        assert float(state.carry["lossscale.good"]) == [0, 1, 1, 0][k]
        assert float(state.carry["1.reduceonplateau.scale"]) == [1, 1, 1, 0.5][k]


def test_groups_and_dtypes_together(lib: Lib, rng: np.random.Generator) -> None:
    """One scale for all: what overflows in one group holds the others back too, and a frozen one is not looked at."""
    rule = xopt.Groups(
        xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.SGD(lr=0.5)), ("head", xopt.Adam()), ("old", xopt.Freeze)
    )
    draw = lambda n, dtype: lib.array(rng.standard_normal(n), dtype)
    params = {"body": draw(4, "float32"), "head": draw(3, "float64"), "old": draw(2, "float64")}
    both = xopt.LossScale(rule, initial=4.0)
    grads = {n: lib.array(np.arange(1.0, 1 + len(lib.numpy(p))), str(p.dtype).rpartition(".")[2])
             for n, p in params.items()}  # fmt: skip
    four = MAP(lambda g: g * 4.0, grads)
    want, _ = rule.apply(params, grads, rule.init(params))
    state = both.init(params)
    for n, scale in (("body", 2.0), ("head", 1.0), ("old", 1.0)):
        now = {**four, n: four[n] * float("inf")}
        got, state = both.apply(params, now, state) if n != "old" else both.apply(params, now, both.init(params))
        for k in params:
            np.testing.assert_array_equal(lib.numpy(got[k]), lib.numpy((want if n == "old" else params)[k]))
        assert n == "old" or float(state.carry[SCALE]) == scale


@pytest.mark.parametrize("kept", [{"rounding": "kahan"}, {"master_weights": True}], ids=repr)
def test_with_precision(kept: dict[str, Any], rng: np.random.Generator) -> None:
    """Around it or inside of it: what rounding has lost, and the master copy, wait in a step that is left out."""
    p, grads = rng.standard_normal(9).astype(np.float16), [rng.standard_normal(9) / 64 for _ in range(5)]
    scaled = [(g * 2.0**8).astype(np.float16) for g in grads]
    rule = xopt.SGD(lr=0.01, momentum=0.9)
    plain = xopt.Precision(rule, **kept)
    want, own = p, plain.init(p)
    for g in scaled:
        want, own = plain.apply(want, (g.astype(np.float32) / 2**8).astype(np.float16), own)
    given = {"initial": 2.0**8, "backoff": 1.0}
    for both in (xopt.LossScale(plain, **given), xopt.Precision(xopt.LossScale(rule, **given), **kept)):
        got, state = p, both.init(p)
        for g in (scaled[0] * np.float16(np.inf), *scaled[:2], scaled[0] * np.float16(np.nan), *scaled[2:]):
            got, state = both.apply(got, g, state)
        np.testing.assert_array_equal(got, want)
        for n, x in own.slots.items():
            np.testing.assert_array_equal(state.slots[n], x)


def test_the_scale_is_saved(tmp_path: Any) -> None:
    make = lambda: xopt.Optimizer(np.ones(3), xopt.LossScale(xopt.Adam(0.1), every=3))
    opt, other = make(), make()
    for g in (1.0, np.inf, 1.0, 1.0):
        opt.step(np.full(3, g) * opt.loss_scale)
    opt.save(tmp_path / "run", fsync=False)
    other.load(tmp_path / "run")
    assert other.loss_scale == opt.loss_scale == 2.0**15
    opt.step(np.full(3, 2.0**15))
    other.step(np.full(3, 2.0**15))
    assert other.loss_scale == opt.loss_scale == 2.0**16
    np.testing.assert_array_equal(other.params, opt.params)


def test_it_is_one_of_the_rules() -> None:
    rule = xopt.LossScale(xopt.Accumulate(xopt.SGD(lr=0.1), every=2), every=5, least=2.0)
    opt = xopt.Optimizer(np.zeros(2), rule)
    opt.set(lr=0.5)
    assert opt.hyperparams()["lr"] == 0.5
    assert repr(opt.rule) == "LossScale(Accumulate(SGD(lr=0.5), every=2), every=5, least=2.0)"
    assert opt.rule == xopt.LossScale(xopt.Accumulate(xopt.SGD(lr=0.5), every=2), every=5, least=2.0)
    assert hash(opt.rule) != hash(rule)
    assert rule != xopt.LossScale(rule.rule, every=5)
    assert xopt.Optimizer(np.zeros(2), xopt.SGD()).loss_scale == 1.0
    assert "inverse_0" in xopt.explain(rule, np.zeros(3, np.float16))


def test_what_is_refused() -> None:
    rule, scaled = xopt.SGD(), xopt.LossScale(xopt.SGD())
    value = lambda x: (x @ x, 2 * x)
    for make, words in [
        (lambda: xopt.LossScale(rule, initial=0.0), "initial: 0.0 is out of range"),
        (lambda: xopt.LossScale(rule, initial=2.0**127), "initial: .* is out of range"),
        (lambda: xopt.LossScale(rule, initial=np.inf), "initial: inf, but it must be finite"),
        (lambda: xopt.LossScale(rule, initial=2.0**25), "initial=33554432.0 is not between least and most"),
        (lambda: xopt.LossScale(rule, initial=0.5), "initial=0.5 is not between"),
        (lambda: xopt.LossScale(rule, growth=0.5), "growth: 0.5 is out of range"),
        (lambda: xopt.LossScale(rule, backoff=0.0), "backoff: 0.0 is out of range"),
        (lambda: xopt.LossScale(rule, backoff=2.0), "backoff: 2.0 is out of range"),
        (lambda: xopt.LossScale(rule, every=0), "every: 0.0 is out of range"),
        (lambda: xopt.LossScale(rule, every=2**24 + 1), "every: .* is out of range"),
        (lambda: xopt.LossScale(rule, every=10.0), "every: 10.0, but it must be an int"),
        (lambda: xopt.LossScale(rule, least=0.0), "least: 0.0 is out of range"),
        (lambda: xopt.LossScale(rule, most=2.0**127), "most: .* is out of range"),
        (lambda: xopt.LossScale(rule, growth=1.0, every=10), "every does nothing with growth=1"),
        (lambda: xopt.LossScale(rule, growth=1.0, most=2.0**17), "most does nothing with growth=1"),
        (lambda: xopt.LossScale(rule, backoff=1.0, least=0.5), "least does nothing with backoff=1"),
        (lambda: xopt.LossScale(xopt.SGD), "make an object of it"),
        (lambda: xopt.LossScale(scaled), "there is one already inside"),
        (lambda: xopt.LossScale(xopt.Accumulate(scaled, 2)), "there is one already inside"),
        (lambda: xopt.LossScale(xopt.Guard(rule, "skip")), "LossScale: there is a Guard inside"),
        (lambda: xopt.LossScale(xopt.Accumulate(xopt.Guard(rule, "zero"), 2)), "LossScale: there is a Guard inside"),
        (lambda: xopt.Guard(scaled, "raise"), "Guard: there is a LossScale inside"),
        (lambda: xopt.Optimizer(np.zeros(1), scaled, on_nonfinite="skip"), "Guard: there is a LossScale inside"),
        (lambda: xopt.Guard(xopt.Precision(scaled, rounding="kahan"), "zero"), "Guard: there is a LossScale inside"),
        (lambda: xopt.Groups(rule, ("a", scaled)), "LossScale is for a whole tree"),
        (lambda: xopt.chain(xopt.ClipByNorm(1.0), scaled), "neither a transform, a rule nor a chain"),
        (lambda: xopt.minimize(value, np.ones(2), xopt.Accumulate(scaled, 2)), "minimize multiplies nothing"),
    ]:
        with pytest.raises((TypeError, ValueError), match=words):
            make()
    assert xopt.LossScale(xopt.Guard(rule, "propagate")) == xopt.LossScale(xopt.Guard(rule, "propagate"))


def test_the_scale_stops_where_it_is_told(lib: Lib) -> None:
    for form in forms(lib):
        for bad, given, end in [
            (range(40), {"initial": 4.0, "least": 3.0}, 3.0),
            ([], {"initial": 4.0, "every": 1, "most": 100.0}, 100.0),
        ]:
            grads = [np.asarray([np.nan if k in bad else 1.0]) for k in range(8)]
            _, state, scales = form(lib, xopt.LossScale(xopt.SGD(), **given), np.ones(1), grads)
            assert scales[-1] == float(state.carry[SCALE]) == end


def test_trees_in_and_out_are_the_same() -> None:
    params = {"a": [np.ones(2), (np.ones(3),)]}
    rule = xopt.LossScale(xopt.SGD())
    made, state = rule.apply(params, params, rule.init(params))
    assert optree.tree_structure(made) == optree.tree_structure(params)
    assert set(state.carry) == {SCALE, "lossscale.good", "lossscale.skipped"}
