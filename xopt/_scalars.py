"""Scalars of one step: Python floats where the host knows them, 0-d arrays where only the device does.

The formulas of schedules and of ``host`` hooks are written once, against a namespace ``xp`` of scalar functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xopt import _arrays

STEP_LIMIT = 2**63 - 1
_NAMES = "sqrt exp expm1 log log1p sin cos tanh abs floor ceil maximum minimum where sign isfinite isnan"
_FUNCTIONS = frozenset(_NAMES.split())


def _function(xp: Any, name: str) -> Any:
    if name not in _FUNCTIONS:
        raise AttributeError(f"xp.{name} is not a scalar function; there are {', '.join(sorted(_FUNCTIONS))}")
    return getattr(xp, name)


class _Floats:
    """Scalar functions of Python floats, with IEEE results (``sqrt(-1)`` is NaN) instead of exceptions."""

    lift = staticmethod(float)

    def __getattr__(self, name: str) -> Any:
        function = _function(np, name)

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
        return x.value if isinstance(x, Step) else x

    def __getattr__(self, name: str) -> Any:
        function = _function(self._xp, name)

        def scalar(*args: Any) -> Any:
            if name == "where":
                condition, a, b = args[0], self.lift(args[1]), self.lift(args[2])
                if isinstance(condition, bool):  # the host knows: torch takes no bool here
                    return a if condition else b
                return function(condition, a, b)
            return function(*map(self.lift, args))

        return scalar


def space(*values: Any) -> Any:
    """Return the scalar functions that fit these values."""
    for x in values:
        if isinstance(x, Step):
            return Zeros(x.value)
        if not isinstance(x, bool | int | float):
            return Zeros(x)
    return floats


class Step:
    """A step counter that is a 0-d array (under ``jax.jit``). It exists for ``1 - b**t``.

    In float32 that difference is wrong by 1e-5 at b = 0.999; as ``-expm1(t log b)`` it is right to the last bits.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def cast(self, function: Any) -> Step:
        """Return this step in another dtype."""
        return Step(function(self.value))

    def __rpow__(self, base: Any) -> _Power:
        xp = Zeros(self.value)
        log = xp.log(base) if not isinstance(base, int | float) else floats.log(float(base))
        return _Power(self.value * log)  # t ≥ 1, so that 0**t is exp(-inf) = 0


def _forward(method: str) -> Any:
    return lambda self, *args: getattr(self.value, method)(*(a.value if isinstance(a, Step) else a for a in args))


_OPERATORS = "add radd sub rsub mul rmul truediv rtruediv floordiv mod pow neg lt le gt ge eq ne"
for _name in _OPERATORS.split():
    setattr(Step, f"__{_name}__", _forward(f"__{_name}__"))


class _Power(Step):
    """``b**t``, kept as t log b until it is known whether it is subtracted from one."""

    __slots__ = ("exponent",)

    def __init__(self, exponent: Any) -> None:
        self.exponent = exponent
        super().__init__(_arrays.namespace(exponent).exp(exponent))

    def __rsub__(self, other: Any) -> Any:
        if isinstance(other, int | float) and other == 1:
            return -_arrays.namespace(self.exponent).expm1(self.exponent)
        return other - self.value


def taken(name: str, x: Any, library: str, host: bool) -> Any:
    """Return a number that is given with a step: a Python float, or a 0-d array that nobody may read."""
    if isinstance(x, bool | np.bool_ | str) or not (hasattr(x, "dtype") or isinstance(x, int | float)):
        raise TypeError(f"{name}: {x!r} is a {type(x).__name__}, but it must be a number")
    if hasattr(x, "shape") and tuple(x.shape) != ():
        raise ValueError(f"{name}: shape {tuple(x.shape)}, but it must be one number")
    if isinstance(x, int | float | np.generic | np.ndarray) or host:
        return float(_arrays.detached("torch" if hasattr(x, "detach") else "", x))
    found = _arrays.library(x)
    if found != library:
        raise TypeError(f"{name}: an array of {found}, but the parameters are arrays of {library}")
    return _arrays.detached(library, x)


class Unwrapped:
    """A namespace whose functions take a :class:`Step` for the array that it is."""

    def __init__(self, xp: Any) -> None:
        self._xp = xp

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._xp, name)
        if not callable(function) or isinstance(function, type):
            return function
        return lambda *args, **kwargs: function(*(x.value if isinstance(x, Step) else x for x in args), **kwargs)


def after(step: Any) -> Any:
    """Return the step after this one. The counter stops at its limit instead of wrapping."""
    if isinstance(step, int):
        return min(step + 1, STEP_LIMIT)
    xp = _arrays.namespace(step)
    return step + xp.astype(step < xp.iinfo(step.dtype).max, step.dtype)
