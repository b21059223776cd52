#!/bin/sh
# MLX 0.32.4 on a processor (the wheel mlx-cpu, x86-64 Linux): exp, sin, cos and erf of float64 arrays return float64
# arrays in which only some 5 to 7 digits are right, as of float32, without a word. expm1, log1p, tan, tanh and sqrt
# of the same arrays have all digits, so exp(x) and expm1(x) + 1 differ from the seventh digit on. float64 exists on
# processors alone, for those who need its digits. Relative errors below are of 50 numbers from 0.1 to 5.
# Ends with 0 while this is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "mlx[cpu]==0.32.4" "numpy==2.4.6"
cat > "$folder/probe.py" <<'PYTHON'
import math

import mlx.core as mx
import numpy as np

x = np.linspace(0.1, 5, 50)
there = mx.array(x, dtype=mx.float64)
assert np.array_equal(np.asarray(there), x)
for name in ("exp", "sin", "cos", "erf", "expm1", "log1p", "tan", "tanh", "sqrt"):
    found = np.asarray(getattr(mx, name)(there))
    wanted = np.asarray([math.erf(v) for v in x]) if name == "erf" else getattr(np, name)(x)
    worst = float(np.max(np.abs(found - wanted) / np.abs(wanted)))
    digits = "all digits" if worst < 1e-14 else "float32's digits" if 1e-8 < worst < 1e-4 else f"an error of {worst:.0e}"
    print(f"{name}: {found.dtype} with {digits}")
PYTHON
"$folder/venv/bin/python" "$folder/probe.py" > "$folder/found"
cat "$folder/found"
diff "$folder/found" - <<'EXPECTED'
exp: float64 with float32's digits
sin: float64 with float32's digits
cos: float64 with float32's digits
erf: float64 with float32's digits
expm1: float64 with all digits
log1p: float64 with all digits
tan: float64 with all digits
tanh: float64 with all digits
sqrt: float64 with all digits
EXPECTED
