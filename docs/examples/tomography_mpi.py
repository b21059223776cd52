"""
Tomography on many processes
============================

A scanner takes X-ray pictures of a sample from many angles, and a volume is looked for that explains them. A row of
detector pixels sees one slice of the sample, of which a picture has the sums along parallel lines.

.. math:: f(x) = \\tfrac12 \\sum_k \\lVert A_k x - b_k \\rVert^2, \\qquad x \\ge 0

Here b_k is the picture from the angle k and A_k takes the sums along its lines. The sum over k is shared out: each
process has its own angles, their pictures and the gradient of its own part of f. ``xopt.Optimizer(..., comm=comm)``
adds up the gradients and takes the step, and each process keeps its part of the state of Adam only, see
:doc:`/distributed`.

::

    pip install "xopt-array[demo,mpi]" mpich
    mpiexec -n 4 python -m mpi4py tomography_mpi.py --output-dir pictures
    python tomography_mpi.py --output-dir pictures

Both draw ``tomography.png`` and print the same error, 0.1229 on 1, 2 and 4 processes; the second is one process, and
needs no mpi4py. With ``-m mpi4py`` an exception that one process does not catch ends all of them. The sample is made
here, and noise is drawn by NumPy from ``--seed`` and the number of the picture, so that it is the same on any number of
processes.
"""

import argparse
import contextlib
import importlib
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import xopt

# %%
# Many processes, or one
# ----------------------


def world():
    """Return the communicator of all processes; None without mpi4py, or without an MPI."""
    with contextlib.suppress(ImportError, RuntimeError):
        return importlib.import_module("mpi4py.MPI").COMM_WORLD
    return None


def modules(library):
    """Import the library, and its sparse matrices; auto is CuPy where it finds a GPU, else NumPy."""
    if library == "auto":
        library = "numpy"
        with contextlib.suppress(Exception):  # not installed, or without a driver
            library = "cupy" if importlib.import_module("cupy").cuda.is_available() else "numpy"
    sparse = "cupyx.scipy.sparse" if library == "cupy" else "scipy.sparse"
    return importlib.import_module(library), importlib.import_module(sparse)


def host(x):
    """Bring an array to NumPy."""
    return np.asarray(x.get() if hasattr(x, "get") else x)


# %%
# The sample
# ----------
#
# Ellipsoids in a ball of thin material: the middle, the half axes and what each adds to the density.

ELLIPSOIDS = [
    ((0.0, 0.0, 0.0), (0.9, 0.8, 0.9), 0.4),
    ((0.0, 0.0, 0.0), (0.8, 0.7, 0.8), -0.2),
    ((0.0, 0.3, 0.25), (0.5, 0.3, 0.2), 0.5),
    ((0.1, -0.3, 0.2), (0.4, 0.2, 0.3), 0.4),
    ((-0.2, 0.1, -0.4), (0.4, 0.35, 0.2), 0.3),
    ((0.2, -0.35, -0.35), (0.3, 0.12, 0.12), 0.6),
    ((0.0, 0.1, -0.05), (0.15, 0.08, 0.08), 0.8),
]


def sample(slices, n):
    """Return the volume, shape (n, n, slices), each voxel the mean of eight points."""
    across, along = ((np.arange(2 * k) + 0.5) / k - 1 for k in (n, slices))
    y, x, z = np.meshgrid(across, across, along, indexing="ij")
    fine = np.zeros(x.shape)
    for (z0, y0, x0), (c, b, a), density in ELLIPSOIDS:
        fine += density * (((x - x0) / a) ** 2 + ((y - y0) / b) ** 2 + ((z - z0) / c) ** 2 < 1)
    return fine.reshape(n, 2, n, 2, slices, 2).mean(axis=(1, 3, 5))


# %%
# The measurement
# ---------------
#
# The middle of a voxel is seen somewhere between two pixels of the detector, which share what it has. This makes a
# sparse matrix with two entries a voxel, the same one for all slices.


def projector(angles, n):
    """Return the rows and columns, and the numbers there, of the matrix from n × n voxels to n pixels an angle."""
    middle = np.arange(n) - (n - 1) / 2
    y, x = (c.ravel() for c in np.meshgrid(middle, middle, indexing="ij"))
    seen = np.cos(angles)[:, None] * x + np.sin(angles)[:, None] * y + (n - 1) / 2
    low = np.floor(seen).astype(int)
    first = n * np.arange(len(angles))[:, None]
    voxel = np.broadcast_to(np.arange(n * n), seen.shape)
    rows, columns, numbers = [], [], []
    for pixel, share in ((low, 1 - (seen - low)), (low + 1, seen - low)):
        inside = (pixel >= 0) & (pixel < n)  # corners of the square are beside the detector
        rows.append((first + pixel)[inside])
        columns.append(voxel[inside])
        numbers.append(share[inside])
    return np.concatenate(rows), np.concatenate(columns), np.concatenate(numbers)


