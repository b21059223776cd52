"""An estimator of scikit-learn that holds an Optimizer: cloned, searched over, pickled by joblib and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xopt

pytest.importorskip("sklearn")
import joblib
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.datasets import make_regression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

X, Y = make_regression(120, 5, noise=1.0, random_state=0)
Y = Y / Y.std()


class Linear(RegressorMixin, BaseEstimator):
    """Least squares by any rule; fit begins anew, partial_fit goes on."""

    def __init__(self, rule: Any = None, epochs: int = 20) -> None:
        self.rule, self.epochs = rule, epochs

    def fit(self, x: Any, y: Any) -> Linear:
        self.optimizer_ = xopt.Optimizer({"w": np.zeros(x.shape[1]), "b": np.zeros(())}, self.rule)
        return self.partial_fit(x, y)

    def partial_fit(self, x: Any, y: Any) -> Linear:
        for _ in range(self.epochs):
            p = self.optimizer_.params
            error = 2 * (x @ p["w"] + p["b"] - y) / len(y)
            self.optimizer_.step({"w": x.T @ error, "b": np.asarray(error.sum())})
        return self

    def predict(self, x: Any) -> Any:
        p = self.optimizer_.params
        return x @ p["w"] + p["b"]


RULE = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.AdamW(0.05), xopt.EMA(0.9))


def test_clone_has_the_rule_and_no_optimizer() -> None:
    fitted = Linear(RULE).fit(X, Y)
    again = clone(fitted)
    assert again.rule == RULE
    assert not hasattr(again, "optimizer_")
    np.testing.assert_array_equal(again.fit(X, Y).predict(X), fitted.predict(X))


@pytest.mark.parametrize("mapped", [None, "r", "c"], ids=["read", "mapped", "mapped, copy on write"])
def test_joblib_and_on(mapped: Any, tmp_path: Path) -> None:
    """joblib maps arrays of files as read-only ones; the next step has the same bits."""
    fitted = Linear(RULE).fit(X, Y)
    joblib.dump(fitted, tmp_path / "fitted.joblib")
    again = joblib.load(tmp_path / "fitted.joblib", mmap_mode=mapped)
    assert again.optimizer_.steps_taken == 20
    want = fitted.partial_fit(X, Y).predict(X)
    np.testing.assert_array_equal(again.partial_fit(X, Y).predict(X), want)
    untouched = joblib.load(tmp_path / "fitted.joblib")
    assert untouched.optimizer_.steps_taken == 20
    assert np.any(untouched.predict(X) != want)


@pytest.mark.parametrize("jobs", [None, 2])
def test_grid_search_over_rules(jobs: int | None) -> None:
    model = make_pipeline(StandardScaler(), Linear(epochs=60))
    rules = [xopt.SGD(1e-6), RULE, xopt.Adam(xopt.schedules.cosine(0.2, steps=60))]
    found = GridSearchCV(model, {"linear__rule": rules}, n_jobs=jobs, cv=3, error_score="raise").fit(X, Y)
    assert found.best_params_["linear__rule"] != rules[0]
    assert found.best_score_ > 0.9
