#!/bin/sh
# JAX 0.10.2 (jaxlib 0.10.2), CPU: under jax.jit the square of a scaled number is computed as x²·c², so that scaling a
# number down before squaring it does not prevent the overflow. With x = 4.3e19 in float32, (x · 2⁻⁷⁶)² is about 3.2e-7;
# eager JAX says so, and so does jit for 6 elements. For a single number jit gives NaN: x² is infinite, and 2⁻¹⁵²
# is 0 in float32. It is the same with a division by 2⁷⁶. Selecting with where before squaring avoids it.
# Ends with 0 while this is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import math

import jax
import jax.numpy as jnp


def square(x):
    return (x * 2.0**-76) ** 2


def halves(x):
    return (x / 2.0**76) ** 2


def selected(x):
    return jnp.where(x > 1, x * 2.0**-76, 0.0) ** 2


one, six = jnp.float32(4.3e19), jnp.full(6, 4.3e19, jnp.float32)
want = float(square(one))
found = {
    "eager, one": want,
    "jit, one": float(jax.jit(square)(one)),
    "jit, one, divided": float(jax.jit(halves)(one)),
    "jit, one, selected": float(jax.jit(selected)(one)),
    "jit, six": float(jax.jit(square)(six)[0]),
}
print(jax.__version__, found)
assert math.isclose(want, 3.2387e-7, rel_tol=1e-3)
assert math.isnan(found["jit, one"])
assert math.isnan(found["jit, one, divided"])
assert found["jit, one, selected"] == want
assert found["jit, six"] == want
PYTHON
echo "as described"
