"""Norms that are computed for metrics alone: components that change nothing, put into the chains of a rule."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from xopt._engine.metrics import OWN, UPDATE, rows
from xopt._engine.program.contract import Chains, ComponentSpec
from xopt.rule._component import Array, Component, H
from xopt.rule._elementwise import abs2
from xopt.rule._fields import static

NORMS = ("grad_norm", "param_norm", "update_norm")
"""What may be asked for."""


class Norms(Component):
    """Euclidean norms of the whole tree: of what comes in, and of the parameters."""

    entering: Literal["", "grad_norm", "update_norm"] = ""
    """What the norm of what comes in is called; "" for none."""
    standing: bool = static(default=False)
    """Whether that of the parameters is computed."""

    @staticmethod
    def reduce(h: H, xp: Any, p: Array, g: Array) -> dict[str, Array]:
        found = {"g2": abs2(xp, g)} if h.entering else {}
        return {**found, "p2": abs2(xp, p)} if h.standing else found

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        found = {"norm": xp.sqrt(h.g2)} if h.entering else {}
        return {**found, "param_norm": xp.sqrt(h.p2)} if h.standing else found

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return g

    def _base_spec(self, key: str, order: tuple[int, ...]) -> ComponentSpec:
        shown: dict[str, str] = {self.entering: "norm"} if self.entering else {}
        shown |= {"param_norm": "param_norm"} if self.standing else {}
        return super()._base_spec(key, order)._replace(metrics=shown)


def check_names(metrics: Iterable[str]) -> tuple[str, ...]:
    """Return the names of metrics, or say which of them cannot be asked for."""
    if isinstance(metrics, str) or not isinstance(metrics, Iterable):
        raise TypeError(f"metrics: {metrics!r}, but it must be a tuple of names, of {', '.join(NORMS)}")
    found = tuple(dict.fromkeys(metrics))
    for name in found:
        if name not in NORMS:
            raise ValueError(f"metrics: {name!r} cannot be asked for, but {', '.join(NORMS)} can; all else that a rule "
                             f"knows is there without asking")  # fmt: skip
    return found


def measured(chains: Chains, names: tuple[str, ...]) -> Chains:
    """Return chains that compute these norms beside what they do: in front of the rule's own chain and at its end."""
    if not names:
        return chains
    firsts = {chain[_start(chain)].key for chain in chains.chains}
    free = {row.name for row in rows(chains.chains) if {row.key} == firsts}  # which the first component has anyway
    grads, params = "grad_norm" in names and "grad_norm" not in free, "param_norm" in names
    front = Norms(entering="grad_norm" if grads else "", standing=params) if grads or params else None
    back = Norms(entering="update_norm") if "update_norm" in names else None
    last = max((chain[_end(chain) - 1].order for chain in chains.chains), default=())
    for spec in (spec for chain in chains.chains for spec in chain if back and spec.on_params):
        if spec.order <= last:
            raise ValueError(
                f"metrics: update_norm is that of the step of all parameters, but {spec.key} follows the step of a "
                f"group alone; put it behind the groups"
            )
    made = []
    for chain in chains.chains:
        i, j = _start(chain), _end(chain)
        before = (front._spec(OWN, (-1, 1 << 30)),) if front else ()
        after = (back._spec(UPDATE, (*last, 1 << 30)),) if back else ()
        made.append((*chain[:i], *before, *chain[i:j], *after, *chain[j:]))
    return Chains(made, chains.of)


def _start(chain: tuple[ComponentSpec, ...]) -> int:
    """Return where the rule's own chain begins, behind what is put around it."""
    return next(i for i, spec in enumerate(chain) if spec.order[0] >= 0)


def _end(chain: tuple[ComponentSpec, ...]) -> int:
    """Return where the step is known, before it is added."""
    return next((i for i, spec in enumerate(chain) if spec.on_params), len(chain))
