"""What rules, chains and what stands around them have in common: ``init``, ``apply`` and ``updates``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias, overload

from xopt._engine.program.contract import Chains, ComponentSpec
from xopt._public import public
from xopt.rule import _precision as _precision
from xopt.rule._component import Component, Layout, routed
from xopt.rule._curvature import TakesCurvature
from xopt.rule._names import Named, named
from xopt.rule._precision import Rounding, StateDType
from xopt.rule._steady import weighted

RunnerName: TypeAlias = Literal["eager", "tiled", "llvm", "cuda"]


@public
class State(NamedTuple):
    """Optimizer state: what a rule remembers between steps; a pytree in every library that has pytrees.

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> xopt.SGD(momentum=0.9).init({"w": np.ones(2)})
    State(step=0, slots={'0.sgd.m': {'w': array([0., 0.])}}, carry={})
    """

    step: Any
    """Steps taken so far: an int; on JAX a 0-d int32 array, so that a jitted step traces once."""
    slots: dict[str, Any]
    """Place, rule and slot (``"0.adam.m"``) to a tree shaped like the parameters. A key that begins with ``precision=``
    has an empty dict, and says how :meth:`Rule.init` was asked to keep the state."""
    carry: dict[str, Any]
    """Scalars that a chain keeps for the whole tree."""


@public
class FunctionalOptimizer(TakesCurvature):
    """What rules and chains have in common: ``init``, ``apply`` and ``updates``."""

    __slots__ = ()

    @abstractmethod
    def _parts(self) -> tuple[Component, ...]:
        """Return the components: a rule is a chain of one."""

    @abstractmethod
    def _with(self, values: Mapping[str, Any]) -> FunctionalOptimizer:
        """Return this rule or chain with other values of some hyperparameters."""

    def _all_links(self) -> list[Named]:
        """Return every component, with those inside of others."""
        return named(self._parts())

    def _specs(self) -> tuple[ComponentSpec, ...]:
        parts = self._parts()
        return weighted(parts, [part._spec(f"{i}.{part._label()}", (i,)) for i, part in enumerate(parts)])

    def _chains(self, layout: Layout) -> Chains:
        """Return the components that each leaf goes through."""
        parts = self._parts()
        if all(type(part)._route is Component._route for part in parts):
            return Chains([self._specs()], [0] * len(layout.leaves))
        numbers: dict[Any, int] = {}
        chains: list[tuple[ComponentSpec, ...]] = []
        of: list[int | None] = []
        for k in range(len(layout.leaves)):
            links = routed(parts, [f"{i}." for i in range(len(parts))], layout, k)
            if links is None:
                of.append(None)
                continue
            key = tuple((link.label, link.role) for link in links)  # not the values: they may be set to others
            if key not in numbers:
                numbers[key] = len(chains)
                specs = [link.part._spec(link.label, link.order) for link in links]
                chains.append(weighted([link.part for link in links], specs))
            of.append(numbers[key])
        return Chains(chains, of)

    def _keeping(self, state: Any) -> tuple[FunctionalOptimizer, Any, dict[str, Any]]:
        """Return the rule that keeps a state as it was asked to, the state as that rule knows it, and what said so."""
        if not all(hasattr(state, field) for field in State._fields):
            return self, state, {}  # which is refused when it is looked at
        found = _precision.recorded(state.slots)
        if found is None:
            return self, state, {}
        key, link = found
        others = {n: x for n, x in state.slots.items() if n != key}
        return Wrapper(self, _precision.checked(self, link)), State(state.step, others, state.carry), {key: {}}

    def _asked(self, **words: Any) -> tuple[FunctionalOptimizer, dict[str, Any]]:
        """Return the rule that keeps a state as a caller asks for, and what the state has to say of it."""
        link = _precision.asked(self, **words)
        return Wrapper(self, link), {_precision.mark(link): {}}

    def init(
        self,
        params: Any,
        *,
        rounding: Rounding = "nearest",
        master_weights: bool = False,
        state_dtype: StateDType = None,
        seed: int = 0,
    ) -> State:
        """Return the state before the first step.

        Parameters
        ----------
        params
            An array of any library, or any nest of dict, list, tuple, namedtuple, dataclass, subclasses of these, and
            what JAX knows as a pytree, in float16, bfloat16, float32, float64, complex64 or complex128. Arrays of
            subclasses of ``numpy.ndarray`` are computed with as arrays, and new parameters are of that class again;
            matrices, masked arrays and those with units are refused.
        rounding, master_weights, state_dtype, seed
            The precision in which parameters and optimizer state are stored, see :class:`~xopt.Precision`. The state
            remembers it, by one more key in its slots that has no arrays, and each step from it goes on so. What takes
            a state apart must keep that key: without it, ``"stochastic"`` would silently be ``"nearest"``.

        Returns
        -------
        State
            Its arrays have the parameters' library, device and shape, in float32 at least, unless they are asked to be
            kept otherwise.

        Raises
        ------
        TypeError
            For what is not an array, an integer or bool array, or arrays of different libraries.
        ValueError, TypeError
            As :class:`~xopt.Precision` does, and where the rule has one already.

        Examples
        --------
        >>> import numpy as np
        >>> import xopt
        >>> rule, w = xopt.SGD(lr=1e-4), np.ones(3, "float16")
        >>> state = rule.init(w, rounding="kahan")
        >>> for _ in range(1000):
        ...     w, state = rule.apply(w, np.ones(3, "float16"), state)
        >>> w
        array([0.9, 0.9, 0.9], dtype=float16)
        """
        from xopt.rule import _run

        rule, recorded = self, dict[str, Any]()
        if not _precision.is_default(rounding, master_weights, state_dtype, seed):
            rule, recorded = self._asked(
                rounding=rounding, master_weights=master_weights, state_dtype=state_dtype, seed=seed
            )
        step, slots, carry = _run.first(rule._chains, params)
        return State(step, {**slots, **recorded}, carry)

    @overload
    def apply(
        self,
        params: Any,
        grads: Any,
        state: State,
        *,
        value: Any = None,
        runner: RunnerName | None = None,
        metrics: None = None,
        **overrides: Any,
    ) -> tuple[Any, State]: ...
    @overload
    def apply(
        self,
        params: Any,
        grads: Any,
        state: State,
        *,
        value: Any = None,
        runner: RunnerName | None = None,
        metrics: Collection[str],
        **overrides: Any,
    ) -> tuple[Any, State, dict[str, Any]]: ...
    def apply(
        self,
        params: Any,
        grads: Any,
        state: State,
        *,
        value: Any = None,
        runner: RunnerName | None = None,
        metrics: Collection[str] | None = None,
        **overrides: Any,
    ) -> tuple[Any, ...]:
        """Take one step and return new parameters and a new state. Pure: what is passed in is never written.

        Parameters
        ----------
        params, grads
            Trees of one structure, in which lists and tuples may stand for each other, and so may mappings; shapes,
            dtypes, library and device agree leaf by leaf. A gradient of None leaves
            its parameter and its state alone; one of :class:`~xopt.SparseRows` has some rows of a table.
        state
            From :meth:`init` or the step before.
        value
            The loss, for rules with a component that asks for it; others take no notice of it.
        runner
            ``"eager"``, ``"tiled"``, ``"llvm"`` or ``"cuda"``; None is the best available.
        metrics
            Return, third, a dict as :attr:`xopt.Optimizer.metrics`: ``()`` for what the step computes anyway, and names
            of norms to compute for it: ``"grad_norm"``, ``"param_norm"``, ``"update_norm"``.
        **overrides
            Hyperparameters for this step only: ``lr=0.1``, in a chain also ``**{"adamw.lr": 0.1}``.

        Raises
        ------
        ValueError, TypeError
            When anything does not fit; the message names the path and both sides.

        Examples
        --------
        >>> import numpy as np
        >>> import xopt
        >>> rule, w = xopt.chain(xopt.ClipByGlobalNorm(1.0), xopt.SGD(lr=0.5)), np.zeros(2)
        >>> rule.apply(w, np.asarray([3.0, 4.0]), rule.init(w), metrics=["update_norm"])[2]
        {'grad_norm': 5.0, 'clip_factor': 0.2, 'lr': 0.5, 'update_norm': 0.5}
        """
        return self._step(params, grads, state, runner, overrides, {"value": value}, metrics, change=False)

    @overload
    def updates(
        self,
        params: Any,
        grads: Any,
        state: State,
        *,
        value: Any = None,
        runner: RunnerName | None = None,
        metrics: None = None,
        **overrides: Any,
    ) -> tuple[Any, State]: ...
    @overload
    def updates(
        self,
        params: Any,
        grads: Any,
        state: State,
        *,
        value: Any = None,
        runner: RunnerName | None = None,
        metrics: Collection[str],
        **overrides: Any,
    ) -> tuple[Any, State, dict[str, Any]]: ...
    def updates(
        self,
        params: Any,
        grads: Any,
        state: State,
        *,
        value: Any = None,
        runner: RunnerName | None = None,
        metrics: Collection[str] | None = None,
        **overrides: Any,
    ) -> tuple[Any, ...]:
        """Return what :meth:`apply` would add to the parameters, and the new state.

        Zero where the gradient is None. Arguments and errors are those of :meth:`apply`.
        """
        return self._step(params, grads, state, runner, overrides, {"value": value}, metrics, change=True)

    def _reads_params(self, like: Any, state: State) -> bool:
        """Whether a step computes with parameters, shaped like these arrays, and not with gradients and state alone."""
        from xopt.rule import _run

        return _run.reads_params(self._keeping(state)[0]._chains, like)

    def _following(self, params: Any, state: State) -> list[str]:
        """Return the slots that begin at the parameters."""
        from xopt.rule import _run

        return _run.following(self._keeping(state)[0]._chains, params)

    def eval_params(self, params: Any, state: State) -> Any:
        """Return the parameters to evaluate or to ship, which for some rules are not those that are trained.

        Schedule-free rules return their average, chains with a component that averages weights the average; of several
        such components the last is asked. Others return a copy.

        Parameters
        ----------
        params, state
            As :meth:`apply` or :meth:`init` returned them. They are not written.

        Examples
        --------
        >>> import numpy as np
        >>> import xopt
        >>> rule, w = xopt.chain(xopt.SGD(lr=1.0), xopt.EMA(0.5)), np.asarray([2.0])
        >>> w, state = rule.apply(w, np.asarray([1.0]), rule.init(w))
        >>> w, rule.eval_params(w, state)
        (array([1.]), array([1.5]))
        """
        from xopt.rule import _run

        rule, state, _ = self._keeping(state)
        return _run.averaged(rule._chains, params, state)

    def _step(
        self,
        params: Any,
        grads: Any,
        state: State,
        runner: RunnerName | None,
        overrides: Mapping[str, Any],
        inputs: Mapping[str, Any],
        metrics: Collection[str] | None,
        change: bool,
    ) -> tuple[Any, ...]:
        from xopt.rule import _run

        rule, state, recorded = self._keeping(state)
        new, (t, slots, carry), found = _run.stepped(
            rule._with(overrides)._chains, params, grads, state, runner, inputs, change, metrics
        )
        made = State(t, slots | recorded, carry)
        return (new, made) if metrics is None else (new, made, found)


@public
def check_method(rule: object) -> None:
    """Refuse what is neither a rule nor a chain."""
    if not isinstance(rule, FunctionalOptimizer):
        got = rule.__name__ if isinstance(rule, type) else type(rule).__name__
        hint = "; make an object of it" if isinstance(rule, type) and issubclass(rule, Component) else ""
        hint = "; put it in a chain with a rule" if isinstance(rule, Component) else hint
        raise TypeError(f"rule: {got}, but it must be a rule or a chain{hint}")


@public
def refuse_curvature(rule: FunctionalOptimizer, where: str) -> None:
    """Refuse a rule that asks for estimates of the curvature, where there is no way to give them."""
    for link in rule._all_links():
        if link.part.curvature is not None:
            raise TypeError(
                f"rule: {type(link.part).__name__} asks for estimates of the curvature, and {where} gives none; "
                f"xopt.Optimizer takes them, by update_curvature"
            )


class Wrapper(FunctionalOptimizer):
    """A rule with a component in front of everything."""

    __slots__ = ("_first", "rule")

    def __init__(self, rule: FunctionalOptimizer, first: Component | None) -> None:
        check_method(rule)
        self.rule, self._first = rule, first
        name, inner = type(first if type(self) is Wrapper else self).__name__, rule
        while isinstance(inner, Wrapper):
            if first is not None and inner._first is not None:
                places = {first._label(), inner._first._label()}
                if len(places) == 1:
                    raise ValueError(f"{name}: there is one already inside")
                if places == {"lossscale", "nonfinite"}:
                    raise ValueError(
                        f"{name}: there is a {type(inner).__name__} inside, but LossScale itself leaves "
                        f"out steps that are not finite, and must see them: a Guard around it would hide them from "
                        f"it, and one inside would never see any"
                    )
            inner = inner.rule

    def _parts(self) -> tuple[Component, ...]:
        return self.rule._parts()

    def _all_links(self) -> list[Named]:
        own = [] if self._first is None else [Named((), self._first._label(), self._first._label(), self._first)]
        return own + self.rule._all_links()

    def _with(self, values: Mapping[str, Any]) -> FunctionalOptimizer:
        new = object.__new__(type(self))
        new.rule, new._first = self.rule._with(values), self._first
        return new

    def _chains(self, layout: Layout) -> Chains:
        chains, of = self.rule._chains(layout)
        if self._first is None:
            return Chains(chains, of)
        front = min((spec.order[0] for chain in chains for spec in chain), default=0) - 1
        first = self._first._spec(self._first._label(), (front,))
        return Chains([(first, *chain) for chain in chains], of)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and (self.rule, self._first) == (other.rule, other._first)

    def __hash__(self) -> int:
        return hash((type(self), self.rule, self._first))
