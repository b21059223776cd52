"""Components of whole arrays against their oracles, on every library and in every dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from catalog.transforms_array import TRANSFORMS
from conftest import Lib
from support.oracles import assert_close, leaves, problem, run

import xopt

LR = 0.1


@pytest.mark.parametrize("dtype", ["float64", "float32", "complex128"])
@pytest.mark.parametrize(("transform", "reference"), TRANSFORMS, ids=lambda x: getattr(x, "__name__", repr(x)))
def test_transforms(lib: Lib, transform: Any, reference: Any, dtype: str, rng: np.random.Generator) -> None:
    params, grads = problem(rng, dtype, 6, lib)
    got, _ = run(lib, xopt.chain(transform, xopt.SGD(LR)), params, grads)
    h = {n: getattr(transform, n) for n in type(transform)._fields}
    kind, changed, want = "complex128" if "c" in dtype else "float64", 0, []
    for k, p in enumerate(leaves(params)):
        p = p.astype(kind)
        for t, g in enumerate(grads, 1):
            g = leaves(g)[k].astype(kind)
            new = reference(p, g, t, **h)
            changed += not np.allclose(g, new)
            p = p - LR * new
        want.append(p)
    assert changed > (5 if lib.name in ("jax", "dask") else 10)  # they have half of the leaves
    tol = 2e-6 if dtype == "float32" else 1e-13
    assert_close(got, want, rtol=tol, atol=tol)


@pytest.mark.parametrize("transform", [x for x, _ in TRANSFORMS], ids=repr)
def test_a_nan_stays_in_its_unit(transform: Any) -> None:
    p, g = np.ones((3, 4)), np.ones((3, 4))
    g[1, 2] = np.nan
    rule = xopt.chain(transform, xopt.SGD(1.0))
    bad = np.isnan(rule.updates(p, g, rule.init(p))[0])
    assert bad.all(axis=1).tolist() == [False, True, False] or bad.all(axis=0).tolist() == [False, False, True, False]
    assert bad.sum() in (3, 4)


def noise(lib: Lib, rule: Any, params: Any, steps: int) -> list[Any]:
    """Return what a rule adds to gradients of 0, step by step."""
    params = [lib.array(x) for x in params]
    state, found = rule.init(params), []
    step = lib.module().jit(rule.updates) if lib.guise == "jit" else rule.updates
    for _ in range(steps):
        change, state = step(params, [lib.array(np.zeros_like(lib.numpy(x))) for x in params], state)
        found.append([lib.numpy(x) for x in change])
    return found


def test_noise_is_the_same_on_every_library(lib: Lib) -> None:
    """Every element of every array in every step has a number of its own, whatever the library."""
    params = [np.ones(50), np.ones((5, 10)), np.ones(()), np.ones((0, 2)), np.ones(50, complex)]
    rule = xopt.chain(xopt.AddNoise(0.5, 0.3, seed=7), xopt.SGD(1.0, maximize=True))
    found = noise(lib, rule, params, 3)
    want = noise(Lib("numpy", "plain"), rule, params, 3)
    for got, wanted in zip(found, want, strict=True):
        for x, y in zip(got, wanted, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14)
    parts = [part.ravel() for step in found for x in step for part in (x.real, x.imag) if np.any(part)]
    every = np.concatenate(parts)
    assert len(np.unique(every)) == len(every) == 3 * (50 + 50 + 1 + 2 * 50)
    other = noise(lib, xopt.chain(xopt.AddNoise(0.5, 0.3, seed=8), xopt.SGD(1.0, maximize=True)), params, 1)
    assert not np.any(other[0][0] == found[0][0])


@pytest.mark.parametrize("mode", ["modulus", "split"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_noise_is_normal(dtype: str, mode: Any) -> None:
    """Moments of 100,000 numbers, within 5 standard errors, at the variance of Neelakantan et al., equation 1."""
    n, eta, gamma = 100_000, 0.5, 0.7
    rule = xopt.chain(xopt.AddNoise(eta, gamma), xopt.SGD(1.0, complex=mode, maximize=True))
    for t, [x] in enumerate(noise(Lib("numpy", "plain"), rule, [np.zeros(n, dtype)], 3), 1):
        z = x / np.sqrt(eta / t**gamma)
        scale = np.sqrt(2) if "c" in dtype and mode == "modulus" else 1.0
        parts = [z.real * scale, z.imag * scale] if "c" in dtype else [z]
        for part in parts:
            for power, mean, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
                assert abs(np.mean(part.astype("float64") ** power) - mean) < 5 * np.sqrt(variance / n)
        if len(parts) == 2:
            assert abs(np.corrcoef(*parts)[0, 1]) < 5 / np.sqrt(n)
        assert abs(np.corrcoef(parts[0][1:], parts[0][:-1])[0, 1]) < 5 / np.sqrt(n)


def test_noise_goes_on_after_a_restart() -> None:
    rule = xopt.chain(xopt.AddNoise(0.5), xopt.SGD(1.0))
    p = np.ones(4)
    state = rule.init(p)._replace(step=41)
    late = rule.updates(p, np.zeros(4), state)[0]
    opt = xopt.Optimizer(np.ones(4), rule)
    for _ in range(41):
        opt.step(np.zeros(4))
    before = opt.params.copy()
    np.testing.assert_allclose(opt.step(np.zeros(4)) - before, late, rtol=1e-12, atol=1e-15)
