"""State of optax: a run that moves over in the middle ends where it would have ended, and back."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from support.moves import BEFORE, SHAPES, Arrays, close, draw, nested, problems

import xopt


class Like(NamedTuple):
    """A rule here and a transformation of optax."""

    rule: Any
    make: Callable[[Any], Any]
    step: int | None = None
    complex: bool = False


def optax_cases() -> list[Any]:
    rules = xopt.schedules
    cosine = lambda optax: optax.cosine_decay_schedule(0.1, 20)
    cases = [
        Like(xopt.Adam(0.1, like="optax"), lambda o: o.adam(0.1)),
        Like(xopt.Adam(0.1, eps=1e-3, eps_mode="inside"), lambda o: o.adam(0.1, eps=0.0, eps_root=1e-3)),
        Like(xopt.Adam(0.1, like="optax"), lambda o: o.adam(0.1), complex=True),
        Like(xopt.Adam(rules.cosine(0.1, steps=20), like="optax"), lambda o: o.adam(cosine(o))),
        Like(xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.AdamW(0.1, weight_decay=0.3, like="optax")),
             lambda o: o.chain(o.clip_by_global_norm(1.0), o.adamw(0.1, weight_decay=0.3))),
        Like(xopt.AdamW(0.5, weight_decay=0.0, like="optax"),
             lambda o: o.inject_hyperparams(o.adamw)(0.1, b1=0.8, weight_decay=0.3)),
        Like(xopt.AdamW(rules.cosine(0.1, steps=20), weight_decay=0.3, like="optax"),
             lambda o: o.inject_hyperparams(o.adamw)(cosine(o), weight_decay=0.3)),
        Like(xopt.SGD(0.05, like="optax"), lambda o: o.sgd(0.05)),
        Like(xopt.SGD(0.7, like="optax"), lambda o: o.inject_hyperparams(o.sgd)(0.05)),
        Like(xopt.SGD(0.05, momentum=0.9, like="optax"), lambda o: o.sgd(0.05, momentum=0.9)),
        Like(xopt.SGD(0.05, momentum=0.9, like="optax"), lambda o: o.sgd(0.05, momentum=0.9), complex=True),
        Like(xopt.SGD(rules.cosine(0.1, steps=20), momentum=0.9, nesterov=True, weight_decay=0.1, like="optax"),
             lambda o: o.chain(o.add_decayed_weights(0.1), o.sgd(cosine(o), momentum=0.9, nesterov=True))),
        Like(xopt.RMSProp(0.02, like="optax"), lambda o: o.rmsprop(0.02)),
        Like(xopt.RMSProp(0.02, momentum=0.8, like="optax"), lambda o: o.rmsprop(0.02, momentum=0.8)),
        Like(xopt.RMSProp(rules.cosine(0.02, steps=20), momentum=0.8, centered=True, like="optax"),
             lambda o: o.rmsprop(o.cosine_decay_schedule(0.02, 20), momentum=0.8, centered=True)),
        Like(xopt.RMSProp(0.02, eps_mode="outside", like="optax"), lambda o: o.rmsprop(0.02, eps_in_sqrt=False)),
        Like(xopt.RMSProp(0.02, momentum=0.8, like="optax"), lambda o: o.rmsprop(0.02, momentum=0.8), complex=True),
        Like(xopt.Groups(xopt.Adam(0.1), ("norm/*", xopt.SGD(0.05, momentum=0.9)), ("scale", xopt.Freeze)),
             lambda o: o.multi_transform(
                 {"a": o.adam(0.1), "b": o.sgd(0.05, momentum=0.9), "c": o.set_to_zero()},
                 {"net": "a", "norm": "b", "scale": "c", "none": "a"})),
        Like(xopt.Adam(0.1, like="optax"), lambda o: o.named_chain(("x", o.clip(1e9)), ("y", o.adam(0.1)))),
    ]  # fmt: skip
    return [pytest.param(x, id=f"{i} {x.rule!r} {x.complex}".partition(" at 0x")[0]) for i, x in enumerate(cases)]


def flat(x: Any) -> Arrays:
    return {n: np.asarray(x[n.partition(".")[0]][n.partition(".")[2]] if "." in n else x[n]) for n in SHAPES}


def optax_walk(opt: Any, theirs: Any, state: Any, grads: list[Arrays]) -> Any:
    optax, jax = importlib.import_module("optax"), importlib.import_module("jax")
    for g in grads:
        updates, state = opt.update(jax.tree.map(jax.numpy.asarray, nested(g)), state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    return theirs, state


@pytest.mark.needs("jax")
@pytest.mark.parametrize("case", optax_cases())
def test_optax_and_back(case: Like, rng: np.random.Generator) -> None:
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    params, grads = draw(rng, case.complex)
    opt, start = case.make(optax), jax.tree.map(jax.numpy.asarray, nested(params))
    middle, state = optax_walk(opt, start, opt.init(start), grads[:BEFORE])
    want = flat(optax_walk(opt, middle, state, grads[BEFORE:])[0])
    for as_array in (jax.numpy.asarray, np.array):
        own = jax.tree.map(as_array, middle)
        mine = xopt.Optimizer(own, case.rule)
        mine.load_state_dict(xopt.from_optax(state, case.rule, own))
        for g in grads[BEFORE:]:
            mine.step(jax.tree.map(as_array, nested(g)))
        close(flat(mine.params), want)
        # half of the way here, the rest there
        own = jax.tree.map(as_array, middle)
        mine = xopt.Optimizer(own, case.rule)
        mine.load_state_dict(xopt.from_optax(state, case.rule, own))
        for g in grads[BEFORE : BEFORE + 3]:
            mine.step(jax.tree.map(as_array, nested(g)))
        like = opt.init(start)
        back = xopt.to_optax(mine.state_dict(), mine.rule, mine.params, like)
        assert jax.tree.structure(back) == jax.tree.structure(like)
        for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(like), strict=True):
            assert (type(x), x.dtype, x.shape) == (type(y), y.dtype, y.shape)
        there = jax.tree.map(jax.numpy.asarray, mine.params)
        close(flat(optax_walk(opt, there, back, grads[BEFORE + 3 :])[0]), want)


@pytest.mark.needs("jax")
def test_numbers_of_inject_hyperparams_move() -> None:
    optax, jnp = pytest.importorskip("optax"), pytest.importorskip("jax.numpy")
    w = {"w": jnp.ones(2)}
    opt = optax.inject_hyperparams(optax.adamw)(0.25, b1=0.5, weight_decay=0.125)
    rule = xopt.AdamW(0.1, like="optax")
    mine = xopt.Optimizer(w, rule)
    mine.load_state_dict(xopt.from_optax(opt.init(w), rule, w))
    assert [mine.hyperparams()[n] for n in ("lr", "b1", "weight_decay")] == [0.25, 0.5, 0.125]
    mine.set(lr=0.75)
    like = opt.init(w)
    assert float(xopt.to_optax(mine.state_dict(), rule, w, like).hyperparams["learning_rate"]) == 0.75
    assert float(like.hyperparams["learning_rate"]) == 0.25
    rooted = optax.inject_hyperparams(optax.adam)(0.1, eps=0.0, eps_root=1e-3).init(w)
    assert problems(lambda: xopt.from_optax(rooted, xopt.Adam(), w)) == [
        "rule: 0.adam.eps_mode: 'inside' in optax, but here it is 'outside'"
    ]
    inside = xopt.from_optax(rooted, xopt.Adam(eps_mode="inside"), w)
    assert inside["rule"][0]["hyper"]["eps"] == 1e-3
    plain = optax.inject_hyperparams(optax.adam)(0.1).init(w)
    assert "rule: 0.adam.eps_mode: 'outside' in optax, but here it is 'inside'" in problems(
        lambda: xopt.from_optax(plain, xopt.Adam(eps_mode="inside"), w)
    )


@pytest.mark.needs("jax")
def test_states_of_optax_that_do_not_fit(rng: np.random.Generator) -> None:
    optax, jnp = pytest.importorskip("optax"), pytest.importorskip("jax.numpy")
    w = {"a": jnp.ones(2), "b": jnp.ones(3)}
    adam, none = xopt.Adam(like="optax", lr=0.1), [f"state/0.adam.{s}/{n}: missing" for n in "ab" for s in "mv"]
    nowhere = lambda field: [f"state[0].{field}: {n}: not among the arrays of this rule" for n in "ab"]
    why = "its nu_max is the largest corrected v, and that of xopt the largest uncorrected one"
    for opt, rule, texts in [
        (optax.amsgrad(0.1), adam,
         [f"state[0]: ScaleByAmsgradState: {why}", *none]),
        (optax.adabelief(0.1), adam,
         ["state[0]: ScaleByBeliefState: not a state that moves", *none]),
        (optax.sgd(0.1, momentum=0.9), xopt.SGD(),
         nowhere("trace")),
        (optax.sgd(0.1), xopt.SGD(momentum=0.9), ["state/0.sgd.m/a: missing", "state/0.sgd.m/b: missing"]),
        (optax.sgd(0.1), xopt.SGD(momentum=0.9, dampening=0.5, form="lr_inside"),
         ["rule: 0.sgd.form: 'lr_outside' in optax, but here it is 'lr_inside'",
          "rule: 0.sgd.dampening: None in optax, but here it is 0.5",
          "state/0.sgd.m/a: missing", "state/0.sgd.m/b: missing"]),
        (optax.rmsprop(0.1, momentum=0.9), xopt.RMSProp(momentum=0.9),
         ["rule: 0.rmsprop.form: 'lr_inside' in optax, but here it is 'lr_outside'"]),
        (optax.rmsprop(0.1, bias_correction=True), xopt.RMSProp(),
         ["state[0]: ScaleByRmsWithCountState: of bias_correction=True, which RMSProp of xopt has not",
          "state/0.rmsprop.v/a: missing", "state/0.rmsprop.v/b: missing"]),
        (optax.rmsprop(0.1, centered=True), xopt.RMSProp(),
         nowhere("mu")),
        (optax.adam(0.1), xopt.Adam(amsgrad=True, eps_mode="hat", bias="none"),
         ["rule: 0.adam.bias: 'standard' in optax, but here it is 'none'",
          "rule: 0.adam.amsgrad: False in optax, but here it is True",
          "rule: 0.adam.eps_mode: 'outside' in optax, but here it is 'hat'",
          "state/0.adam.top/a: missing", "state/0.adam.top/b: missing"]),
        (optax.chain(optax.adam(0.1), optax.ema(0.9)), adam, ["state[1]: EmaState: not a state that moves"]),
        (optax.chain(optax.adam(0.1), optax.adam(0.1)), adam,
         [f"state/0.adam.{s}/{n}: found twice, and once at state[1][0].{f}"
          for f, s in (("mu", "m"), ("nu", "v")) for n in "ab"]),
        (optax.masked(optax.adam(0.1), {"a": True, "b": False}), adam,
         ["state/0.adam.m/b: missing", "state/0.adam.v/b: missing"]),
    ]:  # fmt: skip
        state = opt.init(w)
        assert problems(lambda x=state, r=rule: xopt.from_optax(x, r, w)) == texts
        with pytest.raises(xopt.CheckpointError):
            xopt.to_optax(xopt.Optimizer(w, rule).state_dict(), rule, w, state)
    state = optax.adam(optax.constant_schedule(0.1)).init(w)
    wrong = (state[0]._replace(count=jnp.asarray(3), mu={"a": jnp.ones(1), "b": jnp.ones(3)}), state[1])
    assert problems(lambda: xopt.from_optax(wrong, adam, w)) == [
        "state/0.adam.m/a: state[0].mu: shape (1,), but here it is (2,)",
        "step: 0 in state[1].count, 3 in state[0].count; but there is one step for all",
    ]
    wrong = (state[0]._replace(nu={"a": jnp.ones(2)}), state[1])
    assert 'state[0].nu["b"]: missing, but the parameters have it' in problems(lambda: xopt.from_optax(wrong, adam, w))
    scheduled = xopt.SGD(xopt.schedules.cosine(0.1, steps=9), momentum=0.9)
    state = optax.sgd(0.1, momentum=0.9).init(w)
    assert problems(lambda: xopt.from_optax(state, scheduled, w)) == [
        "step: there is none in the state, and a schedule of this rule asks for it: give step="
    ]
    assert xopt.from_optax(state, scheduled, w, step=5)["step"] == 5
    z = {"z": jnp.ones(2, "complex128")}
    assert problems(lambda: xopt.from_optax(optax.adam(0.1).init(z), xopt.Adam(complex="split"), z)) == [
        "rule: 0.adam.complex: 'modulus' in optax, but here it is 'split'"
    ]
    moved = optax.adam(0.1).init(z)
    moved = (moved[0]._replace(nu={"z": jnp.full(2, 1 + 1j)}), moved[1])
    assert problems(lambda: xopt.from_optax(moved, xopt.Adam(), z)) == [
        "state/0.adam.v/z: state[0].nu: dtype complex128, but here it is real"
    ]
    with pytest.raises(TypeError, match="but the rules whose state moves are"):
        xopt.from_optax(state, xopt.Lion(), w)


@pytest.mark.needs("jax")
def test_optax_keeps_its_dtypes() -> None:
    optax, jnp = pytest.importorskip("optax"), pytest.importorskip("jax.numpy")
    w = {"w": jnp.ones(3, "bfloat16")}
    opt, rule = optax.adam(0.1, mu_dtype="bfloat16"), xopt.Adam(0.1, like="optax")
    _, state = opt.update({"w": jnp.asarray([0.1, 0.2, 0.3], "bfloat16")}, opt.init(w), w)
    found = xopt.from_optax(state, rule, w)
    assert found["state"]["0.adam.m"]["w"].dtype == jnp.float32
    assert jnp.array_equal(found["state"]["0.adam.m"]["w"], state[0].mu["w"].astype("float32"))
    back = xopt.to_optax(found, rule, w, opt.init(w))
    assert back[0].mu["w"].dtype == jnp.bfloat16
    assert jnp.array_equal(back[0].mu["w"], state[0].mu["w"])
    assert (back[0].count.dtype, int(back[0].count)) == (jnp.int32, 1)
