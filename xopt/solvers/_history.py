"""What solvers reached, iteration by iteration: a callback that keeps it, and draws it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from xopt import _arrays
from xopt._arrays.transfer import to_host
from xopt._public import public
from xopt.schedules._schedule import axes
from xopt.solvers._callbacks import caller

_COUNTS = ("nit", "nfev", "time")
_VALUES = ("fun", "cost")


@public
class History:
    """The values of a run against iterations, evaluations or time: a callback that keeps them, and plots convergence.

    It goes to :func:`minimize`, :func:`least_squares`, :func:`curve_fit`, :mod:`xopt.proximal` and
    ``scipy.optimize.minimize`` alike, and keeps the numbers of the result so far: ``fun`` or ``cost``, ``nit``,
    ``nfev`` and what else there is, and ``time``, the seconds since it was made or cleared. With ``batched=True`` a row
    has the values of all fits.

    Parameters
    ----------
    callback
        Another callback, called behind it in either form; it ends the run as it would alone.

    Raises
    ------
    TypeError
        For a callback that is no function.

    Notes
    -----
    Arrays of values of many fits stay where they are until they are asked for. No parameters are kept. A run begins no
    new history: :meth:`clear`, or make another one.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> history = xopt.History()
    >>> result = xopt.minimize(lambda x: (((x - 1) ** 4).sum(), 4 * (x - 1) ** 3), np.zeros(3), callback=history)
    >>> len(history) == result.nit, float(history["fun"][-1]) == result.fun, bool(history["nfev"][0] >= 1)
    (True, True, True)
    >>> ax = history.plot(best=0.0, label="L-BFGS")  # doctest: +SKIP
    """

    def __init__(self, callback: Callable[..., Any] | None = None) -> None:
        if callback is not None and not callable(callback):
            raise TypeError(f"callback: {callback!r}, but it must be a function")
        self._call = None if callback is None else caller(callback)
        self.clear()

    def clear(self) -> None:
        """Forget all, and begin to count seconds anew."""
        self._rows: list[dict[str, Any]] = []
        self._began = time.perf_counter()

    def __call__(self, intermediate_result: Any) -> Any:
        row = {name: x for name, x in intermediate_result.items() if name != "x" and _is_number(x)}
        self._rows.append({**row, "time": time.perf_counter() - self._began})
        if self._call is not None:
            return self._call(lambda: intermediate_result, intermediate_result["x"])
        return None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def names(self) -> list[str]:
        """What there is of every iteration."""
        return [name for name in (self._rows[0] if self._rows else {}) if all(name in row for row in self._rows)]

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        """Return the numbers of a name, an iteration each, as an array of NumPy."""
        if name not in self.names:
            raise KeyError(f"{name}: there is {', '.join(self.names) or 'nothing yet'}")
        return np.asarray([_host(row[name]) for row in self._rows])

    def plot(self, ax: Any = None, *, x: str = "nfev", y: str | None = None, best: Any = None, **style: Any) -> Any:
        """Draw the values with matplotlib, against evaluations.

        Parameters
        ----------
        ax
            Axes to draw into; None makes a figure. No window is opened.
        x
            ``"nfev"``, ``"nit"`` or ``"time"``.
        y
            The name of what is drawn. None: ``"fun"``, or else ``"cost"``.
        best
            What is subtracted, such as the value at the minimum: then the axis is logarithmic. It is, too, where all
            values are positive.
        **style
            Passed to ``ax.plot``.

        Returns
        -------
        matplotlib.axes.Axes
            The axes.

        Raises
        ------
        ImportError
            When matplotlib is not installed.
        KeyError
            For a name that there is not.
        """
        if x not in _COUNTS:
            raise ValueError(f"x: {x!r}, but it must be one of {', '.join(map(repr, _COUNTS))}")
        y = next((name for name in _VALUES if name in self.names), _VALUES[0]) if y is None else y
        counts, values = self[x], self[y]
        values = values if best is None else values - np.asarray(best)
        ax = axes(ax, "History.plot")
        ax.plot(counts, values, **style)
        if best is not None or (values > 0).all():
            ax.set_yscale("log")
        what = {"nfev": "evaluations", "nit": "iterations", "time": "seconds"}[x]
        ax.set(xlabel=what, ylabel=y if best is None else f"{y} - best")
        if "label" in style:
            ax.legend()
        return ax


def _is_number(x: Any) -> bool:
    """Whether something is a number, or an array of one a fit."""
    if isinstance(x, bool | int | float | np.generic):
        return True
    return _arrays.library(x) is not None and len(x.shape) <= 1


def _host(x: Any) -> Any:
    return np.asarray(to_host(x)) if _arrays.library(x) is not None else x
