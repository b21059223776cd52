"""
An MRI image from a quarter of its data
=======================================

A magnetic resonance scanner measures the Fourier transform of an image, its k-space, point by point, and the time of a
scan is the number of points. Here a quarter of them is measured, at random and more densely in the middle, by six
coils at once, each of which sees the image through its own sensitivity. Of all images that fit the data, one with
little total variation is looked for (Lustig, Donoho & Pauly 2007).

.. math::
    f(x) = \\tfrac12 \\sum_c \\lVert M F (s_c x) - d_c \\rVert^2
    + \\lambda \\sum_i \\sqrt{|(\\nabla x)_i|^2 + \\varepsilon^2}

M is the mask, F the Fourier transform, s_c the sensitivity of a coil and d_c what it measured. The image is complex,
and so are the parameters: :func:`xopt.minimize` takes them as they are. The gradient is ∂f/∂Re + i·∂f/∂Im, that of
torch; for the conjugate, that of JAX, there is ``conjugate=True``.

::

    pip install "xopt-array[demo]"
    python mri_undersampled.py --output-dir pictures
    python mri_undersampled.py --library torch --dtype float32

draws ``mri_images.png`` and ``mri_convergence.png``. The image is the Shepp-Logan phantom of scikit-image. Phase, coils
and noise are made here, and everything random is drawn by NumPy from ``--seed``.

Lustig, Donoho & Pauly (2007), Sparse MRI: the application of compressed sensing for rapid MR imaging, Magnetic
Resonance in Medicine 58.
"""

import argparse
import contextlib
import importlib
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from array_api_compat import array_namespace
from skimage.data import shepp_logan_phantom

import xopt

# %%
# The objective
# -------------
#
# The way back from the data takes the steps of the way there in the opposite order, each conjugate: with
# ``norm="ortho"`` the inverse Fourier transform is the adjoint one. The derivative of \|z\| is z/\|z\| in this
# convention, so that the total variation of a complex image has the gradient that it has for a real one. The functions
# ask the arrays they get for their namespace, and name no library.


def scan(x, coils, mask):
    """Return what the coils measure: images of their sensitivities times x, transformed, where the mask is 1."""
    xp = array_namespace(x)
    return mask * xp.fft.fftn(coils * x, axes=(1, 2), norm="ortho")


def back(data, coils, mask):
    """Return the adjoint of `scan`: an image."""
    xp = array_namespace(data)
    return xp.sum(xp.conj(coils) * xp.fft.ifftn(mask * data, axes=(1, 2), norm="ortho"), axis=0)


def square(z):
    xp = array_namespace(z)
    return xp.real(z) ** 2 + xp.imag(z) ** 2


def total_variation(x, eps):
    """Return the sum of the rounded slopes of a complex image, and its gradient."""
    xp = array_namespace(x)
    down, right = xp.roll(x, -1, axis=0) - x, xp.roll(x, -1, axis=1) - x
    slope = xp.sqrt(square(down) + square(right) + eps**2)
    down, right = down / slope, right / slope
    gradient = xp.roll(down, 1, axis=0) - down + xp.roll(right, 1, axis=1) - right
    return xp.sum(slope), gradient


def objective(x, data, coils, mask, penalty, eps):
    """Return the value, and the gradient ∂f/∂Re + i·∂f/∂Im."""
    xp = array_namespace(x)
    error = scan(x, coils, mask) - data
    variation, slope = total_variation(x, eps)
    return xp.sum(square(error)) / 2 + penalty * variation, back(error, coils, mask) + penalty * slope


# %%
# The data
# --------
#
# Coils stand around the image, and each sees best what is near. Their squares add up to 1 at every pixel.


def phantom(n):
    """Return the complex image: the phantom, with a phase that varies smoothly as magnetic fields do."""
    step = 400 // n
    image = shepp_logan_phantom().reshape(n, step, n, step).mean(axis=(1, 3))
    y, x = np.meshgrid(*2 * [np.linspace(-1, 1, n)], indexing="ij")
    return image * np.exp(1j * (1.5 * x + 2 * y**2 - 1.2 * x * y))


def sensitivities(n, count):
    """Return the coils, shape (count, n, n), each with a phase of its own."""
    y, x = np.meshgrid(*2 * [np.linspace(-1, 1, n)], indexing="ij")
    angles = 2 * np.pi * np.arange(count) / count
    coils = np.stack(
        [np.exp(-((x - np.cos(a)) ** 2 + (y - np.sin(a)) ** 2) / 1.5 + 1j * (a + x * np.sin(a))) for a in angles]
    )
    return coils / np.sqrt(np.sum(np.abs(coils) ** 2, axis=0))


def sampling(n, part, rng):
    """Return a mask of that part of all points: each with a probability that falls from the middle outwards."""
    distance = np.hypot(*np.meshgrid(*2 * [np.fft.fftfreq(n, 0.5)], indexing="ij"))
    weight = np.where(distance < 0.1, np.inf, (1 - np.minimum(distance, 1) / 1.2) ** 3)
    keys = rng.random((n, n)) ** (1 / weight)  # the largest keys are a sample with these weights
    return (keys >= np.quantile(keys, 1 - part)).astype(float)


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
# The reconstruction
# ------------------
#
# The start is the image of the data with zeros where nothing was measured.

METHODS = {
    "L-BFGS": {"method": "lbfgs"},
    "conjugate gradients": {"method": "cg"},
    "Adam": {"rule": xopt.Adam(lr=0.03)},  # the best rate of 0.01, 0.03 and 0.1
}


def error(x, truth):
    """Return the norm of the difference, as a part of the norm of the truth."""
    return float(np.linalg.norm(x - truth) / np.linalg.norm(truth))


