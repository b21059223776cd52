"""
Deblur a photograph
===================

A photograph was taken out of focus, and the camera added noise. Which sharp image fits it? The blur is known, but it
removes fine detail almost wholly, so that dividing by it would return mostly noise. The image is therefore asked to
have a small total variation as well (Rudin, Osher & Fatemi 1992): noise has much of it, edges have little.

.. math:: f(x) = \\tfrac12 \\lVert k * x - b \\rVert^2 + \\lambda \\sum_i \\sqrt{|(\\nabla x)_i|^2 + \\varepsilon^2}

Here b is the photograph, k the blur, and ε rounds off the tip of the root, so that f has a gradient everywhere. The
pixels are the parameters, and :func:`xopt.minimize` looks for them with L-BFGS; three other methods get the same number
of evaluations.

::

    pip install "xopt-array[demo]"
    python deblur_camera.py --output-dir pictures
    python deblur_camera.py --library torch --dtype float32

draws ``deblur_images.png`` and ``deblur_convergence.png``. The image is one of scikit-image's. Blur and noise are made
here, and everything random is drawn by NumPy from ``--seed``.

Rudin, Osher & Fatemi (1992), Nonlinear total variation based noise removal algorithms, Physica D 60.
"""

import argparse
import contextlib
import importlib
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from array_api_compat import array_namespace
from skimage.data import camera

import xopt

# %%
# The objective
# -------------
#
# A blur by convolution is a product in Fourier space, and its adjoint the product with the conjugate. The image goes on
# periodically at its edges; so did the one that was blurred, which is kinder than a real camera is. The functions
# below ask the arrays they get for their namespace, and name no library.


def filtered(x, transfer):
    """Return an image convolved with what has this Fourier transform, of which half is enough: it is real."""
    xp = array_namespace(x)
    return xp.fft.irfftn(transfer * xp.fft.rfftn(x, axes=(0, 1)), s=x.shape, axes=(0, 1))


def misfit(x, transfer, data):
    """Return half the squared distance of the blurred x from the data, and its gradient."""
    xp = array_namespace(x)
    error = filtered(x, transfer) - data
    return xp.sum(error**2) / 2, filtered(error, xp.conj(transfer))


def total_variation(x, eps):
    """Return the sum of the rounded slopes of an image, and its gradient."""
    xp = array_namespace(x)
    down, right = xp.roll(x, -1, axis=0) - x, xp.roll(x, -1, axis=1) - x
    slope = xp.sqrt(down**2 + right**2 + eps**2)
    down, right = down / slope, right / slope
    gradient = xp.roll(down, 1, axis=0) - down + xp.roll(right, 1, axis=1) - right
    return xp.sum(slope), gradient


# %%
# The data
# --------


def disc(n, radius):
    """Return the Fourier transform of a disc, which is what a lens out of focus makes of a point."""
    y, x = np.meshgrid(*2 * [np.fft.fftfreq(n, 1 / n)], indexing="ij")
    spot = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1)  # soft at the rim, as pixels are
    return np.fft.rfftn(spot / spot.sum())


def photograph(n, radius, noise, seed):
    """Return the sharp image, the transfer function of the blur, and the blurred image with noise."""
    step = 512 // n
    sharp = camera().reshape(n, step, n, step).mean(axis=(1, 3)) / 255
    transfer = disc(n, radius)
    return sharp, transfer, filtered(sharp, transfer) + noise * np.random.default_rng(seed).normal(size=(n, n))


def psnr(x, truth):
    """Return the ratio of the largest value, 1, to the error, in decibels."""
    return -10 * np.log10(np.mean((x - truth) ** 2))


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
# Four methods
# ------------
#
# The rate of Nesterov's method is one over the largest curvature that f can have: 1 of the misfit, since the blur makes
# nothing larger, and 8/ε of the total variation. Its momentum rises from step to step, much as
# Nesterov's own does (1983): any hyperparameter may be a function of the step. Adam's rate was the best of 0.01, 0.03
# and 0.1.


def methods(args):
    curvature = 1 + 8 * args.penalty / args.eps
    return {
        "L-BFGS": {"method": "lbfgs"},
        "conjugate gradients": {"method": "cg"},
        "Nesterov": {"rule": xopt.SGD(lr=1 / curvature, momentum=lambda t: (t - 1) / (t + 2), nesterov=True)},
        "Adam": {"rule": xopt.Adam(lr=0.03)},
    }


