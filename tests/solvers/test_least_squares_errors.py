"""least_squares: what does not fit is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xopt

X0 = np.ones(2)
MANY = np.ones((3, 2))


def fun(x: Any) -> Any:
    return np.append(x - 2, 0.1 * x[0])


def run(f: Any = fun, x: Any = X0, **options: Any) -> Any:
    return xopt.least_squares(f, x, **options)


def many(f: Any = lambda x: x - 2, x: Any = MANY, **options: Any) -> Any:
    return xopt.least_squares(f, x, batched=True, **options)


def changing(*sizes: int) -> Any:
    """Return a function whose residuals have another size at each call."""
    left = list(sizes)
    return lambda x: np.ones(left.pop(0) if len(left) > 1 else left[0]) * x[0]


CASES: dict[str, list[tuple[type[Exception], str, dict[str, Any]]]] = {
    "names": [
        (ValueError, r"method: 'trf', but there are 'lm', 'dogleg'", {"method": "trf"}),
        (ValueError, r"method: None", {"method": None}),
        (ValueError, r"loss: 'l1', but there are 'linear', 'soft_l1', 'huber', 'cauchy', 'arctan'", {"loss": "l1"}),
    ],
    "numbers": [
        (ValueError, r"f_scale: 0, but it must be > 0 and finite", {"f_scale": 0}),
        (ValueError, r"f_scale: -1, but it must be", {"f_scale": -1}),
        (ValueError, r"f_scale: inf, but it must be > 0 and finite", {"f_scale": np.inf}),
        (TypeError, r"f_scale: nan, but it must be a number", {"f_scale": np.nan}),
        (TypeError, r"f_scale: 'a', but it must be a number", {"f_scale": "a"}),
        (TypeError, r"f_scale: True, but it must be a number", {"f_scale": True}),
        (TypeError, r"f_scale: array", {"f_scale": np.ones(3)}),
        *(
            case
            for name in ("ftol", "xtol", "gtol")
            for case in [
                (ValueError, rf"{name}: -1e-08, but it must be ≥ 0", {name: -1e-8}),
                (TypeError, rf"{name}: nan, but it must be a number", {name: np.nan}),
                (TypeError, rf"{name}: 'x', but it must be a number", {name: "x"}),
                (TypeError, rf"{name}: None, but it must be a number", {name: None}),
            ]
        ),
        (ValueError, r"max_nfev: 0, but it must be ≥ 1", {"max_nfev": 0}),
        (TypeError, r"max_nfev: 1.5, but it must be a whole number", {"max_nfev": 1.5}),
        (TypeError, r"max_nfev: 'a'", {"max_nfev": "a"}),
        (TypeError, r"max_nfev: True", {"max_nfev": True}),
        (ValueError, r"diff_step: 0, but it must be > 0 and finite", {"diff_step": 0}),
        (ValueError, r"diff_step: -1, but it must be", {"diff_step": -1}),
        (TypeError, r"diff_step: nan, but it must be a number", {"diff_step": np.nan}),
        (TypeError, r"diff_step: 'a', but it must be a number", {"diff_step": "a"}),
        (TypeError, r"diff_step: 0.1, but .* no differences", {"diff_step": 0.1, "jac": lambda x: np.eye(3, 2)}),
    ],
    "switches": [
        (TypeError, r"geodesic: 1, but it must be True or False", {"geodesic": 1}),
        (TypeError, r"batched: 1, but it must be True or False", {"batched": 1}),
        (ValueError, r"geodesic: .* without bounds", {"geodesic": True, "bounds": (0, 9)}),
        (ValueError, r'geodesic: .* loss="linear"', {"geodesic": True, "loss": "huber"}),
        (ValueError, r'geodesic: goes with method="lm"', {"geodesic": True, "method": "dogleg"}),
        (TypeError, r"callback: 3, but it must be a function", {"callback": 3}),
    ],
    "x_scale": [
        (ValueError, r"x_scale: it must be \"jac\", a number, or like one fit of x0", {"x_scale": [1, 2, 3]}),
        (ValueError, r"x_scale: it must be \"jac\"", {"x_scale": "Jac"}),
        (TypeError, r"x_scale: it must be \"jac\"", {"x_scale": {"a": 1}}),
        (ValueError, r"x_scale: \[1.0, 0.0\], but all must be > 0 and finite", {"x_scale": [1, 0]}),
        (ValueError, r"x_scale: \[-1.0, -1.0\], but", {"x_scale": -1}),
        (ValueError, r"x_scale: \[1.0, nan\], but", {"x_scale": [1, np.nan]}),
        (ValueError, r"x_scale: \[inf, inf\], but", {"x_scale": np.inf}),
    ],
    "bounds": [
        (TypeError, r"bounds: 1, but it must be \(lower, upper\)", {"bounds": 1}),
        (TypeError, r"bounds: 'ab', but", {"bounds": "ab"}),
        (TypeError, r"bounds: lower: a str, but", {"bounds": ("a", "b")}),
        (TypeError, r"bounds: upper: 'a', but each must be None or a number", {"bounds": (0, [1, "a"])}),
        (TypeError, r"bounds: lower: a complex, but", {"bounds": (1j, 2)}),
        (TypeError, r"bounds: lower: a bool, but", {"bounds": (True, 2)}),
        (ValueError, r"bounds: lower: shape \(3,\), but the parameter has \(2,\)", {"bounds": ([1, 2, 3], 3)}),
        (ValueError, r"bounds: upper: shape \(3,\), but", {"bounds": (None, np.ones(3))}),
        (ValueError, r"bounds: lower: shape \(2, 1\), but", {"bounds": (np.ones((2, 1)), 3)}),
        (ValueError, r"bounds: the lower one is 2.0, but the upper one 1.0", {"bounds": (2, 1)}),
        (ValueError, r"bounds: the lower one is 3.0, but the upper one 2.0", {"bounds": ([0, 3], [1, 2])}),
        (ValueError, r"bounds: a list of length 1, but there must be a pair", {"bounds": [(0, 1)]}),
        (ValueError, r"bounds: a tuple of length 3", {"bounds": (1, 2, 3)}),
        (ValueError, r"bounds: the lower one is 2.0, but the upper one 1.0", {"bounds": [(0, 1), (2, 1)]}),
        (TypeError, r"bounds: \{'a': 1\}, but", {"bounds": {"a": 1}}),
    ],
    "jac": [
        (TypeError, r"jac: 'cs', but it must be a function, None, '2-point' or '3-point'", {"jac": "cs"}),
        (TypeError, r"jac: True, but it must be", {"jac": True}),
        (TypeError, r"jac: False, but it must be", {"jac": False}),
        (TypeError, r"jac: \[\], but it must be", {"jac": []}),
        (ValueError, r"jac: shape \(3, 3\), but it must be \(3, 2\)", {"jac": lambda x: np.eye(3)}),
        (ValueError, r"jac: shape \(2,\), but it must be \(3, 2\)", {"jac": lambda x: np.ones(2)}),
        (TypeError, r"jac: returned a NoneType", {"jac": lambda x: None}),
        (TypeError, r"jac: ", {"jac": lambda x: {"a": np.ones((3, 2))}}),
    ],
    "x0": [
        (TypeError, r"x0: dtype float16, but it must be float32, float64 or complex", {"x": X0.astype("f2")}),
        (TypeError, r"x0: dtype bool", {"x": X0 > 0}),
        (TypeError, r"x0: dtype object", {"x": np.asarray([None, 1])}),
        (TypeError, r"x0: a str", {"x": "abc"}),
        (ValueError, r"x0: an array without elements", {"x": np.ones(0)}),
        (ValueError, r"x0: an array without elements", {"x": {"a": X0, "b": np.ones((2, 0))}}),
        (ValueError, r"x0: no arrays", {"x": {}}),
        (ValueError, r"x0: no arrays", {"x": []}),
        (ValueError, r"x0: no arrays", {"x": None}),
        (ValueError, r"infinite or NaN at x0", {"x": [np.nan, 1]}),
    ],
    "fun": [
        (TypeError, r"fun: 3, but it must be a function", {"f": 3}),
        (TypeError, r"fun: None, but it must be a function", {"f": None}),
        (TypeError, r"fun: returned a .* that is no array of numbers", {"f": lambda x: None}),
        (TypeError, r"fun: returned a .* that is no array of numbers", {"f": lambda x: "a"}),
        (ValueError, r"fun: returned no residuals", {"f": lambda x: np.ones((3, 0))}),
        (ValueError, r"fun: returned 2 residuals, but 3 before", {"f": changing(3, 2)}),
        (ValueError, r"fun: returned 4 residuals, but 3 before", {"f": changing(3, 3, 4), "jac": "3-point"}),
    ],
    "unknown": [(TypeError, r"unexpected keyword argument 'tol'", {"tol": 1})],
}


@pytest.mark.parametrize("kind", CASES)
def test_one_fit(kind: str) -> None:
    for error, match, options in CASES[kind]:
        with pytest.raises(error, match=match):
            run(**options)
    assert X0.tolist() == [1, 1]


def test_many_fits() -> None:
    for error, match, call in [
        (ValueError, r"x0: shape \(\), but with batched=True the first axis numbers the fits", lambda: many(x=1.0)),
        (ValueError, r'x0\["b"\]: shape \(\), but with batched=True', lambda: many(x={"a": MANY, "b": np.ones(())})),
        (ValueError, r'x0\["b"\]: shape \(2,\), but .* 3 of them as in x0\["a"\]',
         lambda: many(x={"a": MANY, "b": np.ones(2)})),
        (ValueError, r"x0: an array without elements", lambda: many(x=np.ones((0, 2)))),
        (ValueError, r"fun: returned shape \(5,\), but .* first axis must be 3", lambda: many(lambda x: np.ones(5))),
        (ValueError, r"fun: returned shape \(2, 3\), but", lambda: many(lambda x: x.T)),
        (ValueError, r"fun: returned shape \(\), but", lambda: many(lambda x: 1.0)),
        (ValueError, r"jac: shape \(2, 2\), but it must be \(3, 2, 2\)", lambda: many(jac=lambda x: np.eye(2))),
        (ValueError, r"jac: shape \(2, 3, 2\), but it must be \(3, 2, 2\)",
         lambda: many(jac=lambda x: np.ones((2, 3, 2)))),
        (ValueError, r"bounds: lower: shape \(2, 2\), but", lambda: many(bounds=(np.ones((2, 2)), 3))),
        (ValueError, r"bounds: the lower one is 3.0, but the upper one 2.0", lambda: many(bounds=(3, [4, 2]))),
        (ValueError, r"bounds: the lower one is 1.0, but the upper one 0.0",
         lambda: many(bounds=(MANY, np.asarray([[1, 1], [1, 0], [1, 1]])))),
        (TypeError, r"bounds: lower: 'a', but each must be None or a number", lambda: many(bounds=([0, "a"], None))),
        (ValueError, r"x_scale: .* like one fit of x0", lambda: many(x_scale=MANY)),
        (ValueError, r"geodesic: ", lambda: many(geodesic=True, bounds=(0, 1))),
    ]:  # fmt: skip
        with pytest.raises(error, match=match):
            call()
    assert (MANY == 1).all()


@pytest.mark.needs("torch")
def test_two_libraries() -> None:
    torch = pytest.importorskip("torch")
    x = torch.ones(2, dtype=torch.float64)
    for error, match, call in [
        (
            TypeError,
            r"fun: returned an array of numpy, but x0 has arrays of torch",
            lambda: run(lambda x: np.ones(3), x),
        ),
        (TypeError, r"fun: returned an array of torch, but x0 has arrays of numpy", lambda: run(lambda _: x)),
        (TypeError, r"fun: returned a float, but x0 has arrays of torch", lambda: run(lambda x: 3.0, x)),
        (TypeError, r"jac: an array of numpy, but x0", lambda: run(lambda x: x - 2, x, jac=lambda x: np.eye(2))),
        (TypeError, r"jac: an array of torch, but x0", lambda: run(jac=lambda _: torch.ones(3, 2))),
        (TypeError, r'x0\["b"\]: an array of numpy, but x0\["a"\] is one of torch', lambda: run(x={"a": x, "b": X0})),
        (TypeError, r"bounds: upper: a Tensor, but", lambda: run(bounds=(None, x))),
        (TypeError, r"diff_step: 0.1, but .* no differences", lambda: run(lambda x: x - 2, x, diff_step=0.1)),
    ]:
        with pytest.raises(error, match=match):
            call()
