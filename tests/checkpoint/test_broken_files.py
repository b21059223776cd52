"""What happens to others' checkpoints: killed processes, full disks, rotten bits, files made to do harm."""

from __future__ import annotations

import errno
import json
import math
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoint_files import _dumps, parts, signed

import xopt
from xopt.checkpoint import _atomic, _safetensors
from xopt.checkpoint._safetensors import File

KILLS, MUTATIONS, STRUCTURES = 100, 20_000, 3_000


def optimizer(steps: int = 3) -> xopt.Optimizer:
    params = {"w": np.arange(6.0).reshape(2, 3), "z": np.asarray([1 + 2j, 3j]), "s": np.asarray(1.0, "float16")}
    opt = xopt.Optimizer(params, xopt.Guard(xopt.chain(xopt.Adam(lr=0.1), xopt.EMA(0.9)), "skip"), runner="eager")
    for _ in range(steps):
        opt.step({n: np.ones_like(x) for n, x in params.items()})
    return opt


def bytes_of(opt: xopt.Optimizer) -> bytes:
    """Return all that a step depends on."""
    arrays = [*opt.params.values(), *(x for column in opt.state.slots.values() for x in column.values())]
    scalars = json.dumps([opt.state.carry, opt.state.step, opt.hyperparams()]).encode()
    return b"".join([x.tobytes() for x in arrays]) + scalars


SAVER = """
import os, random, signal, sys, time
import numpy as np, xopt
path, trials, rng = sys.argv[1], int(sys.argv[2]), random.Random(7)
params = {str(k): np.zeros(10_000) for k in range(8)}
opt = xopt.Optimizer(params, xopt.SGD(lr=1.0, momentum=0.5), runner="eager")
opt.save(path)
torn = died = 0
for trial in range(trials):
    saved, told = os.pipe()
    child = os.fork()
    if child == 0:
        for t in range(100_000):
            opt.step({n: np.full(10_000, -1.0) for n in params})
            opt.save(path, fsync=t % 2 == 1)
            if t == 0:
                os.write(told, b"1")
        os._exit(1)
    os.read(saved, 1)  # however slow the disk is, each saves once
    os.close(saved)
    os.close(told)
    time.sleep(rng.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    died += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    other = xopt.Optimizer({n: np.ones(10_000) for n in params}, xopt.SGD(lr=1.0, momentum=0.5), runner="eager")
    try:
        other.load(path)
    except xopt.CheckpointError as error:
        torn += 1
        continue
    t, m, p = other.state.step, 0.0, 0.0
    for _ in range(t):
        m = 0.5 * m - 1.0
        p -= m
    for k in params:  # every array is of the same step
        torn += not ((other.params[k] == p).all() and (other.state.slots["0.sgd.m"][k] == m).all())
    opt = other
    params = other.params
left = [name for name in os.listdir(os.path.dirname(path)) if name != os.path.basename(path)]
print(died, torn, opt.state.step, len(left))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_kill_9_during_save_destroys_nothing(tmp_path: Path) -> None:
    """Each trial goes on from the checkpoint that the killed one left."""
    command = [sys.executable, "-c", SAVER, str(tmp_path / "run"), str(KILLS)]
    out = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert out.returncode == 0, out.stderr
    died, torn, steps, unfinished = map(int, out.stdout.split())
    assert (died, torn) == (KILLS, 0)
    assert steps >= KILLS
    assert unfinished > KILLS / 10  # they were killed while they saved


def test_an_error_at_every_call_to_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk or a broken one, at the first, second, … call: the old file stays, and nothing is left beside it."""
    path, new = tmp_path / "run", optimizer(5)
    optimizer(2).save(path)
    old, count = path.read_bytes(), 0
    fails = {
        "write": errno.ENOSPC,
        "fsync": errno.EIO,
        "open": errno.EMFILE,
        "replace": errno.EXDEV,
        "lseek": errno.EIO,
    }
    monkeypatch.setattr(_safetensors, "_CHUNK", 16)  # more calls

    class System:
        """The operating system until call number ``at``."""

        def __init__(self, at: int) -> None:
            self.left, self.failed = at, ""

        def __getattr__(self, name: str) -> Any:
            real = getattr(os, name)
            if name not in fails:
                return real

            def call(*args: Any) -> Any:
                self.left -= 1
                if self.left == 0:
                    self.failed = name
                    raise OSError(fails[name], os.strerror(fails[name]))
                return real(*args)

            return call

    seen = set()
    while path.read_bytes() == old:
        count += 1
        system = System(count)
        monkeypatch.setattr(_safetensors, "os", system)
        monkeypatch.setattr(_atomic, "os", system)
        with pytest.raises(OSError, match=r"\[Errno") as error:
            new.save(path)
        assert error.value.errno == fails[system.failed]
        seen.add(system.failed)
        assert [x.name for x in tmp_path.iterdir()] == ["run"]
    assert system.failed == "open"  # only the directory was not synced: the new file is in place
    assert seen == {*fails}
    assert count > 15
    monkeypatch.undo()
    other = optimizer(0)
    other.load(path)
    assert bytes_of(other) == bytes_of(new)


