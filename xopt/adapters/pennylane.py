"""A rule as a PennyLane optimizer: for variational circuits whose parameters are arrays of ``pennylane.numpy``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pennylane as qml

from xopt.rule import FunctionalOptimizer, State, check_method, refuse_curvature
from xopt.rule._names import learning_rates, qualified_names

__all__ = ["Optimizer"]


class Optimizer(qml.GradientDescentOptimizer):  # type: ignore[misc, unused-ignore]
    r"""A rule as a ``pennylane.GradientDescentOptimizer``: what is passed in is never written.

    Parameters
    ----------
    rule
        A rule or a chain. Norms and sums over all arrays are over all trainable arguments. A rule that needs the loss
        is given it.

    Raises
    ------
    TypeError, ValueError
        In a step, before the function is called: where nothing is trainable, where a trainable argument is no
        ``pennylane.numpy`` array, and where one is trainable that was not in the first step. After it, where there are
        more or fewer gradients than trainable arguments, and as :meth:`xopt.Rule.apply` does, in whose messages an
        argument is ``params[0]``, by its number.

    Notes
    -----
    One step is, with x the arguments that have ``requires_grad``, all at once::

        x, state ← rule(x, ∇f(x), state)

    New arrays are ``pennylane.numpy`` tensors with ``requires_grad``, in the dtype of the old ones; PennyLane's own
    optimizers make float64 of float32. Of a complex parameter, Autograd's gradient is the conjugate of the direction in
    which the function grows, and the conjugate of that is what the rule is given. An argument that has no
    ``requires_grad`` any more keeps its value and its state. An argument's path is its number, which globs of
    :class:`xopt.Groups` see. State can be pickled and copied with the optimizer.

    State is that of the rule.

    Examples
    --------
    >>> import pennylane as qml
    >>> from pennylane import numpy as np
    >>> import xopt
    >>> from xopt.adapters.pennylane import Optimizer
    >>> @qml.qnode(qml.device("default.qubit", wires=1))
    ... def energy(x):
    ...     qml.RX(x[0], wires=0)
    ...     qml.RY(x[1], wires=0)
    ...     return qml.expval(qml.Z(0))
    >>> x = np.array([0.1, 0.2], requires_grad=True)
    >>> opt = Optimizer(xopt.Adam(lr=0.1))
    >>> for _ in range(100):
    ...     x, before = opt.step_and_cost(energy, x)
    >>> bool(energy(x) < -0.99)
    True
    """

    def __init__(self, rule: FunctionalOptimizer) -> None:
        check_method(rule)
        refuse_curvature(rule, "PennyLane")
        self._rule = rule
        self._state: State | None = None
        self._trained: list[int] = []
        """The numbers of the arguments that the state is of."""

    @property
    def rule(self) -> FunctionalOptimizer:
        """The rule, with the step size as last set."""
        return self._rule

    @property
    def state(self) -> State | None:
        """The state, in which the parameters are a dict by the number of the argument; None before the first step."""
        return self._state

    @property
    def stepsize(self) -> Any:
        """The ``lr`` of the rule, a number or a schedule; it may be set to another."""
        rates = qualified_names(self._rule._parts())
        if "lr" not in rates:
            raise AttributeError(f"stepsize: {self._rule!r} has no single lr; it has {learning_rates(rates)}")
        return rates["lr"][0].part._value("lr")

    @stepsize.setter
    def stepsize(self, stepsize: Any) -> None:
        self._rule = self._rule._with({"lr": stepsize})

    def step_and_cost(
        self, objective_fn: Callable[..., Any], *args: Any, grad_fn: Callable[..., Any] | None = None, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Take one step, and return the new arguments and what the objective was before it.

        Parameters
        ----------
        objective_fn
            A function of the arguments that returns one number.
        *args
            The arguments; those with ``requires_grad`` are trained.
        grad_fn
            Returns the gradient, for each trainable argument one, in place of ``pennylane.grad``.
        **kwargs
            For the function and its gradient; these are never trained.

        Returns
        -------
        args, cost
            A list; of one argument, that alone.
        """
        self._check(args)
        grad, cost = self.compute_grad(objective_fn, args, kwargs, grad_fn=grad_fn)
        if cost is None:
            cost = objective_fn(*args, **kwargs)
        return _alone(self.apply_grad(grad, args, value=cost)), cost

    def step(
        self, objective_fn: Callable[..., Any], *args: Any, grad_fn: Callable[..., Any] | None = None, **kwargs: Any
    ) -> Any:
        """Take one step, and return the new arguments: as :meth:`step_and_cost`, without the cost.

        With ``grad_fn`` the function is only evaluated if the rule needs the loss.
        """
        self._check(args)
        grad, cost = self.compute_grad(objective_fn, args, kwargs, grad_fn=grad_fn)
        if cost is None and any(link.part.inputs for link in self._rule._all_links()):
            cost = objective_fn(*args, **kwargs)
        return _alone(self.apply_grad(grad, args, value=cost))

    def apply_grad(self, grad: Sequence[Any], args: Sequence[Any], *, value: Any = None) -> list[Any]:
        """Take one step with gradients that are known.

        Parameters
        ----------
        grad
            One gradient for each trainable argument.
        args
            The arguments.
        value
            The loss, for rules that need it.

        Returns
        -------
        list
            The new arguments.
        """
        now = self._check(args)
        if len(grad) != len(now):
            raise ValueError(f"grad: {len(grad)} gradients, but {len(now)} arguments are trainable: {_shown(now)}")
        params = {i: args[i] for i in self._trained or now}
        state = self._rule.init(params) if self._state is None else self._state
        given: dict[int, Any] = {i: _like(g, args[i]) for i, g in zip(now, grad, strict=True)}
        loss = None if value is None else np.asarray(value).item()
        grads = {i: given.get(i) for i in params}
        new, self._state = self._rule.apply(params, grads, state, value=loss)
        self._trained = [*params]
        return [new[i] if i in given else x for i, x in enumerate(args)]

    def averaged(self, *args: Any) -> Any:
        """Return what :meth:`xopt.Rule.eval_params` makes of the arguments, as :meth:`step` returned them.

        That are averages of those that are trained, for rules that have some, and copies of them for others.
        """
        if self._state is None:
            raise ValueError("averaged: no step was taken yet")
        found = self._rule.eval_params({i: args[i] for i in self._trained}, self._state)
        own = {i: qml.numpy.tensor(x, requires_grad=args[i].requires_grad) for i, x in found.items()}
        return _alone([own.get(i, x) for i, x in enumerate(args)])

    def reset(self) -> None:
        """Forget all steps."""
        self._state, self._trained = None, []

    def _check(self, args: Sequence[Any]) -> list[int]:
        """Return which arguments are trainable, or say what is wrong with them."""
        now = [i for i, x in enumerate(args) if getattr(x, "requires_grad", False)]
        make = "pennylane.numpy.array(x, requires_grad=True)"
        if not now:
            got = ", ".join(type(x).__name__ for x in args) or "nothing"
            raise TypeError(f"args: {got}, of which nothing is trainable; make it {make}")
        for i in now:
            if not isinstance(args[i], qml.numpy.tensor):
                kind = type(args[i])
                raise TypeError(
                    f"args[{i}]: a {kind.__module__.partition('.')[0]}.{kind.__name__}, but PennyLane's optimizers "
                    f"train {make}; for PyTorch and JAX there are other adapters of xopt"
                )
        late = [i for i in now if i not in self._trained]
        if self._trained and late:
            raise ValueError(
                f"args[{late[0]}]: trainable now, but the state is of {_shown(self._trained)}; call reset() to begin "
                f"anew"
            )
        return now


def _shown(numbers: Sequence[int]) -> str:
    return ", ".join(f"args[{i}]" for i in numbers)


def _alone(args: list[Any]) -> Any:
    return args[0] if len(args) == 1 else args


def _like(g: Any, x: Any) -> Any:
    """Return a gradient of Autograd as rules take it: in the dtype of its parameter, and not conjugated."""
    if isinstance(g, tuple) and len(g) == 1:  # as the documentation of grad_fn says
        [g] = g
    g = np.asarray(g)
    return np.conj(g).astype(x.dtype) if x.dtype.kind == "c" else g.astype(x.dtype) if g.dtype.kind in "iuf" else g
