"""minimize where something is raised: what a user raises comes through as it is, and what does not fit is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from support.mgh import bowl

import xopt


@pytest.mark.parametrize("chosen", [{}, {"rule": xopt.Adam(0.1)}], ids=str)
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_what_is_raised(chosen: Any, error: Any) -> None:
    calls = []

    def fun(x: Any) -> Any:
        calls.append(x)
        if len(calls) == 4:
            raise error("four")
        return bowl(x)

    x0 = np.zeros(3)
    if error is KeyboardInterrupt:
        got = xopt.minimize(fun, x0, **chosen)
        assert (got.status, got.success) == (3, False)
    else:
        with pytest.raises(ZeroDivisionError, match="four") as caught:
            xopt.minimize(fun, x0, **chosen)
        got = caught.value.intermediate_result  # type: ignore[attr-defined]
        assert "intermediate_result" in caught.value.__notes__[0]
    if chosen:  # a rule has gone on already, and nobody knows the value there
        assert np.isnan(got.fun)
        assert got.jac is None
    else:
        assert got.fun == bowl(got.x)[0] == min(bowl(x)[0] for x in calls[:3])
        assert np.array_equal(got.jac, bowl(got.x)[1])
    assert bowl(got.x)[0] < bowl(x0)[0]
    assert x0.tolist() == [0, 0, 0]


class Unset(Exception):
    """Its text needs what its ``__init__`` did not set."""

    def __init__(self, *args: Any) -> None:
        pass

    def __str__(self) -> str:
        return str(self.never)  # type: ignore[attr-defined]

    __repr__ = __str__


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int = 7


class Bare(Exception):
    """Takes no attribute and no note."""

    __slots__ = ()

    def __setattr__(self, name: str, value: Any) -> None:
        raise RuntimeError("no attributes")

    def add_note(self, note: str) -> None:
        raise RuntimeError("no notes")


class Noted(Exception):
    __notes__ = ("of the class", "and no list")  # type: ignore[assignment]


class Held(Exception):
    @property
    def intermediate_result(self) -> Any:
        raise ZeroDivisionError


class Interrupt(KeyboardInterrupt):
    def __setattr__(self, name: str, value: Any) -> None:
        raise RuntimeError("no attributes")


def raised(call: Any) -> BaseException | None:
    """Return what a call raises; `pytest.raises` would look at it."""
    try:
        call()
    except Exception as error:
        return error
    return None


ERRORS = [
    Unset(1),
    Frozen(3),
    Bare("a", 2),
    Noted("x"),
    Held(),
    StopIteration("of fun"),
    OSError(2, "gone"),
    ValueError(),
]


def raised_by(where: str, error: BaseException) -> tuple[Any, dict[str, Any]]:
    """Return what to minimize, and how, so that the error is raised after some calls."""
    calls: list[Any] = []

    def late(returned: Any) -> Any:
        calls.append(1)
        if len(calls) > 3:
            raise error
        return returned

    fun, options = bowl, dict[str, Any]()
    given: dict[str, Any] = {"options": options}
    if where in ("fun", "rule", "bounds", "differences"):
        fun = lambda x: late(bowl(x))
    if where == "rule":
        given["rule"] = xopt.Adam(0.1)
    elif where == "bounds":
        given["bounds"] = (-1, 5)
    elif where == "differences":
        fun, given["jac"] = lambda x: late(bowl(x)[0]), "3-point"
    elif where == "jac":
        fun, given["jac"] = lambda x: bowl(x)[0], lambda x: late(bowl(x)[1])
    elif where == "callback":
        given["callback"] = late
    elif where == "preconditioner":
        options["preconditioner"] = late
    elif where == "line_search":
        options["line_search"] = lambda along, start, first, **_: late(along(first))
    return fun, given


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize(
    "where", ["fun", "rule", "bounds", "differences", "jac", "callback", "preconditioner", "line_search"]
)
def test_the_error_of_a_user_comes_through_as_it_is(where: str, error: Exception) -> None:
    """The same object, also where nothing can be added to it; a callback alone may end a run by ``StopIteration``."""
    fun, given = raised_by(where, error)
    if where == "callback" and isinstance(error, StopIteration):
        assert xopt.minimize(fun, np.zeros(6), **given).status == 99
        return
    args = error.args
    caught = raised(lambda: xopt.minimize(fun, np.zeros(6), **given))
    assert caught is error
    assert error.args is args
    assert error.__cause__ is None
    if type(error) in (ValueError, OSError):
        assert error.intermediate_result.nit >= 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_the_error_comes_through_at_the_start_and_from_lbfgs(error: Exception) -> None:
    def fun(x: Any) -> Any:
        raise error

    assert raised(lambda: xopt.minimize(fun, np.zeros(3))) is error
    solver = xopt.LBFGS()
    solver.init(np.zeros(3))
    assert raised(lambda: solver.step(fun)) is error
    solver.step(bowl)
    assert raised(lambda: solver.step(fun)) is error


def test_the_error_comes_through_where_nothing_can_be_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is lost, or no memory, fails the next call too."""
    from xopt.solvers import _descent, _directions

    def broken(*args: Any, **more: Any) -> Any:
        raise MemoryError

    error = ValueError("the first")
    fun, given = raised_by("fun", error)
    monkeypatch.setattr(_descent.Descent, "settle", broken)
    monkeypatch.setattr(_directions.LimitedMemory, "clean", broken)
    with pytest.raises(ValueError, match="the first") as caught:
        xopt.minimize(fun, np.zeros(3), **given)
    assert caught.value is error


