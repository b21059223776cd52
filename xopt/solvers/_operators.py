"""Matrices that are no arrays: sparse ones, and operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

Product: TypeAlias = Callable[[Any], Any]


def products_of(found: Any) -> tuple[Product, Product] | None:
    """Return the products of a sparse matrix, or of an operator, and of its adjoint; None for what is neither."""
    if hasattr(found, "tocsr"):
        back = found.conj().T
        return lambda v: found @ v, lambda u: back @ u
    if callable(getattr(found, "matvec", None)) and callable(getattr(found, "rmatvec", None)):
        return found.matvec, found.rmatvec
    return None
