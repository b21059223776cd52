"""
How fast the rules are
======================

Every rule on five problems, at the best learning rate of a grid, with the same number of steps for all: a line is the
median of seeds, a band reaches from the best to the worst of them. The curves of all other rules are grey.

::

    python compare_rules.py --output-dir pictures
    python compare_rules.py --measure               # minutes; writes compare_rules.json, which is drawn
    python compare_rules.py --measure Adam Lion     # measures these rules again, and adds those that are new

draws one picture a problem. What may be read from them, and what not, is in :doc:`Choose an optimizer </choose>`.
"""

import argparse
import inspect
import json
import math
import statistics
import sys
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import xopt

# %%
# What is measured
# ----------------
#
# The problems are those that every rule is tested on: ``tests/support/shared_problems.py`` has them, and
# ``tests/support/convergence.txt`` the rules. Mini-batches have 64 samples, and there the rate falls to 0 in a cosine;
# elsewhere it is constant, and gradients are exact. Rules that are to need no schedule get none, nor does FTRL, which
# takes all parameters to 0 with its rate; rules that are to need no rate are run with lr = 1 alone. Sophia is given an
# estimate of the curvature before every tenth step, on the samples of that step, which costs as much as two more
# gradients here.

PROBLEMS = {  # name: (title, steps, samples of a mini-batch or None, seeds)
    "rosenbrock": ("Rosenbrock's valley, 2 parameters", 500, None, 1),
    "least_squares": ("Least squares, condition 100, 20 × 3 parameters", 500, None, 3),
    "logistic": ("Logistic regression, breast cancer, 31 parameters", 200, None, 3),
    "digits": ("Logistic regression of digits, mini-batches, 650 parameters", 400, 64, 3),
    "network": ("Network of two layers, digits, mini-batches, 2,410 parameters", 400, 64, 3),
}
POINTS = 40  # of a curve
NO_SCHEDULE, NO_RATE = ("ScheduleFreeSGD", "ScheduleFreeAdamW", "FTRL"), ("parameter_free",)  # rules, families


def curve(rule, problem, steps, batch, seed):
    """Return the distance from the least value, as a part of the first, at some steps."""
    rng = np.random.default_rng(seed)
    opt = xopt.Optimizer(problem.to(np.array).start, rule)
    shown = {round(x) for x in np.linspace(0, steps, POINTS + 1)}
    found, first = [], float(problem(problem.start)[0]) - problem.least
    with np.errstate(all="ignore"):
        for step in range(steps + 1):
            if step:
                rows = rng.integers(problem.rows, size=batch) if batch else None
                if rule.curvature and step % 10 == 1:
                    from support.shared_problems import curvature

                    opt.update_curvature(curvature(problem, opt.params, step, rows))
                opt.step(problem(opt.params, rows)[1])
            if step in shown:
                params = opt.eval_params() if rule.readout else opt.params
                gap = (float(problem(params)[0]) - problem.least) / first
                found.append(gap if gap < 1e6 else math.inf)
                if found[-1] == math.inf:
                    return found + [math.inf] * (len(shown) - len(found))
    return found


# %%
# The grid begins at the default rate of a rule, goes by factors of √10, and to either side as far as it becomes better.
# The best rate is the one that ends lowest with the first seed. Where a curve ends is the median of its last five
# points: some go up and down.


def end(curve):
    return statistics.median(curve[-5:])


def tuned(make, kind, problems, steps, batch):
    """Return the best rate and its curves, one a seed; ``make`` makes a rule of a rate or a schedule."""

    def run(power, seed=0):
        lr = kind().lr * 10 ** (power / 2)
        falls = batch and kind.__name__ not in NO_SCHEDULE
        return curve(make(xopt.schedules.cosine(lr, steps=steps) if falls else lr), problems[seed], steps, batch, seed)

    def last(power):
        return end(found[power] if power in found else found.setdefault(power, run(power)))

    found, free = {}, family(kind) in NO_RATE
    best = min([0] if free else range(-3, 4), key=last)
    while not free:
        better = min((best - 2, best - 1, best + 1, best + 2), key=last)
        if last(better) >= last(best):
            break
        best = better
    return kind().lr * 10 ** (best / 2), [found[best], *(run(best, seed) for seed in range(1, len(problems)))]


