"""What is computed: workloads, rules with their textbook form, and the data.

Every contender has the same hyperparameters, those of this file. A time does not depend on them; they are large so that
`check` sees a weight decay that is missing, in bfloat16 too.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = Any
Shape = tuple[int, ...]

LR, MOMENTUM, B1, B2, EPS, DECAY, LION_B2, MAX_NORM = 1e-2, 0.9, 0.9, 0.999, 1e-8, 0.1, 0.99, 1.0

ITEMSIZE = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}


class Unavailable(Exception):
    """A contender cannot take part, and why."""


def need(module: str) -> Any:
    """Import a module that need not be there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Unavailable(f"{module.partition('.')[0]} is not installed") from error


# --- workloads


@dataclass(frozen=True)
class Workload:
    """Parameters to update.

    Parameters
    ----------
    key
        Its name in the results.
    title
        Its name on the page.
    shapes
        One shape a parameter.
    fresh
        Whether every step comes with gradient arrays that no step has seen; else the same arrays come back.
    """

    key: str
    title: str
    shapes: tuple[Shape, ...]
    fresh: bool = False

    @property
    def elements(self) -> int:
        """Number of parameters, in elements."""
        return sum(math.prod(shape) for shape in self.shapes)


def gpt2_small() -> Iterator[Shape]:
    """Yield the shapes of GPT-2 small: 148 tensors, the output layer shared with the embedding."""
    width = 768
    yield from [(50_257, width), (1024, width)]
    for _ in range(12):
        yield from [(width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,)]
        yield from [(width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    yield from [(width,), (width,)]


def resnet50() -> Iterator[Shape]:
    """Yield the shapes of ResNet-50: 161 tensors, a scale and a shift after each convolution."""

    def convolution(out: int, into: int, size: int) -> list[Shape]:
        return [(out, into, size, size), (out,), (out,)]

    yield from convolution(64, 3, 7)
    into = 64
    for width, blocks in [(64, 3), (128, 4), (256, 6), (512, 3)]:
        for block in range(blocks):
            yield from convolution(width, into, 1) + convolution(width, width, 3) + convolution(4 * width, width, 1)
            if block == 0:
                yield from convolution(4 * width, into, 1)
            into = 4 * width
    yield from [(1000, into), (1000,)]


def vector(n: int) -> Workload:
    """Return one vector of ``n`` elements."""
    power = round(math.log10(n))
    digits = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
    base, exponent = (10, power) if n == 10**power else (2, n.bit_length() - 1)
    title = f"one vector of {base}{str(exponent).translate(digits)}" if n == base**exponent else f"one vector of {n:,}"
    return Workload(f"vector-{n}", title, ((n,),))


MANY = ((1000,),) * 1000
WORKLOADS = {
    w.key: w
    for w in (
        Workload("ten", "one parameter of 10", ((10,),)),
        Workload("many", "1,000 × 1,000, same gradients", MANY),
        Workload("many-fresh", "1,000 × 1,000, new gradients", MANY, fresh=True),
        Workload("gpt2", "GPT-2 small", tuple(gpt2_small())),
        Workload("resnet50", "ResNet-50", tuple(resnet50())),
    )
}
assert [(len(w.shapes), w.elements) for w in (WORKLOADS["gpt2"], WORKLOADS["resnet50"])] == [
    (148, 124_439_808),
    (161, 25_557_032),
]


def workload(key: str) -> Workload:
    """Return the workload of a name: ``vector-1000`` or a key of `WORKLOADS`."""
    return vector(int(key.removeprefix("vector-"))) if key.startswith("vector-") else WORKLOADS[key]


# --- rules, each as in its paper. State comes as a tuple; xp is the namespace of the arrays; t is the step, from 1.


def _sgd(xp: Any, t: int, p: Array, g: Array, m: Array) -> tuple[Array, ...]:
    m = MOMENTUM * m + g
    return p - LR * m, m


def _adam(xp: Any, t: int, p: Array, g: Array, m: Array, v: Array) -> tuple[Array, ...]:
    m = B1 * m + (1 - B1) * g
    v = B2 * v + (1 - B2) * g**2
    m_hat = m / (1 - B1**t)
    v_hat = v / (1 - B2**t)
    return p - LR * m_hat / (xp.sqrt(v_hat) + EPS), m, v


def _adamw(xp: Any, t: int, p: Array, g: Array, m: Array, v: Array) -> tuple[Array, ...]:
    return _adam(xp, t, p - LR * DECAY * p, g, m, v)


def _lion(xp: Any, t: int, p: Array, g: Array, m: Array) -> tuple[Array, ...]:
    step = xp.sign(B1 * m + (1 - B1) * g)
    return p - LR * step, LION_B2 * m + (1 - LION_B2) * g


@dataclass(frozen=True)
class Rule:
    """A rule, and what its step must move.

    Parameters
    ----------
    key, title
        Its name in the results and on the page.
    update
        ``(xp, t, p, g, *state) -> (p, *state)``, line by line as in the paper.
    state
        Number of arrays of state.
    clip
        Whether the gradients are first clipped by their global norm, which reads them once more.
    precision
        In which the state is kept, and how parameters are rounded, as `xopt.Optimizer` takes it; others do not have it.
    kept
        Bytes of an element of state, if that is not what the dtype of the parameters says.
    tolerance
        The relative error that this precision has.
    """

    key: str
    title: str
    update: Callable[..., tuple[Array, ...]]
    state: int
    clip: bool = False
    precision: Mapping[str, Any] = field(default_factory=dict, hash=False)
    kept: int | None = None
    tolerance: float = 0.0

    def bytes(self, elements: int, dtype: str) -> int:
        """Return what a step must move, in bytes: p, g and state are read, p and state are written."""
        own, kept = ITEMSIZE[dtype], self.state_itemsize(dtype)
        return elements * (3 * own + 2 * self.state * kept + self.clip * own)

    def state_itemsize(self, dtype: str) -> int:
        """Return the size of an element of state, in bytes: float32 for parameters of two bytes."""
        return self.kept or max(4, ITEMSIZE[dtype])


RULES = {
    rule.key: rule
    for rule in (
        Rule("sgd", "SGD with momentum", _sgd, 1),
        Rule("adam", "Adam", _adam, 2),
        Rule("adamw", "AdamW", _adamw, 2),
        Rule("lion", "Lion", _lion, 1),
        Rule("clip", "global norm clip + AdamW", _adamw, 2, clip=True),
        Rule("stochastic", "Adam, stochastic rounding", _adam, 2, precision={"rounding": "stochastic"}, tolerance=0.05),
        Rule("int8", "Adam, state in 8 bits", _adam, 2, precision={"state_dtype": "int8"}, kept=1),
    )
}


def clip_scale(xp: Any, grads: list[Array]) -> Any:
    """Return what to multiply gradients by so that their global norm is at most `MAX_NORM`."""
    norm = sum((xp.sum(xp.square(g)) for g in grads), start=0.0) ** 0.5
    return xp.minimum(MAX_NORM / norm, 1.0)


def textbook_step(xp: Any, rule: Rule, t: int, rows: list[tuple[Array, ...]], grads: list[Array]) -> list[Any]:
    """Return the rows ``(p, *state)`` after one step."""
    if rule.clip:
        scale = clip_scale(xp, grads)
        grads = [scale * g for g in grads]
    return [rule.update(xp, t, row[0], g, *row[1:]) for row, g in zip(rows, grads, strict=True)]


# --- data


@dataclass(frozen=True)
class Problem:
    """A rule with parameters and gradients: NumPy arrays that a contender copies and does not write into."""

    rule: Rule
    dtype: str
    params: list[Array]
    grads: list[Array]
    threads: int

    @property
    def elements(self) -> int:
        """Number of parameters, in elements."""
        return sum(p.size for p in self.params)

    @property
    def bytes(self) -> int:
        """What a step must move, in bytes."""
        return self.rule.bytes(self.elements, self.dtype)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the dtype of a name; bfloat16 is one of ml_dtypes."""
    return np.dtype(need("ml_dtypes").bfloat16 if name == "bfloat16" else name)


def problem(rule: Rule, shapes: tuple[Shape, ...], dtype: str, threads: int, seed: int = 0) -> Problem:
    """Draw parameters of scale 0.1 and gradients of scale 1; beyond 2¹⁸ elements the numbers repeat."""
    rng = np.random.default_rng(seed)
    block = rng.standard_normal(2**18, dtype="float32")

    def draw(shape: Shape, scale: float) -> Array:
        n = math.prod(shape)
        start = int(rng.integers(block.size - n)) if n < block.size else 0
        values = block[start : start + n] * np.float32(scale)
        return np.resize(values, shape).astype(numpy_dtype(dtype), copy=False)

    return Problem(rule, dtype, [draw(s, 0.1) for s in shapes], [draw(s, 1.0) for s in shapes], threads)
