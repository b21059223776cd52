#!/bin/sh
# torch 2.13.0: DLPack hands out the memory of a lazy view as if it were the tensor's values.
#
# torch conjugates by setting a bit, and the imaginary part of such a tensor is a real view with a bit that stands for
# its negative. `__dlpack__` refuses the first ("Can't export tensors with the conjugate bit set") but not the second:
# numpy.from_dlpack(x.conj().imag) has the wrong sign, without an error. The table of C functions that is new in DLPack
# 1.2 (`torch.Tensor.__dlpack_c_exchange_api__`, for kernels that look at many tensors without calling Python) refuses
# neither: its non-owning function returns 0 and describes the memory below the view. It takes tensors that require a
# gradient too, which `__dlpack__` refuses. Who uses it has to ask `is_conj()` and `is_neg()` besides.
# Ends with 0 while this is so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import ctypes

import numpy as np
import torch


class Description(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


pointer = ctypes.pythonapi.PyCapsule_GetPointer
pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
table = pointer(torch.Tensor.__dlpack_c_exchange_api__, b"dlpack_exchange_api")
assert ctypes.c_uint32.from_address(table).value == 1, "another major version of the table"
function = ctypes.c_void_p.from_address(table + 8 * 5).value
describe = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(Description))(function)

found = {}
for name, view in [
    ("conjugate", torch.tensor([1 + 2j, 3 - 4j]).conj()),
    ("negative", torch.tensor([1 + 2j]).conj().imag),
    ("requires a gradient", torch.tensor([5.0], requires_grad=True)),
]:
    try:
        python = np.from_dlpack(view).tolist()
    except BufferError as error:
        python = f"BufferError: {error}".splitlines()[0]
    made = Description()
    code = describe(view, made)
    numbers = made.bits // 32 * made.shape[0]
    memory = list((ctypes.c_float * numbers).from_address(made.data))
    found[name] = (python, code, memory)
    print(f"{name}: values {view.tolist()}; NumPy by DLPack: {python}; the C function returns {code}, memory {memory}")

assert found["conjugate"] == ("BufferError: Can't export tensors with the conjugate bit set", 0, [1, 2, 3, -4])
assert found["negative"] == ([2.0], 0, [2.0])  # it is -2
assert found["requires a gradient"][0].startswith("BufferError") and found["requires a gradient"][1:] == (0, [5.0])
PYTHON
echo "as described"
