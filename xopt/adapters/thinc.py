"""A rule as a Thinc optimizer: for ``model.finish_update`` and for the training loop and configuration of spaCy."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import thinc.api
import thinc.util

from xopt._parse import parse_rule
from xopt.optimizer import Optimizer as Steps
from xopt.rule import Component, FunctionalOptimizer, check_method, refuse_curvature
from xopt.rule._names import learning_rates, qualified_names

__all__ = ["Optimizer", "configured"]

_INSTEAD = {
    "ClipByGlobalNorm": "ClipByNorm clips each array by itself, as grad_clip of Thinc does",
    "Normalize": 'over="leaf" is the norm of each array',
    "Ball": 'over="leaf" is the norm of each array',
    "LossScale": "PyTorch layers of Thinc have a scaler of their own",
    "Guard": '"zero" takes 0 for elements that are not finite',
    **dict.fromkeys(("DAdaptSGD", "DAdaptAdam", "Prodigy", "DoG"), "LDoG finds a rate for each array by itself"),
}


class Optimizer(thinc.api.Optimizer):  # type: ignore[misc, unused-ignore]
    r"""A rule as a ``thinc.api.Optimizer``, for models of Thinc 8.3 and 9 and pipelines of spaCy.

    Parameters
    ----------
    rule
        A rule or a chain. Thinc calls its optimizers with one array after the other: what needs all of them for a step,
        as a norm over the tree does, is refused, and so is what needs the loss.
    learn_rate
        In place of the rule's ``lr``: what Thinc's optimizers take, a float ≥ 0, a list, a generator or, in Thinc 9, a
        ``Schedule``, which go on by ``step_schedules()``. By default the rule's own.

    Raises
    ------
    TypeError
        For a component that needs more than one array or the loss, and for what draws random numbers by the place of an
        array in the tree: the message has its name, and what to take instead. For a learning rate where the rule has
        not one ``lr``.
    ValueError, TypeError
        As :class:`xopt.Optimizer` does, in a call; nothing is written then.

    Notes
    -----
    The step is, with a state and a count t\ :sub:`key` for each key::

        w, state ← rule(w, g, state; t = t_key, lr = learn_rate · lr_scale),   g ← 0

    Each key has its own count of steps, as in Thinc's: bias corrections and schedules of xopt see that; ``learn_rate``
    sees the calls of ``step_schedules``. A parameter's path is its key, ``7/W`` for ``W`` of the layer with the id 7,
    which globs of :class:`xopt.Groups` see: ``**/b`` is every bias. These need ``unmatched="ignore"``.

    ``averages`` are what :meth:`xopt.Rule.eval_params` makes of the weights, in new arrays at each look, for rules with
    averages; None for others. A pickle has a copy of the weights too.

    State is that of the rule, for each array.

    Examples
    --------
    >>> import numpy as np
    >>> import thinc.api
    >>> import xopt
    >>> from xopt.adapters.thinc import Optimizer
    >>> thinc.api.fix_random_seed(0)
    >>> X = np.linspace(-1, 1, 96, dtype="float32").reshape(32, 3) ** [1, 2, 3]
    >>> X, Y = X.astype("float32"), (X @ [[1.0], [-2.0], [0.5]]).astype("float32")
    >>> model = thinc.api.Linear(1, 3).initialize(X, Y)
    >>> opt = Optimizer(xopt.chain(xopt.ClipByNorm(1.0), xopt.AdamW(lr=0.1)))
    >>> for _ in range(100):
    ...     Yh, backprop = model.begin_update(X)
    ...     _ = backprop((Yh - Y) / 32)
    ...     model.finish_update(opt)
    ...     opt.step_schedules()
    >>> bool(np.mean((model.predict(X) - Y) ** 2) < 1e-2)
    True
    """

    __slots__ = ("_held", "_rule", "_steered", "_theirs")

    def __init__(self, rule: FunctionalOptimizer, learn_rate: Any = None) -> None:
        check_method(rule)
        refuse_curvature(rule, "Thinc")
        for link in rule._all_links():
            _check(link.part)
        self._rule = rule
        self._theirs = thinc.api.Optimizer(0.0, use_averages=False)
        """Thinc's own, which knows what Thinc 8 and 9 have for learning rates, and counts steps."""
        self._held: dict[Hashable, tuple[Any, Steps]] = {}
        """The weights of each key, and what takes its steps."""
        rates = qualified_names(rule._parts())
        own: Any = rates["lr"][0].part._value("lr") if "lr" in rates else None
        self._steered = learn_rate is not None or isinstance(own, int | float)
        """Whether Thinc has the learning rate, and the rule is given it in each step."""
        if learn_rate is not None and "lr" not in rates:
            raise TypeError(
                f"learn_rate: {learn_rate!r}, but {rule!r} has no single lr; it has {learning_rates(rates)}"
            )
        if self._steered:
            self.learn_rate = own if learn_rate is None else learn_rate
        else:  # to be looked at
            self._theirs.learn_rate = own

    @property
    def rule(self) -> FunctionalOptimizer:
        """The rule, as it was given."""
        return self._rule

    @property
    def learn_rate(self) -> Any:
        """The learning rate: in Thinc 9 a ``Schedule``, in Thinc 8 a number, or a schedule of xopt if the rule has one.

        It may be set to what ``learn_rate=`` may be, but in the last case.
        """
        return self._theirs.learn_rate

    @learn_rate.setter
    def learn_rate(self, learn_rate: Any) -> None:
        if not self._steered:
            raise TypeError(f"learn_rate: cannot be set, because it is the business of {self._rule!r}")
        if isinstance(learn_rate, int | float):
            self._rule._with({"lr": learn_rate})  # raises what is wrong with it
        made = thinc.api.Optimizer(learn_rate, use_averages=False)
        self._theirs.learn_rate = made.learn_rate
        if hasattr(made, "schedules"):  # Thinc 8
            self._theirs.schedules = made.schedules

    @property
    def step(self) -> int:
        """How often ``step_schedules`` was called, in Thinc 9."""
        found: int = self._theirs.step
        return found

    @property
    def last_score(self) -> Any:
        """The step and the score of the last evaluation, in Thinc 9, for its schedules; set to a score."""
        return self._theirs.last_score

    @last_score.setter
    def last_score(self, score: float) -> None:
        self._theirs.last_score = score

    @property
    def nr_update(self) -> dict[Any, int]:
        """The number of steps of each key."""
        found: dict[Any, int] = self._theirs.nr_update
        return found

    def step_schedules(self) -> None:
        """Let schedules of Thinc go on."""
        self._theirs.step_schedules()

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _SET:
            raise AttributeError(f"{name}: cannot be set here; hyperparameters are those of {self._rule!r}")
        super().__setattr__(name, value)

    def __call__(self, key: Any, weights: Any, gradient: Any, *, lr_scale: float = 1.0) -> tuple[Any, Any]:
        """Take a step with one array, in place, and set its gradient to 0.

        Parameters
        ----------
        key
            Whose array it is: the id of the layer, and the name of the parameter there.
        weights, gradient
            Arrays of NumPy or CuPy of one shape and dtype.
        lr_scale
            What the learning rate is multiplied by, this time.

        Returns
        -------
        weights, gradient
            The two arrays.
        """
        for name, x in (("weights", weights), ("gradient", gradient)):
            if not thinc.util.is_xp_array(x):
                raise TypeError(f"{name} of {key!r}: a {type(x).__name__}, but it must be an array of NumPy or CuPy")
        if gradient.size == 0 == weights.size:
            return weights, gradient
        if not getattr(gradient.flags, "writeable", True):
            raise ValueError(f"gradient of {key!r}: a read-only array, which cannot be set to 0")
        rate = self._rate(key, lr_scale)
        steps = self._bound(key, weights)
        steps.step(_tree(key, gradient), **rate)
        self._held[key] = weights, steps
        self.nr_update[key] = steps.steps_taken
        gradient[...] = 0
        return weights, gradient

    def _rate(self, key: Any, lr_scale: float) -> dict[str, Any]:
        """Return what the rule is given as its learning rate."""
        rate = self.learn_rate
        if self._steered:
            if callable(rate):  # a Schedule of Thinc 9
                rate = rate(self.step, key=key, last_score=self.last_score)
            return {"lr": float(rate) * lr_scale}
        if lr_scale == 1:
            return {}
        if rate is None:
            raise TypeError(f"lr_scale of {key!r}: {lr_scale!r}, but {self._rule!r} has no single lr")
        return {"lr": lambda t: lr_scale * rate(t)}

    def _bound(self, key: Any, weights: Any) -> Steps:
        """Return what takes the steps of a key, with these weights, which may be other arrays than the last time."""
        if key not in self._held:
            return Steps(_tree(key, weights), self._rule)
        last, steps = self._held[key]
        if last is weights or _place(last) == _place(weights):
            return steps
        if last.shape != weights.shape:
            raise ValueError(f"weights of {key!r}: shape {weights.shape}, but those before had {last.shape}")
        found = Steps(_tree(key, weights), self._rule)
        found.load_state_dict(steps.state_dict())
        return found

    @property
    def averages(self) -> dict[Any, Any] | None:
        """Averages of the weights by key, for ``use_params``; None where the rule has none."""
        if all(link.part.readout is None for link in self._rule._all_links()):
            return None
        return {key: _leaf(key, steps.eval_params()) for key, (_, steps) in self._held.items()}

    def __getstate__(self) -> dict[str, Any]:
        found = {n: getattr(self, n) for n in self.__slots__}
        return {**found, "_held": {key: steps for key, (_, steps) in self._held.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        held = {key: (_leaf(key, steps.params), steps) for key, steps in state["_held"].items()}
        for name, x in {**state, "_held": held}.items():
            setattr(self, name, x)


_SET = {*Optimizer.__slots__, "learn_rate", "last_score"}


@thinc.api.registry.optimizers("xopt.v1")  # type: ignore[untyped-decorator, unused-ignore]
def configured(rule: str, learn_rate: Any = None) -> Optimizer:
    """Make an optimizer of the text of a rule, for ``@optimizers = "xopt.v1"`` in a configuration of Thinc or spaCy.

    Parameters
    ----------
    rule
        As Python would have it, ``"chain(ClipByNorm(1.0), AdamW(lr=0.001))"``. Nothing is executed but names of xopt.
    learn_rate
        As for :class:`Optimizer`: a number, or a section with ``@schedules``.

    Raises
    ------
    ValueError
        For a text that is no rule; the message says which part of it, and where.

    Examples
    --------
    >>> import thinc.api
    >>> import xopt.adapters.thinc
    >>> config = thinc.api.Config().from_str('''
    ... [optimizer]
    ... @optimizers = "xopt.v1"
    ... rule = "chain(ClipByNorm(1.0), AdamW(lr=0.001))"
    ... ''')
    >>> thinc.api.registry.resolve(config)["optimizer"].rule
    chain(ClipByNorm(max_norm=1.0), AdamW(lr=0.001))
    """
    return Optimizer(parse_rule(rule), learn_rate)


def _check(part: Component) -> None:
    """Refuse a component that Thinc's calls with one array have not enough for."""
    cls = type(part)
    name = {"nonfinite": "Guard", "lossscale": "LossScale"}.get(part._label(), cls.__name__)
    if part.inputs:
        raise TypeError(f"rule: {name} needs the loss, and Thinc gives its optimizers none")
    if getattr(part, "_unmatched", "ignore") == "error":
        raise TypeError(
            f"rule: {name} looks for what its predicates choose among all parameters, and Thinc gives its optimizers "
            f'one after the other; say unmatched="ignore"'
        )
    scope = part._value(cls.scope) if cls.scope in part._fields else cls.scope
    if (cls.reduce is not None and scope == "tree") or cls.refuses:
        other = f"; {_INSTEAD[name]}" if name in _INSTEAD else ""
        raise TypeError(f"rule: {name} looks at all gradients, and Thinc gives its optimizers one at a time{other}")
    if "seed" in part._fields and getattr(part, "rounding", "stochastic") == "stochastic":
        raise TypeError(
            f"rule: {name} draws the random numbers of an array by its place in the tree, and Thinc gives its "
            f"optimizers one array at a time, which would all have the same"
        )


def _tree(key: Any, x: Any) -> Any:
    """Return an array in a tree in which its path is the key."""
    for part in reversed(key if isinstance(key, tuple) else (key,)):
        x = {part: x}
    return x


def _leaf(key: Any, tree: Any) -> Any:
    """Return the array of a tree that `_tree` made."""
    for part in key if isinstance(key, tuple) else (key,):
        tree = tree[part]
    return tree


def _place(x: Any) -> tuple[Any, ...]:
    """Return where an array is in memory, and how it lies there."""
    found = x.__array_interface__ if hasattr(x, "__array_interface__") else x.__cuda_array_interface__
    return found["data"], found["shape"], found["strides"], found["typestr"]
