"""Functions of scalars that schedules and ``host`` are written with: of Python floats, and of arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from xopt import _arrays
from xopt._arrays import Library

STEP_LIMIT = 2**63 - 1
_NAMES = "sqrt exp expm1 log log1p sin cos tanh abs floor ceil maximum minimum hypot where sign isfinite isnan"
FUNCTIONS = frozenset(_NAMES.split())
"""Every function of scalars that a ``host`` or a schedule may call."""


def function_of(xp: Any, name: str) -> Any:
    """Return a function of scalars, or say what there is."""
    if name not in FUNCTIONS:
        raise AttributeError(f"xp.{name} is not a scalar function; there are {', '.join(sorted(FUNCTIONS))}")
    return getattr(xp, name)


class _Floats:
    """Scalar functions of Python numbers, with IEEE results (``sqrt(-1)`` is NaN) instead of exceptions.

    Those that are exact are Python's, which take a tenth of the time of NumPy's and give the same numbers.
    """

    lift = staticmethod(float)
    abs = staticmethod(abs)

    @staticmethod
    def where(condition: Any, a: Any, b: Any) -> Any:
        chosen = a if condition else b
        return float(chosen) if isinstance(a, float) or isinstance(b, float) else chosen

    @staticmethod
    def maximum(a: Any, b: Any) -> Any:
        chosen = a if a >= b or a != a else b
        return float(chosen) if isinstance(a, float) or isinstance(b, float) else chosen

    @staticmethod
    def minimum(a: Any, b: Any) -> Any:
        chosen = a if a <= b or a != a else b
        return float(chosen) if isinstance(a, float) or isinstance(b, float) else chosen

    @staticmethod
    def sqrt(x: Any) -> float:
        return math.sqrt(x) if x >= 0 else math.nan

    @staticmethod
    def isfinite(x: Any) -> bool:
        return math.isfinite(x)

    def __getattr__(self, name: str) -> Any:
        function = function_of(np, name)

        def scalar(*args: Any) -> Any:
            with np.errstate(all="ignore"):
                return function(*args).item()

        setattr(self, name, scalar)
        return scalar


floats = _Floats()


class Zeros:
    """The same functions on 0-d arrays; Python numbers are lifted to the dtype and device of ``like``."""

    def __init__(self, like: Any) -> None:
        self._like, self._xp = like, _arrays.namespace(like)

    def lift(self, x: Any) -> Any:
        """Return a number as an array."""
        if isinstance(x, bool | int | float):
            return self._xp.full_like(self._like, x)
        return x

    def __getattr__(self, name: str) -> Any:
        function = function_of(self._xp, name)

        def scalar(*args: Any) -> Any:
            if name == "where":
                condition, a, b = args[0], self.lift(args[1]), self.lift(args[2])
                if isinstance(condition, bool):  # the host knows: torch takes no bool here
                    return a if condition else b
                return function(condition, a, b)
            with np.errstate(all="ignore"):  # as of numbers: log 0 is -inf
                return function(*map(self.lift, args))

        return scalar


def space(*values: Any) -> Any:
    """Return the scalar functions that fit these values."""
    for x in values:
        if not isinstance(x, bool | int | float):
            return Zeros(x)
    return floats


def as_real(x: Any) -> Any:
    """Return whole numbers in an array as real ones, in the widest dtype that their device has; all else as it is."""
    if isinstance(x, int | float) or "int" not in str(x.dtype):
        return x
    xp = _arrays.namespace(x)
    return xp.astype(x, getattr(xp, _arrays.widest_real(xp, _arrays.device(x), "float32")))


def value_at(schedule: Callable[[Any], Any], t: Any) -> Any:
    """Return the value of a schedule, or of another function of the step, at a step.

    A whole number in an array stays one for those that say so (``counts``): float32 counts to 2^24. Functions of the
    caller's are given real numbers, which are theirs to divide by.
    """
    return schedule(t if getattr(schedule, "counts", False) else as_real(t))


def is_number(x: Any) -> bool:
    """Whether something is a real number of Python or of NumPy."""
    return isinstance(x, int | float | np.integer | np.floating) and not isinstance(x, bool)


def taken(name: str, x: Any, library: Library, host: bool) -> Any:
    """Return a number that is given with a step: a Python float, or a 0-d array that nobody may read."""
    if isinstance(x, bool | np.bool_ | str) or not (hasattr(x, "dtype") or isinstance(x, int | float)):
        raise TypeError(f"{name}: {x!r} is a {type(x).__name__}, but it must be a number")
    if hasattr(x, "shape") and tuple(x.shape) != ():
        raise ValueError(f"{name}: shape {tuple(x.shape)}, but it must be one number")
    if isinstance(x, int | float | np.generic | np.ndarray) or host:
        return float(_arrays.detached(x))
    found = _arrays.library(x)
    if found != library:
        raise TypeError(f"{name}: an array of {found}, but the parameters are arrays of {library}")
    return _arrays.detached(x)


def after(step: Any) -> Any:
    """Return the step after this one. The counter stops at its limit instead of wrapping."""
    if isinstance(step, int):
        return min(step + 1, STEP_LIMIT)
    xp = _arrays.namespace(step)
    return step + xp.astype(step < xp.iinfo(step.dtype).max, step.dtype)
