"""Which runner serves which parameters."""

from __future__ import annotations

from typing import Any

from xopt import _arrays
from xopt._layout import Layout
from xopt._runners import eager, numba
from xopt._runners.cuda import Cuda
from xopt._runners.numba import Numba
from xopt._runners.tiled import Tiled

_TILED, _NUMBA, CUDA = Tiled(), Numba(), Cuda()


def choose(layout: Layout, runner: Any = None) -> Any:
    """Return the runner for these parameters: the best there is, or the one that was asked for."""
    if runner == "eager":
        return eager
    if isinstance(runner, Tiled | Numba):
        return runner
    if runner == "cuda" or isinstance(runner, Cuda):
        cuda = CUDA if runner == "cuda" else runner
        why = cuda.refuses(layout.library, layout.leaves)
        if why:
            raise ValueError(why)
        return cuda
    if runner not in (None, "tiled", "numba"):
        raise ValueError(
            f'runner={runner!r}: there are "eager", "tiled", "numba" and "cuda", and None for the best available'
        )
    shared = layout.library in ("numpy", "torch") and all(_arrays.host_view(x) is not None for x in layout.leaves)
    if not shared and runner is not None:
        raise ValueError(f'runner="{runner}" needs arrays that share memory with NumPy; these are of {layout.library}')
    if not shared:
        return eager if CUDA.refuses(layout.library, layout.leaves) else CUDA
    missing = numba.missing() if runner != "tiled" else ""
    if missing and runner == "numba":
        raise ValueError(f'runner="numba": {missing}')
    return _TILED if missing or runner == "tiled" else _NUMBA
