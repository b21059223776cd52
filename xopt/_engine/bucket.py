"""Which leaves of a tree are computed together."""

from __future__ import annotations

from typing import Any

from xopt._arrays import DType
from xopt._engine.program.contract import ComponentSpec
from xopt._engine.program.plan import Plan


class Bucket:
    """Leaves of one dtype on one device that go through the same formulas."""

    def __init__(self, plan: Plan, dtype: DType, split: bool, runner: Any) -> None:
        self.plan, self.dtype, self.split, self.runner = plan, dtype, split, runner
        self.leaves: list[int] = []
        self.chains: list[int] = []
        """Chains whose hyperparameters some leaf has."""
        self.chain_of_leaf: list[int] = []
        """For each leaf, which of these is its own."""
        self.pick: list[int] | None = None
        """The leaves, unless they are all of the tree."""

    def add(self, k: int, chain: int) -> None:
        """Take in a leaf."""
        if chain not in self.chains:
            self.chains.append(chain)
        self.leaves.append(k)
        self.chain_of_leaf.append(self.chains.index(chain))

    @property
    def specs(self) -> tuple[ComponentSpec, ...]:
        """The components, but for their hyperparameters."""
        return self.plan.specs
