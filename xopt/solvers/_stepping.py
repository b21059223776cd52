"""Iterations of a rule, in place, that look at the value every so many steps."""

from __future__ import annotations

import math
from typing import Any

from xopt import _arrays
from xopt._arrays.layout import Layout
from xopt.optimizer import Optimizer
from xopt.rule import FunctionalOptimizer, RunnerName
from xopt.solvers._objective import Fun
from xopt.solvers._run import Run
from xopt.solvers._space import gradients, numbers
from xopt.solvers._stopping import STUCK, Limits, Stop


class Stepping(Run):
    """A rule at a point."""

    def __init__(
        self,
        fun: Fun,
        layout: Layout,
        rule: FunctionalOptimizer,
        limits: Limits,
        *,
        every: int,
        runner: RunnerName | None,
    ) -> None:
        super().__init__(limits)
        self.layout = layout
        copies = [
            _arrays.copied(layout.library, layout.xp, p, d.name)
            for p, d in zip(layout.leaves, layout.dtypes, strict=True)
        ]
        self.fun, self.every = fun, every
        self.optimizer = Optimizer(layout.tree(copies), rule, runner=runner)
        if "lossscale.scale" in self.optimizer._executor.state.carried:
            raise ValueError("rule: LossScale divides by a scale, but minimize multiplies nothing; leave it out")
        self.takes_value = "value" in self.optimizer._executor.inputs
        self.g: Any = None
        self.known = False
        """Whether value and gradient are those of the parameters as they are."""
        self.seen = self.largest = math.inf
        """The value and the largest slope when they were last looked at."""
        self.end: Stop | None = None

    @property
    def x(self) -> Any:
        """The parameters, in arrays that later steps do not write into."""
        return self.layout.tree([self._copied(p) for p in Layout(self.optimizer.params).leaves])

    @property
    def gradient(self) -> Any:
        if not self.known:
            return None
        return self.layout.tree([None if g is None else self._copied(g) for g in self.layout.gradients(self.g)])

    def _copied(self, x: Any) -> Any:
        return self.layout.xp.asarray(_arrays.detached(x), copy=True)

    def settle(self) -> None:
        """Say so if the value at the last point is not known."""
        if not self.known:
            self.value = math.nan

    def begin(self) -> None:
        self._evaluate()
        self.seen, self.largest = self._look()
        self.check_start(self.seen, self.largest)

    def iterate(self) -> None:
        if self.end is not None:
            raise self.end
        if self.nit % self.every == 0 or self.nit >= self.limits.maxiter:
            self.limits.check(self.seen, self.largest, self.nit, self.began)
        self.check_evaluations()
        given = {"value": self.value} if self.takes_value else {}
        self.known = False
        self.optimizer.step(self.g, **given)
        self.nit += 1
        self._evaluate()
        if self.nit % self.every == 0 or self.nit >= self.limits.maxiter:
            before = self.seen
            self.seen, self.largest = self._look()
            self.end = self.limits.progress(before, self.seen)
            if not math.isfinite(self.seen) or not math.isfinite(self.largest):
                self.end = Stop(STUCK, f"stopped: the value is {self.seen}, the largest slope {self.largest}")

    def _evaluate(self) -> None:
        value, g = self.evaluated(self.layout.library, self.optimizer.params)
        self.g = self.layout.tree(gradients(self.layout, g))
        self.value, self.known = value, True

    def _look(self) -> tuple[float, float]:
        """Bring the value and the largest slope to the host."""
        xp, layout = self.layout.xp, self.layout
        leaves = [g for g in layout.gradients(self.g) if g is not None and 0 not in g.shape]
        tops = [xp.reshape(xp.max(xp.abs(_arrays.detached(g))), (1,)) for g in leaves]
        value, *found = numbers(xp, self.value, tops)
        return value, max(found, default=0.0)
