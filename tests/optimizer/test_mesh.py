"""JAX on a mesh of eight devices: where state lies, how often a step is compiled, what it takes on each device."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.needs("jax")
def test_a_mesh(tmp_path: Path) -> None:
    pytest.importorskip("jax")
    job = Path(__file__).with_name("mesh_job.py")
    done = subprocess.run([sys.executable, str(job), str(tmp_path)], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for name, x in found["rules"].items():
        assert not x["narrow"], f"{name}: state on fewer devices than the parameters"
        assert not x["moved"], f"{name}: a step puts arrays elsewhere"
        assert not x["loaded"], f"{name}: what is loaded lies elsewhere"
        # XLA splits rows and matrices of axes as it likes, if it is not told: then the second step is compiled, once
        assert x["compiled"] == [2 if name in ("adafactor", "shampoo") else 1, 1], name
        assert x["far"] < 5e-7, f"{name}: sums over devices are in another order, which is a few digits of float32"
    zero = found["zero 1"]
    assert max(zero["shares"]) <= 1.02 * zero["total"] / 8
    assert zero["params"] == [zero["size"]] * 8
    assert zero["compiled"] == 1
    assert zero["far"] < 1e-6
