"""Groups beside those of torch and optax, and the decay of rates by layers beside that of BEiT."""

from __future__ import annotations

from typing import Any

import numpy as np
import optree
import pytest
from support.groups import head, of, rest, tree

import xopt


def test_layerwise_decay_has_the_rates_of_beit() -> None:
    """BEiT and timm number the layers of a transformer of d blocks: embedding 0, block i is i + 1, the rest d + 1;
    the rate of a layer is factor**(d + 1 - number)."""
    depth, factor = 12, 0.65
    number = {"embed": 0, **{f"blocks/{i}": i + 1 for i in range(depth)}, "norm": depth + 1, "head": depth + 1}
    params: dict[str, Any] = {
        "embed": np.zeros(1),
        "blocks": [{"w": np.zeros((1, 1)), "b": np.zeros(1)} for _ in range(depth)],
        "norm": np.zeros(1),
        "head": np.zeros(1),
    }
    layers = ["embed", *(f"blocks/{i}/**" for i in range(depth))]
    rule = xopt.layerwise_decay(xopt.SGD(lr=1.0), layers, factor)
    change, _ = rule.updates(params, optree.tree_map(np.ones_like, params), rule.init(params))
    for path, x in of(change, rest).items():
        name = path.rpartition("/")[0] or path
        np.testing.assert_allclose(-x, factor ** (depth + 1 - number[name]), rtol=1e-15)


def test_decay_follows_the_scaled_rate() -> None:
    """As in timm: decay that is multiplied by lr is scaled with it."""
    rule = xopt.layerwise_decay(xopt.SGD(lr=1.0, weight_decay=0.5, decay="lr"), ["a"], 0.5)
    p = {"a": np.ones(1), "b": np.ones(1)}
    change, _ = rule.updates(p, {"a": np.zeros(1), "b": np.zeros(1)}, rule.init(p))
    assert (change["a"].item(), change["b"].item()) == (-0.25, -0.5)


@pytest.mark.needs("torch")
def test_param_groups_of_torch(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    params = tree(rng, "float64")
    grads = [tree(rng, "float64") for _ in range(10)]
    rule = xopt.Groups(
        xopt.AdamW(lr=0.01, weight_decay=0.1), ("head/*", {"lr": 0.05}), (xopt.no_decay_1d, {"weight_decay": 0.0})
    )
    tensors = {path: torch.from_numpy(x.copy()).requires_grad_() for path, x in of(params, rest).items()}
    groups: list[Any] = [
        {"params": [x for path, x in tensors.items() if head(path)], "lr": 0.05},
        {"params": [x for path, x in tensors.items() if not head(path) and x.ndim < 2], "weight_decay": 0.0},
        {"params": [x for path, x in tensors.items() if not head(path) and x.ndim >= 2]},
    ]
    peer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1)
    state = rule.init(params)
    for g in grads:
        params, state = rule.apply(params, g, state)
        for path, x in of(g, rest).items():
            tensors[path].grad = torch.from_numpy(np.asarray(x))
        peer.step()
    for path, x in of(params, rest).items():
        np.testing.assert_allclose(x, tensors[path].detach().numpy(), rtol=1e-12, atol=1e-15, err_msg=path)


@pytest.mark.needs("jax")
def test_partition_and_masked_of_optax(rng: np.random.Generator) -> None:
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    params = tree(rng, "float64")
    params["blocks"].pop()
    grads = [tree(rng, "float64") for _ in range(10)]
    for g in grads:
        g["blocks"].pop()
    rule = xopt.chain(
        xopt.Masked(xopt.ClipByGlobalNorm(0.5), "**/w"),
        xopt.Groups(xopt.Adam(lr=0.01), ("head/*", xopt.SGD(lr=0.05)), ("embed/*", xopt.Freeze)),
    )
    labels = jax.tree_util.tree_map_with_path(
        lambda path, x: {"head": "sgd", "embed": "frozen"}.get(path[0].key, "adam"), params
    )
    weights = jax.tree_util.tree_map_with_path(lambda path, x: path[-1].key == "w" and path[0].key != "embed", params)
    peer = optax.chain(
        optax.masked(optax.clip_by_global_norm(0.5), weights),
        optax.partition({"adam": optax.adam(0.01), "sgd": optax.sgd(0.05), "frozen": optax.set_to_zero()}, labels),
    )
    mine, state = params, rule.init(params)
    theirs, memory = params, peer.init(params)
    for g in grads:
        mine, state = rule.apply(mine, g, state)
        change, memory = peer.update(g, memory, theirs)
        theirs = optax.apply_updates(theirs, change)
    for x, y in zip(optree.tree_leaves(mine), optree.tree_leaves(theirs), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-13)
