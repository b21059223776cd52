"""The same numbers as torch, optax and Keras, live: float64, 20 steps, weight decay large enough to matter."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import catalog
import numpy as np
import pytest
from catalog import Peer
from catalog.base import torch
from conftest import walk

import xopt

STEPS = 20
SHAPES = [(), (1,), (0,), (0, 3), (4, 3), (2, 3, 4)]


def problem(
    rng: np.random.Generator, complex: bool = False, shapes: Sequence[tuple[int, ...]] = SHAPES
) -> tuple[list[Any], list[list[Any]]]:
    one = lambda s: rng.standard_normal(s) + (1j * rng.standard_normal(s) if complex else 0)
    draw = lambda scale: [np.asarray(one(s) * scale) for s in shapes]
    grads = [draw(scale) for scale in np.geomspace(0.01, 3, STEPS)]
    grads[3] = [np.zeros_like(g) for g in grads[3]]
    return draw(1.0), grads


def ours(rule: Any, params: Any, grads: list[Any]) -> Any:
    return walk(rule, params, grads)[0]


def run_torch(peer: Peer, params: list[Any], grads: list[list[Any]], module: str = "torch.optim") -> list[Any]:
    torch = pytest.importorskip("torch")
    theirs = [torch.tensor(p, requires_grad=True) for p in params]
    opt = peer.make(pytest.importorskip(module))(theirs)
    for g in grads:
        for p, x in zip(theirs, g, strict=True):
            p.grad = torch.tensor(x)
        opt.step()
    return [p.detach().numpy() for p in theirs]


def run_optax(peer: Peer, params: list[Any], grads: list[list[Any]]) -> list[Any]:
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    opt = peer.make(optax)
    theirs = [jax.numpy.asarray(p) for p in params]
    state, update = opt.init(theirs), jax.jit(opt.update)
    for g in grads:
        updates, state = update([jax.numpy.asarray(x) for x in g], state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    return theirs


def run_keras(peer: Peer, params: list[Any], grads: list[list[Any]]) -> list[Any]:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    opt = peer.make(keras.optimizers)
    theirs = [keras.Variable(p, dtype="float64") for p in params]
    for g in grads:
        opt.apply([keras.ops.convert_to_tensor(x, "float64") for x in g], theirs)
    return [np.asarray(p.value) for p in theirs]


def run_pytorch_optimizer(peer: Peer, params: list[Any], grads: list[list[Any]]) -> list[Any]:
    return run_torch(peer, params, grads, "pytorch_optimizer")


RUN = {
    "torch": ("torch", run_torch), "pytorch-optimizer": ("torch", run_pytorch_optimizer),
    "optax": ("jax", run_optax), "keras": ("jax", run_keras),
}  # fmt: skip
"""For each library of peers, which session has it, and how to run one of its optimizers."""


def named(peer: Peer) -> Any:
    """Name a peer for pytest, and say which session has its library."""
    rule = re.sub(r" at 0x\w+", "", repr(peer.rule))  # an address would be another name in every process
    return pytest.param(peer, id=f"{peer.library} {rule}", marks=pytest.mark.needs(RUN[peer.library][0]))


@pytest.mark.parametrize("peer", [named(peer) for peer in catalog.PEERS])
def test_peer(peer: Peer, rng: np.random.Generator, parity: Callable[..., None]) -> None:
    params, grads = problem(rng, peer.complex, peer.shapes or SHAPES)
    theirs, mine = RUN[peer.library][1](peer, params, grads), ours(peer.rule, params, grads)
    for a, b in zip(mine, theirs, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=peer.rtol, atol=1e-13)
    parity(peer.library, peer.rule, mine, theirs)


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
def test_torch_clip(rng: np.random.Generator, parity: Callable[..., None]) -> None:
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
        parity("torch", clip, got, [-p.grad.numpy() for p in theirs])


@pytest.mark.needs("torch")
@pytest.mark.parametrize("scale", ["original", "match_rms"])
def test_muon_of_torch_is_near(scale: Any, rng: np.random.Generator) -> None:
    """torch iterates in bfloat16, of 8 bits; five steps with slopes of 3.4 leave two digits of a step."""
    params, grads = problem(rng, shapes=[(4, 3), (3, 5), (6, 6), (0, 3)])
    rule = xopt.Muon(0.1, scale=scale, eps_mode="max", weight_decay=0.3)
    kwargs = {"lr": 0.1, "adjust_lr_fn": {"match_rms": "match_rms_adamw"}.get(scale, scale), "weight_decay": 0.3}
    theirs = run_torch(torch(rule, "Muon", **kwargs), params, grads)
    for p, x, y in zip(params, ours(rule, params, grads), theirs, strict=True):
        assert np.linalg.norm(x - y) <= 1e-2 * np.linalg.norm(x - p)


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
