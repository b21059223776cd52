"""Loading with ``strict=False``: what is kept of a parameter begins at the one that was loaded."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import optree
import pytest
from conftest import Lib

import xopt
from xopt.rule import Array, Component, H, Hyper, Rule, hyper


class Half(Rule):
    """Pulls towards half of its first parameter: a first value that is computed, of whole arrays."""

    lr: Hyper = hyper(default=0.25)
    elementwise = False

    @staticmethod
    def first(h: H, xp: Any, p: Array) -> Array:
        return 0.5 * p

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, goal: Array = "first", m: Array = 0.0) -> tuple[Array, ...]:
        return -h.lr * (p - goal) - g - m, goal, m + g


SGD = xopt.SGD(lr=0.5)
RULES = {
    "EMA": xopt.chain(SGD, xopt.EMA(0.5)),
    "EMA zero": xopt.chain(SGD, xopt.EMA(0.5, start="zero")),
    "EMA first": xopt.chain(SGD, xopt.EMA(0.5, start="first")),
    "SWA": xopt.chain(SGD, xopt.SWA()),
    "SWA later": xopt.chain(SGD, xopt.SWA(start=6, every=2)),
    "Lookahead": xopt.chain(SGD, xopt.Lookahead(k=3)),
    "Lookahead first": xopt.chain(SGD, xopt.Lookahead(k=2, start="first")),
    "DoG": xopt.DoG(reps_rel=0.01),
    "LDoG": xopt.LDoG(reps_rel=0.01),
    "MADGRAD": xopt.MADGRAD(lr=0.1),
    "ScheduleFreeSGD": xopt.ScheduleFreeSGD(lr=0.1),
    "ScheduleFreeAdamW": xopt.ScheduleFreeAdamW(lr=0.1),
    "ASGD": xopt.ASGD(lr=0.1, t0=1),
    "Prodigy": xopt.Prodigy(d0=0.1),
    "DAdaptSGD": xopt.DAdaptSGD(d0=0.1, momentum=0.5),
    "whole arrays": Half(),
    "masked": xopt.chain(SGD, xopt.Masked(xopt.EMA(0.5), "a")),
    "groups": xopt.Groups(xopt.DoG(reps_rel=0.01), ("b", xopt.MADGRAD())),
    "wrapped": xopt.Guard(xopt.Accumulate(xopt.chain(SGD, xopt.Lookahead(k=2)), 2), "skip"),
    "precision": xopt.Precision(xopt.chain(SGD, xopt.EMA(0.5)), state_dtype="bfloat16"),
}


def test_every_part_that_keeps_the_parameter_has_a_row() -> None:
    kinds = [x for x in map(xopt.__dict__.get, xopt.__all__) if inspect.isclass(x) and issubclass(x, Component)]
    keeping = {kind.__name__ for kind in kinds if "p" in kind._slots.values()}
    assert keeping == {name for name in keeping if any(name in row for row in RULES)}
    assert len(keeping) >= 11


def tree(lib: Lib, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return {"a": lib.array(rng.standard_normal((3, 2))), "b": lib.array(rng.standard_normal(4))}


def at_step(opt: xopt.Optimizer, step: int) -> xopt.Optimizer:
    opt.load_state_dict(opt.state_dict() | {"step": step})
    return opt


def copied(lib: Lib, params: Any) -> Any:
    return optree.tree_map(lambda p: lib.array(lib.numpy(p)), params)


def alike(lib: Lib, a: Any, b: Any, rtol: float = 0.0) -> None:
    for x, y in zip(optree.tree_leaves(a), optree.tree_leaves(b), strict=True):
        np.testing.assert_allclose(lib.numpy(x), lib.numpy(y), rtol=rtol, atol=rtol)


def spared(lib: Lib) -> None:
    if lib.guise in ("read-only", "grad", "eager") or (lib.name == "strict" and lib.guise != "CPU_DEVICE"):
        pytest.skip("Optimizer cannot write into it, or the other guise has it")


@pytest.mark.parametrize("row", RULES)
def test_what_the_file_has_not_begins_at_the_parameter_of_the_file(lib: Lib, row: str, tmp_path: Path) -> None:
    """As if it had been made with that parameter: the same bits, whatever the optimizer has done before."""
    spared(lib)
    if lib.name == "strict" and row == "precision":
        pytest.skip("no such dtype")
    if lib.name == "jax" and row not in ("EMA zero", "Lookahead", "LDoG", "whole arrays"):
        pytest.skip("each rule is compiled; one of each kind")
    rule, saved = RULES[row], xopt.Optimizer(tree(lib, 1), SGD)
    for seed in (2, 3, 4):
        saved.step(tree(lib, seed))
    used = xopt.Optimizer(tree(lib, 5), rule)
    for seed in (6, 7):
        used.step(tree(lib, seed))
    used.load(saved.save(tmp_path / "run"), strict=False)
    want = at_step(xopt.Optimizer(copied(lib, saved.params), rule), 3)
    pure = xopt.load_state(tmp_path / "run", rule, tree(lib, 5), strict=False)
    back = (pure.params, pure.state)
    alike(lib, used.eval_params(), saved.params, 1e-15)  # p + c·(p - p)
    alike(lib, rule.eval_params(*back), saved.params, 1e-15)
    for seed in (8, 9, 10, 11):
        g = tree(lib, seed)
        used.step(g)
        want.step(g)
        back = rule.apply(back[0], g, back[1])
        alike(lib, used.params, want.params)
        alike(lib, used.eval_params(), want.eval_params())
        alike(lib, used.params, back[0], 1e-12)  # tiles and the eager runner


@pytest.mark.parametrize("link", [xopt.EMA(0.5, start="zero"), xopt.SWA(), xopt.Lookahead(k=2)], ids=str)
def test_state_alone_goes_with_the_parameters_that_are_there(lib: Lib, link: Any) -> None:
    """Parameters that the caller has loaded himself, into the arrays of an optimizer that was made before."""
    spared(lib)
    if not lib.writable:
        pytest.skip("arrays of this library cannot be written into")
    adam = xopt.Adam(lr=0.1)
    saved, opt = xopt.Optimizer(tree(lib, 1), adam), xopt.Optimizer(tree(lib, 5), xopt.chain(adam, link))
    for seed in (2, 3):
        saved.step(tree(lib, seed))
        opt.step(tree(lib, seed + 5))
    for key, p in saved.params.items():
        opt.params[key][...] = p
    opt.load_state_dict(saved.state_dict(), strict=False)
    alike(lib, opt.eval_params(), saved.params)
    alike(lib, opt.state.slots["0.adam.m"], saved.state.slots["0.adam.m"])


def test_lookahead_steps_back_to_what_was_loaded() -> None:
    """Gradients of 0: slow weights that began at 0 would pull 99.5 to 49.75."""
    saved = xopt.Optimizer(np.asarray([100.0]), xopt.Adam(lr=0.5, eps=0.0))
    assert saved.step(np.asarray([1.0])).tolist() == [99.5]
    opt = xopt.Optimizer(np.zeros(1), xopt.chain(xopt.SGD(lr=0.5), xopt.Lookahead(k=3)))
    opt.load_state_dict(saved.state_dict(only_state=False), strict=False)
    assert [opt.step(np.zeros(1)).item() for _ in range(3)] == [99.5] * 3


def test_an_average_goes_on_from_what_was_loaded() -> None:
    """EMA by its formula, from the loaded parameter on; with start="zero" the weights begin anew, too."""
    saved = xopt.Optimizer(np.asarray([8.0]), SGD).state_dict(only_state=False) | {"step": 100}
    for start, want in (("params", [8.0, 7.5, 6.75]), ("zero", [8.0, 7.0, (0.25 * 7 + 0.5 * 6) / 0.75])):
        opt = xopt.Optimizer(np.zeros(1), xopt.chain(xopt.SGD(lr=1.0), xopt.EMA(0.5, start=start)))  # type: ignore[arg-type]
        for _ in range(5):
            opt.step(np.ones(1))
        opt.load_state_dict(saved, strict=False)
        found = [opt.eval_params().item()]
        for _ in range(2):
            opt.step(np.ones(1))
            found.append(opt.eval_params().item())
        np.testing.assert_allclose(found, want, rtol=1e-15)


def test_a_parameter_that_is_thawed_begins_where_it_is() -> None:
    """A frozen one has no state in the file. It goes on as one that was made there."""
    rule = xopt.ScheduleFreeSGD(lr=0.25)
    run = {"w": np.asarray([1.0]), "b": np.asarray([100.0])}
    saved = xopt.Optimizer(run, xopt.Groups(rule, ("b", xopt.Freeze)))
    for _ in range(3):
        saved.step({"w": np.ones(1), "b": None})
    opt = xopt.Optimizer({"w": np.zeros(1), "b": np.zeros(1)}, xopt.Groups(rule, ("b", {})))
    opt.step({"w": np.ones(1), "b": np.full(1, 7.0)})
    opt.load_state_dict(saved.state_dict(only_state=False), strict=False)
    assert opt.eval_params()["b"].item() == 100.0
    other = xopt.Optimizer({"w": np.zeros(1), "b": np.full(1, 100.0)}, rule)
    at_step(other, 3)
    for _ in range(4):
        opt.step({"w": np.ones(1), "b": np.ones(1)})
        other.step({"w": np.ones(1), "b": np.ones(1)})
        assert opt.params["b"].item() == other.params["b"].item()
    alike_w = xopt.Optimizer(run, xopt.Groups(rule, ("b", {})))
    alike_w.load_state_dict(saved.state_dict(only_state=False), strict=False)
    for _ in range(4):
        alike_w.step({"w": np.ones(1), "b": np.ones(1)})
    assert opt.params["w"].item() == alike_w.params["w"].item()


def test_a_parameter_of_which_the_file_has_nothing_stays_with_all_its_state() -> None:
    rule = xopt.chain(SGD, xopt.EMA(0.5))
    saved = xopt.Optimizer({"a": np.full(1, 5.0)}, SGD)
    opt = xopt.Optimizer({"a": np.zeros(1), "b": np.zeros(1)}, rule)
    opt.step({"a": np.ones(1), "b": np.ones(1)})
    opt.load_state_dict(saved.state_dict(only_state=False), strict=False)
    average = opt.state.slots["1.ema.average"]
    assert (opt.params["b"].item(), average["b"].item()) == (-0.5, -0.25)
    assert (opt.params["a"].item(), average["a"].item()) == (5.0, 5.0)


def test_codes_of_a_link_that_begins_anew_begin_with_their_scales() -> None:
    """Scales are made of the parameter, but belong to codes: both begin anew, or neither."""
    p, rule = np.full(300, 2.0, "float32"), xopt.chain(xopt.Adam(lr=0.1), xopt.EMA(0.5))
    opt = xopt.Optimizer(p, rule, state_dtype="int8")
    opt.step(np.ones(300, "float32"))
    m = {n: x.copy() for n, x in opt.state.slots.items() if "adam" in n}
    opt.load_state_dict(xopt.Optimizer(p + 1, SGD).state_dict(only_state=False), strict=False)
    assert {n for n, x in m.items() if np.array_equal(x, opt.state.slots[n])} == {*m}
    assert opt.state.slots["1.ema.average"].tolist() == p.tolist()
