#!/bin/sh
# PennyLane 0.45.1: a complex trainable parameter, which pennylane.numpy.array takes and pennylane.grad differentiates, is
# moved downhill in its real part and uphill in its imaginary part by GradientDescentOptimizer and MomentumOptimizer. The
# gradient is that of Autograd, the conjugate of the direction in which a real function grows, and it is subtracted as it
# is. One step of gradient descent on |z - 3 - 4j|^2 from 1 + 1j with a rate of 0.1 ends in 1.4 + 0.4j, where the descent
# is 1.4 + 1.6j; a hundred steps end 10^8 away.
# Ends with 0 while this is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pennylane==0.45.1 autograd==1.8.0
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import pennylane as qml
from pennylane import numpy as np


def distance(z):
    return np.abs(z - (3 + 4j)) ** 2


def after(optimizer, steps):
    z = np.array(1 + 1j, requires_grad=True)
    for _ in range(steps):
        z = optimizer.step(distance, z)
    return complex(z)


one = after(qml.GradientDescentOptimizer(0.1), 1)
many = after(qml.GradientDescentOptimizer(0.1), 100)
momentum = after(qml.MomentumOptimizer(0.1, 0.5), 1)
print(qml.__version__, one, many, momentum)
assert abs(one - (1.4 + 0.4j)) < 1e-12
assert abs(momentum - (1.4 + 0.4j)) < 1e-12
assert abs(many.real - 3) < 1e-6
assert many.imag < -1000
PYTHON
echo "as described"
