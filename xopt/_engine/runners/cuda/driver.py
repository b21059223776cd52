"""The CUDA driver, as much of it as the ``cuda`` runner needs: compile, launch, and which stream is current.

All of it goes through ``cuda.bindings``, so that CuPy arrays and torch tensors are served alike and neither library is
needed for the other. Kernels are compiled by NVRTC and not by CuPy, which flushes denormals always.
"""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xopt import _arrays

if TYPE_CHECKING:
    from collections.abc import Iterator

OPTIONS = ("--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true", "--std=c++17")
"""No contraction, no flushing, IEEE division and roots: the bits of NumPy."""


class Queue(NamedTuple):
    """Where work is put: a stream of a device."""

    device: int
    stream: int


def compiled(source: str, arch: str) -> bytes:
    """Compile CUDA C++ for ``"sm_90"`` or, as PTX, for ``"compute_90"``. Needs NVRTC and no GPU."""
    nvrtc = importlib.import_module("cuda.bindings.nvrtc")
    program = _checked(nvrtc.nvrtcCreateProgram(source.encode(), b"xopt.cu", 0, [], []))
    try:
        options = [o.encode() for o in (f"--gpu-architecture={arch}", "--disable-warnings", *OPTIONS)]
        [status] = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if int(status):
            log = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program))
            nvrtc.nvrtcGetProgramLog(program, log)
            raise RuntimeError(f"NVRTC could not compile for {arch}:\n{log.decode(errors='replace')}")
        kind = "PTX" if arch.startswith("compute") else "CUBIN"
        made: bytes = b" " * _checked(getattr(nvrtc, f"nvrtcGet{kind}Size")(program))
        _checked(getattr(nvrtc, f"nvrtcGet{kind}")(program, made))
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return made


def _checked(answer: tuple[Any, ...]) -> Any:
    status, *values = answer
    if int(status):
        raise RuntimeError(f"CUDA: {status.name}")
    return values[0] if values else None


class Driver:
    """The real thing. Making one raises where there is no driver, no GPU or no NVRTC."""

    def __init__(self) -> None:
        self._cuda = importlib.import_module("cuda.bindings.driver")
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
        _checked(self._cuda.cuInit(0))
        if not _checked(self._cuda.cuDeviceGetCount()):
            raise RuntimeError("no GPU")
        self._archs = sorted(_checked(nvrtc.nvrtcGetSupportedArchs()))
        self._contexts: dict[int, Any] = {}
        self._functions: dict[tuple[int, str, str], Any] = {}

    def queue(self, x: _arrays.Array) -> Queue:
        """Return the current stream of the device that an array is on."""
        library = _arrays.library(x)
        assert library is not None
        return Queue(*library.cuda_stream(x))

    def capturing(self, queue: Queue) -> bool:
        """Whether what is put into this stream is being recorded instead of run."""
        with self._on(queue.device):
            status, *values = self._cuda.cuStreamIsCapturing(queue.stream)
        return bool(int(status)) or bool(int(values[0]))  # it fails while another stream of the thread is captured

    def function(self, source: str, name: str, device: int) -> Any:
        """Return a kernel, compiled and loaded: what can go wrong does so here and not at the launch."""
        key = (device, name, source)
        if key not in self._functions:
            with self._on(device):
                module = _checked(self._cuda.cuModuleLoadData(compiled(source, self._arch(device))))
                self._functions[key] = _checked(self._cuda.cuModuleGetFunction(module, name.encode()))
        return self._functions[key]

    def launch(self, function: Any, queue: Queue, grid: int, threads: int, words: np.ndarray[Any, Any]) -> None:
        """Put one launch into a stream. The kernel takes ``words`` as one structure, by value."""
        arguments = np.asarray([words.ctypes.data], np.uint64)
        with self._on(queue.device):
            _checked(
                self._cuda.cuLaunchKernel(
                    function, grid, 1, 1, threads, 1, 1, 0, queue.stream, arguments.ctypes.data, 0
                )
            )

    def _arch(self, device: int) -> str:
        """Name what to compile for: the device itself, or PTX for one that is newer than NVRTC."""
        attribute = self._cuda.CUdevice_attribute
        major, minor = (
            _checked(self._cuda.cuDeviceGetAttribute(getattr(attribute, n), _checked(self._cuda.cuDeviceGet(device))))
            for n in ("CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR", "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR")
        )
        own = 10 * major + minor
        return arch(own, self._archs)

    @contextmanager
    def _on(self, device: int) -> Iterator[None]:
        """Make the context that the array libraries use on a device current, and put back what was there."""
        if device not in self._contexts:
            self._contexts[device] = _checked(
                self._cuda.cuDevicePrimaryCtxRetain(_checked(self._cuda.cuDeviceGet(device)))
            )
        _checked(self._cuda.cuCtxPushCurrent(self._contexts[device]))
        try:
            yield
        finally:
            self._cuda.cuCtxPopCurrent()


def arch(own: int, known: list[int]) -> str:
    """Name what to compile for on a device of capability ``own`` with an NVRTC that knows some."""
    if own in known:
        return f"sm_{own}"
    older = [x for x in known if x < own]
    if not older:
        raise RuntimeError(
            f"a GPU of compute capability {own / 10}, but this NVRTC compiles for {min(known) / 10} and newer"
        )
    return f"compute_{max(older)}"
