"""What must be the same on every path, and how nearly.

Reference is eager NumPy in pure functions. Two kinds of bounds:

- the same bits, where the README promises them: real float32 and float64 on NumPy, by any runner, and in place as in
  pure functions by the same one;
- elsewhere `ULPS` units in the last place, of the coarser of storage and arithmetic, of the largest number that the
  array had so far. Where that is exceeded, the reference is run again `RUNS` times with all that is stored off by such
  a unit at every step, hyperparameters included, and `TIMES` the largest change that this makes is allowed: signs,
  thresholds and singular matrices make much of little, and how much is seen instead of guessed.

Refusals are the same if they are of one type and say the same, but for names of libraries, of their arrays, and of
files. One that small changes turn into the other (a number at the edge of overflow) is not compared.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import optree

import xopt
from fuzz import cases
from fuzz.cases import Case
from fuzz.known import excused, skipped
from fuzz.paths import REFERENCE, Path, Record, Refusal, run

ULPS, RUNS, TIMES = 64, 6, 16
EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
EPS |= {"complex64": EPS["float32"], "complex128": EPS["float64"], "int8": 1 / 64, "uint8": 1 / 64}


class Difference(NamedTuple):
    """One thing that is not the same."""

    kind: str
    """What it is grouped by: without numbers, paths of leaves and names of libraries."""
    text: str


def eps(dtype: str) -> float:
    return EPS.get(dtype, EPS["float64"])


def unit(case: Case, dtype: str) -> float:
    """Return a unit in the last place of a number of a case: the coarser of its dtype and of how the state is kept."""
    said = case.rule + str(case.keeping)
    kept = [EPS[n] for n in ("bfloat16", "float16", "int8") if f"'{n}'" in said.replace('"', "'")]
    return max([eps(dtype), *kept])


def scalar_dtype(case: Case) -> str:
    """Return the dtype of scalars that are arrays."""
    wide = any(x.dtype in ("float64", "complex128") for x in cases.leaves(case.params))
    return "float64" if wide else "float32"


class Bump:
    """Puts everything off by up to a unit in the last place."""

    def __init__(self, case: Case, number: int) -> None:
        self.case, self.rng = case, np.random.default_rng([case.seed, number])
        self.scalar = max(eps(leaf.dtype) for leaf in cases.leaves(case.params))
        self.scalar = min(self.scalar, EPS["float32"])  # arithmetic of half precision is in float32
        self.hypers: dict[str, Any] = {}

    def array(self, x: Any) -> Any:
        """Return an array that is off."""
        if x.dtype.name not in EPS or "int" in x.dtype.name:
            return x
        size = unit(self.case, x.dtype.name)
        if "complex" in x.dtype.name:
            near = (self.array(x.real), self.array(x.imag))
            return np.asarray(near[0] + 1j * near[1], x.dtype)
        with np.errstate(all="ignore"):
            factor = 1 + size * self.rng.choice([-1, 0, 1], x.shape)
            return np.asarray(x.astype("float64") * factor, x.dtype)

    def tree(self, tree: Any) -> Any:
        return optree.tree_map(lambda x: self.array(x) if isinstance(x, np.ndarray) else x, tree)

    def state(self, state: Any) -> Any:
        """Return a state that is off, but for counts and scales."""
        slots = {n: tree if "scale" in n else self.tree(tree) for n, tree in state.slots.items()}
        return state._replace(slots=slots)

    def hyper(self, words: dict[str, Any]) -> dict[str, Any]:
        """Return hyperparameters that are off, downwards: 1 may be the limit."""

        def off(x: Any) -> Any:
            factor = 1 - 2 * self.scalar * self.rng.random()
            if callable(x):
                return lambda t: factor * x(t)
            return factor * float(x) if isinstance(x, int | float) or hasattr(x, "dtype") else x

        value = {n: x for n, x in words.items() if n == "value"}
        return {n: off(x) for n, x in {**self.hypers, **words}.items() if n != "value"} | value


def hyperparams(case: Case) -> dict[str, Any]:
    params = cases.mapped(lambda k, leaf: cases.numbers(case, 0, k, leaf), case.params)
    found = xopt.Optimizer(params, cases.made(case.rule), runner="eager", **case.keeping).hyperparams()
    return {n: x for n, x in found.items() if callable(x) or (isinstance(x, float) and x != 1.0)}


class Reference:
    """The reference of a composition, and what it makes of small changes."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.records = run(case, REFERENCE, resume=False)
        self._near: list[list[Record]] | None = None

    def near(self) -> list[list[Record]]:
        """Return runs in which everything is off by a little."""
        if self._near is None:
            self._near = []
            for number in range(RUNS):
                bump = Bump(self.case, number)
                if number % 2:
                    try:
                        bump.hypers = hyperparams(self.case)
                    except Exception:
                        bump.hypers = {}
                self._near.append(run(self.case, REFERENCE, resume=False, bump=bump))
        return self._near

    def scale(self, at: int, name: str) -> float:
        """Return the largest size that an array had so far."""
        sizes = [0.0]
        for record in self.records[: at + 1]:
            x = record.found.get(name)
            if x is not None and np.size(x):
                x = np.abs(np.asarray(x, complex if np.iscomplexobj(x) else float))
                sizes.append(float(np.max(np.where(np.isfinite(x), x, 0.0))))
        return max(sizes)

    def may(self, at: int, refusal: Refusal | None) -> bool:
        """Whether a small change makes the reference refuse, or accept, an event in this way."""
        return any(near[at].refusal == refusal or _same_refusal(near[at].refusal, refusal) for near in self.reach(at))

    def reach(self, at: int) -> list[list[Record]]:
        """Return the runs with small changes that came so far."""
        return [near for near in self.near() if len(near) > at]

    def like(self, at: int) -> list[list[Record]]:
        """Return those that refused, up to an event, what the reference did."""
        old = [r.refusal and r.refusal.kind for r in self.records[: at + 1]]
        return [x for x in self.reach(at) if [r.refusal and r.refusal.kind for r in x[: at + 1]] == old]


