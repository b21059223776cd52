"""Gradients of which only some rows are given: those of embedding tables."""

from __future__ import annotations

import functools
import sys
from typing import Any

from xopt import _arrays
from xopt._arrays import Array, Library
from xopt._arrays.transfer import to_host
from xopt._public import public


@public
class SparseRows:
    r"""Sparse gradient of an embedding table, as (indices, values): all other rows of the gradient are 0.

    ::

        g[indices[j]] += values[j]      for j = 0, 1, …, k-1

    It stands in a tree of gradients in the place of an array, for :meth:`Optimizer.step <xopt.Optimizer.step>` and
    :meth:`Rule.apply <xopt.Rule.apply>`.

    Parameters
    ----------
    indices
        Which rows of the parameter, along its first axis: k integers in [0, n), in an array of the parameter's library
        and device. One may occur several times: its values are added, in their order.
    values
        An array of shape (k, …), with the dtype of the parameter and the shape of its rows.
    lazy
        False: a step has the bits that it has with the dense gradient. All rows move where the rule has momentum or
        weight decay, and time and memory are those of a dense step. True: only the rows that occur are read and
        written, of the parameter and of the state, and time and memory are in proportion to k. Moments do not decay and
        parameters do not shrink in other rows; bias corrections and schedules follow the step of all. So do
        ``torch.optim.SparseAdam`` and the lazy Adam of TensorFlow. Where a row without a gradient would stay as it is
        anyway (SGD without momentum, Adagrad; without decay), both are the same.

    Raises
    ------
    TypeError, ValueError, IndexError
        By the step, before anything is written: for what does not fit the parameter; for an index out of range, unless
        JAX is tracing: under ``jax.jit`` such rows are left out, which is good for padding. With ``lazy=True`` for
        rules that compute with whole arrays, or with sums over parameters or state, and for what is to see every row:
        averages (EMA, SWA, Lookahead, schedule-free), Accumulate, 8-bit state, stochastic rounding, ``comm=``; and on
        dask.

    Notes
    -----
    Memory: of a lazy step that of the parameters and the state of the rows that occur, and of the gradient two times
    that of ``values``; the pure :meth:`Rule.apply <xopt.Rule.apply>` copies the table and its state. In float16 and
    bfloat16, values are added in float32 and rounded once.

    On a GPU a step waits for the indices, because it looks at their range and, of CuPy and torch, at how many differ.
    There, on CuPy and JAX, the order in which the values of one row are added may change from run to run.

    To JAX it is a node with two arrays: what maps over the tree computes with the indices, too. Under ``jax.jit`` a
    step is compiled anew for another k. A lazy step of torch's SparseAdam is that of ``Adam(eps_mode="hat")``.

    References
    ----------
    J. Duchi, E. Hazan, Y. Singer (2011), Adaptive subgradient methods for online learning and stochastic optimization,
    Journal of Machine Learning Research 12.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> table = np.zeros((4, 2))
    >>> opt = xopt.Optimizer(table, xopt.Adagrad(lr=1.0))
    >>> words = np.asarray([2, 0, 2])
    >>> opt.step(xopt.SparseRows(words, np.ones((3, 2)), lazy=True))
    array([[-1., -1.],
           [ 0.,  0.],
           [-1., -1.],
           [ 0.,  0.]])
    """

    __slots__ = ("indices", "lazy", "values")

    def __init__(self, indices: Array, values: Array, *, lazy: bool = False) -> None:
        for name, x in (("indices", indices), ("values", values)):
            library = _arrays.library(x)
            if library is None:
                raise TypeError(f"SparseRows: {name} is a {type(x).__name__}, but it must be an array")
        if not isinstance(lazy, bool):
            raise TypeError(f"SparseRows: lazy={lazy!r}, but it must be True or False")
        self.indices, self.values, self.lazy = indices, values, lazy
        if "jax" in sys.modules:  # which takes arrays of NumPy, too
            _arrays.named("jax").node(SparseRows, ("indices", "values"), ("lazy",))

    def __reduce__(self) -> Any:
        return functools.partial(SparseRows, lazy=self.lazy), (self.indices, self.values)

    def __repr__(self) -> str:
        return f"SparseRows(indices of shape {_shape(self.indices)}, values {_shape(self.values)}, lazy={self.lazy})"


