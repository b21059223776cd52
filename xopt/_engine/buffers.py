"""The memory of the state of an optimizer: for a runner on the host, one buffer a slot and dtype."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np

from xopt import _arrays
from xopt._engine.executor import Executor, Kept

Memory: TypeAlias = list[Kept]

STAGGER = 3
"""Cache lines from where one slot begins in its page to where the next one does; large arrays begin where pages do, and
reads and writes at one place in their pages wait for each other: a tenth to a quarter of Adam's step on 2²⁵ float32."""


def new_slots(executor: Executor) -> tuple[dict[str, list[Any]], Memory]:
    """Make the state; for a runner on the host its leaves are views of aligned buffers."""
    layout = executor.layout
    if not executor.runner.host:
        return executor.state.new_slots(), [Kept({}, {}, []) for _ in executor.buckets if executor.runner.caches]
    slots: dict[str, list[Any]] = {n: [None] * len(layout.leaves) for n in executor.state.live}
    memory: Memory = []
    for bucket in executor.buckets:
        live, arena = bucket.plan.live, dict[str, Any]()
        if not bucket.plan.elementwise or bucket.plan.codes:
            for n in live:
                for k in bucket.leaves:
                    slots[n][k] = executor.state.new_slot(n, k)
            memory.append(Kept({}, {}, []))
            continue
        params = [layout.leaves[k] for k in bucket.leaves]
        at, end = executor.runner.places(layout.library, params, len(live), bucket.dtype, bucket.split)
        for number, n in enumerate(live, 1):
            name = executor.state.slot_dtype(n, bucket.leaves[0])
            dtype = np.dtype(_arrays.dtype_of(_arrays.NUMPY, np, name))
            buffer = _arrays.aligned(end, dtype, STAGGER * number)
            buffer[...] = 0  # what lies between the leaves is computed with
            arena[n] = (buffer, at)
            flat = layout.library.shared(buffer, name)
            for start, k in zip(at, bucket.leaves, strict=True):
                shape = layout.shapes[k]
                slots[n][k] = flat[start : start + math.prod(shape)].reshape(shape)
                slots[n][k][...] = _arrays.detached(executor.state.first_value(n, k))
        memory.append(Kept({} if bucket.split else arena, {}, []))
    return slots, memory


def arrays(executor: Executor, slots: dict[str, list[Any]], memory: Memory) -> list[Any]:
    """Return the arrays that hold the state: the buffers, or the slots."""
    arenas = [kept.arenas for kept in memory]
    plain = all(own or not bucket.plan.live for own, bucket in zip(arenas, executor.buckets, strict=bool(arenas)))
    if memory and plain and not any(bucket.split for bucket in executor.buckets):
        return [buffer for own in arenas for buffer, _ in own.values()]
    return [x for column in slots.values() for x in column if x is not None]
