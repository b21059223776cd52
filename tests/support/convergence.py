"""How fast every rule converges on the shared problems: the table, what reads it, and what makes it.

``nox -s rates`` tunes the rate of every row of ``convergence.txt`` and writes the table again (minutes);
``nox -s rates -- Adam 'SGD(momentum=0.9)'`` does so for some rows, and adds those that are new.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import xopt
from support import shared_problems as shared

TABLE = Path(__file__).with_suffix(".txt")
HEAD = """\
# Made by `nox -s rates`. A cell is `k: a b c`: with lr = 2^k the value stays within 1/10, 1/100 and
# 1/1000 of its first distance from the least value after a, b and c steps, in float32 and float64. `-`: too late.
"""
PROBLEMS = {
    "quadratic": shared.quadratic,
    "rosenbrock": shared.rosenbrock,
    "logistic": shared.logistic,
    "least squares": shared.least_squares,
    "complex": lambda: shared.least_squares("complex128"),
}
FRACTIONS = (1e-1, 1e-2, 1e-3)
RATES = range(-14, 13)
SOON, LATE = 500, 5000
"""Steps within which a rate should come to 1/1000, and within which it should come to 1/100."""


class Cell(NamedTuple):
    """What one rule does on one problem."""

    power: int
    """The learning rate is 2 to this power."""
    steps: tuple[int | None, ...]
    """After how many steps the value stays within each of the fractions; None: not within the steps tried."""

    def __str__(self) -> str:
        return f"{self.power}: {' '.join('-' if n is None else str(n) for n in self.steps)}"

    @classmethod
    def parse(cls, text: str) -> Cell:
        power, _, steps = text.partition(":")
        return cls(int(power), tuple(None if n == "-" else int(n) for n in steps.split()))


def read() -> dict[str, dict[str, Cell]]:
    """Return the table: the text of a rule, the name of a problem, the cell."""
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    [head, *rows] = [[cell.strip() for cell in line.split("|")] for line in lines]
    return {row[0]: {n: Cell.parse(x) for n, x in zip(head[1:], row[1:], strict=True)} for row in rows}


def write(table: dict[str, dict[str, Cell]]) -> None:
    rows = [["rule", *PROBLEMS]]
    rows += [[name, *(str(table[name][p]) for p in PROBLEMS)] for name in sorted(table)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (" | ".join(x.ljust(n) for x, n in zip(row, widths, strict=True)).rstrip() for row in rows)
    TABLE.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


def rule_of(text: str, lr: Any) -> xopt.Rule:
    """Return ``Adam(b1=0.5)`` with a learning rate."""
    name, _, rest = text.partition("(")
    return eval(f"xopt.{name}(lr=lr, {rest or ')'}", {"xopt": xopt, "lr": lr})  # type: ignore[no-any-return]


def gaps(rule: xopt.Rule, problem: shared.Problem, dtype: str = "float64") -> Iterator[float]:
    """Yield how far the value is above the least one, as a part of the first distance: before every step, in place.

    Rules that ask for the curvature are given an estimate before every tenth step. The gradient is computed in the
    dtype, the value in double precision, of the parameters that are to be evaluated.
    """
    here = problem.astype(dtype).to(np.array)
    opt = xopt.Optimizer(here.start, rule)
    first = float(problem(problem.start)[0]) - problem.least
    while True:
        with np.errstate(all="ignore"):
            if rule.curvature and opt.steps_taken % 10 == 0:
                opt.update_curvature(shared.curvature(problem, opt.params, opt.steps_taken))
            value, grads = here(opt.params)
            if dtype == "float32" or rule.readout:
                value, _ = problem(opt.eval_params())
            yield (float(value) - problem.least) / first
            opt.step(grads)


def settled(rule: xopt.Rule, problem: shared.Problem, dtype: str, steps: int) -> list[float]:
    """Return after how many steps the value stays within each fraction; infinite where it does not."""
    found = []
    for gap in gaps(rule, problem, dtype):
        found.append(gap)
        if len(found) > allowed(steps) or not gap < 1e6:
            break
    outside = [[n for n, gap in enumerate(found) if not gap <= f] for f in FRACTIONS]
    last = [x[-1] + 1 if x else 0 for x in outside]
    return [n if n <= steps and n < len(found) else math.inf for n in last]


def allowed(steps: int) -> int:
    """Return how many steps a rule is given that took so many when its rate was tuned: room for other roundings."""
    return steps + steps // 10 + 2


def tune(text: str, problem: shared.Problem) -> Cell:
    """Return the smallest rate that comes to 1/1000 in little more than the fewest steps; where none does, to 1/100."""

    def run(power: int, dtype: str, steps: int) -> list[float]:
        return settled(rule_of(text, 2.0**power), problem, dtype, steps)

    for steps, goal in ((SOON, 2), (LATE, 1), (LATE, 0)):
        found = {power: run(power, "float64", steps) for power in RATES[::2]}
        for power in sorted(found, key=lambda k: found[k][goal])[:2]:
            found |= {k: run(k, "float64", steps) for k in (power - 1, power + 1) if k not in found}
        soonest = min(x[goal] for x in found.values())
        for power in sorted(k for k, x in found.items() if x[goal] <= (most := 1.25 * soonest + 10) < math.inf):
            both = [max(pair) for pair in zip(found[power], run(power, "float32", steps), strict=True)]
            if both[goal] <= most:
                limits = (LATE, LATE, SOON)
                return Cell(power, tuple(int(n) if n <= late else None for n, late in zip(both, limits, strict=True)))
    raise RuntimeError(f"{text}: no rate comes to 1/10 of {problem.name} within {LATE} steps")


def main() -> None:
    parser = argparse.ArgumentParser(description="Tune the rates of the table of convergence.")
    parser.add_argument("rows", nargs="*", help="rules, like Adam or 'SGD(momentum=0.9)'; by default all of the table")
    for text in parser.parse_args().rows or sorted(read()):
        row = {name: tune(text, make()) for name, make in PROBLEMS.items()}
        print(text, *row.values(), sep=" | ", flush=True)
        write((read() if TABLE.exists() else {}) | {text: row})


if __name__ == "__main__":
    main()
