"""What `minimize` needs of a run, whether a solver or a rule takes the steps."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from typing import Any

from xopt._arrays import Library
from xopt.solvers._differences import evaluations
from xopt.solvers._objective import Fun
from xopt.solvers._space import checked_value
from xopt.solvers._stopping import LIMIT, Limits, Stop


class Run(ABC):
    """A point, and the iterations that lead on from it, one at a time."""

    fun: Fun
    value: Any = math.nan
    """The value at the point, a number or a 0-d array; NaN where it is not known."""
    together: Any = None
    """The ranks of a run on many processes."""
    hessian: Any = None
    """The Hessian, of a method that uses it."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.nit = self.nfev = 0
        self.began = time.monotonic()

    @property
    @abstractmethod
    def x(self) -> Any:
        """The parameters, in memory of their own."""

    @property
    @abstractmethod
    def gradient(self) -> Any:
        """The gradient there, in memory of its own."""

    def hess_inv(self) -> Any:
        """Return the inverse of the Hessian as the method knows it, at the end of the run; None if it knows none."""
        return None

    def hess(self) -> Any:
        """Return the Hessian at the end of the run as a matrix, if the method has it; else None."""
        return None

    @abstractmethod
    def begin(self) -> None:
        """Evaluate the start."""

    @abstractmethod
    def iterate(self) -> None:
        """Take a step, or raise `Stop`."""

    @abstractmethod
    def settle(self) -> None:
        """Go to the point that is to be returned, after a run that was broken off."""

    def check_start(self, value: float, largest: float) -> None:
        """Refuse a start where the value or the largest slope is infinite or NaN."""
        if not math.isfinite(value) or not math.isfinite(largest):
            raise ValueError(f"x0: the value there is {value}, its largest slope {largest}")

    def check_evaluations(self) -> None:
        """Stop where one more evaluation is too many."""
        if self.nfev + 1 > self.limits.maxfun:
            raise Stop(LIMIT, f"stopped: maxfun = {evaluations(self.fun, self.nfev)} evaluations")

    def evaluated(self, library: Library, x: Any) -> tuple[Any, Any]:
        """Return the value at parameters, checked, and the gradient as it was given."""
        value, grads = self.fun(x)
        self.nfev += 1
        return checked_value(library, value), grads
