"""The parameters of a tree, and the checks that everything else must pass before anything is written."""

from __future__ import annotations

import bisect
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from xopt import _arrays
from xopt._arrays import tree as _tree
from xopt._arrays.rows import SparseRows, accepted, summed

_base = operator.attrgetter("base")


class Layout:
    """Paths, shapes, dtypes and devices of parameters: what gradients and state are compared with."""

    def __init__(self, params: Any, *, writable: bool = False, name: str = "params") -> None:
        self._name = name
        self.leaves, self.spec = _tree.flatten(params)
        self._paths: list[str] | None = None
        self.memo: dict[Any, Any] = {}
        """What others found out about these parameters."""
        libraries = [_arrays.library(x) for x in self.leaves]
        for k, (x, library) in enumerate(zip(self.leaves, libraries, strict=True)):
            if library is None:
                raise TypeError(f"{self.path(k)}: {_what(x)}, but a parameter must be an array")
            if library != libraries[0]:
                raise TypeError(f"{self.path(k)}: an array of {library}, but {self.path(0)} is one of {libraries[0]}")
            reason = library.reason(x)
            if reason:
                raise TypeError(f"{self.path(k)}: {reason}")
            if writable:
                self._check_writable(k, x)
        self.library = libraries[0] or _arrays.NUMPY if libraries else _arrays.NUMPY
        self.given = self.leaves
        """The parameters as they came; those of classes of their own are computed with as arrays."""
        self.leaves = list(map(_arrays.plain, self.leaves))
        self.xp: Any = _arrays.namespace(self.leaves[0]) if self.leaves else np
        self.shapes = [tuple(x.shape) for x in self.leaves]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        """How many elements each has; of a part, those of the whole."""
        self.numbers: Sequence[int] = range(len(self.leaves))
        """Which parameter of the whole tree each is, or is a part of."""
        self.starts = [0] * len(self.leaves)
        """With which element of that each begins, a multiple of `summation.CHUNK`."""
        self.dtypes = [self._dtype(k, x) for k, x in enumerate(self.leaves)]
        self.raw_dtypes = [x.dtype for x in self.leaves]
        self.devices = [_arrays.device(x) for x in self.leaves]
        self.kinds = {*map(type, self.leaves), *self.library.plain_types()}
        self.facts = self.library.facts(self.leaves)

    def path(self, k: int, name: str = "") -> str:
        """Name leaf ``k``: ``params["layer1"]["w"]``."""
        if self._paths is None:
            self._paths = _tree.paths(self.spec, "")
        return (name or self._name) + self._paths[k]

    @property
    def like(self) -> Any:
        """A parameter, to make other arrays beside it; None where there is none."""
        return self.leaves[0] if self.leaves else None

    @property
    def near(self) -> dict[str, Any]:
        """Where to make other arrays: an argument of ``xp.zeros`` and so on."""
        return _arrays.beside(self.leaves[0]) if self.leaves else {}

    def names(self) -> list[str]:
        """Name every leaf by its keys, with slashes between them: ``layer1/w``."""
        if "names" not in self.memo:
            self.memo["names"] = _tree.names(self.spec)
        found: list[str] = self.memo["names"]
        return found

    def _check_writable(self, k: int, x: Any) -> None:
        if isinstance(x, np.generic):
            raise TypeError(
                f"{self.path(k)}: a NumPy scalar ({type(x).__name__}), which cannot be written into; "
                f"pass numpy.asarray(x), or use rule.apply"
            )
        library = _arrays.library(x)
        if library is not None and not library.all_writable([x]):
            raise ValueError(
                f"{self.path(k)}: a read-only array, and Optimizer writes into it; pass a copy, or use rule.apply"
            )

    def check_writable(self) -> None:
        """Refuse parameters that were made read-only since."""
        if not self.library.all_writable(self.leaves):
            for k, x in enumerate(self.leaves):
                self._check_writable(k, x)

    def _dtype(self, k: int, x: Any) -> _arrays.DType:
        name = _arrays.dtype_name(x)
        if name not in _arrays.DTYPES:
            raise TypeError(f"{self.path(k)}: dtype {name}, but a parameter must be one of {', '.join(_arrays.DTYPES)}")
        if any(not isinstance(n, int) or n < 0 for n in x.shape):
            raise ValueError(f"{self.path(k)}: shape {tuple(x.shape)}, but a parameter must have a known shape")
        return _arrays.DTYPES[name]

    def gradients(self, grads: Any, name: str = "grads") -> list[Any]:
        """Return the gradients leaf by leaf, None where there is none, or say which one does not fit and why."""
        found = _tree.match(self.spec, grads, name)
        return [self.gradient(k, g, name) for k, g in enumerate(found)]

    def gradient(self, k: int, g: Any, name: str = "grads") -> Any:
        """Return the gradient of leaf ``k``: None, an array, or some of its rows, which alone take part in the step."""
        return accepted(self, k, g, name) if isinstance(g, SparseRows) else self.accept(k, g, name)

    def accept(self, k: int, g: Any, name: str = "grads", dtype: Any = None) -> Any:
        """Return the gradient of leaf ``k`` as an array that can be computed with, or say why it does not fit.

        ``dtype`` is what it must have; None: that of the parameter.
        """
        if g is None:
            return None
        g = _arrays.plain(g)
        self.same(name, k, g, self.raw_dtypes[k] if dtype is None else dtype)
        return self.library.resolved(g)

    def refuse_apart(self, first: int, k: int, what: str) -> None:
        """Refuse what sums over two leaves that are on different devices."""
        here, there = str(self.devices[k]), str(self.devices[first])
        if here != there:
            raise ValueError(
                f"{self.path(k)}: on {here}, but {self.path(first)} is on {there}, and {what} sums over both; make an "
                f"optimizer for each device"
            )

    def refuse_local(self, k: int, name: str) -> None:
        """Raise where parameter ``k`` is known to be a part of an array of which a component needs the whole."""
        if self.library.is_part(self.leaves[k]):
            raise ValueError(
                f"{self.path(k)}: the local part of a DTensor, and {name} needs a norm or a sum of the whole, which no "
                f"process has; leave that out, or pass x.to_local().detach() if the part is the whole"
            )

    def refuse_nonfinite(self, gs: list[Any]) -> None:
        """Raise for the first gradient that is not finite, where a jitted step could not."""
        for k, g in enumerate(gs):
            g = summed(self, k, g)[1] if isinstance(g, SparseRows) else g  # which may overflow
            bad = 0 if g is None else int(self.xp.sum(~self.xp.isfinite(g)))
            if bad:
                raise FloatingPointError(f"{self.path(k, 'grads')}: {bad:,} elements are not finite")

    def same(self, name: str, k: int, x: Any, dtype: Any, shape: tuple[int, ...] | None = None, part: str = "") -> None:
        """Check that an array, or a part of what stands for one, has what goes with parameter ``k``.

        That is the library, the device, and this dtype and shape.
        """
        shape = self.shapes[k] if shape is None else shape
        p, library = self.leaves[k], _arrays.library(x)
        fits = library == self.library and tuple(x.shape) == shape and x.dtype == dtype
        if fits and not self.library.graphs and self.library.device(x) == self.devices[k]:
            return
        path = self.path(k, name) + part
        if library != self.library:
            if library and library.reason(x):
                raise TypeError(f"{path}: {library.reason(x)}")
            got = f"an array of {library}" if library else _what(x)
            hint = "; pass a dense gradient" if isinstance(x, SparseRows) else ""
            raise TypeError(f"{path}: {got}, but the parameter is an array of {self.library}{hint}")
        ours, theirs = (self.library.stands_for(y) or "an array with numbers" for y in (p, x))
        if ours != theirs:
            raise TypeError(f"{path}: {theirs}, but the parameter is {ours}")
        own, other = self.library.layout(p), self.library.layout(x)
        if other != own:
            hint = "" if part else " or SparseRows"
            raise TypeError(f"{path}: layout {other}, but the parameter has {own}; pass x.to_dense(){hint}")
        if self.library.reason(x):
            raise TypeError(f"{path}: {self.library.reason(x)}")
        if tuple(x.shape) != shape:
            owner = "the parameter has" if shape == self.shapes[k] else "the rule keeps"
            hint = "; None is a size that is not known before it runs: reshape it" if None in x.shape else ""
            raise ValueError(f"{path}: shape {tuple(x.shape)}, but {owner} {shape}{hint}")
        if x.dtype != dtype:
            owner = "the parameter has" if dtype == p.dtype else "the rule keeps"
            raise TypeError(f"{path}: dtype {_arrays.dtype_name(x)}, but {owner} {str(dtype).rpartition('.')[2]}")
        if _arrays.device(x) != self.devices[k]:
            raise ValueError(
                f"{path}: on device {_arrays.device_name(x)}, but the parameter is on {_arrays.device_name(p)}"
            )

    def tree(self, leaves: list[Any]) -> Any:
        """Put one array a parameter back into the structure."""
        return _tree.unflatten(self.spec, leaves)

    def params(self, leaves: list[Any]) -> Any:
        """Put new parameters back into the structure, in the classes of those that came."""
        if self.library.host and {*map(type, self.given)} != {np.ndarray}:
            leaves = [
                x.__array_wrap__(y) if isinstance(x, np.ndarray) and x is not p else y
                for x, p, y in zip(self.given, self.leaves, leaves, strict=True)
            ]
        return self.tree(leaves)


