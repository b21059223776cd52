"""What may stand in `SparseRows`: every dtype of integers, arrays of other classes, and what is refused by name."""

from __future__ import annotations

import pickle
import threading
import time
from typing import Any

import numpy as np
import pytest
from conftest import Lib
from support.sparse_rows import integers

import xopt
from xopt import _arrays

ADAM = xopt.Adam(lr=0.1)
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


@pytest.mark.parametrize("lazy", [True, False])
def test_indices_of_every_integer_dtype(lib: Lib, lazy: bool) -> None:
    if lib.name == "dask":
        pytest.skip("refused: see the errors")
    table = lib.array(np.ones((300, 2), "float32"))  # more rows than 8 bits count
    values = lib.array(np.ones((3, 2), "float32"))
    dtypes = [n for n in INTEGERS if not (lib.guise == "no_x64" and "64" in n)]
    dtypes = ["int8"] if lib.name == "jax" else dtypes  # each is compiled
    for dtype in dtypes:
        rows = xopt.SparseRows(integers(lib, [3, 100, 3], dtype), values, lazy=lazy)
        new = lib.numpy(ADAM.apply(table, rows, ADAM.init(table))[0])
        np.testing.assert_array_equal(np.flatnonzero(new[:, 0] != 1), [3, 100])
        none = xopt.SparseRows(integers(lib, [], dtype), values[:0, :], lazy=lazy)
        np.testing.assert_array_equal(lib.numpy(ADAM.apply(table, none, ADAM.init(table))[0]), 1)


class Loud(np.ndarray[Any, Any]):
    """As a quantity with a unit: what is computed with it is not a plain array, or an error."""

    def __array_ufunc__(self, *args: Any, **options: Any) -> Any:
        raise AssertionError

    def __array_function__(self, *args: Any, **options: Any) -> Any:
        raise AssertionError


@pytest.mark.parametrize("lazy", [True, False])
def test_arrays_of_other_classes_are_taken_as_plain_ones(lazy: bool) -> None:
    indices, values = np.asarray([1, 1]).view(Loud), np.ones((2, 2)).view(Loud)
    table = np.zeros((3, 2))
    xopt.Optimizer(table, xopt.SGD(1.0)).step(xopt.SparseRows(indices, values, lazy=lazy))
    np.testing.assert_array_equal(table[:, 0], [0, -2, 0])


def test_rows_are_no_parameters(lib: Lib) -> None:
    rows = xopt.SparseRows(integers(lib, [0]), lib.array(np.ones((1, 2), "float32")))
    with pytest.raises(TypeError, match="params.*: a xopt.SparseRows, but a parameter must be an array"):
        ADAM.init({"table": rows})  # which for JAX, if it is there, are a container of two arrays


def test_solvers_say_what_to_pass() -> None:
    rows = xopt.SparseRows(np.asarray([1]), np.ones((1, 2)))
    with pytest.raises(TypeError, match=r"a xopt.SparseRows, but the parameter is .* numpy; pass a dense gradient$"):
        xopt.minimize(lambda x: (float(np.sum(x**2)), rows), np.ones((3, 2)))


@pytest.mark.needs("torch")
def test_other_layouts_of_torch() -> None:
    import torch

    table, rows = torch.ones(3, 2), torch.tensor([1])
    with pytest.raises(TypeError, match=r"^grads.indices: layout torch.sparse_coo, but .*; pass x.to_dense\(\)$"):
        xopt.Optimizer(table, ADAM).step(xopt.SparseRows(rows.to_sparse(), torch.ones(1, 2)))
    with pytest.raises(TypeError, match=r"^grads.values: layout torch.sparse_coo, but .*; pass x.to_dense\(\)$"):
        xopt.Optimizer(table, ADAM).step(xopt.SparseRows(rows, torch.ones(1, 2).to_sparse()))
    with pytest.raises(ValueError, match=r"^grads.indices: on device meta, but the parameter is on cpu$"):
        xopt.Optimizer(table, ADAM).step(xopt.SparseRows(rows.to("meta"), torch.ones(1, 2)))


@pytest.mark.parametrize("lazy", [True, False])
def test_a_sum_that_overflows_is_not_finite(lib: Lib, lazy: bool) -> None:
    if lib.name in ("dask", "strict") or lib.guise == "read-only":
        pytest.skip("refused, or as others")
    table = lib.array(np.ones((4, 1), "float32"))
    values = lib.array(np.full((2, 1), 3e38, "float32"))
    opt = xopt.Optimizer(table, xopt.SGD(0.1), on_nonfinite="raise")
    with pytest.raises(FloatingPointError, match="grads: 1 elements are not finite"):
        opt.step(xopt.SparseRows(integers(lib, [1, 1]), values, lazy=lazy))
    np.testing.assert_array_equal(lib.numpy(opt.params), 1)


@pytest.mark.needs("jax")
@pytest.mark.parametrize("lazy", [True, False])
def test_padding_of_a_table_without_rows(lazy: bool) -> None:
    import jax
    import jax.numpy as jnp

    table = jnp.ones((0, 2))
    rows = xopt.SparseRows(jnp.asarray([-1, 0]), jnp.ones((2, 2)), lazy=lazy)
    assert jax.jit(ADAM.apply)(table, rows, ADAM.init(table))[0].shape == (0, 2)


@pytest.mark.needs("jax")
def test_rows_of_numpy_and_from_a_file_are_nodes_of_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax

    known: list[Any] = []
    monkeypatch.setattr(type(_arrays.named("jax")), "node", lambda self, *args: known.append(args[0]))
    rows = xopt.SparseRows(np.asarray([1]), np.ones((1, 2)), lazy=True)
    assert known == [type(rows)]
    again = pickle.loads(pickle.dumps(rows))  # in another process, which has made none
    assert known == [type(rows)] * 2
    monkeypatch.undo()
    assert jax.tree.structure(xopt.SparseRows(np.asarray([1]), np.ones((1, 2)), lazy=True)) == jax.tree.structure(again)


@pytest.mark.needs("jax")
def test_threads_make_the_first_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax

    made, ready = [], threading.Barrier(4)

    def slow(*args: Any) -> None:
        time.sleep(0.01)
        made.append(args)

    class Rows:
        pass

    def first() -> None:
        ready.wait()
        _arrays.named("jax").node(Rows, ("x",), ())

    monkeypatch.setattr(jax.tree_util, "register_pytree_with_keys", slow)
    threads = [threading.Thread(target=first) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1  # JAX raises at the second
