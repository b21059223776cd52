"""The tiled runner beside a textbook NumPy Adam, in one run, interleaved.

Two workloads in float32: 1,000 vectors of 1,000, and one vector of 2**25 elements. Printed are medians, the spread
between the quartiles, and the ratio of the medians: absolute times mean nothing on a machine that others use. Peak
memory is what a step allocates beyond the parameters, the gradients and the state.

    nox -s bench                  # or: python benchmarks/textbook.py --log2 25 --rounds 7
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

import xopt

Array = Any


def textbook(p: Array, g: Array, m: Array, v: Array, t: int) -> tuple[Array, Array, Array]:
    """Return what Algorithm 1 of Kingma & Ba 2015 says, line by line."""
    lr, b1, b2, eps = 1e-3, 0.9, 0.999, 1e-8
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g**2
    m_hat = m / (1 - b1**t)
    v_hat = v / (1 - b2**t)
    p = p - lr * m_hat / (np.sqrt(v_hat) + eps)
    return p, m, v


class Textbook:
    """A list of arrays, each with its moments, as in a textbook."""

    def __init__(self, params: list[Array]) -> None:
        self.t = 0
        self.rows = [(p.copy(), np.zeros_like(p), np.zeros_like(p)) for p in params]

    def step(self, grads: list[Array]) -> None:
        self.t += 1
        for k, (g, (p, m, v)) in enumerate(zip(grads, self.rows, strict=True)):
            self.rows[k] = textbook(p, g, m, v, self.t)


def interleave(cases: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time every case once a round, so that a slow spell of the machine hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for r in range(rounds + 1):
        for name, step in cases.items():
            start = time.perf_counter()
            step()
            if r:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return seconds


def report(title: str, seconds: dict[str, list[float]], first: str) -> None:
    base = statistics.median(seconds[first])
    print(f"\n{title}\n{'':22}{'ms a step':>12}{'quartiles':>16}{'× textbook':>13}")
    for name, all_ in seconds.items():
        low, middle, high = statistics.quantiles(all_, n=4)
        print(f"{name:22}{middle * 1e3:12.2f}{low * 1e3:9.2f}-{high * 1e3:.2f}{base / middle:13.2f}")


def peak(step: Callable[[], object]) -> float:
    step()
    tracemalloc.start()
    step()
    size = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return size / 1e6


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Adam, float32: the tiled runner beside a textbook NumPy Adam.")
    parser.add_argument("--log2", type=int, default=25, help="size of the one vector, as a power of two")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args(argv)
    xopt.show_config()
    rng = np.random.default_rng(0)
    for title, sizes in [("1,000 vectors of 1,000", [1000] * 1000), (f"one vector of 2**{args.log2}", [2**args.log2])]:
        params = [rng.standard_normal(n, dtype="float32") for n in sizes]
        grads = [rng.standard_normal(n, dtype="float32") for n in sizes]
        book = Textbook(params)
        opt = xopt.Optimizer(params, xopt.Adam())
        rounds = args.rounds if len(sizes) == 1 else 10 * args.rounds
        cases: dict[str, Callable[[], object]] = {
            "textbook": lambda book=book, grads=grads: book.step(grads),  # type: ignore[misc]
            "xopt, tiled": lambda opt=opt, grads=grads: opt.step(grads),  # type: ignore[misc]
        }
        report(title, interleave(cases, rounds), "textbook")
        for name, step in cases.items():
            print(f"{name:22}{peak(step):12.1f} MB allocated at the peak of a step")


if __name__ == "__main__":
    main()
