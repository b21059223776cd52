"""Transformations of optax as rules and components of xopt: beside optax alone, and in composition."""

from __future__ import annotations

import copy
import functools
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xopt

pytestmark = pytest.mark.needs("jax")
jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
jnp = jax.numpy

STEPS = 3


def rule(tx: Any, **options: Any) -> Any:
    from xopt.adapters.optax import rule

    return rule(tx, **options)


def transform(tx: Any, **options: Any) -> Any:
    from xopt.adapters.optax import transform

    return transform(tx, **options)


def tree(seed: int, dtype: str = "float32") -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    make = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    return {"w": make(3, 4), "deep": [make(5), make(2, 2)], "b": make()}


def by_optax(tx: Any, params: Any, grads: list[Any], **extra: Any) -> Any:
    @jax.jit
    def step(params: Any, state: Any, g: Any) -> Any:
        updates, state = tx.update(g, state, params, **extra)
        return optax.apply_updates(params, updates), state

    tx = optax.with_extra_args_support(tx)
    state = tx.init(params)
    for g in grads:
        params, state = step(params, state, g)
    return params, state


def by_xopt(rule: Any, params: Any, grads: list[Any], **more: Any) -> Any:
    step = jax.jit(functools.partial(rule.apply, **more))
    state = rule.init(params)
    for g in grads:
        params, state = step(params, g, state)
    return params, state


def close(got: Any, want: Any, rtol: float = 2e-6) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(np.asarray(x, "complex128"), np.asarray(y, "complex128"), rtol=rtol, atol=1e-7)


LABELS = {"w": "a", "deep": ["b", "b"], "b": "a"}
TX: dict[str, Callable[[], Any]] = {
    "adamw": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)),
    "factored": lambda: optax.adafactor(0.1, min_dim_size_to_factor=2),
    "schedule": lambda: optax.sgd(optax.cosine_decay_schedule(0.1, 10), momentum=0.9, nesterov=True),
    "noise": lambda: optax.noisy_sgd(0.1, key=jax.random.key(5)),
    "masked": lambda: optax.chain(optax.masked(optax.adam(0.1), {"w": True, "deep": [False, True], "b": False})),
    "partition": lambda: optax.partition({"a": optax.adam(0.1), "b": optax.sgd(0.1)}, LABELS),
    "finite": lambda: optax.apply_if_finite(optax.adam(0.1), 3),
    "hyperparams": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "several steps": lambda: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    "muon": lambda: optax.contrib.muon(0.1),
    "schedule-free": lambda: optax.contrib.schedule_free(optax.sgd(0.1), 0.1),
    "half state": lambda: optax.adam(0.1, mu_dtype="bfloat16"),
    "stateless": lambda: optax.sgd(0.1),
    "named": lambda: optax.named_chain(("one", optax.scale_by_adam()), ("two", optax.scale(-0.1))),
}


@pytest.mark.parametrize("name", TX)
def test_beside_optax(name: str) -> None:
    params, grads = tree(0), [tree(k) for k in range(1, STEPS + 1)]
    want, their = by_optax(TX[name](), params, grads)
    got, state = by_xopt(rule(TX[name]()), params, grads)
    close(got, want)
    assert len(state.slots) == len(jax.tree.leaves(their))


@pytest.mark.parametrize("dtype", ["float64", "complex64", "bfloat16", "float16"])
def test_dtypes(dtype: str) -> None:
    """Of half precision the arithmetic is that of float32 in both; only what is stored is rounded."""
    params, grads = tree(0, dtype), [tree(k, dtype) for k in range(1, STEPS + 1)]
    tx = optax.adam(0.1)
    got, _ = by_xopt(rule(tx), params, grads)
    if dtype in ("float64", "complex64"):
        close(got, by_optax(tx, params, grads)[0], 1e-12 if dtype == "float64" else 2e-6)
        return
    wide = lambda x: jax.tree.map(lambda a: a.astype("float32"), x)
    state = tx.init(wide(params))
    for g in grads:
        updates, state = tx.update(wide(g), state, wide(params))
        params = jax.tree.map(lambda p, u: (p.astype("float32") + u).astype(dtype), params, updates)
    close(got, params, 1e-2)


