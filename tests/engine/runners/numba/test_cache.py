"""Compiled kernels on disk: found again, mended, private; and other processes that need them."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import xopt

pytestmark = pytest.mark.needs("numba")
pytest.importorskip("numba")

from xopt._engine.runners.numba import cache as _cache

STEP = """
import numpy as np, xopt
from xopt._engine.runners.numba import cache as _cache
p = np.ones(1000, "float32")
opt = xopt.Optimizer(p, xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam(0.1)), runner="numba")
opt.step(np.ones(1000, "float32"))
kernels = list(_cache._loaded.values())
hits, misses = (sum(sum(getattr(k.stats, f"cache_{n}").values()) for k in kernels) for n in ("hits", "misses"))
print(len(kernels), hits, misses, float(p[0]), _cache.folder())
"""


def step(cache: Path | str, code: str = STEP, *args: str, **env: str) -> list[str]:
    given = {**os.environ, "XOPT_CACHE_DIR": str(cache), **env}
    out = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False, env=given)
    assert out.returncode == 0, out.stderr
    return out.stdout.split()


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    first, second = step(tmp_path), step(tmp_path)
    assert first[:3] == ["3", "0", "3"]  # what looks at arrays, the sums, the step
    assert second[:3] == ["3", "3", "0"]
    assert first[3:] == second[3:]
    assert Path(second[4]) == tmp_path / "kernels"
    sources = [path.read_text() for path in (tmp_path / "kernels").glob("*.py")]
    assert len(sources) == 3
    assert any("store(" in x and "# 1.adam.m" in x and "0.clipbyglobalnorm | 1.adam, float32" in x for x in sources)


def test_what_is_loaded_is_what_was_compiled(tmp_path: Path) -> None:
    """Each process numbers its compiled functions; kernels of several processes must not mix them up when loaded."""
    code = """
import sys
import numpy as np, xopt
from numba import njit
for k in range(2 * int(sys.argv[1])):
    njit(lambda x: x + 1)(1.0)
rng = np.random.default_rng(1)
clip = xopt.ClipByGlobalNorm(1.0)
for rule in (xopt.SGD(1.0), xopt.Adam(), xopt.RMSProp(), xopt.Adagrad())[: int(sys.argv[1]) + 1]:
    rule = xopt.chain(clip, rule)
    for size in (20_000, 65_536, 65_535, 40_000):
        p, g = np.zeros(size), rng.standard_normal(size)
        want, got = (rule.apply(p, g, rule.init(p), runner=runner)[0] for runner in ("eager", "numba"))
        assert np.array_equal(want, got), (rule, size)
