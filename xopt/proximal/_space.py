"""Trees as lists of arrays, sums over them, and the linear operator between two."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from xopt import _arrays
from xopt._arrays import tree as _tree
from xopt._arrays.layout import Layout
from xopt._arrays.scalars import is_number
from xopt.proximal._prox import wide
from xopt.solvers._operators import products_of
from xopt.solvers._space import numbers

Array = Any
Leaves = list[Any]


class Trees:
    """The trees that are like one tree."""

    def __init__(self, layout: Layout, name: str) -> None:
        self.layout, self.name = layout, name
        self.xp, self.library = layout.xp, layout.library
        if not layout.leaves or not any(layout.sizes):
            raise ValueError(f"{name}: no elements, so there is nothing to minimize over")
        for k, d in enumerate(layout.dtypes):
            if d.itemsize < 4:
                raise TypeError(f"{layout.path(k)}: dtype {d.name}, but a solver needs float32, float64 or complex")
        self.eps = float(max(np.finfo(d.real).eps for d in layout.dtypes))
        self.wide = wide(self.xp, layout.leaves[0])
        self.start: Leaves = list(map(_arrays.detached, layout.leaves))

    def tree(self, leaves: Leaves) -> Any:
        return self.layout.tree(leaves)

    def leaves(self, x: Any, name: str) -> Leaves:
        """Return the arrays of a tree that is like this one, or say what differs."""
        layout, found = self.layout, []
        for k, v in enumerate(_tree.match(layout.spec, x, name, self.name)):
            if v is None:
                raise TypeError(f"{layout.path(k, name)}: None, but it must be an array")
            found.append(_arrays.detached(layout.accept(k, v, name)))
        return found

    def copied(self, x: Leaves) -> Leaves:
        return [self.xp.asarray(v, copy=True) for v in x]

    def dot(self, a: Leaves, b: Leaves) -> Array:
        """Return Re⟨a, b⟩, an array of 0 dimensions."""
        xp, found = self.xp, None
        for x, y, d in zip(a, b, self.layout.dtypes, strict=True):
            each = xp.real(x) * xp.real(y) + xp.imag(x) * xp.imag(y) if d.complex else x * y
            one = xp.sum(each, dtype=self.wide)
            found = one if found is None else found + one
        return found

    def square(self, a: Leaves) -> Array:
        return self.dot(a, a)

    def look(self, *values: Any) -> list[float]:
        """Bring numbers to the host, in one transfer; what is there already stays as it is."""
        xp = self.xp
        far = [k for k, x in enumerate(values) if not is_number(x)]
        arrays = [xp.reshape(_arrays.cast(xp, _array(values[k]), self.wide), (1,)) for k in far]
        found = list(values)
        for k, x in zip(far, numbers(xp, 0.0, arrays)[1:] if arrays else [], strict=True):
            found[k] = x
        return list(map(float, found))

    def random(self, seed: int) -> Leaves:
        """Return numbers from a normal distribution, the same on every library."""
        rng, found = np.random.default_rng(seed), []
        for x, shape, d in zip(self.start, self.layout.shapes, self.layout.dtypes, strict=True):
            drawn: Any = rng.standard_normal(shape)
            drawn = drawn + 1j * rng.standard_normal(shape) if d.complex else drawn
            found.append(self.library.from_host(self.xp, np.asarray(drawn, d.name), d.name, x))
        return found


def _array(x: Any) -> Any:
    return np.asarray(x) if isinstance(x, np.generic) else x


def combined(a: Leaves, s: float, b: Leaves) -> Leaves:
    """Return a + s·b."""
    if s == 1:
        return [x + y for x, y in zip(a, b, strict=True)]
    if s == -1:
        return [x - y for x, y in zip(a, b, strict=True)]
    return [x + s * y for x, y in zip(a, b, strict=True)]


def scaled(s: float, a: Leaves, weights: Leaves | None = None) -> Leaves:
    """Return s·W·a."""
    if weights is None:
        return [s * x for x in a]
    return [(s * w) * x for w, x in zip(weights, a, strict=True)]


class Operator:
    """A linear operator K and its adjoint, with the space that K maps into; it counts how often K was applied."""

    identity = False

    def __init__(self, space: Trees, K: Any, name: str = "K") -> None:
        self.space, self.name, self.count = space, name, 0
        self.forward_of, self.adjoint_of = functions(space, K, name)
        made = self.forward_of(space.tree(space.start))
        self.count += 1
        self.image = Trees(Layout(made, name=f"{name}(x)"), f"{name}(x)")
        if self.image.library != space.library:
            raise TypeError(f"{name}: returned arrays of {self.image.library}, but x has arrays of {space.library}")
        self.first = self.image.start
        """K·x0."""

    def forward(self, x: Leaves) -> Leaves:
        self.count += 1
        return self.image.leaves(self.forward_of(self.space.tree(x)), f"{self.name}(x)")

    def adjoint(self, y: Leaves) -> Leaves:
        return self.space.leaves(self.adjoint_of(self.image.tree(y)), f"{self.name}*(y)")

    def check(self) -> None:
        """See that ⟨K·x, y⟩ = ⟨x, K*·y⟩ for random x and y."""
        x, y = self.space.random(1), self.image.random(2)
        Kx, Ky = self.forward(x), self.adjoint(y)
        there, back = self.image.dot(Kx, y), self.space.dot(x, Ky)
        squares = (self.image.square(Kx), self.image.square(y), self.space.square(x), self.space.square(Ky))
        a, b, *sizes = self.space.look(there, back, *squares)
        size = max(math.sqrt(sizes[0] * sizes[1]), math.sqrt(sizes[2] * sizes[3]))
        eps = max(self.space.eps, self.image.eps)
        if not math.isfinite(a - b):
            raise ValueError(f"{self.name}: infinite or NaN for random x and y")
        if not abs(a - b) <= math.sqrt(eps) * size:  # roundings are some ε of that, a wrong adjoint a few hundredths
            raise ValueError(
                f"{self.name}: Re⟨K·x, y⟩ = {a:.9g}, but Re⟨x, K*·y⟩ = {b:.9g} for random x and y, so that K* is not "
                f"the adjoint; check_adjoint=False leaves this test out"
            )

    def norm(self, weights: Leaves | None = None, others: Leaves | None = None, rounds: int = 40) -> float:
        """Estimate ‖Σ^½·K·T^½‖ by the power method, from below: it ends where that grows by less than 0.2 %."""
        v, found = self.space.random(3), 0.0
        for _ in range(rounds):
            Kv = self.forward(v)
            back = scaled(1.0, self.adjoint(scaled(1.0, Kv, others)), weights)
            top, size = self.space.look(
                self.image.dot(Kv, scaled(1.0, Kv, others)), self.space.dot(v, _divided(v, weights))
            )
            if not math.isfinite(top) or top <= 0 or size <= 0:
                return 0.0 if top == 0 else math.nan
            old, found = found, math.sqrt(top / size)
            if found <= old * 1.002:
                break
            v = [x / math.sqrt(size) / found**2 for x in back]
        return found


def _divided(v: Leaves, weights: Leaves | None) -> Leaves:
    return v if weights is None else [x / w for x, w in zip(v, weights, strict=True)]


class Identity(Operator):
    """K = 1."""

    identity = True

    def __init__(self, space: Trees) -> None:
        self.space = self.image = space
        self.count, self.first, self.name = 0, space.start, "K"

    def forward(self, x: Leaves) -> Leaves:
        return x

    def adjoint(self, y: Leaves) -> Leaves:
        return y

    def check(self) -> None:
        pass

    def norm(self, weights: Leaves | None = None, others: Leaves | None = None, rounds: int = 40) -> float:
        return 1.0 if weights is None and others is None else super().norm(weights, others, rounds)


def operator(space: Trees, K: Any, check: bool, name: str = "K") -> Operator:
    """Return K, tested; None is the identity."""
    found = Identity(space) if K is None else Operator(space, K, name)
    if check:
        found.check()
    return found


def functions(space: Trees, K: Any, name: str) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Return K and its adjoint as functions of trees."""
    pair = products_of(K)
    if pair is not None:
        return pair[0], _adjoint(space, pair[1])
    if _arrays.library(K) is not None and hasattr(K, "ndim"):
        return _matrix(space, K, name)
    if isinstance(K, tuple) and len(K) == 2 and all(map(callable, K)):
        return K
    if callable(K) and callable(getattr(K, "adjoint", None)):
        return K, K.adjoint
    raise TypeError(
        f"{name}: {K!r}, but it must be a pair of functions (K, K*), a matrix or a sparse one, an object with matvec "
        f"and rmatvec, or a function with an adjoint, such as xopt.proximal.gradient"
    )


