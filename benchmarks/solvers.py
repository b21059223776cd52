"""Solvers beside SciPy's and torch's: ``python -m benchmarks.solvers`` measures, prints, and writes docs/minimize.md.

It counts evaluations on test functions, in boxes, in many dimensions and in scikit-learn's models, and measures the
time of L-BFGS with 10 vectors on 2 to 10⁶ parameters: 40 steps of each solver, one after the other in each round.
``--only seconds`` measures the time alone, ``--check`` fails where that misses what it must show; ``--only
second-order`` counts the evaluations of BFGS and of methods that use the Hessian alone.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.__main__ import threads_for_all
from benchmarks.report import table

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results: written by python -m benchmarks.solvers -->", "<!-- end of results -->"
STEPS, HISTORY, GTOL = 40, 10, 1e-8
BURST = 0.05
"""Seconds that a round gives a solver at least."""
MUST = [("SciPy", 0, 1.5), ("SciPy", 10**4, 3.0), ("SciPy, bounds", 0, 1.0)]
"""How many times xopt's time each must take, from how many parameters on; the last that fits counts."""
Results = dict[str, Any]


def beside(folder: str, module: str) -> Any:
    """Import a module of the tests, which knows problems."""
    sys.path.insert(0, str(ROOT / folder))
    return importlib.import_module(module)


def by_xopt(fun: Any, x0: Any, gtol: float = GTOL, maxiter: int = 15_000, **more: Any) -> tuple[int, float, Any]:
    """Return evaluations, the value and the point of ``xopt.minimize``."""
    import xopt

    found = xopt.minimize(fun, x0, maxiter=maxiter, options={"gtol": gtol, "history": HISTORY}, **more)
    return found.nfev, found.fun, found.x


def by_scipy(fun: Any, x0: Any, gtol: float = GTOL, maxiter: int = 15_000, **more: Any) -> tuple[int, float, Any]:
    """Return those of SciPy's L-BFGS-B."""
    import scipy.optimize  # type: ignore[import-untyped]

    options = {"gtol": gtol, "ftol": 0, "maxcor": HISTORY, "maxiter": maxiter, "maxfun": 10**6}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = scipy.optimize.minimize(fun, x0, jac=True, method="L-BFGS-B", options=options, **more)
    return found.nfev, float(found.fun), found.x


def by_torch(fun: Any, x0: Any, gtol: float = GTOL, maxiter: int = 1000) -> tuple[int, float, Any]:
    """Return those of torch's LBFGS, which goes on for ever where float64 ends."""
    import torch

    x, count = x0.clone().requires_grad_(), 0
    opt = torch.optim.LBFGS(
        [x], max_iter=maxiter, max_eval=10**6, history_size=HISTORY, line_search_fn="strong_wolfe",
        tolerance_grad=gtol, tolerance_change=0,
    )  # fmt: skip

    def closure() -> Any:
        nonlocal count
        count += 1
        value, x.grad = fun(x.detach())
        return value

    opt.step(closure)
    end = x.detach()
    return count, float(fun(end)[0]), end


def of_tensors(fun: Any) -> Callable[[Any], tuple[Any, Any]]:
    """Return a function of NumPy's arrays as one of tensors."""
    import torch

    def wrapped(x: Any) -> tuple[Any, Any]:
        value, g = fun(x.numpy())
        return torch.tensor(value, dtype=torch.float64), torch.from_numpy(g)

    return wrapped


def functions() -> list[Results]:
    """Measure every function of Moré, Garbow and Hillstrom."""
    import numpy as np
    import torch

    found = []
    for problem in beside("tests", "support.mgh").PROBLEMS:
        x0 = np.asarray(problem.start, "float64")
        row: Results = {"name": problem.name, "n": x0.size, "least": problem.least}
        with np.errstate(all="ignore"):
            for name, solve, fun, start in (
                ("xopt", by_xopt, problem, x0),
                ("SciPy", by_scipy, problem, x0),
                ("torch", by_torch, of_tensors(problem), torch.from_numpy(x0)),
            ):
                row[name], row[f"{name} value"], _ = solve(fun, start)

            def narrow(x: Any, problem: Any = problem) -> tuple[Any, Any]:
                value, g = problem(x)
                return np.float32(value), g.astype("float32")

            x = by_xopt(narrow, x0.astype("float32"), 1e-7)[2]
        row["float32 value"] = problem(x)[0]
        found.append(row)
    return found


