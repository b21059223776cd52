"""One algebra for the scalars of a step, whatever they are made of.

A scalar is a Python number where the host knows it, else a :class:`Value`: an array of no dimension, or of one, with an
element for each leaf. Both take the same operators and the same functions, so that ``host``, ``clock`` and the formulas
of a program are written once. None of them may look at a value; a :class:`Probe` is what tells who tries.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np

from xopt import _arrays
from xopt._arrays.scalars import FUNCTIONS, Zeros, floats, function_of

_ARITHMETIC = "add sub mul truediv floordiv mod"
_COMPARISONS = "lt le gt ge eq ne"
_NUMBERS = (bool, int, float)


def on_host(x: Any) -> bool:
    """Whether this is a vector of NumPy: numbers that the host knows, one per leaf, whatever the library."""
    return isinstance(x, np.ndarray) and x.ndim == 1


class Looked(TypeError):
    """Somebody wanted to know the value of a scalar."""


class Value:
    """A scalar that is an array, which nobody may read: 0-d, or a vector with an element for each leaf."""

    __slots__ = ("array",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, array: Any) -> None:
        self.array = array

    @property
    def like(self) -> Any:
        """An array of the dtype, library and device in which numbers meet this one."""
        return self.array

    @property
    def by_leaf(self) -> bool:
        """Whether each leaf has a value of its own."""
        return len(self.array.shape) == 1

    def at(self, k: int) -> Any:
        """Return the value of leaf ``k``: a Python float, or a 0-d array of another library than NumPy."""
        x = self.array[k] if self.by_leaf else self.array
        return x.item() if isinstance(x, np.generic) else x

    def of(self, leaves: list[int]) -> Value:
        """Return the same for some leaves, of what the host has one per leaf."""
        return Value(self.array[leaves])

    def _refuse(self, *_: Any) -> NoReturn:
        raise Looked("a scalar of a step may live on a device, and nobody may look at it: use xp.where, not if")

    __bool__ = __float__ = __int__ = __index__ = _refuse

    def _unary(self, function: Callable[..., Any]) -> Value:
        return Value(function(self.array))

    def _binary(self, function: Callable[..., Any], other: Any) -> Value:
        return Value(function(*_met(self.array, _raw(other))))

    def _reversed(self, function: Callable[..., Any], other: Any) -> Value:
        return Value(function(other, self.array))

    def _compare(self, function: Callable[..., Any], other: Any) -> Test:
        a, b = _met(self.array, _raw(other))
        return Test(function(a, b), a if not isinstance(b, type(a)) or len(a.shape) else b)

    def __neg__(self) -> Value:
        return self._unary(operator.neg)

    def __abs__(self) -> Value:
        return self._unary(abs)

    def __pow__(self, power: Any) -> Value:
        if isinstance(power, Count):
            return power.__rpow__(self)
        return self._binary(_power, power)

    def __rpow__(self, base: Any) -> Value:
        if base <= 0 or on_host(self.array):
            return Value(_power(base, self.array))
        return Power(self.array * floats.log(float(base)))


def _power(base: Any, exponent: Any) -> Any:
    """Return a power; of vectors of the host with those of Python, which NumPy's are not to the last bit."""
    if not on_host(base) and not on_host(exponent):
        return base**exponent
    pairs = zip(*(x.tolist() for x in np.broadcast_arrays(base, exponent)), strict=True)
    return np.asarray([x**y for x, y in pairs])


class Test:
    """Whether something holds, which nobody may look at either: the condition of ``xp.where``."""

    __slots__ = ("array", "like")
    __hash__ = None  # type: ignore[assignment]
    __bool__ = Value._refuse

    def __init__(self, array: Any, like: Any) -> None:
        self.array, self.like = array, like

    def __and__(self, other: Any) -> Test:
        return Test(operator.and_(*_met(self.array, _raw(other))), self.like)

    def __or__(self, other: Any) -> Test:
        return Test(operator.or_(*_met(self.array, _raw(other))), self.like)

    __rand__, __ror__ = __and__, __or__


