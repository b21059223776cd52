"""The optimizer state of a tree: which slots each parameter has, of which dtype, and what is in them at first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from xopt import _arrays
from xopt._arrays import tree as _tree
from xopt._arrays.layout import Layout
from xopt._engine.bucket import Bucket
from xopt._engine.program import trace as _trace
from xopt._engine.program.contract import ComponentSpec, Filled
from xopt._engine.program.quantize import SCALE, first_code, is_scale
from xopt._engine.program.storage import ERROR, USUAL, StoragePolicy, first_number


class StateSpec:
    """What state the components of a tree keep.

    ``specs`` are all components; ``live`` the slots that some plan reads or writes, ``carried`` the scalars that live
    from step to step, with the component and first value of each.
    """

    def __init__(
        self,
        layout: Layout,
        bucket_of: list[Bucket | None],
        specs: Iterable[ComponentSpec],
        live: tuple[str, ...],
        carried: Mapping[str, tuple[ComponentSpec, Any]],
    ) -> None:
        self.layout, self.bucket_of, self.live, self.carried = layout, bucket_of, live, carried
        specs = list(specs)
        self._owner = {spec.slot(n): spec for spec in specs for n in spec.slots}
        self._storage: StoragePolicy = next((spec.storage for spec in specs if spec.storage), USUAL)
        self._likes: dict[tuple[str, int], Any] = {}

    def has(self, name: str, k: int) -> bool:
        """Whether parameter ``k`` has this slot."""
        bucket = self.bucket_of[k]
        return bucket is not None and name in bucket.plan.live and self._first(name, k) is not None

    def _split(self, k: int) -> bool:
        """Whether parameter ``k`` is computed as pairs of reals."""
        bucket = self.bucket_of[k]
        return bucket is not None and bucket.split

    def _declared(self, name: str) -> Any:
        spec = self._owner[name]
        return spec.slots[name.removeprefix(f"{spec.key}.")]

    def _first(self, name: str, k: int) -> Any:
        """Return the first value of a slot of parameter ``k``: a number, ``"p"``, a new array, or None for no slot."""
        spec = self._owner[name]
        if spec.tree is not None:
            return spec.tree.like[name.removeprefix(f"{spec.key}.")] if k == spec.tree.home else None
        value = self._declared(name)
        if not callable(value):
            return value
        if (name, k) not in self._likes:
            layout = self.layout
            p, h = _arrays.detached(layout.leaves[k]), SimpleNamespace(**spec.statics)
            split = self._split(k)
            x = value(h, layout.xp, layout.xp.real(p) if split else p)
            if x is not None:
                kind = layout.dtypes[k].compute if split or _arrays.is_complex(x) else layout.dtypes[k].real
                x = _arrays.cast(layout.xp, x, getattr(layout.xp, kind))
                if split:
                    x = layout.library.join_complex(layout.xp, layout.xp.real(x), layout.xp.real(x))
            self._likes[name, k] = x
        return self._likes[name, k]

    def slot_dtype(self, name: str, k: int) -> str:
        """Name the dtype of a slot of parameter ``k``: that of its arithmetic, unless the caller wants another one."""
        bucket = self.bucket_of[k]
        codes = bucket.plan.codes if bucket else {}
        usual, path = self._usual_dtype(name, k), partial(self.layout.path, k)
        return self._storage.slot(self._owner[name], name, self.layout.dtypes[k], usual, codes, path)

    def slot_shape(self, name: str, k: int) -> tuple[int, ...]:
        """Return the shape of a slot that parameter ``k`` has."""
        first = self._first(name, k)
        self._likes.pop((name, k), None)
        return tuple(first.shape) if hasattr(first, "dtype") else self.layout.shapes[k]

    def check_dtypes(self) -> None:
        """Refuse a dtype that is asked for where it cannot be had, on all runners at the first such parameter."""
        if self._storage.narrow:
            for k, dtype in enumerate(self.layout.dtypes):
                for name in self.live:
                    if dtype.complex and self.has(name, k):
                        self.slot_dtype(name, k)
            self._likes.clear()

    def _usual_dtype(self, name: str, k: int) -> str:
        d, bucket = self.layout.dtypes[k], self.bucket_of[k]
        if not d.complex or bucket is None:
            return d.real
        if name in bucket.plan.kinds:
            return d.compute if bucket.split or bucket.plan.kinds[name] == _trace.COMPLEX else d.real
        first = self._first(name, k)
        return _arrays.dtype_name(first) if hasattr(first, "dtype") else d.compute

    def new_slots(self) -> dict[str, list[Any]]:
        """Make the state before the first step."""
        made = {n: [self.new_slot(n, k) for k in range(len(self.layout.leaves))] for n in self.live}
        self._likes.clear()
        return made

    def new_slot(self, name: str, k: int) -> Any:
        """Make a slot of parameter ``k``; None if it has no such one."""
        if not self.has(name, k):
            return None
        xp, library, p = self.layout.xp, self.layout.library, self.layout.leaves[k]
        first, bucket = self.first_value(name, k), self.bucket_of[k]
        if bucket is not None and name in bucket.plan.codes:
            number, kind = first_number(self._declared(name)), bucket.plan.codes[name]
            like = first if hasattr(first, "dtype") else p
            return _arrays.full_like(library, xp, like, self.slot_dtype(name, k), first_code(number, kind))
        if hasattr(first, "dtype"):
            return _arrays.copied(library, xp, first, self.slot_dtype(name, k))
        return _arrays.full_like(library, xp, p, self.slot_dtype(name, k), first)

    def first_value(self, name: str, k: int) -> Any:
        """Return the first value of a slot of parameter ``k``: a number, or an array.

        Of a split complex one, both parts have the number.
        """
        if self._owner[name].tree is not None:
            return self._first_of_tree(name)
        value = self._first(name, k)
        if isinstance(value, str):
            return self.layout.leaves[k]
        if hasattr(value, "dtype"):
            return value
        return complex(value, value) if self._split(k) else value

    def _first_of_tree(self, name: str) -> Any:
        spec = self._owner[name]
        if (name, -1) not in self._likes:
            self._likes |= {(spec.slot(n), -1): x for n, x in spec.tree.first(self.layout).items()}
        return self._likes[name, -1]

    def renewed(self, name: str, k: int) -> Any:
        """Make a slot of parameter ``k`` anew, of the parameter as it is now."""
        self._likes.clear()
        made = self.new_slot(name, k)
        self._likes.clear()
        return made

    def owner(self, name: str) -> ComponentSpec:
        """Return the component that a slot belongs to; scales belong where their codes do."""
        return self._owner[name.removeprefix(SCALE)]

    def follows(self, name: str) -> bool:
        """Whether the first value of a slot hangs on the parameter, or what it holds does."""
        first = self._declared(name)
        made = callable(first) and not isinstance(first, Filled)
        return (isinstance(first, str) or made or name == ERROR) and not is_scale(name)

    def new_step(self, taken: int = 0) -> Any:
        """Return the number of steps taken: a Python int, on JAX an int32 array, so that a jitted step traces once."""
        if not self.layout.library.records:
            return taken
        xp = self.layout.xp
        return xp.asarray(min(taken, 2**31 - 1), dtype=xp.int32, **self.layout.near)

    def check(self, state: Any) -> dict[str, list[Any]]:
        """Return the slots of a state leaf by leaf, or say what does not fit this chain and these parameters."""
        for field in ("step", "slots", "carry"):
            if not hasattr(state, field):
                raise TypeError(f"state: a {type(state).__name__}, but rule.init returns a State")
        _same_keys("state.slots", state.slots, self.live)
        _same_keys("state.carry", state.carry, self.carried)
        step = state.step
        traced = self.layout.library.records and getattr(step, "shape", None) == () and "int" in str(step.dtype)
        if isinstance(step, bool) or not (isinstance(step, int) or traced):
            raise TypeError(f"state.step: {step!r}, but the number of steps taken is an int")
        if isinstance(step, int) and step < 0:
            raise ValueError(f"state.step: {step}, but the number of steps taken is at least 0")
        found = {}
        for name in self.live:
            path = f'state.slots["{name}"]'
            column = _tree.match(self.layout.spec, state.slots[name], path)
            for k, x in enumerate(column):
                if self.has(name, k):
                    self.layout.same(path, k, x, self._slot_dtype_object(name, k), self.slot_shape(name, k))
                elif x is not None:
                    raise ValueError(
                        f"{self.layout.path(k, path)}: an array, but the rule keeps none for this parameter"
                    )
            found[name] = column
        for name, (spec, _) in self.carried.items():
            shape = (len(self.layout.leaves),) if spec.scope == "leaf" else ()
            if tuple(np.shape(state.carry[name])) != shape:
                raise ValueError(
                    f'state.carry["{name}"]: shape {np.shape(state.carry[name])}, but the rule keeps {shape}'
                )
        return found

    def _slot_dtype_object(self, name: str, k: int) -> Any:
        kind = _arrays.dtype_of(self.layout.library, self.layout.xp, self.slot_dtype(name, k))
        return np.dtype(kind) if isinstance(kind, type) else kind


def _same_keys(path: str, got: Any, want: Any) -> None:
    if not isinstance(got, dict):
        raise TypeError(f"{path}: a {type(got).__name__}, but it must be a dict")
    if {*got} != {*want}:
        raise ValueError(
            f"{path}: {sorted(got, key=str)}, but this rule keeps {sorted(want)}; "
            f"the state belongs to another rule or to other options"
        )
