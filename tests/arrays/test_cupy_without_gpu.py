"""CuPy without a GPU: arrays that are real, on memory that must not be read. With one, every test of `lib` runs too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xopt
from xopt import _arrays
from xopt._arrays.layout import AliasGuard, Layout
from xopt._engine import executor as _executor

pytestmark = pytest.mark.needs("cupy")


@pytest.fixture
def cupy() -> Any:
    return pytest.importorskip("cupy")


def fake(cupy: Any, address: int, *shape: int, dtype: str = "float32") -> Any:
    """Make an array at an address, without a device."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = cupy.cuda.UnownedMemory(address, max(size, 1), None, device_id=0)
    return cupy.ndarray(shape, dtype, memptr=cupy.cuda.MemoryPointer(memory, 0))


def test_recognised(cupy: Any) -> None:
    x = fake(cupy, 4096, 3, 4)
    assert str(_arrays.library(x)) == "cupy"
    assert _arrays.namespace(x).__name__ == "array_api_compat.cupy"
    assert _arrays.dtype_name(x) == "float32"
    assert _arrays.named("cupy").writes
    assert _arrays.host_view(x) is None
    assert _arrays.extent(x) == (4096, 4096 + 48)


def test_layout_and_runner(cupy: Any) -> None:
    params = {"w": fake(cupy, 4096, 3, 4), "b": fake(cupy, 8192, 4, dtype="complex64")}
    layout = Layout(params, writable=True)
    assert (layout.library.name, layout.shapes) == ("cupy", [(4,), (3, 4)])
    executor = _executor.Executor(xopt.AdamW()._chains(layout), layout)
    assert executor.runner.name == "eager"
    assert [executor.state.slot_dtype("0.adamw.v", k) for k in (0, 1)] == ["float32", "float32"]
    assert executor.state.slot_dtype("0.adamw.m", 0) == "complex64"
    with pytest.raises(ValueError, match="these are of cupy"):
        _executor.Executor(xopt.AdamW()._chains(layout), layout, "tiled")


def test_errors_come_before_any_memory_is_touched(cupy: Any) -> None:
    p = fake(cupy, 4096, 4)
    layout = Layout(p)
    for g, exception, text in [
        (fake(cupy, 8192, 5), ValueError, r"grads: shape \(5,\), but the parameter has \(4,\)"),
        (fake(cupy, 8192, 4, dtype="float64"), TypeError, "grads: dtype float64, but the parameter has float32"),
        (np.ones(4, "float32"), TypeError, "grads: an array of numpy, but the parameter is an array of cupy"),
    ]:
        with pytest.raises(exception, match=text):
            layout.gradients(g)
    with pytest.raises(TypeError, match="dtype int32"):
        Layout(fake(cupy, 4096, 4, dtype="int32"))


def test_memory(cupy: Any) -> None:
    a, b, c = fake(cupy, 4096, 4), fake(cupy, 4096 + 8, 4), fake(cupy, 8192, 4)
    with pytest.raises(ValueError, match=r"params\[1\]: shares memory with params\[0\]"):
        AliasGuard(Layout([a, b]), [])
    memory = AliasGuard(Layout([a, c]), [])
    with pytest.raises(ValueError, match=r"grads\[1\]: shares memory with params\[0\]"):
        memory.gradients([fake(cupy, 1 << 20, 4), b])
    grads = [fake(cupy, 1 << 20, 4), fake(cupy, 1 << 21, 4)]
    assert all(x is y for x, y in zip(memory.gradients(grads)[0], grads, strict=True))
    even, odd = a[::2], a[1::2]
    AliasGuard(Layout([even, odd]), [])


@pytest.mark.cuda
def test_no_synchronisation(cupy: Any) -> None:
    """A step with a global norm runs while the host is forbidden to read from the device."""
    if not cupy.cuda.is_available():
        pytest.skip("no GPU")
    p = cupy.ones(1000, "float32")
    opt = xopt.Optimizer(p, xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam(lr=0.1)))
    g = cupy.ones(1000, "float32")
    opt.step(g)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("get", "__float__", "__bool__", "__int__", "item"):
            patch.setattr(cupy.ndarray, name, lambda *a, **k: pytest.fail("the step read from the device"))
        opt.step(g)
