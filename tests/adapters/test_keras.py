"""A rule as a Keras optimizer: in fit, beside Keras's own, with its callbacks and files, on one of the backends."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xopt

pytestmark = [
    pytest.mark.needs("jax"),
    pytest.mark.needs("torch"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),  # Keras's
]
os.environ.setdefault("KERAS_BACKEND", "jax" if importlib.util.find_spec("jax") else "torch")
keras = pytest.importorskip("keras")

X = np.random.default_rng(0).standard_normal((96, 3)).astype("float32")
Y = np.sin(X.sum(1))


def adapted(*args: Any, **kwargs: Any) -> Any:
    from xopt.adapters.keras import Optimizer

    return Optimizer(*args, **kwargs)


def built(opt: Any, **options: Any) -> Any:
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(4, activation="tanh", name="hidden"), keras.layers.Dense(1, name="out")]
    model = keras.Sequential([keras.Input((3,)), *layers], name="net")
    model.compile(opt, loss="mse", **options)
    return model


def some(names: Any, few: str) -> list[str]:
    """Return what is tested on the backend: JAX compiles each, and PyTorch has them all."""
    return [n for n in names if keras.backend.backend() != "jax" or n in few.split(", ")]


def fit(opt: Any, epochs: int = 3, model: Any = None, **options: Any) -> Any:
    """Take four steps an epoch."""
    model = built(opt) if model is None else model
    model.fit(X, Y, batch_size=24, epochs=epochs, shuffle=False, verbose=0, **options)
    return model


def weights(model: Any) -> list[Any]:
    return [keras.ops.convert_to_numpy(v.value) for v in model.trainable_variables]


def apart(a: Any, b: Any) -> float:
    return max(float(np.max(np.abs(x - y))) for x, y in zip(weights(a), weights(b), strict=True))


def same(a: Any, b: Any) -> bool:
    return all(map(np.array_equal, weights(a), weights(b)))


def decay() -> Any:
    return keras.optimizers.schedules.CosineDecay(0.05, 12)


BESIDE = {
    "adam": lambda: (adapted(xopt.Adam(0.05, like="keras")), keras.optimizers.Adam(0.05)),
    "adamw": lambda: (
        adapted(xopt.AdamW(0.05, weight_decay=0.1, like="keras")),
        keras.optimizers.AdamW(0.05, weight_decay=0.1),
    ),
    "rmsprop": lambda: (adapted(xopt.RMSProp(0.05, like="keras")), keras.optimizers.RMSprop(0.05)),
    "lion": lambda: (adapted(xopt.Lion(0.01, like="keras")), keras.optimizers.Lion(0.01)),
    "global_clipnorm": lambda: (
        adapted(xopt.SGD(0.05, momentum=0.9, like="keras"), global_clipnorm=0.1),
        keras.optimizers.SGD(0.05, momentum=0.9, global_clipnorm=0.1),
    ),
    "clip of ours": lambda: (
        adapted(xopt.chain(xopt.ClipByGlobalNorm(0.1), xopt.SGD(0.05))),
        keras.optimizers.SGD(0.05, global_clipnorm=0.1),
    ),
    "decay of Keras": lambda: (
        adapted(xopt.Adam(0.05, like="keras"), weight_decay=0.1),
        keras.optimizers.Adam(0.05, weight_decay=0.1),
    ),
    "ema": lambda: (
        adapted(xopt.Adam(0.05, like="keras"), use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3),
        keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3),
    ),
    "accumulation": lambda: (
        adapted(xopt.Adam(0.05, like="keras"), gradient_accumulation_steps=2),
        keras.optimizers.Adam(0.05, gradient_accumulation_steps=2),
    ),
    "loss scale": lambda: (
        adapted(xopt.Adam(0.05, like="keras"), loss_scale_factor=64.0),
        keras.optimizers.Adam(0.05, loss_scale_factor=64.0),
    ),
    "schedule": lambda: (adapted(xopt.Adam(like="keras"), decay()), keras.optimizers.Adam(decay())),
    "schedule of ours": lambda: (
        adapted(xopt.Adam(xopt.schedules.cosine(0.05, steps=12), like="keras")),
        keras.optimizers.Adam(decay()),
    ),
    "function": lambda: (
        adapted(xopt.Adam(like="keras"), lambda: 0.05),
        keras.optimizers.Adam(lambda: 0.05),
    ),
}


@pytest.mark.parametrize("name", some(BESIDE, "adam, ema, accumulation, schedule, clip of ours"))
def test_twelve_steps_beside_keras(name: str) -> None:
    """The schedules of the two begin at one step."""
    ours, theirs = BESIDE[name]()
    got, want = fit(ours), fit(theirs)
    assert apart(got, want) <= 5e-6
    assert apart(got, built(theirs.__class__(0.05))) > 1e-2
    assert float(ours.learning_rate) == pytest.approx(float(theirs.learning_rate), rel=1e-5)


CALLBACKS = {
    "plateau": lambda: keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=0, min_delta=10.0),
    "scheduler": lambda: keras.callbacks.LearningRateScheduler(lambda epoch, lr: lr * 0.5),
}


@pytest.mark.parametrize("name", some(CALLBACKS, "plateau"))
def test_callbacks_move_the_learning_rate(name: str) -> None:
    ours, theirs = BESIDE["adam"]()
    got, want = (fit(opt, callbacks=[CALLBACKS[name]()]) for opt in (ours, theirs))
    assert apart(got, want) <= 5e-6
    assert float(ours.learning_rate) == float(theirs.learning_rate) < 0.04


KEPT = {
    "adam": lambda: adapted(xopt.Adam(0.05)),
    "chain": lambda: adapted(xopt.chain(xopt.ClipByGlobalNorm(0.1), xopt.AdamW(0.05), xopt.EMA(0.9))),
    "scalars": lambda: adapted(xopt.Prodigy()),
    "leaf": lambda: adapted(xopt.LDoG()),
    "matrices": lambda: adapted(xopt.Shampoo(0.01)),
    "schedule": lambda: adapted(xopt.Adam(xopt.schedules.cosine(0.05, steps=12))),
    "schedule of keras": lambda: adapted(xopt.Adam(), decay()),
    "bfloat16": lambda: adapted(xopt.Adam(0.05), state_dtype="bfloat16"),
    "options": lambda: adapted(xopt.Adam(0.05), clipnorm=0.1, gradient_accumulation_steps=2, name="own"),
}


@pytest.mark.parametrize("name", some(KEPT, "chain, leaf, bfloat16"))
def test_a_saved_model_goes_on_with_the_same_bits(name: str, tmp_path: Path) -> None:
    model = fit(KEPT[name](), 2)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.optimizer.rule == model.optimizer.rule
    assert again.optimizer.get_config() == model.optimizer.get_config()
    assert int(again.optimizer.iterations) == (4 if name == "options" else 8)
    assert same(model, again)
    fit(None, 1, model)
    fit(None, 1, again)
    assert same(model, again)
    for v, w in zip(model.optimizer.variables, again.optimizer.variables, strict=True):
        assert v.dtype == w.dtype
        np.testing.assert_array_equal(np.asarray(v), np.asarray(w))


def test_state_is_kept_as_asked_for() -> None:
    model = fit(KEPT["bfloat16"](), 1)
    kinds = {v.dtype for v in model.optimizer.variables if "adam" in v.path}
    assert kinds == {"bfloat16"}
    with pytest.raises(ValueError, match="rounding: 'up'"):
        adapted(xopt.Adam(), rounding="up")


def test_weights_that_are_loaded_after_the_optimizer_was_built() -> None:
    """A rule that remembers the first weights remembers those it began at."""
    trained = fit(adapted(xopt.SGD(0.1)))
    late, early = built(adapted(xopt.LDoG())), built(adapted(xopt.LDoG()))
    late.optimizer.build(late.trainable_variables)
    for model in (late, early):
        model.set_weights(trained.get_weights())
    assert same(fit(None, 2, late), fit(None, 2, early))
    assert apart(late, trained) > 0


@pytest.mark.parametrize("policy", some(["mixed_float16", "mixed_bfloat16", "bfloat16"], "mixed_float16"))
def test_mixed_precision(policy: str) -> None:
    """mixed_float16 puts Keras's loss scale around the optimizer."""
    keras.config.set_dtype_policy(policy)
    try:
        ours, theirs = BESIDE["adam"]()
        got, want = fit(ours), fit(theirs)
    finally:
        keras.config.set_dtype_policy("float32")
    scaled = policy == "mixed_float16"
    assert type(got.optimizer).__name__ == ("LossScaleOptimizer" if scaled else "Optimizer")
    assert int(ours.iterations) > 0
    if policy == "bfloat16":  # Keras computes in bfloat16 then, and its second moments stand still
        assert {v.dtype for v in ours.variables if "adam" in v.path} == {"float32"}
        assert got.evaluate(X, Y, verbose=0) < 0.9 * np.mean(Y**2)
    else:
        assert apart(got, want) <= 2e-3


