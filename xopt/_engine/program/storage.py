"""How parameters and state are kept between steps: what is rounded when it is stored, and what makes up for that."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from xopt import _arrays
from xopt._engine.program import quantize as _quantize
from xopt._engine.program.contract import ComponentSpec, Filled
from xopt._engine.program.rounding import round_to, stochastic_round
from xopt._engine.program.trace import Tracer
from xopt.random import noise

LABEL = "precision"
MASTER, ERROR = f"{LABEL}.master", f"{LABEL}.error"


class StoragePolicy(NamedTuple):
    """What the caller wants, for all parameters of a tree."""

    rounding: str = "nearest"
    master_weights: bool = False
    state_dtype: str | None = None

    def fitted(
        self, spec: ComponentSpec, dtype: _arrays.DType, codes: Mapping[str, str], first: Mapping[str, Any]
    ) -> ComponentSpec:
        """Return what keeps what parameters of a dtype need: a master copy, an error, scales, or nothing.

        ``first`` has the first values of slots, numbers or functions.
        """
        slots: dict[str, Any] = {"master": "p"} if self.master_weights and dtype.half else {}
        if self.rounding == "kahan":
            slots = {"error": 0.0}
        noisy = self.rounding == "stochastic" and dtype.half
        numbers = {n: first_number(first[n]) for n in codes}
        formula = (
            LABEL,
            *slots,
            noisy,
            dtype.name if "error" in slots or noisy else "",
            *((n, kind, numbers[n]) for n, kind in codes.items()),
        )
        slots |= {_quantize.SCALE.removeprefix(f"{LABEL}.") + n: _scales(first[n]) for n in codes}
        statics = {**spec.statics, "stored": dtype.name, "noisy": noisy, "codes": codes}
        return spec._replace(slots=slots, statics=statics, formula=formula)

    def codes(
        self,
        chain: Iterable[ComponentSpec],
        live: Iterable[str],
        dtype: _arrays.DType,
        size: int,
        path: Callable[[], str],
    ) -> dict[str, str]:
        """Return which slots of a parameter are kept in 8 bits, and how."""
        if self.state_dtype != "int8":
            return {}
        found = {spec.slot(n): kind for spec in chain for n, kind in spec.moments.items()}
        found = {n: found[n] for n in live if n in found}
        if found and dtype.complex:
            raise TypeError(f"{path()}: dtype {dtype.name}, but state_dtype='int8' is for real parameters")
        return found if size >= _quantize.LEAST else {}

    @property
    def narrow(self) -> bool:
        """Whether state is kept in half precision, which complex numbers have not."""
        return self.state_dtype not in (None, "int8") and _arrays.TABLE[self.state_dtype].half

    def slot(
        self,
        spec: ComponentSpec,
        name: str,
        dtype: _arrays.DType,
        usual: str,
        codes: Mapping[str, str],
        path: Callable[[], str],
    ) -> str:
        """Name the dtype of a slot whose arithmetic is done in ``usual``.

        Averages and copies of parameters, and gradients that are added up, would stall in fewer digits: they stay.
        """
        if name in codes:
            return _quantize.CODES[codes[name]]
        if name == ERROR:
            return dtype.name
        if spec.tree is not None:
            if self.state_dtype is not None:
                raise TypeError(f"{path()}: state_dtype={self.state_dtype!r}, but the state of {spec.key} is not ours")
            return usual
        copied = spec.slots[name.removeprefix(f"{spec.key}.")] == "p"
        if self.state_dtype in (None, "int8") or copied or spec.on_params or spec.gates:
            return usual
        assert self.state_dtype is not None
        if not usual.startswith("complex"):
            return min(self.state_dtype, usual, key=lambda name: _arrays.TABLE[name].itemsize)
        if self.narrow:
            raise TypeError(
                f"{path()}: state_dtype={self.state_dtype!r}, but {name} is complex, and there are no such complex "
                f"numbers"
            )
        return _arrays.COMPLEX_OF[self.state_dtype] if usual == "complex128" else usual


USUAL = StoragePolicy()


def first_number(first: Any) -> float:
    """Return the number that a slot in codes begins with."""
    return first.number if isinstance(first, Filled) else 0.0 if callable(first) else first


@functools.lru_cache(maxsize=1024)
def _scales(first: Any) -> Callable[[Any, Any, Any], Any]:
    """Return what makes the scales of the blocks of a slot, from what makes the slot or is its first value."""

    def scales(h: Any, xp: Any, p: Any) -> Any:
        shape = first(h, xp, p).shape if callable(first) else p.shape
        size = abs(first_number(first))
        return xp.full(_quantize.count(math.prod(shape)), size, dtype=xp.float32, **_arrays.beside(p))

    return scales


class LeafStorage:
    """How one leaf is stored: what a step computes with in the place of what is stored, and what is stored of it."""

    def __init__(self, specs: Iterable[ComponentSpec], hs: list[Any], xp: Any, slots: Mapping[str, Any]) -> None:
        self._xp, self._slots = xp, slots
        self._h: Any
        found = ((spec, h) for spec, h in zip(specs, hs, strict=False) if spec.storage)
        spec, self._h = next(found, (None, None))
        statics, own = (spec.statics, spec.slots) if spec else ({}, {})
        self._stored, self._noisy = statics.get("stored", ""), statics.get("noisy", False)
        self._codes: Mapping[str, str] = statics.get("codes", {})
        self.master = slots[MASTER] if "master" in own else None
        """The parameter with all its digits, where it is kept beside the one that is stored."""
        self.error = slots[ERROR] if "error" in own else None
        """What rounding has lost before."""

    def read(self, slot: str) -> Any:
        """Return the numbers of a slot; of codes, what they stand for."""
        x = self._slots.get(slot)
        if slot not in self._codes:
            return x
        scale = self._slots[_quantize.SCALE + slot]
        scale = scale if isinstance(self._xp, Tracer) else _quantize.spread(self._xp, scale, x)
        return _quantize.dequantize(self._xp, x, scale, self._codes[slot])

    def written(self, slot: str, x: Any) -> dict[str, Any]:
        """Return what is stored for the new numbers of a slot."""
        if slot not in self._codes:
            return {slot: x}
        xp = self._xp
        size = xp.abs(x)
        if isinstance(xp, Tracer):
            scale = top = xp.largest(size)
        else:
            top = _quantize.largest(xp, size)
            scale = _quantize.spread(xp, top, size)
        return {slot: _quantize.quantize(xp, x, size, scale, self._codes[slot]), _quantize.SCALE + slot: top}

    def land(self, p: Any, u: Any) -> Any:
        """Add a step to a parameter, with what rounding has lost before."""
        return p + u if self.error is None else round_to(self._xp, p + (u + self.error), self._stored)

    def landed(self, p: Any, step: Any, landed: Any) -> Any:
        """Return the new parameter, if it is more than the old one plus the step."""
        if self.error is not None:
            if landed is not None:
                raise TypeError(
                    'rounding="kahan" with a component that moves the new parameter: use master_weights=True there'
                )
            return self.land(p, step)
        if not self._noisy:
            return landed
        xp, h = self._xp, self._h
        key = (h.low, h.high, h.leaf, h.seed_low, h.seed_high, h.chunk)
        made = xp.noise(*key) if isinstance(xp, Tracer) else noise(xp, p, *key)
        x = p + step if landed is None else landed
        found = stochastic_round(xp, x, self._stored, made)
        return xp.known(f"stochastic_{self._stored}", found, x, made) if isinstance(xp, Tracer) else found

    def lost(self, p: Any, step: Any, landed: Any) -> Any:
        """Return what rounding has lost now."""
        return (step + self.error) - (landed - p)
