"""Every schedule with its formula."""

from __future__ import annotations

import math

from xopt import schedules as s

PI = math.pi


def between(a: float, b: float, x: float) -> float:
    """Go from a to b along half a cosine while x goes from 0 to 1."""
    return b + (a - b) * (1 + math.cos(PI * min(max(x, 0), 1))) / 2


def line(a: float, b: float, x: float) -> float:
    return a + (b - a) * min(max(x, 0), 1)


def restarts(k: int, steps: float, growth: float) -> tuple[int, float]:
    """Count the restarts one by one: how many, and the fraction of the present fall."""
    n = 0
    while k >= steps:
        k, steps, n = k - steps, steps * growth, n + 1
    return n, k / steps


def wave(k: int, up: float, down: float) -> float:
    k = k % (up + down)
    return k / up if k <= up else (up + down - k) / down


def ceiling(k: int, n: int) -> int:
    return max(math.ceil(k / n), 1) * n


half = lambda t: 0.5**t

FORMULAS = {
    s.constant(0.3): lambda k: 0.3,
    s.step(0.3, every=3, factor=0.5): lambda k: 0.3 * 0.5 ** (k // 3),
    s.step(0.3, every=2.5, factor=0.5): lambda k: 0.3 * 0.5 ** (k // 2.5),
    s.multi_step(0.3, boundaries=[4, 5, 9], factor=0.5): lambda k: 0.3 * 0.5 ** sum(k >= b for b in (4, 5, 9)),
    s.piecewise([0.3, 0.1, 0.2], [4, 9]): lambda k: 0.3 if k < 4 else 0.1 if k < 9 else 0.2,
    s.piecewise([0.3, 0.1, 0.2], [4, 9], shape="linear"): lambda k: (
        line(0.3, 0.1, k / 4) if k < 4 else line(0.1, 0.2, (k - 4) / 5)
    ),
    s.piecewise([0.3, 0.1, 0.2], [4, 9], shape="cosine"): lambda k: (
        between(0.3, 0.1, k / 4) if k < 4 else between(0.1, 0.2, (k - 4) / 5)
    ),
    s.piecewise([0.3, 0.1, 0.2], [4, 9.5], shape="1-sqrt"): lambda k: (
        line(0.3, 0.1, math.sqrt(k / 4)) if k < 4 else line(0.1, 0.2, math.sqrt((k - 4) / 5.5))
    ),
    s.exponential(0.3, rate=0.9): lambda k: 0.3 * 0.9**k,
    s.exponential(0.3, rate=0.5, every=4): lambda k: 0.3 * 0.5 ** (k / 4),
    s.exponential(0.3, rate=0): lambda k: 0.3 * (k == 0),
    s.polynomial(0.3, end=0.01, steps=10): lambda k: line(0.3, 0.01, k / 10),
    s.polynomial(0.3, end=0.01, steps=10, power=2.5): lambda k: 0.01 + 0.29 * (1 - min(k / 10, 1)) ** 2.5,
    s.polynomial(0.3, end=0.01, steps=7, cycle=True): lambda k: line(0.3, 0.01, k / ceiling(k, 7)),
    s.polynomial(0.3, end=0.01, steps=7, power=0.5, cycle=True): lambda k: 0.01 + 0.29 * (1 - k / ceiling(k, 7)) ** 0.5,
    s.inverse_time(0.3, rate=0.2): lambda k: 0.3 / (1 + 0.2 * k),
    s.inverse_time(0.3, rate=0.2, every=3): lambda k: 0.3 / (1 + 0.2 * k / 3),
    s.inverse_sqrt(0.3, warmup=5): lambda k: 0.3 * (k / 5 if k < 5 else math.sqrt(5 / k)),
    s.inverse_sqrt(0.3, warmup=5, start=0.1, timescale=9): lambda k: (
        line(0.1, 0.3, k / 5) if k < 5 else 0.3 / math.sqrt((k - 5 + 9) / 9)
    ),
    s.inverse_sqrt(0.3, warmup=0, timescale=9): lambda k: 0.3 * math.sqrt(9 / (k + 9)),
    s.noam(512, warmup=4, factor=2.0): lambda k: 2 * 512**-0.5 * min((k + 1) ** -0.5, (k + 1) * 4**-1.5),
    s.cosine(0.3, steps=10): lambda k: between(0.3, 0, k / 10),
    s.cosine(0.3, steps=10, end=0.05): lambda k: between(0.3, 0.05, k / 10),
    s.cosine(0.3, steps=10, end=0.05, power=1.5): lambda k: 0.05 + 0.25 * between(1, 0, k / 10) ** 1.5,
    s.cosine_restarts(0.3, steps=7, end=0.05): lambda k: between(0.3, 0.05, k % 7 / 7),
    s.cosine_restarts(0.3, steps=3, growth=2, factor=0.5): lambda k: (
        0.5 ** restarts(k, 3, 2)[0] * between(0.3, 0, restarts(k, 3, 2)[1])
    ),
    s.cosine_restarts(0.3, steps=2.5, end=0.1, growth=1.3, factor=0.5): lambda k: (
        0.1 + 0.5 ** restarts(k, 2.5, 1.3)[0] * between(0.2, 0, restarts(k, 2.5, 1.3)[1])
    ),
    s.cyclic(0.1, peak=0.3, up=4): lambda k: 0.1 + 0.2 * wave(k, 4, 4),
    s.cyclic(0.1, peak=0.3, up=4, down=3, factor=0.5, rate=0.9): lambda k: (
        0.1 + 0.2 * wave(k, 4, 3) * 0.5 ** (k // 7) * 0.9**k
    ),
    s.cyclic(0.3, peak=0.0, up=7, shape="cosine"): lambda k: 0.15 * (1 + math.cos(PI * k / 7)),
    s.rex(0.3, steps=10): lambda k: 0.3 * (1 - min(k / 10, 1)) / (0.5 + 0.5 * (1 - min(k / 10, 1))),
    s.rex(0.3, steps=10, end=0.1): lambda k: 0.1 + 0.2 * (1 - min(k / 10, 1)) / (0.5 + 0.5 * (1 - min(k / 10, 1))),
    s.warmup(0.3, steps=5): lambda k: line(0, 0.3, k / 5),
    s.warmup(0.3, steps=5, start=0.1): lambda k: line(0.1, 0.3, k / 5),
    s.warmup_cosine(0.3, warmup=5, steps=15): lambda k: 0.06 * k if k < 5 else between(0.3, 0, (k - 5) / 10),
    s.warmup_cosine(0.3, warmup=5, steps=15, end=0.02, start=0.1, power=2): lambda k: (
        line(0.1, 0.3, k / 5) if k < 5 else 0.02 + 0.28 * between(1, 0, (k - 5) / 10) ** 2
    ),
    s.warmup_cosine(0.3, warmup=0, steps=15): lambda k: between(0.3, 0, k / 15),
    s.wsd(0.3, warmup=4, steps=20, cooldown=6): lambda k: line(0, 0.3, k / 4) if k < 4 else line(0.3, 0, (k - 14) / 6),
    s.wsd(0.3, warmup=4, steps=20, cooldown=6, start=0.1, end=0.05, shape="cosine"): lambda k: (
        line(0.1, 0.3, k / 4) if k < 4 else between(0.3, 0.05, (k - 14) / 6)
    ),
    s.wsd(0.3, warmup=0, steps=20, cooldown=20, shape="1-sqrt"): lambda k: 0.3 * (1 - math.sqrt(min(k / 20, 1))),
    s.one_cycle(0.3, steps=20): lambda k: (
        between(0.012, 0.3, k / 6) if k < 6 else between(0.3, 0.012 / 1e4, (k - 6) / 14)
    ),
    s.one_cycle(0.3, steps=20, warmup=0, end=0.1): lambda k: between(0.3, 0.1, k / 20),
    s.one_cycle(0.3, steps=20, warmup=5, back=9, start=0.1, end=0.0, shape="linear"): lambda k: (
        line(0.1, 0.3, k / 5) if k < 5 else line(0.3, 0.1, (k - 5) / 4) if k < 9 else line(0.1, 0, (k - 9) / 11)
    ),
    s.join([s.warmup(0.3, steps=4), s.cosine(0.3, steps=8)], [4]): lambda k: (
        0.075 * k if k < 4 else between(0.3, 0, (k - 4) / 8)
    ),
    s.join([s.constant(1.0), s.step(0.5, every=2, factor=0.1), s.constant(0.25)], [3, 8]): lambda k: (
        1.0 if k < 3 else 0.5 * 0.1 ** ((k - 3) // 2) if k < 8 else 0.25
    ),
    s.scale(s.cosine(0.3, steps=10), 0.5): lambda k: between(0.15, 0, k / 10),
    s.scale(half, 3): lambda k: 3 * 0.5 ** (k + 1),
    s.delay(s.exponential(0.3, rate=0.9), steps=6): lambda k: 0.3 * 0.9 ** max(k - 6, 0),
    s.staircase(s.inverse_time(0.3, rate=0.2), every=6): lambda k: 0.3 / (1 + 0.2 * (k // 6) * 6),
    s.staircase(s.warmup(0.3, steps=9), every=2.5): lambda k: 0.3 * min(k // 2.5 * 2.5 / 9, 1),
    s.clip(s.warmup(0.3, steps=10), low=0.1, high=0.2): lambda k: min(max(0.03 * k, 0.1), 0.2),
    s.clip(s.exponential(0.3, rate=0.5), low=0.01): lambda k: max(0.3 * 0.5**k, 0.01),
    s.warmup(1.0, steps=5) * s.exponential(0.3, rate=0.9): lambda k: min(k / 5, 1) * 0.3 * 0.9**k,
    1 - 0.5 * s.warmup(1.0, steps=5): lambda k: 1 - 0.5 * min(k / 5, 1),
    (s.constant(0.5) + s.warmup(1.0, steps=5)) ** 2 - 0.1: lambda k: (0.5 + min(k / 5, 1)) ** 2 - 0.1,
    2.0 ** -s.warmup(1.0, steps=5) / (1 / s.constant(4.0)): lambda k: 4 * 2 ** -min(k / 5, 1),
    s.warmup(1.0, steps=5) * half: lambda k: min(k / 5, 1) * 0.5 ** (k + 1),
    half / s.constant(2.0) + half: lambda k: 1.5 * 0.5 ** (k + 1),
}
EVERY = list(FORMULAS)
