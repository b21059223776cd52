#!/bin/sh
# Keras 3.15.1 on its JAX backend (0.10.2): a model whose optimizer was made with use_ema=True can be fitted once. The
# second call of fit raises TypeError, 'NoneType' object is not callable, and behind it is JAX's refusal to donate one
# buffer twice: at the end of fit Keras assigns each average to its weight without a copy, so that the two variables
# share a buffer, and the next training step donates both. A copy of the weights, model.set_weights(model.get_weights()),
# between the two calls helps; with use_ema=False nothing happens. The PyTorch backend copies.
# Ends with 0 while this is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check keras==3.15.1 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu KERAS_BACKEND=jax "$folder/venv/bin/python" - <<'PYTHON'
import keras
import numpy as np

x, y = np.ones((8, 3), "float32"), np.ones((8, 1), "float32")


def second(use_ema, copied=False):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.1, use_ema=use_ema), loss="mse")
    model.fit(x, y, verbose=0)
    if copied:
        model.set_weights(model.get_weights())
    try:
        model.fit(x, y, verbose=0)
    except Exception as error:
        return type(error).__name__, str(error.__context__)[:60]
    return "fitted", ""


print(keras.__version__, second(True), second(True, copied=True), second(False))
name, cause = second(True)
assert name == "TypeError"
assert "donate the same buffer twice" in cause
assert second(True, copied=True) == second(False) == ("fitted", "")
PYTHON
echo "as described"
