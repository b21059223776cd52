#!/bin/sh
# Thinc 9.1.1 with torch 2.13.0: optimizers average weights by default, and model.use_params(optimizer.averages) is to
# put the averages in place of the weights. Of a layer made by PyTorchWrapper nothing happens, and nobody says so: the
# optimizer files its averages by the number of the layer and the name of the parameter, as the layer hands them to it,
# while the block looks for names that begin with "pytorch_" and have the number inside. Beside it in the same model, a
# layer of Thinc's own is exchanged and restored.
# Ends with 0 while this is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check thinc==9.1.1 torch==2.13.0 numpy==2.4.6
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import thinc
import torch
from thinc.api import Adam, Linear, PyTorchWrapper, chain

X, Y = np.ones((8, 3), "float32"), np.zeros((8, 1), "float32")
inner = torch.nn.Linear(3, 3)
torch.nn.init.ones_(inner.weight)
own = Linear(1, 3)
model = chain(PyTorchWrapper(inner), own)
model.initialize(X, Y)
own.set_param("W", np.ones((1, 3), "float32"))
optimizer = Adam(0.1)
for _ in range(3):
    out, back = model.begin_update(X)
    back(out - Y)
    model.finish_update(optimizer)
    optimizer.step_schedules()


def weights():
    return inner.weight.detach().numpy().copy(), own.get_param("W").copy()


before = weights()
with model.use_params(optimizer.averages):
    inside = weights()
kinds = sorted({(type(name).__name__, name) for _, name in optimizer.averages})
moved = [bool(np.any(a != b)) for a, b in zip(before, inside)]
averaged = [key for key in optimizer.averages if key[1] == "weight"]
print(thinc.__version__, torch.__version__, kinds, "exchanged: torch, Thinc:", moved)
assert averaged, "the weight of the PyTorch layer has an average"
assert np.any(optimizer.averages[averaged[0]] != before[0])
assert moved == [False, True]
PYTHON
echo "as described"
