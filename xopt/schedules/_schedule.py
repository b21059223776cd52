"""The schedule as an object: called, combined by arithmetic, shown, compared, pickled, drawn."""

from __future__ import annotations

import functools
import inspect
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeAlias, get_args

import numpy as np

from xopt._arrays import scalars as _scalars
from xopt._public import public
from xopt.schedules._maths import Number

P = ParamSpec("P")
Follows: TypeAlias = Callable[[Any], Any]

_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "**": operator.pow}
_RANK = {"+": 1, "-": 1, "*": 2, "/": 2, "neg": 3, "**": 4}
_POINTS = 2000  # of a plot, more than it has pixels
_made: dict[str, Callable[..., Any]] = {}


@public
class Schedule:
    """A schedule made by one of the functions of this module: callable, comparable, and shown as it was written.

    ``+ - * / **`` combine it with numbers, other schedules and functions of the step.

    Examples
    --------
    >>> import xopt
    >>> lr = xopt.schedules.cosine(0.1, steps=10)
    >>> lr
    cosine(0.1, steps=10)
    >>> lr(1), round(lr(6), 4), lr(11)
    (0.1, 0.05, 0.0)
    >>> lower = 0.5 * lr + 0.01
    >>> lower
    0.5 * cosine(0.1, steps=10) + 0.01
    >>> lower(11)
    0.01
    """

    __slots__ = ("__weakref__", "args", "function", "kwargs", "name")  # jax.jit takes weak references
    __array_ufunc__ = None  # a NumPy number times a schedule is a schedule
    counts = True
    """It takes an array of a whole number as that."""

    def __init__(
        self, name: str, function: Callable[..., Number], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.name, self.function, self.args, self.kwargs = name, function, args, kwargs

    def __call__(self, t: Number) -> Number:
        """Return the value at step ``t`` ≥ 1: a Python float, or a 0-d array when ``t`` is one."""
        done = t - 1
        done = done.item() if isinstance(done, np.generic) else done
        xp = _scalars.space(_scalars.as_real(done))
        if xp is _scalars.floats:
            return xp.lift(self.function(done, xp, *self.args, **self.kwargs))
        given = {n: _as_float(x) for n, x in self.kwargs.items()}
        return xp.lift(self.function(done, xp, *map(_as_float, self.args), **given))

    def plot(self, steps: int, ax: Any = None, **style: Any) -> Any:
        """Draw the values of the first ``steps`` steps with matplotlib.

        Parameters
        ----------
        steps
            Number of steps; of more than 2000, as many are drawn.
        ax
            Axes to draw into; None makes a figure. No window is opened.
        **style
            Passed to ``ax.plot``: ``label`` is the schedule as it was written, unless you say otherwise.

        Returns
        -------
        matplotlib.axes.Axes
            The axes.

        Raises
        ------
        ImportError
            When matplotlib is not installed.
        """
        check("Schedule.plot: steps", "steps", steps)
        ax = axes(ax, "Schedule.plot")
        ts = [int(t) for t in np.unique(np.linspace(1, steps, min(int(steps), _POINTS)).round())]
        ax.plot(ts, [self(t) for t in ts], **{"label": repr(self), **style})
        ax.set(xlabel="step", ylabel="value")
        ax.legend()
        return ax

    def __add__(self, other: Any) -> Schedule:
        return combined("+", self, other)

    def __radd__(self, other: Any) -> Schedule:
        return combined("+", other, self)

    def __sub__(self, other: Any) -> Schedule:
        return combined("-", self, other)

    def __rsub__(self, other: Any) -> Schedule:
        return combined("-", other, self)

    def __mul__(self, other: Any) -> Schedule:
        return combined("*", self, other)

    def __rmul__(self, other: Any) -> Schedule:
        return combined("*", other, self)

    def __truediv__(self, other: Any) -> Schedule:
        return combined("/", self, other)

    def __rtruediv__(self, other: Any) -> Schedule:
        return combined("/", other, self)

    def __pow__(self, other: Any) -> Schedule:
        return combined("**", self, other)

    def __rpow__(self, other: Any) -> Schedule:
        return combined("**", other, self)

    def __neg__(self) -> Schedule:
        return combined("neg", self)

    def __repr__(self) -> str:
        if self.name == "neg":
            return f"-{_operand(self.args[0], 3)}"
        if self.name in _RANK:
            rank, (a, b) = _RANK[self.name], self.args
            right = self.name == "**"  # a ** b ** c is a ** (b ** c); all others group from the left
            return f"{_operand(a, rank + right)} {self.name} {_operand(b, rank + (not right))}"
        given = [*map(repr, self.args), *(f"{k}={v!r}" for k, v in self.kwargs.items())]
        return f"{self.name}({', '.join(given)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.name, self.args, self.kwargs)

    def _key(self) -> tuple[Any, ...]:
        return self.name, self.args, tuple(sorted(self.kwargs.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


def _as_float(x: Any) -> Any:
    """Return whole numbers as floats: an array of float32 meets none that an int32 cannot hold."""
    if isinstance(x, tuple):
        return tuple(map(_as_float, x))
    return float(x) if isinstance(x, int) and not isinstance(x, bool) else x


def _operand(x: Any, rank: int) -> str:
    text = repr(x)
    own = _RANK.get(x.name, 9) if isinstance(x, Schedule) else 3 if text.startswith("-") else 9
    return f"({text})" if own < rank else text


def combined(sign: str, *operands: Any) -> Schedule:
    """Return the schedule of schedules, functions of the step and numbers that an operator makes."""
    found = []
    for x in operands:
        if not callable(x) and not _scalars.is_number(x):
            return NotImplemented  # type: ignore[no-any-return]
        found.append(x if callable(x) else number(f"schedules: an operand of {sign}", x))
    return Schedule(sign, functools.partial(_arithmetic, sign), tuple(found), {})


def followed(schedule: Follows, done: Number) -> Number:
    """Return the value of a schedule, or of a function of the step, after so many updates."""
    return _scalars.value_at(schedule, done + 1)


def _arithmetic(sign: str, done: Number, xp: Any, *operands: Any) -> Number:
    values = [xp.lift(followed(x, done) if callable(x) else x) for x in operands]
    if sign == "neg":
        return -values[0]
    if xp is _scalars.floats:  # 1 / 0 is inf, as it is for arrays
        with np.errstate(all="ignore"):
            return _OPERATIONS[sign](*map(np.float64, values))
    return _OPERATIONS[sign](*values)


@public
def _rebuild(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return combined(name, *args) if name in _RANK else _made[name](*args, **kwargs)


def schedule(function: Callable[Concatenate[Number, Any, P], Number]) -> Callable[P, Schedule]:
    """Make a constructor of schedules from a formula of (updates made, scalar functions, parameters...).

    A formula raises where its parameters contradict each other: it is tried once when a schedule is made, with other
    functions in the place of schedules.
    """
    signature, name = inspect.signature(function), function.__name__
    own = signature.replace(parameters=list(signature.parameters.values())[2:], return_annotation="Schedule")

    @functools.wraps(function)
    def make(*args: P.args, **kwargs: P.kwargs) -> Schedule:
        bound = own.bind(*args, **kwargs)
        first = next(iter(own.parameters))
        for key, value in bound.arguments.items():
            if value is not None or own.parameters[key].default is not None:
                among = get_args(eval(own.parameters[key].annotation, function.__globals__)) if key == "shape" else ()
                bound.arguments[key] = check(f"schedules.{name}: {key}", key, value, among)
        many = bound.arguments[first]
        if isinstance(many, tuple) and len(many) - 1 != (n := len(bound.arguments["boundaries"])):
            raise ValueError(f"schedules.{name}: {len(many)} {first} need {len(many) - 1} boundaries, got {n}")
        stand_in = {"schedule": float, "schedules": (float,) * len(bound.arguments.get("schedules", ()))}
        tried: Any = function
        tried(0, _scalars.floats, stand_in.get(first, many), *bound.args[1:], **bound.kwargs)
        return Schedule(name, function, bound.args, bound.kwargs)

    make.__signature__ = own  # type: ignore[attr-defined]
    make.__annotations__ = {}
    _made[name] = public(make)
    return make


_POSITIVE = dict.fromkeys(("steps", "every", "up", "down", "cooldown", "timescale"), "a positive number of steps")
_POSITIVE |= {"power": "positive", "d_model": "positive"}


def check(where: str, name: str, value: Any, among: tuple[Any, ...] = ()) -> Any:
    """Return a parameter as it is kept, or say what is wrong with it; its name tells what it may be."""
    if name in ("schedules", "boundaries", "values") and not isinstance(value, Sequence | np.ndarray):
        raise TypeError(f"{where} is {value!r}, but it must be a list of {'numbers' if name != 'schedules' else name}")
    if name in ("schedule", "schedules"):
        for x in (many := tuple(value) if name == "schedules" else (value,)):
            if not callable(x):
                raise TypeError(
                    f"{where.rpartition(':')[0]}: {x!r} is not a schedule; for a number use constant({x!r})"
                )
        return many if name == "schedules" else value
    if name in ("boundaries", "values"):
        found = tuple(number(where, x) for x in value)
        if name == "boundaries" and any(b <= a for a, b in zip((0, *found), found, strict=False)):
            raise ValueError(f"{where} {found} must be positive and rise")
        return found
    if name in ("shape", "cycle"):
        among = among or (True, False)
        if not any(type(value) is type(x) and value == x for x in among):
            raise ValueError(f"{where} is {value!r}, but it must be one of {', '.join(map(repr, among))}")
        return value
    found = number(where, value)
    if name in _POSITIVE and found <= 0:
        raise ValueError(f"{where} is {value!r}, but it must be {_POSITIVE[name]}")
    if name in ("warmup", "factor", "rate") and found < 0:
        raise ValueError(f"{where} is {value!r}, but it must not be negative")
    if name == "growth" and found < 1:
        raise ValueError(f"{where} is {value!r}, but it must be at least 1")
    return found


def number(where: str, value: Any) -> Any:
    """Return a finite Python number, or refuse what is none."""
    if not _scalars.is_number(value) or not math.isfinite(value):
        raise TypeError(f"{where} is {value!r}, but it must be a finite number")
    return value.item() if isinstance(value, np.generic) else value


def axes(ax: Any, name: str) -> Any:
    """Return axes of matplotlib to draw into, of a new figure if there are none."""
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(f"{name} needs matplotlib: pip install 'xopt-array[plot]'") from error
    return pyplot.subplots(layout="constrained")[1]
