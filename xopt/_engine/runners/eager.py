"""The eager runner: a program run with a library's own arrays, leaf by leaf. The reference implementation.

Parameters, gradients and state are cast to the compute dtype, 0-d leaves are seen as (1,), and every result is rounded
once when it is stored. Components of whole arrays are called as they are, those beside them by a program of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from xopt import _arrays, random
from xopt._engine.program import quantize as _quantize
from xopt._engine.program import summation as _summation
from xopt._engine.program.compose import compose
from xopt._engine.program.contract import BucketStep, ComponentSpec, StepScalars, plain, scalar_places
from xopt._engine.program.hooks import hook
from xopt._engine.program.lower import spelled
from xopt._engine.program.trace import COMPLEX, REAL, Program, replay, rooted

name = "eager"
host = False
caches = False
inspector = None
copy = None


def again(work: BucketStep, values: StepScalars) -> None:
    """Say that there is nothing that could be kept."""


total = _summation.total


def source(program: Program, title: str, stored: Mapping[str, str], real: str, split: bool, body: bool) -> str:
    """Say that there is none."""
    return "(none: the rule itself is called with the arrays)"


def prepare(
    work: BucketStep, values: StepScalars, into: dict[str, list[Any]] | None
) -> Callable[[], dict[str, list[Any]]]:
    """Return a function that runs the whole chain over every leaf; what can fail fails here, before any write.

    Its results land in ``into`` where that is given, else in fresh arrays.
    """
    work.stored = 0
    if not work.plan.elementwise:  # matrices may be singular: all is computed before anything is written
        found = _body(work, partial(_whole_leaf, work, values), None, {*work.outputs})
        return partial(_store, work, found, into)
    program = spelled(work.plan.body(work.outputs))
    with work.library.no_grad():
        scalars = values.scalars(program)
    return partial(_body, work, partial(_leaf, work, program, scalars), into, _aliases(program))


def _aliases(program: Program) -> set[str]:
    """Name the outputs that are, or may be, a view of what was loaded, or of another output."""
    found = {n for n, i in program.outputs.items() if program.nodes[i].op in ("load", "real", "imag", "conj")}
    indices = list(program.outputs.values())
    return found | {n for n, i in program.outputs.items() if indices.count(i) > 1}


def _body(
    work: BucketStep, leaf: Callable[[int], dict[str, Any]], into: dict[str, list[Any]] | None, aliases: set[str]
) -> dict[str, list[Any]]:
    outputs: dict[str, list[Any]] = {n: [] for n in work.outputs}
    with work.library.no_grad():
        for k in range(len(work.loads["p"])):
            results = leaf(k)
            for n, x in results.items():
                own = work.xp.asarray(x, copy=True) if n in aliases and x is not None else x
                results[n] = restore(work, own, work.loads["p" if n == "u" else n][k], n)
            work.stored = k + 1
            for n, x in results.items():
                outputs[n].append(x if into is None else _stored(work, into[n][k], x))
    return outputs


def _store(work: BucketStep, found: dict[str, list[Any]], into: dict[str, list[Any]] | None) -> dict[str, list[Any]]:
    if into is None:
        return found
    work.stored = len(work.leaves)
    return {n: [_stored(work, home, x) for home, x in zip(into[n], column, strict=True)] for n, column in found.items()}


def _stored(work: BucketStep, home: Any, x: Any) -> Any:
    if home is not None:
        work.library.detached(home)[...] = x
    return home


def _leaf(work: BucketStep, program: Program, scalars: Sequence[Any], k: int) -> dict[str, Any]:
    return _replayed(work, program, compute_arrays(work, k, work.real), scalars, k, work.real)


def _replayed(
    work: BucketStep, program: Program, arrays: Mapping[str, Any], scalars: Sequence[Any], k: int, real: str
) -> dict[str, Any]:
    """Run a program over leaf ``k``."""
    xp, p = work.xp, arrays["p"]
    arrays = {n: _quantize.spread(xp, x, p) if _quantize.is_scale(n) else x for n, x in arrays.items()}

    def scalar(x: Any) -> Any:
        x = x[k] if getattr(x, "ndim", 0) else x
        return x.item() if isinstance(x, np.generic) else plain(x, lambda x: _arrays.cast(xp, x, getattr(xp, real)))

    special = {
        "noise": lambda *key: random.noise(xp, p, *key),
        "largest": lambda size: _quantize.spread(xp, _quantize.largest(xp, size), size),
    }
    return replay(program, xp, arrays, [*map(scalar, scalars)], special)


def _whole_leaf(work: BucketStep, values: StepScalars, k: int) -> dict[str, Any]:
    xp, arrays, found = work.xp, compute_arrays(work, k, work.real), list[dict[str, Any]]()
    hs = values.leaf(k, lambda x: _arrays.cast(xp, x, getattr(xp, work.real)))
    specs = _beside(work, values, k, work.real)
    for part, x in enumerate(_parts(work, arrays)):
        _number(work, hs, k, part)
        found.append(_outcome(work, specs, hs, x))
    if not work.split:
        return found[0]
    re, im = found
    return {n: None if x is None else work.library.join_complex(xp, x, im[n]) for n, x in re.items()}


def _beside(work: BucketStep, values: StepScalars, k: int, real: str) -> tuple[ComponentSpec, ...]:
    """Return the components with hooks that take arrays of leaf ``k``; those of whole arrays have them already."""
    return tuple(
        spec._replace(update=partial(_made, work, spec.key, work.leaves[k]))
        if spec.tree is not None
        else spec
        if not spec.elementwise or spec.storage
        else _bound(work, spec, own, k, real)
        for spec, own in zip(work.specs, values.specs, strict=False)
    )


def _made(work: BucketStep, key: str, leaf: int, /, *_: Any, **own: Any) -> tuple[Any, ...]:
    """Return what a component of a whole tree made of a leaf; state that this leaf has not stays None."""
    step, new = work.trees[key][leaf]
    return (step, *(new.get(n) for n in own))


def _bound(work: BucketStep, spec: ComponentSpec, values: Mapping[str, Any], k: int, real: str) -> ComponentSpec:
    """Return a component whose hooks run their programs with its scalars for leaf ``k``."""

    def run(what: str, call: Callable[..., Any], arrays: dict[str, Any]) -> dict[str, Any]:
        return run_hook(work, spec, what, call, arrays, values, k, real)

    def update(_h: Any, _xp: Any, p: Any, g: Any, **own: Any) -> tuple[Any, ...]:
        found = run("update", lambda h, xp, x: spec.update(h, xp, x["p"], x["g"], **rest(x)), {"p": p, "g": g, **own})
        return tuple(found.values())

    def reduce(_h: Any, _xp: Any, p: Any, g: Any, **own: Any) -> dict[str, Any]:
        hook: Any = spec.reduce
        return run("reduce", lambda h, xp, x: hook(h, xp, x["p"], x["g"], **rest(x)), {"p": p, "g": g, **own})

    def enter(_h: Any, g: Any) -> Any:
        hook: Any = spec.enter
        return run("enter", lambda h, xp, x: hook(h, x["p"]), {"p": g})["0"]

    def rest(arrays: dict[str, Any]) -> dict[str, Any]:
        return {n: x for n, x in arrays.items() if n not in ("p", "g")}

    return spec._replace(update=update, reduce=spec.reduce and reduce, enter=spec.enter and enter)


def run_hook(
    work: BucketStep,
    spec: ComponentSpec,
    what: str,
    call: Callable[..., Any],
    arrays: dict[str, Any],
    values: Mapping[str, Any],
    k: int,
    real: str,
) -> dict[str, Any]:
    """Run one hook of a component over arrays of leaf ``k``: ``call(h, xp, arrays)``. What it returns has names."""
    kinds = {n: COMPLEX if _arrays.is_complex(x) else REAL for n, x in arrays.items()}
    program, results = hook(spec, what, call, kinds)
    scalars = program.compute([values[n] for _, n in scalar_places(program.inputs)])
    made = (_terms if what == "reduce" else _replayed)(work, program, arrays, scalars, k, real)
    return {n: made.get(n, x) for n, x in results.items()}


def _number(work: BucketStep, hs: list[Any], k: int, part: int = 0) -> None:
    """Say which array of the tree it is; the two parts of a complex one have numbers of their own."""
    for h, spec in zip(hs, work.specs, strict=False):
        if not spec.storage:  # that counts parameters
            h.leaf = 2 * work.numbers[work.leaves[k]] + part


def _outcome(
    work: BucketStep, specs: tuple[ComponentSpec, ...], hs: list[Any], arrays: dict[str, Any]
) -> dict[str, Any]:
    p = arrays["p"]
    out, new = compose(specs, hs, work.xp, p, arrays["g"], arrays)
    result = {"p": out.params(p)} if "p" in work.outputs else {"u": out.change(p)}
    return result | {n: new[n] for n in work.outputs if n in new}


def entering(work: BucketStep, values: StepScalars, index: int) -> list[tuple[Any, Any, dict[str, Any]]]:
    """Return for each leaf what reaches component ``index``, which takes whole trees: x, p and its slots."""
    found = []
    with work.library.no_grad():
        for k in range(len(work.loads["p"])):
            arrays = compute_arrays(work, k, work.real)
            hs = values.leaf(k, lambda x: _arrays.cast(work.xp, x, getattr(work.xp, work.real)), upto=index + 1)
            _number(work, hs, k)
            specs = _beside(work, values, k, work.real)
            out, own = compose(specs, hs, work.xp, arrays["p"], arrays["g"], arrays, index)
            found.append((out.step, own.pop("p"), own))
    return found


def sums(work: BucketStep, values: StepScalars, index: int) -> dict[str, Any]:
    """Return the sums that component ``index`` asks for, a vector over the leaves, in float64 where there is one."""
    xp, found = work.xp, []
    real = _arrays.widest_real(xp, _arrays.device(work.loads["p"][0]), work.real) if work.loads["p"] else work.real
    if not hasattr(xp, _arrays.COMPLEX_OF[real]) and any(_arrays.is_complex(x) for x in work.loads["p"]):
        real = work.real
    with work.library.no_grad():
        program = spelled(work.plan.sums[index]) if work.plan.elementwise else None
        scalars = () if program is None else values.scalars(program)
        for k in range(len(work.loads["p"])):
            arrays = compute_arrays(work, k, real)
            if program is None:
                found.append(_whole_sums(work, values, arrays, k, index, real))
            else:
                terms = _terms(work, program, arrays, scalars, k, real)
                found.append([_summed(xp, terms[n]) for n in work.plan.terms[index]])
    columns = zip(work.plan.terms[index], zip(*found, strict=True), strict=True)
    return {n: _column(xp, column) for n, column in columns}


def _terms(
    work: BucketStep, program: Program, arrays: Mapping[str, Any], scalars: Sequence[Any], k: int, real: str
) -> dict[str, Any]:
    """Return what is to be summed; where float32 is all there is, of squares what is squared."""
    if real == "float64":
        return _replayed(work, program, arrays, scalars, k, real)
    program, names = rooted(program)
    made = _replayed(work, program, arrays, scalars, k, real)
    return {**made, **{n: _summation.Roots([made[x] for x in own]) for n, own in names.items()}}


def _summed(xp: Any, x: Any) -> Any:
    if isinstance(x, _summation.Roots):
        return _summation.Roots(_summation.root_of_squares(xp, *x.roots))
    return _summation.array_sum(xp, x)


def _column(xp: Any, sums: Sequence[Any]) -> Any:
    """Return the sums of all leaves."""
    if isinstance(sums[0], _summation.Roots):
        return _summation.Roots(xp.stack([x.roots for x in sums]))
    return np.asarray(sums) if xp is np else xp.stack(sums)


def _whole_sums(
    work: BucketStep, values: StepScalars, arrays: dict[str, Any], k: int, index: int, real: str
) -> list[Any]:
    """Sum the terms of a leaf behind components of whole arrays; of a complex one, those of its two parts."""
    xp = work.xp
    hs = values.leaf(k, lambda x: _arrays.cast(xp, x, getattr(xp, real)), upto=index + 1)
    specs, sums = _beside(work, values, k, real), list[Any]()
    for part, x in enumerate(_parts(work, arrays)):
        _number(work, hs, k, part)
        _, terms = compose(specs, hs, xp, x["p"], x["g"], x, upto=index)
        own = [_summed(xp, terms[n]) for n in work.plan.terms[index]]
        sums = [_added(xp, a, b) for a, b in zip(sums, own, strict=True)] if sums else own
    return sums


def _added(xp: Any, a: Any, b: Any) -> Any:
    if isinstance(a, _summation.Roots):
        return _summation.Roots(_summation.root_of_squares(xp, a.roots, b.roots))
    return a + b


def _parts(work: BucketStep, arrays: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the arrays of a leaf, or those of its real and imaginary part where these are computed apart."""
    if not work.split:
        return [arrays]
    xp = work.xp
    return [{n: x if x is None else part(x) for n, x in arrays.items()} for part in (xp.real, xp.imag)]