def test_scipy_raises_the_interrupt_that_was_raised() -> None:
    from scipy import optimize

    for error in (KeyboardInterrupt("of a handler"), Interrupt("which takes nothing")):
        fun, _ = raised_by("fun", error)
        with pytest.raises(KeyboardInterrupt) as caught:
            optimize.minimize(fun, np.zeros(3), jac=True, method=xopt.scipy_method())
        assert caught.value is error
        if type(error) is KeyboardInterrupt:
            assert error.intermediate_result.nfev == 4  # type: ignore[attr-defined]


def test_what_does_not_fit() -> None:
    x0 = np.zeros(3)
    run = lambda fun=bowl, x=x0, **more: xopt.minimize(fun, x, **more)
    for error, match, call in [
        (TypeError, r"x0: dtype bool", lambda: run(x=np.zeros(3, bool))),
        (TypeError, r"x0\[0\]: True, a Python bool", lambda: run(x=[True, 1.0])),
        (ValueError, r"x0: a list whose parts have different lengths", lambda: run(x=[[1, 2], [3]])),
        (TypeError, r"x0: dtype float16, but a solver needs", lambda: run(x=np.zeros(3, "float16"))),
        (TypeError, r"x0\[1\]: 3, a Python int", lambda: run(x=[x0, 3])),
        (ValueError, r"x0: no arrays", lambda: run(x={})),
        (ValueError, r"x0: no elements", lambda: run(x=np.zeros(0))),
        (ValueError, r"maxfun: 0, but it must be ≥ 1", lambda: run(options={"maxfun": 0})),
        (ValueError, r"x0: the value there is nan", lambda: run(lambda x: (np.nan, x))),
        (ValueError, r"x0: .* largest slope nan", lambda: run(lambda x: (1.0, x * np.nan))),
        (ValueError, r"grads: shape \(2,\), but the parameter has \(3,\)", lambda: run(lambda x: (1.0, x[:2]))),
        (TypeError, r"grads: dtype float32, but", lambda: run(lambda x: (1.0, x.astype("f4")))),
        (ValueError, r"grads\[1\]: None", lambda: run(lambda x: (1.0, [x[0], None]), [x0, x0])),
        (ValueError, r"value: shape \(3,\)", lambda: run(lambda x: (x, x))),
        (TypeError, r"value: .* complex", lambda: run(lambda x: (1j, x))),
        (TypeError, r"value: None", lambda: run(lambda x: (None, x))),
        (TypeError, r"fun: returned a ndarray, but with jac=True", lambda: run(lambda x: x)),
        (TypeError, r"fun: 3, but it must be a function", lambda: run(3)),
        (TypeError, r"jac: False, but numpy does not differentiate", lambda: run(jac=False)),
        (TypeError, r"jac: 'cs', but it must be", lambda: run(jac="cs")),
        (TypeError, r"method: 'cg', but a rule is given too", lambda: run(rule=xopt.Adam(), method="cg")),
        (TypeError, r"options: hist, but for lbfgs there are", lambda: run(options={"hist": 3})),
        (
            ValueError,
            r"method: 'nelder-mead', but it must be one of 'lbfgs', 'lbfgs-b', 'cg', 'gd'",
            lambda: run(method="nelder-mead"),
        ),
        (TypeError, r"preconditioner: 3, but it must be a function", lambda: run(options={"preconditioner": 3})),
        (TypeError, r"options: history, but for cg there are", lambda: run(method="cg", options={"history": 3})),
        (ValueError, r"line_search: 'wolfe'", lambda: run(options={"line_search": "wolfe"})),
        (ValueError, r"gtol: -1", lambda: run(options={"gtol": -1})),
        (TypeError, r"gtol: 'x'", lambda: run(options={"gtol": "x"})),
        (ValueError, r"history: 0, but it must be ≥ 1", lambda: run(options={"history": 0})),
        (TypeError, r"maxiter: 1.5", lambda: run(maxiter=1.5)),
        (
            TypeError,
            r"Sophia asks for estimates of the curvature, and minimize gives none",
            lambda: run(rule=xopt.Sophia()),
        ),
    ]:
        with pytest.raises(error, match=match):
            call()
    assert x0.tolist() == [0, 0, 0]
