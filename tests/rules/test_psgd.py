"""PSGD-Kron beyond its row: what it whitens, when it is fitted, extreme gradients, and its peer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from conftest import Lib, walk
from support.oracles import run

import xopt
from xopt.random import normal
from xopt.rules.psgd import _bound

PLAIN = xopt.PSGDKron(0.01)
ANNEALED = xopt.schedules.clip(xopt.schedules.exponential(math.exp(-0.5), rate=math.exp(1e-3)), low=1, high=1 / 0.03)


def factors(rule: xopt.Rule, shape: tuple[int, ...], grads: Any) -> list[Any]:
    """Fit a rule to gradients, and return Qᴴ·Q of each axis."""
    p = np.zeros(shape, np.asarray(grads[0]).dtype)
    q = walk(rule, p, grads)[1].slots["0.psgdkron.q"]
    found, start = [], 0
    for n in shape:
        one = q[start : start + n * n].reshape(n, n)
        np.testing.assert_array_equal(one, np.triu(one))
        found.append(one.conj().T @ one)
        start += n * n
    return found


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_it_whitens(dtype: str, rng: np.random.Generator) -> None:
    """Gradients L·z·R of independent z: QᴴQ is (LLᴴ)^(-1/2) for the rows, and the like for the columns."""
    one = lambda *s: rng.standard_normal(s) + (1j * rng.standard_normal(s) if "c" in dtype else 0)
    unit = 1j if "c" in dtype else 1.0
    left, right = np.asarray([[1, 0], [0.5 * unit, 0.3]]), np.asarray([[4, 0, 0], [1, 2 * unit, 1], [0, 0, 1]])
    grads = [left @ one(2, 3) @ right / (np.sqrt(2) if "c" in dtype else 1.0) for _ in range(400)]
    rule = xopt.PSGDKron(b1=0.0, precond_lr=xopt.schedules.inverse_time(0.3, rate=0.05))
    both = np.kron(*factors(rule, (2, 3), grads))
    values, vectors = np.linalg.eigh(np.kron(left @ left.conj().T, (right.conj().T @ right).T))
    want = (vectors * values**-0.5) @ vectors.conj().T
    # the mean of some dozens of samples; without the root it would be 2 times as large or more
    assert np.linalg.norm(both - want) < 0.2 * np.linalg.norm(want)


def test_a_schedule_of_fits() -> None:
    """In step 1, then after as many steps as the schedule says at the time."""
    g, seen = np.asarray([[1.0, 2.0], [0.5, -1.0]]), []
    for every in (1, 3, lambda t: t, ANNEALED):
        rule, fitted = xopt.PSGDKron(update_every=every), []
        p, state = g, rule.init(g)
        for t in range(1, 14):
            before, (p, state) = state.slots["0.psgdkron.q"], rule.apply(p, g, state)
            if np.any(state.slots["0.psgdkron.q"] != before):
                fitted.append(t)
        seen.append(fitted)
    assert seen == [[*range(1, 14)], [1, 4, 7, 10, 13], [1], [*range(1, 14)]]
    steps = np.asarray([1, 501, 502, 4007, 9999])
    often = np.clip(np.exp(-1e-3 * (steps - 1 - 500)), 0.03, 1)  # of kron_torch, whose first step is 0
    np.testing.assert_allclose([ANNEALED(t) for t in steps.tolist()], 1 / often, rtol=1e-12)


def test_noise_is_of_the_seed_the_step_and_the_array(rng: np.random.Generator) -> None:
    one = rng.standard_normal((3, 2))
    p, g = {"a": one, "b": one}, {"a": one, "b": one}
    first = walk(xopt.PSGDKron(0.1), p, [g] * 3)[0]
    assert np.any(first["a"] != first["b"])
    again, other = (walk(xopt.PSGDKron(0.1, seed=k), p, [g] * 3)[0] for k in (0, 1))
    np.testing.assert_array_equal(first["a"], again["a"])
    assert np.any(first["a"] != other["a"])


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-25, 1e20, 1e30])
def test_extreme_gradients(lib: Lib, scale: float) -> None:
    """In float32: nothing overflows, zeros leave the factors alone, and steps have the size of clip at most."""
    if lib.name == "dask":
        pytest.skip("dask cannot solve equations")
    g = np.asarray([[1, 2, 3], [2, 4, 6], [-1, -2, -3], [0, 0, 0]], "float32") * np.float32(scale)  # of rank 1
    rule, params = PLAIN, {"w": np.zeros((4, 3), "float32"), "one": np.zeros((1, 1), "float32")}
    grads = [{"w": g, "one": g[:1, :1]}] * 6
    first = rule.init(params).slots["0.psgdkron.q"]["w"]
    got, state = run(lib, rule, params, grads)
    q = lib.numpy(state.slots["0.psgdkron.q"]["w"])
    assert np.all(np.isfinite(q))
    assert np.any(q != first) == (scale != 0)
    for x in got.values():
        assert np.sqrt(np.mean(x**2)) <= 6 * 0.01 * 1.1 * (1 + 1e-5)  # roundings of six steps
        assert np.any(x != 0) == (scale != 0)


def test_norms_of_what_large_arrays_sum_to(rng: np.random.Generator) -> None:
    """At least 1/√2 of the spectral norm of a Hermitian matrix, without its fourth powers, which have no float32."""
    for size in (1.0, 1e12):
        for rank in (1, 3, 40):
            x = rng.standard_normal((30, rank))
            x = np.asarray(x @ x.T * size, "float32")
            want = np.linalg.norm(x, 2)
            assert 0.7 * want <= _bound(np, x) <= want * (1 + 1e-5)  # some dozens of roundings
        np.testing.assert_allclose(_bound(np, np.full((50, 50), size, "float32")), 50 * size, rtol=1e-5)


def test_factors_are_balanced(rng: np.random.Generator) -> None:
    q = walk(xopt.PSGDKron(), np.zeros((2, 3)), [rng.standard_normal((2, 3)) * 100 for _ in range(5)])[1].slots
    sizes = [np.max(np.abs(x)) for x in np.split(q["0.psgdkron.q"], [4])]
    np.testing.assert_allclose(*sizes, rtol=1e-12)


def test_a_long_time_without_gradients() -> None:
    p = np.zeros((3, 2), "float32")
    # noise alone would nearly double the factors in every step
    _, state = walk(xopt.PSGDKron(precond_lr=0.9), p, [p] * 200)
    np.testing.assert_array_equal(state.slots["0.psgdkron.q"], xopt.PSGDKron().init(p).slots["0.psgdkron.q"])


def test_a_nan_stays_in_its_matrix() -> None:
    for bad in (np.nan, np.inf):
        g = {"a": np.asarray([[1.0, bad], [2.0, 1.0]]), "b": np.ones((2, 2))}
        p = walk(xopt.PSGDKron(), {"a": np.ones((2, 2)), "b": np.ones((2, 2))}, [g] * 3)[0]
        assert np.isnan(p["a"]).all()
        assert np.isfinite(p["b"]).all()


@pytest.mark.needs("torch")
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"memory_save": "one_diag", "b1": 0.5}, {"memory_save_mode": "one_diag", "momentum": 0.5}),
        (
            {"memory_save": "smart_one_diag", "momentum_into_precond_update": False},
            {"memory_save_mode": "smart_one_diag", "momentum_into_precondition_update": False},
        ),
        ({"max_dim": 3, "vectors": True}, {"max_size_triangular": 3, "min_ndim_triangular": 1}),
    ],
)
def test_kron_of_pytorch_optimizer(
    ours: Any, theirs: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, parity: Any
) -> None:
    """With the same noise, and equations in float64, which it solves in float32."""
    torch, module = pytest.importorskip("torch"), pytest.importorskip("pytorch_optimizer.optimizer.psgd")

    def solve(x: Any, a: Any) -> Any:
        flat = torch.linalg.solve_triangular(a, x.reshape(-1, x.shape[-1]), upper=True, left=False)
        return flat.reshape(x.shape)

    step, drawn = [0], [0]

    def noise(x: Any, **_: Any) -> Any:
        drawn[0] += 1
        return torch.tensor(normal(np.zeros(tuple(x.shape)), (0, 2 * ((drawn[0] - 1) % len(params))), step[0]))

    monkeypatch.setattr(module, "solve_triangular_right", solve)
    monkeypatch.setattr(torch, "randn_like", noise)
    params = [rng.standard_normal(s) for s in ((4, 3), (2, 5), (2, 3, 4), (1, 3))]
    grads = [[rng.standard_normal(p.shape) * s for p in params] for s in np.geomspace(0.03, 3, 15)]
    tensors = [torch.tensor(p, requires_grad=True) for p in params]
    every = {"precondition_dtype": torch.float64, "balance_prob": 0.0, "weight_decay": 0.3}
    opt = module.Kron(tensors, lr=0.05, **every, **theirs)
    for g in grads:
        step[0] += 1
        for p, x in zip(tensors, g, strict=True):
            p.grad = torch.tensor(x)
        opt.step()
    rule = xopt.PSGDKron(0.05, update_every=ANNEALED, weight_decay=0.3, **ours)
    mine, others = walk(rule, params, grads)[0], [p.detach().numpy() for p in tensors]
    for x, y in zip(mine, others, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-13)
    parity("pytorch-optimizer", rule, mine, others)
