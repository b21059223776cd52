"""The eager runner: a rule called with a library's own arrays and functions, leaf by leaf. The definition of correct.

Parameters, gradients and state are cast to the compute dtype, 0-d leaves are seen as (1,), and every result is rounded
once when it is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from xopt import _arrays, _reduce
from xopt._compose import compose
from xopt._pieces import Values, Work
from xopt._scalars import Unwrapped
from xopt._trace import Program

name = "eager"
host = False
total = _reduce.total


def prepare(work: Work, values: Values, into: dict[str, list[Any]] | None) -> Callable[[], dict[str, list[Any]]]:
    """Return a function that runs the whole chain over every leaf; what can fail fails here, before any write.

    Its results land in ``into`` where that is given, else in fresh arrays.
    """
    work.stored = 0
    if work.plan.whole:  # matrices may be singular: all is computed before anything is written
        found = _body(work, values, None, {*work.outputs})
        return partial(_store, work, found, into)
    program = work.plan.body(work.outputs)
    if not values.on_device:
        values.check(program, len(work.loads["p"]))
    return partial(_body, work, values, into, _aliases(program))


def _aliases(program: Program) -> set[str]:
    """Name the outputs that are, or may be, a view of what was loaded, or of another output."""
    found = {n for n, i in program.outputs.items() if program.nodes[i].op in ("load", "real", "imag", "conj")}
    indices = list(program.outputs.values())
    return found | {n for n, i in program.outputs.items() if indices.count(i) > 1}


def _body(work: Work, values: Values, into: dict[str, list[Any]] | None, aliases: set[str]) -> dict[str, list[Any]]:
    outputs: dict[str, list[Any]] = {n: [] for n in work.outputs}
    with _arrays.no_grad(work.library):
        for k in range(len(work.loads["p"])):
            results = _leaf(work, values, k)
            for n, x in results.items():
                own = work.xp.asarray(x, copy=True) if n in aliases and x is not None else x
                results[n] = restore(work, own, work.loads["p" if n == "u" else n][k])
            work.stored = k + 1
            for n, x in results.items():
                outputs[n].append(x if into is None else _stored(work, into[n][k], x))
    return outputs


def _store(work: Work, found: dict[str, list[Any]], into: dict[str, list[Any]] | None) -> dict[str, list[Any]]:
    if into is None:
        return found
    work.stored = len(work.leaves)
    return {n: [_stored(work, home, x) for home, x in zip(into[n], column, strict=True)] for n, column in found.items()}


def _stored(work: Work, home: Any, x: Any) -> Any:
    if home is not None:
        (home.detach() if work.library == "torch" else home)[...] = x
    return home


def _leaf(work: Work, values: Values, k: int) -> dict[str, Any]:
    xp = work.xp
    arrays = compute_arrays(work, k, work.real)
    hs = values.leaf(k, lambda x: _arrays.cast(xp, x, getattr(xp, work.real)))
    if work.plan.whole:
        _number(work, hs, 2 * work.leaves[k])
    if not (work.plan.whole and work.split):
        return _outcome(work, hs, arrays)
    re = _outcome(work, hs, {n: xp.real(x) if x is not None else x for n, x in arrays.items()})
    _number(work, hs, 2 * work.leaves[k] + 1)
    im = _outcome(work, hs, {n: xp.imag(x) if x is not None else x for n, x in arrays.items()})
    return {n: None if x is None else _arrays.join_complex(xp, work.library, x, im[n]) for n, x in re.items()}


def _number(work: Work, hs: list[Any], leaf: int) -> None:
    """Say which array of the tree it is; the two parts of a complex one have numbers of their own."""
    for h, piece in zip(hs, work.pieces, strict=True):
        if not piece.storage:  # that counts parameters
            h.leaf = leaf


def _outcome(work: Work, hs: list[Any], arrays: dict[str, Any]) -> dict[str, Any]:
    p = arrays["p"]
    out, new = compose(work.pieces, hs, namespace(work), p, arrays["g"], arrays)
    result = {"p": out.params(p)} if "p" in work.outputs else {"u": out.change(p)}
    return result | {n: new[n] for n in work.outputs if n in new}


def sums(work: Work, values: Values, place: int) -> dict[str, Any]:
    """Return the sums that piece ``place`` asks for, a vector over the leaves, in float64 where the device has it."""
    xp, found = work.xp, []
    real = _arrays.widest_real(xp, _arrays.device(work.loads["p"][0]), work.real) if work.loads["p"] else work.real
    with _arrays.no_grad(work.library):
        for k in range(len(work.loads["p"])):
            arrays = compute_arrays(work, k, real)
            hs = values.leaf(k, lambda x: _arrays.cast(xp, x, getattr(xp, real)), upto=place + 1)
            _, terms = compose(work.pieces, hs, namespace(work), arrays["p"], arrays["g"], arrays, upto=place)
            found.append([_reduce.array_sum(xp, x) for x in terms.values()])
    columns = zip(work.plan.terms[place], zip(*found, strict=True), strict=True)
    return {n: np.asarray(column) if xp is np else xp.stack(column) for n, column in columns}


def namespace(work: Work) -> Any:
    """Return what a link sees as ``xp``."""
    return Unwrapped(work.xp) if work.library == "jax" else work.xp


def compute_arrays(work: Work, k: int, real: str) -> dict[str, Any]:
    """Return what a leaf is computed with, in a real dtype or the complex one that goes with it."""
    xp, arrays, whole = work.xp, dict[str, Any](), work.plan.whole
    for n, column in work.loads.items():
        if column[k] is None:  # a slot that this leaf does not have
            arrays[n] = None
            continue
        x = column[k].detach() if work.library == "torch" else column[k]
        is_complex = _arrays.is_complex(x)
        x = _arrays.cast(xp, x, getattr(xp, _arrays.COMPLEX_OF[real] if is_complex else real))
        if x.ndim == 0 and not whole:
            x = xp.reshape(x, (1,))
        if (is_complex or whole) and work.library == "numpy":
            # NumPy's complex loops round otherwise where the stride is negative, and its sums follow the memory
            x = np.require(x, requirements="C")
        if whole and work.library == "torch":
            x = x.contiguous()
        if is_complex and work.split and not whole:
            x = xp.stack([xp.real(x), xp.imag(x)], axis=-1)
        arrays[n] = x
    return arrays


def restore(work: Work, x: Any, like: Any) -> Any:
    """Return a result in the shape and dtype of the array whose place it takes."""
    xp = work.xp
    if like is None:
        return None
    if work.split and _arrays.is_complex(like) and not work.plan.whole:
        x = _arrays.join_complex(xp, work.library, x[..., 0], x[..., 1])
    return _arrays.cast(xp, xp.reshape(x, like.shape), like.dtype)
