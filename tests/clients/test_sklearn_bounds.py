"""scikit-learn's L-BFGS-B with bounds replaced by xopt's: Huber's regression, and Gaussian processes."""

from __future__ import annotations

import itertools
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import xopt

pytest.importorskip("sklearn")
import scipy.optimize
from sklearn import datasets, preprocessing
from sklearn.gaussian_process import GaussianProcessRegressor, kernels
from sklearn.linear_model import HuberRegressor

DATA = {
    "diabetes": lambda: datasets.load_diabetes(return_X_y=True),
    "outliers": lambda: datasets.make_regression(200, 12, noise=20, random_state=0),
    "wide": lambda: datasets.make_regression(50, 40, noise=5, random_state=1),
}
RATIO = 1.3
"""How many more evaluations xopt may take, in all."""


def huber(data: str, epsilon: float, alpha: float, xopts: bool, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Fit with a scale that is bounded from below, and return the result of SciPy's function."""
    found: list[Any] = []

    def minimize(*args: Any, **given: Any) -> Any:
        assert given.pop("method") == "L-BFGS-B"
        assert given["bounds"] is not None
        method: Any = xopt.scipy_method() if xopts else "L-BFGS-B"
        found.append(scipy.optimize.minimize(*args, method=method, **given))
        return found[-1]

    monkeypatch.setattr(
        "sklearn.linear_model._huber.optimize", SimpleNamespace(**{**vars(scipy.optimize), "minimize": minimize})
    )
    x, y = DATA[data]()
    y = y / y.std() + np.where(np.arange(y.size) % 10 == 0, 20.0, 0.0)
    model = HuberRegressor(epsilon=epsilon, alpha=alpha, max_iter=5000, tol=1e-7)
    model.fit(preprocessing.scale(x), y)
    [result] = found
    return model, result


def test_huber(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluations = np.zeros(2, int)
    for data, epsilon, alpha in itertools.product(DATA, (1.1, 1.35, 2.0), (1e-4, 1.0)):
        if data == "wide" and epsilon < 2:
            continue  # the scale goes to its bound, 10 times the least number, and neither solver gets there
        theirs, ours = (huber(data, epsilon, alpha, xopts, monkeypatch) for xopts in (False, True))
        # both stop by ftol, at 2.2e-9 of the value a step
        assert ours[1].fun <= theirs[1].fun * (1 + 1e-7)
        assert ours[0].scale_ == pytest.approx(theirs[0].scale_, rel=1e-3)
        evaluations += theirs[1].nfev, ours[1].nfev
    assert evaluations[1] <= RATIO * evaluations[0], evaluations


@pytest.mark.parametrize("data", ["diabetes", "wide"])  # on the third the two find different minima
def test_gaussian_process(data: str) -> None:
    """Its ``optimizer`` may be a function; the bounds of the kernel come with it."""
    x, y = DATA[data]()
    x, y = preprocessing.scale(x)[:80, :4], preprocessing.scale(y)[:80]
    counts = []

    def optimizer(method: Any) -> Any:
        def run(fun: Any, theta: Any, bounds: Any) -> Any:
            result = scipy.optimize.minimize(fun, theta, method=method, jac=True, bounds=bounds)
            counts.append(result.nfev)
            return result.x, result.fun

        return run

    models = []
    for method in ("L-BFGS-B", xopt.scipy_method()):
        kernel = 1.0 * kernels.RBF(np.ones(4), (1e-1, 3.0)) + kernels.WhiteKernel(0.1, (1e-4, 0.5))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that parameters of the kernel are at their bounds, which is the purpose
            models.append(GaussianProcessRegressor(kernel, optimizer=optimizer(method)).fit(x, y))
    theirs, ours = models
    assert ours.log_marginal_likelihood_value_ >= theirs.log_marginal_likelihood_value_ - 1e-5
    np.testing.assert_allclose(ours.kernel_.theta, theirs.kernel_.theta, atol=0.02)
    assert np.isclose(ours.kernel_.theta[:, None], ours.kernel_.bounds).any()
    assert counts[1] <= RATIO * counts[0], counts
