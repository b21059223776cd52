"""Cautious and corrected weight decay beside torch, on every library, and at the edges; the rows have the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from catalog import DECAYS, ROWS, Row, fields
from conftest import Lib, walk
from support.oracles import assert_close, leaves, oracle, problem, run

import xopt

PEAK = 0.0625


def rate(t: int) -> float:
    """Rise to the peak, and fall."""
    return PEAK * min(t, 8 - t) / 4


def test_what_is_decayed() -> None:
    """Where the step goes to 0, across it or nowhere; not where it goes away. At 0 there is nothing to decay."""
    p, g = np.asarray([1.0, 1.0, 1.0, -1.0, -1.0, 0.0]), np.asarray([2.0, -2.0, 0.0, -2.0, 2.0, 2.0])
    rule = xopt.SGD(0.5, weight_decay=0.25, decay="cautious")
    np.testing.assert_array_equal(rule.apply(p, g, rule.init(p))[0], [-0.125, 2.0, 0.875, 0.125, -2.0, -1.0])
    z, gz = np.asarray([1.0 + 1.0j, 1.0 + 1.0j]), np.asarray([3.0 - 1.0j, 1.0 - 3.0j])
    whole, parts = (
        rule.replace(complex=kind).apply(z, gz, rule.replace(complex=kind).init(z))[0] for kind in ("modulus", "split")
    )
    np.testing.assert_array_equal(whole, z - 0.5 * gz - 0.125 * z * [1, 0])
    np.testing.assert_array_equal(parts, z - 0.5 * gz - 0.125 * np.asarray([1.0, 1.0]))


@pytest.mark.parametrize(("phase", "dtype"), [(1.0, "float32"), (0.6 + 0.8j, "complex64")])
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_products_do_not_underflow_or_overflow(size: float, phase: Any, dtype: str) -> None:
    p, g = (np.asarray(x, dtype) * np.asarray(size * phase, dtype) for x in ([1.0, -1.0], [1.0, 1.0]))
    rule = xopt.SGD(0.5, weight_decay=0.25, decay="cautious")
    got = rule.apply(p, g, rule.init(p))[0]
    np.testing.assert_allclose(got, size * phase * np.asarray([0.375, -1.5]), rtol=1e-6)


def test_phases_that_overflow_when_multiplied() -> None:
    """Products of parts were inf - inf, and nothing was decayed."""
    p, g = np.asarray([1e25 + 1e25j], "complex64"), np.asarray([1e25 - 0.5e25j], "complex64")
    rule = xopt.SGD(0.5, weight_decay=0.5, decay="cautious")
    np.testing.assert_allclose(rule.apply(p, g, rule.init(p))[0], p - 0.5 * g - 0.25 * p, rtol=1e-6)


def test_corrected_is_decoupled_at_the_peak(rng: np.random.Generator) -> None:
    p, grads = rng.standard_normal(9), [rng.standard_normal(9) for _ in range(4)]
    for row in ROWS:
        own = {**row.base, "lr": 0.125, "weight_decay": 0.25}
        lr = walk(row.rule(**own, decay="lr"), p, grads)[0]
        corrected = walk(row.rule(**own, decay="corrected", peak_lr=0.125), p, grads)[0]
        np.testing.assert_array_equal(lr, corrected)


def test_peak_lr_is_said_where_it_is_used() -> None:
    with pytest.raises(ValueError, match="Adam: decay='corrected' needs peak_lr, the largest learning rate"):
        xopt.Adam(weight_decay=0.1, decay="corrected")
    with pytest.raises(ValueError, match="Adam: decay='lr' has no use for peak_lr"):
        xopt.Adam(weight_decay=0.1, decay="lr", peak_lr=0.1)
    with pytest.raises(ValueError, match="Adam: decay='corrected' does nothing without weight_decay"):
        xopt.Adam(decay="corrected", peak_lr=0.1)
    opt = xopt.Optimizer(np.ones(2), xopt.SGD(0.5, weight_decay=0.5, decay="corrected", peak_lr=0.5))
    opt.set(peak_lr=2.0)
    np.testing.assert_array_equal(opt.step(np.zeros(2)), 1 - 0.5 * 0.5 * 0.5 / 2)


def test_layers_have_a_peak_of_their_own(rng: np.random.Generator) -> None:
    """A layer with half the rate decays half as fast at every step of the schedule, not a quarter."""
    p = {"first": rng.standard_normal(3), "last": rng.standard_normal(3)}
    g = {n: np.zeros(3) for n in p}
    rule = xopt.SGD(rate, weight_decay=0.5, decay="corrected", peak_lr=PEAK)
    got = walk(xopt.layerwise_decay(rule, ["first"], factor=0.5), p, [g, g, g])[0]
    share = {n: 1 - np.prod([1 - f * 0.5 * rate(t) ** 2 / PEAK for t in (1, 2, 3)]) for n, f in
             (("first", 0.5), ("last", 1.0))}  # fmt: skip
    for n in p:
        np.testing.assert_allclose(got[n], p[n] * (1 - share[n]), rtol=1e-14)
    still = walk(xopt.layerwise_decay(rule, ["first"], factor=0.0), p, [g, g, g])[0]
    np.testing.assert_array_equal(still["first"], p["first"])
    np.testing.assert_array_equal(still["last"], got["last"])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.rule.__name__)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_every_rule(row: Row, dtype: str, rng: np.random.Generator) -> None:
    params, grads = problem(rng, dtype, 5)
    for options in DECAYS:
        rule = row.make(lr=xopt.schedules.cosine(row.lr, steps=5, end=row.lr / 10), **options)
        got, _ = walk(rule, params, grads)
        assert_close(got, oracle(row, rule, params, grads), max(row.rtol, 1e-12), 1e-13)


EVERYWHERE = [
    (xopt.AdamW, {"decay": "cautious"}, "complex64"),
    (xopt.ScheduleFreeAdamW, {"decay": "cautious"}, "float32"),
    (xopt.NorMuon, {"decay": "cautious"}, "float32"),
    (xopt.ASGD, {"decay": "corrected", "peak_lr": 0.2}, "float32"),
]


@pytest.mark.parametrize(("rule", "options", "dtype"), EVERYWHERE, ids=lambda x: getattr(x, "__name__", str(x)))
def test_some_rules_everywhere(lib: Lib, rule: Any, options: Any, dtype: str, rng: np.random.Generator) -> None:
    [row] = [row for row in ROWS if row.rule is rule]
    params, grads = problem(rng, dtype, 4, lib)
    made = row.make(weight_decay=0.3, **options)
    got, _ = run(lib, made, params, grads)
    assert_close(got, oracle(row, made, params, grads), 2e-5, 2e-5)  # four steps of float32


BESIDE = [
    (xopt.AdamW(rate, weight_decay=0.0), "AdamW", {"weight_decay": 0.0}),
    (xopt.SGD(rate, momentum=0.9, nesterov=True), "SGD", {"momentum": 0.9, "nesterov": True}),
    (xopt.Adagrad(rate), "Adagrad", {}),
    (xopt.RMSProp(rate, centered=True, eps=1e-3), "RMSprop", {"centered": True, "eps": 1e-3}),
]


def beside(torch: Any, make: Any, params: Any, grads: Any, after: Any = None) -> Any:
    """Run an optimizer of torch by the schedule, and do something after each step."""
    tensors = [torch.tensor(p, requires_grad=True) for p in params]
    opt = make(tensors)
    for t, g in enumerate(grads, 1):
        for group in opt.param_groups:
            group["lr"] = rate(t)
        for p, x in zip(tensors, g, strict=True):
            p.grad = torch.tensor(x)
        before = [p.detach().clone() for p in tensors]
        opt.step()
        if after:
            with torch.no_grad():
                after(rate(t), tensors, before)
    return [p.detach().numpy() for p in tensors]


@pytest.mark.needs("torch")
@pytest.mark.parametrize(("rule", "name", "given"), BESIDE, ids=lambda x: x if isinstance(x, str) else "")
def test_cautious_beside_torch(rule: Any, name: str, given: Any, rng: np.random.Generator) -> None:
    """Algorithm 1 of Chen et al., around an optimizer of torch that does not decay: its step is η·u."""
    torch = pytest.importorskip("torch")
    params = [rng.standard_normal(s) for s in ((4, 3), (5,), ())]
    grads = [[rng.standard_normal(p.shape) for p in params] for _ in range(7)]

    def after(lr: float, new: Any, old: Any) -> None:
        for p, x in zip(new, old, strict=True):
            p -= lr * 0.5 * ((x - p) * x >= 0) * x

    theirs = beside(torch, lambda ps: getattr(torch.optim, name)(ps, lr=0.1, **given), params, grads, after)
    mine = walk(rule.replace(weight_decay=0.5, decay="cautious"), params, grads)[0]
    without = walk(rule.replace(weight_decay=0.5, decay="lr"), params, grads)[0]
    for x, y, z in zip(mine, theirs, without, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-13)
        assert x.ndim == 0 or not np.allclose(x, z, rtol=1e-3)


@pytest.mark.needs("torch")
def test_corrected_is_adamc_of_pytorch_optimizer(rng: np.random.Generator, parity: Any) -> None:
    torch, theirs = pytest.importorskip("torch"), pytest.importorskip("pytorch_optimizer")
    params = [rng.standard_normal(s) for s in ((4, 3), (5,))]
    grads = [[rng.standard_normal(p.shape) for p in params] for _ in range(7)]
    make = lambda ps: theirs.AdamC(
        [{"params": ps, "normalized": True}], lr=PEAK, weight_decay=0.5, weight_decouple=True, foreach=False
    )
    rule = xopt.AdamW(rate, eps_mode="hat", weight_decay=0.5, decay="corrected", peak_lr=PEAK)
    mine, others = walk(rule, params, grads)[0], beside(torch, make, params, grads)
    for x, y in zip(leaves(mine), others, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9)  # theirs adds 1e-15 inside of the root
    assert fields(rule)["decay"] == "corrected"
    parity("pytorch-optimizer", rule, mine, others)
