"""Metrics of an optimizer, as plain numbers, and in a progress bar; hooks that log them."""

from __future__ import annotations

import importlib
from abc import ABC
from collections.abc import Callable, Collection, Mapping
from typing import Any, Self

from xopt._arrays import tree as _tree
from xopt._arrays.layout import Layout
from xopt._engine.executor import Executor
from xopt._engine.metrics import shaped
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


class Logged(ABC):
    """An optimizer, as far as it says what its steps are like."""

    _whole: Layout
    _executor: Executor
    _carry: dict[str, Any]
    _hooks: list[tuple[Callable[[Any], Any], int]]

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics of the last step: what its components computed anyway, and norms that were asked for.

        ``"lr"``, ``"grad_norm"`` and ``"clip_factor"`` of gradient clipping, ``"trust_ratio"``, ``"loss_scale"``,
        ``"skipped_steps"``, ``"d"`` of parameter-free rules and so on, see :doc:`/metrics`. A float where the host
        computes, else a 0-d array on the device, which nothing waits for; a tree like the parameters of what each has
        its own, NaN where one took no part. Where a name is not unique it is ``"adamw.lr"``, as for :meth:`set`. Live,
        like :attr:`params`. Empty before the first step and after :meth:`load`.

        Examples
        --------
        >>> import numpy as np
        >>> import xopt
        >>> rule = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.SGD(lr=0.5))
        >>> opt = xopt.Optimizer(np.zeros(2), rule, metrics=["update_norm"])
        >>> _ = opt.step(np.asarray([3.0, 4.0]))
        >>> opt.metrics
        {'grad_norm': 5.0, 'clip_factor': 0.2, 'lr': 0.5, 'update_norm': 0.5}
        """
        return shaped(self._executor.metrics(self._carry), self._whole)

    def on_step(self, hook: Callable[[Any], Any], *, every: int = 1) -> Callable[[], None]:
        """Call ``hook(optimizer)`` after each ``every`` steps of :attr:`steps_taken`; return a function that ends this.

        The step is done by then: a hook may read :attr:`metrics`, save, or set hyperparameters, and what it raises
        comes out of :meth:`step`. Hooks are called in the order in which they came; copies and pickles have none.

        Examples
        --------
        >>> import numpy as np
        >>> import xopt
        >>> opt = xopt.Optimizer(np.zeros(1), xopt.SGD(lr=xopt.schedules.polynomial(1.0, end=0.0, steps=10)))
        >>> end = opt.on_step(lambda opt: print(opt.steps_taken, opt.metrics["lr"]), every=2)
        >>> for _ in range(4):
        ...     _ = opt.step(np.ones(1))
        2 0.9
        4 0.7
        >>> end()
        """
        if not callable(hook):
            raise TypeError(f"hook: {hook!r}, but it must be a function of the optimizer")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every: {every!r}, but it must be a whole number ≥ 1")
        entry = (hook, every)
        self._hooks.append(entry)
        return lambda: self._hooks.remove(entry) if entry in self._hooks else None


@public
class ProgressBar:
    """A progress bar of tqdm that counts steps and shows metrics: a hook for :meth:`xopt.Optimizer.on_step`.

    Of an optimizer of many processes that of rank 0 is shown.

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
        if getattr(optimizer, "rank", 0):  # the first of many processes shows it
            self._bar.leave = False
            self._bar.close()
            return
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
