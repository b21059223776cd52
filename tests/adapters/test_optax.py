"""A rule as an optax transformation: alone, in what optax puts around one, and beside optax's own."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest

import xopt

pytestmark = pytest.mark.needs("jax")
jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
import jax.numpy as jnp

X = np.linspace(-1.0, 1.0, 60).reshape(20, 3).astype("float32")
Y = np.sin(3 * X.sum(1))


def transformation(*args: Any, **kwargs: Any) -> Any:
    from xopt.adapters.optax import transformation

    return transformation(*args, **kwargs)


def first() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    return {
        "hidden": {"w": jnp.asarray(rng.standard_normal((3, 4)), jnp.float32), "b": jnp.zeros(4, jnp.float32)},
        "out": [jnp.asarray(rng.standard_normal(4), jnp.float32), jnp.zeros((), jnp.float32)],
    }


@jax.jit
def loss(params: Any) -> Any:
    hidden = jnp.tanh(X @ params["hidden"]["w"] + params["hidden"]["b"])
    return jnp.mean((hidden @ params["out"][0] + params["out"][1] - Y) ** 2)


gradient = jax.jit(jax.value_and_grad(loss))
GRADS = gradient(first())[1]


def stepped(tx: Any, params: Any, state: Any) -> tuple[Any, Any]:
    value, grads = gradient(params)
    updates, state = optax.with_extra_args_support(tx).update(grads, state, params, value=value)
    return optax.apply_updates(params, updates), state


def train(tx: Any, steps: int = 10, params: Any = None, state: Any = None) -> tuple[Any, Any]:
    params = first() if params is None else params
    state = tx.init(params) if state is None else state
    step = jax.jit(partial(stepped, tx))
    for _ in range(steps):
        params, state = step(params, state)
    assert step._cache_size() == 1
    return params, state


def apart(a: Any, b: Any) -> float:
    return max(float(jnp.max(jnp.abs(x - y))) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def same(a: Any, b: Any) -> bool:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(
        x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


PEERS = {
    "adam": (xopt.Adam(0.05, like="optax"), optax.adam(0.05)),
    "adamw": (xopt.AdamW(0.05, weight_decay=0.1, like="optax"), optax.adamw(0.05, weight_decay=0.1)),
    "sgd": (xopt.SGD(0.05, momentum=0.9, like="optax"), optax.sgd(0.05, momentum=0.9)),
    "rmsprop": (xopt.RMSProp(0.05, like="optax"), optax.rmsprop(0.05)),
    "lion": (xopt.Lion(0.05, like="optax"), optax.lion(0.05)),
    "adagrad": (xopt.Adagrad(0.05, like="optax"), optax.adagrad(0.05)),
    "schedule": (
        xopt.Adam(xopt.schedules.cosine(0.05, steps=10), like="optax"),
        optax.adam(optax.cosine_decay_schedule(0.05, 10)),
    ),
    "clip": (
        xopt.chain(xopt.ClipByGlobalNorm(0.1), xopt.SGD(0.05)),
        optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.05)),
    ),
}


@pytest.mark.parametrize("name", PEERS)
def test_ten_steps_beside_optax(name: str) -> None:
    rule, theirs = PEERS[name]
    got, want = train(transformation(rule))[0], train(theirs)[0]
    assert apart(got, want) <= 2e-6
    assert apart(got, first()) > 1e-3


RULES = {
    "adam": xopt.Adam(0.05),
    "decay": xopt.AdamW(0.05),
    "scalars": xopt.Prodigy(),
    "leaf": xopt.LDoG(),
    "norm": xopt.chain(xopt.ClipByGlobalNorm(0.1), xopt.LAMB(0.05)),
    "matrices": xopt.Shampoo(0.05),
    "average": xopt.chain(xopt.SGD(0.05), xopt.EMA(0.9)),
    "groups": xopt.Groups(xopt.Adam(0.05), ("hidden/**", {"lr": 0.01})),
}


@pytest.mark.parametrize("name", RULES)
def test_steps_are_those_of_the_rule(name: str) -> None:
    """Eager, jitted and in a scan, with nothing compiled twice."""
    rule = RULES[name]
    tx = transformation(rule)
    params, state = first(), rule.init(first())
    for _ in range(4):
        params, state = rule.apply(params, gradient(params)[1], state)
    jitted = train(tx, 4)
    assert apart(jitted[0], params) <= (2e-5 if name == "matrices" else 2e-6)
    assert apart(jitted[1], state) <= 1e-5
    begun = first(), tx.init(first())
    scanned, _ = jax.lax.scan(lambda carry, _: (stepped(tx, *carry), None), begun, None, length=4)
    assert apart(scanned, jitted) <= 2e-6
    assert jax.tree.structure(scanned) == jax.tree.structure(jitted)
    assert apart(jitted[0], first()) > 0
    if name in ("adam", "norm"):
        once, _ = stepped(tx, *begun)  # without jit
        assert apart(once, rule.apply(first(), GRADS, rule.init(first()))[0]) <= 1e-7


def test_several_models_at_once() -> None:
    tx = transformation(xopt.chain(xopt.ClipByGlobalNorm(0.1), xopt.AdamW(0.05)))
    many = jax.tree.map(lambda x: jnp.stack([x, 2 * x + 1]), first())
    state = jax.vmap(tx.init)(many)
    assert state.step.shape == (2,)
    updates, _ = jax.vmap(lambda p, s: tx.update(gradient(p)[1], s, p))(many, state)
    for k in range(2):
        one = jax.tree.map(lambda x, k=k: x[k], many)
        want, _ = tx.update(gradient(one)[1], tx.init(one), one)
        assert apart(jax.tree.map(lambda x, k=k: x[k], updates), want) <= 1e-6


def test_a_hyperparameter_has_a_derivative() -> None:
    def final(lr: Any) -> Any:
        tx, params = transformation(xopt.SGD(lr)), first()
        state = tx.init(params)
        for _ in range(2):
            params, state = stepped(tx, params, state)
        return loss(params)

    got = jax.jit(jax.grad(final))(0.05)
    assert float(got) == pytest.approx(float(final(0.051) - final(0.049)) / 0.002, rel=1e-2)


AROUND = {
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(0.1), tx, optax.scale(0.5)),
    "named_chain": lambda tx: optax.named_chain(("clip", optax.clip(0.01)), ("own", tx)),
    "masked": lambda tx: optax.masked(tx, {"hidden": {"w": True, "b": False}, "out": [True, False]}),
    "masked all": lambda tx: optax.masked(tx, jax.tree.map(lambda x: False, first())),
    "partition": lambda tx: optax.partition(
        {"ours": tx, "none": optax.set_to_zero()}, {"hidden": "ours", "out": "none"}
    ),
    "flatten": optax.flatten,
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "maybe_update": lambda tx: optax.conditionally_transform(tx, lambda step, **_: step % 2 == 0),
    "plateau": lambda tx: optax.chain(tx, optax.contrib.reduce_on_plateau(patience=1)),
    "schedule_free": lambda tx: optax.contrib.schedule_free(tx, learning_rate=0.05),
    "multi": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
}


@pytest.mark.parametrize("name", AROUND)
def test_inside_of_what_optax_has(name: str) -> None:
    """What is around our Adam does to it what it does to optax's own."""
    got = train(AROUND[name](transformation(xopt.Adam(0.05, like="optax"))), 6)[0]
    want = train(AROUND[name](optax.adam(0.05)), 6)[0]
    assert apart(got, want) <= 2e-6 * max(1.0, apart(want, first()))
    assert (apart(got, first()) > 1e-3) or name == "nothing"


