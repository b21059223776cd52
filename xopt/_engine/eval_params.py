"""The parameters to evaluate, where these are not the ones that are trained: averages, read out of the state."""

from __future__ import annotations

import inspect
from typing import Any

from xopt import _arrays
from xopt._engine.executor import Executor
from xopt._engine.program.contract import BucketStep, StepScalars
from xopt._engine.program.storage import ERROR, MASTER, LeafStorage
from xopt._engine.runners.choose import backend


def evaluated(executor: Executor, state: Any) -> Any:
    """Return what the last component with a ``readout`` makes of each parameter, in new arrays; of others, a copy.

    Before the first step nothing has been averaged: all are copies. Steps that were held back are not counted.
    """
    layout, xp = executor.layout, executor.layout.xp
    slots = executor.state.check(state)
    out: list[Any] = [None] * len(layout.leaves)
    taken = executor.clocks(state.step + 1, state.carry)[""] - 1
    if not (isinstance(taken, int) and taken == 0):
        for work in executor.works("p", layout.leaves, layout.leaves, slots, None, None, False):
            for k, x in zip(work.leaves, _column(executor, work, state, taken), strict=True):
                out[k] = x
    for k, p in enumerate(layout.leaves):
        if out[k] is None:
            out[k] = xp.asarray(_arrays.detached(p), copy=True)
        elif not isinstance(taken, int):
            out[k] = xp.where(taken > 0, out[k], p)
    return layout.params(out)


def _whole(arrays: dict[str, Any]) -> Any:
    """Return the parameter with all digits that are kept of it."""
    p = arrays["p"] if arrays.get(MASTER) is None else arrays[MASTER]
    return p if arrays.get(ERROR) is None else p + arrays[ERROR]


def _column(executor: Executor, work: BucketStep, state: Any, taken: Any) -> list[Any]:
    """Compute the readout of the leaves of one bucket after so many steps, if not 0."""
    xp, places = work.xp, [i for i, spec in enumerate(work.specs) if spec.readout]
    if not places:
        return [None] * len(work.leaves)
    i = places[-1]
    spec = work.specs[i]
    assert spec.readout is not None
    readout: Any = spec.readout
    names = [n for n in list(inspect.signature(readout).parameters)[3:] if spec.slot(n) in work.loads]
    t = taken if isinstance(taken, int) else xp.maximum(taken, xp.ones_like(taken))
    values = StepScalars([])
    executor.scalars.open(spec, i, executor.step(t), executor.resolve(t), work, values, state.carry)
    found, eager = [], backend("eager")
    with work.library.no_grad():
        for k in range(len(work.leaves)):
            arrays = eager.compute_arrays(work, k, work.real)
            storage = LeafStorage(work.specs, [None] * len(work.specs), xp, arrays)
            own = {"p": _whole(arrays), **{n: storage.read(spec.slot(n)) for n in names}}
            [x] = eager.run_hook(work, spec, "readout", _call(readout), own, values.specs[0], k, work.real).values()
            found.append(eager.restore(work, xp.asarray(x, copy=True), work.loads["p"][k]))
    return found


def _call(readout: Any) -> Any:
    return lambda h, xp, x: readout(h, xp, x["p"], **{n: own for n, own in x.items() if n != "p"})