class Power(Value):
    """``b**t``, kept as t·log b until it is known whether it is subtracted from one.

    In float32 that difference is wrong by 1e-5 at b = 0.999; as ``-expm1(t·log b)`` it is right to the last bits.
    """

    __slots__ = ("exponent",)

    def __init__(self, exponent: Any) -> None:
        self.exponent = exponent
        super().__init__(Zeros(exponent).exp(exponent))

    def __rsub__(self, other: Any) -> Value:
        if isinstance(other, int | float) and other == 1:
            return Value(-Zeros(self.exponent).expm1(self.exponent))
        return self._reversed(operator.sub, other)


class Square(Value):
    """A sum of squares of which the root is at hand: that may be in range where the square is not."""

    __slots__ = ("root",)

    def __init__(self, root: Any) -> None:
        self.root = root
        super().__init__(root * root)


class Count(Value):
    """A number of steps: what is whole about it is computed in integers, which float32 has only up to 2²⁴."""

    __slots__ = ("exact",)

    def __init__(self, exact: Any, dtype: Any) -> None:
        """Take a count in integers, and the real dtype that it has where it meets other scalars."""
        self.exact = exact
        super().__init__(_arrays.cast(_arrays.namespace(exact), exact, dtype))

    def _binary(self, function: Callable[..., Any], other: Any) -> Value:
        whole = other.exact if isinstance(other, Count) else other if type(other) is int else None
        if whole is None or function not in _WHOLE:
            return super()._binary(function, other)
        exact = self.exact
        if function is operator.add and type(whole) is int and whole > 0:  # the counter stops at its limit
            most = Zeros(exact).lift(_arrays.namespace(exact).iinfo(exact.dtype).max - whole)
            exact = Zeros(exact).minimum(exact, most)
        return Count(function(exact, whole), self.array.dtype)

    def _reversed(self, function: Callable[..., Any], other: Any) -> Value:
        if type(other) is not int or function not in (operator.add, operator.sub):
            return super()._reversed(function, other)
        return (
            self._binary(function, other) if function is operator.add else Count(other - self.exact, self.array.dtype)
        )

    def _compare(self, function: Callable[..., Any], other: Any) -> Test:
        if type(other) is int:
            return Test(function(self.exact, other), self.array)
        return super()._compare(function, other)

    def __rpow__(self, base: Any) -> Value:
        if isinstance(base, int | float) and base <= 0:
            return super().__rpow__(base)
        log = functions.log(base)
        array, log = _met(self.array, _raw(log))
        return Power(Zeros(array).where(array == 0, 0.0, array * log))  # log 0 is -inf, and 0⁰ is 1


_WHOLE = (operator.add, operator.sub, operator.floordiv, operator.mod)


def _raw(x: Any) -> Any:
    return x.array if isinstance(x, Value | Test) else x


def _met(*given: Any) -> list[Any]:
    """Return arrays of one library: what the host has one per leaf goes to where the others are."""
    there = [x for x in given if hasattr(x, "dtype") and not isinstance(x, np.ndarray | np.generic)]
    if not there or not any(map(on_host, given)):
        return [*given]
    xp, like = _arrays.namespace(there[0]), next((x for x in there if "bool" not in str(x.dtype)), there[0])
    where = _arrays.beside(like)
    return [
        xp.asarray(x, dtype=xp.bool if x.dtype == bool else like.dtype, **where) if on_host(x) else x for x in given
    ]


def _forward(name: str, method: str) -> Any:
    function = getattr(operator, name)

    def operate(self: Value, other: Any) -> Any:
        return getattr(self, method)(function, other) if isinstance(other, (Value, *_NUMBERS)) else NotImplemented

    return operate


def _backward(name: str) -> Any:
    function = getattr(operator, name)

    def operate(self: Value, other: Any) -> Any:
        return self._reversed(function, other) if isinstance(other, _NUMBERS) else NotImplemented

    return operate


for _name in _ARITHMETIC.split():
    setattr(Value, f"__{_name}__", _forward(_name, "_binary"))
    if not hasattr(Value, f"__r{_name}__"):
        setattr(Value, f"__r{_name}__", _backward(_name))
for _name in _COMPARISONS.split():
    setattr(Value, f"__{_name}__", _forward(_name, "_compare"))


