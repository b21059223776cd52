"""Runs of a rule and of its oracle on one problem, and how they are compared."""

from __future__ import annotations

from collections import deque
from typing import Any

import catalog
import numpy as np
import optree
from catalog import Row
from conftest import Lib, tree

import xopt

STEPS = 20
NEW = optree.tree_map


def leaves(x: Any) -> list[Any]:
    return optree.tree_leaves(x)  # type: ignore[no-any-return]


def problem(
    rng: np.random.Generator, dtype: str, steps: int = STEPS, lib: Lib | None = None, fewer: bool = False
) -> tuple[Any, list[Any]]:
    """Parameters and gradients: of many sizes, one all zero, zero at places, one parameter that starts at zero."""
    params = tree(rng, dtype, lib=lib)
    params["tall"][:] = 0
    grads = [tree(rng, dtype, scale, lib) for scale in np.geomspace(1e-2, 3, steps)]
    if steps > 3:
        grads[3] = NEW(np.zeros_like, grads[3])
    for g in grads:
        g["wide"]["b"][:2] = 0
    if fewer:  # one of each number of axes
        for x in (params, *grads):
            del x["wide"]["w"]
            for name in {"one", "turned", "strided"} & {*x}:
                del x[name]
    return params, grads


def length(lib: Lib, row: Row | None = None) -> int:
    """Return how many steps to test: few where each operation, or each step, is slow by itself."""
    return 4 if lib.name == "dask" else 6 if lib.id == "jax-eager" else 12 if row is not None and row.large else STEPS


def oracle(row: Row, rule: xopt.Rule, params: Any, grads: list[Any], half: int = 0) -> list[Any]:
    """Run the reference in float64 or complex128; a split complex parameter is a real one with one axis more.

    For a rule of whole arrays it is two parameters. These are numbered, in their state, for what is random.
    """
    if not rule.elementwise and rule.complex == "split" and any(map(np.iscomplexobj, leaves(params))):
        numbered = enumerate((np.real, np.imag))
        halves = [oracle(row, rule, NEW(f, params), [NEW(f, g) for g in grads], k) for k, f in numbered]
        return [x + 1j * y for x, y in zip(*halves, strict=True)]
    part = lambda x: np.stack([x.real, x.imag], -1) if rule.complex == "split" and np.iscomplexobj(x) else x
    ps, columns = [part(p) for p in leaves(params)], [[part(x) for x in leaves(g)] for g in grads]
    if row.tree:
        out = run_reference(row, rule, ps, columns)
    else:
        out = [run_reference(row, rule, p, [g[k] for g in columns], 2 * k + half) for k, p in enumerate(ps)]
    return [x if x.shape == p.shape else x[..., 0] + 1j * x[..., 1] for x, p in zip(out, leaves(params), strict=True)]


def run_reference(row: Row, rule: xopt.Rule, p: Any, gs: list[Any], leaf: int | None = None) -> Any:
    wide = NEW(lambda x: np.asarray(x, np.complex128 if np.iscomplexobj(x) else np.float64), (p, gs))
    (p, gs), state = wide, dict[str, Any]() if leaf is None else {"leaf": leaf}
    for t, g in enumerate(gs, 1):
        h = {n: v(t) if callable(v) else v for n, v in catalog.fields(rule).items()}
        p = row.reference(p, g, state, t, **h)
    return p


def run(lib: Lib, rule: Any, params: Any, grads: list[Any], dtype: str | None = None, **kwargs: Any) -> tuple[Any, Any]:
    """Run xopt on a library, under jit where that is its guise; check shapes, dtypes and that nothing was written."""
    params = NEW(lambda x: lib.array(x, dtype), params)
    state = rule.init(params)
    apply = lambda p, g, s: rule.apply(p, g, s, **kwargs)
    traced: list[int] = []
    if lib.guise == "jit":
        apply, traced = _jitted(rule, kwargs)
    known = len(traced)
    for g in grads:
        g = NEW(lambda x: lib.array(x, dtype), g)
        before = NEW(lib.numpy, (params, g, state.slots)) if lib.writable else None
        new, new_state = apply(params, g, state)
        if before is not None:
            for x, y in zip(leaves(before), leaves(NEW(lib.numpy, (params, g, state.slots))), strict=True):
                assert x.tobytes() == y.tobytes(), "apply wrote into its arguments"
        for a, b in zip(leaves(params), leaves(new), strict=True):
            assert (a.shape, a.dtype, type(a).__module__) == (b.shape, b.dtype, type(b).__module__)
            assert not getattr(b, "requires_grad", False)
        params, state = new, new_state
    assert len(traced) <= known + 1, "a second trace: something in the state changed its type"
    return NEW(lib.numpy, params), state


_STEPS: deque[tuple[Any, Any, list[int]]] = deque(maxlen=8)


def _jitted(rule: Any, kwargs: dict[str, Any]) -> tuple[Any, list[int]]:
    """Return a jitted step and a list that grows when it is traced; a rule that comes again is not compiled again."""
    found = next((row for row in _STEPS if row[0] is rule and not kwargs), None)
    if found is None:
        import jax

        traced: list[int] = []
        found = rule, jax.jit(lambda p, g, s: traced.append(1) or rule.apply(p, g, s, **kwargs)), traced
        if not kwargs:
            _STEPS.append(found)
    return found[1:]


def by_apply(lib: Lib) -> Lib:
    """Return what takes the steps that Optimizer is compared with: NumPy beside JAX, which would compile them too."""
    return lib if lib.name != "jax" else Lib("numpy", "plain")


def assert_close(got: Any, want: list[Any], rtol: float, atol: float) -> None:
    for x, y in zip(leaves(got), want, strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)
