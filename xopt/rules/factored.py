"""Rules with a second moment for each row and column, not for each element: Adafactor, SM3."""

from __future__ import annotations

import functools
from typing import Any, ClassVar, Literal

from xopt.rule import Array, H, Hyper, Moments, Rule, abs2, hyper, static
from xopt.rule._whole_array import at_least, mean, positive, real_zeros, rms

__all__ = ["SM3", "Adafactor"]


class Adafactor(Rule):
    r"""Adafactor (Shazeer & Stern 2018, arXiv:1804.04235, Algorithms 4 and 5).

    With β = 1 - t⁻ᶜ, and means over rows and columns of an array with two axes or more::

        r ← β·r + (1-β)·mean(|g|² + ε₁, columns)
        c ← β·c + (1-β)·mean(|g|² + ε₁, rows)
        V = r·cᵀ / mean(r)                           of other arrays V ← β·V + (1-β)·(|g|² + ε₁)
        U = g / √V
        U ← U / max(1, RMS(U)/d)
        p ← p - max(ε₂, RMS(p))·min(lr, 1/√t)·U

    Parameters
    ----------
    lr
        Largest relative step, ≥ 0.
    b2_decay
        Exponent c ≥ 0 of the decay.
    eps1
        ε₁ > 0, in the unit of the squared gradient. None: 1e-30, with "clamp" the epsilon of the dtype.
    eps2
        ε₂ ≥ 0, least scale of a parameter; None: 1e-3.
    d
        Largest root mean square of U, > 0; None for no clipping.
    b1
        Decay in [0, 1) of an average of the steps, which is then the step; None for none.
    relative_step
        Whether the rate falls as min(lr, 1/√t), or is lr.
    scale_parameter
        Whether the step is relative to max(ε₂, RMS(p)).
    factored
        Which two axes have rows and columns: the ``"last"`` (torch, Keras), the ``"largest"`` (optax) or ``"none"``.
    min_size
        Length that both must have, ≥ 1: 128 in optax.
    eps_mode
        ``"square"``: ε₁ is added to \|g\|² (the paper, optax, Keras). ``"clamp"``: V is at least ε₁² and mean(r) at
        least ε₁ (torch).
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`: ``"lr"`` in torch (of the given rate), ``"independent"`` in optax.

    Notes
    -----
    State: ``r`` and ``c``, real, with one of the two axes of length 1: 4·(rows + columns) bytes per float32 matrix. Of
    an array that is not factored ``v``, real, 4 bytes per float32 parameter. With b1 ``m``, shaped like the parameter,
    4 bytes.

    ``relative_step=False, scale_parameter=False`` is a factored RMSProp with the rate of Adam.

    References
    ----------
    N. Shazeer, M. Stern (2018), Adafactor: adaptive learning rates with sublinear memory cost, arXiv:1804.04235,
    Algorithms 4 and 5.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.Adafactor(), np.ones((2, 3))
    >>> w, state = rule.apply(w, 2 * w, rule.init(w))
    >>> w[0]
    array([0.99, 0.99, 0.99])
    >>> {name: x.shape for name, x in state.slots.items() if x is not None}
    {'0.adafactor.r': (2, 1), '0.adafactor.c': (1, 3)}
    """

    lr: Hyper = hyper(default=1e-2, ge=0)
    b2_decay: Hyper = hyper(default=0.8, ge=0)
    eps1: Hyper | None = hyper(default=None, gt=0)
    eps2: Hyper | None = hyper(default=None, ge=0)
    d: Hyper | None = hyper(default=1.0, gt=0, optional=True)
    b1: Hyper | None = hyper(default=None, ge=0, lt=1)
    relative_step: bool = True
    scale_parameter: bool = True
    factored: Literal["last", "largest", "none"] = "last"
    min_size: int = static(default=1, ge=1)
    eps_mode: Literal["square", "clamp"] = "square"
    elementwise = False
    moments: ClassVar[Moments] = {"m": "signed"}

    def _check(self) -> None:
        super()._check()
        if self.eps2 is not None and not self.scale_parameter:
            raise ValueError("Adafactor: eps2 does nothing with scale_parameter=False")
        if "min_size" in self._given and self.factored == "none":
            raise ValueError("Adafactor: min_size does nothing with factored='none'")

    metrics: ClassVar = {"effective_lr": "rho"}

    def _first(self, value: float | str) -> Any:
        absent = (self.b1 is None and value == "average") or (self.factored == "none" and value in ("rows", "columns"))
        return None if absent else super()._first(value)

    @staticmethod
    def rows(h: H, xp: Any, p: Array) -> Array | None:
        """Return the first means over rows."""
        axes = _axes(h, p.shape)
        return axes and real_zeros(xp, p, _without(p.shape, axes[1]))

    @staticmethod
    def columns(h: H, xp: Any, p: Array) -> Array | None:
        """Return the first means over columns."""
        axes = _axes(h, p.shape)
        return axes and real_zeros(xp, p, _without(p.shape, axes[0]))

    @staticmethod
    def full(h: H, xp: Any, p: Array) -> Array | None:
        """Return the first second moments of what is not factored."""
        return None if _axes(h, p.shape) else real_zeros(xp, p, p.shape)

    @staticmethod
    def average(h: H, xp: Any, p: Array) -> Array:
        """Return the first average of steps."""
        return xp.zeros_like(p)

    @staticmethod
    def host(h: H, xp: Any) -> dict[str, Any]:
        return {"rho": xp.minimum(h.lr, 1 / xp.sqrt(h.t)) if h.relative_step else h.lr}

    @staticmethod
    def update(
        h: H, xp: Any, p: Array, g: Array, r: Array = "rows", c: Array = "columns", v: Array = "full",
        m: Array = "average",
    ) -> tuple[Array, ...]:  # fmt: skip
        g2, new = abs2(xp, g), 1 / h.t**h.b2_decay
        g2 = g2 + (1e-30 if h.eps1 is None else h.eps1) if h.eps_mode == "square" else g2
        if r is None:
            v = (1 - new) * v + new * g2
            root = xp.sqrt(positive(xp, v))
            u = g / (root if h.eps_mode == "square" else at_least(xp, root, _eps(h, xp, v)))
        else:
            axes = _axes(h, p.shape)
            assert axes is not None
            row, column = axes
            r = (1 - new) * r + new * mean(xp, g2, (column,))
            c = (1 - new) * c + new * mean(xp, g2, (row,))
            u = _divided(h, xp, g, r, mean(xp, r, (row,)), c)
        u = u if h.d is None else u / at_least(xp, rms(xp, u) / h.d, 1.0)
        scale = at_least(xp, rms(xp, p), 1e-3 if h.eps2 is None else h.eps2) if h.scale_parameter else 1.0
        step = -h.rho * scale * u
        if h.b1 is not None:
            step = m = h.b1 * m + (1 - h.b1) * step
        return step, r, c, v, m


