"""`python -m xopt convert`: files of Flax with states of optax, and checkpoints, turned into each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xopt

optax = pytest.importorskip("optax")
serialization = pytest.importorskip("flax.serialization")
train_state = pytest.importorskip("flax.training.train_state")
import jax
import jax.numpy as jnp

pytestmark = pytest.mark.filterwarnings("ignore")  # what frameworks say of each other


def tree(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    make = lambda *shape: jnp.asarray(rng.normal(size=shape), "float32")
    return {"Dense_0": {"kernel": make(3, 2), "bias": make(2)}, "a/b": make(4)}


MASK = {"Dense_0": {"kernel": True, "bias": False}, "a/b": True}
CASES = {
    "adamw": ("AdamW(lr=0.1, like='optax')", lambda: optax.adamw(0.1)),
    "clip": (
        "chain(ClipByGlobalNorm(1.0), Adam(lr=0.1, like='optax'))",
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.constant_schedule(0.1))),
    ),
    "momentum": ("SGD(lr=0.1, momentum=0.9, like='optax')", lambda: optax.sgd(0.1, momentum=0.9)),
    "rmsprop": ("RMSProp(lr=0.1, like='optax')", lambda: optax.rmsprop(0.1)),
    "centered": ("RMSProp(lr=0.1, centered=True, like='optax')", lambda: optax.rmsprop(0.1, centered=True)),
    "injected": ("Adam(lr=0.5, like='optax')", lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1)),
}


def trained(tx: Any) -> Any:
    state = train_state.TrainState.create(apply_fn=None, params=tree(0), tx=tx)
    for k in (1, 2, 3):
        state = state.apply_gradients(grads=tree(k))
    return state


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name: str, convert: Any) -> None:
    rule, tx = CASES[name]
    theirs = trained(tx())
    Path("state.msgpack").write_bytes(serialization.to_bytes(theirs))
    code, out, err = convert("state.msgpack", "run.safetensors", "--rule", rule)
    assert (code, out, err) == (0, "run.safetensors: the state of 3 parameters\n", "")
    opt = xopt.Optimizer(jax.tree.map(lambda x: np.zeros(x.shape, "float32"), tree(0)), _rule(rule))
    opt.load("run.safetensors")
    assert opt.steps_taken == 3
    later = theirs.apply_gradients(grads=tree(4))
    opt.step(jax.tree.map(np.asarray, tree(4)))
    for x, y in zip(jax.tree.leaves(opt.params), jax.tree.leaves(later.params), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6)
    opt.save("later.safetensors")
    code, out, err = convert("later.safetensors", "back.msgpack", "--rule", rule, "--like", "state.msgpack", "--json")
    assert (code, err) == (0, "")
    back = serialization.from_bytes(trained(tx()), Path("back.msgpack").read_bytes())
    assert int(back.step) == 4
    assert jax.tree.structure(back.opt_state) == jax.tree.structure(later.opt_state)
    for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(later), strict=True):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6)


def _rule(text: str) -> Any:
    from xopt._parse import parse_rule

    return parse_rule(text)


def test_a_state_alone_and_masks(convert: Any) -> None:
    params, tx = tree(0), optax.masked(optax.sgd(0.1, momentum=0.5), MASK)
    state = tx.init(params)
    for k in (1, 2):
        _, state = tx.update(tree(k), state, params)
    Path("state.msgpack").write_bytes(serialization.to_bytes(state))
    Path("params.msgpack").write_bytes(serialization.to_bytes({"params": params}))
    text = "Groups(SGD(lr=0.1, momentum=0.5, like='optax'), ('Dense_0/bias', Freeze))"
    words = ["state.msgpack", "run.safetensors", "--rule", text, "--model", "params.msgpack", "--step", "2"]
    assert convert(*words)[::2] == (0, "")
    opt = xopt.Optimizer(jax.tree.map(lambda x: np.zeros(x.shape, "float32"), params), _rule(text))
    opt.load("run.safetensors")
    assert opt.steps_taken == 2
    [slot] = opt.state.slots.values()
    np.testing.assert_allclose(slot["a/b"], 0.5 * tree(1)["a/b"] + tree(2)["a/b"], rtol=1e-6)
    assert convert("run.safetensors", "back.msgpack", "--rule", text, "--like", "state.msgpack")[0] == 0
    back = serialization.from_bytes(state, Path("back.msgpack").read_bytes())
    for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(x, y)


def test_modules_without_parameters(convert: Any) -> None:
    """They are in the file that Flax reads again."""
    params = {"Dense": {"w": jnp.ones(3)}, "Dropout": {}, "Block": {"Dropout": {}, "Norm": {"scale": jnp.ones(2)}}}
    theirs = train_state.TrainState.create(apply_fn=None, params=params, tx=optax.adamw(0.1))
    theirs = theirs.apply_gradients(grads=params)
    Path("state.msgpack").write_bytes(serialization.to_bytes(theirs))
    rule = ["--rule", "AdamW(lr=0.1, like='optax')"]
    assert convert("state.msgpack", "run.safetensors", *rule)[::2] == (0, "")
    assert convert("run.safetensors", "back.msgpack", *rule, "--like", "state.msgpack")[::2] == (0, "")
    back = serialization.from_bytes(theirs, Path("back.msgpack").read_bytes())
    assert jax.tree.structure(back.params) == jax.tree.structure(params)
    for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(x, y)


def test_what_does_not_fit(convert: Any) -> None:
    theirs = trained(optax.adam(0.1))
    Path("state.msgpack").write_bytes(serialization.to_bytes(theirs))
    Path("alone.msgpack").write_bytes(serialization.to_bytes(theirs.opt_state))
    Path("lion.msgpack").write_bytes(serialization.to_bytes(trained(optax.lion(0.1))))
    Path("odd.msgpack").write_bytes(serialization.msgpack_serialize({"opt_state": {"x": np.ones(1)}}))
    Path("list.msgpack").write_bytes(serialization.msgpack_serialize([1, 2]))
    Path("text.msgpack").write_text("no msgpack")
    adam = ["out.safetensors", "--rule", "Adam(lr=0.1, like='optax')"]
    for words, says in [
        (["alone.msgpack", *adam], "--model: missing, but it is needed: the file has no params beside opt_state"),
        (["state.msgpack", *adam, "--like", "x"], "--like: not needed for out.safetensors"),
        (["state.msgpack", "x.msgpack", *adam[1:]], "--like: missing, but it is needed for x.msgpack"),
        (["x.safetensors", "x.msgpack", *adam[1:], "--like", "y", "--step", "3"], "--step: not needed for x.msgpack"),
        (
            ["state.msgpack", "out.safetensors", "--rule", "SGD(lr=0.1, like='optax')"],
            "not among the arrays of this rule",
        ),
        (["lion.msgpack", *adam], "opt_state"),
        (["odd.msgpack", *adam], "opt_state: x: no state of optax that can be read"),
        (["list.msgpack", *adam], "it is no file of Flax: no dict"),
        (["text.msgpack", *adam], "Flax cannot load it"),
        (["missing.msgpack", *adam], "No such file"),
        (["state.msgpack", *adam, "--step", "5"], "there is one step for all"),
    ]:
        code, out, err = convert(*words)
        assert (code, out) == (2, "")
        assert says in err, err
        assert not Path("out.safetensors").exists()
