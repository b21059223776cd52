"""What can be done with the arrays of each library: the table of docs/libraries.md is what is found here."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.ranks import World

import xopt
from xopt import _arrays

PAGE = Path(__file__).parents[2] / "docs" / "libraries.md"
MODULES = {
    "numpy": "numpy", "torch": "torch", "jax": "jax.numpy", "dask": "dask.array", "strict": "array_api_strict",
    "mlx": "mlx.core", "dpnp": "dpnp", "cubed": "cubed", "ndonnx": "ndonnx",
}  # fmt: skip
"""What makes arrays, by the name of the test session."""


def tried(call: Callable[[], Any]) -> str:
    """Return whether something can be done; what is refused must say why in our words, or name what is missing."""
    try:
        return "yes" if call() is not False else "no"
    except (TypeError, ValueError, AttributeError, NotImplementedError):
        return "no"


class Library:
    """The arrays of a library, and what can be done with them."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.module = importlib.import_module(MODULES[name])

    def make(self, *numbers: float, dtype: str = "float32") -> Any:
        own = importlib.import_module("ml_dtypes") if (self.name, dtype) == ("numpy", "bfloat16") else self.module
        kind = getattr(own, dtype)  # or it has none
        if self.name == "torch":
            return self.module.tensor(numbers, dtype=kind)
        if self.name in ("mlx", "ndonnx", "cubed"):
            return self.module.asarray(np.asarray(numbers, dtype if dtype != "bfloat16" else "float32"), dtype=kind)
        if self.name == "dask":
            return self.module.from_array(np.asarray(numbers, dtype))
        return self.module.asarray(numbers, dtype=kind)

    def row(self) -> dict[str, str]:
        return {column: tried(getattr(self, column.replace(" ", "_"))) for column in COLUMNS}

    def step(self, dtype: str) -> None:
        p = self.make(1.0, 2.0, dtype=dtype)
        rule = xopt.Adam()
        new, state = rule.apply(p, p, rule.init(p))
        assert new.dtype == p.dtype
        assert state.slots["0.adam.m"].shape == p.shape

    def lazy(self) -> bool:
        return _arrays.library(self.make(1.0)).lazy

    def recorded(self) -> bool:
        return _arrays.library(self.make(1.0)).records

    def float64(self) -> None:
        self.step("float64")

    def complex(self) -> None:
        self.step("complex64")

    def bfloat16(self) -> None:
        self.step("bfloat16")

    def in_place(self) -> bool:
        p = self.make(1.0, 2.0)
        opt = xopt.Optimizer(p, xopt.SGD(lr=1.0))
        opt.step(self.make(1.0, 1.0))
        return opt.params is p

    def matrices(self) -> None:
        p = self.make(1.0, 2.0, 3.0, 4.0)
        p = _arrays.namespace(p).reshape(p, (2, 2))
        rule = xopt.Shampoo()
        rule.apply(p, p, rule.init(p))

    def save(self) -> None:
        p, rule = self.make(1.0, 2.0), xopt.Adam()
        path = xopt.save_state(self.path / "state.safetensors", rule, p, rule.init(p))
        assert _arrays.library(xopt.load_state(path, rule, p).params) is _arrays.library(p)

    def minimize(self) -> bool:
        xp = _arrays.namespace(self.make(1.0))
        return bool(xopt.minimize(lambda x: (xp.sum(x * x), 2 * x), self.make(1.0, 2.0), jac=True).success)

    def gradients(self) -> bool:
        xp = _arrays.namespace(self.make(1.0))
        return bool(xopt.minimize(lambda x: xp.sum(x * x), self.make(1.0, 2.0), jac=False).success)

    def least_squares(self) -> bool:
        return bool(xopt.least_squares(lambda x: x - 1, self.make(1.5, 2.0)).success)

    def ranks(self) -> None:
        """Shard the state over ranks."""

        def job(rank: Any) -> None:
            opt = xopt.Optimizer([self.make(1.0, 2.0)], xopt.Adam(), comm=rank)
            opt.step([self.make(1.0, 1.0)])

        [found] = World(1).run(job)
        if found is not None:
            raise found


COLUMNS = (
    "in place", "lazy", "recorded", "float64", "complex", "bfloat16", "matrices", "save", "minimize", "gradients",
    "least squares", "ranks",
)  # fmt: skip


def table() -> dict[str, dict[str, str]]:
    """Return the rows of the page, by session."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    head, _, *body = rows
    return {cells[0].strip("`"): dict(zip(head[1:], cells[1:], strict=True)) for cells in body}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "numpy" else [pytest.mark.needs(n)]) for n in MODULES], ids=str
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_table_is_what_is_found(name: str, tmp_path: Path) -> None:
    pytest.importorskip(MODULES[name])
    found = Library(name, tmp_path).row()
    line = f"| `{name}` | " + " | ".join(found.values()) + " |"
    assert table().get(name) == found, f"docs/libraries.md must have\n{line}"


def test_the_table_is_whole() -> None:
    found = table()
    assert {*found} == {*MODULES}
    assert all(tuple(row) == COLUMNS for row in found.values())
    assert {x for row in found.values() for x in row.values()} == {"yes", "no"}
    page = re.sub(r"\s+", " ", PAGE.read_text(encoding="utf-8"))
    assert all(f"**{column}**" in page for column in COLUMNS)
