"""What `explain` says is what happens."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from support.own_rules import Root

import xopt


def array(dtype: str) -> Any:
    return np.zeros(10, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


CLIPPED = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.AdamW())


@pytest.mark.parametrize(
    ("rule", "dtype", "moved"),
    [
        (xopt.SGD(), "float32", 3 * 4),
        (xopt.SGD(momentum=0.9), "float32", 5 * 4),
        (xopt.Adam(), "float32", 7 * 4),
        (xopt.Adam(), "float64", 7 * 8),
        (xopt.Adam(), "bfloat16", 3 * 2 + 4 * 4),  # state in float32
        (xopt.Adam(amsgrad=True), "float16", 3 * 2 + 6 * 4),
        (xopt.Adam(), "complex64", 3 * 8 + 2 * 8 + 2 * 4),  # one real second moment
        (CLIPPED, "float32", 4 + 7 * 4),
    ],
)
def test_bytes(rule: Any, dtype: str, moved: int) -> None:
    text = xopt.explain(rule, array(dtype), runner="tiled", bandwidth=10.0, source=False)
    assert f"{10 * moved} bytes per step: at 1e-08 GB/s at least {moved} s" in text
    stages = [line for line in text.splitlines() if line.startswith("  ") and line.endswith("per parameter")]
    assert sum(int(line.split(": ")[1].split()[0]) for line in stages) == moved


def test_stages() -> None:
    text = xopt.explain(CLIPPED, {"a": array("float32"), "b": [array("float64"), array("float32")]}, runner="tiled")
    assert text.startswith(
        "chain(ClipByGlobalNorm(max_norm=1.0), AdamW()): 3 arrays of numpy, 30 parameters, runner tiled"
    )
    assert "float32: 2 arrays, 20 parameters, 8 bytes of state each" in text
    assert "float64: 1 array, 10 parameters, 16 bytes of state each" in text
    assert "  sums of 0.clipbyglobalnorm: 4 bytes and 1 operation per parameter" in text
    assert "    sums    total over each tree, in float64, 65,536 at a time" in text
    assert "    reads   t0 = p float32, t1 = g float32, t2 = 1.adamw.m float32, t3 = 1.adamw.v float32" in text
    assert "-> 1.adamw.m" in text
    assert " = scale_0\n" in text
    assert text.count("source of the ") == 4
    assert text.count("def kernel(") == 4
    assert f"{20 * 32 + 10 * 64:,} bytes per step" in text


def test_other_libraries_and_runners() -> None:
    strict = pytest.importorskip("array_api_strict")
    text = xopt.explain(xopt.SGD(), strict.zeros(3))
    assert "1 array of array_api_strict, 3 parameters, runner eager" in text
    assert "(none: the rule itself is called with the arrays)" in text


def test_errors() -> None:
    with pytest.raises(TypeError, match="rule: Adam, but it must be a rule or a chain; make an object of it"):
        xopt.explain(xopt.Adam, array("float32"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"bandwidth: 0.0 is out of range, it must be > 0 \(bytes per second\)"):
        xopt.explain(xopt.Adam(), array("float32"), bandwidth=0)
    for bad in ("20", 1j, 10**400):
        with pytest.raises(TypeError, match="bandwidth: "):
            xopt.explain(xopt.Adam(), array("float32"), bandwidth=bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="dtype int64"):
        xopt.explain(xopt.Adam(), np.zeros(3, np.int64))


@pytest.mark.needs("llvm")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_source_is_what_is_compiled(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llvmlite")
    from xopt._engine.runners.llvm import compiler as _compiler
    from xopt._engine.runners.llvm import runner as _llvm

    compiled: list[str] = []
    real = _compiler.compiled
    monkeypatch.setattr(_compiler, "compiled", lambda text, n, **k: compiled.append(text) or real(text, n, **k))
    _llvm._compiled.cache_clear()
    opt = xopt.Optimizer(array(dtype), CLIPPED, runner="llvm")
    text = xopt.explain(CLIPPED, array(dtype))
    assert "runner llvm" in text
    opt.step(array(dtype))
    compiled = [source for source in compiled if "headers of arrays" not in source]
    assert len(compiled) == 2, "the sums and the step"
    assert all(source.rstrip() in text for source in compiled)


@pytest.mark.needs("llvm")
def test_what_llvm_leaves_to_the_tiled_runner() -> None:
    pytest.importorskip("llvmlite")
    text = xopt.explain(Root(), array("complex64"), runner="llvm")
    assert "(left to the tiled runner: sqrt of a complex array)" in text
    assert "sqrt(l_1, out=" in text


def test_what_never_changes_is_not_moved() -> None:
    """Of DoG's first parameters only the sums know; the step neither reads nor writes them."""
    text = xopt.explain(xopt.DoG(), np.zeros(8, "float32"), runner="eager")
    step = text[text.index("  step:") :]
    assert "step: 12 bytes" in step
    assert "x0" not in step