def boxes() -> Results:
    """Count the evaluations on the same functions in boxes, and who ends lower."""
    import numpy as np

    total: Results = {"boxes": 0, "xopt": 0, "SciPy": 0, "xopt lower": 0, "SciPy lower": 0}
    for problem, x0, lower, upper in beside("tests", "support.mgh").boxes():
        sides = [np.full(x0.size, default) if x is None else x for x, default in ((lower, -np.inf), (upper, np.inf))]
        mine, value, _ = by_xopt(problem, x0, 1e-7, bounds=(lower, upper))
        other, others, _ = by_scipy(problem, x0, 1e-7, bounds=list(zip(*sides, strict=True)))
        gap = 1e-6 * max(1e-3, abs(others))
        total["boxes"] += 1
        total["xopt"] += mine
        total["SciPy"] += other
        total["xopt lower"] += int(value < others - gap)
        total["SciPy lower"] += int(others < value - gap)
    return total


def second_order() -> Results:
    """Count evaluations, and Hessians or their products, of BFGS and of methods that use the Hessian."""
    import scipy.optimize

    import xopt

    costs = beside("tests", "support.second_order")
    found: Results = {"gtol": 1e-5, "names": costs.NAMES, "functions": {}, "logit": []}
    for method in costs.NAMES:
        for problem, *both in costs.beside_scipy(method, found["gtol"]):
            name = f"{problem.name}, {len(problem.start)}"
            found["functions"].setdefault(name, {})[method] = [None if x is None else [*x[:2]] for x in both]
    fun, x0 = beside("tests", "support.logit").multinomial()
    ours: list[Any] = ["lbfgs", "bfgs"]
    for method in ours:
        count = xopt.minimize(fun, x0, method=method, options={"gtol": 1e-6}).nfev
        found["logit"].append([f"xopt's `{method}`", count])
    found["logit"].append(["SciPy's L-BFGS-B", by_scipy(fun, x0, 1e-6)[0]])
    theirs = scipy.optimize.minimize(fun, x0, jac=True, method="BFGS", options={"gtol": 1e-6})
    found["logit"].append(["SciPy's BFGS", int(theirs.nfev)])
    return found


def rosenbrock(x: Any) -> tuple[float, Any]:
    """Return the value and the gradient of Rosenbrock's function in many dimensions, a chain."""
    import numpy as np

    a, b = x[1:] - x[:-1] ** 2, 1 - x[:-1]
    g = np.zeros_like(x)
    g[:-1] = -400 * x[:-1] * a - 2 * b
    g[1:] += 200 * a
    return float(100 * (a @ a) + b @ b), g


def pairs(x: Any) -> tuple[float, Any]:
    """Return those of the extended one, which are independent pairs (no. 21 of the collection)."""
    import numpy as np

    a, b = x[1::2] - x[::2] ** 2, 1 - x[::2]
    g = np.empty_like(x)
    g[::2], g[1::2] = -400 * x[::2] * a - 2 * b, 200 * a
    return float(100 * (a @ a) + b @ b), g


