"""A tree whose arrays were replaced, or changed their shape, is noticed before anything is written."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import optree
import pytest
from conftest import Lib

import xopt


@dataclass
class Layer:
    w: Any
    b: Any


def tree(lib: Lib) -> Any:
    one = lambda *shape: lib.array(np.ones(shape))
    return {"d": OrderedDict(w=one(2, 3)), "l": [one(2), (one(1), [one(3)])], "c": Layer(one(2), one())}


def put(node: Any, key: Any, x: Any) -> None:
    setattr(node, key, x) if isinstance(key, str) and not isinstance(node, dict) else node.__setitem__(key, x)


OTHER = "not the array that this optimizer trains"
CHANGES = {
    "dict": (lambda p, x: put(p["d"], "w", x), r'params\["d"\]\["w"\]: ' + OTHER),
    "list": (lambda p, x: put(p["l"], 0, x), r'params\["l"\]\[0\]: ' + OTHER),
    "list in a tuple": (lambda p, x: put(p["l"][1][1], 0, x), r'params\["l"\]\[1\]\[1\]\[0\]: ' + OTHER),
    "dataclass": (lambda p, x: put(p["c"], "b", x), r'params\["c"\]\.b: ' + OTHER),
    "tuple": (lambda p, x: put(p["l"], 1, (x, p["l"][1][1])), r'params\["l"\]\[1\]\[0\]: ' + OTHER),
    "none": (lambda p, x: put(p["d"], "w", None), r'params\["d"\]\["w"\]: ' + OTHER),
    "whole branch": (lambda p, x: put(p, "d", {"w": x}), r'params\["d"\]\["w"\]: ' + OTHER),
    "grown": (lambda p, x: p["l"].append(x), r'params\["l"\]\[2\]: not among the arrays that the optimizer was given'),
    "shrunk": (lambda p, x: p["l"].pop(), r'params\["l"\]\[1\]: missing, but the arrays that the optimizer was given'),
    "added": (lambda p, x: put(p["d"], "v", x), r'params\["d"\]\["v"\]: not among'),
    "removed": (lambda p, x: p["d"].clear(), r'params\["d"\]\["w"\]: missing'),
    "nested": (lambda p, x: put(p["d"], "w", [x]), r'params\["d"\]\["w"\]: '),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("steps", [0, 2])
def test_an_array_that_was_replaced(lib: Lib, change: str, steps: int, tmp_path: Any) -> None:
    if lib.guise in ("read-only", "eager") or (lib.name == "strict" and lib.guise != "CPU_DEVICE"):
        pytest.skip("Optimizer cannot write into it, or the other guise has it")
    opt = xopt.Optimizer(tree(lib), xopt.SGD(lr=0.5, momentum=0.5))
    for _ in range(steps):
        opt.step(tree(lib))
    file = opt.save(tmp_path / "run")
    held, slots = optree.tree_leaves(opt.params, namespace="xopt"), opt.state.slots
    before = [lib.numpy(x).copy() for x in held]
    replace, words = CHANGES[change]
    new = lib.array(np.full((2, 3), 7.0))
    replace(opt.params, new)
    calls = [lambda: opt.step(tree(lib)), opt.eval_params, opt.state_dict, lambda: opt.averaged().__enter__()]
    for call in (*calls, lambda: opt.load(file), lambda: opt.save(tmp_path / "other")):
        with pytest.raises(ValueError, match=words):
            call()
    assert all(np.array_equal(lib.numpy(x), y) for x, y in zip(held, before, strict=True))
    assert opt.state.step == steps
    assert np.array_equal(lib.numpy(new), np.full((2, 3), 7.0))
    assert opt.state.slots.keys() == slots.keys()


def test_what_is_the_same_is_no_change(lib: Lib) -> None:
    """Other containers around the same arrays, keys in another order, an array taken out and put back."""
    if not lib.writable:
        pytest.skip("arrays of this library cannot be written into")
    params = tree(lib)
    opt = xopt.Optimizer(params, xopt.SGD(lr=0.5))
    opt.step(tree(lib))
    params["d"] = {"w": params["d"]["w"]}
    params["l"] = [params["l"][0], params["l"][1]]
    params["c"] = params.pop("c")
    for _ in range(2):
        assert opt.step(tree(lib)) is params
    w = params["d"].pop("w")
    with pytest.raises(ValueError, match="missing"):
        opt.step(tree(lib))
    params["d"]["w"] = w
    opt.step(tree(lib))
    assert np.array_equal(lib.numpy(w), np.full((2, 3), -1.0))


@pytest.mark.parametrize("runner", ["eager", "tiled", pytest.param("llvm", marks=pytest.mark.needs("llvm"))])
@pytest.mark.parametrize("change", ["shape", "dtype", "resize"])
@pytest.mark.filterwarnings("ignore:Setting the (shape|dtype) on a NumPy array:DeprecationWarning")  # since 2.5
def test_a_numpy_array_that_is_another_one_in_place(runner: Any, change: str) -> None:
    """A resized array has other memory: the compiled loop wrote where the old one had been."""
    p = {"a": np.ones(2), "w": np.ones((2, 3))}
    grads = {"a": np.ones(2), "w": np.ones((2, 3))}
    opt = xopt.Optimizer(p, xopt.SGD(lr=0.5, momentum=0.5), runner=runner)
    opt.step(grads)
    if change == "resize":
        p["w"].resize((7, 3), refcheck=False)
        words = r'params\["w"\]: shape \(7, 3\), dtype float64 now, but shape \(2, 3\), dtype float64 when'
    elif change == "shape":
        p["w"].shape = (3, 2)
        words = r'params\["w"\]: shape \(3, 2\), dtype float64 now'
    else:
        p["w"].dtype = "i8"
        words = r'params\["w"\]: shape \(2, 3\), dtype int64 now'
    for call in (lambda: opt.step(grads), opt.state_dict) * 2:
        with pytest.raises(ValueError, match=words):
            call()
    assert p["a"].tolist() == [0.5, 0.5]
    if change == "shape":
        p["w"].shape = (2, 3)
        opt.step(grads)
        assert p["a"].tolist() == [-0.25, -0.25]
