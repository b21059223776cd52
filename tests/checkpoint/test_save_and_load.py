"""Checkpoints: what is in them, where they fit, what they say where they do not."""

from __future__ import annotations

import copy
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import optree
import pytest
from conftest import Lib, tree
from support.memory import peak

import xopt
from xopt.checkpoint import _restore as _restore
from xopt.checkpoint import _snapshot as _snapshot
from xopt.checkpoint._safetensors import File

RULE = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam(lr=0.1), xopt.EMA(0.9, start="zero"))
SGD = xopt.SGD(momentum=0.9)
DTYPES = ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]


def optimizer(rule: Any = RULE, steps: int = 3, **params: Any) -> xopt.Optimizer:
    params = params or {"w": np.arange(6.0).reshape(2, 3), "b": np.ones(2, "float32")}
    opt = xopt.Optimizer(params, rule)
    for _ in range(steps):
        opt.step(optree.tree_map(np.ones_like, params))
    return opt


def everything(opt: xopt.Optimizer) -> Any:
    """Copy all that a step depends on."""
    return copy.deepcopy((opt.params, opt.state.slots, opt.state.carry, opt.state.step, opt.hyperparams()))


def same(a: Any, b: Any) -> bool:
    xs, ys = optree.tree_leaves(a), optree.tree_leaves(b)
    return len(xs) == len(ys) and all(x is y or np.array_equal(x, y) for x, y in zip(xs, ys, strict=True))


def problems(call: Any) -> list[str]:
    with pytest.raises(xopt.CheckpointError) as caught:
        call()
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems
    return list(caught.value.problems)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back_in_place_and_pure(lib: Lib, dtype: str, tmp_path: Path) -> None:
    if lib.guise == "read-only":
        pytest.skip("Optimizer cannot write into it")
    params = optree.tree_map(lambda x: lib.array(x, dtype), tree(np.random.default_rng(1), dtype, lib=lib))
    opt = xopt.Optimizer(params, RULE)
    opt.step(optree.tree_map(lambda x: lib.array(lib.numpy(x), dtype), params))
    file = opt.save(tmp_path / "run", extra={"epoch": 3, "names": ["a", None]})
    want = optree.tree_map(lib.numpy, (opt.params, opt.state.slots))
    other = xopt.Optimizer(optree.tree_map(lambda x: lib.array(np.zeros_like(x), dtype), want[0]), RULE)
    assert other.load(file) == {"epoch": 3, "names": ["a", None]}
    assert other.state.step == 1
    assert same(optree.tree_map(lib.numpy, (other.params, other.state.slots)), want)
    assert {n: float(x) for n, x in other.state.carry.items()} == {n: float(x) for n, x in opt.state.carry.items()}
    for x, y in zip(optree.tree_leaves(params), optree.tree_leaves(other.params), strict=True):
        assert (x.dtype, tuple(x.shape)) == (y.dtype, tuple(y.shape))
    back = xopt.load_state(file, RULE, params)
    assert same(optree.tree_map(lib.numpy, (back.params, back.state.slots)), want)
    assert back.extra == {"epoch": 3, "names": ["a", None]}
    assert int(back.state.step) == 1
    xopt.save_state(tmp_path / "pure", RULE, back.params, back.state)
    with File(file) as a, File(tmp_path / "pure") as b:
        assert a.tensors == b.tensors
        assert a.meta["carry"] == b.meta["carry"]


def test_any_library_reads_what_another_one_wrote(lib: Lib, tmp_path: Path) -> None:
    """NumPy writes, the other reads and writes, NumPy reads: nothing is lost on the way."""
    if lib.guise in ("read-only", "grad") or (lib.name == "strict" and lib.guise != "CPU_DEVICE"):
        pytest.skip("Optimizer cannot write into it, or the other guise has it")
    start = {"f": np.asarray([0.1, -0.0, 5e-324]), "s": np.asarray(2.5, "float32"), "z": np.asarray([[1 + 2j], [3j]])}
    start["e"] = np.zeros((0, 3), "float32")
    opt = xopt.Optimizer(optree.tree_map(np.copy, start), RULE)
    opt.step(start)
    there = xopt.Optimizer(optree.tree_map(lambda x: lib.array(np.zeros_like(x)), start), RULE)
    there.load(opt.save(tmp_path / "there"))
    back = xopt.Optimizer(optree.tree_map(np.zeros_like, start), RULE)
    back.load(there.save(tmp_path / "back"))
    bits = lambda x: [y.tobytes() for y in optree.tree_leaves((x.params, x.state.slots))]
    assert bits(back) == bits(opt)
    assert back.state.carry == opt.state.carry


