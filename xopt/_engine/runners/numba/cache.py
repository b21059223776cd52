"""Generated modules on disk, by content: a process compiles only what no process before it has compiled."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
import tempfile
import threading
import types
import warnings
from pathlib import Path
from typing import Any

OFF = "off"
"""What XOPT_CACHE_DIR is set to where nothing is to be kept."""

_lock = threading.RLock()
_loaded: dict[str, Any] = {}
_found: list[Path | None] = []

if hasattr(os, "register_at_fork"):  # a child must not find this lock, or Numba's own, held by a thread it lacks
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def folder() -> Path | None:
    """Return the folder of generated code: in XOPT_CACHE_DIR, or in the user's cache; None where nothing is kept."""
    with _lock:
        if not _found:
            given = os.environ.get("XOPT_CACHE_DIR")
            asked, why = _private(given) if given and given != OFF else (None, "")
            _found.append(asked or (None if given == OFF else _private(_user_cache())[0]))
            if why:
                text = f"XOPT_CACHE_DIR: {why}, and what lies there would be run: compiled code is not kept there"
                warnings.warn(text, RuntimeWarning, stacklevel=2)
        return _found[0]


def _user_cache() -> str:
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or os.path.expanduser("~\\AppData\\Local")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "xopt")


def _private(name: str) -> tuple[Path | None, str]:
    """Return a folder inside of another one that is the user's alone, or say who else could put something there."""
    outer = Path(os.path.realpath(os.path.expanduser(name)))
    inner = outer / "kernels"
    try:
        outer.mkdir(mode=0o700, parents=True, exist_ok=True)
        why = doubt(outer)
        if not why:
            inner.mkdir(mode=0o700, exist_ok=True)
            why = _shared(inner, 0o077)
    except OSError:
        return None, ""
    return (inner, "") if not why and os.access(inner, os.W_OK | os.X_OK) else (None, why)


def doubt(path: Path) -> str:
    """Say who else could put something in the place of a folder, by owners and modes from it up to the root.

    Others may write into a folder above if it is sticky: there nobody can rename or delete what is not his own.
    """
    if not hasattr(os, "geteuid"):  # Windows: the user's folders have lists of access that keep others out
        return ""
    for place in (path, *path.parents):
        found = place.lstat()
        if found.st_uid not in (0, os.geteuid()):
            return f"{place} belongs to another user"
        if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
            return f"others may write into {place}"
    return ""


def _shared(path: Path, mode: int) -> str:
    """Say why a folder or a file is not the user's alone; ``mode`` is what others may not have of it."""
    if not hasattr(os, "geteuid"):
        return ""
    found = path.lstat()
    if found.st_uid != os.geteuid() or stat.S_ISLNK(found.st_mode):
        return f"{path} belongs to another user, or is a link"
    return f"others may use {path}" if found.st_mode & mode else ""


def kernel(source: str) -> Any:
    """Return the function ``kernel`` of a module with this source, compiled now or by an earlier process.

    What is broken on disk is thrown away and made anew; where that is no use, nothing is kept.
    """
    with _lock:
        if source not in _loaded:
            text = source.replace("Made by xopt", f"Made by xopt (support {_support()})")
            _loaded[source] = _made(f"xopt_{hashlib.sha256(text.encode()).hexdigest()[:24]}", text).kernel
        return _loaded[source]


def _made(name: str, text: str) -> Any:
    where = folder()
    try:
        if where is not None and _numba_is_private(name):
            try:
                return _run(name, text, _written(where, name, text))
            except Exception:  # a truncated file can fail in any way there is
                _forget(where, name)
                return _run(name, text, _written(where, name, text))
    except Exception:  # a folder that is gone, a full disk, a place that Numba does not like
        pass
    return _run(name, text.replace("cache=True", "cache=False"), Path(f"<{name}>"))


def _numba_is_private(name: str) -> bool:
    """Whether what Numba keeps is the user's alone: beside the module it is, and in NUMBA_CACHE_DIR it may be."""
    from numba import config

    if not config.CACHE_DIR:
        return True
    root = Path(os.path.realpath(config.CACHE_DIR))
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = {place for path in root.rglob(f"{name}.*") for place in (path, path.parent)}
    return not doubt(root) and not any(_shared(place, 0o022) for place in found)


def _support() -> str:
    """Name what generated code is built on: Numba knows when its own file changed, not when this one did."""
    text = Path(__file__).with_name("intrinsics.py").read_bytes()
    return hashlib.sha256(text).hexdigest()[:8]


def _written(where: Path, name: str, text: str) -> Path:
    """Return the file of a module, written if need be; its time is constant, because Numba's cache goes by it."""
    path = where / f"{name}.py"
    data = text.encode()
    if not path.exists() or path.read_bytes() != data:
        handle, temporary = tempfile.mkstemp(dir=where, prefix=name, suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.utime(temporary, (0, 0))
        os.replace(temporary, path)
    return path


def _forget(where: Path, name: str) -> None:
    """Delete a module and what Numba made of it."""
    from numba import config

    for place in {where, Path(config.CACHE_DIR or where)}:
        for path in place.rglob(f"{name}.*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _run(name: str, text: str, path: Path) -> Any:
    """Run the text of a module; what lies at its path is for Numba to see whether its own files are of this module."""
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # Numba looks for it there
    try:
        exec(compile(text, str(path), "exec"), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module