def solve(args):
    """Return the images, and for every method its curve of evaluations, values and PSNR."""
    xp = namespace(args.library, args.dtype)
    sharp, transfer, blurred = photograph(args.size, args.radius, args.noise, args.seed)
    data = xp.asarray(blurred.astype(args.dtype))
    kernel = xp.asarray(transfer.astype(f"complex{2 * int(args.dtype[-2:])}"))

    def fun(x):
        value, gradient = misfit(x, kernel, data)
        variation, slope = total_variation(x, args.eps)
        return value + args.penalty * variation, gradient + args.penalty * slope

    images, curves = {"sharp": sharp, "blurred": blurred}, {}
    for name, how in methods(args).items():
        curve = [(1, float(fun(data)[0]), psnr(blurred, sharp))]

        def note(intermediate_result, curve=curve):
            now = intermediate_result
            curve.append((now.nfev, now.fun, psnr(host(now.x), sharp)))

        result = xopt.minimize(fun, data, **how, callback=note, options={"maxfun": args.evaluations, "gtol": 1e-7})
        images[name], curves[name] = host(result.x), np.asarray(curve)
    return images, curves


# %%
# The pictures
# ------------

COLOURS = {"L-BFGS": "#0072b2", "conjugate gradients": "#e69f00", "Nesterov": "#000000", "Adam": "#d55e00"}


def draw_images(images):
    figure, panels = plt.subplots(2, 3, num="deblur", clear=True, figsize=(12, 8.4), layout="constrained")
    n = len(images["sharp"])
    part = slice(n * 5 // 32, n * 5 // 32 + n // 3), slice(n * 5 // 16, n * 5 // 16 + n // 3)
    titles = {"sharp": "original", "blurred": "out of focus, with noise", "L-BFGS": "deblurred (L-BFGS)"}
    for column, (name, title) in zip(panels.T, titles.items(), strict=True):
        quality = "" if name == "sharp" else f": {psnr(images[name], images['sharp']):.1f} dB"
        column[0].set_title(title + quality)
        for axes, image in zip(column, (images[name], images[name][part]), strict=True):
            axes.imshow(image, cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
    return figure


def draw_convergence(curves):
    figure, (left, right) = plt.subplots(1, 2, num="convergence", clear=True, figsize=(11, 4), layout="constrained")
    lowest = min(curve[:, 1].min() for curve in curves.values())
    for name, curve in curves.items():
        left.plot(curve[:, 0], curve[:, 1] / lowest - 1, color=COLOURS[name], label=name)
        right.plot(curve[:, 0], curve[:, 2], color=COLOURS[name], label=name)
    left.set(yscale="log", ylim=(1e-6, None), ylabel="objective above the lowest value, as a part of it")
    right.set(ylabel="PSNR in dB")
    left.legend(frameon=False)
    for axes in (left, right):
        axes.set_xlabel("evaluations of objective and gradient")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#eeeeee")
    return figure


# %%
# The run
# -------


def arguments(argv):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Deblur a photograph.")
    add = parser.add_argument
    add("--library", default="auto", choices=["auto", "numpy", "cupy", "torch", "jax"])
    add("--dtype", default="float64", choices=["float32", "float64"])
    add("--size", type=int, default=256, choices=[64, 128, 256, 512], help="pixels along a side")
    add("--radius", type=float, default=4.0, help="of the blur, in pixels")
    add("--noise", type=float, default=0.01, help="its standard deviation; white is 1")
    add("--penalty", type=float, default=5e-4, help="λ, the weight of the total variation")
    add("--eps", type=float, default=0.01, help="ε, which rounds off the root")
    add("--evaluations", type=int, default=150, help="of the objective, for each method")
    add("--seed", type=int, default=0)
    add("--output-dir", type=Path, default=Path(), metavar="DIR")
    return parser.parse_args(argv)


def main(argv=None):
    """Deblur and draw; return the PSNR before and after, and the curves."""
    args = arguments(argv)
    images, curves = solve(args)
    quality = {name: float(psnr(image, images["sharp"])) for name, image in images.items() if name != "sharp"}
    print(f"{'blurred':>20}  {quality['blurred']:.2f} dB")
    for name, curve in curves.items():
        print(f"{name:>20}  {quality[name]:.2f} dB  objective {curve[-1, 1]:.4f} after {curve[-1, 0]:.0f} evaluations")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    draw_images(images).savefig(args.output_dir / "deblur_images.png", dpi=150)
    draw_convergence(curves).savefig(args.output_dir / "deblur_convergence.png", dpi=150)
    return {"psnr": quality, "curves": curves, "images": images}


if __name__ == "__main__":
    main()
