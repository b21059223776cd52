"""Few digits: ``python -m benchmarks.precision`` measures, prints, and writes docs/precision.md.

Adam, bfloat16: the bytes of state a parameter, the time of a step over many parameters beside rounding to nearest, and
the loss of a softmax regression of handwritten digits after 2000 small steps, whose gradients are computed in float32.

Adam and Lion, float32 parameters, state in 8 bits beside float32: bytes, time of a step, the training example of the
documentation for three seeds, and a bowl of a million parameters with noisy gradients.
"""

from __future__ import annotations

import argparse
import runpy
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.__main__ import threads_for_all
from benchmarks.report import circumstances, publish, table

WAYS: dict[str, dict[str, Any]] = {
    "nearest": {},
    "stochastic": {"rounding": "stochastic"},
    "kahan": {"rounding": "kahan"},
    "master weights": {"master_weights": True},
    "state in bfloat16": {"state_dtype": "bfloat16"},
    "stochastic, state in bfloat16": {"rounding": "stochastic", "state_dtype": "bfloat16"},
}
Results = dict[str, Any]
DIGITS = Path(__file__).parents[1] / "docs" / "examples" / "train_digits.py"


def seconds(size: int, rounds: int) -> dict[str, float]:
    """Return the median time of a step, as a multiple of that of rounding to nearest in the same round."""
    import ml_dtypes
    import numpy as np

    import xopt

    g = np.full(size, 0.01, ml_dtypes.bfloat16)
    params = {name: np.ones(size, ml_dtypes.bfloat16) for name in WAYS}
    opts = {name: xopt.Optimizer(params[name], xopt.Adam(), **how) for name, how in WAYS.items()}
    times: dict[str, list[float]] = {name: [] for name in opts}
    for number in range(rounds + 2):  # two to warm up
        for name, opt in opts.items():
            began = time.perf_counter()
            opt.step(g)
            if number > 1:
                times[name].append(time.perf_counter() - began)
    pairs = {name: zip(own, times["nearest"], strict=True) for name, own in times.items()}
    return {name: statistics.median(a / b for a, b in own) for name, own in pairs.items()}


def state_bytes() -> dict[str, float]:
    """Return the bytes of state a parameter."""
    import ml_dtypes
    import numpy as np

    import xopt

    p = np.ones(64, ml_dtypes.bfloat16)
    states = {name: xopt.Precision(xopt.Adam(), **how).init(p) for name, how in WAYS.items()}
    return {name: sum(x.nbytes for x in state.slots.values()) / 64 for name, state in states.items()}


def losses(steps: int) -> dict[str, float]:
    """Return the mean cross-entropy at the end; of "float32" with parameters in float32."""
    import ml_dtypes
    import numpy as np
    from sklearn.datasets import load_digits

    import xopt

    data = load_digits()
    x = np.concatenate([data.data / 16, np.ones((len(data.data), 1))], axis=1).astype("float32")
    hot = np.eye(10, dtype="float32")[data.target]

    def loss_and_gradient(w: Any) -> tuple[float, Any]:
        z = x @ w
        z = z - z.max(axis=1, keepdims=True)
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        return float(-(hot * np.log(p)).sum() / len(x)), x.T @ (p - hot) / len(x)

    found = {}
    for name, how in {"float32": {}, **WAYS}.items():
        dtype = np.dtype("float32" if name == "float32" else ml_dtypes.bfloat16)
        w = np.zeros((65, 10), dtype)
        opt = xopt.Optimizer(w, xopt.Adam(lr=xopt.schedules.cosine(2e-3, steps=steps)), **how)
        for _ in range(steps):
            opt.step(loss_and_gradient(w.astype("float32"))[1].astype(dtype))
        found[name] = loss_and_gradient(w.astype("float32"))[0]
    return found


