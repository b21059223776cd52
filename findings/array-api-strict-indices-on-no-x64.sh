#!/bin/sh
# array-api-strict 2.6.1: the device "no_x64", which has no 64-bit dtypes and int32 as its default integer, sorts but has
# no function that returns indices or counts: argsort, argmax, nonzero, searchsorted, count_nonzero and unique_all raise
# ValueError, because the int64 result of NumPy is refused there instead of becoming the default integer.
# Ends with 0 while this is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check array-api-strict==2.6.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import array_api_strict as xp

device = xp.Device("no_x64")
x = xp.asarray([3.0, 1.0, 2.0], dtype=xp.float32, device=device)
default = xp.__array_namespace_info__().default_dtypes(device=device)["indexing"]
found = {}
for name in ("argsort", "argmax", "nonzero", "count_nonzero", "unique_all", "searchsorted"):
    try:
        found[name] = getattr(xp, name)(*([x, x] if name == "searchsorted" else [x]))
    except ValueError as error:
        found[name] = str(error)
print(xp.__version__, "default integer for indices:", default, found)
assert default == xp.int32
assert [float(v) for v in xp.sort(x)] == [1.0, 2.0, 3.0]
assert all("does not support dtype=array_api_strict.int64" in str(v) for v in found.values())
PYTHON
echo "as described"
