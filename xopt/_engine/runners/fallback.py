"""Leaves shared out between two runners: one that is for leaves in C order, and another one for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from xopt._engine.program.contract import BucketStep, StepScalars
from xopt._engine.runners.protocol import Stepper

NDArray = np.ndarray[Any, Any]


class Shared:
    """Work of which one runner does the leaves that are ``good``, and another one the rest."""

    def __init__(self, work: BucketStep, values: StepScalars, good: list[bool], one: Stepper, other: Stepper) -> None:
        self._work, self._values, self._count = work, values, len(good)
        plain, rest = ([k for k, ok in enumerate(good) if ok == wanted] for wanted in (True, False))
        self._parts = [(runner, leaves) for runner, leaves in ((one, plain), (other, rest)) if leaves]

    def _each(self) -> Iterator[tuple[Stepper, list[int], BucketStep, StepScalars]]:
        for runner, leaves in self._parts:
            loads = {n: [column[k] for k in leaves] for n, column in self._work.loads.items()}
            work = replace(self._work, loads=loads, arenas=None, cache=None, where=None)
            yield runner, leaves, work, self._values.of(leaves)

    def prepare(self, into: dict[str, list[Any]] | None) -> Callable[[], dict[str, list[Any]]]:
        """Return a function that runs the whole chain over every leaf."""
        jobs = []
        for runner, leaves, work, values in self._each():
            own = into and {n: [x[k] for k in leaves] for n, x in into.items()}
            jobs.append((leaves, runner.prepare(work, values, own)))

        def finish() -> dict[str, list[Any]]:
            made: dict[str, list[Any]] = {n: [None] * self._count for n in self._work.outputs}
            for leaves, job in jobs:
                for n, column in job().items():
                    for k, x in zip(leaves, column, strict=True):
                        made[n][k] = x
            return made

        return finish

    def sums(self, index: int) -> dict[str, NDArray]:
        """Return the sums that component ``index`` asks for, a vector over the leaves."""
        found = {n: np.empty(self._count) for n in self._work.plan.sums[index].outputs}
        for runner, leaves, work, values in self._each():
            for n, x in runner.sums(work, values, index).items():
                found[n][leaves] = x
        return found
