"""How a cell is measured: every contender in turn, in rounds, after a check that all compute the same.

A round times a burst of steps of each contender; the next round starts with the next one, so that nobody always comes
after the same neighbour. A burst begins with a step that is not timed: it finds the cache full of another's arrays and
another's threads still spinning. What is reported are the median and the quartiles of the rounds' seconds a step.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import machine, problems
from benchmarks.contenders import Contender, Entry
from benchmarks.contenders import contenders as all_contenders
from benchmarks.problems import Array, Problem, Rule, Unavailable, Workload

STEPS = 200
"""Most steps in a burst. Thinc zeroes its gradients: in many more steps its moments would become denormal, and slow."""

QUIET = 0.05
"""Cores that other processes may use. Libraries whose threads wait for each other at a barrier slow down a hundredfold
when one of two cores has other work."""


@dataclass(frozen=True)
class Settings:
    """How long to measure.

    Parameters
    ----------
    rounds
        Number of rounds, 2 or more.
    burst
        Time that a burst should last, in seconds.
    budget
        Longest time that one contender may take in a cell, in seconds; it is skipped when it would take longer.
    memory
        Memory for all contenders of a cell, in bytes. Beyond it they do not stay: each is made, warmed up, timed and
        freed in every round, one after the other.
    threads
        Threads that each may use on the CPU.
    patience
        How many more times to measure a cell during which other processes were busy; the quietest counts.
    """

    rounds: int = 9
    burst: float = 0.05
    budget: float = 60.0
    memory: float = 10e9
    threads: int = 2
    patience: int = 3


def check(name: str, make: Entry, rule: Rule, dtype: str, threads: int) -> float:
    """Take three steps on a small problem beside the textbook in float64, and return the relative error.

    The error is the Euclidean norm of the difference over that of the change, for all parameters together.

    Raises
    ------
    AssertionError
        For an error above 1e-5 (optax has 7e-6, from 1 - β₂ᵗ in float32), above 2e-3 in bfloat16 and float16 (a result
        rounded the other way now and then), or above what the contender says that its form of the rule has.
    """
    shapes = ((17, 5), (40,), (1,))
    first = problems.problem(rule, shapes, dtype, threads)
    contender = make(first)
    rows = [(p.astype("float64"), *[np.zeros(p.shape)] * rule.state) for p in first.params]
    for t in (1, 2, 3):
        grads = problems.problem(rule, shapes, dtype, threads, seed=t).grads
        contender.hand(contender.adopt(grads))
        contender.step()
        rows = problems.textbook_step(np, rule, t, rows, [g.astype("float64") for g in grads])
        rows = [(row[0].astype(first.params[0].dtype).astype("float64"), *row[1:]) for row in rows]
    contender.wait()
    if not contender.params:  # a stream
        return 0.0
    want, got = _flat([row[0] for row in rows]), _flat(contender.values())
    error = float(np.linalg.norm(got - want) / np.linalg.norm(want - _flat(first.params)))
    limit = max({"bfloat16": 2e-3, "float16": 2e-3}.get(dtype, 1e-5), contender.tolerance)
    assert error <= limit, f"{name}: {rule.title} in {dtype} is off by {error:.1e} after 3 steps, at most {limit:.0e}"
    return error


def _flat(arrays: list[Array]) -> Array:
    return np.concatenate([np.asarray(x, "float64").reshape(-1) for x in arrays])


def burst(contender: Contender, source: list[Array], fresh: bool, steps: int) -> float:
    """Return the seconds a step of ``steps`` steps, after one that is not timed."""
    grads = contender.adopt(source)
    for count in (1, steps):
        seconds = 0.0
        together = 1 if fresh else count  # how many steps share their gradient arrays
        for _ in range(count // together):
            grads = contender.adopt(source) if fresh else grads
            contender.hand(grads)
            start = contender.clock()
            for _ in range(together):
                contender.step()
            contender.wait()
            seconds += contender.clock() - start
    return seconds / steps


@dataclass
class _Entrant:
    """A contender that takes part in a cell."""

    make: Entry
    kept: Contender | None
    bytes: int
    error: float
    steps: int

    def time(self, problem: Problem, fresh: bool) -> float:
        """Return the seconds a step of a burst."""
        contender = self.kept
        if contender is None:
            contender = self.make(problem)
            burst(contender, problem.grads, fresh, 1)
        seconds = burst(contender, problem.grads, fresh, self.steps)
        if self.kept is None:
            del contender
            gc.collect()
        return seconds


_checked: dict[tuple[str, str, str], float] = {}


def _admit(name: str, make: Entry, problem: Problem, fresh: bool, settings: Settings) -> _Entrant:
    """Check a contender and see how long a step of it takes; raise `Unavailable` with the reason why not."""
    try:
        key = (name, problem.rule.key, problem.dtype)
        if key not in _checked:
            _checked[key] = check(name, make, problem.rule, problem.dtype, settings.threads)
        contender = make(problem)
        burst(contender, problem.grads, fresh, 1)  # compiles
        seconds = math.inf
        for _ in range(3):  # a slow spell of the machine excludes nobody
            start = time.perf_counter()
            clocked = burst(contender, problem.grads, fresh, 1)
            seconds = min(seconds, (time.perf_counter() - start) / 2)
            if 2 * seconds * settings.rounds < settings.budget:
                break
    except Unavailable:
        raise
    except Exception as reason:  # a peer that fails is a result, and the others go on
        raise Unavailable(f"failed: {type(reason).__name__}: {reason}".splitlines()[0]) from reason
    if clocked == 0.0:
        raise Unavailable("this runner does not say what its loops take")
    steps = max(1, min(STEPS, int(settings.burst / seconds)))
    if (steps + 1) * seconds * settings.rounds > settings.budget:
        raise Unavailable(f"takes {seconds:.1f} s a step, too long for {settings.rounds} rounds")
    return _Entrant(make, contender, contender.bytes, _checked[key], steps)


def _rounds(
    entrants: dict[str, _Entrant], problem: Problem, fresh: bool, settings: Settings
) -> tuple[dict[str, list[float]], float | None]:
    """Return the seconds a step of each round, and how many cores other processes used meanwhile."""
    samples: dict[str, list[float]] = {name: [] for name in entrants}
    names = list(entrants)
    others = machine.Others()
    gc.collect()
    gc.disable()  # a collection takes longer than most steps
    for r in range(settings.rounds):
        turn = r % max(1, len(names))
        for name in names[turn:] + names[:turn]:
            samples[name].append(entrants[name].time(problem, fresh))
    gc.enable()
    return samples, others.cores()


def cell(
    workload: Workload, rule: Rule, dtype: str, contenders: dict[str, Entry], settings: Settings
) -> dict[str, Any]:
    """Measure one workload, rule and dtype.

    Returns
    -------
    dict
        ``"results"``: for each contender the ``"median"``, ``"low"`` and ``"high"`` quartile in seconds a step, the
        ``"bytes"`` that it must move in one, the ``"error"`` of its check. ``"skipped"``: the reasons of the others.
        ``"others"``: how many cores other processes used meanwhile.
    """
    problem = problems.problem(rule, workload.shapes, dtype, settings.threads)
    each = problem.elements * (2 * problems.ITEMSIZE[dtype] + rule.state * rule.state_itemsize(dtype))
    together = each * len(contenders) <= settings.memory
    entrants: dict[str, _Entrant] = {}
    skipped: dict[str, str] = {}
    for name, make in contenders.items():
        try:
            entrants[name] = _admit(name, make, problem, workload.fresh, settings)
        except Unavailable as reason:
            skipped[name] = str(reason)
        else:
            if not together:
                entrants[name].kept = None
        gc.collect()
    samples, others = _rounds(entrants, problem, workload.fresh, settings)
    for _ in range(settings.patience):
        if others is None or others <= QUIET:
            break
        again, now = _rounds(entrants, problem, workload.fresh, settings)
        if now is not None and now < others:
            samples, others = again, now
    results = {}
    for name, entrant in entrants.items():
        low, middle, high = statistics.quantiles(samples[name], n=4, method="inclusive")
        results[name] = {
            "median": _short(middle), "low": _short(low), "high": _short(high), "bytes": entrant.bytes,
            "steps": entrant.steps, "error": _short(entrant.error),
        }  # fmt: skip
    return {
        "workload": workload.key, "title": workload.title, "leaves": len(workload.shapes), "elements": problem.elements,
        "rule": rule.key, "dtype": dtype, "rounds": settings.rounds, "together": together, "others": others,
        "results": results, "skipped": skipped,
    }  # fmt: skip


def _short(x: float) -> float:
    return float(f"{x:.4g}")


def check_all(device: str, threads: int) -> int:
    """Check every contender, rule and dtype; print what was found and return how many failed."""
    failed = 0
    for rule in problems.RULES.values():
        for dtype in problems.ITEMSIZE:
            for name, make in all_contenders(device, threads).items():
                label = f"{rule.title:27}{dtype:10}{name:26}"
                try:
                    print(f"{label}{check(name, make, rule, dtype, threads):9.1e}")
                except Unavailable as reason:
                    print(f"{label}    skips: {reason}")
                except Exception as error:
                    failed += 1
                    print(f"{label}   FAILED: {type(error).__name__}: {error}")
    return failed