def test_a_disk_that_takes_little_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(_safetensors.os, "write", lambda fd, data: real(fd, data[:7]))
    opt = optimizer()
    opt.save(tmp_path / "run")
    monkeypatch.undo()
    other = optimizer(0)
    other.load(tmp_path / "run")
    assert bytes_of(other) == bytes_of(opt)


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    code = """
import resource, sys, numpy as np, xopt
opt = xopt.Optimizer(np.ones(10_000), xopt.SGD(), runner="eager")
opt.save(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
opt.step(np.ones(10_000))
try:
    opt.save(sys.argv[1])
except OSError as error:
    other = xopt.Optimizer(np.zeros(10_000), xopt.SGD(), runner="eager")
    other.load(sys.argv[1])
    print(other.state.step, other.params.sum())
"""
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True, check=False
    )
    assert out.stdout == "0 10000.0\n", out.stderr
    assert [x.name for x in tmp_path.iterdir()] == ["run"]


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found in order, and then the disk breaks: some arrays are new; the optimizer says so until it is loaded."""
    path, opt = tmp_path / "run", optimizer(1)
    optimizer(4).save(path)
    real, calls, before = File._read, [0], bytes_of(opt)

    def read(self: File, begin: int, out: Any) -> None:
        calls[0] += 1
        if calls[0] == broken:
            raise OSError(errno.EIO, "broken")
        real(self, begin, out)

    monkeypatch.setattr(File, "_read", read)
    broken = 5  # header, then verification
    with pytest.raises(OSError, match="broken"):
        opt.load(path)
    assert bytes_of(opt) == before
    opt.state_dict()
    calls[0], broken = 0, 17  # 2 of the header, 12 arrays verified, 2 arrays loaded
    with pytest.raises(OSError, match="broken"):
        opt.load(path)
    for call in (opt.state_dict, opt.eval_params, lambda: opt.save(path), lambda: opt.step(opt.params)):
        with pytest.raises(RuntimeError, match="a step, or a load, was interrupted while it wrote"):
            call()
    assert bytes_of(opt) != before
    calls[0], broken = 0, 0
    opt.load(path)
    assert bytes_of(opt) == bytes_of(optimizer(4))


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return other bytes: flipped, overwritten, cut, inserted, moved, doubled, exchanged."""
    made = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        i, n = rng.randrange(len(made)), rng.choice([1, 1, 2, 8, 64])
        kind = rng.randrange(9)
        if kind <= 1:
            made[i] ^= 1 << rng.randrange(8)
        elif kind == 2:
            made[i : i + n] = rng.randbytes(len(made[i : i + n]))
        elif kind == 3:
            del made[i : i + n]
        elif kind == 4:
            made[i:i] = rng.randbytes(n)
        elif kind == 5:
            del made[max(i, 1) :]
        elif kind == 6:
            j = rng.randrange(len(made))
            made[i:i] = made[j : j + n]
        elif kind == 7:
            made[i] = rng.choice(b'0123456789"{}[],:-eE ')
        else:
            made[0:8] = rng.choice([0, 1, len(data), 2**31, 2**63, 2**64 - 1]).to_bytes(8, "little")
    return bytes(made)


