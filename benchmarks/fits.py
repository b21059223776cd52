"""Fits beside SciPy's: ``python -m benchmarks.fits`` measures, prints, and writes docs/least_squares.md.

It counts the certified digits and the evaluations on NIST's sets for nonlinear regression, from both starts of each,
and measures the time of 10⁵ fits of a·exp(-b·t) + c to 32 points, batched, beside a loop over SciPy's.
``--check`` fails where that misses what it must show.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import machine
from benchmarks.__main__ import threads_for_all
from benchmarks.report import circumstances, publish, table
from benchmarks.solvers import beside

TIGHT: dict[str, Any] = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15, "max_nfev": 3000}
ENOUGH, TIMES = 6.0, 50.0
"""Digits that count as a success, and how many times the time of the batch the loop must take."""
LOOPED = 300
"""Fits of the loop that are measured."""
WAYS = ("xopt", "3-point", "SciPy lm", "SciPy trf")
Results = dict[str, Any]


def jacobian(problem: Any) -> Callable[[Any], Any]:
    """Return the exact Jacobian of a set: derivatives by complex steps, whose error is one of rounding."""
    import numpy as np

    def jac(b: Any) -> Any:
        h = 1e-20 * np.where(b != 0, abs(b), 1)
        moved = b + 1j * np.diag(h)  # a row for each parameter
        return (np.stack([problem.residual(np, row) for row in moved], axis=-1) / h).imag

    return jac


def by_xopt(fun: Any, start: Any, **how: Any) -> Any:
    """Return the result of ``xopt.least_squares``."""
    import xopt

    return xopt.least_squares(fun, start, **TIGHT, **how)


def by_scipy(fun: Any, start: Any, **how: Any) -> Any:
    """Return that of SciPy, with parameters scaled by the Jacobian, as xopt does."""
    import scipy.optimize  # type: ignore[import-untyped]

    return scipy.optimize.least_squares(fun, start, x_scale="jac", **TIGHT, **how)


def certified() -> list[Results]:
    """Fit every set of NIST from both starts in four ways."""
    import numpy as np

    nist, found = beside("tests", "support.nist"), []
    for problem in nist.SETS.values():
        jac = jacobian(problem)
        for k, start in enumerate(problem.starts):
            row: Results = {"name": problem.name, "start": k + 1}
            for name, solve, how in (
                ("xopt", by_xopt, {"jac": jac}),
                ("3-point", by_xopt, {"jac": "3-point"}),
                ("SciPy lm", by_scipy, {"jac": jac, "method": "lm"}),
                ("SciPy trf", by_scipy, {"jac": jac, "method": "trf"}),
            ):
                row[name] = attempt(problem, nist.digits, solve, start.copy(), how)
            found.append(row)
            assert np.array_equal(start, problem.starts[k])
    return found


def attempt(problem: Any, digits: Any, solve: Any, start: Any, how: Any) -> Results:
    """Return what one fit found; SciPy raises where residuals become infinite."""
    import numpy as np

    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = solve(lambda b: problem.residual(np, b), start, **how)
        except ValueError as error:
            return {"digits": None, "error": str(error)}
    right = digits(result.x, problem.certified)
    return {"digits": right if right > 0 else 0.0, "nfev": int(result.nfev), "njev": int(result.njev)}


def decays(count: int, seed: int = 0) -> tuple[Any, Any, Any]:
    """Return times, data of many decays with 1 % of noise, and a start for all."""
    import numpy as np

    rng, t = np.random.default_rng(seed), np.linspace(0, 4, 32)
    a, b, c = (rng.uniform(low, high, (count, 1)) for low, high in ((1.0, 3.0), (0.5, 2.0), (0.0, 0.5)))
    return t, a * np.exp(-b * t) + c + 0.01 * rng.standard_normal((count, 32)), np.ones(3)


def batch(t: Any, y: Any, start: Any, exact: bool) -> Any:
    """Fit all decays at once."""
    import numpy as np

    import xopt

    def fun(x: Any, y: Any) -> Any:
        return x[:, :1] * np.exp(-x[:, 1:2] * t) + x[:, 2:] - y

    def jac(x: Any, y: Any) -> Any:
        fall = np.exp(-x[:, 1:2] * t)
        columns = np.stack([fall, -x[:, :1] * t * fall, np.ones_like(fall)])
        return np.moveaxis(columns, 0, -1)  # each column lies in one piece

    return xopt.least_squares(fun, np.tile(start, (len(y), 1)), jac=jac if exact else None, batched=True, data=y)


def loop(t: Any, y: Any, start: Any, exact: bool) -> Any:
    """Fit them one after the other with SciPy."""
    import numpy as np
    import scipy.optimize

    def fun(x: Any, data: Any) -> Any:
        return x[0] * np.exp(-x[1] * t) + x[2] - data

    def jac(x: Any, data: Any) -> Any:
        fall = np.exp(-x[1] * t)
        return np.stack([fall, -x[0] * t * fall, np.ones_like(fall)], axis=-1)

    how = jac if exact else "2-point"
    return np.stack([scipy.optimize.least_squares(fun, start, how, args=(data,)).x for data in y])


def many(count: int, rounds: int, exact: bool) -> Results:
    """Measure both, one after the other in each round; the loop on a part of the fits."""
    import numpy as np

    t, y, start = decays(count)
    part, times, ratios = min(LOOPED, count), dict[str, list[float]](xopt=[], SciPy=[]), []
    for k in range(rounds + 1):  # the first warms up
        began = time.perf_counter()
        result = batch(t, y, start, exact)
        between = time.perf_counter()
        theirs = loop(t, y[:part], start, exact)
        end = time.perf_counter()
        if k:
            mine, other = (between - began) / count, (end - between) / part
            times["xopt"].append(mine)
            times["SciPy"].append(other)
            ratios.append(other / mine)
    return {
        "fits": count, "looped": part, "times": {n: statistics.median(x) for n, x in times.items()},
        "ratio": statistics.median(ratios), "converged": int(result.success.sum()), "nfev": int(result.nfev),
        "apart": float(np.max(abs(result.x[:part] - theirs) / result.stderr[:part])),
    }  # fmt: skip


def succeeded(found: Results, way: str) -> int:
    """Count the starts from which a way reached enough digits."""
    return sum((row[way]["digits"] or 0.0) >= ENOUGH for row in found["certified"])


def verdicts(found: Results) -> list[tuple[str, str, str, bool]]:
    """Return what must be shown: a title, what must be, what is, and whether that is enough."""
    of, right, ratio = len(found["certified"]), succeeded(found, "xopt"), found["many"]["differences"]["ratio"]
    return [
        (f"NIST's sets and starts with {ENOUGH:g} digits", f"{of}", f"{right}", right == of),
        ("a loop over SciPy's, by default, × the time of the batch", f"≥ {TIMES:g}", f"{ratio:.1f}", ratio >= TIMES),
    ]


def page(found: Results) -> Iterator[str]:
    """Yield the lines of the page."""
    yield f"{found['date']}; {machine.short(found['hardware'])}. "
    known = ("python", "xopt", "numpy", "scipy")
    yield ", ".join(f"{n} {version}" for n, version in found["versions"].items() if n in known) + ".\n"
    yield from table(
        ["Figure", "must be", "is", ""], [[*row, "met" if ok else "missed"] for *row, ok in verdicts(found)]
    )
    yield "### Many fits\n"
    x = found["many"]
    one = x["differences"]
    yield f"{one['fits']:,} fits of a·exp(-b·t) + c, three parameters and 32 points each, in float64 on NumPy: with"
    yield "`data=` and all else by default, and with the Jacobian written out. SciPy: a loop over"
    yield "`scipy.optimize.least_squares` by default, and with the same Jacobian, measured on"
    yield f"{one['looped']} of the fits and scaled. Of {one['fits']:,} fits {one['converged']:,} converged; those of"
    yield f"both libraries are apart by {one['apart']:.1g} standard errors at most.\n"
    rows = [
        [name, *(f"{1e6 * y['times'][who]:.3g}" for who in ("xopt", "SciPy")), f"{y['ratio']:.1f}"]
        for name, y in (("by default: differences", one), ("Jacobian written out", x["jacobian"]))
    ]
    yield from table(["µs a fit", "xopt, batched", "SciPy, a loop", "SciPy / xopt"], rows)
    yield "### NIST's sets for nonlinear regression\n"
    yield "Certified digits of the worst parameter, at most 11, and evaluations of residuals + of Jacobians, from the"
    yield "first start / the second, which is nearer. All tolerances are 1e-15. *3-point* takes central differences,"
    yield "whose evaluations are not counted; the others have the exact Jacobian, by complex steps. SciPy has"
    yield '`x_scale="jac"`.\n'
    names = list(dict.fromkeys(row["name"] for row in found["certified"]))
    rows = []
    for name in names:
        pair = [row for row in found["certified"] if row["name"] == name]
        rows.append(
            [
                name,
                *(" / ".join(digits(row[way]) for row in pair) for way in WAYS),
                *(" / ".join(evaluations(row[way]) for row in pair) for way in WAYS),
            ]
        )
    counts = [f"{succeeded(found, way)} of {len(found['certified'])}" for way in WAYS]
    rows.append([f"≥ {ENOUGH:g} digits", *counts, *[""] * len(WAYS)])
    yield from table(["Digits; evaluations", *WAYS, *WAYS], rows)


def digits(x: Results) -> str:
    """Return digits as they stand in the table."""
    return "–" if x["digits"] is None else f"{x['digits']:.1f}"


def evaluations(x: Results) -> str:
    """Return evaluations as they stand there."""
    return "–" if x["digits"] is None else f"{x['nfev']}+{x['njev']}"


def main(argv: list[str] | None = None) -> None:
    """Measure, print, and write the record and the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fits", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer fits and rounds; nothing is written")
    parser.add_argument("--check", action="store_true", help="fail where a figure misses what it must be")
    args = parser.parse_args(argv)
    threads_for_all(2)
    found: Results = circumstances()
    size = (10**4, 1) if args.quick else (10**5, 5)
    found["many"] = {"differences": many(*size, exact=False), "jacobian": many(*size, exact=True)}
    found["certified"] = certified()
    publish("fits", found, list(page(found)), "least_squares.md", args.quick)
    if args.check and not all(met for *_, met in verdicts(found)):
        raise SystemExit("a figure misses what it must be")


if __name__ == "__main__":
    main()
