"""Gradients by rows: a table and something beside it, and the same steps with every row a parameter of its own."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from conftest import Lib

import xopt

N, ROW, STEPS = 9, (3,), 4


class Problem:
    """A table and something beside it, and gradients of a few of its rows, some of them twice."""

    def __init__(self, dtype: str = "float32", row: tuple[int, ...] = ROW, many: int = 5) -> None:
        self._rng, self._dtype = np.random.default_rng(7), dtype
        self.params = {"table": self.draw(N, *row), "bias": self.draw(4)}
        self.steps = [(self._rng.integers(1, N - 1, many), self.draw(many, *row), self.draw(4)) for _ in range(STEPS)]

    def draw(self, *shape: int) -> Any:
        x = self._rng.standard_normal(shape)
        x = x + 1j * self._rng.standard_normal(shape) if "complex" in self._dtype else x
        return x.astype(ml_dtypes.bfloat16 if self._dtype == "bfloat16" else self._dtype)

    def grads(self, lib: Lib, lazy: bool, bias: bool = True) -> list[dict[str, Any]]:
        """Return the gradients of each step, by rows."""
        return [
            {
                "table": xopt.SparseRows(integers(lib, i), lib.array(v), lazy=lazy),
                "bias": lib.array(b) if bias else None,
            }
            for i, v, b in self.steps
        ]

    def scattered(self, t: int) -> Any:
        """Return the dense gradient of the table."""
        i, v, _ = self.steps[t]
        table = self.params["table"]
        found = np.zeros(table.shape, np.promote_types(table.dtype, "float32"))
        np.add.at(found, i, v)
        return found.astype(table.dtype)


NUMPY = Lib("numpy", "plain")


def integers(lib: Lib, x: Any, dtype: str = "int32") -> Any:
    return (Lib("torch", "plain") if lib.name == "torch" else lib).array(np.asarray(x, dtype))


def row_by_row(rule: Any, problem: Problem, **options: Any) -> Any:
    """Take the same steps with every row a parameter of its own, whose gradient is None where it does not occur."""
    params = {"table": [np.array(x) for x in problem.params["table"]], "bias": problem.params["bias"].copy()}
    opt = xopt.Optimizer(params, rule, **options)
    for t, (i, _, b) in enumerate(problem.steps):
        g = problem.scattered(t)
        opt.step({"table": [g[k] if k in i else None for k in range(N)], "bias": b})
    return np.stack(params["table"]), params["bias"]