def test_lookahead() -> None:
    both = optax.LookaheadParams.init_synced(first())
    found = []
    for inner in (transformation(xopt.Adam(0.05, like="optax")), optax.adam(0.05)):
        tx, params = optax.lookahead(inner, 2, 0.5), both
        state = tx.init(params)
        for _ in range(5):
            updates, state = tx.update(gradient(params.fast)[1], state, params)
            params = optax.apply_updates(params, updates)
        found.append(params)
    assert apart(*found) <= 2e-6


@pytest.mark.parametrize("lr", [0.05, optax.cosine_decay_schedule(0.05, 10)], ids=["number", "schedule"])
def test_injected_hyperparams(lr: Any) -> None:
    ours = optax.inject_hyperparams(lambda lr: transformation(xopt.Adam(lr, like="optax")))(lr)
    theirs = optax.inject_hyperparams(optax.adam)(lr)
    assert apart(train(ours)[0], train(theirs)[0]) <= 2e-6
    if callable(lr):
        return
    params, state = train(ours, 3)
    state.hyperparams["lr"] = jnp.asarray(0.0)
    after, _ = train(ours, 1, params, state)
    assert same(after, params)


def test_state_is_mapped_as_optax_maps_it() -> None:
    tx = transformation(xopt.chain(xopt.ClipByGlobalNorm(0.1), xopt.AdamW(0.05), xopt.EMA(0.9)))
    _, state = train(tx, 2)
    shapes = optax.tree_map_params(
        tx, lambda x, p: (x.shape, p.shape), state, first(), transform_non_params=lambda x: None
    )
    assert shapes.step is None
    found = [x for x in jax.tree.leaves(shapes, is_leaf=lambda x: isinstance(x, tuple) and len(x) == 2) if x]
    assert len([*shapes.slots]) >= 3
    assert all(a == b for a, b in found if isinstance(a, tuple))
    assert set(shapes.slots) == set(state.slots)
    assert optax.tree.get(state, "step") == 2
    half = optax.tree.cast(state, jnp.bfloat16)
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(half.slots))
    for rule in (xopt.LDoG(), xopt.Shampoo(), xopt.Prodigy()):
        own = transformation(rule)
        names = optax.tree_map_params(own, lambda _: "like p", own.init(first()), transform_non_params=lambda _: "no")
        assert names.step == "no"
        assert {*jax.tree.leaves(names.slots)} == {"like p"}
        assert {*jax.tree.leaves(names.carry)} <= {"no"}


