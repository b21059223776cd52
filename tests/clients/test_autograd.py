"""Autograd's optimizers replaced by functions of the same signature: the same trajectories on nested parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import pytest

import xopt

pytest.importorskip("autograd")
import autograd
import autograd.numpy as np
import autograd.numpy.random
from autograd.misc import optimizers


def swapped(rule: Callable[..., Any], iterations: int) -> Callable[..., Any]:
    """Make an optimizer of Autograd of a rule."""

    def optimize(grad: Any, init_params: Any, callback: Any = None, num_iters: int = iterations, **given: Any) -> Any:
        made, params = rule(**given), init_params
        state = made.init(params)
        for i in range(num_iters):
            g = grad(params, i)
            if callback:
                callback(params, i, g)
            params, state = made.apply(params, g, state)
        return params

    return optimize


def sgd(step_size: float = 0.1, mass: float = 0.9) -> Any:
    return xopt.SGD(step_size, mass, like="autograd")


def rmsprop(step_size: float = 0.1, gamma: float = 0.9, eps: float = 1e-8) -> Any:
    return xopt.RMSProp(step_size, gamma, eps, like="autograd")


def adam(step_size: float = 0.001, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Any:
    return xopt.Adam(step_size, b1, b2, eps, like="autograd")


ROWS: list[tuple[str, Any, int, dict[str, Any], float]] = [
    ("sgd", sgd, 200, {}, 0.05),
    ("sgd", sgd, 200, {"num_iters": 50, "step_size": 0.03, "mass": 0.5}, 0.5),
    ("rmsprop", rmsprop, 100, {"num_iters": 40}, 0.1),  # later this rate goes to and fro, and what is off grows
    ("rmsprop", rmsprop, 100, {"num_iters": 50, "step_size": 0.01, "gamma": 0.99, "eps": 1e-3}, 0.5),
    ("adam", adam, 100, {"step_size": 0.05}, 0.1),
    ("adam", adam, 100, {"num_iters": 50, "step_size": 0.1, "b1": 0.8, "b2": 0.99, "eps": 1e-3}, 0.1),
    ("adam", adam, 100, {}, 1.0),
]


def start() -> Any:
    """Weights of a network in every kind of nest: dicts that are not in order, lists, tuples, one in another."""
    draw = autograd.numpy.random.RandomState(0).randn
    return {
        "second": [(0.5 * draw(8, 8), draw(8)), (0.5 * draw(8, 1), draw(1))],
        "first": {"w": draw(2, 8), "b": draw(8)},
    }


def loss(params: Any, i: int) -> Any:
    """A sine of two variables, from other samples in every iteration."""
    x = autograd.numpy.random.RandomState(i % 7).randn(40, 2)
    out = np.tanh(x @ params["first"]["w"] + params["first"]["b"])
    (w, b), (last, bias) = params["second"]
    return np.mean((np.tanh(out @ w + b) @ last + bias - np.sin(x[:, :1] + x[:, 1:])) ** 2)


@pytest.mark.parametrize(
    ("name", "rule", "iterations", "given", "falls"), ROWS, ids=lambda x: None if callable(x) else str(x)
)
def test_the_same_trajectory(
    name: str, rule: Any, iterations: int, given: Any, falls: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def walk() -> tuple[list[Any], list[Any]]:
        seen: list[Any] = []
        last = getattr(optimizers, name)(autograd.grad(loss), start(), lambda *what: seen.append(what), **given)
        return [*seen, (last, len(seen), autograd.grad(loss)(last, 0))], [loss(p, 0) for p, _, _ in seen]

    theirs, values = walk()
    monkeypatch.setattr(optimizers, name, swapped(rule, iterations))
    ours, _ = walk()
    assert len(ours) == len(theirs) == given.get("num_iters", iterations) + 1
    assert values[-1] < falls * values[0]
    off = {"parameters": 0.0, "gradients": 0.0}
    for (p, i, g), (q, j, h) in zip(ours, theirs, strict=True):
        assert i == j
        for what, tree, other in (("parameters", p, q), ("gradients", g, h)):
            assert optree.tree_structure(tree) == optree.tree_structure(other)
            for a, b in zip(optree.tree_leaves(tree), optree.tree_leaves(other), strict=True):
                off[what] = max(off[what], np.max(abs(a - b)) / np.max(abs(b)))
    print(f"{name} {given}: {', '.join(f'{what} differ by {x:.2g}' for what, x in off.items())} of the largest element")
    # sgd is computed alike. In the others Autograd multiplies by the rate first, or divides by 1 - βᵗ first: a rounding
    # or two a step. Gradients near a minimum are small themselves, and roundings of parameters are large beside them
    assert off["parameters"] <= (0 if name == "sgd" else 1e-13)
    assert off["gradients"] <= (0 if name == "sgd" else 1e-10)
