"""The llvm runner on tensors of torch, in place."""

from __future__ import annotations

import numpy as np
import optree
import pytest
from conftest import walk

import xopt

pytestmark = pytest.mark.needs("llvm")
pytest.importorskip("llvmlite")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_torch_tensors_in_place(dtype: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    start = [
        rng.standard_normal((5, 3)),
        rng.standard_normal(200),
        rng.standard_normal(()),
        rng.standard_normal((4, 3)).T,
    ]
    params = [torch.tensor(x).to(kind) if k < 3 else torch.tensor(x.T).to(kind).T for k, x in enumerate(start)]
    own = [x.detach().clone() for x in params]
    for x in params:
        x.requires_grad_()
    memory = [x.data_ptr() for x in params]
    rule = xopt.chain(xopt.ClipByGlobalNorm(3.0), xopt.AdamW(0.1, weight_decay=0.1))
    state = rule.init(own)
    opt = xopt.Optimizer(params, rule)
    assert opt.runner == "llvm"
    for _ in range(3):
        loss = sum((x.float() ** 2 * y).sum() for x, y in zip(params, (3.0, 1.0, 2.0, 0.5), strict=True))
        for x in params:
            x.grad = None
        loss.backward()
        stale = params[1] * params[1]
        own, state = rule.apply(own, [x.grad for x in params], state, runner="eager")
        opt.step([x.grad for x in params])
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            stale.sum().backward()
    assert [x.data_ptr() for x in params] == memory
    for x, y in zip(params, own, strict=True):
        assert x.requires_grad
        if dtype in ("float16", "bfloat16"):
            assert torch.equal(x.detach(), y)
        else:
            torch.testing.assert_close(x.detach(), y, rtol=1e-6, atol=0)
    slots = optree.tree_leaves(opt.state.slots)
    assert all(isinstance(x, torch.Tensor) for x in slots)


def test_torch_data_refused_is_refused_again() -> None:
    torch = pytest.importorskip("torch")
    for runner in ("llvm", "tiled", "eager"):
        p, q = torch.ones(5), torch.full((5,), 2.0)
        opt = xopt.Optimizer([p, q], xopt.SGD(lr=0.5), runner=runner)
        opt.step([torch.ones(5)] * 2)
        old, p.data = p.data, q.data
        for _ in range(2):
            with pytest.raises(ValueError, match=r"params\[1\]: shares memory with params\[0\]"):
                opt.step([torch.ones(5)] * 2)
        assert old.tolist() == [0.5] * 5
        p.data = old
        opt.step([torch.ones(5)] * 2)
        assert p.tolist() == [0.0] * 5
        z = torch.tensor([1 + 2j])
        opt = xopt.Optimizer(z, xopt.SGD(lr=1.0), runner=runner)
        z.data = z.data.conj()
        with pytest.raises(ValueError, match="stands for the conjugate"):
            opt.step(torch.ones(1, dtype=z.dtype))


def test_torch_data_replaced(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    p = torch.ones(5)
    opt = xopt.Optimizer([p], xopt.SGD(lr=0.5), runner="llvm")
    opt.step([torch.ones(5)])
    p.data = torch.full((5,), 3.0)
    opt.step([torch.ones(5)])
    assert torch.equal(p, torch.full((5,), 2.5))
    new, _ = walk(xopt.SGD(lr=0.5), [p], [[torch.ones(5)]], runner="llvm")
    assert torch.equal(new[0], torch.full((5,), 2.0))
    assert torch.equal(p, torch.full((5,), 2.5))