def family(kind):
    return kind.__wrapped__.__module__.rpartition(".")[2]


def measure(file, texts):
    """Measure some rows of the table of convergence, or all; minutes."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    from support import convergence, shared_problems

    problems, made = {}, {}
    for name, (title, steps, batch, seeds) in PROBLEMS.items():
        make = getattr(shared_problems, name)
        made[name] = [make(seed=k) if seeds > 1 else make() for k in range(seeds)]
        shown = [round(x) for x in np.linspace(0, steps, POINTS + 1)]
        problems[name] = {"title": title, "steps": shown, "seeds": seeds, "batch": batch}
    if not texts:
        file.unlink(missing_ok=True)
    for text in texts or convergence.read():
        kind = type(convergence.rule_of(text, 1.0))
        row = {"family": family(kind), "curves": {}}
        for name, (_, steps, batch, _) in PROBLEMS.items():
            lr, curves = tuned(partial(convergence.rule_of, text), kind, made[name], steps, batch)
            columns = list(zip(*curves, strict=True))
            parts = {"low": min, "median": statistics.median, "high": max} if len(curves) > 1 else {"median": min}
            short = {n: [float(f"{f(x):.3g}") for x in columns] for n, f in parts.items()}
            row["curves"][name] = {"lr": float(f"{lr:.3g}"), **short}
        print(text, *(f"{x['lr']:g} {end(x['median']):.1e}" for x in row["curves"].values()), sep=" | ", flush=True)
        rules = json.loads(file.read_text(encoding="utf-8"))["rules"] if file.exists() else {}
        rules[text] = row
        lines = ",\n".join(f"{json.dumps(n)}: {json.dumps(rules[n], separators=(',', ':'))}" for n in sorted(rules))
        head = json.dumps(problems, separators=(",", ":"))
        file.write_text(f'{{"problems": {head},\n"rules": {{\n{lines}\n}}}}\n', encoding="utf-8")


# %%
# The pictures
# ------------
#
# A panel has one family, as the files of ``xopt/rules`` have them.

FAMILIES = {
    "Gradient descent, averages": ("sgd", "averaging"),
    "Adaptive methods": ("adaptive", "factored"),
    "Adam": ("adam", "novograd"),
    "Adam, other denominators": ("adam_denominator",),
    "Adam, other momentum": ("adam_momentum", "adam_difference"),
    "Sign-based methods": ("sign",),
    "Norms of arrays": ("layerwise",),
    "Matrices, curvature": ("matrix", "shampoo", "kl_shampoo", "psgd", "curvature"),
    "Parameter-free methods": ("parameter_free", "schedule_free"),
}
COLOURS = "#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"  # Okabe & Ito
LINES = "-", "-", "-", "-", "-", "--", "--"
FLOOR = 1e-6


def panels(results):
    """Return the rules of each family; a family without a panel gets one."""
    title = {family: title for title, families in FAMILIES.items() for family in families}
    found = {title: [] for title in FAMILIES}
    for text, row in results["rules"].items():
        found.setdefault(title.get(row["family"], row["family"]), []).append(text)
    return {title: texts for title, texts in found.items() if texts}


def clip(values):
    return np.maximum(values, FLOOR)


def draw(results, name):
    problem, families = results["problems"][name], panels(results)
    columns = 3 if len(families) in (1, 2, 3, 5, 6, 9) else 4
    rows = math.ceil(len(families) / columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        num=name,
        clear=True,
        figsize=(13, 3.9 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    curves = {text: row["curves"][name] for text, row in results["rules"].items()}
    for ax, (title, texts) in zip(grid.flat, families.items(), strict=False):
        for text in curves.keys() - set(texts):
            ax.plot(problem["steps"], clip(curves[text]["median"]), color="#dddddd", linewidth=0.8, zorder=1)
        for k, text in enumerate(texts):
            x, colour = curves[text], COLOURS[k % len(COLOURS)]
            label = f"{text}, {x['lr']:.2g}".replace(", ", ",\n", 1 if "," in text else 0)
            line = LINES[k % len(LINES)] if k < len(COLOURS) else ":"
            ax.plot(problem["steps"], clip(x["median"]), line, color=colour, linewidth=1.8, label=label, zorder=3)
            if "low" in x:
                ax.fill_between(
                    problem["steps"], clip(x["low"]), clip(x["high"]), color=colour, alpha=0.12, linewidth=0, zorder=2
                )
        ax.set(title=title, yscale="log", xlim=(0, problem["steps"][-1]))
        ax.set_title(title, loc="center", fontsize=11, fontweight="bold")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), fontsize=8.5, frameon=False, ncols=1)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="#eeeeee")
    for ax in list(grid.flat)[len(families) :]:
        ax.set_visible(False)
    low = min(min(x["median"]) for x in curves.values())
    grid.flat[0].set_ylim(max(FLOOR, 0.6 * low), 1.6)
    for ax in grid.flat:
        ax.tick_params(labelbottom=True)
    figure.supxlabel("steps", fontsize=11)
    figure.supylabel("distance from the least value, at first 1", fontsize=11)
    figure.suptitle(problem["title"], fontsize=13)
    return figure


# %%
# All at once
# -----------
#
# Where every line ends: the distance that is left, as a power of 10. The darker, the better a rule is than others on
# that problem.


def overview(results):
    problems = results["problems"]
    texts = [text for texts in panels(results).values() for text in texts]
    last = np.asarray([[end(results["rules"][text]["curves"][name]["median"]) for name in problems] for text in texts])
    place = last.argsort(axis=0).argsort(axis=0) / max(len(texts) - 1, 1)  # of each column by itself
    figure, ax = plt.subplots(num="overview", clear=True, figsize=(8.5, 0.27 * len(texts) + 1), layout="constrained")
    ax.imshow(place, cmap="cividis", aspect="auto", vmin=0, vmax=1)
    for (row, column), x in np.ndenumerate(last):
        text = f"{math.log10(max(x, 1e-12)):.1f}".replace("-", "−") if x < math.inf else "diverged"
        colour = "white" if place[row, column] < 0.55 else "black"
        ax.text(column, row, text, ha="center", va="center", fontsize=8.5, color=colour)
    ends = np.cumsum([len(x) for x in panels(results).values()])[:-1]
    ax.hlines(ends - 0.5, -0.5, len(problems) - 0.5, color="white", linewidth=3)
    ax.set(yticks=range(len(texts)), yticklabels=texts, xticks=range(len(problems)))
    ax.set_xticklabels([name.replace("_", " ") for name in problems], fontsize=10, fontweight="bold")
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return figure


def main(argv=None):
    """Draw, or measure and draw."""
    here = Path(inspect.getfile(main)).parent
    parser = argparse.ArgumentParser(description="Compare the rules on the shared problems.")
    parser.add_argument("--measure", nargs="*", metavar="RULE", help="measure these, or all, again")
    parser.add_argument("--data", type=Path, default=here / "compare_rules.json", metavar="FILE")
    parser.add_argument("--output-dir", type=Path, default=Path(), metavar="DIR")
    args = parser.parse_args(argv)
    if args.measure is not None:
        measure(args.data, args.measure)
    results = json.loads(args.data.read_text(encoding="utf-8"))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    overview(results).savefig(args.output_dir / "rules.png", dpi=110)
    for name in results["problems"]:
        draw(results, name).savefig(args.output_dir / f"rules_{name}.png", dpi=110)


if __name__ == "__main__":
    main()
