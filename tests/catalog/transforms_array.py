"""Components of a chain that need whole arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import xopt
from catalog.base import A, Peer, optax


def places(shape: tuple[int, ...], which: str) -> Iterator[tuple[Any, ...]]:
    """Yield the place of each unit: an index for one axis, everything along the others."""
    rank = len(shape)
    if rank < 2 or (which == "last" and sum(n != 1 for n in shape) < 2):
        yield (...,)
    elif which == "first":
        yield from ((i,) for i in range(shape[0]))
    elif rank == 3:
        yield from ((slice(None), i, j) for i in range(shape[1]) for j in range(shape[2]))
    else:
        yield from ((..., i) for i in range(shape[-1]))


def agc(p: A, g: A, t: int, *, limit: float, eps: float, units: str) -> A:
    """Brock et al. 2021, equation 3, a unit at a time."""
    out = g.copy()
    for i in places(p.shape, units):
        most = limit * max(np.linalg.norm(p[i]), eps)
        norm = np.linalg.norm(g[i])
        out[i] = g[i] * (most / norm) if norm > most else g[i]
    return out


def centralize(p: A, g: A, t: int, *, units: str) -> A:
    """Yong et al. 2020, equation 1."""
    if g.ndim < 2 or not g.size:
        return g
    flat = g.reshape(len(g), -1) if units == "first" else g.reshape(-1, g.shape[-1]).T
    new = flat - flat.mean(1)[:, None]
    return (new if units == "first" else new.T).reshape(g.shape)


TRANSFORMS = [
    (xopt.AdaptiveGradientClip(0.3), agc),
    (xopt.AdaptiveGradientClip(0.5, 0.4), agc),
    (xopt.AdaptiveGradientClip(0.3, units="last"), agc),
    (xopt.Centralize(), centralize),
    (xopt.Centralize("last"), centralize),
]

PEERS: list[Peer] = [
    optax(xopt.chain(xopt.AdaptiveGradientClip(0.3, units="last"), xopt.SGD(0.1)),
          lambda o: o.chain(o.adaptive_grad_clip(0.3), o.sgd(0.1))),
    optax(xopt.chain(xopt.AdaptiveGradientClip(0.3, 0.5, units="last"), xopt.SGD(0.1)),
          lambda o: o.chain(o.adaptive_grad_clip(0.3, 0.5), o.sgd(0.1)), complex=True),
    optax(xopt.chain(xopt.AdaptiveGradientClip(0.05, units="last"), xopt.SGD(0.1)),
          lambda o: o.chain(o.adaptive_grad_clip(0.05), o.sgd(0.1)))._replace(
        shapes=((1, 6), (2, 3, 2, 4), (2, 2, 3, 2, 2))),
    optax(xopt.chain(xopt.Centralize(), xopt.SGD(0.1)), lambda o: o.chain(o.centralize(), o.sgd(0.1)))._replace(
        shapes=((), (5,), (4, 3), (2, 3, 4), (1, 6))  # a mean of nothing is NaN there
    ),
]  # fmt: skip
