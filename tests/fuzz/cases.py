"""What a composition is: plain data that prints as the Python that makes it again.

``Case(params={"w": Leaf((3, 2))}, rule="xopt.Adam(lr=0.1)", events=(Step(), Step("nan")))``
"""

from __future__ import annotations

import re
import zlib
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import optree
from catalog.links import centre

import xopt


def _shown(x: Any) -> str:
    """Show a record as the call that makes it, without what is the default."""
    given = {n: v for n, v in x._asdict().items() if n not in x._field_defaults or v != x._field_defaults[n]}
    return f"{type(x).__name__}({', '.join(f'{n}={v!r}' for n, v in given.items())})"


class Leaf(NamedTuple):
    """One parameter."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    layout: str = "C"
    """How it lies in memory, where the library has a say in that: one of `LAYOUTS`."""

    __repr__ = _shown


LAYOUTS = ("C", "F", "reversed", "strided", "broadcast", "read-only")
SHARED = ("broadcast", "read-only")
"""Layouts that nobody may write into."""


class Array(NamedTuple):
    """A hyperparameter that is a 0-d array of the library."""

    value: float
    __repr__ = _shown


class Step(NamedTuple):
    """A step; ``grads`` is the kind of all gradients, or a tuple with that of each leaf."""

    grads: str | tuple[str, ...] = "normal"
    value: float | None = None
    overrides: dict[str, Any] = {}
    """Numbers, `Array`, and schedules as text."""
    layout: str = "C"
    """Of the gradients."""

    __repr__ = _shown


class Set(NamedTuple):
    """New hyperparameters from here on."""

    values: dict[str, Any]
    __repr__ = _shown


class Resume(NamedTuple):
    """Save, and go on in a new run."""

    by: str = "dict"
    __repr__ = _shown


class Evaluate(NamedTuple):
    """Ask for the parameters to evaluate."""

    __repr__ = _shown


class Perturb(NamedTuple):
    """Ask SAM for the worst point nearby."""

    rho: float = 0.1
    adaptive: bool = False
    __repr__ = _shown


class Estimate(NamedTuple):
    """Take an estimate of the curvature; ``kind`` is one of gradients."""

    kind: str = "normal"
    __repr__ = _shown


class Case(NamedTuple):
    """A composition."""

    params: Any
    """A tree of `Leaf`."""
    rule: str
    """Python that makes the rule: see `made`."""
    events: tuple[Any, ...]
    keeping: dict[str, Any] = {}
    """How parameters and state are kept: what ``Optimizer`` and ``init`` take."""
    seed: int = 0
    updates: bool = False
    """Whether ``updates`` is compared too."""

    __repr__ = _shown


KINDS = ("normal", "none", "zeros", "some", "ones", "small", "tiny", "large", "huge", "nan", "inf")
"""What gradients may be. ``some``: half of them are 0. ``small`` and ``large``: their squares are still numbers."""
_SIZE = {"small": 1e-10, "tiny": 1e-25, "large": 1e10, "huge": 1e25}
_HALF = {"small": 1e-3, "tiny": 1e-5, "large": 100.0, "huge": 1e4}

NAMESPACE = {
    "xopt": xopt,
    "S": xopt.schedules,
    "re": re,
    "centre": centre,
    **{n: getattr(module, n) for module in (xopt, xopt.schedules) for n in module.__all__},
}


def made(source: str) -> Any:
    """Make a rule, a component or a schedule of its text."""
    return eval(source, dict(NAMESPACE))


def leaves(tree: Any) -> list[Any]:
    """Return the leaves of a tree of `Leaf`."""
    return optree.tree_leaves(tree, is_leaf=lambda x: isinstance(x, Leaf))


def mapped(function: Any, tree: Any) -> Any:
    """Return a tree with ``function(number, leaf)`` in place of each `Leaf`."""
    found, spec = optree.tree_flatten(tree, is_leaf=lambda x: isinstance(x, Leaf))
    return optree.tree_unflatten(spec, [function(k, x) for k, x in enumerate(found)])


def names(tree: Any) -> list[str]:
    """Return the path of each leaf, as predicates see it."""
    spec = optree.tree_structure(tree, is_leaf=lambda x: isinstance(x, Leaf))
    return ["/".join(map(str, path)) for path in spec.paths()]


def kind_of(event: Step, k: int) -> str:
    """Return the kind of the gradient of leaf ``k``."""
    if isinstance(event.grads, str):
        return event.grads
    return event.grads[k] if k < len(event.grads) else "normal"


def numbers(case: Case, where: int, k: int, leaf: Leaf, kind: str = "normal") -> Any:
    """Return the numbers of a parameter (``where`` is 0) or of a gradient, in its dtype; None for no gradient."""
    if kind == "none":
        return None
    rng = np.random.default_rng([case.seed, where, k])
    x = rng.standard_normal(leaf.shape)
    if "complex" in leaf.dtype:
        x = x + 1j * rng.standard_normal(leaf.shape)
    x = np.asarray(x)
    if kind == "zeros":
        x = 0 * x
    if kind == "ones":
        x = 0 * x + 1
    if kind == "some":
        x = np.where(rng.standard_normal(leaf.shape) > 0, x, 0)
    x = np.asarray(x * (_HALF if leaf.dtype == "float16" else _SIZE).get(kind, 1.0))
    if kind in ("nan", "inf") and x.size:
        x = x.copy()
        x.flat[zlib.crc32(kind.encode()) % x.size] = np.nan if kind == "nan" else -np.inf
    return np.asarray(x, ml_dtypes.bfloat16 if leaf.dtype == "bfloat16" else leaf.dtype)
