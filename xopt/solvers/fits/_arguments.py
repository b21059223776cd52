"""What a user gives `least_squares`, checked."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import numpy as np

from xopt import _arrays
from xopt._arrays import tree as _tree
from xopt._arrays.layout import Layout
from xopt._arrays.scalars import is_number
from xopt._arrays.transfer import to_host
from xopt.solvers._differences import SCHEMES
from xopt.solvers._options import count, of_gradient
from xopt.solvers._sides import inward, is_infinite, sides
from xopt.solvers.fits import _steps
from xopt.solvers.fits._batch import Batch, Kind
from xopt.solvers.fits._fit import CALLBACK, Fit, Rules, nothing
from xopt.solvers.fits._losses import LOSSES
from xopt.solvers.fits._products import products
from xopt.solvers.fits._residuals import Columns, DifferenceColumns, ForwardColumns, GivenColumns, Residuals
from xopt.solvers.fits._truncated import TruncatedFit

STEPS = {"lm": _steps.levenberg, "dogleg": _steps.dogleg}
LARGE = "steihaug"
Side = np.ndarray[Any, Any]


def prepared(
    fun: Any, layout: Layout, *, jac: Any, bounds: Any, method: Any, batched: Any, data: Any, args: Any, loss: Any,
    f_scale: Any, x_scale: Any, ftol: Any, xtol: Any, gtol: Any, max_nfev: Any, geodesic: Any, diff_step: Any,
    preconditioner: Any,
) -> Batch | Fit | TruncatedFit:  # fmt: skip
    """Check what is given, and return the fit or fits that it describes."""
    args = args if isinstance(args, tuple) else (args,)
    if not callable(fun):
        raise TypeError(f"fun: {fun!r}, but it must be a function")
    if not isinstance(method, str) or method not in (*STEPS, LARGE):
        raise ValueError(f"method: {method!r}, but there are {', '.join(map(repr, (*STEPS, LARGE)))}")
    if not isinstance(loss, str) or loss not in LOSSES:
        raise ValueError(f"loss: {loss!r}, but there are {', '.join(map(repr, LOSSES))}")
    for name, x in (("batched", batched), ("geodesic", geodesic)):
        if not isinstance(x, bool):
            raise TypeError(f"{name}: {x!r}, but it must be True or False")
    if geodesic and (method != "lm" or bounds is not None or loss != "linear"):
        raise ValueError('geodesic: goes with method="lm" and loss="linear", without bounds')
    large = method == LARGE
    if large and batched:
        raise ValueError('batched: True, but method="steihaug" is for one fit of many parameters')
    scaled = x_scale is not None and not isinstance(x_scale, str)
    if of_gradient("preconditioner", preconditioner) is not None and (not large or bounds is not None or scaled):
        raise ValueError('preconditioner: goes with method="steihaug", without bounds and without x_scale')
    ftol, xtol, gtol = _number("ftol", ftol, 0), _number("xtol", xtol, 0), _number("gtol", gtol, 0)
    check_arrays(layout, batched)
    low, high = (None, None) if bounds is None else bounded(bounds, layout, batched)
    own = Residuals(lambda *x: fun(*x, *args), layout, batched, data, low, high)
    scale, most = _scale(x_scale, own), max(1000, 100 * own.n) if max_nfev is None else _limit(max_nfev)
    step = STEPS.get(method, _steps.levenberg)
    rules = Rules(step, loss, _positive("f_scale", f_scale), scale, ftol, xtol, gtol, most, geodesic)
    start = own.vector(layout.leaves)
    if not large:
        columns = _columns(jac, args, own, diff_step)
        return _many(own, columns, rules, start) if batched else Fit(own, columns, rules, start)
    if diff_step is not None:
        raise TypeError(f'diff_step: {diff_step!r}, but method="steihaug" takes no differences')
    return TruncatedFit(own, products(jac, args, own), rules, start, preconditioner)


def _many(own: Residuals, columns: Columns, rules: Rules, start: Any) -> Batch:
    def width() -> int:
        many: int = own(start[:1, ...]).shape[-1]
        return many

    kind = Kind(lambda x: Fit(own, columns, rules, x), lambda x: nothing(own, x), width, CALLBACK)
    return Batch(own, start, kind)


def check_arrays(layout: Layout, batched: bool) -> None:
    if not layout.leaves:
        raise ValueError("x0: no arrays, so there is nothing to fit")
    for k, (d, shape) in enumerate(zip(layout.dtypes, layout.shapes, strict=True)):
        if d.itemsize < 4:
            raise TypeError(f"{layout.path(k)}: dtype {d.name}, but it must be float32, float64 or complex")
        first = layout.shapes[0]
        if batched and (not shape or shape[0] != first[0]):
            raise ValueError(
                f"{layout.path(k)}: shape {shape}, but with batched=True the first axis numbers the fits"
                + (f", {first[0]} of them as in {layout.path(0)}" if first and shape else "")
            )
    if not all(map(math.prod, layout.shapes)):
        raise ValueError("x0: an array without elements")


def _columns(jac: Any, args: tuple[Any, ...], own: Residuals, step: Any) -> Columns:
    if jac is None and not own.layout.library.differentiates:
        jac = "2-point"
    if isinstance(jac, str) and jac in SCHEMES:
        return DifferenceColumns(own, jac, None if step is None else _positive("diff_step", step))
    if step is not None:
        raise TypeError(f"diff_step: {step!r}, but with jac={jac!r} no differences are taken")
    if jac is None:
        return ForwardColumns(own)
    if not callable(jac):
        raise TypeError(
            f"jac: {jac!r}, but it must be a function, None, '2-point' or '3-point' (differences of residuals)"
            + '; products with it go with method="steihaug"' * isinstance(jac, tuple)
        )
    return GivenColumns(own, lambda *x: jac(*x, *args))


def bounded(bounds: Any, layout: Layout, batched: bool) -> tuple[Any, Any]:
    """Return lower and upper bounds as vectors beside the parameters, rounded inwards."""
    found: Any = None
    lead = layout.shapes[0][:1] if batched else ()
    inner = [shape[len(lead) :] for shape in layout.shapes]
    if isinstance(bounds, tuple) and len(bounds) == 2 and layout.spec.is_leaf():  # sides, as SciPy's have to be here
        bounds = tuple(np.array(x, object) if isinstance(x, list | tuple) else x for x in bounds)
    if batched:  # of one fit, or of all
        one = Layout(layout.tree([x[0, ...] for x in layout.leaves]), name="x0")
        with suppress(ValueError):
            found, lead = sides(bounds, one), ()
    found = sides(bounds, layout) if found is None else found
    low, high = (_side(side, sign, layout, (*lead,), inner) for sign, side in zip((-1, 1), found, strict=True))
    if np.isnan(low).any() or np.isnan(high).any():
        raise ValueError("bounds: nan among them")
    wrong = (low > high).reshape(-1)
    if wrong.any():
        i = int(np.argmax(wrong))
        raise ValueError(f"bounds: the lower one is {low.reshape(-1)[i]}, but the upper one {high.reshape(-1)[i]}")
    xp, near = layout.xp, _arrays.beside(layout.leaves[0])
    return xp.asarray(low, **near), xp.asarray(high, **near)


def _side(side: Any, sign: int, layout: Layout, lead: tuple[int, ...], inner: list[tuple[int, ...]]) -> Side:
    parts = []
    each = side if isinstance(side, list) else [side] * len(inner)
    for k, (x, d, shape) in enumerate(zip(each, layout.dtypes, inner, strict=True)):
        number = to_host(x) if _arrays.library(x) is not None and not is_number(x) else x
        if d.complex:
            if not is_infinite(number, sign):
                raise TypeError(f"{layout.path(k)}: dtype {d.name}, but only real numbers have bounds")
            parts.append(np.full((*lead, 2 * math.prod(shape)), sign * math.inf, d.real))
            continue
        found, all_of = inward(number, d.real, sign), (*lead, math.prod(shape))
        parts.append(np.broadcast_to(found.reshape(all_of) if found.ndim else found, all_of))
    return np.concatenate(parts, axis=-1)


def _scale(x_scale: Any, own: Residuals) -> Any:
    """Return the scale of parameters where the control is; None for that of the Jacobian."""
    if x_scale is None or (isinstance(x_scale, str) and x_scale == "jac"):
        return None
    shown = np.asarray(to_host(x_scale) if _arrays.library(x_scale) is not None else 0.0)
    if isinstance(x_scale, bool) or shown.dtype.kind not in "iuf":
        raise TypeError(f'x_scale: {x_scale!r}, but it must be "jac", a number, or like one fit of x0')
    try:
        one = x_scale if is_number(x_scale) else None
        leaves = [one] * len(own.sizes) if one is not None else _tree.match(own.layout.spec, x_scale, "x_scale", "x0")
        parts = [
            np.concatenate([_numbers(x, size // (1 + d.complex))] * (1 + d.complex))
            for x, size, d in zip(leaves, own.sizes, own.layout.dtypes, strict=True)
        ]
    except (TypeError, ValueError) as error:
        raise type(error)(f'x_scale: it must be "jac", a number, or like one fit of x0: {error}') from None
    found = np.concatenate(parts)
    if not ((found > 0) & (found < math.inf)).all():
        raise ValueError(f"x_scale: {found.tolist()}, but all must be > 0 and finite")
    return beside(own, found)


def _numbers(x: Any, size: int) -> Side:
    found = np.asarray(to_host(x) if _arrays.library(x) is not None else x)
    if found.dtype.kind == "c":
        raise TypeError("complex numbers")
    found = found.astype(float)
    return np.broadcast_to(found.reshape(-1), size)


def beside(own: Residuals, x: Side) -> Any:
    return own.xp.asarray(x.astype(own.real), **_arrays.beside(own.layout.leaves[0]))


def _number(name: str, x: Any, least: float) -> float:
    if not is_number(x) or math.isnan(x):
        raise TypeError(f"{name}: {x!r}, but it must be a number")
    if x < least:
        raise ValueError(f"{name}: {x!r}, but it must be ≥ {least}")
    return float(x)


def _positive(name: str, x: Any) -> float:
    if not 0 < _number(name, x, 0) < math.inf:
        raise ValueError(f"{name}: {x!r}, but it must be > 0 and finite")
    return float(x)


def _limit(x: Any) -> float:
    return math.inf if isinstance(x, float) and x == math.inf else count("max_nfev", x, 1)
