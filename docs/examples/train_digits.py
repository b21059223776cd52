"""
Train a classifier on handwritten digits
========================================

A classifier with two hidden layers and dropout learns the 1,797 digits that ship with scikit-learn. Its gradients are
written by hand, in the operations of the Python Array API standard, so that the same script trains on NumPy, CuPy,
torch and JAX. :class:`xopt.Optimizer` writes each step into the parameters.

Run it from a shell, with another library or another optimizer if you like (``--help`` lists all options)::

    pip install "xopt-array[demo]"
    python train_digits.py
    python train_digits.py --library torch --optimizer sgd --schedule warmup_cosine --clip 1

It prints what it measured and draws ``loss.png``. Everything random is drawn by NumPy from ``--seed``, and the
arithmetic is float64 unless ``--dtype`` says otherwise: all libraries then see the same numbers and end at the same
loss.
"""

import argparse
import contextlib
import importlib
import itertools
import statistics
import sys
import time

import numpy as np
from array_api_compat import array_namespace
from sklearn.datasets import load_digits

import xopt

# %%
# The network
# -----------
#
# The parameters are a list of layers, each a dictionary of two arrays: for xopt that is a tree like any other. The
# functions below ask the arrays they get for their namespace, and name no library.


def forward(params, x, dropouts, *, training):
    """Return the scores of the ten digits, and the input of every layer for the way back."""
    xp = array_namespace(x)
    inputs = [x]
    for layer, dropout in zip(params[:-1], dropouts, strict=True):
        z = inputs[-1] @ layer["w"] + layer["b"]
        inputs.append(dropout.forward(xp.maximum(z, xp.zeros_like(z)), training=training))
    return inputs[-1] @ params[-1]["w"] + params[-1]["b"], inputs


def cross_entropy(scores, targets):
    """Return the mean loss over the rows, and its gradient with respect to the scores."""
    xp = array_namespace(scores)
    z = scores - xp.max(scores, axis=1, keepdims=True)
    log_p = z - xp.log(xp.sum(xp.exp(z), axis=1, keepdims=True))
    n = scores.shape[0]
    return -xp.sum(targets * log_p) / n, (xp.exp(log_p) - targets) / n


def backward(params, inputs, dropouts, g):
    """Return the gradient of every parameter, from the gradient of the scores."""
    xp = array_namespace(g)
    grads = []
    for k in reversed(range(len(params))):
        grads.append({"w": inputs[k].T @ g, "b": xp.sum(g, axis=0)})
        if k > 0:
            g = dropouts[k - 1].backward(g @ params[k]["w"].T)
            g = xp.where(inputs[k] > 0, g, xp.zeros_like(g))  # ReLU: what it cut off is 0 behind dropout too
    return grads[::-1]


def evaluate(params, x, targets, dropouts):
    """Return loss and accuracy, with dropout in test mode."""
    xp = array_namespace(x)
    scores, _ = forward(params, x, dropouts, training=False)
    right = xp.argmax(scores, axis=1) == xp.argmax(targets, axis=1)
    return float(cross_entropy(scores, targets)[0]), int(xp.count_nonzero(right)) / x.shape[0]


# %%
# Data and first weights
# ----------------------
#
# A quarter of the digits is held out for testing: the same quarter whatever the seed. The weights begin as He et al.
# (2015) propose for ReLU.


