"""The Hessian of what is minimized: given, by a library that differentiates, or from differences of gradients."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from xopt import _arrays
from xopt._arrays import tree as _tree
from xopt._arrays.layout import Layout
from xopt.solvers._differences import Differences
from xopt.solvers._operators import is_sparse
from xopt.solvers._run import Run
from xopt.solvers._space import Array, Space, Vectors


class Hessian(ABC):
    """The Hessian H at a point, of vectors."""

    dense = False
    """Whether it is given as a matrix."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.nhev: int = 0
        """How often it was computed, or where it is no matrix its product with a vector."""
        self._settings = np.geterr()
        """Those of NumPy that the functions of the user are called with."""

    def called(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of the user."""
        with np.errstate(**self._settings):
            return function(*args)

    @abstractmethod
    def at(self, here: Vectors) -> None:
        """Go to a point."""

    @abstractmethod
    def along(self, v: Array) -> Array:
        """Return H·v."""

    def matrix(self) -> Array:
        """Return H, as symmetric as it should be."""
        space, n = self.space, self.space.size
        unit = space.xp.eye(n, dtype=space.dtype, **_arrays.beside(space.layout.leaves[0]))
        return _symmetric(space.xp, space.xp.stack([self.along(unit[i, :]) for i in range(n)]))


class GivenMatrix(Hessian):
    """``hess(x, *args)``, a matrix of the elements of x in their order, or a tree of trees of blocks."""

    dense = True

    def __init__(self, space: Space, hess: Callable[..., Any], args: tuple[Any, ...]) -> None:
        super().__init__(space)
        for k, d in enumerate(space.layout.dtypes):
            if d.complex:
                raise TypeError(f"hess: given, but {space.layout.path(k)} is complex; give hessp, a product, for it")
        self._hess, self._args = hess, args
        self._found: Any = None

    def at(self, here: Vectors) -> None:
        self._found = self._checked(self.called(self._hess, self.space.tree(here.x), *self._args))
        self.nhev += 1

    def _checked(self, found: Any) -> Any:
        space, layout, n = self.space, self.space.layout, self.space.size
        if self._is_tree(found):
            return _symmetric(space.xp, self._assembled(found))
        if layout.library.host and isinstance(found, list | tuple):
            found = _numbers(found)
        library = _arrays.library(found)
        if not layout.library.host and is_sparse(found):
            raise TypeError("hess: a sparse matrix, but only that of SciPy is taken; give hessp, the product with it")
        if layout.library.host and library is None and hasattr(found, "__matmul__"):
            if tuple(getattr(found, "shape", ())) != (n, n):
                raise ValueError(f"hess: shape {getattr(found, 'shape', None)}, but it must be {(n, n)}")
            return found  # a sparse matrix, or a LinearOperator
        if library != layout.library:
            what = f"a {type(found).__name__}" if library is None else f"an array of {library}"
            raise TypeError(f"hess: returned {what}, but x0 has arrays of {layout.library}")
        shapes = {(n, n), (*layout.shapes[0], *layout.shapes[0])} if len(layout.shapes) == 1 else {(n, n)}
        if tuple(found.shape) not in shapes:
            raise ValueError(f"hess: shape {tuple(found.shape)}, but x0 has {n} numbers, so it must be {(n, n)}")
        return _symmetric(space.xp, self._block(found, (n, n), "hess"))

    def _block(self, found: Any, shape: tuple[int, int], name: str) -> Array:
        """Return an array of the library as a part of the matrix, or say what does not fit."""
        space, layout = self.space, self.space.layout
        kind = _arrays.dtype_name(found)
        if "float" not in kind and "int" not in kind:
            raise TypeError(f"{name}: dtype {kind}, but it must be real numbers")
        here, there = str(_arrays.device(found)), str(layout.devices[0])
        if here != there:
            raise ValueError(f"{name}: on {here}, but x0 is on {there}")
        found = np.asarray(found) if layout.library.host else _arrays.detached(found)
        return space.xp.reshape(_arrays.cast(space.xp, found, space.dtype), shape)

    def _is_tree(self, found: Any) -> bool:
        """Whether something may be a tree of trees of blocks, as ``jax.hessian`` and ``torch.func.hessian`` make."""
        layout = self.space.layout
        if layout.spec.is_leaf() or _arrays.library(found) is not None or hasattr(found, "__matmul__"):
            return False
        leaves, _ = _tree.flatten(found)
        return bool(leaves) and all(_arrays.library(x) == layout.library for x in leaves)

    def _assembled(self, found: Any) -> Array:
        """Return the matrix of a tree like x0 of trees like x0 of blocks, which have the shapes of both leaves."""
        space, layout, rows = self.space, self.space.layout, []
        like = "x0 and its leaves"
        for i, (path, row) in enumerate(
            zip(_tree.paths(layout.spec, "hess"), _tree.match(layout.spec, found, "hess", like), strict=True)
        ):
            blocks = []
            inside = zip(_tree.paths(layout.spec, path), _tree.match(layout.spec, row, path, like), strict=True)
            for j, (name, block) in enumerate(inside):
                shape = space.sizes[i], space.sizes[j]
                whole = (*layout.shapes[i], *layout.shapes[j])
                if tuple(block.shape) not in {shape, whole}:
                    raise ValueError(f"{name}: shape {tuple(block.shape)}, but it must be {whole}")
                blocks.append(self._block(block, shape, name))
            rows.append(space.xp.concat(blocks, axis=1))
        return space.xp.concat(rows, axis=0)

    def _is_array(self) -> bool:
        return _arrays.library(self._found) is not None

    def along(self, v: Array) -> Array:
        return self._found @ v if self._is_array() else self._product(v, (self.space.size,))

    def matrix(self) -> Array:
        if self._is_array():
            return self._found
        n = self.space.size
        return _symmetric(np, self._product(np.eye(n, dtype=self.space.dtype), (n, n)))

    def _product(self, v: Array, shape: tuple[int, ...]) -> Array:
        found = np.asarray(self.called(lambda: self._found @ v))
        if found.shape != shape or found.dtype.kind not in "iuf":
            raise ValueError(f"hess: its product with shape {shape} is {found.dtype} of shape {found.shape}")
        return found.astype(self.space.dtype, copy=False)


class GivenProducts(Hessian):
    """``hessp(x, p, *args)``, of trees like x."""

    def __init__(self, space: Space, hessp: Callable[..., Any], args: tuple[Any, ...], conjugate: bool) -> None:
        super().__init__(space)
        self._hessp, self._args, self._conjugate = hessp, args, conjugate
        self._x: Any = None

    def at(self, here: Vectors) -> None:
        self._x = here.x

    def along(self, v: Array) -> Array:
        space, xp, layout = self.space, self.space.xp, self.space.layout
        found = self.called(self._hessp, space.tree(self._x), space.tree(v), *self._args)
        self.nhev += 1
        if self._conjugate:
            leaves = _tree.match(layout.spec, found, "hessp")
            found = layout.tree([xp.conj(x) if _arrays.is_complex(x) else x for x in leaves])
        return space.gradient(found, "hessp")


class Differentiated(Hessian):
    """By the library, which computes the product of the second derivatives with a vector."""

    def __init__(self, space: Space, fun: Callable[..., Any], args: tuple[Any, ...]) -> None:
        super().__init__(space)
        layout = space.layout
        self._products = layout.library.second(lambda leaves: fun(layout.tree(leaves), *args))
        self._along: Any = None

    def at(self, here: Vectors) -> None:
        self._along = self.called(self._products, Layout(self.space.tree(here.x)).leaves)

    def along(self, v: Array) -> Array:
        self.nhev += 1
        found = self.called(self._along, Layout(self.space.tree(v)).leaves)
        return self.space.gradient(self.space.layout.tree(found), "hessp")


class DifferencesOfGradients(Hessian):
    """(g(x + h·v) - g(x))/h, an evaluation each, with the h that balances what is cut off and what is rounded."""

    def __init__(self, run: Run, space: Space) -> None:
        super().__init__(space)
        self._run = run
        noise = space.eps
        if isinstance(run.fun, Differences):  # whose gradients have half of the digits, or two thirds
            noise **= 1 - 1 / run.fun.points
        self._step = math.sqrt(noise)
        self._here: Any = None

    def at(self, here: Vectors) -> None:
        self._here = here

    def along(self, v: Array) -> Array:
        space, run, here = self.space, self._run, self._here
        run.check_evaluations()
        h = self._step * (1 + space.largest(here.x)) / space.largest(v)
        _, grads = self.called(run.evaluated, space.library, space.tree(here.x + h * v))
        return (space.gradient(grads) - here.g) / h


def hessian(
    run: Run, space: Space, fun: Any, hess: Any, hessp: Any, args: Any, jac: Any, conjugate: bool
) -> Hessian:  # fmt: skip
    """Return the Hessian as it is given, or as the library or differences of gradients have it."""
    args = args if isinstance(args, tuple) else (args,)
    for name, given in (("hess", hess), ("hessp", hessp)):
        if given is not None and not callable(given):
            raise TypeError(f"{name}: {given!r}, but it must be a function, or None")
    if hess is not None and hessp is not None:
        raise TypeError("hess and hessp: both are given; give one of them")
    if hess is not None:
        return GivenMatrix(space, hess, args)
    if hessp is not None:
        return GivenProducts(space, hessp, args, conjugate)
    if (jac is False or jac is None) and space.library.differentiates:
        return Differentiated(space, fun, args)
    return DifferencesOfGradients(run, space)


def _symmetric(xp: Any, matrix: Array) -> Array:
    return (matrix + xp.matrix_transpose(matrix)) / 2


def _numbers(found: Any) -> Any:
    try:
        return np.asarray(found, float)
    except (TypeError, ValueError):
        raise TypeError("hess: returned a list that is no matrix of real numbers") from None
