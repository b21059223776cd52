"""The next step of an optimizer whose arrays stay where they are: nothing is looked up but what may be another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xopt._engine.exclusive import Writing
from xopt._engine.metrics import Seen
from xopt._engine.program.contract import BucketStep, ComponentSpec
from xopt._engine.program.hooks import host_scalars


class Again:
    """A step with the same arrays, all of them, and the same components as the one before.

    Of its scalars only hyperparameters and the number of the step may be others, and these are one for all leaves.

    Parameters
    ----------
    works, seen
        The buckets of a step that is ready, one at least, and their scalars, which are nobody else's from now on.
    jobs
        For each what its runner returned, see `Stepper.again`.
    picks
        For each which leaves these are; None for all.
    memory, chains
        What it is good for, see `Executor`: one chain, with hyperparameters that are numbers or follow the step.
    """

    def __init__(
        self,
        works: list[BucketStep],
        seen: Seen,
        jobs: list[Any],
        picks: list[list[int] | None],
        memory: Any,
        chains: list[tuple[ComponentSpec, ...]],
    ) -> None:
        self.memory, self.chains, self.seen = memory, chains, seen
        values, others = seen.values, dict[tuple[str, str], float]()
        self._jobs = [(pick, *job) for pick, job in zip(picks, jobs, strict=True)]
        self._all = [h for own in values for h in own.specs]
        self._library = works[0].library
        self._of: dict[str, list[dict[str, Any]]] = {}
        for work, own in zip(works, values, strict=True):
            for spec, h in zip(work.specs, own.specs, strict=True):
                self._of.setdefault(spec.key, []).append(h)
        rows = [(spec, self._of.get(spec.key, [])) for spec in chains[0]]
        self._moving = [(spec, sets) for spec, sets in rows if spec.constants is None]
        self._hosts = [(spec, sets) for spec, sets in rows if spec.host]
        for spec, sets in rows:
            usual = spec.constants or {}
            for h in sets:  # that step may have others
                others |= {(spec.key, n): h[n] for n, x in usual.items() if h[n] != x}
                h.update(usual)
        self.now: Mapping[tuple[str, str], float] = others
        """Hyperparameters that the last step alone had, by component and name."""

    def run(self, t: int, where: Any, writing: Writing, numbers: Mapping[tuple[str, str], float]) -> None:
        """Take step ``t`` with the gradients at these addresses; ``numbers`` are other ones, by component and name."""
        for h in self._all:
            h["t"] = t
        for spec, sets in self._moving:
            found = spec.resolve(t, self._library, True)
            for h in sets:
                h.update(found)
        self.now = numbers
        usual = [(h, n, h[n]) for key, n in numbers for h in self._of[key]]
        try:
            for (key, n), x in numbers.items():
                for h in self._of[key]:
                    h[n] = x
            self._take(where, writing)
        finally:
            for h, n, x in usual:
                h[n] = x

    def _take(self, where: Any, writing: Writing) -> None:
        for spec, sets in self._hosts:
            for h in sets:
                h.update(host_scalars(spec, h))
        for pick, ready, _ in self._jobs:
            ready(where if pick is None else where[pick])
        writing.begin()
        for _, _, finish in self._jobs:
            finish()
