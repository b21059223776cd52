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


@pytest.mark.needs("torch")
def test_gloo(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, engine_job.__file__, "gloo", str(tmp_path), str(rank), str(SIZE)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for rank in range(SIZE)
    ]
    found = [x.communicate(timeout=240) for x in ranks]
    assert [x.returncode for x in ranks] == [0] * SIZE, found
    check(
        [line for out, _ in found for line in out.splitlines()], tmp_path, importlib.import_module("torch").from_numpy
    )
