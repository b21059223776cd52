"""What a step reads, writes and computes, as text."""

from __future__ import annotations

import math
from typing import Any

from xopt import _arrays
from xopt._arrays.layout import Layout
from xopt._engine.bucket import Bucket
from xopt._engine.executor import Executor
from xopt._engine.program import lower as _lower
from xopt._engine.program import summation as _summation
from xopt._engine.program.contract import called
from xopt._engine.program.quantize import BLOCK, is_scale
from xopt._engine.program.trace import Program
from xopt._public import public
from xopt.distributed._shards import Shards
from xopt.rule import FunctionalOptimizer, RunnerName, check_method
from xopt.rule._fields import Field, number

_SIGNS = {
    "add": "{} + {}",
    "subtract": "{} - {}",
    "multiply": "{} * {}",
    "divide": "{} / {}",
    "negative": "-{}",
    "less": "{} < {}",
    "less_equal": "{} <= {}",
    "greater": "{} > {}",
    "greater_equal": "{} >= {}",
    "equal": "{} == {}",
    "not_equal": "{} != {}",
}


@public
def explain(
    rule: FunctionalOptimizer,
    params: Any,
    *,
    runner: RunnerName | None = None,
    bandwidth: float | None = None,
    source: bool = True,
    ranks: int | None = None,
) -> str:
    """Say what one step of a rule does to these parameters, stage by stage. Nothing is computed or compiled.

    Parameters
    ----------
    rule
        A rule or a chain.
    params
        An array or a tree of arrays, as for :class:`~xopt.Optimizer`. Only shapes, dtypes and library matter.
    runner
        As for :class:`~xopt.Optimizer`.
    bandwidth
        Bytes a second that the memory moves, > 0: the time that a step then takes at least is told too.
    source
        Whether to end with the source that the runner makes of each stage.
    ranks
        How many processes share the state, as with the ``comm`` of :class:`~xopt.Optimizer`, ≥ 1: what each owns and
        sends in a step is told too.

    Returns
    -------
    str
        For every dtype among the parameters the stages: the sums that are needed first, then the step itself, each with
        the arrays it reads and writes, in bytes per parameter, the operations per parameter (of a complex number, those
        on its parts), and the scalars that are computed once per step.

    Raises
    ------
    TypeError, ValueError
        For what :meth:`~xopt.Rule.init` would refuse, and for a bandwidth that is not a positive number.

    Notes
    -----
    The tiled runner gathers small leaves, and may then compute the change ``u`` in place of ``p`` and add it to the
    leaves; the source shown is that of large ones.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> w = np.zeros(1000, np.float32)
    >>> print(xopt.explain(xopt.SGD(lr=0.1, momentum=0.9), w, runner="tiled", bandwidth=20e9))
    SGD(lr=0.1, momentum=0.9): 1 array of numpy, 1,000 parameters, runner tiled
    <BLANKLINE>
    float32: 1 array, 1,000 parameters, 4 bytes of state each
      step: 20 bytes and 5 operations per parameter
        reads   t0 = p float32, t1 = g float32, t2 = 0.sgd.m float32
        writes  p float32, 0.sgd.m float32
        t3 = s0 * t2
        t4 = s1 * t1
        t5 = t3 + t4  -> 0.sgd.m
        t6 = s2 * t5
        t7 = t0 + t6  -> p
        s0 = momentum_0
        s1 = gain_0
        s2 = (-lr_0)
    <BLANKLINE>
    20,000 bytes per step: at 20 GB/s at least 1 µs
    <BLANKLINE>
    source of the step, float32:
    def kernel(l_0, l_1, l_2, o_0, o_1, s0, s1, s2, r_0):
        multiply(s0, l_2, out=o_1)
        multiply(s1, l_1, out=r_0)
        add(o_1, r_0, out=o_1)
        multiply(s2, o_1, out=r_0)
        add(l_0, r_0, out=o_0)

    On three processes:

    >>> rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam(lr=0.1))
    >>> text = xopt.explain(rule, {"b": w, "w": np.zeros((400, 500), np.float32)}, runner="tiled", ranks=3)
    >>> print(text[text.index("3 ranks") :].partition("source")[0].rstrip())
    3 ranks, each with all parameters and its part of the state:
      rank 0: 66,536 parameters, 532,288 bytes of state, sends 1.07 MB a step: params["b"], params["w"][0:65536]
      rank 1: 65,536 parameters, 524,288 bytes of state, sends 1.07 MB a step: params["w"][65536:131072]
      rank 2: 68,928 parameters, 551,424 bytes of state, sends 1.08 MB a step: params["w"][131072:200000]
    """
    check_method(rule)
    if ranks is not None and (isinstance(ranks, bool) or not isinstance(ranks, int) or ranks < 1):
        raise ValueError(f"ranks: {ranks!r}, but it must be a number of processes from 1 on")
    if bandwidth is not None:
        bandwidth = number("bandwidth", Field(None, static=False, gt=0), bandwidth, "bytes per second")
    layout = Layout(params)
    executor = Executor(rule._chains(layout), layout, runner)
    count = _count(sum(map(math.prod, layout.shapes)), "parameter")
    arrays = f"{_count(len(layout.leaves), 'array')} of {layout.library}, {count}"
    lines = [f"{rule!r}: {arrays}, runner {executor.runner.name}"]
    still = [k for k, bucket in enumerate(executor.bucket_of) if bucket is None]
    if still:
        count = _count(sum(math.prod(layout.shapes[k]) for k in still), "parameter")
        lines += ["", f"frozen: {_count(len(still), 'array')}, {count}"]
    sources: list[str] = []
    total = 0
    for bucket in executor.buckets:
        size = sum(math.prod(layout.shapes[k]) for k in bucket.leaves)
        if not bucket.plan.elementwise:
            links = ", ".join(spec.key for spec in bucket.specs if not spec.elementwise)
            arrays = f"{_count(len(bucket.leaves), 'array')}, {_count(size, 'parameter')}"
            lines += ["", f"{bucket.dtype.name}: {arrays}", f"  step: whole arrays, for {links}; by the eager runner"]
            continue
        stored = _stored(executor, bucket)
        state = sum(_bytes(n, stored[n]) for n in bucket.plan.live)
        arrays = f"{_count(len(bucket.leaves), 'array')}, {_count(size, 'parameter')}"
        lines += ["", f"{bucket.dtype.name}: {arrays}, {state:.4g} bytes of state each"]
        programs: list[tuple[int | None, Program]] = [*bucket.plan.sums.items()]
        for index, program in [*programs, (None, bucket.plan.body(("p", *bucket.plan.changed)))]:
            name = "step" if index is None else f"sums of {bucket.specs[index].key}"
            moved, text = _stage(executor, bucket, index, program)
            total += round(moved * size)
            lines += [f"  {name}: {moved:.4g} bytes and {text.pop(0)} per parameter", *text]
            if source:
                sources += [
                    "",
                    f"source of the {name}, {bucket.dtype.name}:",
                    _source(executor, bucket, index, program),
                ]
    time = f": at {bandwidth / 1e9:g} GB/s at least {_time(total / bandwidth)}" if bandwidth else ""
    beside = ", beside those of whole arrays" if any(not bucket.plan.elementwise for bucket in executor.buckets) else ""
    lines += ["", f"{total:,} bytes per step{beside}{time}"]
    if ranks is not None:
        lines += ["", *_shares(executor, Shards.of_chains(executor, ranks))]
    return "\n".join([*lines, *sources])


