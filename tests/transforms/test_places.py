"""Where components may stand in a chain, and what they see there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import Lib, walk
from support.links import SGD
from support.oracles import NEW, assert_close, leaves, problem, run

import xopt
from xopt._engine.program import plan as _plan


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((xopt.EMA(), SGD), "EMA is given the new parameters, so it must stand behind SGD, not in front"),
        ((xopt.NonNegative(), SGD), "NonNegative is given the new parameters, so it must stand behind SGD"),
        ((xopt.Cautious(), SGD), "Cautious works on the step of the rule, so it must stand behind SGD, not in front"),
        ((xopt.ReduceOnPlateau(), SGD), "ReduceOnPlateau works on the step of the rule, so it must stand behind SGD"),
        ((xopt.AddDecay(0.1, decay="independent"), SGD), "AddDecay works on the step of the rule"),
        ((SGD, xopt.AddDecay(0.1)), "AddDecay changes the gradient, so it must stand in front of SGD, not behind"),
        ((xopt.AddDecay(0.1), xopt.SGD(maximize=True)), "AddDecay in front of SGD.maximize=True. would make the param"),
        (
            (SGD, xopt.EMA(), xopt.ClipByValue(1.0)),
            "ClipByValue changes the step, but EMA .*: put ClipByValue directly behind the rule",
        ),
        ((SGD, xopt.Box(0.0, 1.0), xopt.EMA(), xopt.Cautious()), "Cautious changes the step, but Box in front of it"),
    ],
    ids=lambda x: "-".join(type(y).__name__ for y in x) if isinstance(x, tuple) else "",
)
def test_places_that_are_refused(parts: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"chain: {words}"):
        xopt.chain(*parts)


def test_masked_links_stand_where_their_own_may() -> None:
    xopt.chain(SGD, xopt.EMA(), xopt.Masked(xopt.Box(-1, 1), "w"))
    for parts in (
        (xopt.Masked(xopt.EMA(), "w"), SGD),
        (SGD, xopt.Masked(xopt.EMA(), "w"), xopt.ClipByValue(1.0)),
        (xopt.Masked(xopt.Cautious(), "w"), SGD),
        (xopt.Masked(xopt.AddDecay(0.1), "w"), xopt.SGD(maximize=True)),
        (xopt.Groups(xopt.chain(SGD, xopt.EMA()), ("w", {"lr": 0.5})), xopt.ClipByValue(1.0)),
        (xopt.Groups(SGD, ("w", xopt.chain(SGD, xopt.EMA()))), xopt.ClipByValue(1.0)),
    ):
        with pytest.raises(ValueError, match="chain: "):
            xopt.chain(*parts)


def test_masked_decay_and_averages(lib: Lib, rng: np.random.Generator) -> None:
    p = {"w": rng.standard_normal(3), "b": rng.standard_normal(2)}
    grads = [{"w": rng.standard_normal(3), "b": rng.standard_normal(2)} for _ in range(4)]
    rule = xopt.chain(xopt.Masked(xopt.AddDecay(0.5), "w"), SGD, xopt.Masked(xopt.EMA(0.5), "b"))
    got, state = run(lib, rule, p, grads)
    read = NEW(lib.numpy, rule.eval_params(NEW(lib.array, got), state))
    for name, own in [("w", xopt.chain(xopt.AddDecay(0.5), SGD)), ("b", xopt.chain(SGD, xopt.EMA(0.5)))]:
        want, mine = walk(own, p[name], [g[name] for g in grads])
        assert_close([got[name]], [want], 1e-13, 1e-15)
        assert_close([read[name]], [own.eval_params(want, mine)], 1e-13, 1e-15)


def test_sam_is_no_link() -> None:
    with pytest.raises(TypeError, match="chain: SAM is no component of a chain; it takes a function"):
        xopt.chain(xopt.SAM(), SGD)


def test_clip_adamw_ema_and_a_cautious_mask_are_one_sum_and_one_kernel(rng: np.random.Generator) -> None:
    rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.AdamW(), xopt.Cautious(rescale=False), xopt.EMA())
    plan = _plan.plan(rule._specs(), complex=False)
    assert list(plan.sums) == [0]
    text = xopt.explain(rule, np.zeros(10, "f4"), runner="tiled")
    assert text.count("def kernel(") == 2
    stages = [line for line in text.splitlines() if line.startswith("  ") and line.endswith("per parameter")]
    moved = [int(line.split(": ")[1].split()[0]) for line in stages]
    assert moved == [4, 9 * 4], "the sum reads g; the kernel reads p, g, m, v, a and writes all but g"
    rescaled = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.AdamW(), xopt.Cautious(), xopt.EMA())
    assert list(_plan.plan(rescaled._specs(), complex=False).sums) == [0, 2]


@pytest.mark.parametrize(
    "link", [xopt.EMA(0.5), xopt.SWA(start=2), xopt.Lookahead(k=2), xopt.Cautious(), xopt.Box(-1, 1)]
)
def test_links_of_an_accumulated_step_see_one_step(lib: Lib, link: Any, rng: np.random.Generator) -> None:
    """Averages count steps and not gradients, and a step that is skipped is none."""
    params, grads = problem(rng, "float64", 8, lib)
    inner = xopt.chain(SGD, link)
    rule = xopt.Guard(xopt.Accumulate(inner, every=2), "skip")
    broken = NEW(lambda x: x * np.nan, grads[0])
    got, state = run(lib, rule, params, [*grads[:3], broken, *grads[3:]])
    means = [NEW(lambda a, b: (a + b) / 2, *pair) for pair in zip(grads[::2], grads[1::2], strict=True)]
    want, own = walk(inner, params, means)
    assert_close(got, leaves(want), 1e-12, 1e-13)
    read = rule.eval_params(NEW(lib.array, got), state)
    assert_close(NEW(lib.numpy, read), leaves(inner.eval_params(want, own)), 1e-12, 1e-13)
