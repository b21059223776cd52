"""Components of a chain that need whole arrays: gradients clipped or centred unit by unit, or with noise."""

from __future__ import annotations

from typing import Any, Literal

from xopt import random
from xopt.rule import Array, H, Hyper, Transform, hyper, static, unchanged
from xopt.rule._whole_array import at_least, mean, norm


def _unit_axes(units: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes of what one unit is given; all of them where the array is a vector."""
    rank = len(shape)
    if units == "first":
        return tuple(range(1, rank)) if rank > 1 else tuple(range(rank))
    if sum(n != 1 for n in shape) < 2:
        return tuple(range(rank))
    return (0,) if rank == 3 else tuple(range(rank - 1))


class AdaptiveGradientClip(Transform):
    r"""Adaptive gradient clipping: the norm of each unit's gradient relative to its weights (Brock et al. 2021).

    ::

        n = limit · max(‖p‖₂, ε)                     of the weights of one unit
        g ← g · n / max(‖g‖₂, n)

    Parameters
    ----------
    limit
        Largest ratio of the norms, > 0.
    eps
        ε > 0, least norm of the weights, so that what starts at 0 can move.
    units
        Which axis counts the units. ``"first"``: weights stored as (outputs, inputs, …) (torch, timm); ``"last"``:
        (inputs, outputs) or (height, width, inputs, outputs) (optax, Keras), of three axes the last two. A vector is
        one unit.

    Notes
    -----
    No state. optax has units as with "last", timm as with "first". A NaN stays in its unit.

    References
    ----------
    A. Brock, S. De, S. L. Smith, K. Simonyan (2021), High-performance large-scale image recognition without
    normalization, arXiv:2102.06171, equation 3.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule = xopt.chain(xopt.AdaptiveGradientClip(0.1), xopt.SGD(lr=1.0))
    >>> w = np.asarray([[3.0, 4.0], [0.6, 0.8]])
    >>> rule.apply(w, np.asarray([[0.0, 9.0], [0.0, 0.01]]), rule.init(w))[0]
    array([[3.  , 3.5 ],
           [0.6 , 0.79]])
    """

    limit: Hyper = hyper(default=1e-2, gt=0)
    eps: Hyper = hyper(default=1e-3, gt=0)
    units: Literal["first", "last"] = "first"
    elementwise = False

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        axes = _unit_axes(h.units, p.shape)
        most = h.limit * at_least(xp, norm(xp, p, axes), h.eps)
        return g * (most / xp.maximum(norm(xp, g, axes), most))


class Centralize(Transform):
    r"""Gradient centralization: subtract from the gradient of each unit its mean (Yong et al. 2020).

    ::

        g ← g - mean(g)                              of one unit; vectors stay

    Parameters
    ----------
    units
        Which axis counts the units. ``"first"``: weights stored as (outputs, inputs, …) (torch; also ``optax``, which
        takes the mean over all axes but the first whatever the weights); ``"last"``: (…, inputs, outputs).

    Notes
    -----
    No state.

    References
    ----------
    H. Yong, J. Huang, X. Hua, L. Zhang (2020), Gradient centralization: a new optimization technique for deep neural
    networks, arXiv:2004.01461, equation 1.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.chain(xopt.Centralize(), xopt.SGD(lr=1.0)), np.zeros((2, 3))
    >>> rule.apply(w, np.asarray([[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]]), rule.init(w))[0]
    array([[ 1.,  0., -1.],
           [ 2.,  1., -3.]])
    """

    units: Literal["first", "last"] = "first"
    elementwise = False

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        if g.ndim < 2:
            return g
        return g - mean(xp, g, tuple(range(1, g.ndim) if h.units == "first" else range(g.ndim - 1)))


class AddNoise(Transform):
    r"""Gradient noise: add Gaussian noise, less of it in every step (Neelakantan et al. 2015, arXiv:1511.06807).

    ::

        g ← g + σ·z,   σ² = η / tᵞ,   z standard normal

    Parameters
    ----------
    eta
        Variance η of the noise of the first step, ≥ 0.
    gamma
        Exponent γ ≥ 0 of its decay.
    seed
        0 to 2³² - 1.

    Notes
    -----
    No state: z is a function of the seed, the step, the place of the array in the tree and the place of the element, so
    a resumed run goes on with the same noise, on any library up to the last bits. Of a complex gradient E\|z\|² = 1.
    Where the step is an array of float32, on JAX, it counts to 2²⁴. optax has the same variance and JAX's numbers.

    References
    ----------
    A. Neelakantan et al. (2015), Adding gradient noise improves learning for very deep networks, arXiv:1511.06807,
    equation 1.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.chain(xopt.AddNoise(0.01), xopt.SGD(lr=1.0)), np.zeros(10_000)
    >>> w, _ = rule.apply(w, w, rule.init(w))
    >>> float(w.std().round(2))
    0.1
    """

    eta: Hyper = hyper(default=1e-2, ge=0)
    gamma: Hyper = hyper(default=0.55, ge=0)
    seed: int = static(default=0, ge=0, le=2**32 - 1)
    elementwise = False
    steady = staticmethod(unchanged)

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        return {"sigma": xp.sqrt(h.eta / h.t**h.gamma)}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return g + h.sigma * random.normal(g, (h.seed, h.leaf), h.t)
