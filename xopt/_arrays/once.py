"""What is made once in a process."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def once(function: Callable[..., T]) -> Callable[..., T]:
    """Keep what a function returns, of which every thread is given the same.

    With ``functools.cache`` threads that call at the same time are each given their own, and what is compared by
    identity differs. There is no lock, which a fork could leave held: the function may run twice, and the first counts.
    """
    made: dict[tuple[object, ...], T] = {}

    @functools.wraps(function)
    def call(*args: object) -> T:
        return made[args] if args in made else made.setdefault(args, function(*args))

    return call
