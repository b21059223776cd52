"""FISTA: accelerated proximal gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from xopt._public import public
from xopt.proximal._penalties import zero
from xopt.proximal._prox import Prox, as_prox, real
from xopt.proximal._run import Iteration, relative, solved
from xopt.proximal._space import Leaves, combined, like, scaled
from xopt.solvers._result import OptimizeResult


@public
def fista(
    f: Any,
    x0: Any,
    g: Any = None,
    *,
    K: Any = None,
    step: float | None = None,
    backtracking: bool = True,
    restart: bool = True,
    momentum: bool = True,
    preconditioner: Any = None,
    maxiter: float = 10_000,
    tol: float | None = None,
    gap_tol: float | None = None,
    every: int = 1,
    check_adjoint: bool = True,
    callback: Callable[..., Any] | None = None,
    progress: bool = False,
) -> OptimizeResult:
    r"""Accelerated proximal gradient (FISTA) with backtracking and restart: minimize f(K·x) + g(x), f smooth.

    ::

        x ← prox_{τg}(y - τ·K*·∇f(K·y)),    y ← x + (t - 1)/t₊·(x - x₋),    t₊ = (1 + √(1 + 4t²))/2

    Parameters
    ----------
    f
        ``f(z)`` returns the value and the gradient at z = K·x, as for `minimize` (of complex z ∂f/∂Re + i·∂f/∂Im); or
        a smooth function of this module, such as ``squared(b)``, or a tuple, a list or a dictionary of these.
    x0
        Where to begin: an array of any library, float32, float64 or complex, or a tree of arrays; or the result of an
        earlier run, whose step is used too. It is not changed.
    g
        A function such as ``l1(0.1)``; a tuple, a list or a dictionary of these for a tree; or ``prox(x, t)`` alone.
        None: 0.
    K
        A linear operator: a pair of functions (K, K*) of trees; a matrix, also a sparse one; an object with ``matvec``
        and ``rmatvec``, as SciPy and PyLops have; a function with an ``adjoint``, such as `gradient`. None: 1. With K a
        step costs one K and one K*, with backtracking too: K·y comes from those at hand.
    step
        τ > 0, at the beginning. None: from the curvature along the first step.
    backtracking
        Make τ shorter until f lies below its quadratic model; where values drown in roundings, the slopes are compared
        (Becker, Candès & Grant 2011). False: τ stays as ``step`` says, at most 1/‖∇²f‖, and f is evaluated once a step.
    restart
        Begin anew with t = 1 where a step turns back: ⟨y - x, x - x₋⟩ > 0 (O'Donoghue & Candès 2015).
    momentum
        False: proximal gradient (ISTA), with y = x.
    preconditioner
        Positive weights of the elements, arrays like x0: τ becomes τ·P. Then g must be one of single elements.
    maxiter
        Iterations, ≥ 0, or infinite.
    tol
        Stop where ‖y - x‖ ≤ tol·max(‖x‖, τ‖∇‖), which at a minimum is 0. None: 1e-6, or none with ``gap_tol``.
        Differences of 2·ε of the dtype count as none.
    gap_tol
        Stop where the duality gap f(K·x) + g(x) + f*(s·u) + g*(-s·K*·u), with u = ∇f(K·x) and the largest s ≤ 1 that
        is feasible, is at most so much of the objective. f and g must be functions of this module, or a `Prox` with
        conjugates; each look costs one more K*.
    every
        With ``backtracking=False``: look once in so many iterations, for stopping and restarts.
    check_adjoint
        Test K* on random x and y at the beginning.
    callback, progress
        As for `minimize`.

    Returns
    -------
    OptimizeResult
        ``x`` like x0; ``y`` the gradient ∇f(K·x); ``fun`` the objective; ``gap`` the duality gap, NaN where it is not
        known; ``residual`` what ``tol`` is compared with; ``step``; ``restarts``; ``nit``; ``nfev``: how often K was
        applied, without K evaluations of f; ``status`` (0 converged, 1 maxiter, 2 infinite or NaN, 3 interrupted, 99
        stopped by the callback), ``success``, ``message``.

    Raises
    ------
    TypeError, ValueError
        For what does not fit, by name; for a K* that is not the adjoint. What functions of the user raise comes
        through, with an ``intermediate_result``.

    Notes
    -----
    Numbers are brought to the host once a try, with ``backtracking=False`` once in ``every`` iterations. Functions must
    not write into what they are given, nor later into what they returned. Memory: about
    8 vectors like x and 11 like K·x, temporaries among them.

    References
    ----------
    A. Beck, M. Teboulle (2009), A fast iterative shrinkage-thresholding algorithm for linear inverse problems, SIAM
    Journal on Imaging Sciences 2, section 4.

    B. O'Donoghue, E. Candès (2015), Adaptive restart for accelerated gradient schemes, arXiv:1204.3982.

    S. Becker, E. Candès, M. Grant (2011), Templates for convex cone problems, arXiv:1009.2065, section 5.3.

    Examples
    --------
    >>> import numpy as np
    >>> from xopt import proximal
    >>> A, b = np.asarray([[1.0, 0.5], [0.0, 1.0], [0.5, 0.0]]), np.asarray([1.0, 0.1, 0.4])
    >>> result = proximal.fista(proximal.squared(b), np.zeros(2), proximal.l1(0.2), K=A, tol=1e-9)
    >>> result.x.round(6), result.success
    (array([0.8, 0. ]), True)
    """
    run = Fista(
        f, x0, g, K, step, backtracking, restart, momentum, preconditioner,
        maxiter=maxiter, tol=tol, gap_tol=gap_tol, every=every, check_adjoint=check_adjoint, callback=callback,
        progress=progress,
    )  # fmt: skip
    return solved(run)


class Fista(Iteration):
    """A run of `fista`."""

    def __init__(
        self, f: Any, x0: Any, g: Any, K: Any, step: Any, backtracking: bool, restart: bool, momentum: bool,
        preconditioner: Any, **limits: Any,
    ) -> None:  # fmt: skip
        f = as_prox("f", f) if isinstance(f, tuple | list | dict) else f
        if isinstance(f, Prox) and (f.gradient is None or f.value is None):
            raise TypeError(f"f: {f}, which has no gradient, but f must be smooth; pdhg and admm take it")
        if not isinstance(f, Prox) and not callable(f):
            raise TypeError(f"f: {f!r}, but it must be a function that returns value and gradient, or squared(b)")
        super().__init__(x0, K, **limits)
        self.f, self.g = f, zero() if g is None else as_prox("g", g)
        self.check_gap()
        self.weights = like(self.space, preconditioner, "preconditioner")
        if self.weights is not None and self.g._apart:
            raise TypeError(f"preconditioner: with g = {self.g}, which has no prox with steps of different lengths")
        self.backtracking, self.restart, self.momentum = backtracking, restart, momentum
        if step is None:
            step = self.before.get("step")
            if step is None and not backtracking:
                raise TypeError("step: None, but with backtracking=False it must be given")
        self.rough = step is None
        """Whether the step is a guess, which may be made longer too."""
        self.step = 1.0 if step is None else real("step", step, 0.0)
        self.t, self.restarts = 1.0, 0
        self.old = self.x
        self.Kx = self.Kold = self.K.first
        self.at: tuple[Any, Leaves] | None = None
        """Value and gradient of f at K·x, where they are known."""

    def begin(self) -> None:
        if self.backtracking:
            self.at = self.sloped(self.Kx)
            [value] = self.space.look(self.at[0])
            if not math.isfinite(value):
                raise ValueError(f"x0: the value of f there is {value}")

    def sloped(self, z: Leaves) -> tuple[Any, Leaves]:
        return self.smooth(self.f, z, self.K.image, "f")

    def iterate(self) -> None:
        space, image = self.space, self.K.image
        last, self_t = self.t, (1 + math.sqrt(1 + 4 * self.t * self.t)) / 2
        beta = (last - 1) / self_t if self.momentum else 0.0
        if beta == 0:
            y, Ky = self.x, self.Kx
        else:
            y = combined(self.x, beta, combined(self.x, -1, self.old))
            Ky = y if self.K.identity else combined(self.Kx, beta, combined(self.Kx, -1, self.Kold))
        value, slope = self.at if beta == 0 and self.at is not None else self.sloped(Ky)
        grad = self.K.adjoint(slope)
        looks = self.backtracking or self.looks()
        while True:
            tau = self.step
            t: Any = tau if self.weights is None else space.tree(scaled(tau, self.weights))
            new = self.prox(self.g, combined(y, -1, scaled(tau, grad, self.weights)), t, space, "g")
            Knew = self.K.forward(new)
            at = self.sloped(Knew) if self.backtracking else None
            if not looks:
                turn = moved = size = steep = 0.0
                break
            move = combined(new, -1, y)
            own = [v / w for v, w in zip(move, self.weights, strict=True)] if self.weights is not None else move
            far = [
                space.dot(own, move),
                space.dot(own, combined(new, -1, self.x)) if self.momentum and self.restart else 0.0,
                space.square(new), space.square(grad), space.square(move),
            ]  # fmt: skip
            if at is not None:
                Kmove, bend = combined(Knew, -1, Ky), combined(at[1], -1, slope)
                far += [value, at[0], image.dot(slope, Kmove), image.dot(bend, Kmove)]
                far += [image.square(slope), image.square(Kmove)]
            moved, turn, size, steep, plain, *rest = space.look(*far)
            if at is None or self.accepted(moved, *rest):
                break
        self.x, self.old, self.Kx, self.Kold, self.t, self.at, self.known = new, self.x, Knew, self.Kx, self_t, at, None
        if not looks:
            return
        if turn < 0:  # own = new - y
            self.t, self.restarts = 1.0, self.restarts + 1
        size, steep, far_off = math.sqrt(size), math.sqrt(steep), math.sqrt(plain)
        residual = relative(far_off, max(size, self.step * steep))
        self.judge(0.0 if far_off <= 2 * space.eps * size < math.inf else residual)

    def accepted(
        self, moved: float, old: float, new: float, along: float, bend: float, slope: float, Kmoved: float
    ) -> bool:
        """Whether f at the new point lies below its model; if not, make the step shorter."""
        eps = max(self.space.eps, self.K.image.eps)
        if not math.isfinite(new + along + bend):
            self.step /= 10
            if self.step < 1e-300:
                raise FloatingPointError("f: infinite or NaN at every step, however short")
            return False
        if moved == 0:
            return True
        noise, half = 16 * eps * max(abs(old), abs(new)), moved / (2 * self.step)
        curvature = max(0.0, bend) / moved
        if half > 100 * noise:
            fits, most = new - old - along <= half + noise, max(curvature, 2 * (new - old - along) / moved)
        else:
            blur = 16 * eps * math.sqrt(slope * Kmoved)
            fits, most = bend <= 2 * half + blur, curvature
        if self.rough:  # the first step: from the curvature along it
            self.rough = False
            if fits and 0 < most < 0.5 / self.step:
                self.step = 1 / most
                return False
        if not fits:
            self.step = min(1 / most, self.step / 1.1)
        return fits

    def objective(self) -> list[Any]:
        if self.at is None:
            self.at = self.sloped(self.Kx)
        return [self.at[0], self.value(self.g, self.x, self.space)]

    def dual(self) -> tuple[Leaves, Leaves, Any]:
        if self.at is None:
            self.at = self.sloped(self.Kx)
        return self.at[1], self.K.adjoint(self.at[1]), self.at[0]

    def more(self) -> dict[str, Any]:
        if self.at is None:
            self.at = self.sloped(self.Kx)
        image = self.K.image
        return {"y": image.tree(image.copied(self.at[1])), "step": self.step, "restarts": self.restarts}