EDGE = "refused, or not, for a unit in the last place"


_WORDS = [
    (r"\S*run\.safetensors", "FILE"),
    (r"array_api_strict|array-api-strict|numpy|torch|jax|jaxlib|dask|cupy|strict", "LIBRARY"),
    (r"Tensor|ArrayImpl|ndarray|\bArray\b|DynamicJaxprTracer|Traced<[^>]*>", "ARRAY"),
    (r"0x[0-9a-f]+", "PLACE"),
    (r"(an array|[-+.e\d]+) (?=in one group|in another)", "a number "),  # which the host has, or has not
]


def plain(text: str) -> str:
    """Return a message without names of libraries and their arrays."""
    for pattern, word in _WORDS:
        text = re.sub(pattern, word, text)
    return text


def shape_of(text: str) -> str:
    """Return a message without numbers and paths either: what kinds are made of."""
    text = re.sub(r'\["?[^\]]*"?\]', "[]", plain(text).partition("\n")[0])
    return re.sub(r"-?\d+(\.\d+)?(e[-+]?\d+)?", "#", text)[:160]


def said(refusal: Refusal | None) -> str:
    return "accepted" if refusal is None else f"{refusal.kind} at {refusal.where}: {shape_of(refusal.text)}"


def name_of(name: str) -> str:
    """Return the name of an array without places and numbers."""
    return re.sub(r"\[\d+\]|\b\d+\.|group\d+\.", "", name)


class Excused(NamedTuple):
    """Why a composition was not run on a path, or not compared to its end."""

    reason: str


def compare(case: Case, path: Path, ref: Reference, got: list[Record], exact: bool) -> Difference | Excused | None:
    """Return the first difference of a path to the reference."""
    for at, (want, have) in enumerate(zip(ref.records, got, strict=False)):
        where = f"{path.name}, event {at}: {case.events[at - 1] if at else 'init'!r}"
        if have.broken:
            return Difference(f"{path.family}: written: {have.broken}", f"{where}: written: {have.broken}")
        if not _same_refusal(want.refusal, have.refusal):
            why = excused(case, path, want, have, "") or (EDGE if ref.may(at, have.refusal) else "")
            if why:
                return Excused(why)
            kind = f"{path.family}: {said(have.refusal)}, where NumPy: {said(want.refusal)}"
            texts = [r.text if r else "accepted" for r in (have.refusal, want.refusal)]
            return Difference(kind, f"{where}: {texts[0]!r}, where NumPy: {texts[1]!r}")
        found = _values(case, path, ref, at, have, exact)
        if isinstance(found, Excused):
            return found
        if found:
            return Difference(f"{path.family}: {found[0]}", f"{where}: {found[1]}")
    return None


def _same_refusal(a: Refusal | None, b: Refusal | None) -> bool:
    """Whether two refusals are of one type and say the same, but for names of libraries and arrays."""
    if a is None or b is None:
        return a is b
    return a.kind == b.kind and plain(a.text) == plain(b.text)


def _values(
    case: Case, path: Path, ref: Reference, at: int, have: Record, exact: bool
) -> Excused | tuple[str, str] | None:
    want = ref.records[at].found
    if path.in_place:
        want = {n: x for n, x in want.items() if not n.startswith("change")}
    names = {*want} ^ {*have.found}
    if names:
        return "other names: " + ", ".join(sorted({name_of(n) for n in names})), f"other names: {sorted(names)}"
    why = ""
    for n in sorted(want, key=lambda n: (n.startswith("params"), n)):
        problem = _one(case, ref, at, n, want[n], have.found[n], exact)
        if isinstance(problem, Excused):
            why = problem.reason
        elif problem:
            own = excused(case, path, ref.records[at], have, n)
            if not own:
                return f"{problem[0]} of {name_of(n)}", f"{n}: {problem[1]}"
            why = own
    return Excused(why) if why else None


def alike(x: Any, y: Any) -> bool:
    """Whether numbers are the same to the bit; one NaN is like any other."""
    if "complex" in x.dtype.name:
        return alike(x.real, y.real) and alike(x.imag, y.imag)
    return bool((((x == y) & (np.signbit(x) == np.signbit(y))) | ((x != x) & (y != y))).all())


