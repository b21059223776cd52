#!/bin/sh
# Keras 3.15.1, on JAX 0.10.2 with 64 bits enabled (with PyTorch 2.13.0, too): keras.ops.norm and keras.ops.var of a
# float64 tensor return float32, computed in float32, while mean, std, sum, sqrt and svd of the same tensor stay in
# float64. So std(x)**2 and var(x) have different dtypes and differ from the eighth digit on, the norm of a vector whose
# entries are 1e20 is infinite though its square fits float64 easily, and whatever divides by ops.norm works with half
# of its digits whatever the dtype of the variables: keras.optimizers.Muon does.
# Ends with 0 while this is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check keras==3.15.1 jax==0.10.2
cat > "$folder/probe.py" <<'PYTHON'
import jax
import numpy as np

jax.config.update("jax_enable_x64", True)
from keras import ops

x = ops.convert_to_tensor(np.linspace(0.1, 1.0, 100))
print("of", x.dtype)
for name in ("norm", "var", "std", "mean", "sum", "sqrt"):
    print(name, getattr(ops, name)(x).dtype)
exact = np.linspace(0.1, 1.0, 100).var()
print("var", abs(float(ops.var(x)) / exact - 1) > 1e-9, "std", abs(float(ops.std(x)) ** 2 / exact - 1) < 1e-14)
print("norm of 1e20s", float(ops.norm(ops.full(4, 1e20, dtype="float64"))))
PYTHON
found=$(KERAS_BACKEND=jax JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/probe.py" 2>/dev/null)
echo "$found"
test "$found" = "of float64
norm float32
var float32
std float64
mean float64
sum float64
sqrt float64
var True std True
norm of 1e20s inf"
echo "as described"
