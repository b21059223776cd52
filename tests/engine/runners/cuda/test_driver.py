"""How the CUDA driver is called, seen by a library that stands in its place and says what it was given."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import host_cuda

pytestmark = pytest.mark.needs("cupy")

STUB = r"""
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
extern "C" {
int cuInit(unsigned) { return 0; }
int cuDriverGetVersion(int* v) { *v = 13000; return 0; }
int cuDeviceGetCount(int* n) { *n = 2; return 0; }
int cuDeviceGet(int* device, int k) { *device = 10 + k; return 0; }
int cuDeviceGetAttribute(int* v, int which, int device) { *v = device == 11 ? which == 75 ? 9 : 0 : 8; return 0; }
int cuDevicePrimaryCtxRetain(void** context, int device) { *context = (char*)0 + device; return 0; }
int cuCtxPushCurrent_v2(void* context) { printf("push %p\n", context); return 0; }
int cuCtxPopCurrent_v2(void** context) { printf("pop\n"); *context = 0; return 0; }
int cuModuleLoadData(void** module, const char* image) { printf("load %s\n", image); *module = (void*)0x55; return 0; }
int cuModuleGetFunction(void** f, void* module, const char* name) {
    printf("function %s of %p\n", name, module);
    *f = (void*)0x99;
    return strcmp(name, "missing") ? 0 : 500;
}
int cuStreamIsCapturing(void* stream, int* answer) {
    *answer = stream == (void*)7;
    return stream == (void*)8 ? 906 : 0;
}
int cuLaunchKernel(void* f, unsigned x, unsigned y, unsigned z, unsigned a, unsigned b, unsigned c, unsigned shared,
                   void* stream, void** given, void** extra) {
    const unsigned long long* words = (const unsigned long long*)given[0];
    printf("launch %p %u %u %u %u %u %u %u %p %p: %llu %llu\n", f, x, y, z, a, b, c, shared, stream, extra, words[0],
           words[1]);
    return 0;
}
int cuGetProcAddress_v2(const char* name, void** found, int, unsigned long long, int* status) {
    char second[200];
    snprintf(second, 200, "%s_v2", name);
    *found = dlsym(RTLD_DEFAULT, second);
    if (!*found) *found = dlsym(RTLD_DEFAULT, name);
    if (status) *status = *found ? 0 : 1;
    return *found ? 0 : 500;
}
}
"""
CODE = """
import ctypes, sys
import numpy as np
from xopt._engine.runners.cuda import driver as _cuda_driver
from xopt._engine.runners.cuda.driver import Driver, Queue

def compiled(source, arch):  # NVRTC asks the driver things that this one does not know
    return (source + " for " + arch + "\\0").encode()

_cuda_driver.compiled = compiled
driver, queue = Driver(), Queue(1, 5)
for _ in range(2):
    function = driver.function("text", "name", 1)
driver.launch(function, queue, 2**31 - 1, 256, np.asarray([11, 2**64 - 1], np.uint64))
sys.stdout.flush()
assert driver.capturing(Queue(1, 7)) and driver.capturing(Queue(1, 8)) and not driver.capturing(queue)
try:
    driver.function("text", "missing", 1)
except RuntimeError as error:
    ctypes.CDLL(None).fflush(None)  # what C has written stands before what Python writes
    print(error)
"""
WANT = """push 0xb
load text for sm_90
function name of 0x55
pop
push 0xb
launch 0x99 2147483647 1 1 256 1 1 0 0x5 (nil): 11 18446744073709551615
pop
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the driver has another name elsewhere")
def test_what_the_driver_is_given(tmp_path: Path) -> None:
    host_cuda.needs_compiler()
    pytest.importorskip("cuda.bindings", reason="no cuda.bindings")
    library = tmp_path / "libcuda.so.1"
    (tmp_path / "stub.cpp").write_text(STUB, encoding="utf-8")
    command = [
        str(host_cuda.COMPILER),
        "-shared",
        "-fPIC",
        "-w",
        "-o",
        str(library),
        str(tmp_path / "stub.cpp"),
        "-ldl",
    ]
    subprocess.run(command, check=True)
    place = {"LD_LIBRARY_PATH": str(tmp_path), "LD_PRELOAD": str(library)}
    out = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=False, env=os.environ | place
    )
    assert out.stdout.startswith(WANT), out.stdout + out.stderr
    assert "CUDA_ERROR_NOT_FOUND" in out.stdout.splitlines()[-1]
    lines = out.stdout.splitlines()
    assert sum(x.startswith("push") for x in lines) == lines.count("pop"), "contexts are put back, also after an error"
