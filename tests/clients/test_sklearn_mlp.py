"""The optimizers of scikit-learn's networks replaced by xopt's: the same losses."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import xopt

pytest.importorskip("sklearn")
from sklearn.datasets import load_diabetes, load_digits
from sklearn.neural_network import MLPClassifier, MLPRegressor, _multilayer_perceptron


class Adapter:
    """What `fit` asks of an optimizer, done by xopt."""

    def __init__(self, params: Any, rule: Any, lr: float) -> None:
        self.opt = xopt.Optimizer(params, rule)
        self.initial = self.learning_rate = lr

    def update_params(self, params: Any, grads: Any) -> None:
        self.opt.step(grads, lr=self.learning_rate)

    def iteration_ends(self, time_step: int) -> None:
        pass

    def trigger_stopping(self, msg: str, verbose: bool) -> bool:
        return True


class Adam(Adapter):
    def __init__(self, params: Any, lr: float, beta_1: float, beta_2: float, epsilon: float) -> None:
        super().__init__(params, xopt.Adam(lr, beta_1, beta_2, epsilon, like="sklearn"), lr)


class SGD(Adapter):
    def __init__(self, params: Any, lr: float, schedule: str, momentum: float, nesterov: bool, power_t: float) -> None:
        super().__init__(params, xopt.SGD(lr, momentum, nesterov=nesterov, like="sklearn"), lr)
        self.schedule, self.power_t = schedule, power_t

    def iteration_ends(self, time_step: int) -> None:
        if self.schedule == "invscaling":
            self.learning_rate = self.initial / (time_step + 1) ** self.power_t

    def trigger_stopping(self, msg: str, verbose: bool) -> bool:
        if self.schedule != "adaptive" or self.learning_rate <= 1e-6:
            return True
        self.learning_rate /= 5
        return False


ROWS: list[dict[str, Any]] = [
    {"solver": "adam"},
    {"solver": "adam", "learning_rate_init": 0.02, "beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-4, "batch_size": 50},
    {"solver": "adam", "early_stopping": True, "n_iter_no_change": 2, "tol": 1e-2},
    {"solver": "sgd", "learning_rate_init": 0.05},
    {"solver": "sgd", "learning_rate_init": 0.05, "nesterovs_momentum": False},
    {"solver": "sgd", "learning_rate_init": 0.1, "momentum": 0.0},
    {"solver": "sgd", "learning_rate_init": 0.3, "learning_rate": "invscaling", "power_t": 0.2},
    {"solver": "sgd", "learning_rate_init": 0.2, "learning_rate": "adaptive", "tol": 0.1, "n_iter_no_change": 1},
]


def fitted(kind: Any, row: dict[str, Any], passes: int, partial: bool = False) -> Any:
    x, y = (load_digits if kind is MLPClassifier else load_diabetes)(return_X_y=True)
    x, y = x[:600] / np.abs(x).max(), y[:600] / (1 if kind is MLPClassifier else 100)
    network = kind(hidden_layer_sizes=(20, 10), random_state=1, max_iter=passes, **row)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it did not converge
        if not partial:
            return network.fit(x, y)
        more = {"classes": np.unique(y)} if kind is MLPClassifier else {}
        for _ in range(passes):
            network.partial_fit(x, y, **more)
    return network


@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: ",".join(map(str, row.values())))
def test_the_same_losses(kind: Any, row: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    compared(kind, row, monkeypatch)


@pytest.mark.parametrize("row", [ROWS[0], ROWS[3]], ids=["adam", "sgd"])
def test_partial_fit(row: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizer outlives the call, and writes into the arrays of the network."""
    compared(MLPClassifier, row, monkeypatch, partial=True)


def compared(kind: Any, row: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **how: Any) -> None:
    theirs = fitted(kind, row, 15, **how)
    monkeypatch.setattr(_multilayer_perceptron, "AdamOptimizer", Adam)
    monkeypatch.setattr(_multilayer_perceptron, "SGDOptimizer", SGD)
    ours = fitted(kind, row, 15, **how)
    assert isinstance(ours._optimizer, Adapter)
    assert not isinstance(theirs._optimizer, Adapter)
    assert theirs.n_iter_ == ours.n_iter_
    if row["solver"] == "sgd":
        rate = ours._optimizer.learning_rate
        assert rate == theirs._optimizer.learning_rate
        assert (rate < row["learning_rate_init"]) == ("learning_rate" in row), (
            "a schedule was at work, or there was none"
        )
    off = max(abs(np.divide(ours.loss_curve_, theirs.loss_curve_) - 1))
    print(f"{kind.__name__} {row}: losses differ by {off:.2g}, relatively, over {len(ours.loss_curve_)} epochs")
    # the sums of SGD are those of scikit-learn; Adam's rate meets m/(√v + ε) behind the division, not m in front of it
    assert off <= (0 if row["solver"] == "sgd" else 1e-12)
    for a, b in zip(ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True):
        np.testing.assert_allclose(a, b, rtol=0 if row["solver"] == "sgd" else 1e-10, atol=0)