"""
    for k in range(4):
        step(tmp_path, code, str(k))
    step(tmp_path, code, "3")


def test_a_broken_cache_is_made_anew(tmp_path: Path) -> None:
    want = step(tmp_path)[3]
    for pattern, keep in [("*.py", 40), ("*.nbi", 30), ("*.nbc", 100), ("*.nbc", 0), ("*.nbi", 0), ("*.py", 0)]:
        broken = [*tmp_path.rglob(pattern)]
        assert len(broken) == 3
        for path in broken:
            path.write_bytes(path.read_bytes()[:keep])
        assert step(tmp_path)[3] == want
        assert step(tmp_path)[1:4] == ["3", "0", want], f"{pattern} was not mended"


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    found = step(
        tmp_path / "file" / "cache", XDG_CACHE_HOME=str(tmp_path / "file"), LOCALAPPDATA=str(tmp_path / "file")
    )
    assert found[1:3] == ["0", "3"]
    assert found[4] == "None"


def test_a_cache_can_be_turned_off(tmp_path: Path) -> None:
    found = step("off", XDG_CACHE_HOME=str(tmp_path), LOCALAPPDATA=str(tmp_path))
    assert (found[1:3], found[4]) == (["0", "3"], "None")
    assert not any(tmp_path.iterdir())


owners = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners on this system")


@owners
def test_a_cache_that_others_can_write_is_not_used(tmp_path: Path) -> None:
    """Not read either: what is in it would be run. An own one takes its place, and the user is told."""
    shared, own = tmp_path / "shared", tmp_path / "own"
    assert step(shared)[1:3] == ["0", "3"]
    shared.chmod(0o777)
    before = {path: path.stat().st_mtime_ns for path in shared.rglob("*")}
    code = f"import warnings\nwarnings.simplefilter('ignore', RuntimeWarning)\n{STEP}"
    found = step(shared, code, XDG_CACHE_HOME=str(own))
    assert (found[1:3], Path(found[4])) == (["0", "3"], own / "xopt" / "kernels")
    assert {path: path.stat().st_mtime_ns for path in shared.rglob("*")} == before
    shared.chmod(0o755)
    assert step(shared)[1:3] == ["3", "0"]


@owners
def test_numba_keeps_nothing_where_others_can_write(tmp_path: Path) -> None:
    cache, numbas = tmp_path / "cache", tmp_path / "numba"
    env = {"NUMBA_CACHE_DIR": str(numbas)}
    assert step(cache, **env)[1:3] == ["0", "3"]
    assert step(cache, **env)[1:3] == ["3", "0"]
    numbas.chmod(0o777)
    assert step(cache, **env)[1:3] == ["0", "3"]
    numbas.chmod(0o755)
    for path in numbas.iterdir():
        path.chmod(0o775)
    assert step(cache, **env)[1:3] == ["0", "3"]


@owners
def test_who_may_write_into_a_folder_or_replace_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outer = tmp_path / "a"
    inner, why = _cache._private(str(outer / "b"))
    assert (inner, why) == (outer / "b" / "kernels", "")
    assert inner is not None
    assert inner.stat().st_mode & 0o077 == 0
    for place, mode, words in [
        (outer / "b", 0o775, f"others may write into {outer / 'b'}"),
        (outer / "b", 0o757, f"others may write into {outer / 'b'}"),
        (outer, 0o777, f"others may write into {outer}"),
        (outer, 0o1777, ""),  # sticky: what is in it is its owners'
        (inner, 0o755, f"others may use {inner}"),
        (outer / "b", 0o755, ""),
    ]:
        usual = place.stat().st_mode & 0o7777
        place.chmod(mode)
        assert _cache._private(str(outer / "b"))[1] == words
        place.chmod(usual)
    (tmp_path / "link").symlink_to(outer)
    assert _cache._private(str(tmp_path / "link" / "b"))[0] == inner  # by the path that has no links
    inner.rename(tmp_path / "elsewhere")
    inner.symlink_to(tmp_path / "elsewhere")
    assert "is a link" in _cache._private(str(outer / "b"))[1]
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    assert "belongs to another user" in _cache._private(str(outer / "b"))[1]


@owners
def test_a_refused_cache_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setattr(_cache, "_found", [])
    monkeypatch.setenv("XOPT_CACHE_DIR", str(tmp_path / "open"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.warns(RuntimeWarning, match="XOPT_CACHE_DIR: others may write into .*: compiled code is not kept"):
        _cache.folder()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _cache.folder() is not None
    assert not any((tmp_path / "open").iterdir())


def test_a_cache_that_goes_away_is_done_without(tmp_path: Path) -> None:
    code = """
import os, shutil
import numpy as np, xopt
from xopt._engine.runners.numba import cache as _cache
p = np.ones(3)
xopt.Optimizer(p, xopt.SGD(lr=0.5), runner="numba").step(np.ones(3))
assert _cache.folder().is_absolute()
os.chdir("/")
shutil.rmtree(_cache.folder())
_cache.folder().parent.joinpath(_cache.folder().name).touch()
xopt.Optimizer(p, xopt.Adam(lr=0.25), runner="numba").step(np.ones(3))
print(p[0].round(3))
"""
    given = {**os.environ, "XOPT_CACHE_DIR": "relative", "PYTHONPATH": str(Path(xopt.__file__).parent.parent)}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=given, cwd=tmp_path
    )
    assert out.stdout == "0.25\n", out.stderr


def test_processes_may_race(tmp_path: Path) -> None:
    given = {**os.environ, "XOPT_CACHE_DIR": str(tmp_path)}
    racers = [
        subprocess.Popen([sys.executable, "-c", STEP], stdout=subprocess.PIPE, text=True, env=given) for _ in range(3)
    ]
    found = {racer.communicate(timeout=300)[0].split()[3] for racer in racers}
    assert len(found) == 1
    assert step(tmp_path)[1:3] == ["3", "0"]


def test_warnings_as_errors_do_not_stop_a_step_half_way() -> None:
    code = """
import numpy as np, xopt
from xopt._engine.runners.numba.runner import Numba
np.seterr(all="raise")
p, g = np.ones(1000, "float32"), np.full(1000, 3e38, "float32")
g[7], g[500], g[501] = np.nan, np.inf, 0
for rule in (xopt.Adam(lr=1e300, eps=0.0), xopt.chain(xopt.ClipByGlobalNorm(1e-300), xopt.RMSProp(eps=0.0))):
    xopt.Optimizer(p, rule, runner=Numba(3, 64)).step(g)
assert np.isnan(p[7])
print("done")
"""
    assert step("", code) == ["done"]
