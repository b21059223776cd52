"""A run that is saved, killed and resumed has the bits of one that was never interrupted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optree
import pytest
from conftest import Lib, tree
from support import resume

import xopt
from xopt._engine.program import quantize as _quantize
from xopt.checkpoint._safetensors import File

ROOT = Path(__file__).parents[2]


def contents(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return all that a checkpoint holds but the names of versions."""
    with File(path) as file:
        meta = {n: x for n, x in file.meta.items() if n != "extra"}
        return meta, {n: (x.dtype, file.read(n).tobytes()) for n, x in file.tensors.items()}


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy, where dask computes at last
def test_every_rule_resumes_to_the_same_bits_in_another_process(
    lib: Lib, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is not made anew on load (mlx PR 1329)."""
    monkeypatch.setattr(_quantize, "LEAST", 1)
    if lib.guise in ("read-only", "grad") or (lib.name == "strict" and lib.guise != "CPU_DEVICE"):
        pytest.skip("the other guise of this library has it")
    rules, (middle, end) = resume.rules(lib.name), resume.steps(lib.name)
    for number, rule in enumerate(rules):
        opt = resume.optimizer(lib, rule)
        resume.go_on(lib, opt, middle)
        opt.save(tmp_path / f"{number}.safetensors", extra={"number": number}, fsync=False)
        resume.go_on(lib, opt, end)
        opt.save(tmp_path / f"{number}.whole", fsync=False)
    paths = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, "-m", "support.resume", lib.name, str(tmp_path)]
    out = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, check=False)
    assert out.returncode == 0, out.stderr[-3000:]
    for number, rule in enumerate(rules):
        got, want = contents(tmp_path / f"{number}.safetensors"), contents(tmp_path / f"{number}.whole")
        assert got[0] == want[0], rule
        assert [n for n in want[1] if got[1][n] != want[1][n]] == [], rule


PER_LEAF = [xopt.ScheduleFreeAdamW(), xopt.ScheduleFreeSGD(lr=0.1), xopt.NovoGrad(lr=0.1), xopt.LDoG()]


@pytest.mark.parametrize("rule", PER_LEAF, ids=lambda rule: type(rule).__name__)
def test_the_pure_form_goes_on_with_the_same_bits(
    lib: Lib, rule: Any, tmp_path: Path, rng: np.random.Generator
) -> None:
    """Scalars that a runner keeps on the host are there again, in all their digits."""
    params, *grads = ({"a": lib.array(x, "float32"), "b": lib.array(x[0], "float32")} for x in rng.random((7, 6, 3)))
    apply = lib.module().jit(rule.apply) if lib.guise == "jit" else rule.apply
    own = (params, rule.init(params))
    for k, g in enumerate(grads):
        if k == 3:
            file = xopt.save_state(tmp_path / "run", rule, *own, fsync=False)
            back = xopt.load_state(file, rule, params)[:2]
            assert optree.tree_map(type, back[1].carry) == optree.tree_map(type, own[1].carry)
        own = lib.settled(*apply(own[0], g, own[1]))
        back = lib.settled(*apply(back[0], g, back[1])) if k >= 3 else own
    assert all(np.array_equal(lib.numpy(own[0][n]), lib.numpy(back[0][n])) for n in params)


@pytest.mark.needs("torch")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex128"])
def test_a_run_that_moves_between_libraries(dtype: str, tmp_path: Path) -> None:
    """NumPy, torch, NumPy: the bits of NumPy alone. What rules compute is the same on both."""
    numpy, torch = Lib("numpy", "plain"), Lib("torch", "plain")
    rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.AdamW(lr=xopt.schedules.cosine(0.1, steps=20)), xopt.EMA(0.9))
    draw = lambda lib: xopt.Optimizer(optree.tree_map(lambda x: lib.array(x, dtype), start), rule, runner="tiled")
    start = tree(np.random.default_rng(0), dtype)
    alone = draw(numpy)
    resume.go_on(numpy, alone, 20)
    alone.save(tmp_path / "alone", fsync=False)
    for lib, last in ((numpy, 7), (torch, 14), (numpy, 20)):
        opt = draw(lib)
        if last > 7:
            opt.load(tmp_path / "moved")
        resume.go_on(lib, opt, last)
        opt.save(tmp_path / "moved", fsync=False)
    assert contents(tmp_path / "moved") == contents(tmp_path / "alone")


@pytest.mark.needs("strict")
@pytest.mark.parametrize("rule", [xopt.LossScale(xopt.NovoGrad()), xopt.Prodigy(), xopt.LDoG()], ids=repr)
@pytest.mark.parametrize(("there", "here"), [("CPU_DEVICE", "no_float64"), ("no_x64", "device1")])
def test_scalars_that_move_to_a_device_with_other_dtypes(rule: Any, there: str, here: str) -> None:
    a, b = Lib("strict", there), Lib("strict", here)
    old = xopt.Optimizer([a.array(np.asarray([1.0, 2.0]), "float32")], rule)
    old.step([a.array(np.asarray([0.5, 1.0]), "float32")])
    new = xopt.Optimizer([b.array(a.numpy(old.params[0]), "float32")], rule)
    new.load_state_dict(old.state_dict())
    assert xopt.load_state(old.state_dict(), rule, new.params).state.step == 1
    for lib, opt in ((a, old), (b, new)):
        opt.step([lib.array(np.asarray([2.0, 1.0]), "float32")])
    np.testing.assert_allclose(b.numpy(new.params[0]), a.numpy(old.params[0]), rtol=1e-6)
