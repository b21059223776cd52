"""One row a rule: options, options that must be refused, the oracle, and the same rule in other libraries.

A public rule without a row fails `test_rules.py`. To add a rule, add its file in `xopt/rules` and a row here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import references

import xopt


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


COMMON: list[dict[str, Any]] = [
    {"weight_decay": 0.3},
    {"weight_decay": 0.3, "decay": "lr"},
    {"weight_decay": 0.03, "decay": "independent"},
    {"maximize": True, "weight_decay": 0.3},
]
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
    {"maximize": 1},
    {"complex": "polar"},
    {"learning_rate": 0.1},
]

ROWS = [
    Row(
        xopt.SGD,
        references.sgd,
        [
            {},
            {"momentum": 0.9},
            {"momentum": 0.9, "nesterov": True},
            {"momentum": 0.9, "dampening": 0.4},
            {"momentum": 0.9, "form": "lr_inside"},
            {"momentum": 0.9, "form": "lr_inside", "nesterov": True, "dampening": 0.4},
            {"momentum": 0.9, "form": "ema"},
            {"momentum": 0.9, "form": "ema", "nesterov": True},
        ],
        [
            {"momentum": 1.0},
            {"momentum": -0.1},
            {"nesterov": True},
            {"dampening": 0.5},
            {"form": "ema"},
            {"momentum": 0.9, "form": "ema", "dampening": 0.1},
            {"momentum": 0.9, "dampening": 1.1},
            {"momentum": 0.9, "form": "heavy"},
        ],
        0.05,
    ),
    Row(
        xopt.Adagrad,
        references.adagrad,
        [{}, {"eps": 0.1}, {"eps": 0.1, "eps_mode": "inside"}, {"initial": 0.1}],
        [{"eps": -1.0}, {"eps_mode": "hat"}, {"initial": -0.1}],
        0.05,
    ),
    Row(
        xopt.Adadelta,
        references.adadelta,
        [{}, {"rho": 0.5}, {"eps": 0.01}],
        [{"rho": 1.0}, {"rho": -0.1}, {"eps": -1.0}],
        0.7,
    ),
    Row(
        xopt.RMSProp,
        references.rmsprop,
        [
            {},
            {"rho": 0.5},
            {"eps": 0.1},
            {"eps": 0.1, "eps_mode": "inside"},
            {"centered": True, "eps": 1e-3},
            {"momentum": 0.9},
            {"momentum": 0.9, "form": "lr_inside"},
            {"momentum": 0.9, "centered": True, "eps": 1e-3, "eps_mode": "inside", "form": "lr_inside"},
            {"initial": 1.0},
        ],
        [{"rho": 1.0}, {"momentum": 1.0}, {"form": "lr_inside"}, {"initial": -1.0}, {"centered": "yes"}],
        0.02,
    ),
    Row(
        xopt.Adam,
        references.adam,
        [
            {},
            {"b1": 0.5},
            {"b1": 0.0},
            {"b2": 0.9},
            {"eps": 0.1},
            {"eps": 0.1, "eps_mode": "inside"},
            {"eps": 0.1, "eps_mode": "hat"},
            {"bias": "first"},
            {"bias": "none"},
            {"amsgrad": True, "b2": 0.9},
        ],
        [{"b1": 1.0}, {"b2": 1.0}, {"b2": -0.1}, {"eps_mode": "under"}, {"bias": "half"}, {"amsgrad": 0}],
        0.05,
    ),
    Row(
        xopt.AdamW,
        references.adamw,
        [{}, {"b1": 0.5}, {"b2": 0.9}, {"eps": 0.1}, {"eps": 0.1, "eps_mode": "hat"}, {"bias": "none"},
         {"amsgrad": True, "b2": 0.9}],
        [{"b1": 1.0}, {"weight_decay": None}],
        0.05,
    ),
]  # fmt: skip


def rules() -> list[Any]:
    """Return every rule with every set of options, named for pytest."""
    import pytest

    made = []
    for row in ROWS:
        for options in [*row.options, *COMMON]:
            name = "-".join([row.rule.__name__, *(f"{k}={v}" for k, v in options.items())])
            made.append(pytest.param(row, row.rule(**{"lr": row.lr, **options}), id=name))
    return made


def fields(rule: xopt.Rule) -> dict[str, Any]:
    """Return all fields of a rule as the oracle takes them."""
    return {name: getattr(rule, name) for name in type(rule)._fields}
