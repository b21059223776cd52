"""
The paths of the optimizers
===========================

Eight optimizers go down two surfaces: an elongated bowl, on which plain gradient descent zigzags, and Rosenbrock's
valley, whose curved floor is nearly flat. The gradients are written by hand, and each path is a loop over the pure
``rule.apply``, which returns the next point and the next state.

::

    python compare_paths.py --output-dir pictures
    python compare_paths.py --library torch

draws ``paths_bowl.png``, ``paths_rosenbrock.png`` and ``surfaces.png``.
"""

import argparse
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from array_api_compat import array_namespace

import xopt

# %%
# Two surfaces
# ------------
#
# The bowl, its start and the learning rates of SGD, momentum, Adagrad and Adam are those of a well-known textbook
# comparison. In Rosenbrock's valley AdamW stops short of the minimum at (1, 1), because its weight decay pulls towards
# (0, 0).


def bowl(x, y):
    return x**2 / 20 + y**2


def bowl_gradient(p):
    xp = array_namespace(p)
    x, y = p[0], p[1]
    return xp.stack([x / 10, 2 * y])


def rosenbrock(x, y):
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def rosenbrock_gradient(p):
    xp = array_namespace(p)
    x, y = p[0], p[1]
    return xp.stack([-2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2)])


@dataclass
class Surface:
    """A function of x and y, where to start on it, and the rules that suit it."""

    title: str
    function: Callable[..., Any]
    gradient: Callable[..., Any]
    start: tuple[float, float]
    minimum: tuple[float, float]
    steps: int
    dot_every: int
    limits: tuple[tuple[float, float], tuple[float, float]]
    levels: Any
    rules: dict[str, xopt.Rule]
    log: bool = False

    def height(self, x, y):
        """Return what the picture in three dimensions shows."""
        z = self.function(x, y)
        return np.log10(1 + z) if self.log else z


SURFACES = {
    "bowl": Surface(
        title="x²/20 + y²",
        function=bowl,
        gradient=bowl_gradient,
        start=(-7.0, 2.0),
        minimum=(0.0, 0.0),
        steps=30,
        dot_every=1,
        limits=((-8, 4), (-3, 3)),
        levels=np.asarray([0.05, 0.2, 0.5, 1, 2, 3.5, 5.5, 8, 11]),
        rules={
            "SGD": xopt.SGD(lr=0.95),
            "Momentum": xopt.SGD(lr=0.1, momentum=0.9),
            "Nesterov": xopt.SGD(lr=0.1, momentum=0.9, nesterov=True),
            "Adagrad": xopt.Adagrad(lr=1.5),
            "Adadelta": xopt.Adadelta(rho=0.9, eps=3e-2),
            "RMSProp": xopt.RMSProp(lr=0.3, rho=0.9),
            "Adam": xopt.Adam(lr=0.3),
            "AdamW": xopt.AdamW(lr=0.3, weight_decay=0.1),
        },
    ),
    "rosenbrock": Surface(
        title="(1 − x)² + 100 (y − x²)²",
        function=rosenbrock,
        gradient=rosenbrock_gradient,
        start=(-0.5, 2.5),
        minimum=(1.0, 1.0),
        steps=1000,
        dot_every=25,
        limits=((-2, 2), (-1, 3)),
        levels=np.logspace(-1, 3.5, 10),
        log=True,
        rules={
            "SGD": xopt.SGD(lr=1e-3),
            "Momentum": xopt.SGD(lr=3e-4, momentum=0.9),
            "Nesterov": xopt.SGD(lr=3e-4, momentum=0.9, nesterov=True),
            "Adagrad": xopt.Adagrad(lr=1.0),
            "Adadelta": xopt.Adadelta(rho=0.9, eps=1e-5),
            "RMSProp": xopt.RMSProp(lr=0.01, rho=0.9),
            "Adam": xopt.Adam(lr=0.3),
            "AdamW": xopt.AdamW(lr=0.3, weight_decay=1e-2),
        },
    ),
}


