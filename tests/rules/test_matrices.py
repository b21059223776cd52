"""Muon and NorMuon beyond their rows: tables of coefficients, leaves with more than two axes, authors' code."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from catalog import matrix
from conftest import Lib, walk
from support.newton_schulz import FIVE, POLAR_EXPRESS, applied, cans
from support.oracles import assert_close, oracle, run

import xopt
from xopt.rule._newton_schulz import table

ROWS = {row.rule: row for row in matrix.ROWS}


def test_polar_express_is_the_published_table() -> None:
    found = np.asarray(table("polar_express", 5))
    np.testing.assert_allclose(found[:6], POLAR_EXPRESS[:6], rtol=1e-13)
    # Remez stops when the error changes by no more than 1e-15; the published end is the limit, 15/8, -10/8, 3/8
    np.testing.assert_allclose(found[6:], POLAR_EXPRESS[6:], rtol=1e-8)


def test_polar_express_has_settled_after_its_table() -> None:
    x = np.geomspace(1e-3, 1, 10001)
    errors = [np.max(np.abs(applied(table("polar_express", 8)[:k], x) - 1)) for k in range(1, 9)]
    assert np.all(np.diff(errors) < 0)
    assert errors[-1] < 1e-15 * 4


@pytest.mark.parametrize("steps", [1, 2, 4, 5])
def test_cans_is_what_the_paper_asks_for(steps: int) -> None:
    """Into [0.7, 1.3] from as low as can be, and as steep at 0 as that allows."""
    rows = table("cans", steps)
    np.testing.assert_allclose(rows, cans(steps), rtol=1e-11)
    x = np.geomspace(1e-4, 1, 100001)
    y = applied(rows, x)
    low = x[np.argmax(y >= 0.7)]
    assert np.all(np.abs(y[x >= low] - 1) <= 0.3 + 1e-9)
    steeper = applied([np.multiply(rows[0], (1.001, 1.001**3, 1.001**5)), *rows[1:]], x)
    assert np.max(np.abs(steeper[x >= low] - 1)) > 0.3


@pytest.mark.parametrize("steps", [8, 20])
def test_long_tables_are_repeated(steps: int) -> None:
    g = np.diag([1.0, 0.1, 0.02])
    rule = xopt.Muon(1.0, 0.0, nesterov=False, scale="none", coefficients="polar_express", ns_steps=steps)
    step = rule.apply(0 * g, g, rule.init(g))[0]
    # the safety factor shrinks the last fixed point, unless steps without it follow: 20 have a dozen of them
    np.testing.assert_allclose(-step, np.eye(3), atol=1e-5 if steps == 8 else 1e-14)


def test_coefficients_stand_in_the_place_of_a_b_c() -> None:
    g = np.random.default_rng(0).standard_normal((4, 3))
    rule, same = xopt.Muon(0.1, coefficients=[3.0, -3.2, 1.2]), xopt.Muon(0.1, a=3.0, b=-3.2, c=1.2)
    np.testing.assert_array_equal(walk(rule, g, [g])[0], walk(same, g, [g])[0])
    opt = xopt.Optimizer(g.copy(), rule)
    assert {opt.hyperparams()[n] for n in ("a", "b", "c")} == {None}
    with pytest.raises(TypeError, match="a: 3.0 in place of None is another formula"):
        opt.set(a=3.0)
    with pytest.raises(ValueError, match="Muon.coefficients: .jordan., but it must be .polar_express., .cans."):
        xopt.Muon(coefficients="jordan")  # type: ignore[arg-type]
    again = xopt.Muon(coefficients=np.asarray(FIVE))  # type: ignore[arg-type]
    assert again == xopt.Muon(coefficients=FIVE)
    assert hash(again) == hash(xopt.Muon(coefficients=FIVE))


KINDS = [
    (xopt.Muon, {"matrices": "batched", "coefficients": FIVE}, "float64"),
    (xopt.Muon, {"matrices": "in_out", "scale": "in_out"}, "complex64"),
    (xopt.NorMuon, {"matrices": "batched", "coefficients": "polar_express"}, "complex128"),
    (xopt.NorMuon, {"matrices": "out_in", "units": "last", "scale": "original"}, "float32"),
]


@pytest.mark.parametrize(("rule", "options", "dtype"), KINDS, ids=lambda x: getattr(x, "__name__", str(x)))
def test_more_than_two_axes(lib: Lib, rule: Any, options: Any, dtype: str, rng: np.random.Generator) -> None:
    """Convolutions and stacks of matrices, tall and wide, one without elements, beside what is no matrix."""
    if lib.name == "dask":
        pytest.skip("the graphs of many products are slow to make, and say nothing more than two axes do")
    row = ROWS[rule]
    one = lambda s: rng.standard_normal(s) + (1j * rng.standard_normal(s) if "c" in dtype else 0)
    shapes: Any = {"conv": (4, 3, 2, 2), "stack": (2, 5, 3), "plain": (3, 4), "none": (2, 0, 3), "b": (3,)}
    shapes = shapes if lib.name != "jax" else {"stack": (2, 5, 3), "b": (3,)}
    params, *grads = ({n: one(s).astype(dtype) for n, s in shapes.items()} for _ in range(5))
    made = row.make(**options)
    got, state = run(lib, made, params, grads)
    tol = {"float32": 3e-5, "complex64": 3e-5}.get(dtype, 1e-12)  # as for two axes; five steps
    assert_close(got, oracle(row, made, params, grads), tol, tol)
    if rule is xopt.NorMuon:
        v = state.slots["0.normuon.v"]
        assert v["stack"].shape == ((2, 5, 1) if options["matrices"] == "batched" else (1, 15))
        assert "complex" not in str(v["stack"].dtype)
        assert v["b"] is None


def test_a_nan_stays_in_its_matrix(rng: np.random.Generator) -> None:
    p, g = rng.standard_normal((3, 4, 2)), rng.standard_normal((3, 4, 2))
    g[1, 0, 0] = np.nan
    for rule in (xopt.Muon(0.1, matrices="batched"), xopt.NorMuon(0.1, matrices="batched")):
        new = rule.apply(p, g, rule.init(p))[0]
        assert [bool(np.isnan(x).any()) for x in new] == [False, True, False]


def test_every_neuron_makes_steps_of_one_size(rng: np.random.Generator) -> None:
    """Of gradients that are drawn alike each time: the point of NorMuon, which Muon does not do."""
    rows = np.geomspace(1e-3, 1, 6)[:, None]
    sizes = {}
    for rule in (xopt.Muon(1.0, scale="none"), xopt.NorMuon(1.0, rms=1.0)):
        p = np.zeros((6, 8))
        state = rule.init(p)
        squares = []
        for _ in range(300):
            before, (p, state) = p, rule.apply(p, rows * rng.standard_normal((6, 8)), state)
            squares.append(np.mean((p - before) ** 2, axis=1))
        sizes[type(rule)] = np.mean(squares[100:], axis=0)
    spread = {kind: np.sqrt(np.max(x) / np.min(x)) for kind, x in sizes.items()}
    assert spread[xopt.NorMuon] < 1.1
    assert spread[xopt.Muon] > 2
    np.testing.assert_allclose(np.mean(sizes[xopt.NorMuon]), 1.0, rtol=1e-9)


@pytest.mark.needs("torch")
@pytest.mark.parametrize("scale", ["preserve_norm", "match_rms"])
def test_normuon_of_pytorch_optimizer(
    scale: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, parity: Any
) -> None:
    """In float64, which its iteration can be told: that of the class is bfloat16."""
    torch, theirs = pytest.importorskip("torch"), pytest.importorskip("pytorch_optimizer.optimizer.muon.normuon")
    iterate = theirs.zero_power_via_newton_schulz_5
    monkeypatch.setattr(theirs, "zero_power_via_newton_schulz_5", partial(iterate, dtype=torch.float64))
    params = [rng.standard_normal(s) for s in ((4, 3), (3, 5), (4, 3, 2, 2))]
    grads = [[rng.standard_normal(p.shape) for p in params] for _ in range(10)]
    tensors = [torch.tensor(p, requires_grad=True) for p in params]
    group = {"params": tensors, "lr": 0.05, "weight_decay": 0.3, "use_muon": True}
    opt = theirs.NorMuon([group], update_scale=scale, ns_coeffs=FIVE, foreach=False)
    for g in grads:
        for p, x in zip(tensors, g, strict=True):
            p.grad = torch.tensor(x)
        opt.step()
    rule = xopt.NorMuon(
        0.05, coefficients=FIVE, eps_mode="max", matrices="out_in", weight_decay=0.3,
        scale="original" if scale == "preserve_norm" else "match_rms",
    )  # fmt: skip
    mine, others = walk(rule, params, grads)[0], [p.detach().numpy() for p in tensors]
    for x, y in zip(mine, others, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-13)
    parity("pytorch-optimizer", rule, mine, others)