@pytest.mark.parametrize("name", ["adam", "scalars", "average"])
def test_a_saved_state_goes_on_with_the_same_bits(name: str) -> None:
    tx = transformation(RULES[name])
    params, state = train(tx, 3)
    want = train(tx, 3, params, state)
    leaves, _ = jax.tree.flatten((params, state))
    again = jax.tree.unflatten(jax.tree.structure((first(), tx.init(first()))), pickle.loads(pickle.dumps(leaves)))
    assert same(train(tx, 3, *again), want)


def test_without_parameters() -> None:
    tx = transformation(xopt.chain(xopt.ClipByGlobalNorm(0.1), xopt.Adam(0.05)))
    state = tx.init(first())
    assert same(tx.update(GRADS, state), tx.update(GRADS, state, first()))
    for rule in (xopt.AdamW(0.05), xopt.SGD(0.05, weight_decay=0.1), xopt.Shampoo(), xopt.Prodigy(), xopt.LAMB()):
        own = transformation(rule)
        state = own.init(first())
        with pytest.raises(ValueError, match=r"params: missing, but .*update\(grads, state, params\)"):
            own.update(GRADS, state)


def test_a_loss_is_passed_on_and_other_words_are_not_looked_at() -> None:
    tx = transformation(xopt.chain(xopt.SGD(0.05), xopt.ReduceOnPlateau(patience=0, factor=0.5)))
    state = tx.init(first())
    with pytest.raises(TypeError, match="value: missing"):
        tx.update(GRADS, state, first())
    steps = []
    for value in (1.0, 2.0, 2.0, 2.0):
        updates, state = tx.update(GRADS, state, first(), value=jnp.asarray(value), grad=GRADS, value_fn=loss)
        steps.append(float(updates["out"][1]))
    assert steps[3] == pytest.approx(steps[0] / 4) or steps[3] == pytest.approx(steps[0] / 8)
    plain = transformation(xopt.SGD(0.05))
    assert same(plain.update(GRADS, plain.init(first()), value=1.0), plain.update(GRADS, plain.init(first())))


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_gradients_of_another_dtype(half: str) -> None:
    tx = transformation(xopt.AdamW(0.05))
    few = jax.tree.map(lambda x: x.astype(half), first())
    updates, state = tx.update(GRADS, tx.init(few), few)
    want, _ = tx.update(GRADS, tx.init(first()), jax.tree.map(lambda x: x.astype(jnp.float32), few))
    assert same(updates, want)
    assert {x.dtype.name for x in jax.tree.leaves(state.slots)} == {"float32"}
    narrow = jax.tree.map(lambda x: x.astype(half), GRADS)
    updates, _ = tx.update(narrow, tx.init(first()), first())
    assert {x.dtype.name for x in jax.tree.leaves(updates)} == {"float32"}
    updates, _ = tx.update(narrow, tx.init(few), few)
    assert {x.dtype.name for x in jax.tree.leaves(updates)} == {half}
    one = {"w": jnp.ones(2, jnp.float32)}
    with pytest.raises(TypeError, match=r'grads\["w"\]: dtype complex64, but the parameter has float32'):
        tx.update({"w": jnp.ones(2, jnp.complex64)}, tx.init(one), one)