def _shape(x: Any) -> Any:
    return tuple(getattr(x, "shape", ()))


def accepted(layout: Any, k: int, given: SparseRows, name: str = "grads") -> Any:
    """Return the gradient of leaf ``k`` of a `Layout`, as an array or with ``lazy`` by rows; or say what is wrong."""
    path, p, xp = layout.path(k, name), layout.leaves[k], layout.xp
    library: Library = layout.library
    shape, indices, values = layout.shapes[k], _arrays.plain(given.indices), _arrays.plain(given.values)
    if library.lazy:
        raise TypeError(f"{path}: SparseRows, which arrays of {library} cannot have; pass a dense gradient")
    if not shape:
        raise ValueError(f"{path}: SparseRows, but the parameter is a scalar and has no rows")
    layout.same(name, k, indices, indices.dtype, tuple(indices.shape), ".indices")
    kind = _arrays.dtype_name(indices)
    if not kind.startswith(("int", "uint")):
        raise TypeError(f"{path}.indices: dtype {kind}, but indices must be integers")
    if len(indices.shape) != 1:
        raise ValueError(f"{path}.indices: shape {_shape(indices)}, but it must have one axis")
    wanted = (indices.shape[0], *shape[1:])
    if _arrays.library(values) == library and _shape(values) != wanted:
        raise ValueError(
            f"{path}.values: shape {_shape(values)}, but of {wanted[0]} rows of a parameter of shape {shape} it is "
            f"{wanted}"
        )
    layout.same(name, k, values, layout.raw_dtypes[k], wanted, ".values")
    indices, values = library.places(xp, indices), library.detached(library.resolved(values))
    _check_range(layout, indices, shape[0], path)
    if given.lazy and shape[0]:
        return SparseRows(indices, values, lazy=True)
    with library.no_grad():
        compute = getattr(xp, layout.dtypes[k].compute)
        dense = _arrays.full_like(library, xp, library.detached(p), layout.dtypes[k].compute, 0)
        dense = library.add_rows(xp, dense, indices, _arrays.cast(xp, values, compute))
        return _arrays.cast(xp, dense, layout.raw_dtypes[k])


def _check_range(layout: Any, indices: Array, count: int, path: str) -> None:
    """Refuse an index that is no row, where it may be looked at."""
    if indices.shape[0] == 0 or layout.library.traced(indices):
        return
    xp = layout.xp
    low, high = to_host(xp.stack([xp.min(indices), xp.max(indices)])).tolist()
    if low < 0 or high >= count:
        wrong = low if low < 0 else high
        raise IndexError(f"{path}.indices: {wrong}, but the parameter has {count} rows, from 0 on")


def summed(layout: Any, k: int, given: SparseRows) -> tuple[Array, Array]:
    """Return the rows that occur, each once, and the sums of their values.

    Where shapes may not hang on values there are k of them; the last ones may then be n, which is no row, with a sum of
    0.
    """
    xp, library, count = layout.xp, layout.library, layout.shapes[k][0]
    if given.indices.shape[0] == 0:
        return given.indices, given.values
    rows, place = library.distinct(xp, given.indices, count)
    compute = _arrays.dtype_of(library, xp, layout.dtypes[k].compute)
    values = _arrays.cast(xp, given.values, compute)
    start = library.full_like(xp, values[: rows.shape[0], ...], compute, 0)
    sums = library.add_rows(xp, start, place, values)
    if library.jits:
        real = xp.reshape(rows < count, (-1, *(1 for _ in values.shape[1:])))
        sums = xp.where(real, sums, xp.zeros_like(sums))
    return rows, _arrays.cast(xp, sums, layout.raw_dtypes[k])
