"""
Deblur with total variation
===========================

A photograph was taken out of focus, and the camera added noise. As in :doc:`deblur_camera`, the sharp image is to have
a small total variation; here the norm of the slopes keeps its kink at 0, which leaves areas truly flat, and pixels are
between black and white.

.. math:: \\min_{0 \\le x \\le 1} \\tfrac12 \\lVert k * x - b \\rVert^2 + \\lambda \\sum_i |(\\nabla x)_i|

There is no gradient to follow. :func:`xopt.proximal.pdhg` takes the two terms as functions of K x = (∇x, k * x), each
with a proximal operator in closed form, and finds the ratio of its steps.

::

    pip install "xopt-array[demo]"
    python deblur_tv.py --output-dir pictures
    python deblur_tv.py --library torch --dtype float32

draws ``deblur_tv_images.png`` and ``deblur_tv_convergence.png``. The image is one of scikit-image's. Blur and noise are
made here, and everything random is drawn by NumPy from ``--seed``.

A. Chambolle, T. Pock (2011), A first-order primal-dual algorithm for convex problems with applications to imaging,
Journal of Mathematical Imaging and Vision 40.
"""

import argparse
import contextlib
import importlib
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from array_api_compat import array_namespace
from skimage.data import camera

from xopt import proximal

# %%
# The operator
# ------------
#
# A blur by convolution is a product in Fourier space, and its adjoint the product with the conjugate.


def filtered(x, transfer):
    """Return an image convolved with what has this Fourier transform, of which half is enough: it is real."""
    xp = array_namespace(x)
    return xp.fft.irfftn(transfer * xp.fft.rfftn(x, axes=(0, 1)), s=x.shape, axes=(0, 1))


def operator(transfer):
    """Return K, which maps an image to its slopes and to its blurred self, and the adjoint of K."""
    back = array_namespace(transfer).conj(transfer)
    return (
        lambda x: (proximal.gradient(x), filtered(x, transfer)),
        lambda y: filtered(y[1], back) - proximal.divergence(y[0]),
    )


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
# The solution
# ------------
#
# Both runs begin at the photograph. In one σ/τ stays at 1, as it does where nobody chooses; in the other it is adapted.


def solve(args):
    """Return the images, and for each run its curve of iterations, values and PSNR."""
    xp = namespace(args.library, args.dtype)
    sharp, transfer, blurred = photograph(args.size, args.radius, args.noise, args.seed)
    data = xp.asarray(blurred.astype(args.dtype))
    K = operator(xp.asarray(transfer.astype(f"complex{2 * int(args.dtype[-2:])}")))
    f, g = (proximal.group_l1(args.penalty), proximal.squared(data)), proximal.box(0.0, 1.0)

    images, curves = {"sharp": sharp, "blurred": blurred}, {}
    for name, how in {"adapted": {}, "σ/τ = 1": {"adaptive": False}}.items():
        curve = []

        def note(intermediate_result, curve=curve):
            now = intermediate_result
            curve.append((now.nit, now.fun, psnr(host(now.x), sharp)))

        result = proximal.pdhg(f, data, g, K=K, tol=0, maxiter=args.iterations, callback=note, **how)
        images[name], curves[name] = host(result.x), np.asarray(curve)
    return images, curves


# %%
# The pictures
# ------------

COLOURS = {"adapted": "#0072b2", "σ/τ = 1": "#d55e00"}


def draw_images(images):
    figure, panels = plt.subplots(2, 3, num="deblur", clear=True, figsize=(12, 8.4), layout="constrained")
    n = len(images["sharp"])
    part = slice(n * 5 // 32, n * 5 // 32 + n // 3), slice(n * 5 // 16, n * 5 // 16 + n // 3)
    titles = {"sharp": "original", "blurred": "out of focus, with noise", "adapted": "deblurred (PDHG)"}
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
    left.set(yscale="log", ylim=(1e-5, None), ylabel="objective above the lowest value, as a part of it")
    right.set(ylabel="PSNR in dB")
    left.legend(frameon=False)
    for axes in (left, right):
        axes.set_xlabel("iterations")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#eeeeee")
    return figure


# %%
# The run
# -------


def arguments(argv):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Deblur a photograph with total variation.")
    add = parser.add_argument
    add("--library", default="auto", choices=["auto", "numpy", "cupy", "torch", "jax"])
    add("--dtype", default="float64", choices=["float32", "float64"])
    add("--size", type=int, default=256, choices=[64, 128, 256, 512], help="pixels along a side")
    add("--radius", type=float, default=4.0, help="of the blur, in pixels")
    add("--noise", type=float, default=0.01, help="its standard deviation; white is 1")
    add("--penalty", type=float, default=5e-4, help="λ, the weight of the total variation")
    add("--iterations", type=int, default=300, help="of each run")
    add("--seed", type=int, default=0)
    add("--output-dir", type=Path, default=Path(), metavar="DIR")
    return parser.parse_args(argv)


def main(argv=None):
    """Deblur and draw; return the PSNR before and after, and the curves."""
    args = arguments(argv)
    images, curves = solve(args)
    quality = {name: float(psnr(image, images["sharp"])) for name, image in images.items() if name != "sharp"}
    print(f"{'blurred':>10}  {quality['blurred']:.2f} dB")
    for name, curve in curves.items():
        print(f"{name:>10}  {quality[name]:.2f} dB  objective {curve[-1, 1]:.4f} after {curve[-1, 0]:.0f} iterations")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    draw_images(images).savefig(args.output_dir / "deblur_tv_images.png", dpi=150)
    draw_convergence(curves).savefig(args.output_dir / "deblur_tv_convergence.png", dpi=150)
    return {"psnr": quality, "curves": curves, "images": images}


if __name__ == "__main__":
    main()
