"""A rule as a ``torch.optim.Optimizer``: for loops, schedulers, scalers and trainers that are written for PyTorch."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from xopt._arrays import tree as _tree
from xopt.adapters._torch import (
    BETAS,
    defaults,
    given,
    gradient,
    hyperparams_of,
    in_order,
    kept,
    scalar,
    short,
    tensor,
    with_groups,
)
from xopt.optimizer import Optimizer as Steps
from xopt.rule import FunctionalOptimizer, RunnerName, check_method
from xopt.rule._metrics import check_names
from xopt.rule._names import qualified_names
from xopt.rule._precision import Rounding, StateDType
from xopt.transforms._wrappers import OnNonFinite

__all__ = ["Optimizer"]

_STEP, _CARRY = "step", "carry."
_MOVED = {"lr", "b1", "b2", "momentum"}
"""What schedulers of torch move, so that each group has its own from the start."""
_SCHEDULERS = {"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr", "initial_momentum"}
"""What schedulers of torch keep in groups."""


def _hooked(step: Any) -> Any:
    """Call the hooks of a step, and keep all of it out of what ``torch.compile`` traces."""
    step = torch.compiler.disable(torch.optim.Optimizer.profile_hook_step(step))
    step.hooked = True
    return step


class Optimizer(torch.optim.Optimizer):  # type: ignore[misc, unused-ignore]
    r"""A rule as a ``torch.optim.Optimizer``: parameter groups, schedulers, closures, hooks and checkpoints of torch.

    Parameters
    ----------
    params
        Parameters, pairs of a name and a parameter, or dictionaries of parameter groups, as ``torch.optim`` takes them.
        A group may have hyperparameters of its own, under the names of :meth:`xopt.Optimizer.hyperparams`; ``b1`` and
        ``b2`` are ``betas=(b1, b2)`` here, which schedulers of torch look for. What is a schedule of xopt, or None, is
        in no group.
    rule
        A rule or a chain. Norms and sums over all arrays are over all parameter groups.
    runner, on_nonfinite, rounding, master_weights, state_dtype, seed, metrics
        As for :class:`xopt.Optimizer`.
    lazy
        Of sparse gradients, which ``torch.nn.Embedding(sparse=True)`` and ``EmbeddingBag`` have: whether a step touches
        nothing but the rows that occur, as ``torch.optim.SparseAdam`` does, or is that of the dense gradient, see
        :class:`xopt.SparseRows`.
    **hyperparams
        In place of those of the rule, as trainers give them: ``lr=0.1``, ``betas=(0.9, 0.99)``.

    Raises
    ------
    TypeError, ValueError
        What :class:`xopt.Optimizer` raises, at the first step: for a DTensor, for a parameter that
        was given another dtype or device after it (``model.double()``; before the first step it may be). For a
        hyperparameter that the rule does not have, at once.

    Notes
    -----
    ``state[p]`` has the slots of the rule (``adam.m``), live, scalars that live from step to step (``carry.…``), and
    ``step``, which is the number of steps of the optimizer: all parameters share it, also those that came later.
    Hyperparameters are read from ``param_groups`` before every step; one that is a schedule of xopt is not there, and
    schedulers of torch do not find it. Under ``torch.compile`` a step is one graph break.

    State is that of the rule, and 8 bytes.

    Examples
    --------
    >>> import torch
    >>> import xopt
    >>> from xopt.adapters.torch import Optimizer
    >>> model = torch.nn.Linear(2, 1)
    >>> opt = Optimizer(model.parameters(), xopt.AdamW(lr=0.1))
    >>> scheduler = torch.optim.lr_scheduler.StepLR(opt, 1, gamma=0.5)
    >>> for _ in range(2):
    ...     opt.zero_grad()
    ...     model(torch.ones(1, 2)).sum().backward()
    ...     _ = opt.step()
    ...     scheduler.step()
    >>> opt.param_groups[0]["lr"], opt.param_groups[0]["betas"]
    (0.025, (0.9, 0.999))
    """

    state: defaultdict[Any, Any]

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
        lazy: bool = True,
        **hyperparams: Any,
    ) -> None:
        check_method(rule)
        if not isinstance(lazy, bool):
            raise TypeError(f"lazy: {lazy!r}, but it must be True or False")
        self._lazy = lazy
        self._rule = rule = given(rule, hyperparams)
        self._inner: Steps | None = None
        self._options: dict[str, Any] = {
            "runner": runner, "on_nonfinite": on_nonfinite, "rounding": rounding, "master_weights": master_weights,
            "state_dtype": state_dtype, "seed": seed, "metrics": check_names(metrics),
        }  # fmt: skip
        self._seen: list[dict[str, float]] = []
        """The hyperparameters of each group, as the rule has them."""
        self._taken = torch.zeros((), dtype=torch.int64, device="cpu")
        self._carries = self._loaded = False
        names = qualified_names(rule._parts())
        self._hyper = {name: link.part._values()[field] for name, (link, field) in names.items()}
        self._shown: dict[torch.Tensor, dict[str, Any]] = {}
        """What is in ``state`` since the last time that the rule was made."""
        self._own: set[str] = set()
        """Hyperparameters that each group has for itself, so that they can be set without making the rule anew."""
        named = defaults(self._hyper)
        self._needed = tuple(named)
        """What each group has; torch adds to ``defaults``."""
        super().__init__(params, named)

    @property
    def rule(self) -> FunctionalOptimizer:
        """The rule, as it was given."""
        return self._rule

    @_hooked
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Parameters
        ----------
        closure
            Evaluates the model, computes the gradients and returns the loss, which rules see that ask for it.

        Returns
        -------
        The loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        inner = self._changed(self._ready())
        value = loss.detach() if isinstance(loss, torch.Tensor) else loss
        with torch.no_grad():
            inner.step(self._tree(lambda p: gradient(p.grad, self._lazy)), value=value)
        self._publish_scalars(inner)
        return loss

    @property
    def loss_scale(self) -> Any:
        """What to multiply the loss with: :attr:`xopt.Optimizer.loss_scale`."""
        begun = self._inner is not None or bool(self.state)
        found = self._ready().loss_scale
        if not begun:  # what is made of parameters is made at the first step
            self._inner = None
            self.state.clear()
        return found

    def update_curvature(self, curvature: Mapping[torch.Tensor, torch.Tensor]) -> None:
        """Take estimates of the diagonal of the Hessian: :meth:`xopt.Optimizer.update_curvature`.

        ``curvature`` has them by parameter, ``{p: estimate}``; parameters that are not there keep what they have.

        Raises
        ------
        KeyError
            For what is no parameter of this optimizer.
        """
        inner = self._changed(self._ready())
        if not {*self._every()} >= {*curvature}:
            raise KeyError("curvature: a tensor that is no parameter of this optimizer")
        with torch.no_grad():
            inner.update_curvature(self._tree(curvature.get))

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics of the last step: :attr:`xopt.Optimizer.metrics`; what each parameter has its own of is by group."""
        return {} if self._inner is None else self._inner.metrics

    def averaged(self) -> Any:
        """Put averages in place of the parameters in a ``with`` block: :meth:`xopt.Optimizer.averaged`."""
        return self._ready().averaged()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; the state of the others stays, and the number of steps is theirs."""
        known = {"params", "param_names", *self._hyper, *self._needed, *_SCHEDULERS}
        known -= {*BETAS} if "betas" in self._needed else set()
        for name, x in param_group.items() if isinstance(param_group, dict) else ():
            if name not in known and not isinstance(x, str | list | dict | None):  # which may be notes of the user's
                names = ", ".join(sorted(known - _SCHEDULERS - {"params", "param_names"}))
                raise TypeError(f"{name}: no hyperparameter of {self._rule!r}, which has {names}")
        super().add_param_group(param_group)
        try:
            names = self.param_groups[-1].get("param_names", [])
            if len({*names}) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise ValueError(f"params: {twice!r} twice in a group; a name is of one parameter")
            self._of_groups()
        except BaseException:
            del self.param_groups[-1]
            raise
        self._inner = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state, live, by the numbers of parameters, and the groups; nothing before the first step."""
        if self.state:
            self._ready()  # parameters that came later have a state, too
        found: dict[str, Any] = super().state_dict()
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned: the next step has the bits that it would have had.

        State keeps its dtype, also that of parameters of half precision. A state that does not fit is refused, and
        nothing has changed then.
        """
        before = {
            name: getattr(self, name)
            for name in ("state", "param_groups", "_inner", "_seen", "_own", "_shown", "_taken", "_loaded")
        }
        last = self.register_load_state_dict_pre_hook(lambda _, state: kept(in_order(state, self.param_groups)))
        try:
            super().load_state_dict(state_dict)
            if any(self.state.values()):  # else slots begin at the parameters of the first step
                self._ready()
        except BaseException:
            self.__dict__.update(before)
            raise
        finally:
            last.remove()

    def __getstate__(self) -> dict[str, Any]:
        if self.state:
            self._ready()
        more = {name: getattr(self, name) for name in ("_rule", "_options", "_hyper", "_needed", "_taken", "_lazy")}
        return {**super().__getstate__(), **more, "_inner": None, "_seen": [], "_own": set(), "_shown": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        loaded: defaultdict[Any, Any] = defaultdict(dict)
        for p, own in state["state"].items():
            loaded[p] = {n: tensor(x, p) for n, x in own.items()} if isinstance(own, dict) else own
        self._inner, self._seen, self._own, self._loaded = None, [], set(), True
        super().__setstate__({"_lazy": True, **state, "state": loaded})

    def _ready(self) -> Steps:
        """Return what takes the steps, made of the parameters as they are and the state that there is."""
        if self._inner is None:
            rule, self._seen, self._own = self._of_groups()
            inner = Steps(self._tree(lambda p: p), rule, **self._options)
            if any(self.state.values()):
                self._restore(inner)
            self._inner = inner
            self._publish(inner)
        return self._inner

    def _of_groups(self) -> tuple[FunctionalOptimizer, list[dict[str, float]], set[str]]:
        """Return the rule with the hyperparameters of the groups, these, and those that each has for itself."""
        seen = [hyperparams_of(group, self._hyper, self._needed) for group in self.param_groups]
        first, *others = seen
        rule = self._rule._with({n: x for n, x in first.items() if x != self._hyper[n]})
        rows = [{n: x for n, x in own.items() if x != first.get(n) or n in _MOVED} for own in others]
        if not rows:
            return rule, seen, {*self._hyper}
        if any(name.startswith("group") for name in self._hyper):
            raise ValueError(f"params: {len(rows) + 1} groups, and the rule has groups too: {rule!r}; use one")
        for i, row in enumerate(rows, 1):
            for name in {*row} - {*first}:
                raise ValueError(f"{name}: {row[name]} in group {i}, but {self._hyper[name]} in {rule!r}")
        grouped = with_groups(rule, [(f"{i}/**", row) for i, row in enumerate(rows, 1)])
        return grouped, seen, set[str]().union(*rows).intersection(*rows)

    def _changed(self, inner: Steps) -> Steps:
        """Bring hyperparameters that were changed in the groups to the rule."""
        every = self._every()
        if len(every) != len(self._shown) or len(self.state) != len(every) or not all(map(self._is_shown, every)):
            self.state = defaultdict(dict, {p: self.state[p] for p in every if p in self.state})
            self._inner = None
            return self._ready()
        now = [hyperparams_of(group, self._hyper, self._needed) for group in self.param_groups]
        if int(self._taken) != inner.steps_taken:
            inner.steps_taken = int(self._taken)
        if now == self._seen:
            return inner
        changes = [
            {n: x for n, x in own.items() if seen.get(n) != x} for own, seen in zip(now, self._seen, strict=True)
        ]
        if not {*itertools.chain(*changes)} <= self._own:  # of which a group has nothing of its own yet
            self._inner = None
            return self._ready()
        prefixes = ["", *(f"group{i}." for i in range(len(now)))]
        inner.set(**{prefix + n: x for prefix, own in zip(prefixes, changes, strict=False) for n, x in own.items()})
        self._seen = now
        return inner

    def _is_shown(self, p: torch.Tensor) -> bool:
        """Whether a parameter has the state that it was given, and nobody has put another one in its place."""
        own, shown = self.state.get(p), self._shown.get(p)
        return shown is not None and own is not None and all(own.get(n) is x for n, x in shown.items())

    def _restore(self, inner: Steps) -> None:
        """Fill in the state that there is, or say what does not fit."""
        wanted = inner.state_dict()
        slots, carry = short(wanted["state"]), short(wanted["carry"])
        taken: set[int] = set()
        number = {p: i for i, p in enumerate(self._every())}
        leaves, spec = _tree.flatten(self._tree(lambda p: p))
        for path, p in zip(_tree.pointers(spec), leaves, strict=True):
            i = number[p]
            own = dict(self.state.get(p, {}))
            if not own and not self._loaded:  # a parameter of a group that came later
                continue
            if not own:
                raise ValueError(f"state: nothing for parameter {i}, of shape {tuple(p.shape)}")
            taken.add(int(own.pop(_STEP)))
            for slot, name in slots.items():
                if path in wanted["state"][slot]:
                    if name not in own:
                        raise ValueError(f"state: parameter {i} has no {name}, but {self._rule!r} needs it")
                    wanted["state"][slot][path] = own.pop(name)
            for slot, name in carry.items():
                if _CARRY + name not in own:
                    raise ValueError(f"state: parameter {i} has no {_CARRY}{name}, but {self._rule!r} needs it")
                x = float(own.pop(_CARRY + name))
                if isinstance(wanted["carry"][slot], dict):
                    wanted["carry"][slot][path] = x
                else:
                    wanted["carry"][slot] = x
            if own and self._loaded:
                raise ValueError(f"state: parameter {i} has {', '.join(own)}, of which {self._rule!r} knows nothing")
        if len(taken) > 1:
            raise ValueError(f"state: step is {', '.join(map(str, sorted(taken)))}, but it must be the same for all")
        inner.load_state_dict({**wanted, "step": taken.pop()})

    def _tree(self, of: Callable[[torch.Tensor], Any]) -> Any:
        """Return what belongs to each parameter, by name where there are names; of several groups a list."""
        found = []
        for group in self.param_groups:
            names, values = group.get("param_names"), list(map(of, group["params"]))
            found.append(values if names is None else dict(zip(names, values, strict=True)))
        return found if len(found) > 1 else found[0]

    def _every(self) -> list[torch.Tensor]:
        """Return all parameters."""
        return [p for group in self.param_groups for p in group["params"]]

    def _publish(self, inner: Steps) -> None:
        """Show the arrays of the state where torch looks for them."""
        state, found = inner.state, defaultdict[Any, Any](dict)
        leaves, spec = _tree.flatten(self._tree(lambda p: p))
        columns = {name: _tree.match(spec, state.slots[slot], "state") for slot, name in short(state.slots).items()}
        for k, p in enumerate(leaves):
            own = {name: column[k] for name, column in columns.items()}
            found[p] = {_STEP: self._taken, **{n: x for n, x in own.items() if x is not None}}
        self._shown = {p: dict(own) for p, own in found.items()}
        self.state, self._carries, self._loaded = found, bool(state.carry), False
        self._publish_scalars(inner)

    def _publish_scalars(self, inner: Steps) -> None:
        self._taken.fill_(inner.steps_taken)
        if self._carries:
            carry = inner.state.carry
            names = short(carry)
            scalars = {_CARRY + names[n]: scalar(x) for n, x in carry.items()}
            every = [self.state[p] for p in _tree.flatten(self._tree(lambda p: p))[0]]
            for name, x in scalars.items():  # one number, or one for each parameter
                for own, number in zip(every, x if x.ndim else itertools.repeat(x), strict=False):
                    own[name] = number
