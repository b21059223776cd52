"""Blocks that put parameters back: what a user raises inside comes out as it is."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import xopt


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """Refuses to be written to, also by ``contextlib``."""

    code: int = 7


class Closed(Exception):
    def __setattr__(self, name: str, value: Any) -> None:
        raise RuntimeError("no attributes")


@pytest.mark.parametrize("kind", ["perturbed", "averaged"])
@pytest.mark.parametrize(
    "error",
    [Frozen(3), Closed("a"), StopIteration("s"), GeneratorExit("g"), KeyboardInterrupt("k"), ValueError("v"), None],
    ids=lambda e: type(e).__name__,
)
def test_what_is_raised_inside_comes_out(kind: str, error: BaseException | None) -> None:
    w = np.asarray([3.0, 4.0])
    opt = xopt.Optimizer(w, xopt.chain(xopt.SGD(0.1), xopt.EMA(0.9)))
    opt.step(np.ones(2))
    before, caught = w.copy(), None
    try:
        with xopt.SAM(rho=0.5).perturbed(w, 2 * w) if kind == "perturbed" else opt.averaged() as inside:
            assert inside is w
            assert not np.array_equal(w, before)
            if error is not None:
                raise error
    except BaseException as found:
        caught = found
    assert caught is error
    assert error is None or error.__context__ is None
    assert np.array_equal(w, before)
    opt.step(np.ones(2))


def test_a_block_that_cannot_begin_says_so() -> None:
    with pytest.raises(ValueError, match="grads: shape"), xopt.SAM(rho=0.5).perturbed(np.ones(2), np.ones(3)):
        pass
