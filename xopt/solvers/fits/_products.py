"""Products with a Jacobian that nobody writes down: J·v and Jᵀ·u, of one fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

from xopt import _arrays
from xopt._arrays import tree as _tree
from xopt.solvers._operators import Product, products_of
from xopt.solvers.fits._residuals import Residuals, named, numbers

Array = Any


class Products(Protocol):
    """Computes products with the Jacobian, from vectors to vectors of real numbers."""

    def __call__(self, x: Array) -> tuple[Product, Product]:
        """Return v ↦ J·v and u ↦ Jᵀ·u at x."""


class DifferentiatedProducts:
    """Products by the library, in forward and in reverse mode."""

    def __init__(self, residuals: Residuals) -> None:
        self._residuals = residuals

    def __call__(self, x: Array) -> tuple[Product, Product]:
        own = self._residuals
        library = own.layout.library
        forward, (_, back) = library.along(own.raw, x), library.across(own.raw, x)
        return lambda v: _arrays.detached(forward(v)), lambda u: _arrays.detached(back(u))


class GivenJacobianProducts:
    """Products that the user computes, of trees like x0 and arrays like the residuals."""

    def __init__(self, residuals: Residuals, jvp: Callable[[Any, Any], Any], vjp: Callable[[Any, Any], Any]) -> None:
        self._residuals, self._jvp, self._vjp = residuals, jvp, vjp

    def __call__(self, x: Array) -> tuple[Product, Product]:
        own, point = self._residuals, self._residuals.tree(x)
        return (
            lambda v: _rows(own, "jvp", own.quietly(self._jvp, point, own.tree(v))),
            lambda u: _numbers(own, "vjp", own.quietly(self._vjp, point, _shaped(own, u))),
        )


class MatrixProducts:
    """Products with what the user returns: an array, a sparse matrix, or an operator (``matvec``, ``rmatvec``)."""

    def __init__(self, residuals: Residuals, jac: Callable[[Any], Any]) -> None:
        self._residuals, self._jac = residuals, jac

    def __call__(self, x: Array) -> tuple[Product, Product]:
        own = self._residuals
        found = own.quietly(self._jac, own.tree(x))
        pair = products_of(found)
        if pair is None:
            j = own.xp.stack(own.columns_of(found), axis=-1)
            return lambda v: j @ v, lambda u: own.xp.matrix_transpose(j) @ u
        shape, wanted = tuple(found.shape), (math.prod(own.shape), sum(map(math.prod, own.inner)))
        if shape != wanted:
            raise ValueError(f"jac: returned shape {shape}, but it must be {wanted}, residuals first")
        matvec, rmatvec = pair

        def forward(v: Array) -> Array:
            return _rows(own, "jac", own.xp.reshape(own.quietly(matvec, _joined(own, own.tree(v))), own.shape))

        def back(u: Array) -> Array:
            flat = own.xp.reshape(_shaped(own, u), (-1,))
            return _numbers(own, "jac", _parted(own, own.quietly(rmatvec, flat)))

        return forward, back


def products(jac: Any, args: tuple[Any, ...], own: Residuals) -> Products:
    """Return how products are computed, from what is given as ``jac``."""
    if jac is None and own.layout.library.differentiates:
        return DifferentiatedProducts(own)
    if isinstance(jac, tuple) and len(jac) == 2 and all(map(callable, jac)):
        jvp, vjp = jac
        return GivenJacobianProducts(own, lambda x, v: jvp(x, v, *args), lambda x, u: vjp(x, u, *args))
    if not callable(jac):
        raise TypeError(
            f'jac: {jac!r}, but method="steihaug" needs products with the Jacobian and its transpose: two functions '
            f"(jvp, vjp), or a function that returns an array, a sparse matrix or an operator"
            + ("" if own.layout.library.differentiates else "; torch and JAX differentiate")
        )
    return MatrixProducts(own, lambda x: jac(x, *args))


def _rows(own: Residuals, name: str, found: Any) -> Array:
    """Return what stands for J·v as a vector, or say what does not fit."""
    xp, library = own.xp, own.layout.library
    found = numbers(name, found) if library.host and _arrays.library(found) is None else found
    if _arrays.library(found) is not library:
        raise TypeError(f"{name}: returned {named(found)}, but x0 has arrays of {library}")
    if tuple(found.shape) != own.shape:
        raise ValueError(f"{name}: returned shape {tuple(found.shape)}, but the residuals have {own.shape}")
    found = xp.reshape(_arrays.detached(found), (-1,))
    whole = _arrays.is_complex(found)
    if whole and not own.complex:
        raise TypeError(f"{name}: returned complex numbers, but the residuals are real")
    if own.complex:
        found = xp.concat([xp.real(found), xp.imag(found)] if whole else [found, xp.zeros_like(found)])
    return _arrays.cast(xp, found, own.dtype)


def _shaped(own: Residuals, u: Array) -> Array:
    """Return a vector as an array like the residuals."""
    if own.complex:
        half = u.shape[0] // 2
        u = own.layout.library.join_complex(own.xp, u[:half], u[half:])
    return own.xp.reshape(u, own.shape)


def _numbers(own: Residuals, name: str, found: Any) -> Array:
    """Return what stands for Jᵀ·u, a tree like x0, as a vector; of what belongs to real parameters the real part."""
    xp, layout, leaves = own.xp, own.layout, list[Array]()
    for k, x in enumerate(_tree.match(layout.spec, found, name, "x0")):
        path = layout.path(k, name)
        x = numbers(path, x) if layout.library.host and _arrays.library(x) is None else x
        if _arrays.library(x) is not layout.library:
            raise TypeError(f"{path}: {named(x)}, but x0 has arrays of {layout.library}")
        if tuple(x.shape) != layout.shapes[k]:
            raise ValueError(f"{path}: shape {tuple(x.shape)}, but the parameter has {layout.shapes[k]}")
        if _arrays.is_complex(x) and not layout.dtypes[k].complex:
            x = xp.real(x)
        elif layout.dtypes[k].complex and not _arrays.is_complex(x):
            x = _arrays.cast(xp, x, layout.raw_dtypes[k])
        leaves.append(x)
    return own.vector(leaves)


def _joined(own: Residuals, tree: Any) -> Array:
    """Return all numbers of a tree along one axis."""
    parts = [own.xp.reshape(x, (-1,)) for x in _tree.match(own.layout.spec, tree, "x0")]
    return parts[0] if len(parts) == 1 else own.xp.concat(parts)


def _parted(own: Residuals, vector: Any) -> Any:
    """Return numbers along one axis as a tree."""
    xp, leaves, at = own.xp, [], 0
    for inner in own.inner:
        size = math.prod(inner)
        leaves.append(xp.reshape(vector[at : at + size], inner))
        at += size
    return own.layout.tree(leaves)