def _axes(h: H, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Return the axes of the rows and of the columns, if there are such."""
    if len(shape) < 2 or h.factored == "none":
        return None
    axes = range(len(shape))
    row, column = sorted(axes, key=shape.__getitem__)[-2:] if h.factored == "largest" else axes[-2:]
    return (row, column) if min(shape[row], shape[column]) >= h.min_size else None


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], 1, *shape[axis + 1 :])


def _eps(h: H, xp: Any, x: Array) -> Any:
    return float(xp.finfo(x.dtype).eps) if h.eps1 is None else h.eps1


def _divided(h: H, xp: Any, g: Array, r: Array, total: Array, c: Array) -> Array:
    """Divide by the root of r·c/total. The squares alone would underflow: r·c, and r/total of a row of zeros."""
    if h.eps_mode == "square":
        r, total, c = (xp.sqrt(positive(xp, x)) for x in (r, total, c))
        return g / (r / total) / c
    eps = _eps(h, xp, r)
    root = xp.sqrt(r) / xp.sqrt(at_least(xp, total, eps)) * xp.sqrt(c)
    return g / positive(xp, at_least(xp, root, eps))


class SM3(Rule):
    r"""SM3-II (Anil, Gupta, Koren & Singer 2019, arXiv:1901.11150): Adagrad with a sum for each slice of an array.

    The slices of all axes cover the array; an element i of it lies in one slice of each axis, with sums μ::

        v(i) = min μ(slices of i) + |g(i)|²          b2: b2·min μ + (1-b2)·|g|²
        μ(slice) ← max v(i in the slice)
        d = g / √(v + ε), 0 where v = 0
        p ← p - lr·d                                 momentum: m ← β·m + (1-β)·d,  p ← p - lr·m

    Parameters
    ----------
    lr
        Learning rate, ≥ 0.
    momentum
        β in [0, 1), 0.9 in the paper and optax; None for none.
    eps
        ε ≥ 0: 0 in the paper, 1e-8 in optax.
    b2
        Decay of the sums in [0, 1]; None: they grow, as in the paper.
    weight_decay, decay, peak_lr, maximize, complex, like
        As for every :class:`~xopt.Rule`.

    Notes
    -----
    State: ``v``, real, the sums of all axes end to end, 4·(rows + columns) bytes per float32 matrix; an array with one
    axis has 4 bytes per float32 parameter, and there it is Adagrad. With momentum ``m``, shaped like the parameter, as
    much again.

    References
    ----------
    R. Anil, V. Gupta, T. Koren, Y. Singer (2019), Memory-efficient adaptive optimization, arXiv:1901.11150, Algorithm
    SM3-II.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.SM3(lr=0.1), np.ones((2, 3))
    >>> w, state = rule.apply(w, 2 * w, rule.init(w))
    >>> w[0], state.slots["0.sm3.v"]
    (array([0.9, 0.9, 0.9]), array([4., 4., 4., 4., 4.]))
    """

    lr: Hyper = hyper(default=1e-1, ge=0)
    momentum: Hyper | None = hyper(default=None, ge=0, lt=1)
    eps: Hyper = hyper(default=0.0, ge=0)
    b2: Hyper | None = hyper(default=None, ge=0, le=1)
    elementwise = False

    def _first(self, value: float | str) -> Any:
        return None if value == "average" and self.momentum is None else super()._first(value)

    @staticmethod
    def sums(h: H, xp: Any, p: Array) -> Array:
        """Return the first sums of all slices."""
        return real_zeros(xp, p, (sum(p.shape) if p.ndim else 1,))

    @staticmethod
    def average(h: H, xp: Any, p: Array) -> Array:
        """Return the first average of steps."""
        return xp.zeros_like(p)

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, v: Array = "sums", m: Array = "average") -> tuple[Array, ...]:
        if 0 in p.shape:
            return xp.zeros_like(p), v, m
        low = functools.reduce(xp.minimum, _spread(xp, v, p.shape))
        full = low + abs2(xp, g) if h.b2 is None else h.b2 * low + (1 - h.b2) * abs2(xp, g)
        some = full != 0  # 0/0 = 0; a NaN stays one
        d = xp.where(some, g / xp.sqrt(xp.where(some, full + h.eps, xp.ones_like(full))), xp.zeros_like(g))
        if h.momentum is not None:
            d = m = h.momentum * m + (1 - h.momentum) * d
        return -h.lr * d, _gathered(xp, full), m


def _spread(xp: Any, v: Array, shape: tuple[int, ...]) -> list[Array]:
    """Cut the sums into those of each axis, so that they broadcast over the array."""
    found, start = [], 0
    for k, n in enumerate(shape):
        found.append(xp.reshape(v[start : start + n], (*(1,) * k, n, *(1,) * (len(shape) - k - 1))))
        start += n
    return found or [xp.reshape(v, ())]


def _gathered(xp: Any, full: Array) -> Array:
    """Return the largest element of each slice, axis after axis."""
    if full.ndim < 2:
        return xp.reshape(full, (-1,))
    axes = range(full.ndim)
    return xp.concat([xp.max(full, axis=tuple(j for j in axes if j != k)) for k in axes])
