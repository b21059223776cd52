"""How parameters and state are kept between steps: what is rounded when it is stored, and what makes up for that."""

from __future__ import annotations

from typing import Any, NamedTuple

from xopt import _arrays
from xopt._pieces import Piece

PLACE = "precision"
MASTER, ERROR = f"{PLACE}.master", f"{PLACE}.error"
HALVES = ("float16", "bfloat16")


class Storage(NamedTuple):
    """What the caller wants, for all parameters of a tree."""

    rounding: str = "nearest"
    master_weights: bool = False
    state_dtype: str | None = None

    def fitted(self, piece: Piece, dtype: _arrays.DType) -> Piece:
        """Return the link that keeps what parameters of a dtype need: a master copy, an error, or nothing."""
        slots: dict[str, Any] = {"master": "p"} if self.master_weights and dtype.name in HALVES else {}
        if self.rounding == "kahan":
            slots = {"error": 0.0}
        noisy = self.rounding == "stochastic" and dtype.name in HALVES
        key = (PLACE, *slots, noisy, dtype.name if "error" in slots or noisy else "")
        return piece._replace(slots=slots, statics={**piece.statics, "stored": dtype.name, "noisy": noisy}, key=key)

    def slot(self, piece: Piece, name: str, dtype: _arrays.DType, usual: str) -> str:
        """Name the dtype of a slot whose arithmetic is done in ``usual``.

        Averages and copies of parameters, and gradients that are added up, would stall in fewer digits: they stay.
        """
        if name == ERROR:
            return dtype.name
        copied = piece.slots[name.removeprefix(f"{piece.place}.")] == "p"
        if self.state_dtype is None or copied or piece.after or piece.gates:
            return usual
        if not usual.startswith("complex"):
            return self.state_dtype if _arrays.BYTES[self.state_dtype] < _arrays.BYTES[usual] else usual
        if self.state_dtype in HALVES:
            raise TypeError(
                f"state_dtype={self.state_dtype!r}: {name} is complex, and there are no such complex numbers"
            )
        return _arrays.COMPLEX_OF[self.state_dtype] if usual == "complex128" else usual


USUAL = Storage()