def test_a_loop_of_ones_own_and_gradients_that_are_missing() -> None:
    values = [np.ones((2, 3), "float32"), np.full(4, 2.0, "float32")]
    ours, theirs = BESIDE["adamw"]()
    found = []
    for opt in (ours, theirs):
        variables = [keras.Variable(x, name=f"v{i}") for i, x in enumerate(values)]
        opt.build(variables)
        for k in range(3):
            grads = [keras.ops.convert_to_tensor(x) for x in values]
            if k == 1:
                with pytest.warns(UserWarning, match="Gradients do not exist"):
                    opt.apply([grads[0], None], variables)
            else:
                opt.apply(grads, variables)
        found.append([keras.ops.convert_to_numpy(v.value) for v in variables])
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-6)
    assert int(ours.iterations) == 3
    assert float(found[0][1][0]) < 2.0


def test_averages() -> None:
    model = fit(adapted(xopt.chain(xopt.SGD(0.05), xopt.EMA(0.9, start="first"))))
    before, loss = weights(model), model.evaluate(X, Y, verbose=0)
    with model.optimizer.averaged():
        assert model.evaluate(X, Y, verbose=0) != loss
        assert any(np.any(x != y) for x, y in zip(weights(model), before, strict=True))
    assert all(map(np.array_equal, weights(model), before))
    assert model.evaluate(X, Y, verbose=0) == loss
    average = [v for v in model.optimizer.variables if "ema" in v.path]
    with model.optimizer.averaged():
        assert any(np.array_equal(np.asarray(v), weights(model)[0]) for v in average) or len(average) > 4


