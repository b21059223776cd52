"""A file that takes the place of another one when it is whole, and on the disk."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_STALE = 3600  # seconds


@contextmanager
def replacing(path: str | os.PathLike[str], fsync: bool) -> Iterator[int]:
    """Open a file beside another one, in whose place it is put if the block ends well."""
    target = Path(os.path.realpath(path))  # a link stays one
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such directory", str(target.parent))
    if target.exists() and not target.is_file():
        raise ValueError(f"{target}: not a regular file")
    with suppress(OSError):
        _sweep(target.parent)
    temporary = target.with_name(f".xopt-{os.urandom(4).hex()}.tmp")
    mode = 0o666 & (target.stat().st_mode if target.exists() else 0o666)  # never more than the old one's
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
        try:
            yield fd
            with suppress(FileNotFoundError):
                _like(fd, target.stat())
            if fsync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(target), None
        raise
    if fsync:
        _sync_directory(target.parent)


def reserve(fd: int, size: int) -> None:
    """Have the system find room for a file, where it can: a full disk says so now, and writing is faster."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


def _like(fd: int, old: os.stat_result) -> None:
    """Give a new file the owner and the permissions of the old one, as far as one may."""
    if not hasattr(os, "fchmod"):
        return
    new = os.fstat(fd)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        with suppress(OSError):
            os.fchown(fd, old.st_uid, old.st_gid)
    os.fchmod(fd, stat.S_IMODE(old.st_mode))


def _sync_directory(directory: Path) -> None:
    """Have the new name of a file on the disk, where a system knows how."""
    if os.name != "posix":
        return
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems on which a directory cannot be synced
            raise
    finally:
        os.close(fd)


def _sweep(directory: Path) -> None:
    """Delete what killed processes have left: nobody has written to it for an hour."""
    for left in directory.glob(f".xopt-{'[0-9a-f]' * 8}.tmp"):
        if time.time() - left.stat().st_mtime > _STALE:
            left.unlink()
