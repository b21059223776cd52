#!/bin/sh
# JAX 0.10.2 (jaxlib 0.10.2), CPU, also without jax.jit: an array of two or more float32 elements divided by one number
# above 2^126 is 0, whatever it holds: 1e38 / 1e38 is 0. XLA multiplies by the reciprocal of the number, which is
# subnormal and counts as 0. One element, an array of divisors, and the same division in NumPy or with float64 are right.
# Ends with 0 while this is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np


def quotients(xp, top, n):
    """Divide n numbers by one that is as large."""
    return (xp.full(n, top, dtype=xp.float32) / xp.float32(top)).tolist()


below, above = 2.0**126, 2.0**126 * 1.25
found = {n: quotients(jnp, above, n) for n in (1, 2, 3)}
print(jax.__version__, found, "NumPy:", quotients(np, above, 3), "at the limit:", quotients(jnp, below, 3))
x = jnp.full(3, above, dtype=jnp.float32)
assert found == {1: [1.0], 2: [0.0] * 2, 3: [0.0] * 3}
assert quotients(np, above, 3) == quotients(jnp, below, 3) == (x / x).tolist() == [1.0] * 3
assert jax.jit(lambda a: a / above)(x).tolist() == [0.0] * 3
PYTHON
echo "as described"
