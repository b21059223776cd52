"""SAM: by hand, and beside that of optax."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import Lib
from support.oracles import NEW, assert_close, leaves, problem

import xopt


def sam(p: list[Any], g: list[Any], rho: float, adaptive: bool, eta: float) -> list[Any]:
    """Foret et al. 2021, equation 2; Kwon et al. 2021, equation 6."""
    t = [np.abs(x) + eta if adaptive else np.ones(x.shape) for x in p]
    norm = np.sqrt(sum(np.sum(np.abs(x * y) ** 2) for x, y in zip(t, g, strict=True)))
    return [x + (rho / norm * y**2 * z if norm else 0) for x, y, z in zip(p, t, g, strict=True)]


OPTIONS: list[dict[str, Any]] = [{}, {"rho": 0.5}, {"adaptive": True}, {"adaptive": True, "eta": 0.3}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_sam(lib: Lib, options: dict[str, Any], dtype: str, rng: np.random.Generator) -> None:
    params, [grads] = problem(rng, dtype, 1, lib)
    want = sam(leaves(params), leaves(grads), **{"rho": 0.05, "adaptive": False, "eta": 0.01, **options})
    one = xopt.SAM(**options)
    p, g = NEW(lib.array, params), NEW(lib.array, grads)
    seen = []

    def gradient(x: Any) -> Any:
        seen.append(x)
        return g

    assert one.gradient(gradient, p) is g
    assert seen[0] is p
    assert_close(NEW(lib.numpy, seen[1]), want, 1e-12, 1e-14)
    value, again = one.value_and_gradient(lambda x: (("loss", len(seen)), gradient(x)), p)
    assert (value, again is g) == (("loss", 2), True)
    assert_close(NEW(lib.numpy, seen[3]), want, 1e-12, 1e-14)
    for x, y in zip(leaves(NEW(lib.numpy, p)), leaves(params), strict=True):
        np.testing.assert_array_equal(x, y)
    if lib.writable:
        before = [lib.numpy(x).tobytes() for x in leaves(p)]
        with pytest.raises(KeyError), one.perturbed(p, g) as there:  # noqa: PT012
            assert there is p
            assert_close(NEW(lib.numpy, p), want, 1e-12, 1e-14)
            raise KeyError
        assert [lib.numpy(x).tobytes() for x in leaves(p)] == before


def test_every_option_of_sam_matters(rng: np.random.Generator) -> None:
    p, g = rng.standard_normal(5), rng.standard_normal(5)
    found = [tuple(xopt.SAM(**x).perturb(p, g)) for x in OPTIONS]
    assert len(set(found)) == len(found)
    assert {n for x in OPTIONS for n in x} == set(xopt.SAM._fields)


def test_sam_refuses() -> None:
    for options, words in [
        ({"rho": -0.1}, "SAM.rho"),
        ({"eta": 0.1}, "SAM: eta does nothing without adaptive=True"),
        ({"rho": lambda t: 0.1}, "SAM.rho: a schedule, but no steps are counted here"),
        ({"adaptive": 1}, "SAM.adaptive"),
    ]:
        with pytest.raises((ValueError, TypeError), match=words):
            xopt.SAM(**options)
    with pytest.raises(ValueError, match=r'grads\["w"\]: shape \(2,\), but the parameter has \(3,\)'):
        xopt.SAM().gradient(lambda p: {"w": np.ones(2)}, {"w": np.ones(3)})


def test_sam_where_all_gradients_are_zero() -> None:
    np.testing.assert_array_equal(xopt.SAM().perturb(np.ones(3), np.zeros(3)), 1.0)


@pytest.mark.needs("jax")
def test_sam_is_that_of_optax(rng: np.random.Generator) -> None:
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    a, p = rng.standard_normal((8, 5)), jax.numpy.asarray(rng.standard_normal(5))
    loss = lambda w: jax.numpy.sum(jax.numpy.cos(a @ w)) + jax.numpy.sum(w**4)
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.3))
    opt = optax.contrib.sam(optax.sgd(0.01, momentum=0.9), adversary, opaque_mode=True)
    theirs, state = p, opt.init(p)
    rule = xopt.SGD(0.01, momentum=0.9)
    ours, mine = p, rule.init(p)
    one = xopt.SAM(0.3)
    step = jax.jit(lambda w, s: rule.apply(w, one.value_and_gradient(jax.value_and_grad(loss), w)[1], s))
    for _ in range(20):
        updates, state = opt.update(jax.grad(loss)(theirs), state, theirs, grad_fn=lambda w, _: jax.grad(loss)(w))
        theirs = optax.apply_updates(theirs, updates)
        ours, mine = step(ours, mine)
    np.testing.assert_allclose(ours, theirs, rtol=1e-11)


@pytest.mark.needs("jax")
def test_sam_does_not_write_jax_arrays() -> None:
    jax = pytest.importorskip("jax")
    with pytest.raises(TypeError, match="SAM.perturbed: arrays of jax cannot be written; use SAM.gradient"):
        xopt.SAM().perturbed(jax.numpy.ones(3), jax.numpy.ones(3)).__enter__()