def _matrix(space: Trees, K: Any, name: str) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    xp = space.xp
    if K.ndim != 2 or _arrays.library(K) != space.library:
        raise TypeError(f"{name}: {tuple(K.shape)} of {_arrays.library(K)}, but it must be a matrix of {space.library}")
    K = _arrays.detached(K)
    turned = xp.matrix_transpose(K)
    if not _arrays.is_complex(K):
        return lambda x: K @ x, lambda y: turned @ y
    return lambda x: K @ x, _adjoint(space, lambda y: xp.conj(turned @ xp.conj(y)))


def _adjoint(space: Trees, back: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the adjoint of a matrix: of ⟨K·x, y⟩ the real part is meant, so that of real x it is real."""
    if any(d.complex for d in space.layout.dtypes):
        return back

    def adjoint(y: Any) -> Any:
        found = back(y)
        return space.xp.real(found) if _arrays.is_complex(found) else found

    return adjoint


def like(space: Trees, x: Any, name: str) -> Leaves | None:
    """Return weights of the elements of a tree: positive arrays like it, or a number."""
    if x is None:
        return None
    if is_number(x):
        raise TypeError(f"{name}: {x!r}, but it must be arrays like {space.name}")
    found = []
    for k, v in enumerate(_tree.match(space.layout.spec, x, name, space.name)):
        path, own = space.layout.path(k, name), _arrays.library(v)
        if own != space.library:
            raise TypeError(f"{path}: a {type(v).__name__}, but {space.name} has arrays of {space.library}")
        if tuple(v.shape) != space.layout.shapes[k]:
            raise ValueError(f"{path}: shape {tuple(v.shape)}, but {space.name} has {space.layout.shapes[k]}")
        if _arrays.is_complex(v):
            raise TypeError(f"{path}: complex, but weights must be real")
        real = getattr(space.xp, space.layout.dtypes[k].real)
        found.append(_arrays.cast(space.xp, _arrays.detached(v), real))
    fine = [space.xp.all((v > 0) & space.xp.isfinite(v)) for v in found]
    if not all(space.look(*fine)):
        raise ValueError(f"{name}: an element that is not positive and finite")
    return found
