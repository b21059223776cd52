"""Compile LLVM IR in memory, for the processor that runs it. Nothing is written to disk."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

_lock = threading.RLock()
_held: list[Any] = []
"""Locks that a fork holds."""


def _hold() -> None:
    """Take the locks before a fork: a child must not find them in the hands of a thread that it does not have.

    Objects of llvmlite are let go at any time, and take its own lock for that; it has no name for others.
    """
    own = getattr(getattr(sys.modules.get("llvmlite.binding.ffi"), "lib", None), "_lock", None)
    for lock in (_lock, getattr(own, "_lock", None)):
        if lock is not None:
            lock.acquire()
            _held.append(lock)


def _let_go() -> None:
    while _held:
        _held.pop().release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold, after_in_parent=_let_go, after_in_child=_let_go)


@functools.cache
def missing() -> str:
    """Say why there is no LLVM to compile with; nothing if there is one."""
    if importlib.util.find_spec("llvmlite") is None:
        return "llvmlite is not installed: pip install llvmlite"
    try:
        importlib.import_module("llvmlite.binding")
    except (ImportError, OSError) as error:
        return f"llvmlite cannot be imported: {error}"
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        return "this is a process of 32 bits"
    return ""


@functools.cache
def _features() -> dict[str, bool]:
    import llvmlite.binding as llvm

    return dict(llvm.get_host_cpu_features())


@functools.cache
def converts_half() -> bool:
    """Whether the processor has instructions between float16 and float32."""
    found = _features()
    return found.get("f16c", False) or found.get("fullfp16", False)


@functools.cache
def _target() -> tuple[Any, dict[str, Any]]:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = ",".join(f"{'+' if on else '-'}{name}" for name, on in sorted(_features().items()))
    return llvm.Target.from_default_triple(), {"cpu": llvm.get_host_cpu_name(), "features": features}


def compiled(source: str, arguments: int, reads: bool = False) -> Callable[..., Any]:
    """Compile the text of a module; return its function ``kernel``, which takes so many integers and addresses.

    Other threads run meanwhile, but not where it ``reads`` objects of Python, and returns an integer.
    """
    with _lock:
        engine = _engine(source, 1 if reads else 3)
        words = [ctypes.c_ssize_t] * arguments
        kind = ctypes.PYFUNCTYPE(ctypes.c_ssize_t, *words) if reads else ctypes.CFUNCTYPE(None, *words)
        found: Any = kind(engine.get_function_address("kernel"))
        found.engine = engine  # which holds the code
        return found  # type: ignore[no-any-return]


def _engine(source: str, level: int) -> Any:
    """Compile the text of a module; with level 1 in less time, with 3 for a loop that will run long."""
    import llvmlite.binding as llvm

    target, options = _target()
    machine = target.create_target_machine(**options, opt=level)  # one each: an engine takes it over
    module = llvm.parse_assembly(source)
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    module.verify()
    tuning = llvm.create_pipeline_tuning_options(speed_level=level)
    tuning.loop_vectorization = level > 1
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine
