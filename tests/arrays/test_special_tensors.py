"""Tensors of torch that are none: under vmap, without memory, sparse, of lazy modules, with several processes."""

from __future__ import annotations

from typing import Any

import pytest

import xopt

pytestmark = pytest.mark.needs("torch")
RULES = {
    "adam": xopt.Adam(lr=0.1),
    "clip": xopt.chain(xopt.ClipByGlobalNorm(0.5), xopt.AdamW(lr=0.1), xopt.EMA(0.9)),
    "sgd": xopt.SGD(lr=0.1, momentum=0.9),
    "8 bits": xopt.Precision(xopt.Adam(lr=0.1), state_dtype="int8"),
}


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_vmap_is_a_loop(torch: Any, rule: Any, dtype: str) -> None:
    """An ensemble: members in a leading axis, each with norms of its own."""
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    params = {"w": torch.randn(5, 3, 2, dtype=torch.float64).to(kind), "b": torch.randn(5, 2).to(kind)}
    grads = [{n: torch.randn(p.shape).to(kind) for n, p in params.items()} for _ in range(3)]

    def run(p: Any, *gs: Any) -> Any:
        state = rule.init(p)
        for g in gs:
            p, state = rule.apply(p, g, state)
        return p

    found = torch.func.vmap(run)(params, *grads)
    for k in range(5):
        of = lambda tree, k=k: {n: x[k] for n, x in tree.items()}
        alone = run(of(params), *map(of, grads))
        for n, x in alone.items():
            assert found[n].dtype == kind
            torch.testing.assert_close(found[n][k], x, rtol=1e-12 if dtype == "float64" else 1e-2, atol=0)


def test_functional_call_and_vmap_train_an_ensemble(torch: Any) -> None:
    torch.manual_seed(0)
    models = [torch.nn.Linear(3, 1) for _ in range(4)]
    params, _ = torch.func.stack_module_state(models)
    params = {n: p.detach() for n, p in params.items()}
    x, y, rule = torch.randn(20, 3), torch.randn(20, 1), xopt.Adam(lr=0.05)

    def loss(p: Any) -> Any:
        return ((torch.func.functional_call(models[0], p, (x,)) - y) ** 2).mean()

    def step(p: Any, m: Any, v: Any, t: int) -> Any:
        state = xopt.State(t, {"0.adam.m": m, "0.adam.v": v}, {})
        p, state = rule.apply(p, torch.func.grad(loss)(p), state)
        return p, state.slots["0.adam.m"], state.slots["0.adam.v"]

    zeros = {n: torch.zeros_like(p) for n, p in params.items()}
    all_of = (params, zeros, zeros)
    for t in range(30):
        all_of = torch.func.vmap(lambda p, m, v, t=t: step(p, m, v, t))(*all_of)
    for k, model in enumerate(models):
        opt = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(30):
            opt.zero_grad()
            ((model(x) - y) ** 2).mean().backward()
            opt.step()
        for n, p in model.named_parameters():
            torch.testing.assert_close(all_of[0][n][k], p.detach(), rtol=1e-4, atol=1e-5)  # 30 steps in float32


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_tensors_without_memory(torch: Any, rule: Any) -> None:
    """FakeTensor and the device meta: shapes, dtypes and sizes of a run, without its memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    runners: list[str] = []

    def run(p: Any) -> Any:
        opt = xopt.Optimizer({"p": p}, rule)
        for _ in range(2):
            opt.step({"p": torch.ones_like(p)})
        runners.append(opt.runner)
        new, state = rule.apply(p, torch.ones_like(p), rule.init(p))
        return new, *state.slots.values()

    alone = [(x.shape, x.dtype) for x in run(torch.ones(300, 70))]
    with FakeTensorMode():
        faked = run(torch.ones(300, 70))
    assert [(x.shape, x.dtype) for x in faked] == alone
    assert [(x.shape, x.dtype) for x in run(torch.ones(300, 70, device="meta"))] == alone
    assert runners == ["tiled", "eager", "eager"]


def test_vmap_over_gradients_alone(torch: Any) -> None:
    """Members that start from the same parameters and state."""
    p, grads, rule = torch.ones(3), torch.arange(6.0).reshape(2, 3), xopt.Adam(lr=0.1)
    state = rule.init(p)
    found = torch.func.vmap(lambda g: rule.apply(p, g, state)[0])(grads)
    for k in range(2):
        torch.testing.assert_close(found[k], rule.apply(p, grads[k], state)[0], rtol=1e-6, atol=0)


def test_gradients_through_a_step_are_refused(torch: Any) -> None:
    """Which would be 0."""
    p, rule = torch.ones(3), xopt.SGD(lr=0.1)
    message = "a tensor of torch.func.grad or jvp, .* take the step outside of them"
    with pytest.raises(TypeError, match=f"^params: {message}"):
        torch.func.grad(lambda p: rule.apply(p, torch.ones(3), rule.init(p))[0].sum())(p)
    state = rule.init(p)
    with pytest.raises(TypeError, match=f"^grads: {message}"):
        torch.func.grad(lambda g: rule.apply(p, g, state)[0].sum())(p)


@pytest.mark.parametrize("runner", [None, "tiled", "eager"])
def test_an_optimizer_writes_in_no_transform(torch: Any, runner: Any) -> None:
    p = torch.ones(3)
    opt = xopt.Optimizer(p, xopt.Adam(lr=0.1), runner=runner)
    message = r"^Optimizer: inside torch\.func, where it cannot write; use rule.init and rule.apply$"
    with pytest.raises(TypeError, match=message):
        torch.func.vmap(lambda g: opt.step(g))(torch.ones(2, 3))
    with pytest.raises(TypeError, match=message):
        torch.func.vmap(lambda q: xopt.Optimizer(q, xopt.Adam()).params)(torch.ones(2, 3))
    assert opt.steps_taken == 0
    assert bool((p == 1).all())
    opt.step(torch.ones(3))
    assert bool((p < 1).all())


@pytest.mark.parametrize("runner", [None, "tiled", "eager"])
def test_tensors_without_memory_go_with_their_like(torch: Any, runner: Any) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.ones(3)
    p = torch.ones(3)
    opt, rule = xopt.Optimizer(p, xopt.Adam(lr=0.1), runner=runner), xopt.Adam(lr=0.1)
    state = rule.init(p)
    for call in (opt.step, lambda g: rule.apply(p, g, state, runner=runner)):
        with pytest.raises(TypeError, match=r"^grads: a FakeTensor, but the parameter is an array with numbers$"):
            call(fake)
    assert bool((p == 1).all())
    with pytest.raises(TypeError, match=r"^grads: an array with numbers, but the parameter is a FakeTensor$"):
        xopt.Optimizer(fake, rule).step(p)


REFUSED = {
    "sparse": (lambda torch: torch.eye(3).to_sparse(), r"layout torch\.sparse_coo, but .* pass x\.to_dense\(\)"),
    "csr": (lambda torch: torch.eye(3).to_sparse_csr(), r"layout torch\.sparse_csr"),
    "lazy": (lambda torch: torch.nn.LazyLinear(2).weight, "a parameter of a lazy module, which has no shape yet"),
    "nested": (
        lambda torch: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        "a nested tensor, whose components differ in shape",
    ),
    "nested strided": (lambda torch: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "a nested tensor"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of layouts that are in beta
@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_dense_tensor_is_refused(torch: Any, make: Any, message: str) -> None:
    x = make(torch)
    for call in (xopt.Adam().init, lambda x: xopt.Optimizer(x, xopt.Adam()), lambda x: xopt.minimize(abs, x)):
        with pytest.raises((TypeError, ValueError), match=message):
            call(x)


def test_the_parts_of_several_processes_are_refused(torch: Any) -> None:
    dist = pytest.importorskip("torch.distributed")
    tensor = pytest.importorskip("torch.distributed.tensor")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = tensor.init_device_mesh("cpu", (1,)) if hasattr(tensor, "init_device_mesh") else None
        mesh = mesh or dist.device_mesh.init_device_mesh("cpu", (1,))
        x = tensor.distribute_tensor(torch.ones(4, 3), mesh, [tensor.Shard(0)])
        plain = torch.ones(4, 3)
        rule = xopt.Adam()
        for call in (
            lambda: rule.init(x),
            lambda: rule.apply(plain, x, rule.init(plain)),
            lambda: xopt.Optimizer(torch.nn.Parameter(x), rule),
            lambda: xopt.Optimizer(plain, rule).step(x),
            lambda: xopt.minimize(lambda v: (v * v).sum(), x, jac=False),
        ):
            with pytest.raises(TypeError, match=r"a DTensor, whose parts lie with several processes; pass x\.to_local"):
                call()
    finally:
        dist.destroy_process_group()
