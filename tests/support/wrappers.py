"""What the wrappers of rules are tried on, and how their results are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import optree
from conftest import Lib

import xopt

MAP = optree.tree_map
RULES = [
    xopt.SGD(lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.1),
    xopt.AdamW(lr=xopt.schedules.cosine(0.1, steps=9), weight_decay=0.3),
    xopt.chain(xopt.ClipByGlobalNorm(1.5), xopt.RMSProp(lr=0.02, centered=True, momentum=0.5), xopt.ClipByNorm(0.3)),
]


def leaves(x: Any) -> list[Any]:
    return optree.tree_leaves(x)  # type: ignore[no-any-return]


def send(lib: Lib, x: Any) -> Any:
    return MAP(lib.array, x)


def same(lib: Lib, a: Any, b: Any, rtol: float = 1e-12) -> None:
    for x, y in zip(leaves(a), leaves(b), strict=True):
        if lib.name == "numpy":
            np.testing.assert_array_equal(x, y)
        else:
            np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-13)


def slots(lib: Lib, state: Any) -> dict[str, Any]:
    return {n.partition(".")[2]: MAP(lib.numpy, x) for n, x in state.slots.items() if n[0].isdigit()}
