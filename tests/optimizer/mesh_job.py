"""Steps on a mesh of eight devices of JAX, which a process has from its start on: what `test_mesh.py` looks at."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 " + os.environ.get("XLA_FLAGS", "")

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import xopt

MESH = Mesh(np.asarray(jax.devices()), ("data",))
RULES = {
    "adam": xopt.Adam(),
    "clip": xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.AdamW(), xopt.EMA(0.9)),
    "8 bits": xopt.Precision(xopt.Adam(), state_dtype="int8"),
    "adafactor": xopt.Adafactor(),
    "shampoo": xopt.Shampoo(),
}


def placed(*spec: str | None) -> NamedSharding:
    return NamedSharding(MESH, PartitionSpec(*spec))


def tree(rng: np.random.Generator, on: bool) -> dict[str, Any]:
    """Draw arrays: split along the first axis, whole on each device, split along the second."""
    specs = {"w": ((16, 8), ("data",)), "b": ((8,), ()), "c": ((8, 32), (None, "data"))}
    drawn = {n: (rng.normal(size=shape).astype(np.float32), spec) for n, (shape, spec) in specs.items()}
    return {n: jax.device_put(x, placed(*spec)) if on else jnp.asarray(x) for n, (x, spec) in drawn.items()}


def elsewhere(found: Any, wanted: Any) -> list[str]:
    """Name the arrays that do not lie as others do."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree_util.tree_leaves(wanted), strict=True)
    return [jax.tree_util.keystr(k) for (k, x), y in pairs if not x.sharding.is_equivalent_to(y.sharding, x.ndim)]


def shares(tree: Any) -> list[int]:
    """Return how many bytes of a tree lie on each device."""
    return [
        sum(s.data.nbytes for x in jax.tree_util.tree_leaves(tree) for s in x.addressable_shards if s.device == d)
        for d in jax.devices()
    ]


def steps(rule: Any, path: Path) -> dict[str, Any]:
    rng, same = np.random.default_rng(0), np.random.default_rng(0)
    params, grads = tree(rng, on=True), [tree(rng, on=True) for _ in range(3)]
    alone, others = tree(same, on=False), [tree(same, on=False) for _ in range(3)]
    state, only = rule.init(params), rule.init(alone)
    apply, there = jax.jit(rule.apply), jax.jit(rule.apply)
    where = jax.tree_util.tree_map(lambda x: x.sharding, (params, state))
    fixed = jax.jit(rule.apply, out_shardings=where)
    p, s, q, t = params, state, params, state
    for g, h in zip(grads, others, strict=True):
        p, s = apply(p, g, s)
        q, t = fixed(q, g, t)
        alone, only = there(alone, h, only)
    opt = xopt.Optimizer(params, rule)
    for g in grads:
        opt.step(g)
    opt.save(path)
    again = xopt.Optimizer(params, rule)
    again.load(path)
    far = [float(np.abs(np.asarray(x[n]) - np.asarray(alone[n])).max()) for x in (p, q, opt.params) for n in alone]
    return {
        "narrow": [str(k) for k, x in jax.tree_util.tree_leaves_with_path(state) if len(x.sharding.device_set) < 8],
        "moved": elsewhere(p, params) + elsewhere((q, t), (params, state)) + elsewhere(opt.params, params),
        "loaded": elsewhere((again.params, again.state.slots), (params, state.slots)),
        "compiled": [apply._cache_size(), fixed._cache_size()],
        "far": max(far),
    }


def zero_1() -> dict[str, Any]:
    """Parameters whole on each device, state split: the bytes on each device, of all, and how far from one device."""
    params = {"w": jax.device_put(jnp.ones((64, 32)), placed()), "b": jax.device_put(jnp.ones(32), placed())}
    rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.AdamW())
    split = jax.tree_util.tree_map(lambda x: placed("data") if x.ndim else placed(), rule.init(params))
    whole = jax.tree_util.tree_map(lambda x: x.sharding, params)
    state = jax.jit(rule.init, out_shardings=split)(params)
    step = jax.jit(rule.apply, out_shardings=(whole, split))
    p, s = params, state
    for _ in range(3):
        p, s = step(p, params, s)
    q, t = params, rule.init(params)
    for _ in range(3):
        q, t = rule.apply(q, params, t)
    total = sum(x.nbytes for x in jax.tree_util.tree_leaves(s))
    return {
        "shares": shares(s), "total": total, "params": shares(p), "size": sum(x.nbytes for x in p.values()),
        "compiled": step._cache_size(), "far": max(float(jnp.abs(p[n] - q[n]).max()) for n in q),
    }  # fmt: skip


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    report = {name: steps(rule, folder / f"{name}.safetensors") for name, rule in RULES.items()}
    print(json.dumps({"rules": report, "zero 1": zero_1()}))
