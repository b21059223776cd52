"""What is saved of a run, as plain data and named arrays; and how that is compared with a run that goes on from it."""

from __future__ import annotations

import copy
import errno
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from xopt import _arrays, _tree
from xopt._blocks import SCALE, is_scale
from xopt._layout import Layout
from xopt._safetensors import CheckpointError, Tensor, memory
from xopt._scalars import STEP_LIMIT
from xopt._select import shown
from xopt._stages import Stages
from xopt._storage import ERROR, MASTER, PLACE
from xopt._transfer import from_host, to_host
from xopt.rule import Method

SCHEMA = 1
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""For each old schema, a pure function from its metadata to those of the next one."""
_EXTREMES = ("inf", "-inf", "nan")
_FIELDS = {"schema": int, "rule": list, "step": int, "carry": dict, "arrays": dict, "extra": dict}


class Source(Protocol):
    """A file, or a dict in memory."""

    where: str
    meta: dict[str, Any]

    @property
    def tensors(self) -> Mapping[str, Any]:
        """Return what there is; each has a dtype and a shape."""

    def verify(self) -> None:
        """Raise CheckpointError if anything cannot be relied on."""

    def into(self, name: str, out: np.ndarray[Any, Any]) -> None:
        """Put an array into memory of its dtype in C order."""

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """Return an array in memory of its own, bfloat16 as 16-bit integers."""


class Place(NamedTuple):
    """Where an array is."""

    slot: str
    """Which part of the state it is of; "" for a parameter."""
    key: str
    column: list[Any]
    k: int

    @property
    def array(self) -> Any:
        """The array."""
        return self.column[self.k]


class Run(NamedTuple):
    """Parameters and state of a run: what is saved, or what is overwritten."""

    rule: Method
    layout: Layout
    stages: Stages
    slots: dict[str, list[Any]]
    carry: Mapping[str, Any]

    def places(self, params: bool) -> dict[str, Place]:
        """Name every array of the state, and every parameter."""
        keys = _tree.pointers(self.layout.spec)
        twice = [key for key, n in Counter(keys).items() if n > 1]
        if twice:
            raise ValueError(f"params: two arrays are called {twice[0]!r}, so that a file could not tell them apart")
        columns = {**self.slots, **({"": self.layout.leaves} if params else {})}
        found = [Place(n, key, own, k) for n, own in columns.items() for k, key in enumerate(keys)]
        return {f"state/{x.slot}/{x.key}" if x.slot else f"params/{x.key}": x for x in found if x.array is not None}


def described(rule: Method) -> list[dict[str, Any]]:
    """Return the links of a rule as data: names, static fields, and hyperparameters; functions as text.

    The one that says how all is kept comes first: it does the same inside and outside of other wrappers.
    """
    found = []
    for link in sorted(rule._all_links(), key=lambda link: link.place != PLACE):
        static = {n: _plain(v) for n, v in link.part._choices().items()}
        hyper = {n: _plain(v) for n, v in link.part._values().items() if not link.part._fields[n].static}
        found.append({"place": link.place, "rule": type(link.part).__name__, "static": static, "hyper": hyper})
    return found


def _plain(x: Any) -> Any:
    """Return a value as JSON has it: a number as it is, a schedule or another function as text."""
    if x is None or isinstance(x, bool | int | float | str):
        return x
    if hasattr(x, "dtype") and not callable(x):
        return float(x)
    return re.sub(r" at 0x[0-9a-fA-F]+", "", shown(x))


def metadata(run: Run, step: Any, extra: Mapping[str, Any] | None, version: str) -> Any:
    """Return all that is saved beside the arrays."""
    try:
        extra = {} if extra is None else dict(extra)
        copied = json.loads(json.dumps(extra, allow_nan=False))
        if copied != extra:
            raise TypeError("it does not come back as it was")
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"extra: it must be a dict that JSON can hold: {error}") from None
    numbers, arrays = dict[str, Any](), dict[str, str]()
    keys = _tree.pointers(run.layout.spec)
    for n, x in run.carry.items():
        host = to_host(x) if hasattr(x, "dtype") else np.asarray(float(x))
        numbers[n] = dict(zip(keys, map(_number, host.tolist()), strict=True)) if host.ndim else _number(host.item())
        if not isinstance(x, np.ndarray | np.generic | float | int):
            arrays[n] = _arrays.dtype_name(x)
    return {
        "schema": SCHEMA, "xopt": version, "library": run.layout.library, "rule": described(run.rule),
        "step": int(step), "carry": numbers, "arrays": arrays, "extra": copied,
    }  # fmt: skip


def _number(x: float) -> float | str:
    return x if math.isfinite(x) else str(x)


def tensors(run: Run, params: bool) -> dict[str, Tensor]:
    """Return all arrays that are saved; each is brought to the host when it is asked for."""
    return {name: _tensor(place.array) for name, place in run.places(params).items()}


def _tensor(x: Any) -> Tensor:
    return Tensor(_arrays.dtype_name(x), tuple(x.shape), lambda: to_host(x))


class Loaded(NamedTuple):
    """What a source has for a run: all of it fits."""

    rule: Method
    """With the numbers of the source for hyperparameters."""
    step: int
    carry: dict[str, Any]
    extra: dict[str, Any]
    places: dict[str, Place]
    """Arrays to be read, and where they go."""


def check(source: Source, run: Run, *, strict: bool, cast: bool, hyper: bool, whole: bool = False) -> Loaded:
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
    return Loaded(rule, step, carry, copy.deepcopy(meta["extra"]), found)


def migrated(source: Source) -> dict[str, Any]:
    """Return the metadata of a source as this version writes them."""
    meta = dict(source.meta)
    schema = meta.get("schema")
    if type(schema) is not int or schema < 1:
        raise CheckpointError(source.where, [f"schema: {schema!r}, but it must be a number from 1 on"])
    if schema > SCHEMA:
        text = f"schema {schema}, written by xopt {meta.get('xopt')!r}; this one reads up to {SCHEMA}: install a newer"
        raise CheckpointError(source.where, [text])
    for version in range(schema, SCHEMA):
        meta = MIGRATIONS[version](meta)
    wrong = [
        f"{n}: {type(meta.get(n)).__name__}, but it must be {kind.__name__}"
        for n, kind in _FIELDS.items()
        if type(meta.get(n)) is not kind
    ]
    if wrong:
        raise CheckpointError(source.where, wrong)
    return meta


def begun(source: Source, rule: Method, layout: Layout) -> tuple[Run, dict[str, Any]]:
    """Return a run before its first step, and what its state has to say.

    It is kept as the source says where only that does; but where that cannot be, the comparison of both is to say so.
    """

    def run(rule: Method) -> Run:
        stages = Stages(rule._chains(layout), layout)
        return Run(rule, layout, stages, stages.new_slots(), stages.new_carry())

    first, *_ = migrated(source)["rule"] or [None]
    static = first.get("static") if isinstance(first, dict) and first.get("place") == PLACE else None
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


def _compare_rules(found: list[Any], rule: Method, strict: bool, hyper: bool, problems: list[str]) -> Method:
    """Return the rule with the numbers of the source; note what is another formula, or another schedule."""
    own = described(rule)
    if [_name(x) for x in found] != [_name(x) for x in own]:
        if strict:
            words = [", ".join(map(_name, links)) or "nothing" for links in (found, own)]
            problems.append(f"rule: {words[0]}; but here it is {words[1]}")
        return rule
    values = {}
    for theirs, mine in zip(found, own, strict=True):
        for kind in ("static", "hyper"):
            a, b = theirs.get(kind), mine[kind]
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
    """Return where a link stands and of what class it is, for comparison and for a message; no class is looked up."""
    return f"{link.get('place')} {link.get('rule')}" if isinstance(link, dict) else repr(link)


def _carry(meta: dict[str, Any], run: Run, strict: bool, problems: list[str]) -> dict[str, Any]:
    """Return the scalars of a source as the run keeps them."""
    found, keys = {}, _tree.pointers(run.layout.spec)
    for n in sorted({*meta["carry"], *run.stages.carried}):
        if n not in meta["carry"] or n not in run.stages.carried:
            if strict:
                problems.append(f"carry: {n}: {'missing' if n in run.stages.carried else 'not carried here'}")
            continue
        piece, value = run.stages.carried[n][0], meta["carry"][n]
        if piece.scope == "leaf":
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
        same = meta.get("library") == run.layout.library
        found[n] = run.stages.scalars.kept(piece, value, _real(meta["arrays"].get(n)) if same else None)
    return found


def _real(dtype: Any) -> str | None:
    return dtype if dtype in ("float32", "float64") else None


def _is_number(x: Any) -> bool:
    return type(x) is float or (type(x) is int and abs(x) < 2**63) or (isinstance(x, str) and x in _EXTREMES)


def taken(source: Source, name: str, like: Any) -> Any:
    """Return an array of a source as the library, device and dtype of another one has it."""
    return from_host(source.read(name), source.tensors[name].dtype, like)


def overwrite(source: Source, run: Run, loaded: Loaded) -> None:
    """Write every array of a source into its place, without one more in between where that is possible."""
    library = run.layout.library
    try:
        for name, place in loaded.places.items():
            x = place.array
            host = _arrays.host_view(x) if source.tensors[name].dtype == _arrays.dtype_name(x) else None
            if host is not None and host.flags.c_contiguous:
                source.into(name, host)
            else:
                _arrays.overwrite(library, [x], [taken(source, name, x)])
    except CheckpointError as error:  # it was in order a moment ago
        raise OSError(errno.EIO, str(error), source.where) from error
    for place, x in derived(run, loaded, run.layout.leaves):
        _arrays.overwrite(library, [place.array], [x])
    if library == "torch":
        _arrays.written([place.array for place in loaded.places.values() if not place.slot])


def derived(run: Run, loaded: Loaded, leaves: list[Any]) -> list[tuple[Place, Any]]:
    """Return what belongs to parameters that were loaded without it, and where: a master copy is one, an error is 0."""
    found = []
    for name, place in run.places(False).items():
        if place.slot in (MASTER, ERROR) and f"params/{place.key}" in loaded.places and name not in loaded.places:
            xp, old = run.layout.xp, place.array
            p = _arrays.detached(run.layout.library, leaves[place.k])
            found.append((place, _arrays.cast(xp, p, old.dtype) if place.slot == MASTER else xp.zeros_like(old)))
    return found


class Memory:
    """A state dict as a source."""

    where = "state dict"

    def __init__(self, state: Any) -> None:
        if not isinstance(state, Mapping) or not isinstance(state.get("state"), Mapping):
            raise CheckpointError(self.where, ["it must be a dict, as state_dict() returns it"])
        self.meta = {n: x for n, x in state.items() if n not in ("state", "params")}
        self._arrays = {f"state/{n}/{key}": x for n, own in state["state"].items() for key, x in _items(own)}
        self._arrays |= {f"params/{key}": x for key, x in _items(state.get("params", {}))}
        self.tensors = {}
        for name, x in self._arrays.items():
            if _arrays.library(x) is None or _arrays.dtype_name(x) not in _arrays.BYTES:
                raise CheckpointError(self.where, [f"{name}: {type(x).__name__}, but it must be an array of numbers"])
            self.tensors[name] = _tensor(x)

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def verify(self) -> None:
        """Memory is relied on."""

    def into(self, name: str, out: np.ndarray[Any, Any]) -> None:
        """Copy an array."""
        memory(out)[:] = memory(self.tensors[name].get())

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """Copy an array."""
        return np.array(self.tensors[name].get())


def _items(x: Any) -> list[tuple[str, Any]]:
    if not isinstance(x, Mapping):
        raise CheckpointError(Memory.where, [f"a {type(x).__name__} in the place of a dict of arrays"])
    return [(str(key), value) for key, value in x.items()]


def state_dict(run: Run, meta: dict[str, Any], params: bool) -> dict[str, Any]:
    """Return what is saved as plain dicts with copies of the arrays."""
    state: dict[str, dict[str, Any]] = {n: {} for n in run.slots}
    own: dict[str, Any] = {}
    for place in run.places(params).values():
        x = _arrays.detached(run.layout.library, place.array)
        (state[place.slot] if place.slot else own)[place.key] = run.layout.xp.asarray(x, copy=True)
    return {**meta, "state": state, **({"params": own} if params else {})}
