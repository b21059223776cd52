"""What is not the same everywhere, and why that is right: all of it, in two tables.

What these tables say is counted and printed, so that nobody takes it for tested.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fuzz import cases
from fuzz.cases import Case
from fuzz.paths import Path, Record


class Skip(NamedTuple):
    """Compositions that a path cannot be given."""

    reason: str
    applies: Callable[[Case, Path], bool]


class Seen(NamedTuple):
    """A difference."""

    case: Case
    path: Path
    want: Record
    have: Record
    name: str
    """Of the array; empty for what is refused on one side, or otherwise."""


class Excuse(NamedTuple):
    """A difference that is right."""

    reason: str
    applies: Callable[[Seen], bool]


def _dtypes(case: Case) -> set[str]:
    return {leaf.dtype for leaf in cases.leaves(case.params)}


def _asks(case: Case, *words: str) -> bool:
    said = case.rule + repr(case.keeping)
    return any(word in said for word in words)


def _shared(case: Case, *layouts: str) -> bool:
    return any(x.layout in layouts and (x.shape or x.layout == "read-only") for x in cases.leaves(case.params))


UNWRITABLE = {"numpy": cases.SHARED, "torch": ("broadcast",)}
"""Layouts that can be told from others there."""

SKIPS = [
    Skip(
        "array-api-strict has no half precision",
        lambda case, path: (
            path.library == "strict"
            and bool(_dtypes(case) & {"float16", "bfloat16"} or _asks(case, "'float16'", "'bfloat16'"))
        ),
    ),
    Skip(
        "the device of array-api-strict without int64 has no indices, which SOAP sorts by",
        lambda case, path: path.device == "no_x64" and _asks(case, "SOAP"),
    ),
    Skip(
        "dask has no bfloat16 under its own name",
        lambda case, path: path.library == "dask" and ("bfloat16" in _dtypes(case) or _asks(case, "'bfloat16'")),
    ),
    Skip(
        "devices of array-api-strict without float64",
        lambda case, path: path.device in ("no_float64", "no_x64") and bool(_dtypes(case) & {"float64", "complex128"}),
    ),
    Skip(
        "dask has no decompositions and does not sort",
        lambda case, path: path.library == "dask" and _asks(case, "Shampoo", "SOAP", "PSGD", "Simplex", "Muon"),
    ),
    Skip(
        "parameters that nobody may write into: Optimizer refuses them, which a test of its own sees",
        lambda case, path: path.in_place and _shared(case, *UNWRITABLE.get(path.library, ())),
    ),
]


def _text(record: Record) -> str:
    return record.refusal.text if record.refusal else ""


def _is_finite(x: Any) -> bool:
    """Whether all numbers are finite; a parameter without a slot has None in its place."""
    return np.asarray(x).dtype.kind not in "fc" or bool(np.isfinite(x).all())


def _nonfinite(seen: Seen) -> bool:
    return not all(map(_is_finite, (seen.want.found[seen.name], seen.have.found[seen.name])))


def _overflowed(seen: Seen) -> bool:
    """Whether gradients were so large that NumPy has something that is not finite, here or in another array."""
    return "'huge'" in repr(seen.case.events) and not all(map(_is_finite, seen.want.found.values()))


EXCUSES = [
    Excuse(
        'under jax.jit nobody can look at a gradient: "raise" says so',
        lambda s: s.path.form == "jit" and "which it cannot under jax.jit" in _text(s.have),
    ),
    Excuse(
        "products of complex infinities and NaN are those of the library",
        lambda s: bool(s.name) and bool(_dtypes(s.case) & {"complex64", "complex128"}) and _nonfinite(s),
    ),
    Excuse(
        "a step that overflows in float32 has a norm in float64, and none where there is no float64",
        lambda s: s.path.device in ("no_float64", "no_x64") and bool(s.name) and _overflowed(s),
    ),
    Excuse(
        "under jax.jit products are taken in another order, in which others overflow",
        lambda s: s.path.form == "jit" and bool(s.name) and _overflowed(s),
    ),
    Excuse(
        "what overflows in a product of matrices is infinite or NaN by the order of the sum",
        lambda s: bool(s.name) and _asks(s.case, "Shampoo", "SOAP", "PSGD", "Muon") and _overflowed(s),
    ),
    Excuse(
        "the basis of SOAP is one of many where eigenvalues are equal, and up to signs elsewhere",
        lambda s: "soap." in s.name or "klshampoo." in s.name,
    ),
]


def skipped(case: Case, path: Path) -> str:
    """Say why a composition is not run on a path; nothing if it is."""
    return next((x.reason for x in SKIPS if x.applies(case, path)), "")


def excused(*seen: Any) -> str:
    """Say why a difference is right; nothing if it is not."""
    return next((x.reason for x in EXCUSES if x.applies(Seen(*seen))), "")
