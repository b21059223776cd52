"""Schedules beside those of torch, optax and Keras: their value at s updates made is ours at step s + 1."""

from __future__ import annotations

import importlib
import inspect
import math
import os
from typing import Any

import numpy as np
import pytest

from xopt import schedules as s


def torch_pairs() -> list[Any]:
    """Return (ours, how to make torch's, for how many steps, what it sets)."""
    lr = importlib.import_module("torch").optim.lr_scheduler
    a, n = 0.3, 60
    cycle = {"step_size_up": 4, "step_size_down": 3, "base_momentum": 0.8, "max_momentum": 0.9}
    one = {"max_lr": a, "total_steps": 40}
    later = lambda o, *made, at: lr.SequentialLR(o, [x(o) for x in made], at)
    return [
        (lambda t: a * 0.95 ** (t - 1), lambda o: lr.LambdaLR(o, lambda k: 0.95**k), n, "lr"),
        (
            lambda t: a * math.prod(1 - 0.01 * k for k in range(1, t)),
            lambda o: lr.MultiplicativeLR(o, lambda k: 1 - 0.01 * k),
            n,
            "lr",
        ),
        (s.step(a, every=3, factor=0.5), lambda o: lr.StepLR(o, 3, 0.5), n, "lr"),
        (s.multi_step(a, boundaries=[4, 9], factor=0.5), lambda o: lr.MultiStepLR(o, [4, 9], 0.5), n, "lr"),
        (s.piecewise([a / 3, a], [5]), lambda o: lr.ConstantLR(o, 1 / 3, 5), n, "lr"),
        (s.warmup(a, steps=5, start=a / 10), lambda o: lr.LinearLR(o, 0.1, 1.0, 5), n, "lr"),
        (s.polynomial(a, end=a / 10, steps=5), lambda o: lr.LinearLR(o, 1.0, 0.1, 5), n, "lr"),
        (s.exponential(a, rate=0.9), lambda o: lr.ExponentialLR(o, 0.9), n, "lr"),
        (s.polynomial(a, end=0.0, steps=10, power=2.0), lambda o: lr.PolynomialLR(o, 10, 2.0), n, "lr"),
        (s.cosine(a, steps=10, end=0.02), lambda o: lr.CosineAnnealingLR(o, 10, 0.02), 11, "lr"),
        (s.cyclic(a, peak=0.02, up=10, shape="cosine"), lambda o: lr.CosineAnnealingLR(o, 10, 0.02), n, "lr"),
        (
            s.cosine_restarts(a, steps=7, end=0.02),
            lambda o: lr.CosineAnnealingWarmRestarts(o, 7, eta_min=0.02),
            n,
            "lr",
        ),
        (
            s.cosine_restarts(a, steps=3, end=0.02, growth=2),
            lambda o: lr.CosineAnnealingWarmRestarts(o, 3, 2, eta_min=0.02),
            n,
            "lr",
        ),
        (s.cyclic(0.1, peak=0.5, up=4, down=3), lambda o: lr.CyclicLR(o, 0.1, 0.5, **cycle), n, "lr"),
        (s.cyclic(0.9, peak=0.8, up=4, down=3), lambda o: lr.CyclicLR(o, 0.1, 0.5, **cycle), n, "momentum"),
        (
            s.cyclic(0.1, peak=0.5, up=4, down=3, factor=0.5),
            lambda o: lr.CyclicLR(o, 0.1, 0.5, mode="triangular2", **cycle),
            n,
            "lr",
        ),
        (
            s.cyclic(0.9, peak=0.8, up=4, down=3, factor=0.5),
            lambda o: lr.CyclicLR(o, 0.1, 0.5, mode="triangular2", **cycle),
            n,
            "momentum",
        ),
        (
            s.cyclic(0.1, peak=0.5, up=4, down=3, rate=0.95),
            lambda o: lr.CyclicLR(o, 0.1, 0.5, mode="exp_range", gamma=0.95, **cycle),
            n,
            "lr",
        ),
        (
            0.1 + 0.4 * s.cyclic(0.0, peak=1.0, up=4, down=3) * (lambda t: 1 / (1 + (t - 1) // 7)),
            lambda o: lr.CyclicLR(o, 0.1, 0.5, scale_fn=lambda c: 1 / c, **cycle),
            n,
            "lr",
        ),
        (
            0.1 + 0.4 * s.cyclic(0.0, peak=1.0, up=4, down=3) * (lambda t: 1 / t),
            lambda o: lr.CyclicLR(o, 0.1, 0.5, scale_fn=lambda k: 1 / (k + 1), scale_mode="iterations", **cycle),
            n,
            "lr",
        ),
        (s.one_cycle(a, warmup=0.3 * 40 - 1, steps=39), lambda o: lr.OneCycleLR(o, **one), 40, "lr"),
        (
            s.one_cycle(0.85, warmup=11, steps=39, start=0.95, end=0.95),
            lambda o: lr.OneCycleLR(o, **one),
            40,
            "momentum",
        ),
        (
            s.one_cycle(a, warmup=0.26 * 40 - 1, steps=39, start=a / 10, end=a / 1e3, shape="linear"),
            lambda o: lr.OneCycleLR(
                o, **one, pct_start=0.26, anneal_strategy="linear", div_factor=10, final_div_factor=100
            ),
            40,
            "lr",
        ),
        (
            s.one_cycle(a, warmup=0.3 * 40 - 1, back=0.6 * 40 - 2, steps=39),
            lambda o: lr.OneCycleLR(o, **one, three_phase=True),
            40,
            "lr",
        ),
        (
            s.one_cycle(0.85, warmup=11, back=22, steps=39, start=0.95, end=0.95),
            lambda o: lr.OneCycleLR(o, **one, three_phase=True),
            40,
            "momentum",
        ),
        (
            s.join([s.piecewise([a / 2, a], [20]), s.exponential(a, rate=0.9), s.cosine(a, steps=40)], [6, 15]),
            lambda o: later(
                o,
                lambda o: lr.ConstantLR(o, 0.5, 20),
                lambda o: lr.ExponentialLR(o, 0.9),
                lambda o: lr.CosineAnnealingLR(o, 40),
                at=[6, 15],
            ),
            50,
            "lr",
        ),
        (
            s.piecewise([0.1, 1.0], [5]) * s.exponential(a, rate=0.9),
            lambda o: lr.ChainedScheduler([lr.ConstantLR(o, 0.1, 5), lr.ExponentialLR(o, 0.9)]),
            n,
            "lr",
        ),
        (
            s.staircase(s.exponential(a, rate=0.9, every=5), every=5),
            lambda o: lr.LambdaLR(o, lambda k: 0.9 ** (k // 5)),
            n,
            "lr",
        ),
    ]


@pytest.mark.needs("torch")
def test_against_torch() -> None:
    """Schedulers stepped on an optimizer. Most are recursive, and round at every step."""
    torch = pytest.importorskip("torch")
    pairs = torch_pairs()
    for ours, make, steps, sets in pairs:
        opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3, momentum=0.9)
        theirs = make(opt)
        for t in range(1, steps + 1):
            want = opt.param_groups[0][sets]
            np.testing.assert_allclose(ours(t), want, rtol=1e-12, atol=1e-16, err_msg=f"{ours!r} {sets} {t}")
            opt.step()
            theirs.step()
    made = {type(make(torch.optim.SGD([torch.zeros(1)], 0.3, momentum=0.9))).__name__ for _, make, *_ in pairs}
    known = {n for n, x in vars(torch.optim.lr_scheduler).items() if n.endswith("LR") or "Sched" in n or "Warm" in n}
    assert known - made <= {"LRScheduler", "_LRScheduler", "_SchedulePhase", "ReduceLROnPlateau"}, known - made


@pytest.mark.needs("jax")
def test_against_optax() -> None:
    """In float64: conftest.py sets JAX_ENABLE_X64."""
    optax, jax = pytest.importorskip("optax"), importlib.import_module("jax")
    o, a = optax.schedules, 0.3
    sgdr = [
        {"init_value": 0.0, "peak_value": a, "warmup_steps": 2, "decay_steps": 8, "end_value": 0.01},
        {"init_value": 0.01, "peak_value": a / 2, "warmup_steps": 3, "decay_steps": 16, "exponent": 1.5},
    ]
    pairs = [
        (s.constant(a), o.constant_schedule(a)),
        (s.exponential(a, rate=0.5, every=4), o.exponential_decay(a, 4, 0.5)),
        (s.step(a, every=3, factor=0.5), o.exponential_decay(a, 3, 0.5, staircase=True)),
        (
            s.clip(s.delay(s.exponential(a, rate=0.5, every=4), steps=6), low=0.02),
            o.exponential_decay(a, 4, 0.5, transition_begin=6, end_value=0.02),
        ),
        (
            s.clip(s.delay(s.step(a, every=4, factor=2.0), steps=6), high=2.0),
            o.exponential_decay(a, 4, 2.0, transition_begin=6, end_value=2.0, staircase=True),
        ),
        (s.polynomial(a, end=0.01, steps=10, power=2.5), o.polynomial_schedule(a, 0.01, 2.5, 10)),
        (s.delay(s.polynomial(a, end=0.01, steps=10), steps=4), o.polynomial_schedule(a, 0.01, 1, 10, 4)),
        (s.polynomial(a, end=0.01, steps=10), o.linear_schedule(a, 0.01, 10)),
        (s.delay(s.warmup(a, start=0.01, steps=10), steps=4), o.linear_schedule(0.01, a, 10, 4)),
        (s.piecewise([a, a / 2, a / 8], [4, 9]), o.piecewise_constant_schedule(a, {4: 0.5, 9: 0.25})),
        (
            s.piecewise([a, a / 2, a / 8], [4, 9], shape="linear"),
            o.piecewise_interpolate_schedule("linear", a, {4: 0.5, 9: 0.25}),
        ),
        (
            s.piecewise([a, a * 2, a / 2], [4, 9], shape="cosine"),
            o.piecewise_interpolate_schedule("cosine", a, {4: 2.0, 9: 0.25}),
        ),
        (s.cosine(a, steps=10, end=0.03), o.cosine_decay_schedule(a, 10, alpha=0.1)),
        (s.cosine(a, steps=10, end=0.03, power=1.5), o.cosine_decay_schedule(a, 10, alpha=0.1, exponent=1.5)),
        (s.one_cycle(a, warmup=6, steps=20), o.cosine_onecycle_schedule(20, a)),
        (
            s.one_cycle(a, warmup=6, back=17, steps=20, shape="linear"),
            o.linear_onecycle_schedule(20, a),
        ),
        (s.warmup(a, start=0.1, steps=5), o.warmup_constant_schedule(0.1, a, 5)),
        (
            s.warmup_cosine(a, warmup=5, steps=15, end=0.02, start=0.1),
            o.warmup_cosine_decay_schedule(0.1, a, 5, 15, 0.02),
        ),
        (
            s.warmup_cosine(a, warmup=5, steps=15, end=0.02, power=1.5),
            o.warmup_cosine_decay_schedule(0.0, a, 5, 15, 0.02, exponent=1.5),
        ),
        (
            s.join([s.warmup(a, start=0.1, steps=5), s.clip(s.exponential(a, rate=0.5, every=4), low=0.02)], [5]),
            o.warmup_exponential_decay_schedule(0.1, a, 5, 4, 0.5, end_value=0.02),
        ),
        (
            s.join(
                [
                    s.warmup_cosine(a, warmup=2, steps=8, end=0.01),
                    s.warmup_cosine(a / 2, warmup=3, steps=16, start=0.01, power=1.5),
                ],
                [8],
            ),
            o.sgdr_schedule(sgdr),
        ),
        (
            s.join([s.warmup(a, steps=4), s.cosine(a, steps=8)], [4]),
            o.join_schedules([o.linear_schedule(0.0, a, 4), o.cosine_decay_schedule(a, 8)], [4]),
        ),
    ]
    for ours, theirs in pairs:
        for k in range(40):
            want = theirs(jax.numpy.asarray(float(k)))
            np.testing.assert_allclose(ours(k + 1), want, rtol=1e-12, atol=1e-16, err_msg=f"{ours!r} {k}")
    tested = inspect.getsource(test_against_optax)
    for name in vars(o):
        if name.endswith(("_schedule", "_schedules", "_decay")) and callable(getattr(o, name)):
            assert f"o.{name}(" in tested, name


@pytest.mark.needs("jax")
def test_against_keras() -> None:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    k, a, floatx = keras.optimizers.schedules, 0.3, keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        pairs = [
            (s.exponential(a, rate=0.5, every=4), k.ExponentialDecay(a, 4, 0.5)),
            (s.step(a, every=4, factor=0.5), k.ExponentialDecay(a, 4, 0.5, staircase=True)),
            (s.piecewise([a, 0.1, 0.2], [4 + 1, 9 + 1]), k.PiecewiseConstantDecay([4, 9], [a, 0.1, 0.2])),
            (s.polynomial(a, end=0.01, steps=10, power=2.5), k.PolynomialDecay(a, 10, 0.01, 2.5)),
            (s.polynomial(a, end=0.01, steps=7, cycle=True), k.PolynomialDecay(a, 7, 0.01, cycle=True)),
            (s.inverse_time(a, rate=0.2, every=3), k.InverseTimeDecay(a, 3, 0.2)),
            (
                s.staircase(s.inverse_time(a, rate=0.2, every=3), every=3),
                k.InverseTimeDecay(a, 3, 0.2, staircase=True),
            ),
            (s.cosine(a, steps=10, end=0.03), k.CosineDecay(a, 10, alpha=0.1)),
            (
                s.warmup_cosine(a, start=0.1, warmup=5, steps=10 + 5, end=0.03),
                k.CosineDecay(0.1, 10, alpha=0.1, warmup_target=a, warmup_steps=5),
            ),
            (s.cosine_restarts(a, steps=7, end=0.03), k.CosineDecayRestarts(a, 7, 1.0, alpha=0.1)),
            (
                s.cosine_restarts(a, steps=5, end=0.03, growth=1.7, factor=0.5),
                k.CosineDecayRestarts(a, 5, 1.7, 0.5, alpha=0.1),
            ),
        ]
        for ours, theirs in pairs:
            for done in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14, 15, 21, 29):
                want = float(theirs(keras.ops.convert_to_tensor(done, "float64")))
                rtol = 1e-6 if "cosine" in ours.name else 1e-12  # keras.ops.cos of a float64 is a float32 here
                np.testing.assert_allclose(ours(done + 1), want, rtol, 1e-16, err_msg=f"{ours!r} {done}")
        assert {type(theirs).__name__ for _, theirs in pairs} == {
            n for n, x in vars(k).items() if isinstance(x, type) and n != "LearningRateSchedule"
        }
    finally:
        keras.config.set_floatx(floatx)
