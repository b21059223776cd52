"""Curvature for rules that ask for it: estimates of the diagonal of the Hessian, and optimizers that take them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from xopt import _arrays, random
from xopt._arrays.layout import Layout
from xopt._engine import curvature as _curvature
from xopt._engine.exclusive import ExclusiveAccess
from xopt._engine.executor import Executor
from xopt._public import public


@public
def hutchinson(
    hessp: Callable[[Any], Any],
    params: Any,
    *,
    seed: int = 0,
    step: Any = 0,
    complex: Literal["modulus", "split"] = "modulus",
) -> Any:
    r"""Return Hutchinson's estimate of the diagonal of the Hessian, from one product of the Hessian with a vector.

    ::

        u of ±1 at random,  ĥ = u ⊙ (H·u)            E ĥ = diag H

    Parameters
    ----------
    hessp
        ``hessp(u) -> H·u``, of trees like the parameters: the change of the gradient along u. ``lambda u:
        jax.jvp(gradient, (params,), (u,))[1]``, a product with ``torch.autograd.grad(gradients, params, u)``, or a
        quotient of differences, ``(gradient(params + t·u) - gradient(params)) / t``. It may return None for a
        parameter: then so is the estimate.
    params
        An array or a tree of arrays, as for :meth:`~xopt.Rule.apply`; no more than shapes and dtypes are looked at.
    seed
        0 to 2³² - 1.
    step
        A whole number from 0 to 2³² - 1, or a 0-d array of one: another one is another u. ``opt.steps_taken`` will do.
    complex
        Of complex parameters. ``"modulus"``: u of 1, i, -1 and -i, and ĥ = Re(ū·(H·u)), with the mean of the second
        derivatives along both parts; ``"split"``: u of ±1 ± i, and ĥ has the products of the real parts and of the
        imaginary ones. As in the rule.

    Returns
    -------
    Any
        A tree like the parameters, for ``update_curvature``.

    Raises
    ------
    ValueError, TypeError
        For what ``hessp`` returns that is not like the parameters, and for a seed or step out of range.

    Notes
    -----
    u is a function of the seed, the step, the place of the array in the tree and that of the element: the same on every
    library. The variance of one element of ĥ is the sum of the squares of the other elements of its row of H; the mean
    of estimates of several seeds has less. It is exact where H is diagonal.

    Gradients of complex parameters are ∂f/∂Re + i·∂f/∂Im, as everywhere here; where JAX differentiates, what comes back
    has to be conjugated.

    References
    ----------
    M. F. Hutchinson (1989), A stochastic estimator of the trace of the influence matrix for Laplacian smoothing
    splines.
    C. Bekas, E. Kokiopoulou, Y. Saad (2007), An estimator for the diagonal of a matrix.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> matrix = np.asarray([[3.0, 1.0], [1.0, 5.0]])
    >>> found = [xopt.hutchinson(lambda u: matrix @ u, np.zeros(2), step=t) for t in range(100)]
    >>> np.mean(found, axis=0)
    array([3., 5.])
    """
    if not callable(hessp):
        raise TypeError(f"hessp: a {type(hessp).__name__}, but it must be a function of u that returns H·u")
    for name, x in (("seed", seed), ("step", step)):
        whole = isinstance(x, int | np.integer) and not isinstance(x, bool)
        array = name == "step" and getattr(x, "shape", None) == () and "int" in str(getattr(x, "dtype", ""))
        if not (whole or array):
            raise TypeError(f"{name}: {x!r}, but it must be a whole number")
        if whole and not 0 <= x < 2**32:
            raise ValueError(f"{name}: {x}, but it must be from 0 to 2³² - 1")
    seed = int(seed)
    if complex not in ("modulus", "split"):
        raise ValueError(f'complex: {complex!r}, but it must be "modulus" or "split"')
    layout = Layout(params)

    def probe(k: int) -> Any:
        return _probe(layout, k, (seed, k), step, complex == "split")

    with layout.library.no_grad():
        u = layout.tree([probe(k) for k in range(len(layout.leaves))])
    found = layout.gradients(hessp(u), "hessp(u)")
    del u  # hessp may have written into it, so it is made anew
    with layout.library.no_grad():
        return layout.tree([None if x is None else _product(layout, probe(k), x, complex) for k, x in enumerate(found)])


def _probe(layout: Layout, k: int, key: tuple[int, int], step: Any, split: bool) -> Any:
    """Return numbers of modulus 1 in the form of a parameter; or both parts ±1."""
    xp, p = layout.xp, _arrays.detached(layout.leaves[k])
    if not (split and layout.dtypes[k].complex):
        return random.signs(p, key, step)
    re = xp.real(p)
    parts = random.signs(xp.stack([re, re]), key, step)
    return layout.library.join_complex(xp, parts[0, ...], parts[1, ...])


def _product(layout: Layout, u: Any, x: Any, complex: str) -> Any:
    xp, x = layout.xp, _arrays.detached(x)
    if not _arrays.is_complex(u):
        return u * x
    re, im = xp.real(u) * xp.real(x), xp.imag(u) * xp.imag(x)
    return layout.library.join_complex(xp, re, im) if complex == "split" else re + im


class CurvatureUpdates(ABC):
    """An optimizer, as far as it takes estimates of the curvature."""

    _executor: Executor
    _layout: Layout
    _access: ExclusiveAccess
    _slots: dict[str, list[Any]]
    _carry: dict[str, Any]
    _taken: Any
    _writes: bool

    @abstractmethod
    def _fit(self, what: str, torn: bool = False) -> None:
        """Refuse a call at the wrong time."""

    def update_curvature(self, curvature: Any) -> None:
        """Take an estimate of the diagonal of the Hessian into the state, for rules that ask for one: Sophia.

        No step: call it every ten steps or so, before a step, at the parameters as they are. Argument and errors are
        those of :meth:`xopt.Rule.update_curvature`. With ``comm``, every rank calls it, and estimates are added up, or
        averaged, as gradients are; their dtype is that of gradients.

        Raises
        ------
        ValueError, TypeError
            For an estimate that does not fit, and a rule that keeps no curvature. Nothing has been written then.
        RuntimeError
            As for :meth:`step`.

        Notes
        -----
        The new slots are computed by the library's own functions, whatever the runner, in new arrays.

        Examples
        --------
        >>> import numpy as np
        >>> import xopt
        >>> a, w = np.asarray([1.0, 100.0]), np.asarray([1.0, 1.0])
        >>> opt = xopt.Optimizer(w, xopt.Sophia(lr=0.5, b1=0.0, b2=0.0, gamma=1.0))
        >>> for t in range(3):
        ...     if t % 10 == 0:
        ...         opt.update_curvature(xopt.hutchinson(lambda u: a * u, opt.params, step=t))
        ...     _ = opt.step(a * opt.params)
        >>> opt.params
        array([0.125, 0.125])
        """
        with self._access.acquire("update_curvature"):
            self._fit("update_curvature")
            self._observe(curvature)

    def _observe(self, curvature: Any) -> None:
        self._take_curvature(_curvature.checked(self._executor, curvature))

    def _take_curvature(self, found: list[Any]) -> None:
        """Take estimates that were looked at."""
        executor, slots = self._executor, self._slots
        made = _curvature.observed(executor, self._taken, slots, self._carry, found)
        pairs = [(n, k, x) for n, column in made.items() for k, x in enumerate(column) if x is not None]
        with executor.writing:
            executor.writing.begin()
            if self._writes:
                self._layout.library.overwrite([slots[n][k] for n, k, _ in pairs], [x for *_, x in pairs])
            else:
                self._slots = {n: list(column) for n, column in slots.items()}
                for n, k, x in pairs:
                    self._slots[n][k] = x