def test_several_dtypes_in_one_tree() -> None:
    """Gradients of all of them reach optax together: the norm is one."""
    params = {"a": jnp.ones(3, "float32"), "b": jnp.ones(2, "float64"), "c": jnp.ones(2, "bfloat16")}
    grads = jax.tree.map(lambda p: 3 * p, params)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0, momentum=0.5))
    got, state = by_xopt(rule(tx), params, [grads, grads])
    size = 1 / np.sqrt(7)
    for n, p in params.items():
        assert got[n].dtype == p.dtype
        np.testing.assert_allclose(np.asarray(got[n], "float64"), 1 - 2.5 * size, atol=4e-3 if n == "c" else 1e-6)
    assert all(x["b"] is not None and x["a"] is None for x in state.slots.values())  # where float64 is held


def test_what_no_float_holds_comes_back() -> None:
    """Counts beyond 2²⁴ in float32, keys of both kinds, booleans, complex numbers: to the bit."""
    seen = {
        "count": jnp.asarray(2**31 - 3, "int32"), "big": jnp.asarray([2**62 + 1], "int64"), "on": jnp.asarray([True]),
        "key": jax.random.key(7), "keys": jax.random.split(jax.random.key(1, impl="rbg"), 3),
        "raw": jax.random.PRNGKey(3), "z": jnp.asarray([1 + 2j], "complex128"), "f": jnp.asarray([0.1], "float64"),
        "nan": jnp.asarray([np.nan, np.inf, -0.0], "float32"), "h": jnp.asarray([0.1], "float16"),
        "i8": jnp.asarray([-128], "int8"), "none": jnp.zeros((0, 3), "int32"),
    }  # fmt: skip
    found: list[Any] = []

    def update(g: Any, state: Any, params: Any = None) -> Any:
        found.append(state)
        return g, {**state, "count": state["count"] + 1}

    tx = optax.GradientTransformation(lambda params: seen, update)
    params, once = {"w": jnp.ones(2)}, rule(tx)
    state = once.init(params)
    for _ in range(2):
        _, state = once.apply(params, params, state)
    assert int(found[1].pop("count")) == 2**31 - 2
    for n, x in found[1].items():
        assert x.dtype == seen[n].dtype, n
        x, y = (jax.random.key_data(a) if "key" in n else a for a in (x, seen[n]))
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), n


