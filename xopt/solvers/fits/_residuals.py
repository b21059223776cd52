"""The residuals that a user gives, as vectors, and their derivatives column by column."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from xopt import _arrays
from xopt._arrays import tree as _tree
from xopt._arrays.layout import Layout
from xopt._arrays.transfer import to_host
from xopt.solvers._differences import SCHEMES
from xopt.solvers._operators import is_sparse

Array = Any
_TINY = 1e-30


class Columns(Protocol):
    """Computes the columns of the Jacobian."""

    def __call__(self, x: Array, f: Array) -> list[Array]:
        """Return them at x, where the residuals are f."""


class Residuals:
    """The residuals of a tree of parameters as a function from vectors (…, n) to vectors (…, m).

    Parameters
    ----------
    fun
        The function of the user, of a tree, and of the rows of the data if there are any.
    layout
        The parameters.
    batched
        Whether the first axis of all arrays numbers the fits. Then `select` chooses some of them.
    data
        None, or a tree of arrays with that axis.
    low, high
        None, or the bounds, of one fit or of all.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        layout: Layout,
        batched: bool,
        data: Any = None,
        low: Any = None,
        high: Any = None,
    ) -> None:
        self._fun, self.layout, self.xp = fun, layout, layout.xp
        self.count = layout.shapes[0][0] if batched else 1
        self.lead: tuple[int, ...] = (self.count,) if batched else ()
        self.inner = [shape[len(self.lead) :] for shape in layout.shapes]
        self.sizes: list[int] = [
            math.prod(shape) * (1 + d.complex) for shape, d in zip(self.inner, layout.dtypes, strict=True)
        ]
        """Real numbers of each parameter; of complex ones the real parts, then the imaginary parts."""
        self.n = sum(self.sizes)
        self.real = "float64" if any(d.real == "float64" for d in layout.dtypes) else "float32"
        self.dtype = getattr(self.xp, self.real)
        self.m: int | None = None
        self.shape: tuple[int, ...] = ()
        """That of the residuals of a fit, as the function returns them."""
        self.complex = False
        self._settings = np.geterr()
        """Those of NumPy that the functions of the user are called with."""
        self.coarse = np.repeat([d.real == "float32" != self.real for d in layout.dtypes], self.sizes)
        """Which elements of a vector are of float32, where others are not."""
        self._spec: Any
        self._leaves, self._spec = ([], None) if data is None else self._checked_data(data)
        self.given: tuple[Any, ...] = () if data is None else (data,)
        """The rows of the data, if there are any."""
        self.box = low, high
        self.low, self.high = low, high
        self._rows: Array | None = None
        """Which fits are looked at, of a function that computes all."""
        self._template = self.vector(layout.leaves)

    def _checked_data(self, data: Any) -> tuple[list[Any], Any]:
        if not self.lead:
            raise TypeError("data: goes with batched=True; one fit has args")
        leaves, spec = _tree.flatten(data)
        for k, x in enumerate(leaves):
            if _arrays.library(x) is not self.layout.library:
                raise TypeError(f"data: {named(x)} at {k}, but x0 has arrays of {self.layout.library}")
            if tuple(x.shape)[:1] != (self.count,):
                raise ValueError(f"data: shape {tuple(x.shape)} at {k}, but the first axis numbers {self.count} fits")
        return leaves, spec

    def select(self, rows: np.ndarray[Any, Any]) -> None:
        """Go on with some of the fits."""
        xp, self.lead = self.xp, (len(rows),)
        whole = len(rows) == self.count
        index = None if whole else xp.asarray(rows.astype(np.int32), **_arrays.beside(self._template))
        near = slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) and rows[-1] - rows[0] == len(rows) - 1 else None

        def some(x: Array) -> Array:
            return x if index is None else x[near, ...] if near is not None else xp.take(x, index, axis=0)

        self.low, self.high = (side if side is None or side.ndim == 1 else some(side) for side in self.box)
        if self._spec is not None:
            self.given = (_tree.unflatten(self._spec, [some(x) for x in self._leaves]),)
            return
        self._rows = index
        if index is not None:  # where each fit is among those and, behind them, all as they begin
            place = np.arange(self.count) + len(rows)
            place[rows] = np.arange(len(rows))
            self._place = xp.asarray(place.astype(np.int32), **_arrays.beside(self._template))

    def of_all(self, function: Callable[[Array], list[Array]], x: Array) -> list[Array]:
        """Call a function of all fits, and return what belongs to those that are looked at."""
        if self._rows is None:
            return function(x)
        lead, self.lead = self.lead, (self.count,)
        try:
            every = function(self.xp.take(self.xp.concat([x, self._template]), self._place, axis=0))
        finally:
            self.lead = lead
        return [self.xp.take(y, self._rows, axis=0) for y in every]

    def vector(self, leaves: list[Array]) -> Array:
        """Return arrays, one a parameter, as a vector in memory of its own."""
        xp, parts = self.xp, list[Array]()
        for x, inner, d in zip(leaves, self.inner, self.layout.dtypes, strict=True):
            x = xp.reshape(_arrays.detached(x), (*self.lead, math.prod(inner)))
            parts += [_arrays.cast(xp, y, self.dtype) for y in ((xp.real(x), xp.imag(x)) if d.complex else (x,))]
        return self._owned(parts[0]) if len(parts) == 1 else xp.concat(parts, axis=-1)

    def _owned(self, x: Array) -> Array:
        """Return an array in memory of its own: functions may write what they return into the same each time."""
        return x if self.layout.library.jits else self.xp.asarray(x, copy=True)

    def tree(self, x: Array) -> Any:
        """Put a vector into the structure of the parameters."""
        xp, leaves, at = self.xp, [], 0
        rows = zip(self.inner, self.layout.raw_dtypes, self.layout.dtypes, self.sizes, strict=True)
        for inner, raw, d, size in rows:
            part = x if size == self.n else x[..., at : at + size]
            if d.complex:
                part = self.layout.library.join_complex(xp, part[..., : size // 2], part[..., size // 2 :])
            leaves.append(xp.reshape(_arrays.cast(xp, part, raw), (*self.lead, *inner)))
            at += size
        return self.layout.tree(leaves)

    def side(self, x: Array) -> Array:
        """Return numbers of a fit, or of all, where they are computed with: on the host, or with the fits last."""
        if not self.lead:
            return np.asarray(to_host(x), np.float64)
        return self.xp.permute_dims(x, (1, 0)) if x.ndim > 1 else x[:, None]

    def __call__(self, x: Array) -> Array:
        """Return the residuals, checked."""
        return self.of_all(lambda y: [self.checked(self._called(self._fun, y))], x)[0]

    def raw(self, x: Array) -> Array:
        """Return the residuals for a library to differentiate."""
        return self.of_all(lambda y: [self._flat(self._of_library(self._called(self._fun, y)))], x)[0]

    def _called(self, function: Callable[..., Any], x: Array) -> Any:
        return self.quietly(function, self.tree(x), *self.given)

    def quietly(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of the user, with its own settings of NumPy."""
        with np.errstate(**self._settings):
            return function(*args)

    def checked(self, found: Any) -> Array:
        """Return what the function returned as a vector of its own, of real numbers, or say what does not fit."""
        xp, layout = self.xp, self.layout
        if layout.library.host and _arrays.library(found) is None:
            found = numbers("fun", found)
        found = self._of_library(found)
        if "int" in _arrays.dtype_name(found) or "bool" in _arrays.dtype_name(found):
            found = _arrays.cast(xp, found, self.dtype)
        f = self._owned(self._flat(_arrays.detached(found)))
        if self.m is None:
            self.m = f.shape[-1]
            if not self.m:
                raise ValueError("fun: returned no residuals")
        if f.shape[-1] != self.m:
            raise ValueError(f"fun: returned {f.shape[-1]} residuals, but {self.m} before")
        return f

    def _of_library(self, found: Any) -> Array:
        if _arrays.library(found) is not self.layout.library:
            raise TypeError(f"fun: returned {named(found)}, but x0 has arrays of {self.layout.library}")
        return found

    def _flat(self, found: Array) -> Array:
        """Return residuals of any shape as a vector; of complex ones the real parts, then the imaginary parts."""
        xp, shape = self.xp, tuple(found.shape)
        if shape[: len(self.lead)] != self.lead:
            raise ValueError(
                f"fun: returned shape {shape}, but with batched=True the first axis must be {self.lead[0]}"
            )
        self.shape, self.complex = shape[len(self.lead) :], _arrays.is_complex(found)
        f = xp.reshape(found, (*self.lead, math.prod(self.shape)))
        if self.complex:
            f = xp.concat([xp.real(f), xp.imag(f)], axis=-1)
        return _arrays.cast(xp, f, self.dtype)

    def columns(self, jac: Callable[..., Any], x: Array) -> list[Array]:
        """Return the columns of a Jacobian that the user computes."""
        return self.of_all(lambda y: self.columns_of(self._called(jac, y)), x)

    def columns_of(self, found: Any) -> list[Array]:
        """Return the columns of what stands for a Jacobian."""
        leaves, columns = _tree.match(self.layout.spec, found, "jac"), list[Array]()
        for k, j in enumerate(leaves):
            columns += self._of_leaf(j, k, self.layout.path(k, "jac"))
        return columns

    def _of_leaf(self, j: Any, k: int, path: str) -> list[Array]:
        xp, lead, library, inner = self.xp, self.lead, self.layout.library, self.inner[k]
        size, pairs = math.prod(inner), self.layout.dtypes[k].complex
        if is_sparse(j):
            raise TypeError(f'{path}: a sparse matrix, which method="steihaug" takes')
        j = numbers(path, j) if library.host and _arrays.library(j) is None else j
        if _arrays.library(j) is not library:
            raise TypeError(f"{path}: {named(j)}, but x0 has arrays of {library}")
        j, shape, halves = _arrays.detached(j), tuple(j.shape), math.prod(self.shape)
        if shape not in ((*lead, *self.shape, *inner), (*lead, halves, size)):
            raise ValueError(f"{path}: shape {shape}, but it must be {(*lead, *self.shape, *inner)}, residuals first")
        j = xp.reshape(j, (*lead, halves, size))
        re, im = (xp.real(j), xp.imag(j)) if _arrays.is_complex(j) else (j, xp.zeros_like(j))
        if self.complex:
            j = xp.concat([re, im], axis=-2)
            j = xp.concat([j, xp.concat([-im, re], axis=-2)], axis=-1) if pairs else j
        elif pairs:
            j = xp.concat([re, im], axis=-1)
        elif _arrays.is_complex(j):
            raise TypeError(f"{path}: complex, but the residuals are real")
        j = _arrays.cast(xp, j, self.dtype)
        j = xp.permute_dims(j, (j.ndim - 1, *range(j.ndim - 1)))
        j = np.ascontiguousarray(j) if library.host else j  # which is read several times
        return [j[i, ...] for i in range(j.shape[0])]


class GivenColumns:
    """Columns of a Jacobian that the user computes: of each parameter an array (…, *residuals, *parameter)."""

    def __init__(self, residuals: Residuals, jac: Callable[..., Any]) -> None:
        self._residuals, self._jac = residuals, jac

    def __call__(self, x: Array, f: Array) -> list[Array]:
        return self._residuals.columns(self._jac, x)


class ForwardColumns:
    """Columns by forward-mode differentiation of the library: as many derivatives along a direction as parameters."""

    def __init__(self, residuals: Residuals) -> None:
        self._residuals = residuals

    def __call__(self, x: Array, f: Array) -> list[Array]:
        own, xp = self._residuals, self._residuals.xp
        along = own.layout.library.along(own.raw, x)
        columns = []
        for i in range(own.n):
            unit = xp.asarray(np.arange(own.n) == i, dtype=own.dtype, **_arrays.beside(x))
            columns.append(_arrays.detached(along(xp.broadcast_to(unit, tuple(x.shape)))))
        return columns


class DifferenceColumns:
    """Columns from differences of residuals: forward, or central, within bounds."""

    def __init__(self, residuals: Residuals, scheme: str, step: float | None) -> None:
        self._residuals, self._points = residuals, SCHEMES[scheme]
        eps = [float(np.finfo("float32" if coarse else residuals.real).eps) for coarse in residuals.coarse]
        steps = np.asarray(eps) ** (1 / self._points) if step is None else np.full(residuals.n, step)
        like = residuals.layout.leaves[0]
        self.step = residuals.xp.asarray(steps.astype(residuals.real), **_arrays.beside(like))
        self._enlarges = step is None

    def __call__(self, x: Array, f: Array) -> list[Array]:
        with np.errstate(all="ignore"):
            size = _norm(self._residuals.xp, f)
            return [self._column(x, f, size, i) for i in range(self._residuals.n)]

    def _column(self, x: Array, f: Array, size_of_f: Array, i: int) -> Array:
        """Return a column; by a larger step where one hardly changes anything, as at a parameter that is nearly 0."""
        xp, step = self._residuals.xp, self.step[i]
        size = xp.abs(x[..., i])
        one = xp.ones_like(size)
        h = step * _safe(xp, size)
        column = self.slope(x, f, i, h)
        if not self._enlarges:
            return column
        change, right = h * _norm(xp, column), step * size_of_f
        larger = h * right / xp.where(change > 0, change, _TINY * one)
        most = step * xp.where(size > 1, size, one)
        larger = xp.where(xp.isfinite(larger) & (larger < most), larger, most)
        small = (change < 0.3 * right) & (larger > h)
        if not bool(xp.any(small)):
            return column
        return xp.where(small[..., None], self.slope(x, f, i, xp.where(small, larger, h)), column)

    def slope(self, x: Array, f: Array, i: int, h: Array) -> Array:
        """Return a column, from differences over h > 0, or over less where bounds are nearer."""
        own, xp, fun = self._residuals, self._residuals.xp, self._residuals
        if own.low is None and self._points == 2:
            other = self._moved(x, i, xp.where(x[..., i] < 0, -h, h))
            return _quotient(xp, fun(other) - f, other[..., i] - x[..., i])
        endless = xp.full_like(h, math.inf)
        up = endless if own.high is None else own.high[..., i] - x[..., i]
        down = endless if own.low is None else x[..., i] - own.low[..., i]
        room = xp.where(up > down, up, down)
        if self._points == 2:
            negative = (x[..., i] < 0) & (down >= h) | (up < h) & (down >= up)
            other = self._moved(x, i, _sign(xp, negative, h) * xp.where(h < room, h, room))
            return _quotient(xp, fun(other) - f, other[..., i] - x[..., i])
        central, sign = (h <= up) & (h <= down), _sign(xp, up < down, h)
        h = xp.where(central | (2 * h <= room), h, room / 2)
        near = self._moved(x, i, xp.where(central, h, sign * h))
        far = self._moved(x, i, xp.where(central, -h, 2 * sign * h))
        a, b = (_safe(xp, other[..., i] - x[..., i])[..., None] for other in (near, far))
        return ((fun(near) - f) * b / a - (fun(far) - f) * a / b) / _safe(xp, b - a)

    def _moved(self, x: Array, i: int, by: Array) -> Array:
        own, xp = self._residuals, self._residuals.xp
        columns = [x[..., j] for j in range(own.n)]
        moved = columns[i] + by
        if own.low is not None:
            low, high = own.low[..., i], own.high[..., i]
            moved = xp.where(moved > high, high, moved)
            moved = xp.where(moved < low, low, moved)
        columns[i] = _arrays.cast(xp, _arrays.cast(xp, moved, xp.float32), own.dtype) if own.coarse[i] else moved
        return xp.stack(columns, axis=-1)


def rounded(xp: Any, x: Array, coarse: np.ndarray[Any, Any]) -> Array:
    """Return numbers as their parameters hold them: the coarse ones in float32. A second axis is one of lanes."""
    if not coarse.any():
        return x
    which = xp.asarray(coarse if x.ndim == 1 else coarse[:, None], **_arrays.beside(x))
    return xp.where(which, xp.astype(xp.astype(x, xp.float32), x.dtype), x)


def _safe(xp: Any, x: Array) -> Array:
    return xp.where(x != 0, x, xp.ones_like(x))


def _quotient(xp: Any, change: Array, step: Array) -> Array:
    """Divide rows by numbers, in the memory of the rows where that can be."""
    change /= _safe(xp, step)[..., None]
    return change


def _sign(xp: Any, negative: Array, like: Array) -> Array:
    one = xp.ones_like(like)
    return xp.where(negative, -one, one)


def _norm(xp: Any, x: Array) -> Array:
    return xp.sqrt(xp.vecdot(x, x))


def numbers(name: str, x: Any) -> np.ndarray[Any, Any]:
    """Return what a function returned beside NumPy as an array of numbers, or say that it is none."""
    try:
        found = np.asarray(x)
    except ValueError:  # of lists that are not of one length
        found = np.asarray(None)
    if found.dtype.kind not in "biufc":
        raise TypeError(f"{name}: returned a {type(x).__name__} that is no array of numbers")
    return found


def named(x: Any) -> str:
    found = _arrays.library(x)
    return f"a {type(x).__name__}" if found is None else f"an array of {found}"
