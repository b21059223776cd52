"""`least_squares`: what a user gives and gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from xopt._public import public
from xopt.solvers._callbacks import annotate, called, counted, progress_bar
from xopt.solvers._minimize import checked_layout
from xopt.solvers._result import OptimizeResult
from xopt.solvers.fits._arguments import prepared
from xopt.solvers.fits._batch import Batch
from xopt.solvers.fits._fit import INTERRUPTED
from xopt.solvers.fits._residuals import Residuals
from xopt.solvers.fits._results import plain, result, tree_of

Jacobian: TypeAlias = (
    Callable[..., Any] | tuple[Callable[..., Any], Callable[..., Any]] | Literal["2-point", "3-point"] | None
)


@public
def least_squares(
    fun: Callable[..., Any],
    x0: Any,
    *,
    jac: Jacobian = None,
    bounds: Any = None,
    method: Literal["lm", "dogleg", "steihaug"] = "lm",
    batched: bool = False,
    data: Any = None,
    args: Any = (),
    loss: Literal["linear", "soft_l1", "huber", "cauchy", "arctan"] = "linear",
    f_scale: float = 1.0,
    x_scale: Any = "jac",
    ftol: float = 1e-8,
    xtol: float = 1e-8,
    gtol: float = 1e-8,
    max_nfev: float | None = None,
    preconditioner: Callable[[Any], Any] | None = None,
    geodesic: bool = False,
    diff_step: float | None = None,
    callback: Callable[..., Any] | None = None,
    progress: bool = False,
) -> OptimizeResult:
    r"""Nonlinear least squares (Levenberg-Marquardt) of one fit, or of many at once, on the library and device of x0.

    It minimizes F(x) = ½ Σᵢ C²·ρ((fᵢ(x)/C)²) within bounds: with ``loss="linear"`` half the sum of squared residuals.
    Each step p minimizes ‖f + J·p‖ where ‖D·p‖ ≤ Δ; D has the largest norms so far of the columns of J (Moré 1978).

    Parameters
    ----------
    fun
        ``fun(x, *args)`` returns the residuals, an array of any shape. Of complex ones real and imaginary parts are
        residuals each.
    x0
        Where to begin: an array of float32, float64 or complex numbers of any library, or a tree of arrays. It is not
        changed. Integers, numbers and lists as for `minimize`. The numbers of a complex array are its real parts, then
        its imaginary parts.
    jac
        ``jac(x, *args)`` returns the Jacobian ∂fᵢ/∂xⱼ: for each parameter an array whose shape is that of the
        residuals, then that of the parameter. For complex parameters: of complex residuals that are differentiable in
        them the complex derivative, of real ones ∂f/∂Re + i·∂f/∂Im. ``"2-point"``, ``"3-point"``: forward or central
        differences, one or two evaluations more for each number of x. None: torch or JAX differentiates, in forward
        mode, once for each number of x; of other libraries ``"2-point"``.

        With ``"steihaug"`` products with J and its transpose: two functions ``(jvp, vjp)``, where ``jvp(x, v, *args)``
        returns J·v, like the residuals, of a tree v like x0, and ``vjp(x, u, *args)`` Jᴴ·u, like x0, of u like the
        residuals; or ``jac(x, *args)`` returns such an array, or something of shape (m, n) whose columns are the
        elements of x: a sparse matrix, or an operator with ``matvec`` and ``rmatvec``. None: torch or JAX computes
        both. They must belong together, Re⟨u, J·v⟩ = Re⟨Jᴴ·u, v⟩, which is looked at once, at x0.
    bounds
        As for `minimize`, but a tuple of two is always two sides. Parameters that are at a bound and pushed against it
        are left out of a step, and a step that leaves the bounds is made again with those that hit one held there. With
        ``batched`` as of one fit, or of all.
    method
        ``"lm"``: such a step, with a damping λ so that ‖D·p‖ is Δ within a tenth. ``"dogleg"``: a point of the path
        from the minimum along the gradient to the full Gauss-Newton step (Powell 1970): one small triangular system
        instead of several, and more steps where columns of J are nearly dependent. ``"steihaug"``: for many parameters,
        which must be scaled alike: conjugate gradients on JᵀJ, to the edge of the region or until the gradient of the
        linear model is a tenth or less (Steihaug 1983). J is not needed, products with it are, and there is no
        covariance. Not with ``batched``.
    batched
        Whether the first axis of all arrays of x0 numbers independent fits. Then ``fun`` returns an array with that
        axis first, as does ``jac``, all fits take a step at a time, and each stops by itself.
    data
        With ``batched``: a tree of arrays whose first axis numbers the fits, too, such as what they are fitted to. Then
        ``fun(x, data, *args)``, as ``jac``, is given the rows of fits that still run, on NumPy some thousands at a time
        that stay in the cache. Without it, all fits are computed as long as one runs.
    args
        More arguments of ``fun`` and ``jac``; what is no tuple is one argument.
    loss
        ρ(z), which lets outliers count for less: z, ``"soft_l1"`` 2·(√(1+z) - 1), ``"huber"`` z up to 1, then 2√z - 1,
        ``"cauchy"`` ln(1+z), ``"arctan"`` arctan(z).
    f_scale
        C > 0, from which size on a residual is an outlier.
    x_scale
        ``"jac"``, or the size of a typical change of each parameter, > 0: a number, or like x0. Then D is one over it.
        With ``"steihaug"`` ``"jac"`` is 1.
    ftol, xtol, gtol
        A fit has converged if the cost falls and would fall by no more than ``ftol`` as a part of it, if Δ is no more
        than ``xtol`` times ‖D·x‖, or if no column of J that is free has a larger cosine with f than ``gtol``; with
        ``"steihaug"`` if ‖g‖ ≤ ``gtol``·‖J‖·‖f‖, for the largest ‖J·d‖/‖d‖ of the last step as ‖J‖. Less than the ε of
        the dtype counts as that.
    max_nfev
        Evaluations, ≥ 1, without those of differences. None: 100 for each number of x, and at least 1000.
    preconditioner
        With ``"steihaug"``, without bounds and ``x_scale``: a function g ↦ P·g of trees like x0, linear, symmetric and
        positive definite, the same throughout, about (JᵀJ)⁻¹. The region is then pᵀP⁻¹p ≤ Δ².
    geodesic
        Add half of the second-order term along the step, from one evaluation more (Transtrum & Sethna 2012), which
        helps in narrow curved valleys. For ``"lm"`` without bounds, with ``loss="linear"``.
    diff_step
        Of differences: their step as a part of \|x\| (of 1 where x is 0). None: ε^(1/2), with three points ε^(1/3).
    callback
        Called after every step tried with x, or, if its argument is called ``intermediate_result``, with an
        `OptimizeResult` of ``x, cost, nit, nfev``. It ends the run by returning True or raising ``StopIteration``.
    progress
        Show a bar (needs tqdm): of steps tried; with ``batched`` of fits that have ended.

    Returns
    -------
    OptimizeResult
        ``x`` like x0; ``cost``; ``fun`` the residuals, along one axis; ``grad`` the gradient of the cost, like x;
        ``optimality`` the largest such cosine; ``active_mask`` like x, -1 and 1 at a lower and an upper bound; ``nit``
        steps tried; ``nfev``, ``njev`` evaluations of the residuals (without those of differences) and of the Jacobian;
        ``covariance`` the matrix s²·(JᵀJ)⁻¹ with s² = 2·cost/(m - n), with a loss J as it is weighted, whose rows are
        the numbers of x in the order of its arrays, infinite where JᵀJ is singular or m ≤ n, 0 between equal bounds;
        ``stderr`` the roots of its diagonal, like x; ``status``: 1 gtol, 2 ftol, 3 xtol, 4 both of these, 0 max_nfev,
        -1 interrupted, -2 stopped by the callback; ``success``: whether that is above 0; ``message``. With ``batched``
        all but ``nfev``, ``njev`` and ``message`` have the axis of the fits first; of fits with infinite or NaN
        residuals at x0, or derivatives, the status is -3. Without it also ``jac``, of shape (m, n). With
        ``"steihaug"`` ``nprod``, the products with J and its transpose, instead of ``covariance``, ``stderr``, ``jac``.

    Raises
    ------
    TypeError, ValueError
        For what does not fit, by name; for residuals at x0 that are infinite or NaN (of one fit). What ``fun`` and
        other functions of the user raise comes through, with an ``intermediate_result``: the best point so far.

    Notes
    -----
    One fit: J, with f beside it, is reduced to a triangle by Householder's method where it is, which is brought to the
    host, a transfer; steps are computed there in float64, and a step takes one transfer more for the cost. Many fits:
    columns are orthogonalized (modified Gram-Schmidt) where they are, in the dtype of x, and one number is looked at a
    few times a step. A trial that is infinite or NaN counts as a bad step. Scale residuals whose squares are 0 or
    infinite in their dtype.

    Memory, in arrays of the residuals: n + 4, beside what ``fun`` needs; for one fit n + 1 more. With ``"steihaug"``
    about 5, and 8 of the size of x; all vectors stay where x0 is, and a number is brought to the host for each product.

    References
    ----------
    J. J. Moré (1978), The Levenberg-Marquardt algorithm: implementation and theory, Lecture Notes in Mathematics 630.

    M. J. D. Powell (1970), A hybrid method for nonlinear equations, in: Numerical Methods for Nonlinear Equations.

    T. Steihaug (1983), The conjugate gradient method and trust regions in large scale optimization, SIAM Journal on
    Numerical Analysis 20.

    M. K. Transtrum, J. P. Sethna (2012), Improvements to the Levenberg-Marquardt algorithm, arXiv:1201.5885.

    B. Triggs et al. (2000), Bundle adjustment: a modern synthesis, Lecture Notes in Computer Science 1883 (the losses).

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> t = np.linspace(0, 4, 30)
    >>> y = 2.5 * np.exp(-1.3 * t)
    >>> result = xopt.least_squares(lambda x: x[0] * np.exp(-x[1] * t) - y, [1.0, 1.0])
    >>> result.x.round(6), result.success
    (array([2.5, 1.3]), True)

    Thousands of fits at once, a row each:

    >>> rates = np.linspace(0.5, 2.0, 1000)
    >>> y = 2.5 * np.exp(-rates[:, None] * t)
    >>> many = xopt.least_squares(lambda x: x[:, :1] * np.exp(-x[:, 1:] * t) - y, np.ones((1000, 2)), batched=True)
    >>> bool(many.success.all()), float(abs(many.x[:, 1] - rates).max()) < 1e-6
    (True, True)

    A million parameters, by products with J and Jᵀ:

    >>> shift = np.roll
    >>> fun = lambda x: x + 0.1 * np.sin(shift(x, 1)) - 1
    >>> jvp = lambda x, v: v + 0.1 * np.cos(shift(x, 1)) * shift(v, 1)
    >>> vjp = lambda x, u: u + shift(0.1 * np.cos(shift(x, 1)) * u, -1)
    >>> large = xopt.least_squares(fun, np.zeros(10**6), jac=(jvp, vjp), method="steihaug")
    >>> large.success, float(abs(large.fun).max()) < 1e-6
    (True, True)
    """
    return solve(
        fun, x0, jac=jac, bounds=bounds, method=method, batched=batched, data=data, args=args, loss=loss,
        f_scale=f_scale, x_scale=x_scale, ftol=ftol, xtol=xtol, gtol=gtol, max_nfev=max_nfev, geodesic=geodesic,
        preconditioner=preconditioner, diff_step=diff_step, callback=callback, progress=progress,
    )[0]  # fmt: skip


DEFAULTS: dict[str, Any] = least_squares.__kwdefaults__ or {}


def solve(fun: Any, x0: Any, **options: Any) -> tuple[OptimizeResult, Any]:
    """Do what `least_squares` does; return also (JᵀJ)⁻¹ at the end."""
    given = DEFAULTS | options
    callback, progress = given.pop("callback"), given.pop("progress")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback: {callback!r}, but it must be a function")
    run = prepared(fun, checked_layout(x0), **given)
    own = run.residuals
    call = None if callback is None else called(callback, _point(own), _shown(own))
    try:
        with progress_bar(progress, own.count if isinstance(run, Batch) else None) as bar:
            if isinstance(run, Batch):
                stopped = run.run(call, bar)
            else:
                stopped = run.run(counted(bar, call, lambda run: {"cost": plain(own, run.now("cost"))}))
    except KeyboardInterrupt:
        if not run.begun:
            raise
        stopped = INTERRUPTED
    except Exception as error:
        if run.begun:
            annotate(error, result(run, INTERRUPTED)[0])
        raise
    return result(run, stopped)


def _point(own: Residuals) -> Callable[[Any], Any]:
    return lambda run: tree_of(own, run.now("x"))


def _shown(own: Residuals) -> Callable[[Any, Any], OptimizeResult]:
    """Return what a callback sees of a run at x."""

    def shown(run: Any, x: Any) -> OptimizeResult:
        cost, nit = plain(own, run.now("cost")), plain(own, run.now("nit"))
        return OptimizeResult(x=x, cost=cost, nit=nit, nfev=run.nfev)

    return shown