def digits():
    """Return images for training, their one-hot labels, and the same for testing."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = np.split(order, [len(x) * 3 // 4])
    x, targets = x / 16, np.eye(10)[y]
    return x[train], targets[train], x[test], targets[test]


def first_weights(rng, sizes):
    """Return one layer less than there are sizes."""
    return [
        {"w": rng.normal(scale=(2 / m) ** 0.5, size=(m, n)), "b": np.zeros(n)} for m, n in itertools.pairwise(sizes)
    ]


# %%
# Library, rule and schedule
# --------------------------

RULES = {  # with learning rates that suit this problem
    "sgd": (0.1, lambda lr: xopt.SGD(lr=lr, momentum=0.9)),
    "adagrad": (0.03, xopt.Adagrad),
    "adadelta": (1.0, xopt.Adadelta),
    "rmsprop": (2e-3, xopt.RMSProp),
    "adam": (3e-3, xopt.Adam),
    "adamw": (3e-3, xopt.AdamW),
    "lion": (5e-4, xopt.Lion),
}
SCHEDULES = {
    "constant": lambda lr, n: xopt.schedules.constant(lr),
    "cosine": lambda lr, n: xopt.schedules.cosine(lr, steps=n),
    "step": lambda lr, n: xopt.schedules.step(lr, every=n / 3, factor=0.2),
    "exponential": lambda lr, n: xopt.schedules.exponential(lr, rate=0.01, every=n),
    "warmup_cosine": lambda lr, n: xopt.schedules.warmup_cosine(lr, warmup=n / 20, steps=n),
}
NAMESPACES = {
    "numpy": "array_api_compat.numpy",
    "cupy": "array_api_compat.cupy",
    "torch": "array_api_compat.torch",
    "jax": "jax.numpy",
}


def has_gpu():
    """Whether CuPy is installed and finds a GPU."""
    with contextlib.suppress(Exception):
        import cupy

        return cupy.cuda.runtime.getDeviceCount() > 0
    return False


def namespace(library, dtype):
    """Import a library by the name that ``--library`` takes."""
    try:
        xp = importlib.import_module(NAMESPACES[library])
    except ImportError as error:
        sys.exit(f"train_digits: --library {library} cannot be imported: {error}")
    if library == "cupy" and not has_gpu():
        sys.exit("train_digits: --library cupy needs a CUDA GPU, and CuPy finds none")
    if library == "jax" and dtype == "float64":
        import jax

        jax.config.update("jax_enable_x64", True)
    return xp


def wait(library, arrays):
    """Wait until the arrays are computed: CuPy and JAX return before they are."""
    if library == "cupy":
        import cupy

        cupy.cuda.get_current_stream().synchronize()
    elif library == "jax":
        import jax

        jax.block_until_ready(arrays)


def count(text):
    """Read a whole number above 0."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def arguments(argv):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Train a classifier on handwritten digits.")
    add = parser.add_argument
    add("--library", default="auto", choices=["auto", *NAMESPACES], help="auto: CuPy when it finds a GPU, else NumPy")
    add("--dtype", default="float64", choices=["float32", "float64"])
    add("--optimizer", default="adam", choices=RULES)
    add("--lr", type=float, help="learning rate; by default one that suits the optimizer")
    add("--schedule", default="cosine", choices=SCHEDULES)
    add("--clip", type=float, metavar="NORM", help="clip the gradients to this global norm")
    add("--state-dtype", choices=["float32", "bfloat16", "int8"], help="keep the state in fewer digits")
    add("--runner", help="how xopt computes a step; by default the best there is for the library")
    add("--epochs", type=count, default=30)
    add("--batch", type=count, default=64)
    add("--hidden", type=count, nargs=2, default=[256, 128], metavar="N", help="sizes of the hidden layers")
    add("--dropout", type=float, default=0.2, metavar="RATE")
    add("--seed", type=int, default=0)
    add("--output", default="loss.png", metavar="FILE", help="where to draw the loss; '' draws nothing")
    add("--quiet", action="store_true", help="print nothing")
    return parser.parse_args(argv)


# %%
# Training
# --------
#
# ``opt.step(grads)`` writes into the parameters where arrays can be written into. JAX arrays cannot: there
# ``opt.params`` is bound to new ones, so taking the parameters from it after each step is right for every library.


