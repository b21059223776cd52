"""The optimizer that writes into the arrays it was given."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Generator
from typing import Any, Literal

import numpy as np

from xopt import _arrays
from xopt._arrays import tree as _tree
from xopt._arrays.layout import AliasGuard, Layout
from xopt._arrays.scalars import after
from xopt._curvature import CurvatureUpdates
from xopt._engine import buffers as _buffers
from xopt._engine.block import block
from xopt._engine.exclusive import ExclusiveAccess
from xopt._engine.executor import Executor, Kept, StepInputs
from xopt._engine.jitted import JittedStep
from xopt._engine.program.contract import Chains
from xopt._logging import Logged
from xopt._public import public
from xopt.checkpoint._saving import Saving
from xopt.rule import FunctionalOptimizer, RunnerName, State, check_method
from xopt.rule import _precision as _precision
from xopt.rule._metrics import check_names, measured
from xopt.rule._names import qualified_names
from xopt.rule._overrides import Known, plain_numbers
from xopt.rule._precision import Rounding, StateDType
from xopt.transforms._precision import Precision
from xopt.transforms._wrappers import Guard, OnNonFinite


@public
class Optimizer(Saving, Logged, CurvatureUpdates):
    """An optimizer for one tree of parameters, updated in place: a rule and its state.

    Parameters
    ----------
    params
        An array, or any nest of dict, list, tuple, namedtuple, dataclass, subclasses of these, and what JAX knows as a
        pytree (if it is imported), of arrays of one library. NumPy, CuPy,
        torch and array-api-strict arrays are written into; where arrays are immutable (JAX, dask), or not known to be
        writable, :attr:`params` is rebound instead.
    rule
        A rule or a chain.
    runner
        ``"eager"``: the library's own operations, one after the other. ``"tiled"``: NumPy arrays, and CPU arrays that
        share memory with one, a tile at a time. ``"llvm"``: the same arrays in one compiled loop, if llvmlite is
        installed. ``"cuda"``: CuPy arrays and torch CUDA tensors, one launch for all. None: the best available.
    on_nonfinite
        What to do with a gradient that is infinite or NaN somewhere: ``"propagate"``, ``"skip"``, ``"zero"`` or
        ``"raise"``, see :class:`~xopt.Guard`.
    rounding, master_weights, state_dtype, seed
        The precision in which parameters and optimizer state are stored, see :class:`~xopt.Precision`.
    metrics
        Norms to compute for :attr:`metrics`, of the whole tree: ``"grad_norm"`` of the gradients that the rule is
        given, ``"param_norm"`` of the parameters before the step, ``"update_norm"`` of the step, before it is rounded
        and before what is done to the new parameters. A norm reads its arrays once more.
    comm
        Shard the optimizer state over processes (ZeRO-1), see :doc:`/distributed`: a communicator of mpi4py, a process
        group of ``torch.distributed``, a :class:`xopt.distributed.Communicator`, or, for arrays of CuPy, a pair of a
        ``cupyx.distributed.NCCLBackend`` and of one of these for words. Every rank makes the optimizer and
        calls its methods, with its own gradients; all ranks have all parameters, and 1/N of the state.
    total
        With ``comm``, what the gradient of a step is of those of all ranks: ``"sum"`` or ``"mean"``.
    owned
        With ``comm``: whether each rank has its own part of each parameter. Then norms and sums are over all ranks, and
        nothing else is sent.
    parts
        With ``comm``, of how many gradients a step adds up, a multiple of the number of ranks N: :meth:`step` takes a
        list of ``parts`` / N of them, and the result has the same bits for every N. None: one on each rank.

    Raises
    ------
    TypeError
        For a leaf that is no floating-point array, or a NumPy scalar, or of another library than the first.
    ValueError
        For a read-only array, for arrays that share memory with each other, and for a runner that cannot serve them.

    Notes
    -----
    State in bytes per parameter is the rule's; the scratch of the tiled runner is a few megabytes, whatever the size of
    the parameters. Everything is checked before the first write: a step that raises has changed nothing. What stops a
    step while it writes (Ctrl-C, no memory for a thread) leaves some arrays new and some old; this is noticed, and
    every later call but :meth:`load` refuses. So does a call while another thread is in one: two optimizers in two
    threads are fine. Properties, :meth:`hyperparams` and ``repr`` only look, and answer at any time. The tree keeps the
    arrays that it had: every call refuses when one was replaced (``params["w"] = x``), has another shape or dtype, or
    is gone; where :attr:`params` is rebound, the tree is that one, and no longer yours. ``pickle`` and
    ``copy.deepcopy`` make an optimizer with arrays of its own that goes on with the same bits.

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
        rule: FunctionalOptimizer,
        *,
        runner: RunnerName | None = None,
        on_nonfinite: OnNonFinite = "propagate",
        rounding: Rounding = "nearest",
        master_weights: bool = False,
        state_dtype: StateDType = None,
        seed: int = 0,
        metrics: Collection[str] = (),
        comm: Any = None,
        total: Literal["sum", "mean"] = "sum",
        owned: bool = False,
        parts: int | None = None,
    ) -> None:
        if comm is not None and type(self) is Optimizer:  # a name for users, two classes
            kind: Any = importlib.import_module("xopt._sharded").ShardedOptimizer
            self.__class__ = kind
            kind.__init__(
                self, params, rule, comm=comm, total=total, owned=owned, parts=parts, runner=runner,
                on_nonfinite=on_nonfinite, rounding=rounding, master_weights=master_weights, state_dtype=state_dtype,
                seed=seed, metrics=metrics,
            )  # fmt: skip
            return
        if comm is not None or total != "sum" or owned or parts is not None:
            raise TypeError("total, owned and parts go with comm, which a class of your own cannot have")
        check_method(rule)
        self._asked = check_names(metrics)
        if not _precision.is_default(rounding, master_weights, state_dtype, seed):
            rule = Precision(rule, rounding=rounding, master_weights=master_weights, state_dtype=state_dtype, seed=seed)
        if on_nonfinite != "propagate":
            rule = Guard(rule, on_nonfinite)
        self._begin(rule, params, runner)

    def _begin(self, rule: FunctionalOptimizer, params: Any, runner: Any) -> None:
        """Make everything that hangs on parameters, as before the first step."""
        self._rule, self._wanted, self._taken = rule, runner, 0
        self._fields: Known = {}
        self._hooks = []
        self._executor = self._ready(params, runner)
        self._tree = params
        self._writes = self._layout.library.writes
        if self._layout.library.jits:  # the step donates its buffers; the caller's stay alive
            self._layout.leaves = [self._layout.xp.asarray(p, dtype=p.dtype, copy=True) for p in self._layout.leaves]
        if not self._writes:
            self._tree = self._layout.tree(self._layout.leaves)
        self._watch = _tree.Watch(params, self._whole.spec, self._whole.given) if self._writes else None
        self._slots, self._memory = _buffers.new_slots(self._executor)
        self._carry = self._executor.new_carry()
        inspector = self._executor.runner.inspector
        held = _buffers.arrays(self._executor, self._slots, self._memory)
        self._guard = AliasGuard(self._layout, held, inspector)
        self._access = ExclusiveAccess(self._executor.writing)
        self._jitted = JittedStep(self._executor) if self._layout.library.jits else None

    def _ready(self, params: Any, runner: Any) -> Executor:
        """Look at the parameters, and return what takes the steps."""
        self._layout = self._whole = Layout(params, writable=True)
        return Executor(self._chains(self._rule), self._layout, runner)

    def _chains(self, rule: FunctionalOptimizer) -> Chains:
        return measured(rule._chains(self._layout), self._asked)

    @property
    def params(self) -> Any:
        """The parameters. Live: the next step overwrites them (on JAX, it deletes them); copy what you want to keep."""
        return self._tree

    @property
    def rule(self) -> FunctionalOptimizer:
        """The rule, with the hyperparameters as last set."""
        return self._rule

    @property
    def runner(self) -> str:
        """Which runner computes the steps."""
        name: str = self._executor.runner.name
        return name

    @property
    def rank(self) -> int:
        """Which of the processes of ``comm`` this is, from 0 on; 0 without one."""
        return 0

    @property
    def state(self) -> State:
        """The state. Live, like :attr:`params`."""
        return State(
            self._taken, {n: self._layout.tree(column) for n, column in self._slots.items()}, dict(self._carry)
        )

    @property
    def steps_taken(self) -> int:
        """How many steps were taken. Setting it moves schedules, bias corrections and noise there; state stays.

        Examples
        --------
        >>> import numpy as np
        >>> import xopt
        >>> opt = xopt.Optimizer(np.zeros(1), xopt.SGD(lr=xopt.schedules.polynomial(1.0, end=0.0, steps=10)))
        >>> opt.steps_taken = 5
        >>> opt.step(np.ones(1)), opt.steps_taken
        (array([-0.5]), 6)
        """
        return int(self._taken)

    @steps_taken.setter
    def steps_taken(self, count: int) -> None:
        with self._access.acquire("steps_taken"):
            self._access.check("steps_taken", swapped=True)
            if isinstance(count, bool) or not isinstance(count, int | np.integer):
                raise TypeError(f"steps_taken: {count!r}, but it must be a whole number")
            if count < 0:
                raise ValueError(f"steps_taken: {count}, but it must be ≥ 0")
            self._taken = self._executor.state.new_step(int(count))

    @property
    def loss_scale(self) -> Any:
        """What to multiply the loss with, see :class:`~xopt.LossScale`; 1.0 without one. Live, like :attr:`params`."""
        return self._carry.get("lossscale.scale", 1.0)

    def step(self, grads: Any, *, value: Any = None, **overrides: Any) -> Any:
        """Take one step and return the parameters.

        Parameters
        ----------
        grads
            A tree like the parameters; None leaves its parameter and its state alone; :class:`SparseRows` are rows.
        value
            The loss, for rules with a component that asks for it; others take no notice of it.
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
        with self._access.acquire("step"):
            self._fit("step")
            params = self._step(grads, value, overrides)
        for hook, every in tuple(self._hooks):
            if self._taken % every == 0:
                hook(self)
        return params

    def _step(self, grads: Any, value: Any, overrides: dict[str, Any]) -> Any:
        executor = self._executor
        gs, where = self._guard.gradients(grads)
        if self._guard.moved:
            self._forget()
        again = executor.again(self._memory) if where is not None and value is None else None
        numbers = plain_numbers(self._rule, overrides, self._fields) if again is not None else None
        if again is not None and numbers is not None and type(self._taken) is int:
            t = after(self._taken)
            with executor.writing:
                again.run(t, where, executor.writing, numbers)
                executor.seen = again.seen
                self._written(gs, where)
                self._taken = t
            return self._tree
        chains = self._chains(self._rule._with(overrides)).chains if overrides else None
        inputs = {"value": value} if value is not None or executor.inputs else {}
        step = executor.begin(self._taken, self._carry, inputs, chains)
        return self._take(step, gs, where)

    def _take(self, step: StepInputs, gs: list[Any], where: Any) -> Any:
        """Take a step of which all but the arrays is known."""
        layout, executor = self._layout, self._executor
        ps, slots, writing = layout.leaves, self._slots, executor.writing
        with writing:
            if self._jitted is not None:
                ps, slots, carry = self._jitted.run(step, ps, gs, slots, self._carry)
            else:
                into, memory = writing if self._writes else None, self._memory
                ps, slots, carry = executor.run(
                    step, ps, gs, slots, self._carry, writing=into, memory=memory, where=where
                )
            if not self._writes:
                writing.begin()
                layout.leaves, self._slots = ps, slots
                self._tree = layout.tree(ps)
            self._written(gs, where)
            self._carry, self._taken = carry, step.t
        return self._tree

    def _written(self, gs: list[Any], where: Any) -> None:
        """Tell the library, if it wants to know, which parameters are new."""
        layout, bucket_of = self._layout, self._executor.bucket_of
        if layout.library.graphs:
            every = where is not None and None not in bucket_of
            rows = zip(layout.leaves, gs, bucket_of, strict=True)
            layout.library.written(layout.leaves if every else [p for p, g, b in rows if g is not None and b])

    def _fit(self, what: str, torn: bool = False) -> None:
        """Refuse a call at the wrong time, and one after the arrays of the tree were replaced by others."""
        self._access.check(what, torn=torn)
        if self._watch is not None:
            k = self._watch.changed("params")
        else:
            now = _tree.match(self._layout.spec, self._tree, "params", _tree.GIVEN)
            k = next((k for k, (x, p) in enumerate(zip(now, self._layout.leaves, strict=True)) if x is not p), None)
        if k is not None:
            how = "write into that one (p[...] = x)" if self._writes else "use load_state_dict"
            raise ValueError(
                f"{self._whole.path(k)}: not the array that this optimizer trains, but another one that was put in "
                f"its place; {how}, or make another optimizer"
            )

    def _forget(self) -> None:
        """Drop what runners know of where parameters lie."""
        self._memory = [Kept(kept.arenas, {}, []) for kept in self._memory]
        self._guard.moved = False

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
        with self._access.acquire("eval_params"):
            self._fit("eval_params")
            return self._averages()

    def _averages(self) -> Any:
        return self._rule.eval_params(self.params, self.state)

    def set(self, **values: Any) -> None:
        """Change hyperparameters from the next step on: ``opt.set(lr=0.01)``.

        In a chain, a name that is not unique is qualified: ``opt.set(**{"adamw.lr": 0.01})``. Values are numbers or
        schedules. Nothing is compiled anew.

        Raises
        ------
        TypeError, ValueError
            For a name that there is not, a static field, a value out of range. Nothing is changed then.
        RuntimeError
            As for :meth:`step`; but the block of :meth:`averaged` is no hindrance.
        """
        with self._access.acquire("set"):
            self._access.check("set", swapped=True)
            rule = self._rule._with(values)
            self._fields = {}
            self._executor.chains = self._executor.checked(self._chains(rule).chains)
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
        layout, tree, writing, begun = self._whole, self._tree, self._executor.writing, False
        try:
            with self._access.acquire("averaged"):
                self._fit("averaged")
                new = self._averages()
                held = [_arrays.detached(p) for p in layout.leaves]
                old = [layout.xp.asarray(p, copy=True) for p in held] if self._writes else []
                begun = self._access.swapped = True
            if self._writes:
                layout.library.overwrite(layout.leaves, Layout(new).leaves)
            else:
                self._tree = new
            yield self._tree
        finally:
            if begun:  # no call comes before these lines, where Ctrl-C could
                writing.torn = self._writes
                self._tree, self._access.swapped = tree, False
                writing.alone = True  # another rank may have left the block already, or wait in it
                with writing:
                    if self._writes:
                        writing.begin()
                        layout.library.overwrite(layout.leaves, old)
                writing.alone = False

    def __repr__(self) -> str:
        n = sum(self._whole.sizes)
        return (
            f"Optimizer({self._rule!r}, {len(self._whole.leaves)} arrays of {self._layout.library}, {n:,} parameters, "
            f"runner={self.runner!r}, step={self._taken})"
        )
