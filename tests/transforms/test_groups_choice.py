"""Which parameters a group takes: globs, regular expressions, functions; and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import optree
import pytest
from support.groups import of, rest, tree

import xopt
from xopt._arrays import paths as _paths
from xopt._arrays.layout import Layout
from xopt.rule import Array, H, Rule

GLOBS = [
    (
        "encoder/*/bias",
        ["encoder/0/bias"],
        ["encoder/bias", "encoder/0/1/bias", "my/encoder/0/bias", "encoder/0/bias2"],
    ),
    ("**/bias", ["bias", "a/bias", "a/b/bias"], ["a/mybias", "bias/w"]),
    ("backbone/**", ["backbone", "backbone/a", "backbone/a/b"], ["backbone2", "my/backbone/a"]),
    ("a/**/w", ["a/w", "a/b/w", "a/b/c/w"], ["a/bw", "aw"]),
    ("**", ["", "a", "a/b"], []),
    ("*", ["", "a"], ["a/b"]),
    ("", [""], ["a"]),
    ("layer?.w", ["layer1.w"], ["layer10.w", "layer1xw", "layer/.w"]),
    ("encoder.*", ["encoder.0.bias"], ["encoder", "encoder.a/b"]),
    ("[ab]/[!ab]", ["a/c", "b/x"], ["a/a", "c/c", "a/"]),
    ("[a-c]", ["b"], ["-", "d"]),
    ("[]]", ["]"], ["["]),
    ("x[", ["x["], ["x"]),
    ("a^b$(c)", ["a^b$(c)"], ["ab"]),
    ("a**b", ["ab", "axb", "a/x/b"], ["a"]),
    (r"[\d]", ["\\", "d"], ["1"]),
]


@pytest.mark.parametrize(("glob", "yes", "no"), GLOBS, ids=lambda x: x if isinstance(x, str) else "")
def test_globs(glob: str, yes: list[str], no: list[str]) -> None:
    for path in yes:
        assert _paths._matches(glob, path, None), path
    for path in no:
        assert not _paths._matches(glob, path, None), path


class Pair(NamedTuple):
    x: Any
    y: Any


@dataclass
class Layer:
    w: Any
    b: Any


def test_paths() -> None:
    one = np.zeros(1)
    params = {"enc": [Pair(one, (one,)), None, Layer(one, {0: one})], "dotted.name": one}
    assert Layout(params).names() == ["dotted.name", "enc/0/x", "enc/0/y/0", "enc/2/w", "enc/2/b/0"]
    assert Layout(one).names() == [""]


def test_regular_expressions_search_and_functions_see_arrays(rng: np.random.Generator) -> None:
    params = tree(rng, "float32")
    seen: list[tuple[str, tuple[int, ...]]] = []

    def large(path: str, x: Any) -> bool:
        seen.append((path, x.shape))
        return bool(x.size > 100)

    rule = xopt.Groups(xopt.SGD(lr=0.0), (large, {"lr": 1.0}), (re.compile("ead/b"), {"lr": 2.0}))
    ones = optree.tree_map(np.ones_like, params)
    got = of(rule.updates(params, ones, rule.init(params))[0], rest)
    assert {path: -x.flat[0] for path, x in got.items() if x.any()} == {"blocks/1/w": 1.0, "head/b": 2.0}
    assert ("blocks/1/w", (70, 3)) in seen
    seen.clear()
    opt = xopt.Optimizer(params, rule)
    first = len(seen)
    opt.set(lr=0.1)
    opt.step(ones, lr=0.2)
    assert len(seen) == first, "an optimizer asks its predicates once"


def test_a_predicate_that_chooses_nothing(rng: np.random.Generator) -> None:
    params = tree(rng, "float32")
    for wrong, shown in [
        ("blcoks/**", "blcoks"),
        (re.compile("^x"), r"re.compile\('\^x'\)"),
        (lambda p, x: False, "lambda"),
    ]:
        rule = xopt.Groups(xopt.SGD(), (wrong, {"lr": 0.1}))
        with pytest.raises(
            ValueError,
            match=f"Groups: .*{shown}.* matches none of the parameters: blocks/0/b, blocks/0/w, .*head/w; if",
        ):
            rule.init(params)
        with pytest.raises(ValueError, match="Groups: "):
            xopt.Optimizer(params, rule)
        xopt.Groups(xopt.SGD(), (wrong, {"lr": 0.1}), unmatched="ignore").init(params)
        with pytest.raises(ValueError, match="Masked: .* matches none"):
            xopt.chain(xopt.Masked(xopt.ClipByValue(1.0), wrong), xopt.SGD()).init(params)
        xopt.chain(xopt.Masked(xopt.ClipByValue(1.0), wrong, unmatched="ignore"), xopt.SGD()).init(params)
    hidden = xopt.Groups(xopt.SGD(), ("head/**", {"lr": 0.1}), ("head/w", {"lr": 0.2}))
    with pytest.raises(ValueError, match="'head/w' matches only what predicates before it take, of the parameters"):
        hidden.init(params)
    xopt.Groups(xopt.SGD(), ("x", {"lr": 0.1})).init({})
    with pytest.raises(ValueError, match=r"p00.*p19 and 5 more;"):
        xopt.Groups(xopt.SGD(), ("x", xopt.Freeze)).init({f"p{k:02}": np.zeros(1) for k in range(25)})


# --- refusals


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (
            lambda: xopt.Groups(xopt.ClipByValue(1.0)),
            "Groups: ClipByValue, but it must be a rule or a chain; put it in a chain",
        ),  # type: ignore[arg-type]
        (lambda: xopt.Groups(xopt.SGD(), "a"), r"Groups: 'a', but a group is a pair"),  # type: ignore[arg-type]
        (lambda: xopt.Groups(xopt.SGD(), (3, {})), "Groups: 3, but a predicate is a glob"),  # type: ignore[arg-type]
        (lambda: xopt.Groups(xopt.SGD(), (re.compile(b"a"), {})), "searches bytes"),  # type: ignore[arg-type]
        (
            lambda: xopt.Groups(xopt.SGD(), ("a", 3)),
            "group0: int, but it must be a dict of hyperparameters, Freeze, a rule or a chain",
        ),  # type: ignore[arg-type]
        (lambda: xopt.Groups(xopt.SGD(), ("a", xopt.Adam)), "group0: Adam, .*make an object of it"),  # type: ignore[arg-type]
        (lambda: xopt.Groups(xopt.SGD(), ("a", xopt.ClipByValue(1.0))), "group0: ClipByValue, .*put it in a chain"),  # type: ignore[arg-type]
        (lambda: xopt.Groups(xopt.SGD(), ("a", {"b1": 0.1})), "group0: no hyperparameter 'b1'; there are"),
        (lambda: xopt.Groups(xopt.SGD(), ("a", {"nesterov": True})), "group0: 'nesterov' is a static field"),
        (
            lambda: xopt.Groups(xopt.SGD(), ("a", {"weight_decay": 0.1})),
            "group0.weight_decay: 0.1 in place of None is another formula",
        ),
        (
            lambda: xopt.Groups(xopt.SGD(), ("a", {"weight_decay": xopt.scaled(2.0)})),
            r"group0.weight_decay: scaled\(2.0\) of None",
        ),
        (lambda: xopt.Groups(xopt.AdamW(), ("a", {"weight_decay": None})), "group0.weight_decay: None"),
        (lambda: xopt.Groups(xopt.SGD(), ("a", {"lr": "x"})), "group0.lr: 'x' is a str"),
        (lambda: xopt.Groups(xopt.SGD(), ("a", {"lr": -1.0})), "group0.lr: -1.0 is out of range"),
        (lambda: xopt.Groups(xopt.Adam(), ("a", {"b1": xopt.scaled(2.0)})), "Adam.b1: 1.8 is out of range"),
        (
            lambda: xopt.Groups(xopt.Groups(xopt.SGD(), ("a", {"lr": 0.1})), ("b", {"group0.lr": 0.1})),
            "group1: 'group0.lr' is what another group has",
        ),
        (lambda: xopt.Groups(xopt.SGD(), unmatched="warn"), "unmatched='warn'"),  # type: ignore[arg-type]
        (
            lambda: xopt.Masked(xopt.SGD(), "a"),
            r"Masked: SGD\(\), but it must be a transform; for a rule there is Groups",
        ),  # type: ignore[arg-type]
        (lambda: xopt.Masked(xopt.ClipByValue(1.0), 3), "Masked: 3, but a predicate"),  # type: ignore[arg-type]
        (lambda: xopt.Masked(xopt.ClipByValue(1.0), "a", unmatched=None), "Masked: unmatched=None"),  # type: ignore[arg-type]
        (lambda: xopt.scaled(-1.0), "scaled: factor: -1.0 is out of range"),
        (lambda: xopt.scaled("x"), "scaled: factor: 'x' is a str"),  # type: ignore[arg-type]
        (xopt.Freeze, "write xopt.Freeze, the class itself"),
        (lambda: xopt.layerwise_decay(xopt.SGD(), "a/**"), "layers is a/\\*\\*|layers is 'a"),  # type: ignore[arg-type]
        (lambda: xopt.layerwise_decay(xopt.SGD(), ["a"], -0.5), "layerwise_decay: factor"),
        (lambda: xopt.Groups(xopt.Accumulate(xopt.SGD(), 2)), "Groups: Accumulate is for a whole tree; put it around"),
        (lambda: xopt.Groups(xopt.SGD(), ("a", xopt.Guard(xopt.SGD(), "skip"))), "group0: Guard is for a whole tree"),
        (lambda: xopt.chain(xopt.Groups(xopt.SGD()), xopt.SGD()), r"2 rules in \(Groups, SGD\)"),
    ],
)
def test_refusals(make: Callable[[], Any], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        make()


def test_no_lr_to_decay() -> None:
    class Bare(Rule):
        @staticmethod
        def update(h: H, xp: Any, p: Array, g: Array) -> Array:
            return -g

    with pytest.raises(ValueError, match=r"layerwise_decay: Bare\(\) has no lr"):
        xopt.layerwise_decay(Bare(), ["a"])
