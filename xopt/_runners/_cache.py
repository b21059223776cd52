"""Generated modules on disk, by content: a process compiles only what no process before it has compiled."""

from __future__ import annotations

import atexit
import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

_lock = threading.RLock()
_loaded: dict[str, Any] = {}
_folder: Path | None = None

if hasattr(os, "register_at_fork"):  # a child must not find this lock, or Numba's own, held by a thread it lacks
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def folder() -> Path:
    """Return the folder of generated code: XOPT_CACHE_DIR, or the user's cache, or a new temporary one."""
    global _folder
    if _folder is None:
        for name in (os.environ.get("XOPT_CACHE_DIR"), _user_cache()):
            path = Path(name).expanduser().absolute() if name else None
            if path is not None and _usable(path):
                _folder = path
                return _folder
        _folder = _temporary()
    return _folder


def _temporary() -> Path:
    path = tempfile.mkdtemp(prefix="xopt-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return Path(path)


def _user_cache() -> str:
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or os.path.expanduser("~\\AppData\\Local")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "xopt")


def _usable(path: Path) -> bool:
    """Whether the folder can be written, and by nobody else: what lies in it is run."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = path.stat()
    except OSError:
        return False
    safe = not hasattr(os, "getuid") or (owner.st_uid == os.getuid() and not owner.st_mode & 0o022)
    return safe and os.access(path, os.W_OK)


def kernel(source: str) -> Any:
    """Return the function ``kernel`` of a module with this source, compiled now or by an earlier process.

    What is broken on disk is thrown away and made anew; where that is no use, nothing is kept.
    """
    with _lock:
        if source not in _loaded:
            text = source.replace("Made by xopt", f"Made by xopt (support {_support()})")
            name = f"xopt_{hashlib.sha256(text.encode()).hexdigest()[:24]}"
            try:
                try:
                    module = _load(name, _written(folder(), name, text))
                except Exception:  # a truncated file can fail in any way there is
                    _forget(name)
                    module = _load(name, _written(folder(), name, text))
            except Exception:  # a folder that is gone, a full disk, a place that Numba does not like
                module = _load(name, _written(_temporary(), name, text.replace("cache=True", "cache=False")))
            _loaded[source] = module.kernel
        return _loaded[source]


def _support() -> str:
    """Name what generated code is built on: Numba knows when its own file changed, not when this one did."""
    text = Path(__file__).with_name("_jit.py").read_bytes()
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


def _forget(name: str) -> None:
    """Delete a module and what Numba and Python made of it."""
    from numba import config

    for place in {folder(), Path(config.CACHE_DIR or folder())}:
        for path in place.rglob(f"{name}.*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Numba looks for it there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
