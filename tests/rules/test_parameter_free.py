"""Rules that find their learning rate: default first steps of 1e-6, lost and found, in float32 too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import Lib, walk

import xopt

FREE = [xopt.DAdaptSGD(), xopt.DAdaptSGD(momentum=0.9), xopt.DAdaptAdam(), xopt.Prodigy(), xopt.DoG(), xopt.LDoG()]


def found(rule: Any, dtype: str, steps: int = 400) -> tuple[Any, dict[str, Any]]:
    """Minimize a quadratic; return the last parameters and what is carried."""
    rng = np.random.default_rng(5)
    scale, goal = np.geomspace(0.3, 3, 20).astype(dtype), rng.standard_normal(20).astype(dtype)
    opt = xopt.Optimizer([np.zeros(20, dtype), np.zeros((4, 5), dtype)], rule)
    for _ in range(steps):
        a, b = opt.params
        opt.step([scale * (a - goal), (b - goal.reshape(4, 5)) * scale.reshape(4, 5)])
    return [np.abs(p.ravel() - goal).max() for p in opt.params], opt.state.carry


@pytest.mark.parametrize("rule", FREE, ids=repr)
def test_float32_finds_what_float64_finds(rule: Any) -> None:
    """The first steps of 1e-6 have one digit in float32; what is found after all does not depend on that."""
    (far, carry), (far32, carry32) = found(rule, "float64"), found(rule, "float32")
    assert max(far) < 0.1
    assert max(far32) < 0.1
    for n in carry:
        if n.endswith((".d", ".rbar")):
            np.testing.assert_allclose(carry32[n], carry[n], rtol=0.1)
            assert np.all(np.asarray(carry[n]) > 0.3)


@pytest.mark.parametrize("rule", FREE, ids=repr)
def test_nothing_before_the_first_gradient(lib: Lib, rule: Any, rng: np.random.Generator) -> None:
    """Gradients that are all 0, or missing, neither move parameters nor make NaN, and the first real one is first."""
    x, g = rng.standard_normal(5), [rng.standard_normal(5), rng.standard_normal(5)]
    rule = rule.replace(**({"reps_rel": 0.1} if isinstance(rule, xopt.DoG) else {"d0": 0.1}))
    want = walk(rule, x, g)[0]
    p = lib.array(x)
    state = rule.init(p)
    for idle in (lib.array(np.zeros(5)), None):
        p, state = rule.apply(p, idle, state)
        np.testing.assert_array_equal(lib.numpy(p), x)
    for y in g:
        p, state = rule.apply(p, lib.array(y), state)
    if not isinstance(rule, xopt.Prodigy | xopt.DAdaptAdam):
        np.testing.assert_allclose(lib.numpy(p), want, rtol=1e-12)
    assert np.isfinite(lib.numpy(p)).all()
    assert np.abs(lib.numpy(p) - x).max() > 1e-3


@pytest.mark.parametrize("rule", [*FREE, xopt.NovoGrad()], ids=repr)
def test_a_step_without_gradients_keeps_what_is_carried(rule: Any, rng: np.random.Generator) -> None:
    p, state = walk(rule, [rng.standard_normal(5)], [[rng.standard_normal(5)] for _ in range(5)])
    _, after = rule.apply(p, [None], state)
    for n, x in state.carry.items():
        np.testing.assert_array_equal(after.carry[n], x, err_msg=n)


@pytest.mark.parametrize("rule", [x for x in FREE if not isinstance(x, xopt.DoG)], ids=repr)
def test_d0_is_the_first_d(lib: Lib, rule: Any) -> None:
    state = rule.replace(d0=0.25).init(lib.array(np.zeros(3)))
    [d] = [x for n, x in state.carry.items() if n.endswith(".d")]
    assert float(d) == 0.25


def test_first_values_name_static_fields() -> None:
    class Bad(xopt.Rule):
        lr: Any = xopt.hyper(default=0.1)
        carry = {"d": "lr"}

        @staticmethod
        def host(h: Any, xp: Any) -> dict[str, Any]:
            return {"d": h.d}

        @staticmethod
        def update(h: Any, xp: Any, p: Any, g: Any) -> Any:
            return -h.d * g

    with pytest.raises(TypeError, match="names no static field"):
        Bad().init(np.zeros(2))


def test_groups_of_one_d(rng: np.random.Generator) -> None:
    """LDoG of one leaf is DoG; of two leaves each is by itself."""
    p, g = (
        [rng.standard_normal(3), rng.standard_normal((2, 2))],
        [[rng.standard_normal(3), rng.standard_normal((2, 2))]],
    )
    apart = [walk(xopt.DoG(reps_rel=0.1), x, [y])[0] for x, y in zip(p, g[0], strict=True)]
    for x, y in zip(walk(xopt.LDoG(reps_rel=0.1), p, g)[0], apart, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-14)
