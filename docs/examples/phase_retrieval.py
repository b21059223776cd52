"""
Phases from intensities
=======================

A detector behind an object that light has passed sees intensities: squares of the absolute values of the light's
Fourier transform, while the phases are lost. If known random masks are put before the object, one pattern for each, the
patterns together determine its amplitude and its phase, up to one factor of absolute value 1 (Candès, Li &
Soltanolkotabi 2015a).

.. math:: f(x) = \\tfrac12 \\sum_k \\lVert\\, |F (m_k x)|_\\varepsilon - a_k \\rVert^2, \\qquad
    |z|_\\varepsilon = \\sqrt{|z|^2 + \\varepsilon^2}

Here m_k are the masks, F is the Fourier transform and a_k the root of an intensity. The sum is not convex, so the
start matters: as in Wirtinger flow (Candès, Li & Soltanolkotabi 2015b) it is an eigenvector. :func:`xopt.minimize` goes
on from there in the complex pixels, with L-BFGS, conjugate gradients and Adam.

::

    pip install "xopt-array[demo]"
    python phase_retrieval.py --output-dir pictures
    python phase_retrieval.py --library torch --dtype float32

draws ``phase_images.png`` and ``phase_convergence.png``. The amplitude of the object is one image of scikit-image, its
phase another one, a cell that was measured by digital holography: if amplitude and phase were mixed up, it would be
seen. Masks and first guess are drawn by NumPy from ``--seed``.

Candès, Li & Soltanolkotabi (2015a), Phase retrieval from coded diffraction patterns, Applied and Computational Harmonic
Analysis 39.

Candès, Li & Soltanolkotabi (2015b), Phase retrieval via Wirtinger flow: theory and algorithms, IEEE Transactions on
Information Theory 61.

Mondelli & Montanari (2019), Fundamental limits of weak recovery with applications to phase retrieval, Foundations
of Computational Mathematics 19.
"""

import argparse
import contextlib
import importlib
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from array_api_compat import array_namespace
from skimage.data import camera, cell
from skimage.transform import resize

import xopt

# %%
# The objective
# -------------
#
# The derivative of a rounded absolute value is z/\|z\|_ε, which is 0 at 0. On the way back the transform is followed by
# its adjoint, and each mask by its conjugate; what comes out is ∂f/∂Re + i·∂f/∂Im. The functions ask the arrays they
# get for their namespace, and name no library.


def propagate(x, masks):
    """Return the light on the detector, one pattern for each mask."""
    xp = array_namespace(x)
    return xp.fft.fftn(masks * x, axes=(1, 2), norm="ortho")


def back(light, masks):
    """Return the adjoint of `propagate`: an object."""
    xp = array_namespace(light)
    return xp.sum(xp.conj(masks) * xp.fft.ifftn(light, axes=(1, 2), norm="ortho"), axis=0)


def objective(x, amplitudes, masks, eps):
    """Return the value, and the gradient with respect to the complex pixels."""
    xp = array_namespace(x)
    light = propagate(x, masks)
    size = xp.sqrt(xp.real(light) ** 2 + xp.imag(light) ** 2 + eps**2)
    error = size - amplitudes
    return xp.sum(error**2) / 2, back(error / size * light, masks)


# %%
# The data
# --------
#
# Each pixel of a mask turns the phase by a multiple of a quarter and weakens or strengthens the light: the octanary
# patterns of Candès, Li and Soltanolkotabi, whose mean square is 1.


def specimen(n):
    """Return the complex object: amplitudes from 0.2 to 1, phases from 0 to 2.5."""
    amplitude = resize(camera() / 255, (n, n), anti_aliasing=True)
    phase = resize(cell()[:550] / 255, (n, n), anti_aliasing=True)
    return (0.2 + 0.8 * amplitude) * np.exp(2.5j * phase)


def octanary(n, count, rng):
    """Return random masks, shape (count, n, n)."""
    phases = rng.choice([1, -1, 1j, -1j], size=(count, n, n))
    return phases * rng.choice([0.5**0.5, 3**0.5], p=[0.8, 0.2], size=(count, n, n))


def aligned(x, truth):
    """Turn x by the factor of absolute value 1 that brings it nearest to the truth."""
    product = np.vdot(x, truth)
    return x * product / abs(product)


def error(x, truth):
    """Return the norm of the difference, as a part of the norm of the truth."""
    return float(np.linalg.norm(aligned(x, truth) - truth) / np.linalg.norm(truth))


# %%
# The start
# ---------
#
# Take the masks off the patterns again, with much weight where there was much light: the object is nearly the first
# eigenvector of that map. The weights are those of Mondelli and Montanari (2019). Some are negative, and so may
# eigenvalues be; a shift by half of what the lowest can be makes power iterations find the largest all the same.


def spectral_start(x, amplitudes, masks, steps):
    """Return the eigenvector, reached from x, as long as the data say."""
    xp = array_namespace(x)
    root = masks.shape[0] ** 0.5
    y = amplitudes**2 / xp.mean(amplitudes**2)
    weights = (y - 1) / (y + root - 1)
    shift = xp.max(xp.sum(xp.abs(masks) ** 2, axis=0)) / (root - 1) / 2
    for _ in range(steps):
        x = back(weights * propagate(x, masks), masks) + shift * x
        x = x / xp.sqrt(xp.sum(xp.abs(x) ** 2))
    return x * xp.sqrt(xp.sum(amplitudes**2) / xp.sum(xp.abs(propagate(x, masks)) ** 2))


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
# The retrieval
# -------------
#
# The patterns have no noise, so what is left of the error shows how far a method has come.

