"""Run random compositions for a while: ``PYTHONPATH=.:tests python -m fuzz --minutes 30 --seed 1``."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import conftest  # noqa: F401  # sets the environment before a library is imported

import xopt
from fuzz import campaign, paths


def main() -> int:
    """Run, print, and return whether there was a difference."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--libraries", nargs="+", default=paths.libraries(), choices=[*paths.libraries(), "ranks"])
    given = parser.parse_args()
    print(f"xopt {xopt.__version__}; {', '.join(given.libraries)}; seed {given.seed}", flush=True)
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(given.processes, context) as pool:
        known = manager.dict()
        words = given.processes, 60 * given.minutes, given.libraries, known
        jobs = [pool.submit(campaign.worker, given.seed * 1_000_000 + k, *words) for k in range(given.processes)]
        done = [job.result() for job in jobs]
        report(done, dict(known))
        return 1 if known else 0


def report(done: list[campaign.Campaign], known: dict[str, campaign.Found]) -> None:
    """Print what was run, what was left out, and what was found."""
    total = {
        n: sum((getattr(x, n) for x in done), Counter()) for n in ("runs", "seconds", "skipped", "refused", "kinds")
    }
    print(f"\n{sum(x.count for x in done):,} compositions, {sum(total['runs'].values()):,} runs")
    for name, n in total["runs"].most_common():
        print(f"  {n:7,} {name:28} {1000 * total['seconds'][name] / n:8.1f} ms each")
    print("\nleft out, or not compared to the end:")
    for reason, n in total["skipped"].most_common():
        print(f"  {n:7,} {reason}")
    print("\nrefused by the reference (and the same by all others):")
    for text, n in total["refused"].most_common():
        print(f"  {n:7,} {text}")
    print(f"\n{len(known)} kinds of differences, {sum(total['kinds'].values()):,} differences")
    for kind, n in total["kinds"].most_common():
        print(f"\n  {n:,} × {kind}\n    {known[kind].text}\n    {known[kind].case!r}  # seed {known[kind].seed}")


if __name__ == "__main__":
    sys.exit(main())
