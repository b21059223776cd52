"""KL-Shampoo and KL-SOAP beyond their rows: what their matrices and eigenvalues are."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import walk

import xopt


@pytest.mark.parametrize("rule", [xopt.KLShampoo, xopt.KLSOAP])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_the_kronecker_product_is_the_covariance(rule: type[xopt.Rule], dtype: str, rng: np.random.Generator) -> None:
    """Of gradients L·z·R, and not a multiple of it, as that of Shampoo's matrices is."""
    one = lambda *s: rng.standard_normal(s) + (1j * rng.standard_normal(s) if "c" in dtype else 0)
    unit = 1j if "c" in dtype else 1.0
    left, right = np.asarray([[1, 0], [0.5 * unit, 0.3]]), np.asarray([[4, 0, 0], [1, 2 * unit, 1], [0, 0, 1]])
    grads = [left @ one(2, 3) @ right / (np.sqrt(2) if "c" in dtype else 1.0) for _ in range(500)]
    made = rule(b2=0.98, update_every=1000)  # the bases of the first step
    slots = walk(made, np.zeros((2, 3), dtype), grads)[1].slots
    name = f"0.{rule.__name__.lower()}"
    s, q = ([slots[f"{name}.{n}"][:4].reshape(2, 2), slots[f"{name}.{n}"][4:].reshape(3, 3)] for n in "sq")
    # both have forgotten where they began, all but 0.98⁵⁰⁰ of it, and the larger ones are a hundred times the smaller
    shown = np.concatenate([np.diag(y.conj().T @ x @ y).real for x, y in zip(s, q, strict=True)])
    np.testing.assert_allclose(slots[f"{name}.e"], shown, rtol=1e-2)
    want = np.kron(left @ left.conj().T, (right.conj().T @ right).T)
    # the mean of a hundred samples or so; without the division by lengths it would be 6 times as large
    assert np.linalg.norm(np.kron(*s) - want) < 0.4 * np.linalg.norm(want)


@pytest.mark.parametrize("rule", [xopt.KLShampoo(1.0), xopt.SOAP(1.0), xopt.KLSOAP(1.0)], ids=repr)
def test_gradients_that_become_larger_at_once(rule: xopt.Rule) -> None:
    """By 1e6: the eigenvalues are those of the steps before, v is not."""
    before, state = walk(rule, np.zeros((1, 1)), [np.ones((1, 1))] * 500)
    after, state = rule.apply(before, np.full((1, 1), 1e6), state)
    step = 1 + 0.05 * (1e6 - 1) if isinstance(rule, xopt.KLShampoo) else 0.05 / 0.05**0.5  # (1-b1)/(1-b2)^(1/2)
    np.testing.assert_allclose(before - after, step, rtol=1e-4)  # m before is 1, beside 5e4
    clipped = xopt.chain(xopt.ClipByGlobalNorm(1.0), rule)
    before, state = walk(clipped, np.zeros((1, 1)), [np.ones((1, 1))] * 500)
    np.testing.assert_allclose(before - clipped.apply(before, np.full((1, 1), 1e6), state)[0], 1.0, rtol=1e-5)
