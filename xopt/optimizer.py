"""The optimizer that writes into the arrays it was given."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from xopt import _arrays
from xopt._layout import Layout, Memory
from xopt._names import found, qualified_names
from xopt._scalars import after
from xopt._stages import Stages
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

    Raises
    ------
    TypeError
        For a leaf that is no floating-point array, or a NumPy scalar, or of another library than the first.
    ValueError
        For a read-only array, for arrays that share memory with each other, and for a runner that cannot serve them.

    Notes
    -----
    State in bytes a parameter is the rule's; the scratch of the tiled runner is a few megabytes, whatever the size of
    the parameters. Everything is checked before the first write: a step that raises has changed nothing. Not for two
    threads at once; two optimizers in two threads are fine.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> params = {"w": np.asarray([3.0, -2.0])}
    >>> opt = xopt.Optimizer(params, xopt.SGD(lr=0.25))
    >>> for _ in range(10):
    ...     _ = opt.step({"w": 2 * params["w"]})
    >>> params["w"].round(4)
    array([ 0.0029, -0.002 ])
    """

    def __init__(
        self, params: Any, rule: Method, *, runner: RunnerName | None = None, on_nonfinite: OnNonFinite = "propagate"
    ) -> None:
        check_method(rule)
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
        self._slots, self._kept = self._new_slots()
        self._carry = self._stages.new_carry()
        inspector = getattr(self._stages.runner, "inspector", None)
        self._memory = Memory(self._layout, self._state_arrays(), inspector)
        self._compiled: Any = None
        self._swapped = False

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
        """
        layout, stages = self._layout, self._stages
        self._refuse_swapped("step")
        if self._memory.moved():
            self._kept = [(arenas, {}) for arenas, _ in self._kept]
        gs, where = self._memory.gradients(grads)
        t = after(self._taken)
        rule = self._rule._with(overrides) if overrides else self._rule
        clocks = stages.clocks(t, self._carry)
        given = stages.resolve(clocks[""], rule._chains(layout).chains if overrides else None)
        inputs = stages.given({"value": value})
        if layout.library == "jax":
            if stages.refuses:
                stages.scalars.checked = True
                self._refuse_nonfinite(gs)
            clocks = {n: float(x) if isinstance(x, int) else x for n, x in clocks.items()}
            out = self._jitted()(layout.leaves, gs, self._slots, self._carry, clocks, given, inputs)
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
        ps, slots, self._carry = out
        if not self._writes:
            layout.leaves, self._slots = ps, slots
            self._tree = layout.tree(ps)
        if layout.library == "torch":
            _arrays.written([p for p, g in zip(layout.leaves, gs, strict=True) if g is not None])
        self._taken = t
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
        self._refuse_swapped("eval_params")
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
        self._stages.chains = rule._chains(self._layout).chains
        self._rule = rule

    def hyperparams(self) -> dict[str, Any]:
        """Return every hyperparameter under the name that :meth:`set` takes; a schedule is returned as such."""
        parts = self._rule._parts()
        return {name: getattr(found(parts, path), field) for name, (path, field) in qualified_names(parts).items()}

    @contextmanager
    def averaged(self) -> Iterator[Any]:
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
        new = self.eval_params()
        held = [_arrays.detached(layout.library, p) for p in layout.leaves]
        old = [layout.xp.asarray(p, copy=True) for p in held] if self._writes else []
        self._swapped = True
        try:
            if self._writes:
                _arrays.overwrite(layout.library, layout.leaves, Layout(new).leaves)
            else:
                self._tree = new
            yield self._tree
        finally:
            if self._writes:
                _arrays.overwrite(layout.library, layout.leaves, old)
            self._tree, self._swapped = tree, False

    def _refuse_swapped(self, what: str) -> None:
        if self._swapped:
            raise RuntimeError(f"{what}: the parameters are averages until the block of averaged() ends")

    def __repr__(self) -> str:
        n = sum(math.prod(shape) for shape in self._layout.shapes)
        return (
            f"Optimizer({self._rule!r}, {len(self._layout.leaves)} arrays of {self._layout.library}, {n:,} parameters, "
            f"runner={self.runner!r}, step={self._taken})"
        )

    def _refuse_nonfinite(self, gs: list[Any]) -> None:
        """Raise for the first gradient that is not finite: inside the jitted step nobody could."""
        for k, g in enumerate(gs):
            bad = 0 if g is None else int(self._layout.xp.sum(~self._layout.xp.isfinite(g)))
            if bad:
                raise FloatingPointError(f"{self._layout.path(k, 'grads')}: {bad:,} elements are not finite")

    def _state_arrays(self) -> list[Any]:
        """Return the arrays that hold the state: the buffers of a runner on the host, or the slots."""
        arenas = [own for own, _ in self._kept]
        plain = all(own or not batch.plan.live for own, batch in zip(arenas, self._stages.batches, strict=bool(arenas)))
        if self._kept and plain and not self._stages.split:
            return [buffer for own in arenas for buffer, _ in own.values()]
        return [x for column in self._slots.values() for x in column if x is not None]

    def _jitted(self) -> Any:
        """Compile the whole step once; parameters, slots and carry are donated, hyperparameters are arguments."""
        if self._compiled is None:
            import jax

            def step(ps: Any, gs: Any, slots: Any, carry: Any, clocks: Any, given: Any, inputs: Any) -> Any:
                return self._stages.run(clocks, given, ps, gs, slots, carry, inputs=inputs)

            self._compiled = jax.jit(step, donate_argnums=(0, 2, 3))
        return self._compiled

    def _new_slots(self) -> tuple[dict[str, list[Any]], list[tuple[dict[str, Any], dict[str, Any]]]]:
        """Make the state; for a runner on the host each slot is one buffer a dtype, and its leaves are views of it."""
        stages, layout = self._stages, self._layout
        if not stages.runner.host:
            return stages.new_slots(), [({}, {}) for _ in stages.batches if stages.runner.name == "cuda"]
        slots: dict[str, list[Any]] = {n: [None] * len(layout.leaves) for n in stages.live}
        kept: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for batch in stages.batches:
            live, arena = batch.plan.live, dict[str, Any]()
            if batch.plan.whole:
                for n in live:
                    for k in batch.leaves:
                        slots[n][k] = stages.new_slot(n, k)
                kept.append(({}, {}))
                continue
            params = [layout.leaves[k] for k in batch.leaves]
            at, end = stages.runner.places(layout.library, params, len(live), batch.dtype, batch.split)
            for n in live:
                dtype = np.dtype(stages.slot_dtype(n, batch.leaves[0]))
                buffer = _arrays.aligned(end, dtype)
                buffer[...] = 0  # what lies between the leaves is computed with
                arena[n] = (buffer, at)
                flat = buffer if layout.library == "numpy" else layout.xp.asarray(buffer)
                for start, k in zip(at, batch.leaves, strict=True):
                    shape = layout.shapes[k]
                    slots[n][k] = flat[start : start + math.prod(shape)].reshape(shape)
                    slots[n][k][...] = _arrays.detached(layout.library, stages.first_value(n, k))
            kept.append(({} if batch.split else arena, {}))
        return slots, kept
