"""A rule as a Keras optimizer: for ``compile``, ``fit``, callbacks and saved models on the JAX and PyTorch backends."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from xopt import _arrays
from xopt._parse import parse_rule
from xopt.rule import FunctionalOptimizer, State, check_method, refuse_curvature
from xopt.rule._names import learning_rates, qualified_names
from xopt.rule._precision import Rounding, StateDType, is_default
from xopt.schedules import Schedule

__all__ = ["Optimizer"]


class _Rate(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc, unused-ignore]
    """Shows Keras the learning rate that is the rule's own: a schedule of xopt, or none at all."""

    def __init__(self, schedule: Any) -> None:
        self.schedule = schedule

    def __call__(self, step: Any) -> Any:
        found = self.schedule(keras.ops.convert_to_tensor(step) + 1) if callable(self.schedule) else 1.0
        return keras.ops.cast(found, keras.backend.floatx())

    def get_config(self) -> dict[str, Any]:
        return {}


@keras.saving.register_keras_serializable(package="xopt")
class Optimizer(keras.optimizers.Optimizer):  # type: ignore[misc, unused-ignore]
    r"""A rule as a ``keras.optimizers.Optimizer``, on the JAX, PyTorch and NumPy backends of Keras 3.

    Parameters
    ----------
    rule
        A rule or a chain. Keras gives an optimizer no loss, and scales it by itself: a component that needs the loss is
        refused, and so is :class:`xopt.LossScale`.
    learning_rate
        In place of the rule's ``lr``: a float ≥ 0, a schedule of Keras or a function without arguments. By default the
        rule's own, which callbacks of Keras may change if it is a number.
    rounding, master_weights, state_dtype, seed
        The precision in which the optimizer state is stored, as for :meth:`xopt.Rule.init`.
    **options
        ``clipnorm``, ``clipvalue``, ``global_clipnorm``, ``use_ema``, ``ema_momentum``, ``ema_overwrite_frequency``,
        ``loss_scale_factor``, ``gradient_accumulation_steps``, ``name`` and ``weight_decay`` are Keras's own; the last
        multiplies weights by 1 - lr·weight_decay before the step.

    Raises
    ------
    TypeError, ValueError
        As :meth:`xopt.Rule.init` does, when the optimizer is built. For a rule without one ``lr`` where a learning rate
        is given or set; on another backend of Keras.

    Notes
    -----
    The state is in variables of Keras, with the dtype, device and layout that the rule asks for, and is saved with the
    model; so is the rule, as its ``repr``. A rule with a function of the user's in it, which has no such text, can be
    trained with, and its weights can be saved.

    Parameters are named by the ``path`` of their variable, ``sequential/dense/kernel``, which globs of
    :class:`xopt.Groups` see; of two with one path the second one is ``net/d#2/kernel``.

    State is that of the rule.

    Examples
    --------
    >>> import keras
    >>> import numpy as np
    >>> import xopt
    >>> from xopt.adapters.keras import Optimizer
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile(Optimizer(xopt.AdamW(lr=0.1), global_clipnorm=1.0), loss="mse")
    >>> x = np.linspace(-1, 1, 96, dtype="float32").reshape(32, 3) ** [1, 2, 3]
    >>> history = model.fit(x, x @ [1.0, -2.0, 0.5], epochs=60, verbose=0)
    >>> bool(history.history["loss"][-1] < 0.05)
    True
    """

    def __init__(
        self,
        rule: FunctionalOptimizer,
        learning_rate: Any = None,
        *,
        rounding: Rounding = "nearest",
        master_weights: bool = False,
        state_dtype: StateDType = None,
        seed: int = 0,
        name: str = "xopt",
        **options: Any,
    ) -> None:
        if _arrays.library(keras.ops.zeros(())) is None:
            raise ValueError(
                f"the {keras.backend.backend()} backend of Keras has no arrays that xopt computes with; use that of "
                f"JAX or of PyTorch"
            )
        check_method(rule)
        refuse_curvature(rule, "Keras")
        for link in rule._all_links():
            if link.label == "lossscale":
                raise TypeError("rule: LossScale scales the loss, which Keras does by itself: loss_scale_factor=...")
            if link.part.inputs:
                raise TypeError(f"rule: {type(link.part).__name__} needs the loss, and Keras gives its optimizers none")
        keep: dict[str, Any] = {
            "rounding": rounding,
            "master_weights": master_weights,
            "state_dtype": state_dtype,
            "seed": seed,
        }
        if not is_default(*keep.values()):
            rule._asked(**keep)  # raises what is wrong with them
        rates = qualified_names(rule._parts())
        own: Any = rates["lr"][0].part._value("lr") if "lr" in rates else None
        steered = learning_rate is not None or isinstance(own, int | float)
        if learning_rate is not None and "lr" not in rates:
            raise TypeError(
                f"learning_rate: {learning_rate!r}, but {rule!r} has no single lr; it has {learning_rates(rates)}"
            )
        if isinstance(learning_rate, Schedule):
            raise TypeError(f"learning_rate: {learning_rate!r} is a schedule of xopt, which belongs into the rule")
        if learning_rate is None:
            learning_rate = float(own) if steered else _Rate(own)
        elif isinstance(learning_rate, int | float):
            rule._with({"lr": learning_rate})  # raises what is wrong with it
            learning_rate = float(learning_rate)
        super().__init__(learning_rate, name=name, **options)
        self.rule, self._keep = rule, keep
        self._steered = steered
        """Whether Keras has the learning rate, and the rule is given it in each step."""

    def build(self, variables: list[Any]) -> None:
        """Make the variables of the state."""
        if self.built:
            return
        super().build(variables)
        mine = [v for v in variables if not self._overwrite_variable_with_gradient(v)]
        names = _names([v.path for v in mine])
        params = {n: v.value for n, v in zip(names, mine, strict=True)}
        state = self.rule.init(params, **self._keep)
        slots, notes = dict[str, list[Any]](), dict[str, Any]()
        for slot, tree in state.slots.items():
            if slot.startswith("precision="):
                notes[slot] = tree
            else:
                rows = zip(names, mine, strict=True)
                slots[slot] = [None if tree[n] is None else self._variable(slot, tree[n], v) for n, v in rows]
        carry = {n: (self._variable(n, x), type(x)) for n, x in state.carry.items()}
        follows = self.rule._following(params, state)
        # a tuple, in which Keras does not look for variables
        object.__setattr__(self, "_state", _Variables(mine, names, slots, carry, notes, follows, type(state.step)))

    def _variable(self, slot: str, x: Any, like: Any = None) -> Any:
        """Make a variable of the state that begins with ``x``."""
        shape = tuple(np.shape(x))
        layout = getattr(like, "_layout", None) if like is not None and shape == tuple(like.shape) else None
        dtype = keras.backend.standardize_dtype(x.dtype) if hasattr(x, "dtype") else "float64"
        name = slot.replace(".", "_") if like is None else f"{like.path.replace('/', '_')}_{slot.replace('.', '_')}"
        made = self.add_variable(shape, dtype=dtype, name=name, layout=layout)
        made.assign(x)
        return made

    def _backend_update_step(self, grads: list[Any], trainable_variables: list[Any], learning_rate: Any) -> None:
        own = self._state
        given = {id(v): g for v, g in zip(trainable_variables, grads, strict=True)}
        gradient = {i: keras.ops.cast(g, v.dtype) for v in own.mine if (g := given.get(i := id(v))) is not None}
        params = own.tree([v.value for v in own.mine])
        state = own.state(self.iterations)
        later = type(state.step) is int and state.step > 0  # else it may be a tracer
        if own.follows and not later:  # weights may have been loaded after the optimizer was built
            first = self.iterations == 0
            fresh = self.rule.init(params, **self._keep).slots
            for n in own.follows:
                state.slots[n] = own.tree([
                    None if v is None else keras.ops.where(first, a, b)
                    for v, a, b in zip(own.slots[n], own.column(fresh[n]), own.column(state.slots[n]), strict=True)
                ])  # fmt: skip
        words = {"lr": keras.ops.convert_to_tensor(learning_rate)} if self._steered else {}
        new, state = self.rule.apply(params, own.tree([gradient.get(id(v)) for v in own.mine]), state, **words)
        for v, x in zip(own.mine, own.column(new), strict=True):
            if id(v) in gradient:
                v.assign(x)
        own.assign(state)

    @property
    def learning_rate(self) -> Any:
        """The learning rate of the next step: the variable that callbacks set, or what a schedule says."""
        return super().learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        if not self._steered:
            raise TypeError(f"learning_rate: cannot be set, because it is the business of {self.rule!r}")
        if isinstance(learning_rate, int | float):
            self.rule._with({"lr": learning_rate})  # raises what is wrong with it
        keras.optimizers.Optimizer.learning_rate.fset(self, learning_rate)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Put averages in place of the weights in a ``with`` block, between calls of ``fit``.

        They are what :meth:`xopt.Rule.eval_params` makes of the weights: those of :class:`xopt.EMA`, of
        :class:`xopt.SWA` or of a schedule-free rule.
        """
        if not self.built:
            raise ValueError("averaged: the optimizer has no variables yet; fit the model, or build the optimizer")
        own = self._state
        before = [keras.ops.copy(v.value) for v in own.mine]
        params = own.tree([v.value for v in own.mine])
        found = own.column(self.rule.eval_params(params, own.state(self.iterations)))
        try:
            for v, x in zip(own.mine, found, strict=True):
                v.assign(x)
            yield
        finally:
            for v, x in zip(own.mine, before, strict=True):
                v.assign(x)

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` makes this optimizer of; a ValueError says that a rule has no text."""
        text = repr(self.rule)
        try:
            own = {type(link.part).__name__: type(link.part) for link in self.rule._all_links()}
            same = parse_rule(text, lambda name: own.get(name) or _registered(name)) == self.rule
        except (ValueError, TypeError) as error:
            raise ValueError(f"{error}; a model with this optimizer cannot be saved, but its weights can") from None
        if not same:
            raise ValueError(f"rule: {text} is not all of it; a model with this optimizer cannot be saved")
        config = {**super().get_config(), "rule": text, **self._keep}
        if not self._steered:
            config["learning_rate"] = None
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Optimizer:
        """Make an optimizer of what ``get_config`` returned. Nothing is executed but names of xopt."""
        rule = parse_rule(config["rule"], lambda name: _registered(name, custom_objects))
        made: Optimizer = super().from_config({**config, "rule": rule}, custom_objects=custom_objects)
        return made


