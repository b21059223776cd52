"""State in 8 bits: a code for each number, and for each block of numbers the largest size among them.

The maths is elementwise but for one thing, the largest number of a block, and is made of operations that every runner
rounds alike. Codes are the integers that storing them as int8 or uint8 truncates to.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

BLOCK = 128
"""Numbers that share a scale: 1/32 byte each for the scale, in float32."""
LEAST = 4096
"""Elements from which on a parameter has its state in codes: smaller ones are few, and biases are delicate."""
CODES = {"signed": "int8", "square": "uint8"}
"""For each kind of state the dtype of its codes."""
SCALE = "precision.scale."
"""What stands before the name of a slot in the name of the one with its scales."""

NDArray = np.ndarray[Any, Any]


def is_scale(name: str) -> bool:
    """Whether a slot has one number a block."""
    return name.startswith(SCALE)


def count(size: int) -> int:
    """Return how many blocks so many numbers have; the last one may be short."""
    return -(-size // BLOCK)


def first_code(value: float, kind: str) -> float:
    """Return the code of a number that is the largest of its block."""
    return math.copysign(127.0 if kind == "signed" else 255.0, value) if value else 0.0


def dequantize(xp: Any, code: Any, scale: Any, kind: str) -> Any:
    """Return the numbers that codes stand for: (c/127)²·s with the sign of c, or (c/255)⁴·s."""
    if kind == "signed":
        return code * xp.abs(code) * (1 / 16129) * scale  # 16129 · fl(1/16129) is 1, so that the scale comes back
    root = code * code * (1 / 65025)  # and so is 65025 · fl(1/65025)
    return root * root * scale


def quantize(xp: Any, x: Any, size: Any, scale: Any, kind: str) -> Any:
    """Return the codes whose roots are nearest; ``size`` is that of x. A square becomes 0 only if it is.

    A block of zeros has the scale 0, one with an infinity or a NaN such a one.
    """
    root = xp.sqrt(size / scale)
    if kind == "signed":
        near = xp.where(root >= 0.0, root * 127.0 + 0.5, 0.0)
        return xp.where(x < 0.0, -near, near)
    near = xp.where(root >= 0.0, xp.sqrt(root) * 255.0 + 0.5, 0.0)
    return xp.where(size > 0.0, xp.maximum(near, 1.0), near)


def largest(xp: Any, size: Any) -> Any:
    """Return the largest number of each block of an array, in C order."""
    flat = xp.reshape(size, (-1,))
    rest = -flat.shape[0] % BLOCK
    if rest:
        flat = xp.concat([flat, xp.zeros_like(xp.broadcast_to(flat[:1], (rest,)))])
    return xp.max(xp.reshape(flat, (-1, BLOCK)), axis=1)


def spread(xp: Any, scale: Any, like: Any) -> Any:
    """Return an array that has the scale of its block for each element."""
    wide = xp.broadcast_to(xp.reshape(scale, (-1, 1)), (scale.shape[0], BLOCK))
    return xp.reshape(xp.reshape(wide, (-1,))[: math.prod(like.shape)], like.shape)


def fill(out: NDArray, scale: NDArray) -> None:
    """Spread scales over consecutive elements that begin with a block."""
    whole = out.size // BLOCK
    out[: whole * BLOCK].reshape(whole, BLOCK)[...] = scale[:whole, None]
    out[whole * BLOCK :] = scale[whole:]


def fill_largest(size: NDArray, out: NDArray) -> None:
    """Give each of consecutive elements the largest number of its block."""
    whole = out.size // BLOCK
    found = np.empty(count(out.size), out.dtype)
    np.max(size[: whole * BLOCK].reshape(whole, BLOCK), axis=1, out=found[:whole])
    if len(found) > whole:
        found[whole] = size[whole * BLOCK :].max()
    fill(out, found)
