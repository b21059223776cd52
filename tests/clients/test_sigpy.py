"""A reconstruction of MRI with SigPy's operators, by xopt in place of SigPy's gradient method."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest

import xopt

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it imports CuPy where it is installed, which may warn
    sigpy = pytest.importorskip("sigpy")
    mri = pytest.importorskip("sigpy.mri")

SHAPE, COILS, LAMBDA, STEPS = (32, 32), 4, 0.01, 60


class Scan(NamedTuple):
    """What was measured, and how."""

    A: Any
    y: Any
    lr: float
    """A step that is short enough: the largest eigenvalue of Aᴴ·A is at most the largest power of the coils."""


@pytest.fixture(scope="module")
def scan() -> Scan:
    """Four coils, a third of the lines and noise, all in complex64."""
    rng = np.random.default_rng(0)
    maps = mri.birdcage_maps((COILS, *SHAPE), dtype=np.complex64)
    image = sigpy.shepp_logan(SHAPE, dtype=np.complex64) * np.exp(1j * np.linspace(0, 2, SHAPE[0])).astype("complex64")
    weights = np.zeros(SHAPE, "float32")
    weights[rng.permutation(SHAPE[0])[:10]] = 1
    weights[SHAPE[0] // 2 - 3 : SHAPE[0] // 2 + 3] = 1
    A = mri.linop.Sense(maps, weights=weights)
    noise = (rng.standard_normal((COILS, *SHAPE)) + 1j * rng.standard_normal((COILS, *SHAPE))).astype("complex64")
    power = float(np.max(np.sum(abs(maps) ** 2, 0)))
    return Scan(A, A(image) + np.complex64(0.01) * weights * noise, 0.9 / power)


def objective(scan: Scan, x: Any) -> float:
    r = (scan.A(x) - scan.y).astype("complex128")
    return float(0.5 * np.vdot(r, r).real + LAMBDA * np.sum(np.abs(x.astype("complex128"))))


@pytest.mark.parametrize("runner", ["eager", "tiled", "llvm"])
def test_proximal_gradient(scan: Scan, runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every iterate is SigPy's, in the array that was given."""
    if runner == "llvm":
        monkeypatch.undo()
        pytest.importorskip("llvmlite")
    lr, back = scan.lr, scan.A.H(scan.y)
    gradient = lambda x: scan.A.N(x) - back
    theirs = np.zeros(SHAPE, "complex64")
    alg = sigpy.alg.GradientMethod(gradient, theirs, lr, sigpy.prox.L1Reg(SHAPE, LAMBDA), max_iter=STEPS)
    image = np.zeros(SHAPE, "complex64")
    where = image.__array_interface__["data"]
    opt = xopt.Optimizer(image, xopt.chain(xopt.SGD(lr), xopt.L1(lr * LAMBDA)), runner=runner)
    assert opt.runner == runner
    off = 0.0
    while not alg.done():
        alg.update()
        g = gradient(image)
        assert g.dtype == np.complex64
        assert opt.step(g) is image
        off = max(off, np.max(abs(image - theirs)) / np.max(abs(theirs)))
    print(f"{runner}: the images differ by {off:.2g} of the largest element")
    assert off <= 5e-6  # roundings of complex64, of 6e-8 each in the operators, two thresholds and sixty steps
    assert image.dtype == np.complex64
    assert image.__array_interface__["data"] == where
    assert objective(scan, image) == pytest.approx(objective(scan, theirs), rel=1e-6)
    assert objective(scan, image) < 0.1 * objective(scan, np.zeros(SHAPE, "complex64"))
    assert np.sum(image == 0) == pytest.approx(np.sum(theirs == 0), abs=2)  # a rounding decides at the threshold
    assert np.sum(image == 0) > 20


class GradientMethod(sigpy.alg.Alg):
    """SigPy's class of this name, with the step and the proximal operator of SigPy in a chain of xopt."""

    def __init__(
        self, gradf: Any, x: Any, alpha: float, proxg: Any, accelerate: bool, max_iter: int, tol: float
    ) -> None:
        self.gradf, self.x, self.accelerate = gradf, x, accelerate
        self.opt = xopt.Optimizer(x, xopt.chain(xopt.SGD(alpha), xopt.Project(lambda p: proxg(alpha, p))))
        self.ahead, self.t, self.resid = x.copy(), 1.0, np.inf
        super().__init__(max_iter)

    def _update(self) -> None:
        before = self.x.copy()
        if self.accelerate:
            self.x[...] = self.ahead
        self.opt.step(self.gradf(self.x))
        t, self.t = self.t, (1 + np.sqrt(1 + 4 * self.t**2)) / 2
        self.ahead = self.x + np.float32((t - 1) / self.t) * (self.x - before)


@pytest.mark.parametrize("accelerate", [False, True])
def test_linear_least_squares(scan: Scan, accelerate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The application that users of SigPy call, with its own gradient method and with that of xopt in its place."""

    def run(method: Any) -> Any:
        prox, x = sigpy.prox.L1Reg(SHAPE, LAMBDA), np.zeros(SHAPE, "complex64")
        app = sigpy.app.LinearLeastSquares(
            scan.A, scan.y, x, prox, max_iter=STEPS, alpha=scan.lr, accelerate=accelerate, show_pbar=False
        )
        assert app.run() is x
        assert type(app.alg) is method
        return x

    theirs = run(sigpy.alg.GradientMethod)
    monkeypatch.setattr(sigpy.app, "GradientMethod", GradientMethod)
    ours = run(GradientMethod)
    assert ours.dtype == theirs.dtype == np.complex64
    off = np.max(abs(ours - theirs)) / np.max(abs(theirs))
    print(
        f"accelerated {accelerate}: the images differ by {off:.2g}; {objective(scan, ours)}, {objective(scan, theirs)}"
    )
    assert off <= 5e-6  # as above
    assert objective(scan, ours) == pytest.approx(objective(scan, theirs), rel=1e-6)