def test_no_mutation_of_a_file_is_accepted(tmp_path: Path) -> None:
    """Neither with other numbers, nor by any exception but the documented one; what was there stays."""
    path, source, opt = tmp_path / "run", optimizer(4), optimizer(1)
    data, rng = source.save(path).read_bytes(), random.Random(20261121)
    before, whole, refused = bytes_of(opt), bytes_of(source), 0
    for _ in range(MUTATIONS):
        other = mutated(data, rng)
        path.write_bytes(other)
        try:
            opt.load(path)
        except xopt.CheckpointError:
            refused += 1
            assert bytes_of(opt) == before
        else:
            assert bytes_of(opt) == whole
            assert other == data  # no byte of it is idle
            opt.load_state_dict(optimizer(1).state_dict(only_state=False))
    assert refused > 0.98 * MUTATIONS


def anything(rng: random.Random) -> Any:
    numbers = [-1, 0, 1, 3, 2**40, 2**63, 10**30, 0.5, -0.0, 1e308, True, None]
    texts = ["", "x", "float32", "F64", "inf", "00000000", "0.adam.m", "state/"]
    lists = [[], [1], [0, 8], [[]], [0, 2**62], [-8, 0], [8, 0], [None], ["x"] * 70, {}, {"a": 1}, {"value": 1.0}]
    return rng.choice([*numbers, *texts, *lists])


def shaken(x: Any, rng: random.Random) -> Any:
    """Return other data of JSON, like these: a value replaced, a key or a member gone, added, renamed, doubled."""
    if rng.random() < 0.15 or not isinstance(x, dict | list) or not x:
        return anything(rng)
    made = dict(x) if isinstance(x, dict) else list(x)
    at: Any = rng.choice([*x]) if isinstance(x, dict) else rng.randrange(len(x))
    kind = rng.random()
    if kind < 0.7:
        made[at] = shaken(made[at], rng)
    elif kind < 0.8:
        del made[at]
    elif isinstance(made, dict):
        made[rng.choice(["", "x", "params/w", at + "x", "state/9.x.m/w"])] = (
            made.pop(at) if kind < 0.9 else anything(rng)
        )
    else:
        made.insert(at, made[at] if kind < 0.9 else anything(rng))
    return made


def test_no_other_precision_is_accepted() -> None:
    """What a file says of the way to keep parameters and state is checked like the words of a caller."""
    p, rule, rng, kinds = np.ones(3, "float16"), xopt.SGD(lr=0.1), random.Random(6), {True: 0, False: 0}
    saved = xopt.Optimizer(p, rule, rounding="kahan").state_dict()
    for _ in range(STRUCTURES):
        links = shaken(saved["rule"], rng)
        try:
            back = xopt.load_state({**saved, "rule": links}, rule, p)
        except xopt.CheckpointError:
            kinds[False] += 1
        else:
            kinds[True] += 1
            rule.apply(back.params, p, back.state)
    assert min(kinds.values()) > 10