def compute_arrays(work: BucketStep, k: int, real: str) -> dict[str, Any]:
    """Return what a leaf is computed with, in a real dtype or the complex one that goes with it."""
    xp, arrays, whole = work.xp, dict[str, Any](), not work.plan.elementwise
    for n, column in work.loads.items():
        if column[k] is None:  # a slot that this leaf does not have
            arrays[n] = None
            continue
        x = work.library.detached(column[k])
        is_complex = _arrays.is_complex(x)
        x = _arrays.cast(xp, x, getattr(xp, _arrays.COMPLEX_OF[real] if is_complex else real))
        if x.ndim == 0 and not whole:
            x = xp.reshape(x, (1,))
        x = work.library.ordered(x, whole)
        if is_complex and work.split and not whole:
            x = xp.stack([xp.real(x), xp.imag(x)], axis=-1)
        arrays[n] = x
    return arrays


def restore(work: BucketStep, x: Any, like: Any, name: str = "") -> Any:
    """Return a result in the shape and dtype of the array whose place it takes."""
    xp = work.xp
    if like is None:
        return None
    if work.split and _arrays.is_complex(like) and work.plan.elementwise:
        x = work.library.join_complex(xp, x[..., 0], x[..., 1])
    if _quantize.is_scale(name) and work.plan.elementwise:
        x = xp.reshape(x, (-1,))[:: _quantize.BLOCK]
    return _arrays.cast(xp, xp.reshape(x, like.shape), like.dtype)
