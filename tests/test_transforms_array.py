"""Links of whole arrays against their oracles, on every library and in every dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from catalog.transforms_array import TRANSFORMS
from conftest import Lib
from test_rules import assert_close, leaves, problem, run

import xopt

LR = 0.1


@pytest.mark.parametrize("dtype", ["float64", "float32", "complex128"])
@pytest.mark.parametrize(("transform", "reference"), TRANSFORMS, ids=repr)
def test_transforms(lib: Lib, transform: Any, reference: Any, dtype: str, rng: np.random.Generator) -> None:
    params, grads = problem(rng, dtype, steps=6)
    got, _ = run(lib, xopt.chain(transform, xopt.SGD(LR)), params, grads)
    h = {n: getattr(transform, n) for n in type(transform)._fields}
    kind, changed, want = "complex128" if "c" in dtype else "float64", 0, []
    for k, p in enumerate(leaves(params)):
        p = p.astype(kind)
        for t, g in enumerate(grads, 1):
            g = leaves(g)[k].astype(kind)
            new = reference(p, g, t, **h)
            changed += not np.allclose(g, new)
            p = p - LR * new
        want.append(p)
    assert changed > 10
    tol = 2e-6 if dtype == "float32" else 1e-13
    assert_close(got, want, rtol=tol, atol=tol)


@pytest.mark.parametrize("transform", [x for x, _ in TRANSFORMS], ids=repr)
def test_a_nan_stays_in_its_unit(transform: Any) -> None:
    p, g = np.ones((3, 4)), np.ones((3, 4))
    g[1, 2] = np.nan
    rule = xopt.chain(transform, xopt.SGD(1.0))
    bad = np.isnan(rule.updates(p, g, rule.init(p))[0])
    assert bad.all(axis=1).tolist() == [False, True, False] or bad.all(axis=0).tolist() == [False, False, True, False]
    assert bad.sum() in (3, 4)
