"""Matrices that are no arrays: sparse ones, and operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from xopt import _arrays

Product: TypeAlias = Callable[[Any], Any]


def is_sparse(found: Any) -> bool:
    """Whether something is a sparse matrix: of SciPy, CuPy or JAX, or a sparse tensor of torch."""
    return ".sparse_" in str(getattr(found, "layout", "")) or hasattr(found, "tocsr") or hasattr(found, "todense")


def products_of(found: Any) -> tuple[Product, Product] | None:
    """Return the products of a sparse matrix, or of an operator, and of its adjoint; None for what is neither."""
    if is_sparse(found):
        found = _arrays.detached(found)
        turned = found.transpose(0, 1) if hasattr(found, "layout") else found.T
        return lambda v: found @ v, lambda u: (turned @ u.conj()).conj()
    if callable(getattr(found, "matvec", None)) and callable(getattr(found, "rmatvec", None)):
        return found.matvec, found.rmatvec
    return None
