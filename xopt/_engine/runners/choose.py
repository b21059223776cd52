"""Which runner serves which parameters."""

from __future__ import annotations

from typing import Any

from xopt._arrays import libraries as _arrays
from xopt._arrays.layout import Layout
from xopt._engine.runners import eager
from xopt._engine.runners.cuda.runner import Cuda
from xopt._engine.runners.numba import runner as numba
from xopt._engine.runners.numba.runner import Numba
from xopt._engine.runners.tiled.runner import Tiled

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
