"""Sparse gradients of torch: embeddings beside SparseAdam, Adagrad and SGD of torch, and as the dense gradient."""

from __future__ import annotations

import copy
from typing import Any

import pytest

import xopt

pytestmark = pytest.mark.needs("torch")
torch = pytest.importorskip("torch")


def adapted(*args: Any, **options: Any) -> Any:
    from xopt.adapters.torch import Optimizer

    return Optimizer(*args, **options)


SPARSE: dict[str, tuple[Any, Any]] = {
    "SparseAdam": (xopt.Adam(0.1, eps=1e-4, eps_mode="hat"), lambda p: torch.optim.SparseAdam(p, lr=0.1, eps=1e-4)),
    "Adagrad": (xopt.Adagrad(0.1, like="torch"), lambda p: torch.optim.Adagrad(p, lr=0.1)),
    "SGD": (xopt.SGD(0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
}


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_sparse_gradients_are_those_of_torch(name: str, dtype: Any) -> None:
    torch.manual_seed(0)
    tables = [torch.nn.EmbeddingBag(9, 3, sparse=True, mode="sum", dtype=dtype) for _ in range(2)]
    tables[1].load_state_dict(tables[0].state_dict())
    rule, peer = SPARSE[name]
    opts = [adapted(tables[0].parameters(), rule), peer(tables[1].parameters())]
    for _ in range(6):
        words = torch.randint(0, 7, (2, 4))  # some of them several times, and two never
        for table, opt in zip(tables, opts, strict=True):
            opt.zero_grad()
            for batch in words.reshape(2, 2, 2):  # gradients of two batches are put end to end
                (table(batch) ** 2).sum().backward()
            opt.step()
    # six steps of a dozen roundings, in parameters of size 1
    limit = 2e-6 if dtype == torch.float32 else 1e-14
    torch.testing.assert_close(tables[0].weight, tables[1].weight, rtol=limit, atol=limit)
    torch.testing.assert_close(tables[0].weight[7:], tables[1].weight[7:], rtol=0, atol=0)


def test_sparse_gradients_as_the_dense_ones() -> None:
    torch.manual_seed(0)
    tables = [torch.nn.Embedding(6, 2, sparse=sparse) for sparse in (True, False)]
    tables[1].load_state_dict(tables[0].state_dict())
    rule, words = xopt.chain(xopt.ClipByGlobalNorm(0.5), xopt.Adam(0.1), xopt.EMA(0.9)), torch.tensor([4, 1, 4])
    opts = [adapted(table.parameters(), rule, lazy=False) for table in tables]
    for _ in range(3):
        for table, opt in zip(tables, opts, strict=True):
            opt.zero_grad()
            (table(words) ** 2).sum().backward()
            opt.step()
    assert torch.equal(tables[0].weight, tables[1].weight)
    again = copy.deepcopy(opts[0])
    assert again._lazy is False
    lazy = adapted(tables[0].parameters(), rule)
    with pytest.raises(TypeError, match=r"grads\[0\]: SparseRows with lazy=True, but 2.ema keeps .*; use lazy=False"):
        lazy.step()


@pytest.mark.parametrize("lazy", [True, False])
def test_a_batch_of_padding_alone(lazy: bool) -> None:
    table = torch.nn.Embedding(5, 1, padding_idx=0, sparse=True)
    before, opt = table.weight.detach().clone(), adapted(table.parameters(), xopt.Adam(0.1), lazy=lazy)
    table(torch.tensor([[0, 0]])).sum().backward()
    opt.step()  # where torch's SparseAdam once failed: pytorch #82486
    assert torch.equal(table.weight, before)
    assert table.weight.grad._values().numel() == 0


def test_lazy_is_looked_at_and_kept() -> None:
    table = torch.nn.Embedding(5, 2, sparse=True)
    with pytest.raises(TypeError, match="lazy: 1, but it must be True or False"):
        adapted(table.parameters(), xopt.SGD(0.1), lazy=1)
    opt = adapted(table.parameters(), xopt.SGD(0.1))
    table(torch.tensor([1])).sum().backward()
    state = opt.__getstate__()
    del state["_lazy"]  # a pickle of xopt before this was there
    old = type(opt).__new__(type(opt))
    old.__setstate__(state)
    before = table.weight.detach().clone()
    old.step()
    assert torch.equal(table.weight.detach() != before, torch.tensor([[row == 1] * 2 for row in range(5)]))


def test_other_sparse_gradients_are_refused() -> None:
    p = torch.nn.Parameter(torch.ones(2, 2))
    opt = adapted([p], xopt.SGD(0.1))
    p.grad = torch.sparse_coo_tensor([[0], [1]], [1.0], (2, 2), check_invariants=True)
    with pytest.raises(TypeError, match=r"layout torch.sparse_coo, but .*; pass x.to_dense\(\) or SparseRows"):
        opt.step()
