"""LLVM IR as text: values and loops."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np

from xopt._arrays.dtypes import TABLE

STORED = {
    d.name: {"f4": "float", "f8": "double", "u2": "i16", "i1": "i8", "u1": "i8"}[d.compiled] for d in TABLE.values()
}
"""What each dtype is in memory; of complex numbers, their parts."""
REALS = {"float32": ("float", "f32", "i32"), "float64": ("double", "f64", "i64")}
"""For each dtype of arithmetic the type, how intrinsic functions spell it, and integers as wide."""


def printable(text: str) -> str:
    """Return a text of one line: labels of groups are in it, which may be any."""
    return "".join(c if c.isprintable() else "?" for c in text)


def constant(x: float | None, real: str) -> str:
    """Return a number as LLVM reads it, rounded to a dtype: the bits of a double, in which every float32 is exact."""
    if x is None:
        return ""
    rounded = float(np.float32(x)) if real == "float32" else x
    return f"0x{struct.unpack('Q', struct.pack('d', rounded))[0]:016X}"


class Text:
    """The body of a function, a line at a time."""

    def __init__(self) -> None:
        self.lines = ["entry:"]
        self._count = 0

    def line(self, text: str) -> None:
        """Write an instruction without a value."""
        self.lines.append(f"  {text}")

    def let(self, name: str, text: str) -> str:
        """Write an instruction that gives a value this name."""
        self.lines.append(f"  %{name} = {text}")
        return f"%{name}"

    def do(self, text: str) -> str:
        """Write an instruction whose value has no name of its own."""
        self._count += 1
        return self.let(f"x{self._count}", text)

    def element(self, kind: str, pointer: str, index: str) -> str:
        """Point at an element of an array."""
        return self.do(f"getelementptr {kind}, ptr {pointer}, i64 {index}")

    def load(self, kind: str, pointer: str, index: str) -> str:
        """Read an element of an array, which may start at any byte."""
        return self.do(f"load {kind}, ptr {self.element(kind, pointer, index)}, align 1")

    def store(self, kind: str, value: str, pointer: str, index: str, note: str = "") -> None:
        """Write an element of an array, which may start at any byte."""
        at = self.element(kind, pointer, index)
        self.line(f"store {kind} {value}, ptr {at}, align 1")
        self.note(note)

    def note(self, text: str) -> None:
        """Say in a comment what the last line is about, in characters that end no comment."""
        if text:
            self.lines[-1] += f"  ; {printable(text)}"

    @contextmanager
    def loop(self, name: str, first: str, last: str) -> Iterator[str]:
        """Write a loop over the integers from ``first`` on that are below ``last``."""
        self.lines += [
            f"  br label %{name}.start",
            f"{name}.start:",
            f"  br label %{name}.next",
            f"{name}.next:",
            f"  %{name} = phi i64 [ {first}, %{name}.start ], [ %{name}.up, %{name}.last ]",
            f"  %{name}.more = icmp slt i64 %{name}, {last}",
            f"  br i1 %{name}.more, label %{name}.body, label %{name}.end",
            f"{name}.body:",
        ]
        yield f"%{name}"
        self.lines += [
            f"  br label %{name}.last",
            f"{name}.last:",
            f"  %{name}.up = add nsw i64 %{name}, 1",
            f"  br label %{name}.next",
            f"{name}.end:",
        ]

    def leave(self, condition: str, value: str) -> None:
        """Write a return of a value under a condition."""
        self._count += 1
        here = f"x{self._count}"
        self.line(f"br i1 {condition}, label %{here}.leave, label %{here}.stay")
        self.lines += [f"{here}.leave:", f"  ret i64 {value}", f"{here}.stay:"]

    def function(self, name: str, arguments: Iterable[str], returns: str = "void", how: str = "") -> str:
        """Return the whole function."""
        text = "\n".join(self.lines)
        linkage = "" if name == "kernel" else "internal "
        end = "" if self.lines[-1].startswith("  ret") else f"\n  ret {returns}"
        return f"define {linkage}{returns} @{name}({', '.join(arguments)}) nounwind{how} {{\n{text}{end}\n}}\n"


def frame(text: Text, words: dict[str, str]) -> None:
    """Read the table of words that a kernel is given as ``frame``."""
    for j, (name, kind) in enumerate(words.items()):
        at = text.element("i64", "%frame", str(j))
        text.let(name, f"load {kind}, ptr {at}")
