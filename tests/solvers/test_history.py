"""History: what solvers tell it, and what it draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.optimize

import xopt

A = Any
START = np.asarray([-1.2, 1.0])


def rosen(x: A) -> tuple[A, A]:
    return scipy.optimize.rosen(x), scipy.optimize.rosen_der(x)


SOLVERS: dict[str, Any] = {
    "minimize": lambda h: xopt.minimize(rosen, START, callback=h),
    "rule": lambda h: xopt.minimize(rosen, START, xopt.Adam(0.1), maxiter=50, options={"every": 5}, callback=h),
    "newton": lambda h: xopt.minimize(rosen, START, method="newton-cg", callback=h),
    "scipy": lambda h: scipy.optimize.minimize(rosen, START, jac=True, method="BFGS", callback=h),
    "scipy_method": lambda h: scipy.optimize.minimize(
        rosen, START, jac=True, method=xopt.scipy_method("lbfgs"), callback=h
    ),
    "least_squares": lambda h: xopt.least_squares(lambda x: np.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]]), START,
                                                  callback=h),
    "fista": lambda h: xopt.proximal.fista(lambda x: rosen(x), START, xopt.proximal.l1(0.1), maxiter=30, callback=h),
}  # fmt: skip


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_tells_it(name: str) -> None:
    history = xopt.History()
    got = SOLVERS[name](history)
    value = "cost" if name == "least_squares" else "fun"
    assert len(history) == got.nit
    assert value in history.names
    assert "x" not in history.names
    values = history[value]
    assert values.shape == (got.nit,)
    if name != "rule":  # which knows the value of the point before
        assert values[-1] == pytest.approx(got[value])
    if "nfev" in history.names:
        assert (np.diff(history["nfev"]) >= 0).all()
        assert history["nfev"][-1] <= got.nfev
    assert (np.diff(history["time"]) > 0).all()


def test_many_fits_at_once() -> None:
    history = xopt.History()
    y = np.linspace(1, 2, 7)[:, None]
    got = xopt.minimize(lambda x: (((x - y) ** 4)[:, 0], 4 * (x - y) ** 3), np.zeros((7, 1)), batched=True,
                        callback=history)  # fmt: skip
    assert history["fun"].shape == (len(history), 7)
    np.testing.assert_array_equal(history["fun"][-1], got.fun)
    history.clear()
    assert (len(history), history.names) == (0, [])
    with pytest.raises(KeyError, match="fun: there is nothing yet"):
        history["fun"]


def test_a_callback_behind_it() -> None:
    """In either form, and it ends the run."""
    seen: list[Any] = []

    def result(intermediate_result: Any) -> bool:
        seen.append(intermediate_result.fun)
        return len(seen) == 3

    def point(x: A) -> None:
        seen.append(x.shape)
        if len(seen) == 5:
            raise StopIteration

    first = xopt.History(result)
    assert xopt.minimize(rosen, START, callback=first).status == 99
    assert seen == first["fun"].tolist()
    assert xopt.minimize(rosen, START, callback=xopt.History(point)).status == 99
    assert seen[3:] == [(2,), (2,)]
    with pytest.raises(TypeError, match="callback: 3, but it must be a function"):
        xopt.History(3)  # type: ignore[arg-type]


class Axes:
    """What stands for axes of matplotlib."""

    def __init__(self) -> None:
        self.drawn: list[Any] = []
        self.labels: dict[str, str] = {}
        self.scale = "linear"
        self.legends = 0

    def plot(self, x: A, y: A, **style: Any) -> None:
        self.drawn.append((x, y, style))

    def set(self, **labels: str) -> None:
        self.labels |= labels

    def set_yscale(self, scale: str) -> None:
        self.scale = scale

    def legend(self) -> None:
        self.legends += 1


def test_plot() -> None:
    history = xopt.History()
    xopt.minimize(lambda x: (float(x @ x) - 5, 2 * x), np.ones(3), method="gd", callback=history)
    ax = Axes()
    assert history.plot(ax) is ax
    [(x, y, style)] = ax.drawn
    np.testing.assert_array_equal(x, history["nfev"])
    np.testing.assert_array_equal(y, history["fun"])
    assert (style, ax.scale, ax.legends, ax.labels) == ({}, "linear", 0, {"xlabel": "evaluations", "ylabel": "fun"})
    ax = Axes()
    history.plot(ax, x="time", best=-5.0, label="gd")
    [(x, y, style)] = ax.drawn
    np.testing.assert_array_equal(x, history["time"])
    np.testing.assert_array_equal(y, history["fun"] + 5.0)
    assert (style, ax.scale, ax.legends) == ({"label": "gd"}, "log", 1)
    assert ax.labels == {"xlabel": "seconds", "ylabel": "fun - best"}
    ax = Axes()
    history.plot(ax, x="nit", y="nfev")
    assert (ax.scale, ax.labels) == ("log", {"xlabel": "iterations", "ylabel": "nfev"})
    with pytest.raises(ValueError, match="x: 'epochs', but it must be one of"):
        history.plot(ax, x="epochs")
    with pytest.raises(KeyError, match="gap: there is fun, nit"):
        history.plot(ax, y="gap")