def test_groups_see_paths() -> None:
    still = xopt.Groups(xopt.SGD(0.1), ("net/hidden/**", xopt.Freeze), ("**/bias", {"lr": 0.0}))
    first, model = built(adapted(xopt.SGD(0.1))), fit(adapted(still))
    names = [v.path for v in model.trainable_variables]
    assert names[0] == "net/hidden/kernel" or "hidden/kernel" in names[0]
    moved = [bool(np.any(x != y)) for x, y in zip(weights(first), weights(model), strict=True)]
    assert moved == [False, False, True, False]


def test_two_variables_with_one_path() -> None:
    class Twice(keras.Model):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__(name="net")
            self.x, self.y = keras.layers.Dense(3, name="d"), keras.layers.Dense(1, name="d")

        def call(self, x: Any) -> Any:
            return self.y(self.x(x))

    model, rule = Twice(), xopt.Groups(xopt.SGD(0.1), ("**/kernel", xopt.Freeze), ("**/d#2/bias", {"lr": 0.0}))
    model.compile(adapted(rule), loss="mse")
    model(X[:1])
    before = weights(model)
    fit(None, 1, model)
    moved = [bool(np.any(x != y)) for x, y in zip(before, weights(model), strict=True)]
    assert moved == [False, True, False, False]


