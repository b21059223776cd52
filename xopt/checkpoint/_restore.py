"""How a run goes on from a source: what does not fit is said, the rest is taken over."""

from __future__ import annotations

import copy
import errno
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from xopt import _arrays
from xopt._arrays import tree as _tree
from xopt._arrays.layout import Layout
from xopt._arrays.scalars import STEP_LIMIT
from xopt._arrays.transfer import from_host, to_host
from xopt._engine.executor import Executor
from xopt._engine.program.quantize import SCALE, is_scale
from xopt._engine.program.storage import LABEL
from xopt.checkpoint import _snapshot as _snapshot
from xopt.checkpoint._safetensors import CheckpointError
from xopt.checkpoint._snapshot import Listing, Place, Source, TrainingRun, defaults, described, links
from xopt.rule import FunctionalOptimizer

MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""For each old schema, a pure function from its metadata to those of the next one."""
_EXTREMES = ("inf", "-inf", "nan")
_FIELDS = {"schema": int, "rule": list, "step": int, "carry": dict, "arrays": dict, "extra": dict}


class Loaded(NamedTuple):
    """What a source has for a run: all of it fits."""

    rule: FunctionalOptimizer
    """With the numbers of the source for hyperparameters."""
    step: int
    carry: dict[str, Any]
    extra: dict[str, Any]
    places: dict[str, Place]
    """Arrays to be read, and where they go."""
    begun: dict[str, set[int]]
    """For each component the parameters at which it begins anew."""


def check(source: Listing, run: TrainingRun, *, strict: bool, cast: bool, hyper: bool, whole: bool = False) -> Loaded:
    """Compare a source with a run that is to go on from it; raise one error with everything that does not fit.

    With ``whole``, it has to have every array, because those of the run are not fit for anything.
    """
    problems, meta = list[str](), migrated(source)
    rule = _compare_rules(meta["rule"], run.rule, strict, hyper, problems)
    step = meta["step"]
    if not 0 <= step <= STEP_LIMIT:
        problems.append(f"step: {step}, but it must be from 0 to {STEP_LIMIT}")
    carry = _carry(meta, run, strict, problems)
    wanted, found = run.places(any(name.startswith("params/") for name in source.tensors)), dict[str, Place]()
    for name in sorted({*wanted, *source.tensors}):
        if name in wanted and name in source.tensors:
            found[name] = wanted[name]
            why = _misfit(source.tensors[name], wanted[name].array, cast)
            problems += [f"{name}: {why}"] if why else []
        elif strict:
            problems.append(f"{name}: {'missing' if name in wanted else 'not among the arrays of this run'}")
    problems += [f"{name}: without {other}" for name, other in _codes(wanted) if name in found and other not in found]
    if whole:
        missing = [name for name in run.places(True) if name not in found]
        problems += [f"{name}: missing, and a step was interrupted while it wrote" for name in missing]
    elif wanted and not found and not problems:
        problems.append("it has no array that is one of this run")
    if problems:
        raise CheckpointError(source.where, problems)
    begun, kept = _begun(run, found)
    for n, (spec, first) in run.executor.state.carried.items():
        leaves = begun.get(spec.key, set())
        if leaves and spec.scope == "leaf":
            old = to_host(carry.get(n, run.carry[n])).tolist()
            carry[n] = run.executor.scalars.carried(spec, [first if k in leaves else x for k, x in enumerate(old)])
        elif leaves and spec.key not in kept:
            carry[n] = run.executor.scalars.first(spec, first)
    return Loaded(rule, step, carry, copy.deepcopy(meta["extra"]), found, begun)


def _begun(run: TrainingRun, found: Mapping[str, Place]) -> tuple[dict[str, set[int]], set[str]]:
    """Return for each component the parameters at which it begins anew, and the components that go on at some.

    It does where the source has something of a parameter, but not what the component keeps of it.
    """
    begun, kept, met = dict[str, set[int]](), set[str](), {place.k for place in found.values()}
    for name, place in run.places(False).items():
        if place.k in met and run.executor.state.follows(place.slot):
            link = run.executor.state.owner(place.slot).key
            if name in found:
                kept.add(link)
            else:
                begun.setdefault(link, set()).add(place.k)
    return begun, kept


def migrated(source: Listing) -> dict[str, Any]:
    """Return the metadata of a source as this version writes them."""
    meta = dict(source.meta)
    schema = meta.get("schema")
    if type(schema) is not int or schema < 1:
        raise CheckpointError(source.where, [f"schema: {schema!r}, but it must be a number from 1 on"])
    if schema > _snapshot.SCHEMA:
        ours = _snapshot.SCHEMA
        text = f"schema {schema}, written by xopt {meta.get('xopt')!r}; this one reads up to {ours}: install a newer"
        raise CheckpointError(source.where, [text])
    for version in range(schema, _snapshot.SCHEMA):
        meta = MIGRATIONS[version](meta)
    wrong = [
        f"{n}: {type(meta.get(n)).__name__}, but it must be {kind.__name__}"
        for n, kind in _FIELDS.items()
        if type(meta.get(n)) is not kind
    ]
    if wrong:
        raise CheckpointError(source.where, wrong)
    return meta


def begun(source: Source, rule: FunctionalOptimizer, layout: Layout) -> tuple[TrainingRun, dict[str, Any]]:
    """Return a run before its first step, and what its state has to say.

    It is kept as the source says where only that does; but where that cannot be, the comparison of both is to say so.
    """

    def run(rule: FunctionalOptimizer) -> TrainingRun:
        executor = Executor(rule._chains(layout), layout)
        executor.scalars.as_saved = True  # the next step may be that of another runner
        return TrainingRun(rule, layout, executor, executor.state.new_slots(), executor.new_carry())

    first, *_ = migrated(source)["rule"] or [None]
    static = first.get("static") if isinstance(first, dict) and first.get("place") == LABEL else None
    if isinstance(static, dict):
        try:
            kept, said = rule._asked(**static)
            return run(kept), said
        except (TypeError, ValueError):  # the rule says it itself, or cannot do it
            pass
    return run(rule), {}


def _codes(places: dict[str, Place]) -> list[tuple[str, str]]:
    """Pair every array of codes with the one that has its scales, both ways."""
    found = [(f"state/{x.slot.removeprefix(SCALE)}/{x.key}", n) for n, x in places.items() if is_scale(x.slot)]
    return found + [(b, a) for a, b in found]


def _misfit(found: Any, want: Any, cast: bool) -> str:
    """Say why an array cannot go where another one is."""
    if tuple(found.shape) != tuple(want.shape):
        return f"shape {tuple(found.shape)}, but here it is {tuple(want.shape)}"
    dtype = _arrays.dtype_name(want)
    if found.dtype == dtype:
        return ""
    if found.dtype not in _arrays.DTYPES or dtype not in _arrays.DTYPES:
        return f"dtype {found.dtype}, but here it is {dtype}; the codes of state in 8 bits are not converted"
    if _arrays.DTYPES[found.dtype].complex and not _arrays.DTYPES[dtype].complex:
        return f"dtype {found.dtype}, but here it is {dtype}, which is real"
    return "" if cast else f"dtype {found.dtype}, but here it is {dtype}; cast=True rounds it"


def _compare_rules(
    found: list[Any], rule: FunctionalOptimizer, strict: bool, hyper: bool, problems: list[str]
) -> FunctionalOptimizer:
    """Return the rule with the numbers of the source; note what is another formula, or another schedule."""
    own = described(rule)
    if [_name(x) for x in found] != [_name(x) for x in own]:
        if strict:
            words = [", ".join(map(_name, links)) or "nothing" for links in (found, own)]
            problems.append(f"rule: {words[0]}; but here it is {words[1]}")
        return rule
    values = {}
    for theirs, mine, link in zip(found, own, links(rule), strict=True):
        new = defaults(link.part)
        for kind in ("static", "hyper"):
            a, b = theirs.get(kind), mine[kind]
            if isinstance(a, dict):  # of a version that did not have some fields, which were what they are by default
                a = {n: new[n] for n in b if n in new} | a
            if not isinstance(a, dict) or {*a} != {*b}:
                problems.append(f"rule: {mine['place']}: its fields are not {', '.join(b) or 'none'}")
                continue
            for n in (n for n in b if a[n] != b[n] or type(a[n]) is not type(b[n])):
                if kind == "hyper" and type(a[n]) is float and type(b[n]) is float:
                    values[f"{mine['place']}.{n}"] = a[n]
                elif strict and (kind == "static" or hyper):
                    problems.append(f"rule: {mine['place']}.{n}: {a[n]!r}, but here it is {b[n]!r}")
    if not hyper:
        return rule
    try:
        return rule._with(values)
    except (TypeError, ValueError) as error:
        problems.append(f"rule: {error}")
        return rule


def _name(link: Any) -> str:
    """Return where a component stands and its class, for comparison and for a message; no class is looked up."""
    return f"{link.get('place')} {link.get('rule')}" if isinstance(link, dict) else repr(link)


def _carry(meta: dict[str, Any], run: TrainingRun, strict: bool, problems: list[str]) -> dict[str, Any]:
    """Return the scalars of a source as the run keeps them."""
    found, keys = {}, _tree.pointers(run.layout.spec)
    for n in sorted({*meta["carry"], *run.executor.state.carried}):
        if n not in meta["carry"] or n not in run.executor.state.carried:
            if strict:
                problems.append(f"carry: {n}: {'missing' if n in run.executor.state.carried else 'not carried here'}")
            continue
        spec, value = run.executor.state.carried[n][0], meta["carry"][n]
        if spec.scope == "leaf":
            if not isinstance(value, dict) or not all(map(_is_number, value.values())):
                problems.append(f"carry: {n}: it must have a number for each parameter")
                continue
            if strict and {*value} != {*keys}:
                names = ", ".join(sorted({*value} ^ {*keys}))
                problems.append(f"carry: {n}: not for the same parameters: {names} on one side only")
                continue
            old = to_host(run.carry[n]).tolist()
            value = [float(value.get(key, x)) for key, x in zip(keys, old, strict=True)]
        elif not _is_number(value):
            problems.append(f"carry: {n}: {value!r}, but it must be a number")
            continue
        same = meta.get("library") == run.layout.library.name
        found[n] = run.executor.scalars.carried(spec, value, _real(meta["arrays"].get(n)) if same else None)
    return found


def _real(dtype: Any) -> str | None:
    return dtype if dtype in ("float32", "float64") else None


def _is_number(x: Any) -> bool:
    return type(x) is float or (type(x) is int and abs(x) < 2**63) or (isinstance(x, str) and x in _EXTREMES)


def taken(source: Source, name: str, like: Any) -> Any:
    """Return an array of a source as the library, device and dtype of another one has it."""
    return from_host(source.read(name), source.tensors[name].dtype, like)


def overwrite(source: Source, run: TrainingRun, loaded: Loaded) -> None:
    """Write every array of a source into its place, without one more in between where that is possible."""
    library = run.layout.library
    try:
        for name, place in loaded.places.items():
            x = place.array
            host = _arrays.host_view(x) if source.tensors[name].dtype == _arrays.dtype_name(x) else None
            if host is not None and host.flags.c_contiguous:
                source.into(name, host)
            else:
                library.overwrite([x], [taken(source, name, x)])
    except CheckpointError as error:  # it was in order a moment ago
        raise OSError(errno.EIO, str(error), source.where) from error
    for place in renewed(run, loaded):
        library.overwrite([place.array], [run.executor.state.renewed(place.slot, place.k)])
    library.written([place.array for place in loaded.places.values() if not place.slot])


def replace(new: Mapping[str, Any], run: TrainingRun, loaded: Loaded) -> None:
    """Put arrays into their places, where they cannot be written into."""
    for name, place in loaded.places.items():
        place.column[place.k] = new[name]
    for place in renewed(run, loaded):
        place.column[place.k] = run.executor.state.renewed(place.slot, place.k)


def renewed(run: TrainingRun, loaded: Loaded) -> list[Place]:
    """Return the arrays that begin anew: what a component keeps of other parameters than those that were loaded."""
    return [
        place
        for name, place in run.places(False).items()
        if name not in loaded.places and place.k in loaded.begun.get(run.executor.state.owner(place.slot).key, ())
    ]
