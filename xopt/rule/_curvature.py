"""Estimates of the curvature that come between steps, in pure form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class TakesCurvature(ABC):
    """What rules and chains do with an estimate of the diagonal of the Hessian."""

    __slots__ = ()

    @abstractmethod
    def _keeping(self, state: Any) -> tuple[Any, Any, dict[str, Any]]:
        """Return the rule that keeps a state as it was asked to, the state as that rule knows it, and what said so."""

    def update_curvature(self, params: Any, curvature: Any, state: Any) -> Any:
        """Return the state with an estimate of the diagonal of the Hessian, for rules that ask for one: Sophia.

        Pure, and no step: whoever trains calls it every ten steps or so, before a step, at the parameters of that step.

        Parameters
        ----------
        params, state
            As for :meth:`apply`.
        curvature
            A tree like the parameters, as :func:`xopt.hutchinson` makes it: the second derivatives of the function
            whose gradients the steps are given. Shapes, dtypes, library and device are those of gradients; of complex
            parameters it is real, but with ``complex="split"``, where it has that of the real part for a real part and
            that of the imaginary part for an imaginary one. Half-precision parameters may have one of float32. None
            leaves the state of its parameter alone; parameters of other rules in :class:`~xopt.Groups`, and frozen
            ones, take no notice.

        Returns
        -------
        State
            New arrays in the slots that it changes, the others as they are.

        Raises
        ------
        TypeError
            For a rule that keeps no curvature.
        ValueError, TypeError
            When anything does not fit; the message names the path and both sides.

        Notes
        -----
        The hyperparameters are those of the step that comes. With ``maximize=True`` the sign changes, as that of a
        gradient does. Nothing else that stands in front of the rule sees the estimate: it is not clipped, accumulated,
        divided by the scale of a loss or looked at for NaN.

        Examples
        --------
        >>> import numpy as np
        >>> import xopt
        >>> rule, w = xopt.Sophia(lr=0.1, b1=0.0, b2=0.0, gamma=1.0), np.asarray([1.0, 1.0])
        >>> state = rule.update_curvature(w, np.asarray([2.0, 20.0]), rule.init(w))
        >>> rule.apply(w, np.asarray([1.0, 1.0]), state)[0]
        array([0.95 , 0.995])
        """
        from xopt.rule import _run

        rule, state, recorded = self._keeping(state)
        slots = _run.observed(rule._chains, params, curvature, state)
        return state._replace(slots={**slots, **recorded})
