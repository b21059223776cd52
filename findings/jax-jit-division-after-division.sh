#!/bin/sh
# JAX 0.10.2 (jaxlib 0.10.2), CPU, under jax.jit: a / b / c is computed as a / (b * c), and the product may leave the
# range of float32 where neither quotient does. With b and c about 1e-8 and 1e-31, 0 / b / c is NaN instead of 0, because
# the product counts as 0; with both 1e20, 1e30 / b / c is 0 instead of 1e-10, because it is infinite. The usual eps in
# one denominator and another one in the next are such numbers. Without jit, and in NumPy, the quotients are right.
# Ends with 0 while this is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import numpy as np


def quotient(a, b, c):
    """Divide twice."""
    return a / b / c


f4 = np.float32
cases = {"small": (f4(0), f4(1e-8), f4(1e-31)), "large": (f4(1e30), f4(1e20), f4(1e20))}
jitted = {n: float(jax.jit(quotient)(*x)) for n, x in cases.items()}
eager = {n: float(quotient(*map(jax.numpy.asarray, x))) for n, x in cases.items()}
host = {n: float(quotient(*x)) for n, x in cases.items()}
print(jax.__version__, "jit:", jitted, "op by op:", eager, "NumPy:", host)
assert np.isnan(jitted["small"]) and jitted["large"] == 0.0
assert eager["small"] == host["small"] == 0.0
assert abs(eager["large"] / 1e-10 - 1) < 1e-5 and abs(host["large"] / 1e-10 - 1) < 1e-5
PYTHON
echo "as described"
