"""`python -m xopt`, as a person at a terminal and as a script that reads JSON."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xopt
from xopt.__main__ import main

RULE = xopt.chain(
    xopt.ClipByGlobalNorm(1.0),
    xopt.AdamW(xopt.schedules.cosine(0.1, steps=5), weight_decay=0.1),
    xopt.EMA(0.9),
)


def params() -> dict[str, Any]:
    return {"w": np.arange(6.0).reshape(2, 3), "b": np.ones(2, "complex64"), "half": np.ones(3, "float16")}


def saved(path: Path, steps: int = 2, rule: Any = RULE, change: Any = None, **extra: Any) -> str:
    opt = xopt.Optimizer(params(), rule)
    for _ in range(steps):
        opt.step({n: np.ones_like(x) for n, x in opt.params.items()})
    if change is not None:
        change(opt)
    opt.save(path, extra=extra)
    return str(path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*words: str) -> tuple[int, str, str]:
        code = main(words)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_config(run: Any) -> None:
    code, out, err = run("config")
    assert (code, err) == (0, "")
    xopt.show_config()
    _, printed, _ = run("config", "--json")
    shown, _, described = printed.partition("{")
    assert shown == out
    found = json.loads("{" + described)
    assert found["xopt"] == xopt.__version__
    assert {x["name"]: x["version"] for x in found["libraries"]}["numpy"] == np.__version__
    assert found["threads"] >= 1


def test_show(run: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / "run.safetensors", epoch=3)
    code, out, err = run("show", path)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"{path}: step 2, by xopt {xopt.__version__}"
    for text in ("1.adamw: AdamW(", "lr=cosine(0.1, steps=5)", 'extra: {"epoch": 3}', "checksums: right"):
        assert text in out
    assert "state/1.adamw.m/w" in out
    code, out, _ = run("show", path, "--json")
    found = json.loads(out)
    assert (code, found["step"], found["extra"], found["checksums"]) == (0, 2, {"epoch": 3}, "right")
    assert found["tensors"]["params/b"] == {
        "dtype": "complex64", "shape": [2], "bytes": 16, "crc32": found["tensors"]["params/b"]["crc32"]
    }  # fmt: skip
    size = sum(x["bytes"] for x in found["tensors"].values())
    assert size == sum(p.nbytes for p in params().values()) + sum(
        x.nbytes for tree in xopt.load_state(path, RULE, params()).state.slots.values() for x in tree.values()
    )


def test_show_takes_the_latest_of_a_directory(run: Any, tmp_path: Path) -> None:
    saved(tmp_path, 1)
    saved(tmp_path, 3)
    code, out, _ = run("show", str(tmp_path))
    assert code == 0
    assert "step-000000000003.safetensors: step 3," in out


def test_a_damaged_array_is_found_unless_nobody_looks(run: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / "run.safetensors")
    data = bytearray(Path(path).read_bytes())
    data[-1] ^= 1
    Path(path).write_bytes(data)
    code, out, err = run("show", path)
    assert (code, out) == (2, "")
    assert err.startswith(f"xopt show: {path}: ")
    assert err.endswith("the checksum is wrong\n")
    assert err.count("\n") == 1
    code, out, _ = run("show", path, "--no-checksums")
    assert code == 0
    assert "checksums: not compared" in out


def nudged(opt: Any) -> None:
    opt.params["w"][0, :2] += [0.5, 0.25]
    opt.params["half"][1] = np.nan


def test_diff(run: Any, tmp_path: Path) -> None:
    a, b = saved(tmp_path / "a.safetensors", epoch=1), saved(tmp_path / "b.safetensors", change=nudged, epoch=2)
    assert run("diff", a, a) == (0, "", "")
    code, out, err = run("diff", a, b)
    assert (code, err) == (1, "")
    lines = dict(line.split(": ", 1) for line in out.splitlines())
    assert lines == {
        "extra/epoch": "1 and 2",
        "params/half": "1 of 3 numbers differ, by at most inf",
        "params/w": "2 of 6 numbers differ, by at most 0.5",
    }
    found = json.loads(run("diff", a, b, "--json", "--atol", "0.3")[1])["differences"]
    assert [(x["where"], x.get("count"), x.get("largest")) for x in found] == [
        ("extra/epoch", None, None),
        ("params/half", 1, None),
        ("params/w", 1, 0.5),
    ]
    same = saved(tmp_path / "c.safetensors", change=nudged, epoch=2)
    assert run("diff", b, same)[0] == 0  # NaN and all


def test_diff_of_other_rules(run: Any, tmp_path: Path) -> None:
    a = saved(tmp_path / "a.safetensors")
    b = saved(tmp_path / "b.safetensors", 3, xopt.SGD(0.1, momentum=0.9))
    code, out, _ = run("diff", a, b)
    assert code == 1
    assert "step: 2 and 3\n" in out
    assert 'rule 1.adamw: "AdamW" and nothing\n' in out
    assert "rule 0.sgd.momentum: nothing and 0.9\n" in out
    assert f"state/1.adamw.m/w: only in {a}\n" in out
    assert "2.ema.weight" in out


def test_diff_of_other_shapes_and_bfloat16(run: Any, tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    found = []
    for k, x in enumerate([np.ones(3), np.ones(4), np.ones(4, "float32")]):
        opt = xopt.Optimizer({"w": x, "few": np.full(2, 1.0 + k, ml_dtypes.bfloat16)}, xopt.SGD(0.1))
        opt.save(tmp_path / f"{k}.safetensors")
        found.append(str(tmp_path / f"{k}.safetensors"))
    assert "params/w: float64 (3,) and float64 (4,)\n" in run("diff", *found[:2])[1]
    assert "params/w: float64 (4,) and float32 (4,)\n" in run("diff", *found[1:])[1]
    assert "params/few: 2 of 2 numbers differ, by at most 1\n" in run("diff", *found[:2])[1]


def test_explain(run: Any) -> None:
    code, out, err = run("explain", "xopt.AdamW(lr=1e-3)", "--shape", "10,2", "--runner", "eager")
    assert (code, err) == (0, "")
    assert (
        out.strip()
        == xopt.explain(xopt.AdamW(lr=1e-3), np.zeros((10, 2), "float32"), runner="eager", source=False).strip()
    )
    found = json.loads(run("explain", "SGD()", "--shape", "", "--dtype", "complex128", "--json")[1])
    assert (found["rule"], found["shapes"], found["dtype"]) == ("SGD()", {"": []}, "complex128")
    rule = "Groups(Adam(), ('a/**', Freeze))"
    code, out, _ = run("explain", rule, "--shape", "a/w=10,10", "--shape", "b=7")
    assert code == 0
    assert "7 parameters" in out
    assert "complex128" in found["text"]
    short = run("explain", "SGD()", "--runner", "tiled")[1]
    assert len(run("explain", "SGD()", "--runner", "tiled", "--source")[1]) > len(short)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["show", "nothing.safetensors"], "No such file or directory: 'nothing.safetensors'"),
        (["explain", "open('x')"], "rule: 'open' at character 1 is no part of a rule of xopt"),
        (["explain", "Adam(lr=-1)"], "Adam.lr: -1"),
        (["explain", "Adam(1/0)"], "cannot be computed"),
        (["explain", "Adam()", "--shape=a=1", "--shape=2"], "--shape: several of them need names"),
        (["explain", "Adam()", "--shape", "a"], "--shape: 'a', but it must be lengths like 1000,1000"),
        (["explain", "Adam()", "--shape=-3"], "--shape: '-3', but a length is at least 0"),
        (["explain", "Adam()", "--dtype", "int7"], "--dtype: 'int7', but it must be one of"),
        (["diff", "a", "b", "--atol=-1"], "--atol: -1.0, but it must be at least 0"),
        (["convert", "a", "b.pt", "--rule", "Adam()"], "--like: missing, but it is needed for b.pt"),
        (["convert", "a.pt", "b", "--rule", "Adam()"], "--model: missing, but it is needed for b"),
        (["convert", "a.pt", "b", "--rule", "Adam()", "--like=c", "--model=d"], "--like: not needed for b"),
    ],
    ids=lambda x: x if isinstance(x, str) else " ".join(x),
)
def test_errors_are_one_line(words: list[str], text: str, run: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith(f"xopt {words[0]}: ")
    assert text in err
    assert err.count("\n") == 1


def test_names_of_a_file_do_not_reach_the_terminal_as_they_are(run: Any, tmp_path: Path) -> None:
    opt = xopt.Optimizer({"\x1b[31mred": np.ones(2)}, xopt.SGD(0.1))
    opt.save(tmp_path / "x.safetensors", extra={"note": "\x1b]0;title\x07"})
    code, out, _ = run("show", str(tmp_path / "x.safetensors"))
    assert code == 0
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "\\x1b[31mred" in out


def test_metadata_of_something_else(run: Any, tmp_path: Path) -> None:
    from xopt.checkpoint._safetensors import write

    for k, meta in enumerate([{}, {"step": 1, "rule": [3], "carry": {}, "extra": {}}, {"step": "1", "rule": []}]):
        write(tmp_path / f"{k}.safetensors", {}, meta, False)
        code, _, err = run("show", str(tmp_path / f"{k}.safetensors"))
        assert code == 2
        assert "the metadata is not that of a run" in err


def test_as_a_program(tmp_path: Path) -> None:
    path = saved(tmp_path / "run.safetensors")
    call = lambda *words: subprocess.run([sys.executable, "-m", "xopt", *words], capture_output=True, text=True)
    assert call("show", path).returncode == 0
    assert call("diff", path, path).returncode == 0
    assert call("show", str(tmp_path / "none")).returncode == 2
    assert call().returncode == 2
    assert "{config,show,diff,explain,convert}" in call("--help").stdout or "explain" in call("--help").stdout


def test_diff_of_keys_with_dots_and_of_empty_dicts(run: Any, tmp_path: Path) -> None:
    a, b = saved(tmp_path / "a.safetensors", a={"b": 1}), saved(tmp_path / "b.safetensors", **{"a.b": 1})
    assert run("diff", a, b)[:2] == (1, "extra/a/b: 1 and nothing\nextra/a.b: nothing and 1\n")
    none = saved(tmp_path / "none.safetensors")
    assert run("diff", a, none)[1] == "extra/a/b: 1 and nothing\n"


def test_a_reader_that_stops_and_a_terminal_without_letters(tmp_path: Path) -> None:
    """The exit code of diff is that of the files; what cannot be printed is escaped."""
    many = {f"parameter {k}": np.zeros(1) for k in range(3000)}
    paths = []
    for k in range(2):
        opt = xopt.Optimizer({n: x + k for n, x in many.items()}, xopt.SGD(0.1))
        opt.save(tmp_path / f"{k}.safetensors", only_state=False, extra={"\N{SNOWMAN}": "\N{SNOWMAN}"})
        paths.append(str(tmp_path / f"{k}.safetensors"))
    with subprocess.Popen([sys.executable, "-m", "xopt", "diff", *paths], stdout=subprocess.PIPE) as diff:
        assert diff.stdout is not None
        diff.stdout.readline()
        diff.stdout.close()
        assert diff.wait() == 1
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    shown = subprocess.run(
        [sys.executable, "-m", "xopt", "show", paths[0]], capture_output=True, text=True, env=env, check=True
    )
    assert "\\u2603" in shown.stdout
    words = shlex.join([sys.executable, "-m", "xopt", "diff", paths[0], paths[0]])
    assert subprocess.run(f"{words} >&-", shell=True, check=False).returncode == 0
