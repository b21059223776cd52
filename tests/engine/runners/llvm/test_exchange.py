"""What the llvm runner looks at in the tensors of torch before a step: DLPack's descriptions of them."""

from __future__ import annotations

import ctypes
import warnings
from typing import Any

import numpy as np
import pytest

import xopt
from xopt._arrays.layout import Layout

pytestmark = pytest.mark.needs("llvm")
pytest.importorskip("llvmlite")
torch = pytest.importorskip("torch")

from xopt._engine.runners.llvm import exchange as _exchange


def inspected(params: list[Any], span: tuple[int, int] = (0, 0)) -> Any:
    starts, reach = np.asarray([span[0]]), np.asarray([0, span[1]])
    found = _exchange.inspector(Layout(params), starts, reach)
    assert found is not None, "no table of functions that is known"
    return found


class Sub(torch.Tensor):
    """Not plainly a tensor."""


def draw() -> tuple[list[Any], list[Any]]:
    params = [torch.nn.Parameter(torch.randn(3, 4)), torch.randn(()), torch.zeros(0, 2), torch.randn(5, 1, 2)]
    wide = torch.randn(3, 8)
    return params, [torch.randn(3, 4), torch.ones(()), torch.zeros(2, 0).T, wide[:2, :5].reshape(5, 1, 2)]


def test_it_accepts_what_is_plainly_right_and_nothing_else() -> None:
    params, good = draw()
    own = params[0].data_ptr()
    inspect = inspected(params, (own, own + 48))
    found, same = inspect(good)
    assert same
    assert found.tolist() == [g.data_ptr() for g in good]
    assert inspect([torch.nn.Parameter(g) for g in good])[0] is not None
    complex_ = torch.randn(3, 4, dtype=torch.complex64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sparse = torch.randn(3, 4).to_sparse_csr()
    for k, bad in [
        (0, None),
        (0, [1.0]),
        (0, np.ones((3, 4), "f4")),
        (0, torch.randn(4, 3)),
        (0, torch.randn(12)),
        (0, torch.randn(3, 4, 1)),
        (0, torch.randn(4, 3).T),
        (0, torch.randn(3, 8)[:, ::2]),
        (0, torch.randn(3, 4).double()),
        (0, torch.randn(3, 4).int()),
        (0, torch.randn(3, 4).bfloat16()),
        (0, complex_),
        (0, torch._neg_view(torch.randn(3, 4))),
        (0, torch.randn(3, 4).as_subclass(Sub)),
        (0, torch.randn(3, 4, device="meta")),
        (0, sparse),
        (0, torch.randn(3, 4).to_sparse()),
        (0, params[0]),
        (0, params[0].detach()),
        (1, torch.ones(1)),
        (1, 1.0),
        (3, torch.randn(2, 1, 5)),
    ]:
        found, same = inspect([bad if j == k else g for j, g in enumerate(good)])
        assert found is None, (k, bad)
        assert same or (isinstance(bad, torch.Tensor) and (bad.is_meta or bad.layout != torch.strided)), (k, bad)
    assert inspect(good)[0] is not None


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_views_that_stand_for_conjugates(dtype: str) -> None:
    """DLPack's function describes the memory below them as if it were theirs."""
    kind = getattr(torch, dtype)
    p, g = torch.randn(6, dtype=kind), torch.randn(6, dtype=kind)
    inspect = inspected([p])
    assert inspect([g])[0] is not None
    assert inspect([g.conj()]) == (None, True)
    assert inspect([g.conj().resolve_conj()])[0] is not None
    p.data = p.data.conj()
    assert inspect([g]) == (None, False)


def test_it_notices_what_becomes_of_parameters() -> None:
    params, good = draw()
    inspect, kept = inspected(params), [p.data for p in params]
    for k, new in [(0, torch.randn(3, 4)), (0, kept[0].T), (0, kept[0].view(12)), (3, kept[3].view(torch.int32))]:
        params[k].data = new
        assert inspect(good) == (None, False), k
        params[k].data = kept[k]
        assert inspect(good)[0] is not None


def test_a_step_is_looked_at_in_one_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Python runs once a leaf in a step where all is plain; what is not gets the same errors as ever."""
    params = [torch.nn.Parameter(torch.randn(n)) for n in (3, 4, 5)]
    grads = [torch.randn(n) for n in (3, 4, 5)]
    opt = xopt.Optimizer(params, xopt.Adam(0.1))
    assert opt.runner == "llvm"
    opt.step(grads)
    version = params[0]._version
    with monkeypatch.context() as patch:
        for name in ("facts", "contiguous", "addresses", "moving"):
            patch.setattr(f"xopt._arrays.libraries.torch.Own.{name}", lambda *a: pytest.fail("looked one by one"))
        opt.step(grads)
    assert params[0]._version == version + 1
    before = [p.detach().clone() for p in params]
    for bad, text in [
        (grads[1][:3], r"grads\[1\]: shape \(3,\), but the parameter has \(4,\)"),
        (grads[1].double(), r"grads\[1\]: dtype float64, but the parameter has float32"),
        (params[1].detach(), r"grads\[1\]: shares memory with params\[1\]"),
        (torch.randn(4, device="meta"), r"grads\[1\]: "),
    ]:
        with pytest.raises((ValueError, TypeError), match=text):
            opt.step([grads[0], bad, grads[2]])
    assert all(torch.equal(p, x) for p, x in zip(params, before, strict=True))
    opt.step([grads[0], grads[1].requires_grad_(), grads[2]])
    opt.step([None, grads[1], grads[2]])


def test_a_table_of_another_version_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd:
        pass

    assert _exchange.function(Odd) == 0
    assert _exchange.function(torch.Tensor) == _exchange.function(torch.nn.Parameter) != 0
    monkeypatch.setattr(_exchange, "_MAJOR", 2)
    assert _exchange.function(torch.Tensor) == 0
    params, grads = draw()
    opt = xopt.Optimizer(params, xopt.SGD(lr=0.5))
    opt.step(grads)
    assert opt._guard._inspect is None


def test_descriptions_are_those_of_dlpack() -> None:
    x = torch.randn(4, 6).bfloat16()[1:, ::2]
    kind, device, sizes, strides, place = _exchange.described(_exchange.function(torch.Tensor), x)
    assert (sizes, strides, place) == ([3, 3], [6, 2], x.data_ptr())
    assert kind == 2 | 4 << 32 | 16 << 40 | 1 << 48, "two dimensions; bfloat16, 16 bits, one lane"
    assert ctypes.c_int32(device).value == 1, "the CPU"
