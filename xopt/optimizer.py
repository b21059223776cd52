"""The optimizer that writes into the arrays it was given."""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from xopt import _arrays, _buffers, _kept, _record
from xopt._block import block
from xopt._kept import Rounding, StateDType
from xopt._layout import Layout, Memory
from xopt._names import qualified_names
from xopt._scalars import after
from xopt._stages import Stages
from xopt._turns import Turns
from xopt._version import __version__
from xopt.checkpoint import opened, save_run
from xopt.precision import Precision
from xopt.rule import Method, RunnerName, State, check_method
from xopt.wrappers import Guard, OnNonFinite


class Optimizer:
    """A rule and its state for one tree of parameters, updated in place.

    Parameters
    ----------
    params
        An array, or any nest of dict, list, tuple, namedtuple and dataclass of arrays of one library. NumPy, CuPy,
        torch and array-api-strict arrays are written into; where arrays are immutable (JAX, dask), or not known to be
        writable, :attr:`params` is rebound instead.
    rule
        A rule or a chain.
    runner
        ``"eager"``: the library's own operations, one after the other. ``"tiled"``: NumPy arrays, and CPU arrays that
        share memory with one, a tile at a time. ``"numba"``: the same arrays in one compiled loop, if Numba is
        installed. ``"cuda"``: CuPy arrays and torch CUDA tensors, one launch for all. None: the best available.
    on_nonfinite
        What to do with a gradient that is infinite or NaN somewhere: ``"propagate"``, ``"skip"``, ``"zero"`` or
        ``"raise"``, see :class:`~xopt.Guard`.
    rounding, master_weights, state_dtype, seed
        In how many digits parameters and state are kept, see :class:`~xopt.Precision`.

    Raises
    ------
    TypeError
        For a leaf that is no floating-point array, or a NumPy scalar, or of another library than the first.
    ValueError
        For a read-only array, for arrays that share memory with each other, and for a runner that cannot serve them.

    Notes
    -----
    State in bytes a parameter is the rule's; the scratch of the tiled runner is a few megabytes, whatever the size of
    the parameters. Everything is checked before the first write: a step that raises has changed nothing. What stops a
    step while it writes (Ctrl-C, no memory for a thread) leaves some arrays new and some old; this is noticed, and
    every later call but :meth:`load` refuses. So does a call while another thread is in one: two optimizers in two
    threads are fine. An optimizer cannot be pickled or copied; :meth:`save` it, or take its :meth:`state_dict`.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> params = {"w": np.asarray([3.0, -2.0])}
    >>> opt = xopt.Optimizer(params, xopt.SGD(lr=0.25))
    >>> opt.step({"w": 2 * params["w"]})
    {'w': array([ 1.5, -1. ])}
    """

    def __init__(
        self,
        params: Any,
        rule: Method,
        *,
        runner: RunnerName | None = None,
        on_nonfinite: OnNonFinite = "propagate",
        rounding: Rounding = "nearest",
        master_weights: bool = False,
        state_dtype: StateDType = None,
        seed: int = 0,
    ) -> None:
        check_method(rule)
        if not _kept.usual(rounding, master_weights, state_dtype, seed):
            rule = Precision(rule, rounding=rounding, master_weights=master_weights, state_dtype=state_dtype, seed=seed)
        if on_nonfinite != "propagate":
            rule = Guard(rule, on_nonfinite)
        self._rule = rule
        self._layout = Layout(params, writable=True)
        self._stages = Stages(rule._chains(self._layout), self._layout, runner)
        self._tree = params
        self._writes = _arrays.in_place(self._layout.library)
        if self._layout.library == "jax":  # the step donates its buffers; the caller's stay alive
            self._layout.leaves = [self._layout.xp.asarray(p, dtype=p.dtype, copy=True) for p in self._layout.leaves]
            self._tree = self._layout.tree(self._layout.leaves)
        self._taken = 0
        self._slots, self._kept = _buffers.new_slots(self._stages)
        self._carry = self._stages.new_carry()
        inspector = getattr(self._stages.runner, "inspector", None)
        held = _buffers.arrays(self._stages, self._slots, self._kept)
        self._memory = Memory(self._layout, held, inspector)
        self._turns = Turns(self._stages)

    @property
    def params(self) -> Any:
        """The parameters. Live: the next step overwrites them (on JAX, it deletes them); copy what you want to keep."""
        return self._tree

    @property
    def rule(self) -> Method:
        """The rule, with the hyperparameters as last set."""
        return self._rule

    @property
    def runner(self) -> str:
        """Which runner computes the steps."""
        name: str = self._stages.runner.name
        return name

    @property
    def state(self) -> State:
        """The state. Live, like :attr:`params`."""
        return State(
            self._taken, {n: self._layout.tree(column) for n, column in self._slots.items()}, dict(self._carry)
        )

    @property
    def loss_scale(self) -> Any:
        """What to multiply the loss with, see :class:`~xopt.LossScale`; 1.0 without one. Live, like :attr:`params`."""
        return self._carry.get("lossscale.scale", 1.0)

    def step(self, grads: Any, *, value: Any = None, **overrides: Any) -> Any:
        """Take one step and return the parameters.

        Parameters
        ----------
        grads
            A tree like the parameters; None leaves its parameter and its state alone.
        value
            The loss, for rules with a link that asks for it.
        **overrides
            Hyperparameters for this step only, as for :meth:`set`.

        Raises
        ------
        ValueError, TypeError
            For a gradient whose structure, shape, dtype, device or library is not its parameter's, or that shares
            memory with a parameter; for a schedule that returns something else than a number in range.
        RuntimeError
            After a step that was interrupted while it wrote, in the block of :meth:`averaged`, and while another
            thread is in a method of this optimizer.
        """
        with self._turns.free("step"):
            self._turns.check("step")
            return self._step(grads, value, overrides)

    def _step(self, grads: Any, value: Any, overrides: dict[str, Any]) -> Any:
        layout, stages = self._layout, self._stages
        if self._memory.moved():
            self._kept = [(arenas, {}) for arenas, _ in self._kept]
        gs, where = self._memory.gradients(grads)
        t = after(self._taken)
        rule = self._rule._with(overrides) if overrides else self._rule
        clocks = stages.clocks(t, self._carry)
        given = stages.resolve(clocks[""], rule._chains(layout).chains if overrides else None)
        inputs = stages.given({"value": value}) if value is not None or stages.inputs else {}
        if layout.library == "jax":
            if stages.refuses:
                stages.scalars.checked = True
                layout.refuse_nonfinite(gs)
            clocks = {n: stages.new_step(x) if isinstance(x, int) else x for n, x in clocks.items()}
            out = stages.donated(layout.leaves, gs, self._slots, self._carry, clocks, given, inputs)
        else:
            out = stages.run(
                clocks,
                given,
                layout.leaves,
                gs,
                self._slots,
                self._carry,
                inputs=inputs,
                write=self._writes,
                memory=self._kept,
                where=where,
            )
        ps, slots, carry = out
        stages.torn = True
        self._carry = carry
        if not self._writes:
            layout.leaves, self._slots = ps, slots
            self._tree = layout.tree(ps)
        if layout.library == "torch":
            batches = stages.batch_of
            _arrays.written([p for p, g, b in zip(layout.leaves, gs, batches, strict=True) if g is not None and b])
        self._taken = t
        stages.torn = False
        return self._tree

    def eval_params(self) -> Any:
        """Return the parameters to evaluate or to ship, in new arrays: see :meth:`Rule.eval_params`.

        Examples
        --------
        >>> import numpy as np
        >>> import xopt
        >>> opt = xopt.Optimizer(np.asarray([2.0]), xopt.chain(xopt.SGD(lr=1.0), xopt.EMA(0.5)))
        >>> opt.step(np.asarray([1.0])), opt.eval_params()
        (array([1.]), array([1.5]))
        """
        with self._turns.free("eval_params"):
            self._turns.check("eval_params")
            return self._rule.eval_params(self.params, self.state)

    def set(self, **values: Any) -> None:
        """Change hyperparameters from the next step on: ``opt.set(lr=0.01)``.

        In a chain, a name that is not unique is qualified: ``opt.set(**{"adamw.lr": 0.01})``. Values are numbers or
        schedules. Nothing is compiled anew.

        Raises
        ------
        TypeError, ValueError
            For a name that there is not, a static field, a value out of range. Nothing is changed then.
        """
        rule = self._rule._with(values)
        self._stages.chains = self._stages.checked(rule._chains(self._layout).chains)
        self._rule = rule

    def hyperparams(self) -> dict[str, Any]:
        """Return every hyperparameter under the name that :meth:`set` takes; a schedule is returned as such."""
        names = qualified_names(self._rule._parts())
        return {name: link.part._values()[field] for name, (link, field) in names.items()}

    @block
    def averaged(self) -> Generator[Any, None, None]:
        """Put what :meth:`eval_params` returns in place of the parameters for the length of a ``with`` block.

        Afterwards, also after an exception, the parameters are what they were to the bit; what the block wrote into
        them is lost. No step may be taken inside.

        Raises
        ------
        RuntimeError
            Inside, for :meth:`step`, :meth:`eval_params` and :meth:`averaged`.

        Examples
        --------
        >>> import numpy as np
        >>> import xopt
        >>> w = np.asarray([2.0])
        >>> opt = xopt.Optimizer(w, xopt.chain(xopt.SGD(lr=1.0), xopt.EMA(0.5)))
        >>> _ = opt.step(np.asarray([1.0]))
        >>> with opt.averaged():
        ...     print(w)
        [1.5]
        >>> w
        array([1.])
        """
        layout, tree = self._layout, self._tree
        with self._turns.free("averaged"):
            self._turns.check("averaged")
            new = self._rule.eval_params(self.params, self.state)
            held = [_arrays.detached(layout.library, p) for p in layout.leaves]
            old = [layout.xp.asarray(p, copy=True) for p in held] if self._writes else []
            self._turns.swapped = True
        try:
            if self._writes:
                _arrays.overwrite(layout.library, layout.leaves, Layout(new).leaves)
            else:
                self._tree = new
            yield self._tree
        finally:
            self._stages.torn = self._writes  # until the parameters are back
            self._tree, self._turns.swapped = tree, False
            if self._writes:
                _arrays.overwrite(layout.library, layout.leaves, old)
            self._stages.torn = False

    def __reduce__(self) -> Any:
        raise TypeError("an Optimizer cannot be pickled or copied; save it, or take its state_dict()")

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
        with self._turns.free("save"):
            self._turns.check("save")
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
            Whether arrays, links, schedules and scalars must be the same on both sides. False: what is missing stays
            as it is, and what is too much is left out.
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
        with self._turns.free("load"), opened(path, checksums) as source:
            self._turns.check("load")
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
        with self._turns.free("state_dict"):
            self._turns.check("state_dict")
            run = self._run()
            meta = _record.metadata(run, self._taken, extra, __version__)
            return _record.state_dict(run, meta, not only_state)

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True, cast: bool = False) -> dict[str, Any]:
        """Go on from what :meth:`state_dict` returned; arguments, result and errors are those of :meth:`load`."""
        with self._turns.free("load_state_dict"), _record.Memory(state) as source:
            self._turns.check("load_state_dict")
            return self._load(source, strict, cast)

    def _run(self) -> _record.Run:
        """Return parameters and state as they are; torch parameters may have been given other memory."""
        if self._memory.moved():
            self._kept = [(arenas, {}) for arenas, _ in self._kept]
        return _record.Run(self._rule, self._layout, self._stages, self._slots, self._carry)

    def _load(self, source: _record.Source, strict: bool, cast: bool) -> dict[str, Any]:
        layout, run = self._layout, self._run()
        layout.check_writable()
        loaded = _record.check(source, run, strict=strict, cast=cast, hyper=True, whole=self._stages.torn)
        chains = self._stages.checked(loaded.rule._chains(layout).chains)
        source.verify()
        if self._writes:
            self._stages.torn = True
            _record.overwrite(source, run, loaded)
        else:
            new = {name: _record.taken(source, name, place.array) for name, place in loaded.places.items()}
            self._stages.torn = True
            for name, place in loaded.places.items():
                place.column[place.k] = new[name]
            for place, x in _record.derived(run, loaded, layout.leaves):
                place.column[place.k] = x
            self._tree = layout.tree(layout.leaves)
        self._stages.chains, self._rule = chains, loaded.rule
        self._taken, self._carry = loaded.step, {**self._carry, **loaded.carry}
        self._stages.torn = False
        return loaded.extra

    def __repr__(self) -> str:
        n = sum(math.prod(shape) for shape in self._layout.shapes)
        return (
            f"Optimizer({self._rule!r}, {len(self._layout.leaves)} arrays of {self._layout.library}, {n:,} parameters, "
            f"runner={self.runner!r}, step={self._taken})"
        )
