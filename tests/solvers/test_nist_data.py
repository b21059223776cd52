"""The data sets of NIST: read and modelled as they are certified, alone, in a batch and on strict arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.nist import SETS, digits


def near(got: Any, want: Any, case: Any) -> None:
    """Compare residuals, which are small differences of values like y."""
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13 * np.abs(case.y).max())


each = pytest.mark.parametrize("case", SETS.values(), ids=SETS)


def test_sets() -> None:
    assert len(SETS) == 27
    counts = {name: (*case.x.shape, case.certified.size) for name, case in SETS.items()}
    assert counts["Nelson"] == (128, 2, 3)
    assert counts["Gauss1"] == (250, 8)
    assert sum(m for m, *_ in counts.values()) == 2176


@each
def test_certified_values(case: Any) -> None:
    r = case.residual(np, case.certified)
    freedom = case.y.size - case.certified.size
    if case.name == "Lanczos1":  # certified is 1.4e-25; the parameters are printed to 11 digits, which gives 4.0e-21
        assert r @ r < 1e-20
    else:
        assert r @ r == pytest.approx(case.rss, rel=1e-8)
    assert (case.rss / freedom) ** 0.5 == pytest.approx(case.deviation, rel=1e-9)


@each
def test_the_certified_errors_follow_from_the_model(case: Any) -> None:
    """So every parameter is where it belongs. The Jacobian is of complex steps, exact to the last digits."""
    h = 1e-30
    moved = case.certified * (1 + 1j * h * np.eye(case.certified.size))
    jac = case.residual(np, moved).imag.T / h
    errors = case.deviation * np.linalg.norm(np.linalg.inv(np.linalg.qr(jac).R), axis=1)
    np.testing.assert_allclose(errors, case.errors / np.abs(case.certified), rtol=1e-8)


@each
def test_batch(case: Any) -> None:
    alone = [case.residual(np, b) for b in (case.certified, *case.starts)]
    batch = case.residual(np, np.stack([case.certified, *case.starts])[:, None])
    assert batch.shape == (3, 1, case.y.size)
    near(batch[:, 0], alone, case)


@each
def test_strict(case: Any) -> None:
    strict = pytest.importorskip("array_api_strict")
    for b in (case.certified, np.stack([case.certified, case.starts[1]])):
        got = case.residual(strict, strict.asarray(b))
        near(np.from_dlpack(got), case.residual(np, b), case)


def test_digits() -> None:
    assert digits([1.0, 2.0], [1.0, 2.0]) == 11
    assert digits([1.001, 2.0], [1.0, 2.0]) == pytest.approx(3)
    assert digits([-1.0, 11e-5], [-1.0, 1e-5]) == pytest.approx(-1)
    assert digits([np.nan, 2.0], [1.0, 2.0]) == -np.inf
