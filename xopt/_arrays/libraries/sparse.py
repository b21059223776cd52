"""PyData's sparse arrays, which are no parameters: a step would fill them."""

from __future__ import annotations

from xopt._arrays.library import Array, Library


class Own(Library):
    packages = ("sparse",)

    def reason(self, x: Array) -> str:
        return "a sparse array; pass x.todense(), and a gradient that has few rows as xopt.SparseRows"
