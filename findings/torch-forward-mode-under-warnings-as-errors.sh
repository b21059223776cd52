#!/bin/sh
# PyTorch 2.13.0: the first forward-mode derivative of a process (torch.func.jvp, jacfwd, torch.autograd.forward_ad) gives 18
# DeprecationWarnings, of torch.jit.script, which PyTorch itself calls for its own table of derivatives when it makes the
# first dual number. Later ones give none. Where warnings are errors, as in many test suites, no forward-mode derivative
# can be computed at all: the first raises, and so does every later one, because the table is never finished. Reverse
# mode (torch.func.grad) is not concerned, and one derivative with warnings ignored mends the process.
# Ends with 0 while this is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cat > "$folder/probe.py" <<'PYTHON'
import sys
import warnings

import torch

x = torch.ones(2, dtype=torch.float64)


def forward():
    return torch.func.jvp(torch.sin, (x,), (x,))[1]


if sys.argv[1] == "count":
    for _ in range(2):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            forward()
        print(len(seen), {w.category.__name__ for w in seen})
else:
    warnings.simplefilter("error")
    torch.func.grad(lambda z: torch.sin(z).sum())(x)
    for _ in range(2):
        try:
            forward()
            print("no error")
        except DeprecationWarning as error:
            print(type(error).__name__, str(error)[:33])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forward()
    print(torch.equal(forward(), torch.cos(x)))
PYTHON
found=$("$folder/venv/bin/python" "$folder/probe.py" count; "$folder/venv/bin/python" "$folder/probe.py" error)
echo "$found"
test "$found" = "18 {'DeprecationWarning'}
0 set()
DeprecationWarning \`torch.jit.script\` is deprecated.
DeprecationWarning \`torch.jit.script\` is deprecated.
True"
echo "as described"
