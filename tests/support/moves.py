"""Runs that move between xopt and another library in the middle, and how they are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import xopt

BEFORE, AFTER = 7, 13
SHAPES = {"net.weight": (4, 3), "net.bias": (4,), "norm.weight": (4,), "norm.bias": (4,), "scale": (), "none": (0, 2)}
"""In the order of the module, which is not that of the alphabet; four are alike."""
EXACT = 1e-12
"""float64, 20 steps: some hundred roundings in other places."""

Arrays = dict[str, Any]


class Move(NamedTuple):
    """A rule here and what makes its like there."""

    rule: Any
    make: Callable[[Any, Any], Any]
    complex: bool = False


def draw(rng: np.random.Generator, complex: bool = False) -> tuple[Arrays, list[Arrays]]:
    one = lambda s: np.asarray(rng.standard_normal(s) + (1j * rng.standard_normal(s) if complex else 0))
    some = lambda scale: {n: np.asarray(one(s) * scale) for n, s in SHAPES.items()}
    return some(1.0), [some(scale) for scale in np.geomspace(0.01, 3, BEFORE + AFTER)]


def close(got: Arrays, want: Arrays, rtol: float = EXACT) -> None:
    for n, x in want.items():
        np.testing.assert_allclose(np.asarray(got[n]), np.asarray(x), rtol=rtol, atol=1e-14, err_msg=n)


def problems(call: Callable[[], Any]) -> list[str]:
    with pytest.raises(xopt.CheckpointError) as caught:
        call()
    return list(caught.value.problems)


def adam(name: str, complex: bool = False, **options: Any) -> Any:
    """Return the same Adam twice; torch is not told the numbers that it is to be told later."""
    own = {n: x for n, x in options.items() if n != "betas"}
    b1, b2 = options.get("betas", (0.9, 0.999))
    rule = getattr(xopt, name)(like="torch", b1=b1, b2=b2, **own)
    return pytest.param(
        Move(rule, lambda optim, p: getattr(optim, name)(p, **options), complex), id=f"{rule!r} {complex}"
    )


def plain(theirs: str, rule: Any, complex: bool = False, **options: Any) -> Any:
    make = lambda optim, p: getattr(optim, theirs)(p, **options)
    return pytest.param(Move(rule, make, complex), id=f"{rule!r} {complex}")


def nested(x: Arrays) -> Any:
    """Put arrays into the tree that a module of JAX has."""
    two = {n: {k: x[f"{n}.{k}"] for k in ("weight", "bias")} for n in ("net", "norm")}
    return {**two, "scale": x["scale"], "none": x["none"]}
