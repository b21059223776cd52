"""What a row of the catalogue is made of.

An oracle is written from the paper in float64 (or complex128), slow and readable; nothing in it comes from the package.
It takes parameters, gradient, a dict of state that it fills itself, the step t = 1, 2, …, and the hyperparameters by
name, and returns the new parameters.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import xopt

A = Any
S = dict[str, Any]


def amount(h: dict[str, Any], w: Any, decay: str, peak: Any, rate: Any, u: A, p: A) -> A:
    """Return what decoupled decay subtracts from p beside u; nothing where the decay is another."""
    if decay == "cautious":  # Chen et al. 2025, Algorithm 1; of complex numbers, the real part of the product
        return rate * w * p * (np.real(u * np.conj(p)) >= 0)
    return {"lr": rate * w, "independent": w, "corrected": rate * w * h["lr"] / (peak or 1)}.get(decay, 0.0) * p


EVERYWHERE = ("l2", "lr", "independent", "cautious", "corrected")


def decayed(step: Any) -> Any:
    """Add the kinds of weight decay, and maximisation, around an oracle of one array, or of a list of them.

    An oracle that has a kind of its own takes ``weight_decay``, which is 0 for the others.
    """
    own = "weight_decay" in inspect.signature(step).parameters

    def whole(
        p: A, g: A, s: S, t: int, *, weight_decay: Any, decay: str, peak_lr: Any, maximize: bool, complex: str, **h: Any
    ) -> A:
        del complex  # the test calls split parts one by one
        many = isinstance(p, list)
        ps, gs = (p, g) if many else ([p], [g])
        gs = [-x for x in gs] if maximize else gs
        w = 0.0 if weight_decay is None else weight_decay
        if own:
            h["weight_decay"] = 0.0 if decay in EVERYWHERE else w
        if decay == "l2":
            gs = [y + w * x for x, y in zip(ps, gs, strict=True)]
        out = step(ps, gs, s, t, **h) if many else [step(ps[0], gs[0], s, t, **h)]
        out = [x - amount(h, w, decay, peak_lr, h["lr"], y - x, y) for x, y in zip(out, ps, strict=True)]
        return out if many else out[0]

    whole.__name__ = step.__name__
    return whole


def coupled(step: Any) -> Any:
    """Add L2 decay, and maximisation, around an oracle that sees to decoupled decay itself.

    The oracle is given ``shrink``: for a rate, what is subtracted from p beside u.
    """

    def whole(
        p: A, g: A, s: S, t: int, *, weight_decay: Any, decay: str, peak_lr: Any, maximize: bool, complex: str, **h: Any
    ) -> A:
        del complex  # the test makes parts of split ones
        many = isinstance(p, list)
        ps, gs = (p, g) if many else ([p], [g])
        w = 0.0 if weight_decay is None else weight_decay
        gs = [-x for x in gs] if maximize else gs
        gs = [y + w * x for x, y in zip(ps, gs, strict=True)] if decay == "l2" else gs
        shrink = lambda rate, u, p: amount(h, w, decay, peak_lr, rate, u, p)
        return step(ps if many else p, gs if many else gs[0], s, t, shrink=shrink, **h)

    whole.__name__ = step.__name__
    return whole


def flat(xs: list[A]) -> A:
    """Return all numbers of a tree as one vector, complex ones as pairs."""
    pair = lambda x: np.stack([x.real, x.imag], -1) if np.iscomplexobj(x) else x
    return np.concatenate([np.ravel(pair(x)) for x in xs])


class Row(NamedTuple):
    """What is known of one rule."""

    rule: type[xopt.Rule]
    reference: Callable[..., Any]
    options: list[dict[str, Any]]
    """Keyword arguments; between them every field is changed from its default. lr is added where it is missing."""
    refused: list[dict[str, Any]]
    """Keyword arguments that must raise ValueError or TypeError."""
    lr: float
    """A learning rate at which 20 steps show every term."""
    tree: bool = False
    """Whether the oracle takes all arrays at once, as lists."""
    rtol: float = 1e-12
    """What float64 may differ from the oracle, relative. More than 1e-12 has a reason beside it."""
    lacking: tuple[str, ...] = ()
    """Libraries that lack a function which the rule needs."""
    results: tuple[str, ...] = ()
    """Slots that are read from outside, like a mean of the parameters: compared with the state of the oracle."""
    large: bool = False
    """Whether its steps are slow, and XLA takes seconds to compile them: it has fewer shapes, and tests on JAX."""
    base: dict[str, Any] = {}
    """Keyword arguments for all options that do not say otherwise, where the defaults are for thousands of steps."""

    def make(self, **options: Any) -> xopt.Rule:
        """Make the rule, with its learning rate and what goes for all options."""
        return self.rule(**{"lr": self.lr, **self.base, **options})


class Peer(NamedTuple):
    """The same rule in another library: equal in float64 after 20 steps."""

    library: str
    """``"torch"``, ``"optax"``, ``"keras"``, …: a function of `rules/test_peers.py`."""
    rule: Any
    make: Callable[[Any], Any]
    """Makes the peer of ``torch.optim``, ``optax``, …: for torch a function of the parameters, else an optimizer."""
    name: str
    rtol: float = 1e-12
    complex: bool = False
    shapes: tuple[tuple[int, ...], ...] = ()
    """Shapes of the parameters, if not all serve."""


def torch(rule: Any, name: str, rtol: float = 1e-12, **kwargs: Any) -> Peer:
    """Say that ``torch.optim.<name>(parameters, **kwargs)`` is the same."""
    return Peer("torch", rule, lambda optim: lambda params: getattr(optim, name)(params, **kwargs), name, rtol)


def torch_complex(rule: Any, name: str, **kwargs: Any) -> Peer:
    """Say the same of complex parameters, which torch splits."""
    return torch(rule, name, **kwargs)._replace(complex=True)


def pytorch_optimizer(
    rule: Any, name: str, rtol: float = 1e-12, shapes: tuple[tuple[int, ...], ...] = (), **kwargs: Any
) -> Peer:
    """Say that ``pytorch_optimizer.<name>(parameters, **kwargs)`` is the same."""
    make = lambda module: lambda params: getattr(module, name)(params, **kwargs)
    return Peer("pytorch-optimizer", rule, make, name, rtol, shapes=shapes)


def optax(rule: Any, make: Callable[[Any], Any], rtol: float = 1e-12, complex: bool = False) -> Peer:
    """Say that what ``make(optax)`` returns is the same."""
    return Peer("optax", rule, make, "", rtol, complex)


def keras(rule: Any, name: str, rtol: float = 1e-12, **kwargs: Any) -> Peer:
    """Say that ``keras.optimizers.<name>(**kwargs)`` is the same."""
    return Peer("keras", rule, lambda optimizers: getattr(optimizers, name)(**kwargs), name, rtol)


COMMON: list[dict[str, Any]] = [
    {"weight_decay": 0.3},
    {"weight_decay": 0.3, "decay": "lr"},
    {"weight_decay": 0.03, "decay": "independent"},
    {"maximize": True, "weight_decay": 0.3},
]
DECAYS: list[dict[str, Any]] = [
    {"weight_decay": 0.3, "decay": "cautious"},
    {"weight_decay": 0.3, "decay": "corrected", "peak_lr": 0.8},
]
"""The same lines around every rule: tried with each, but not in every way. "corrected" is "lr" with another number, so
that what compiles is given "cautious" alone."""
COMMON_REFUSED: list[dict[str, Any]] = [
    {"lr": -1e-9},
    {"lr": float("nan")},
    {"lr": float("inf")},
    {"lr": True},
    {"lr": "0.1"},
    {"lr": None},
    {"lr": 1j},
    {"weight_decay": -0.1},
    {"decay": "lr", "weight_decay": None},
    {"decay": "cosine", "weight_decay": 0.1},
    {"decay": "corrected", "weight_decay": 0.1},
    {"decay": "cautious", "weight_decay": 0.1, "peak_lr": 0.1},
    {"peak_lr": 0.1},
    {"maximize": 1},
    {"complex": "polar"},
    {"learning_rate": 0.1},
]


def fields(rule: xopt.Rule) -> dict[str, Any]:
    """Return all fields of a rule as the oracle takes them."""
    return {name: getattr(rule, name) for name in type(rule)._fields if name != "like"}


def public(kind: type) -> list[Any]:
    """Return the public classes of a kind, itself left out."""
    found = [getattr(xopt, n) for n in xopt.__all__]
    return [x for x in found if isinstance(x, type) and issubclass(x, kind) and x is not kind]
