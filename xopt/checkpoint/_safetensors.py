"""Files of named arrays in the safetensors format: written whole or not at all, and read with suspicion.

The format is eight bytes with the length of a header, the header in JSON, and the bytes of the arrays end to end. The
library of that name can neither stream an array at a time, nor sync a file to the disk, nor tell duplicate keys, so it
is the tests that use it. A complex array is stored as pairs of reals, which every reader of the format can open.
"""

from __future__ import annotations

import json
import math
import os
import stat
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from xopt._arrays.dtypes import TABLE, part
from xopt._public import public
from xopt.checkpoint._atomic import replacing, reserve

_LONGEST = 100_000_000  # bytes of a header, as in the safetensors library
_START = b'{"__metadata__":{"crc32":"'
_ALIGN, _CHUNK = 64, 1 << 20
_SHOWN = 50  # problems in a message


@public
class CheckpointError(ValueError):
    """A checkpoint that does not fit, or is no checkpoint: everything that is wrong with it, found before any write.

    Attributes
    ----------
    problems
        One text for each thing that is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> saved = xopt.Optimizer({"w": np.ones(3)}, xopt.SGD(momentum=0.9)).state_dict()
    >>> opt = xopt.Optimizer({"w": np.ones(2), "b": np.ones(1)}, xopt.SGD(momentum=0.9))
    >>> try:
    ...     opt.load_state_dict(saved)
    ... except xopt.CheckpointError as error:
    ...     print(error)
    state dict: 2 problems
      state/0.sgd.m/b: missing
      state/0.sgd.m/w: shape (3,), but here it is (2,)
    """

    def __init__(self, where: str, problems: Iterable[str]) -> None:
        self.where, self.problems = where, tuple(map(_shown, problems))
        many, shown = len(self.problems), list(self.problems[:_SHOWN])
        text = f"{where}: {self.problems[0]}" if many == 1 else f"{where}: {many} problems"
        shown += [f"and {many - _SHOWN} more, in .problems"] if many > _SHOWN else []
        super().__init__("\n  ".join([text, *(shown if many > 1 else ())]))

    def __reduce__(self) -> tuple[Any, ...]:
        return CheckpointError, (self.where, self.problems)


class Tensor(NamedTuple):
    """An array to be written: what it is, and how to get it."""

    dtype: str
    shape: tuple[int, ...]
    get: Callable[[], np.ndarray[Any, Any]]
    """Returns it as NumPy has it, in C order; bfloat16 as 16-bit integers."""

    @property
    def nbytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * TABLE[self.dtype].itemsize


def memory(x: np.ndarray[Any, Any]) -> memoryview:
    """Return the memory of an array in C order as bytes."""
    return x.reshape(-1).view(np.uint8).data


def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], meta: dict[str, Any], fsync: bool) -> None:
    """Write a file that replaces the one of this name, with its permissions, when it is whole.

    Arrays are asked for one by one. A reader, or a crash at any moment, finds the old file or the new one.
    """
    if sys.byteorder != "little":
        raise NotImplementedError("checkpoints hold little-endian numbers; this machine is big-endian")
    names = sorted(tensors, key=lambda n: (-TABLE[part(tensors[n].dtype)].itemsize, n))
    with replacing(path, fsync) as fd:
        length = len(_header(names, tensors, meta, {}))
        reserve(fd, length + sum(x.nbytes for x in tensors.values()))
        os.lseek(fd, length, os.SEEK_SET)
        crcs = _write_arrays(fd, [(n, tensors[n]) for n in names])
        os.lseek(fd, 0, os.SEEK_SET)
        _write(fd, _header(names, tensors, meta, crcs))


def _header(names: list[str], tensors: Mapping[str, Tensor], meta: dict[str, Any], crcs: dict[str, int]) -> bytes:
    """Return the first bytes of the file; their number does not depend on the checksums."""
    own = {n: {"dtype": tensors[n].dtype, "crc32": f"{crcs.get(n, 0):08x}"} for n in names}
    text = _dumps({**meta, "tensors": own})
    header: dict[str, Any] = {"__metadata__": {"crc32": "0" * 8, "xopt": text}}
    end = 0
    for n in names:
        dtype, shape = tensors[n].dtype, [*tensors[n].shape]
        begin, end = end, end + tensors[n].nbytes
        header[n] = {
            "dtype": TABLE[dtype].tag,
            "shape": [*shape, 2] if TABLE[dtype].complex else shape,
            "data_offsets": [begin, end],
        }
    data = _dumps(header).encode()
    data += b" " * (-(len(data) + 8) % _ALIGN)
    if len(data) > _LONGEST:
        raise ValueError(f"a header of {len(data):,} bytes, but the format has at most {_LONGEST:,}")
    data = len(data).to_bytes(8, "little") + data
    return bytes(_signed(data, b"%08x" % zlib.crc32(data)))


