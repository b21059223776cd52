"""Measure: ``python -m benchmarks`` or ``nox -s bench``; ``--quick`` is a smoke test, ``--only vector,many`` a part."""

from __future__ import annotations

import argparse
import datetime
import os
import tempfile
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def threads_for_all(count: int) -> None:
    """Let this process and its children use ``count`` cores and threads; before any library is imported.

    JAX and xopt take as many threads as there are cores that the process may use.
    """
    for name in ("OMP", "MKL", "OPENBLAS", "NUMBA", "BLIS"):
        os.environ[f"{name}_NUM_THREADS"] = str(count)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def main(argv: list[str] | None = None) -> None:
    """Measure, print the targets, and write a file of results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="a smoke test of two or three minutes")
    parser.add_argument(
        "--only", default="", help="suites, with commas: vector many models rules dtypes ten start memory"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads that each contender may use (default 2)")
    parser.add_argument("--rounds", type=int, default=0, help="rounds a cell (default 9; quick 3)")
    parser.add_argument("--memory", type=float, default=10.0, help="GB that contenders of a cell may hold together")
    parser.add_argument("--check", action="store_true", help="only check that all contenders compute the same")
    parser.add_argument("--output", type=Path, help="folder of the results (quick: a temporary one)")
    parser.add_argument("--into", type=Path, help="go on with this file of results, from the same machine")
    args = parser.parse_args(argv)

    if args.device == "cpu":
        threads_for_all(args.threads)
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("KERAS_BACKEND", "jax")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from benchmarks import measure, suites, targets

    if args.check:
        raise SystemExit(measure.check_all(args.device, args.threads))
    only = args.only.split(",") if args.only else list(suites.SUITES)
    if unknown := set(only) - set(suites.SUITES):
        parser.error(f"--only: {', '.join(sorted(unknown))}; there are {', '.join(suites.SUITES)}")
    settings = measure.Settings(
        rounds=args.rounds or (3 if args.quick else 9),
        burst=0.01 if args.quick else 0.05,
        budget=3.0 if args.quick else 60.0,
        memory=args.memory * 1e9,
        threads=args.threads,
        patience=0 if args.quick else 3,
    )
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    options = {"quick": args.quick, "threads": args.threads, "rounds": settings.rounds}
    folder = args.output or (Path(tempfile.gettempdir()) / "xopt-bench" if args.quick else RESULTS)
    results = suites.Results(folder, date, args.device, options, args.into)
    suites.run(args.device, only, args.quick, settings, results.save)
    results.write()
    print("\nTargets")
    for row in targets.judge(results.data):
        print("  " + row.line())
    print(f"\nwrote {results.path}; `python -m benchmarks.report` makes a page of what is in benchmarks/results")


if __name__ == "__main__":
    main()
