"""Components behind the step that put the new parameters back into a set, or take the proximal step of a penalty."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from xopt.rule import Array, H, Hyper, Transform, abs2, hyper, is_complex, static, unchanged

__all__ = ["L1", "L2", "Ball", "Box", "NonNegative", "Project", "Simplex"]


class Box(Transform):
    r"""Box constraint: keep every element within [low, high].

    ::

        p ← min(max(p, low), high)

    Parameters
    ----------
    low, high
        Bounds, low ≤ high; None: no bound on that side. At least one is given. If schedules cross, high wins.

    Notes
    -----
    No state. Real parameters only. NaN stays NaN. The bounds are rounded to the nearest numbers of the dtype of the
    parameters, and no result is outside those; so it may be beyond a bound as it was written by half a unit in the last
    place, and with ``rounding="stochastic"`` by a unit. `minimize` and `LBFGS` round their bounds inwards. The same as
    ``optax.projections.projection_box`` of every new parameter.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.chain(xopt.SGD(lr=1.0), xopt.Box(-1.0, 1.0)), np.asarray([0.0, 0.5])
    >>> rule.apply(w, np.asarray([3.0, 0.25]), rule.init(w))[0]
    array([-1.  ,  0.25])
    """

    low: Hyper | None = hyper(default=None)
    high: Hyper | None = hyper(default=None)
    on_params = True

    def _check(self) -> None:
        if self.low is None and self.high is None:
            raise ValueError("Box: low and high are both None; give one of them")
        if isinstance(self.low, float) and isinstance(self.high, float) and self.low > self.high:
            raise ValueError(f"Box: low={self.low!r} is above high={self.high!r}")

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        g = g if h.low is None else xp.maximum(g, h.low)
        return g if h.high is None else xp.minimum(g, h.high)


class NonNegative(Transform):
    r"""Nonnegativity constraint: make negative elements 0.

    ::

        p ← max(p, 0)

    Notes
    -----
    No state. Real parameters only. NaN stays NaN. The same as ``optax.projections.projection_non_negative``.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.chain(xopt.SGD(lr=1.0), xopt.NonNegative()), np.asarray([1.0, 1.0])
    >>> rule.apply(w, np.asarray([3.0, 0.5]), rule.init(w))[0]
    array([0. , 0.5])
    """

    on_params = True

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return xp.maximum(g, 0.0)


class L1(Transform):
    r"""L1 regularization by soft thresholding: the proximal step of ‖p‖₁, which makes parameters exactly 0.

    ::

        p ← sign(p)·max(|p| - τ·k, 0)     argmin over q of τ·k·‖q‖₁ + ½·‖q - p‖₂²

    Parameters
    ----------
    strength
        τ ≥ 0: lr·λ behind ``SGD(lr)``, with any momentum, for the minimum of f(p) + λ·‖p‖₁. Where lr is a schedule,
        give τ one too.

    Notes
    -----
    No state. Of a complex element the modulus shrinks and the phase stays. NaN stays NaN.

    k is what the components in front make of a gradient that stays the same: 1 for plain ``SGD`` (ISTA), 1/(1-μ) with
    momentum μ, whose steps become as many times longer, and the factor of a ``Scale``. With k the point where the
    steps end is the minimum. In front may stand ``SGD``, clips (which must not act at the end), ``Scale``,
    ``AddDecay``, ``AddNoise``, averages and another ``L1``; of two penalties ``L1`` comes first. Constraints and
    ``Lookahead`` stand behind: ``Box`` and ``NonNegative`` keep the minimum right, and so does ``Ball``.

    Raises
    ------
    ValueError
        By ``chain``, or when the parameters are known, behind any other component: the steps of adaptive rules, and of
        rules of signs, norms and matrices, are no fixed multiple of the gradient, and no one weight is right.

    References
    ----------
    I. Daubechies, M. Defrise, C. De Mol (2004), An iterative thresholding algorithm for linear inverse problems with a
    sparsity constraint, arXiv:math/0307152.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.chain(xopt.SGD(lr=1.0), xopt.L1(0.5)), np.asarray([2.0, 0.25, -1.0])
    >>> rule.apply(w, np.zeros(3), rule.init(w))[0]
    array([ 1.5,  0. , -0.5])
    """

    strength: Hyper = hyper(ge=0)
    on_params = True
    _penalty = "strength"
    steady = staticmethod(unchanged)

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        if is_complex(g):
            a = xp.maximum(xp.abs(g), h.strength)
            return g * (1 - h.strength / xp.where(a == 0, 1.0, a))
        return g - xp.minimum(xp.maximum(g, -h.strength), h.strength)


class L2(Transform):
    r"""L2 regularization by shrinking: the proximal step of ½·‖p‖₂².

    ::

        p ← p / (1 + τ·k)       argmin over q of ½·τ·k·‖q‖₂² + ½·‖q - p‖₂²

    Parameters
    ----------
    strength
        τ ≥ 0: lr·λ behind ``SGD(lr)``, with any momentum, is an implicit step of weight decay λ.

    Notes
    -----
    No state. p - p·τk/(1 + τk), so that a small τ is not lost in float32. k, and what may stand in front, is as for
    :class:`L1`. For decoupled decay behind an adaptive rule, rules have ``weight_decay=`` and ``decay="lr"``.

    Raises
    ------
    ValueError
        As for :class:`L1`.

    References
    ----------
    N. Parikh, S. Boyd (2014), Proximal algorithms, Foundations and Trends in Optimization 1(3), section 6.1.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.chain(xopt.SGD(lr=1.0), xopt.L2(1.0)), np.asarray([2.0])
    >>> rule.apply(w, np.zeros(1), rule.init(w))[0]
    array([1.])
    """

    strength: Hyper = hyper(ge=0)
    on_params = True
    _penalty = "strength"

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return g - g * (h.strength / (1 + h.strength))


class Ball(Transform):
    r"""Projection onto a ball: keep the Euclidean norm of the parameters at most ``radius``.

    ::

        p ← p · radius / max(‖p‖₂, radius)

    Parameters
    ----------
    radius
        Largest norm, > 0.
    over
        ``"tree"``: of all parameters together. ``"leaf"``: of each array.

    Notes
    -----
    No state. The norm is summed in float64 and rounded once; that of the result is at most ``radius`` up to the
    rounding of its elements. Arrays whose gradient is None have no part in it. Behind a rule with a metric of its own,
    such as ``Adam``, the parameters end in the ball, but not at the minimum there: that needs the nearest point in the
    metric of the rule. The same as ``optax.projections.projection_l2_ball``.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.chain(xopt.SGD(lr=1.0), xopt.Ball(1.0)), np.asarray([0.0, 0.0])
    >>> rule.apply(w, np.asarray([3.0, -4.0]), rule.init(w))[0]
    array([-0.6,  0.8])
    """

    radius: Hyper = hyper(gt=0)
    over: Literal["tree", "leaf"] = "tree"
    scope = "over"
    on_params = True

    @staticmethod
    def reduce(h: H, xp: Any, p: Array, g: Array) -> dict[str, Array]:
        return {"total": abs2(xp, g)}

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        return {"scale": h.radius / xp.maximum(xp.sqrt(h.total), h.radius)}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return h.scale * g


class Simplex(Transform):
    r"""Projection onto the simplex: nonnegative elements with a given sum.

    ::

        p ← max(p - θ, 0)       with the one θ that makes the sum ``total``

    Parameters
    ----------
    total
        The sum, > 0: 1 for probabilities.
    axis
        Along which axis of an array the sum is taken; None: all elements of the array together.

    Notes
    -----
    No state. Real parameters only. Behind a rule with a metric of its own the parameters end in the simplex, but not at
    the minimum there, as with :class:`Ball`. An element is never negative; the sum is right up to rounding. θ is found
    by sorting, so the chain is computed with whole arrays, by the eager runner, and not on dask. The same as
    ``optax.projections.projection_simplex`` of one array.

    References
    ----------
    J. Duchi, S. Shalev-Shwartz, Y. Singer, T. Chandra (2008), Efficient projections onto the l1-ball for learning in
    high dimensions, ICML, Figure 1.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.chain(xopt.SGD(lr=1.0), xopt.Simplex()), np.asarray([0.5, 0.5])
    >>> rule.apply(w, np.asarray([0.25, 0.0]), rule.init(w))[0]
    array([0.375, 0.625])
    """

    total: Hyper = hyper(default=1.0, gt=0)
    axis: int | None = static(default=None)
    on_params = True
    elementwise = False

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        if is_complex(g):
            raise TypeError(f"Simplex: a complex parameter of shape {tuple(g.shape)}, but its elements must be real")
        if h.axis is not None and not -g.ndim <= h.axis < g.ndim:
            raise ValueError(f"Simplex: axis {h.axis}, but a parameter has shape {tuple(g.shape)}")
        x = xp.reshape(g, (-1,)) if h.axis is None else xp.moveaxis(g, h.axis, -1)
        if 0 in x.shape:
            return g
        x = x - xp.max(x, axis=-1, keepdims=True)
        total = xp.ones_like(x[..., :1]) * h.total
        above = getattr(xp, "cumulative_sum", None) or xp.cumsum
        theta = xp.max((above(-xp.sort(-x, axis=-1), axis=-1) - total) / above(xp.ones_like(x), axis=-1), axis=-1)
        some = x > theta[..., None]  # who is left; their sum once more, without the error of a running one
        count = xp.sum(xp.astype(some, x.dtype), axis=-1, keepdims=True)
        theta = (xp.sum(xp.where(some, x, xp.zeros_like(x)), axis=-1, keepdims=True) - total) / count
        x = xp.maximum(x - theta, xp.zeros_like(x))
        return xp.reshape(x, g.shape) if h.axis is None else xp.moveaxis(x, -1, h.axis)


class Project(Transform):
    r"""Projected gradient: project the new parameters by a function of your own, array by array.

    Parameters
    ----------
    function
        ``function(p)``: takes an array of the library at hand, in the dtype of the arithmetic, and returns one of its
        shape. Under ``jax.jit`` it is traced.

    Notes
    -----
    No state. The chain is computed with whole arrays, by the eager runner. A projection ends at a minimum of the set
    behind ``SGD``, behind other rules only if the set is one of elements, as for ``Box``. With optax:
    ``Project(optax.projections.projection_l1_ball)``.

    Raises
    ------
    ValueError
        By a step, if another shape comes back.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> def to_sum_zero(p):
    ...     return p - p.mean()
    >>> rule, w = xopt.chain(xopt.SGD(lr=1.0), xopt.Project(to_sum_zero)), np.asarray([1.0, 2.0, 3.0])
    >>> rule.apply(w, np.zeros(3), rule.init(w))[0]
    array([-1.,  0.,  1.])
    """

    function: Callable[[Any], Any] = static()
    on_params = True
    elementwise = False

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        made = h.function(g)
        if tuple(getattr(made, "shape", ("none",))) != tuple(g.shape):
            what = f"shape {tuple(made.shape)}" if hasattr(made, "shape") else f"a {type(made).__name__}"
            raise ValueError(f"Project: {h.function!r} returned {what}, but the parameter has shape {tuple(g.shape)}")
        return made