@pytest.mark.parametrize("words", [{"rounding": "stochastic", "seed": 3}, {"master_weights": True}], ids=str)
def test_precision_in_the_rule_wants_one_dtype(words: Any) -> None:
    few = jnp.ones(50, jnp.bfloat16)
    tx = transformation(xopt.Precision(xopt.SGD(1e-4), **words))
    with pytest.raises(TypeError, match="grads: dtype float32, but the parameter has bfloat16"):
        tx.update(jnp.ones(50, jnp.float32), tx.init(few), few)
    updates, _ = tx.update(few, tx.init(few), few)
    assert updates.dtype == jnp.bfloat16


def test_a_state_on_the_host() -> None:
    tx = transformation(xopt.chain(xopt.AdamW(0.05), xopt.EMA(0.9)))
    params, state = train(tx, 2)
    host = jax.device_get(state)
    assert isinstance(jax.tree.leaves(host)[1], np.ndarray)
    assert same(tx.update(GRADS, host, params), tx.update(GRADS, state, params))


def test_parameters_of_numpy_and_numbers() -> None:
    host = jax.tree.map(np.asarray, first())
    tx = transformation(xopt.AdamW(0.05))
    assert same(tx.update(GRADS, tx.init(host), host), tx.update(GRADS, tx.init(first()), first()))

    def step(carry: Any, _: Any) -> Any:
        p, state = carry
        updates, state = tx.update(jax.grad(lambda p: p**2)(p), state, p)
        return (optax.apply_updates(p, updates), state), None

    weak = jnp.asarray(1.0)
    assert weak.weak_type
    (p, _), _ = jax.lax.scan(step, (weak, tx.init(weak)), None, length=3)
    (q, _), _ = jax.lax.scan(step, (1.0, tx.init(1.0)), None, length=3)
    assert p == q == pytest.approx(0.85, abs=0.01)


def test_gradients_that_are_missing() -> None:
    tx = transformation(xopt.AdamW(0.05))
    params = {"a": jnp.ones(2), "b": jnp.ones(2), "none": None}
    updates, state = tx.update({"a": jnp.ones(2), "b": None, "none": None}, tx.init(params), params)
    assert updates["none"] is None
    np.testing.assert_array_equal(updates["b"], [0.0, 0.0])
    assert float(jnp.max(updates["a"])) < 0
    np.testing.assert_array_equal(state.slots["0.adamw.m"]["b"], [0.0, 0.0])


