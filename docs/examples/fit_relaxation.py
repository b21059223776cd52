"""
A map of T2: one fit in every pixel
===================================

In magnetic resonance the signal of tissue decays after the pulse, with a relaxation time T2 that tells tissues, and
healthy from diseased ones, apart. A scanner takes an image at each of twelve echo times, and in every pixel of tissue a
decay is fitted to the twelve numbers: nonlinear least squares with two parameters, 8392 times. :func:`xopt.curve_fit`
with ``batched=True`` fits all pixels at once, on the library and device of the images, and says how sure it is of each.

.. math::
    S(t) = A \\, e^{-t / T_2}

::

    pip install "xopt-array[demo]"
    python fit_relaxation.py --output-dir pictures
    python fit_relaxation.py --library torch --dtype float32

draws ``relaxation_maps.png`` and ``relaxation_errors.png``. The phantom is made here of ellipses, and everything random
is drawn by NumPy from ``--seed``.
"""

import argparse
import contextlib
import importlib
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from array_api_compat import array_namespace

import xopt

# %%
# The model
# ---------
#
# With ``batched=True`` the first axis of the data numbers the curves: here the pixels. A parameter is then an array of
# shape (pixels, 1), which goes along with the echo times. The derivatives are a line each; without them, torch and JAX
# would differentiate the decay, and other libraries take differences.


def decay(t, amplitude, t2):
    """Return the signal at echo times t."""
    return amplitude * array_namespace(t2).exp(-t / t2)


def derivatives(t, amplitude, t2):
    """Return the derivatives of `decay` by amplitude and by T2, on a last axis."""
    xp = array_namespace(t2)
    fall = xp.exp(-t / t2)
    return xp.stack([fall, amplitude * t / t2**2 * fall], axis=-1)


# %%
# The data
# --------
#
# An ellipse on top of another replaces it. Outside there is noise alone.

ELLIPSES = [  # amplitude, T2 in ms, centre (y, x), half axes (y, x), turned by degrees
    (0.85, 45.0, 0.00, 0.00, 0.92, 0.72, 0),  # scalp
    (0.75, 75.0, 0.00, 0.00, 0.84, 0.64, 0),  # white matter
    (0.95, 95.0, -0.42, 0.00, 0.28, 0.46, 0),  # grey matter
    (0.95, 95.0, 0.52, 0.00, 0.20, 0.40, 0),
    (1.10, 180.0, -0.02, -0.20, 0.34, 0.10, 18),  # ventricles
    (1.10, 180.0, -0.02, 0.20, 0.34, 0.10, -18),
    (0.90, 130.0, 0.30, 0.34, 0.12, 0.12, 0),  # a lesion
    (0.60, 60.0, 0.30, -0.34, 0.10, 0.10, 0),
]


def phantom(n):
    """Return maps of amplitude and T2, which are 0 where there is no tissue."""
    y, x = np.meshgrid(*2 * [np.linspace(-1, 1, n)], indexing="ij")
    amplitude, t2 = np.zeros((n, n)), np.zeros((n, n))
    for a, time_, cy, cx, ry, rx, degrees in ELLIPSES:
        angle = np.deg2rad(degrees)
        u, v = y - cy, x - cx
        u, v = u * np.cos(angle) - v * np.sin(angle), u * np.sin(angle) + v * np.cos(angle)
        inside = (u / ry) ** 2 + (v / rx) ** 2 < 1
        amplitude[inside], t2[inside] = a, time_
    return amplitude, t2


def scan(amplitude, t2, echoes, noise, rng):
    """Return the images at the echo times, shape (n, n, echoes)."""
    fall = np.exp(-echoes / np.where(t2 > 0, t2, 1)[..., None])
    return amplitude[..., None] * fall + noise * rng.normal(size=(*t2.shape, len(echoes)))


# %%
# Library and precision
# ---------------------


def namespace(library, dtype):
    """Import the library; auto is CuPy where it finds a GPU, else NumPy."""
    if library == "auto":
        library = "numpy"
        with contextlib.suppress(Exception):  # not installed, or without a driver
            library = "cupy" if importlib.import_module("cupy").cuda.is_available() else "numpy"
    if library == "jax" and dtype == "float64":
        importlib.import_module("jax").config.update("jax_enable_x64", True)
    return importlib.import_module("jax.numpy" if library == "jax" else f"array_api_compat.{library}")


def host(x):
    """Bring an array to NumPy."""
    return np.asarray(x.get() if hasattr(x, "get") else x)


# %%
# The fits
# --------
#
# Pixels whose first echo is weak are left out: there is nothing to fit, and as all pixels take their steps together,
# the slowest decides how long it takes. Their spread is the noise of the scanner, the ``sigma`` of the fits, so that
# errors need no guess from twelve residuals. Each pixel begins at its first echo as the amplitude, and all at one T2.
# The standard error is the root of the diagonal of the covariance.