def test_a_file_says_what_it_is() -> None:
    """All that is asked for is in it: schema, rule, step, dtypes, a seed, checksums; and nothing of this machine."""
    rule = xopt.chain(xopt.AddNoise(seed=7), xopt.Adam(lr=xopt.schedules.cosine(0.1, steps=9), b1=0.5))
    found = optimizer(rule).state_dict()
    assert (found["schema"], found["step"], found["library"], found["xopt"]) == (1, 3, "numpy", xopt.__version__)
    assert [(x["place"], x["rule"]) for x in found["rule"]] == [("0.addnoise", "AddNoise"), ("1.adam", "Adam")]
    assert found["rule"][0]["static"] == {"seed": 7}
    assert found["rule"][1]["hyper"] == {
        "lr": "cosine(0.1, steps=9)", "b1": 0.5, "b2": 0.999, "eps": 1e-8, "weight_decay": None, "peak_lr": None
    }  # fmt: skip
    assert found["rule"][1]["static"]["amsgrad"] is False
    [link] = optimizer(xopt.SGD(lr=lambda t: 0.1)).state_dict()["rule"]
    assert link["hyper"]["lr"].endswith("<lambda>")
    assert "0x" not in json.dumps(link)


def test_the_safetensors_library_reads_it(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    opt = optimizer(w=np.arange(6.0).reshape(2, 3).T, z=np.asarray([1 + 2j, 3j]), s=np.asarray(2.0), e=np.zeros((0, 3)))
    opt.save(tmp_path / "run.safetensors")
    with safetensors.safe_open(tmp_path / "run.safetensors", "np") as file:
        assert {n for n in file.keys() if n.startswith("params/")} == {"params/w", "params/z", "params/s", "params/e"}  # noqa: SIM118
        assert np.array_equal(file.get_tensor("params/w"), opt.params["w"])
        assert np.array_equal(file.get_tensor("params/z").view("complex128")[..., 0], opt.params["z"])
        assert np.array_equal(file.get_tensor("state/1.adam.v/w"), opt.state.slots["1.adam.v"]["w"])
        assert file.get_tensor("params/s").shape == ()
        assert file.get_tensor("params/e").shape == (0, 3)
        assert json.loads(file.metadata()["xopt"])["step"] == 3


def test_names_are_paths() -> None:
    """State is matched by name, never by order (pytorch #1489, PR 6031); a slash in a key is no path."""
    opt = optimizer(a=np.full(2, 1.0), b=np.full(2, 2.0))
    opt.step({"a": np.full(2, 5.0), "b": np.full(2, -1.0)})
    other = optimizer(b=np.zeros(2), a=np.zeros(2))
    other.load_state_dict(opt.state_dict(only_state=False))
    assert same(opt.state.slots, other.state.slots)
    assert same(opt.params, other.params)
    mean = [{"a/b": np.full(1, 1.0), "a": {"b": np.full(1, 2.0), "~1": np.full(1, 3.0)}}, np.full(1, 4.0)]
    saved = xopt.Optimizer(mean, xopt.SGD()).state_dict(only_state=False)["params"]
    assert {n: x.item() for n, x in saved.items()} == {"0/a~1b": 1.0, "0/a/b": 2.0, "0/a/~01": 3.0, "1": 4.0}
    with pytest.raises(ValueError, match="two arrays are called '1'"):
        xopt.Optimizer({1: np.ones(1), "1": np.ones(1)}, xopt.SGD()).state_dict()
    single = xopt.Optimizer(np.full(1, 3.0), xopt.SGD()).state_dict(only_state=False)
    assert single["params"] == {"": np.full(1, 3.0)}


def test_an_exported_state_is_a_copy(lib: Lib) -> None:
    """pytorch #196083: exported state that aliases live state."""
    if not lib.writable or lib.guise == "grad":
        pytest.skip("arrays of this library cannot be written into")
    opt = xopt.Optimizer({"w": lib.array(np.ones(3))}, xopt.Adam(lr=0.1))
    opt.step({"w": lib.array(np.ones(3))})
    saved, want = opt.state_dict(only_state=False), optree.tree_map(lambda x: lib.numpy(x).copy(), opt.state.slots)
    for x in (*saved["state"]["0.adam.m"].values(), *saved["params"].values()):
        x[...] = 9.0
    saved["rule"].clear()
    assert same(optree.tree_map(lib.numpy, opt.state.slots), want)
    assert float(opt.params["w"][0]) != 9.0
    kept = opt.state_dict(only_state=False)
    opt.step({"w": lib.array(np.ones(3))})
    opt.load_state_dict(kept)
    opt.step({"w": lib.array(np.ones(3))})
    assert float(kept["params"]["w"][0]) != float(opt.params["w"][0])  # what was loaded is a copy too
    assert same(optree.tree_map(lib.numpy, kept["state"]["0.adam.m"]["w"]), want["0.adam.m"]["w"])


def test_the_step_is_an_int(tmp_path: Path) -> None:
    """pytorch #80809: loading cast the step like a parameter."""
    for step in (257, 2049, 2**24 + 1, 2**53 + 1, 2**63 - 1):
        opt = optimizer(xopt.Adam(), w=np.ones(2, "float16"))
        saved = opt.state_dict() | {"step": step}
        opt.load_state_dict(saved)
        file = opt.save(tmp_path / "run")
        other = optimizer(xopt.Adam(), w=np.ones(2, "float16"))
        other.load(file)
        assert type(other.state.step) is int
        assert other.state.step == step


def test_hyperparameters_come_back(tmp_path: Path) -> None:
    opt = optimizer(xopt.chain(xopt.ClipByNorm(1.0), xopt.AdamW(lr=0.1)))
    opt.set(lr=0.25, b1=0.5, max_norm=3.0)
    file = opt.save(tmp_path / "run")
    other = optimizer(xopt.chain(xopt.ClipByNorm(1.0), xopt.AdamW(lr=0.1)))
    other.load(file)
    assert other.hyperparams() == opt.hyperparams()
    other.step({"w": np.ones((2, 3)), "b": np.ones(2, "float32")})
    opt.step({"w": np.ones((2, 3)), "b": np.ones(2, "float32")})
    assert same(everything(opt), everything(other))
    groups = xopt.Groups(xopt.SGD(lr=0.1), ("b", {"lr": 0.2}))
    opt = optimizer(groups)
    opt.set(**{"group0.lr": 0.3, "lr": 0.4})
    other = optimizer(groups)
    other.load_state_dict(opt.state_dict())
    assert other.hyperparams() == opt.hyperparams()
    assert other.hyperparams()["group0.lr"] == 0.3
    scheduled, saved = (
        optimizer(xopt.SGD(lr=xopt.schedules.cosine(0.1, steps=5))),
        optimizer(xopt.SGD(lr=0.7)).state_dict(),
    )
    assert problems(lambda: scheduled.load_state_dict(saved)) == [
        "rule: 0.sgd.lr: 0.7, but here it is 'cosine(0.1, steps=5)'"
    ]
    scheduled.set(lr=0.1)  # a number takes its place, as it did there
    scheduled.load_state_dict(saved)
    assert scheduled.hyperparams()["lr"] == 0.7


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    opt = optimizer(a=np.ones(2), b=np.ones(3), c=np.ones(2, "complex64"), d=np.ones(1), e=np.ones(2, "float64"))
    file = opt.save(tmp_path / "run")
    other = optimizer(a=np.ones(2), b=np.ones((3, 1)), c=np.ones(2, "float32"), e=np.ones(2, "float32"), f=np.ones(1))
    before = everything(other)
    found = problems(lambda: other.load(file))
    assert [x for x in found if x.startswith("params/")] == [
        "params/b: shape (3,), but here it is (3, 1)",
        "params/c: dtype complex64, but here it is float32, which is real",
        "params/d: not among the arrays of this run",
        "params/e: dtype float64, but here it is float32; cast=True rounds it",
        "params/f: missing",
    ]
    assert len([x for x in found if "adam.m" in x]) == 5
    assert same(before, everything(other))
    assert problems(lambda: xopt.load_state(file, RULE, other.params)) == found
    found = problems(lambda: other.load(file, strict=False, cast=True))
    assert {x.rpartition("/")[2] for x in found} == {
        "b: shape (3,), but here it is (3, 1)", "c: dtype complex64, but here it is float32, which is real"
    }  # fmt: skip
    assert same(before, everything(other))


def test_strict_and_cast_are_choices(tmp_path: Path) -> None:
    opt = optimizer(a=np.full(2, 1 / 3), gone=np.ones(1))
    file = opt.save(tmp_path / "run")
    other = optimizer(a=np.ones(2), new=np.full(1, 5.0))
    kept = other.state.slots["1.adam.m"]["new"].copy()
    problems(lambda: other.load(file))
    other.load(file, strict=False)
    assert same(other.params["a"], opt.params["a"])
    assert np.array_equal(other.state.slots["1.adam.m"]["new"], kept)
    narrow = optimizer(a=np.ones(2, "float32"), gone=np.ones(1, "float16"))
    problems(lambda: narrow.load(file))
    narrow.load(file, cast=True)
    assert np.array_equal(narrow.params["a"], opt.params["a"].astype("float32"))
    assert narrow.params["gone"].dtype == np.float16
    wide = optimizer(a=np.ones(2, "complex128"), gone=np.ones(1))
    wide.load(file, cast=True, strict=False)
    assert np.array_equal(wide.params["a"], opt.params["a"].astype("complex128"))
    pure = xopt.load_state(file, RULE, {"a": np.ones(2, "float32"), "new": np.ones(1)}, strict=False, cast=True)
    assert pure.state.slots["1.adam.m"]["new"].tolist() == [0.0]
    assert pure.state.slots["1.adam.m"]["a"].dtype == np.float32


def test_another_rule_is_refused() -> None:
    cosine = lambda steps: xopt.schedules.cosine(0.1, steps=steps)
    adam = lambda lr, **options: xopt.Adam(lr=lr, amsgrad=True, **options)
    groups = xopt.Groups(adam(cosine(9)), ("b", {"lr": 0.1}))
    saved = optimizer(adam(cosine(9))).state_dict()
    for rule, text in [
        (xopt.SGD(momentum=0.9), "rule: 0.adam Adam; but here it is 0.sgd SGD"),
        (xopt.SGD(momentum=0.9), "state/0.sgd.m/b: missing"),
        (adam(cosine(9), eps_mode="inside"), "rule: 0.adam.eps_mode: 'outside', but here it is 'inside'"),
        (adam(cosine(8)), "rule: 0.adam.lr: 'cosine(0.1, steps=9)', but here it is 'cosine(0.1, steps=8)'"),
        (adam(0.1), "rule: 0.adam.lr: 'cosine(0.1, steps=9)', but here it is 0.1"),
        (adam(cosine(9), weight_decay=0.1), "rule: 0.adam.weight_decay: None, but here it is 0.1"),
        (xopt.Guard(adam(cosine(9)), "skip"), "carry: nonfinite.skipped: missing"),
        (groups, "rule: 0.adam Adam; but here it is 0 Groups, 0.adam Adam"),
    ]:
        opt = optimizer(rule)
        before = everything(opt)
        found = problems(lambda opt=opt: opt.load_state_dict(saved))
        assert text in found
        assert same(before, everything(opt))
    seeds = [xopt.chain(xopt.AddNoise(seed=s), xopt.SGD()) for s in (1, 2)]
    [text] = problems(lambda: optimizer(seeds[1]).load_state_dict(optimizer(seeds[0]).state_dict()))
    assert text == "rule: 0.addnoise.seed: 1, but here it is 2"
    opt = optimizer(xopt.Adam(lr=cosine(8), amsgrad=True))
    opt.load_state_dict(saved, strict=False)
    assert opt.hyperparams()["lr"] == cosine(8)
    xopt.load_state(saved, opt.rule, opt.params)  # whose rule is the caller's


def test_extra_is_what_json_can_hold() -> None:
    opt = optimizer()
    for bad in ([1], {"x": {1, 2}}, {"x": (1, 2)}, {1: 2}, {"x": float("nan")}, {"x": np.float32(1)}):
        with pytest.raises(TypeError, match="extra: it must be a dict that JSON can hold"):
            opt.state_dict(extra=bad)  # type: ignore[arg-type]


def test_dropout_goes_on(tmp_path: Path) -> None:
    layer, x = xopt.nn.Dropout(0.5, seed=3), np.ones(50)
    for _ in range(3):
        layer.forward(x)
    file = optimizer().save(tmp_path / "run", extra={"dropout": layer.state_dict()})
    other = xopt.nn.Dropout(0.5, seed=3)
    other.load_state_dict(optimizer().load(file)["dropout"])
    assert np.array_equal(other.forward(x), layer.forward(x))
    for wrong in ({}, {"seed": 4, "calls": 1, "rate": 0.5, "form": "inverted"}, {**layer.state_dict(), "calls": -1}):
        with pytest.raises(ValueError, match="Dropout"):
            other.load_state_dict(wrong)
    assert other.calls == 4


def test_a_directory_of_checkpoints(tmp_path: Path) -> None:
    folder, opt = tmp_path / "runs" / "one", optimizer(steps=0)
    assert xopt.latest(folder) is None
    with pytest.raises(FileNotFoundError):
        opt.load(folder)
    names = []
    for _ in range(12):
        opt.step(optree.tree_map(np.ones_like, opt.params))
        names.append(opt.save(folder, keep=3).name)
    (folder / "notes.txt").write_text("mine")
    (folder / "step-x.safetensors").write_text("mine too")
    assert names[-1] == "step-000000000012.safetensors"
    assert sorted(x.name for x in folder.iterdir()) == ["notes.txt", *names[-3:], "step-x.safetensors"]
    assert xopt.latest(folder) == folder / names[-1]
    other = optimizer(steps=0)
    other.load(folder)
    assert same(everything(opt), everything(other))
    opt.save(folder)  # without keep nothing is deleted
    assert len([*folder.glob("step-0*")]) == 3
    early = optimizer(steps=2)  # a run that went back: what came after that was given up, and is put aside
    assert early.save(folder, keep=2) == xopt.latest(folder)
    left = [x.name for x in sorted(folder.glob("step-0*"))]
    assert left == ["step-000000000002.safetensors", *(f"{name}~" for name in names[-3:])]
    huge = opt.state_dict() | {"step": 2**63 - 1}
    opt.load_state_dict(huge)
    assert xopt.latest(folder) != opt.save(folder) == xopt.latest(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="without checkpoints"):
        opt.load(tmp_path / "empty")
    for bad in (0, True, 1.5, -1):
        with pytest.raises(ValueError, match="keep"):
            opt.save(folder, keep=bad)  # type: ignore[arg-type]


def test_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    opt = optimizer()
    assert opt.save(f"{tmp_path}/new/") == tmp_path / "new" / "step-000000000003.safetensors"
    (tmp_path / "new" / "step-000000000009.safetensors").mkdir()
    opt.load(os.fsencode(tmp_path / "new"))  # type: ignore[arg-type]
    opt.save(tmp_path / "new", keep=1)


def test_what_is_saved_is_a_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opt, synced = optimizer(), list[int]()
    assert "params" not in opt.state_dict()
    file = opt.save(tmp_path / "run", only_state=True)
    with File(file) as found:
        assert {n.partition("/")[0] for n in found.tensors} == {"state"}
    other = optimizer(steps=1)
    params = other.state_dict(only_state=False)["params"]
    other.load(file)
    assert same(other.params, params)
    assert same(other.state.slots, opt.state.slots)
    back = xopt.load_state(file, RULE, other.params)
    assert all(x is y for x, y in zip(optree.tree_leaves(back.params), optree.tree_leaves(other.params), strict=True))
    assert same(back.state.slots, opt.state.slots)
    xopt.save_state(file, RULE, back.params, back.state, only_state=True)
    with File(file) as found:
        assert {n.partition("/")[0] for n in found.tensors} == {"state"}
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(fd))
    opt.save(tmp_path / "run", fsync=False)
    assert synced == []
    opt.save(tmp_path / "run")
    assert len(synced) == 2


