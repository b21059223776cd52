"""Runs on disk: saved whole or not at all, checked whole before anything is loaded."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xopt._arrays.layout import Layout
from xopt._engine.executor import Executor
from xopt._public import public
from xopt._version import __version__
from xopt.checkpoint import _restore as _restore
from xopt.checkpoint import _snapshot as _snapshot
from xopt.checkpoint._safetensors import CheckpointError, File, Tensor, write
from xopt.checkpoint._snapshot import StateDictSource, TrainingRun
from xopt.rule import FunctionalOptimizer, State, check_method

__all__ = ["CheckpointError", "Restored", "latest", "load_state", "save_state"]

_STEP = re.compile(r"step-(\d{1,19})\.safetensors")


@public
class Restored(NamedTuple):
    """Parameters, state and extra data that :func:`load_state` returns.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.SGD(lr=0.1), np.ones(2)
    >>> saved = xopt.Optimizer(w, rule).state_dict(extra={"epoch": 3})
    >>> xopt.load_state(saved, rule, w).extra
    {'epoch': 3}
    """

    params: Any
    """The parameters of the checkpoint, or those that were given where it has none."""
    state: State
    extra: dict[str, Any]
    """What was saved under this name."""


@public
def save_state(
    path: str | os.PathLike[str],
    rule: FunctionalOptimizer,
    params: Any,
    state: State,
    *,
    only_state: bool = False,
    extra: Mapping[str, Any] | None = None,
    keep: int | None = None,
    fsync: bool = True,
) -> Path:
    """Save parameters and state, those of :meth:`Rule.apply`; :meth:`xopt.Optimizer.save` does it for an optimizer.

    Parameters
    ----------
    path
        A file, which is replaced; or a directory, one that exists or with a slash at its end, in which the file is
        called ``step-000000001200.safetensors``. Files of later steps in it are of a run that was given up: a tilde is
        put behind their names.
    rule, params, state
        A rule or a chain, and what belongs to it.
    only_state
        Leave the parameters out.
    extra
        More to save, a dict as JSON has it: an epoch, the state of a generator.
    keep
        Of the directory, which is made if there is none, keep so many checkpoints, ≥ 1: those of the highest steps.
        None: keep all.
    fsync
        Wait until all is on the disk. Without that, a power failure may cost the new file and the old one.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    OSError
        Where the system cannot write. The old file is as it was, unless the new one was already in its place and only
        its name could not be synced.
    ValueError, TypeError
        When rule, parameters and state do not belong together.

    Notes
    -----
    The file is in the safetensors format: one array a parameter and slot, named by path (``params/layer1/w``,
    ``state/0.adam.m/layer1/w``), complex ones as pairs of reals, and one text of JSON with the step, the rule, its
    hyperparameters, and a CRC-32 of each array. It has no code, no pickle and no name that is looked up.

    It is written beside the old file and takes its place when it is whole and on the disk: a crash at any moment leaves
    the old one or the new one. One array at a time is brought to the host. Symbolic links and permissions stay; a hard
    link keeps the old file.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> import xopt
    >>> rule, w = xopt.Adam(lr=0.1), np.ones(2)
    >>> w, state = rule.apply(w, np.ones(2), rule.init(w))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = xopt.save_state(Path(folder) / "run.safetensors", rule, w, state)
    ...     back = xopt.load_state(file, rule, np.zeros(2))
    >>> back.params, back.state.step
    (array([0.9, 0.9]), 1)
    """
    check_method(rule)
    rule, state, _ = rule._keeping(state)
    layout = Layout(params)
    executor = Executor(rule._chains(layout), layout, "eager")
    run = TrainingRun(rule, layout, executor, executor.state.check(state), state.carry)
    return save_run(path, run, state.step, only_state=only_state, extra=extra, keep=keep, fsync=fsync)


def save_run(
    path: str | os.PathLike[str],
    run: TrainingRun,
    step: Any,
    *,
    only_state: bool,
    extra: Mapping[str, Any] | None,
    keep: int | None,
    fsync: bool,
) -> Path:
    """Write a run into a file, or into a directory of files."""
    meta = _snapshot.metadata(run, step, extra, __version__)
    return write_run(path, meta, _snapshot.tensors(run, not only_state), keep=keep, fsync=fsync)


def write_run(
    path: str | os.PathLike[str], meta: dict[str, Any], tensors: Mapping[str, Tensor], *, keep: int | None, fsync: bool
) -> Path:
    """Write what is saved of a run."""
    if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int) or keep < 1):
        raise ValueError(f"keep: {keep!r}, but it must be a number of checkpoints from 1 on")
    text = os.fsdecode(path)
    path = Path(text)
    if keep is None and not path.is_dir() and text[-1:] not in (os.sep, os.altsep):
        write(path, tensors, meta, fsync)
        return path
    path.mkdir(parents=True, exist_ok=True)
    for number, old in _files(path):
        if number > meta["step"]:  # of a run that was given up: this one went back
            old.replace(old.with_name(f"{old.name}~"))
    file = path / f"step-{meta['step']:012d}.safetensors"
    write(file, tensors, meta, fsync)
    for _, old in _files(path)[: -keep or None] if keep is not None else []:
        old.unlink(missing_ok=True)
    return file


def _files(directory: Path) -> list[tuple[int, Path]]:
    """Return the checkpoints in a directory by their steps."""
    found = [(int(match[1]), x) for x in directory.iterdir() if (match := _STEP.fullmatch(x.name)) and x.is_file()]
    return sorted(found)


@public
def latest(directory: str | os.PathLike[str]) -> Path | None:
    """Return the checkpoint of the highest step in a directory, or None where there is none, or no directory.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import xopt
    >>> opt = xopt.Optimizer(np.ones(2), xopt.SGD(lr=0.1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for _ in range(3):
    ...         _ = opt.step(np.ones(2))
    ...         _ = opt.save(folder, keep=2)
    ...     xopt.latest(folder).name
    'step-000000000003.safetensors'
    """
    path = Path(os.fsdecode(directory))
    found = _files(path) if path.is_dir() else []
    return found[-1][1] if found else None


def opened(path: str | os.PathLike[str], checksums: bool) -> File:
    """Open a checkpoint, of a directory the latest."""
    if not os.path.isdir(path):
        return File(path, checksums)
    found = latest(path)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "a directory without checkpoints", os.fsdecode(path))
    return File(found, checksums)


def read_whole(
    path: str | os.PathLike[str], made: Callable[[np.ndarray[Any, Any], str], Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a checkpoint as a state dict, and its parameters by pointer; ``made(x, dtype)`` makes an array of x."""
    with opened(path, True) as file:
        file.verify()
        slots, params = dict[str, Any](), dict[str, Any]()
        for name, stored in file.tensors.items():
            first, _, rest = name.partition("/")
            x = made(file.read(name), stored.dtype)
            if first == "params":
                params[rest] = x
            else:
                slot, _, key = rest.partition("/")
                slots.setdefault(slot, {})[key] = x
        found = {**file.meta, "state": slots}
    if not params:
        raise CheckpointError(os.fsdecode(path), ["it has no parameters; save without only_state"])
    return found, params


@public
def load_state(
    source: str | os.PathLike[str] | Mapping[str, Any],
    rule: FunctionalOptimizer,
    params: Any,
    *,
    strict: bool = True,
    cast: bool = False,
    checksums: bool = True,
) -> Restored:
    """Load what :func:`save_state` or an optimizer saved, on whatever library and device it was.

    Parameters
    ----------
    source
        A file; a directory, of which the checkpoint of the highest step is taken; or what
        :meth:`xopt.Optimizer.state_dict` returned.
    rule
        A rule or a chain of the same components and static fields. Its hyperparameters and schedules may be others:
        they are yours, not those of the checkpoint. Where only the checkpoint has a :class:`~xopt.Precision`, the state
        remembers it, as one of :meth:`Rule.init` does that was asked for it; to drop it, put a ``Precision`` of your
        own around the rule.
    params
        Arrays as those that were saved: their library, devices, shapes and dtypes are those of the result. They are
        not changed.
    strict
        Whether arrays, components and scalars must be the same on both sides. False: what is missing is as
        :meth:`Rule.init` makes it of the parameters that were loaded, and what is too much is left out.
    cast
        Whether numbers may be rounded to other dtypes than they were saved in. Complex ones never become real.
    checksums
        Whether to compare each array with its checksum.

    Raises
    ------
    CheckpointError
        With everything that is damaged, missing, unexpected or of another shape, dtype or rule.
    OSError
        Where the file cannot be read.

    Examples
    --------
    See :func:`save_state`.

    >>> import numpy as np
    >>> import xopt
    >>> opt = xopt.Optimizer({"w": np.ones(2)}, xopt.SGD(lr=0.1, momentum=0.9))
    >>> _ = opt.step({"w": np.ones(2)})
    >>> xopt.load_state(opt.state_dict(), opt.rule, opt.params).state.slots
    {'0.sgd.m': {'w': array([1., 1.])}}
    """
    check_method(rule)
    layout = Layout(params)
    with source_of(source, checksums) as found:
        run, said = _restore.begun(found, rule, layout)
        loaded = _restore.check(found, run, strict=strict, cast=cast, hyper=False)
        new = {name: _restore.taken(found, name, place.array) for name, place in loaded.places.items()}
        _restore.replace(new, run, loaded)
    slots = {n: layout.tree(column) for n, column in run.slots.items()} | said
    state = State(run.executor.state.new_step(loaded.step), slots, {**run.carry, **loaded.carry})
    return Restored(layout.tree(layout.leaves), state, loaded.extra)


def source_of(source: str | os.PathLike[str] | Mapping[str, Any], checksums: bool) -> File | StateDictSource:
    """Open a file, or take a state dict."""
    return StateDictSource(source) if isinstance(source, Mapping) else opened(source, checksums)