def dimensions() -> list[Results]:
    """Measure Rosenbrock's function in 2 to 10⁶ dimensions."""
    import numpy as np

    found = []
    for name, fun, start in (("pairs", pairs, [-1.2, 1.0]), ("a chain", rosenbrock, [0.9, 1.1])):
        for n in (2, 10, 100, 10**3, 10**4, 10**5, 10**6):
            x0, row = np.tile(start, n // 2), {"name": name, "n": n}
            for who, solve in (("xopt", by_xopt), ("SciPy", by_scipy)):
                row[who], row[f"{who} value"], x = solve(fun, x0, 1e-6)
                row[f"{who} error"] = float(abs(x - 1).max())
            found.append(row)
    return found


def regressions() -> list[Results]:
    """Fit scikit-learn's models with its own L-BFGS-B and with xopt's in its place."""
    clients = beside("tests/clients", "test_sklearn_lbfgs")
    found = []
    for k, row in enumerate(clients.ROWS):
        theirs, ours = (clients.fitted(k, xopts) for xopts in (False, True))
        found.append(
            {"name": str(row), "xopt": ours.nfev, "SciPy": theirs.nfev, "SciPy value": float(theirs.fun),
             "higher": float((ours.fun - theirs.fun) / theirs.fun)}
        )  # fmt: skip
    return found


def rosenbrock_of_torch(x: Any) -> tuple[Any, Any]:
    """Return what `rosenbrock` does, of tensors."""
    import torch

    a, b = x[1:] - x[:-1] ** 2, 1 - x[:-1]
    g = torch.zeros_like(x)
    g[:-1] = -400 * x[:-1] * a - 2 * b
    g[1:] += 200 * a
    return 100 * torch.dot(a, a) + torch.dot(b, b), g


def by_bfgs(fun: Any, x0: Any) -> int:
    """Return the evaluations of SciPy's BFGS, which keeps a whole matrix."""
    import scipy.optimize

    options = {"gtol": 0, "maxiter": STEPS}
    return int(scipy.optimize.minimize(fun, x0, jac=True, method="BFGS", options=options).nfev)


def seconds(size: int, rounds: int) -> Results:
    """Measure the time of an evaluation in 40 steps of each solver, the function included, with one thread and two."""
    import numpy as np
    import torch

    threadpool: Any = importlib.import_module("threadpoolctl")  # scikit-learn's

    x0 = np.tile([0.9, 1.1], size // 2)
    high = 0.95  # cuts off the minimum
    sides = [(None, high)] * size
    solvers: dict[str, Callable[[], int]] = {
        "xopt": lambda: by_xopt(rosenbrock, x0, 0.0, STEPS)[0],
        "SciPy": lambda: by_scipy(rosenbrock, x0, 0.0, STEPS)[0],
        "SciPy's BFGS": lambda: by_bfgs(rosenbrock, x0),
        "torch around NumPy": lambda: by_torch(of_tensors(rosenbrock), torch.from_numpy(x0), 0.0, STEPS)[0],
        "xopt, torch": lambda: by_xopt(rosenbrock_of_torch, torch.from_numpy(x0), 0.0, STEPS)[0],
        "torch": lambda: by_torch(rosenbrock_of_torch, torch.from_numpy(x0), 0.0, STEPS)[0],
        "xopt, bounds": lambda: by_xopt(rosenbrock, x0, 0.0, STEPS, bounds=(None, high))[0],
        "SciPy, bounds": lambda: by_scipy(rosenbrock, x0, 0.0, STEPS, bounds=sides)[0],
    }
    if size > 10**3:
        del solvers["SciPy's BFGS"]
    times: dict[str, list[float]] = {name: [] for name in solvers}
    for _ in range(rounds + 1):  # the first warms up
        for name, solve in solvers.items():
            found = []
            for threads in (1, 2):
                torch.set_num_threads(threads)
                with threadpool.threadpool_limits(threads), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that 40 steps are not enough
                    time.sleep(0.1)  # until the threads of the one before sleep
                    count, began = 0, time.perf_counter()
                    while not count or time.perf_counter() - began < BURST:
                        count += solve()
                    found.append((time.perf_counter() - began) / count)
            times[name].append(min(found))
    times = {name: found[1:] for name, found in times.items()}
    peers = {n: of for n, of in _PEERS.items() if n in times}
    ratios = {n: statistics.median(x / y for x, y in zip(times[n], times[of], strict=True)) for n, of in peers.items()}
    return {"n": size, "times": {n: statistics.median(t) for n, t in times.items()}, "ratios": ratios}


_PEERS = {
    "SciPy": "xopt", "SciPy's BFGS": "xopt", "torch around NumPy": "xopt", "torch": "xopt, torch",
    "SciPy, bounds": "xopt, bounds",
}  # fmt: skip


def verdicts(found: Results) -> list[tuple[str, float, float, bool]]:
    """Return what the times must show: a title, what must be, what is, and whether that is enough."""
    rows = []
    for x in found.get("seconds", []):
        for peer, ratio in x["ratios"].items():
            least = [must for name, size, must in MUST if name == peer and x["n"] >= size]
            if least:
                title = f"{peer}'s time, × xopt's, {x['n']:,} parameters"
                rows.append((title, least[-1], ratio, ratio >= least[-1]))
    return rows


def logistic(xp: Any, samples: int, n: int) -> Callable[[Any], tuple[Any, Any]]:
    """Return regularized logistic regression on random data in float32, of the namespace of arrays."""
    rng = xp.random.default_rng(0)
    X = rng.standard_normal((samples, n), dtype="float32")
    y = xp.where(rng.standard_normal(samples, dtype="float32") > 0, 1.0, -1.0).astype("float32")

    def fun(w: Any) -> tuple[Any, Any]:
        margins = y * (X @ w)
        slope = -(X.T @ (y / (1 + xp.exp(margins)))) / samples + 1e-4 * w
        return xp.mean(xp.logaddexp(0, -margins)) + 5e-5 * (w @ w), slope

    return fun


def round_trip(n: int, rounds: int, samples: int = 64) -> Results:
    """Measure an evaluation's share of xopt on the device, beside SciPy's, which copies both ways."""
    import cupy
    import numpy as np

    fun, times = logistic(cupy, samples, n), dict[str, list[float]](xopt=[], SciPy=[])

    def copied(w: Any) -> tuple[float, Any]:
        value, slope = fun(cupy.asarray(w, dtype="float32"))
        return float(value), cupy.asnumpy(slope).astype(float)

    for _ in range(rounds):
        for name, solve, f, xp in (("xopt", by_xopt, fun, cupy), ("SciPy", by_scipy, copied, np)):
            x0 = xp.zeros(n, "float32")
            began = time.perf_counter()
            count = solve(f, x0, 0.0, 20)[0]
            times[name].append((time.perf_counter() - began) / count)
    medians = {name: statistics.median(t) for name, t in times.items()}
    return {"n": n, "times": medians, "ratio": medians["SciPy"] / medians["xopt"]}


def page(found: Results) -> Iterator[str]:
    """Yield the lines of the page."""
    yield f"{found['date']}; {machine.short(found['hardware'])}. "
    yield ", ".join(f"{name} {version}" for name, version in found["versions"].items()) + ".\n"
    if "round trip" in found:
        x = found["round trip"]
        yield f"Logistic regression of {x['n']:,} weights on the GPU: {1e3 * x['times']['xopt']:.1f} ms an evaluation; "
        yield f"with SciPy on the host, and a copy each way, {x['ratio']:.1f} times that.\n"
    if "seconds" in found:
        yield "### Time\n"
        yield f"L-BFGS with {HISTORY} vectors on Rosenbrock's chain: microseconds an evaluation, that of the function"
        yield "included, and how many times those of xopt that is, the median of what each round finds. Of one"
        yield "thread and two, the faster counts. *Bounds*: `lbfgs-b`, with x ≤ 0.95, which cuts off the minimum.\n"
        for title, mine, others in (
            ("The function in NumPy", "xopt", ["SciPy", "SciPy's BFGS", "torch around NumPy"]),
            ("The function in NumPy, bounds", "xopt, bounds", ["SciPy, bounds"]),
            ("The function in torch", "xopt, torch", ["torch"]),
        ):
            rows = []
            for x in found["seconds"]:
                times = [f"{1e6 * x['times'][n]:.3g}" if n in x["times"] else "–" for n in (mine, *others)]
                ratios = [f"{x['ratios'][n]:.2f}" if n in x["ratios"] else "–" for n in others]
                rows.append([f"{x['n']:,}", *times, *ratios])
            yield from table([title, mine, *others, *(f"{n} / xopt" for n in others)], rows)
        judged = [
            [title, f"≥ {least:g}", f"{x:.2f}", "met" if met else "missed"] for title, least, x, met in verdicts(found)
        ]
        yield from table(["Figure", "must be", "is", ""], judged)
    if "functions" in found:
        yield "### Functions of Moré, Garbow and Hillstrom\n"
        yield f"Evaluations to a gradient of {GTOL:g}, and the value there; torch ends after 1,000 iterations."
        yield "*float32*: where xopt ends in float32.\n"
        names = ("xopt", "SciPy", "torch")
        rows = [
            [
                f"{x['name']}, {x['n']}",
                *(f"{x[n]}" for n in names),
                *(f"{x[f'{n} value']:.4g}" for n in (*names, "float32")),
            ]
            for x in found["functions"]
        ]
        sums = [str(sum(x[n] for x in found["functions"])) for n in names]
        head = ["Function, n", *names, "value", "SciPy", "torch", "float32"]
        yield from table(head, [*rows, ["all", *sums, "", "", "", ""]])
    if "boxes" in found:
        x = found["boxes"]
        yield f"In {x['boxes']} boxes that cut off the minimum, with `lbfgs-b`: {x['xopt']} evaluations, SciPy "
        yield f"{x['SciPy']}. Where there are two minima, xopt found the lower one {x['xopt lower']} times, SciPy "
        yield f"{x['SciPy lower']} times.\n"
    if "second order" in found:
        yield from _second_order(found["second order"])
    if "dimensions" in found:
        yield "### Rosenbrock's function in many dimensions\n"
        yield "Evaluations to a gradient of 1e-6, and the largest error of an element of x.\n"
        rows = [
            [
                f"{x['name']}, {x['n']:,}",
                str(x["xopt"]),
                str(x["SciPy"]),
                f"{x['xopt error']:.1e}",
                f"{x['SciPy error']:.1e}",
            ]
            for x in found["dimensions"]
        ]
        yield from table(["", "xopt", "SciPy", "xopt's error", "SciPy's error"], rows)
    if "regressions" in found:
        yield "### scikit-learn\n"
        yield "`LogisticRegression` and `MLPClassifier` with their own L-BFGS, SciPy's, and with xopt's in its place:"
        yield "evaluations, and how much higher the objective ends, as a part of it.\n"
        rows = [[x["name"], str(x["xopt"]), str(x["SciPy"]), f"{x['higher']:+.0e}"] for x in found["regressions"]]
        sums = [str(sum(x[n] for x in found["regressions"])) for n in ("xopt", "SciPy")]
        yield from table(["", "xopt", "SciPy", "higher by"], [*rows, ["all", *sums, ""]])


def _second_order(x: Results) -> Iterator[str]:
    yield "### BFGS, and methods that use the Hessian\n"
    yield f"Evaluations of value and gradient to a gradient of {x['gtol']:g} on the same functions, and with a + the"
    yield "products of the Hessian, for `trust-exact` Hessians, beside SciPy's method of the same name; – where 200"
    yield "iterations are not enough. Sums are over what both solve.\n"
    names = list(x["names"])
    pairs = {m: [row[m] for row in x["functions"].values() if None not in row[m]] for m in names}
    sums = {m: [[sum(p[k][i] for p in pairs[m]) for i in range(2)] for k in range(2)] for m in names}

    def cells(of: Results) -> list[str]:
        found = [n for m in names for n in of[m]]
        return ["–" if n is None else f"{n[0]} + {n[1]}" if n[1] else f"{n[0]}" for n in found]

    rows = [[name, *cells(row)] for name, row in [*x["functions"].items(), ("all", sums)]]
    yield from table(["Function, n", *(n for m in names for n in (f"`{m}`", "SciPy"))], rows)
    what = ", ".join(f"{name} {count:,}" for name, count in x["logit"])
    yield "A multinomial logit of 36 parameters whose Hessian has a condition of 4e5, evaluations to a gradient of"
    yield f"1e-6: {what}.\n"


def main(argv: list[str] | None = None) -> None:
    """Measure, print, and write the record and the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.solvers", description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--quick", action="store_true", help="small sizes; nothing is written")
    parser.add_argument("--only", choices=["seconds", "second-order"], help="measure this alone; nothing is written")
    parser.add_argument("--check", action="store_true", help="fail where the time misses what it must show")
    args = parser.parse_args(argv)
    threads_for_all(2)
    found: Results = {
        "date": datetime.date.today().isoformat(), "device": args.device, "hardware": machine.hardware(args.device),
        "versions": {n: v for n, v in machine.versions().items() if n in ("python", "xopt", "numpy", "scipy", "torch",
                                                                          "scikit-learn", "cupy-cuda13x")},
    }  # fmt: skip
    if args.device == "cuda":
        found["round trip"] = round_trip(10**5 if args.quick else 10**7, 5)
    elif args.only == "second-order":
        found["second order"] = second_order()
    else:
        sizes = [10, 10**4] if args.quick else [2, 10, 100, 10**3, 10**4, 10**5, 10**6]
        found["seconds"] = [seconds(n, 3 if args.quick else 7) for n in sizes]
        if not args.only:
            found["functions"], found["boxes"], found["second order"] = functions(), boxes(), second_order()
        if not args.quick and not args.only:
            found["dimensions"], found["regressions"] = dimensions(), regressions()
    text = "\n".join(page(found))
    print(text)
    if not args.quick and not args.only:
        folder = ROOT / "benchmarks" / "results" / "solvers"
        folder.mkdir(exist_ok=True)
        (folder / f"{found['date']}-{machine.short(found['hardware'])}.json").write_text(json.dumps(found, indent=1))
        write([json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))], ROOT / "docs" / "minimize.md")
    if args.check and not all(met for *_, met in verdicts(found)):
        raise SystemExit("the time misses what it must show")


def write(records: list[Results], file: Path) -> None:
    """Write the newest results of each kind of device into the page."""
    newest = {x["device"]: x for x in records}
    before, rest = file.read_text().split(BEGIN)
    body = "\n".join(line for device in ("cpu", "cuda") if device in newest for line in page(newest[device]))
    file.write_text(f"{before}{BEGIN}\n\n{body}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
