"""
The schedules
=============

Every schedule of :mod:`xopt.schedules`, drawn with :meth:`Schedule.plot <xopt.schedules.Schedule.plot>`. The numbers of
steps are small so that the single steps can be seen; step 1 is the first update.

::

    python draw_schedules.py --output-dir pictures

draws ``schedules.png`` and ``combined.png``.
"""

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt

from xopt import schedules as s

STEPS = 60

# %%
# One by one
# ----------
#
# Several in a panel differ in one option.

SCHEDULES = {
    "Without an end": [
        s.constant(0.3),
        s.exponential(1.0, rate=0.95),
        s.inverse_time(1.0, rate=0.2),
    ],
    "Staircases": [
        s.step(1.0, every=15, factor=0.5),
        s.multi_step(1.0, boundaries=[20, 35, 50], factor=0.3),
    ],
    "To an end, and stay": [
        s.polynomial(1.0, end=0.0, steps=50),
        s.polynomial(1.0, end=0.0, steps=50, power=2),
        s.cosine(1.0, steps=50),
        s.cosine(1.0, steps=50, end=0.2, power=2),
        s.rex(1.0, steps=50),
    ],
    "From value to value": [
        s.piecewise([0.2, 1.0, 0.5], [15, 45]),
        s.piecewise([0.2, 1.0, 0.5], [15, 45], shape="linear"),
        s.piecewise([0.2, 1.0, 0.5], [15, 45], shape="cosine"),
        s.piecewise([0.2, 1.0, 0.5], [15, 45], shape="1-sqrt"),
    ],
    "Warm-up": [
        s.warmup(1.0, steps=10),
        s.warmup_cosine(1.0, warmup=10, steps=50),
        s.inverse_sqrt(1.0, warmup=10, start=0.3),
        s.noam(64, warmup=10, factor=20),
    ],
    "Warm-up, stable, decay": [
        s.wsd(1.0, warmup=10, steps=55, cooldown=20),
        s.wsd(1.0, warmup=10, steps=55, cooldown=20, shape="cosine"),
        s.wsd(1.0, warmup=10, steps=55, cooldown=20, shape="1-sqrt"),
    ],
    "One cycle": [
        s.one_cycle(1.0, steps=50),
        s.one_cycle(1.0, steps=50, warmup=20, back=40, start=0.2, shape="linear"),
        s.one_cycle(0.85, steps=50, start=0.95, end=0.95),
    ],
    "Cycles": [
        s.cyclic(0.1, peak=1.0, up=8),
        s.cyclic(0.1, peak=1.0, up=4, down=16, factor=0.5),
        s.cyclic(0.1, peak=0.6, up=10, rate=0.97, shape="cosine"),
    ],
    "Restarts": [
        s.cosine_restarts(1.0, steps=15),
        s.cosine_restarts(0.8, steps=8, growth=2, factor=0.7),
        s.polynomial(0.6, end=0.0, steps=15, cycle=True),
    ],
}

# %%
# Combined
# --------
#
# Schedules are joined, delayed, held, clipped and scaled, and they have arithmetic, with numbers, with each other and
# with functions of your own.


def ripple(t):
    return 1 + 0.1 * math.sin(t)


COMBINED = {
    "One after the other": [
        s.join([s.warmup(1.0, steps=10), s.exponential(1.0, rate=0.95)], [10]),
        s.delay(s.cosine(1.0, steps=30), steps=20),
    ],
    "Held and clipped": [
        s.staircase(s.cosine(1.0, steps=50), every=10),
        s.clip(s.exponential(1.0, rate=0.9), low=0.1, high=0.7),
        s.scale(s.cosine(1.0, steps=50), 0.3),
    ],
    "Arithmetic": [
        s.warmup(1.0, steps=10) * s.inverse_time(1.0, rate=0.1),
        1 - 0.5 * s.cosine(1.0, steps=40),
        s.cosine(1.0, steps=50) * ripple,
    ],
}


def draw(panels, rows):
    figure, grid = plt.subplots(
        rows, 3, num=next(iter(panels)), clear=True, figsize=(13, 4.6 * rows), sharex=True, layout="constrained"
    )
    for ax, (title, found) in zip(grid.flat, panels.items(), strict=True):
        for schedule in found:
            label = repr(schedule).replace(repr(ripple), "ripple")
            schedule.plot(STEPS, ax=ax, label=label)
        ax.set(title=title, ylim=(-0.03, None))
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), fontsize=8, frameon=False)
    return figure


# %%
# The pictures
# ------------


def main(argv=None):
    """Draw two pictures."""
    parser = argparse.ArgumentParser(description="Draw every schedule.")
    parser.add_argument("--output-dir", type=Path, default=Path(), metavar="DIR")
    args = parser.parse_args(argv)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    draw(SCHEDULES, 3).savefig(args.output_dir / "schedules.png", dpi=150)
    draw(COMBINED, 1).savefig(args.output_dir / "combined.png", dpi=150)


if __name__ == "__main__":
    main()
