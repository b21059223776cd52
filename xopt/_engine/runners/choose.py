"""Which runner serves which parameters. The module of a runner is imported when it is chosen."""

from __future__ import annotations

import importlib
from typing import Any

from xopt._arrays.layout import Layout
from xopt._arrays.once import once

_NAMES = ("eager", "tiled", "llvm", "cuda")


@once
def backend(name: str) -> Any:
    """Return the runner of a name, of which there is one."""
    if name == "eager":
        return importlib.import_module("xopt._engine.runners.eager")
    return getattr(importlib.import_module(f"xopt._engine.runners.{name}.runner"), name.capitalize())()


def choose(layout: Layout, runner: Any = None) -> Any:
    """Return the runner for these parameters: the best there is, or the one that was asked for."""
    if runner == "eager":
        return backend("eager")
    if runner not in (None, *_NAMES) and not hasattr(runner, "prepare"):
        raise ValueError(
            f'runner={runner!r}: there are "eager", "tiled", "llvm" and "cuda", and None for the best available'
        )
    name = getattr(runner, "name", runner)
    if name == "cuda":
        cuda = backend("cuda") if runner == "cuda" else runner
        why = cuda.refuses(layout.library, layout.leaves)
        if why:
            raise ValueError(why)
        return cuda
    if runner is not name:
        return runner
    shared = all(layout.library.host_view(x) is not None for x in layout.leaves)
    if not shared and runner is not None:
        raise ValueError(f'runner="{runner}" needs arrays that share memory with NumPy; these are of {layout.library}')
    if not shared:
        served = layout.library.cuda and not backend("cuda").refuses(layout.library, layout.leaves)
        return backend("cuda" if served else "eager")
    missing = "" if runner == "tiled" else importlib.import_module("xopt._engine.runners.llvm.compiler").missing()
    if missing and runner == "llvm":
        raise ValueError(f'runner="llvm": {missing}')
    return backend("tiled" if missing or runner == "tiled" else "llvm")