COMPOSED: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "clip in front": (
        lambda: xopt.chain(xopt.ClipByGlobalNorm(0.5), rule(optax.adam(0.1))),
        lambda: optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1)),
    ),
    "transform behind": (
        lambda: xopt.chain(rule(optax.adam(0.1)), xopt.ClipByGlobalNorm(0.1), transform(optax.scale(0.5))),
        lambda: optax.chain(optax.adam(0.1), optax.clip_by_global_norm(0.1), optax.scale(0.5)),
    ),
    "several": (
        lambda: xopt.chain(transform(optax.clip_by_global_norm(0.5)), transform(optax.scale_by_adam()), xopt.SGD(0.1)),
        lambda: optax.chain(optax.clip_by_global_norm(0.5), optax.scale_by_adam(), optax.sgd(0.1)),
    ),
    "inside of rules": (
        lambda: xopt.chain(transform(optax.clip_by_block_rms(0.5)), xopt.AdamW(0.1, weight_decay=0.1)),
        lambda: optax.chain(optax.clip_by_block_rms(0.5), optax.adamw(0.1, weight_decay=0.1)),
    ),
    "accumulate": (
        lambda: xopt.Accumulate(rule(optax.adam(0.1)), 2),
        lambda: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    ),
    "group": (
        lambda: xopt.Groups(xopt.SGD(0.1), ("deep/**", rule(optax.adam(0.1)))),
        lambda: optax.partition({"a": optax.sgd(0.1), "b": optax.adam(0.1)}, LABELS),
    ),
    "other group": (
        lambda: xopt.Groups(rule(optax.adam(0.1)), ("deep/**", xopt.SGD(0.1))),
        lambda: optax.partition({"a": optax.adam(0.1), "b": optax.sgd(0.1)}, LABELS),
    ),
    "frozen": (
        lambda: xopt.Groups(
            rule(optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1))), ("deep/**", xopt.Freeze)
        ),
        lambda: optax.partition(
            {"a": optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1)), "b": optax.set_to_zero()}, LABELS
        ),
    ),
    "masked": (
        lambda: xopt.chain(xopt.Masked(transform(optax.clip_by_global_norm(0.5)), "deep/**"), xopt.Adam(0.1)),
        lambda: optax.chain(
            optax.masked(optax.clip_by_global_norm(0.5), {"w": False, "deep": [True, True], "b": False}),
            optax.adam(0.1),
        ),
    ),
    "projection": (
        lambda: xopt.chain(rule(optax.adam(0.1)), xopt.NonNegative()),
        lambda: optax.chain(optax.adam(0.1), optax.keep_params_nonnegative()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPOSED)
def test_in_composition(name: str) -> None:
    ours, theirs = COMPOSED[name]
    params = jax.tree.map(abs, tree(0)) if name == "projection" else tree(0)
    grads = [tree(k) for k in range(1, STEPS + 1)]
    want, _ = by_optax(theirs(), params, grads)
    opt = xopt.Optimizer(params, ours(), metrics=["update_norm"])
    for g in grads:
        before = jax.tree.map(jnp.copy, opt.params)
        opt.step(g)
    close(opt.params, want)
    moved = [x - y for x, y in zip(jax.tree.leaves(opt.params), jax.tree.leaves(before), strict=True)]
    if name != "projection":
        assert float(opt.metrics["update_norm"]) == pytest.approx(float(optax.tree.norm(moved)), rel=1e-4)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda r: xopt.LossScale(r, initial=1.0, growth=1.0),
        lambda r: xopt.Guard(r, "skip"),
        lambda r: xopt.Precision(r, master_weights=True),
        lambda r: xopt.chain(r, xopt.EMA(0.5)),
    ],
)
def test_wrapped(wrap: Any) -> None:
    """What leaves a step of finite gradients as it is."""
    params, grads = tree(0), [tree(k) for k in range(1, STEPS + 1)]
    want, _ = by_optax(optax.adam(0.1), params, grads)
    got, state = by_xopt(wrap(rule(optax.adam(0.1))), params, grads)
    close(got, want)
    bad = jax.tree.map(lambda g: g * np.inf, grads[0])
    wrapped = wrap(rule(optax.adam(0.1)))
    if isinstance(wrapped, xopt.Guard | xopt.LossScale):
        kept, after = jax.jit(wrapped.apply)(got, bad, state)
        close(kept, got, 0.0)
        assert all(jax.tree.all(jax.tree.map(jnp.array_equal, after.slots[n], state.slots[n])) for n in state.slots)


def test_low_precision_of_parameters() -> None:
    """Master weights: parameters in bfloat16 are those of a run in float32, rounded."""
    wide, grads = tree(0), [jax.tree.map(lambda x: x.astype("bfloat16"), tree(k)) for k in range(1, 5)]
    params = jax.tree.map(lambda x: x.astype("bfloat16"), wide)
    got, _ = by_xopt(xopt.Precision(rule(optax.adam(0.01)), master_weights=True), params, grads)
    up = lambda x: jax.tree.map(lambda a: a.astype("float32"), x)
    want, _ = by_optax(optax.adam(0.01), up(params), [up(g) for g in grads])
    close(got, jax.tree.map(lambda x: x.astype("bfloat16"), want), 1e-2)
    with pytest.raises(TypeError, match=r"state_dtype='bfloat16', but the state of 0\.optax is not ours"):
        rule(optax.adam(0.1)).init(params, state_dtype="bfloat16")


