"""
Train in onnxruntime
====================

A whole training step as one file: forward pass, gradient, clipping by the global norm, AdamW with a warm-up and a
cosine schedule are recorded once and exported to ONNX by :func:`xopt.adapters.onnx.export`. onnxruntime then trains a
classifier of the 1,797 handwritten digits of scikit-learn. The loop at the end knows neither xopt nor an array library:
it could as well be in C++, C#, Java or JavaScript.

Run it from a shell::

    pip install "xopt-array[demo,onnx]"
    python onnx_digits.py
"""

import time

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
from sklearn.datasets import load_digits

import xopt
from xopt.adapters.onnx import export, feeds

# %%
# The step, in array-API code. Gradients are written by hand; :func:`xopt.chain` is the optimizer.

RULE = xopt.chain(
    xopt.ClipByGlobalNorm(1.0),
    xopt.AdamW(lr=xopt.schedules.warmup_cosine(3e-3, warmup=20, steps=400), weight_decay=0.01),
)


def step(params, state, x, y):
    """Take one step: softmax regression with a hidden layer, on rows x with one-hot labels y."""
    xp = x.__array_namespace__()
    hidden = xp.maximum(x @ params["w1"] + params["b1"], xp.zeros_like(params["b1"]))
    z = hidden @ params["w2"] + params["b2"]
    z = z - xp.max(z, axis=1, keepdims=True)
    log_p = z - xp.log(xp.sum(xp.exp(z), axis=1, keepdims=True))
    back = (xp.exp(log_p) - y) / x.shape[0]
    through = (back @ xp.matrix_transpose(params["w2"])) * xp.astype(hidden > 0, x.dtype)
    grads = {
        "w1": xp.matrix_transpose(x) @ through,
        "b1": xp.sum(through, axis=0),
        "w2": xp.matrix_transpose(hidden) @ back,
        "b2": xp.sum(back, axis=0),
    }
    params, state = RULE.apply(params, grads, state)
    return params, state, {"loss": -xp.sum(y * log_p) / x.shape[0]}


# %%
# It is exported with the shapes and dtypes of parameters, state and a batch.

BATCH, STEPS = 100, 400
rng = np.random.default_rng(0)
params = {
    "w1": rng.normal(0, (2 / 64) ** 0.5, (64, 100)).astype(np.float32),
    "b1": np.zeros(100, np.float32),
    "w2": rng.normal(0, (2 / 100) ** 0.5, (100, 10)).astype(np.float32),
    "b2": np.zeros(10, np.float32),
}
state = RULE.init(params)
model = export(step, params, state, np.zeros((BATCH, 64), np.float32), np.zeros((BATCH, 10), np.float32))
file = model.SerializeToString()  # what `path=` writes
print(f"one file of {len(file):,} bytes: {len(model.graph.node)} nodes")

# %%
# From here on there is no xopt: a session, and arrays by name. What comes out as ``next/params/w1`` is ``params/w1`` of
# the next step.

digits = load_digits()
images, labels = (digits.data / 16).astype(np.float32), np.eye(10, dtype=np.float32)[digits.target]
order = rng.permutation(len(images))
train, test = order[:1500], order[1500:]

session = onnxruntime.InferenceSession(file)
names = [output.name for output in session.get_outputs()]
values, losses, start = feeds(params, state), [], time.perf_counter()
for _ in range(STEPS):
    rows = rng.choice(train, BATCH, replace=False)
    new = dict(zip(names, session.run(names, {**values, "x": images[rows], "y": labels[rows]}), strict=True))
    losses.append(float(new.pop("output/loss")))
    values = {name.removeprefix("next/"): array for name, array in new.items()}
seconds = time.perf_counter() - start

w1, b1, w2, b2 = (values[f"params/{name}"] for name in ("w1", "b1", "w2", "b2"))
scores = np.maximum(images[test] @ w1 + b1, 0) @ w2 + b2
accuracy = float((scores.argmax(1) == digits.target[test]).mean())
print(f"{STEPS} steps in {seconds:.2f} s; loss {losses[0]:.2f} -> {losses[-1]:.3f}")
print(f"{accuracy:.1%} of the test digits are right")

plt.plot(losses, linewidth=1)
plt.xlabel("step")
plt.ylabel("cross-entropy of the batch")
plt.yscale("log")
plt.tight_layout()

# %%
# The same steps by :meth:`xopt.Rule.apply` on NumPy end at the same numbers, up to the rounding of float32.
