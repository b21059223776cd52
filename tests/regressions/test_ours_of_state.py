"""Bugs of ours about saved state and interrupted steps. Each was seen red once, before it was mended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoint_files import parts, signed
from support.interrupts import interrupt

import xopt
from xopt._arrays.library import Library
from xopt._engine.exclusive import Writing
from xopt._engine.runners import threads as _threads
from xopt.checkpoint import _safetensors

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals, pipes and permissions of POSIX")


def test_a_load_of_the_state_alone_makes_no_torn_parameters_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    params = [np.zeros(3), np.zeros(2)]
    opt = xopt.Optimizer(params, xopt.SGD(1.0), runner="eager")
    opt.step([np.ones(3), np.ones(2)])
    kept = opt.state_dict()  # only_state=True is the default
    interrupt(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        opt.step([np.ones(3), np.ones(2)])
    with pytest.raises(xopt.CheckpointError, match="params/0: missing, and a step was interrupted while it wrote"):
        opt.load_state_dict(kept)
    with pytest.raises(RuntimeError, match="interrupted"):
        opt.step([np.ones(3), np.ones(2)])


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    code = "import sys, numpy as np, xopt\nxopt.Optimizer(np.ones(2), xopt.SGD()).load(sys.argv[1])"
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "pipe")], capture_output=True, text=True, check=False, timeout=120
    )
    assert "CheckpointError" in out.stderr


def test_a_file_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    opt = xopt.Optimizer({"w": np.ones(2)}, xopt.chain(xopt.SGD(momentum=0.9), xopt.EMA(0.9)))
    header, meta, data = parts(opt.save(tmp_path / "run"))
    end, name = len(data), "\x1b[2J"
    own = {**meta["tensors"], name: {"dtype": "float32", "crc32": "00000000"}}
    rule = [{**meta["rule"][0], "place": name}, meta["rule"][1]]
    long = [{**rule[0], "place": "0.sgd", "static": {**rule[0]["static"], "nesterov": "x" * 10**6}}, meta["rule"][1]]
    for changes, more in (
        ({"tensors": own}, {name: {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}}),
        ({"carry": {**meta["carry"], name: 1.0}}, {}),
        ({"rule": rule}, {}),
        ({"rule": long}, {}),
        ({"schema": "x" * 10**6}, {}),
    ):
        text = {"crc32": "0" * 8, "xopt": json.dumps({**meta, **changes})}
        (tmp_path / "bad").write_bytes(signed({**header, "__metadata__": text, **more}, data))
        with pytest.raises(xopt.CheckpointError) as error:
            opt.load(tmp_path / "bad")
        assert "\x1b" not in str(error.value)
        assert len(str(error.value)) < 5000


def test_a_checkpoint_is_saved_at_exit(tmp_path: Path) -> None:
    code = (
        "import atexit, sys, numpy as np, xopt\n"
        "opt = xopt.Optimizer(np.ones(1_000_000), xopt.SGD())\n"
        "atexit.register(opt.save, sys.argv[1])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True, check=False
    )
    assert (tmp_path / "run").exists(), out.stderr[-500:]


def test_no_thread_outlives_any_exception_of_a_signal_handler() -> None:
    class Stop(Exception):
        pass

    def stop(*_: Any) -> None:
        raised.set()
        raise Stop

    begun, raised, ended = threading.Event(), threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert raised.wait(60)
        time.sleep(0.5)
        ended.set()

    def first() -> None:
        assert begun.wait(60)
        signal.setitimer(signal.ITIMER_REAL, 0.2)

    old = signal.signal(signal.SIGALRM, stop)
    try:
        with pytest.raises(Stop):
            _threads.run([first, slow])
        assert ended.is_set()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_parameters_that_became_read_only_are_refused_before_any_write(tmp_path: Path) -> None:
    params = {"a": np.zeros(3), "b": np.zeros(3)}
    opt = xopt.Optimizer(params, xopt.SGD(momentum=0.9))
    file = opt.save(tmp_path / "run")
    opt.step({n: np.ones(3) for n in params})
    params["b"].flags.writeable = False
    with pytest.raises(ValueError, match=r'params\["b"\]: a read-only array'):
        opt.load(file)
    opt.state_dict()  # nothing is torn


def test_a_secret_file_is_secret_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, modes = tmp_path / "run", []
    path.touch(0o600)
    real = _safetensors._write_arrays
    spy = lambda fd, tensors: (modes.append(os.fstat(fd).st_mode & 0o777), real(fd, tensors))[1]
    monkeypatch.setattr(_safetensors, "_write_arrays", spy)
    old = os.umask(0o022)
    try:
        xopt.Optimizer(np.ones(2), xopt.SGD()).save(path)
    finally:
        os.umask(old)
    assert modes == [0o600]


def test_averages_that_ctrl_c_left_in_place_can_be_loaded_over(monkeypatch: pytest.MonkeyPatch) -> None:
    opt = xopt.Optimizer([np.ones(2), np.ones(2)], xopt.chain(xopt.SGD(lr=1.0), xopt.EMA(0.9)))
    opt.step([np.ones(2)] * 2)
    kept, real, calls = opt.state_dict(only_state=False), Library.overwrite, []

    def overwrite(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(Library, "overwrite", overwrite)
    with pytest.raises(KeyboardInterrupt), opt.averaged():
        pass
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="interrupted"):
        opt.step([np.ones(2)] * 2)
    opt.load_state_dict(kept)
    opt.step([np.ones(2)] * 2)


@pytest.mark.parametrize("moment", ["__enter__", "begin", "__exit__"])
def test_ctrl_c_on_the_way_out_of_averages_can_be_loaded_over(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    w = np.asarray([2.0])
    opt = xopt.Optimizer(w, xopt.chain(xopt.SGD(lr=1.0), xopt.EMA(0.5)))
    opt.step(np.asarray([1.0]))
    kept = opt.state_dict(only_state=False)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), opt.averaged():
        monkeypatch.setattr(Writing, moment, interrupted)
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="interrupted"):
        opt.step(np.asarray([1.0]))
    opt.load_state_dict(kept)
    assert w == [1.0]
    opt.step(np.asarray([1.0]))


def test_a_link_with_a_number_for_each_leaf_is_lenient_too() -> None:
    rule = xopt.NovoGrad()
    old = xopt.Optimizer({"a": np.ones(2), "b": np.ones(2)}, rule)
    old.step({"a": np.ones(2), "b": np.ones(2)})
    new = xopt.Optimizer({"a": np.ones(2), "c": np.ones(2)}, rule)
    new.load_state_dict(old.state_dict(), strict=False)
    assert new.state_dict()["carry"]["0.novograd.norm"] == {"a": 2.0**0.5, "c": 0.0}


def test_extra_is_a_copy() -> None:
    opt, extra = xopt.Optimizer(np.ones(2), xopt.SGD()), {"x": [1]}
    saved = opt.state_dict(extra=extra)
    extra["x"].append(2)
    opt.load_state_dict(saved)["x"].append(3)
    assert saved["extra"] == {"x": [1]}


def test_bounds_that_move_together() -> None:
    low, high = (xopt.Optimizer(np.ones(2), xopt.chain(xopt.SGD(), xopt.Box(*x))) for x in ((0.0, 1.0), (5.0, 9.0)))
    low.load_state_dict(high.state_dict())
    assert low.hyperparams()["low"] == 5.0


def test_a_mask_is_not_that_of_another_call() -> None:
    layer, other = xopt.nn.Dropout(0.5, seed=3), xopt.nn.Dropout(0.5, seed=3)
    for _ in range(3):
        other.forward(np.ones(8))
    layer.forward(np.ones(8))
    layer.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="before forward"):
        layer.backward(np.ones(8))


def test_an_error_of_the_system_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_safetensors.os, "write", full)
    with pytest.raises(OSError, match="run"):
        xopt.Optimizer(np.ones(2), xopt.SGD()).save(tmp_path / "run")


def test_replaced_data_of_another_shape_is_not_saved(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    p = torch.nn.Parameter(torch.ones(2))
    opt = xopt.Optimizer(p, xopt.SGD(momentum=0.9))
    p.data = torch.ones(3)
    with pytest.raises(ValueError, match="when the optimizer was made"):
        opt.save(tmp_path / "run")


def test_no_error_about_a_checkpoint_after_the_first_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CheckpointError says that nothing has been written."""
    opt = xopt.Optimizer({"a": np.ones(2), "b": np.ones(2)}, xopt.SGD(momentum=0.9))
    file, real = opt.save(tmp_path / "run"), _safetensors.File.verify

    def verify(self: Any) -> None:
        real(self)
        os.truncate(file, file.stat().st_size - 16)

    monkeypatch.setattr(_safetensors.File, "verify", verify)
    with pytest.raises(OSError, match="run"):
        opt.load(file)
