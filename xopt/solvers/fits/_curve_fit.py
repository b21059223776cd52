"""`curve_fit`: a model, data and their errors, as least squares."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from xopt import _arrays
from xopt._public import public
from xopt.solvers._minimize import checked_layout
from xopt.solvers.fits._arguments import LARGE
from xopt.solvers.fits._least_squares import DEFAULTS, solve

Array = Any
_OPTIONS = {*DEFAULTS} - {"jac", "batched", "data", "args", "preconditioner"}
"""Of `least_squares`, those that are not its own."""


@public
def curve_fit(
    f: Callable[..., Any],
    xdata: Any,
    ydata: Any,
    p0: Any = None,
    sigma: Any = None,
    absolute_sigma: bool = False,
    *,
    batched: bool = False,
    jac: Any = None,
    check_finite: bool = True,
    full_output: bool = False,
    **options: Any,
) -> tuple[Any, ...]:
    r"""Fit a curve y = f(x; p₁ … pₙ) to data by nonlinear least squares, one curve or many at once; with error bars.

    It minimizes Σⱼ ((f(xⱼ; p) - yⱼ)/σⱼ)² by :func:`least_squares`, on the library and device of ``ydata``.

    Parameters
    ----------
    f
        ``f(xdata, p1, …, pn)`` returns an array like ``ydata``. A parameter is an array of 0 dimensions; with
        ``batched`` one of shape (k, 1, …), with as many dimensions as ``ydata``.
    xdata
        What ``f`` is given, as it is; lists become arrays.
    ydata
        The data: an array of any shape, real or complex; with ``batched`` its first axis numbers k curves. Lists and
        integers become float64.
    p0
        Where to begin: n numbers, with ``batched`` of all curves or (k, n). None: 1 each, as many as ``f`` takes.
    sigma
        Standard deviations of the data, > 0: a number or an array that broadcasts to ``ydata``. Of one curve also the
        covariance matrix (m, m) of its m real points.
    absolute_sigma
        Whether ``sigma`` is known, and not its ratios alone. Then the covariance is not scaled by the residuals.
    batched
        Whether there are many curves.
    jac
        ``jac(xdata, p1, …, pn)`` returns ∂f/∂pᵢ on a last axis; or as for :func:`least_squares`.
    check_finite
        Raise for data that are infinite or NaN.
    full_output
        Return the result of :func:`least_squares`, too.
    options
        Of :func:`least_squares`: ``bounds``, ``method``, ``loss``, ``f_scale``, ``ftol``, ``max_nfev``, …

    Returns
    -------
    popt, pcov
        The parameters (n) and their covariance matrix (n, n), with ``batched`` (k, n) and (k, n, n); the roots of its
        diagonal are standard errors. It is infinite where the data do not determine the parameters.
    result
        With ``full_output``.

    Raises
    ------
    TypeError, ValueError
        For what does not fit, by name.
    RuntimeError
        If a fit of one curve does not converge; its ``intermediate_result`` has what was reached.

    Notes
    -----
    With ``batched``, ``f`` is called with the parameters of some of the curves (its result has as many rows), unless
    ``xdata`` has k as its first axis, too: then with those of all.

    Memory: as :func:`least_squares`.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> t = np.linspace(0, 4, 50)
    >>> y = 2.5 * np.exp(-1.3 * t) + 0.01 * np.random.default_rng(0).standard_normal(50)
    >>> popt, pcov = xopt.curve_fit(lambda t, a, rate: a * np.exp(-rate * t), t, y)
    >>> popt.round(2), np.sqrt(np.diag(pcov)).round(3)
    (array([2.5, 1.3]), array([0.005, 0.004]))
    """
    if options.get("method") == LARGE:
        raise ValueError(f"method: {LARGE!r}, but it knows no covariance; least_squares has it")
    if not callable(f):
        raise TypeError(f"f: {f!r}, but it must be a function")
    for name, flag in (("absolute_sigma", absolute_sigma), ("batched", batched)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name}: {flag!r}, but it must be True or False")
    unknown = sorted({*options} - _OPTIONS)
    if unknown:
        raise TypeError(f"curve_fit: unexpected {', '.join(unknown)}; options are {', '.join(sorted(_OPTIONS))}")
    y = _data(ydata)
    xp, near = _arrays.namespace(y), _arrays.beside(y)
    xdata = xp.asarray(_real("xdata", xdata), **near) if isinstance(xdata, list) else xdata
    if batched and not y.ndim > 1:
        raise ValueError(f"ydata: shape {tuple(y.shape)}, but with batched=True its first axis numbers the curves")
    real = getattr(xp, "float64" if _arrays.dtype_name(y) in ("float64", "complex128") else "float32")
    start = _start(f, p0, y, real, batched)
    n = start.shape[-1]
    weight = _Weight(sigma, y, real, batched)
    if check_finite:
        for name, x in (("xdata", xdata), ("ydata", y), ("sigma", weight.given)):
            if _floats(x) and not bool(xp.all(xp.isfinite(x))):
                raise ValueError(f"{name}: infinite or NaN; check_finite=False fits all the same")
    own = tuple(y.shape) if batched else ()
    # what each curve has of its own is cut into rows, unless f is given more of it
    rows = batched and tuple(getattr(xdata, "shape", ()))[:1] != tuple(y.shape[:1])
    data = None if not rows else (y, weight.given) if weight.by_curve else (y,)

    def each(p: Array) -> list[Array]:
        return [xp.reshape(p[..., i], (*tuple(p.shape)[:-1], *(1,) * (len(own) - 1))) for i in range(n)]

    def residuals(p: Array, *given: Any) -> Array:
        z, s = _pair(given, y, weight.given)
        found = f(xdata, *each(p))
        found = xp.asarray(found, **near) if _arrays.library(found) is None else found
        if tuple(found.shape) != tuple(z.shape):
            raise ValueError(f"f: returned shape {tuple(found.shape)}, but ydata has {tuple(z.shape)}")
        return weight(found - z, s)

    def derivative(p: Array, *given: Any) -> Array:
        z, s = _pair(given, y, weight.given)
        found = jac(xdata, *each(p))
        found = xp.asarray(_real("jac", found), **near) if _arrays.library(found) is None else found
        if tuple(found.shape) != (*tuple(z.shape), n):
            raise ValueError(f"jac: returned shape {tuple(found.shape)}, but it must be {(*tuple(z.shape), n)}")
        return xp.stack([weight(found[..., i], s) for i in range(n)], axis=-1)

    jac_of = derivative if callable(jac) else jac
    result, inverse = solve(residuals, start, jac=jac_of, batched=batched, data=data, **options)
    if not batched and not result.success:
        error = RuntimeError(f"curve_fit: {result.message}")
        error.intermediate_result = result  # type: ignore[attr-defined]
        raise error
    if absolute_sigma:
        result.covariance = inverse
        result.stderr = xp.sqrt(xp.stack([inverse[..., i, i] for i in range(n)], axis=-1))
    covariance = result.covariance
    return (result.x, covariance, result) if full_output else (result.x, covariance)


def _data(ydata: Any) -> Array:
    """Return the data as an array of real or complex numbers."""
    if _arrays.library(ydata) is None:
        ydata = np.asarray(ydata, np.result_type(np.asarray(ydata).dtype, np.float64))
    layout = checked_layout(ydata, "ydata")
    [y] = layout.leaves
    if layout.dtypes[0].itemsize < 4:
        raise TypeError(f"ydata: dtype {layout.dtypes[0].name}, but it must be float32, float64 or complex")
    return y


def _start(f: Any, p0: Any, y: Array, real: Any, batched: bool) -> Array:
    xp = _arrays.namespace(y)
    if p0 is None:
        try:
            known = [*inspect.signature(f).parameters.values()]
        except ValueError:
            known = []
        plain = [x for x in known if x.kind in (x.POSITIONAL_ONLY, x.POSITIONAL_OR_KEYWORD)]
        if len(plain) < 2 or any(x.kind is x.VAR_POSITIONAL for x in known):
            raise ValueError("p0: None, but f does not say how many parameters it has")
        p0 = np.ones(len(plain) - 1)
    p0 = _real("p0", p0)
    found = xp.asarray(p0, dtype=real, **_arrays.beside(y))
    found = xp.reshape(found, (1,)) if found.ndim == 0 else found
    if batched and found.ndim == 1:
        found = xp.asarray(xp.broadcast_to(found, (y.shape[0], found.shape[0])), copy=True)
    want = 2 if batched else 1
    if found.ndim != want or (batched and found.shape[0] != y.shape[0]):
        raise ValueError(f"p0: shape {tuple(found.shape)}, but it must be n numbers" + ", or (k, n)" * batched)
    return found


def _real(name: str, x: Any) -> Array:
    """Return real numbers as an array, or say that they are none."""
    try:
        found = np.asarray(x, np.result_type(np.asarray(x).dtype, np.float64)) if _arrays.library(x) is None else x
    except (TypeError, ValueError):
        found = None
    if found is None or _arrays.library(found) is None or _arrays.dtype_name(found)[:3] not in ("flo", "int", "uin"):
        raise TypeError(f"{name}: {x!r}, but it must be real numbers")
    return found


def _floats(x: Any) -> bool:
    """Whether this is an array of floating-point numbers, real or complex."""
    library = _arrays.library(x)
    return library is not None and not any(kind in _arrays.dtype_name(x) for kind in ("int", "bool", "object", "str"))


def _pair(given: tuple[Any, ...], y: Array, sigma: Any) -> tuple[Array, Any]:
    """Return the data and their errors: all, or the rows that are given."""
    rows: tuple[Any, ...] = given[0] if given else (y,)
    return rows[0], rows[1] if len(rows) > 1 else sigma


class _Weight:
    """Divides residuals by the standard deviations of the data, or by the root of their covariance."""

    def __init__(self, sigma: Any, y: Array, real: Any, batched: bool) -> None:
        self._xp, self._root, self.given = _arrays.namespace(y), None, None
        self.by_curve = False
        """Whether each curve has its own."""
        if sigma is None:
            return
        xp = self._xp
        sigma = _arrays.detached(_real("sigma", sigma))
        self.given = s = xp.asarray(sigma, dtype=real, **_arrays.beside(y))
        shape: tuple[int, ...] = tuple(s.shape)
        many = y.shape[0] if y.ndim else 1
        if shape == (many, many) and y.ndim == 1 and not _arrays.is_complex(y):
            try:
                self._root = xp.linalg.cholesky(s)
                good = bool(xp.all(xp.isfinite(self._root)))
            except Exception as error:  # each library has its own
                raise ValueError(f"sigma: a covariance matrix that is not positive definite ({error})") from None
            if not good:
                raise ValueError("sigma: a covariance matrix that is not positive definite")
            return
        if s.ndim > y.ndim or any(a not in (1, b) for a, b in zip(shape[::-1], tuple(y.shape)[::-1], strict=False)):
            raise ValueError(f"sigma: shape {shape}, but ydata has {tuple(y.shape)}")
        if bool(xp.any(s <= 0)):
            raise ValueError("sigma: numbers ≤ 0")
        self.by_curve = batched and s.ndim == y.ndim and shape[0] == many

    def __call__(self, x: Array, sigma: Any) -> Array:
        if self._root is not None:
            return self._xp.linalg.solve(self._root, x[:, None])[:, 0]
        return x if sigma is None else x / sigma
