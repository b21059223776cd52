"""Bounds as users write them: two sides, in numbers of the parameters that lie within."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np

from xopt import _arrays
from xopt._arrays import tree as _tree
from xopt._arrays.layout import Layout

Numbers: TypeAlias = np.ndarray[Any, Any]
Side: TypeAlias = Any
"""A number, None, or a list with one of these or an array for each parameter."""


def sides(bounds: Any, layout: Layout) -> tuple[Side, Side]:
    """Return lower and upper bounds, from ``(lower, upper)``, a list of pairs, or SciPy's class."""
    single = layout.spec.is_leaf()
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        bounds = tuple(_scipys(np.asarray(x), layout) for x in (bounds.lb, bounds.ub))
    elif single and (isinstance(bounds, list | np.ndarray) or (isinstance(bounds, tuple) and len(bounds) != 2)):
        bounds = tuple(x.reshape(layout.shapes[0]) for x in pairs(bounds, math.prod(layout.shapes[0])))
    elif not isinstance(bounds, tuple) or len(bounds) != 2:
        raise TypeError(f"bounds: {bounds!r}, but it must be (lower, upper), each None, a number or like x0")
    elif single and all(isinstance(x, list | tuple) and len(x) == 2 for x in bounds):
        raise TypeError(f"bounds: {bounds!r} may be two pairs or two sides; pairs go into a list, sides into arrays")
    lower, upper = (_side(f"bounds: {n}", x, layout) for n, x in zip(("lower", "upper"), bounds, strict=True))
    return lower, upper


def pairs(bounds: Any, size: int) -> tuple[Numbers, Numbers]:
    """Return lower and upper bounds as arrays of numbers and None, from a pair for each element."""
    found = [tuple(x) if isinstance(x, list | tuple) or np.ndim(x) == 1 else (x,) for x in bounds]
    if len(found) != size or any(len(x) != 2 for x in found):
        what = f"of length {len(found)}" if len(found) != size else "with entries that are none"
        raise ValueError(
            f"bounds: a {type(bounds).__name__} {what}, but there must be a pair (low, high) for each of {size} "
            f"elements; a lower and an upper side go into a tuple"
        )
    both = np.empty((2, size), object)
    for i, pair in enumerate(found):
        both[0, i], both[1, i] = pair
    return both[0], both[1]


def _scipys(side: Numbers, layout: Layout) -> Any:
    """Return a side of SciPy's class, which has one dimension."""
    if side.size == 1:
        return side.reshape(())[()]
    shapes = layout.shapes
    return side.reshape(shapes[0]) if len(shapes) == 1 and side.size == math.prod(shapes[0]) else side


def _side(name: str, bound: Any, layout: Layout) -> Side:
    """Check a side: numbers, and arrays like the parameters."""
    if bound is None or _is_number(bound):
        return bound if bound is None else _plain(bound)
    if layout.spec.is_leaf() and isinstance(bound, list | tuple):
        bound = np.array(bound, object)
    found = _tree.match(layout.spec, bound, name, "x0")
    return [_entry(layout, k, x, layout.path(k, name)) for k, x in enumerate(found)]


def _entry(layout: Layout, k: int, x: Any, path: str) -> Any:
    """Check what stands for one parameter."""
    if x is None or _is_number(x):
        return x if x is None else _plain(x)
    if _arrays.library(x) not in (_arrays.NUMPY, layout.library):
        raise TypeError(f"{path}: a {type(x).__name__}, but it must be None, a number or an array like x0")
    if tuple(x.shape) != layout.shapes[k]:
        raise ValueError(f"{path}: shape {tuple(x.shape)}, but the parameter has {layout.shapes[k]}")
    kind = _arrays.dtype_name(x)
    if kind == "object":
        bad = next((y for y in x.flat if y is not None and not _is_number(y)), None)
        if bad is not None:
            raise TypeError(f"{path}: {bad!r}, but each must be None or a number")
    elif "float" not in kind and "int" not in kind and kind != "longdouble":
        raise TypeError(f"{path}: dtype {kind}, but bounds are real numbers")
    return x


def _is_number(x: Any) -> bool:
    if isinstance(x, int | float):
        return not isinstance(x, bool)
    if _arrays.library(x) is None or tuple(x.shape) != ():
        return False
    kind = _arrays.dtype_name(x)
    return "float" in kind or "int" in kind or kind == "longdouble"


def _plain(x: Any) -> Any:
    """Return a number as one of Python, or of NumPy where that has more digits."""
    if isinstance(x, int | float) and not isinstance(x, np.generic):
        return x
    kind = _arrays.dtype_name(x)
    if "int" in kind:
        return int(x)
    return x[()] if _arrays.on_host(x) and x.dtype.itemsize > 8 else float(x)


def is_infinite(bound: Any, sign: int) -> bool:
    """Whether what stands for a parameter bounds nothing."""
    return bound is None or (_is_number(bound) and bound == sign * math.inf)


def inward(bound: Any, dtype: str, sign: int, *, normal: bool = False) -> Numbers:
    """Round lower bounds (sign -1) up and upper ones (1) down, to numbers of a dtype.

    ``normal``: to numbers that are not subnormal, which some libraries take for 0.
    """
    found = np.asarray(sign * math.inf if bound is None else bound)
    kind = np.dtype(dtype)
    if found.dtype == object or (found.dtype.kind in "iu" and found.dtype.itemsize == 8):
        exact = [sign * math.inf if x is None else _plain(x) for x in found.reshape(-1).tolist()]
        near = np.asarray([_float(x) for x in exact], float).reshape(found.shape)
    else:
        exact = None
        near = found if found.dtype.kind == "f" else found.astype(float)
    with np.errstate(all="ignore"):
        rounded = near.astype(kind)
        if exact is None:
            outside = rounded < near if sign < 0 else rounded > near
        else:  # Python compares its integers with its floats exactly
            compared = zip(rounded.reshape(-1).tolist(), exact, strict=True)
            outside = np.asarray([r < x if sign < 0 else r > x for r, x in compared], bool).reshape(found.shape)
        rounded = np.where(outside, np.nextafter(rounded, kind.type(-sign * math.inf)), rounded)
        if normal:
            tiny = np.finfo(kind).tiny
            small = (np.abs(rounded) < tiny) & (rounded != 0)
            away = (rounded > 0) == (sign < 0)
            rounded = np.where(small, np.where(away, np.copysign(tiny, rounded), 0), rounded)
    return rounded.astype(kind)


def _float(x: Any) -> float:
    try:
        return float(x)
    except OverflowError:
        return math.inf if x > 0 else -math.inf