def _what(x: Any) -> str:
    kind = type(x)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]}."
    return (
        f"{x!r}, a Python {kind.__name__}"
        if isinstance(x, bool | int | float | complex)
        else f"a {module}{kind.__name__}"
    )


class AliasGuard:
    """Where the parameters and the state of an optimizer lie, to find what overlaps them."""

    def __init__(self, layout: Layout, state: list[Any], inspector: Any = None) -> None:
        self._layout, self._state, self._inspector = layout, state, inspector
        self._look()
        self.moved = False
        """Whether parameters have had new memory, and whoever keeps addresses has not yet dropped them."""

    def _look(self) -> None:
        """Find where everything lies; refuse parameters that share memory."""
        self.moved, layout = True, self._layout
        self._known: list[Any] | None = None  # until all is known to be right
        known = self._fingerprints()
        self._arrays = [*layout.leaves, *self._state]
        extents = [_arrays.extent(x) for x in self._arrays]
        self._spans = sorted((*e, k) for k, e in enumerate(extents) if e != (0, 0))
        self._lows = [low for low, _, _ in self._spans]
        self._starts = np.asarray(self._lows, np.int64)
        self._reach = np.maximum.accumulate([0, *(high for _, high, _ in self._spans)])
        """How far the memory of the first so many arrays reaches."""
        self._bytes = np.asarray(
            [math.prod(shape) * d.itemsize for shape, d in zip(layout.shapes, layout.dtypes, strict=True)], np.int64
        )
        self._longest = max((high - low for low, high, _ in self._spans), default=0)
        owners = [_arrays.owner(x) for x in self._arrays] if layout.library.host else []
        self._owners = {id(x) for x in owners}
        self._foreign = any(type(x) is not np.ndarray for x in owners)  # memory that others may own too
        seen: dict[int, int] = {}
        for k, x in enumerate(layout.leaves):
            if _arrays.overlaps_itself(x):
                raise ValueError(f"{layout.path(k)}: elements of this array share memory; pass a copy")
            shared = [j for j in self._near(x) if j < k and _arrays.overlap(self._arrays[j], x)]
            if not self._spans and id(x) in seen:  # a library that hides its memory
                shared = [seen[id(x)]]
            if shared:
                raise ValueError(
                    f"{layout.path(k)}: shares memory with {layout.path(shared[0])}; give the optimizer each array once"
                )
            seen[id(x)] = k
        self._inspect = None if self._inspector is None else self._inspector(layout, self._starts, self._reach)
        self._known = known

    def _fingerprints(self) -> list[Any]:
        """Say of each parameter what can change without it: by ``p.data = x`` of torch, ``p.shape = x`` of NumPy."""
        wide = any(d.complex for d in self._layout.dtypes)
        return self._layout.library.moving(self._layout.leaves, wide)

    def gradients(self, grads: Any) -> tuple[list[Any], Any]:
        """Return the gradients leaf by leaf, checked, and refuse one that shares memory with what the step writes.

        The second result is the addresses of the gradients, if they are known and all are in C order, else None.

        Gradients that are all plainly right are looked at in loops that run in C: a step over a thousand of them should
        not cost more here than in the arithmetic.
        """
        layout = self._layout
        found = _tree.match(layout.spec, grads, "grads")
        where, same = self._inspect(found) if self._inspect is not None else (None, False)
        if where is not None:
            return found, where
        if not same:
            self.look()
        return self._checked(found)

    def _checked(self, found: list[Any]) -> tuple[list[Any], Any]:
        layout = self._layout
        layout.check_writable()
        plain = layout.facts and {*map(type, found)} <= layout.kinds
        if plain and layout.facts == layout.library.facts(found):
            if self._owned(found):
                return found, None
            where = self._addresses(found)
            if where is not None:
                return found, where
        found = [layout.gradient(k, g) for k, g in enumerate(found)]
        held = {id(p): k for k, p in enumerate(layout.leaves)} if layout.library.jits else {}
        for k, g in enumerate(found):
            if g is None:
                continue
            g = g.values if isinstance(g, SparseRows) else g
            self._refuse_shared(k, g, held)
            if self._inspector is not None and layout.library.unmapped(g):
                raise TypeError(
                    f"{layout.path(k, 'grads')}: a {type(g).__name__} without memory of its own, which a compiled loop "
                    f'cannot read; pass a plain tensor, as x.clone() may be, or make the optimizer with runner="eager"'
                )
        return found, None

    def _owned(self, found: list[Any]) -> bool:
        """Whether these are NumPy arrays of which each owns its memory, and none is a parameter or state."""
        if not self._layout.library.host or self._foreign or {*map(type, map(_base, found))} != {type(None)}:
            return False
        return self._owners.isdisjoint(map(id, found))

    def _addresses(self, found: list[Any]) -> Any:
        """Return where gradients lie, if they are in C order and surely not where a parameter or state does."""
        if not all(self._layout.library.contiguous(found)):
            return None
        lows = np.asarray(self._layout.library.addresses(found), np.int64)
        apart = self._reach[np.searchsorted(self._starts, lows + self._bytes)] <= lows
        return lows if (apart & ((lows != 0) | (self._bytes == 0))).all() else None

    def _refuse_shared(self, k: int, g: Any, held: dict[int, int]) -> None:
        root = _arrays.owner(g)
        if type(root) is np.ndarray and id(root) not in self._owners and not self._foreign:
            return
        for j in [held[id(g)]] if id(g) in held else self._near(g):
            if g is self._arrays[j] or id(g) in held or _arrays.overlap(g, self._arrays[j]):
                what = self._layout.path(j) if j < len(self._layout.leaves) else "the optimizer's state"
                path = self._layout.path(k, "grads")
                raise ValueError(f"{path}: shares memory with {what}, which the step writes; pass a copy")

    def look(self) -> None:
        """Find out whether parameters have new memory since the last look; refuse another shape or dtype."""
        if self._known == self._fingerprints():
            return
        layout = self._layout
        for k, (x, shape, dtype) in enumerate(zip(layout.leaves, layout.shapes, layout.raw_dtypes, strict=True)):
            was, now = (shape, dtype, layout.devices[k]), (tuple(x.shape), x.dtype, _arrays.device(x))
            if was != now:
                words = [f"shape {x[0]}, dtype {x[1]}" + (f", device {x[2]}" if x[2] else "") for x in (now, was)]
                raise ValueError(f"{layout.path(k)}: {words[0]} now, but {words[1]} when the optimizer was made")
            if not layout.library.is_plain(x):
                raise ValueError(
                    f"{layout.path(k)}: now a view that stands for the conjugate or the negative of another, which "
                    f"cannot be written as it is; assign p.data.resolve_conj().resolve_neg()"
                )
        self._look()

    def _near(self, g: Any) -> list[int]:
        low, high = _arrays.extent(g)
        if (low, high) == (0, 0):
            return []
        first = bisect.bisect_left(self._lows, low - self._longest)
        last = bisect.bisect_left(self._lows, high)
        return [k for _, end, k in self._spans[first:last] if end > low]
