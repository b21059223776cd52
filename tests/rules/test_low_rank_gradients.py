"""float32 beside float64 where a gradient has few directions, is very large or very small.

The oracles of Shampoo and SOAP see the gradients in a basis of the directions that occur, where they have full rank:
neither formula depends on the basis, and in all other directions nothing moves. Those of KL-Shampoo and KL-SOAP count
the directions; they see the gradients as they are.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from catalog.base import A, fields
from catalog.factored import adafactor, sm3
from catalog.kl_shampoo import kl_shampoo, kl_soap
from catalog.matrix import muon
from catalog.shampoo import along, shampoo, soap
from catalog.transforms_array import agc, centralize
from conftest import Lib, walk
from support.oracles import run

import xopt

SHAPES = ((), (7,), (1, 5), (5, 1), (9, 4), (4, 9), (30, 2), (3, 4, 5))
FACTORS = (1, 0.5, 1, 2, 1, 1, 0.25, 1)
"""What the sample is multiplied with, step by step."""
TINY, HUGE = 2.0**-60, 2.0**58
"""About 1e-18 and 3e17: the squares of float32, and sums of a few hundred of them, go no further."""
SCALES = (TINY, 2.0**-20, 1.0, 2.0**20, HUGE)

# k eigenvectors that are c units u = 2^-23 off, over the smallest root (n·u)^(1/2) of an eigenvalue: c·√(u/n) for a
# vector, less for others; c is 5 or so
ROOTS = 5e-4
# a few roundings a step, and what is left out is at most 1/(1-b1) = 20 units
BASES = 2e-5
# a⁵ = 485 times u, for singular values that are 0
ORTHOGONAL = 5e-4
PLAIN = 3e-6

RULES = [
    (xopt.Shampoo(0.01), shampoo, ROOTS),
    (xopt.Shampoo(0.01, b2=0.9, momentum=0.9, graft="sgd"), shampoo, ROOTS),
    (xopt.Shampoo(0.01, b2=0.9, update_every=3), shampoo, ROOTS),
    (xopt.Shampoo(0.01, 1e-50), shampoo, ROOTS),
    (xopt.SOAP(0.01, vectors=True), soap, BASES),
    (xopt.SOAP(0.01, vectors=True, update_every=3, shampoo_b=0.5), soap, BASES),
    (xopt.SOAP(0.01, 0.5, 0.8, vectors=True, update_every=1), soap, BASES),
    (xopt.KLShampoo(0.01, b2=0.1, vectors=True), kl_shampoo, BASES),
    (xopt.KLSOAP(0.01, vectors=True), kl_soap, BASES),
    (xopt.Adafactor(0.01), adafactor, PLAIN),
    (xopt.Adafactor(0.01, eps1=1e-50), adafactor, PLAIN),
    (xopt.Adafactor(0.01, eps1=1e-25, eps_mode="clamp"), adafactor, PLAIN),
    (xopt.SM3(0.01), sm3, PLAIN),
    (xopt.Muon(0.01, eps=1e-35), muon, ORTHOGONAL),
]


WITHOUT_EPS = xopt.KLShampoo(0.01, eps=1e-35)


def samples() -> dict[str, A]:
    """Gradients of rank 0, 1 and 2 that are exact in float32: integers up to 2^7, over 2^7."""
    rng, found = np.random.default_rng(7), {}
    for rank in (0, 1, 2):
        for shape in SHAPES:
            x = np.zeros(shape)
            for _ in range(rank):
                term = np.asarray(1.0)
                for n in shape:
                    term = np.multiply.outer(term, rng.integers(1, 4, n) * rng.choice([-1, 1], n))
                x = x + term
            found[f"{rank} of {shape}"] = x / 2**7
    return found


def reduced(rule: xopt.Rule, reference: Any, gs: list[A]) -> A:
    """Run an oracle from 0 in the directions that occur."""
    shape = gs[0].shape
    if not np.any(gs):
        return np.zeros(shape)
    bases = []
    for i in range(len(shape)):
        left, values, _ = np.linalg.svd(np.moveaxis(gs[0], i, 0).reshape(shape[i], -1), full_matrices=False)
        bases.append(left[:, values > 1e-10 * values[0]])
    for i, x in enumerate(bases):
        gs = [along(g, x.T, i) for g in gs]
    p = reference_run(rule, reference, gs)
    for i, x in enumerate(bases):
        p = along(p, x, i)
    return p


def reference_run(rule: xopt.Rule, reference: Any, gs: list[A]) -> A:
    p, state = np.zeros(gs[0].shape), dict[str, Any]()
    for t, g in enumerate(gs, 1):
        p = reference(p, g, state, t, **fields(rule))
    return p


@pytest.mark.parametrize("scale", SCALES, ids=lambda x: f"{x:.0e}")
@pytest.mark.parametrize(("rule", "reference", "bound"), RULES, ids=lambda x: getattr(x, "__name__", None) or repr(x))
def test_a_sample_again_and_again(lib: Lib, rule: xopt.Rule, reference: Any, bound: float, scale: float) -> None:
    if lib.name == "dask":
        pytest.skip("dask has no eigenvalues, and dozens of leaves are dozens of graphs")
    if lib.id == "strict-no_x64" and reference is soap:
        pytest.skip("argsort of array-api-strict makes int64, which that device has not")
    if lib.id in ("strict-device1", "strict-device2") and scale != 1.0:
        pytest.skip("a device with the dtypes of another, which has all scales")
    if scale == TINY and (isinstance(rule, xopt.SM3) or "1e-50" in repr(rule) or "1e-25" in repr(rule)):
        scale = 2.0**-50  # 1e-15: the squares that it keeps are subnormal below 1e-19, and no ε is larger
    gs = samples()
    if lib.name == "jax":  # that compiles each leaf
        gs = {n: x for n, x in gs.items() if x.shape in ((7,), (9, 4), (30, 2))}
        if reference in (kl_shampoo, kl_soap):
            gs = {n: gs[n] for n in ("0 of (7,)", "1 of (9, 4)", "2 of (30, 2)")}
    if isinstance(rule, xopt.Muon):
        gs = {n: x for n, x in gs.items() if x.ndim == 2}
    zeros = {n: np.zeros_like(x, "float32") for n, x in gs.items()}
    steps = [{n: x * scale * factor for n, x in gs.items()} for factor in FACTORS]
    got, _ = run(lib, rule, zeros, [{n: x.astype("float32") for n, x in g.items()} for g in steps])
    for n in gs:
        one = [g[n] for g in steps]
        if reference in (soap, kl_shampoo, kl_soap):
            # above 1 ε does nothing, and the oracle's own rounding errors would be above ε
            one = [g / max(1.0, scale) for g in one]
        want = (reduced if reference in (shampoo, soap) else reference_run)(rule, reference, one)
        size = np.abs(want).max()
        np.testing.assert_allclose(got[n], want, rtol=0, atol=bound * size, err_msg=n)
        assert np.any(want) == np.any(gs[n])


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5)])
def test_eigenvalues_that_fall_for_long(shape: tuple[int, ...]) -> None:
    """Of directions without gradients: in float32 rounding errors are not whitened until they count."""
    g = np.asarray(functools.reduce(np.multiply.outer, [np.arange(1.0, n + 1) for n in shape]) * 1e3)
    rule = xopt.KLShampoo(0.01, b2=0.5, update_every=1000)
    p = walk(rule, np.zeros(shape, "float32"), [g.astype("float32")] * 60)[0]
    want = reference_run(rule, kl_shampoo, [g / 1e3] * 60)
    # a few roundings in each of 60 steps
    np.testing.assert_allclose(p, want, rtol=0, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("scale", [1e-25, 1e20])
def test_kl_shampoo_takes_no_squares(lib: Lib, scale: float, rng: np.random.Generator) -> None:
    """Gradients are divided before they are squared: what has no square in float32 makes the steps that 1 makes."""
    if lib.name == "dask":
        pytest.skip("dask has no eigenvalues")
    rule, p = WITHOUT_EPS, {"w": np.zeros((4, 3), "float32")}
    grads = [{"w": rng.standard_normal((4, 3)) * 2.0**k} for k in range(5)]
    got, want = (run(lib, rule, p, [{"w": np.asarray(g["w"] * x, "float32")} for g in grads])[0] for x in (scale, 1.0))
    np.testing.assert_allclose(got["w"], want["w"], rtol=0, atol=BASES * np.abs(want["w"]).max())


@pytest.mark.parametrize("scale", [1e-36, 1e-25, 1e19, 1e37])
def test_norms_whose_squares_have_no_float32(lib: Lib, scale: float, rng: np.random.Generator) -> None:
    if lib.name == "dask":
        pytest.skip("dask computes what NumPy does")
    one = rng.integers(-8, 9, (5, 4)) + 0.5
    p, g = (np.asarray(x * scale, "float32") for x in (one[::-1], one))
    limits = {"limit": 0.5, "eps": 1e-37, "units": "first"}
    cases = [
        (xopt.chain(xopt.AdaptiveGradientClip(**limits), xopt.SGD(0.5)), agc, limits),
        (xopt.chain(xopt.Centralize(), xopt.SGD(0.5)), centralize, {"units": "first"}),
    ]
    for rule, reference, h in cases:
        got, _ = run(lib, rule, {"w": p}, [{"w": g}])
        wide = p.astype("float64")
        want = wide - 0.5 * reference(wide, g.astype("float64"), 1, **h)
        # a dozen roundings of numbers up to 9·scale
        np.testing.assert_allclose(got["w"], want, rtol=0, atol=1e-5 * scale)
    rule = xopt.Muon(0.01, eps=1e-37)
    got, _ = run(lib, rule, {"w": np.zeros_like(p)}, [{"w": g}])
    np.testing.assert_allclose(got["w"], reference_run(rule, muon, [g.astype("float64")]), rtol=0, atol=1e-5)


def test_a_gradient_that_is_not_finite_is_seen() -> None:
    for rule in (xopt.Shampoo(), xopt.SOAP(vectors=True), xopt.KLShampoo(), xopt.KLSOAP(vectors=True), xopt.Muon()):
        for bad in (np.nan, np.inf):
            g = np.asarray([[1.0, bad], [2.0, 1.0]])
            p, state = np.ones((2, 2)), rule.init(np.ones((2, 2)))
            for _ in range(3):
                p, state = rule.apply(p, g, state)
            assert np.isnan(p).any(), (rule, bad)