@pytest.mark.parametrize("hole", ["w", "b", "deep"])
def test_a_gradient_of_none(hole: str) -> None:
    """Its parameter stays; the others, and the state of optax, go on as with a gradient of 0."""
    params, grads = tree(0), [tree(k) for k in range(1, 4)]
    zeros = jax.tree.map(jnp.zeros_like, grads[1][hole])
    without = [grads[0], {**grads[1], hole: jax.tree.map(lambda _: None, grads[1][hole])}, grads[2]]
    with_zero = [grads[0], {**grads[1], hole: zeros}, grads[2]]
    opt, other = (xopt.Optimizer(params, rule(optax.sgd(0.1, momentum=0.9))) for _ in range(2))
    for g, z in zip(without, with_zero, strict=True):
        before = jax.tree.map(jnp.copy, opt.params)
        opt.step(g)
        other.step(z)
        if g is without[1]:
            close(opt.params[hole], before[hole], 0.0)
    for n in {*params} - {hole}:
        close(opt.params[n], other.params[n], 0.0)
    for a, b in zip(jax.tree.leaves(opt.state.slots), jax.tree.leaves(other.state.slots), strict=True):
        assert jnp.array_equal(a, b)
    adam, moved = rule(optax.adam(0.1)), params
    state = adam.init(params)
    for g in without:
        moved, state = adam.apply(moved, g, state)
    assert int(_decoded(state, "0.count")) == 3


def _decoded(state: Any, name: str) -> Any:
    [x] = [x for x in jax.tree.leaves(state.slots[f"0.optax.{name}"]) if x is not None]
    return jax.lax.bitcast_convert_type(x.astype("uint16"), jnp.int32)


def test_the_loss() -> None:
    params, grads = tree(0), [tree(k) for k in range(1, 5)]
    make = lambda: optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(factor=0.5, patience=1, cooldown=0))
    want, _ = by_optax(make(), params, grads, value=jnp.asarray(1.0))
    once = rule(make(), value=True)
    close(by_xopt(once, params, grads, value=jnp.asarray(1.0))[0], want)
    opt = xopt.Optimizer(params, once)
    for g in grads:
        opt.step(g, value=1.0)
    close(opt.params, want)
    with pytest.raises(TypeError, match="value: missing"):
        opt.step(grads[0])
    xopt.Optimizer(params, rule(optax.sgd(0.1))).step(grads[0], value=1.0)  # of which nobody takes notice


def test_under_scan_and_vmap() -> None:
    params, once = tree(0), xopt.chain(xopt.ClipByGlobalNorm(1.0), rule(optax.adam(0.1)))
    grads = [tree(k) for k in range(1, 4)]
    want, _ = by_xopt(once, params, grads)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *grads)
    move = lambda c, g: (once.apply(c[0], g, c[1]), None)
    (got, _), _ = jax.jit(lambda p, gs: jax.lax.scan(move, (p, once.init(p)), gs))(params, stacked)
    close(got, want)
    many = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)
    step = jax.jit(lambda p, g: jax.vmap(once.apply)(p, g, jax.vmap(once.init)(p)))
    got, _ = step(many, jax.tree.map(lambda x: jnp.stack([x, x]), grads[0]))
    one, _ = by_xopt(once, jax.tree.map(lambda x: 2 * x, params), grads[:1])
    close(jax.tree.map(lambda x: x[1], got), one)


def test_checkpoints(tmp_path: Path) -> None:
    """A run goes on to the same bits from a file, a state dict and a copy; another transformation is refused."""
    params, grads = tree(0), [tree(k) for k in range(1, 6)]
    make = lambda: xopt.chain(
        xopt.ClipByGlobalNorm(0.5), rule(optax.noisy_sgd(0.1, key=jax.random.key(5))), xopt.EMA(0.5)
    )
    opt = xopt.Optimizer(params, make())
    for g in grads[:3]:
        opt.step(g)
    file, state = opt.save(tmp_path / "run.safetensors"), opt.state_dict(only_state=False)
    others = [xopt.Optimizer(tree(9), make()) for _ in range(2)]
    others[0].load(file)
    others[1].load_state_dict(state)
    for g in grads[3:]:
        opt.step(g)
        for other in others:
            other.step(g)
    for other in others:
        close(other.params, opt.params, 0.0)
        close(other.eval_params(), opt.eval_params(), 0.0)
    wrong = xopt.Optimizer(tree(9), xopt.chain(xopt.ClipByGlobalNorm(0.5), rule(optax.adam(0.1)), xopt.EMA(0.5)))
    with pytest.raises(xopt.CheckpointError, match=r"1\.optax\.0\.mu\.w/b: missing"):
        wrong.load(file)
    wrong.load(file, strict=False)
    wrong.step(grads[0])