def _shares(executor: Executor, shards: Shards) -> list[str]:
    """Say what each of several processes owns and sends."""
    layout, state = executor.layout, executor.state
    itemsize = [d.itemsize for d in layout.dtypes]
    kept = [
        sum(
            math.prod(state.slot_shape(n, k)) * _arrays.TABLE[state.slot_dtype(n, k)].itemsize
            for n in state.live
            if state.has(n, k)
        )
        for k in range(len(layout.leaves))
    ]
    lines = [f"{_count(shards.size, 'rank')}, each with all parameters and its part of the state:"]
    for rank, units in enumerate(shards.of):
        size, others = sum(u.stop - u.start for u in units), shards.size - 1
        own = sum(kept[u.leaf] * (u.stop - u.start) // max(layout.sizes[u.leaf], 1) for u in units)
        sent = [sum((u.stop - u.start) * itemsize[u.leaf] for u in each) for each in shards.of]
        moved = sum(sent) - sent[rank] + others * sent[rank]
        parts = []
        for span in shards.spans(rank, itemsize):
            whole = span.high - span.low == layout.sizes[span.leaf]
            parts.append(layout.path(span.leaf) + ("" if whole else f"[{span.low}:{span.high}]"))
        shown = ", ".join(parts if len(parts) < 6 else [*parts[:2], "…", *parts[-2:]])
        amount = f"{_count(size, 'parameter')}, {_count(own, 'byte')} of state, sends {moved / 1e6:.3g} MB a step"
        lines.append(f"  rank {rank}: {amount}" + (f": {shown}" if shown else ""))
    return lines


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def _stage(executor: Executor, bucket: Bucket, index: int | None, program: Program) -> tuple[float, list[str]]:
    """Return the bytes that one stage moves a parameter, and how many operations it does and which."""
    written = [*program.outputs] if index is None else []
    stored = _stored(executor, bucket)
    moved = sum(_bytes(n, stored[n]) for n in [*program.loads, *written])
    try:
        low = _lower.lower(program)
    except _lower.Unsupported:  # shown as it was recorded
        low = program
    count = sum(node.op != "load" for node in low.nodes)
    lines = [_count(count, "operation")]
    names: dict[str, list[str]] = {n: [] for n in program.loads}
    for n, i in low.loads.items():
        names[n if n in names else n.rpartition(".")[0]].append(f"t{i}")
    reads = [f"{' '.join(where)} = {n} {stored[n]}" for n, where in names.items()]
    lines.append(f"    reads   {', '.join(reads)}")
    if index is None:
        lines.append(f"    writes  {', '.join(f'{n} {stored[n]}' for n in written)}")
    else:
        how = f"over each {bucket.specs[index].scope}, in float64, {_summation.CHUNK:,} at a time"
        lines.append(f"    sums    {', '.join(program.outputs)} {how}")
    goals: dict[int, list[str]] = {}
    for n, i in low.outputs.items():
        goals.setdefault(i, []).append(n)
    for i, (op, args, _) in enumerate(low.nodes):
        if op != "load":
            words = [f"t{a}" if isinstance(a, int) else a for a in args]
            text = _SIGNS[op].format(*words) if op in _SIGNS else f"{op}({', '.join(words)})"
            lines.append(f"    t{i} = {text}" + (f"  -> {', '.join(goals[i])}" if i in goals else ""))
    lines += [f"    s{k} = {text}" for k, text in enumerate(low.scalars)]
    return moved, lines


def _bytes(name: str, dtype: str) -> float:
    """Return the bytes per parameter; a scale belongs to a block of them."""
    return _arrays.TABLE[dtype].itemsize / (BLOCK if is_scale(name) else 1)


def _stored(executor: Executor, bucket: Bucket) -> dict[str, str]:
    """Return the dtype of parameters, gradients and state."""
    own = {n: executor.state.slot_dtype(n, bucket.leaves[0]) for n in bucket.plan.live}
    return {"p": bucket.dtype.name, "g": bucket.dtype.name, **own}


def _source(executor: Executor, bucket: Bucket, index: int | None, program: Program) -> str:
    """Return what the runner makes of a program."""
    title, real = called(bucket.specs, bucket.dtype, index), bucket.dtype.real
    source: str = executor.runner.source(program, title, _stored(executor, bucket), real, bucket.split, index is None)
    return source
