"""Estimates of the curvature, which come between steps: taken into the slots of the rules that ask for them."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np

from xopt import _arrays
from xopt._arrays import tree as _tree
from xopt._arrays.layout import Layout
from xopt._arrays.scalars import after
from xopt._engine.executor import Executor
from xopt._engine.program import quantize as _quantize
from xopt._engine.program.contract import BucketStep, ComponentSpec, StepScalars
from xopt._engine.program.storage import LeafStorage
from xopt._engine.runners.choose import backend


def check_wanted(executor: Executor) -> None:
    """Refuse an estimate for parameters of which none has a slot for it."""
    specs = [spec for bucket in executor.buckets for spec in bucket.specs]
    if executor.buckets and not any(spec.curvature for spec in specs):
        names = ", ".join(dict.fromkeys(spec.key for spec in specs if not spec.storage))
        raise TypeError(f"update_curvature: no rule here takes estimates of the curvature, as Sophia does: {names}")


def checked(executor: Executor, curvature: Any) -> list[Any]:
    """Return the estimates leaf by leaf, None where there is none or nobody asks, or say which one does not fit.

    A diagonal is real: of complex parameters it is complex only where both parts are parameters of their own.
    """
    check_wanted(executor)
    layout, found = executor.layout, list[Any]()
    for k, x in enumerate(_tree.match(layout.spec, curvature, "curvature")):
        bucket = executor.bucket_of[k]
        wanted = bucket is not None and any(spec.curvature for spec in bucket.specs)
        found.append(_accepted(layout, k, x, bucket is not None and bucket.split) if wanted else None)
    return found


def _accepted(layout: Layout, k: int, x: Any, split: bool) -> Any:
    dtype, xp = layout.dtypes[k], layout.xp
    wide = _arrays.dtype_of(layout.library, xp, dtype.compute if split else dtype.real)
    wide = np.dtype(wide) if isinstance(wide, type) else wide
    own = dtype.half and getattr(x, "dtype", None) == wide  # what is computed in float32 may also be given in it
    return layout.accept(k, x, "curvature", wide if dtype.complex or own else layout.raw_dtypes[k])


def as_gradients(executor: Executor, curvature: Any) -> list[Any]:
    """Return the estimates leaf by leaf in the dtypes of the parameters, to be sent as gradients are."""
    found, layout = checked(executor, curvature), executor.layout
    for k, x in enumerate(found):
        if x is not None and layout.dtypes[k].complex:
            found[k] = _arrays.cast(layout.xp, x, layout.raw_dtypes[k])
        elif x is not None and x.dtype != layout.raw_dtypes[k]:
            raise TypeError(
                f"{layout.path(k, 'curvature')}: dtype {_arrays.dtype_name(x)}, but with comm it must be "
                f"{layout.dtypes[k].name}, that of the gradient"
            )
    return found


def of_gradients(executor: Executor, found: list[Any]) -> list[Any]:
    """Return such estimates as rules take them."""
    layout = executor.layout
    split = [bucket is None or bucket.split for bucket in executor.bucket_of]
    real = [d.complex and not own for d, own in zip(layout.dtypes, split, strict=True)]
    return [x if x is None or not own else layout.xp.real(x) for x, own in zip(found, real, strict=True)]


def observed(
    executor: Executor, taken: Any, slots: dict[str, list[Any]], carry: dict[str, Any], found: list[Any]
) -> dict[str, list[Any]]:
    """Return the slots that change with estimates that come after ``taken`` steps: new arrays, None elsewhere.

    Hyperparameters are those of the step that comes.
    """
    made: dict[str, list[Any]] = {}
    clock = executor.clocks(after(taken), carry)[""]
    for bucket in executor.buckets:
        place = next(((i, spec) for i, spec in enumerate(bucket.specs) if spec.curvature), None)
        picked = [j for j, k in enumerate(bucket.leaves) if found[k] is not None]
        if place is None or not picked:
            continue
        leaves, chains = [bucket.leaves[j] for j in picked], [bucket.chain_of_leaf[j] for j in picked]
        i, spec = place
        names = [n for x in _names(spec) for n in (_quantize.SCALE + x, x) if n in bucket.plan.live]
        loads = {n: [slots[n][k] for k in leaves] for n in names}
        work = BucketStep(
            bucket.specs, executor.layout.library, executor.layout.xp, bucket.dtype, bucket.split,
            {"p": [found[k] for k in leaves], **loads}, (), SimpleNamespace(elementwise=True), backend("eager"), leaves,
            executor.layout.numbers, bucket.chains, np.asarray(chains) if len(bucket.chains) > 1 else None,
        )  # fmt: skip
        values = StepScalars([])
        executor.scalars.open(spec, i, executor.step(clock), executor.resolve(clock), work, values, carry)
        with work.library.no_grad():
            for j, k in enumerate(leaves):
                for n, x in _leaf(work, spec, values, j).items():
                    made.setdefault(n, [None] * len(executor.layout.leaves))[k] = x
    return made


def _names(spec: ComponentSpec) -> list[str]:
    """Return the slots that estimates go into."""
    assert spec.curvature is not None
    return [spec.slot(n) for n in list(inspect.signature(spec.curvature).parameters)[3:]]


def _leaf(work: BucketStep, spec: ComponentSpec, values: StepScalars, j: int) -> dict[str, Any]:
    """Return the new slots of one leaf."""
    xp, eager, names = work.xp, backend("eager"), _names(spec)
    arrays = eager.compute_arrays(work, j, work.real)
    specs = [x._replace(slots={}) if x.storage else x for x in work.specs]  # the parameter stays
    storage = LeafStorage(specs, [None] * len(specs), xp, arrays)
    own = {"p": arrays["p"], **{n: storage.read(n) for n in names}}

    def call(h: Any, xp: Any, x: dict[str, Any]) -> Any:
        hook: Any = spec.curvature
        estimate = x["p"] if spec.enter is None else spec.enter(h, x["p"])
        return hook(h, xp, estimate, *(x[n] for n in names))

    found = eager.run_hook(work, spec, "curvature", call, own, values.specs[0], j, work.real)
    made: dict[str, Any] = {}
    for n, x in zip(names, found.values(), strict=True):
        for name, stored in storage.written(n, x).items():
            like = work.loads[name][j]
            if _quantize.is_scale(name):
                made[name] = _arrays.cast(xp, xp.reshape(stored, like.shape), like.dtype)
            else:
                made[name] = eager.restore(work, xp.asarray(stored, copy=True), like)
    return made
