"""The step of a library that compiles steps itself."""

from __future__ import annotations

from typing import Any

from xopt._engine.executor import Executor, Prepared, Results, StepInputs


class JittedStep:
    """A whole step, compiled once; parameters, slots and carry are donated, all else is an argument."""

    def __init__(self, executor: Executor) -> None:
        def step(ps: Any, slots: Any, carry: Any, gs: Any, clocks: Any, given: Any, inputs: Any) -> Results:
            return executor.prepare(StepInputs(None, clocks, given, inputs), ps, gs, slots, carry).run()

        self._executor = executor
        self._compiled = executor.layout.library.jit(step, given=(0, 1, 2))

    def prepare(self, step: StepInputs, ps: Any, gs: Any, slots: Any, carry: Any) -> Prepared:
        """Make one step ready."""
        executor = self._executor
        if executor.refuses:
            executor.scalars.checked = True
            executor.layout.refuse_nonfinite(gs)
        clocks = {n: executor.state.new_step(x) if isinstance(x, int) else x for n, x in step.clocks.items()}
        return Prepared(
            executor.writing,
            lambda: self._compiled(ps, slots, carry, gs, clocks, step.given, step.inputs),
            lambda _: not any(x.is_deleted() for x in ps),  # what came in may be gone, and what comes out not arrive
        )
