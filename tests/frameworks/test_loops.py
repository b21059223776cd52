"""The training loops of frameworks take the steps of their own optimizers with ours, and go on from a checkpoint."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xopt

pytest.importorskip("torch")
pytest.importorskip("optax")
from frameworks.loops import BATCH, LOOPS, LR, Loop, Net, X, Y, apart, skorch_ours

pytestmark = pytest.mark.filterwarnings("ignore")  # what frameworks say of each other
CASES = [pytest.param(loop, id=name) for name, loop in LOOPS.items()]


@pytest.mark.parametrize("loop", CASES)
def test_ten_steps_are_those_of_the_optimizer_of_the_framework(loop: Loop) -> None:
    pytest.importorskip(loop.package)
    assert apart(loop.run(loop.ours, None), loop.run(loop.theirs, None)) <= loop.bound


@pytest.mark.parametrize("loop", [case for case in CASES if case.values[0].saves])
def test_a_run_goes_on_with_the_same_bits(loop: Loop, tmp_path: Path) -> None:
    pytest.importorskip(loop.package)
    want = loop.run(loop.ours, None)
    got = loop.run(loop.ours, tmp_path)
    assert any(tmp_path.iterdir()) or loop.package == "skorch"
    assert all(map(np.array_equal, got, want))


def test_skorch_in_a_grid_search() -> None:
    """Estimators are cloned, pickled and fitted with another rule each."""
    skorch, selection = pytest.importorskip("skorch"), pytest.importorskip("sklearn.model_selection")
    net = skorch.NeuralNetRegressor(
        Net, lr=LR, batch_size=BATCH, max_epochs=3, train_split=None, verbose=0, **skorch_ours()
    )
    rules = [xopt.SGD(1e-6), xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam())]
    grid = {"optimizer__rule": rules, "lr": [1e-5, 0.05]}
    found = selection.GridSearchCV(net, grid, cv=2, scoring="neg_mean_squared_error", error_score="raise").fit(X, Y)
    assert found.best_params_ == {"optimizer__rule": rules[1], "lr": 0.05}
    again: Any = pickle.loads(pickle.dumps(found.best_estimator_))
    assert again.optimizer_.rule == xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.Adam(0.05))
    before = again.predict(X)
    again.partial_fit(X, Y)
    found.best_estimator_.partial_fit(X, Y)
    np.testing.assert_array_equal(again.predict(X), found.best_estimator_.predict(X))
    assert np.any(before != again.predict(X))