def _one(case: Case, ref: Reference, at: int, n: str, x: Any, y: Any, exact: bool) -> Excused | tuple[str, str] | None:
    if x is None or y is None or n == "step":
        return None if x is y or x == y else ("presence", f"{y!r}, where NumPy has {x!r}")
    carried = n.startswith("carry.")
    x, y = np.asarray(x), np.asarray(y)
    if x.shape != y.shape or (x.dtype != y.dtype and not carried):
        return "shape or dtype", f"{y.dtype} {y.shape}, where NumPy has {x.dtype} {x.shape}"
    if x.tobytes() == y.tobytes():
        return None
    # SAM takes the default runner, which on complex numbers is near to the reference, and the layout chooses it
    if exact and not (n.startswith("worst") and np.iscomplexobj(x)):
        return None if alike(x, y) else ("bits", f"{_shown(y)}, where NumPy has {_shown(x)}")
    dtype = scalar_dtype(case) if carried else x.dtype.name
    wide = complex if np.iscomplexobj(x) else float
    a, b = x.astype(wide), y.astype(wide)
    with np.errstate(all="ignore"):
        finite = np.isfinite(a) & np.isfinite(b)
        off = np.where(finite, np.abs(a - b), 0.0)
        odd = ~finite & ~((a == b) | ((a != a) & (b != b)))
        size = unit(case, dtype)
        # what rounding lost is as large as a unit of the parameter, and a point nearby is a difference from it
        of = n.replace("slots.precision.error", "params").replace("worst", "params")
        # a carried weight is made of 1 - β, so that a unit of 1 is lost
        bound = ULPS * size * max(ref.scale(at, n), ref.scale(at, of), float(carried)) + 4 * float(
            np.finfo("float32" if eps(dtype) >= EPS["float32"] else "float64").tiny
        )
        if not odd.any() and (off <= bound).all():
            return None
        if not ref.like(at):
            return Excused(EDGE)
        spread = 0.0
        for near in ref.like(at):
            z = np.asarray(near[at].found[n]).astype(wide)
            both = np.isfinite(a) & np.isfinite(z)
            odd &= ~(np.isfinite(z) != np.isfinite(a))
            change = np.abs(np.where(both, a - z, 0.0))
            spread = max(spread, float(change.max()) if change.size else 0.0)
        if odd.any():
            return "what is not finite", f"{_shown(y)}, where NumPy has {_shown(x)}"
        bound += TIMES * spread
        if (off <= bound).all():
            return None
    return "values", f"{_shown(y)}, where NumPy has {_shown(x)}; off by {off.max():.3g}, allowed {bound:.3g}"


def _shown(x: Any) -> str:
    text = np.array2string(np.asarray(x, complex if np.iscomplexobj(x) else float), threshold=6, precision=9)
    return text.replace("\n", "")


def promised(case: Case, path: Path) -> bool:
    """Whether the bits are those of the reference."""
    dtypes = {leaf.dtype for leaf in cases.leaves(case.params)}
    if path.library != "numpy":
        return False
    if path.form == "ranks" and not dtypes <= {"float32", "float64"}:  # gradients are in C order by then
        return all(getattr(event, "layout", "C") == "C" for event in case.events) and path.runner == "eager"
    if path.runner == "eager":
        return True
    rule = cases.made(case.rule)
    inexact = any(link.part.inexact for link in rule._all_links())
    return dtypes <= {"float32", "float64"} and not inexact


def check(case: Case, path: Path, ref: Reference) -> Difference | Excused | None:
    """Run a composition on a path and compare."""
    why = skipped(case, path)
    if why:
        return Excused(why)
    got = run(case, path)
    found = compare(case, path, ref, got, promised(case, path))
    if isinstance(found, Difference) or not any(isinstance(e, cases.Resume) for e in case.events):
        return found
    return resumed(case, path, got) or found


def _by_layout(path: Path, n: str, x: Any, y: Any) -> bool:
    """Whether complex numbers are as near as the compiled loop and NumPy are, between which the layout chooses."""
    if not np.iscomplexobj(x) or not (path.runner == "llvm" or n.startswith("worst")):
        return False
    return bool((np.abs(x - y) <= 8 * np.finfo(x.dtype).eps * (np.abs(x) + 1)).all())


def resumed(case: Case, path: Path, got: list[Record]) -> Difference | None:
    """Compare a run that was resumed with one that was not, bit by bit."""
    for at, (a, b) in enumerate(zip(run(case, path, resume=False), got, strict=True)):
        for n in a.found:
            x, y = np.asarray(a.found[n]), np.asarray(b.found[n])
            if x.tobytes() != y.tobytes() and not alike(x, y) and not _by_layout(path, n, x, y):
                text = f"{path.name}, event {at}: {n} is {_shown(y)} after a resume, without {_shown(x)}"
                return Difference(f"{path.family}: bits of {name_of(n)} after a resume", text)
    return None
