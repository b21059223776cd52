"""The one layer that needs a generator: dropout, forward and backward, on any array library."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from xopt import _arrays
from xopt.random import constant, words

Array = Any

__all__ = ["Dropout"]


class Dropout:
    r"""Dropout (Srivastava et al. 2014) with masks that are the same on every library.

    ::

        "inverted"    training y = x·keep / (1 - rate)     testing y = x
        "classic"     training y = x·keep                  testing y = x·(1 - rate)

    Parameters
    ----------
    rate
        Probability that an element is dropped, in [0, 1).
    seed
        Seed of the masks, 0 to 2⁶⁴ - 1. Two layers need two seeds.
    form
        ``"inverted"`` (everybody today) or ``"classic"`` (the paper).

    Attributes
    ----------
    calls
        Training passes so far: the number of the next mask. Set it to repeat a mask.

    Notes
    -----
    An element is kept when its 32 random bits are below ⌈(1 - rate)·2³²⌉, an integer comparison, so that all
    libraries agree. The backward pass makes the mask again instead of keeping it.

    References
    ----------
    N. Srivastava, G. Hinton, A. Krizhevsky, I. Sutskever, R. Salakhutdinov (2014), Dropout: a simple way to prevent
    neural networks from overfitting, JMLR 15.

    Examples
    --------
    >>> import numpy as np
    >>> from xopt.nn import Dropout
    >>> layer = Dropout(0.5, seed=1)
    >>> y = layer.forward(np.ones(6))
    >>> y
    array([0., 0., 2., 2., 2., 0.])
    >>> np.array_equal(layer.backward(np.ones(6)), y)
    True
    >>> layer.forward(np.ones(3), training=False)
    array([1., 1., 1.])
    """

    def __init__(self, rate: float = 0.5, *, seed: int = 0, form: Literal["inverted", "classic"] = "inverted") -> None:
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
            raise ValueError(f"Dropout.rate: {rate!r}, but it must be a number ≥ 0 and < 1")
        if form not in ("inverted", "classic"):
            raise ValueError(f"Dropout.form: {form!r}, but it must be one of 'inverted', 'classic'")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise ValueError(f"Dropout.seed: {seed!r}, but it must be an int of 64 bits")
        self.rate, self.seed, self.form = float(rate), seed, form
        self.calls = 0
        self._trained: bool | None = None

    def forward(self, x: Array, *, training: bool = True) -> Array:
        """Drop elements of ``x`` (training), or return what is expected of them (testing)."""
        self._trained = training
        if training:
            self.calls += 1
        return self._scale(x)

    def backward(self, g: Array) -> Array:
        """Pass a gradient back through the last :meth:`forward`, with the same mask."""
        if self._trained is None:
            raise ValueError("Dropout.backward before forward")
        return self._scale(g)

    def state_dict(self) -> dict[str, Any]:
        """Return what the next mask depends on, for the ``extra`` of :meth:`xopt.Optimizer.save`."""
        return {"rate": self.rate, "seed": self.seed, "form": self.form, "calls": self.calls}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the layer that returned this state was; ValueError if it was another layer."""
        mine, calls = self.state_dict(), state.get("calls")
        if {**state, "calls": 0} != {**mine, "calls": 0} or type(calls) is not int or not 0 <= calls < 2**32:
            raise ValueError(f"Dropout: the state is {dict(state)!r}, but that of this layer is like {mine!r}")
        self.calls, self._trained = calls, None

    def mask(self, like: Array, call: int) -> Array:
        """Return the boolean mask of training pass ``call`` (from 0 on) for an array of this shape."""
        xp = _arrays.namespace(like)
        if 0 in like.shape:
            return xp.zeros_like(like, dtype=xp.bool)
        bits = words(like, self.seed, call, math.prod(like.shape))
        limit = min(math.ceil((1 - self.rate) * 2**32), 2**32 - 1)
        return xp.reshape(bits, like.shape) < constant(xp, bits, limit)

    def _scale(self, x: Array) -> Array:
        if self.rate == 0:
            return x
        if not self._trained:
            return x if self.form == "inverted" else x * (1 - self.rate)
        xp = _arrays.namespace(x)
        kept = xp.where(self.mask(x, self.calls - 1), x, xp.zeros_like(x))
        return kept / (1 - self.rate) if self.form == "inverted" else kept
