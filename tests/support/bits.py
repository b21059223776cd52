"""Arrays as short texts that are the same if every bit is: what pytest can show where they differ."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np


def bits(x: Any) -> Any:
    """Return what is compared of arrays, in dicts, lists and tuples: dtype, shape and a digest of the bytes.

    Of the bytes themselves pytest makes a diff on CI, which for a hundred thousand of them takes hours.
    """
    if isinstance(x, dict):
        return {n: bits(y) for n, y in x.items()}
    if isinstance(x, list | tuple):
        return [bits(y) for y in x]
    if hasattr(x, "dtype"):
        x = np.asarray(x)
        return f"{x.dtype} {x.shape} {hashlib.blake2b(x.tobytes(), digest_size=8).hexdigest()}"
    return x
