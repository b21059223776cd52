"""What a rule does with arrays: imported with the first step, so that naming a rule costs next to nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from xopt._arrays.layout import Layout
from xopt._engine import curvature as _curvature
from xopt._engine.eval_params import evaluated
from xopt._engine.executor import Executor
from xopt._engine.metrics import shaped
from xopt._engine.program.contract import Chains
from xopt.rule._metrics import check_names, measured

ChainsOf: TypeAlias = Callable[[Layout], Chains]
"""The components that each leaf of a tree goes through."""


def first(chains: ChainsOf, params: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Return the number of steps, the slots and the carried scalars before the first step."""
    layout = Layout(params)
    executor = Executor(chains(layout), layout)
    slots = {n: layout.tree(column) for n, column in executor.state.new_slots().items()}
    return executor.state.new_step(), slots, executor.new_carry()


def stepped(
    chains: ChainsOf, params: Any, grads: Any, state: Any, runner: Any, inputs: Mapping[str, Any], change: bool,
    metrics: Iterable[str] | None,
) -> tuple[Any, tuple[Any, dict[str, Any], dict[str, Any]], dict[str, Any]]:  # fmt: skip
    """Take one step: return new parameters (or, with ``change``, what to add), what the new state is made of, metrics.

    Of the metrics those in ``metrics`` are computed for their own sake; with None there are none.
    """
    names = () if metrics is None else check_names(metrics)
    layout = Layout(params)
    executor = Executor(measured(chains(layout), names), layout, runner)
    gs = layout.gradients(grads)
    slots = executor.state.check(state)
    step = executor.begin(state.step, state.carry, inputs)
    ps, slots, carry = executor.run(step, layout.leaves, gs, slots, state.carry, change=change)
    found = {} if metrics is None else shaped(executor.metrics(carry), layout)
    return layout.params(ps), (step.t, {n: layout.tree(column) for n, column in slots.items()}, carry), found


def observed(chains: ChainsOf, params: Any, curvature: Any, state: Any) -> dict[str, Any]:
    """Return the slots with an estimate of the curvature."""
    layout = Layout(params)
    executor = Executor(chains(layout), layout)
    slots = executor.state.check(state)
    made = _curvature.observed(executor, state.step, slots, state.carry, _curvature.checked(executor, curvature))
    new = {n: [y if x is None else x for x, y in zip(made[n], slots[n], strict=True)] for n in made}
    return {**state.slots, **{n: layout.tree(column) for n, column in new.items()}}


def averaged(chains: ChainsOf, params: Any, state: Any) -> Any:
    """Return the parameters to evaluate."""
    layout = Layout(params)
    return evaluated(Executor(chains(layout), layout, "eager"), state)


def reads_params(chains: ChainsOf, like: Any) -> bool:
    """Whether what a step adds to parameters, or its state, is computed with them."""
    layout = Layout(like)
    return any(bucket.plan.reads("p", "u") for bucket in Executor(chains(layout), layout).buckets)


def following(chains: ChainsOf, params: Any) -> list[str]:
    """Return the slots whose first value hangs on the parameters."""
    layout = Layout(params)
    state = Executor(chains(layout), layout).state
    return [n for n in state.live if state.follows(n)]
