"""Components of a chain that change a gradient, or the step of a rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from xopt.rule import Array, H, Hyper, Transform, abs2, hyper, is_complex, unchanged


class ClipByValue(Transform):
    r"""Gradient clipping by value: every element in [-limit, limit]; of a complex one, the modulus.

    Parameters
    ----------
    limit
        Largest value, > 0, in the unit of what is clipped.

    Notes
    -----
    No state. NaN stays NaN. The same as ``torch.nn.utils.clip_grad_value_`` and ``optax.clip``, which take no
    complex arrays.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.chain(xopt.ClipByValue(1.0), xopt.SGD(lr=1.0)), np.asarray([0.0, 0.0])
    >>> rule.apply(w, np.asarray([3.0, -0.5]), rule.init(w))[0]
    array([-1. ,  0.5])
    """

    limit: Hyper = hyper(gt=0)
    steady = staticmethod(unchanged)

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        if is_complex(g):
            return g * (h.limit / xp.maximum(xp.abs(g), h.limit))
        return xp.minimum(xp.maximum(g, -h.limit), h.limit)


def _clip(h: H, xp: Any) -> dict[str, Any]:
    norm = xp.sqrt(h.total)
    return {"norm": norm, "scale": h.max_norm / xp.maximum(norm, h.max_norm)}


class ClipByNorm(Transform):
    r"""Gradient clipping by norm: scale each array to a Euclidean norm of at most ``max_norm``.

    ::

        g ← g · max_norm / max(‖g‖₂, max_norm)       for each leaf of the tree

    Parameters
    ----------
    max_norm
        Largest norm, > 0.

    Notes
    -----
    No state. The norm is summed in float64 in a fixed order and rounded once, so it neither overflows in float16 nor
    depends on threads; where a device has no float64, in its widest type. A norm that is infinite makes finite
    elements 0 and the others NaN; a norm that is NaN makes every element NaN.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule = xopt.chain(xopt.ClipByNorm(1.0), xopt.SGD(lr=1.0))
    >>> w = [np.zeros(2), np.zeros(1)]
    >>> rule.apply(w, [np.asarray([3.0, 4.0]), np.asarray([0.5])], rule.init(w))[0]
    [array([-0.6, -0.8]), array([-0.5])]
    """

    max_norm: Hyper = hyper(gt=0)
    scope = "leaf"
    metrics: ClassVar[Mapping[str, str]] = {"norm": "norm", "clip_factor": "scale"}
    steady = staticmethod(unchanged)
    host = staticmethod(_clip)

    @staticmethod
    def reduce(h: H, xp: Any, p: Array, g: Array) -> dict[str, Array]:
        return {"total": abs2(xp, g)}

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array) -> Array:
        return h.scale * g


class ClipByGlobalNorm(ClipByNorm):
    r"""Gradient clipping by the global norm: scale the whole tree to at most ``max_norm`` (Pascanu et al. 2013).

    ::

        g ← g · max_norm / max(‖all g‖₂, max_norm)

    Parameters
    ----------
    max_norm
        Largest norm, > 0.

    Notes
    -----
    No state. The norm is computed as in :class:`~xopt.ClipByNorm`, leaf after leaf, and stays on the device. A gradient
    that is None has no part in it. A norm below ``max_norm`` changes nothing, as in optax; torch divides by ‖g‖ + 1e-6.

    References
    ----------
    R. Pascanu, T. Mikolov, Y. Bengio (2013), On the difficulty of training recurrent neural networks, arXiv:1211.5063,
    Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.SGD(lr=1.0))
    >>> w = [np.zeros(1), np.zeros(1)]
    >>> rule.apply(w, [np.asarray([3.0]), np.asarray([4.0])], rule.init(w))[0]
    [array([-0.6]), array([-0.8])]
    """

    scope = "tree"
