"""The parameters to evaluate: read out of the state, in new arrays, by every library."""

from __future__ import annotations

from typing import Any

import numpy as np
import optree
import pytest
from catalog import schedule_free
from catalog.base import fields
from conftest import Lib, tree, walk

import xopt
from xopt.rule import Array, H, Hyper, Transform, hyper

RULES = [
    (xopt.ScheduleFreeSGD(0.08, warmup=3), schedule_free.schedule_free_sgd),
    (xopt.ScheduleFreeSGD(0.08, xopt.schedules.cosine(0.9, steps=10, end=0.3)), schedule_free.schedule_free_sgd),
    (xopt.ScheduleFreeAdamW(0.05, 0.6, weight_decay=0.1), schedule_free.schedule_free_adamw),
    (xopt.ScheduleFreeAdamW(0.05, complex="split"), schedule_free.schedule_free_adamw),
]


class Mean(Transform):
    """Half the parameters, to tell the readouts of a chain apart."""

    on_params = True

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, kept: Array = 0.0) -> tuple[Array, ...]:
        return g, g / 2

    @staticmethod
    def readout(h: H, xp: Any, p: Array, kept: Array) -> Array:
        return kept


def averages(rule: Any, reference: Any, p: Any, gs: list[Any]) -> Any:
    """Run an oracle, and return the x that it keeps."""
    if rule.complex == "split" and np.iscomplexobj(p):
        re, im = (averages(rule, reference, part(p), [part(g) for g in gs]) for part in (np.real, np.imag))
        return re + 1j * im
    wide = "complex128" if np.iscomplexobj(p) else "float64"
    p, s = np.asarray(p, wide), dict[str, Any]()
    for t, g in enumerate(gs, 1):
        h = {n: v(t) if callable(v) else v for n, v in fields(rule).items()}
        p = reference(p, np.asarray(g, wide), s, t, **h)
    return s["x"]


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
@pytest.mark.parametrize(("rule", "reference"), RULES, ids=lambda x: repr(x) if isinstance(x, xopt.Rule) else "")
def test_schedule_free(lib: Lib, rule: Any, reference: Any, dtype: str, rng: np.random.Generator) -> None:
    params, grads = tree(rng, dtype, lib=lib), [tree(rng, dtype, lib=lib) for _ in range(5)]
    columns = [optree.tree_leaves(g) for g in grads]
    want = [averages(rule, reference, p, [g[k] for g in columns]) for k, p in enumerate(optree.tree_leaves(params))]
    mine = optree.tree_map(lib.array, params)
    state = rule.init(mine)
    read, apply = rule.eval_params, rule.apply
    if lib.guise == "jit":
        jax = lib.module()
        read, apply = jax.jit(rule.eval_params), jax.jit(rule.apply)
    for x, y in zip(optree.tree_leaves(read(mine, state)), optree.tree_leaves(params), strict=True):
        np.testing.assert_array_equal(lib.numpy(x), y)
    for g in grads:
        mine, state = apply(mine, optree.tree_map(lib.array, g), state)
    before = optree.tree_map(lib.numpy, (mine, state.slots))
    found = read(mine, state)
    for x, y in zip(optree.tree_leaves(found), want, strict=True):
        np.testing.assert_allclose(lib.numpy(x), y, rtol=1e-12 if "64" in dtype or "128" in dtype else 2e-5, atol=4e-6)
    for a, b, c in zip(*map(optree.tree_leaves, (found, mine, params)), strict=True):
        assert (a.shape, a.dtype, type(a).__module__) == (b.shape, b.dtype, type(b).__module__)
        assert lib.numpy(a).dtype == c.dtype
        assert not getattr(a, "requires_grad", False)
        if lib.writable and c.size:
            a[...] = 7  # in memory of its own
    for x, y in zip(*map(optree.tree_leaves, (optree.tree_map(lib.numpy, (mine, state.slots)), before)), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("rule", [RULES[0][0], xopt.chain(xopt.ClipByNorm(1.0), RULES[2][0])], ids=repr)
def test_optimizer(lib: Lib, rule: Any, rng: np.random.Generator) -> None:
    if lib.guise == "read-only":
        pytest.skip("Optimizer refuses read-only arrays")
    params, grads = tree(rng, lib=lib), [tree(rng, lib=lib) for _ in range(3)]
    grads[1]["tall"] = None
    want, state = walk(rule, params, grads)
    opt = xopt.Optimizer(optree.tree_map(lib.array, params), rule)
    for g in grads:
        opt.step(optree.tree_map(lambda x: x if x is None else lib.array(x), g, none_is_leaf=True))
    pairs = zip(*map(optree.tree_leaves, (opt.eval_params(), rule.eval_params(want, state))), strict=True)
    for x, y in pairs:
        np.testing.assert_allclose(lib.numpy(x), y, rtol=1e-12, atol=1e-13)


def test_others_return_a_copy(lib: Lib, rng: np.random.Generator) -> None:
    rule, params = xopt.chain(xopt.ClipByNorm(1.0), xopt.Adam()), lib.array(rng.standard_normal(5))
    params, state = rule.apply(params, lib.array(rng.standard_normal(5)), rule.init(params))
    found = rule.eval_params(params, state)
    np.testing.assert_array_equal(lib.numpy(found), lib.numpy(params))
    assert found is not params
    assert not getattr(found, "requires_grad", False)


def test_the_last_link_is_asked(lib: Lib, rng: np.random.Generator) -> None:
    rule, p = xopt.chain(RULES[0][0], Mean()), lib.array(rng.standard_normal(5))
    p, state = rule.apply(p, lib.array(rng.standard_normal(5)), rule.init(p))
    np.testing.assert_array_equal(lib.numpy(rule.eval_params(p, state)), lib.numpy(p) / 2)


def test_half_and_a_leaf_without_gradient(rng: np.random.Generator) -> None:
    rule, p = xopt.ScheduleFreeSGD(0.5), [np.ones(3, "float16"), np.ones(3, "float16")]
    state = rule.init(p)
    for _ in range(3):
        p, state = rule.apply(p, [np.full(3, 0.25, "float16"), None], state)
    x = rule.eval_params(p, state)
    assert x[0].dtype == np.float16
    np.testing.assert_allclose(x[0], np.mean([0.875, 0.75, 0.625]), rtol=1e-3)
    np.testing.assert_array_equal(x[1], p[1])


def test_what_does_not_fit_is_refused() -> None:
    rule, p = xopt.ScheduleFreeSGD(), np.zeros(3)
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        rule.eval_params(p, rule.init(np.zeros(2)))
    with pytest.raises(ValueError, match="belongs to another rule"):
        rule.eval_params(p, xopt.Adam().init(p))


def test_groups_of_schedule_free_have_weights_of_their_own(rng: np.random.Generator) -> None:
    """Carried leaf by leaf: what one leaf does not take part in does not count for its average."""
    rule, p, g = xopt.ScheduleFreeSGD(0.1), rng.standard_normal((2, 3)), rng.standard_normal((3, 3))
    both = [p[0], p[1]]
    state = rule.init(both)
    for t in range(3):
        both, state = rule.apply(both, [g[t], g[t] if t != 1 else None], state)
    alone, own = walk(rule, p[1], [g[0], g[2]])
    np.testing.assert_allclose(both[1], alone, rtol=1e-14)
    np.testing.assert_allclose(rule.eval_params(both, state)[1], rule.eval_params(alone, own), rtol=1e-14)


class Weighted(Transform):
    """A readout that follows a schedule."""

    weight: Hyper = hyper(default=xopt.schedules.cosine(1.0, steps=4, end=0.2))
    on_params = True

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, kept: Array = 0.0) -> tuple[Array, ...]:
        return g, g

    @staticmethod
    def readout(h: H, xp: Any, p: Array, kept: Array) -> Array:
        return h.weight * kept


@pytest.mark.parametrize("inner", [xopt.ScheduleFreeSGD(0.1), xopt.chain(xopt.SGD(0.1), Weighted())], ids=repr)
def test_steps_that_are_held_back_do_not_count(lib: Lib, inner: Any, rng: np.random.Generator) -> None:
    """In the middle of an accumulation, and after a step that was left out, the schedule is where it was."""
    p, g = rng.standard_normal(3), rng.standard_normal((3, 3))
    for rule, grads, taken in [
        (xopt.Accumulate(inner, every=2), [g[0]], 0),
        (xopt.Accumulate(inner, every=2), [g[0], g[0], g[1], g[1], g[2]], 2),
        (xopt.Guard(inner, "skip"), [g[2] * np.nan], 0),
        (xopt.Guard(inner, "skip"), [g[0], g[2] * np.nan, g[1], g[2] * np.inf], 2),
    ]:
        state, mine = rule.init(lib.array(p)), lib.array(p)
        for x in grads:
            mine, state = rule.apply(mine, lib.array(x), state)
        plain, own = walk(inner, p, list(g[:taken]))
        found = lib.numpy(rule.eval_params(mine, state))
        np.testing.assert_allclose(found, inner.eval_params(plain, own), rtol=1e-12)
