"""Minimize a function whose arrays stay where they are: SciPy's habits on any library and device."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from typing import Any, Literal

import numpy as np

from xopt import _arrays
from xopt._arrays import tree as _tree
from xopt._arrays.layout import Layout
from xopt._public import public
from xopt.distributed._ranks import Ranks
from xopt.rule import FunctionalOptimizer, check_method, refuse_curvature
from xopt.solvers._callbacks import annotate, called, counted, progress_bar
from xopt.solvers._descent import Descent
from xopt.solvers._differences import Differences, evaluations
from xopt.solvers._hessian import hessian
from xopt.solvers._objective import objective
from xopt.solvers._options import count, gathered, limits, solver_options
from xopt.solvers._registry import MethodName, bounded_names, chosen, hessian_names
from xopt.solvers._result import OptimizeResult
from xopt.solvers._run import Run
from xopt.solvers._space import is_numbers, numbers_of
from xopt.solvers._stepping import Stepping
from xopt.solvers._stopping import CONVERGED, INTERRUPTED, STOPPED, Stop
from xopt.solvers._together import joined
from xopt.solvers._trust import TrustRegion
from xopt.solvers.lanes._minimize import solve_many


@public
def minimize(
    fun: Callable[..., Any],
    x0: Any,
    rule: FunctionalOptimizer | None = None,
    *,
    method: MethodName | None = None,
    args: Any = (),
    jac: bool | Callable[..., Any] | Literal["2-point", "3-point"] | None = True,
    hess: Callable[..., Any] | None = None,
    hessp: Callable[..., Any] | None = None,
    conjugate: bool = False,
    bounds: Any = None,
    maxiter: float | None = None,
    tol: float | None = None,
    callback: Callable[..., Any] | None = None,
    progress: bool = False,
    options: Mapping[str, Any] | None = None,
    comm: Any = None,
    total: Literal["sum", "mean"] = "sum",
    owned: bool = False,
    batched: bool = False,
    data: Any = None,
) -> OptimizeResult:
    r"""Minimize a function of arrays, on the library and the device where these are.

    ``"lbfgs"`` goes along -H·g with an H of the last steps (Nocedal 1980), computed from the products of the vectors
    (Chen, Wang & Zhou 2014); ``"lbfgs-b"`` within bounds, to the minimum of the same model over the variables that are
    free, projected (Byrd, Lu, Nocedal & Zhu 1995; which are free: Bertsekas 1982); ``"cg"`` along conjugate gradients
    (Polak & Ribière 1969, with β ≥ 0); ``"gd"`` along -g; ``"bfgs"`` along -H·g with a matrix H (Broyden, Fletcher,
    Goldfarb & Shanno 1970); ``"newton-cg"`` along conjugate gradients on the Newton equations, truncated (Dembo &
    Steihaug 1983); each with a line search. ``"trust-ncg"`` and ``"trust-exact"`` go to the minimum of the model g·d +
    d·H·d/2, with the Hessian H, within a radius that changes: by conjugate gradients (Steihaug 1983), or exactly (Moré
    & Sorensen 1983). A rule takes its own steps.

    Parameters
    ----------
    fun
        ``fun(x, *args)`` returns the value, a number or an array of one, and the gradient, which is like x, but may
        have more or fewer dimensions of 1; beside NumPy also a list of numbers. It must not write into what it is
        given; it may keep that, but for a rule, which goes on in the same arrays.
    x0
        Where to begin: an array of any library, float32, float64 or complex (for a rule any parameters), or a tree of
        arrays. It is not changed. Integers become float64 (the widest floats of the library), and so do numbers and
        lists of numbers, as an array of NumPy.
    rule
        A rule or a chain. None: ``method``.
    method
        ``"lbfgs"`` (the default), ``"lbfgs-b"`` (the default with bounds), ``"cg"``, ``"gd"``, ``"bfgs"``,
        ``"newton-cg"``, ``"trust-ncg"`` or ``"trust-exact"``, in letters of either case; SciPy's ``"L-BFGS-B"`` is the
        first without bounds and the second with bounds.
    args
        More arguments of ``fun`` and ``jac``; what is no tuple is one argument.
    jac
        True: ``fun`` returns value and gradient. A function: ``jac(x, *args)`` returns the gradient, ``fun`` the value.
        False: ``fun`` returns the value, and torch or JAX differentiates it. ``"2-point"``, ``"3-point"``: ``fun``
        returns the value, and the gradient comes from differences of values, forward or central, of any library; that
        takes one or two evaluations more for each real number of x, each with a transfer. None: False for torch and
        JAX, else ``"2-point"``.
    hess
        For ``"newton-cg"``, ``"trust-ncg"`` and ``"trust-exact"``: ``hess(x, *args)`` returns the Hessian, a matrix
        (n, n) of the n numbers of x in the order of its leaves, or of the shape of x twice; where x is a tree, a tree
        of such trees, as ``jax.hessian`` and ``torch.func.hessian`` make them; beside NumPy also lists, a sparse matrix
        or a ``LinearOperator``. The mean of it and its transpose is taken. Not for complex x.
    hessp
        For the same: ``hessp(x, p, *args)`` returns the product of the Hessian with p. Both are like x; of complex x,
        the Hessian is that over real and imaginary parts. It must be symmetric. With neither, torch and JAX compute the
        products where ``jac`` is False, or None; else they are differences of gradients along p, an evaluation each.
        ``"trust-exact"`` makes its matrix of n products.
    conjugate
        The gradient of complex parameters is ∂f/∂Re + i·∂f/∂Im, torch's. True: the one that is given is the conjugate
        of that, JAX's; and so is what ``hessp`` returns. With ``jac=False`` and with differences nothing need be said.
    bounds
        A tuple ``(lower, upper)``, each None, a number, an array like x0, or a tree of these like x0; where x0 is one
        array also SciPy's forms: a list of pairs ``[(low, high), …]``, one per element, with None for what is open, or
        ``Bounds``. Equal bounds hold a variable still. Every evaluation is within them, those of differences too: they
        are rounded inwards to the dtype of the parameters, and x0 is moved there. Of complex parameters there are none.
    maxiter
        Iterations, ≥ 0, or infinite. None: 15,000, for a rule 1,000.
    tol
        ``gtol``, and for ``"lbfgs"`` and ``"lbfgs-b"`` also ``ftol``, as in SciPy, where these are not given.
    callback
        Called after every iteration with x, or, if its argument is called ``intermediate_result``, with an
        `OptimizeResult` of ``x, fun, nit, nfev``. It ends the run by returning True or raising ``StopIteration``.
    progress
        Show a bar (needs tqdm): of iterations; with ``batched`` of problems.
    options
        ``gtol`` (1e-5): stop when no element of the gradient is larger; within bounds, of x - P(x - g), with the
        projection P. ``ftol`` (0): when the value falls by no more, as a part of the larger of it and 1. ``xtol`` (0;
        not of rules): when no element moves by more, as a part of the largest and 1. ``maxfun``: evaluations.
        ``target``: stop at this value. ``max_time``: seconds. ``history`` (10; ``"lbfgs"``, ``"lbfgs-b"``): steps to
        remember. ``maxls`` (40): evaluations of a line search. ``line_search``: ``"hager-zhang"`` (where differences of
        values drown in roundings it looks at slopes: Hager & Zhang 2006), ``"strong-wolfe"`` (for ``"cg"``; the same,
        until the slope is flat on both sides, \|slope\| ≤ σ·\|slope at the start\| with σ = 0.9, for ``"cg"`` 0.1),
        ``"armijo"`` (backtracking), or a function, see below. ``preconditioner`` (not for ``"bfgs"`` and
        ``"trust-exact"``): a function g ↦ P·g of trees like x0, linear, symmetric and positive definite, within bounds
        diagonal, the same throughout, about the inverse of the Hessian, that does not write into g: directions are
        computed from P·g, as if x were C⁻¹·x with P = C·Cᵀ; and of ``"trust-ncg"`` the radius is that of C⁻¹·x.
        ``hess_inv0`` (``"bfgs"``): the matrix H to begin with; else it is ‖s‖/‖y‖·I of the last step, where no step has
        been. ``maxcg`` (1,000; ``"newton-cg"``, ``"trust-ncg"``): products of the Hessian an iteration, and no more
        than 20·n. ``initial_trust_radius`` (1), ``max_trust_radius`` (inf; SciPy's is 1,000) and ``eta`` (0.15, < 0.25;
        a step is taken if the value falls by more than this part of what the model says): of ``"trust-ncg"`` and
        ``"trust-exact"``, which have no ``maxls`` and no ``line_search``. ``every`` (10; rules): steps between looks at
        the value. ``runner`` (rules), see `Optimizer`. ``eps``: the step of differences, or one for each real number;
        else it is ε^(1/2) of the larger of \|x\| and 1, with three points ε^(1/3), for the coarser dtype of x and of
        the value. ``disp``: print how it ended. SciPy's ``maxcor``, ``maxfev`` and ``maxiter`` are ``history``,
        ``maxfun`` and the argument.
    comm
        Minimize the sum of the functions of many processes, each with its share of the data, see :doc:`/distributed`:
        a communicator as for `Optimizer`. All ranks call ``minimize``, and all return the same. Not with a rule, with
        differences, ``max_time``, or a method that uses the Hessian.
    total
        With ``comm``: ``"sum"`` or ``"mean"``.
    owned
        With ``comm``: whether x0 is a part of the parameters that only this rank has. Then values and products are
        added up, and no gradient is sent. Not with bounds or ``"bfgs"``.
    batched
        Whether the first axis of all arrays of x0 numbers independent problems. Then ``fun`` returns a value for each,
        and gradients with that axis, each has a line search (to the weak conditions of Wolfe) and an end of its own,
        and all that run are evaluated together. For ``"lbfgs"``, ``"lbfgs-b"`` and, for few parameters, ``"bfgs"``;
        without ``line_search``, ``hess_inv0`` and ``comm``; a ``preconditioner`` is of all lanes, and given the rows
        of ``data`` too. Bounds are those of one problem or of all; parameters at a bound that are pushed against it
        stay there in a step.
    data
        With ``batched``: a tree of arrays whose first axis numbers the problems, too. Then ``fun(x, data, *args)`` is
        given the rows of those that still run, as by `least_squares`.

    Returns
    -------
    OptimizeResult
        x of the same library, dtype, device and structure as x0. With ``batched`` ``fun``, ``nit``, ``status`` and
        ``success`` are arrays, and ``nfev`` counts calls.

    Raises
    ------
    TypeError, ValueError
        For what does not fit, by name; for a value at x0 that is infinite or NaN. What ``fun`` and other functions of
        the user raise comes through, the same object, with an ``intermediate_result`` where it can be given one: the
        best point so far; for a rule the last, whose value is then NaN.

    Notes
    -----
    Values are brought to the host once an evaluation, with all products that the method needs; with ``xtol`` once more
    an iteration; for ``"newton-cg"`` and ``"trust-ncg"`` once more a product of the Hessian, with a preconditioner
    twice; for ``"trust-exact"`` 2·n numbers a Hessian; with bounds once at the start, and a few times where a projected
    step would climb, which is rare; for a rule once in ``every`` steps; with ``batched`` how many still run, and
    with a preconditioner two numbers more. An interrupt (Ctrl-C) ends the run, with status 3.

    A line search is ``search(along, start, first, *, tol, maxls, sigma, longest)``: ``along(alpha)`` evaluates and
    returns a point with ``alpha``, ``value`` and ``slope``, as ``start`` is one; ``first`` is the length to try first,
    ``tol`` what values may be wrong by, ``sigma`` how flat the slope should become, ``longest`` the longest step, which
    is finite with bounds only. It returns one of the points, or None.

    Memory, in vectors of the size of x0: 2·history + 4 for ``"lbfgs"`` (2·history for the history; x and the gradient,
    before and after the step), 2 more in an iteration that takes several evaluations, 2 more with a preconditioner; for
    ``"lbfgs-b"`` 2 more than that, and the bounds; 2·n for ``"bfgs"``, 3·n more in its update; 4·n for
    ``"trust-exact"``; 14 for ``"newton-cg"`` and ``"trust-ncg"``, n more with ``hess``, 3 with a preconditioner; 5 to
    7 for the others; for a rule its state. What ``fun`` returns is copied, and not counted here. JAX, whose arrays
    cannot be written into, needs some more. A result with ``hess_inv`` keeps the history, which ``del result.hess_inv``
    gives back.

    References
    ----------
    J. Nocedal (1980), Updating quasi-Newton matrices with limited storage, Mathematics of Computation 35.

    W. Chen, Z. Wang, J. Zhou (2014), Large-scale L-BFGS using MapReduce, NIPS 27, Algorithm 3.

    R. H. Byrd, P. Lu, J. Nocedal, C. Zhu (1995), A limited memory algorithm for bound constrained optimization, SIAM
    Journal on Scientific Computing 16; J. L. Morales, J. Nocedal (2011), Remark on Algorithm 778, ACM Transactions on
    Mathematical Software 38. There a generalized Cauchy point tells which variables are free, one after the other;
    here, as in D. P. Bertsekas (1982), Projected Newton methods, SIAM Journal on Control and Optimization 20, they are
    those that are not at a bound with a slope that pushes against it.

    R. S. Dembo, T. Steihaug (1983), Truncated-Newton algorithms for large-scale unconstrained optimization,
    Mathematical Programming 26; T. Steihaug (1983), The conjugate gradient method and trust regions in large scale
    optimization, SIAM Journal on Numerical Analysis 20; J. J. Moré, D. C. Sorensen (1983), Computing a trust region
    step, SIAM Journal on Scientific and Statistical Computing 4, here from eigenvalues; J. Nocedal, S. J. Wright
    (2006), Numerical Optimization, Algorithms 4.1, 6.1 and 7.1.

    W. W. Hager, H. Zhang (2006), Algorithm 851: CG_DESCENT, ACM Transactions on Mathematical Software 32.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> def fun(x):
    ...     a, b = x[1] - x[0] ** 2, 1 - x[0]
    ...     return 100 * a**2 + b**2, np.stack([-400 * a * x[0] - 2 * b, 200 * a])
    >>> result = xopt.minimize(fun, np.asarray([-1.2, 1.0]))
    >>> result.x.round(4), result.success
    (array([1., 1.]), True)
    >>> xopt.minimize(fun, np.zeros(2), bounds=(None, 0.5)).x.round(4)
    array([0.5 , 0.25])
    >>> from scipy.optimize import rosen_hess
    >>> xopt.minimize(fun, np.asarray([-1.2, 1.0]), method="trust-exact", hess=rosen_hess).nit < result.nit
    True
    >>> xopt.minimize(lambda x: (x @ x, 2 * x), np.ones(3), xopt.Adam(lr=0.1), maxiter=500).fun < 1e-9
    True
    >>> y = np.linspace(1, 2, 1000)[:, None]
    >>> many = xopt.minimize(lambda x: (((x - y) ** 4)[:, 0], 4 * (x - y) ** 3), np.zeros((1000, 1)), batched=True)
    >>> bool(many.success.all()), float(abs(many.x - y).max()) < 0.02
    (True, True)
    """
    found, _ = solve(
        fun, x0, rule, method=method, args=args, jac=jac, hess=hess, hessp=hessp, conjugate=conjugate, bounds=bounds,
        maxiter=maxiter, tol=tol, callback=callback, progress=progress, options=options, comm=comm, total=total,
        owned=owned, batched=batched, data=data,
    )  # fmt: skip
    return found


def solve(*given: Any, comm: Any = None, **more: Any) -> tuple[OptimizeResult, KeyboardInterrupt | None]:
    """Do what `minimize` does; return also what interrupted it."""
    ranks = None if comm is None else Ranks(comm)
    with nullcontext() if ranks is None else ranks:
        return _solved(*given, ranks=ranks, **more)


def _solved(
    fun: Any, x0: Any, rule: FunctionalOptimizer | None, *, method: Any, bounds: Any, options: Any, callback: Any,
    ranks: Ranks | None, maxiter: Any = None, tol: Any = None, args: Any = (), jac: Any = True, hess: Any = None,
    hessp: Any = None, conjugate: bool = False, progress: bool = False, total: Any = "sum", owned: Any = False,
    batched: bool = False, data: Any = None,
) -> tuple[OptimizeResult, KeyboardInterrupt | None]:  # fmt: skip
    if rule is not None and method is not None:
        raise TypeError(f"method: {method!r}, but a rule is given too; choose one of both")
    solver = None if rule is not None else chosen(method, bounds is not None)
    if bounds is not None and (solver is None or not solver.bounds):
        what = "a rule, which xopt.Box behind it keeps within bounds" if solver is None else f"method {solver.name!r}"
        raise TypeError(f"bounds: given with {what}; {' or '.join(map(repr, bounded_names()))} has bounds")
    for name, function in (("hess", hess), ("hessp", hessp)):
        if function is not None and not (solver is not None and solver.hessian):
            what = "a rule, which does not use it" if solver is None else f"method {solver.name!r}"
            raise TypeError(f"{name}: given with {what}; {' or '.join(map(repr, hessian_names()))} uses it")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback: {callback!r}, but it must be a function")
    if not isinstance(batched, bool):
        raise TypeError(f"batched: {batched!r}, but it must be True or False")
    if batched:
        for name, x in {"a rule": rule, "comm": ranks, "owned": owned or None}.items():
            if x is not None:
                raise TypeError(f"batched: True, but not with {name}")
        found, interrupt = solve_many(
            fun, checked_layout(x0), method=method, jac=jac, args=args, conjugate=conjugate, bounds=bounds, data=data,
            maxiter=maxiter, tol=tol, options=options, callback=callback, progress=progress,
        )  # fmt: skip
        if (options or {}).get("disp"):
            print(f"{found.message}\n  {found.nfev} evaluations")
        return found, interrupt
    if data is not None:
        raise TypeError("data: goes with batched=True; one minimization has args")
    if rule is not None:
        check_method(rule)
        refuse_curvature(rule, "minimize")
    given = gathered(solver, options, maxiter, tol)
    when, layout, step = limits(given), checked_layout(x0), given.get("eps")
    together = joined(ranks, layout, solver, total, owned, given)
    run: Stepping | Descent | TrustRegion
    if solver is None:
        assert rule is not None
        both = objective(fun, jac, args, layout, conjugate, step)
        every = count("every", given.get("every", 10), 1)
        run = Stepping(both, layout, rule, when, every=every, runner=given.get("runner"))
    else:
        own = None if together is None else together.space(layout)
        if solver.trust:
            run = TrustRegion(layout, solver, when, **solver_options(given, solver))
        else:
            run = Descent(layout, solver, when, bounds=bounds, own=own, **solver_options(given, solver))
        run.fun = objective(fun, jac, args, layout, conjugate, step, run.box)
        if solver.hessian:
            run.use(hessian(run, run.space, fun, hess, hessp, args, jac, conjugate))
        if together is not None:
            if isinstance(run.fun, Differences):
                raise TypeError(f"jac: {jac!r}, but with comm each rank must return its gradient")
            run.fun, run.together = together.fun(run.fun), together
    if isinstance(run.fun, Differences):
        run.limits = when._replace(maxfun=max(1.0, when.maxfun / run.fun.cost))
    first = ranks is None or ranks.rank == 0
    found, interrupt = _run(run, callback, progress and first, when.maxiter)
    if given.get("disp") and first:
        show(found)
    return found, interrupt


def show(found: Any) -> None:
    """Print how a run ended."""
    print(f"{found.message}\n  value {found.fun:.8g}, {found.nit} iterations, {found.nfev} evaluations")


def checked_layout(x0: Any, name: str = "x0") -> Layout:
    """Find the arrays of x0, or say why they cannot be minimized over."""
    if is_numbers(x0):
        x0 = numbers_of(x0, name)
    leaves, spec = _tree.flatten(x0)
    if any(map(_is_whole, leaves)):
        x0 = _tree.unflatten(spec, [_floating(x) if _is_whole(x) else x for x in leaves])
    layout = Layout(x0, name=name)
    if layout.library.lazy:
        raise TypeError(
            f"{name}: an array of {layout.library}, which computes nothing until the end; a solver must look at values"
        )
    return layout


def _is_whole(x: Any) -> bool:
    """Whether something is an array of integers."""
    return _arrays.library(x) is not None and "int" in _arrays.dtype_name(x)


def _floating(x: Any) -> Any:
    """Return integers as float64, or as the widest that there is."""
    xp = _arrays.namespace(x)
    x = np.asarray(x) if isinstance(x, np.generic) else x
    return _arrays.cast(xp, x, getattr(xp, _arrays.widest_real(xp, _arrays.device(x), "float32")))


def _run(run: Run, callback: Any, progress: bool, total: float) -> tuple[OptimizeResult, KeyboardInterrupt | None]:
    own = None if callback is None else called(callback, operator.attrgetter("x"), _shown)
    begun = False
    with progress_bar(progress, total) as bar:
        call = counted(bar, own, lambda run: {"fun": float(run.value)})
        try:
            run.begin()
            begun = True
            while True:
                run.iterate()
                enough = call is not None and call(run)
                if run.together.any(enough) if run.together is not None else enough:
                    raise Stop(STOPPED, "stopped: by the callback")
        except Stop as stop:
            if stop.status not in (CONVERGED, STOPPED):
                run.settle()
            return _result(run, stop.status, stop.message), None
        except KeyboardInterrupt as interrupt:
            if run.together is not None:
                run.together.ranks.tell(interrupt)
            run.settle()
            return _result(run, INTERRUPTED, "stopped: interrupted"), interrupt
        except Exception as error:
            if begun:
                with suppress(Exception):  # some exceptions cannot be written to, and the user is owed this one
                    run.settle()
                    annotate(error, _result(run, INTERRUPTED, f"stopped: by a {type(error).__name__}"))
            raise


def _result(run: Run, status: int, message: str) -> OptimizeResult:
    value = float(run.value)
    more = {"hess_inv": run.hess_inv(), "hess": run.hess()}
    more |= {"nhev": None if run.hessian is None else run.hessian.nhev}
    return OptimizeResult(
        x=run.x, fun=value, jac=None if math.isnan(value) else run.gradient, nit=run.nit,
        nfev=evaluations(run.fun, run.nfev), njev=run.nfev, status=status, success=status == CONVERGED,
        message=message, **{name: x for name, x in more.items() if x is not None},
    )  # fmt: skip


def _shown(run: Run, x: Any) -> OptimizeResult:
    """Return what a callback sees of a run at x."""
    return OptimizeResult(x=x, fun=float(run.value), nit=run.nit, nfev=evaluations(run.fun, run.nfev))
