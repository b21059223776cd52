"""The step of a library that compiles steps itself."""

from __future__ import annotations

from typing import Any

from xopt._engine.executor import Executor, Results, StepInputs


class JittedStep:
    """A whole step, compiled once; parameters, slots and carry are donated, all else is an argument."""

    def __init__(self, executor: Executor) -> None:
        def step(
            ps: Any, slots: Any, carry: Any, gs: Any, clocks: Any, given: Any, inputs: Any
        ) -> tuple[Results, dict[str, Any]]:
            results = executor.run(StepInputs(None, clocks, given, inputs), ps, gs, slots, carry)
            metrics, executor.seen = executor.metrics(results[2]), None
            return results, metrics

        self._executor = executor
        self._compiled = executor.layout.library.jit(step, given=(0, 1, 2))

    def run(self, step: StepInputs, ps: Any, gs: Any, slots: Any, carry: Any) -> Results:
        """Take one step in a ``writing`` block."""
        executor = self._executor
        if executor.refuses:
            executor.scalars.checked = True
            executor.layout.refuse_nonfinite(gs)
        clocks = {n: executor.state.new_step(x) if isinstance(x, int) else x for n, x in step.clocks.items()}
        try:
            results: Results
            results, executor.seen = self._compiled(ps, slots, carry, gs, clocks, step.given, step.inputs)
        finally:  # what came in may be gone, and what comes out may never arrive
            if any(x.is_deleted() for x in ps):
                executor.writing.begin()
        return results