METHODS = {
    "L-BFGS": {"method": "lbfgs"},
    "conjugate gradients": {"method": "cg"},
    "Adam": {"rule": xopt.Adam(lr=0.1)},  # the best rate of 0.03, 0.1 and 0.3
}


def solve(args):
    """Return the objects, and for every method its curve of evaluations, values and errors."""
    xp = namespace(args.library, args.dtype)
    rng = np.random.default_rng(args.seed)
    truth, masks = specimen(args.size), octanary(args.size, args.masks, rng)
    guess = rng.normal(size=truth.shape) + 1j * rng.normal(size=truth.shape)
    amplitudes = np.sqrt(np.abs(propagate(truth, masks)) ** 2 + args.eps**2)

    kind = "complex64" if args.dtype == "float32" else "complex128"
    given = xp.asarray(amplitudes.astype(args.dtype)), xp.asarray(masks.astype(kind))
    start = spectral_start(xp.asarray(guess.astype(kind)), *given, args.powers)
    objects, curves = {"truth": truth, "start": host(start)}, {}
    for name, how in METHODS.items():
        curve = [(1, float(objective(start, *given, args.eps)[0]), error(objects["start"], truth))]

        def note(intermediate_result, curve=curve):
            now = intermediate_result
            curve.append((now.nfev, now.fun, error(host(now.x), truth)))

        options = {"maxfun": args.evaluations, "gtol": 1e-12 if args.dtype == "float64" else 1e-5}
        result = xopt.minimize(objective, start, **how, args=(*given, args.eps), callback=note, options=options)
        objects[name], curves[name] = host(result.x), np.asarray(curve)
    return objects, curves


# %%
# The pictures
# ------------

COLOURS = {"L-BFGS": "#0072b2", "conjugate gradients": "#e69f00", "Adam": "#d55e00"}


def draw_images(objects):
    figure, panels = plt.subplots(2, 3, num="phases", clear=True, figsize=(11, 7.4), layout="constrained")
    truth = objects["truth"]
    titles = {"truth": "object", "start": "start", "L-BFGS": "retrieved (L-BFGS)"}
    for column, (name, title) in zip(panels.T, titles.items(), strict=True):
        found = aligned(objects[name], truth)
        column[0].set_title(title + ("" if name == "truth" else f": error {error(found, truth):.1e}"))
        amplitude = column[0].imshow(np.abs(found), cmap="gray", vmin=0, vmax=1)
        phase = column[1].imshow(np.angle(found * np.exp(-1.25j)) + 1.25, cmap="viridis", vmin=0, vmax=2.5)
        for axes in column:
            axes.set(xticks=[], yticks=[])
    figure.colorbar(amplitude, ax=panels[0], label="amplitude")
    figure.colorbar(phase, ax=panels[1], label="phase in radians")
    return figure


def draw_convergence(curves):
    figure, axes = plt.subplots(num="phase curves", clear=True, figsize=(7, 4.2), layout="constrained")
    for name, curve in curves.items():
        axes.plot(curve[:, 0], curve[:, 2], color=COLOURS[name], label=name)
    axes.set(
        yscale="log", xlabel="evaluations of objective and gradient", ylabel="error, as a part of the object's norm"
    )
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#eeeeee")
    return figure


# %%
# The run
# -------


def arguments(argv):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Retrieve an object from coded diffraction patterns.")
    add = parser.add_argument
    add("--library", default="auto", choices=["auto", "numpy", "cupy", "torch", "jax"])
    add("--dtype", default="float64", choices=["float32", "float64"], help="of the real and the imaginary part")
    add("--size", type=int, default=128, help="pixels along a side")
    add("--masks", type=int, default=6, help="at least 2")
    add("--powers", type=int, default=50, help="power iterations for the start, each as dear as an evaluation")
    add("--eps", type=float, default=1e-3, help="ε, which rounds off the absolute value")
    add("--evaluations", type=int, default=200, help="of the objective, for each method")
    add("--seed", type=int, default=0)
    add("--output-dir", type=Path, default=Path(), metavar="DIR")
    return parser.parse_args(argv)


def main(argv=None):
    """Retrieve the object and draw; return the errors and the curves."""
    args = arguments(argv)
    objects, curves = solve(args)
    errors = {name: error(x, objects["truth"]) for name, x in objects.items() if name != "truth"}
    print(f"{'start':>20}  error {errors['start']:.2e}")
    for name, curve in curves.items():
        print(
            f"{name:>20}  error {errors[name]:.2e}  objective {curve[-1, 1]:.2e} after {curve[-1, 0]:.0f} evaluations"
        )
    args.output_dir.mkdir(parents=True, exist_ok=True)
    draw_images(objects).savefig(args.output_dir / "phase_images.png", dpi=150)
    draw_convergence(curves).savefig(args.output_dir / "phase_convergence.png", dpi=150)
    return {"error": errors, "curves": curves, "objects": objects}


if __name__ == "__main__":
    main()
