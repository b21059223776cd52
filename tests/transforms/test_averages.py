"""Averages of parameters: those of other libraries, exact ones, and in place of the parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import Lib, walk
from support.links import SGD
from support.oracles import NEW, assert_close, leaves, problem, run

import xopt


@pytest.mark.needs("torch")
@pytest.mark.parametrize("which", ["ema", "swa"])
def test_averages_are_those_of_torch(which: str, rng: np.random.Generator, parity: Callable[..., None]) -> None:
    torch = pytest.importorskip("torch")
    swa = torch.optim.swa_utils
    model = torch.nn.Linear(3, 2, dtype=torch.float64)
    mine = NEW(lambda p: p.detach().numpy().copy(), list(model.parameters()))
    theirs = swa.AveragedModel(model, multi_avg_fn=swa.get_ema_multi_avg_fn(0.8)) if which == "ema" else None
    theirs = theirs or swa.AveragedModel(model)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    link = xopt.EMA(0.8, start="first") if which == "ema" else xopt.SWA(start=4, every=3)
    ours = xopt.Optimizer(mine, xopt.chain(SGD, link))
    for t in range(1, 21):
        grads = [rng.standard_normal(p.shape) for p in mine]
        for p, g in zip(model.parameters(), grads, strict=True):
            p.grad = torch.tensor(g)
        opt.step()
        if which == "ema" or (t >= 4 and (t - 4) % 3 == 0):
            theirs.update_parameters(model)
        ours.step(grads)
        if which == "ema" or t >= 4:
            for x, p in zip(ours.eval_params(), theirs.module.parameters(), strict=True):
                np.testing.assert_allclose(x, p.detach().numpy(), rtol=1e-12, atol=1e-14)
        else:
            assert_close(ours.eval_params(), mine, 0, 0)
    parity("torch", link, ours.eval_params(), [p.detach().numpy() for p in theirs.module.parameters()])


@pytest.mark.needs("jax")
def test_averages_are_those_of_optax_and_keras(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, parity: Callable[..., None]
) -> None:
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    p, grads = rng.standard_normal(5), [rng.standard_normal(5) for _ in range(12)]
    debiased, ema = xopt.Optimizer(p.copy(), xopt.chain(SGD, xopt.EMA(0.8, start="zero"))), optax.ema(0.8)
    state = ema.init(jax.numpy.asarray(p))
    for g in grads:
        debiased.step(g)
        want, state = ema.update(jax.numpy.asarray(debiased.params), state)
        np.testing.assert_allclose(debiased.eval_params(), want, rtol=1e-12)
    parity("optax", xopt.EMA(), [debiased.eval_params()], [want])
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    theirs = keras.Variable(p, dtype="float64")
    opt = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.8)
    ours = xopt.Optimizer(p.copy(), xopt.chain(xopt.SGD(0.1), xopt.EMA(0.8, start="first")))
    for g in grads:
        opt.apply([keras.ops.convert_to_tensor(g, "float64")], [theirs])
        ours.step(g)
        want = np.asarray(opt._model_variables_moving_average[0].value)
        np.testing.assert_allclose(ours.eval_params(), want, rtol=1e-7)  # Keras has the 0.8 in float32
    parity("keras", xopt.EMA(), [ours.eval_params()], [want])


@pytest.mark.needs("jax")
def test_lookahead_is_that_of_optax(rng: np.random.Generator, parity: Callable[..., None]) -> None:
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    p, grads = rng.standard_normal(5), [rng.standard_normal(5) for _ in range(14)]
    opt = optax.lookahead(optax.sgd(0.1, momentum=0.9), 4, 0.3)
    theirs = optax.LookaheadParams.init_synced(jax.numpy.asarray(p))
    state = opt.init(theirs)
    ours = xopt.Optimizer(p.copy(), xopt.chain(SGD, xopt.Lookahead(0.3, k=4)))
    for g in grads:
        updates, state = opt.update(jax.numpy.asarray(g), state, theirs)
        theirs = optax.apply_updates(theirs, updates)
        ours.step(g)
        np.testing.assert_allclose(ours.params, theirs.fast, rtol=1e-12)
        np.testing.assert_allclose(ours.eval_params(), theirs.slow, rtol=1e-12)
    parity("optax", xopt.Lookahead(), [ours.params, ours.eval_params()], [theirs.fast, theirs.slow])


def test_an_average_of_equal_numbers_is_that_number(rng: np.random.Generator) -> None:
    """decay and 1 - decay, rounded apart, do not add up to 1."""
    p = rng.standard_normal(1000).astype("f4")
    for link in (xopt.EMA(0.9), xopt.EMA(0.99, start="zero"), xopt.SWA(), xopt.Lookahead(0.3, k=1)):
        opt = xopt.Optimizer(p.copy(), xopt.chain(xopt.SGD(lr=0.0), link))
        for _ in range(10):
            opt.step(np.ones_like(p))
        np.testing.assert_array_equal(opt.eval_params(), p)


def test_an_average_of_one_is_that_one_to_the_bit(rng: np.random.Generator) -> None:
    start, grads = 1e6 * rng.standard_normal(100).astype("f4"), 1e5 * rng.standard_normal((3, 100)).astype("f4")
    for link, steps in [(xopt.EMA(start="first"), 1), (xopt.EMA(start="zero"), 1), (xopt.SWA(start=3), 3)]:
        rule = xopt.chain(xopt.SGD(lr=9.99), link)
        p, state = walk(rule, start, list(grads[:steps]))
        np.testing.assert_array_equal(rule.eval_params(p, state), p)
    rule = xopt.chain(xopt.SGD(lr=9.99), xopt.Lookahead(start="first"))
    p, state = walk(rule, start, list(grads))
    np.testing.assert_array_equal(rule.eval_params(p, state), p)


@pytest.mark.parametrize("link", [xopt.EMA(0.5), xopt.SWA(start=2), xopt.Lookahead(k=2), xopt.Cautious(rescale=False)])
def test_split_complex_is_two_real_parameters(lib: Lib, link: Any, rng: np.random.Generator) -> None:
    params, grads = problem(rng, "complex128", 4, lib)
    rule = xopt.chain(SGD.replace(complex="split"), link)
    got, state = run(lib, rule, params, grads)
    read = NEW(lib.numpy, rule.eval_params(NEW(lib.array, got), state))
    plain = xopt.chain(SGD, link)
    for part in (np.real, np.imag):
        want, own = walk(plain, NEW(part, params), [NEW(part, g) for g in grads])
        assert_close(NEW(part, got), leaves(want), 1e-13, 1e-15)
        assert_close(NEW(part, read), leaves(plain.eval_params(want, own)), 1e-13, 1e-15)


def test_an_average_of_an_array_without_gradients_is_the_array(rng: np.random.Generator) -> None:
    for link in (
        xopt.EMA(0.5),
        xopt.EMA(0.5, start="first"),
        xopt.EMA(0.5, start="zero"),
        xopt.SWA(),
        xopt.Lookahead(),
    ):
        rule = xopt.chain(SGD, link)
        p, state = walk(rule, [np.ones(3), np.ones(3)], [[np.ones(3), None]] * 3)
        np.testing.assert_array_equal(rule.eval_params(p, state)[1], 1.0)


def test_the_last_link_is_read(rng: np.random.Generator) -> None:
    p, grads = rng.standard_normal(5), [rng.standard_normal(5) for _ in range(5)]
    both = xopt.chain(SGD, xopt.Lookahead(k=2), xopt.EMA(0.5))
    got, state = walk(both, p, grads)
    np.testing.assert_array_equal(both.eval_params(got, state), state.slots["2.ema.average"])
    assert both.eval_params(got, state) is not state.slots["2.ema.average"]


def test_an_average_of_a_projection_is_projected(rng: np.random.Generator) -> None:
    rule = xopt.chain(xopt.SGD(lr=1.0), xopt.NonNegative(), xopt.EMA(0.5, start="first"))
    p = rng.standard_normal(50)
    p, state = walk(rule, p, [rng.standard_normal(50) for _ in range(5)])
    assert np.all(rule.eval_params(p, state) >= 0)
    assert np.any(p == 0)


# ---- averages in place of the parameters


def test_averaged_restores_to_the_bit_after_an_exception(lib: Lib, rng: np.random.Generator) -> None:
    if lib.guise == "read-only":
        pytest.skip("Optimizer refuses read-only arrays")
    params, grads = problem(rng, "float32", 2, lib)
    opt = xopt.Optimizer(NEW(lib.array, params), xopt.chain(SGD, xopt.EMA(0.5)))
    for g in grads:
        opt.step(NEW(lib.array, g))
    before, homes = [np.array(lib.numpy(x)) for x in leaves(opt.params)], leaves(opt.params)
    with pytest.raises(KeyError), opt.averaged() as seen:  # noqa: PT012
        assert any(not np.array_equal(lib.numpy(x), y) for x, y in zip(leaves(seen), before, strict=True))
        if lib.writable:
            assert all(x is y for x, y in zip(leaves(seen), homes, strict=True))
        raise KeyError
    for x, y, home in zip(leaves(opt.params), before, homes, strict=True):
        assert x is home
        assert lib.numpy(x).tobytes() == y.tobytes()
    opt.step(NEW(lib.array, grads[0]))


def test_no_step_while_the_parameters_are_averages() -> None:
    opt = xopt.Optimizer(np.ones(3), xopt.chain(SGD, xopt.EMA(0.5)))
    opt.step(np.ones(3))
    with opt.averaged():
        for what in (lambda: opt.step(np.ones(3)), opt.eval_params, lambda: opt.averaged().__enter__()):
            with pytest.raises(RuntimeError, match="the parameters are averages until the block of averaged"):
                what()
    opt.step(np.ones(3))
