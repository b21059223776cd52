"""An optimizer of many processes, as far as it is saved."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from xopt import _arrays
from xopt._arrays.layout import AliasGuard
from xopt._arrays.transfer import from_host
from xopt._engine.executor import Executor
from xopt._engine.program.contract import Chains
from xopt._sharded_files import Assembly, Header, converted
from xopt._version import __version__
from xopt.checkpoint import _restore as _restore
from xopt.checkpoint import _snapshot as _snapshot
from xopt.checkpoint._files import opened, write_run
from xopt.checkpoint._snapshot import Listing, Place, TrainingRun
from xopt.distributed._ranks import Ranks, digest_of
from xopt.distributed._shards import Shards
from xopt.optimizer import Optimizer
from xopt.rule import FunctionalOptimizer


class SavedTogether(Optimizer):
    """An optimizer of many processes, as far as it is saved."""

    _ranks: Ranks
    _shards: Shards
    _all: Executor
    """The chains of the whole tree."""
    _owned: bool
    _outer: AliasGuard
    """Where the parameters lie."""

    @abstractmethod
    def _moved(self) -> None:
        """Go on with parameters that have other memory."""

    @abstractmethod
    def _of_units(self, x: Any) -> Any:
        """Return what units have of a vector with something for each parameter."""

    @abstractmethod
    def _full_chains(self, rule: FunctionalOptimizer) -> Chains:
        """Return what each parameter goes through."""

    def save(self, path: str | os.PathLike[str], *, only_state: bool = False, **options: Any) -> Path:
        """Save all of it: a call of all ranks. Rank 0 writes, and has one array of the others at a time.

        Where each rank owns its parameters, each writes a file of its own, under a name of its own.
        """
        if self._owned:
            return self._save_own(path, only_state, options)
        with self._access.acquire("save"):
            run, assembly = self._assembled("save")
            if self._ranks.rank:
                return Path(assembly.serve(run))
            try:
                extra = options.pop("extra", None)
                meta = _snapshot.metadata(run, self._taken, extra, __version__)
                tensors = assembly.tensors(run, not only_state, assembly.word)
                file = write_run(path, meta, tensors, **{"keep": None, "fsync": True, **options})
            except BaseException as error:
                if not self._ranks.know(error):
                    assembly.end(f"{type(error).__name__}: {error}", failed=True)
                raise
            assembly.end(os.fspath(file))
            return file

    def _save_own(self, path: str | os.PathLike[str], only_state: bool, options: dict[str, Any]) -> Path:
        with self._ranks:
            self._fit("save")
            name = digest_of(os.path.abspath(path))
        self._ranks.agree()
        names = self._ranks.every(np.asarray([name], np.int64))[:, 0].tolist()
        if len({*names}) < len(names):
            raise ValueError(
                f"save: {os.fspath(path)!r} on more than one rank, and each has its own parameters: put the rank into "
                f"the name"
            )
        with self._ranks:
            file = super().save(path, only_state=only_state, **options)
        self._ranks.agree()
        return file

    def _told(self, job: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Load something on each rank, of which all have to be able to."""
        writing = self._executor.writing
        writing.entered = False
        try:
            return job()
        except BaseException as error:
            if not writing.entered:
                self._ranks.tell(error)
            raise

    def _assembled(self, what: str, torn: bool = False) -> tuple[TrainingRun, Assembly]:
        """Return the run of all ranks, and what it is put together by."""
        with self._ranks:
            self._fit(what, torn=torn)
            self._outer.look()
            if self._outer.moved:
                self._moved()
            assembly = Assembly(self._ranks, self._shards, self._all, self._slots)
        self._ranks.agree()
        return assembly.run(self._rule, self._carry), assembly

    def state_dict(self, *, only_state: bool = True, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return all of it on every rank: a call of all ranks."""
        if self._owned:
            return super().state_dict(only_state=only_state, extra=extra)
        with self._access.acquire("state_dict"):
            run, assembly = self._assembled("state_dict")
            with self._ranks:
                meta = _snapshot.metadata(run, self._taken, extra, __version__)
                slots: dict[str, dict[str, Any]] = {n: {} for n in run.slots}
                for place in run.places(False).values():
                    host = assembly.everywhere(place)
                    slots[place.slot][place.key] = from_host(host, _arrays.dtype_name(place.array), place.array)
                own = {
                    place.key: run.layout.xp.asarray(_arrays.detached(place.array), copy=True)
                    for place in ({} if only_state else run.places(True)).values()
                    if not place.slot
                }
            self._ranks.agree()
            return {**meta, "state": slots, **({} if only_state else {"params": own})}

    def load(
        self, path: str | os.PathLike[str], *, strict: bool = True, cast: bool = False, checksums: bool = True
    ) -> dict[str, Any]:
        """Go on from a checkpoint of any number of ranks: a call of all ranks. Rank 0 reads it."""
        if self._owned:
            load = super().load
            return self._told(lambda: load(path, strict=strict, cast=cast, checksums=checksums))
        with self._access.acquire("load"):
            run, assembly = self._assembled("load", torn=True)
            file, text = None, ""
            try:
                with self._ranks:
                    if self._ranks.rank == 0:
                        file = opened(path, checksums)
                        file.verify()
                        text = Header.said(file)
                self._ranks.agree()
                head = Header(self._ranks.text(text, 0))

                def put(name: str, place: Place) -> None:
                    assembly.scatter(place, None if file is None else partial(converted, file, name, place))

                return self._taken_over(run, head, strict, cast, put)
            finally:
                if file is not None:
                    file.__exit__()

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True, cast: bool = False) -> dict[str, Any]:
        """Go on from what :meth:`state_dict` returned, which every rank has: a call of all ranks."""
        if self._owned:
            load = super().load_state_dict
            return self._told(lambda: load(state, strict=strict, cast=cast))
        with self._access.acquire("load_state_dict"):
            run, assembly = self._assembled("load_state_dict", torn=True)
            with self._ranks:
                source = _snapshot.StateDictSource(state)

            def put(name: str, place: Place) -> None:
                assembly.write(place, converted(source, name, place))

            return self._taken_over(run, source, strict, cast, put)

    def _taken_over(self, run: TrainingRun, source: Listing, strict: bool, cast: bool, put: Any) -> dict[str, Any]:
        """Compare a source with this run and take it over, if it fits on all ranks."""
        executor = self._executor
        with self._ranks:
            run.layout.check_writable()
            loaded = _restore.check(source, run, strict=strict, cast=cast, hyper=True, whole=executor.writing.torn)
            chains = executor.checked(self._chains(loaded.rule).chains)
        with executor.writing:
            executor.writing.begin()
            for name, place in loaded.places.items():
                put(name, place)
            for place in _restore.renewed(run, loaded):
                for i, k in enumerate(self._layout.numbers):
                    if k == place.k:
                        new = executor.state.renewed(place.slot, i)
                        run.layout.library.overwrite([self._slots[place.slot][i]], [new])
            run.layout.library.written(run.layout.leaves)
            executor.chains, self._rule, executor.seen = chains, loaded.rule, None
            self._all.chains = self._all.checked(self._full_chains(loaded.rule).chains)
            self._taken, self._fields = loaded.step, {}
            for n, x in loaded.carry.items():
                leaf = executor.state.carried[n][0].scope == "leaf"
                self._carry[n] = self._of_units(x) if leaf else x
        return loaded.extra
