"""The weight of a penalty behind a rule: times what the components in front make of a gradient that stays the same.

At a minimum of f + λ·r the gradient of f is constant, momentum has settled, and the step is -lr·k·∇f with a number k:
1/(1-μ) for SGD with momentum. A proximal step of the weight lr·λ·k stays there; one of lr·λ is a minimum for λ/k.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

from xopt._arrays import Library
from xopt._engine.program.contract import ComponentSpec
from xopt.rule._component import Component


def check_weights(links: Sequence[Component]) -> None:
    """Refuse a penalty behind components whose step is no multiple of a constant gradient, as far as a chain tells."""
    for i, link in enumerate(links):
        if link._penalty:
            for other in links[:i]:
                if type(other)._route is Component._route:  # all others say for each parameter what they are
                    _check(link, other)


def weighted(links: Sequence[Component], specs: Sequence[ComponentSpec]) -> tuple[ComponentSpec, ...]:
    """Return the components of a chain, with the weights that penalties have behind the components in front."""
    found = list(specs)
    for i, link in enumerate(links):
        if not link._penalty:
            continue
        for other in links[:i]:
            _check(link, other)
        before = tuple(zip(links[:i], specs[:i], strict=True))
        resolve = partial(_resolve, link._penalty, specs[i], before)
        known = all(spec.constants is not None for spec in specs[: i + 1])
        found[i] = specs[i]._replace(resolve=resolve, constants=resolve(1, None, True) if known else None)
    return tuple(found)


def _resolve(
    name: str,
    own: ComponentSpec,
    before: tuple[tuple[Component, ComponentSpec], ...],
    t: Any,
    library: Library | None,
    read: bool,
) -> dict[str, Any]:
    values = dict(_values(own, t, library, read))
    for link, spec in before:
        assert link.steady is not None
        h = SimpleNamespace(**{**spec.statics, **_values(spec, t, library, read)})
        values[name] = values[name] * link.steady(h)
    return values


def _values(spec: ComponentSpec, t: Any, library: Library | None, read: bool) -> dict[str, Any]:
    return spec.resolve(t, library, read) if spec.constants is None else spec.constants


def _check(link: Component, other: Component) -> None:
    if other.steady is not None:
        return
    name, of = type(link).__name__, type(other).__name__
    if other.on_params:
        raise ValueError(f"chain: {name} behind {of} would end beside the minimum; put {name} in front of {of}")
    instead = "use SGD, with any momentum" if hasattr(other, "init") else f"leave {of} out"
    raise ValueError(
        f"chain: {name} behind {of} would end beside the minimum, because what {of} makes of a gradient that stays the "
        f"same is no fixed multiple of it: {instead}, or have the penalty in the loss"
    )
