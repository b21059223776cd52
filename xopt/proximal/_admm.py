"""ADMM: the alternating direction method of multipliers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from xopt._public import public
from xopt.proximal._conjugate import Equations
from xopt.proximal._penalties import zero
from xopt.proximal._prox import as_prox, real
from xopt.proximal._run import Balance, Iteration, relative, solved
from xopt.proximal._space import Leaves, combined, operator, scaled
from xopt.solvers._options import count
from xopt.solvers._result import OptimizeResult


@public
def admm(
    f: Any,
    x0: Any,
    g: Any = None,
    *,
    K: Any = None,
    A: Any = None,
    solve: Callable[[Any, float], Any] | None = None,
    y0: Any = None,
    rho: float | None = None,
    adaptive: bool = True,
    relaxation: float = 1.6,
    preconditioner: Callable[[Any, float], Any] | None = None,
    cg_maxiter: float = 50,
    maxiter: float = 10_000,
    tol: float | None = None,
    gap_tol: float | None = None,
    every: int = 1,
    check_adjoint: bool = True,
    callback: Callable[..., Any] | None = None,
    progress: bool = False,
) -> OptimizeResult:
    r"""Alternating direction method of multipliers: minimize f(K·x) + g(A·x), with f(z) and z = K·x apart.

    ::

        x ← argmin g(A·x) + ρ/2·‖K·x - z + y/ρ‖²,    z ← prox_{f/ρ}(K·x + y/ρ),    y ← y + ρ·(K·x - z)

    The step of x is a prox of g without K and A. With one of them g is `squared` or `zero`, and the step is a linear
    system, by conjugate gradients; or it is ``solve``.

    Parameters
    ----------
    f
        A function such as ``group_l1(0.1)``; a tuple, a list or a dictionary of these for a tree; or ``prox(x, t)``.
    x0
        Where to begin: an array of any library, float32, float64 or complex, or a tree of arrays; or the result of an
        earlier run, whose y and ρ are used too. It is not changed.
    g
        Likewise. None: 0.
    K, A
        As K for `fista`: pairs (K, K*), matrices, and so on. None: 1.
    solve
        ``solve(v, rho)`` returns argmin over x of g(x) + ρ/2·‖K·x - v‖², such as by an FFT; g then gives the value
        alone. Not with A.
    y0
        The dual variable at the beginning, like K·x. None: that of x0, or 0.
    rho
        ρ > 0 at the beginning. None: 1.
    adaptive
        Move ρ so that both residuals, as ``tol`` takes them, become alike, by less and less (Boyd et al. 2011, section
        3.4.1; Wohlberg 2017).
    relaxation
        0 < α < 2: in the steps of z and y, α·K·x + (1 - α)·z stands for K·x.
    preconditioner
        ``preconditioner(r, rho)`` returns about (AᵀΛA + ρ·KᵀK)⁻¹·r, symmetric and positive, for conjugate gradients; Λ
        is the strength of `squared`.
    cg_maxiter
        Iterations of conjugate gradients in a step, ≥ 1; they end at a tenth of the residual of the last step.
    maxiter
        Iterations, ≥ 0, or infinite.
    tol
        Stop where ‖K·x - z‖ ≤ tol·max(‖K·x‖, ‖z‖), and ρ‖K*·(z - z₋)‖ and what is left of the linear system are
        together at most tol·max(‖K*·y‖, ρ‖K*·z‖). None: 1e-6, or none with ``gap_tol``. Less than 4·ε of the dtype
        counts as that; linear systems may not come so far.
    gap_tol
        As for `pdhg`, of f(K·x): with a constraint as f it is often infinite. Without A.
    every
        Look at residuals, to stop and to adapt, once in so many iterations.
    check_adjoint
        Test K* and A* on random arguments at the beginning.
    callback, progress
        As for `minimize`.

    Returns
    -------
    OptimizeResult
        As of `fista`: ``x``, ``fun``, ``gap``, ``residual`` and so on, with ``z``, at which f is evaluated, ``y`` the
        dual variable, ``rho`` as it is at the end, and ``nfev``, how often K and A were applied. Where a constraint in
        f has to hold to the last digit, take ``z``.

    Raises
    ------
    TypeError, ValueError
        As `fista`.

    Notes
    -----
    Numbers are brought to the host once in ``every`` iterations, and once in each iteration of conjugate gradients.
    Memory: about 10 vectors like x and 11 like K·x, temporaries among them, beside what proxes take.

    References
    ----------
    S. Boyd, N. Parikh, E. Chu, B. Peleato, J. Eckstein (2011), Distributed optimization and statistical learning via
    the alternating direction method of multipliers, Foundations and Trends in Machine Learning 3(1).

    B. Wohlberg (2017), ADMM penalty parameter selection by residual balancing, arXiv:1704.06209.

    Examples
    --------
    >>> import numpy as np
    >>> from xopt import proximal
    >>> A, b = np.asarray([[1.0, 0.5], [0.0, 1.0], [0.5, 0.0]]), np.asarray([1.0, 0.1, 0.4])
    >>> result = proximal.admm(proximal.l1(0.2), np.zeros(2), proximal.squared(b), A=A, tol=1e-9)
    >>> result.x.round(6) + 0.0, result.success
    (array([0.8, 0. ]), True)
    """
    run = Admm(
        f, x0, g, K, A, solve, y0, rho, adaptive, relaxation, preconditioner, cg_maxiter,
        maxiter=maxiter, tol=tol, gap_tol=gap_tol, every=every, check_adjoint=check_adjoint, callback=callback,
        progress=progress,
    )  # fmt: skip
    return solved(run)


class Admm(Iteration):
    """A run of `admm`."""

    apart = True

    def __init__(
        self, f: Any, x0: Any, g: Any, K: Any, A: Any, solve: Any, y0: Any, rho: Any, adaptive: bool, relaxation: Any,
        preconditioner: Any, cg_maxiter: Any, **limits: Any,
    ) -> None:  # fmt: skip
        super().__init__(x0, K, **limits)
        self.f, self.g = as_prox("f", f), zero() if g is None else as_prox("g", g)
        for name, function in (("solve", solve), ("preconditioner", preconditioner)):
            if function is not None and not callable(function):
                raise TypeError(f"{name}: {function!r}, but it must be a function")
        if solve is not None and A is not None:
            raise TypeError("solve: given with A; solve(v, rho) can take care of A itself")
        self.A = operator(self.space, A, limits["check_adjoint"], "A")
        self.check_gap()
        self.solve, self.equations = solve, None
        most = count("cg_maxiter", cg_maxiter, 1)
        if solve is None and not (self.K.identity and self.A.identity):
            if not self.g._quadratic:
                raise TypeError(f"g: {self.g}, but with K or A it must be squared(…) or zero(), or solve be given")
            self.equations = Equations(self.g, self.K, self.A, preconditioner, most)
        if preconditioner is not None and self.equations is None:
            raise TypeError("preconditioner: given, but no linear system is solved by conjugate gradients")
        before, image = self.before, self.K.image
        rho = before.get("rho") if rho is None else rho
        self.rho = 1.0 if rho is None else real("rho", rho, 0.0)
        self.alpha = real("relaxation", relaxation, 0.0)
        if self.alpha >= 2:
            raise ValueError(f"relaxation: {self.alpha:g}, but it must be < 2")
        self.balance = Balance(adaptive)
        given, y0 = self.begun(y0)
        start = [image.xp.zeros_like(v) for v in image.start] if y0 is None else image.leaves(y0, given)
        self.y: Leaves = image.copied(start)
        self.Kx = self.K.first
        self.z = self.Kx if before.get("z") is None else image.copied(image.leaves(before.z, "x0.z"))
        self.left = math.inf
        """What a linear system may be wrong by."""

    def begin(self) -> None:
        self.back_z, self.back_y = self.K.adjoint(self.z), self.K.adjoint(self.y)
        """K*·z and K*·y."""

    def nearest(self) -> tuple[Leaves, float]:
        """Return the next x, and the residual of the linear system there."""
        space, image, rho = self.space, self.K.image, self.rho
        if self.equations is not None:
            right = combined(scaled(rho, self.back_z), -1, self.back_y)
            return self.equations.solved(self.x, self.Kx, right, rho, self.left)
        v = combined(self.z, -1 / rho, self.y)
        if self.solve is not None:
            return space.leaves(self.solve(image.tree(v), rho), "solve"), 0.0
        return self.prox(self.g, v, 1 / rho, space, "g"), 0.0

    def iterate(self) -> None:
        space, image, rho, alpha = self.space, self.K.image, self.rho, self.alpha
        x, wrong = self.nearest()
        Kx = self.K.forward(x)
        ahead = Kx if alpha == 1 else combined(scaled(alpha, Kx), 1 - alpha, self.z)
        v = combined(ahead, 1 / rho, self.y)
        z = self.prox(self.f, v, 1 / rho, image, "f")
        y = scaled(rho, combined(v, -1, z))
        back_z, back_y = self.K.adjoint(z), self.K.adjoint(y)
        old = self.back_z
        self.x, self.Kx, self.z, self.y, self.back_z, self.back_y = x, Kx, z, y, back_z, back_y
        self.known = None
        if not self.looks():
            return
        far = [image.square(combined(Kx, -1, z)), space.square(combined(back_z, -1, old)), image.square(Kx)]
        far += [image.square(z), space.square(back_y), space.square(back_z), image.square(y)]
        r, s, Kx2, z2, Ky2, Kz2, y2 = map(math.sqrt, space.look(*far))
        primal, dual = max(Kx2, z2), max(Ky2, rho * Kz2)
        residual = max(relative(r, primal), relative(rho * s + wrong, dual))
        self.left = 0.1 * residual * dual
        self.judge(0.0 if residual <= 4 * max(space.eps, image.eps) else residual)
        self.rho = self.balance.moved(rho, y2, z2)

    def objective(self) -> list[Any]:
        at = self.x if self.A.identity else self.A.forward(self.x)
        return [self.value(self.f, self.z, self.K.image), self.value(self.g, at, self.A.image)]

    def evaluations(self) -> int:
        return self.K.count + self.A.count

    def can_gap(self) -> list[str]:
        return [*super().can_gap(), *([] if self.A.identity else ["there is A"])]

    def dual(self) -> tuple[Leaves, Leaves, Any]:
        return self.y, self.back_y, self.value(self.f, self.Kx, self.K.image)

    def more(self) -> dict[str, Any]:
        image = self.K.image
        return {"y": image.tree(image.copied(self.y)), "z": image.tree(image.copied(self.z)), "rho": self.rho}