def _registered(name: str, custom_objects: Any = None) -> Any:
    """Return what the user has made known to Keras by a name, or by that of a package and this one."""
    found = keras.saving.get_registered_object(name, custom_objects=custom_objects)
    if found is None:
        known = {id(x): x for n, x in keras.saving.get_custom_objects().items() if n.rpartition(">")[2] == name}
        found = next(iter(known.values())) if len(known) == 1 else None
    return found


def _names(paths: list[str]) -> list[str]:
    """Return different names: of several ``net/d/kernel`` the second one is ``net/d#2/kernel``."""
    count, found = Counter[str](), list[str]()
    for path in paths:
        count[path] += 1
        home, _, last = path.rpartition("/")
        mark = "" if count[path] == 1 else f"#{count[path]}"
        found.append(f"{home}{mark}/{last}" if home else f"{last}{mark}")
    return found


class _Variables(NamedTuple):
    """The variables that a rule computes with and those that hold its state."""

    mine: list[Any]
    names: list[str]
    slots: dict[str, list[Any]]
    carry: dict[str, tuple[Any, type]]
    notes: dict[str, Any]
    """Slots without arrays."""
    follows: list[str]
    """Slots that begin at the parameters."""
    step: type
    """What counts steps: int, or an array."""

    def tree(self, column: list[Any]) -> Any:
        return dict(zip(self.names, column, strict=True))

    def column(self, tree: Any) -> list[Any]:
        return [tree[n] for n in self.names]

    def state(self, taken: Any) -> State:
        """Return the state that the variables have."""
        step = int(taken) if self.step is int else keras.ops.cast(taken, "int32")
        slots = {n: self.tree([None if v is None else v.value for v in column]) for n, column in self.slots.items()}
        carry = {n: _read(v, kind) for n, (v, kind) in self.carry.items()}
        return State(step, {**slots, **self.notes}, carry)

    def assign(self, state: State) -> None:
        for n, column in self.slots.items():
            for v, x in zip(column, self.column(state.slots[n]), strict=True):
                if v is not None:
                    v.assign(x)
        for n, (v, _) in self.carry.items():
            v.assign(state.carry[n])


def _read(variable: Any, kind: type) -> Any:
    """Return a carried scalar, or one for each parameter, as the rule made it."""
    if kind in (int, float):
        return float(variable)
    return np.asarray(variable) if issubclass(kind, np.ndarray | np.generic) else variable.value
