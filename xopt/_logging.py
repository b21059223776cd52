"""Metrics as plain numbers, and a progress bar that shows them."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from typing import Any, Self

from xopt._arrays import tree as _tree
from xopt._public import public


@public
def flat_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics as floats under flat names, to log them; this waits for the device.

    What each parameter has its own of is under its path: ``"trust_ratio/layer1/w"``.

    Parameters
    ----------
    metrics
        :attr:`xopt.Optimizer.metrics`, or what :meth:`xopt.Rule.apply` returned as metrics.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> opt = xopt.Optimizer({"w": np.ones(4), "b": np.ones(1)}, xopt.LAMB(lr=0.1))
    >>> _ = opt.step({"w": np.ones(4), "b": np.ones(1)})
    >>> xopt.flat_metrics(opt.metrics)
    {'lr': 0.1, 'trust_ratio/b': 1.000001, 'trust_ratio/w': 1.000001}
    """
    found = {}
    for name, x in metrics.items():
        leaves, spec = _tree.flatten(x)
        for path, leaf in zip(_tree.names(spec), leaves, strict=True):
            found[f"{name}/{path}" if path else name] = float(leaf)
    return found


@public
class ProgressBar:
    """A progress bar of tqdm that counts steps and shows metrics: a hook for :meth:`xopt.Optimizer.on_step`.

    Parameters
    ----------
    total
        How many steps there will be; None if nobody knows.
    metrics
        What to show, by the names of :func:`flat_metrics`. None: all that is one number for the whole tree.
    every
        After how many steps metrics are read, ≥ 1; this waits for the device. Steps are counted one by one.
    **options
        Whatever else tqdm takes: ``desc``, ``disable``, ``file``, ``leave`` …

    Raises
    ------
    ImportError
        Where tqdm is not installed: ``pip install xopt-array[progress]``.
    KeyError
        At the first step whose metrics are read, for a name that there is not.

    Examples
    --------
    >>> import sys
    >>> import numpy as np
    >>> import xopt
    >>> opt = xopt.Optimizer(np.zeros(2), xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.SGD(lr=0.5)))
    >>> bar = {"bar_format": "{n_fmt}/{total_fmt}{postfix}", "file": sys.stdout}
    >>> with xopt.ProgressBar(2, metrics=["grad_norm"], every=2, **bar) as hook:  # doctest: +SKIP
    ...     end = opt.on_step(hook)
    ...     for _ in range(2):
    ...         _ = opt.step(np.asarray([3.0, 4.0]))
    2/2, grad_norm=5
    """

    def __init__(
        self, total: int | None = None, *, metrics: Collection[str] | None = None, every: int = 10, **options: Any
    ) -> None:
        if isinstance(metrics, str):
            raise TypeError(f"metrics: {metrics!r}, but it must be a tuple of names")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every: {every!r}, but it must be a whole number ≥ 1")
        self._names, self._every = metrics, every
        self._bar: Any = importlib.import_module("tqdm.auto").tqdm(total=total, **options)

    def __call__(self, optimizer: Any) -> None:
        if optimizer.steps_taken % self._every == 0:
            self._bar.set_postfix(self._shown(optimizer.metrics), refresh=False)
        self._bar.update()

    def _shown(self, metrics: Mapping[str, Any]) -> dict[str, str]:
        if self._names is None:
            found = {n: x for n, x in flat_metrics(metrics).items() if n in metrics}  # others are under a path
        else:
            every = flat_metrics(metrics)
            for name in self._names:
                if name not in every:
                    raise KeyError(f"metrics: no {name!r} here; there are {', '.join(every) or 'none'}")
            found = {name: every[name] for name in self._names}
        return {n: f"{x:.4g}" for n, x in found.items()}

    def close(self) -> None:
        """End the bar, and leave it on the screen."""
        self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
