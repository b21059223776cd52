"""The ranks of a communicator: they agree before anything moves, so that an error of one is raised by all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from xopt.distributed import RankError
from xopt.distributed._communicator import communicator

NDArray = np.ndarray[Any, Any]


class Ranks:
    """What ranks say to each other in words; a ``with`` block of them that one leaves by an exception ends for all."""

    def __init__(self, comm: Any) -> None:
        self.comm = communicator(comm)
        self.rank, self.size = self.comm.rank, self.comm.size
        self._known: BaseException | None = None
        """What was raised last on all ranks."""

    def agree(
        self,
        error: BaseException | None = None,
        digest: int = 0,
        flag: int = 0,
        said: Callable[[], dict[str, Any]] | None = None,
    ) -> int:
        """Wait for all ranks, and return the largest flag; raise on all of them if one has an error.

        Where the digests differ, the error says what: ``said`` returns it as JSON has it. Every exchange begins with
        this call, so that a rank which cannot go on makes it in the place of the next exchange, whichever that is.
        """
        code = 0 if error is None else self.size - self.rank  # the lowest rank has the word
        words = self.comm.largest(np.asarray([code, digest, -digest, flag], np.int64))
        if words[0]:
            first = self.size - int(words[0])
            text = self.text("" if error is None else _words(error), first)
            self._known = RankError(first, text) if error is None else error
            raise self._known
        if words[1] != -words[2]:
            self._refuse({} if said is None else said())
        return int(words[3])

    def know(self, error: BaseException) -> bool:
        """Whether this was raised on all ranks."""
        return error is self._known

    def begin(self) -> None:
        """Begin a call: nothing was raised in it yet, not even what was raised in the one before."""
        self._known = None

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self.tell(error)

    def tell(self, error: BaseException) -> None:
        """Make the other ranks raise, too, unless they have; this one is about to."""
        if self.know(error):
            return
        try:
            self.agree(error)
        except BaseException as found:
            if found is not error:
                raise

    def text(self, x: str, root: int) -> str:
        """Return the text that a rank has."""
        data = np.frombuffer(x.encode(errors="backslashreplace"), np.uint8)
        length = np.asarray([len(data)], np.int64)
        self.comm.broadcast(length.view(np.uint8), root)
        made = data.copy() if self.rank == root else np.empty(int(length[0]), np.uint8)
        if len(made):
            self.comm.broadcast(made, root)
        return made.tobytes().decode(errors="backslashreplace")

    def same(self, said: dict[str, Any]) -> None:
        """Raise on all ranks if they do not say the same, as JSON has it."""
        self.agree(None, digest_of(json.dumps(said)), said=lambda: said)

    def _refuse(self, mine: dict[str, Any]) -> None:
        first = json.loads(self.text(json.dumps(mine), 0))
        why = _difference(first, json.loads(json.dumps(mine)))
        error = None if why is None else ValueError(f"{why[0]}: {why[2]} on rank {self.rank}, but {why[1]} on rank 0")
        self.agree(error)
        self._known = ValueError("the ranks were given something else each")  # that none of them can describe
        raise self._known

    def every(self, numbers: NDArray) -> NDArray:
        """Return the numbers that each rank has, one row a rank; all have as many."""
        found = np.empty((self.size, *numbers.shape), numbers.dtype)
        if numbers.size:
            send, receive = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (numbers, found))
            self.comm.allgather(send, receive)
        return found

    def send(self, x: NDArray, to: int) -> None:
        """Send bytes to a rank that receives them."""
        self.comm.exchange([[x] if rank == to else [] for rank in range(self.size)], [[]] * self.size)

    def receive(self, x: NDArray, source: int) -> None:
        """Receive bytes from a rank that sends them."""
        self.comm.exchange([[]] * self.size, [[x] if rank == source else [] for rank in range(self.size)])


def _words(error: BaseException) -> str:
    """Say what an error is, also one that cannot say it."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def digest_of(text: str) -> int:
    """Return a number that hardly any two texts have in common."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")


def _difference(first: Any, mine: Any, where: str = "") -> tuple[str, str, str] | None:
    """Return the first place where two things of JSON differ, and what is there."""
    if isinstance(first, dict) and isinstance(mine, dict):
        for name in first:
            found = _difference(first[name], mine.get(name), f"{where}, {name}" if where else name)
            if found is not None:
                return found
        extra = [name for name in mine if name not in first]
        return (extra[0], "nothing", repr(mine[extra[0]])) if extra else None
    return None if first == mine else (where, _shown(first), _shown(mine))


def _shown(x: Any) -> str:
    return "nothing" if x is None else x if isinstance(x, str) else repr(x)