def _signed(data: bytes | bytearray, crc: bytes) -> bytes | bytearray:
    """Put the checksum of a header into its place."""
    at = 8 + len(_START)
    return data[:at] + crc + data[at + 8 :]


def _dumps(x: Any) -> str:
    return json.dumps(x, separators=(",", ":"), allow_nan=False)


def _write(fd: int, data: Any) -> None:
    """Write all of it; the system may take less at a time."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _write_arrays(fd: int, tensors: list[tuple[str, Tensor]]) -> dict[str, int]:
    """Write arrays end to end, small ones together, and return their checksums; those of large ones beside writing."""
    crcs, small = dict[str, int](), bytearray()
    for name, tensor in tensors:
        data = memory(tensor.get())
        if data.nbytes != tensor.nbytes:
            raise ValueError(f"{name}: {data.nbytes} bytes, but it should have {tensor.nbytes}")
        if len(data) < _CHUNK:
            crcs[name] = zlib.crc32(data)
            small += data
        if len(small) >= _CHUNK or len(data) >= _CHUNK:
            _write(fd, small)
            small = bytearray()
        if len(data) >= _CHUNK:
            crcs[name] = _write_summed(fd, data)
    _write(fd, small)
    return crcs


def _write_summed(fd: int, data: memoryview) -> int:
    """Write, and compute the checksum in another thread meanwhile, if one can be started."""
    found: list[int] = []
    helper = threading.Thread(target=lambda: found.append(zlib.crc32(data)), daemon=True)
    try:
        helper.start()
    except RuntimeError:  # no more threads, or the interpreter is shutting down
        _write(fd, data)
        return zlib.crc32(data)
    try:
        _write(fd, data)
    finally:
        helper.join()
    return found[0]


class Stored(NamedTuple):
    """An array in a file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    crc: int