class Probe(Value):
    """What stands for a scalar when a hook is tried: it has no value, and remembers whom it depends on."""

    __slots__ = ("names",)

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = frozenset(names)

    def _with(self, *others: Any) -> Probe:
        return Probe(self.names.union(*(x.names for x in others if isinstance(x, Probe | _ProbedTest))))

    def _unary(self, function: Callable[..., Any]) -> Value:
        return self

    def _binary(self, function: Callable[..., Any], other: Any) -> Value:
        return self._with(other)

    def _reversed(self, function: Callable[..., Any], other: Any) -> Value:
        return self

    def _compare(self, function: Callable[..., Any], other: Any) -> Test:
        return _ProbedTest(self._with(other).names)

    def __pow__(self, power: Any) -> Value:
        return self._with(power)

    def __rpow__(self, base: Any) -> Value:
        return self


class _ProbedTest(Test):
    __slots__ = ("names",)

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names

    def __and__(self, other: Any) -> Test:
        return _ProbedTest(self.names | getattr(other, "names", frozenset()))

    __or__ = __rand__ = __ror__ = __and__


class _Functions:
    """The functions of scalars that ``host`` is given as ``xp``, for numbers and for values alike."""

    def __getattr__(self, name: str) -> Any:
        if name not in FUNCTIONS:
            return function_of(np, name)  # which says what there is

        def scalar(*args: Any) -> Any:
            likes = [x for x in args if isinstance(x, Value | Test)]
            if not likes:
                return getattr(floats, name)(*args)
            probes = [x for x in likes if isinstance(x, Probe | _ProbedTest)]
            if probes:
                names = frozenset[str]().union(*(x.names for x in probes))
                return _ProbedTest(names) if name in ("isfinite", "isnan") else Probe(names)
            if name == "sqrt" and isinstance(args[0], Square):
                return Value(args[0].root)
            if name == "where" and isinstance(args[0], bool):
                return args[1] if args[0] else args[2]
            like, *met = _met(max((x.like for x in likes), key=lambda x: len(x.shape)), *map(_raw, args))
            found = getattr(Zeros(like), name)(*met)
            return Test(found, like) if name in ("isfinite", "isnan") else Value(found)

        setattr(self, name, scalar)
        return scalar


functions = _Functions()


def probed(hook: Callable[..., Mapping[str, Any]], h: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """Try a hook of scalars with probes in the place of ``h``: on whom each of its results depends."""
    found = hook(SimpleNamespace(**h), functions)
    return {n: x.names if isinstance(x, Probe) else frozenset() for n, x in found.items()}


def probes(names: Iterable[str]) -> dict[str, Probe]:
    """Return a probe for each name."""
    return {n: Probe((n,)) for n in names}


def merged(values: list[Any], chain_of_leaf: Any) -> Any:
    """Return one scalar for leaves of which each has one of several sets: ``which`` says whose is whose."""
    first = values[0]
    if all(same(x, first) for x in values):
        return first
    arrays = [x.array for x in values if isinstance(x, Value)]
    if not arrays:
        return Value(np.asarray(values, np.float64)[chain_of_leaf])
    arrays = _met(*arrays)
    like = max(arrays, key=lambda x: len(x.shape))
    xp, zeros, made = _arrays.namespace(like), Zeros(like), iter(arrays)
    rows = [next(made) if isinstance(x, Value) else zeros.lift(x) for x in values]
    if len(like.shape) == 1:
        rows = [xp.broadcast_to(x, like.shape) for x in rows]
        return Value(xp.stack([rows[int(j)][k, ...] for k, j in enumerate(chain_of_leaf)]))
    return Value(
        xp.take(xp.stack(rows), xp.asarray(np.asarray(chain_of_leaf, np.int32), **_arrays.beside(like)), axis=0)
    )


def same(x: Any, y: Any) -> bool:
    """Whether two scalars are known to be the same: equal numbers, or one array."""
    if isinstance(x, Value):
        return isinstance(y, Value) and x.array is y.array
    if hasattr(x, "dtype"):
        return x is y
    return type(x) is type(y) and x == y
