"""Every cell of the table of presets, against the library that it is about."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import walk

import xopt
from xopt.rule._presets import PRESETS, REQUIRED

RATE = 0.0625
"""A rate that is a float32: Keras keeps it as one."""
NEEDS = {"torch": "torch", "optax": "jax", "keras": "jax", "thinc": "jax", "sklearn": "numpy", "autograd": "jax"}
"""Which session has a library. The others cannot be installed beside the rest: their cells come from their sources."""

Params = list[Any]


def cells() -> list[Any]:
    found = []
    for like, rules in PRESETS.items():
        if like in NEEDS:
            mark = [pytest.mark.needs(NEEDS[like])] if NEEDS[like] != "numpy" else []
            found += [pytest.param(like, name, id=f"{like}-{name}", marks=mark) for name in rules]
    return found


def problem(rng: np.random.Generator) -> tuple[Params, list[Params]]:
    draw = lambda scale: [rng.standard_normal((3, 2)) * scale, rng.standard_normal(5) * scale]
    return draw(1.0), [draw(scale) for scale in np.geomspace(0.01, 3, 20)]


def call(like: str, name: str) -> str:
    return PRESETS[like][name].call.partition("(")[0]


def found(path: str) -> Any:
    """Import ``module.and.name``."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError:
        return getattr(found(module), name)


def run_torch(make: Callable[..., Any], params: Params, grads: list[Params]) -> Params:
    torch = importlib.import_module("torch")
    theirs = [torch.tensor(p, requires_grad=True) for p in params]
    opt = make(theirs, lr=RATE)
    for g in grads:
        for p, x in zip(theirs, g, strict=True):
            p.grad = torch.tensor(x)
        opt.step()
    return [p.detach().numpy() for p in theirs]


def run_optax(make: Callable[..., Any], params: Params, grads: list[Params]) -> Params:
    optax, jnp = importlib.import_module("optax"), importlib.import_module("jax.numpy")
    more = {"hessian_diagonal_fn": optax.set_to_zero()} if make is optax.contrib.sophia else {}  # see test_curvature.py
    opt, theirs = make(RATE, **more), [jnp.asarray(p) for p in params]
    state = opt.init(theirs)
    for g in grads:
        updates, state = opt.update([jnp.asarray(x) for x in g], state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    return theirs


def run_keras(make: Callable[..., Any], params: Params, grads: list[Params]) -> Params:
    keras = importlib.import_module("keras")
    opt, theirs = make(learning_rate=RATE), [keras.Variable(p, dtype="float64") for p in params]
    for g in grads:
        opt.apply([keras.ops.convert_to_tensor(x, "float64") for x in g], theirs)
    return [np.asarray(p.value) for p in theirs]


def run_thinc(make: Callable[..., Any], params: Params, grads: list[Params]) -> Params:
    opt = make(RATE, grad_clip=0.0, use_averages=False, L2=0.0)  # these three are other components here
    theirs = [p.astype("float32") for p in params]
    for g in grads:
        for k, x in enumerate(g):
            theirs[k], _ = opt((k, ""), theirs[k], x.astype("float32"))
        opt.step_schedules()
    return theirs


def run_sklearn(solver: str, params: Params, grads: list[Params]) -> Params:
    optimizers = importlib.import_module("sklearn.neural_network._stochastic_optimizers")
    defaults = inspect.signature(importlib.import_module("sklearn.neural_network").MLPClassifier).parameters
    take = lambda *names: {n: defaults[n].default for n in names}
    theirs = [p.copy() for p in params]
    if solver == "SGD":
        names = {"momentum": defaults["momentum"].default, "nesterov": defaults["nesterovs_momentum"].default}
        opt = optimizers.SGDOptimizer(theirs, RATE, **names)
    else:
        opt = optimizers.AdamOptimizer(theirs, RATE, **take("beta_1", "beta_2", "epsilon"))
    for g in grads:
        opt.update_params(theirs, g)
    return theirs


def run_autograd(make: Callable[..., Any], params: Params, grads: list[Params]) -> Params:
    [flat], gs = [np.concatenate([x.ravel() for x in params])], [np.concatenate([x.ravel() for x in g]) for g in grads]
    end = make(lambda x, i: gs[i], flat, num_iters=len(gs), step_size=RATE)
    return [end[:6].reshape(3, 2), end[6:]]


RUN: dict[str, Callable[..., Params]] = {
    "torch": run_torch, "optax": run_optax, "keras": run_keras, "thinc": run_thinc, "autograd": run_autograd,
}  # fmt: skip
RATES = {
    "torch": "lr",
    "optax": "learning_rate",
    "keras": "learning_rate",
    "thinc": "learn_rate",
    "autograd": "step_size",
}
TOLERANCE = {
    "thinc": 2e-5, ("torch", "NAdam"): 1e-6, ("torch", "ASGD"): 1e-6, ("torch", "Muon"): 2e-2,
    ("optax", "Adafactor"): 1e-5, ("keras", "Adafactor"): 1e-5, ("keras", "Muon"): 1e-5,
}  # fmt: skip
"""Thinc is float32; torch keeps products of its schedules as float32 tensors, and iterates in bfloat16; Adafactors have
means of float32, Keras' Muon a norm."""


@pytest.mark.parametrize(("like", "name"), cells())
def test_cell(like: str, name: str, rng: np.random.Generator, parity: Callable[..., None]) -> None:
    if like == "keras":
        os.environ.setdefault("KERAS_BACKEND", "jax")
    module = {"sklearn": "sklearn", "optax": "optax"}.get(like, like)
    pytest.importorskip(module)
    params, grads = problem(rng)
    if name == "Muon":  # it is for matrices alone
        params, grads = params[:1], [g[:1] for g in grads]
    make: Any = name if like == "sklearn" else found(call(like, name))
    theirs = run_sklearn(make, params, grads) if like == "sklearn" else RUN[like](make, params, grads)
    rule = getattr(xopt, name)(lr=RATE, like=like)
    mine = walk(rule, params, grads)[0]
    rtol = TOLERANCE.get((like, name), TOLERANCE.get(like, 1e-12))
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())
    parity(like, rule, mine, theirs, kind="like")