class File:
    """A file that was opened to be read: its header is known to be right, its arrays are read when asked for.

    Parameters
    ----------
    path
        What to open.
    checksums
        Whether to compare the header with its checksum, and each array that is read.

    Raises
    ------
    CheckpointError
        With all that is wrong with the header.
    OSError
        Where the file cannot be opened or read.
    """

    def __init__(self, path: str | os.PathLike[str], checksums: bool = True) -> None:
        self.where, self._checksums = os.fspath(path), checksums
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)  # a pipe is not waited for
        self._file = os.fdopen(os.open(path, flags), "rb", buffering=0)
        try:
            found = os.fstat(self._file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise self._error("not a regular file")
            self._read_header(found.st_size)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _error(self, *problems: str) -> CheckpointError:
        return CheckpointError(self.where, problems)

    def _read(self, begin: int, out: Any) -> None:
        view = memoryview(out)
        self._file.seek(begin)
        while view:
            many = self._file.readinto(view)
            if not many:
                raise self._error(f"it ends {len(view):,} bytes before the end of what was to be read")
            view = view[many:]

    def _read_header(self, size: int) -> None:
        if size < 8:
            raise self._error(f"{size} bytes, but a checkpoint has at least 8")
        start = bytearray(8)
        self._read(0, start)
        length = int.from_bytes(start, "little")
        if length > min(size - 8, _LONGEST):
            raise self._error(f"a header of {length:,} bytes in a file of {size:,}")
        text = bytearray(length)
        self._read(8, text)
        self._base = 8 + length
        crc = bytes(text[len(_START) : len(_START) + 8])
        signed = text.startswith(_START) and b"%08x" % zlib.crc32(_signed(start + text, b"0" * 8)) == crc
        if self._checksums and not signed:
            raise self._error("the checksum of the header is wrong, or xopt did not write this file")
        twice: list[str] = []
        header = self._parse(bytes(text), "the header", twice)
        problems = [f"{n}: twice in the header" for n in twice]
        own = header.pop("__metadata__", None)
        if not isinstance(own, dict) or not isinstance(own.get("xopt"), str):
            raise self._error(*problems, "no metadata of xopt in the header")
        self.meta = self._parse(own["xopt"].encode(errors="surrogatepass"), "the metadata", twice)
        known = self.meta.pop("tensors", None)
        if not isinstance(known, dict) or twice:
            raise self._error(*problems, "the metadata has no list of tensors, or names something twice")
        self.tensors = {}
        for n, entry in header.items():
            try:
                self.tensors[n] = _stored(entry, known.get(n))
            except (ValueError, TypeError, KeyError) as error:
                problems.append(f"{n}: {error}")
        problems += [f"{n}: in the metadata, not in the header" for n in known if n not in header]
        problems += self._gaps(size)
        if problems:
            raise self._error(*problems)

    def _parse(self, text: bytes, what: str, twice: list[str]) -> dict[str, Any]:
        def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
            made = dict(found)
            if len(made) < len(found):
                seen = set[str]()
                twice.extend(n for n, _ in found if n in seen or seen.add(n))  # type: ignore[func-returns-value]
            return made

        def refuse(name: str) -> Any:
            raise ValueError(f"{name} is no number of JSON")

        try:
            found = json.loads(text, object_pairs_hook=pairs, parse_constant=refuse)
        except (ValueError, RecursionError) as error:
            raise self._error(f"{what} is no JSON: {str(error)[:200]}") from None
        if not isinstance(found, dict):
            raise self._error(f"{what} is a {type(found).__name__}, but it must be an object")
        return found

    def _gaps(self, size: int) -> list[str]:
        """Say where the arrays overlap, leave holes, or end elsewhere than the file."""
        found, end = [], 0
        for n, x in sorted(self.tensors.items(), key=lambda x: (x[1].begin, x[1].end)):
            if x.begin != end:
                found.append(f"{n}: begins at byte {x.begin:,}, but the array before it ends at {end:,}")
            end = max(end, x.end)
        if self._base + end != size:
            found.append(f"{size:,} bytes, but header and arrays have {self._base + end:,}")
        return found

    def verify(self) -> None:
        """Compare every array with its checksum, if that is wanted."""
        if not self._checksums:
            return
        buffer, wrong = bytearray(8 * _CHUNK), []
        for n, x in self.tensors.items():
            crc = 0
            for begin in range(x.begin, x.end, len(buffer)):
                part = memoryview(buffer)[: min(len(buffer), x.end - begin)]
                self._read(self._base + begin, part)
                crc = zlib.crc32(part, crc)
            if crc != x.crc:
                wrong.append(f"{n}: the checksum is wrong")
        if wrong:
            raise self._error(*wrong)
        self._checksums = False  # all is known to be right

    def into(self, name: str, out: np.ndarray[Any, Any]) -> None:
        """Read an array into memory of its dtype in C order."""
        stored, data = self.tensors[name], memory(out)
        self._read(self._base + stored.begin, data)
        if self._checksums and zlib.crc32(data) != stored.crc:
            raise self._error(f"{name}: the checksum is wrong")

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """Read an array, bfloat16 as 16-bit integers."""
        stored = self.tensors[name]
        out = np.empty(stored.shape, TABLE[stored.dtype].bits)
        self.into(name, out)
        return out


def _stored(entry: Any, own: Any) -> Stored:
    """Check what a header says of an array."""
    if not isinstance(entry, dict) or {*entry} != {"dtype", "shape", "data_offsets"}:
        raise ValueError("it must have dtype, shape and data_offsets")
    if not isinstance(own, dict) or not _hex(own.get("crc32")) or own.get("dtype") not in [*TABLE]:
        raise ValueError("the metadata has no dtype that is known here, or no checksum of it")
    dtype, shape, offsets = own["dtype"], entry["shape"], entry["data_offsets"]
    if not (_counts(shape) and _counts(offsets) and len(offsets) == 2 and len(shape) <= 64):
        raise ValueError("shape and data_offsets must be lists of numbers from 0 on")
    pairs = TABLE[dtype].complex
    if entry["dtype"] != TABLE[dtype].tag or (pairs and shape[-1:] != [2]):
        raise ValueError(f"dtype and shape are not those of {dtype}")
    [begin, end] = offsets
    stored = Stored(dtype, tuple(shape[:-1] if pairs else shape), begin, end, int(own["crc32"], 16))
    if end - begin != math.prod(stored.shape) * TABLE[dtype].itemsize:
        raise ValueError(f"{end - begin:,} bytes are not those of shape {stored.shape} and {dtype}")
    return stored


def _counts(x: Any) -> bool:
    return isinstance(x, list) and all(type(n) is int and 0 <= n < 2**63 for n in x)


def _hex(x: Any) -> bool:
    return isinstance(x, str) and len(x) == 8 and {*x} <= {*"0123456789abcdef"}


def _shown(problem: str) -> str:
    """Return what may have come from a file, harmless to print."""
    text = problem if problem.isprintable() else ascii(problem)
    return text if len(text) <= 300 else f"{text[:300]}…"
