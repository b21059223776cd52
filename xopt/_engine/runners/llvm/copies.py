"""Copy between addresses: a compiled loop that puts a thousand small arrays together, or takes them apart."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from xopt._engine.runners.llvm import compiler as _compiler
from xopt._engine.runners.llvm.text import Text

NDArray = np.ndarray[Any, Any]


def source() -> str:
    """Write the kernel. A row of the table is a source, a target and how many bytes; none overlap."""
    text = Text()
    with text.loop("k", "0", "%count") as k:
        row = text.do(f"mul i64 {k}, 3")
        of, to, size = (
            text.load(kind, "%rows", text.do(f"add i64 {row}, {j}")) for j, kind in enumerate(("ptr", "ptr", "i64"))
        )
        text.line(f"call void @llvm.memcpy.p0.p0.i64(ptr {to}, ptr {of}, i64 {size}, i1 false)")
    declared = "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)\n"
    return "; copies\n\n" + text.function("kernel", ["ptr %rows", "i64 %count"]) + declared


@functools.cache
def _kernel() -> Callable[..., None]:
    return _compiler.compiled(source(), 2)


def copy(rows: NDArray) -> None:
    """Copy bytes: each row of these integers has the address of a source, that of a target, and how many."""
    assert rows.dtype == np.int64
    assert rows.flags.c_contiguous
    _kernel()(rows.ctypes.data, len(rows))
