"""A composition on three ranks, which are threads of this process: an optimizer with ``comm``."""

from __future__ import annotations

import tempfile
from pathlib import Path as File
from typing import Any

import ml_dtypes
import numpy as np
import optree
from support.ranks import World

import xopt
from fuzz import cases, paths
from fuzz.cases import Estimate, Evaluate, Perturb, Resume, Set, Step
from xopt._arrays import tree as _tree

RANKS = 3


class RanksRun(paths.Run):
    """Rank 0 has the gradients; the others have none, or zeros."""

    def start(self) -> None:
        self.world = World(RANKS)
        self.trees = [
            cases.mapped(lambda k, leaf: self.numbers(0, k, leaf, layout=leaf.layout), self.case.params)
            for _ in range(RANKS)
        ]
        self.params = self.trees[0]
        self.opts = self.all(lambda rank: self.new(self.trees[rank.rank], rank))

    def nothing(self, leaf: cases.Leaf) -> Any:
        """Return a gradient that changes no bit of another one."""
        zero = complex(-0.0, -0.0) if "complex" in leaf.dtype else -0.0
        return paths.array(
            self.path, np.full(leaf.shape, zero, ml_dtypes.bfloat16 if leaf.dtype == "bfloat16" else leaf.dtype)
        )

    def new(self, params: Any, rank: Any) -> Any:
        return xopt.Optimizer(params, cases.made(self.case.rule), runner=self.runner, comm=rank, **self.case.keeping)

    def all(self, job: Any) -> list[Any]:
        """Do something on all ranks; all of them raise, or none. What rank 0 raises is raised."""
        found = self.world.run(job)
        errors = [x for x in found if isinstance(x, BaseException)]
        if errors:
            assert len(errors) == RANKS, found
            raise next(x for x in errors if not isinstance(x, xopt.distributed.RankError))
        return found

    def step(self, event: Step, number: int) -> dict[str, Any]:
        grads = cases.mapped(
            lambda k, leaf: self.numbers(number + 1, k, leaf, cases.kind_of(event, k), event.layout), self.case.params
        )
        zeros = cases.mapped(lambda k, leaf: None if number % 2 else self.nothing(leaf), self.case.params)
        zeros = optree.tree_map(lambda x, g: None if g is None else x, zeros, grads, none_is_leaf=True)
        overrides, before = self.hyper(event.overrides), self.bits(grads)

        def one(rank: Any) -> None:
            more = {} if event.value is None else {"value": 0.0 if rank.rank else event.value}
            opt = self.opts[rank.rank]
            found = opt.step(zeros if rank.rank else grads, **more, **overrides)
            assert found is opt.params, "step does not return the parameters"

        try:
            self.all(one)
            return {}
        finally:
            self.touched = "" if self.bits(grads) == before else "the gradients"

    def now(self) -> Any:
        """Return parameters and state, which must be the same on all ranks."""
        found = self.all(lambda rank: self.opts[rank.rank].state_dict())
        trees = [(self.opts[k].params, found[k]["state"], found[k]["carry"]) for k in range(RANKS)]
        assert all(self.bits(*tree) == self.bits(*trees[0]) for tree in trees), "the ranks differ"
        params, first = self.opts[0].params, found[0]
        _, spec = _tree.flatten(params)
        keys = _tree.pointers(spec)
        slots = {n: [own.get(key) for key in keys] for n, own in first["state"].items()}
        carry = {
            n: np.asarray([float(x[key]) for key in keys]) if isinstance(x, dict) else float(x)
            for n, x in first["carry"].items()
        }
        return params, xopt.State(first["step"], slots, carry)

    def set(self, event: Set) -> None:
        self.all(lambda rank: self.opts[rank.rank].set(**self.hyper(event.values)))
        self.sticky |= self.hyper(event.values)

    def observe(self, event: Estimate, number: int) -> None:
        none = cases.mapped(lambda k, leaf: None, self.case.params)
        found = self.estimate(event, number)
        self.all(lambda rank: self.opts[rank.rank].update_curvature(none if rank.rank else found))

    def resume(self, event: Resume) -> None:
        def fresh(rank: Any) -> Any:
            return cases.mapped(
                lambda k, leaf: paths.array(
                    self.path, np.zeros(leaf.shape, cases.numbers(self.case, 0, k, leaf).dtype), leaf.layout
                ),
                self.case.params,
            )

        with tempfile.TemporaryDirectory() as folder:

            def one(rank: Any) -> Any:
                old, new = self.opts[rank.rank], self.new(fresh(rank), rank)
                new.set(**self.sticky)
                if event.by == "dict":
                    new.load_state_dict(old.state_dict(only_state=False))
                else:
                    new.load(old.save(File(folder) / "run.safetensors", fsync=False))
                return new

            self.opts = self.all(one)

    def do(self, event: Any, number: int) -> dict[str, Any]:
        if isinstance(event, Evaluate):
            found = self.all(lambda rank: self.opts[rank.rank].eval_params())
            assert all(self.bits(x) == self.bits(found[0]) for x in found), "the ranks differ"
            return self.tree("eval", found[0])
        if isinstance(event, Perturb):
            return super().do(event, number)
        if isinstance(event, Set):
            self.set(event)
            return {}
        return super().do(event, number)
