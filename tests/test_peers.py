"""The same numbers as torch and optax, live: float64, 20 steps, weight decay large enough to matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import walk

import xopt

STEPS = 20
SHAPES = [(), (1,), (0,), (0, 3), (4, 3), (2, 3, 4)]


def problem(rng: np.random.Generator) -> tuple[list[Any], list[list[Any]]]:
    draw = lambda scale: [np.asarray(rng.standard_normal(s) * scale) for s in SHAPES]
    grads = [draw(scale) for scale in np.geomspace(0.01, 3, STEPS)]
    grads[3] = [np.zeros_like(g) for g in grads[3]]
    return draw(1.0), grads


def ours(rule: Any, params: Any, grads: list[Any]) -> Any:
    return walk(rule, params, grads)[0]


TORCH: list[tuple[Any, str, dict[str, Any]]] = [
    (xopt.SGD(), "SGD", {}),
    (xopt.SGD(0.1, weight_decay=0.3), "SGD", {"lr": 0.1, "weight_decay": 0.3}),
    (xopt.SGD(0.1, 0.9, weight_decay=0.3), "SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3}),
    (xopt.SGD(0.1, 0.9, nesterov=True), "SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (xopt.SGD(0.1, 0.9, 0.4, maximize=True), "SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.4, "maximize": True}),
    (xopt.Adagrad(), "Adagrad", {}),
    (
        xopt.Adagrad(xopt.schedules.inverse_time(0.1, rate=0.2), initial=0.3, weight_decay=0.2),
        "Adagrad",
        {"lr": 0.1, "lr_decay": 0.2, "initial_accumulator_value": 0.3, "weight_decay": 0.2},
    ),
    (xopt.Adadelta(), "Adadelta", {}),
    (
        xopt.Adadelta(0.5, 0.8, 1e-4, weight_decay=0.2),
        "Adadelta",
        {"lr": 0.5, "rho": 0.8, "eps": 1e-4, "weight_decay": 0.2},
    ),
    (xopt.RMSProp(), "RMSprop", {}),
    (
        xopt.RMSProp(0.1, 0.9, 1e-3, weight_decay=0.2),
        "RMSprop",
        {"lr": 0.1, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.2},
    ),
    (xopt.RMSProp(0.1, momentum=0.9), "RMSprop", {"lr": 0.1, "momentum": 0.9}),
    (
        xopt.RMSProp(0.1, 0.9, 1e-3, 0.5, centered=True),
        "RMSprop",
        {"lr": 0.1, "alpha": 0.9, "eps": 1e-3, "momentum": 0.5, "centered": True},
    ),
    (xopt.Adam(), "Adam", {}),
    (
        xopt.Adam(0.1, 0.8, 0.95, 1e-4, weight_decay=0.3),
        "Adam",
        {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.3},
    ),
    (xopt.Adam(0.1, amsgrad=True, b2=0.9), "Adam", {"lr": 0.1, "amsgrad": True, "betas": (0.9, 0.9)}),
    (xopt.Adam(0.1, maximize=True), "Adam", {"lr": 0.1, "maximize": True}),
    (xopt.AdamW(), "AdamW", {}),
    (xopt.AdamW(0.1, weight_decay=0.5), "AdamW", {"lr": 0.1, "weight_decay": 0.5}),
    (
        xopt.AdamW(0.1, amsgrad=True, b2=0.9, weight_decay=0.5),
        "AdamW",
        {"lr": 0.1, "amsgrad": True, "betas": (0.9, 0.9), "weight_decay": 0.5},
    ),
]


TORCH += [
    (xopt.SGD(0.1, 0.9, 0.4), "SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.4}),
    (
        xopt.RMSProp(0.02, eps=1e-3, momentum=0.9, centered=True, weight_decay=0.3),
        "RMSprop",
        {"lr": 0.02, "eps": 1e-3, "momentum": 0.9, "centered": True, "weight_decay": 0.3},
    ),
    (
        xopt.Adam(0.05, weight_decay=0.3, decay="lr"),
        "Adam",
        {"lr": 0.05, "weight_decay": 0.3, "decoupled_weight_decay": True},
    ),
]


@pytest.mark.needs("torch")
@pytest.mark.parametrize(("rule", "name", "kwargs"), TORCH, ids=[repr(x[0]) for x in TORCH])
def test_torch(rule: Any, name: str, kwargs: dict[str, Any], rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    params, grads = problem(rng)
    theirs = [torch.tensor(p, requires_grad=True) for p in params]
    opt = getattr(torch.optim, name)(theirs, **kwargs)
    for g in grads:
        for p, x in zip(theirs, g, strict=True):
            p.grad = torch.tensor(x)
        opt.step()
    for a, b in zip(ours(rule, params, grads), theirs, strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-12, atol=1e-13)


TORCH_COMPLEX: list[tuple[Any, str, dict[str, Any]]] = [
    (xopt.SGD(0.1, 0.9, complex="split"), "SGD", {"lr": 0.1, "momentum": 0.9}),
    (xopt.Adagrad(0.1, complex="split"), "Adagrad", {"lr": 0.1}),
    (xopt.Adadelta(complex="split"), "Adadelta", {}),
    (xopt.RMSProp(0.02, complex="split"), "RMSprop", {"lr": 0.02}),
    (xopt.Adam(0.1, complex="split"), "Adam", {"lr": 0.1}),
    (xopt.AdamW(0.05, complex="split", amsgrad=True), "AdamW", {"lr": 0.05, "amsgrad": True}),
]


@pytest.mark.needs("torch")
@pytest.mark.parametrize(("rule", "name", "kwargs"), TORCH_COMPLEX, ids=[repr(x[0]) for x in TORCH_COMPLEX])
def test_torch_complex(rule: Any, name: str, kwargs: dict[str, Any], rng: np.random.Generator) -> None:
    """torch takes real and imaginary part as two parameters."""
    torch = pytest.importorskip("torch")
    draw = lambda: rng.standard_normal(7) + 1j * rng.standard_normal(7)
    params, grads = draw(), [draw() for _ in range(10)]
    theirs = torch.tensor(params, requires_grad=True)
    opt = getattr(torch.optim, name)([theirs], **kwargs)
    for g in grads:
        theirs.grad = torch.tensor(g)
        opt.step()
    np.testing.assert_allclose(ours(rule, params, grads), theirs.detach().numpy(), rtol=1e-12)


OPTAX: list[tuple[Any, Callable[[Any], Any]]] = [
    (xopt.SGD(0.1), lambda o: o.sgd(0.1)),
    (xopt.SGD(0.1, 0.9), lambda o: o.sgd(0.1, momentum=0.9)),
    (xopt.SGD(0.1, 0.9, nesterov=True), lambda o: o.sgd(0.1, momentum=0.9, nesterov=True)),
    (xopt.Adagrad(0.1, 1e-7, "inside", 0.1), lambda o: o.adagrad(0.1)),
    (xopt.Adadelta(0.5), lambda o: o.adadelta(0.5)),
    (xopt.RMSProp(0.1, 0.9, eps_mode="inside"), lambda o: o.rmsprop(0.1)),
    (xopt.RMSProp(0.1, 0.9), lambda o: o.rmsprop(0.1, eps_in_sqrt=False)),
    (
        xopt.RMSProp(0.1, 0.9, 1e-3, 0.5, True, eps_mode="inside", form="lr_inside", initial=0.2),
        lambda o: o.rmsprop(0.1, eps=1e-3, momentum=0.5, centered=True, initial_scale=0.2),
    ),
    (xopt.Adam(0.1), lambda o: o.adam(0.1)),
    (xopt.Adam(0.1, 0.9, 0.999, 1e-4, eps_mode="inside"), lambda o: o.adam(0.1, eps=0.0, eps_root=1e-4)),
    (xopt.AdamW(0.1, weight_decay=0.5), lambda o: o.adamw(0.1, weight_decay=0.5)),
    (
        xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.AdamW(xopt.schedules.cosine(0.1, steps=10), weight_decay=0.5)),
        lambda o: o.chain(o.clip_by_global_norm(1.0), o.adamw(o.cosine_decay_schedule(0.1, 10), weight_decay=0.5)),
    ),
    (xopt.chain(xopt.ClipByValue(0.5), xopt.SGD(0.1)), lambda o: o.chain(o.clip(0.5), o.sgd(0.1))),
]


OPTAX += [
    (xopt.SGD(0.05, 0.9, form="ema"), lambda o: o.chain(o.ema(0.9, debias=False), o.scale(-0.05))),
    (
        xopt.RMSProp(0.02, 0.9, eps_mode="inside", momentum=0.9, form="lr_inside"),
        lambda o: o.rmsprop(0.02, momentum=0.9),
    ),
    (xopt.RMSProp(0.02, 0.9, initial=1.0), lambda o: o.rmsprop(0.02, eps_in_sqrt=False, initial_scale=1.0)),
    (xopt.Adadelta(0.7, 0.5, 1e-3), lambda o: o.adadelta(0.7, rho=0.5, eps=1e-3)),
    (xopt.AdamW(0.05, weight_decay=1e-4), lambda o: o.adamw(0.05)),
    (xopt.Adam(0.05, weight_decay=0.3), lambda o: o.chain(o.add_decayed_weights(0.3), o.adam(0.05))),
    (
        xopt.SGD(0.05, 0.9, weight_decay=0.3),
        lambda o: o.chain(o.add_decayed_weights(0.3), o.sgd(0.05, momentum=0.9)),
    ),
    (
        xopt.SGD(0.05, 0.9, weight_decay=0.03, decay="independent"),
        lambda o: o.chain(o.sgd(0.05, momentum=0.9), o.add_decayed_weights(-0.03)),
    ),
    (
        xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.SGD(0.1)),
        lambda o: o.chain(o.clip_by_global_norm(1.0), o.sgd(0.1)),
    ),
    (xopt.SignSGD(0.05), lambda o: o.sign_sgd(0.05)),
    (xopt.Signum(0.05), lambda o: o.chain(o.ema(0.9, debias=False), o.sign_sgd(0.05))),
    (xopt.Lion(0.05, weight_decay=0.3), lambda o: o.lion(0.05, weight_decay=0.3)),
    (xopt.Lion(0.05, 0.5, 0.8), lambda o: o.lion(0.05, b1=0.5, b2=0.8, weight_decay=0.0)),
]


@pytest.mark.needs("jax")
@pytest.mark.parametrize(("rule", "make"), OPTAX, ids=[repr(x[0]) for x in OPTAX])
def test_optax(rule: Any, make: Any, rng: np.random.Generator) -> None:
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    params, grads = problem(rng)
    opt = make(optax)
    theirs = [jax.numpy.asarray(p) for p in params]
    state = opt.init(theirs)
    for g in grads:
        updates, state = opt.update([jax.numpy.asarray(x) for x in g], state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    for a, b in zip(ours(rule, params, grads), theirs, strict=True):
        assert b.dtype == "float64"
        # centered RMSProp divides by the root of a difference of averages, which magnifies the last bit
        np.testing.assert_allclose(
            a, b, rtol=1e-9 if "centered" in repr(rule) or ", True" in repr(rule) else 1e-12, atol=1e-13
        )


OPTAX_COMPLEX: list[tuple[Any, Callable[[Any], Any]]] = [
    (xopt.Adam(0.05), lambda o: o.adam(0.05)),
    (xopt.RMSProp(0.02, 0.9, eps_mode="inside"), lambda o: o.rmsprop(0.02)),
    (xopt.Adagrad(0.05, 1e-7, "inside", 0.1), lambda o: o.adagrad(0.05)),
    (xopt.Lion(0.05), lambda o: o.lion(0.05, weight_decay=0.0)),
    (xopt.Adam(0.05, complex="split"), lambda o: o.contrib.split_real_and_imaginary(o.adam(0.05))),
]


@pytest.mark.needs("jax")
@pytest.mark.parametrize(("rule", "make"), OPTAX_COMPLEX, ids=[repr(x[0]) for x in OPTAX_COMPLEX])
def test_optax_complex(rule: Any, make: Any, rng: np.random.Generator) -> None:
    """optax takes the squared modulus, or splits when it is told to."""
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    draw = lambda: rng.standard_normal(7) + 1j * rng.standard_normal(7)
    params, grads = draw(), [draw() for _ in range(10)]
    opt, theirs = make(optax), jax.numpy.asarray(params)
    state = opt.init(theirs)
    for g in grads:
        updates, state = opt.update(jax.numpy.asarray(g), state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    np.testing.assert_allclose(ours(rule, params, grads), theirs, rtol=1e-12)


@pytest.mark.needs("jax")
def test_amsgrad_is_not_that_of_optax() -> None:
    """torch, and xopt, keep the largest uncorrected v; optax the largest corrected one."""
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    grads = [np.asarray([g]) for g in (1.0, 0.1, 0.1, 2.0, 0.01)]
    np.testing.assert_allclose(ours(xopt.Adam(0.1, amsgrad=True), np.zeros(1), grads), -0.37644, atol=5e-6)
    opt, theirs = optax.amsgrad(0.1), jax.numpy.zeros(1)
    state = opt.init(theirs)
    for g in grads:
        updates, state = opt.update(jax.numpy.asarray(g), state)
        theirs = optax.apply_updates(theirs, updates)
    np.testing.assert_allclose(theirs, -0.32185, atol=1e-5)


@pytest.mark.needs("torch")
def test_torch_clip(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    grads = [rng.standard_normal((3, 2)), rng.standard_normal(4)]
    params = [np.zeros((3, 2)), np.zeros(4)]
    for clip, call in [
        (xopt.ClipByGlobalNorm(0.5), lambda p: torch.nn.utils.clip_grad_norm_(p, 0.5)),
        (xopt.ClipByNorm(0.5), lambda p: [torch.nn.utils.clip_grad_norm_([x], 0.5) for x in p]),
        (xopt.ClipByValue(0.5), lambda p: torch.nn.utils.clip_grad_value_(p, 0.5)),
    ]:
        theirs = [torch.zeros(g.shape, dtype=torch.float64, requires_grad=True) for g in grads]
        for p, g in zip(theirs, grads, strict=True):
            p.grad = torch.tensor(g)
        call(theirs)
        got = ours(xopt.chain(clip, xopt.SGD(1.0)), params, [grads])
        for a, p in zip(got, theirs, strict=True):
            np.testing.assert_allclose(-a, p.grad.numpy(), rtol=3e-6)  # torch divides by the norm + 1e-6


def test_weight_decay_is_not_lost_in_float32() -> None:
    """lr·wd = 1e-8: multiplying p by 1 - 1e-8 in float32 does nothing; adding the decay to the step does."""
    p = np.asarray([0.25], "float32")
    g = np.asarray([1.0], "float32")
    rule = xopt.AdamW(lr=1e-6, weight_decay=1e-2, eps=0.0)
    p64 = p.astype("float64")
    state, state64 = rule.init(p), rule.init(p64)
    for _ in range(1000):
        u, state = rule.updates(p, g, state)
        u64, state64 = rule.updates(p64, g.astype("float64"), state64)
        # 1,000 roundings of the moments; if the decay were lost the difference would be 2.5e-3
        assert abs(float(u[0]) - float(u64[0])) <= 1e-5 * abs(float(u64[0]))