def train(args):
    """Train as the command line says and return everything that was measured."""
    library = args.library if args.library != "auto" else "cupy" if has_gpu() else "numpy"
    xp = namespace(library, args.dtype)

    def move(array):
        return xp.asarray(array.astype(args.dtype))

    rng = np.random.default_rng(args.seed)
    x, targets, x_test, targets_test = map(move, digits())
    params = [
        {name: move(array) for name, array in layer.items()} for layer in first_weights(rng, [64, *args.hidden, 10])
    ]
    dropouts = [xopt.nn.Dropout(args.dropout, seed=2 * args.seed + k) for k in range(2)]

    n, batch = x.shape[0], min(args.batch, x.shape[0])
    batches = n // batch  # an epoch ends with its last full batch
    default, make = RULES[args.optimizer]
    rule = make(lr=SCHEDULES[args.schedule](default if args.lr is None else args.lr, batches * args.epochs))
    if args.clip is not None:
        rule = xopt.chain(xopt.ClipByGlobalNorm(args.clip), rule)
    opt = xopt.Optimizer(params, rule, runner=args.runner, state_dtype=args.state_dtype)

    losses, accuracies, seconds = [], [], []
    epochs = Progress(args.epochs, args.quiet)
    for epoch in epochs:
        for rows in np.split(rng.permutation(n)[: batches * batch], batches):
            rows = xp.asarray(rows)
            scores, inputs = forward(params, xp.take(x, rows, axis=0), dropouts, training=True)
            loss, g = cross_entropy(scores, xp.take(targets, rows, axis=0))
            grads = backward(params, inputs, dropouts, g)

            wait(library, grads)
            begin = time.perf_counter()
            opt.step(grads)
            params = opt.params
            wait(library, params)
            seconds.append(time.perf_counter() - begin)
            losses.append(float(loss))
        accuracies.append(evaluate(params, x_test, targets_test, dropouts)[1])
        epochs.show(epoch, loss=statistics.fmean(losses[-batches:]), accuracy=accuracies[-1])

    return {
        "optimizer": args.optimizer,
        "library": library,
        "runner": opt.runner,
        "steps": len(losses),
        "training loss": evaluate(params, x, targets, dropouts)[0],
        "test accuracy": accuracies[-1],
        "µs a step": 1e6 * statistics.median(seconds),
        "losses": losses,
        "accuracies": accuracies,
    }


# %%
# What you see
# ------------


class Progress:
    """Count the epochs with the bar of tqdm, or with lines where tqdm is not installed."""

    def __init__(self, epochs, quiet):
        self.epochs, self.quiet, self.bar = range(1, epochs + 1), quiet, None
        with contextlib.suppress(ImportError):
            from tqdm import tqdm

            self.bar = tqdm(self.epochs, unit="epoch", disable=quiet)

    def __iter__(self):
        return iter(self.epochs if self.bar is None else self.bar)

    def show(self, epoch, loss, accuracy):
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{loss:.4f}", accuracy=f"{accuracy:.4f}")
        elif not self.quiet:
            print(f"epoch {epoch}/{len(self.epochs)}  loss {loss:.4f}  accuracy {accuracy:.4f}")


def table(result):
    """Return what was measured as a line of names and a line of values."""
    forms = {"training loss": ".3e", "test accuracy": ".4f", "µs a step": ".1f"}
    cells = [(k, format(v, forms.get(k, ""))) for k, v in result.items() if not isinstance(v, list)]
    widths = [max(map(len, cell)) for cell in cells]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in zip(*cells, strict=True))


def draw(result, file):
    """Draw the loss of every step and of every epoch, and the test accuracy of every epoch."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print(f'train_digits: {file} is not drawn; for that, pip install "xopt-array[plot]"')
        return
    epochs = np.arange(1, len(result["accuracies"]) + 1)
    losses = np.reshape(result["losses"], (len(epochs), -1))
    steps = np.arange(1, losses.size + 1) / losses.shape[1]

    figure, (top, bottom) = plt.subplots(
        2, sharex=True, num="digits", clear=True, figsize=(7, 6), height_ratios=[3, 2], layout="constrained"
    )
    top.plot(steps, losses.ravel(), color="#9ecae1", linewidth=0.8, label="each step")
    top.plot(epochs - 0.5, losses.mean(axis=1), color="#08519c", linewidth=2, label="mean of the epoch")
    top.set(yscale="log", ylabel="training loss (with dropout)", title="{optimizer} on {library}".format(**result))
    top.legend(frameon=False)
    bottom.plot(epochs, result["accuracies"], color="#d95f02", linewidth=2, marker="o", markersize=3)
    bottom.annotate(
        f"{result['accuracies'][-1]:.1%}", (epochs[-1], result["accuracies"][-1]), (0, -16), textcoords="offset points",
        ha="right", color="#d95f02",
    )  # fmt: skip
    bottom.set(xlabel="epoch", ylabel="test accuracy", xlim=(0, epochs[-1]))
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#eeeeee")
    figure.savefig(file, dpi=150)


# %%
# The run
# -------


def main(argv=None):
    """Train, print and draw; return a dictionary of what was measured."""
    args = arguments(argv)
    result = train(args)
    if not args.quiet:
        print(table(result))
    if args.output:
        draw(result, args.output)
    return result


if __name__ == "__main__":
    main()
