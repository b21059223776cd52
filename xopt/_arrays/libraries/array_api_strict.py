"""array-api-strict: the standard and nothing else, for tests."""

from __future__ import annotations

from xopt._arrays.library import Array, Library, NDArray, exported


class Own(Library):
    packages = ("array-api-strict",)
    writes = True

    def phantom(self, x: Array) -> NDArray | None:
        return exported(x)
