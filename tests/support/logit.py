"""A multinomial logit: 5 choices explained by 9 columns with scales from 1 to 100, which are 36 parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

A = Any


def multinomial(samples: int = 400, choices: int = 5, columns: int = 9) -> tuple[Callable[[A], tuple[float, A]], A]:
    """Return the mean of minus the logarithm of the likelihood, with its gradient, and where to begin."""
    rng = np.random.default_rng(0)
    X = np.concatenate([np.ones((samples, 1)), rng.standard_normal((samples, columns - 1))], axis=1)
    X[:, 2:] += 0.9 * X[:, 1:2]  # columns depend on one another
    X *= np.logspace(0, 2, columns)
    truth = rng.standard_normal((columns, choices - 1)) / np.logspace(0, 2, columns)[:, None]
    scores = np.concatenate([np.zeros((samples, 1)), X @ truth], axis=1)
    chosen = np.argmax(scores + rng.gumbel(size=scores.shape), axis=1)
    one = np.eye(choices)[chosen]

    def fun(w: A) -> tuple[float, A]:
        scores = np.concatenate([np.zeros((samples, 1)), X @ w.reshape(columns, choices - 1)], axis=1)
        scores -= scores.max(axis=1, keepdims=True)
        total = np.log(np.exp(scores).sum(axis=1, keepdims=True))
        value = -((scores - total) * one).sum() / samples
        return float(value), (X.T @ (np.exp(scores - total) - one)[:, 1:] / samples).reshape(-1)

    return fun, np.zeros(columns * (choices - 1))