@pytest.mark.skipif(os.name != "posix", reason="links and permissions of POSIX")
def test_links_and_permissions_stay(tmp_path: Path) -> None:
    real, link = tmp_path / "real" / "run", tmp_path / "link"
    real.parent.mkdir()
    opt, old = optimizer(), os.umask(0o027)
    try:
        opt.save(real)
    finally:
        os.umask(old)
    assert real.stat().st_mode & 0o777 == 0o640
    real.chmod(0o604)
    link.symlink_to(real)
    opt.save(link)
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o604
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "real" / "new")
    opt.save(dangling)
    assert dangling.is_symlink()
    optimizer().load(tmp_path / "real" / "new")
    assert sorted(x.name for x in tmp_path.rglob("*")) == ["dangling", "link", "new", "real", "run"]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        opt.save(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError, match="no such directory"):
        opt.save(tmp_path / "nowhere" / "run")


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    old, new, other = (tmp_path / n for n in (".xopt-0123abcd.tmp", ".xopt-11111111.tmp", ".xopt-note.tmp"))
    for x in (old, new, other):
        x.write_text("")
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    optimizer().save(tmp_path / "run")
    assert sorted(x.name for x in tmp_path.iterdir()) == [new.name, other.name, "run"]


def test_a_newer_schema_and_migrations(monkeypatch: pytest.MonkeyPatch) -> None:
    opt = optimizer()
    [text] = problems(lambda: opt.load_state_dict(opt.state_dict() | {"schema": 2, "xopt": "9.0"}))
    assert text == "schema 2, written by xopt '9.0'; this one reads up to 1: install a newer"
    for bad in (0, True, "1", None, 1.0):
        assert problems(lambda bad=bad: opt.load_state_dict(opt.state_dict() | {"schema": bad}))
    monkeypatch.setattr(_snapshot, "SCHEMA", 3)
    add, multiply = lambda meta: {**meta, "step": meta["step"] + 1}, lambda meta: {**meta, "step": meta["step"] * 10}
    monkeypatch.setattr(_restore, "MIGRATIONS", {1: add, 2: multiply})
    old = opt.state_dict() | {"schema": 1}
    opt.load_state_dict(old)
    assert opt.state.step == 40
    assert old["step"] == 3


