"""Low-rank projection of gradients around a rule: GaLore."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from xopt import _arrays, random
from xopt._arrays.once import once
from xopt._engine.program.contract import ComponentSpec, Filled
from xopt._engine.program.plan import plan
from xopt.rule import (
    Array,
    Component,
    FunctionalOptimizer,
    H,
    Hyper,
    RoutedComponent,
    hyper,
    routed,
    static,
)
from xopt.rule._component import Layout
from xopt.rule._names import replaced
from xopt.rule._whole_array import adjoint, conj, either, zeros
from xopt.transforms._groups import _check_rule, _method, _places

__all__ = ["LowRank"]


class LowRank(Component, FunctionalOptimizer):
    r"""Low-rank projection around a rule (GaLore: Zhao et al. 2024, arXiv:2403.03507, Algorithm 2): small state.

    Of a matrix of m rows and n columns, both more than r, with m ≤ n (else from the right)::

        t mod k = 1:   P ← the first r left singular vectors of g, m × r
        R = Pᴴ·g                                     r × n
        u, state ← rule(R, state)                    whose state is r × n
        p ← p - α·P·u

    All other parameters go through the rule as they are.

    Parameters
    ----------
    rule
        A rule or a chain, of whole arrays too (Muon, SOAP). It sees R in the place of the gradient, and no parameter:
        rules that compute with these are refused (LAMB; Adafactor, but for ``scale_parameter=False``), and so is
        weight decay.
    rank
        r ≥ 1.
    update_every
        k ≥ 1: after how many steps P is made anew; averages in the state stay as they are then.
    scale
        α ≥ 0, a factor of the learning rate of what is projected.
    side
        ``"auto"``: P stands where the shorter axis is, of a square matrix at the left; ``"left"`` or ``"right"``.
    projection
        ``"svd"``; ``"random"``: P of r orthonormal columns in random directions, which needs no singular vectors.
    seed
        Of random directions, 0 to 2³² - 1.

    Raises
    ------
    TypeError, ValueError
        For a rule that it does not go with, with what to do.

    Notes
    -----
    State: that of the rule, r × n or m × r, and ``basis``, P, of r·min(m, n) numbers with ``side="auto"``.
    Hyperparameters are those of the rule, and ``scale``.

    Weight decay acts on the whole parameter, so it stands behind: ``chain(LowRank(Adam(lr=1.0), 64), AddDecay(w,
    decay="independent"), Scale(lr))`` is AdamW. A transform in front, or in the chain inside, sees the gradient, or R.

    The sign of each column of P is that at which its largest element is positive; the authors' code leaves it to the
    library. Where two singular values are equal, P is the library's choice. P stays where a gradient is None, zero or
    not finite; before the first one that is not, it has the first r unit vectors.
    Singular vectors cost more than a step, some m²·n operations in one of k steps. These parameters are computed by the
    library's own functions, on every runner. dask has no such singular vectors.

    References
    ----------
    J. Zhao, Z. Zhang, B. Chen, Z. Wang, A. Anandkumar, Y. Tian (2024), GaLore: memory-efficient LLM training by
    gradient low-rank projection, arXiv:2403.03507, Algorithm 2. Y. Hao, Y. Cao, L. Mou (2024), Flora: low-rank adapters
    are secretly gradient compressors, arXiv:2402.03293 (random directions).

    Examples
    --------
    >>> import numpy as np
    >>> import xopt
    >>> w = np.zeros((100, 300), np.float32)
    >>> state = xopt.LowRank(xopt.Adam(), rank=8).init(w)
    >>> {name: x.shape for name, x in state.slots.items()}
    {'0.lowrank.basis': (100, 8), '0.adam.m': (8, 300), '0.adam.v': (8, 300)}
    """

    _holder = ".up"
    _rule: FunctionalOptimizer
    rank: int = static(ge=1)
    update_every: int = static(default=200, ge=1)
    scale: Hyper = hyper(default=0.25, ge=0)
    side: Literal["auto", "left", "right"] = "auto"
    projection: Literal["svd", "random"] = "svd"
    seed: int = static(default=0, ge=0, le=2**32 - 1)

    def __init__(
        self,
        rule: FunctionalOptimizer,
        rank: int,
        *,
        update_every: int = 200,
        scale: Hyper = 0.25,
        side: Literal["auto", "left", "right"] = "auto",
        projection: Literal["svd", "random"] = "svd",
        seed: int = 0,
    ) -> None:
        _check_rule("LowRank", rule)
        object.__setattr__(self, "_rule", rule)
        given = {"update_every": update_every, "scale": scale, "side": side, "projection": projection, "seed": seed}
        usual = {n: self._fields[n].default for n in given}
        own = {n: x for n, x in given.items() if (type(x), x) != (type(usual[n]), usual[n])}
        super().__init__(rank=rank, **own)
        if seed != 0 and projection == "svd":
            raise ValueError(f"LowRank: seed={seed!r} does nothing without projection='random'")
        for part in rule._parts():
            if getattr(part, "weight_decay", None) is not None:
                raise ValueError(
                    f"LowRank: {type(part).__name__} with weight_decay, which must see the whole parameter: AdamW is "
                    f'chain(LowRank(Adam(lr=1.0), {rank}), AddDecay(w, decay="independent"), Scale(lr))'
                )
            if not part.elementwise and _reads_parameters(part):
                raise TypeError(_refusal(type(part).__name__, "computes with the parameters"))

    def __repr__(self) -> str:
        return f"LowRank({self._rule!r}, {super().__repr__().removeprefix('LowRank(')}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LowRank) and (self._rule, self._values()) == (other._rule, other._values())

    def __hash__(self) -> int:
        return hash((LowRank, self._rule, self.rank))

    def __reduce__(self) -> tuple[Any, ...]:
        return LowRank._of, ((self._rule,), dict(self._given))

    def replace(self, **changes: Any) -> LowRank:
        """Return a copy with other values of some fields."""
        return LowRank._of((self._rule,), {**self._given, **changes})

    def _parts(self) -> tuple[Component, ...]:
        return (self,)

    def _with(self, values: Mapping[str, Any]) -> FunctionalOptimizer:
        [new] = replaced((self,), values, self._known)
        return cast(LowRank, new)

    def _inner(self) -> tuple[Component, ...]:
        return self._rule._parts()

    def _inner_keys(self) -> tuple[str, ...]:
        return tuple(_places("", self._rule._parts()))

    def _with_inner(self, parts: tuple[Component, ...]) -> LowRank:
        return LowRank._of((_method(parts),), dict(self._given))

    def _label(self) -> str:
        return "lowrank"

    def _route(self, layout: Layout, k: int) -> Sequence[RoutedComponent] | None:
        parts = self._rule._parts()
        links = routed(parts, _places("", parts), layout, k)
        if links is None:
            return None
        whole = _axis(layout.shapes[k], self.rank, self.side) is None
        inside = [link._replace(part=_inside(link.part, self.rank, self.side, whole)) for link in links]
        if whole:
            return inside
        statics = {n: getattr(self, n) for n in ("rank", "update_every", "side", "projection", "seed")}
        maximize = any(getattr(link.part, "maximize", False) for link in links)
        down = Projection(**statics, maximize=maximize)
        up = BackProjection(rank=self.rank, side=self.side, scale=self.scale)
        return [
            RoutedComponent((-1,), "lowrank", down),
            *inside,
            RoutedComponent((len(parts),), "lowrank.up", up),
        ]


def _axis(shape: tuple[int, ...], rank: int, side: str) -> int | None:
    """Return which axis of an array is projected; None where none is."""
    if len(shape) != 2 or min(shape) <= rank:
        return None
    return {"left": 0, "right": 1}.get(side, 0 if shape[0] <= shape[1] else 1)


def _projected(shape: tuple[int, ...], rank: int, side: str) -> tuple[int, ...]:
    """Return the shape of what the rule sees of an array."""
    axis = _axis(shape, rank, side)
    return tuple(rank if k == axis else n for k, n in enumerate(shape))


class Projection(Component):
    """Project the gradient of a matrix; the directions are in its state."""

    rank: int = static(ge=1)
    update_every: int = static(ge=1)
    side: Literal["auto", "left", "right"] = "auto"
    projection: Literal["svd", "random"] = "svd"
    seed: int = static(default=0)
    maximize: bool = static(default=False)
    elementwise = False

    def _label(self) -> str:
        return "lowrank"

    def _enter(self) -> Any:
        return lambda h, g: -g if h.maximize else g

    @staticmethod
    def directions(h: H, xp: Any, p: Array) -> Array:
        """Return the first unit vectors, which are used until there is a gradient to take others from."""
        axis = _axis(p.shape, h.rank, h.side) or 0
        return xp.eye(p.shape[axis], h.rank, dtype=p.dtype, **_arrays.beside(p))

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, basis: Array = "directions") -> tuple[Array, ...]:
        left = _axis(p.shape, h.rank, h.side) == 0
        make = _singular if h.projection == "svd" else _random
        due = h.update_every == 1 or (h.t - 1) % h.update_every == 0
        basis = either(due, lambda: make(h, xp, g if left else adjoint(xp, g), basis), lambda: basis)
        return xp.matmul(adjoint(xp, basis), g) if left else xp.matmul(g, basis), basis


class BackProjection(Component):
    """Turn the step of a rule on what was projected into one of the parameter."""

    rank: int = static(ge=1)
    scale: Hyper = hyper(ge=0)
    side: Literal["auto", "left", "right"] = "auto"
    elementwise = False

    def _base_spec(self, key: str, order: tuple[int, ...]) -> ComponentSpec:
        spec = super()._base_spec(key, order)
        return spec._replace(slots={}, borrows={"basis": f"{key.removesuffix('.up')}.basis"})

    @staticmethod
    def update(h: H, xp: Any, p: Array, g: Array, basis: Array = 0.0) -> Array:
        left = _axis(p.shape, h.rank, h.side) == 0
        return h.scale * (xp.matmul(basis, g) if left else xp.matmul(g, adjoint(xp, basis)))


for _part in (Projection, BackProjection):
    _part.__name__ = "LowRank"  # in errors


def _singular(h: H, xp: Any, g: Array, old: Array) -> Array:
    """Return the first left singular vectors, each with the sign at which its largest element is positive."""
    if not hasattr(xp.linalg, "svd"):
        raise TypeError("LowRank needs singular vectors, and the library of the parameters has no linalg.svd")
    top = xp.max(xp.abs(g))
    fine = xp.isfinite(top) & (top > 0)
    unit = xp.where(fine, top, xp.ones_like(top))
    found = xp.linalg.svd(xp.where(fine, g / unit, xp.ones_like(g)), full_matrices=False)[0][:, : h.rank]
    size = xp.abs(found)
    largest = xp.sum(xp.where(size == xp.max(size, axis=0, keepdims=True), found, xp.zeros_like(found)), axis=0)
    size = xp.abs(largest)
    phase = xp.where(size > 0, conj(xp, largest), xp.ones_like(largest)) / xp.where(size > 0, size, xp.ones_like(size))
    return xp.where(fine, found * phase, old)


def _random(h: H, xp: Any, g: Array, old: Array) -> Array:
    """Return orthonormal directions that are a function of the seed, the step and the place of the array."""
    return xp.linalg.qr(random.normal(old, (h.seed, h.leaf), h.t))[0]


@once
def _kind(cls: Any, rank: int, side: str, whole: bool) -> type[Component]:
    """Return the class of components that keep state of the shape of what is projected.

    Of ``whole`` parameters, which are not, it still is its own: all parameters have slots of the same names.
    """

    def _base_spec(self: Any, key: str, order: tuple[int, ...]) -> ComponentSpec:
        usual: ComponentSpec = super(made, self)._base_spec(key, order)
        slots = {n: _first(x, shape) for n, x in usual.slots.items() if not isinstance(x, str)}
        spec = usual._replace(slots=slots, enter=usual.enter if whole else None)  # `Projection` enters
        _check(cls, usual, spec)
        if usual.elementwise or whole:
            return spec
        return spec._replace(update=functools.partial(_without_parameters, usual.update))

    shape = functools.partial(_projected, rank=rank, side=side)
    made = cast(type[Component], type(cls.__name__, (cls,), {"_base_spec": _base_spec, "__module__": __name__}))
    return made


def _inside(part: Component, rank: int, side: str, whole: bool) -> Component:
    """Return a component for what is projected, with the same values."""
    kind: Any = type(part)
    new = object.__new__(_kind(kind, rank, side, whole))
    new.__dict__.update(part.__getstate__())
    return new


class _Like(NamedTuple):
    """A slot that a rule makes beside a parameter, beside an array of another shape."""

    make: Callable[..., Any]
    shape: Callable[[tuple[int, ...]], tuple[int, ...]]

    def __call__(self, h: H, xp: Any, p: Array) -> Any:
        return self.make(h, xp, zeros(xp, p, self.shape(tuple(p.shape))))


def _first(value: Any, shape: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Any:
    """Return the first value of a slot in the shape of what is projected."""
    return value if value is None else _Like(value, shape) if callable(value) else Filled(value, shape)


def _without_parameters(update: Callable[..., Any], h: H, xp: Any, p: Array, g: Array, **slots: Array) -> Any:
    """Call a rule of whole arrays that needs of parameters nothing but their shape, which is that of ``g``."""
    return update(h, xp, xp.zeros_like(g), g, **slots)


def _reads_parameters(part: Component) -> bool:
    """Whether steps of a component of whole arrays hang on the parameter: two steps from two places are compared."""
    rule: Any = _method((part,))
    rng, steps = np.random.default_rng(0), []
    grads = rng.standard_normal((2, 3, 4))
    for p in (np.zeros((3, 4)), rng.standard_normal((3, 4))):
        state = rule.init(p)
        for g in grads:
            step, state = rule.updates(p, g, state)
            steps.append(step)
    return not all(np.array_equal(a, b) for a, b in zip(steps[:2], steps[2:], strict=True))


def _check(cls: type[Component], usual: ComponentSpec, spec: ComponentSpec) -> None:
    """Refuse a component that cannot be given what is projected in the place of a gradient."""
    why = ""
    if issubclass(cls, Projection | BackProjection):
        why = "projects already"
    elif spec.on_params or spec.readout or "p" in usual.slots.values():
        why = "keeps or changes parameters"
    elif spec.asks or spec.asks_sum:
        why = "asks for the gradient"
    elif spec.curvature:
        why = "takes estimates of the curvature"
    elif spec.elementwise and plan((spec,), False).reads("p", "u"):
        why = "computes with the parameters"
    if why:
        raise TypeError(_refusal(cls.__name__, why))


def _refusal(name: str, why: str) -> str:
    return f"LowRank: {name} {why}, but inside of LowRank there is nothing but what is projected"
