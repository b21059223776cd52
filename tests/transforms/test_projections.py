"""Box, L1 and Simplex: exactly inside, exactly 0, and those of optax."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from catalog.links import LINKS
from conftest import Lib
from support.oracles import NEW, assert_close, leaves, run

import xopt


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_box_has_nothing_outside(lib: Lib, dtype: str, rng: np.random.Generator) -> None:
    low, high = 0.1, 0.3  # numbers of no dtype
    p, g = (lib.array(rng.standard_normal(100).astype("f4"), dtype) for _ in range(2))
    rule = xopt.chain(xopt.SGD(lr=1.0), xopt.Box(low, high))
    new = lib.numpy(rule.apply(p, g, rule.init(p))[0])
    bounds = lib.numpy(lib.array(np.asarray([low, high]), dtype))
    assert new.min() == bounds[0]
    assert new.max() == bounds[1]


def test_nan_stays_nan() -> None:
    for link in (xopt.Box(0.0, 1.0), xopt.NonNegative(), xopt.L1(0.5), xopt.L2(0.5), xopt.Ball(1.0), xopt.Simplex()):
        rule = xopt.chain(xopt.SGD(lr=1.0), link)
        p = np.asarray([np.nan, 2.0])
        assert np.isnan(rule.apply(p, np.zeros(2), rule.init(p))[0][0]), link


@pytest.mark.parametrize("dtype", ["f4", "c8"])
def test_l1_of_small_numbers_is_zero(dtype: str) -> None:
    p = np.asarray([0.0, 0.3, -0.3, 0.7, -0.7, 1.5], dtype)
    for strength, want in [(0.7, [0, 0, 0, 0, 0, 0.8]), (0.0, p)]:
        rule = xopt.chain(xopt.SGD(), xopt.L1(strength))
        new = rule.apply(p, np.zeros_like(p), rule.init(p))[0]
        np.testing.assert_allclose(new, want, rtol=1e-6)
        assert np.count_nonzero(new) == np.count_nonzero(want)


def test_l1_makes_zeros_and_solves_ista(rng: np.random.Generator) -> None:
    """The least squares with an ℓ1 penalty: at the end the gradient is λ·sign(p), or within λ where p is 0."""
    a, y, lam = rng.standard_normal((20, 8)), rng.standard_normal(20), 3.0
    lr = 0.9 / np.linalg.norm(a.T @ a, 2)
    opt = xopt.Optimizer(np.zeros(8), xopt.chain(xopt.SGD(lr), xopt.L1(lr * lam)))
    for _ in range(500):
        opt.step(a.T @ (a @ opt.params - y))
    p, g = opt.params, a.T @ (a @ opt.params - y)
    assert 0 < np.count_nonzero(p) < 8
    np.testing.assert_allclose(g[p != 0], -lam * np.sign(p[p != 0]), atol=1e-9)
    assert np.all(np.abs(g[p == 0]) <= lam)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_simplex_along_an_axis(lib: Lib, axis: int, rng: np.random.Generator) -> None:
    if lib.name == "dask":
        pytest.skip("no sort")
    p, g = rng.standard_normal((5, 7)), rng.standard_normal((5, 7))
    row = next(row for row in LINKS if row.link is xopt.Simplex)
    rule = xopt.chain(xopt.SGD(lr=0.5), xopt.Simplex(2.0, axis=axis))
    got, _ = run(lib, rule, p, [g])
    assert_close(got, row.reference([], [p - 0.5 * g], {}, 1, total=2.0, axis=axis)[0], 1e-13, 1e-15)
    assert np.all(got >= 0)
    np.testing.assert_allclose(got.sum(axis), 2.0, rtol=1e-15 * 7)


def test_simplex_of_a_million(rng: np.random.Generator) -> None:
    """A running sum of float32 would be wrong by more than the elements are large."""
    p = (1e3 + rng.standard_normal(1_000_000)).astype("f4")
    rule = xopt.chain(xopt.SGD(lr=1.0), xopt.Simplex())
    new, _ = rule.apply(p, np.zeros_like(p), rule.init(p))
    assert abs(new.sum(dtype="f8") - 1) < 1e-3  # the elements left are differences of numbers near 1000: ulp 6e-5
    assert new.min() == 0


def test_simplex_and_project_say_what_does_not_fit() -> None:
    for link, p, words in [
        (xopt.Simplex(axis=1), np.zeros(3), r"Simplex: axis 1, but a parameter has shape \(3,\)"),
        (xopt.Simplex(), np.zeros(3, complex), "Simplex: a complex parameter"),
        (xopt.Project(np.sum), np.zeros(3), "Project: .* returned shape .*, but the parameter has shape"),
        (xopt.Project(lambda x: None), np.zeros(3), "Project: .* returned a NoneType, but the parameter has shape"),
    ]:
        rule = xopt.chain(xopt.SGD(), link)
        with pytest.raises((ValueError, TypeError), match=words):
            rule.apply(p, p, rule.init(p))


@pytest.mark.needs("jax")
def test_projections_are_those_of_optax(rng: np.random.Generator, parity: Callable[..., None]) -> None:
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    p, g = {"w": rng.standard_normal((4, 3)), "b": rng.standard_normal(5)}, {"w": np.zeros((4, 3)), "b": np.zeros(5)}
    jp, o = NEW(jax.numpy.asarray, p), optax.projections
    each = lambda f: NEW(f, jp)
    for link, want in [
        (xopt.NonNegative(), o.projection_non_negative(jp)),
        (xopt.Box(-0.2, 0.5), each(lambda x: o.projection_box(x, -0.2, 0.5))),
        (xopt.Ball(1.5), o.projection_l2_ball(jp, 1.5)),
        (xopt.Ball(1.5, over="leaf"), each(lambda x: o.projection_l2_ball(x, 1.5))),
        (xopt.Simplex(2.0), each(lambda x: o.projection_simplex(x, 2.0))),
    ]:
        rule = xopt.chain(xopt.SGD(), link)
        got = rule.apply(p, g, rule.init(p))[0]
        assert_close(got, leaves(want), 1e-14, 1e-15)
        parity("optax", link, leaves(got), leaves(want))
    rule = xopt.chain(xopt.SGD(), xopt.Project(o.projection_l1_ball))
    got, _ = rule.apply(jp, NEW(jax.numpy.asarray, g), rule.init(jp))
    assert_close(got, leaves(each(o.projection_l1_ball)), 1e-14, 1e-15)