def solve(args):
    """Return the images, mask among them, and for every method its curve of evaluations, values and errors."""
    xp = namespace(args.library, args.dtype)
    rng = np.random.default_rng(args.seed)
    truth, coils = phantom(args.size), sensitivities(args.size, args.coils)
    mask = sampling(args.size, args.part, rng)
    noise = args.noise * (rng.normal(size=coils.shape) + 1j * rng.normal(size=coils.shape))
    data = scan(truth, coils, mask) + mask * noise

    kind = "complex64" if args.dtype == "float32" else "complex128"
    given = *(xp.asarray(a.astype(kind)) for a in (data, coils)), xp.asarray(mask.astype(args.dtype))
    start = back(*given)
    images, curves = {"mask": mask, "truth": truth, "zeros": host(start)}, {}
    for name, how in METHODS.items():
        curve = [(1, float(objective(start, *given, args.penalty, args.eps)[0]), error(images["zeros"], truth))]

        def note(intermediate_result, curve=curve):
            now = intermediate_result
            curve.append((now.nfev, now.fun, error(host(now.x), truth)))

        result = xopt.minimize(
            objective, start, **how, args=(*given, args.penalty, args.eps), callback=note,
            options={"maxfun": args.evaluations, "gtol": 1e-7},
        )  # fmt: skip
        images[name], curves[name] = host(result.x), np.asarray(curve)
    return images, curves


# %%
# The pictures
# ------------

COLOURS = {"L-BFGS": "#0072b2", "conjugate gradients": "#e69f00", "Adam": "#d55e00"}


def draw_images(images):
    figure, panels = plt.subplots(2, 4, num="mri", clear=True, figsize=(12, 7.2), layout="constrained")
    mask, truth, zeros, found = (images[name] for name in ("mask", "truth", "zeros", "L-BFGS"))
    grey, errors = {"cmap": "gray", "vmin": 0, "vmax": 0.5}, {"cmap": "magma", "vmin": 0, "vmax": 0.2}
    phase = {"cmap": "twilight", "vmin": -np.pi, "vmax": np.pi}
    inside = np.where(np.abs(truth) > 0.02, 1, np.nan)  # elsewhere there is nothing to have a phase
    shown = [
        (f"measured: {mask.mean():.0%} of k-space", np.fft.fftshift(mask), grey),
        ("zeros for the rest", np.abs(zeros), grey),
        ("reconstruction (L-BFGS)", np.abs(found), grey),
        ("truth", np.abs(truth), grey),
        ("reconstructed phase (radians)", np.angle(found) * inside, phase),
        (f"error: {error(zeros, truth):.1%}", np.abs(zeros - truth), errors),
        (f"error: {error(found, truth):.1%}", np.abs(found - truth), errors),
        ("true phase (radians)", np.angle(truth) * inside, phase),
    ]
    for axes, (title, image, how) in zip(panels.flat, shown, strict=True):
        drawn = axes.imshow(image, **how)
        axes.set(xticks=[], yticks=[], title=title)
        if how is not grey:
            figure.colorbar(drawn, ax=axes, location="bottom", shrink=0.8)
    return figure


def draw_convergence(curves):
    figure, (left, right) = plt.subplots(1, 2, num="mri curves", clear=True, figsize=(11, 4), layout="constrained")
    lowest = min(curve[:, 1].min() for curve in curves.values())
    for name, curve in curves.items():
        left.plot(curve[:, 0], curve[:, 1] / lowest - 1, color=COLOURS[name], label=name)
        right.plot(curve[:, 0], curve[:, 2], color=COLOURS[name], label=name)
    left.set(yscale="log", ylim=(1e-6, None), ylabel="objective above the lowest value, as a part of it")
    right.set(ylim=(0, None), ylabel="error, as a part of the image's norm")
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
    parser = argparse.ArgumentParser(description="Reconstruct an MRI image from a part of its k-space.")
    add = parser.add_argument
    add("--library", default="auto", choices=["auto", "numpy", "cupy", "torch", "jax"])
    add("--dtype", default="float64", choices=["float32", "float64"], help="of the real and the imaginary part")
    add("--size", type=int, default=200, choices=[50, 100, 200, 400], help="pixels along a side")
    add("--coils", type=int, default=6)
    add("--part", type=float, default=0.25, help="how much of k-space is measured")
    add("--noise", type=float, default=0.01, help="standard deviation of both parts of the data; white is 1")
    add("--penalty", type=float, default=0.005, help="λ, the weight of the total variation")
    add("--eps", type=float, default=0.01, help="ε, which rounds off the root")
    add("--evaluations", type=int, default=100, help="of the objective, for each method")
    add("--seed", type=int, default=0)
    add("--output-dir", type=Path, default=Path(), metavar="DIR")
    return parser.parse_args(argv)


def main(argv=None):
    """Reconstruct and draw; return the errors and the curves."""
    args = arguments(argv)
    images, curves = solve(args)
    errors = {name: error(image, images["truth"]) for name, image in images.items() if name not in ("mask", "truth")}
    print(f"{'zeros':>20}  error {errors['zeros']:.4f}")
    for name, curve in curves.items():
        print(
            f"{name:>20}  error {errors[name]:.4f}  objective {curve[-1, 1]:.5f} after {curve[-1, 0]:.0f} evaluations"
        )
    args.output_dir.mkdir(parents=True, exist_ok=True)
    draw_images(images).savefig(args.output_dir / "mri_images.png", dpi=150)
    draw_convergence(curves).savefig(args.output_dir / "mri_convergence.png", dpi=150)
    return {"error": errors, "curves": curves, "images": images}


if __name__ == "__main__":
    main()
