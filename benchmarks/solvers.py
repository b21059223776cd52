"""Solvers beside SciPy's and torch's: ``python -m benchmarks.solvers`` prints evaluations and seconds.

Evaluations are those to a gradient of 1e-8 on the functions of Moré, Garbow and Hillstrom; seconds those of 40 steps of
L-BFGS with 10 vectors on 10⁶ parameters, the solvers one after the other in each round, medians of the ratios.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.__main__ import threads_for_all

STEPS, HISTORY, SIZE = 40, 10, 10**6


def problems() -> list[Any]:
    """Return the test functions."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import mgh

    return list(mgh.PROBLEMS)


def evaluations() -> None:
    """Print how often each solver evaluates each function, and where it ends."""
    import numpy as np
    import scipy.optimize  # type: ignore[import-untyped]

    import xopt

    total = np.zeros(2, int)
    print(f"{'':28}{'xopt':>8}{'value':>12}{'SciPy':>8}{'value':>12}{'least':>12}")
    for problem in problems():
        x0 = np.asarray(problem.start, "float64")
        mine = xopt.minimize(problem, x0, options={"gtol": 1e-8, "history": HISTORY})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other = scipy.optimize.minimize(
                problem, x0, jac=True, method="L-BFGS-B", options={"gtol": 1e-8, "ftol": 0, "maxcor": HISTORY}
            )
        total += mine.nfev, other.nfev
        least = min(problem.least, key=lambda value: abs(value - mine.fun))
        print(f"{problem.name:28}{mine.nfev:8}{mine.fun:12.4g}{other.nfev:8}{other.fun:12.4g}{least:12.4g}")
    print(f"{'all':28}{total[0]:8}{'':12}{total[1]:8}")


def rosenbrock(x: Any) -> tuple[float, Any]:
    """Return the value and the gradient of Rosenbrock's function in many dimensions."""
    import numpy as np

    a, b = x[1:] - x[:-1] ** 2, 1 - x[:-1]
    g = np.zeros_like(x)
    g[:-1] = -400 * x[:-1] * a - 2 * b
    g[1:] += 200 * a
    return float(100 * (a @ a) + b @ b), g


def solvers() -> dict[str, Callable[[Any], int]]:
    """Return, for each solver, a function of the start that takes the steps, and returns how many there were."""
    import scipy.optimize

    import xopt

    def mine(x0: Any) -> int:
        options = {"gtol": 0.0, "history": HISTORY}
        return int(xopt.minimize(rosenbrock, x0, maxiter=STEPS, options=options).nit)

    def scipys(x0: Any) -> int:
        options = {"gtol": 0, "ftol": 0, "maxiter": STEPS, "maxcor": HISTORY}
        return int(scipy.optimize.minimize(rosenbrock, x0, jac=True, method="L-BFGS-B", options=options).nit)

    found: dict[str, Callable[[Any], int]] = {"xopt": mine, "SciPy": scipys}
    try:
        import torch
    except ImportError:
        return found

    def torchs(x0: Any) -> int:
        x = torch.from_numpy(x0.copy()).requires_grad_()
        opt = torch.optim.LBFGS(
            [x], max_iter=STEPS, history_size=HISTORY, line_search_fn="strong_wolfe", tolerance_grad=0,
            tolerance_change=0,
        )  # fmt: skip

        def closure() -> Any:
            value, g = rosenbrock(x.detach().numpy())
            x.grad = torch.from_numpy(g)
            return torch.tensor(value, dtype=torch.float64)

        opt.step(closure)
        return int(opt.state[x]["n_iter"])

    return {**found, "torch": torchs}


def seconds(rounds: int = 5) -> None:
    """Print the time of a step of each solver, and how many times xopt's it is."""
    import numpy as np

    x0, contenders = np.tile([0.9, 1.1], SIZE // 2), solvers()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, solve in contenders.items():
            began = time.perf_counter()
            steps = solve(x0)
            times[name].append((time.perf_counter() - began) / steps)
    for name, found in times.items():
        ratio = statistics.median(x / y for x, y in zip(found, times["xopt"], strict=True))
        print(f"{name:8}{1e3 * statistics.median(found):10.1f} ms a step{ratio:8.2f} × xopt")


if __name__ == "__main__":
    threads_for_all(2)
    evaluations()
    print()
    seconds()