def path(surface, rule, xp):
    """Return the points that a rule visits: shape (steps + 1, 2)."""
    p = xp.asarray(np.asarray(surface.start))  # float64 where the library has it
    state = rule.init(p)
    points = [surface.start]
    for _ in range(surface.steps):
        p, state = rule.apply(p, surface.gradient(p), state)
        points.append((float(p[0]), float(p[1])))
    return np.asarray(points)


# %%
# From above: one panel an optimizer
# ----------------------------------

COLOURS = dict(  # Okabe & Ito, with a darker yellow: told apart by colour-blind readers too
    zip(
        SURFACES["bowl"].rules,
        ("#000000", "#e69f00", "#d55e00", "#0072b2", "#56b4e9", "#009e73", "#cc79a7", "#8c7a00"),
        strict=True,
    )
)


def grid(surface, n=300):
    (x0, x1), (y0, y1) = surface.limits
    return np.meshgrid(np.linspace(x0, x1, n), np.linspace(y0, y1, n))


def draw_paths(surface, paths):
    x, y = grid(surface)
    figure, panels = plt.subplots(
        2, 4, num=surface.title, clear=True, sharex=True, sharey=True, figsize=(12, 6), layout="constrained"
    )
    for axes, (name, points) in zip(panels.flat, paths.items(), strict=True):
        axes.contour(x, y, surface.function(x, y), surface.levels, colors="#b8b8b8", linewidths=0.7)
        axes.plot(*points.T, color=COLOURS[name], linewidth=1.3, marker="o", markersize=3, markevery=surface.dot_every)
        axes.plot(*surface.start, "ks", markersize=6)
        axes.plot(*surface.minimum, "k*", markersize=12)
        axes.set(xlim=surface.limits[0], ylim=surface.limits[1])
        axes.set_title(f"{name}: f = {surface.function(*points[-1]):.2g}")
    dots = "" if surface.dot_every == 1 else f", a dot every {surface.dot_every}"
    figure.suptitle(f"f = {surface.title}: {surface.steps} steps from ■ towards ★{dots}")
    figure.supxlabel("x")
    figure.supylabel("y")
    return figure


# %%
# In three dimensions
# -------------------
#
# Rosenbrock's function spans six orders of magnitude, so its height is drawn as a logarithm.


def draw_surfaces(paths):
    figure = plt.figure("surfaces", clear=True, figsize=(12, 6), layout="constrained")
    for k, (name, surface) in enumerate(SURFACES.items(), start=1):
        axes = figure.add_subplot(1, 2, k, projection="3d", computed_zorder=False)  # the paths over the surface
        x, y = grid(surface, 150)
        z = surface.height(x, y)
        axes.plot_surface(
            x, y, z, cmap="Greys", vmin=-z.max() / 3, vmax=2 * z.max(), rcount=150, ccount=150, antialiased=False
        )
        for rule, points in paths[name].items():
            axes.plot(*points.T, surface.height(*points.T), color=COLOURS[rule], linewidth=1.6, label=rule)
        axes.scatter(*surface.minimum, surface.height(*surface.minimum), color="black", marker="*", s=90)
        axes.view_init(elev=45, azim=-70)
        axes.locator_params(nbins=5)
        axes.set(title=f"f = {surface.title}", xlabel="x", ylabel="y", zlabel="log₁₀(1 + f)" if surface.log else "f")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False)
    return figure


# %%
# The pictures
# ------------


def main(argv=None):
    """Draw three pictures; return the paths."""
    parser = argparse.ArgumentParser(description="Draw the paths of the optimizers on two surfaces.")
    parser.add_argument("--library", default="numpy", choices=["numpy", "cupy", "torch", "jax"])
    parser.add_argument("--output-dir", type=Path, default=Path(), metavar="DIR")
    args = parser.parse_args(argv)
    xp = importlib.import_module("jax.numpy" if args.library == "jax" else f"array_api_compat.{args.library}")

    paths = {
        name: {rule: path(surface, made, xp) for rule, made in surface.rules.items()}
        for name, surface in SURFACES.items()
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name, surface in SURFACES.items():
        draw_paths(surface, paths[name]).savefig(args.output_dir / f"paths_{name}.png", dpi=150)
    draw_surfaces(paths).savefig(args.output_dir / "surfaces.png", dpi=150)
    return paths


if __name__ == "__main__":
    main()