def coded(size: int, rounds: int, bowl_size: int, bowl_steps: int, epochs: int) -> dict[str, Results]:
    """Return for Adam and Lion what state in 8 bits costs and brings: pairs, first float32, then 8 bits."""
    import numpy as np

    import xopt

    hows: list[Any] = [None, "int8"]
    digits = runpy.run_path(str(DIGITS))
    found: dict[str, Results] = {}
    for name, rule, rate in (("Adam", xopt.Adam, 0.01), ("Lion", xopt.Lion, 0.01)):
        opts = [xopt.Optimizer(np.ones(size, "float32"), rule(), state_dtype=how) for how in hows]
        g, times = np.full(size, 0.01, "float32"), [list[float](), list[float]()]
        for number in range(rounds + 2):
            for own, opt in zip(times, opts, strict=True):
                began = time.perf_counter()
                opt.step(g)
                if number > 1:
                    own.append(time.perf_counter() - began)
        slots = [x for column in opts[1].state.slots.values() for x in [column] if x is not None]
        args = ["--library", "numpy", "--dtype", "float32", "--epochs", str(epochs), "--output", "", "--quiet"]
        args += ["--optimizer", name.lower()]
        runs = [
            [
                digits["main"]([*args, "--seed", str(seed), *(["--state-dtype", how] if how else [])])
                for seed in range(3)
            ]
            for how in hows
        ]
        found[name] = {
            "bytes": sum(x.nbytes for x in slots) / size,
            "seconds": statistics.median(b / a for a, b in zip(*times, strict=True)),
            "digits": [statistics.mean(run["training loss"] for run in own) for own in runs],
            "accuracies": [statistics.mean(run["test accuracy"] for run in own) for own in runs],
            "bowl": [bowl(rule(lr=xopt.schedules.cosine(rate, steps=bowl_steps)), how, bowl_size, bowl_steps)
                     for how in hows],
            "bowl size": bowl_size, "bowl steps": bowl_steps, "epochs": epochs,
        }  # fmt: skip
    return found


def bowl(rule: Any, how: Any, size: int, steps: int) -> float:
    """Return the loss Σ a (w - 1)² / Σ a at the end, from 1; a is from 1e-3 to 1, in no order, gradients have noise."""
    import numpy as np

    import xopt

    a = (10.0 ** -np.random.default_rng(1).uniform(0, 3, size)).astype("float32")
    w, rng = np.zeros(size, "float32"), np.random.default_rng(2)
    opt = xopt.Optimizer(w, rule, state_dtype=how)
    for _ in range(steps):
        opt.step(a * (w - 1 + np.float32(0.3) * rng.standard_normal(size, dtype="float32")))
    return float((a * (w - 1) ** 2).mean(dtype="float64") / a.mean(dtype="float64"))


def page(found: Results) -> list[str]:
    """Return what is written into the page."""
    about = found["hardware"]
    words = (
        f"Adam, bfloat16 parameters. Time of a step over {found['size']:,} parameters, compiled by LLVM, as a "
        f"multiple of rounding to nearest, the median of {found['rounds']} rounds; the loss of a softmax regression of "
        f"digits after {found['steps']:,} steps; in float32 it is {found['losses']['float32']:.4f}. {found['date']}, "
        f"{about['cpu']}, {about['cores']} cores.\n"
    )
    rows = [
        [name, f"{found['bytes'][name]:g}", f"{found['seconds'][name]:.2f}", f"{found['losses'][name]:.4f}"]
        for name in WAYS
    ]
    first = table(["", "bytes of state", "time of a step", "loss"], rows)
    one = found["coded"]["Adam"]
    more = (
        f'State in 8 bits, float32 parameters: `state_dtype="int8"`, and after "for" state in float32. The digits are '
        f"the training example with {one['epochs']} epochs, means of three seeds: loss, and test accuracy. The bowl "
        f"has {one['bowl size']:,} parameters, curvatures from 0.001 to 1 in no order, and gradients with noise: its "
        f"loss after {one['bowl steps']:,} steps, from 1.\n"
    )
    rows = [
        [
            name,
            f"{x['bytes']:.3g} for {4 * round(x['bytes'])}",
            f"{x['seconds']:.2f}",
            *(f"{x[n][1]:.3g} for {x[n][0]:.3g}" for n in ("digits", "accuracies", "bowl")),
        ]
        for name, x in found["coded"].items()
    ]
    head = ["", "bytes of state", "time of a step", "loss of digits", "accuracy", "loss of the bowl"]
    return [words, *first, more, *table(head, rows)]


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes; nothing is written")
    args = parser.parse_args(argv)
    threads_for_all(2)
    size, rounds, steps = (10**5, 3, 100) if args.quick else (2 * 10**7, 9, 2000)
    found = circumstances() | {
        "size": size, "rounds": rounds, "steps": steps, "seconds": seconds(size, rounds), "bytes": state_bytes(),
        "losses": losses(steps), "coded": coded(size, rounds, *((10**4, 100, 2) if args.quick else (10**6, 1000, 30))),
    }  # fmt: skip
    publish("precision", found, page(found), "precision.md", args.quick)


if __name__ == "__main__":
    main()
