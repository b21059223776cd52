"""The registry of solvers: what there is to know of one stands in its row."""

from __future__ import annotations

import inspect
import pickle
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import optimize

import xopt
from xopt.solvers import _registry
from xopt.solvers._bounded import Bounded
from xopt.solvers._directions import Line, Steepest
from xopt.solvers._options import SEARCHES, Option, Solver, positive

ROOT = Path(__file__).resolve().parents[2]


class BarzilaiBorwein(Steepest):
    """d = -g·s·s/s·y with the last step s, as long as the step should be: what a user would write beside xopt's own."""

    def __init__(self, space: Any, wait: int) -> None:
        super().__init__(space)
        self.wait, self.length = wait, 1.0

    @property
    def scaled(self) -> bool:  # type: ignore[override]
        return self.wait <= 0

    def accept(self, alpha: float, slope: float, slopes: float, sums: Any) -> None:
        if slopes > slope:
            self.length *= alpha * slope / (slope - slopes)  # d = -length·g, so that s·s/s·y is this
        self.wait -= 1

    def direction(self, here: Any, square: float) -> Line:
        self.length = abs(self.length) if self.scaled else 1.0
        return Line(-self.length * here.z, -self.length * square)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two more solvers."""
    wait = {"wait": Option(1, positive)}
    for row in (
        Solver("bb", BarzilaiBorwein, wait, line_search="armijo", scipy={"gtol": 1e-3}),
        Solver("boxes", Bounded, {"history": Option(3, positive)}, bounds=True, tol=("gtol", "ftol")),
    ):
        monkeypatch.setitem(_registry.SOLVERS, row.name, row)


def fun(x: Any) -> tuple[float, Any]:
    weights = np.arange(1.0, x.size + 1)
    return float(weights @ (x - 1) ** 2), 2 * weights * (x - 1)


@pytest.mark.usefixtures("rows")
def test_a_row_is_a_method_of_minimize() -> None:
    method: Any = "bb"
    got = xopt.minimize(fun, np.zeros(9), method=method)
    assert got.success
    np.testing.assert_allclose(got.x, 1, atol=1e-5)
    assert xopt.minimize(fun, np.zeros(9), method="BB", options={"wait": 1}).nfev == got.nfev  # type: ignore[arg-type]
    later = xopt.minimize(fun, np.zeros(9), method=method, options={"wait": 5, "line_search": "hager-zhang"})
    assert later.success
    assert later.nfev != got.nfev
    method = "boxes"
    within = xopt.minimize(fun, np.zeros(9), method=method, bounds=(None, 0.5), options={"maxcor": 2})
    assert within.x.tolist() == [0.5] * 9
    assert xopt.minimize(fun, np.zeros(9), bounds=(None, 0.5)).success  # by the default, which is another one


@pytest.mark.usefixtures("rows")
def test_a_row_is_a_method_of_scipy() -> None:
    method = pickle.loads(pickle.dumps(xopt.scipy_method("bb")))
    for options in ({}, {"wait": 5}, {"gtol": 1e-3, "maxls": 10}):
        got = optimize.minimize(fun, np.zeros(9), jac=True, method=method, options=options)
        assert got.success
        assert "≤ gtol" in got.message
        assert 1e-5 < np.abs(got.jac).max() <= 1e-3
    assert np.abs(optimize.minimize(fun, np.zeros(9), jac=True, method=method, tol=1e-6).jac).max() <= 1e-6
    within = optimize.minimize(fun, np.zeros(9), jac=True, method=xopt.scipy_method("boxes"), bounds=[(None, 0.5)] * 9)
    assert within.x.tolist() == [0.5] * 9


@pytest.mark.usefixtures("rows")
def test_errors_know_the_rows() -> None:
    x0, bounds = np.zeros(2), [(0, 1)] * 2
    for error, match, call in [
        (ValueError, r"one of 'lbfgs', 'lbfgs-b', 'cg', 'gd', .*, 'bb', 'boxes', 'L-B", lambda m: m("sgd")),
        (TypeError, r"options: history, but for bb there are .*xtol$", lambda m: m("bb", options={"history": 3})),
        (TypeError, r"options: wait, but for cg there are", lambda m: m("cg", options={"wait": 3})),
        (TypeError, r"options: maxcor, but for bb there are .* wait", lambda m: m("bb", options={"maxcor": 3})),
        (ValueError, r"wait: 0, but it must be ≥ 1", lambda m: m("bb", options={"wait": 0})),
        (TypeError, r"maxcor and history are the same", lambda m: m("boxes", options={"maxcor": 1, "history": 1})),
    ]:  # fmt: skip
        for minimize in (
            lambda method, **more: xopt.minimize(fun, x0, method=method, **more),
            lambda method, **more: optimize.minimize(fun, x0, jac=True, method=xopt.scipy_method(method), **more),
        ):
            with pytest.raises(error, match=match):
                call(minimize)
    with pytest.raises(TypeError, match="bounds: given with method 'bb'; 'lbfgs-b' or 'boxes' has bounds"):
        xopt.minimize(fun, x0, method="bb", bounds=(0, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='bounds: given, but .* cannot have any; use "lbfgs-b" or "boxes"'):
        optimize.minimize(fun, x0, jac=True, method=xopt.scipy_method("bb"), bounds=bounds)


def test_what_cannot_follow_from_the_rows_is_equal_to_them() -> None:
    names = typing.get_args(_registry.MethodName)
    assert [n for n in names if n == n.lower()] == [*_registry.SOLVERS]
    for name in names:
        assert _registry.chosen(name, False).name in _registry.SOLVERS
    [searches, _] = typing.get_args(typing.get_type_hints(xopt.LBFGS.__init__)["line_search"])
    assert typing.get_args(searches) == tuple(SEARCHES)
    assert all(name == row.name for name, row in _registry.SOLVERS.items())


def test_every_row_is_documented() -> None:
    page = (ROOT / "docs" / "minimize.md").read_text(encoding="utf-8")
    doc = inspect.getdoc(xopt.minimize) or ""
    for name, row in _registry.SOLVERS.items():
        assert f'\n| `"{name}"`' in page
        assert f'``"{name}"``' in doc
        for option in row.options:
            assert f"``{option}``" in doc
    for search in SEARCHES:
        assert f'``"{search}"``' in doc
