"""PDHG: the primal-dual method of Chambolle and Pock."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from xopt._public import public
from xopt.proximal._penalties import zero
from xopt.proximal._prox import Array, as_prox, real
from xopt.proximal._run import Balance, Iteration, relative, solved
from xopt.proximal._space import Leaves, Trees, combined, like, scaled
from xopt.solvers._result import OptimizeResult

FLOOR = 0.3
"""The least σ·‖K‖², as a part of L²·τ."""


@public
def pdhg(
    f: Any,
    x0: Any,
    g: Any = None,
    *,
    K: Any = None,
    h: Callable[[Any], Any] | None = None,
    y0: Any = None,
    norm: float | None = None,
    smoothness: float | None = None,
    ratio: float | None = None,
    adaptive: bool = True,
    accelerate: bool | float = False,
    relaxation: float | None = None,
    preconditioner: Any = None,
    maxiter: float = 10_000,
    tol: float | None = None,
    gap_tol: float | None = None,
    every: int = 10,
    check_adjoint: bool = True,
    callback: Callable[..., Any] | None = None,
    progress: bool = False,
) -> OptimizeResult:
    r"""Primal-dual hybrid gradient (Chambolle-Pock): minimize f(K·x) + g(x) + h(x); f and g have a prox, h a gradient.

    ::

        x ← prox_{τg}(x₋ - τ·(K*·y₋ + ∇h(x₋))),    y ← prox_{σf*}(y₋ + σ·K·(2x - x₋)),    1/τ - σ·‖K‖² = L

    Parameters
    ----------
    f
        A function such as ``group_l1(0.1)``; a tuple, a list or a dictionary of these for a tree; or ``prox(x, t)``.
    x0
        Where to begin: an array of any library, float32, float64 or complex, or a tree of arrays; or the result of an
        earlier run, whose y, norm and ratio are used too. It is not changed.
    g
        Likewise. None: 0.
    K
        As for `fista`: a pair (K, K*), a matrix, and so on.
    h
        ``h(x)`` returns value and gradient (Condat 2013, Vũ 2013). None: 0.
    y0
        The dual variable at the beginning, like K·x. None: that of x0, or 0.
    norm
        ‖K‖. None: by the power method, some applications of K and K*. It is raised where a step shows that it is more;
        where it was given, the first ``every`` steps are looked at for that, and taken again.
    smoothness
        With h: L > 0, the Lipschitz constant of ∇h. None: from the steps, raised where one shows more.
    ratio
        σ/τ > 0 at the beginning. None: 1.
    adaptive
        Move σ/τ towards ‖y‖/‖x‖, by less and less, as in Goldstein, Li & Yuan (2015). The bound of the error of a run
        from 0 is least at the square of that (Applegate et al. 2021), which takes fewer iterations for some images and
        more for others.
    accelerate
        True, or μ > 0: shorten τ and lengthen σ for a g that is strongly convex (Chambolle & Pock 2011, Algorithm 2);
        True takes the constant of ``squared``. Then neither ``adaptive`` nor ``relaxation`` act.
    relaxation
        0 < ρ < 2: go ρ times as far as the step (Condat 2013). None: 1.8; with h 1.4, the largest there.
    preconditioner
        A pair of positive weights, arrays like x0 and like K·x, each perhaps None: steps τ·T and σ·Σ (Pock & Chambolle
        2011). Functions with such steps must be of single elements. ``norm`` is that of Σ^½·K·T^½.
    maxiter
        Iterations, ≥ 0, or infinite.
    tol
        Stop where both residuals are small: p = (x₋ - x)/τ - K*·(y₋ - y), which is in ∂g(x) + ∇h(x) + K*·y, at most
        tol·max(‖K‖·‖y‖, ‖x‖/τ), and d = (y₋ - y)/σ - K·(x₋ - x), which is in ∂f*(y) - K·x, at most
        tol·max(‖K‖·‖x‖, ‖y‖/σ). None: 1e-6, or none with ``gap_tol``. Less than 4·ε of the dtype counts as that.
    gap_tol
        Stop where the duality gap f(K·x) + g(x) + f*(s·y) + g*(-s·K*·y), with the largest s ≤ 1 that is feasible, is at
        most so much of the objective. f and g must be functions with conjugates (all but `tv`), and no h.
    every
        Look at residuals, to stop and to adapt, once in so many iterations.
    check_adjoint
        Test K* on random x and y at the beginning.
    callback, progress
        As for `minimize`.

    Returns
    -------
    OptimizeResult
        As of `fista`: ``x``, ``fun``, ``gap``, ``residual`` and so on, with ``y`` the dual variable, ``norm``,
        ``smoothness`` and ``ratio`` as they are at the end, and ``nfev``, how often K was applied. A constraint as f is
        met by K·x to about ``tol``, and ``fun`` may be infinite; as g it is met to the last digit.

    Raises
    ------
    TypeError, ValueError
        As `fista`.

    Notes
    -----
    Numbers are brought to the host once in ``every`` iterations, and some at the beginning, for the norm. Memory: about
    9 vectors like x and 14 like K·x, temporaries among them, beside what proxes take.

    References
    ----------
    A. Chambolle, T. Pock (2011), A first-order primal-dual algorithm for convex problems with applications to imaging,
    Journal of Mathematical Imaging and Vision 40.

    T. Goldstein, M. Li, X. Yuan (2015), Adaptive primal-dual splitting methods for statistical learning and image
    processing, NIPS 28; arXiv:1305.0546. They compare residuals; that took more iterations to deblur images.

    D. Applegate et al. (2021), Practical large-scale linear programming using primal-dual hybrid gradient,
    arXiv:2106.04756, section 3.3.

    L. Condat (2013), A primal-dual splitting method for convex optimization involving Lipschitzian, proximable and
    linear composite terms, Journal of Optimization Theory and Applications 158.

    T. Pock, A. Chambolle (2011), Diagonal preconditioning for first order primal-dual algorithms, ICCV.

    Examples
    --------
    >>> import numpy as np
    >>> from xopt import proximal
    >>> b = np.asarray([[0.0, 0.0, 3.0, 3.0]])
    >>> f, g = proximal.group_l1(1.0), proximal.squared(b)
    >>> result = proximal.pdhg(f, b, g, K=proximal.gradient, tol=1e-10)  # total variation
    >>> result.x.round(6), result.success
    (array([[0.5, 0.5, 2.5, 2.5]]), True)
    """
    run = Pdhg(
        f, x0, g, K, h, y0, norm, smoothness, ratio, adaptive, accelerate, relaxation, preconditioner,
        maxiter=maxiter, tol=tol, gap_tol=gap_tol, every=every, check_adjoint=check_adjoint, callback=callback,
        progress=progress,
    )  # fmt: skip
    return solved(run)


class Pdhg(Iteration):
    """A run of `pdhg`."""

    def __init__(
        self, f: Any, x0: Any, g: Any, K: Any, h: Any, y0: Any, norm: Any, smoothness: Any, ratio: Any, adaptive: bool,
        accelerate: Any, relaxation: Any, preconditioner: Any, **limits: Any,
    ) -> None:  # fmt: skip
        super().__init__(x0, K, **limits)
        self.f, self.g, self.h = as_prox("f", f), zero() if g is None else as_prox("g", g), h
        if h is not None and not callable(h):
            raise TypeError(f"h: {h!r}, but it must be a function that returns value and gradient")
        self.check_gap()
        both = (None, None) if preconditioner is None else preconditioner
        if not isinstance(both, tuple) or len(both) != 2:
            raise TypeError("preconditioner: it must be a pair, of weights like x0 and like K·x")
        self.T, self.S = (
            like(self.space, both[0], "preconditioner[0]"),
            like(self.K.image, both[1], "preconditioner[1]"),
        )
        for name, w, one in (("g", self.T, self.g), ("f", self.S, self.f)):
            if w is not None and one._apart:
                raise TypeError(
                    f"preconditioner: with {name} = {one}, which has no prox with steps of different lengths"
                )
        before = self.before
        norm, ratio = (before.get(n) if v is None else v for n, v in (("norm", norm), ("ratio", ratio)))
        self.norm = None if norm is None else real("norm", norm, 0.0)
        self.trials = 0 if norm is None else self.every
        """How many steps at the beginning are taken again where they show that a norm that was given is too small."""
        self.ratio = 1.0 if ratio is None else real("ratio", ratio, 0.0)
        smoothness = before.get("smoothness") if smoothness is None and h is not None else smoothness
        if smoothness is not None and h is None:
            raise TypeError("smoothness: given without h")
        self.smoothness = None if smoothness is None else real("smoothness", smoothness, 0.0)
        self.mu = (
            self.g.convexity if accelerate is True else real("accelerate", 0.0 if accelerate is False else accelerate)
        )
        if accelerate is True and not self.mu:
            raise ValueError(f"accelerate: True, but g = {self.g} is not known to be strongly convex; give a number μ")
        self.balance = Balance(adaptive and not self.mu)
        most = 2.0 if h is None else 1.5
        rho = (1.8 if h is None else 1.4) if relaxation is None else real("relaxation", relaxation, 0.0)
        if rho >= most:
            raise ValueError(f"relaxation: {rho:g}, but it must be < {most:g}")
        self.rho = 1.0 if self.mu else rho
        image, given, y0 = self.K.image, *self.begun(y0)
        zeros = [image.xp.zeros_like(v) for v in image.start]
        self.y = self.v = zeros if y0 is None else image.copied(image.leaves(y0, given))
        """The dual variable; v is where the next step begins."""
        self.u = self.x
        self.Kx = self.Ku = self.K.first
        self.back = self.own = (
            self.K.adjoint(self.v) if y0 is not None else [self.space.xp.zeros_like(v) for v in self.space.start]
        )
        """K*·v, and K*·y."""
        self.tau = 0.0

    def begin(self) -> None:
        if self.norm is None:
            found = self.K.norm(self.T, self.S)
            if not math.isfinite(found):
                raise ValueError("K: its norm is infinite or NaN")
            self.norm = (found or 1e-6) * 1.005  # the estimate is from below
        self.hu: Any = self.slope(self.u)
        if self.h is not None and self.smoothness is None:
            self.smoothness = self.probe()
        self.tau = self.length()

    def slope(self, x: Leaves) -> Any:
        if self.h is None:
            return 0.0, None
        return self.smooth(self.h, x, self.space, "h")

    def probe(self) -> float:
        """Return the curvature of h along its gradient at x0."""
        space, grad = self.space, self.hu[1]
        steep, size = map(math.sqrt, space.look(space.square(grad), space.square(self.u)))
        if not steep:
            return 1e-6
        short = math.sqrt(space.eps) * max(size, 1.0) / steep
        bend = combined(self.slope(combined(self.u, -short, grad))[1], -1, grad)
        return max(math.sqrt(*space.look(space.square(bend))) / (short * steep), 1e-6)

    def length(self) -> float:
        """Return τ for a ratio σ/τ: the root of 1/τ - ratio·τ·‖K‖² = L."""
        assert self.norm is not None
        rough = (self.smoothness or 0.0) if self.h is not None else 0.0
        if self.balance.alpha and rough:  # less would make σ shorter, and τ hardly longer
            self.ratio = max(self.ratio, FLOOR * (rough / self.norm) ** 2)
        return 2 / (rough + math.sqrt(rough**2 + 4 * self.ratio * self.norm**2))

    def steps(self, t: float, weights: Leaves | None, space: Trees) -> Any:
        return t if weights is None else space.tree(scaled(t, weights))

    def iterate(self) -> None:
        space, image, K = self.space, self.K.image, self.K
        tau, sigma, theta = self.tau, self.ratio * self.tau, 1.0
        slope = self.back if self.h is None else combined(self.back, 1, self.hu[1])
        while True:
            start = combined(self.u, -1, scaled(tau, slope, self.T))
            x = self.prox(self.g, start, self.steps(tau, self.T, space), space, "g")
            Kx = K.forward(x)
            if self.nit >= self.trials or self.holds(x, Kx):
                break
            self.tau = tau = self.length()
            sigma = self.ratio * tau
        if self.mu:
            theta = 1 / math.sqrt(1 + 2 * self.mu * tau)
            self.tau, sigma = theta * tau, sigma / theta
            self.ratio = sigma / self.tau
        ahead = combined(Kx, theta, combined(Kx, -1, self.Ku))
        start = combined(self.v, 1, scaled(sigma, ahead, self.S))
        y = image.leaves(self.f.prox_conjugate(image.tree(start), self.steps(sigma, self.S, image)), "f.prox")
        back = K.adjoint(y)
        hx = self.slope(x) if self.h is not None and self.rho == 1 else (0.0, None)
        if self.looks():
            self.judged(x, Kx, y, back, tau, sigma, hx)
        self.x, self.Kx, self.y, self.own, self.known = x, Kx, y, back, None
        rho = self.rho
        if rho == 1:
            self.u, self.Ku, self.v, self.back = x, Kx, y, back
        else:
            self.u, self.v = (combined(a, rho, combined(b, -1, a)) for a, b in ((self.u, x), (self.v, y)))
            self.Ku, self.back = (combined(a, rho, combined(b, -1, a)) for a, b in ((self.Ku, Kx), (self.back, back)))
        if self.h is not None:
            self.hu = hx if rho == 1 else self.slope(self.u)

    def holds(self, x: Leaves, Kx: Leaves) -> bool:
        """Whether the norm is as large as a step to x shows; if not, raise it."""
        dx, dKx = combined(self.u, -1, x), combined(self.Ku, -1, Kx)
        own = dx if self.T is None else [v / w for v, w in zip(dx, self.T, strict=True)]
        square = self.space.square(x)
        return not self.raised(*self.space.look(square, *self.moves(own, dx, dKx)))

    def moves(self, own: Leaves, dx: Leaves, dKx: Leaves) -> tuple[Array, Array]:
        """Return the squares of a step and of what K makes of it, in the norms of the steps."""
        return self.space.dot(own, dx), self.K.image.dot(dKx, scaled(1.0, dKx, self.S))

    def raised(self, x2: float, moved: float, Kmoved: float) -> bool:
        """Raise the norm where a step shows that it is more; return whether it did."""
        assert self.norm is not None
        small = not moved > (1e3 * self.space.eps) ** 2 * x2  # of roundings
        if small or not self.norm**2 * moved * (1 + 1e-6) < Kmoved < math.inf:
            return False
        self.norm = math.sqrt(Kmoved / moved) * 1.001
        return True

    def judged(self, x: Leaves, Kx: Leaves, y: Leaves, back: Leaves, tau: float, sigma: float, hx: Any) -> None:
        """Look at the residuals: stop, or adapt the ratio, and raise the norm where it is too small."""
        space, image = self.space, self.K.image
        dx, dKx = combined(self.u, -1, x), combined(self.Ku, -1, Kx)
        dy, dback = combined(self.v, -1, y), combined(self.back, -1, back)
        own = [v / w for v, w in zip(dx, self.T, strict=True)] if self.T is not None else dx
        other = [v / w for v, w in zip(dy, self.S, strict=True)] if self.S is not None else dy
        p, d = combined(scaled(1 / tau, own), -1, dback), combined(scaled(1 / sigma, other), -1, dKx)
        if self.h is not None:
            hx = self.slope(x) if hx[1] is None else hx
            bend = combined(hx[1], -1, self.hu[1])
            p = combined(p, 1, bend)
            curved = space.dot(bend, combined(x, -1, self.u))
        else:
            curved = 0.0
        far = [space.square(p), image.square(d), space.square(x), image.square(y), *self.moves(own, dx, dKx), curved]
        *sizes, moved, Kmoved, curved = space.look(*far)
        p2, d2, x2, y2 = map(math.sqrt, sizes)
        self.raised(sizes[2], moved, Kmoved)
        assert self.norm is not None
        some = moved > (1e3 * space.eps) ** 2 * sizes[2]  # else they are roundings
        if some and self.smoothness is not None and curved > self.smoothness * moved * (1 + 1e-6):
            self.smoothness = 1.1 * curved / moved
        first, second = max(self.norm * y2, x2 / tau), max(self.norm * x2, y2 / sigma)
        residual = max(relative(p2, first), relative(d2, second))
        self.x, self.Kx, self.y, self.own, self.known = x, Kx, y, back, None
        self.judge(0.0 if residual <= 4 * max(space.eps, image.eps) else residual)
        if not self.mu:
            self.ratio = self.balance.moved(self.ratio, y2, x2)
        self.tau = self.length() if not self.mu else min(self.tau, self.length())

    def objective(self) -> list[Any]:
        found = [self.value(self.f, self.Kx, self.K.image), self.value(self.g, self.x, self.space)]
        return found if self.h is None else [*found, self.slope(self.x)[0]]

    def can_gap(self) -> list[str]:
        return [*super().can_gap(), *([] if self.h is None else ["there is h"])]

    def dual(self) -> tuple[Leaves, Leaves, Any]:
        return self.y, self.own, self.value(self.f, self.Kx, self.K.image)

    def more(self) -> dict[str, Any]:
        image = self.K.image
        known = {"norm": self.norm, "ratio": self.ratio} | ({} if self.h is None else {"smoothness": self.smoothness})
        return {"y": image.tree(image.copied(self.y)), **known}
