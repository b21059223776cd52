"""Blocks of ``with`` that put something back, whatever is raised inside."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from typing import Any, Generic, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class Block(Generic[T]):
    """A generator that yields once: what follows, in its ``finally``, is done at the end of the block.

    Other than ``contextlib.contextmanager`` it does not write to the exception of a user, which may refuse that.
    """

    def __init__(self, steps: Generator[T, None, None]) -> None:
        self._steps = steps

    def __enter__(self) -> T:
        return next(self._steps)

    def __exit__(self, *error: Any) -> None:
        self._steps.close()


def block(function: Callable[P, Generator[T, None, None]]) -> Callable[P, Block[T]]:
    """Make a function that returns a block of a generator function."""

    @functools.wraps(function)
    def made(*args: P.args, **more: P.kwargs) -> Block[T]:
        return Block(function(*args, **more))

    return made