def fit(signals, echoes, noise, args):
    """Return amplitude, T2, the standard error of T2 and whether each pixel converged, as NumPy's; and the seconds."""
    xp = namespace(args.library, args.dtype)
    start = np.stack([signals[:, 0], np.full(len(signals), 80.0)], axis=-1)
    t, y, start = (xp.asarray(a.astype(args.dtype)) for a in (echoes, signals, start))
    began = time.perf_counter()
    found, covariance, result = xopt.curve_fit(
        decay, t, y, start, sigma=noise, absolute_sigma=True, batched=True, jac=derivatives, full_output=True,
        bounds=([0.0, 1.0], [10.0, 2000.0]),
    )  # fmt: skip
    found, errors, success = host(found), np.sqrt(host(covariance)[:, 1, 1]), host(result.success)
    return *found.T, errors, success, time.perf_counter() - began


# %%
# The pictures
# ------------


def draw_maps(maps):
    figure, panels = plt.subplots(2, 3, num="relaxation", clear=True, figsize=(11, 7.6), layout="constrained")
    size, t2 = {"cmap": "gray", "vmin": 0, "vmax": 1.2}, {"cmap": "viridis", "vmin": 0, "vmax": 200}
    error = {"cmap": "magma", "vmin": 0, "vmax": 8}
    shown = [
        ("true amplitude", maps["true amplitude"], size),
        ("true T2 (ms)", maps["true T2"], t2),
        ("|fitted T2 - true T2| (ms)", abs(maps["T2"] - maps["true T2"]), error),
        ("fitted amplitude", maps["amplitude"], size),
        ("fitted T2 (ms)", maps["T2"], t2),
        ("standard error of T2 (ms)", maps["error"], error),
    ]
    for axes, (title, image, how) in zip(panels.flat, shown, strict=True):
        drawn = axes.imshow(np.where(maps["true T2"] > 0, image, np.nan), **how)
        axes.set(xticks=[], yticks=[], title=title, facecolor="#dddddd")
        figure.colorbar(drawn, ax=axes, location="bottom", shrink=0.8)
    return figure


def draw_errors(maps, images, echoes, noise):
    """Draw the decays of a pixel of each tissue, and how many standard errors T2 is off."""
    figure, (left, right) = plt.subplots(
        1, 2, num="relaxation errors", clear=True, figsize=(11, 4), layout="constrained"
    )
    colours = ["#0072b2", "#009e73", "#e69f00", "#d55e00"]
    t = np.linspace(0, echoes[-1], 200)
    for colour, value in zip(colours, (45.0, 75.0, 95.0, 180.0), strict=True):
        places = np.argwhere(maps["true T2"] == value)
        at = tuple(places[len(places) // 2])
        label = f"T2 = {maps['T2'][at]:.0f} ± {maps['error'][at]:.0f} ms (true: {value:.0f})"
        left.errorbar(echoes, images[at], noise, fmt="o", color=colour, markersize=4, label=label)
        left.plot(t, decay(t, maps["amplitude"][at], maps["T2"][at]), color=colour)
    left.set(xlabel="echo time (ms)", ylabel="signal", ylim=(0, None), title="pixels of four tissues")
    left.legend(frameon=False)
    off = (maps["T2"] - maps["true T2"]) / maps["error"]
    z = np.linspace(-4, 4, 200)
    right.hist(off[np.isfinite(off)], bins=60, range=(-4, 4), density=True, color="#99c7e0")
    right.plot(z, np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi), color="#444444", label="normal distribution")
    right.set(xlabel="(fitted T2 - true T2) / standard error", title="the errors are what they are said to be")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


# %%
# The run
# -------


def arguments(argv):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Fit the relaxation time T2 in every pixel of an MRI phantom.")
    add = parser.add_argument
    add("--library", default="auto", choices=["auto", "numpy", "cupy", "torch", "jax"])
    add("--dtype", default="float64", choices=["float32", "float64"])
    add("--size", type=int, default=128, help="pixels along a side")
    add("--echoes", type=int, default=12, help="images, 10 ms after one another")
    add("--noise", type=float, default=0.01, help="standard deviation of the signal")
    add("--seed", type=int, default=0)
    add("--output-dir", type=Path, default=Path(), metavar="DIR")
    return parser.parse_args(argv)


def main(argv=None):
    """Fit and draw; return the maps and how it went."""
    args = arguments(argv)
    amplitude, t2 = phantom(args.size)
    echoes = 10.0 * np.arange(1, args.echoes + 1)
    images = scan(amplitude, t2, echoes, args.noise, np.random.default_rng(args.seed))
    tissue = images[..., 0] > 0.3
    noise = float(np.std(images[~tissue]))
    *fitted, success, seconds = fit(images[tissue], echoes, noise, args)
    maps = {"true amplitude": amplitude, "true T2": t2}
    for name, found in zip(("amplitude", "T2", "error"), fitted, strict=True):
        maps[name] = np.full(t2.shape, np.nan)
        maps[name][tissue] = found

    median = float(np.median(abs(maps["T2"] - t2)[tissue]))
    error = float(np.median(maps["error"][tissue]))
    print(f"{success.sum()} of {len(success)} pixels converged, in {seconds:.2f} s")
    print(f"T2: median error {median:.2f} ms, median standard error {error:.2f} ms")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    draw_maps(maps).savefig(args.output_dir / "relaxation_maps.png", dpi=150)
    draw_errors(maps, images, echoes, noise).savefig(args.output_dir / "relaxation_errors.png", dpi=150)
    return {"maps": maps, "median error": median, "noise": noise, "success": success, "seconds": seconds}


if __name__ == "__main__":
    main()
