#!/bin/sh
# array-api-strict 2.6.1: an operator of an array raises TypeError for an operand that it does not know, where Python asks
# for NotImplemented, so that __radd__ and its like of that operand are never called. The other way round works, and so do
# NumPy, torch and JAX arrays. Objects that stand for scalars can be the left operand there, never the right one.
# Ends with 0 while this is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check array-api-strict==2.6.1 numpy==2.4.6 jax==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import array_api_strict
import jax.numpy as jnp
import numpy as np


class Two:
    """A scalar with operators of its own, in either place."""

    __array_ufunc__ = None  # NumPy's way of asking to be left alone

    def __mul__(self, other):
        return other * 2.0

    __rmul__ = __mul__


def tried(x):
    try:
        return float((x * Two())[0])
    except TypeError as error:
        return f"TypeError: {error}"


found = {xp.__name__: tried(xp.asarray([1.5])) for xp in (np, jnp, array_api_strict)}
left = float((Two() * array_api_strict.asarray([1.5]))[0])
print(array_api_strict.__version__, found, left)
assert found["numpy"] == found["jax.numpy"] == left == 3.0
assert str(found["array_api_strict"]).startswith("TypeError: Expected Array or Python scalar")
PYTHON
echo "as described"