def test_no_other_structure_is_accepted(tmp_path: Path) -> None:
    """A file whose checksums are right and whose contents are not: refused, or loaded whole."""
    path, opt = tmp_path / "run", optimizer(1)
    header, meta, data = parts(optimizer(4).save(path))
    before, rng, kinds = bytes_of(opt), random.Random(5), {True: 0, False: 0}
    mine = opt.state_dict(only_state=False)
    for trial in range(STRUCTURES):
        other, own = dict(header), meta
        if trial % 2:
            own = shaken(meta, rng)
        else:
            rest = shaken({n: x for n, x in header.items() if n != "__metadata__"}, rng)
            other = {"__metadata__": None, **rest} if isinstance(rest, dict) else {"__metadata__": None, "x": rest}
        other["__metadata__"] = {"crc32": "0" * 8, "xopt": json.dumps(own)}
        path.write_bytes(signed(other, data))
        accepted = True
        try:
            opt.load(path, strict=trial % 3 > 0)
        except xopt.CheckpointError:
            accepted = False
        kinds[accepted] += 1
        if accepted:
            opt.load_state_dict(mine)
        assert bytes_of(opt) == before
    assert min(kinds.values()) > 20, kinds


def _moved(header: Any, by: int) -> Any:
    """Return a header whose arrays lie further on."""
    move = lambda x: {**x, "data_offsets": [n + by for n in x["data_offsets"]]}
    return {n: x if n == "__metadata__" else move(x) for n, x in header.items()}


