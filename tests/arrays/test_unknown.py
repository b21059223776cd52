"""A library that nobody here has named: array-api-strict under other names, also where it lacks what may be lacking."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optree
import pytest
from conftest import Lib, walk
from support import resume
from support.sparse_rows import Problem

import xopt
from xopt import _arrays
from xopt._engine.program import quantize as _quantize
from xopt.checkpoint._safetensors import File

pytestmark = pytest.mark.needs("strict")
STRICT = Lib("strict", "CPU_DEVICE")
LACKING = {
    "other_arrays": (),
    "read_only_arrays": ("__setitem__",),
    "bare_arrays": ("__setitem__", "device", "__dlpack__", "__dlpack_device__", "__buffer__"),
    "blind_arrays": ("__setitem__", "__float__", "__int__", "__bool__", "__dlpack__", "__array__", "__buffer__"),
}


class Other(Lib):
    """array-api-strict under another name."""

    def module(self) -> Any:
        return importlib.import_module(self.id)

    def numpy(self, x: Any) -> Any:
        return np.asarray(x._array)

    def array(self, x: Any, dtype: str | None = None) -> Any:
        x = np.asarray(x)
        return self.module().asarray(np.array(x, dtype or x.dtype))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Lib]]:
    folder = Path(str(pytest.importorskip("array_api_strict").__file__)).parent
    where, patch = tmp_path_factory.mktemp("packages"), pytest.MonkeyPatch()
    patch.syspath_prepend(where)
    made = {}
    for name, lacking in LACKING.items():
        shutil.copytree(folder, where / name, ignore=shutil.ignore_patterns("tests", "__pycache__"))
        for file in (where / name).rglob("*.py"):
            text = file.read_text().replace("array_api_strict", name)
            if "device" in lacking:  # which it asks for itself
                text = text.replace("def device(self)", "def place(self)").replace(".device", ".place")
            file.write_text(text)
        made[name] = lib = Other("strict", "CPU_DEVICE")
        lib.id = name
        kind = type(lib.module().asarray(0.0))
        for what in lacking:
            if hasattr(kind, what):
                delattr(kind, what)
        if name == "bare_arrays":
            kind.__array__ = lambda self, dtype=None, copy=None: np.array(self._array, dtype)
    yield made
    for name in [n for n in sys.modules if n.partition(".")[0] in LACKING]:
        del sys.modules[name]
    patch.undo()


@pytest.fixture(params=[name for name in LACKING if name != "blind_arrays"])
def other(request: pytest.FixtureRequest, others: dict[str, Lib]) -> Lib:
    return others[request.param]


def contents(path: Path) -> Any:
    with File(path) as file:
        return {n: (x.dtype, file.read(n).tobytes()) for n, x in file.tensors.items()}


def test_what_it_is_asked(other: Lib) -> None:
    x = other.array(np.ones(3))
    found = _arrays.library(x)
    assert found is not None
    assert (found.name, found.known, found.lazy, found.jits) == (other.id, False, False, False)
    assert found.writes == ("__setitem__" not in LACKING[other.id])
    assert (found.device(x) is None) == ("device" in LACKING[other.id])
    assert _arrays.library(STRICT.array(np.ones(3))) is not found


@pytest.mark.parametrize("part", range(4))
def test_every_rule_and_transform(other: Lib, part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bits of array-api-strict, in `Optimizer`, over a file from the one to the other."""
    monkeypatch.setattr(_quantize, "LEAST", 1)
    rules = resume.rules("torch") if other.id == "other_arrays" else resume.SHARED
    for rule in rules[part::4]:
        known, unknown = (resume.optimizer(lib, rule) for lib in (STRICT, other))
        for lib, opt in ((STRICT, known), (other, unknown)):
            resume.go_on(lib, opt, 2)
            opt.save(tmp_path / f"{lib.id}.safetensors", fsync=False)
        unknown.load(tmp_path / f"{STRICT.id}.safetensors")
        for lib, opt in ((STRICT, known), (other, unknown)):
            resume.go_on(lib, opt, 4)
            opt.save(tmp_path / f"{lib.id}.last", fsync=False)
        for end in ("safetensors", "last"):
            got, want = (contents(tmp_path / f"{lib.id}.{end}") for lib in (other, STRICT))
            for n in [n for n in want if got[n] != want[n]]:
                assert n.endswith("/z"), (rule, n)
                numbers = (np.frombuffer(x[n][1]) for x in (got, want))
                # NumPy's complex loops may round otherwise where memory is aligned otherwise
                np.testing.assert_allclose(*numbers, rtol=1e-14, err_msg=f"{rule} {n}")


def test_the_pure_form(other: Lib, rng: np.random.Generator) -> None:
    rule, steps = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.AddNoise(seed=3), xopt.Muon()), rng.random((5, 4, 3))
    mine, theirs = (walk(rule, lib.array(steps[0]), [*map(lib.array, steps)])[0] for lib in (other, STRICT))
    np.testing.assert_array_equal(other.numpy(mine), STRICT.numpy(theirs))


@pytest.mark.parametrize("lazy", [False, True])
def test_rows(other: Lib, lazy: bool) -> None:
    problem, rule = Problem(), xopt.Adam(0.1)
    found = []
    for lib in (other, STRICT):
        opt = xopt.Optimizer(optree.tree_map(lib.array, problem.params), rule)
        for i, v, b in problem.steps:
            rows = xopt.SparseRows(lib.array(i.astype("int32")), lib.array(v), lazy=lazy)
            opt.step({"table": rows, "bias": lib.array(b)})
        found.append(optree.tree_map(lib.numpy, opt.params))
    optree.tree_map(np.testing.assert_array_equal, *found)


@pytest.mark.parametrize("method", ["lbfgs", "lbfgs-b", "bfgs", "newton-cg", xopt.Adam(0.1)], ids=str)
def test_minimize(other: Lib, method: Any) -> None:
    """It is not taken for JAX, and asked nothing that it cannot do; the points are those of array-api-strict."""
    bounds = (-9.0, 0.5) if method == "lbfgs-b" else None
    chosen = {"rule": method, "maxiter": 40} if isinstance(method, xopt.Rule) else {"method": method}
    seen: dict[str, list[Any]] = {}
    for lib in (other, STRICT):
        weights = lib.array(np.asarray([1.0, 10.0, 100.0]))

        def fun(x: Any, lib: Lib = lib, weights: Any = weights) -> Any:
            seen.setdefault(lib.id, []).append(lib.numpy(x).copy())
            return (x - 1.0) @ (weights * (x - 1.0)), 2.0 * weights * (x - 1.0)

        xopt.minimize(fun, lib.array(np.asarray([-1.2, 1.0, 3.0])), bounds=bounds, **chosen)
    np.testing.assert_allclose(seen[other.id], seen[STRICT.id], rtol=1e-12)


def test_arrays_that_cannot_be_looked_at(others: dict[str, Lib], tmp_path: Path) -> None:
    """They take steps; a solver refuses them, and so does a file, in words."""
    x, rule = others["blind_arrays"].array([1.0, 2.0]), xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam(0.1))
    new, state = rule.apply(x, x, rule.init(x))
    np.testing.assert_allclose(new._array, [0.9, 1.9], rtol=1e-6)
    with pytest.raises(TypeError, match="x0: an array of blind_arrays, which computes nothing until the end"):
        xopt.minimize(lambda x: (0.0, x), x)
    with pytest.raises(TypeError, match="an array of blind_arrays, which cannot be brought to the host"):
        xopt.save_state(tmp_path / "run", rule, new, state)
