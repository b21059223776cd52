"""L-BFGS, one step at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import numpy as np

from xopt import _arrays
from xopt._arrays import tree as _tree
from xopt._arrays.layout import Layout
from xopt._public import public
from xopt.distributed._ranks import Ranks
from xopt.solvers._descent import Descent
from xopt.solvers._directions import LimitedMemory
from xopt.solvers._minimize import checked_layout
from xopt.solvers._objective import objective
from xopt.solvers._options import solver_options
from xopt.solvers._registry import SOLVERS
from xopt.solvers._result import OptimizeResult
from xopt.solvers._stopping import CONVERGED, Limits, Stop
from xopt.solvers._together import joined


@public
class LBFGS:
    r"""L-BFGS with a line search, one step at a time.

    ::

        d ← -H·g
        x ← x + α·d,  α of the line search

    with H of the last steps s and changes of the gradient y (Nocedal 1980). `minimize` takes the same steps and ends by
    itself; this is for loops of one's own, for functions that change, and for runs that go on another day.

    Parameters
    ----------
    history
        Steps to remember, ≥ 1.
    maxls, line_search, preconditioner, bounds, conjugate, comm, total, owned
        As in `minimize`. With bounds the steps are those of ``"lbfgs-b"``.

    Raises
    ------
    TypeError, ValueError
        For what does not fit, by name. What the function raises comes through; x, value and gradient are what they
        were, but the oldest of the steps has made room for the one that failed.

    Notes
    -----
    Memory: 2·history + 4 vectors, 2 more while a search takes several evaluations. The state is 2·history vectors, the
    parameters and the gradient.

    References
    ----------
    J. Nocedal (1980), Updating quasi-Newton matrices with limited storage, Mathematics of Computation 35.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> weights = np.asarray([1.0, 10.0, 100.0])
    >>> def fun(x):
    ...     return weights @ (x - 1) ** 2, 2 * weights * (x - 1)
    >>> solver = xopt.LBFGS(history=5)
    >>> solver.init(np.zeros(3))
    >>> result = solver.step(fun)
    >>> while result.success and result.optimality > 1e-6:
    ...     result = solver.step(fun)
    >>> solver.x.round(3), result.nit < 20
    (array([1., 1., 1.]), True)

    Save it, and go on with it:

    >>> import io
    >>> file = io.BytesIO()
    >>> np.savez(file, **solver.state())
    >>> other = xopt.LBFGS(history=5)
    >>> other.load(np.load(io.BytesIO(file.getvalue())))
    >>> other.step(fun).fun == solver.step(fun).fun
    True
    """

    def __init__(
        self,
        *,
        history: int = 10,
        maxls: int = 40,
        line_search: Literal["hager-zhang", "strong-wolfe", "armijo"] | Callable[..., Any] = "hager-zhang",
        preconditioner: Callable[[Any], Any] | None = None,
        bounds: Any = None,
        conjugate: bool = False,
        comm: Any = None,
        total: Literal["sum", "mean"] = "sum",
        owned: bool = False,
    ) -> None:
        self._ranks, self._total, self._owned = None if comm is None else Ranks(comm), total, owned
        with self._together():
            options = {"history": history, "maxls": maxls, "line_search": line_search, "preconditioner": preconditioner}
            self._options, self._bounds, self._conjugate = solver_options(options, SOLVERS["lbfgs"]), bounds, conjugate
        self._run: Descent | None = None
        self._warm = self._begun = False

    def _made(self, x0: Any) -> Descent:
        solver = SOLVERS["lbfgs" if self._bounds is None else "lbfgs-b"]
        layout = checked_layout(x0)
        together = joined(self._ranks, layout, solver, self._total, self._owned, self._options)
        own, limits = None if together is None else together.space(layout), Limits(math.inf, gtol=0.0)
        run = Descent(layout, solver, limits, bounds=self._bounds, own=own, **self._options)
        run.together = together
        return run

    def _together(self) -> AbstractContextManager[Any]:
        """Return a block that ends for all ranks if it does for one."""
        if self._ranks is None:
            return nullcontext()
        self._ranks.begin()
        return self._ranks

    def _running(self) -> Descent:
        if self._run is None:
            raise ValueError("LBFGS: nothing to go on with; call init(x0) or load(state) first")
        return self._run

    @property
    def x(self) -> Any:
        """The parameters, in memory of their own."""
        return self._running().x

    @property
    def gradient(self) -> Any:
        """The gradient there, in memory of its own; None before the first step."""
        return self._running().gradient if self._begun else None

    def init(self, x0: Any, *, warm: Mapping[str, Any] | None = None) -> None:
        """Begin at x0; nothing is evaluated yet.

        Parameters
        ----------
        x0
            An array, or a tree of arrays, as in `minimize`. It is not changed.
        warm
            A state, of a run on the same or on a similar function, perhaps within other bounds: its steps and changes
            of the gradient are used.
        """
        with self._together():
            run = self._made(x0)
            if warm is not None:
                self._check_form(run, warm)
                _memory(run).load(warm)
        self._run, self._warm, self._begun = run, warm is not None, False

    def step(self, value_and_grad: Callable[[Any], Any]) -> OptimizeResult:
        """Choose a direction and search along it.

        Parameters
        ----------
        value_and_grad
            A function of x that returns the value and the gradient, as in `minimize`. The first step evaluates it at
            x0. Later steps take value and gradient as the step before has left them; begin anew, with ``init(x,
            warm=state)``, where the function becomes another.

        Returns
        -------
        OptimizeResult
            ``fun, optimality, nit, nfev, njev, success, status, message``. ``optimality`` is the largest element of the
            gradient, within bounds that of x - P(x - g). ``status`` is 0 where a step was taken, or the gradient is 0;
            2 where none was found, or 20 steps have lowered neither value nor gradient: then it is the end, until
            ``init``.
        """
        with self._together():
            run = self._running()
            status, message = self._stepped(run, value_and_grad)
        return OptimizeResult(
            fun=run.value, optimality=run.largest, nit=run.nit, nfev=run.nfev, njev=run.nfev,
            success=status == CONVERGED, status=status, message=message,
        )  # fmt: skip

    def _stepped(self, run: Descent, value_and_grad: Callable[[Any], Any]) -> tuple[int, str]:
        run.fun = objective(value_and_grad, True, (), run.space.layout, self._conjugate)
        if run.together is not None:
            run.fun = run.together.fun(run.fun)
        if not self._begun:
            run.begin()
            if self._warm:
                _memory(run).refresh(run.here)
            self._begun = True
        try:
            run.iterate()
            return CONVERGED, f"a step of length {run.last[0]:.3g}" if run.last else ""
        except Stop as stop:
            return stop.status, "the gradient is 0" if stop.status == CONVERGED else stop.message

    def state(self) -> dict[str, Any]:
        """Return all that the next step depends on.

        A dictionary of copies: ``x`` as x0 is, ``vectors`` in its library, of shape (2·history + 2, number of reals),
        with bounds ``lower`` and ``upper``, and small arrays of NumPy.
        """
        run = self._running()
        if not self._begun:
            raise ValueError("state: no step was taken yet")
        found = _memory(run).state(run.here.x, run.here.g)
        sides = {} if run.box is None else {name: run.space.copied(side) for name, side in run.box.named()}
        preconditioned = np.asarray(run.preconditioner is not None)
        return {"x": run.x, **found, **sides, "preconditioned": preconditioned, "numbers": np.asarray(run.numbers())}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where another one was: the next step has the same bits.

        A state of another ``history``, within other ``bounds``, or where only one of both has a ``preconditioner`` is
        refused; ``init(x, warm=state)`` begins anew within other bounds.
        """
        with self._together():
            missing = [n for n in ("x", "numbers") if n not in state]
            if missing:
                raise ValueError(f"state: {', '.join(missing)} missing")
            run = self._made(state["x"])
            self._check_form(run, state)
            x, g = _memory(run).load(state)
            self._check_place(run, state, x)
            run.restore(x, g, state["numbers"])
        self._run, self._warm, self._begun = run, False, True

    def _check_form(self, run: Descent, state: Mapping[str, Any]) -> None:
        """Refuse the state of a solver of another form, or of other parameters."""
        sides = [n for n in ("lower", "upper") if n in state]
        missing = [n for n in ("x", "preconditioned") if n not in state] + ["lower", "upper"] * (len(sides) == 1)
        if missing:
            raise ValueError(f"state: {', '.join(n for n in missing if n not in sides)} missing")
        for what, theirs, mine in (
            ("bounds", bool(sides), run.box is not None),
            ("a preconditioner", bool(state["preconditioned"]), run.preconditioner is not None),
        ):
            if theirs != mine:
                has = "without", "with"
                raise ValueError(f"state: of a solver {has[theirs]} {what}, but this one is {has[mine]} {what}")
        layout, name = run.space.layout, 'state["x"]'
        for k, x in enumerate(_tree.match(layout.spec, state["x"], name, "x0")):
            if _arrays.library(x) is None:
                raise TypeError(f"{layout.path(k, name)}: a {type(x).__name__}, but it must be an array")
            was = f"shape {tuple(x.shape)}, dtype {_arrays.dtype_name(x)}"
            now = f"shape {layout.shapes[k]}, dtype {layout.dtypes[k].name}"
            if was != now:
                raise ValueError(f"{layout.path(k, name)}: {was}, but x0 has {now}")

    def _check_place(self, run: Descent, state: Mapping[str, Any], x: Any) -> None:
        """Refuse bounds that are others, and an x that is not that of the vectors, or not within bounds."""
        space = run.space
        rows = [
            ("x", "the vectors have", space.vector(space.layout.leaves), space.vector(Layout(space.tree(x)).leaves))
        ]
        if run.box is not None:
            sides = [(n, "this solver has", space.beside(state[n]), side) for n, side in run.box.named()]
            rows = [*sides, *rows, ("x", "within the bounds it is", x, run.box.project(space.copied(x)))]
        for name, owner, theirs, mine in rows:
            if tuple(theirs.shape) not in ((), (space.size,)):
                raise ValueError(f"state: {name} has shape {tuple(theirs.shape)}, but x0 needs ({space.size},)")
            if not bool(space.xp.all(theirs == mine)):
                was, now = (np.broadcast_to(space.host(v), space.size) for v in (theirs, mine))
                at = int(np.argmax(was != now))
                k, i = space.place(at)
                advice = "" if name == "x" else "; init(x, warm=state) begins anew within other bounds"
                raise ValueError(
                    f'{space.layout.path(k, f"""state["{name}"]""")}: element {i} is {was[at]}, but {owner} {now[at]}'
                    f"{advice}"
                )


def _memory(run: Descent) -> LimitedMemory:
    assert isinstance(run.method, LimitedMemory)
    return run.method
