"""
Fits with error bars: four of NIST's reference sets
===================================================

Nonlinear regression with standard errors and confidence bands, by :func:`xopt.curve_fit`. The `Statistical Reference
Datasets <https://www.itl.nist.gov/div898/strd/nls/nls_main.shtml>`_ of NIST are measurements with a model, two starts
and parameters and standard deviations that are certified to 11 digits: what a program for nonlinear least squares is
tested with. (All 27 are in xopt's tests.) Both starts of each set are fitted here, and compared.

::

    pip install "xopt-array[demo]"
    python fit_nist.py --output-dir pictures

draws ``nist_fits.png``.
"""

import argparse
import contextlib
import importlib
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from array_api_compat import array_namespace

import xopt

# %%
# Models and measurements
# -----------------------
#
# A model is a function of x and of one argument for each parameter. It is written for any array library.


def misra1a(x, a, b):
    """Return the volume of nitrogen that is adsorbed at a pressure."""
    return a * (1 - array_namespace(x).exp(-b * x))


def rat43(x, top, shift, rate, shape):
    """Return the dry weight of onion bulbs after some weeks: a sigmoid."""
    return top / (1 + array_namespace(x).exp(shift - rate * x)) ** (1 / shape)


def eckerle4(x, area, width, centre):
    """Return the transmittance of an interference filter at a wavelength: a bell."""
    return area / width * array_namespace(x).exp(-((x - centre) ** 2) / (2 * width**2))


def thurber(x, a, b, c, d, e, f, g):
    """Return the mobility of electrons in silicon at the logarithm of a density: a quotient of polynomials."""
    return (a + x * (b + x * (c + x * d))) / (1 + x * (e + x * (f + x * g)))


class Dataset(NamedTuple):
    """Measurements, where to begin, and what is certified."""

    model: object
    labels: tuple[str, str]
    x: str
    y: str
    starts: tuple[tuple[float, ...], tuple[float, ...]]
    certified: tuple[float, ...]
    deviations: tuple[float, ...]


DATASETS = {
    "Misra1a": Dataset(
        misra1a,
        ("pressure", "volume"),
        "77.6 114.9 141.1 190.8 239.9 289 332.8 378.4 434.8 477.3 536.8 593.1 689.1 760",
        "10.07 14.73 17.94 23.93 29.61 35.18 40.02 44.82 50.76 55.05 61.01 66.4 75.47 81.78",
        ((500, 1e-4), (250, 5e-4)),
        (238.94212918, 5.5015643181e-4),
        (2.7070075241, 7.2668688436e-6),
    ),
    "Rat43": Dataset(
        rat43,
        ("weeks", "dry weight"),
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15",
        "16.08 33.83 65.8 97.2 191.55 326.2 386.87 520.53 590.03 651.92 724.93 699.56 689.96 637.56 717.41",
        ((100, 10, 1, 1), (700, 5, 0.75, 1.3)),
        (699.6415127, 5.2771253025, 0.75962938329, 1.2792483859),
        (16.302297817, 2.0828735829, 0.19566123451, 0.68761936385),
    ),
    "Eckerle4": Dataset(
        eckerle4,
        ("wavelength (nm)", "transmittance"),
        "400 405 410 415 420 425 430 435 436.5 438 439.5 441 442.5 444 445.5 447 448.5 450 451.5 453 454.5 456 457.5 "
        "459 460.5 462 463.5 465 470 475 480 485 490 495 500",
        "0.0001575 0.0001699 0.000235 0.0003102 0.0004917 0.000871 0.0017418 0.00464 0.0065895 0.0097302 0.0149002 "
        "0.023731 0.0401683 0.0712559 0.1264458 0.2073413 0.2902366 0.3445623 0.3698049 0.3668534 0.3106727 0.2078154 "
        "0.1164354 0.0616764 0.03372 0.0194023 0.0117831 0.0074357 0.0022732 0.00088 0.0004579 0.0002345 0.0001586 "
        "0.0001143 7.1e-05",
        ((1, 10, 500), (1.5, 5, 450)),
        (1.5543827178, 4.0888321754, 451.54121844),
        (0.015408051163, 0.046803020753, 0.046800518816),
    ),
    "Thurber": Dataset(
        thurber,
        ("log of the density", "mobility"),
        "-3.067 -2.981 -2.921 -2.912 -2.84 -2.797 -2.702 -2.699 -2.633 -2.481 -2.363 -2.322 -1.501 -1.46 -1.274 -1.212 "
        "-1.1 -1.046 -0.915 -0.714 -0.566 -0.545 -0.4 -0.309 -0.109 -0.103 0.01 0.119 0.377 0.79 0.963 1.006 1.115 "
        "1.572 1.841 2.047 2.2",
        "80.574 84.248 87.264 87.195 89.076 89.608 89.868 90.101 92.405 95.854 100.696 101.06 401.672 390.724 567.534 "
        "635.316 733.054 759.087 894.206 990.785 1090.109 1080.914 1122.643 1178.351 1260.531 1273.514 1288.339 "
        "1327.543 1353.863 1414.509 1425.208 1421.384 1442.962 1464.35 1468.705 1447.894 1457.628",
        ((1000, 1000, 400, 40, 0.7, 0.3, 0.03), (1300, 1500, 500, 75, 1, 0.4, 0.05)),
        (1288.13968, 1491.0792535, 583.23836877, 75.416644291, 0.96629502864, 0.39797285797, 0.049727297349),
        (4.6647963344, 39.571156086, 28.698696102, 5.567537027, 0.031333340687, 0.014984928198, 0.0065842344623),
    ),
}