GOLDEN = Path(__file__).parent / "golden"


def golden() -> tuple[Any, Any]:
    rule = xopt.Guard(xopt.chain(xopt.Adam(lr=xopt.schedules.cosine(0.1, steps=9), b1=0.5), xopt.EMA(0.9)), "skip")
    return rule, {"a/b": np.zeros((2, 3), "float32"), "z": [np.zeros(2, "complex128"), np.zeros((), "float16")]}


def write_golden() -> None:
    """Write the file of this schema, once: `PYTHONPATH=tests python -m checkpoint.test_save_and_load`."""
    rule, params = golden()
    opt = xopt.Optimizer(params, rule)
    for t in (1.0, 2.0):
        opt.step(optree.tree_map(lambda x, t=t: np.full_like(x, t), params))
    path = opt.save(GOLDEN / f"schema-{_snapshot.SCHEMA}.safetensors", extra={"epoch": 2})
    shown = [np.atleast_1d(x).view("u1").ravel().tolist() for x in optree.tree_leaves((opt.params, opt.state.slots))]
    carry = {n: float(x) for n, x in opt.state.carry.items()}
    path.with_suffix(".json").write_text(json.dumps({"step": opt.state.step, "carry": carry, "bytes": shown}) + "\n")


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.safetensors")), ids=lambda path: path.stem)
def test_files_of_every_schema_load(path: Path) -> None:
    """A file that was written once, by each version: the format may not drift."""
    rule, params = golden()
    opt = xopt.Optimizer(params, rule)
    assert opt.load(path) == {"epoch": 2}
    want = json.loads(path.with_suffix(".json").read_text())
    assert opt.state.step == want["step"]
    assert {n: float(x) for n, x in opt.state.carry.items()} == want["carry"]
    leaves = optree.tree_leaves((opt.params, opt.state.slots))
    assert [np.atleast_1d(x).view("u1").ravel().tolist() for x in leaves] == want["bytes"]


