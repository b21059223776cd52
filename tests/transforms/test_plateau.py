"""ReduceOnPlateau: by hand, and beside those of torch and optax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import catalog
import numpy as np
import pytest
from conftest import Lib
from support.links import SGD

import xopt


def plateau(losses: list[Any], **options: Any) -> list[float]:
    """Return the scale of every step."""
    opt = xopt.Optimizer(np.zeros(1), xopt.chain(xopt.SGD(lr=1.0), xopt.ReduceOnPlateau(**options)))
    return np.diff([0.0, *(-opt.step(np.ones(1), value=x).item() for x in losses)]).tolist()


LOSSES = [
    5.0,
    4.0,
    4.0,
    3.99,
    3.99,
    4.1,
    3.0,
    3.0,
    2.9999,
    3.5,
    3.5,
    3.5,
    1.0,
    1.0,
    1.0,
    float("nan"),
    1.0,
    0.5,
    0.5,
    0.5,
]
PLATEAUS: list[dict[str, Any]] = [
    {"patience": 1},
    {"patience": 0, "factor": 0.5},
    {"patience": 2, "factor": 0.5, "cooldown": 2},
    {"patience": 1, "factor": 0.5, "threshold": 0.3, "threshold_mode": "abs"},
    {"patience": 1, "factor": 0.5, "threshold": 0.3},
    {"patience": 0, "factor": 0.5, "min_scale": 0.2},
    {"patience": 1, "factor": 0.5, "mode": "max"},
    {"patience": 1, "factor": 0.5, "mode": "max", "threshold": 0.5, "threshold_mode": "abs"},
]


@pytest.mark.parametrize("options", PLATEAUS, ids=str)
def test_plateau(options: dict[str, Any]) -> None:
    """What the documentation says, one loss after the other."""
    h = catalog.fields(xopt.ReduceOnPlateau(**options))
    sign = 1 if h["mode"] == "min" else -1
    best, bad, cooling, scale, want = sign * np.inf, 0, 0, 1.0, []
    for loss in LOSSES:
        margin = h["threshold"] * (abs(best) if h["threshold_mode"] == "rel" else 1)
        if not np.isfinite(best) or sign * loss < sign * best - margin:
            best, bad = loss, 0
        else:
            bad += 1
        if cooling:
            cooling, bad = cooling - 1, 0
        if bad > h["patience"]:
            scale, cooling, bad = max(scale * h["factor"], h["min_scale"]), h["cooldown"], 0
        want.append(scale)
    np.testing.assert_allclose(plateau(LOSSES, **options), want, rtol=1e-9)
    assert len(set(want)) > 1


@pytest.mark.needs("torch")
@pytest.mark.parametrize("options", PLATEAUS, ids=str)
def test_plateau_is_that_of_torch(options: dict[str, Any], parity: Callable[..., None]) -> None:
    torch = pytest.importorskip("torch")
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = dict(options)
    floor = theirs.pop("min_scale", 0.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, min_lr=floor, eps=0.0, **theirs)
    want = []
    for loss in LOSSES:
        scheduler.step(loss)
        want.append(opt.param_groups[0]["lr"])
    got = plateau(LOSSES, **options)
    np.testing.assert_allclose(got, want, rtol=1e-9)
    parity("torch", xopt.ReduceOnPlateau(), [got], [want])
    assert len(set(want)) > 1


@pytest.mark.needs("jax")
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("options", [x for x in PLATEAUS if "mode" not in x], ids=str)
def test_plateau_is_that_of_optax(options: dict[str, Any], size: int, parity: Callable[..., None]) -> None:
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    theirs = dict(options)
    absolute, threshold = theirs.pop("threshold_mode", "rel") == "abs", theirs.pop("threshold", 1e-4)
    theirs |= {"atol": threshold, "rtol": 0.0} if absolute else {"rtol": threshold}
    theirs["patience"] += 1
    opt = optax.contrib.reduce_on_plateau(**{"factor": 0.1, **theirs}, accumulation_size=size)
    state, want, update = opt.init(jax.numpy.zeros(1)), list[float](), jax.jit(opt.update)
    for loss in LOSSES:
        updates, state = update(jax.numpy.ones(1), state, value=loss)
        want.append(float(updates[0]))
    got = plateau(LOSSES, **options, accumulation_size=size)
    np.testing.assert_allclose(got, want, rtol=1e-9)
    parity("optax", xopt.ReduceOnPlateau(), [got], [want])


def test_every_option_of_a_plateau_matters() -> None:
    base = {"patience": 0, "factor": 0.5}
    sets = [{}, {"factor": 0.1}, {"patience": 1}, {"threshold": 0.3}, {"threshold": 0.3, "threshold_mode": "abs"}]
    sets += [{"cooldown": 2}, {"min_scale": 0.2}, {"mode": "max"}, {"accumulation_size": 2}]
    assert {n for x in sets for n in x} == set(xopt.ReduceOnPlateau._fields)
    found = [tuple(plateau(LOSSES, **{**base, **x})) for x in sets]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    "options",
    [{"factor": 1.0}, {"patience": -1}, {"patience": 0.5}, {"threshold": -1.0}, {"threshold_mode": "log"},
     {"cooldown": -1}, {"min_scale": 2.0}, {"mode": "mean"}, {"accumulation_size": 0}],
    ids=str,
)  # fmt: skip
def test_options_that_a_plateau_refuses(options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match="ReduceOnPlateau"):
        xopt.ReduceOnPlateau(**options)


def test_plateau_on_every_library(lib: Lib) -> None:
    """The loss is an array of the library, and stays there; a jitted step is traced once."""
    rule = xopt.chain(xopt.SGD(lr=1.0), xopt.ReduceOnPlateau(patience=1, factor=0.5, cooldown=1))
    want = np.cumsum(plateau(LOSSES, patience=1, factor=0.5, cooldown=1))
    p, g = lib.array(np.zeros(3)), lib.array(np.ones(3))
    state, traced = rule.init(p), []
    step = lambda p, state, value: traced.append(1) or rule.apply(p, g, state, value=value)
    if lib.guise == "jit":
        step = lib.module().jit(step)
    for loss, y in zip(LOSSES, want, strict=True):
        p, state = step(p, state, lib.array(np.asarray(loss)))
        np.testing.assert_allclose(lib.numpy(p), -y, rtol=1e-12)
    assert lib.guise != "jit" or len(traced) == 1
    if lib.guise != "read-only":
        opt = xopt.Optimizer(lib.array(np.zeros(3)), rule)
        for loss in LOSSES:
            opt.step(lib.array(np.ones(3)), value=lib.array(np.asarray(loss)))
        np.testing.assert_allclose(lib.numpy(opt.params), -want[-1], rtol=1e-12)


def test_plateau_without_a_loss() -> None:
    opt = xopt.Optimizer(np.ones(3), xopt.chain(SGD, xopt.ReduceOnPlateau()))
    with pytest.raises(TypeError, match="value: missing, but a component of this rule needs it"):
        opt.step(np.ones(3))
