"""What moves between a run of xopt and one of another library, whichever it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from xopt import _arrays
from xopt._arrays import tree as _tree
from xopt._arrays.layout import Layout
from xopt._arrays.transfer import from_host, to_host
from xopt._engine.executor import Executor
from xopt._version import __version__
from xopt.checkpoint import _restore as _restore
from xopt.checkpoint import _snapshot as _snapshot
from xopt.checkpoint._safetensors import CheckpointError
from xopt.checkpoint._snapshot import TrainingRun
from xopt.rule import FunctionalOptimizer, RoutedComponent, Rule, check_method
from xopt.rule._component import routed
from xopt.rule._names import qualified_names
from xopt.rule._presets import preset
from xopt.rules.adam import Adam, AdamW
from xopt.rules.adaptive import RMSProp
from xopt.rules.sgd import SGD

KINDS: dict[type, type] = {Adam: Adam, AdamW: Adam, SGD: SGD, RMSProp: RMSProp}
"""Rules whose state moves, and whose state it is like. A subclass may have other maths, and does not."""


class Side:
    """A rule and its parameters, and all that does not fit them."""

    def __init__(self, rule: FunctionalOptimizer, params: Any, there: str, library: str) -> None:
        check_method(rule)
        self.there, self.library = there, library
        """What the other side is called, in words and by ``like``."""
        self.params = params
        self.layout = Layout(params)
        self.keys = _tree.pointers(self.layout.spec)
        self.problems: list[str] = []
        self.use(rule)
        self.executor = Executor(rule._chains(self.layout), self.layout, "eager")
        if any(bucket.plan.codes for bucket in self.executor.buckets):
            raise TypeError(f"rule: it keeps its state in 8 bits, which {there} does not; leave state_dtype='int8' out")
        self.slots = self.executor.state.new_slots()
        self.filled: set[tuple[str, int]] = set()
        for link in self.owners:
            if link is not None and type(link.part) not in KINDS:
                names = ", ".join(kind.__name__ for kind in KINDS)
                raise TypeError(f"rule: {type(link.part).__name__}, but the rules whose state moves are {names}")
        if any(link.part.gates and link.part._slots for link in rule._all_links()):
            raise TypeError(f"rule: {type(rule).__name__} counts other steps than {there}; move the rule inside of it")

    def use(self, rule: FunctionalOptimizer) -> None:
        """Take a rule, perhaps with other hyperparameters than before."""
        self.rule, self.owners = rule, owners(rule, self.layout)

    def kind(self, k: int) -> type:
        """Return which rule parameter ``k`` has."""
        return KINDS[type(self.part(k))]

    def part(self, k: int) -> Any:
        """Return the rule of parameter ``k``, which has one."""
        return self._owner(k).part

    def _owner(self, k: int) -> RoutedComponent:
        link = self.owners[k]
        assert link is not None
        return link

    def moving(self) -> list[int]:
        """Return the parameters that are not frozen."""
        return [k for k, link in enumerate(self.owners) if link is not None]

    def wanted(self, k: int) -> dict[str, str]:
        """Return the arrays that the rule keeps for parameter ``k``: their short names, and those in the state."""
        label = self._owner(k).label
        split = [(n, *n.rpartition(".")[::2]) for n in self.executor.state.live]
        return {slot: n for n, place, slot in split if place == label and self.executor.state.has(n, k)}

    def call(self, k: int) -> str:
        """Return what the rule of parameter ``k`` is called there."""
        return preset(type(self.part(k)).__name__, self.library).call

    def expect(self, k: int, field: str, value: Any) -> None:
        """Note a static field that is another one there."""
        mine = getattr(self.part(k), field)
        if mine != value:
            self.differs(k, field, value, mine)

    def differs(self, k: int, field: str, there: Any, here: Any) -> None:
        """Note that a field is another one there."""
        self.problems.append(
            f"rule: {self._owner(k).label}.{field}: {there!r} in {self.there}, but here it is {here!r}"
        )

    def array(self, x: Any, name: str, shape: tuple[int, ...]) -> bool:
        """Whether this is an array of numbers and of a shape; if not, note it."""
        if _arrays.library(x) is None or _arrays.dtype_name(x) not in _arrays.DTYPES:
            self.problems.append(f"{name}: {type(x).__name__}, but it must be an array of numbers")
        elif tuple(x.shape) != shape:
            self.problems.append(f"{name}: shape {tuple(x.shape)}, but here it is {shape}")
        else:
            return True
        return False

    def put(self, k: int, slot: str, x: Any, where: str, sign: int = 1) -> None:
        """Copy an array of the other library into the state."""
        name = self.wanted(k)[slot]
        place = f"state/{name}/{self.keys[k]}"
        if (name, k) in self.filled:
            self.problems.append(f"{place}: found twice, and once at {where}")
            return
        self.filled.add((name, k))
        like = self.slots[name][k]
        if not self.array(x, f"{place}: {where}", tuple(like.shape)):
            return
        host, dtype = np.array(to_host(x)), _arrays.dtype_name(x)  # to_host may return read-only memory
        if _arrays.DTYPES[dtype].complex and not _arrays.is_complex(like):
            if np.any(host.imag):
                self.problems.append(f"{place}: {where}: dtype {dtype}, but here it is real")
                return
            host, dtype = host.real.copy(), _arrays.DTYPES[dtype].real
        made = from_host(host, dtype, like)
        self.slots[name][k] = made if sign > 0 else -made

    def missing(self) -> None:
        """Note each array of the rule that was not found."""
        for k in self.moving():
            names = [n for n in self.wanted(k).values() if (n, k) not in self.filled]
            self.problems += [f"state/{n}/{self.keys[k]}: missing" for n in names]

    def count(self, steps: Mapping[str, Any], given: int | None) -> int | None:
        """Return the number of steps taken, of what was found under some names and what was given.

        None where there is no such number.
        """
        found: dict[int, list[str]] = {}
        for where, x in steps.items():
            try:
                value = float(x)
            except (TypeError, ValueError):
                value = math.nan
            if not value.is_integer() or value < 0:
                self.problems.append(f"step: {where}: {x!r}, but it must be a whole number from 0 on")
            else:
                found.setdefault(int(value), []).append(where)
        if given is not None:
            if isinstance(given, bool) or not isinstance(given, int) or given < 0:
                raise TypeError(f"step: {given!r}, but it must be an int from 0 on")
            found.setdefault(given, []).append("the argument")
        if len(found) > 1:
            words = [f"{n} in {_some(names)}" for n, names in sorted(found.items())]
            self.problems.append(f"step: {', '.join(words)}; but there is one step for all")
        return next(iter(found), None)

    def scheduled(self) -> bool:
        """Whether the rule asks for the step to find a hyperparameter."""
        return any(callable(x) for link in self.rule._all_links() for x in link.part._values().values())

    def set_numbers(self, wants: list[dict[str, float]]) -> None:
        """Give the rule the numbers that each parameter has there; a schedule stays. Note where that cannot be."""
        values, torn = dict[str, float](), set[str]()
        for name, (link, full) in qualified_names(self.rule._parts()).items():
            old, field = link.part._values()[full], full.rpartition(".")[2]
            if type(old) is not float:
                continue
            probe = 0.5 if old != 0.5 else 0.25  # the parameters that have this value then have it from here
            tried = owners(self.rule._with({name: probe}), self.layout)
            direct = [
                k
                for k in self.moving()
                if field in wants[k] and getattr(tried[k].part, field) == probe != getattr(self.part(k), field)  # type: ignore[union-attr]
            ]
            found: dict[float, list[str]] = {}
            for k in direct:
                found.setdefault(wants[k][field], []).append(self.keys[k])
            if len(found) > 1:
                words = [f"{x!r} for {_some(keys)}" for x, keys in found.items()]
                self.problems.append(f"rule: {name}: {', '.join(words)} in {self.there}: such parameters need Groups")
                torn.add(field)
            elif found:
                values[name] = next(iter(found))
        try:
            self.use(self.rule._with(values))
        except (TypeError, ValueError) as error:
            self.problems.append(f"rule: {error}")
            return
        for k in self.moving():
            for field, want in [(n, x) for n, x in wants[k].items() if n not in torn]:
                have = getattr(self.part(k), field)
                if (have is None and want) or (type(have) is float and not math.isclose(have, want, rel_tol=1e-9)):
                    self.differs(k, field, want, have)

    def check_momentum(self, k: int, there: float) -> None:
        """Note momentum on one side only: it is another formula."""
        mine = self.part(k).momentum
        if bool(there) != (mine is not None and mine != 0.0):
            self.differs(k, "momentum", there, mine)

    def done(self) -> None:
        """Raise one error with everything that does not fit."""
        if self.problems:
            raise CheckpointError(f"state of {self.there}", dict.fromkeys(self.problems))

    def state_dict(self, step: int) -> dict[str, Any]:
        """Return what an optimizer with this state would, less what the other library has nothing for."""
        slots = {n: column for n, column in self.slots.items() if any(m == n for m, _ in self.filled)}
        gates = {n for n, (spec, _) in self.executor.state.carried.items() if spec.gates}
        carry = {n: x for n, x in self.executor.new_carry().items() if n in gates}
        run = TrainingRun(self.rule, self.layout, self.executor, slots, carry)
        return _snapshot.state_dict(run, _snapshot.metadata(run, step, None, __version__), False)


class Leaving(Side):
    """A state dict of xopt that is to go elsewhere."""

    def __init__(self, state_dict: Any, rule: FunctionalOptimizer, params: Any, there: str, library: str) -> None:
        super().__init__(rule, params, there, library)
        self.source = _snapshot.StateDictSource(state_dict)
        run = TrainingRun(rule, self.layout, self.executor, self.slots, self.executor.new_carry())
        loaded = _restore.check(self.source, run, strict=True, cast=True, hyper=True)
        self.use(loaded.rule)
        self.step = int(self.executor.clocks(loaded.step, loaded.carry)[""])
        """Steps that were taken, without those that a guard left out."""
        self.names = {n for n in loaded.places if n.startswith("state/")}
        gates = {n for n, (spec, _) in self.executor.state.carried.items() if spec.gates}
        self.problems += [f"carry: {n}: {there} has nothing like it" for n in loaded.carry if n not in gates]

    def number(self, k: int, field: str) -> float:
        """Return a hyperparameter: of a schedule, what it is in the next step; 0 for None."""
        value = getattr(self.part(k), field)
        value = value(self.step + 1) if callable(value) else value
        return 0.0 if value is None else float(value)

    def common(self, leaves: list[int], field: str, where: str) -> float:
        """Return a hyperparameter that some parameters must have in common."""
        found: dict[float, list[str]] = {}
        for k in leaves:
            found.setdefault(self.number(k, field), []).append(self.keys[k])
        if len(found) > 1:
            words = [f"{x!r} for {_some(keys)}" for x, keys in found.items()]
            self.problems.append(f"rule: {field}: {', '.join(words)}, but {where} has one for all of them")
        return next(iter(found), 0.0)

    def take(self, k: int, slot: str, like: Any) -> Any:
        """Return an array of the state as one of the library, device and dtype of another one."""
        name = f"state/{self.wanted(k)[slot]}/{self.keys[k]}"
        self.names.discard(name)
        return _restore.taken(self.source, name, like)

    def done(self) -> None:
        """Raise one error with everything that does not fit, and with what was not taken."""
        self.problems += [f"{n}: {self.there} has no place for it" for n in sorted(self.names)]
        super().done()


def owners(rule: FunctionalOptimizer, layout: Layout) -> list[RoutedComponent | None]:
    """Return for each parameter the component that is its rule; None if it is to stay."""
    parts = rule._parts()
    places = [f"{i}." for i in range(len(parts))]
    links = [routed(parts, places, layout, k) for k in range(len(layout.leaves))]
    return [next((x for x in own or () if isinstance(x.part, Rule)), None) for own in links]


def _some(names: list[str]) -> str:
    """List names, but not all of a thousand."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
