"""Many compositions: drawn, run, compared, and of each kind of difference the smallest case kept."""

from __future__ import annotations

import os
import time
import traceback
from collections import Counter
from collections.abc import Callable, MutableMapping
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, seed, settings

from fuzz import compare, paths
from fuzz.cases import Case, made
from fuzz.compare import Difference, Excused, Reference
from fuzz.paths import Path
from fuzz.reduce import smaller
from fuzz.strategies import compositions

REDUCE = 20.0
"""Seconds for which a failure is made smaller."""


SHARE = {
    "numpy": (3, 1),
    "torch": (2, 1),
    "cupy": (2, 1),
    "strict": (3, 1),
    "jax": (1, 5),
    "llvm": (2, 3),
    "dask": (1, 60),
    "ranks": (2, 3),
}
"""On how many paths of a library in turn one composition of how many is run: most of the time is that of compilers."""


class Found(NamedTuple):
    """A kind of difference."""

    case: Case | None
    text: str
    seed: int


def every(chosen: list[str]) -> Callable[[int], list[Path]]:
    """Return which paths the n-th composition is run on: all, but where one composition takes long, in turns."""
    turns = {name: paths.paths(name) for name in chosen}

    def some(n: int) -> list[Path]:
        found = []
        for name, which in turns.items():
            many, of = SHARE[name]
            if n % of == 0:
                found += [which[(n // of * many + i) % len(which)] for i in range(many)]
        return found

    return some


class Campaign:
    """What was run and what was found."""

    def __init__(self, some: Callable[[int], list[Path]], known: MutableMapping[str, Any]) -> None:
        self.some, self.known = some, known
        self.count = 0
        self.runs, self.seconds = Counter[str](), Counter[str]()
        self.skipped, self.refused, self.kinds = Counter[str](), Counter[str](), Counter[str]()

    def take(self, case: Case, number: int) -> None:
        """Run a composition on its paths; note what is different, and make it small if it is of a new kind."""
        try:
            made(case.rule)
        except (TypeError, ValueError) as error:  # by a constructor, which knows no library
            self.refused[f"when it was made, {compare.said(paths.refused(error))}"] += 1
            return
        begin = time.perf_counter()
        ref = Reference(case)
        self.seconds["reference"] += time.perf_counter() - begin
        self.runs["reference"] += 1
        for refusal in {r.refusal for r in ref.records if r.refusal}:
            self.refused[compare.said(refusal)] += 1
        for path in self.some(self.count):
            begin = time.perf_counter()
            result = compare.check(case, path, ref)
            self.seconds[path.name] += time.perf_counter() - begin
            self.runs[path.name] += 1
            if isinstance(result, Excused):
                self.skipped[f"{path.library}: {result.reason}"] += 1
            if isinstance(result, Difference):
                self.kinds[result.kind] += 1
                if result.kind not in self.known:
                    self.known[result.kind] = Found(case, result.text, number)  # so that the other process leaves it
                    self.known[result.kind] = found = smallest(case, path, result, number)
                    print(f"{result.kind}\n    {found.text}\n    {found.case!r}  # seed {number}", flush=True)
        self.count += 1

    def batch(self, number: int, examples: int, until: float) -> None:
        """Draw compositions."""

        @seed(number)
        @settings(max_examples=examples, database=None, deadline=None, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(compositions())
        def one(case: Case) -> None:
            if time.monotonic() < until:
                self.take(case, number)

        try:
            one()
        except Exception as error:
            self.kinds[kind := f"the fuzzer itself: {compare.said(paths.refused(error))}"] += 1
            self.known[kind] = Found(None, "".join(traceback.format_exception(error)), number)


def smallest(case: Case, path: Path, found: Difference, number: int) -> Found:
    """Make a case small that differs on a path."""

    def again(new: Case) -> Difference | None:
        result = compare.check(new, path, Reference(new))
        return result if isinstance(result, Difference) and result.kind == found.kind else None

    small = smaller(case, lambda new: again(new) is not None, REDUCE)
    return Found(small, (again(small) or found).text, number)


def worker(first: int, step: int, seconds: float, chosen: list[str], known: MutableMapping[str, Any]) -> Campaign:
    """Draw compositions for so many seconds."""
    os.environ.setdefault("JAX_ENABLE_X64", "1")
    campaign, until, number = Campaign(every(chosen), known), time.monotonic() + seconds, first
    while time.monotonic() < until:
        campaign.batch(number, 200, until)
        number += step
    campaign.some, campaign.known = None, None  # type: ignore[assignment]
    return campaign