@pytest.mark.parametrize(
    ("words", "dtype"),
    [
        ({"state_dtype": "bfloat16"}, "bfloat16"),
        ({"state_dtype": "int8"}, "int8"),
        ({"master_weights": True}, "float32"),
    ],
    ids=str,
)
def test_state_is_kept_as_asked_for(words: Any, dtype: str) -> None:
    few = {"w": jnp.linspace(-1, 1, 5000).astype(jnp.bfloat16)}  # small ones are not kept in 8 bits
    tx, rule = transformation(xopt.Adam(0.01), **words), xopt.Adam(0.01)
    params, state = few, tx.init(few)
    assert dtype in {x.dtype.name for x in jax.tree.leaves(state.slots)}
    own, theirs = few, rule.init(few, **words)
    step = jax.jit(tx.update)
    for _ in range(5):
        updates, state = step(params, state, params)
        params = optax.apply_updates(params, updates)
        own, theirs = rule.apply(own, own, theirs)
    assert apart(params, own) <= 0.02
    assert jax.tree.structure(state) == jax.tree.structure(theirs)


def test_stochastic_rounding_moves_where_the_nearest_number_is_the_old_one() -> None:
    few = jnp.ones(2000, jnp.bfloat16)
    for words, moved in (({}, False), ({"rounding": "stochastic", "seed": 3}, True)):
        tx, p = transformation(xopt.SGD(1e-4), **words), few
        state = tx.init(p)
        for _ in range(20):
            updates, state = tx.update(few, state, p)
            p = optax.apply_updates(p, updates)
        mean = float(jnp.mean(p.astype(jnp.float32)))
        assert (mean == pytest.approx(0.998, abs=5e-4)) if moved else (mean == 1.0)


def test_errors() -> None:
    with pytest.raises(TypeError, match="rule: Adam, but it must be a rule or a chain; make an object of it"):
        transformation(xopt.Adam)
    with pytest.raises(TypeError, match="rule: GradientTransformationExtraArgs, but it must be a rule"):
        transformation(optax.adam(0.1))
    with pytest.raises(ValueError, match="rounding: 'up'"):
        transformation(xopt.Adam(), rounding="up")
    with pytest.raises(ValueError, match="state_dtype"):
        transformation(xopt.Adam(), state_dtype="float8")
    tx = transformation(xopt.Adam())
    state = tx.init(first())
    wrong = {**GRADS, "out": [jnp.ones(5), jnp.zeros(())]}
    with pytest.raises(ValueError, match=r'grads\["out"\]\[0\]: shape \(5,\), but the parameter has \(4,\)'):
        tx.update(wrong, state, first())
    with pytest.raises(ValueError, match=r'grads\["out"\]: missing'):
        tx.update({"hidden": GRADS["hidden"]}, state, first())
    with pytest.raises(TypeError, match="dtype int"):
        tx.init({"n": jnp.arange(3)})
    other = transformation(xopt.SGD(momentum=0.9))
    with pytest.raises(ValueError, match="the state belongs to another rule"):
        other.update(GRADS, state, first())


@pytest.mark.parametrize("lazy", [True, False])
def test_gradients_by_rows(lazy: bool) -> None:
    params = {"table": jnp.ones((5, 2)), "bias": jnp.ones(2)}
    rows = xopt.SparseRows(jnp.asarray([1, 3, 1]), jnp.arange(6.0).reshape(3, 2), lazy=lazy)
    grads, rule = {"table": rows, "bias": jnp.ones(2)}, xopt.Adagrad(0.1)
    tx = transformation(rule)
    state = tx.init(params)
    with pytest.raises(ValueError, match=r"params: missing, but SparseRows need them; call update\(grads, state, par"):
        tx.update(grads, state)
    updates, state = tx.update(grads, state, params)
    want = rule.apply(params, grads, rule.init(params))[0]
    for n, x in optax.apply_updates(params, updates).items():
        np.testing.assert_allclose(x, want[n], rtol=1e-6)  # a sum and a difference more
    assert np.all(updates["table"][1] != 0)