# %%
# The reconstruction
# ------------------
#
# All processes run the same lines. The rank decides which angles are measured here; the rest is what one process would
# do. After a step all of them have the whole volume, so that each could compute the error, and one prints it.


def error(x, truth):
    """Return the norm of the difference, as a part of the norm of the truth."""
    return float(np.linalg.norm(x - truth) / np.linalg.norm(truth))


def solve(args, comm=None):
    """Return the truth, the volume and the errors after each step."""
    rank, size = (0, 1) if comm is None else (comm.rank, comm.size)
    xp, sparse = modules(args.library)
    truth = sample(args.slices, args.size).reshape(-1, args.slices)

    mine = np.arange(args.angles)[rank::size]
    rows, columns, numbers = projector(np.pi * mine / args.angles, args.size)
    shape = len(mine) * args.size, args.size**2
    there = (xp.asarray(numbers.astype(args.dtype)), (xp.asarray(rows), xp.asarray(columns)))
    forward = sparse.csr_matrix(there, shape=shape)
    back = forward.T.tocsr()
    noise = [np.random.default_rng([args.seed, k]).normal(size=(args.size, args.slices)) for k in mine]
    pictures = forward @ xp.asarray(truth.astype(args.dtype))
    pictures += args.noise * xp.asarray(np.reshape(noise, pictures.shape).astype(args.dtype))

    x = xp.zeros(truth.shape, dtype=args.dtype)
    rule = xopt.chain(xopt.Adam(xopt.schedules.cosine(args.lr, steps=args.steps)), xopt.NonNegative())
    opt = xopt.Optimizer(x, rule, comm=comm)
    errors = [1.0]
    for _ in range(args.steps):
        opt.step(back @ (forward @ x - pictures))  # of the angles of this process
        errors.append(error(host(x), truth))
    whole = args.size, args.size, args.slices
    return truth.reshape(whole), host(x).reshape(whole), errors


# %%
# The picture
# -----------


def draw(truth, found, errors):
    n, slices = truth.shape[1:]
    figure = plt.figure("tomography", clear=True, figsize=(13, 4.8), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[3, 1.2])
    panels = left.subplots(2, 3, height_ratios=[n, slices])
    grey = {"cmap": "gray", "vmin": 0, "vmax": 1}
    for row, cut in zip(panels, (np.s_[:, :, slices // 2], np.s_[int(0.6 * n)]), strict=True):
        a, b = (x[cut] if x[cut].shape == (n, n) else x[cut].T for x in (truth, found))
        for axes, image in zip(row, (a, b), strict=False):
            axes.imshow(image, **grey)
        drawn = row[2].imshow(b - a, cmap="RdBu_r", vmin=-0.3, vmax=0.3)
    for axes, title in zip(panels[0], ("sample", "reconstruction", "difference"), strict=True):
        axes.set_title(title)
    for axes, name in zip(panels[:, 0], ("one slice", "all slices"), strict=True):
        axes.set_ylabel(name)
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
    left.colorbar(drawn, ax=panels[:, 2], shrink=0.8)
    curve = right.subplots()
    curve.plot(errors, color="#0072b2")
    curve.set(ylim=(0, 1), xlabel="steps", ylabel="error, as a part of the sample's norm")
    curve.spines[["top", "right"]].set_visible(False)
    curve.grid(color="#eeeeee")
    return figure


# %%
# The run
# -------


def arguments(argv):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Reconstruct a volume from X-ray pictures, on one or more processes.")
    add = parser.add_argument
    add("--library", default="auto", choices=["auto", "numpy", "cupy"])
    add("--dtype", default="float32", choices=["float32", "float64"])
    add("--size", type=int, default=96, help="voxels along a side of a slice, and pixels of the detector")
    add("--slices", type=int, default=32)
    add("--angles", type=int, default=60, help="at least one for each process")
    add("--noise", type=float, default=0.5, help="standard deviation; sums along lines are up to 40")
    add("--lr", type=float, default=0.2)
    add("--steps", type=int, default=60)
    add("--seed", type=int, default=0)
    add("--output-dir", type=Path, default=Path(), metavar="DIR")
    return parser.parse_args(argv)


def main(argv=None, comm=None):
    """Reconstruct and draw; return the volume and the errors."""
    args = arguments(argv)
    truth, found, errors = solve(args, comm)
    if comm is None or comm.rank == 0:
        print(f"error {errors[-1]:.4f}  steps {args.steps}  processes {1 if comm is None else comm.size}")
        args.output_dir.mkdir(parents=True, exist_ok=True)
        draw(truth, found, errors).savefig(args.output_dir / "tomography.png", dpi=150)
    assert errors[-1] < 0.15, "the reconstruction did not converge"
    return {"volume": found, "errors": errors}


if __name__ == "__main__":
    main(comm=world())