def test_a_file_of_a_version_with_fewer_fields_loads() -> None:
    """What chooses a formula was then what it is by default; a number that is missing is a fault of the file."""
    rule, params = golden()
    saved = xopt.Optimizer(params, rule).state_dict()
    about = next(x for x in saved["rule"] if x["rule"] == "Adam")
    del about["hyper"]["peak_lr"], about["static"]["amsgrad"]
    rule, params = golden()
    xopt.Optimizer(params, rule).load_state_dict(saved)
    about["static"]["amsgrad"] = True
    with pytest.raises(xopt.CheckpointError, match="adam.amsgrad: True, but here it is False"):
        xopt.Optimizer(params, rule).load_state_dict(saved)
    del about["hyper"]["eps"]
    with pytest.raises(xopt.CheckpointError, match="its fields are not"):
        xopt.Optimizer(params, rule).load_state_dict(saved)


def test_there_is_a_file_of_this_schema() -> None:
    assert (GOLDEN / f"schema-{_snapshot.SCHEMA}.safetensors").exists()


def test_frozen_parameters_and_other_memory(tmp_path: Path) -> None:
    """Arrays that are not in C order, parameters without state, arrays in other memory order on the other side."""
    rule = xopt.Groups(xopt.Adam(lr=0.1), ("frozen", xopt.Freeze))
    draw = lambda order: {
        "frozen": np.arange(3.0),
        "w": np.asarray(np.arange(12.0).reshape(3, 4), order=order)[::-1, ::2],
    }
    opt = optimizer(rule, **draw("F"))
    file = opt.save(tmp_path / "run")
    other = optimizer(rule, steps=0, **optree.tree_map(np.zeros_like, draw("C")))
    other.load(file)
    assert same(everything(opt), everything(other))
    assert sorted(opt.state_dict()["state"]["0.adam.m"]) == ["w"]


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_at_most_one_array_is_in_memory_beside_the_run(library: str, tmp_path: Path) -> None:
    """Eight arrays of 2 MB; those in C order are not copied at all."""
    lib = Lib(library, "plain")
    if library == "torch":
        pytest.importorskip("torch")
    params = {f"{k}": lib.array(np.ones((500, 1000), "float32")) for k in range(8)}
    plain = xopt.Optimizer(params, xopt.Adam(lr=0.1))
    turned = xopt.Optimizer({n: p.T for n, p in params.items()}, xopt.Adam())
    for opt, most in ((plain, 1.5e6), (turned, 4.5e6)):
        saving = peak(lambda opt=opt: opt.save(tmp_path / "run", fsync=False))
        loading = peak(lambda opt=opt: opt.load(tmp_path / "run"))
        assert saving < most, saving
        assert loading < most + 8.5e6, loading  # a buffer to verify with


