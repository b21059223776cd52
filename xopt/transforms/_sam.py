"""Sharpness-aware minimization: the gradient at the worst point nearby."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from xopt import _arrays
from xopt._arrays.layout import Layout
from xopt._engine.block import block
from xopt.rule import Array, Chain, Component, H, Hyper, abs2, hyper, static


class SAM(Component):
    r"""Sharpness-aware minimization (SAM): the gradient where the loss is worst nearby (Foret 2021; ASAM, Kwon 2021).

    ::

        e ← ρ·T²g / ‖T g‖₂       over the whole tree; T = 1, with adaptive=True T = |p| + η
        the gradient at p + e

    Parameters
    ----------
    rho
        Radius ρ ≥ 0. The papers take 0.05; with adaptive=True ten times as much.
    adaptive
        Make the radius of each element proportional to its size.
    eta
        η ≥ 0, in the unit of the parameters; only with adaptive=True.

    Notes
    -----
    No state, and no component of a chain: it asks for gradients at two points, so it takes the function that returns
    them. Any rule takes the step. The norm is summed in float64, as by :class:`~xopt.ClipByNorm`; where all gradients
    are 0 the point is p. A gradient that is None has no part in it. The same as ``optax.contrib.sam`` in its opaque
    mode with one step of normalized SGD.

    References
    ----------
    P. Foret, A. Kleiner, H. Mobahi, B. Neyshabur (2021), Sharpness-aware minimization for efficiently improving
    generalization, arXiv:2010.01412, Algorithm 1.

    J. Kwon, J. Kim, H. Park, I. K. Choi (2021), ASAM: adaptive sharpness-aware minimization for scale-invariant
    learning of deep neural networks, arXiv:2102.11600, Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> def gradient(w):
    ...     return 2 * w
    >>> w = np.asarray([3.0, 4.0])
    >>> xopt.SAM(rho=0.5).gradient(gradient, w)
    array([6.6, 8.8])
    """

    rho: Hyper = hyper(default=0.05, ge=0)
    adaptive: bool = False
    eta: float = static(default=0.01, ge=0)

    def _check(self) -> None:
        if "eta" in self._given and not self.adaptive:
            raise ValueError("SAM: eta does nothing without adaptive=True")
        if callable(self.rho):
            raise TypeError("SAM.rho: a schedule, but no steps are counted here; give a number")

    def _stands(self) -> tuple[str, ...]:
        return ()

    @staticmethod
    def reduce(h: H, xp: Any, p: Array, g: Array) -> dict[str, Array]:
        return {"total": abs2(xp, _scaled(h, xp, p, g))}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        norm = xp.sqrt(h.total)
        return {"scale": h.rho / xp.where(norm == 0, 1.0, norm)}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return h.scale * _scaled(h, xp, p, _scaled(h, xp, p, g))

    def perturb(self, params: Any, grads: Any) -> Any:
        """Return the point p + e. Pure; trees and errors are those of :meth:`~xopt.Rule.apply`."""
        method = Chain((self,))
        found, _ = method.apply(params, grads, method.init(params))
        return found

    def gradient(self, function: Callable[[Any], Any], params: Any) -> Any:
        """Return the gradient to take a step with.

        Parameters
        ----------
        function
            ``function(params) -> gradients``, called twice: with ``params`` and with another tree of new arrays.
        params
            An array or a tree of arrays, as for :meth:`~xopt.Rule.apply`.
        """
        return function(self.perturb(params, function(params)))

    def value_and_gradient(self, function: Callable[[Any], tuple[Any, Any]], params: Any) -> tuple[Any, Any]:
        """Return the same, and what else the function returns at ``params``.

        Parameters
        ----------
        function
            ``function(params) -> (value, gradients)``, like ``jax.value_and_grad(loss)``; with ``has_aux=True`` the
            value is a pair.
        params
            As for :meth:`gradient`.
        """
        value, grads = function(params)
        return value, function(self.perturb(params, grads))[1]

    @block
    def perturbed(self, params: Any, grads: Any) -> Generator[Any, None, None]:
        """Move the parameters themselves to p + e for the length of a ``with`` block: for models that own them.

        Afterwards, also after an exception, they are what they were to the bit. For libraries whose arrays can be
        written: NumPy, CuPy, torch, array-api-strict.

        Examples
        --------
        >>> import numpy as np
        >>> import xopt
        >>> w = np.asarray([3.0, 4.0])
        >>> with xopt.SAM(rho=0.5).perturbed(w, 2 * w):
        ...     print(w)
        [3.3 4.4]
        >>> w
        array([3., 4.])
        """
        layout = Layout(params, writable=True)
        if not layout.library.writes:
            raise TypeError(f"SAM.perturbed: arrays of {layout.library} cannot be written; use SAM.gradient")
        moved = Layout(self.perturb(params, grads)).leaves
        held = [_arrays.detached(p) for p in layout.leaves]
        old = [layout.xp.asarray(p, copy=True) for p in held]
        try:
            layout.library.overwrite(layout.leaves, moved)
            yield params
        finally:
            layout.library.overwrite(layout.leaves, old)


def _scaled(h: H, xp: Any, p: Array, g: Array) -> Array:
    return g * (xp.abs(p) + h.eta) if h.adaptive else g