def corpus() -> dict[str, Callable[[Any, Any, bytes], bytes]]:
    """Return files made to do harm: functions of header, metadata and data of a sound one."""
    deep = b"[" * 200_000

    def raw(text: bytes, data: bytes) -> bytes:
        return signed(None, data, _safetensors._START + b"00000000" + text)

    def edit(**changes: Any) -> Callable[[Any, Any, bytes], bytes]:
        return lambda header, meta, data: signed({**header, "params/w": {**header["params/w"], **changes}}, data)

    def remeta(**changes: Any) -> Callable[[Any, Any, bytes], bytes]:
        own = lambda meta: {"crc32": "0" * 8, "xopt": json.dumps({**meta, **changes})}
        return lambda header, meta, data: signed({**header, "__metadata__": own(meta)}, data)

    return {
        "empty": lambda header, meta, data: b"",
        "short": lambda header, meta, data: b"\x01\x00\x00",
        "huge header": lambda header, meta, data: (2**62).to_bytes(8, "little") + data,
        "header of a terabyte in a small file": lambda header, meta, data: (10**12).to_bytes(8, "little") + b"{" * 99,
        "header of spaces": lambda header, meta, data: (9_000_000).to_bytes(8, "little") + b" " * 9_000_000,
        "deep JSON": lambda header, meta, data: raw(b'","x":' + deep, data),
        "deep JSON in the metadata": remeta(extra=json.loads("[" * 900 + "]" * 900)),
        "broken off": lambda header, meta, data: raw(b'","xopt":"{}', data),
        "no UTF-8": lambda header, meta, data: raw(b'\xff\xfe"}}', data),
        "number of a million digits": lambda header, meta, data: raw(b'"},"x":' + b"9" * 1_000_000 + b"}", data),
        "not a number": lambda header, meta, data: raw(b'"},"x":NaN}', data),
        "a key twice": lambda header, meta, data: signed(
            None, data, _dumps(header)[:-1] + b',"params/w":' + _dumps(header["params/w"]) + b"}"
        ),
        "a key twice in the metadata": lambda header, meta, data: signed(
            {**header, "__metadata__": {"crc32": "0" * 8, "xopt": _dumps(meta).decode()[:-1] + ',"step":9}'}}, data
        ),
        "a list": lambda header, meta, data: (2).to_bytes(8, "little") + b"[]",
        "pickle": lambda header, meta, data: pickle.dumps({"state": {}, "param_groups": []}),
        "pickle for metadata": lambda header, meta, data: raw(b'","xopt":"' + b"cos\\nsystem\\n." + b'"}}', data),
        "zip, as torch.save writes": lambda header, meta, data: b"PK\x03\x04" + b"\x00" * 500,
        "overlap": edit(data_offsets=[8, 56]),
        "hole": edit(data_offsets=[48, 96]),
        "a hole before all": lambda header, meta, data: signed(_moved(header, 8), b"12345678" + data),
        "two arrays in one place": lambda header, meta, data: signed(
            {**header, "params/w": header["state/0.adam.m/w"]}, data
        ),
        "no pairs for complex numbers": lambda header, meta, data: signed(
            {**header, "params/z": {**header["params/z"], "shape": [4]}}, data
        ),
        "NaN in the metadata": lambda header, meta, data: signed(
            {**header, "__metadata__": {"crc32": "0" * 8, "xopt": json.dumps({**meta, "extra": {"a": math.nan}})}}, data
        ),
        "a tensor of the metadata alone": lambda header, meta, data: remeta(
            tensors={**meta["tensors"], "x": {"dtype": "float32", "crc32": "00000000"}}
        )(header, meta, data),
        "short checksum": lambda header, meta, data: remeta(
            tensors={n: {**x, "crc32": x["crc32"].lstrip("0")[:7]} for n, x in meta["tensors"].items()}
        )(header, meta, data),
        "backwards": edit(data_offsets=[96, 48]),
        "negative": edit(data_offsets=[-48, 0]),
        "far away": edit(data_offsets=[2**62, 2**62 + 48]),
        "enormous": edit(shape=[2**31, 2**31], data_offsets=[0, 2**65]),
        "overflow": edit(shape=[2**32, 2**32]),
        "nothing of much": edit(shape=[0, 2**62], data_offsets=[0, 0]),
        "bools for numbers": edit(shape=[True, 6]),
        "another dtype": edit(dtype="I64"),
        "a class for a dtype": edit(dtype="numpy.core.multiarray._reconstruct"),
        "more dimensions than NumPy has": edit(shape=[1] * 70 + [2, 3]),
        "a class for a rule": remeta(rule=[{"place": "0.adam", "rule": "os.system", "static": {}, "hyper": {}}]),
        "a path for a rule": remeta(rule=["../../etc/passwd"]),
        "no rule": remeta(rule=None),
        "step of a float": remeta(step=1.0),
        "step below zero": remeta(step=-1),
        "step without end": remeta(step=10**40),
        "carry of a list": remeta(carry={"nonfinite.skipped": [1]}),
        "unknown text of a number": remeta(carry={"nonfinite.skipped": "__import__('os')"}),
        "tensors gone": remeta(tensors={}),
        "schema of tomorrow": remeta(schema=99),
        "name that clears the screen": lambda header, meta, data: signed({**header, "\x1b[2J": {}}, data),
    }  # fmt: skip


@pytest.mark.parametrize("name", corpus())
def test_a_file_made_to_do_harm(name: str, tmp_path: Path) -> None:
    path, opt = tmp_path / "run", optimizer(1)
    header, meta, data = parts(optimizer(4).save(path))
    before = bytes_of(opt)
    path.write_bytes(corpus()[name](header, meta, data))
    lenient = {} if name.endswith("for a rule") else {"strict": False, "cast": True}
    for load in (
        lambda: opt.load(path),
        lambda: opt.load(path, **lenient),
        lambda: opt.load(path, checksums=False),
        lambda: xopt.load_state(path, opt.rule, opt.params),
    ):
        with pytest.raises(xopt.CheckpointError) as error:
            load()
        assert str(error.value).isprintable() or "\n" in str(error.value)
        assert "\x1b" not in str(error.value)
        assert len(str(error.value)) < 5000
    assert bytes_of(opt) == before


def test_a_folder_or_a_pipe_is_no_file(tmp_path: Path) -> None:
    opt = optimizer()
    with pytest.raises(FileNotFoundError):
        opt.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="without checkpoints"):
        opt.load(tmp_path)
    with pytest.raises(xopt.CheckpointError, match="not a regular file"):
        opt.load("/dev/null")
