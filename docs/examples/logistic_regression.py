"""
Logistic regression beside scikit-learn
=======================================

Which digit is it? Logistic regression gives each digit a score that is linear in the pixels, and makes probabilities of
the scores. Its weights are the minimum of a convex function, so that every method must find the same, and
scikit-learn's ``LogisticRegression`` too: a check of both.

.. math::
    f(W, b) = -\\frac1n \\sum_i \\log p_{i, y_i} + \\frac\\lambda2 \\lVert W \\rVert^2, \\qquad
    p_{ij} = \\frac{\\exp (x_i W + b)_j}{\\sum_k \\exp (x_i W + b)_k}

scikit-learn minimizes the same times C·n, with C = 1/(λ n). The parameters are a dictionary of weights and offsets,
which :func:`xopt.minimize` takes like any tree of arrays.

::

    pip install "xopt-array[demo]"
    python logistic_regression.py --output-dir pictures
    python logistic_regression.py --library torch --dtype float32

draws ``logistic_convergence.png`` and ``logistic_weights.png``. The data are the 1,797 digits that ship with
scikit-learn, of which NumPy draws a quarter for testing, from ``--seed``.
"""

import argparse
import contextlib
import importlib
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from array_api_compat import array_namespace
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import xopt

# %%
# The objective
# -------------
#
# The largest score of a row is taken away before the exponentials, which cannot overflow then. The functions ask the
# arrays they get for their namespace, and name no library.


def objective(params, x, targets, penalty):
    """Return the value, and the gradient with respect to weights and offsets."""
    xp = array_namespace(x)
    scores = x @ params["w"] + params["b"]
    scores = scores - xp.max(scores, axis=1, keepdims=True)
    log_p = scores - xp.log(xp.sum(xp.exp(scores), axis=1, keepdims=True))
    n = x.shape[0]
    value = -xp.sum(targets * log_p) / n + penalty / 2 * xp.sum(params["w"] ** 2)
    error = (xp.exp(log_p) - targets) / n
    return value, {"w": x.T @ error + penalty * params["w"], "b": xp.sum(error, axis=0)}


def digits(count, seed):
    """Return images for training and their digits, and the same for testing."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    train, test = np.split(order, [len(x) * 3 // 4])
    return x[train[:count]] / 16, y[train[:count]], x[test] / 16, y[test]


def accuracy(params, x, y):
    return float(np.mean(np.argmax(x @ params["w"] + params["b"], axis=1) == y))


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
# Four methods, and scikit-learn
# ------------------------------
#
# scikit-learn stops early unless it is asked not to: with its own ``tol=1e-4`` it ends 1e-4 above the minimum, as a
# part of it. Adam's rate was chosen from 0.03, 0.1 and 0.3. The larger ones end nearer to the minimum or farther from
# it, by chance: the squares that Adam divides by become tiny there, and now and then a step is far too large.

METHODS = {
    "L-BFGS": {"method": "lbfgs"},
    "conjugate gradients": {"method": "cg"},
    "gradient descent": {"method": "gd"},
    "Adam": {"rule": xopt.Adam(lr=0.03)},
}


def with_sklearn(x, y, penalty):
    """Return the parameters that scikit-learn finds, and its iterations."""
    model = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-8, max_iter=10_000).fit(x, y)
    return {"w": model.coef_.T, "b": model.intercept_}, int(model.n_iter_[0])


def solve(args):
    """Return what each found, its value, accuracy and work, and the curves of evaluations and values."""
    xp = namespace(args.library, args.dtype)
    x, y, x_test, y_test = digits(args.size, args.seed)
    targets = np.eye(10)[y]
    given = xp.asarray(x.astype(args.dtype)), xp.asarray(targets.astype(args.dtype))
    zeros = {"w": xp.asarray(np.zeros((64, 10), args.dtype)), "b": xp.asarray(np.zeros(10, args.dtype))}

    found, curves = {}, {}

    def note(name, params, work):
        value = float(objective(params, x, targets, args.penalty)[0])  # of all by NumPy, in float64
        found[name] = {"params": params, "value": value, "accuracy": accuracy(params, x_test, y_test), "work": work}

    params, iterations = with_sklearn(x, y, args.penalty)
    note("scikit-learn", params, f"{iterations} iterations")
    for name, how in METHODS.items():
        curve = [(1, float(objective(zeros, *given, args.penalty)[0]))]

        def keep(intermediate_result, curve=curve):
            curve.append((intermediate_result.nfev, intermediate_result.fun))

        options = {"maxfun": args.evaluations, "gtol": 1e-8 if args.dtype == "float64" else 1e-5}
        result = xopt.minimize(objective, zeros, **how, args=(*given, args.penalty), callback=keep, options=options)
        params = {key: host(array).astype(float) for key, array in result.x.items()}
        note(name, params, f"{result.nit} iterations, {result.nfev} evaluations")
        curves[name] = np.asarray(curve)
    return found, curves


# %%
# The pictures
# ------------

COLOURS = {
    "L-BFGS": "#0072b2", "conjugate gradients": "#e69f00", "gradient descent": "#000000", "Adam": "#d55e00",
}  # fmt: skip


def draw_convergence(curves, lowest):
    figure, axes = plt.subplots(num="logistic", clear=True, figsize=(7, 4.2), layout="constrained")
    for name, curve in curves.items():
        axes.plot(curve[:, 0], curve[:, 1] - lowest, color=COLOURS[name], label=name)
    axes.set(yscale="log", xscale="log", ylim=(1e-12, None))
    axes.set(xlabel="evaluations of objective and gradient", ylabel="objective above the lowest value")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#eeeeee")
    return figure


def draw_weights(params):
    figure, panels = plt.subplots(2, 5, num="weights", clear=True, figsize=(10, 4.4), layout="constrained")
    largest = np.abs(params["w"]).max()
    for digit, axes in enumerate(panels.flat):
        weights = params["w"][:, digit].reshape(8, 8)
        drawn = axes.imshow(weights, cmap="PuOr", vmin=-largest, vmax=largest)
        axes.set(xticks=[], yticks=[], title=digit)
    figure.colorbar(drawn, ax=panels, label="weight of a pixel")
    return figure


# %%
# The run
# -------


def arguments(argv):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Fit a logistic regression to handwritten digits.")
    add = parser.add_argument
    add("--library", default="auto", choices=["auto", "numpy", "cupy", "torch", "jax"])
    add("--dtype", default="float64", choices=["float32", "float64"])
    add("--size", type=int, default=1347, help="digits to learn from, at most 1347")
    add("--penalty", type=float, default=1e-3, help="λ, the weight of the squares")
    add("--evaluations", type=int, default=1000, help="of the objective, for each method")
    add("--seed", type=int, default=0)
    add("--output-dir", type=Path, default=Path(), metavar="DIR")
    return parser.parse_args(argv)


def main(argv=None):
    """Fit, print and draw; return what each method found."""
    args = arguments(argv)
    found, curves = solve(args)
    for name, result in found.items():
        print(f"{name:>20}  {{value:.12f}}  accuracy {{accuracy:.4f}}  {{work}}".format(**result))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    lowest = min(result["value"] for result in found.values())
    draw_convergence(curves, lowest).savefig(args.output_dir / "logistic_convergence.png", dpi=150)
    draw_weights(found["L-BFGS"]["params"]).savefig(args.output_dir / "logistic_weights.png", dpi=150)
    return {"found": found, "curves": curves}


if __name__ == "__main__":
    main()
