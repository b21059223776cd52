"""What an optimizer keeps of itself: checkpoints, state dicts, pickles and copies."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xopt import _arrays
from xopt._arrays import tree as _tree
from xopt._arrays.layout import AliasGuard, Layout
from xopt._engine import buffers as _buffers
from xopt._engine.exclusive import ExclusiveAccess
from xopt._engine.executor import Executor
from xopt._engine.jitted import JittedStep
from xopt._engine.program.contract import Chains
from xopt._version import __version__
from xopt.checkpoint import _restore as _restore
from xopt.checkpoint import _snapshot as _snapshot
from xopt.checkpoint._files import opened, save_run
from xopt.rule import FunctionalOptimizer


class Saving(ABC):
    """An optimizer, as far as it is saved."""

    _rule: FunctionalOptimizer
    _wanted: Any
    """The runner that was asked for."""
    _layout: Layout
    _whole: Layout
    """The parameters as they were given; with ``comm``, those of which each rank owns a part."""
    _executor: Executor
    _tree: Any
    _writes: bool
    _watch: _tree.Watch | None
    _taken: int
    _slots: dict[str, list[Any]]
    _memory: _buffers.Memory
    _carry: dict[str, Any]
    _guard: AliasGuard
    _access: ExclusiveAccess
    _jitted: JittedStep | None
    _fields: dict[str, Any]
    """What is known of hyperparameters that a step is given."""
    _hooks: list[tuple[Callable[[Any], Any], int]]
    """What is called after a step, and after each how many."""

    @abstractmethod
    def _begin(self, rule: FunctionalOptimizer, params: Any, runner: Any) -> None:
        """Make everything that hangs on parameters, as before the first step."""

    @abstractmethod
    def _chains(self, rule: FunctionalOptimizer) -> Chains:
        """Return what each parameter goes through with a rule."""

    @abstractmethod
    def _fit(self, what: str, torn: bool = False) -> None:
        """Refuse a call at the wrong time."""

    @abstractmethod
    def _forget(self) -> None:
        """Drop what runners know of where parameters lie."""

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        only_state: bool = False,
        extra: Mapping[str, Any] | None = None,
        keep: int | None = None,
        fsync: bool = True,
    ) -> Path:
        """Save parameters, state and hyperparameters: :func:`xopt.save_state` has the arguments and the format.

        Examples
        --------
        >>> import tempfile
        >>> import numpy as np
        >>> import xopt
        >>> opt = xopt.Optimizer(np.ones(2), xopt.Adam(lr=0.1))
        >>> _ = opt.step(np.ones(2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = opt.save(folder, keep=3, extra={"epoch": 1})
        ...     other = xopt.Optimizer(np.zeros(2), xopt.Adam())
        ...     other.load(folder)
        {'epoch': 1}
        >>> other  # doctest: +ELLIPSIS
        Optimizer(Adam(lr=0.1), 1 arrays of numpy, 2 parameters, runner=..., step=1)
        """
        with self._access.acquire("save"):
            self._fit("save")
            more: Any = {"only_state": only_state, "extra": extra, "keep": keep, "fsync": fsync}
            return save_run(path, self._run(), self._taken, **more)

    def load(
        self, path: str | os.PathLike[str], *, strict: bool = True, cast: bool = False, checksums: bool = True
    ) -> dict[str, Any]:
        """Go on from a checkpoint, of whatever library and device: the next step has the bits that it would have had.

        Parameters
        ----------
        path
            A file, or a directory, of which the checkpoint of the highest step is taken.
        strict
            Whether arrays, components, schedules and scalars must be the same on both sides. False: what is missing
            stays as it is, and what is too much is left out. But a component whose state begins as the parameter (an
            average, slow weights, a first point) begins anew at the parameter that was loaded, if the checkpoint has
            none of it.
        cast
            Whether numbers may be rounded to other dtypes than they were saved in. Complex ones never become real.
        checksums
            Whether to read the whole file once before, and compare each array with its checksum.

        Returns
        -------
        dict
            What was saved as ``extra``.

        Raises
        ------
        CheckpointError
            With everything that is damaged, missing, unexpected or of another shape, dtype or rule. Nothing has been
            written then.
        OSError
            Where the file cannot be read. If that happens, or it changes, after it was found in order, some arrays are
            new; later calls but :meth:`load` refuse.

        Notes
        -----
        Hyperparameters that are numbers are those of the checkpoint afterwards; :meth:`set` them to something else if
        you like. Schedules and other functions are not in the file, but how they were written is: they must be the
        same here. One array at a time is in memory besides those of the optimizer, where arrays can be written.
        """
        with self._access.acquire("load"), opened(path, checksums) as source:
            self._fit("load", torn=True)
            return self._load(source, strict, cast)

    def state_dict(self, *, only_state: bool = True, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return copies of state and hyperparameters, with ``only_state=False`` also of the parameters, in plain dicts.

        ``["state"]["0.adam.m"]["layer1/w"]`` is an array, ``["step"]`` an int, ``["rule"]`` what the rule was.

        Examples
        --------
        >>> import numpy as np
        >>> import xopt
        >>> opt = xopt.Optimizer({"w": np.ones(2)}, xopt.SGD(lr=0.5, momentum=0.9))
        >>> _ = opt.step({"w": np.ones(2)})
        >>> before = opt.state_dict(only_state=False)
        >>> before["state"], before["params"]
        ({'0.sgd.m': {'w': array([1., 1.])}}, {'w': array([0.5, 0.5])})
        >>> _ = opt.step({"w": np.full(2, np.nan)})
        >>> opt.load_state_dict(before)
        {}
        >>> opt.params
        {'w': array([0.5, 0.5])}
        """
        with self._access.acquire("state_dict"):
            self._fit("state_dict")
            run = self._run()
            meta = _snapshot.metadata(run, self._taken, extra, __version__)
            return _snapshot.state_dict(run, meta, not only_state)

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True, cast: bool = False) -> dict[str, Any]:
        """Go on from what :meth:`state_dict` returned; arguments, result and errors are those of :meth:`load`."""
        with self._access.acquire("load_state_dict"), _snapshot.StateDictSource(state) as source:
            self._fit("load_state_dict", torn=True)
            return self._load(source, strict, cast)

    def _run(self) -> _snapshot.TrainingRun:
        """Return parameters and state as they are; parameters may have been given other memory."""
        self._guard.look()
        if self._guard.moved:
            self._forget()
        return _snapshot.TrainingRun(self._rule, self._layout, self._executor, self._slots, self._carry)

    def _load(self, source: _snapshot.Source, strict: bool, cast: bool) -> dict[str, Any]:
        layout, run = self._layout, self._run()
        layout.check_writable()
        loaded = _restore.check(source, run, strict=strict, cast=cast, hyper=True, whole=self._executor.writing.torn)
        chains = self._executor.checked(self._chains(loaded.rule).chains)
        source.verify()
        arrays = {} if self._writes else loaded.places
        new = {name: _restore.taken(source, name, place.array) for name, place in arrays.items()}
        with self._executor.writing:
            self._executor.writing.begin()
            if self._writes:
                _restore.overwrite(source, run, loaded)
            else:
                _restore.replace(new, run, loaded)
                self._tree = layout.tree(layout.leaves)
            self._executor.chains, self._rule, self._executor.seen = chains, loaded.rule, None
            self._taken, self._carry = loaded.step, {**self._carry, **loaded.carry}
        return loaded.extra

    def __getstate__(self) -> dict[str, Any]:
        with self._access.acquire("pickle"):
            self._fit("pickle")
            self._run()
            xp = self._layout.xp
            slots = {
                n: [None if x is None else xp.asarray(_arrays.detached(x), copy=True) for x in column]
                for n, column in self._slots.items()
            }
            return {
                "more": {n: x for n, x in vars(self).items() if n not in Saving.__annotations__},
                "begin": (self._rule, self._tree, self._wanted),
                "slots": slots,
                "rest": (self._taken, dict(self._carry)),
            }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state["more"])
        rule, params, wanted = state["begin"]
        leaves, spec = _tree.flatten(params)
        if any(isinstance(x, np.ndarray) and not x.flags.writeable for x in leaves):  # joblib maps files so
            params = _tree.unflatten(spec, [np.array(x) if isinstance(x, np.ndarray) else x for x in leaves])
        self._begin(rule, params, wanted)
        for n, column in state["slots"].items():
            kept = [(x, y) for x, y in zip(self._slots[n], column, strict=True) if y is not None]
            if self._writes:
                self._layout.library.overwrite([x for x, _ in kept], [y for _, y in kept])
            else:
                self._slots[n] = column
        self._taken, self._carry = state["rest"]

    def __copy__(self) -> Any:
        raise TypeError("copy.copy of an Optimizer would write into the same arrays; use copy.deepcopy")