def test_state_that_begins_at_the_parameters() -> None:
    """It begins anew at the parameters that were loaded, where the file has none of it."""
    plain = xopt.Optimizer(tree(1), xopt.SGD(0.1))
    free = xopt.Optimizer(tree(2), rule(optax.contrib.schedule_free(optax.sgd(0.1), 0.1)))
    free.load_state_dict(plain.state_dict(only_state=False), strict=False)
    fresh = xopt.Optimizer(tree(1), rule(optax.contrib.schedule_free(optax.sgd(0.1), 0.1)))
    for opt in (free, fresh):
        opt.step(tree(3))
    close(free.params, fresh.params, 0.0)


def test_errors() -> None:
    for wrong in (0.1, optax.adam, xopt.Adam()):
        with pytest.raises(TypeError, match="must be a GradientTransformation of optax"):
            rule(wrong)
        with pytest.raises(TypeError, match="transform: .* must be a GradientTransformation of optax"):
            transform(wrong)
    with pytest.raises(TypeError, match=r'params\["w"\]: an array of numpy, but 0.optax is .* for arrays of JAX'):
        xopt.Optimizer({"w": np.ones(3)}, rule(optax.adam(0.1)))
    with pytest.raises(ValueError, match="0 rules in"):
        xopt.chain(transform(optax.scale(1.0)))
    with pytest.raises(ValueError, match="no fixed multiple|beside the minimum"):
        xopt.chain(transform(optax.scale(1.0)), xopt.SGD(0.1), xopt.L1(0.1)).init(tree(0))
    with pytest.raises(TypeError, match=r"missing 1 required .*'value'; rule\(tx, value=True\) gives it the loss"):
        rule(optax.polyak_sgd(0.1)).apply(tree(0), tree(1), rule(optax.polyak_sgd(0.1)).init(tree(0)), value=1.0)
    plain = xopt.Optimizer(tree(0), rule(optax.MultiSteps(optax.adam(0.1), 2)))
    assert plain.hyperparams() == {}
    with pytest.raises(TypeError, match="no hyperparameter 'lr'; there are none"):
        plain.set(lr=0.5)
    grows = optax.GradientTransformation(lambda p: (), lambda g, s, p=None: (g, (*s, jnp.zeros(1))))
    with pytest.raises(ValueError, match="update returned the state .* but it began as"):
        rule(grows).apply(tree(0), tree(1), rule(grows).init(tree(0)))
    state = rule(optax.adam(0.1)).init(tree(0))
    with pytest.raises(ValueError, match="the state belongs to another rule"):
        rule(optax.sgd(0.1, momentum=0.9)).apply(tree(0), tree(1), state)
    assert (
        repr(xopt.chain(xopt.ClipByNorm(1.0), rule(optax.adam(0.1)))) == "chain(ClipByNorm(max_norm=1.0), rule(chain))"
    )
    tx = optax.adam(0.1)
    assert rule(tx) == rule(tx) != rule(optax.adam(0.1))
    assert copy.deepcopy(rule(tx)) == rule(tx)


def test_no_leaves_at_all() -> None:
    once = rule(optax.adam(0.1))
    assert xopt.Optimizer({}, once).step({}) == {}
    params = {"w": jnp.ones(2)}
    frozen = xopt.Optimizer(params, xopt.Groups(once, ("*", xopt.Freeze)))
    close(frozen.step(params), params, 0.0)


def test_no_parameters_are_kept() -> None:
    opt = xopt.Optimizer(tree(0), rule(optax.adam(0.1)))
    opt.step(tree(1))
    held = [weakref.ref(x) for x in [opt, *jax.tree.leaves(opt.params)]]
    del opt
    gc.collect()
    assert [x() for x in held if x() is not None] == []
