"""A small network in groups: cases with a group each and the same rules apart, and how they are compared."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import optree

import xopt
from support.runners import same_bits
from xopt.rule import Array, H, Hyper, Transform, abs2, hyper

S = xopt.schedules


class LeafTrust(Transform):
    """Scales each leaf by its own carried, running norm: a reduction and a carry a leaf."""

    rate: Hyper = hyper(default=0.5, ge=0)
    scope = "leaf"
    carry = {"norm": 1.0}

    @staticmethod
    def reduce(h: H, xp: Any, p: Array, g: Array) -> dict[str, Array]:
        return {"total": abs2(xp, g)}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        norm = h.norm + h.rate * (xp.sqrt(h.total) - h.norm)
        return {"norm": norm, "scale": 1.0 / (norm + h.rate)}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return h.scale * g


class TreeScale(Transform):
    """Divides by the running norm of the whole tree: a reduction and a carry for all."""

    rate: Hyper = hyper(default=0.5, ge=0)
    carry = {"norm": 1.0}

    @staticmethod
    def reduce(h: H, xp: Any, p: Array, g: Array) -> dict[str, Array]:
        return {"total": abs2(xp, g)}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        return {"norm": h.norm + h.rate * (xp.sqrt(h.total) - h.norm)}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return g / h.norm


def tree(rng: np.random.Generator, *dtypes: str) -> dict[str, Any]:
    """Parameters or gradients of a small network, its leaves of these dtypes in turn."""
    kinds = iter([*dtypes] * 20)

    def draw(*shape: int) -> Any:
        x = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
        kind = next(kinds)
        return np.asarray(x if "complex" in kind else x.real, kind)

    return {
        "embed": {"w": draw(9, 4), "scale": draw()},
        "blocks": [{"w": draw(4, 4), "b": draw(4)}, {"w": draw(70, 3), "b": draw(3)}, {"w": draw(0, 4), "b": draw(1)}],
        "head": {"w": draw(4, 2), "b": draw(2)},
    }


def rounds(rng: np.random.Generator, dtypes: tuple[str, ...], steps: int = 4) -> list[Any]:
    """Gradients; in the second step some are None, in the third all of the head."""
    grads = [tree(rng, *dtypes) for _ in range(steps)]
    grads[1]["blocks"][0]["w"] = grads[1]["blocks"][1]["b"] = grads[1]["head"]["w"] = None
    grads[2]["head"] = dict.fromkeys(grads[2]["head"])
    return grads


def of(x: Any, wanted: Callable[[str], bool]) -> dict[str, Any]:
    """Return the leaves of a tree by path, those that are wanted."""
    leaves, spec = optree.tree_flatten(x, none_is_leaf=True)
    found = {"/".join(map(str, path)): leaf for path, leaf in zip(spec.paths(), leaves, strict=True)}
    return {path: leaf for path, leaf in found.items() if wanted(path)}


def apart(groups: list[tuple[Callable[[str], bool], Any]], params: Any, grads: list[Any], runner: Any) -> Any:
    """Take the steps with an optimizer for each group, in pure functions."""
    last = {}
    taken: set[str] = set()
    for wanted, rule in groups:
        mine = {path: x for path, x in of(params, wanted).items() if path not in taken}
        taken |= {*mine}
        if rule is not None and mine:
            state = rule.init(mine)
            for g in grads:
                mine, state = rule.apply(mine, of(g, mine.__contains__), state, runner=runner)
        last |= mine
    return last


def check(rule: Any, groups: Any, dtypes: tuple[str, ...], runner: Any, rng: np.random.Generator) -> None:
    """Compare groups with separate optimizers: in pure functions and in place, bit for bit."""
    params, grads = tree(rng, *dtypes), rounds(rng, dtypes)
    want = apart(groups, params, grads, runner)
    pure, state = params, rule.init(params)
    for g in grads:
        pure, state = rule.apply(pure, g, state, runner=runner)
    opt = xopt.Optimizer(optree.tree_map(np.copy, params), rule, runner=runner)
    for g in grads:
        opt.step(g)
    for path, x in of(pure, lambda path: True).items():
        assert same_bits(x, want[path]), path
    for path, x in of(opt.params, lambda path: True).items():
        assert same_bits(x, want[path]), path
    left, right = (optree.tree_leaves((s.slots, s.carry)) for s in (state, opt.state))
    assert all(map(same_bits, map(np.asarray, left), map(np.asarray, right)))


def bias(path: str) -> bool:
    return path.endswith(("b", "scale"))


def head(path: str) -> bool:
    return path.startswith("head")


def rest(path: str) -> bool:
    return True


def bias_of_arrays(path: str, x: Any) -> bool:
    return bias(path)


def norms(front: float = 0.7, rate: float = 0.5, lr: float = 0.1, behind: float = 1.0) -> Any:
    clip = xopt.ClipByNorm(S.polynomial(0.3 * behind, end=0.1 * behind, steps=3))
    return xopt.chain(xopt.ClipByNorm(front), LeafTrust(rate), xopt.Adam(lr), clip)


BASE = xopt.AdamW(lr=S.cosine(0.1, steps=9), weight_decay=0.3, amsgrad=True)
CASES: dict[str, tuple[Any, list[tuple[Callable[[str], bool], Any]]]] = {
    "numbers": (
        xopt.Groups(BASE, ("head/*", {"lr": 0.5, "b1": 0.3}), (xopt.no_decay_1d, {"weight_decay": 0.0})),
        [(head, BASE.replace(lr=0.5, b1=0.3)), (bias, BASE.replace(weight_decay=0.0)), (rest, BASE)],
    ),
    "schedules": (
        xopt.Groups(
            BASE,
            (re.compile(r"^head/"), {"lr": S.warmup(0.3, steps=3), "b2": lambda t: 1 - 0.5 / t}),
            ("**/[!w]*", {"lr": xopt.scaled(0.25), "b1": xopt.scaled(0.5)}),
        ),
        [
            (head, BASE.replace(lr=S.warmup(0.3, steps=3), b2=lambda t: 1 - 0.5 / t)),
            (bias, BASE.replace(lr=lambda t: 0.25 * S.cosine(0.1, steps=9)(t), b1=0.45)),
            (rest, BASE),
        ],
    ),
    "rules": (
        xopt.Groups(
            BASE,
            ("head/*", xopt.chain(xopt.ClipByGlobalNorm(0.5), xopt.SGD(lr=0.1, momentum=0.9), xopt.ClipByValue(0.02))),
            (bias_of_arrays, xopt.Lion(lr=0.01, weight_decay=0.1)),
        ),
        [
            (head, xopt.chain(xopt.ClipByGlobalNorm(0.5), xopt.SGD(lr=0.1, momentum=0.9), xopt.ClipByValue(0.02))),
            (bias, xopt.Lion(lr=0.01, weight_decay=0.1)),
            (rest, BASE),
        ],
    ),
    "frozen": (
        xopt.Groups(BASE, ("embed/**", xopt.Freeze), (bias_of_arrays, xopt.SGD(lr=0.1))),
        [(lambda path: path.startswith("embed"), None), (bias, xopt.SGD(lr=0.1)), (rest, BASE)],
    ),
    "norms of leaves": (
        xopt.Groups(
            norms(),
            ("head/*", {"0.clipbynorm.max_norm": 0.2, "lr": 0.3, "rate": 0.1}),
            (bias_of_arrays, {"0.clipbynorm.max_norm": xopt.scaled(2.0), "3.clipbynorm.max_norm": xopt.scaled(0.5)}),
        ),
        [(head, norms(0.2, rate=0.1, lr=0.3)), (bias, norms(1.4, behind=0.5)), (rest, norms())],
    ),
    "norms of groups": (
        xopt.Groups(
            xopt.chain(TreeScale(), xopt.Adagrad(0.1)),
            ("head/*", xopt.chain(TreeScale(0.1), xopt.RMSProp(0.01))),
            (bias_of_arrays, xopt.chain(xopt.ClipByGlobalNorm(0.1), LeafTrust(0.2), xopt.SGD(0.1))),
        ),
        [
            (head, xopt.chain(TreeScale(0.1), xopt.RMSProp(0.01))),
            (bias, xopt.chain(xopt.ClipByGlobalNorm(0.1), LeafTrust(0.2), xopt.SGD(0.1))),
            (rest, xopt.chain(TreeScale(), xopt.Adagrad(0.1))),
        ],
    ),
    "groups of groups": (
        xopt.layerwise_decay(
            xopt.Groups(
                BASE,
                ("blocks/1/*", xopt.SGD(lr=0.2)),
                ("head/*", {"lr": 0.5}),
                (xopt.no_decay_1d, {"weight_decay": 0.0}),
            ),
            ["embed/**", "blocks/0/**", "blocks/1/**"],
            0.5,
        ),
        [
            (lambda path: path.startswith("blocks/1"), xopt.SGD(lr=0.1)),
            (head, BASE.replace(lr=0.5)),
            (lambda path: path == "embed/scale", BASE.replace(lr=S.cosine(0.0125, steps=9), weight_decay=0.0)),
            (lambda path: path.startswith("embed"), BASE.replace(lr=S.cosine(0.0125, steps=9))),
            (lambda path: path == "blocks/0/b", BASE.replace(lr=S.cosine(0.025, steps=9), weight_decay=0.0)),
            (lambda path: path.startswith("blocks/0"), BASE.replace(lr=S.cosine(0.025, steps=9))),
            (bias, BASE.replace(weight_decay=0.0)),
            (rest, BASE),
        ],
    ),
    "masked": (
        xopt.chain(
            xopt.Masked(xopt.ClipByNorm(0.3), "**/b"),
            xopt.Masked(LeafTrust(), re.compile("^(head|embed)/")),
            xopt.Adam(0.1),
            xopt.Masked(xopt.ClipByValue(0.01), xopt.no_decay_1d),
        ),
        [
            (
                lambda path: path == "head/b",
                xopt.chain(xopt.ClipByNorm(0.3), LeafTrust(), xopt.Adam(0.1), xopt.ClipByValue(0.01)),
            ),
            (head, xopt.chain(LeafTrust(), xopt.Adam(0.1))),
            (lambda path: path == "embed/scale", xopt.chain(LeafTrust(), xopt.Adam(0.1), xopt.ClipByValue(0.01))),
            (lambda path: path == "embed/w", xopt.chain(LeafTrust(), xopt.Adam(0.1))),
            (bias, xopt.chain(xopt.ClipByNorm(0.3), xopt.Adam(0.1), xopt.ClipByValue(0.01))),
            (rest, xopt.Adam(0.1)),
        ],
    ),
}
DTYPES = [("float64", "float32", "float16"), ("complex64", "float32", "float32")]
