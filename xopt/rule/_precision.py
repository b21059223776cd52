"""How a rule keeps parameters and state, as a component; and the key of a state that says so, where no rule does."""

from __future__ import annotations

import functools
import json
from typing import Any, Literal, TypeAlias

from xopt._engine.program import storage as _storage
from xopt._engine.program.contract import ComponentSpec
from xopt.rule._component import Component
from xopt.rule._fields import static

Rounding: TypeAlias = Literal["nearest", "stochastic", "kahan"]
StateDType: TypeAlias = Literal["float16", "bfloat16", "float32", "int8"] | None

_MARK = f"{_storage.LABEL}="
_LONGEST = 200


class StoragePrecision(Component):
    """Keeps a master copy, or what rounding has lost, in its state."""

    rounding: Rounding = "nearest"
    master_weights: bool = False
    state_dtype: Literal["float16", "bfloat16", "float32", "int8", None] = static(default=None)
    seed: int = static(default=0, ge=0, le=2**32 - 1)

    @staticmethod
    def host(h: Any, xp: Any) -> dict[str, Any]:
        halves = {"low": h.t % 65536, "high": h.t // 65536 % 65536}
        return halves | {"seed_low": float(h.seed % 65536), "seed_high": float(h.seed // 65536)}

    @staticmethod
    def update(h: Any, xp: Any, p: Any, g: Any) -> Any:
        return g

    def _label(self) -> str:
        return _storage.LABEL

    def _spec(self, key: str, order: tuple[int, ...]) -> ComponentSpec:
        storage = _storage.StoragePolicy(self.rounding, self.master_weights, self.state_dtype)
        spec = super()._spec(key, order)._replace(storage=storage)
        return spec if self.rounding == "stochastic" else spec._replace(host=None)


StoragePrecision.__name__ = "Precision"  # what users write, in messages and files


def is_default(*words: Any) -> bool:
    """Whether rounding, master_weights, state_dtype and seed are their defaults, by type and value."""
    return [(type(x), x) for x in words] == [(str, "nearest"), (bool, False), (type(None), None), (int, 0)]


def asked(rule: Any, rounding: Rounding, master_weights: bool, state_dtype: StateDType, seed: int) -> StoragePrecision:
    """Return the component for what a caller asks for, or say why it does not go with the rule."""
    made = StoragePrecision(rounding=rounding, master_weights=master_weights, state_dtype=state_dtype, seed=seed)
    return checked(rule, made)


def checked(rule: Any, link: StoragePrecision) -> StoragePrecision:
    """Return the component, or say why it does not go with the rule."""
    if link.rounding != "nearest" and link.master_weights:
        raise ValueError(f"Precision: rounding={link.rounding!r} and master_weights=True; one is enough")
    if link.seed != 0 and link.rounding != "stochastic":
        raise ValueError(f"Precision: seed={link.seed!r} does nothing without rounding='stochastic'")
    if link.state_dtype == "int8" and not any(other.part._moments() for other in rule._all_links()):
        raise ValueError(
            f"Precision: state_dtype='int8', but {rule!r} has no averages that may be kept in 8 bits, as Adam, Lion "
            f"and SGD have"
        )
    return link


def mark(link: StoragePrecision) -> str:
    """Return the key by which the slots of a state say how it is kept: text, which in a pytree is no leaf."""
    recorded = {n: v for n, v in link._values().items() if v != link._fields[n].default}
    return _MARK + json.dumps(recorded, sort_keys=True)


@functools.lru_cache(maxsize=64)
def _read(key: str) -> StoragePrecision | None:
    """Return the component that a key stands for; None for one that stands for none."""
    try:
        return StoragePrecision(**json.loads(key.removeprefix(_MARK)))
    except (TypeError, ValueError):
        return None


def recorded(slots: Any) -> tuple[str, StoragePrecision] | None:
    """Return by which key the slots of a state say how it is kept, and the component; None where they say nothing."""
    for n, x in slots.items() if isinstance(slots, dict) else ():
        if isinstance(n, str) and n.startswith(_MARK) and len(n) < _LONGEST and isinstance(x, dict) and not x:
            link = _read(n)
            if link is not None:
                return n, link
    return None
