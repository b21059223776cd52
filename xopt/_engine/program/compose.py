"""One step of one leaf: a chain run on arrays, or on symbols that stand for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from xopt._engine.program.contract import ComponentSpec, chosen
from xopt._engine.program.storage import ERROR, MASTER, LeafStorage


class LeafUpdate(NamedTuple):
    """What a chain makes of a gradient."""

    step: Any
    landed: Any = None
    """The new parameter, if more than the old one plus the step: made by components behind the step, or by rounding."""
    keep: Callable[[Any, Any], Any] | None = None
    """``keep(new, old)``, where a component may have held the step back."""
    master: Any = None
    """The parameter with all its digits, where it is kept beside the one that is stored."""

    def params(self, p: Any) -> Any:
        """Return the new parameter."""
        old = p if self.master is None else self.master
        new = old + self.step if self.landed is None else self.landed
        return self.keep(new, old) if self.keep else new

    def change(self, p: Any) -> Any:
        """Return what is added to the parameter."""
        if self.master is None:
            u = self.step if self.landed is None else self.landed - p
        else:
            u = (self.master + self.step if self.landed is None else self.landed) - p
        return self.keep(u, None) if self.keep else u


def compose(
    specs: tuple[ComponentSpec, ...],
    hs: list[Any],
    xp: Any,
    p: Any,
    g: Any,
    slots: Mapping[str, Any],
    upto: int | None = None,
) -> tuple[LeafUpdate, dict[str, Any]]:
    """Run a chain on arrays, or on symbols that stand for them: what becomes of the parameter, and the new slots.

    With ``upto``, stop at that component and return the terms that it wants summed, in place of slots.
    """
    step, moved, x, grad = g, None, g, g
    new: dict[str, Any] = {}
    go: Any = None
    storage = LeafStorage(specs, hs, xp, slots)
    p = p if storage.master is None else storage.master

    def keep(made: Any, old: Any) -> Any:
        return made if made is old else chosen(xp, go, made, old)

    for i, spec in enumerate(specs):
        if spec.storage:
            continue
        if spec.on_params and moved is None:
            step, x = x, storage.land(p, x)
            moved = x
        if spec.enter is not None:
            x = grad = spec.enter(hs[i], x)
        names = [n for n in spec.slots if not spec.elementwise or spec.slot(n) in slots]
        own = {n: storage.read(spec.slot(n)) for n in names}
        if i == upto and spec.tree is not None:
            return LeafUpdate(x), {"p": p, **own}
        if i == upto:
            assert spec.reduce is not None
            more = {"grad": grad} if spec.asks_sum else {}
            return LeafUpdate(x), spec.reduce(hs[i], xp, p, x, **own, **more)
        own |= {n: new[key] for n, key in spec.borrows.items()}
        out = spec.update(hs[i], xp, p, x, **own, **({"grad": grad} if spec.asks else {}))
        x, *rest = out if isinstance(out, tuple) else (out,)
        if len(rest) != len(spec.slots):
            raise TypeError(
                f"{spec.key}: update returned {len(rest)} state arrays after the step, but its signature declares "
                f"{len(spec.slots)} ({', '.join(spec.slots) or 'none'})"
            )
        for n, made in zip(spec.slots, rest, strict=True):
            for name, stored in storage.written(spec.slot(n), made).items():
                new[name] = stored if go is None or stored is None else keep(stored, slots.get(name, stored))
        if spec.gates:
            go = hs[i].go if go is None else go * hs[i].go
    step, landed = (x, None) if moved is None else (step, None if x is moved else x)
    landed = storage.landed(p, step, landed)
    outcome = LeafUpdate(step, landed, None if go is None else keep, storage.master)
    if storage.master is not None:
        new[MASTER] = outcome.params(p)
    if storage.error is not None:
        lost = storage.lost(p, step, landed)
        new[ERROR] = lost if go is None else keep(lost, storage.error)
    return outcome, new