@pytest.mark.parametrize(("like", "name"), cells())
def test_default_rate(like: str, name: str) -> None:
    if like == "keras":
        os.environ.setdefault("KERAS_BACKEND", "jax")
    pytest.importorskip(like)
    if like == "sklearn":
        default = inspect.signature(importlib.import_module("sklearn.neural_network").MLPClassifier).parameters
        theirs = default["learning_rate_init"].default
    else:
        make = found(call(like, name))
        if like == "autograd":  # behind a decorator that hides the signature
            make = next(c.cell_contents for c in make.__closure__ if callable(c.cell_contents))
        theirs = inspect.signature(make).parameters[RATES.get(like, "learning_rate")].default
    if theirs in (inspect.Parameter.empty, None):  # None: optax.adadelta then climbs
        with pytest.raises(TypeError, match=f"{name} needs lr: .* has no default"):
            getattr(xopt, name)(like=like)
    else:
        assert getattr(xopt, name)(like=like).lr == theirs


def test_presets_name_rules_and_fields() -> None:
    for rules in PRESETS.values():
        for name, preset in rules.items():
            rule = getattr(xopt, name)
            needed = {n: 0.5 for n, value in preset.fields.items() if value is REQUIRED}
            given = {n: v for n, v in preset.fields.items() if v is not REQUIRED}
            if "weight_decay" not in given:
                given.pop("decay", None)
            if given.get("momentum") is None and "momentum" in rule._fields:
                given.pop("form", None)
            rule(**needed, **given)  # each value is one that the field takes


def test_what_is_given_counts_and_replace_keeps_like() -> None:
    rule = xopt.Adam(lr=0.1, like="keras")
    assert (rule.lr, rule.eps, rule.eps_mode, rule.b1) == (0.1, 1e-7, "hat", 0.9)
    assert xopt.Adam(eps=1e-3, like="keras").eps == 1e-3
    assert rule.replace(lr=0.2) == xopt.Adam(lr=0.2, like="keras")
    assert repr(rule) == "Adam(lr=0.1, like='keras')"
    opt = xopt.Optimizer(np.zeros(2), rule)
    opt.set(lr=0.5)
    assert opt.rule == xopt.Adam(lr=0.5, like="keras")


def test_decay_of_keras_is_decoupled(rng: np.random.Generator) -> None:
    p, g = rng.standard_normal(5), rng.standard_normal(5)
    keras = walk(xopt.SGD(0.1, weight_decay=0.5, like="keras"), p, [g])[0]
    np.testing.assert_allclose(keras, p - 0.1 * g - 0.1 * 0.5 * p, rtol=1e-14)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Adagrad.like: 'thinc', but that has no Adagrad here; there are SGD, Adam"):
        xopt.Adagrad(like="thinc")  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"Adam.like: 'theano', but it must be one of 'torch'"):
        xopt.Adam(like="theano")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"Adam needs lr: optax.adam has no default"):
        xopt.Adam(like="optax")
