"""The text of a rule is read again, and nothing else is."""

from __future__ import annotations

import re
from typing import Any

import catalog
import pytest

import xopt
from xopt import schedules
from xopt._parse import parse_rule

RULES = [
    xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.AdamW(schedules.warmup_cosine(1e-3, warmup=10, steps=100))),
    xopt.chain(xopt.SGD(0.1), xopt.L1(0.1), xopt.Box(-1.0, 2), xopt.EMA(0.9, start="first")),
    xopt.Groups(xopt.AdamW(0.1), (xopt.no_decay_1d, {"weight_decay": 0.0}), ("head/**", xopt.SGD(0.2, momentum=0.9))),
    xopt.Groups(xopt.Adam(0.1), ("a/**", xopt.Freeze)),
    xopt.Adam(schedules.join([schedules.constant(0.1), schedules.step(0.1, every=3, factor=0.5)], [5])),
    xopt.Accumulate(xopt.Adam(), every=2),
    xopt.LossScale(xopt.Adam()),
    xopt.Guard(xopt.Adam(), "skip"),
    xopt.Adam(schedules.cosine(0.1, steps=10) * 2 + 1e-3),
    xopt.Adam(schedules.cosine(0.1, steps=10) ** 2),
    xopt.Adam(2 ** -schedules.cosine(0.1, steps=10)),
    xopt.Groups(xopt.SGD(0.1), (re.compile("bias$"), {"lr": 0.2}), (re.compile("w", re.I | re.S), xopt.Freeze)),
    xopt.Adam(0.1, like="torch"),
    xopt.chain(xopt.Masked(xopt.Centralize(), "w*"), xopt.Adam(0.1), xopt.Lookahead()),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_the_text_of_a_rule_is_that_rule(rule: Any) -> None:
    assert parse_rule(repr(rule)) == rule
    assert repr(parse_rule(repr(rule))) == repr(rule)


def test_every_rule_with_every_option() -> None:
    count = 0
    for row in catalog.ROWS:
        for options in row.options:
            rule = row.make(**options)
            assert parse_rule(repr(rule)) == rule
            count += 1
    assert count > 200


def test_what_people_write() -> None:
    assert parse_rule(" xopt.Adam(1e-3, b1=.8) ") == xopt.Adam(1e-3, b1=0.8)
    assert parse_rule("Adam(xopt.schedules.cosine(-0.1 + 0.2, steps=10))") == xopt.Adam(
        schedules.cosine(-0.1 + 0.2, steps=10)
    )

    class Mine(xopt.SGD):
        """A rule of the user's."""

    assert parse_rule("Mine(lr=0.5)", {"Mine": Mine}.get) == Mine(lr=0.5)
    half = lambda t: 0.5
    assert parse_rule("SGD(half)", {"half": half}.get) == xopt.SGD(half)
    with pytest.raises(ValueError, match=r"rule: 'half\(1\)' at character 5 is no part of a rule of xopt"):
        parse_rule("SGD(half(1))", {"half": half}.get)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("__import__('os').getcwd()", "__import__"),
        ("Adam(open('x'))", "open"),
        ("Adam.__init__(1)", r"Adam\.__init__"),
        ("Adam((lambda t: t)(1))", "lambda t: t"),
        ("Adam([x for x in (1,)][0])", r"\[x for x in \(1,\)\]\[0\]"),
        ("Adam(lr=2**9)", r"2\*\*9"),
        ("Adam('a' * 9)", r"'a' \* 9"),
        ("SGD(*[0.1])", r"\*\[0\.1\]"),
        ("SGD(**{'lr': 0.1})", "SGD"),
        ("SGD(f'{1}')", "1"),
        ("save_state('x', 1)", "save_state"),
        ("Optimizer(1, Adam())", "Optimizer"),
        ("minimize", "minimize"),
        ("Adam(b'x')", "b'x'"),
        ("Adam(lr=0.1, lr=0.2)", "Adam"),
        ("Adam(1 | 2)", r"1 \| 2"),
        ("re.sub('a', 'b', 'c')", r"re\.sub"),
        ("(x := Adam())", "x := Adam"),
        ("Mine(0.1)", "Mine"),
    ],
)
def test_anything_else_is_refused(text: str, part: str) -> None:
    with pytest.raises(ValueError, match=rf"rule: .*{part}.* at character \d+ is no part of a rule of xopt"):
        parse_rule(text)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"rule: 'Adam\(' cannot be read: .* at character"):
        parse_rule("Adam(")
    with pytest.raises(TypeError, match=r"Adam\.lr|Adam.*lr"):
        parse_rule("Adam(lr='fast')")
    with pytest.raises(TypeError, match="Adam has no hyperparameter 'rate'"):
        parse_rule("Adam(rate=0.1)")
    with pytest.raises(TypeError, match="rule: ClipByValue, but it must be a rule or a chain; put it in a chain"):
        parse_rule("ClipByValue(1.0)")
    with pytest.raises(TypeError, match="rule: type, but|rule: Adam, but it must be a rule or a chain; make an object"):
        parse_rule("Adam")
    with pytest.raises(ValueError, match=r"rule: 'Adam\(1/0\)' cannot be computed: .*zero"):
        parse_rule("Adam(1/0)")
    with pytest.raises(ValueError, match="rule: nested too deeply|cannot be read"):
        parse_rule("-" * 3000 + "1")
