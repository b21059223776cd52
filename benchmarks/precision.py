"""Parameters of few digits: ``python -m benchmarks.precision`` measures, prints, and writes docs/precision.md.

Adam, bfloat16: the bytes of state a parameter, the time of a step over many parameters beside rounding to nearest, and
the loss of a softmax regression of handwritten digits after 2000 small steps, whose gradients are computed in float32.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import time
from typing import Any

from benchmarks import machine
from benchmarks.__main__ import threads_for_all
from benchmarks.report import keep, table

WAYS: dict[str, dict[str, Any]] = {
    "nearest": {},
    "stochastic": {"rounding": "stochastic"},
    "kahan": {"rounding": "kahan"},
    "master weights": {"master_weights": True},
    "state in bfloat16": {"state_dtype": "bfloat16"},
    "stochastic, state in bfloat16": {"rounding": "stochastic", "state_dtype": "bfloat16"},
}
Results = dict[str, Any]


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


def page(found: Results) -> list[str]:
    """Return what is written into the page."""
    about = found["hardware"]
    words = (
        f"Adam, bfloat16 parameters. Time of a step over {found['size']:,} parameters, compiled by Numba, as a "
        f"multiple of rounding to nearest, the median of {found['rounds']} rounds; the loss of a softmax regression of "
        f"digits after {found['steps']:,} steps; in float32 it is {found['losses']['float32']:.4f}. {found['date']}, "
        f"{about['cpu']}, {about['cores']} cores.\n"
    )
    rows = [
        [name, f"{found['bytes'][name]:g}", f"{found['seconds'][name]:.2f}", f"{found['losses'][name]:.4f}"]
        for name in WAYS
    ]
    return [words, *table(["", "bytes of state", "time of a step", "loss"], rows)]


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes; nothing is written")
    args = parser.parse_args(argv)
    threads_for_all(2)
    size, rounds, steps = (10**5, 3, 100) if args.quick else (2 * 10**7, 9, 2000)
    found: Results = {
        "date": datetime.date.today().isoformat(), "hardware": machine.hardware("cpu"),
        "versions": machine.versions(), "size": size, "rounds": rounds, "steps": steps,
        "seconds": seconds(size, rounds), "bytes": state_bytes(), "losses": losses(steps),
    }  # fmt: skip
    text = "\n".join(page(found))
    print(text)
    if not args.quick:
        keep("precision", found, text, "precision.md")


if __name__ == "__main__":
    main()
