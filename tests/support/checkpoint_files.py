"""Checkpoints taken apart, and put together with a right checksum."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from xopt.checkpoint import _safetensors


def signed(header: Any, data: bytes, text: bytes | None = None) -> bytes:
    """Return a file with a header of one's own, whose checksum is right."""
    text = _dumps(header) if text is None else text
    start = _safetensors._START
    assert text.startswith(start)
    blank = len(text).to_bytes(8, "little") + start + b"0" * 8 + text[len(start) + 8 :]
    return _safetensors._signed(blank, b"%08x" % zlib.crc32(blank)) + data


def _dumps(x: Any) -> bytes:
    return json.dumps(x, separators=(",", ":")).encode()


def parts(path: Path) -> tuple[Any, Any, bytes]:
    """Return the header of a file, its metadata, and the rest."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["xopt"]), data[8 + length :]