def test_a_rule_with_a_function_in_it_trains_and_its_weights_are_saved(tmp_path: Path) -> None:
    model = fit(adapted(xopt.Adam(lambda t: 0.1 / t)), 1)
    with pytest.raises(ValueError, match="rule: .*cannot be saved, but its weights can"):
        model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    again = built(adapted(xopt.Adam(lambda t: 0.1 / t)))
    again.optimizer.build(again.trainable_variables)
    again.load_weights(tmp_path / "model.weights.h5")
    assert same(fit(None, 1, again), fit(None, 1, model))


def test_a_class_of_the_users() -> None:
    class Slower(xopt.SGD):
        """SGD by another name."""

    opt = adapted(Slower(0.5))
    config = opt.get_config()
    assert config["rule"] == "Slower(lr=0.5)"
    assert type(opt).from_config(config, {"Slower": Slower}).rule == Slower(0.5)
    with keras.saving.custom_object_scope({"Slower": Slower}):
        assert type(opt).from_config(config).rule == Slower(0.5)
    registered = type("Slower", (Slower,), {"get_config": lambda self: {}, "__module__": __name__})
    keras.saving.register_keras_serializable(package="users")(registered)
    try:
        assert type(opt).from_config(config).rule == registered(0.5)
    finally:
        keras.saving.get_custom_objects().clear()
    with pytest.raises(ValueError, match="'Slower' at character 1 is no part of a rule of xopt"):
        type(opt).from_config(config)


def test_errors() -> None:
    with pytest.raises(TypeError, match="rule: Adam, but it must be a rule or a chain; make an object of it"):
        adapted(xopt.Adam)
    with pytest.raises(TypeError, match="ReduceOnPlateau needs the loss, and Keras gives its optimizers none"):
        adapted(xopt.chain(xopt.SGD(), xopt.ReduceOnPlateau()))
    with pytest.raises(TypeError, match="LossScale scales the loss, which Keras does by itself"):
        adapted(xopt.LossScale(xopt.Adam()))
    with pytest.raises(TypeError, match="Sophia asks for estimates of the curvature, and Keras gives none"):
        adapted(xopt.Sophia())
    two = xopt.Groups(xopt.SGD(0.1), ("**/bias", xopt.Adam(0.2)))
    with pytest.raises(TypeError, match=r"learning_rate: 0\.1, but .* has no single lr; it has sgd\.lr, adam\.lr"):
        adapted(two, 0.1)
    with pytest.raises(TypeError, match="learning_rate: cannot be set"):
        adapted(two).learning_rate = 0.1
    with pytest.raises(ValueError, match="not recognized"):
        adapted(xopt.Adam(), momentum=0.9)
    own = adapted(xopt.Adam(xopt.schedules.cosine(0.05, steps=12)))
    with pytest.raises(TypeError, match="learning_rate: cannot be set"):
        own.learning_rate = 0.1
    with pytest.raises(ValueError, match=r"Adam\.lr: -0\.5"):
        adapted(xopt.Adam(0.1), -0.5)
    with pytest.raises(TypeError, match=r"cosine\(0\.1, steps=8\) is a schedule of xopt, which belongs into the rule"):
        adapted(xopt.Adam(), xopt.schedules.cosine(0.1, steps=8))
    number = adapted(xopt.Adam(0.1))
    with pytest.raises(ValueError, match=r"Adam\.lr: -0\.1"):
        number.learning_rate = -0.1
    with pytest.raises(ValueError, match="averaged: the optimizer has no variables yet"), number.averaged():
        pass
    with pytest.raises(ValueError, match="is no part of a rule of xopt"):
        type(own).from_config({**own.get_config(), "rule": "print('x')"})


def test_a_backend_without_arrays_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    adapted(xopt.Adam())
    monkeypatch.setattr(keras.ops, "zeros", lambda shape: object())
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    with pytest.raises(ValueError, match="the tensorflow backend of Keras has no arrays that xopt computes with"):
        adapted(xopt.Adam())
