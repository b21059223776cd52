"""Proximal solvers beside other packages: ``python -m benchmarks.proximal`` measures, prints, writes docs/proximal.md.

It deblurs one image with total variation in [0, 1], and counts the iterations that PDHG of xopt, of PyProximal (the
adaptive one too) and of ODL take until the objective is within a part of the least one; and those of FISTA and of
proximal gradient on a LASSO. ``--check`` fails where xopt takes more than the best of the others.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import machine
from benchmarks.report import circumstances, publish, table

ENOUGH = (1e-3, 1e-4, 1e-6)
"""How near to the least objective, as a part of it."""
STRENGTH = 1e-3
MOST = 3000
"""Iterations, at most."""
FEW, MANY = 300, 2549
"""Iterations on the LASSO: of FISTA at most, of proximal gradient at least."""
Results = dict[str, Any]


class Blur:
    """A photograph of disks and boxes, blurred periodically by a Gaussian, with noise."""

    def __init__(self, size: int, seed: int = 0) -> None:
        import numpy as np

        self.np, self.size = np, size
        i, j = np.mgrid[:size, :size] / size
        image = (
            0.2 + 0.6 * ((i - 0.4) ** 2 + (j - 0.5) ** 2 < 0.08) + 0.3 * ((abs(i - 0.7) < 0.12) & (abs(j - 0.6) < 0.25))
        )
        self.image = np.clip(image + 0.2 * ((i > 0.5) & (j < 0.3)), 0, 1)
        r = np.fft.fftfreq(size) * size
        k = np.exp(-(r[:, None] ** 2 + r**2) / (2 * 1.5**2))
        self.transfer = np.fft.fft2(k / k.sum())
        self.data = self.forward(self.image) + 0.01 * np.random.default_rng(seed).standard_normal((size, size))

    def forward(self, x: Any) -> Any:
        """Return A·x; A is its own adjoint, because the blur is symmetric."""
        return self.np.fft.ifft2(self.transfer * self.np.fft.fft2(x)).real

    def objective(self, x: Any) -> float:
        """Return ½‖A·x - b‖² + λ·TV(x), differences forward and 0 at the far edges, of x put into [0, 1]."""
        np = self.np
        x = np.clip(x, 0, 1)
        down, right = (np.diff(x, axis=a, append=np.take(x, [-1], axis=a)) for a in (0, 1))
        return float(np.sum((self.forward(x) - self.data) ** 2) / 2 + STRENGTH * np.sum(np.hypot(down, right)))


class Enough(Exception):
    """The last of the goals was reached."""


def counted(problem: Blur, least: float) -> tuple[list[int | None], Callable[[Any], None]]:
    """Return at which iterations the goals are reached, which is filled in, and what to call with each x."""
    found: list[int | None] = [None] * len(ENOUGH)
    nit = [0]

    def call(x: Any) -> None:
        nit[0] += 1
        value = problem.objective(problem.np.asarray(x).reshape(problem.size, problem.size))
        for k, part in enumerate(ENOUGH):
            if found[k] is None and value <= (1 + part) * least:
                found[k] = nit[0]
        if found[-1] is not None:
            raise Enough

    return found, call


def by_xopt(problem: Blur, callback: Any, **options: Any) -> Any:
    """Run PDHG of xopt."""
    from xopt import proximal

    def K(x: Any) -> Any:
        return proximal.gradient(x), problem.forward(x)

    def adjoint(y: Any) -> Any:
        return problem.forward(y[1]) - proximal.divergence(y[0])

    f = (proximal.group_l1(STRENGTH), proximal.squared(problem.data))
    zeros = problem.np.zeros_like(problem.data)
    return proximal.pdhg(f, zeros, proximal.box(0.0, 1.0), K=(K, adjoint), callback=callback, **options)


def by_pyproximal(problem: Blur, callback: Any, adaptive: bool, ratio: float, norm: float) -> Any:
    """Run PrimalDual or AdaptivePrimalDual of PyProximal."""
    pylops, pyproximal = map(importlib.import_module, ("pylops", "pyproximal"))
    np, shape, n = problem.np, (problem.size, problem.size), problem.data.size
    gradient = pylops.Gradient(dims=shape, kind="forward", edge=False)
    blur = pylops.FunctionOperator(
        lambda x: problem.forward(x.reshape(shape)).ravel(), lambda y: problem.forward(y.reshape(shape)).ravel(), n, n
    )
    f = pyproximal.Box(0, 1)
    g = pyproximal.VStack([pyproximal.L21(ndim=2, sigma=STRENGTH), pyproximal.L2(b=problem.data.ravel())], [2 * n, n])
    operator = pylops.VStack([gradient, blur])
    tau, mu = 1 / (norm * np.sqrt(ratio)), np.sqrt(ratio) / norm
    solvers = pyproximal.optimization.primaldual
    solve = solvers.AdaptivePrimalDual if adaptive else solvers.PrimalDual
    return solve(f, g, operator, x0=np.zeros(n), tau=tau, mu=mu, niter=MOST, callback=callback)


def by_odl(problem: Blur, callback: Any, ratio: float, norm: float) -> Any:
    """Run pdhg of ODL."""
    odl = importlib.import_module("odl")
    np, n = problem.np, problem.size
    space = odl.uniform_discr([0, 0], [n, n], [n, n])

    class Blurred(odl.Operator):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__(space, space, linear=True)

        def _call(self, x: Any) -> Any:
            return problem.forward(x.asarray())

        @property
        def adjoint(self) -> Any:
            return self

    gradient = odl.Gradient(space, method="forward", pad_mode="symmetric")
    operator = odl.BroadcastOperator(gradient, Blurred())
    functional = odl.functionals
    rough = STRENGTH * functional.GroupL1Norm(gradient.range)
    misfit = 0.5 * functional.L2NormSquared(space).translated(space.element(problem.data))
    f, g = functional.IndicatorBox(space, 0, 1), functional.SeparableSum(rough, misfit)
    tau, sigma = 1 / (norm * np.sqrt(ratio)), np.sqrt(ratio) / norm
    odl.solvers.pdhg(space.zero(), f, g, operator, MOST, tau, sigma, callback=lambda x: callback(x.asarray()))


def deblurred(size: int) -> Results:
    """Count the iterations of all."""
    problem = Blur(size)
    near = by_xopt(problem, None, tol=1e-9, maxiter=20_000)
    least = problem.objective(near.x)
    norm = 3.0  # ‖∇‖² + ‖A‖² ≤ 8 + 1
    ways: dict[str, Callable[[Any], Any]] = {
        "xopt, by default": lambda call: by_xopt(problem, call, tol=0, maxiter=MOST),
        "PyProximal AdaptivePrimalDual": lambda call: by_pyproximal(problem, call, True, 1.0, norm),
    }
    for ratio in (1.0, 0.1, 0.01):
        ways[f"PyProximal PrimalDual, σ/τ = {ratio:g}"] = functools.partial(
            by_pyproximal, problem, adaptive=False, ratio=ratio, norm=norm
        )
        ways[f"ODL pdhg, σ/τ = {ratio:g}"] = functools.partial(by_odl, problem, ratio=ratio, norm=norm)
    rows = {}
    for name, run in ways.items():
        found, call = counted(problem, least)
        with contextlib.suppress(Enough):
            run(call)
        rows[name] = found
        print(name, found, flush=True)
    return {"size": size, "least": least, "gap": near.gap / near.fun, "rows": rows}


def lasso() -> Results:
    """Count the iterations of FISTA and of proximal gradient on a LASSO with dependent columns, to 1e-6."""
    import numpy as np

    from xopt import proximal

    rng = np.random.default_rng(0)
    a = rng.standard_normal((200, 1000))
    for j in range(1, 1000):
        a[:, j] = 0.9 * a[:, j - 1] + np.sqrt(1 - 0.9**2) * a[:, j]
    x = np.zeros(1000)
    x[rng.choice(1000, 20, replace=False)] = rng.standard_normal(20)
    b = a @ x + 0.1 * rng.standard_normal(200)
    f, g = proximal.squared(b), proximal.l1(0.02 * float(np.abs(a.T @ b).max()))
    least = proximal.fista(f, np.zeros(1000), g, K=a, tol=1e-12).fun

    def steps(**options: Any) -> int:
        def enough(intermediate_result: Any) -> bool:
            return bool(intermediate_result.fun <= (1 + 1e-6) * least)

        return int(proximal.fista(f, np.zeros(1000), g, K=a, tol=0, callback=enough, maxiter=20_000, **options).nit)

    return {"fista": steps(), "without restart": steps(restart=False), "proximal gradient": steps(momentum=False)}


def best(found: Results, k: int) -> float:
    """Return the fewest iterations of the others to a goal."""
    others = [row[k] for name, row in found["deblur"]["rows"].items() if "xopt" not in name]
    return min((x for x in others if x is not None), default=float("inf"))


def verdicts(found: Results) -> list[tuple[str, str, str, bool]]:
    """Return what must be shown: a title, what must be, what is, and whether that is enough."""
    own = found["deblur"]["rows"]["xopt, by default"]
    rows = [
        (f"PDHG, deblurring, to {part:g}", f"≤ {best(found, k):g}, the best of the others", str(own[k]),
         own[k] is not None and own[k] <= best(found, k))
        for k, part in enumerate(ENOUGH)
    ]  # fmt: skip
    few, many = found["lasso"]["fista"], found["lasso"]["proximal gradient"]
    return [
        *rows,
        ("FISTA, LASSO, to 1e-06", f"≤ {FEW}", str(few), few <= FEW),
        ("proximal gradient, the same", f"≥ {MANY}", str(many), many >= MANY),
    ]


def page(found: Results) -> Iterator[str]:
    """Yield the lines of the page."""
    yield f"{found['date']}; {machine.short(found['hardware'])}. "
    known = ("python", "xopt", "numpy")
    yield ", ".join(f"{n} {version}" for n, version in found["versions"].items() if n in known) + "; "
    yield ", ".join(f"{n} {version}" for n, version in found["peers"].items()) + ".\n"
    yield from table(
        ["Iterations", "must be", "are", ""], [[*row, "met" if ok else "missed"] for *row, ok in verdicts(found)]
    )
    x = found["deblur"]
    yield f"Deblurring: {x['size']} × {x['size']} pixels in [0, 1], a Gaussian blur of 1.5 pixels, 1 % of noise, λ ="
    yield f"{STRENGTH:g}, from 0, K = (∇, A); the least objective is known to {x['gap']:.1g} of it, by the duality gap."
    yield "All have ‖K‖ = 3 or estimate it; the others are given three ratios of steps, which xopt finds.\n"
    rows = [[name, *("–" if n is None else str(n) for n in row)] for name, row in x["rows"].items()]
    yield from table(["Iterations until the objective is within", *(f"{p:g}" for p in ENOUGH)], rows)
    yield f"LASSO: 200 × 1000, to 1e-6: FISTA {found['lasso']['fista']} iterations, without restart"
    yield f"{found['lasso']['without restart']}, proximal gradient {found['lasso']['proximal gradient']}."


def main(argv: list[str] | None = None) -> None:
    """Measure, print, and write the record and the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proximal", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller image; nothing is written")
    parser.add_argument("--check", action="store_true", help="fail where a figure misses what it must be")
    args = parser.parse_args(argv)
    found: Results = circumstances()
    found["peers"] = {n: importlib.import_module(n).__version__ for n in ("pyproximal", "odl")}
    found["lasso"] = lasso()
    found["deblur"] = deblurred(32 if args.quick else 64)
    publish("proximal", found, list(page(found)), "proximal.md", args.quick)
    if args.check and not all(met for *_, met in verdicts(found)):
        raise SystemExit("a figure misses what it must be")


if __name__ == "__main__":
    main()