def numbers(text):
    """Read a column of measurements."""
    return np.asarray(text.split(), float)


# %%
# Library
# -------


def namespace(library):
    """Import the library; auto is CuPy where it finds a GPU, else NumPy."""
    if library == "auto":
        library = "numpy"
        with contextlib.suppress(Exception):  # not installed, or without a driver
            library = "cupy" if importlib.import_module("cupy").cuda.is_available() else "numpy"
    if library == "jax":
        importlib.import_module("jax").config.update("jax_enable_x64", True)
    return importlib.import_module("jax.numpy" if library == "jax" else f"array_api_compat.{library}")


def host(x):
    """Bring an array to NumPy."""
    return np.asarray(x.get() if hasattr(x, "get") else x)


# %%
# The fits
# --------
#
# As the spread of the measurements is not known, it is estimated from the residuals. The standard errors are the roots
# of the diagonal of the covariance of the parameters; that of the curve at some x is the root of j·C·jᵀ, with the
# derivatives j of the model there by the parameters and the covariance C. Tolerances of 1e-15 ask for all the digits
# that there are; by default a fit ends when the sum of squares falls by less than 1e-8 of it. Torch and JAX compute the
# Jacobian exactly; for other libraries it is made of differences, here central ones.


def fit(dataset, start, xp, jac):
    """Return parameters and their covariance as NumPy's, and the number of evaluations."""
    x, y, p0 = (xp.asarray(a) for a in (numbers(dataset.x), numbers(dataset.y), np.asarray(start, float)))
    found, covariance, result = xopt.curve_fit(
        dataset.model, x, y, p0, jac=jac, ftol=1e-15, xtol=1e-15, gtol=1e-15, full_output=True
    )
    return host(found), host(covariance), result.nfev


def digits(found, certified):
    """Return how many digits of the worst number are right."""
    return float(-np.log10(np.max(abs(found / np.asarray(certified) - 1))))


def band(dataset, x, parameters, covariance):
    """Return the standard error of the curve at each x."""
    rows = []
    for k, size in enumerate(abs(parameters)):
        step = np.zeros(len(parameters))
        step[k] = 1e-6 * size
        rows.append((dataset.model(x, *parameters + step) - dataset.model(x, *parameters - step)) / (2 * step[k]))
    return np.sqrt(np.einsum("ix,ij,jx->x", rows, covariance, rows))


# %%
# The picture
# -----------


def draw(fits):
    """Draw measurements, curve and the band of two standard errors; below them what is left, in the same units."""
    figure, panels = plt.subplots(
        2, len(fits), num="nist", clear=True, figsize=(14, 5), layout="constrained", height_ratios=[3, 1], sharex="col"
    )
    for (above, below), (name, (parameters, covariance)) in zip(panels.T, fits.items(), strict=True):
        dataset = DATASETS[name]
        x, y = numbers(dataset.x), numbers(dataset.y)
        fine = np.linspace(x.min(), x.max(), 400)
        curve, error = dataset.model(fine, *parameters), 2 * band(dataset, fine, parameters, covariance)
        above.plot(x, y, "o", color="#444444", markersize=4, label="measured")
        above.plot(fine, curve, color="#0072b2", label="fitted")
        above.fill_between(fine, curve - error, curve + error, color="#99c7e0", label="± 2 standard errors")
        lines = [f"{p:.5g} ± {e:.2g}" for p, e in zip(parameters, np.sqrt(np.diag(covariance)), strict=True)]
        where = (0.03, 0.97, "left") if name == "Eckerle4" else (0.97, 0.05, "right")
        above.text(
            *where[:2], "\n".join(lines), transform=above.transAxes, fontsize=8, ha=where[2],
            va="top" if where[1] > 0.5 else "bottom",
        )  # fmt: skip
        above.set(title=name, ylabel=dataset.labels[1])
        below.axhline(0, color="#0072b2", linewidth=1)
        below.fill_between(fine, -error, error, color="#99c7e0")
        below.plot(x, y - dataset.model(x, *parameters), "o", color="#444444", markersize=4)
        below.set(xlabel=dataset.labels[0], ylabel="residual")
        for axes in (above, below):
            axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].legend(frameon=False, fontsize=8)
    return figure


# %%
# The run
# -------


def main(argv=None):
    """Fit and draw; return for each set the digits of parameters and of standard errors from both starts."""
    parser = argparse.ArgumentParser(description="Fit reference sets of NIST, with standard errors.")
    parser.add_argument("--library", default="auto", choices=["auto", "numpy", "cupy", "torch", "jax"])
    parser.add_argument("--output-dir", type=Path, default=Path(), metavar="DIR")
    args = parser.parse_args(argv)
    xp, found, right = namespace(args.library), {}, {}
    jac = None if args.library in ("torch", "jax") else "3-point"
    print("digits that are right, of parameters and of standard errors, and evaluations, from both starts")
    for name, dataset in DATASETS.items():
        text = []
        for start in dataset.starts:
            parameters, covariance, nfev = fit(dataset, start, xp, jac)
            both = (
                digits(parameters, dataset.certified),
                digits(np.sqrt(np.diag(covariance)), dataset.deviations),
            )
            right.setdefault(name, []).append(both)
            text.append(f"{both[0]:4.1f} {both[1]:4.1f} {nfev:4d}")
        found[name] = parameters, covariance
        print(f"{name:9} {'   '.join(text)}")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    draw(found).savefig(args.output_dir / "nist_fits.png", dpi=150)
    return right


if __name__ == "__main__":
    main()
