"""When a run stops, and why."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

CONVERGED, LIMIT, STUCK, INTERRUPTED, STOPPED = 0, 1, 2, 3, 99
NOTHING = 1e-30
"""The part of the first value that is no progress: |x|, whose slope stays 1, falls by a half in every step for ever."""


class Limits(NamedTuple):
    """When to stop."""

    maxiter: float
    gtol: float = 1e-5
    ftol: float = 0.0
    xtol: float = 0.0
    maxfun: float = math.inf
    target: float = -math.inf
    max_time: float = math.inf

    def check(self, value: float, largest: float, nit: int, began: float) -> None:
        """Stop where the gradient is small, the value low, or the time over."""
        if largest <= self.gtol:
            raise Stop(CONVERGED, f"converged: the largest element of the gradient is {largest:.3g} ≤ gtol")
        if value <= self.target:
            raise Stop(CONVERGED, f"converged: the value is {value:.6g} ≤ target")
        if nit >= self.maxiter:
            raise Stop(LIMIT, f"stopped: maxiter = {nit} iterations")
        if time.monotonic() - began > self.max_time:
            raise Stop(LIMIT, f"stopped: max_time = {self.max_time:g} seconds")

    def progress(self, old: float, new: float, moved: float = math.inf, size: float = 1.0) -> Stop | None:
        """Whether a step changed so little that it is the last."""
        if old - new <= self.ftol * max(abs(old), abs(new), 1.0) and self.ftol > 0:
            return Stop(CONVERGED, f"converged: the value went from {old:.9g} to {new:.9g}, which is within ftol")
        if moved <= self.xtol * max(size, 1.0) and self.xtol > 0:
            return Stop(CONVERGED, f"converged: no parameter moved by more than {moved:.3g}, which is within xtol")
        return None


class Progress:
    """What value and gradient have come down to, and in which iteration."""

    def __init__(self) -> None:
        self.lowest = self.least = math.inf
        self.better = 0
        self._nothing = 0.0

    def begin(self, value: float, largest: float) -> None:
        """Note the start."""
        self.lowest, self.least, self._nothing = value, largest, NOTHING * abs(value)

    def stalled(self, value: float, largest: float, nit: int) -> int:
        """Note a point; return for how many iterations neither the value nor the gradient has become smaller."""
        if value < self.lowest - self._nothing or largest < self.least:
            self.lowest, self.least, self.better = min(self.lowest, value), min(self.least, largest), nit
        return nit - self.better


class Stop(Exception):
    """Why a run ended."""

    def __init__(self, status: int, message: str) -> None:
        self.status, self.message = status, message
