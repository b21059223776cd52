"""Runs that are saved in the middle and go on in another process: `python -m support.resume LIBRARY FOLDER` goes on.

Used by checkpoint/test_resume.py. Every rule, every component and every wrapper of the catalogue takes 20 steps; what
is compared is every bit of parameters, state and scalars.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import catalog
import numpy as np
import optree
from catalog.links import LINKS
from conftest import Lib, tree

import xopt
from xopt._engine.program import quantize as _quantize
from xopt._engine.runners.llvm import compiler as _compiler

SGD = xopt.SGD(lr=0.1, momentum=0.9)
SHARED = [
    xopt.SGD(lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.1),
    xopt.AdamW(lr=xopt.schedules.warmup_cosine(0.1, warmup=4, steps=15), amsgrad=True),
    xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam(lr=0.1, complex="split"), xopt.EMA(0.9, start="zero")),
    xopt.Guard(xopt.chain(xopt.Adam(lr=0.1), xopt.Lookahead(k=3)), "skip"),
    xopt.Accumulate(xopt.chain(xopt.AddNoise(seed=5), xopt.Adam(lr=0.1)), every=3),
    xopt.Groups(
        xopt.chain(xopt.ClipByGlobalNorm(2.0), SGD),
        ("wide/**", {"lr": xopt.scaled(0.5)}),
        ("list/0", xopt.Adam()),
        ("one", xopt.Freeze),
    ),
    xopt.chain(xopt.Masked(xopt.ClipByNorm(1.0), "tall"), SGD, xopt.ReduceOnPlateau(patience=0)),
    xopt.chain(SGD, xopt.SWA(start=5, every=3)),
    xopt.Guard(xopt.Adam(lr=0.1), "zero"),
    xopt.Guard(xopt.Adam(lr=0.1), "raise"),
    xopt.LossScale(xopt.Adam(lr=0.1), every=3),
    xopt.Precision(xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam(lr=0.1)), state_dtype="int8"),
    xopt.Accumulate(xopt.LossScale(xopt.chain(xopt.ClipByGlobalNorm(1e-5), SGD), every=2), every=2),
]
"""One with each kind of state."""


def steps(library: str) -> tuple[int, int]:
    """Return when to save and when to end: early on dask, which computes the graph of all steps, and on JAX."""
    return (3, 6) if library in ("dask", "jax") else (7, 20)


def rules(library: str) -> list[Any]:
    """Return what is tried on a library: all that there is on NumPy and torch."""
    if library not in ("numpy", "torch"):
        return {"dask": SHARED[:4], "jax": [*SHARED[1:6], *SHARED[-3:-1]]}.get(library, SHARED)
    made = list(SHARED)
    for row in catalog.ROWS:
        if library not in row.lacking:
            made += [row.make(**given) for given in (row.options[-1], {**catalog.COMMON[-1], **row.options[-1]})]
    for link in LINKS:
        for options in link.options if library == "numpy" else link.options[:1]:
            made.append(xopt.chain(link.link(**options), SGD) if link.place == "front" else
                        xopt.chain(SGD, link.link(**options)))  # fmt: skip
    clips = [xopt.AdaptiveGradientClip(0.1), xopt.Centralize(), xopt.ClipByNorm(0.5), xopt.ClipByValue(0.5)]
    return made + [xopt.chain(clip, SGD) for clip in clips]


def optimizer(lib: Lib, rule: Any) -> Any:
    """Return an optimizer at the start, of complex parameters too if there is such a thing."""
    params = tree(np.random.default_rng(0), "float32", lib=lib) | {"mixed": np.asarray([1.0, 2.0])}
    params.setdefault("one", np.ones(1, "float32"))
    with_complex = params | {"z": np.asarray([1 + 2j, 3j])}
    try:  # Simplex says no at its first step
        return xopt.Optimizer(optree.tree_map(lib.array, params if "Simplex" in repr(rule) else with_complex), rule)
    except TypeError:
        return xopt.Optimizer(optree.tree_map(lib.array, params), rule)


def go_on(lib: Lib, opt: Any, last: int) -> None:
    """Take steps up to a number."""
    leaves, spec = optree.tree_flatten(opt.params)
    asks = {"value"} if opt._executor.inputs else set()
    for t in range(opt.state.step + 1, last + 1):
        rng = np.random.default_rng(t)
        grads = [np.asarray(rng.standard_normal(tuple(x.shape)) * t % 1.3 - 0.6) for x in leaves]
        if t == 5 and ("'skip'" in repr(opt.rule) or "LossScale" in repr(opt.rule)):
            grads[0][...] = np.inf
        made = [lib.array(g, str(x.dtype).rpartition(".")[2]) for g, x in zip(grads, leaves, strict=True)]
        if t in (3, 11):
            made[0] = None  # a parameter without a gradient
        opt.step(optree.tree_unflatten(spec, made), **dict.fromkeys(asks, float(rng.standard_normal())))


def main(library: str, folder: Path) -> None:
    """Go on with every checkpoint of a folder."""
    _compiler.missing = lambda: "left out, as in the tests"
    _quantize.LEAST = 1
    lib = Lib(library, {"numpy": "plain", "torch": "plain", "jax": "eager", "strict": "CPU_DEVICE"}.get(library, ""))
    for number, rule in enumerate(rules(library)):
        opt = optimizer(lib, rule)
        extra = opt.load(folder / f"{number}.safetensors")
        assert extra == {"number": number}
        go_on(lib, opt, steps(library)[1])
        opt.save(folder / f"{number}.safetensors", fsync=False)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