def test_checksums_can_be_left_out(tmp_path: Path) -> None:
    opt = optimizer()
    file = opt.save(tmp_path / "run")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(xopt.CheckpointError, match=r"run: state/\S+: the checksum is wrong"):
        opt.load(file)
    opt.load(file, checksums=False)
    with pytest.raises(xopt.CheckpointError, match=r"run: state/\S+: the checksum is wrong"):
        xopt.load_state(file, RULE, opt.params)
    xopt.load_state(file, RULE, opt.params, checksums=False)


def test_arrays_lie_on_round_addresses(tmp_path: Path) -> None:
    """Each on a multiple of its size, the first on 64 bytes: other programs map them into memory."""
    opt = optimizer(SGD, a=np.ones(3, "float16"), b=np.ones(3), c=np.ones(1, "complex64"), d=np.ones(5, "float32"))
    with File(opt.save(tmp_path / "run")) as file:
        assert file._base % 64 == 0
        assert all((file._base + x.begin) % min(8, np.dtype(x.dtype).itemsize) == 0 for x in file.tensors.values())


def test_a_state_dict_that_is_none() -> None:
    opt = optimizer()
    good = opt.state_dict()
    with_ints = {"w": np.ones((2, 3), int), "b": np.ones(2)}
    for bad in (None, [], {}, {"state": 1}, {"state": {"0.adam.m": 1}}, {**good, "params": 3}, {**good, "step": -1},
                {**good, "step": 1.0}, {**good, "carry": None}, {**good, "rule": {}}, {**good, "extra": 1},
                {**good, "rule": [1, None, "x"]}, {**good, "carry": {"2.ema.weight": "1"}},
                {**good, "carry": {"2.ema.weight": True}}, {**good, "carry": {"2.ema.weight": 10**400}},
                {**good, "state": {**good["state"], "1.adam.m": {"w": "no", "b": 1}}},
                {**good, "state": {**good["state"], "1.adam.m": with_ints}}):  # fmt: skip
        before = everything(opt)
        assert problems(lambda bad=bad: opt.load_state_dict(bad))
        assert same(before, everything(opt))


if __name__ == "__main__":
    write_golden()
