"""Layer-wise learning rate decay: groups whose learning rates fall from the output to the input."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from xopt._arrays.paths import Predicate, shown
from xopt._public import public
from xopt.rule import FunctionalOptimizer, Rule, check_method
from xopt.rule._fields import Field, number
from xopt.rule._names import qualified_names
from xopt.transforms._groups import Groups, scaled

__all__ = ["layerwise_decay"]


@public
def layerwise_decay(
    rule: FunctionalOptimizer,
    layers: Sequence[Predicate],
    factor: float = 0.75,
    *,
    unmatched: Literal["error", "ignore"] = "error",
) -> Groups:
    """Layer-wise learning rate decay: by ``factor`` for every layer of distance from the output.

    ::

        lr of layer i of n = lr · factor^(n - i)       i = 0, …, n - 1

    Parameters
    ----------
    rule
        A rule, a chain or :class:`Groups`: what the groups of these do to a learning rate stays, and is scaled.
    layers
        Predicates as in :class:`Groups`, from the input to the output. Parameters that none of them matches (the head,
        the last norm) keep their learning rate.
    factor
        A number ≥ 0, as a rule in 0.65 to 0.9.
    unmatched
        As for :class:`Groups`.

    Returns
    -------
    Groups
        A group for each layer, whose ``lr`` is :func:`scaled`.

    Raises
    ------
    ValueError
        For a rule without ``lr``.

    Notes
    -----
    The learning rates are those of ``layer_decay`` in BEiT and timm for n = depth + 1: the embedding is layer 0, the
    blocks are layers 1 to depth, and everything else is the head. As there, weight decay that is multiplied by lr is
    scaled with it.

    References
    ----------
    K. Clark, M.-T. Luong, Q. Le, C. Manning (2020), ELECTRA: pre-training text encoders as discriminators rather than
    generators, arXiv:2003.10555, appendix B.
    H. Bao, L. Dong, S. Piao, F. Wei (2021), BEiT: BERT pre-training of image transformers, arXiv:2106.08254.

    Examples
    --------
    >>> import xopt
    >>> base = xopt.Groups(xopt.AdamW(lr=1e-3), (xopt.no_decay_1d, {"weight_decay": 0.0}))
    >>> rule = xopt.layerwise_decay(base, ["embed/**", "blocks/0/**", "blocks/1/**"], factor=0.5)
    >>> rule  # doctest: +NORMALIZE_WHITESPACE
    Groups(Groups(AdamW(lr=0.001), (no_decay_1d, {'weight_decay': 0.0})),
           ('embed/**', {'lr': scaled(0.125)}), ('blocks/0/**', {'lr': scaled(0.25)}),
           ('blocks/1/**', {'lr': scaled(0.5)}))
    """
    check_method(rule)
    if isinstance(layers, str | re.Pattern):
        raise TypeError(f"layerwise_decay: layers is {shown(layers)}, but it must be a list of predicates")
    factor = number("layerwise_decay: factor", Field(None, static=False, ge=0), factor, "")
    found = {
        name: n
        for name, (link, n) in qualified_names(rule._parts()).items()
        if isinstance(link.part, Rule) and (n == "lr" or (n == "peak_lr" and link.part.peak_lr is not None))
    }
    names = [*found]
    if "lr" not in found.values():
        raise ValueError(f"layerwise_decay: {rule!r} has no lr")
    shares = [factor ** (len(layers) - i) for i in range(len(layers))]
    groups = [
        # a peak of 0 has no meaning, and without a rate there is no decay
        (layer, {name: scaled(share) for name in names if share or found[name] == "lr"})
        for layer, share in zip(layers, shares, strict=True)
    ]
    return Groups(rule, *groups, unmatched=unmatched)
