"""Three ranks that are processes: MPI, and gloo of torch. Bits, checkpoints, and an error of one rank."""

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
WRONG = 'grads["b"]: shape (8,), but the parameter has (7,)'


def check(lines: list[str], tmp_path: Path, array: Any = lambda x: x) -> None:
    """Compare what the ranks printed with one process."""
    want = engine_job.job(None, tmp_path, array)
    for rank in range(SIZE):
        own = [line.partition(" ")[2] for line in lines if line.startswith(f"{rank} ")]
        assert own[:-1] == want, (rank, lines)
        assert own[-1] == (f"ValueError: {WRONG}" if rank == 1 else f"RankError: rank 1: ValueError: {WRONG}")


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="no mpi4py")
def test_mpi(tmp_path: Path) -> None:
    beside = Path(sys.executable).with_name("mpiexec")
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    if mpiexec is None:
        pytest.skip("no mpiexec")
    command = [mpiexec, "-n", str(SIZE), sys.executable, "-m", "mpi4py", engine_job.__file__, "mpi", str(tmp_path)]
    out = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=environment())
    assert out.returncode == 0, out.stderr
    check(out.stdout.splitlines(), tmp_path)


def processes(what: str, tmp_path: Path) -> tuple[list[int], list[str], list[tuple[str, str]]]:
    """Run a job of three processes that find each other by a file; return how they ended, and what they printed."""
    command = [sys.executable, engine_job.__file__, what, str(tmp_path)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(SIZE)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for rank in range(SIZE)
    ]
    found = [x.communicate(timeout=240) for x in ranks]
    return [x.returncode for x in ranks], [line for out, _ in found for line in out.splitlines()], found


@pytest.mark.needs("torch")
def test_gloo(tmp_path: Path) -> None:
    ended, lines, found = processes("gloo", tmp_path)
    assert ended == [0] * SIZE, found
    assert [line for line in lines if line.startswith("parts")] == ["parts True"] * SIZE
    check(lines, tmp_path, importlib.import_module("torch").from_numpy)


@pytest.mark.needs("torch")
def test_a_rank_of_gloo_that_is_killed(tmp_path: Path) -> None:
    """The others raise what torch says, before anything moves; nobody waits for ever."""
    ended, lines, found = processes("death", tmp_path)
    assert ended == [0, -9, 0], found
    assert sorted(lines) == ["0 moved nothing", "2 moved nothing"]
