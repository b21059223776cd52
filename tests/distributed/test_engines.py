"""Ranks that are processes: MPI, and gloo of torch. Bits, checkpoints, and an error of one rank.

Three of them and some rules; `nox -s ranks` takes other numbers and all rules.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distributed import engine_job

SIZE = 3
SIZES = pytest.mark.parametrize("size", [int(n) for n in os.environ.get("XOPT_TEST_RANKS", f"{SIZE}").split(",")])
WRONG = 'grads["b"]: shape (8,), but the parameter has (7,)'


def check(size: int, lines: list[str], tmp_path: Path, array: Any = lambda x: x) -> None:
    """Compare what the ranks printed with one process."""
    want = engine_job.job(None, tmp_path, array)
    for rank in range(size):
        own = [line.partition(" ")[2] for line in lines if line.startswith(f"{rank} ")]
        assert own[: len(want)] == want, (rank, lines)
        if size > 1:
            [said] = own[len(want) :]
            assert said == (f"ValueError: {WRONG}" if rank == 1 else f"RankError: rank 1: ValueError: {WRONG}")


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="no mpi4py")
@SIZES
def test_mpi(size: int, tmp_path: Path) -> None:
    beside = Path(sys.executable).with_name("mpiexec")
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    if mpiexec is None:
        pytest.skip("no mpiexec")
    command = [mpiexec, "-n", str(size), sys.executable, "-m", "mpi4py", engine_job.__file__, "mpi", str(tmp_path)]
    out = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=environment())
    assert out.returncode == 0, out.stderr
    check(size, out.stdout.splitlines(), tmp_path)


def processes(what: str, size: int, tmp_path: Path) -> tuple[list[int], list[str], list[tuple[str, str]]]:
    """Run a job of processes that find each other by a file; return how they ended, and what they printed."""
    command = [sys.executable, engine_job.__file__, what, str(tmp_path)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(size)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for rank in range(size)
    ]
    found = [x.communicate(timeout=240) for x in ranks]
    return [x.returncode for x in ranks], [line for out, _ in found for line in out.splitlines()], found


@pytest.mark.needs("torch")
@SIZES
def test_gloo(size: int, tmp_path: Path) -> None:
    ended, lines, found = processes("gloo", size, tmp_path)
    assert ended == [0] * size, found
    assert [line for line in lines if line.startswith("parts")] == ["parts True"] * size
    check(size, lines, tmp_path, importlib.import_module("torch").from_numpy)


@pytest.mark.needs("torch")
def test_a_rank_of_gloo_that_is_killed(tmp_path: Path) -> None:
    """The others raise what torch says, before anything moves; nobody waits for ever."""
    ended, lines, found = processes("death", SIZE, tmp_path)
    assert ended == [0, -9, 0], found
    assert sorted(lines) == ["0 moved nothing", "2 moved nothing"]
